//! Every table as both sides have it now, compared, and repaired when asked.
//!
//! The source is read in one snapshot, several tables at a time; no row leaves either side but those of a repair.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tokio_postgres::Client;

use super::appended::{self, Found};
use super::repair::{NotRepaired, Repair};
use super::sums::Form;
use super::there::{self, Copy};
use super::{Subject, TARGET_SETTINGS};
use crate::postgres::same::same_database;
use crate::postgres::{Connection, Database, Doing, PostgresError, quote_literal};
use crate::replication::full::session::Sessions;
use crate::replication::full::tables::{self, SourceTable};
use crate::replication::incremental::catalogue;
use crate::replication::rules::{Applied, Rules};
use crate::replication::settings::{TableMode, TableModes, TableName};
use crate::worker::Run;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Config {
    /// What should be.
    pub source: Database,
    /// What is.
    pub target: Database,
    /// Tables of mode `none` are left out, those of mode `incremental` may have more rows on the target.
    pub modes: TableModes,
    /// Tables compared at the same time.
    pub jobs: usize,
    /// What is masked, and which rows are left behind.
    pub rules: Rules,
    /// Only these, and the partitions of these; all when empty.
    pub tables: Vec<String>,
    /// Whether what differs is made equal.
    pub repair: bool,
}

/// How a table compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// By checksum.
    Equal,
    /// Not equal.
    Differs,
    /// The target does not have it.
    Absent,
    /// It differed and is equal now, or will be after the next incremental run.
    Repaired,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Equal => "equal",
            Verdict::Differs => "differs",
            Verdict::Absent => "absent",
            Verdict::Repaired => "repaired",
        })
    }
}

/// A table's result.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The table.
    pub table: TableName,
    /// Rows on the source and on the target, where they were counted.
    pub rows: (Option<i64>, Option<i64>),
    /// The result.
    pub verdict: Verdict,
    /// What else is to be known.
    pub note: String,
}

/// The results, by table name.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One for each table.
    pub tables: Vec<Compared>,
    /// What holds for all of them.
    pub remarks: Vec<String>,
}

impl Report {
    /// Whether everything is equal now.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.tables.iter().all(|t| matches!(t.verdict, Verdict::Equal | Verdict::Repaired))
    }
}

enum Item {
    Whole(SourceTable),
    Appended(TableName),
}

impl Item {
    fn name(&self) -> &TableName {
        match self {
            Item::Whole(table) => &table.name,
            Item::Appended(name) => name,
        }
    }
}

/// Compares, and repairs when asked. Others that write to the target have to be kept out by the caller.
///
/// # Errors
/// When a side cannot be asked, or a table is named that does not exist. Tables that differ are no error.
pub async fn verify(run: &Run, config: &Config) -> anyhow::Result<Report> {
    let sessions = Sessions::new(&config.source, &config.target, &config.rules);
    let result = match run.unless_stopped(Box::pin(work(run, config, &sessions))).await {
        Ok(result) => result,
        Err(stopped) => Err(stopped.into()),
    };
    if result.is_err() {
        sessions.cancel_all().await;
    }
    result
}

