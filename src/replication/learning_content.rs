//! An HTTP API's JSON into tables.
//!
//! Guarantees: readers of the tables see yesterday's content until one commit shows them today's,
//! never an empty or half-filled table; whatever fails (network, limit, JSON, a missing array, a
//! value its column refuses, a crash) leaves yesterday's. Views, grants and foreign keys on the
//! tables stay.
//!
//! ```text
//! GET ──bytes──▶ parser (own thread) ──rows──▶ COPY pg_temp.<table>   no lock, no open transaction
//!                                                   │ body complete, every array seen
//!                                                   ▼
//!                                one transaction: pg_temp.<table> ──difference──▶ public.<table>
//! ```
//!
//! The difference (delete what is gone, insert what is new, update what changed) rather than
//! `TRUNCATE` and reload: `TRUNCATE` makes every reader wait until the commit and shows an empty
//! table to those whose snapshot is older, deleting everything writes the whole content anew each
//! night and fails on foreign keys that point here. A table whose columns no longer are those of the
//! mapping is made again in the same transaction (`publish.rs`, `rebuild.rs`).
//!
//! Needs the right to create temporary tables, and tables in `public`. Memory: one item, two short
//! channels, and the ids of the table being loaded (for error messages).

mod body;
pub mod mapping;
mod publish;
mod rebuild;
mod stage;
mod value;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, Url};
use tokio::sync::mpsc;

use crate::postgres::{Database, PostgresError};
use crate::redact::{Secret, mask_url};
use crate::webhook::{self, Redirects, WebhookError};
use crate::worker::Run;
use mapping::Mapping;
pub use publish::Published;

/// Pieces of the body, and chunks of rows, that may wait for their taker.
const WAITING: usize = 8;

/// Why the content was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// No usable answer.
    #[error("GET {url}: {reason}")]
    Fetch {
        /// Masked.
        url: String,
        /// What came instead.
        reason: WebhookError,
    },
    /// The answer is longer than allowed.
    #[error("GET {url}: the answer is longer than {limit} bytes; raise LCMS_MAX_BYTES if that is right")]
    TooBig {
        /// Masked.
        url: String,
        /// `LCMS_MAX_BYTES`.
        limit: u64,
    },
    /// The key cannot be sent.
    #[error("the API key or the client's name holds a character that no HTTP header may hold")]
    Header,
    /// Not JSON, or JSON of another shape.
    #[error("the answer cannot be read: {0}")]
    Json(String),
    /// Tables that the answer does not hold.
    #[error("the answer has no array for: {}; nothing was changed", .0.join(", "))]
    Missing(Vec<String>),
    /// A table that it holds twice.
    #[error("the answer has the array `{0}` twice; nothing was changed")]
    Twice(String),
    /// An item without id. The words are the reference's, which people look for.
    #[error("At least one item to insert in table {table} has no property at all: {problem}")]
    NoProperty {
        /// The table.
        table: String,
        /// Which item, and what it has instead of an id.
        problem: String,
    },
    /// A value that the server does not take for its column, or an id that stands there twice.
    #[error("table `{table}`, item `{item}`: {reason}")]
    Refused {
        /// The table.
        table: String,
        /// Id of the item.
        item: String,
        /// The server's words, which name the column.
        reason: String,
    },
    /// The name is taken by something that is no table.
    #[error("`public.{0}` exists and is no plain table; rename it, or leave it out of the mapping")]
    NotATable(String),
    /// The database.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The server went away while the answer was still arriving.
    #[error("the session with the target ended while the learning content was arriving; nothing was changed")]
    SessionLost,
    /// One side of the load ended because the other failed; never the reason told.
    #[error("the load was given up")]
    Abandoned,
    /// The run must stop.
    #[error(transparent)]
    Stopped(#[from] crate::worker::run::Stopped),
}

/// Where the content comes from.
#[derive(Clone, Debug)]
pub struct Api {
    /// The whole address.
    pub url: Url,
    /// Sent as bearer token; no header when empty.
    pub key: Secret,
    /// Sent as header `client`.
    pub client: String,
    /// For the request and the whole answer.
    pub time_limit: Duration,
    /// Longest answer.
    pub max_bytes: u64,
}

