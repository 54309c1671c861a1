//! What is published, as a listener of ours understands it.

use std::time::Duration;

use bullwork::queue::{Debounce, Event, EventStream, Failure, JobOptions, NewJob};
use serde_json::json;

use super::bench::{Bench, NOW};

async fn next(events: &mut EventStream) -> Option<Event> {
    tokio::time::timeout(Duration::from_secs(10), events.next()).await.expect("an event within 10 s")
}

#[tokio::test]
async fn a_listener_hears_everything_about_its_queue_and_nothing_about_others() {
    let bench = Bench::start().await;
    // A name that would match all others as a pattern.
    let queue = bench.other("*[a-z]?");
    let mut events = queue.events().await.unwrap();
    let mut heard = Vec::new();
    let debounce = || Some(Debounce { id: "d".into(), ttl: None });
    let job = |delay| {
        NewJob::unnamed(json!({}), JobOptions { delay, job_id: Some("j".into()), debounce: debounce(), ..JobOptions::default() })
    };

    bench.add(JobOptions::default()).await;
    queue.add(&job(500)).await.unwrap();
    queue.add(&job(500)).await.unwrap();
    queue.add(&NewJob::unnamed(json!({}), JobOptions { debounce: debounce(), ..JobOptions::default() })).await.unwrap();
    queue.promote("j").await.unwrap();
    queue.pause().await.unwrap();
    queue.resume().await.unwrap();
    let take = || async { queue.take("t", Duration::from_secs(60), bullwork::queue::Admission::Any).await.unwrap() };
    let bullwork::queue::Taken::Job(taken) = take().await else { panic!("there is a job") };
    queue.set_progress("j", &json!([1])).await.unwrap();
    queue.request_cancel("j", "me").await.unwrap();
    queue.fail(&taken, "t", &Failure { reason: "no".into(), stacktrace: String::new(), retry: false }).await.unwrap();
    queue.retry("j").await.unwrap();
    let bullwork::queue::Taken::Job(taken) = take().await else { panic!("there is a job") };
    queue.complete(&taken, "t", &json!({"a": 1}), None).await.unwrap();
    take().await;

    let id = || "j".to_owned();
    let expected = [
        Event::Delayed { until: NOW + 500 },
        Event::Duplicated { id: id() },
        Event::Debounced { id: id() },
        Event::Waiting { id: id() },
        Event::Paused,
        Event::Resumed,
        Event::Active { id: id() },
        Event::Progress { id: id(), progress: json!([1]) },
        Event::CancelRequested { id: id() },
        Event::Failed { id: id(), reason: "no".into() },
        Event::Waiting { id: id() },
        Event::Active { id: id() },
        Event::Completed { id: id(), value: Some(json!({"a": 1})) },
        Event::Drained,
    ];
    for _ in &expected {
        heard.push(next(&mut events).await.expect("the connection stays"));
    }
    assert_eq!(heard, expected);
}

#[tokio::test]
async fn a_cut_connection_ends_the_events_and_listening_again_works() {
    let mut bench = Bench::start().await;
    let mut events = bench.queue.events().await.unwrap();
    let killed: i64 = bench.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(killed, 1);
    assert_eq!(next(&mut events).await, None);
    let mut events = bench.queue.events().await.unwrap();
    bench.add(JobOptions::default()).await;
    assert_eq!(next(&mut events).await, Some(Event::Waiting { id: "1".into() }));
    bench.server.kill();
    assert_eq!(next(&mut events).await, None);
    assert!(bench.queue.events().await.is_err());
}
