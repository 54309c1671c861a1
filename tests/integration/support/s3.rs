//! An S3 server in this process (s3s over a directory, signatures checked), and faults to order in front of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::redact::Secret;
use bullwork::storage::{self, Options, Store};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// With a dot, which the host name of a URL cannot hold.
pub const BUCKET: &str = "my.bucket";
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key-0123456789";

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// It is answered so, and nothing is done.
    Answer(u16, &'static str),
    /// The same, with a body of its own.
    Document(u16, String),
    /// The connection is closed before anything is done.
    CutBefore,
    /// It is done, and the connection closed without an answer.
    CutAfter,
    /// It is done after this time.
    Delay(Duration),
    /// It is done, and the answer has this header.
    Header(&'static str, &'static str),
    /// It is answered that the bucket is in this region.
    Elsewhere(&'static str),
    /// It is done, and the answer's body breaks off after so many bytes.
    Truncate(usize),
}

struct Rule {
    method: Method,
    /// The request's path and query hold this.
    holds: String,
    left: usize,
    action: Action,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    /// `PUT /bucket/key?query`
    pub line: String,
    pub headers: hyper::HeaderMap,
}

#[derive(Default)]
struct Front {
    rules: Mutex<Vec<Rule>>,
    heard: Mutex<Vec<Heard>>,
    /// s3s-fs looks at a precondition first and writes then, and reads content and ETag one after the other; a
    /// store does either in one step.
    turns: tokio::sync::RwLock<()>,
}

pub struct S3 {
    pub port: u16,
    directory: tempfile::TempDir,
    front: Arc<Front>,
    task: tokio::task::JoinHandle<()>,
}

impl S3 {
    pub async fn start() -> S3 {
        S3::start_for(ACCESS_KEY, SECRET_KEY).await
    }

    /// One that takes another key than the usual one.
    pub async fn start_for(access_key: &str, secret_key: &str) -> S3 {
        S3::launch(None, access_key, secret_key).await
    }

    /// With TLS and this certificate.
    pub async fn start_tls(config: tokio_rustls::rustls::ServerConfig) -> S3 {
        S3::launch(Some(tokio_rustls::TlsAcceptor::from(Arc::new(config))), ACCESS_KEY, SECRET_KEY).await
    }

    async fn launch(tls: Option<tokio_rustls::TlsAcceptor>, access_key: &str, secret_key: &str) -> S3 {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        service.set_auth(s3s::auth::SimpleAuth::from_single(access_key, secret_key));
        let service = service.build();
        let front = Arc::new(Front::default());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = front.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (front, service, tls) = (shared.clone(), service.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, front, service).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, front, service).await;
                            }
                        }
                    }
                });
            }
        });
        S3 { port, directory, front, task }
    }

    /// How to reach it: small parts, short pauses.
    pub fn options(&self) -> Options {
        self.options_at(self.port)
    }

    /// The same through another port.
    pub fn options_at(&self, port: u16) -> Options {
        Options {
            endpoint: Some(format!("http://127.0.0.1:{port}").parse().unwrap()),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: Secret::new(SECRET_KEY),
            part_size: 5 << 20,
            concurrency: 3,
            pause: Duration::from_millis(20),
            timeout: Duration::from_secs(20),
            ..Options::default()
        }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store_with(&self.options())
    }

    pub fn store_with(&self, options: &Options) -> Arc<dyn Store> {
        storage::open(&format!("s3://{BUCKET}/some/prefix"), options).unwrap()
    }

    /// Has the next `times` requests of this kind meet `action`.
    pub fn order(&self, method: Method, holds: &str, times: usize, action: Action) {
        self.front.rules.lock().unwrap().push(Rule { method, holds: holds.to_owned(), left: times, action });
    }

    /// Forgets what was ordered.
    pub fn relent(&self) {
        self.front.rules.lock().unwrap().clear();
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.front.heard.lock().unwrap().clone()
    }

    /// How many requests of this kind came.
    pub fn count(&self, holds: &str) -> usize {
        self.heard().iter().filter(|heard| heard.line.contains(holds)).count()
    }

    /// Where the objects of [`S3::store`] are.
    pub fn objects(&self) -> PathBuf {
        self.directory.path().join(BUCKET).join("some/prefix")
    }

    /// Parts of uploads that were neither completed nor aborted.
    pub fn open_parts(&self) -> usize {
        let names = std::fs::read_dir(self.directory.path()).unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".upload")).count()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, front: Arc<Front>, service: S3Service) {
    let answer = hyper::service::service_fn(move |request| serve(request, front.clone(), service.clone()));
    // An error is a cut that was ordered, or the client's going.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

fn cut() -> std::io::Error {
    std::io::Error::other("cut")
}

type Answer = std::io::Result<Response<UnsyncBoxBody<Bytes, std::io::Error>>>;

async fn serve(request: Request<Incoming>, front: Arc<Front>, service: S3Service) -> Answer {
    let line = format!("{} {}", request.method(), request.uri());
    front.heard.lock().unwrap().push(Heard { line, headers: request.headers().clone() });
    let target = request.uri().to_string();
    let action = {
        let mut rules = front.rules.lock().unwrap();
        let rule =
            rules.iter_mut().find(|rule| rule.left > 0 && rule.method == *request.method() && target.contains(&rule.holds));
        rule.map(|rule| {
            rule.left -= 1;
            rule.action.clone()
        })
    };
    match &action {
        Some(Action::CutBefore) => return Err(cut()),
        Some(Action::Answer(status, code)) => {
            let error = format!("<Error><Code>{code}</Code><Message>as ordered</Message></Error>");
            return refuse(request, *status, if code.is_empty() { String::new() } else { error }).await;
        }
        Some(Action::Document(status, body)) => return refuse(request, *status, body.clone()).await,
        Some(Action::Elsewhere(region)) => {
            let mut answer = refuse(request, 301, String::new()).await?;
            answer.headers_mut().insert("x-amz-bucket-region", HeaderValue::from_static(region));
            return Ok(answer);
        }
        Some(Action::Delay(delay)) => tokio::time::sleep(*delay).await,
        _ => {}
    }
    // The body is taken first: a client that is slow must not keep others from writing.
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| cut())?.to_bytes();
    let writes = !matches!(parts.method, Method::GET | Method::HEAD);
    let request = Request::from_parts(parts, s3s::Body::from(body));
    let (mut parts, mut body) = {
        let _reads = if writes { None } else { Some(front.turns.read().await) };
        let _writes = if writes { Some(front.turns.write().await) } else { None };
        let answer = service.call(request).await.map_err(|_| cut())?;
        let (parts, body) = answer.into_parts();
        (parts, body.collect().await.map_err(|_| cut())?.to_bytes())
    };
    match action {
        Some(Action::CutAfter) => return Err(cut()),
        Some(Action::Header(name, value)) => {
            parts.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Some(Action::Truncate(length)) => {
            parts.headers.insert(hyper::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            body.truncate(length);
            // What came so far is sent before the cut.
            let rest = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(cut())
            });
            let pieces = futures_util::StreamExt::chain(futures_util::stream::iter([Ok(Frame::data(body))]), rest);
            return Ok(Response::from_parts(parts, StreamBody::new(pieces).boxed_unsync()));
        }
        _ => {}
    }
    Ok(Response::from_parts(parts, whole(body)))
}

fn whole(body: Bytes) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// Answers at once, but not before the body came: a client that still sends would see a cut.
async fn refuse(request: Request<Incoming>, status: u16, body: String) -> Answer {
    request.into_body().collect().await.map_err(|_| cut())?;
    let mut answer = Response::new(whole(Bytes::from(body)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(answer)
}
