//! The notification step against real HTTP receivers.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use bullwork::config::{Environment, Reader};
use bullwork::jobs::notification::{Notification, Payload};
use bullwork::webhook::signature::SigningKey;
use bullwork::worker::{JobContext, JobKind, Memory, Outcome};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::support::lines::Lines;

/// The job's data, as Redis would keep it.
#[derive(Default)]
struct Data(Mutex<Value>);

#[async_trait::async_trait]
impl Memory for Data {
    async fn remember(&self, data: Value) -> anyhow::Result<()> {
        *self.0.lock().expect("no holder panics") = data;
        Ok(())
    }
}

/// A job that keeps its data from try to try.
struct Job {
    environment: Environment,
    data: Arc<Data>,
}

impl Job {
    fn new(settings: &[(&str, String)]) -> Job {
        let environment = Environment::of(settings.iter().map(|(n, v)| (*n, v.clone())).chain([("APP", "my-app".to_owned())]));
        Job { environment, data: Arc::new(Data(Mutex::new(json!({})))) }
    }

    async fn attempt(&self) -> (Result<Outcome, String>, Vec<String>) {
        let reader = Reader::new(&self.environment);
        let kind = Notification::from_settings(&reader);
        reader.finish().expect("the configuration is right");
        let data = self.data.0.lock().expect("no holder panics").clone();
        let payload: Payload = serde_json::from_value(data).expect("what was written is readable");
        let (run, lines) = Lines::of_run(CancellationToken::new());
        let memory: Arc<dyn Memory> = self.data.clone();
        let context = JobContext { payload, attempt: 1, attempts: 10, run, memory: Some(memory) };
        let result = kind.run(&context).await.map_err(|e| format!("{e:#}"));
        (result, lines.messages())
    }
}

async fn receiver() -> MockServer {
    MockServer::start().await
}

async fn answers(server: &MockServer, at: &str, status: u16) {
    Mock::given(method("POST")).and(path(at)).respond_with(ResponseTemplate::new(status)).mount(server).await;
}

async fn received(server: &MockServer) -> Vec<Request> {
    server.received_requests().await.expect("recording is on")
}

fn paths(requests: &[Request]) -> Vec<&str> {
    requests.iter().map(|r| r.url.path()).collect()
}

fn header<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    request.headers.get(name).map(|v| v.to_str().expect("headers of ours are text"))
}

#[tokio::test]
async fn every_url_gets_an_empty_object_and_its_token_verbatim() {
    let server = receiver().await;
    for at in ["/one", "/two", "/three", "/old"] {
        answers(&server, at, 204).await;
    }
    let uri = server.uri();
    let job = Job::new(&[
        (
            "NOTIFICATIONS",
            json!([{"url": format!("{uri}/one"), "token": "no prefix, just this"}, {"url": format!("{uri}/two"), "token": ""}, {"url": format!("{uri}/three")}])
                .to_string(),
        ),
        ("NOTIFICATION_URLS", json!([format!("{uri}/old"), format!("{uri}/one")]).to_string()),
    ]);
    let (result, lines) = job.attempt().await;
    assert_eq!(result.unwrap(), Outcome::Done(json!({"notified": 4})));
    let requests = received(&server).await;
    assert_eq!(paths(&requests), ["/one", "/two", "/three", "/old"]);
    let tokens: Vec<Option<&str>> = requests.iter().map(|r| header(r, "authorization")).collect();
    assert_eq!(tokens, [Some("no prefix, just this"), Some(""), None, None]);
    assert!(requests.iter().all(|r| r.body == b"{}" && header(r, "content-type") == Some("application/json")));
    let milestones: Vec<&String> = lines.iter().filter(|l| !l.starts_with("Notified")).collect();
    let notify = |at: &str| format!("Notify {uri}{at}");
    assert_eq!(
        milestones,
        [
            "Start notification",
            &notify("/one"),
            &notify("/two"),
            &notify("/three"),
            &notify("/old"),
            "Notification done",
            "Import and enrichment done"
        ]
    );
    assert!(lines.contains(&format!("Notified {uri}/one: 204 No Content")), "{lines:?}");
}

