//! What the URL of a Redis can say, against real servers: TLS, users, databases; and what wrong ones are answered.

use std::process::Command;
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Consumer, ConsumerOptions, Event, JobOptions, NewJob, Queue};
use bullwork::redis::Redis;
use serde_json::json;

use crate::support::free_port;
use crate::support::redis::RedisServer;

const SOON: Duration = Duration::from_secs(20);

/// Shared, blocking and subscribing connections all reach the server that `url` names: a job is added, heard of and run.
async fn serves(url: &str) {
    let queue = Queue::new(Redis::new(url).unwrap(), "bull", "mails", Clock::System);
    let mut events = queue.events().await.unwrap();
    let consumer = Consumer::start(&queue, ConsumerOptions::default(), |_| async { Ok(json!("sent")) });
    // The second is taken by the blocking move.
    for round in 1..=2 {
        let id = queue.add(&NewJob::unnamed(json!({}), JobOptions::default())).await.unwrap().id().to_owned();
        let heard = async {
            while events.next().await.expect("the connection lives")
                != (Event::Completed { id: id.clone(), value: Some(json!("sent")) })
            {}
        };
        tokio::time::timeout(SOON, heard).await.unwrap_or_else(|_| panic!("job {round} of {url} is not completed"));
    }
    consumer.stop(SOON).await;
}

