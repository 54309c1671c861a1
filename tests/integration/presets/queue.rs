//! Long commands as jobs: asked for by a person, done by the worker of that machine.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{Machine, text};
use crate::support::Server;
use crate::support::redis::RedisServer;
use crate::support::s3::S3;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_worker_does_what_is_queued_and_no_key_goes_through_the_queue() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    let redis = RedisServer::start();
    anna.set("REDIS_URL", &redis.url());
    anna.fill(&["one"]).await;
    let mut worker = Command::new(env!("CARGO_BIN_EXE_bullwork"));
    let like = anna.command(&[]);
    worker.args(["worker", "preset"]).current_dir(anna.path("")).env_clear();
    worker.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    worker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _worker = Server::start(worker, Signal::SIGTERM);
    let done = anna.good(&["push-new", "name=base", "desc=Через очередь", "who=Анна", "--queue", "--wait"]);
    assert!(done.contains("\"revision\":1"), "{done}");
    anna.good(&["get", "--queue", "--wait"]);
    let through_bullwork = {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
        command.args(["preset", "select", "base", "--queue", "--wait"]).current_dir(anna.path("")).env_clear();
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
    };
    assert!(through_bullwork.status.success(), "{}", text(&through_bullwork.stderr));
    assert_eq!(anna.rows().await, ["one", "migrated"]);
    let refused = anna.db_p(&["push-new", "name=base", "desc=x", "--queue", "--wait"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is in shop/main"), "{}", text(&refused.stderr));
    for words in [
        vec!["set-lock", "name=base", "who=A", "desc=x", "--queue"],
        vec!["push-ex", "name=base", "desc=x", "key=0123456789abcdef0123456789abcdef", "--queue"],
        vec!["get", "--wait"],
    ] {
        assert_eq!(anna.db_p(&words).status.code(), Some(2), "{words:?}");
    }
}
