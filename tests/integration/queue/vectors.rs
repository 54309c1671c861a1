//! What the real Bull 4.16.5 wrote (`tests/vectors/bull-vectors.json`), written by us.

use std::collections::BTreeMap;
use std::time::Duration;

use bullwork::queue::{Failure, Job, JobOptions, NewJob, RepeatEntry, State};
use serde_json::{Value, json};

use super::bench::{Bench, NOW, comparable, number, pairs, text, texts, vectors};

/// Options that our type cannot express are kept as they are.
fn raw(options: &Value) -> JobOptions {
    JobOptions { attempts: 1, other: options.as_object().expect("an object").clone(), ..JobOptions::default() }
}

#[tokio::test]
async fn delayed_jobs_get_bulls_score() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    for case in vectors()["delayed_score_on_add"]["cases"].as_array().unwrap() {
        let () = bench.command(&["FLUSHALL"]).await;
        let (timestamp, delay, counter) = (number(&case["timestamp"]), number(&case["delay"]), number(&case["counter"]));
        let () = bench.command(&["SET", "bull:v:id", &(counter - 1).to_string()]).await;
        let id = text(&case["jobId"]);
        let job_id = (id != counter.to_string()).then(|| id.clone());
        bench.add(JobOptions { timestamp: Some(timestamp), delay, job_id, ..JobOptions::default() }).await;
        assert_eq!(bench.zset("delayed").await, [id.clone(), text(&case["score"])]);
        assert_eq!(bench.hash(&id).await["delay"], text(&case["delay_field"]));
        assert_eq!(ear.heard().await, [("bull:v:delayed".to_owned(), (timestamp + delay).to_string())]);
    }
}

#[tokio::test]
async fn jobs_delayed_by_back_off_get_bulls_score_and_message() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    for case in vectors()["delayed_score_on_backoff"]["cases"].as_array().unwrap() {
        let () = bench.command(&["FLUSHALL"]).await;
        let id = text(&case["jobId"]);
        let options = json!({"attempts": 2, "backoff": number(&case["due_ms"]) - NOW, "jobId": id});
        bench.add(JobOptions::from_json(&options)).await;
        let job = bench.take("t").await;
        ear.heard().await;
        let failure = Failure { reason: "x".into(), stacktrace: String::new(), retry: true };
        bench.queue.fail(&job, "t", &failure).await.unwrap();
        assert_eq!(bench.zset("delayed").await, [id, text(&case["score"])]);
        assert_eq!(ear.heard().await, [("bull:v:delayed".to_owned(), text(&case["published"]))]);
    }
}

#[test]
fn back_off_waits_as_bulls() {
    for case in vectors()["backoff"]["cases"].as_array().unwrap() {
        for backoff in [&case["backoff"], &case["normalised"]] {
            let job = Job { opts: json!({"backoff": backoff}), ..Job::default() };
            let waits: Vec<i64> = (1..=12).map(|failures| job.backoff(failures)).collect();
            assert_eq!(json!(waits), case["delays_for_attemptsMade_1_to_12"], "{backoff}");
        }
    }
    let unknown = Job { opts: json!({"backoff": {"type": "jitter", "delay": 70}}), ..Job::default() };
    assert_eq!(unknown.backoff(3), 70, "a strategy of another worker waits its plain delay");
    let endless = Job { opts: json!({"backoff": {"type": "exponential", "delay": 1e300}}), ..Job::default() };
    assert_eq!(endless.backoff(4_000_000_000), 3_200_000_000_000);
}

