//! Delta mode: makes tables whose rows change equal to the source's, at the cost of what changed.
//!
//! # How
//!
//! ```text
//!   source                                   target
//!   one sequential scan: the set of keys ──▶ count as the last run left it, nothing new: done
//!   (else their number), and the rows not
//!   older than the stored snapshot
//!   those rows (or all)  ──── COPY ────────▶ temporary table of rows ─┐ one statement: updates what differs,
//!   keys that the last run left and that                              ├ inserts what is new,
//!   are not in the set   ──────────────────▶ temporary table of keys ─┘ deletes what is gone
//! ```
//!
//! A row of the source that is older than the stored snapshot's `xmin` was in that snapshot and has
//! not changed since (the module above tells why), so the target has it. With the rows that came
//! since added, the target holds every key of the source: equal counts mean equal keys. A changed key is a new row and
//! one that is gone.
//!
//! Which keys are gone is told by two sets of whole numbers, a bit for each: the source's, from the same scan, and the
//! one that the last run left on the target ([`key_set`]). Other keys – texts, uuids, several columns, numbers that
//! lie far apart – have no set; when the counts say that some are gone, all of them travel.
//!
//! Tables come one after the other, referenced ones first: while the target applies the changes of one, a second session with
//! the source looks for those of the next, where it may have one ([`Sides`]). Everything happens in the run's one source snapshot
//! and one target transaction. Readers are never locked out and see the tables as they were until the commit; other writers of a
//! table that changes wait for it. A run that dies leaves the target as it was.
//!
//! # When every row is compared
//!
//! Where that reasoning has no ground – [`state`] lists the cases – all rows go to the temporary
//! table and through the same statement. The line that begins with `full comparison` says why. A
//! table without usable key is compared as whole rows whenever it changed ([`apply`]).
//!
//! # Masks and conditions
//!
//! Rows, keys and counts are read as the rules say, so masks are compared with masks. Other rules lead to a full comparison,
//! and so does every run of a table with a condition: it may choose other rows although none was written.
//!
//! # Foreign keys of the target
//!
//! Referenced tables are filled first and emptied last ([`keys`]). A row that is gone from the source
//! but that something on the target still refers to stays, whatever the key's action is, and is
//! told: no deletion of ours cascades.

mod apply;
mod columns;
mod key_set;
mod keys;
mod look;
mod sql;
mod stage;
mod state;

use serde_json::json;
use tokio::sync::mpsc;

use self::key_set::Found;
use self::keys::{Keys, Order};
use self::look::Look;
use self::state::{Hashes, Shape, State};
use super::catalogue::Relation;
use super::create::{self, Absent};
use super::mapping::{self, Key, Plan};
use super::stream::{self, Copied};
use super::watermark::SourceState;
use super::{Incremental, IncrementalError};
use crate::postgres::{Connection, Doing};
use crate::replication::rules::Applied;
use crate::replication::settings::TableName;
use crate::worker::Run;

/// How a table is brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Course {
    /// It is, already.
    Unchanged,
    /// The target's table is empty.
    FirstLoad,
    /// What is not older than the stored snapshot.
    Changes,
    /// Every row is compared, for this reason.
    Everything(String),
}

/// What was done to a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    inserted: u64,
    updated: u64,
    deleted: u64,
    /// Gone from the source, but referred to.
    staying: u64,
    bytes: u64,
}

/// A table that is about to be brought up to date.
struct Table {
    plan: Plan,
    source: Relation,
    target: Relation,
    shape: Shape,
    stored: Option<State>,
    /// Tells its temporary tables from those of the others.
    number: usize,
    course: Course,
    /// Rows on the target before.
    before: u64,
    /// Rows on the source.
    total: u64,
    /// Rows on the source that are not older than the last run, and their condition.
    fresh: u64,
    condition: Option<String>,
    /// The keys of both, where they have sets.
    found: Option<Found>,
    /// Rows of the target that are gone from the source.
    doomed: u64,
    /// Those of them that wait until all tables were filled, because something refers to them.
    waiting: u64,
    /// Whether the stored state should be renewed although nothing changed.
    stale: bool,
    tally: Tally,
}

/// All tables of mode `delta` in a run.
pub(super) struct Deltas {
    tables: Vec<Table>,
    order: Order,
    keys: Keys,
    first_load: bool,
}

/// What the run does its work through.
pub(super) struct Sides<'s> {
    pub source: &'s mut Connection,
    /// A second session with the source, in the same snapshot, that looks ahead.
    pub ahead: Option<&'s Connection>,
    pub target: &'s Connection,
}

/// Looks that wait to be used, beside the one that is being taken; each may hold two sets of keys, of 300 kB for two million, and of 16 MB
/// at most.
const AHEAD: usize = 1;

/// What all of them came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    pub bytes: u64,
}