/// Why no connection is to be had.
async fn refusal(url: &str) -> String {
    let redis = Redis::new(url).unwrap_or_else(|e| panic!("{url}: {e}"));
    let (shared, own, ear) = tokio::join!(redis.connection(), redis.dedicated(), redis.subscriber());
    let error = shared.err().unwrap_or_else(|| panic!("{url} was served")).to_string();
    for secret in ["right-word", "wrong-word"] {
        assert!(!error.contains(secret), "{error}");
    }
    for other in [own.err().map(|e| e.to_string()), ear.err().map(|e| e.to_string())] {
        assert_eq!(other.as_ref(), Some(&error), "all connections are refused alike");
    }
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_is_served_when_its_authority_is_named() {
    let server = RedisServer::start_with_tls();
    serves(&format!("{}?sslrootcert={}", server.url(), server.file("root.crt"))).await;
    serves(&format!("{}#insecure", server.url())).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_with_the_way_out() {
    let (server, other) = (RedisServer::start_with_tls(), RedisServer::start_with_tls());
    let error = refusal(&server.url()).await;
    assert!(error.contains("sslrootcert=") && error.contains(&server.url()), "{error}");
    let error = refusal(&format!("{}?sslrootcert={}", server.url(), other.file("root.crt"))).await;
    assert!(error.contains("sslrootcert="), "{error}");
    let named = server.url().replace("127.0.0.1", "localhost");
    let error = refusal(&format!("{named}?sslrootcert={}", server.file("root.crt"))).await;
    assert!(error.contains("its certificate is for another name"), "{error}");
}

#[test]
fn the_systems_authorities_are_trusted() {
    let server = RedisServer::start_with_tls();
    let add = |roots: &str| {
        let directory = tempfile::tempdir().unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_bullwork"));
        program.current_dir(directory.path()).env_clear().env("REDIS_URL", server.url()).env("SSL_CERT_FILE", roots);
        let output = program.arg("restart:notification").output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (added, said) = add(&server.file("root.crt"));
    assert!(added, "{said}");
    let (added, said) = add(&RedisServer::start_with_tls().file("root.crt"));
    assert!(!added && said.contains("nobody we trust vouches"), "{said}");
}

#[tokio::test]
async fn tls_where_none_is_spoken_and_the_other_way_round_are_named() {
    let (plain, secure) = (RedisServer::start(), RedisServer::start_with_tls());
    let error = refusal(&plain.url().replace("redis:", "rediss:")).await;
    assert!(error.contains("write redis://"), "{error}");
    let error = refusal(&secure.url().replace("rediss:", "redis:")).await;
    assert!(error.contains("write rediss://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_few_rights_works_in_the_database_of_the_url() {
    let server = RedisServer::start();
    let rights = ["allchannels", "~bull:*", "~bullwork:*", "+@all", "-@admin", "-@dangerous"];
    let needed = ["+info", "+role", "+client|setname", "+client|id", "+client|unblock"];
    server.command(&[&["ACL", "SETUSER", "ann", "on", ">right/word@1"], &rights[..], &needed[..]].concat()).await;
    serves(&format!("redis://ann:right%2Fword%401@127.0.0.1:{}/3", server.port)).await;
    let mut connection = server.connection().await;
    let elsewhere: i64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
    let _: () = redis::cmd("SELECT").arg(3).query_async(&mut connection).await.unwrap();
    let there: i64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
    assert!(elsewhere == 0 && there > 0, "{elsewhere} keys in database 0, {there} in 3");
}

/// `PING` was missing in the list of rights, and a connection that was idle was opened anew each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_no_rights_but_those_of_the_documentation_is_served() {
    let server = RedisServer::start();
    let classes = ["on", ">right-word", "allchannels", "~bull:*", "~bullwork:*", "-@all", "+@read", "+@write", "+@scripting"];
    let more =
        ["+@transaction", "+@pubsub", "+ping", "+select", "+client|setname", "+client|id", "+client|unblock", "+client|list"];
    server.command(&[&["ACL", "SETUSER", "ann"], &classes[..], &more[..]].concat()).await;
    let url = format!("redis://ann:right-word@127.0.0.1:{}/3", server.port);
    serves(&url).await;
    let queue = Queue::new(Redis::new(&url).unwrap(), "bull", "mails", Clock::System);
    assert!(queue.workers().await.unwrap().is_empty());
    queue.pause().await.unwrap();
    let opened = async || -> u64 {
        let mut connection = server.connection().await;
        let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
        info.lines().find_map(|line| line.strip_prefix("total_connections_received:")?.parse().ok()).expect("it counts them")
    };
    let before = opened().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    queue.resume().await.unwrap();
    assert_eq!(opened().await - before, 1, "our own; the idle connection is used again");
}

#[tokio::test]
async fn wrong_users_passwords_databases_and_addresses_are_named_without_secrets() {
    let server = RedisServer::start_with(&["--requirepass", "right-word"]);
    let at = format!("127.0.0.1:{}", server.port);
    let nobody = free_port();
    for (url, parts) in [
        (format!("redis://:wrong-word@{at}"), ["redis://:***@", "user or password is wrong: correct them in the URL"]),
        (format!("redis://eve:right-word@{at}"), ["redis://eve:***@", "user or password is wrong: correct them in the URL"]),
        (format!("redis://{at}/3"), [&at, "it wants a password: put user and password into the URL"]),
        (format!("redis://:right-word@{at}/77"), ["redis://:***@", "the database number in the URL is too high"]),
        (format!("redis://127.0.0.1:{nobody}"), ["redis://127.0.0.1", "refused"]),
    ] {
        let error = refusal(&url).await;
        assert!(parts.iter().all(|part| error.contains(part)), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_so_before_the_first_command() {
    let server = RedisServer::start_with(&["--requirepass", "right-word"]);
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "mails", Clock::System);
    let error = queue.counts().await.unwrap_err().to_string();
    assert!(error.contains("it wants a password") && error.contains(&server.url()), "{error}");
}

#[test]
fn a_url_that_cannot_be_used_is_told_masked_and_with_the_way_out_that_fits() {
    for (url, parts) in [
        ("", &["the Redis URL `` cannot be used: it has no scheme", "write redis://host:6379/0"][..]),
        ("redis-sentinel://a:26379", &["`redis-sentinel://a:26379`", "redis-sentinel://host:26379/mymaster/0"]),
        ("rediss://a?sslrootcert=/no/such", &["reading sslrootcert `/no/such`", "name a file"]),
        ("redis://:right/word@host:6379", &["write `/` in it as %2F"]),
        ("redis://ann:12/word@host:6379", &["write `/` in it as %2F"]),
        ("redis://:a#b?word@host:6379", &["`#` as %23", "`?` as %3F"]),
        ("redis-sentinel://:right/word@host,host/m", &["write `/` in it as %2F"]),
        ("redis://a?sslrootcrt=/x", &["`sslrootcrt`", "sslrootcert"]),
        ("rediss://a?timeout=5", &["`timeout`", "sslrootcert"]),
        ("redis-sentinel://a/m?sentinel-pass=right-word", &["`sentinel-pass`", "sentinel-user", "sentinel-password"]),
        ("redis-cluster://a?sentinel-user=x", &["`sentinel-user`", "sslrootcert"]),
        ("unix:///run/redis.sock?password=right-word", &["`password`", "`db`, `user`, `pass`"]),
    ] {
        let error = Redis::new(url).expect_err(url).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{url}: {error}");
        assert!(!error.contains("REDIS_URL") && !error.contains("word@") && !error.contains("right"), "{url}: {error}");
        let fits = !url.is_empty() && error.contains("write redis://host:6379/0");
        assert!(!fits, "advice that does not fit: {error}");
    }
    Redis::new("unix:///run/redis.sock?db=3&user=ann&pass=right-word").unwrap();
}

#[tokio::test]
async fn sentinel_urls_of_what_is_no_sentinel_are_told_the_way_out() {
    let server = RedisServer::start();
    for form in ["redis-sentinel", "rediss-sentinel"] {
        let error = refusal(&format!("{form}://127.0.0.1:{}/mymaster", server.port)).await;
        let part = if form.starts_with("rediss") {
            "write redis-sentinel:// instead of rediss-sentinel://"
        } else {
            "it is no sentinel: name the sentinels and their port, 26379 as a rule, or write redis:// and the server's address"
        };
        assert!(error.contains(part), "{error}");
    }
}
