//! Foreign keys between tables that are copied: made and validated as soon as both ends are whole, beside the other work.
//!
//! Those of one table are one step, because validations of one table lock each other out. Making a key locks both tables
//! against validation and ANALYZE, so a step waits while anything of that kind goes on at one of its tables.
//!
//! The other keys (of partitioned or kept tables, over periods, and such as need not hold) are made at the end ([`super::finish`]) and
//! validated here, several tables at a time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;
use tokio_postgres::Client;

use super::build::{Work, millis};
use super::catalog::PG_CONSTRAINT;
use super::resume;
use super::session::Sessions;
use super::source::Source;
use super::tables::SourceKey;
use super::target::Judge;
use crate::postgres::{Doing, PostgresError};
use crate::replication::ddl::Kind;
use crate::worker::Run;

/// For a key with an index at both ends: both are read in their order, without their tables, in a third of the time that a hash
/// table of all keys takes. The usual costs of pages are of disks, and these indexes were written just now.
const IN_ORDER: &str =
    "set local enable_hashjoin = off; set local random_page_cost = 1; set local cpu_index_tuple_cost = 0.001; ";

/// The keys of one table.
pub(super) struct TableKeys {
    /// The table, by its place in the work.
    pub(super) table: usize,
    /// The tables that they point to, but for itself.
    pub(super) parents: BTreeSet<usize>,
    pub(super) keys: Vec<SourceKey>,
}

impl TableKeys {
    /// All its tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = usize> {
        self.parents.iter().copied().chain([self.table])
    }
}

/// The keys that both ends of are in the work, by table.
pub(super) fn of_work(source: &Source, judge: &Judge<'_>, work: &[Work]) -> Vec<TableKeys> {
    let places: HashMap<u32, usize> = work.iter().enumerate().map(|(i, w)| (w.table.oid, i)).collect();
    let mut found: HashMap<usize, TableKeys> = HashMap::new();
    for key in &source.foreign_keys {
        let object = (PG_CONSTRAINT, key.oid);
        let may_fail = judge.touches_kept(object) || source.loose_keys.contains(&key.oid);
        let (Some(table), Some(parent)) = (places.get(&key.ends.0), places.get(&key.ends.1)) else { continue };
        if may_fail || !key.early || !judge.is_made(object) {
            continue;
        }
        let keys = found.entry(*table).or_insert_with(|| TableKeys { table: *table, parents: BTreeSet::new(), keys: Vec::new() });
        keys.parents.extend((parent != table).then_some(*parent));
        keys.keys.push(key.clone());
    }
    let mut keys: Vec<TableKeys> = found.into_values().collect();
    keys.sort_by_key(|keys| keys.table);
    keys
}

/// Makes and validates; `again`: some may be there already.
pub(super) async fn make(run: &Run, target: &Client, keys: &TableKeys, again: bool) -> anyhow::Result<()> {
    for key in &keys.keys {
        let item = format!("{} {}", key.table, key.name);
        match target.batch_execute(&key.add).await {
            Err(error) if again && resume::is_done(&error, Kind::ForeignKey) => {}
            result => result.doing(|| format!("making foreign key {item}"))?,
        }
    }
    for key in keys.keys.iter().filter_map(|key| Validation::of(key, None)) {
        validate_one(run, target, &key).await?;
    }
    Ok(())
}

/// Validates foreign keys, those of one table one after the other (they lock each other out).
/// Returns the names of those that do not hold, when they may.
pub(super) async fn validate(
    run: &Run,
    sessions: &Sessions<'_>,
    keys: Vec<Validation>,
    workers: usize,
) -> anyhow::Result<Vec<String>> {
    let mut by_table: HashMap<String, Vec<Validation>> = HashMap::new();
    let mut order = Vec::new();
    for key in keys {
        let list = by_table.entry(key.table.clone()).or_default();
        if list.is_empty() {
            order.push(key.table.clone());
        }
        list.push(key);
    }
    let workers = workers.min(order.len());
    let waiting: Mutex<Vec<Vec<Validation>>> =
        Mutex::new(order.into_iter().rev().filter_map(|table| by_table.remove(&table)).collect());
    let broken = Mutex::new(Vec::new());
    let worker = || async {
        let target = sessions.target_for_one_of(workers).await?;
        loop {
            let Some(keys) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
                return Ok::<_, anyhow::Error>(());
            };
            for key in keys {
                if let Err(error) = validate_one(run, &target, &key).await {
                    let Some(because) = key.may_fail else { return Err(error.into()) };
                    run.warn(format!("{error}; it stays NOT VALID, because {because}"));
                    broken.lock().unwrap_or_else(PoisonError::into_inner).push(key.told());
                }
            }
        }
    };
    futures_util::future::try_join_all((0..workers).map(|_| worker())).await?;
    Ok(broken.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A foreign key whose rows are still to be looked at.
pub(super) struct Validation {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) sql: String,
    /// There is an index at both ends.
    pub(super) ordered: bool,
    /// Why a broken one is told and left unvalidated; nothing: it may not be broken.
    pub(super) may_fail: Option<&'static str>,
}

impl Validation {
    /// Nothing where making the key looked at the rows already.
    pub(super) fn of(key: &SourceKey, may_fail: Option<&'static str>) -> Option<Self> {
        let sql = key.validate.clone()?;
        Some(Validation { table: key.table.to_string(), name: key.name.clone(), sql, ordered: key.ordered, may_fail })
    }

    fn told(&self) -> String {
        format!("{} {}", self.table, self.name)
    }
}

async fn validate_one(run: &Run, target: &Client, key: &Validation) -> Result<(), PostgresError> {
    let start = Instant::now();
    let item = key.told();
    // One message is one transaction.
    let sql = if key.ordered { format!("{IN_ORDER}{}", key.sql) } else { key.sql.clone() };
    target.batch_execute(&sql).await.doing(|| format!("validating foreign key {item}"))?;
    run.info_with(
        format!("FK CONSTRAINT {item}"),
        json!({"item_kind": "FK CONSTRAINT", "item": item, "table_name": key.table, "duration_ms": millis(start)}),
    );
    Ok(())
}