impl Api {
    /// Address of the content below `base`, with or without a slash at its end.
    ///
    /// # Errors
    /// When `base` is not an HTTP URL.
    pub fn address(base: &str) -> Result<Url, String> {
        let text = format!("{}/databases/airtable", base.trim().trim_end_matches('/'));
        match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
            Ok(url) => Err(format!("scheme `{}` is not http or https", url.scheme())),
            Err(error) => Err(format!("is not a URL ({error}); write https://host/api")),
        }
    }

    fn fetch_error(&self, error: reqwest::Error) -> ContentError {
        ContentError::Fetch { url: mask_url(self.url.as_str()), reason: WebhookError::of(error, self.time_limit) }
    }

    fn too_big(&self) -> ContentError {
        ContentError::TooBig { url: mask_url(self.url.as_str()), limit: self.max_bytes }
    }

    async fn get(&self) -> Result<Response, ContentError> {
        let shown = || mask_url(self.url.as_str());
        let client =
            webhook::client(self.time_limit, Redirects::Follow).map_err(|reason| ContentError::Fetch { url: shown(), reason })?;
        let mut request =
            client.get(self.url.clone()).header("client", HeaderValue::from_str(&self.client).map_err(|_| ContentError::Header)?);
        if !self.key.is_empty() {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", self.key.expose())).map_err(|_| ContentError::Header)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|e| self.fetch_error(e))?;
        if !answer.status().is_success() {
            return Err(ContentError::Fetch { url: shown(), reason: WebhookError::Status(answer.status()) });
        }
        if answer.content_length().is_some_and(|length| length > self.max_bytes) {
            return Err(self.too_big());
        }
        Ok(answer)
    }

    /// Passes the body on; ends early, without error, when nobody takes it any more.
    async fn feed(&self, answer: Response, bytes: mpsc::Sender<Bytes>, run: &Run) -> Result<(), ContentError> {
        let mut stream = answer.bytes_stream();
        let mut total = 0_u64;
        loop {
            // Asked for while waiting too: a server that stalls must not hide that the load failed.
            let part = tokio::select! {
                () = bytes.closed() => break,
                part = stream.next() => part,
            };
            let Some(part) = part else { break };
            let part = part.map_err(|e| self.fetch_error(e))?;
            total += part.len() as u64;
            if total > self.max_bytes {
                return Err(self.too_big());
            }
            run.progress(|p| p.bytes = total);
            if bytes.send(part).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Loads the content of `api` into `target`; `None` when the answer was empty and nothing was done.
///
/// # Errors
/// For any of the reasons of [`ContentError`]; the tables are as before then.
pub async fn load(run: &Run, api: &Api, mapping: &Arc<Mapping>, target: &Database) -> Result<Option<Published>, ContentError> {
    run.progress(|p| {
        "learning content".clone_into(&mut p.phase);
        p.total = mapping.tables.len() as u64;
    });
    // Dropping the future closes both connections and the channels, which ends the parser's thread.
    let outcome = run.unless_stopped(load_unstopped(run, api, mapping, target)).await?;
    if let Err(ContentError::Fetch { url, .. } | ContentError::TooBig { url, .. }) = &outcome {
        run.error(format!("Error on GET request to {url}"));
    }
    outcome
}

async fn load_unstopped(
    run: &Run,
    api: &Api,
    mapping: &Arc<Mapping>,
    target: &Database,
) -> Result<Option<Published>, ContentError> {
    let mut session = target.connect("learning content").await?;
    stage::create(&session, mapping).await?;
    let answer = api.get().await?;
    let (feed, bytes) = mpsc::channel(WAITING);
    let (rows, taken) = mpsc::channel(WAITING);
    let parser = tokio::task::spawn_blocking({
        let mapping = Arc::clone(mapping);
        move || body::parse(&mapping, bytes, &rows)
    });
    let closed = session.closed();
    let together = async { tokio::join!(api.feed(answer, feed, run), parser, stage::fill(run, &session, mapping, taken)) };
    let (fed, parsed, staged) = tokio::select! {
        biased;
        ended = together => ended,
        // While the API is slow nothing is written, and only this tells that the server is gone.
        () = closed.cancelled() => return Err(ContentError::SessionLost),
    };
    // What failed first made the others end: a refused row ends the parser, a cut connection looks
    // like the end of the body to it.
    let complete = staged?;
    fed?;
    let body = parsed.map_err(|e| ContentError::Json(format!("the parser ended early: {e}")))??;
    if body == body::Body::Nothing {
        return Ok(None);
    }
    if !complete {
        return Err(ContentError::Abandoned);
    }
    run.progress(|p| "publish learning content".clone_into(&mut p.phase));
    Ok(Some(publish::publish(run, &mut session, mapping).await?))
}