async fn work(run: &Run, config: &Config, sessions: &Sessions<'_>) -> anyhow::Result<Report> {
    let (mut exporter, mut target) = tokio::try_join!(sessions.source(), sessions.target())?;
    anyhow::ensure!(
        !same_database(&target, &exporter).await?,
        "source and target are one database ({}); correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL",
        config.target
    );
    let form = Form::agreed(&exporter, &target).await?;
    let doing = || "opening a snapshot of the source".to_owned();
    exporter.batch_execute("begin isolation level repeatable read read only").await.doing(doing)?;
    // A standby shares no snapshots: one session then.
    let standby: bool = exporter.query_one("select pg_is_in_recovery()", &[]).await.doing(doing)?.get(0);
    let snapshot: Option<String> = match standby {
        true => None,
        false => Some(exporter.query_one("select pg_export_snapshot()", &[]).await.doing(doing)?.get(0)),
    };
    let copy = there::copy(&target).await?;
    config.rules.enter(&exporter).await?;
    let rules = config.rules.apply(&exporter, false).await?;
    let items = choose(&exporter, config, &rules).await?;
    run.progress(|p| {
        p.phase = "comparing".to_owned();
        p.total = items.len() as u64;
    });

    let mut tables: Vec<Compared> = {
        let waiting: Mutex<Vec<&Item>> = Mutex::new(items.iter().rev().collect());
        let done = Mutex::new(Vec::new());
        let workers = if standby { 1 } else { config.jobs.clamp(1, items.len().max(1)) };
        let first = Mutex::new(Some((&mut exporter, &mut target)));
        let worker = async |number: usize| {
            let (mut own_source, mut own_target);
            let given = if number == 0 { first.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
            let (source, target) = match (given, &snapshot) {
                (Some(given), _) => given,
                (None, Some(snapshot)) => {
                    own_source = sessions.source_in(snapshot).await?;
                    own_target = sessions.target_for_one_of(workers).await?;
                    (&mut own_source, &mut own_target)
                }
                (None, None) => return Ok(()),
            };
            loop {
                let Some(item) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
                    return Ok::<_, anyhow::Error>(());
                };
                let compared = compare(form, source, target, (item, &rules), &copy).await?;
                told(run, &compared);
                done.lock().unwrap_or_else(PoisonError::into_inner).push(compared);
            }
        };
        futures_util::future::try_join_all((0..workers).map(worker)).await?;
        done.into_inner().unwrap_or_else(PoisonError::into_inner)
    };
    tables.sort_by(|a, b| a.table.cmp(&b.table));
    if config.repair {
        repair(run, form, &mut exporter, &mut target, &items, &mut tables).await?;
    }
    let remarks = remarks(&tables, &copy, config.repair);
    Ok(Report { tables, remarks })
}

fn told(run: &Run, compared: &Compared) {
    let item = compared.table.to_string();
    let note = if compared.note.is_empty() { String::new() } else { format!(" ({})", compared.note) };
    run.info_with(
        format!("CHECKSUM {item}: {}{note}", compared.verdict),
        json!({"item_kind": "CHECKSUM", "item": item, "table_name": item, "rows": compared.rows.0, "equal": compared.verdict == Verdict::Equal}),
    );
    run.progress(|p| p.done += 1);
}

/// The tables that are compared, largest first.
async fn choose(source: &Connection, config: &Config, rules: &Applied) -> anyhow::Result<Vec<Item>> {
    const ABOVE: &str = "
        with recursive above(oid, parent) as (
          select inhrelid, inhparent from pg_inherits
          union select a.oid, h.inhparent from above a join pg_inherits h on h.inhrelid = a.parent)
        select a.oid, n.nspname::text, c.relname::text from above a join pg_class c on c.oid = a.parent join pg_namespace n on n.oid = c.relnamespace";
    const OF_EXTENSIONS: &str = "select objid from pg_depend where classid = 'pg_class'::regclass and deptype = 'e'";
    let doing = || "listing the source's tables".to_owned();
    let mut above: HashMap<u32, Vec<TableName>> = HashMap::new();
    for row in source.query(ABOVE, &[]).await.doing(doing)? {
        above.entry(row.get(0)).or_default().push(TableName { schema: row.get(1), name: row.get(2) });
    }
    let theirs: HashSet<u32> = source.query(OF_EXTENSIONS, &[]).await.doing(doing)?.into_iter().map(|row| row.get(0)).collect();
    let mut tables = tables::tables(source).await?;
    tables.retain(|t| t.name.schema != "bullwork" && !theirs.contains(&t.oid));
    tables.sort_by_key(|t| std::cmp::Reverse(t.size));
    for table in &mut tables {
        let lacking = |column| anyhow::anyhow!("table `{}` has masks, but no rule for column `{column}`", table.name);
        table.projection = rules.projection(table.oid, &table.columns()).map_err(lacking)?;
    }

    let is = |text: &str, name: &TableName| {
        (name.schema == "public" && text == name.name) || text == format!("{}.{}", name.schema, name.name)
    };
    let mut unused: Vec<&str> = config.tables.iter().map(String::as_str).collect();
    let mut wanted = |names: &[&TableName]| {
        unused.retain(|text| !names.iter().any(|name| is(text, name)));
        config.tables.is_empty() || config.tables.iter().any(|text| names.iter().any(|name| is(text, name)))
    };
    let mut items = Vec::new();
    for name in catalogue::resolve(&catalogue::known(source).await?, &config.modes, TableMode::Incremental)? {
        if wanted(&[&name]) {
            items.push(Item::Appended(name));
        }
    }
    let mut left_out = Vec::new();
    for table in tables {
        let names: Vec<&TableName> = std::iter::once(&table.name).chain(above.get(&table.oid).into_iter().flatten()).collect();
        match names.iter().map(|name| config.modes.mode_of(name)).find(|mode| *mode != TableMode::Full) {
            Some(TableMode::None) => left_out.extend(names.into_iter().cloned()),
            Some(TableMode::Incremental) => {}
            _ if wanted(&names) => items.push(Item::Whole(table)),
            _ => {}
        }
    }
    if let Some(text) = unused.iter().find(|text| left_out.iter().any(|name| is(text, name))) {
        anyhow::bail!("table `{text}` has mode \"none\" in BACKUP_MODE: it is not the source's");
    }
    anyhow::ensure!(
        unused.is_empty(),
        "the source has no table {}; names are exact, and `schema.table` outside `public`",
        unused.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ")
    );
    Ok(items)
}

