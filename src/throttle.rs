//! Slows down what is read from a server, or sent to one.
//!
//! Who shares a throttle shares its rate. A server sends only as fast as pieces are taken, so
//! waiting here slows the server down.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What may pass at once after a pause, so that pieces do not each wait for a timer.
const BURST: Duration = Duration::from_millis(50);

/// Shared by the sessions that read from one server.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes a second.
    rate: Option<u64>,
    /// When what was taken so far has passed.
    free_at: Mutex<Instant>,
    held: watch::Sender<bool>,
}

impl Throttle {
    /// Bytes a second, over all sessions; none: no limit.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        Throttle { rate, free_at: Mutex::new(Instant::now()), held: watch::Sender::new(false) }
    }

    /// Lets nothing pass until it is told otherwise.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: usize) {
        // The sender lives in self.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *free_at = (*free_at).max(now.checked_sub(BURST).unwrap_or(now)) + takes;
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn sessions_share_the_rate() {
        let throttle = Throttle::new(Some(50_000));
        let start = Instant::now();
        let reader = async || {
            for _ in 0..10 {
                throttle.pass(1000).await;
            }
        };
        tokio::join!(reader(), reader());
        // 0.4 s but for the burst; a slow machine only takes longer.
        assert!(start.elapsed() >= Duration::from_millis(340), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn nothing_passes_while_it_is_held_and_a_pause_earns_no_rush() {
        let throttle = Arc::new(Throttle::new(Some(10_000)));
        throttle.hold(true);
        let passing = tokio::spawn({
            let throttle = throttle.clone();
            async move { throttle.pass(3000).await }
        });
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!passing.is_finished());
        let start = Instant::now();
        throttle.hold(false);
        passing.await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(240), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn without_a_rate_everything_passes_at_once() {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, Throttle::new(None).pass(usize::MAX)).await.unwrap();
    }
}