/// What identifies a row of the source: the primary key, else another single column that is unique
/// and never null. No columns: nothing does.
fn key(source: &Relation) -> Key {
    let sure = |name: &str| source.column(name).is_some_and(|c| c.not_null);
    let columns = if source.primary_key.is_empty() {
        let mut unique: Vec<&String> = source.unique.iter().filter(|name| sure(name)).collect();
        // The same one every night, whatever the order of the catalogue; `id` before others.
        unique.sort_by_key(|name| (name.as_str() != "id", name.as_str()));
        unique.first().map(|name| vec![(*name).clone()]).unwrap_or_default()
    } else {
        source.primary_key.clone()
    };
    Key { unique: !columns.is_empty(), columns, ordered: false }
}

/// Before the transaction: the table of states, and columns that follow the source's. With each table comes the target's, if any.
pub(super) async fn prepare<'t>(
    run: &Run,
    target: &Connection,
    applied: &Applied,
    tables: impl ExactSizeIterator<Item = (&'t TableName, &'t Relation, Option<&'t Relation>)>,
) -> Result<(), IncrementalError> {
    if tables.len() == 0 {
        return Ok(());
    }
    state::prepare(target).await?;
    let states = state::load(target).await?;
    for (table, source, there) in tables {
        columns::follow(run, target, applied, table, (source, there), states.get(table)).await?;
    }
    Ok(())
}

impl Deltas {
    /// Finds what is known of the tables, each with the source's and the target's, and in which order they are filled.
    /// `appended` are the target's tables that rows are appended to in the same transaction.
    pub(super) async fn find(
        work: &Incremental,
        run: &Run,
        (source, target): (&Connection, &Connection),
        applied: &Applied,
        tables: Vec<(TableName, Relation, Relation)>,
        appended: &[u32],
    ) -> Result<Deltas, IncrementalError> {
        if tables.is_empty() {
            return Ok(Deltas {
                tables: Vec::new(),
                order: Order::default(),
                keys: Keys::default(),
                first_load: work.first_load,
            });
        }
        let sources: Vec<u32> = tables.iter().map(|(_, source, _)| source.oid).collect();
        let oids: Vec<u32> = tables.iter().map(|(_, _, there)| there.oid).collect();
        let (mut hashes, mut states, keys) =
            tokio::try_join!(Hashes::read(source, &sources), state::load(target), Keys::read(target, &oids, appended))?;
        let mut found = Vec::with_capacity(tables.len());
        for (number, (name, relation, there)) in tables.into_iter().enumerate() {
            let (hashes, stored) = (hashes.remove(&relation.oid).unwrap_or_default(), states.remove(&name));
            found.push(Table::find(run, applied, (name, relation, there), number, hashes, stored)?);
        }
        let edges: Vec<(u32, u32)> = keys.all.iter().filter_map(|k| k.child.map(|child| (child, k.parent))).collect();
        let order = keys::order(&oids, appended, &edges);
        Ok(Deltas { tables: found, order, keys, first_load: work.first_load })
    }

    /// The target's tables.
    pub(super) fn oids(&self) -> impl Iterator<Item = u32> {
        self.tables.iter().map(|t| t.target.oid)
    }

    /// Brings up to date what the appended tables refer to.
    pub(super) async fn fill_before_appended(
        &mut self,
        run: &Run,
        sides: &mut Sides<'_>,
        made: &[Absent],
        now: &SourceState,
    ) -> Result<(), IncrementalError> {
        let places = self.order.before.clone();
        self.fill(run, sides, made, now, &places).await
    }

    /// Brings the others up to date, deletes what is gone, and remembers all of it.
    pub(super) async fn finish(
        mut self,
        run: &Run,
        sides: &mut Sides<'_>,
        made: &[Absent],
        now: &SourceState,
    ) -> Result<Totals, IncrementalError> {
        let places = self.order.after.clone();
        self.fill(run, sides, made, now, &places).await?;
        let target = sides.target;
        for index in self.order.before.iter().chain(&self.order.after).rev() {
            let table = &mut self.tables[*index];
            apply::delete_waiting(run, target, table, &self.keys).await?;
        }
        state::remember(target, now, &self.tables).await?;
        let mut totals = Totals::default();
        for table in &self.tables {
            table.tell_after(run);
            totals.inserted += table.tally.inserted;
            totals.updated += table.tally.updated;
            totals.deleted += table.tally.deleted;
            totals.bytes += table.tally.bytes;
        }
        Ok(totals)
    }

