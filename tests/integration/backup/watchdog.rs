//! Who is told about a run.

use bullwork::jobs::backup::Payload;
use tokio_util::sync::CancellationToken;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::Setup;

async fn pinged(server: &MockServer) -> Vec<String> {
    let requests = server.received_requests().await.unwrap();
    let told = requests.iter().map(|r| format!("{} {}", r.method, r.url.path())).collect();
    server.reset().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(server).await;
    told
}

#[tokio::test]
async fn success_is_told_after_an_archive_and_after_proof_that_none_is_needed() {
    let setup = Setup::new().await;
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let url = format!("{}/check/abcdef", server.uri());
    let settings = [("BACKUP_PING_URL", url.as_str())];
    setup.take(&settings).await;
    assert_eq!(pinged(&server).await, ["GET /check/abcdef/start", "GET /check/abcdef"]);
    setup.take(&settings).await;
    assert_eq!(pinged(&server).await, ["GET /check/abcdef/start", "GET /check/abcdef"]);

    setup.shop.batch_execute("update customer set name = 'x' where id = 1").await.unwrap();
    let bin = setup.false_pg_dump("echo 'disk on fire' >&2; exit 1").display().to_string();
    setup.fails(&[("BACKUP_PING_URL", &url), ("PG_BIN", &bin)]).await;
    let requests = server.received_requests().await.unwrap();
    let body = String::from_utf8(requests.last().unwrap().body.clone()).unwrap();
    assert!(body.contains("disk on fire"), "{body}");
    assert_eq!(pinged(&server).await, ["GET /check/abcdef/start", "POST /check/abcdef/fail"]);

    setup.fails(&[("BACKUP_PING_URL", &url), ("DATABASE_URL", "postgres://u@127.0.0.1:9/x")]).await;
    assert_eq!(pinged(&server).await, ["GET /check/abcdef/start", "POST /check/abcdef/fail"]);
}

#[tokio::test]
async fn a_watchdog_that_is_down_changes_nothing_about_a_run() {
    let setup = Setup::new().await;
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(500)).mount(&server).await;
    let url = format!("{}/check/abcdef", server.uri());
    let kind = setup.kind(&[("BACKUP_PING_URL", &url)]);
    let (outcome, lines) = setup.run_with(&kind, Payload::default(), CancellationToken::new()).await;
    assert!(format!("{outcome:?}").contains("archived"), "{outcome:?}");
    assert!(lines.holds("the success ping to") && !lines.holds("abcdef"), "{:?}", lines.messages());
}

#[tokio::test]
async fn a_skipped_run_tells_nobody() {
    let setup = Setup::new().await;
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let url = format!("{}/check/abcdef", server.uri());
    setup.shop.batch_execute("select pg_advisory_lock(1651862636, 2)").await.unwrap();
    let value = setup.take(&[("BACKUP_PING_URL", &url)]).await;
    assert_eq!(super::result(&value), "skipped");
    assert_eq!(pinged(&server).await, [""; 0]);
}
