//! Acceptance: everything that can happen to rows, from several writers, while delta runs repeat.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::delta::sync;
use super::{Pair, number};

const WRITERS: u64 = 6;
/// Transfers keep this sum, whatever else happens.
const SUM: i64 = 200 * 1000;

/// 5 s; 60 s with `BULLWORK_CHAOS=1`.
fn length() -> Duration {
    Duration::from_secs(if std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1") { 60 } else { 5 })
}

/// For a machine that is busy with other things.
const AT_MOST: Duration = Duration::from_secs(90);

/// A small generator of our own, so that a failure can be repeated by its seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn statement(&mut self) -> String {
        let (table, id, other) = (["things", "heap"][self.roll(2) as usize], self.roll(400), self.roll(400));
        match self.roll(12) {
            0..=2 => format!("insert into {table} select i, md5(i::text), {other} from generate_series({id}, {id} + {other} % 20) i on conflict do nothing"),
            3..=5 => format!("update {table} set v = md5(random()::text), n = n + 1 where id between {id} and {id} + {other} % 10"),
            6 => format!("update {table} set v = v where id % 50 = {id} % 50"),
            7 => format!("delete from {table} where id between {id} and {id} + {other} % 8"),
            // A key change, also onto a key that was free.
            8 => format!("update {table} set id = {other} + 400 where id = {id} and not exists (select from {table} where id = {other} + 400)"),
            9 => format!("update parted set part = (part + {id}) % 30 where id = {other}; insert into parted values ({id}, {other} % 30, 'p') on conflict do nothing"),
            10 => format!("delete from parted where id = {id}; update parted set v = md5(random()::text) where id > {other}"),
            _ => format!(
                "update accounts set balance = balance - 7 where id = {id} % 200; savepoint a; delete from things where id = {id}; rollback to a;
                 update accounts set balance = balance + 7 where id = {other} % 200"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_fire_from_all_sides_the_target_ends_equal_and_readers_see_whole_states_only() {
    let pair = Pair::new(
        "create table things (id int primary key, v text, n int);
         create table heap (id int, v text, n int);
         create table parted (id int, part int, v text, primary key (id, part)) partition by range (part);
         create table parted_1 partition of parted for values from (0) to (10);
         create table parted_2 partition of parted for values from (10) to (30);
         create table accounts (id int primary key, balance int)",
    )
    .await;
    pair.source("insert into accounts select i, 1000 from generate_series(0, 199) i").await;
    let tables = ["things", "heap", "parted", "accounts"];
    sync(&pair, &tables).await.summary();
    let stop = CancellationToken::new();
    let mut writers = Vec::new();
    for writer in 1..=WRITERS {
        let client = pair.cluster.client("production").await;
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (writer << 32));
            let mut retried = 0_u32;
            while !stop.is_cancelled() {
                let mut sql = "begin".to_owned();
                // A truncate waits for whoever works on the table, so it comes alone.
                if dice.roll(60) == 0 {
                    sql.push_str(["; truncate things", "; truncate heap", "; truncate parted_1"][dice.roll(3) as usize]);
                } else {
                    for _ in 0..=dice.roll(3) {
                        sql.push_str("; ");
                        sql.push_str(&dice.statement());
                    }
                }
                // Two writers may meet at a row or a key; then one of them starts over.
                if client.batch_execute(&sql).await.is_err() {
                    client.batch_execute("rollback").await.unwrap();
                    retried += 1;
                    continue;
                }
                tokio::time::sleep(Duration::from_millis(if dice.roll(15) == 0 { 300 } else { dice.roll(15) })).await;
                client.batch_execute(if dice.roll(6) == 0 { "rollback" } else { "commit" }).await.unwrap();
            }
            retried
        }));
    }
    let reader = pair.cluster.client("warehouse").await;
    let stopped = stop.clone();
    let reading = tokio::spawn(async move {
        let mut reads = 0_u32;
        while !stopped.is_cancelled() {
            let row = reader.query_one("select count(*), sum(balance)::int8 from accounts", &[]).await.unwrap();
            assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (200, SUM), "a half-applied state was seen");
            reads += 1;
        }
        reads
    });
    let start = Instant::now();
    let (mut runs, mut total) = (0, [0_u64; 3]);
    // On a busy machine it takes longer until it is one.
    while start.elapsed() < length() || (runs <= 3 || total.iter().any(|n| *n <= 100)) && start.elapsed() < AT_MOST {
        let ran = sync(&pair, &tables).await;
        let summary = ran.summary();
        total[0] += summary.rows;
        total[1] += summary.updated;
        total[2] += summary.deleted;
        runs += 1;
    }
    stop.cancel();
    let mut retried = 0;
    for writer in writers {
        retried += writer.await.unwrap();
    }
    let reads = reading.await.unwrap();
    sync(&pair, &tables).await.summary();
    pair.assert_equal(&tables).await;
    assert_eq!(number(&pair.target, "select sum(balance)::int8 from accounts").await, SUM);
    eprintln!("{runs} runs, {total:?} rows inserted, updated, deleted, {reads} reads, {retried} tries for nothing");
    assert!(runs > 3 && reads > 10 && total.iter().all(|n| *n > 100), "the fire was no fire: {runs} runs, {total:?}");
}
