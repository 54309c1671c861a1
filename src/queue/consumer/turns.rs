//! Lets runs that end at the same time take their turn together.
//!
//! A script that completes a job and takes the next one costs Redis more for being called than for what it does, so
//! those that end while others are on their way to Redis wait for each other, and travel as one step. A run that ends
//! alone does not wait: two steps may be under way, so that this process works while Redis does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use crate::queue::take::Turn;
use crate::queue::{Job, Queue, QueueError, Taken};

/// Steps under way at once.
const UNDER_WAY: usize = 2;
/// Runs in one step: some milliseconds of Redis's time, in which it serves nobody else.
const MOST: usize = 100;
/// Bytes of a result that travels with others. A larger one must not hold them up.
const LARGEST: usize = 64 << 10;

/// A run that is done, and where its next job is to go.
struct Ended {
    job: Arc<Job>,
    token: String,
    /// As JSON.
    result: String,
    /// Token of the next run.
    next: String,
    answer: oneshot::Sender<Result<Taken, QueueError>>,
}

impl Ended {
    fn turn(&self) -> Turn<'_> {
        Turn { job: &self.job, token: &self.token, result: &self.result, next: &self.next }
    }
}

/// Where runs go when they are done.
pub(super) struct Turns {
    queue: Queue,
    lock: Duration,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Turns {
    /// For `concurrency` runs side by side. What serves them ends with the last of those who use it.
    pub(super) fn begin(queue: &Queue, concurrency: usize, lock: Duration) -> Turns {
        let (ended, arriving) = mpsc::unbounded_channel();
        tokio::spawn(serve(queue.clone(), lock, concurrency.div_ceil(UNDER_WAY).min(MOST), arriving));
        Turns { queue: queue.clone(), lock, ended }
    }

    /// As [`Queue::complete_and_take`], together with others that end now.
    pub(super) async fn take(&self, job: &Arc<Job>, token: &str, result: String, next: &str) -> Result<Taken, QueueError> {
        let (answer, answered) = oneshot::channel();
        let ended = Ended { job: Arc::clone(job), token: token.to_owned(), result, next: next.to_owned(), answer };
        let alone = match ended.result.len() {
            ..=LARGEST => match self.ended.send(ended) {
                Ok(()) => return answered.await.unwrap_or_else(|_| Err(QueueError::Answer("the runtime ends".into()))),
                Err(refused) => refused.0,
            },
            _ => ended,
        };
        together(&self.queue, &[alone], self.lock).await?.pop().unwrap_or(Ok(Taken::Empty))
    }
}

async fn together(queue: &Queue, ended: &[Ended], lock: Duration) -> Result<Vec<Result<Taken, QueueError>>, QueueError> {
    let turns: Vec<Turn<'_>> = ended.iter().map(Ended::turn).collect();
    queue.turn_over(&turns, lock).await
}

async fn serve(queue: Queue, lock: Duration, most: usize, mut arriving: mpsc::UnboundedReceiver<Ended>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        let mut ended = Vec::new();
        tokio::select! {
            biased;
            count = arriving.recv_many(&mut ended, most), if under_way.len() < UNDER_WAY => if count == 0 { break },
            _ = under_way.next(), if !under_way.is_empty() => {
                // The runs that were told now end first, when they do little: another answer may be here already, and Redis
                // would have nothing to do while both are looked at. It would answer both together then, for ever.
                tokio::task::yield_now().await;
                continue;
            }
        }
        if ended.len() < most {
            // Those that are about to end in this turn of the runtime come along.
            tokio::task::yield_now().await;
            while ended.len() < most
                && let Ok(run) = arriving.try_recv()
            {
                ended.push(run);
            }
        }
        let mut step = Box::pin(answer(&queue, ended, lock));
        if futures_util::poll!(&mut step).is_pending() {
            under_way.push(step);
            // It is sent before anything else is looked at.
            tokio::task::yield_now().await;
        }
    }
    while under_way.next().await.is_some() {}
}

async fn answer(queue: &Queue, ended: Vec<Ended>, lock: Duration) {
    match together(queue, &ended, lock).await {
        Ok(answers) => {
            for (run, answer) in ended.into_iter().zip(answers) {
                let _ = run.answer.send(answer);
            }
        }
        Err(error) => {
            for run in ended {
                let _ = run.answer.send(Err(error.clone()));
            }
        }
    }
}