    /// One table after the other: finds out what there is to do, brings it over, applies it. Meanwhile a second session looks
    /// for the changes of the next ones, where there is one.
    async fn fill(
        &mut self,
        run: &Run,
        Sides { source, ahead, target }: &mut Sides<'_>,
        made: &[Absent],
        now: &SourceState,
        places: &[usize],
    ) -> Result<(), IncrementalError> {
        let looks: Vec<Look> = places.iter().map(|place| self.tables[*place].look(now)).collect();
        let (seen, mut sights) = mpsc::channel(AHEAD);
        let looking = async {
            let (Some(ahead), seen) = (*ahead, seen) else { return Ok(()) };
            for look in &looks {
                // Nobody takes it when the work beside failed.
                if seen.send(look.at(ahead).await?).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let working = async {
            for (place, look) in places.iter().zip(&looks) {
                let table = &mut self.tables[*place];
                let sight = async {
                    match ahead {
                        Some(_) => Ok(sights.recv().await.expect("a look that failed ends both")),
                        None => look.at(source).await,
                    }
                };
                let (sight, there) = tokio::try_join!(sight, table.look_at_target(target))?;
                table.decide(self.first_load, now, sight, &there)?;
                table.tell_before(run);
                match table.course {
                    Course::Unchanged => {}
                    Course::FirstLoad => table.load(run, source, target, made).await?,
                    Course::Changes | Course::Everything(_) => {
                        table.stage(run, source, target).await?;
                        apply::apply(target, table, &self.keys).await?;
                    }
                }
                table.done(run);
            }
            Ok::<_, IncrementalError>(())
        };
        tokio::try_join!(looking, working).map(drop)
    }
}

impl Table {
    fn find(
        run: &Run,
        applied: &Applied,
        (name, relation, there): (TableName, Relation, Relation),
        number: usize,
        hashes: Hashes,
        stored: Option<State>,
    ) -> Result<Table, IncrementalError> {
        let mut plan = mapping::pair(&name, &relation, &there, key(&relation))?;
        let columns = plan.columns();
        plan.projection = mapping::ruled(&name, applied.projection(relation.oid, &columns))?;
        for note in &plan.notes {
            run.warn(format!("{name}: {note}"));
        }
        let shape = Shape::new(&plan, &relation, hashes, applied.fingerprint(relation.oid).stored(&[]));
        Ok(Table {
            plan,
            source: relation,
            target: there,
            shape,
            stored,
            number,
            course: Course::Unchanged,
            before: 0,
            total: 0,
            fresh: 0,
            condition: None,
            found: None,
            doomed: 0,
            waiting: 0,
            stale: false,
            tally: Tally::default(),
        })
    }

    /// Fills the empty table, as that of an appended one is.
    async fn load(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
        made: &[Absent],
    ) -> Result<(), IncrementalError> {
        let base = run.current_progress();
        let moved = &mut |copied: &Copied| run.progress(|p| p.bytes = base.bytes + copied.bytes);
        let copied = stream::copy(source, &self.plan.select(&self.source, None), target, &self.plan, moved).await?;
        for absent in made.iter().filter(|a| a.contains(&self.plan.table)) {
            create::finish(source, target, &self.plan.table, absent).await?;
        }
        let analyze = format!("analyze {}", self.plan.table.quoted());
        target.batch_execute(&analyze).await.doing(|| format!("analyzing table `{}`", self.plan.table))?;
        self.total = copied.read;
        self.tally.inserted = copied.rows;
        self.tally.bytes += copied.bytes;
        Ok(())
    }

    fn done(&self, run: &Run) {
        let written = self.tally.inserted + self.tally.updated;
        run.progress(|p| {
            p.done += 1;
            p.rows += written;
        });
    }

    /// Rows on the target after all was done.
    fn rows_left(&self) -> u64 {
        (self.before + self.tally.inserted).saturating_sub(self.tally.deleted)
    }

    fn tell_before(&self, run: &Run) {
        let table = &self.plan.table;
        match &self.course {
            Course::Unchanged => run.info(format!("{table} is unchanged: {} rows on both sides", self.total)),
            Course::FirstLoad => run.info(format!("{table} table is empty on the target: first full load")),
            Course::Changes => {}
            Course::Everything(reason) => {
                run.info(format!("{table} full comparison: every row is copied and compared, because {reason}"));
            }
        }
    }

    fn tell_after(&self, run: &Run) {
        let (table, tally) = (&self.plan.table, self.tally);
        let left = self.rows_left();
        if left != self.total + tally.staying {
            run.warn(format!(
                "{table}: the source has {} rows but the target {left}; a trigger or rule there drops or adds rows",
                self.total
            ));
        }
        run.info_with(
            format!(
                "Total of {table} replicated: {} inserted, {} updated, {} deleted",
                tally.inserted, tally.updated, tally.deleted
            ),
            json!({
                "rows_inserted": tally.inserted,
                "rows_updated": tally.updated,
                "rows_deleted": tally.deleted,
                "table_name": table.to_string(),
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::Column;
    use super::*;

    #[test]
    fn the_key_is_the_primary_key_else_a_unique_column_that_is_never_null() {
        let column = |name: &str, not_null| Column { name: name.to_owned(), not_null, ..Column::default() };
        let mut source = Relation {
            columns: vec![column("mail", true), column("id", true), column("maybe", false)],
            primary_key: vec!["mail".to_owned(), "id".to_owned()],
            unique: ["maybe", "mail", "id"].map(str::to_owned).to_vec(),
            ..Relation::default()
        };
        assert_eq!(key(&source).columns, ["mail", "id"]);
        source.primary_key.clear();
        assert_eq!(key(&source).columns, ["id"]);
        source.unique = vec!["maybe".to_owned(), "mail".to_owned()];
        assert_eq!(key(&source).columns, ["mail"]);
        source.unique.pop();
        assert!(key(&source).columns.is_empty() && !key(&source).unique);
    }
}
