//! The web face: `/healthz`, so that a PaaS has something to ask, and `/metrics` for Prometheus and its like.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::config::{Reader, Setting};
use crate::ops::metrics::Metrics;

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
pub async fn serve(address: SocketAddr, metrics: Metrics, quiet: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!("listening on http://{address}");
    let metrics = Arc::new(metrics);
    let figures = move || {
        let metrics = metrics.clone();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.text().await) }
    };
    let app = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/metrics", get(figures));
    axum::serve(listener, app).with_graceful_shutdown(async move { quiet.cancelled().await }).await.context("serving")
}
