//! HTTP to the outside: the client, and posts that a receiver can trust. Knows nothing of jobs.
//!
//! Every request has an end: 10 s to connect, and a limit for the whole exchange. TLS is rustls
//! with ring and the system's root certificates, given to the client explicitly, so that a
//! library user or a test needs no process-wide set-up.
//!
//! A POST is redirected only within its host and only by 307 and 308, which keep method and body:
//! a 302 would turn it into a GET that the receiver never meant as "delivered", and another host
//! must not get the token.
//!
//! - [`signature`]: Standard Webhooks signatures

pub mod signature;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};

use crate::redact::{Secret, mask_path, scrub};
use signature::SigningKey;

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Redirects followed at most.
const REDIRECTS: usize = 5;

/// Why a request did not succeed. No URL stands in the texts: the caller knows how to show it.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The client cannot be made.
    #[error("setting up the HTTP client: {0}")]
    Client(String),
    /// No answer in time.
    #[error("no complete answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The network or the protocol failed.
    #[error("{0}")]
    Network(String),
    /// An answer outside 2xx.
    #[error("{}", status_text(*.0))]
    Status(StatusCode),
    /// The token cannot be a header.
    #[error("the token holds a character that no HTTP header may hold")]
    Token,
}

fn status_text(status: StatusCode) -> String {
    let way_out = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; check the token or key",
        StatusCode::NOT_FOUND => "; check the path of the URL",
        status if status.is_redirection() => {
            "; a redirect to another host, or one that would change the method, is not followed: set the final URL"
        }
        _ => "",
    };
    format!("the server answered {status}{way_out}")
}

impl WebhookError {
    /// Tells a client's error without its URL, which may hold secrets.
    #[must_use]
    pub fn of(error: reqwest::Error, limit: Duration) -> Self {
        if error.is_timeout() {
            // Connecting has a limit of its own.
            return WebhookError::Timeout(if error.is_connect() { CONNECT_TIMEOUT.min(limit) } else { limit });
        }
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text.push_str(": ");
                text.push_str(&inner_text);
            }
            source = inner.source();
        }
        WebhookError::Network(scrub(&text))
    }
}

/// What a client does with a 3xx answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirects {
    /// Follow, as for a GET; `Authorization` is not sent to another host.
    Follow,
    /// Follow only what keeps host, method and body, as for a POST.
    KeepRequest,
}

/// A client whose every exchange, body included, ends within `limit`.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client(limit: Duration, redirects: Redirects) -> Result<Client, WebhookError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| WebhookError::Client(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let policy = match redirects {
        Redirects::Follow => Policy::limited(REDIRECTS),
        Redirects::KeepRequest => Policy::custom(|attempt| {
            let keeps_method = matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            let origin = attempt.previous().first().map(Url::origin);
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirects")
            } else if keeps_method && origin.is_some_and(|o| o == attempt.url().origin()) {
                attempt.follow()
            } else {
                attempt.stop()
            }
        }),
    };
    Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(limit)
        .redirect(policy)
        .referer(false)
        .user_agent(concat!("bullwork/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| WebhookError::of(e, limit))
}

/// Somebody to notify. Prints without token and secret.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where to.
    pub url: Url,
    /// Sent verbatim as `Authorization`, even when empty; no header when `None`.
    pub token: Option<Secret>,
    /// Signs the body when present.
    pub key: Option<SigningKey>,
}

impl Endpoint {
    /// The URL for logs: without password, the values of secret-looking parameters, and the path
    /// beyond its first segment, which is the secret of many services' hooks.
    #[must_use]
    pub fn shown(&self) -> String {
        mask_path(self.url.as_str())
    }

    /// Whether its token can be sent at all.
    ///
    /// # Errors
    /// [`WebhookError::Token`] when it cannot.
    pub fn check(&self) -> Result<(), WebhookError> {
        self.authorization().map(|_| ())
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, WebhookError> {
        let Some(token) = &self.token else { return Ok(None) };
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| WebhookError::Token)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A POST body with an identity that stays the same over all tries.
#[derive(Clone, Debug)]
pub struct Message {
    /// Sent as `webhook-id` when the body is signed; receivers drop what they have seen.
    pub id: String,
    /// JSON.
    pub body: String,
}

/// Posts `message` and waits for an answer within 2xx; `limit` is what `client` was made with.
///
/// # Errors
/// When the answer is another one, or there is none.
pub async fn post(client: &Client, limit: Duration, endpoint: &Endpoint, message: Message) -> Result<StatusCode, WebhookError> {
    let mut request = client.post(endpoint.url.clone()).header(CONTENT_TYPE, "application/json");
    if let Some(authorization) = endpoint.authorization()? {
        // `headers` replaces where `header` would add to the one that a user in the URL makes.
        request = request.headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]));
    }
    if let Some(key) = &endpoint.key {
        // A clock before 1970 signs as 1970; the receiver will say so.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        for (name, value) in key.headers(&message.id, now, message.body.as_bytes()) {
            request = request.header(name, value);
        }
    }
    let answer = request.body(message.body).send().await.map_err(|e| WebhookError::of(e, limit))?;
    let status = answer.status();
    if status.is_success() { Ok(status) } else { Err(WebhookError::Status(status)) }
}

/// Posts a form and waits for an answer within 2xx; `limit` is what `client` was made with.
///
/// # Errors
/// When the answer is another one, or there is none.
pub async fn post_form(client: &Client, limit: Duration, url: &Url, fields: &[(&str, &str)]) -> Result<StatusCode, WebhookError> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = client.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
    let status = request.send().await.map_err(|e| WebhookError::of(e, limit))?.status();
    if status.is_success() { Ok(status) } else { Err(WebhookError::Status(status)) }
}