async fn compare(
    form: Form,
    source: &mut Connection,
    target: &mut Connection,
    (item, rules): (&Item, &Applied),
    copy: &Copy,
) -> anyhow::Result<Compared> {
    let doing = || "setting up a checksum".to_owned();
    target.batch_execute(&format!("begin; {TARGET_SETTINGS}")).await.doing(doing)?;
    let compared = match item {
        Item::Whole(table) => whole(form, source, target, table, copy).await,
        Item::Appended(table) => grown(form, source, target, (table, rules)).await,
    };
    target.batch_execute("rollback").await.doing(doing)?;
    compared
}

async fn whole(form: Form, source: &Client, target: &Client, table: &SourceTable, copy: &Copy) -> anyhow::Result<Compared> {
    let result = |rows, verdict, note: &str| Compared { table: table.name.clone(), rows, verdict, note: note.to_owned() };
    let Some(there) = there::there(target, &table.name).await? else {
        return Ok(result((None, None), Verdict::Absent, "the target has no such table"));
    };
    if !table.readable {
        return Ok(result((None, None), Verdict::Differs, "the source's role may not read it whole"));
    }
    let columns = table.columns();
    let lacking: Vec<&str> = columns.iter().filter(|c| !there.columns.contains(c)).map(String::as_str).collect();
    if !lacking.is_empty() {
        return Ok(result((None, None), Verdict::Differs, &format!("the target lacks column {}", lacking.join(", "))));
    }
    let subject = Subject::of(source, table).await?;
    let (wanted, found) = tokio::try_join!(subject.source_sums(form, source), subject.target_sums(form, target, &table.name))?;
    let rows = (Some(wanted.rows), Some(found.rows));
    if wanted == found {
        return Ok(result(rows, Verdict::Equal, ""));
    }
    Ok(result(rows, Verdict::Differs, &newer(source, &table.name, copy).await?))
}

/// What of the table was written on the source since it was copied: deletions leave no trace.
async fn newer(source: &Client, table: &TableName, copy: &Copy) -> Result<String, PostgresError> {
    let Some(xmin) = copy.xmin else { return Ok(String::new()) };
    let doing = || format!("counting the newer rows of table `{table}`");
    let next: i64 = source.query_one("select txid_snapshot_xmax(txid_current_snapshot())", &[]).await.doing(doing)?.get(0);
    // Of another source, or of one that was restored, or too long ago to be told.
    if xmin > next || next - xmin > 2_000_000_000 {
        return Ok(String::new());
    }
    let number = quote_literal(&xmin.rem_euclid(1 << 32).to_string());
    let sql = format!("select count(*) from only {} where age(xmin) <= age({number}::xid)", table.quoted());
    let count: i64 = source.query_one(&sql, &[]).await.doing(doing)?.get(0);
    Ok(match count {
        0 => "no row of the source is newer than the copy".to_owned(),
        count => format!("{count} rows of the source are newer than the copy"),
    })
}

