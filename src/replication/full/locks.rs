//! Takes all locks that a change of places needs, or none of them.
//!
//! A reader locks what its statement names, in the order in which it is named, and keeps it until its transaction ends. Whoever takes the
//! same locks in another order waits for a reader that waits for it: one of both has to give way, and that is us. There is no order that
//! fits all readers, so it is learned: what could not be had comes first the next time. Then the readers that held it queue up for it
//! with nothing in their hands, and the rest is free.
//!
//! ```text
//! reader   a ─▶ v          ours   v, then a: it holds `a` and waits for `v`; we give `v` back
//! reader   a ─▶ v          ours   a, then v: it waits for `a`, holding nothing
//! ```
//!
//! All locks are taken by one statement, so that between the first and the last no reader comes in: it would have to
//! begin a statement meanwhile, which takes it a message to and fro. Readers that come while we wait for the first
//! lock wait as well; the statement's limit bounds that over all locks.

use std::collections::BTreeSet;

use tokio_postgres::{Client, Transaction};

use super::catalog::{Graph, ObjectId};
use crate::postgres::{Doing, PostgresError, quote_literal};

/// Longest wait for one lock, and for all of few, in milliseconds.
const LONGEST: usize = 30;
/// So many locks cost another millisecond.
const LOCKS_A_MILLISECOND: usize = 20;

/// A relation, and the statement that locks it against everybody and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    relation: u32,
    sql: String,
}

/// What earlier attempts have shown.
#[derive(Debug, Default)]
pub(super) struct Locks {
    /// Relations that could not be had, the last one first.
    contended: Vec<u32>,
}

/// The locks for relations of the target, in the order in which readers of views take them: views before what they
/// read, tables by name.
pub(super) async fn of(
    target: &Client,
    there: &Graph,
    relations: impl IntoIterator<Item = ObjectId>,
) -> Result<Vec<Lock>, PostgresError> {
    // Nothing but LOCK locks a table alone, without its heirs; it would lock what a view reads, too, and knows no
    // materialized views. To give these to the owner that they have changes nothing.
    const SQL: &str = "select c.oid, case when c.relkind in ('r', 'p') then format('lock table only %I.%I in access exclusive mode', n.nspname, c.relname) \
                       else format('alter table %I.%I owner to %I', n.nspname, c.relname, pg_get_userbyid(c.relowner)) end \
                       from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                       where c.oid = any($1) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') \
                       and not (c.relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid \
                            and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i'))) \
                       order by n.nspname, c.relname";
    let nodes: Vec<_> = relations.into_iter().filter_map(|id| there.nodes.get(&id)).filter(|node| node.is_relation()).collect();
    let views = nodes.iter().filter(|node| matches!(node.sort, 'v' | 'm')).map(|node| node.id).collect();
    let mut views: Vec<u32> = there.by_need(views).into_iter().map(|id| id.1).collect();
    views.reverse();
    let oids: Vec<u32> = nodes.iter().map(|node| node.id.1).collect::<BTreeSet<_>>().into_iter().collect();
    let rows = target.query(SQL, &[&oids]).await.doing(|| "reading what is locked for the switch".to_owned())?;
    let mut locks: Vec<Lock> = rows.into_iter().map(|row| Lock { relation: row.get(0), sql: row.get(1) }).collect();
    locks.sort_by_key(|lock| views.iter().position(|oid| *oid == lock.relation).unwrap_or(views.len()));
    Ok(locks)
}

impl Locks {
    /// Takes all of them within some ten milliseconds, or none; then the transaction has failed.
    pub(super) async fn take(&mut self, tx: &Transaction<'_>, wanted: &[Lock]) -> Result<(), tokio_postgres::Error> {
        let ordered = self.ordered(wanted);
        if ordered.is_empty() {
            return Ok(());
        }
        let limit = LONGEST + ordered.len() / LOCKS_A_MILLISECOND;
        let limits = format!("set local lock_timeout = '{LONGEST}ms'; set local statement_timeout = '{limit}ms'");
        tx.batch_execute(&limits).await?;
        if let Err(error) = tx.batch_execute(&block(&ordered)).await {
            let place = error.as_db_error().and_then(|error| error.detail()?.parse::<usize>().ok());
            if let Some(lock) = place.and_then(|place| ordered.get(place)) {
                let relation = lock.relation;
                self.contended.retain(|other| *other != relation);
                self.contended.insert(0, relation);
            }
            return Err(error);
        }
        tx.batch_execute("set local statement_timeout = 0").await
    }

    /// What could not be had before first, the rest as it is.
    fn ordered<'l>(&self, wanted: &'l [Lock]) -> Vec<&'l Lock> {
        let mut ordered: Vec<&Lock> = wanted.iter().collect();
        let place = |lock: &&Lock| self.contended.iter().position(|oid| *oid == lock.relation);
        ordered.sort_by_key(|lock| place(lock).unwrap_or(self.contended.len()));
        ordered
    }
}

/// One statement that takes the locks in turn. Its failure tells, in the detail, the place of the one that it waited for.
fn block(locks: &[&Lock]) -> String {
    let steps: String = locks.iter().enumerate().map(|(place, lock)| format!("  place := {place};\n  {};\n", lock.sql)).collect();
    let text = format!(
        "declare place int := 0;\nbegin\n{steps}exception when lock_not_available or query_canceled or deadlock_detected then\n  \
         raise exception using errcode = sqlstate, message = sqlerrm, detail = place;\nend"
    );
    format!("do {}", quote_literal(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_had_comes_first() {
        let wanted: Vec<Lock> = (1..=4).map(|relation| Lock { relation, sql: format!("lock {relation}") }).collect();
        let mut locks = Locks::default();
        let order = |locks: &Locks| locks.ordered(&wanted).iter().map(|lock| lock.relation).collect::<Vec<_>>();
        assert_eq!(order(&locks), [1, 2, 3, 4]);
        locks.contended = vec![4, 2, 9];
        assert_eq!(order(&locks), [4, 2, 1, 3]);
    }
}
