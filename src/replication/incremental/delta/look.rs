//! Looks at both sides of a table, in one scan of each, and decides what there is to do.

use super::key_set::{Found, KeySet};
use super::{Course, Table};
use crate::postgres::{Connection, Doing, PostgresError};
use crate::replication::incremental::IncrementalError;
use crate::replication::incremental::catalogue::Relation;
use crate::replication::incremental::watermark::SourceState;
use crate::replication::settings::TableName;

/// Condition of the source's rows that are not older than a snapshot whose `xmin` was this. A row
/// with a negative age is older than half of the circle of transaction numbers; that is asked last, because few rows get so far.
fn fresh(xmin: i64) -> String {
    format!("age(xmin) <= (select age('{}'::xid)) and age(xmin) >= 0", xmin.rem_euclid(1 << 32))
}

pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// What a look at the source showed.
pub(super) struct Sight {
    xmin: i64,
    total: u64,
    fresh: u64,
    keys: Option<Found>,
}

/// What a look at the target showed.
pub(super) struct There {
    rows: u64,
    /// Rows that somebody else wrote since the last run.
    written: u64,
}

/// How the source is looked at for a table; apart from the table, which changes while the next ones are looked at.
pub(super) struct Look {
    table: TableName,
    /// The rows, for `FROM`.
    from: String,
    /// From which transaction on rows are new, or why that is not known.
    since: Result<i64, String>,
    /// The column whose whole numbers are the key, and about how many there are.
    number: Option<(String, u64)>,
}

impl Look {
    /// Looks for changes, in one scan; or says why that is of no use.
    pub(super) async fn at(&self, source: &Connection) -> Result<Result<Sight, String>, PostgresError> {
        let xmin = match &self.since {
            Ok(xmin) => *xmin,
            Err(reason) => return Ok(Err(reason.clone())),
        };
        source.stand_back().await;
        let (from, fresh) = (&self.from, fresh(xmin));
        if let Some((column, rows)) = &self.number {
            let read = KeySet::read(source, &self.table, (from, column), &fresh, *rows).await?;
            if let Some(found) = read {
                return Ok(Ok(Sight { xmin, total: found.all.count(), fresh: found.fresh.count(), keys: Some(found) }));
            }
        }
        let sql = format!("select count(*), count(*) filter (where {fresh}) from {from}");
        let row = source.query_one(&sql, &[]).await.doing(|| format!("looking for changes of table `{}`", self.table))?;
        Ok(Ok(Sight { xmin, total: count(row.get(0)), fresh: count(row.get(1)), keys: None }))
    }
}

impl Table {
    pub(super) fn look(&self, now: &SourceState) -> Look {
        Look {
            table: self.plan.table.clone(),
            from: self.plan.rows_of(&self.source),
            since: self.since(now),
            number: self.number_column().zip(self.stored.as_ref()).map(|(column, stored)| (column.to_owned(), stored.rows)),
        }
    }

    /// Counts the target's rows, and those that somebody else wrote since the last run.
    pub(super) async fn look_at_target(&self, target: &Connection) -> Result<There, PostgresError> {
        let others = match &self.stored {
            Some(stored) if self.tells_writers() => {
                format!("age(xmin) <= {} and age(xmin) >= 0", stored.age.saturating_sub(1))
            }
            _ => "false".to_owned(),
        };
        let sql = format!("select count(*), count(*) filter (where {others}) from {}", self.there());
        let row = target
            .query_one(&sql, &[])
            .await
            .doing(|| format!("counting the rows of table `{}` of the target", self.plan.table))?;
        Ok(There { rows: count(row.get(0)), written: count(row.get(1)) })
    }

    /// Whether rows of the target tell that somebody else wrote them. Where somebody has columns of his own he writes to
    /// rows as well; foreign rows do not tell who wrote them.
    pub(super) fn tells_writers(&self) -> bool {
        self.own().is_empty() && !self.target.foreign_parts
    }

    /// The column that is the key, where keys are whole numbers that leave the source as they are.
    pub(super) fn number_column(&self) -> Option<&str> {
        let [column] = self.plan.key.columns.as_slice() else { return None };
        let integer = |side: &Relation| side.column(column).is_some_and(|c| c.integer);
        let plain = self.plan.projection.readings.iter().any(|r| r.column == *column && r.instead.is_none());
        (integer(&self.source) && integer(&self.target) && plain).then_some(column.as_str())
    }

    /// Decides by what was seen.
    pub(super) fn decide(
        &mut self,
        first_load: bool,
        now: &SourceState,
        seen: Result<Sight, String>,
        there: &There,
    ) -> Result<(), IncrementalError> {
        self.before = there.rows;
        let seen = seen.and_then(|sight| self.meddled(there.written).map_or(Ok(sight), Err));
        let unchanged = seen.as_ref().is_ok_and(|sight| sight.total == self.before && sight.fresh == 0);
        self.course = match &seen {
            _ if unchanged => Course::Unchanged,
            _ if self.before == 0 => {
                // A table that the last run left empty is no accident.
                if !first_load && self.stored.as_ref().is_none_or(|s| s.rows > 0) {
                    return Err(IncrementalError::EmptyTarget(self.plan.table.clone()));
                }
                Course::FirstLoad
            }
            Ok(_) if !self.is_keyed() => Course::Everything("it changed and has no key that tells its rows apart".to_owned()),
            Ok(_) => Course::Changes,
            Err(reason) => Course::Everything(reason.clone()),
        };
        if let Ok(sight) = seen {
            self.total = sight.total;
            self.fresh = sight.fresh;
            self.condition = Some(fresh(sight.xmin));
            self.stale = self.grows_old(now, sight.xmin);
            self.found = sight.keys;
        }
        Ok(())
    }
}
