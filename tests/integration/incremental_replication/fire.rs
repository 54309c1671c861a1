//! Acceptance: writers that commit out of order while runs repeat.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Pair, number};

const WRITERS: u64 = 8;

/// 5 s; 20 s with `BULLWORK_CHAOS=1`.
fn length() -> Duration {
    Duration::from_secs(if std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1") { 20 } else { 5 })
}

/// For a machine that is busy with other things.
const AT_MOST: Duration = Duration::from_secs(90);

/// A small generator of our own, so that a failure can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_fire_from_eight_writers_no_row_is_lost() {
    let pair = Pair::new(
        "create table answers (id bigserial primary key, writer int, v text);
         create table events (uid uuid primary key default gen_random_uuid(), answer bigint, v text)",
    )
    .await;
    pair.source("alter sequence answers_id_seq cache 20").await;
    let stop = CancellationToken::new();
    let mut writers = Vec::new();
    for writer in 1..=WRITERS {
        let client = pair.cluster.client("production").await;
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (writer << 32));
            while !stop.is_cancelled() {
                let mut sql = format!(
                    "begin; insert into answers (writer, v) select {writer}, md5(i::text) from generate_series(1, {}) i;",
                    1 + dice.roll(20)
                );
                if dice.roll(3) == 0 {
                    sql.push_str(&format!("savepoint a; insert into answers (writer, v) values ({writer}, 'sub');"));
                    sql.push_str(if dice.roll(2) == 0 { "rollback to a;" } else { "release a;" });
                }
                sql.push_str("insert into events (answer, v) values (1, 'event')");
                client.batch_execute(&sql).await.unwrap();
                // Holds its ids open for a while; some for longer than a run takes.
                tokio::time::sleep(Duration::from_millis(if dice.roll(10) == 0 { 400 } else { dice.roll(20) })).await;
                client.batch_execute(if dice.roll(5) == 0 { "rollback" } else { "commit" }).await.unwrap();
            }
        }));
    }
    let start = Instant::now();
    let (mut runs, mut late) = (0, 0);
    // On a busy machine it takes longer until it is one.
    while start.elapsed() < length() || (runs <= 3 || late == 0) && start.elapsed() < AT_MOST {
        let ran = pair.run(&["answers", "events"]).await;
        ran.summary();
        runs += 1;
        late += u32::from(ran.says("answers late rows"));
    }
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    let ran = pair.run(&["answers", "events"]).await;
    ran.summary();
    pair.assert_equal(&["answers", "events"]).await;
    let rows = number(&pair.target, "select count(*) from answers").await;
    eprintln!("{runs} runs, {late} of them with late rows, {rows} rows");
    assert!(runs > 3 && late > 0 && rows > 500, "the fire was no fire: {runs} runs, {late} late, {rows} rows");
}
