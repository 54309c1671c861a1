//! Makes a table of the target what the source has, copying only what differs.
//!
//! One transaction on the target for each table. It keeps other writers out (readers go on, and see the rows before until the
//! commit), switches the table's own triggers off, brings each range that differs into a temporary table, deletes, updates and
//! inserts what is not the same, and compares the range once more before it commits. A table without a key that both sides have
//! is replaced whole, the same way. Rows of other tables are never touched: where a deletion would cascade, it is refused.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use super::keys::{self, Key, Range};
use super::ranges::{Both, Differing};
use super::sums::{Form, Sums};
use super::there::There;
use super::{Subject, TARGET_SETTINGS};
use crate::postgres::{Connection, Doing, PostgresError, explain, quote_identifier};
use crate::replication::projection::Projection;

/// How long other writers, and rows that they hold, are waited for.
const PATIENCE: &str = "set local lock_timeout = '10s'; set local synchronous_commit = on";
const STAGED: &str = "pg_temp.bullwork_repair";

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repaired {
    /// Whether the table was replaced whole.
    pub(super) whole: bool,
    /// Ranges that were compared, and brought over.
    pub(super) compared: u64,
    pub(super) ranges: u64,
    /// Rows that were brought over, and of these written or deleted.
    pub(super) copied: u64,
    pub(super) changed: u64,
}

/// Why a table was left as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRepaired {
    /// Another table is in the way; after its repair it may work.
    #[error("{0}")]
    ForeignKey(String),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("{0}")]
    Other(String),
}

/// A table that differs.
pub(super) struct Repair<'a> {
    pub(super) form: Form,
    pub(super) subject: &'a Subject,
    pub(super) there: &'a There,
    /// Whether rows travel in COPY's binary form.
    pub(super) binary: bool,
}