#[tokio::test]
async fn the_first_failure_hides_no_other_and_a_later_try_calls_only_what_failed() {
    let server = receiver().await;
    Mock::given(path("/flaky")).respond_with(ResponseTemplate::new(500)).up_to_n_times(1).mount(&server).await;
    answers(&server, "/flaky", 200).await;
    answers(&server, "/fine", 200).await;
    let uri = server.uri();
    let job = Job::new(&[("NOTIFICATION_URLS", json!([format!("{uri}/flaky"), format!("{uri}/fine")]).to_string())]);
    let (result, lines) = job.attempt().await;
    let error = result.unwrap_err();
    assert!(error.contains(&format!("1 of 2 URLs could not be notified: {uri}/flaky: the server answered 500")), "{error}");
    assert!(lines.contains(&format!("Error on POST request to {uri}/flaky")), "{lines:?}");
    assert!(lines.iter().any(|l| l.starts_with(&format!("Notified {uri}/fine"))), "{lines:?}");
    assert!(!lines.contains(&"Notification done".to_owned()));
    let stored = job.data.0.lock().unwrap().to_string();
    assert!(!stored.contains("fine") && !stored.contains("127.0.0.1"), "no URL in Redis: {stored}");

    let (result, lines) = job.attempt().await;
    result.unwrap();
    assert_eq!(paths(&received(&server).await), ["/flaky", "/fine", "/flaky"]);
    assert!(lines.contains(&format!("Already notified by an earlier try: {uri}/fine")), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "Import and enrichment done");
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_given_up_and_the_next_one_called() {
    let server = receiver().await;
    Mock::given(path("/slow")).respond_with(ResponseTemplate::new(200).set_delay(Duration::from_secs(60))).mount(&server).await;
    answers(&server, "/fine", 200).await;
    let uri = server.uri();
    let dead = format!("http://127.0.0.1:{}/dead", crate::support::free_port());
    let job = Job::new(&[
        ("NOTIFICATION_URLS", json!([format!("{uri}/slow"), dead, format!("{uri}/fine")]).to_string()),
        ("NOTIFICATION_TIMEOUT", "1".to_owned()),
    ]);
    let start = Instant::now();
    let (result, lines) = job.attempt().await;
    assert!(start.elapsed() < Duration::from_secs(20));
    let error = result.unwrap_err();
    assert!(error.contains("2 of 3") && error.contains("no complete answer within 1 s") && error.contains("refused"), "{error}");
    assert!(lines.contains(&format!("Error on POST request to {dead}")));
    assert_eq!(paths(&received(&server).await), ["/slow", "/fine"]);
}

#[tokio::test]
async fn with_a_secret_the_body_is_a_signed_report_with_one_identity_over_all_tries() {
    let server = receiver().await;
    Mock::given(path("/signed")).respond_with(ResponseTemplate::new(503)).up_to_n_times(1).mount(&server).await;
    answers(&server, "/signed", 200).await;
    answers(&server, "/shared", 200).await;
    let uri = server.uri();
    let secret = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode("a key of this receiver"));
    let shared = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode("another key"));
    let job = Job::new(&[
        (
            "NOTIFICATIONS",
            json!([{"url": format!("{uri}/signed"), "secret": secret}, {"url": format!("{uri}/shared")}]).to_string(),
        ),
        ("NOTIFICATION_SECRET", shared.clone()),
    ]);
    let (result, lines) = job.attempt().await;
    let error = result.unwrap_err();
    assert!(!format!("{error}{lines:?}").contains(&secret));
    job.attempt().await.0.unwrap();
    let requests = received(&server).await;
    assert_eq!(paths(&requests), ["/signed", "/shared", "/signed"]);
    for (request, secret) in requests.iter().zip([&secret, &shared, &secret]) {
        let report: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(report["event"], "replication.completed");
        assert_eq!(report["app"], "my-app");
        assert!(report["finished_at"].as_str().unwrap().ends_with('Z'));
        let id = header(request, "webhook-id").unwrap();
        let timestamp = header(request, "webhook-timestamp").unwrap().parse().unwrap();
        let expected = SigningKey::parse(secret).unwrap().headers(id, timestamp, &request.body);
        assert_eq!(header(request, "webhook-signature"), Some(expected[2].1.as_str()));
    }
    assert_eq!(header(&requests[0], "webhook-id"), header(&requests[2], "webhook-id"));
    assert_eq!(requests[0].body, requests[2].body);
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_neither_token_nor_success() {
    let (server, other) = (receiver().await, receiver().await);
    answers(&other, "/stolen", 200).await;
    answers(&server, "/moved", 200).await;
    for (at, status, to) in [
        ("/away", 307, format!("{}/stolen", other.uri())),
        ("/get", 302, "/moved".to_owned()),
        ("/same", 308, "/moved".to_owned()),
    ] {
        let answer = ResponseTemplate::new(status).insert_header("location", to.as_str());
        Mock::given(path(at)).respond_with(answer).mount(&server).await;
    }
    let uri = server.uri();
    let entry = |at: &str| json!({"url": format!("{uri}{at}"), "token": "the-token"});
    let job = Job::new(&[("NOTIFICATIONS", json!([entry("/away"), entry("/get"), entry("/same")]).to_string())]);
    let error = job.attempt().await.0.unwrap_err();
    assert!(error.contains("2 of 3") && error.contains("307") && error.contains("set the final URL"), "{error}");
    assert!(received(&other).await.is_empty());
    let requests = received(&server).await;
    assert_eq!(paths(&requests), ["/away", "/get", "/same", "/moved"]);
    assert_eq!(requests[3].method.as_str(), "POST");
    assert_eq!(header(&requests[3], "authorization"), Some("the-token"));
}

#[tokio::test]
async fn secrets_in_a_url_are_masked_and_its_path_stays() {
    let server = receiver().await;
    answers(&server, "/hook", 500).await;
    let url = format!("{}/hook?token=very-secret-thing&page=1", server.uri().replace("http://", "http://me:pass-word-1@"));
    let job = Job::new(&[("NOTIFICATION_URLS", json!([url]).to_string())]);
    let (result, lines) = job.attempt().await;
    let text = format!("{} {lines:?}", result.unwrap_err());
    assert!(text.contains("/hook?token=***&page=1") && text.contains("me:***@"), "{text}");
    assert!(!text.contains("very-secret-thing") && !text.contains("pass-word-1"), "{text}");
}

#[tokio::test]
async fn the_token_goes_before_a_user_in_the_url() {
    let server = receiver().await;
    answers(&server, "/hook", 200).await;
    let url = format!("{}/hook", server.uri().replace("http://", "http://me:pass-word-1@"));
    let job = Job::new(&[("NOTIFICATIONS", json!([{"url": url, "token": "the-token"}, {"url": url}]).to_string())]);
    job.attempt().await.0.unwrap();
    let requests = received(&server).await;
    let all = |n: usize| requests[n].headers.get_all("authorization").iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all(0), ["the-token"]);
    assert!(all(1).len() == 1 && all(1)[0].starts_with("Basic "));
}

#[tokio::test]
async fn nobody_to_notify_is_a_success() {
    let (result, lines) = Job::new(&[]).attempt().await;
    assert_eq!(result.unwrap(), Outcome::Done(json!({"notified": 0})));
    assert_eq!(lines.last().unwrap(), "Import and enrichment done");
}