#[tokio::test]
async fn options_are_stored_as_bull_stores_them() {
    let mut bench = Bench::start().await;
    let mut compared = 0;
    for case in vectors()["opts_json"]["cases"].as_array().unwrap() {
        let given = &case["given"];
        if given.get("jobId").is_some_and(Value::is_number) {
            // Our ids are texts.
            continue;
        }
        compared += 1;
        let () = bench.command(&["FLUSHALL"]).await;
        let id = bench.add(JobOptions::from_json(given)).await;
        assert_eq!(id, text(&case["id"]), "{given}");
        let hash = bench.hash(&id).await;
        let mut expected: Value = serde_json::from_str(&text(&case["opts"])).unwrap();
        // Keeping all is what happens without the option.
        if expected["removeOnFail"] == json!(false) {
            expected.as_object_mut().unwrap().remove("removeOnFail");
        }
        assert_eq!(serde_json::from_str::<Value>(&hash["opts"]).unwrap(), expected, "{given}");
        for field in ["delay", "priority", "timestamp"] {
            assert_eq!(hash[field], text(&case[field]), "{field} of {given}");
        }
        assert_eq!(hash.keys().cloned().collect::<Vec<_>>(), texts(&case["all_fields"]));
        assert_eq!(bench.places(&id).await, [text(&case["in"])]);
    }
    assert!(compared >= 20, "{compared}");
}

#[tokio::test]
async fn data_is_stored_as_bull_stores_it() {
    let mut bench = Bench::start().await;
    let mut compared = 0;
    for case in vectors()["data_json"]["cases"].as_array().unwrap() {
        let given = match text(&case["given"]).as_str() {
            "undefined" | "null" => json!(null),
            "false" => json!(false),
            "empty string" => json!(""),
            "unicode" => json!({"u": "é😀\u{2028}\"\\/\n"}),
            "nested" => json!({"a": {"b": [1, null, 1.5, 1e21]}}),
            "Date" | "undefined member" | "NaN" => continue,
            other => serde_json::from_str(other).unwrap(),
        };
        compared += 1;
        let id = match bench.queue.add(&NewJob::unnamed(given, JobOptions::default())).await.unwrap() {
            bullwork::queue::Added::New(id) => id,
            other => panic!("{other:?}"),
        };
        let (ours, bulls) = (&bench.hash(&id).await["data"], text(&case["data"]));
        if bulls.contains("1e+21") {
            assert_eq!(serde_json::from_str::<Value>(ours).unwrap(), serde_json::from_str::<Value>(&bulls).unwrap());
        } else {
            assert_eq!(*ours, bulls);
        }
    }
    assert_eq!(compared, 11);
}

#[tokio::test]
async fn finished_jobs_look_as_bulls() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    for case in vectors()["finish"]["cases"].as_array().unwrap() {
        let label = text(&case["label"]);
        let () = bench.command(&["FLUSHALL"]).await;
        bench.clock.set(NOW);
        bench.add(JobOptions::from_json(&case["opts"])).await;
        let job = bench.take("t").await;
        bench.clock.set(NOW + 1000);
        ear.heard().await;
        if let Some(what) = label.strip_prefix("complete") {
            let value = match what.trim_start_matches(" with ") {
                "undefined" | "null" => json!(null),
                "0" => json!(0),
                "false" => json!(false),
                "empty string" => json!(""),
                "string" => json!("ok"),
                "number" => json!(5),
                "object" => json!({"a": 1}),
                "array" => json!([1]),
                ", removeOnComplete true" => json!(1),
                other => panic!("an unknown case `{other}`"),
            };
            bench.queue.complete(&job, "t", &value, None).await.unwrap();
        } else {
            let (reason, stacktrace) = match label.as_str() {
                "fail with a plain object message" => ("manual", ""),
                "fail with empty message" => ("", "Error"),
                _ => ("bad", "Error: bad"),
            };
            let failure = Failure { reason: reason.into(), stacktrace: stacktrace.into(), retry: label != "fail, discarded" };
            bench.queue.fail(&job, "t", &failure).await.unwrap();
        }
        let expected: BTreeMap<String, String> = serde_json::from_value(case["hash"].clone()).unwrap();
        assert_eq!(comparable(&bench.hash("1").await), comparable(&expected), "{label}");
        for list in ["wait", "active"] {
            assert_eq!(json!(bench.list(list).await), case[list], "{list}: {label}");
        }
        for zset in ["completed", "failed", "delayed"] {
            assert_eq!(json!(bench.zset(zset).await), case[zset], "{zset}: {label}");
        }
        let heard = ear.heard().await;
        if label == "complete with undefined" {
            // A handler of ours always returns something; `null` is told as such.
            continue;
        }
        let as_json = |events: &[(String, String)]| -> Vec<(String, Value)> {
            events.iter().map(|(c, p)| (c.clone(), serde_json::from_str(p).unwrap())).collect()
        };
        if label.contains("backoff") {
            assert_eq!(heard, pairs(&case["events"]));
        } else {
            assert_eq!(as_json(&heard), as_json(&pairs(&case["events"])), "{label}");
        }
        assert!(!bench.exists("1:lock").await);
    }
}

