//! The demo's outside world in one program: the learning-content API and a webhook receiver.
//!
//! `demo_services LCMS_BODY ADDRESS_FILE RECORD_FILE` listens on a free port of 127.0.0.1, writes
//! `127.0.0.1:PORT` to ADDRESS_FILE once it accepts connections, and appends each webhook to
//! RECORD_FILE as a line of JSON. Requests:
//!
//! | request | answer |
//! |---|---|
//! | `GET /databases/airtable` | the body, for the right bearer token and a `client` header; else 401 or 400 |
//! | `GET /slow/databases/airtable` | the same after [`SLOW`]: longer than a client should wait |
//! | `GET /broken/databases/airtable` | 500 |
//! | `POST /hook…` | recorded; 200 |
//! | `POST /flaky…` | recorded; 500 the first time, then 200 |

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::routing::{get, post};

/// The bearer token that the learning-content API asks for.
const LCMS_KEY: &str = "demo-lcms-key";
/// Longer than the default time limit of the request (180 s).
const SLOW: Duration = Duration::from_secs(200);

struct Services {
    lcms_body: Bytes,
    record: Mutex<std::fs::File>,
    flaky_calls: Mutex<u32>,
}

impl Services {
    /// Appends one line; a receiver that cannot write it down has not received it.
    fn record(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &str, answer: StatusCode) -> StatusCode {
        let line = serde_json::json!({
            "method": method.as_str(),
            "path": uri.path(),
            "authorization": text_of(headers, header::AUTHORIZATION.as_str()),
            "content-type": text_of(headers, header::CONTENT_TYPE.as_str()),
            "body": body,
            "answer": answer.as_u16(),
        });
        let mut file = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if writeln!(file, "{line}").is_ok() { answer } else { StatusCode::INSUFFICIENT_STORAGE }
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

async fn lcms(State(services): State<Arc<Services>>, headers: HeaderMap) -> (StatusCode, Bytes) {
    if text_of(&headers, "authorization") != Some(format!("Bearer {LCMS_KEY}")) {
        return (StatusCode::UNAUTHORIZED, Bytes::from_static(b"wrong or missing bearer token"));
    }
    if !headers.contains_key("client") {
        return (StatusCode::BAD_REQUEST, Bytes::from_static(b"the `client` header is missing"));
    }
    (StatusCode::OK, services.lcms_body.clone())
}

async fn slow_lcms(services: State<Arc<Services>>, headers: HeaderMap) -> (StatusCode, Bytes) {
    tokio::time::sleep(SLOW).await;
    lcms(services, headers).await
}

async fn hook(State(services): State<Arc<Services>>, method: Method, uri: Uri, headers: HeaderMap, body: String) -> StatusCode {
    services.record(&method, &uri, &headers, &body, StatusCode::OK)
}

async fn flaky(State(services): State<Arc<Services>>, method: Method, uri: Uri, headers: HeaderMap, body: String) -> StatusCode {
    let first = {
        let mut calls = services.flaky_calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls += 1;
        *calls == 1
    };
    let answer = if first { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    services.record(&method, &uri, &headers, &body, answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(body), Some(address_file), Some(record_file), None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        anyhow::bail!("usage: demo_services LCMS_BODY ADDRESS_FILE RECORD_FILE");
    };
    let lcms_body = std::fs::read(&body).with_context(|| format!("reading {}", body.display()))?;
    let record = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&record_file)
        .with_context(|| format!("opening {}", record_file.display()))?;
    let services = Arc::new(Services { lcms_body: lcms_body.into(), record: Mutex::new(record), flaky_calls: Mutex::new(0) });

    let router = Router::new()
        .route("/databases/airtable", get(lcms))
        .route("/slow/databases/airtable", get(slow_lcms))
        .route("/broken/databases/airtable", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/hook", post(hook))
        .route("/hook/{*rest}", post(hook))
        .route("/flaky", post(flaky))
        .route("/flaky/{*rest}", post(flaky))
        .with_state(services);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("listening on 127.0.0.1")?;
    // Renamed into place, so that whoever waits for the file never reads half of it.
    let address = listener.local_addr().context("asking for the port")?.to_string();
    let unfinished = address_file.with_extension("part");
    std::fs::write(&unfinished, &address)
        .and_then(|()| std::fs::rename(&unfinished, &address_file))
        .with_context(|| format!("writing {}", address_file.display()))?;
    println!("learning content and webhooks on http://{address}");
    axum::serve(listener, router).await.context("serving")
}
