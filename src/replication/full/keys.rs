//! Foreign keys between tables that are copied: made and validated as soon as both ends are whole, beside the other work.
//!
//! Those of one table are one step, because validations of one table lock each other out. Making a key locks both tables
//! against validation and ANALYZE, so a step waits while anything of that kind goes on at one of its tables.
//!
//! The other keys (of partitioned or kept tables, and such as need not hold) are made at the end ([`super::finish`]).

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use serde_json::json;
use tokio_postgres::Client;

use super::build::{Work, millis};
use super::catalog::PG_CONSTRAINT;
use super::resume;
use super::source::Source;
use super::tables::SourceKey;
use super::target::Judge;
use crate::postgres::Doing;
use crate::replication::ddl::Kind;
use crate::worker::Run;

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
        if may_fail || !judge.is_made(object) {
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
    for key in &keys.keys {
        let Some(sql) = &key.validate else { continue };
        let start = Instant::now();
        let (item, table) = (format!("{} {}", key.table, key.name), key.table.to_string());
        target.batch_execute(sql).await.doing(|| format!("validating foreign key {item}"))?;
        run.info_with(
            format!("FK CONSTRAINT {item}"),
            json!({"item_kind": "FK CONSTRAINT", "item": item, "table_name": table, "duration_ms": millis(start)}),
        );
    }
    Ok(())
}