#[tokio::test]
async fn the_line_is_ordered_as_bulls() {
    let mut bench = Bench::start().await;
    for case in vectors()["wait_order"]["cases"].as_array().unwrap() {
        let () = bench.command(&["FLUSHALL"]).await;
        for job in case["adds"].as_array().unwrap() {
            let priority = u32::try_from(number(&job["p"])).unwrap();
            let lifo = job.get("l") == Some(&json!(true));
            bench.add(JobOptions { priority, lifo, ..JobOptions::default() }).await;
        }
        assert_eq!(json!(bench.list("wait").await), case["wait"], "{case}");
        assert_eq!(json!(bench.zset("priority").await), case["priority"], "{case}");
    }
}

#[tokio::test]
async fn lists_of_jobs_are_ordered_as_bulls() {
    let bench = Bench::start().await;
    for _ in 0..6 {
        bench.add(JobOptions::default()).await;
    }
    for delay in 1..=3 {
        bench.add(JobOptions { delay: delay * 1000, ..JobOptions::default() }).await;
    }
    for n in 0..4 {
        bench.clock.set(NOW + n);
        bench.add(JobOptions { job_id: Some(format!("c{n}")), lifo: true, ..JobOptions::default() }).await;
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
    }
    let cases = &vectors()["getters"]["cases"];
    let (waiting, delayed, completed) = ([State::Waiting, State::Paused], [State::Delayed], [State::Completed]);
    let both = [State::Delayed, State::Completed];
    let asked: [(&str, &[State], isize, isize, bool); 10] = [
        ("getWaiting()", &waiting, 0, -1, true),
        ("getWaiting(0,2)", &waiting, 0, 2, true),
        ("getWaiting(2,3)", &waiting, 2, 3, true),
        ("getDelayed()", &delayed, 0, -1, true),
        ("getDelayed(1,1)", &delayed, 1, 1, true),
        ("getCompleted()", &completed, 0, -1, false),
        ("getCompleted(0,1)", &completed, 0, 1, false),
        ("getJobs(['waiting'],0,2)", &waiting[..1], 0, 2, false),
        ("getJobs(['waiting'],0,2,true)", &waiting[..1], 0, 2, true),
        ("getJobs(['delayed','completed'],0,1)", &both, 0, 1, false),
    ];
    for (name, states, start, end, ascending) in asked {
        let jobs = bench.queue.jobs(states, start, end, ascending).await.unwrap();
        assert_eq!(json!(jobs.iter().map(|job| &job.id).collect::<Vec<_>>()), cases[name], "{name}");
    }
    let counts = bench.queue.counts().await.unwrap();
    let ours = json!({"waiting": counts.waiting, "active": counts.active, "completed": counts.completed,
                      "failed": counts.failed, "delayed": counts.delayed, "paused": counts.paused});
    assert_eq!(ours, cases["getJobCounts()"]);
}

