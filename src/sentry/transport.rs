//! Events to the receiver by HTTP, on a thread of their own.
//!
//! The thread has a small runtime, because events must also leave while the program's own runtime
//! is busy, stopped or panicking. It ends with the process.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sentry_core::types::Dsn;
use sentry_core::{Envelope, Transport, TransportFactory, TransportOptions};

/// Events that wait at most; later ones are dropped, so that a dead receiver costs no memory.
const MOST_WAITING: usize = 100;
/// Longest time for one event.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Factory(pub(super) Dsn);

impl TransportFactory for Factory {
    fn create_transport_with_options(&self, _: TransportOptions) -> Arc<dyn Transport> {
        let shared = Arc::new(Shared::default());
        let (dsn, queue) = (self.0.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("sentry".to_owned()).spawn(move || queue.send_all(&dsn));
        if let Err(error) = thread {
            shared.lock().ended = true;
            tracing::warn!("events are not reported to Sentry: starting its thread: {error}");
        }
        Arc::new(Http(shared))
    }
}

struct Http(Arc<Shared>);

impl Transport for Http {
    fn send_envelope(&self, envelope: Envelope) {
        let mut state = self.0.lock();
        if !state.ended && state.waiting.len() < MOST_WAITING {
            state.waiting.push_back(envelope);
            self.0.changed.notify_all();
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let idle = self.0.changed.wait_timeout_while(self.0.lock(), timeout, |state| !state.ended && state.is_busy());
        !idle.unwrap_or_else(PoisonError::into_inner).0.is_busy()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Envelope>,
    sending: bool,
    ended: bool,
}

impl State {
    fn is_busy(&self) -> bool {
        self.sending || !self.waiting.is_empty()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: sends what waits until the transport is gone.
    fn send_all(&self, dsn: &Dsn) {
        let ready = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
            .and_then(|runtime| Ok((runtime, client()?)));
        let (runtime, client) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                self.lock().ended = true;
                self.changed.notify_all();
                tracing::warn!("events are not reported to Sentry: {error}");
                return;
            }
        };
        while let Some(envelope) = self.next() {
            // A receiver that refuses or is gone costs the event: retries would only delay others.
            let _ = runtime.block_on(post(&client, dsn, &envelope));
            self.lock().sending = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Envelope> {
        let idle = self.changed.wait_while(self.lock(), |state| !state.ended && state.waiting.is_empty());
        let mut state = idle.unwrap_or_else(PoisonError::into_inner);
        let next = if state.ended { None } else { state.waiting.pop_front() };
        state.sending = next.is_some();
        next
    }
}

fn client() -> Result<reqwest::Client, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("setting up TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("setting up HTTP: {error}"))
}

async fn post(client: &reqwest::Client, dsn: &Dsn, envelope: &Envelope) -> Result<(), Box<dyn std::error::Error>> {
    let mut body = Vec::new();
    envelope.to_writer(&mut body)?;
    let agent = concat!("bullwork/", env!("CARGO_PKG_VERSION"));
    let auth = dsn.to_auth(Some(agent)).to_string();
    let request =
        client.post(dsn.envelope_api_url()).header("X-Sentry-Auth", auth).header("Content-Type", "application/x-sentry-envelope");
    request.header("User-Agent", agent).body(body).send().await?.error_for_status()?;
    Ok(())
}