async fn grown(
    form: Form,
    source: &mut Connection,
    target: &Connection,
    (table, rules): (&TableName, &Applied),
) -> anyhow::Result<Compared> {
    let result = |rows, verdict, note: String| Compared { table: table.clone(), rows, verdict, note };
    Ok(match appended::compare(form, source, target, table, rules).await? {
        Found::Absent => result((None, None), Verdict::Absent, "the target has no such table".to_owned()),
        Found::Compared { rows, missing: 0 } => {
            result((Some(rows.0), Some(rows.1)), Verdict::Equal, "incremental: keys up to the watermark".to_owned())
        }
        Found::Compared { rows, missing } => result(
            (Some(rows.0), Some(rows.1)),
            Verdict::Differs,
            format!("incremental: the target lacks {missing} keys that were there at the last run"),
        ),
    })
}

/// Repairs what differs. A table that waits for another one's repair is tried again after that.
async fn repair(
    run: &Run,
    form: Form,
    source: &mut Connection,
    target: &mut Connection,
    items: &[Item],
    tables: &mut [Compared],
) -> anyhow::Result<()> {
    run.progress(|p| p.phase = "repairing".to_owned());
    loop {
        let mut progress = false;
        for compared in tables.iter_mut().filter(|t| t.verdict == Verdict::Differs && t.rows.0.is_some()) {
            let Some(item) = items.iter().find(|item| *item.name() == compared.table) else { continue };
            let table = match item {
                Item::Whole(table) => table,
                Item::Appended(name) => {
                    appended::repair(target, name).await?;
                    compared.verdict = Verdict::Repaired;
                    compared.note = format!("{}; the next incremental run compares every key and brings them", compared.note);
                    continue;
                }
            };
            let Some(there) = there::there(target, &table.name).await? else { continue };
            let subject = Subject::of(source, table).await?;
            let repair = Repair { form, subject: &subject, there: &there, binary: table.binary };
            match repair.run(source, target.client_mut()).await {
                Ok(done) => {
                    progress = true;
                    compared.verdict = Verdict::Repaired;
                    compared.rows.1 = compared.rows.0;
                    compared.note = if done.whole {
                        format!("replaced whole, because both sides have no common key: {} rows copied", done.copied)
                    } else {
                        format!(
                            "{} of {} ranges copied: {} rows, of which {} were changed",
                            done.ranges,
                            done.compared.max(1),
                            done.copied,
                            done.changed
                        )
                    };
                    run.info(format!("repaired {}: {}", compared.table, compared.note));
                }
                Err(NotRepaired::Postgres(error)) => return Err(error.into()),
                Err(NotRepaired::ForeignKey(reason) | NotRepaired::Other(reason)) => {
                    compared.note = format!("not repaired: {reason}");
                }
            }
        }
        if !progress {
            return Ok(());
        }
    }
}

fn remarks(tables: &[Compared], copy: &Copy, repair: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(phase) = &copy.unfinished {
        remarks.push(format!("the last full replication did not succeed ({phase}): the target is incomplete; run it again"));
    }
    if let Some(generation) = &copy.brought_back {
        remarks.push(format!(
            "{generation} serves, which `bullwork replication rollback` brought back: it is compared, not the copy of the last run; \
             another rollback, or `bullwork restart:full-replication`, makes a younger one serve"
        ));
    }
    let differs = tables.iter().filter(|t| t.verdict == Verdict::Differs).count();
    if differs > 0 {
        let since = copy.since.as_ref().map(|since| format!(", which {since}")).unwrap_or_default();
        remarks.push(format!(
            "the source was read as it is now: what was written there after the full copy{since}, differs and is no fault of the copy. \
             A table of which no row is newer differs by deletions on the source, or by changes on the target."
        ));
        if !repair {
            remarks.push("`bullwork replication verify --repair` makes the target's tables what the source has now".to_owned());
        }
    }
    if tables.iter().any(|t| t.verdict == Verdict::Repaired) {
        remarks.push(
            "repaired tables are of now, the others of the time of the copy; materialized views over them are as they were"
                .to_owned(),
        );
    }
    remarks
}