#[tokio::test]
async fn retention_keeps_what_bulls_keeps() {
    let mut bench = Bench::start().await;
    let section = &vectors()["retention"];
    let base = number(&section["base"]);
    for case in section["cases"].as_array().unwrap() {
        let () = bench.command(&["FLUSHALL"]).await;
        let ids = ["a", "b", "c", "d", "e", "f"];
        for (id, at) in ids.iter().zip(case["finish_times"].as_array().unwrap()) {
            let options = raw(&json!({"removeOnComplete": case["removeOnComplete"]}));
            bench.add(JobOptions { job_id: Some((*id).into()), ..options }).await;
            bench.clock.set(base + number(at));
            let job = bench.take("t").await;
            bench.queue.log(id, &["a line".into()]).await.unwrap();
            bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
        }
        let left = bench.zset("completed").await;
        let left: Vec<(String, i64)> = left.chunks(2).map(|p| (p[0].clone(), p[1].parse::<i64>().unwrap() - base)).collect();
        assert_eq!(json!(left), case["completed"], "{case}");
        let mut hashes = Vec::new();
        for id in ids {
            let exists = bench.exists(id).await;
            assert_eq!(bench.exists(&format!("{id}:logs")).await, exists, "the log goes with the job");
            if exists {
                hashes.push(id);
            }
        }
        assert_eq!(json!(hashes), case["hashes"], "{case}");
    }
}

#[tokio::test]
async fn stalled_jobs_go_where_bull_puts_them() {
    let mut bench = Bench::start().await;
    for case in vectors()["stalled"]["cases"].as_array().unwrap() {
        let label = text(&case["label"]);
        let () = bench.command(&["FLUSHALL"]).await;
        bench.clock.set(NOW);
        let mut options = raw(&case["opts"]);
        options.priority = case["opts"].get("priority").map_or(0, |p| u32::try_from(number(p)).unwrap());
        bench.add(options).await;
        bench.take("t").await;
        bench.add(JobOptions::default()).await;
        let pauses = label.starts_with("queue paused");
        if pauses {
            bench.queue.pause().await.unwrap();
        }
        for (n, pass) in case["passes"].as_array().unwrap().iter().enumerate() {
            if n == 2 {
                if pauses {
                    bench.queue.resume().await.unwrap();
                }
                assert_eq!(bench.take("t").await.id, text(&case["second_taken"]));
            }
            let _: i64 = bench.command(&["DEL", "bull:v:1:lock", "bull:v:stalled-check"]).await;
            bench.clock.set(number(&pass["at"]));
            assert!(bench.queue.recover_stalled(Duration::from_secs(30), 1).await.unwrap().ran);
            for list in ["wait", "paused", "active"] {
                assert_eq!(json!(bench.list(list).await), pass[list], "{list} in pass {n}: {label}");
            }
            assert_eq!(json!(bench.zset("failed").await), pass["failed"], "pass {n}: {label}");
            assert_eq!(json!(bench.set("stalled").await), pass["stalled"], "pass {n}: {label}");
            let hash = bench.hash("1").await;
            for field in ["stalledCounter", "failedReason", "attemptsMade"] {
                assert_eq!(json!(hash.get(field)), pass[field], "{field} in pass {n}: {label}");
            }
            assert_eq!(json!(!hash.is_empty()), pass["hash_exists"], "pass {n}: {label}");
        }
    }
}

#[tokio::test]
async fn due_jobs_are_promoted_as_bull_promotes_them() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    for case in vectors()["due"]["cases"].as_array().unwrap() {
        let label = text(&case["label"]);
        let () = bench.command(&["FLUSHALL"]).await;
        bench.clock.set(NOW);
        for (delay, priority, lifo) in [(1000, 0, false), (1000, 2, false), (2000, 1, false), (3000, 0, true), (99_000, 0, false)]
        {
            bench.add(JobOptions { delay, priority, lifo, ..JobOptions::default() }).await;
        }
        if label.contains("paused") {
            bench.queue.pause().await.unwrap();
        }
        ear.heard().await;
        bench.clock.set(number(&case["now"]));
        let next = bench.queue.promote_due().await.unwrap();
        let returned: f64 = text(&case["returned"]).parse().unwrap();
        assert_eq!(next, Some((returned / 4096.0).ceil() as i64), "{label}");
        for list in ["wait", "paused"] {
            // Bull ignores that job 4 is lifo; ours is taken next (ADR 0011).
            let expected =
                if case[list] == json!(["4", "1", "2", "3"]) { json!(["1", "2", "3", "4"]) } else { case[list].clone() };
            assert_eq!(json!(bench.list(list).await), expected, "{list}: {label}");
        }
        for zset in ["priority", "delayed"] {
            assert_eq!(json!(bench.zset(zset).await), case[zset], "{zset}: {label}");
        }
        assert_eq!(bench.hash("1").await["delay"], text(&case["delay_field_of_1"]), "{label}");
        assert_eq!(ear.heard().await, pairs(&case["events"]), "{label}");
    }
}

