//! Finds out what there is to do for a table, and brings it to temporary tables of the target.

use serde_json::json;

use super::{Course, Table};
use crate::postgres::{Connection, Doing, PostgresError, quote_literal};
use crate::replication::incremental::stream::{self, Copied, What};
use crate::replication::incremental::watermark::SourceState;
use crate::replication::incremental::{IncrementalError, mapping};
use crate::worker::Run;

/// Condition of the source's rows that are not older than a snapshot whose `xmin` was this. A row
/// with a negative age is older than half of the circle of transaction numbers.
fn fresh(xmin: i64) -> String {
    format!("age(xmin) between 0 and (select age('{}'::xid))", xmin.rem_euclid(1 << 32))
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

impl Table {
    /// Looks at both sides: one scan of each.
    pub(super) async fn decide(
        &mut self,
        first_load: bool,
        source: &Connection,
        target: &Connection,
        now: &SourceState,
    ) -> Result<(), IncrementalError> {
        let written = self.look_at_target(target).await?;
        let since = self.since(now, written);
        if let Ok(xmin) = since {
            let fresh = fresh(xmin);
            let sql = format!("select count(*), count(*) filter (where {fresh}) from {}", self.plan.rows_of(&self.source));
            let row =
                source.query_one(&sql, &[]).await.doing(|| format!("looking for changes of table `{}`", self.plan.table))?;
            self.total = count(row.get(0));
            self.fresh = count(row.get(1));
            self.condition = Some(fresh);
            self.stale = self.grows_old(now, xmin);
        }
        self.course = match since {
            Ok(_) if self.total == self.before && self.fresh == 0 => Course::Unchanged,
            _ if self.before == 0 => {
                // A table that the last run left empty is no accident.
                if !first_load && self.stored.as_ref().is_none_or(|s| s.rows > 0) {
                    return Err(IncrementalError::EmptyTarget(self.plan.table.clone()));
                }
                Course::FirstLoad
            }
            Ok(_) if !self.is_keyed() => Course::Everything("it changed and has no key that tells its rows apart".to_owned()),
            Ok(_) => Course::Changes,
            Err(reason) => Course::Everything(reason),
        };
        Ok(())
    }

    /// Counts the target's rows, and those that somebody else wrote since the last run.
    async fn look_at_target(&mut self, target: &Connection) -> Result<u64, PostgresError> {
        // Where somebody has columns of his own he writes to rows as well; foreign rows do not tell who wrote them.
        let others = match &self.stored {
            Some(stored) if self.own().is_empty() && !self.target.foreign_parts => {
                format!("age(xmin) between 0 and {}", stored.age.saturating_sub(1))
            }
            _ => "false".to_owned(),
        };
        let sql = format!("select count(*), count(*) filter (where {others}) from {}", self.there());
        let row = target
            .query_one(&sql, &[])
            .await
            .doing(|| format!("counting the rows of table `{}` of the target", self.plan.table))?;
        self.before = count(row.get(0));
        Ok(count(row.get(1)))
    }

    /// Brings over what the course needs. From here on nobody else writes to the target's table.
    pub(super) async fn stage(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
    ) -> Result<(), IncrementalError> {
        let lock = format!("lock table {} in share row exclusive mode", self.there());
        target.batch_execute(&lock).await.doing(|| {
            format!("locking table `{}` on the target against other writers (a session there writes to it)", self.plan.table)
        })?;
        if self.course == Course::Changes {
            match self.stage_changes(run, source, target).await? {
                None => return Ok(()),
                Some(reason) => {
                    self.course = Course::Everything(reason.to_owned());
                    self.tell_before(run);
                }
            }
        }
        self.stage_everything(run, source, target).await
    }

    /// What is new or changed, and what is gone; or why that does not add up.
    async fn stage_changes(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
    ) -> Result<Option<&'static str>, IncrementalError> {
        let name = self.plan.table.clone();
        let comparing = || format!("comparing the keys of table `{name}`");
        let condition = self.condition.clone();
        self.bring_rows(run, source, target, condition.as_deref()).await?;
        let sql = format!(
            "select count(*) from {} s where not exists (select from {} t where {})",
            self.rows(),
            self.there(),
            self.same_key("s", "t")
        );
        let new = count(target.query_one(&sql, &[]).await.doing(comparing)?.get(0));
        let expected = self.before + new;
        if self.total > expected {
            return Ok(Some("rows are missing on the target that did not change"));
        }
        if self.total < expected {
            let keys = self.keys();
            let list = self.plan.key.columns.clone();
            self.make(target, &keys, &list).await?;
            let into = format!("copy {keys} from stdin {}", self.plan.format());
            let told = format!("the keys of table `{}`", self.plan.table);
            let what = What { told, binary: self.plan.binary, plain: self.plan.projection.is_plain() };
            let select = self.plan.select_keys(&self.source, None);
            let sent = stream::pipe(source, &select, target, &into, &what, &mut |_| ()).await?;
            self.tally.bytes += sent.bytes;
            target.batch_execute(&format!("analyze {keys}")).await.doing(comparing)?;
            self.doom(target, &keys).await?;
            if self.doomed != expected - self.total {
                return Ok(Some("its keys do not add up"));
            }
        }
        let table = &self.plan.table;
        run.info_with(
            format!(
                "{table} changes: {} of {} rows are not older than the last run, {} are gone",
                self.fresh, self.total, self.doomed
            ),
            json!({ "table_name": table.to_string(), "rows_fresh": self.fresh, "rows_gone": self.doomed }),
        );
        Ok(None)
    }

    async fn stage_everything(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
    ) -> Result<(), IncrementalError> {
        self.bring_rows(run, source, target, None).await?;
        if self.is_keyed() {
            self.tally.deleted += self.delete_repeated(target).await?;
            let rows = self.rows();
            self.doom(target, &rows).await?;
        }
        Ok(())
    }

    /// Copies the rows that meet `condition`, or all, into the temporary table of rows.
    async fn bring_rows(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
        condition: Option<&str>,
    ) -> Result<(), IncrementalError> {
        let table = &self.plan.table;
        let rows = self.rows();
        self.make(target, &rows, &self.plan.columns()).await?;
        let into = format!("copy {rows} ({}) from stdin {}", self.plan.column_list(), self.plan.format());
        let told = format!("the changes of table `{table}`");
        let what = What { told, binary: self.plan.binary, plain: self.plan.projection.is_plain() };
        let base = run.current_progress();
        let moved = &mut |copied: &Copied| run.progress(|p| p.bytes = base.bytes + copied.bytes);
        let select = self.plan.select(&self.source, condition);
        let copied = stream::pipe(source, &select, target, &into, &what, moved).await?;
        let analyze = format!("analyze {rows}");
        target.batch_execute(&analyze).await.doing(|| format!("analyzing the changes of table `{table}`"))?;
        if condition.is_none() {
            self.total = copied.rows;
        }
        self.tally.bytes += copied.bytes;
        Ok(())
    }

    /// Makes an empty temporary table with columns of the target's.
    async fn make(&self, target: &Connection, name: &str, columns: &[String]) -> Result<(), PostgresError> {
        let plain = name.trim_start_matches("pg_temp.");
        let sql = format!(
            "drop table if exists {name}; create temporary table {plain} on commit drop as select {} from {} with no data",
            mapping::list(columns),
            self.there()
        );
        target.batch_execute(&sql).await.doing(|| format!("making a temporary table for table `{}`", self.plan.table))
    }

    /// Notes the target's keys that are not among `known`.
    async fn doom(&mut self, target: &Connection, known: &str) -> Result<(), PostgresError> {
        let doomed = self.doomed();
        self.make(target, &doomed, &self.plan.key.columns).await?;
        let sql = format!(
            "insert into {doomed} select {} from {} t where not exists (select from {known} k where {})",
            super::sql::of("t", &self.plan.key.columns),
            self.there(),
            self.same_key("k", "t")
        );
        let doing = || format!("looking for rows of table `{}` that are gone", self.plan.table);
        self.doomed = target.execute(&sql, &[]).await.doing(doing)?;
        target.batch_execute(&format!("analyze {doomed}")).await.doing(doing)
    }

    /// Deletes all but one of the target's rows with the same key, where nothing there prevents them.
    async fn delete_repeated(&self, target: &Connection) -> Result<u64, PostgresError> {
        let key = self.key_list();
        let sql = format!(
            "delete from {0} t using (select tableoid as part, ctid as place, row_number() over (partition by {key}) as number from {0}) r
             where r.number > 1 and t.tableoid = r.part and t.ctid = r.place",
            self.there()
        );
        if self.is_unique_there(target).await? {
            return Ok(0);
        }
        target.execute(&sql, &[]).await.doing(|| format!("deleting repeated rows of table `{}` on the target", self.plan.table))
    }

    async fn is_unique_there(&self, target: &Connection) -> Result<bool, PostgresError> {
        let names = self.plan.key.columns.iter().map(|c| quote_literal(c)).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select exists (select from pg_catalog.pg_index i where i.indrelid = $1 and i.indisunique and i.indisvalid
                and i.indpred is null and i.indexprs is null
                and (select bool_and(a.attname::text = any(array[{names}]) and a.attnotnull) from pg_catalog.pg_attribute a
                    join unnest(i.indkey::int2[]) with ordinality k(number, n) on a.attnum = k.number
                    where a.attrelid = i.indrelid and k.n <= i.indnkeyatts))"
        );
        let doing = || format!("reading the keys of table `{}` on the target", self.plan.table);
        Ok(target.query_one(&sql, &[&self.target.oid]).await.doing(doing)?.get(0))
    }
}
