//! Brings to temporary tables of the target what there is to do for a table.

use serde_json::json;

use super::key_set::{self, KeySet};
use super::look::count;
use super::{Course, Table};
use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, quote_literal};
use crate::replication::incremental::stream::{self, Copied, What};
use crate::replication::incremental::{IncrementalError, mapping};
use crate::worker::Run;

/// So many changed rows are asked for by their keys, which makes a statement of a megabyte; more are found by a scan.
const ASKED_FOR: u64 = 100_000;
/// One row in so many may have changed, or a scan is cheaper than looking rows up; or than sorting those that changed.
const FEW: u64 = 20;

const MISSING: &str = "rows are missing on the target that did not change";

impl Table {
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
        self.bring_rows(run, source, target, true).await?;
        let left = self.keys_before(target).await?;
        let new = match (&self.found, &left) {
            (Some(found), Some(left)) => {
                let new = found.fresh.without(left).count() as u64;
                if found.all.without(left).count() as u64 != new {
                    return Ok(Some(MISSING));
                }
                new
            }
            _ => {
                let sql = format!(
                    "select count(*) from {} s where not exists (select from {} t where {})",
                    self.rows(),
                    self.there(),
                    self.same_key("s", "t")
                );
                count(target.query_one(&sql, &[]).await.doing(comparing)?.get(0))
            }
        };
        let expected = self.before + new;
        if self.total > expected {
            return Ok(Some(MISSING));
        }
        if self.total < expected {
            self.find_doomed(source, target, left).await?;
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

    /// The keys that the last run left on the target, where nobody else can have changed them.
    async fn keys_before(&self, target: &Connection) -> Result<Option<KeySet>, PostgresError> {
        let Some(stored) = self.stored.as_ref().filter(|_| self.found.is_some() && self.tells_writers()) else { return Ok(None) };
        let left = key_set::load(target, &self.plan.table, &stored.mark.snapshot).await?;
        Ok(left.filter(|left| left.count() == self.before))
    }

    /// Notes the target's keys that the source has no more: by the sets of both, else by having all keys brought.
    async fn find_doomed(
        &mut self,
        source: &mut Connection,
        target: &Connection,
        mut left: Option<KeySet>,
    ) -> Result<(), IncrementalError> {
        let name = self.plan.table.clone();
        let comparing = || format!("comparing the keys of table `{name}`");
        if let (None, Some(column), Some(_)) = (&left, self.number_column(), &self.found) {
            left = KeySet::read(target, &name, (&self.there(), column), "false", self.before).await?.map(|read| read.all);
        }
        if let (Some(found), Some(left)) = (&self.found, &left) {
            let doomed = self.doomed();
            self.make(target, &doomed, &self.plan.key.columns).await?;
            self.doomed = KeySet::write(target, &doomed, left.without(&found.all)).await.doing(comparing)?;
            target.batch_execute(&format!("analyze {doomed}")).await.doing(comparing)?;
            return Ok(());
        }
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
        Ok(self.doom(target, &keys).await?)
    }

    /// The keys that this run leaves on the target, where they have a set and are sure.
    pub(super) async fn keys_left(&self, target: &Connection, triggered: bool) -> Result<Option<KeySet>, PostgresError> {
        let Some(column) = self.number_column() else { return Ok(None) };
        // What writes to the table on its own account may change keys under way.
        if triggered || !self.tells_writers() {
            return Ok(None);
        }
        let rows = self.rows_left();
        match &self.found {
            Some(found) if self.tally.staying == 0 && found.all.count() == rows => Ok(Some(found.all.clone())),
            // The next run asks the target when it wants to know.
            Some(_) => Ok(None),
            None => {
                let read = KeySet::read(target, &self.plan.table, (&self.there(), column), "false", rows).await?;
                Ok(read.map(|read| read.all).filter(|keys| keys.count() == rows))
            }
        }
    }

    async fn stage_everything(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
    ) -> Result<(), IncrementalError> {
        self.bring_rows(run, source, target, false).await?;
        if self.is_keyed() {
            self.tally.deleted += self.delete_repeated(target).await?;
            let rows = self.rows();
            self.doom(target, &rows).await?;
        }
        Ok(())
    }

    /// Which rows changed, and the `COPY` that sends them: neighbours together where they are few, so that the target
    /// finds theirs beside each other.
    fn select_changes(&self) -> String {
        let condition = self.condition.as_deref();
        if self.fresh.saturating_mul(FEW) > self.total {
            return self.plan.select(&self.source, condition);
        }
        match (&self.found, self.number_column()) {
            (Some(found), Some(column)) if self.fresh <= ASKED_FOR => {
                let keys: Vec<String> = found.fresh.keys().map(|key| key.to_string()).collect();
                let listed = format!("{} = any('{{{}}}'::int8[])", quote_identifier(column), keys.join(","));
                self.plan.select_in_order(&self.source, Some(&listed))
            }
            _ => self.plan.select_in_order(&self.source, condition),
        }
    }

    /// Copies the rows that changed, or all, into the temporary table of rows.
    async fn bring_rows(
        &mut self,
        run: &Run,
        source: &mut Connection,
        target: &Connection,
        changes: bool,
    ) -> Result<(), IncrementalError> {
        let table = &self.plan.table;
        let rows = self.rows();
        self.make(target, &rows, &self.plan.columns()).await?;
        let into = format!("copy {rows} ({}) from stdin {}", self.plan.column_list(), self.plan.format());
        let told = format!("the changes of table `{table}`");
        let what = What { told, binary: self.plan.binary, plain: self.plan.projection.is_plain() };
        let base = run.current_progress();
        let moved = &mut |copied: &Copied| run.progress(|p| p.bytes = base.bytes + copied.bytes);
        let select = if changes { self.select_changes() } else { self.plan.select(&self.source, None) };
        let copied = stream::pipe(source, &select, target, &into, &what, moved).await?;
        // Rows are joined by their key only; of the others the number is enough.
        let analyze = if self.is_keyed() { format!("analyze {rows} ({})", self.key_list()) } else { format!("analyze {rows}") };
        target.batch_execute(&analyze).await.doing(|| format!("analyzing the changes of table `{table}`"))?;
        if !changes {
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