#[tokio::test]
async fn failed_jobs_are_retried_by_hand_as_bulls() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    for case in vectors()["manual_retry"]["cases"].as_array().unwrap() {
        let label = text(&case["label"]);
        let () = bench.command(&["FLUSHALL"]).await;
        bench.clock.set(NOW);
        let expected: BTreeMap<String, String> = serde_json::from_value(case["hash"].clone()).unwrap();
        bench.add(JobOptions::from_json(&serde_json::from_str(&expected["opts"]).unwrap())).await;
        let job = bench.take("t").await;
        let failure = Failure { reason: "bad".into(), stacktrace: "Error: bad".into(), retry: true };
        bench.queue.fail(&job, "t", &failure).await.unwrap();
        bench.add(JobOptions::default()).await;
        if label.contains("paused") {
            bench.queue.pause().await.unwrap();
        }
        ear.heard().await;
        bench.clock.set(NOW + 5000);
        if label.starts_with("retryJobs") {
            assert_eq!(bench.queue.retry_all_failed().await.unwrap(), 1);
        } else {
            bench.queue.retry("1").await.unwrap();
        }
        let mut hash = bench.hash("1").await;
        assert_eq!(hash.remove("stacktrace").as_deref(), Some(r#"["Error: bad"]"#), "stays, and is left out of the vectors");
        assert_eq!(comparable(&hash), comparable(&expected), "{label}");
        // Bull puts these behind job 2; ours go where adding them would put them (ADR 0011).
        let better = ["retry priority 2 (priority ignored)", "retryJobs lifo (ignored)"].contains(&label.as_str());
        for list in ["wait", "paused"] {
            let expected = if better && list == "wait" { json!(["2", "1"]) } else { case[list].clone() };
            assert_eq!(json!(bench.list(list).await), expected, "{list}: {label}");
        }
        assert_eq!(json!(bench.zset("failed").await), case["failed"]);
        assert_eq!(ear.heard().await, pairs(&case["events"]), "{label}");
    }
}

#[test]
fn repeat_keys_are_split_as_bull_splits_them() {
    for case in vectors()["getRepeatableJobs_parse"].as_array().unwrap() {
        let entry = RepeatEntry::parse(&text(&case["key"]), number(&case["next"]));
        let ours = json!({"key": entry.key, "name": entry.name, "id": entry.id, "endDate": entry.end, "tz": entry.time_zone,
                          "cron": entry.cron, "every": entry.every, "next": entry.next});
        assert_eq!(ours, *case);
    }
}

/// A section that is new in the recording needs a test of its own.
#[test]
fn every_section_of_the_recording_is_compared() {
    let facts = [
        "about",
        "bull_version",
        "cron_parser_version",
        "process_tz",
        "repeat_formulae",
        "delayed_due_rule",
        "not_deterministic",
    ];
    let here =
        ["getRepeatableJobs_parse", "delayed_score_on_add", "delayed_score_on_backoff", "backoff", "opts_json", "data_json"];
    let here_too = ["finish", "wait_order", "getters", "retention", "stalled", "due", "manual_retry"];
    // schedules.rs and cron.rs; queue/consumer/feeder.rs.
    let elsewhere = ["repeat", "repeat_without_tz_in_a_process_with_TZ_Europe_Paris", "client_name"];
    let mut known = [&facts[..], &here, &here_too, &elsewhere].concat();
    known.sort_unstable();
    let recorded = vectors();
    let mut sections: Vec<&str> = recorded.as_object().unwrap().keys().map(String::as_str).collect();
    sections.sort_unstable();
    assert_eq!(sections, known);
}
