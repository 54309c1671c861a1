//! The web face. For now `/healthz` only, so that a PaaS has something to ask.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::config::{Reader, Setting};

/// Port that `web` listens on.
pub static PORT: Setting = Setting::new("PORT", "Port that `bullwork web` listens on.").default("3000");
/// Address that `web` listens on.
pub static HOST: Setting =
    Setting::new("WEB_HOST", "Address that `bullwork web` listens on; 0.0.0.0 for a PaaS router.").default("127.0.0.1");

/// Reads where to listen.
pub fn address(reader: &Reader<'_>) -> SocketAddr {
    let port = reader.integer(&PORT, 1..=65_535);
    let host = reader.text(&HOST);
    let ip = host.parse().unwrap_or_else(|_| {
        reader.problem(HOST.name, format!("`{host}` is not an IP address; write 127.0.0.1, 0.0.0.0 or ::"));
        IpAddr::from([127, 0, 0, 1])
    });
    SocketAddr::new(ip, u16::try_from(port).unwrap_or(3000))
}

/// Serves until `quiet`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, quiet: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!("listening on http://{address}");
    let app = Router::new().route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, app).with_graceful_shutdown(async move { quiet.cancelled().await }).await.context("serving")
}