impl Repair<'_> {
    /// Repairs. `source` is in a snapshot.
    pub(super) async fn run(&self, source: &mut Connection, target: &mut Client) -> Result<Repaired, NotRepaired> {
        let table = &self.subject.name;
        let doing = || format!("repairing table `{table}`");
        let plain = self.subject.projection.readings.iter().filter(|r| r.instead.is_none()).map(|r| r.column.clone());
        let plain: Vec<String> = plain.collect();
        let key = keys::common((source, self.subject.oid), (target, self.there.oid), &plain).await?;
        let mut tx = target.transaction().await.doing(doing)?;
        let begin = format!("{TARGET_SETTINGS}; {PATIENCE}; lock table only {} in share row exclusive mode", table.quoted());
        if let Err(error) = tx.batch_execute(&begin).await {
            return Err(self.told(&error));
        }
        let triggers = Triggers::off(&tx, self).await?;
        let repaired = match &key {
            Some(key) => self.ranges(source, &mut tx, key).await?,
            None => self.whole(source, &mut tx).await?,
        };
        // Foreign keys that wait for the end are looked at before triggers change back, which the server asks for.
        if let Err(error) = tx.batch_execute("set constraints all immediate").await {
            return Err(self.told(&error));
        }
        triggers.on_again(&tx, self).await?;
        tx.commit().await.map_err(|error| self.told(&error))?;
        Ok(repaired)
    }

    async fn ranges(&self, source: &mut Connection, tx: &mut Transaction<'_>, key: &Key) -> Result<Repaired, NotRepaired> {
        let table = &self.subject.name;
        let (wanted, there) = (self.subject.wanted(), self.subject.found(table));
        let rows = (
            self.subject.source_sums(self.form, source).await?.rows,
            self.subject.target_sums(self.form, tx.client(), table).await?.rows,
        );
        let Differing { ranges, compared } = self.both(key, source, tx.client()).differing(rows).await?;
        let mut repaired = Repaired { compared, ..Repaired::default() };
        let doing = || format!("repairing table `{table}`");
        // Of the target's columns, so that a key compares there as the table's does; without their constraints.
        let stage = format!("create temporary table bullwork_repair on commit drop as {there} limit 0");
        tx.batch_execute(&stage).await.doing(doing)?;
        for range in &ranges {
            tx.batch_execute(&format!("truncate table {STAGED}")).await.doing(doing)?;
            let filter = key.within(range, "t").map(|c| format!(" where {c}")).unwrap_or_default();
            repaired.copied += self.bring(source, tx, &format!("select * from ({wanted}) t{filter}"), STAGED).await?;
            tx.batch_execute(&format!("analyze {STAGED}")).await.doing(doing)?;
            repaired.changed += self.apply(tx, key, range).await?;
            repaired.ranges += 1;
        }
        // All of them at the end: a row may have come from one range into another.
        let both = self.both(key, source, tx.client());
        for range in &ranges {
            if !both.equal(range).await? {
                return Err(NotRepaired::Other(
                    "what was written does not arrive as it is: look for rules on the table, and for values that the target changes".to_owned(),
                ));
            }
        }
        Ok(repaired)
    }

    fn both<'b>(&'b self, key: &'b Key, source: &'b Client, target: &'b Client) -> Both<'b> {
        Both {
            form: self.form,
            columns: &self.subject.columns,
            key,
            source: (source, self.subject.wanted()),
            target: (target, self.subject.found(&self.subject.name)),
        }
    }

    /// Makes a range what is staged; says how many rows changed.
    async fn apply(&self, tx: &mut Transaction<'_>, key: &Key, range: &Range) -> Result<u64, NotRepaired> {
        let table = self.subject.name.quoted();
        let columns = &self.subject.columns;
        let same = key.same("t", "s");
        let other = format!("{} <> {}", self.form.hash(columns, "t"), self.form.hash(columns, "s"));
        let within = key.within(range, "t").unwrap_or_else(|| "true".to_owned());
        let surplus = format!("{within} and not exists (select from {STAGED} s where {same})");
        let changed = format!("exists (select from {STAGED} s where {same} and {other})");
        let list = Projection::plain(&self.subject.names()).columns();

        let mut rows = self.delete(tx, &surplus).await?;
        let set: Vec<String> = columns
            .iter()
            .filter(|c| !self.there.always.contains(&c.name))
            .map(|c| format!("{0} = s.{0}", quote_identifier(&c.name)))
            .collect();
        if !set.is_empty() {
            let update = format!("update only {table} t set {} from {STAGED} s where {same} and {other}", set.join(", "));
            let attempt = tx.savepoint("bullwork_update").await.map_err(|e| self.told(&e))?;
            match attempt.execute(&update, &[]).await {
                Ok(updated) => {
                    attempt.commit().await.map_err(|e| self.told(&e))?;
                    rows += updated;
                }
                // Rows that exchanged a unique value: one must go before the other comes.
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                    attempt.rollback().await.map_err(|e| self.told(&e))?;
                    self.delete(tx, &changed).await?;
                }
                Err(error) => return Err(self.told(&error)),
            }
        }
        let insert = format!(
            "insert into {table} ({list}) overriding system value select {list} from {STAGED} s \
             where not exists (select from only {table} t where {same})"
        );
        rows += tx.execute(&insert, &[]).await.map_err(|e| self.told(&e))?;
        Ok(rows)
    }

    /// Deletes rows unless rows of other tables would go or change with them.
    async fn delete(&self, tx: &Transaction<'_>, condition: &str) -> Result<u64, NotRepaired> {
        const CASCADES: &str = "
            select format('%I.%I', n.nspname, c.relname), k.conname::text,
                   array_agg(format('c.%I is not distinct from t.%I', f.attname, r.attname))
              from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
              cross join lateral unnest(k.conkey, k.confkey) p(f, r)
              join pg_attribute f on f.attrelid = k.conrelid and f.attnum = p.f join pg_attribute r on r.attrelid = k.confrelid and r.attnum = p.r
             where k.contype = 'f' and k.confdeltype in ('c', 'n', 'd')
               and k.confrelid in (select $1::oid union select relid::oid from pg_partition_ancestors($1::oid))
             group by k.oid, n.nspname, c.relname, k.conname";
        let table = self.subject.name.quoted();
        let doing = || format!("reading what refers to table `{}`", self.subject.name);
        for row in tx.query(CASCADES, &[&self.there.oid]).await.doing(doing)? {
            let (other, key, pairs): (String, String, Vec<String>) = (row.get(0), row.get(1), row.get(2));
            let sql = format!(
                "select exists (select from only {table} t where {condition} and exists (select from {other} c where {}))",
                pairs.join(" and ")
            );
            if tx.query_one(&sql, &[]).await.doing(doing)?.get(0) {
                return Err(NotRepaired::ForeignKey(format!(
                    "rows that have to go are referred to by {other}, and its foreign key `{key}` would delete or change rows there; repair {other} first, \
                     or delete these rows there"
                )));
            }
        }
        tx.execute(&format!("delete from only {table} t where {condition}"), &[]).await.map_err(|e| self.told(&e))
    }

    async fn whole(&self, source: &mut Connection, tx: &mut Transaction<'_>) -> Result<Repaired, NotRepaired> {
        let table = &self.subject.name;
        self.refuse_references(tx).await?;
        let deleted = self.delete(tx, "true").await?;
        let copied = self.bring(source, tx, &self.subject.wanted(), &format!("{}{}", table.quoted(), self.list())).await?;
        let wanted = self.subject.source_sums(self.form, source).await?;
        let there: Sums = self.subject.target_sums(self.form, tx.client(), table).await?;
        if wanted != there {
            return Err(NotRepaired::Other(
                "what was written does not arrive as it is: look for values that the target changes".to_owned(),
            ));
        }
        Ok(Repaired { whole: true, compared: 1, ranges: 1, copied, changed: deleted.max(copied) })
    }

    /// A table that rows of others refer to cannot go whole, not even to come back at once: said before anything is tried.
    async fn refuse_references(&self, tx: &Transaction<'_>) -> Result<(), NotRepaired> {
        const REFERENCES: &str = "
            select format('%I.%I', n.nspname, c.relname), k.conname::text,
                   (select string_agg(format('%I is not null', a.attname), ' and ') from pg_attribute a where a.attrelid = k.conrelid and a.attnum = any(k.conkey))
              from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
             where k.contype = 'f' and k.confdeltype in ('a', 'r') and not k.condeferred and k.conrelid <> $1
               and k.confrelid in (select $1::oid union select relid::oid from pg_partition_ancestors($1::oid))";
        let doing = || format!("reading what refers to table `{}`", self.subject.name);
        for row in tx.query(REFERENCES, &[&self.there.oid]).await.doing(doing)? {
            let (other, key, filled): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            if tx.query_one(&format!("select exists (select from {other} where {filled})"), &[]).await.doing(doing)?.get(0) {
                return Err(NotRepaired::Other(format!(
                    "both sides have no common key, so it could only be replaced whole, and rows of {other} refer to it (foreign key `{key}`); \
                     run the full replication"
                )));
            }
        }
        Ok(())
    }

    fn list(&self) -> String {
        if self.subject.columns.is_empty() {
            String::new()
        } else {
            format!(" ({})", Projection::plain(&self.subject.names()).columns())
        }
    }

    /// Streams what `select` gives on the source into a table of the target.
    async fn bring(&self, source: &mut Connection, tx: &Transaction<'_>, select: &str, into: &str) -> Result<u64, NotRepaired> {
        let form = if self.binary { "binary" } else { "text" };
        let reading = || format!("reading table `{}` from the source", self.subject.name);
        let mut out = source.copy_out_in_pieces(&format!("copy ({select}) to stdout (format {form})")).await.doing(reading)?;
        let sink = tx.copy_in::<_, Bytes>(&format!("copy {into} from stdin (format {form})")).await;
        let mut sink = Box::pin(sink.map_err(|e| self.told(&e))?);
        loop {
            match out.next().await {
                Ok(Some(piece)) => {
                    if sink.feed(piece.bytes).await.is_err() {
                        // Its end says more.
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // Dropped before its end it sends CopyFail.
                    drop(sink);
                    return Err(error).doing(reading).map_err(Into::into);
                }
            }
        }
        sink.as_mut().finish().await.map_err(|e| self.told(&e))
    }

    /// The target's refusal in plain words.
    fn told(&self, error: &tokio_postgres::Error) -> NotRepaired {
        let reason = explain(error);
        let code = error.code();
        if code == Some(&SqlState::FOREIGN_KEY_VIOLATION) {
            return NotRepaired::ForeignKey(format!(
                "its rows on the source and those of another table on the target do not fit together; repair that table too, or run the full replication: {reason}"
            ));
        }
        if code == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return NotRepaired::Other(format!("somebody else writes to it for longer than 10 s; try again: {reason}"));
        }
        NotRepaired::Other(reason)
    }
}

/// The table's triggers, which must not change what is repaired.
struct Triggers(Vec<(String, bool)>);

impl Triggers {
    async fn off(tx: &Transaction<'_>, repair: &Repair<'_>) -> Result<Triggers, NotRepaired> {
        const SQL: &str = "select tgname::text, tgenabled = 'A' from pg_trigger where tgrelid = $1 and not tgisinternal and tgenabled in ('O', 'A')";
        let doing = || format!("reading the triggers of table `{}`", repair.subject.name);
        let rows = tx.query(SQL, &[&repair.there.oid]).await.doing(doing)?;
        let triggers = Triggers(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect());
        triggers.switch(tx, repair, |_| "disable trigger").await?;
        Ok(triggers)
    }

    async fn on_again(&self, tx: &Transaction<'_>, repair: &Repair<'_>) -> Result<(), NotRepaired> {
        self.switch(tx, repair, |always| if always { "enable always trigger" } else { "enable trigger" }).await
    }

    async fn switch(
        &self,
        tx: &Transaction<'_>,
        repair: &Repair<'_>,
        how: impl Fn(bool) -> &'static str,
    ) -> Result<(), NotRepaired> {
        let table = repair.subject.name.quoted();
        for (name, always) in &self.0 {
            let sql = format!("alter table only {table} {} {}", how(*always), quote_identifier(name));
            tx.batch_execute(&sql).await.map_err(|e| repair.told(&e))?;
        }
        Ok(())
    }
}
