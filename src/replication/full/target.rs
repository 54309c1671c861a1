//! Makes the target's definitions anew: what is replaced goes and what the source has comes, in
//! one transaction. When anything in it is refused, the target is as it was before.
//!
//! `DROP … CASCADE` is used, but only after the dependents are known and stored ([`super::drops`]),
//! and the catalogue is compared before and after: had anything else gone with them, the
//! transaction is rolled back.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::{Client, Transaction};

use super::catalog::{Graph, Key, Node, ObjectId, PG_CLASS, PG_PROC, PG_TYPE};
use super::drops::{self, DropPlan, Known};
use super::policies::RowSecurity;
use super::source::Source;
use super::{resume, saved, state, tables};
use crate::postgres::{Doing, PostgresError, explain, quote_literal};
use crate::replication::ddl::{Kind, Section, Statement};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// What became of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Made, or to be made when the rows are there.
    Made,
    /// The target had it and keeps it.
    Kept,
    /// Not for this target: part of a kept table, or not wanted.
    Ignored,
    /// Cannot be made, for the reason given.
    Skipped(String),
}

/// Decides for each definition of the source, in their order.
pub(super) struct Judge<'a> {
    source: &'a Source,
    /// Index of the entry that makes an object.
    maker: HashMap<ObjectId, usize>,
    /// Depends on a kept table that the target does not have; the text names it.
    orphaned: HashMap<ObjectId, String>,
    /// Depends on a kept table: may not fit what the target has.
    loose: HashSet<ObjectId>,
    foreign_keys: bool,
    pub(super) fates: Vec<Option<Fate>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(source: &'a Source, target: &Graph, foreign_keys: bool) -> Self {
        let there: HashSet<TableName> = target.table_names().into_iter().collect();
        let graph = &source.graph;
        let mut orphaned = HashMap::new();
        for oid in &source.kept_oids {
            let node = &graph.nodes[&(PG_CLASS, *oid)];
            if node.is_table() && !there.contains(&node.table_name()) {
                for id in graph.closure_of_dependents([node.id]) {
                    orphaned.entry(id).or_insert_with(|| node.table_name().to_string());
                }
            }
        }
        let loose = graph.closure_of_dependents(source.kept_oids.iter().map(|oid| (PG_CLASS, *oid)));
        let maker = source.entries.iter().enumerate().filter(|(_, e)| e.catalogue != 0).map(|(i, e)| (e.object(), i)).collect();
        Judge { source, maker, orphaned, loose, foreign_keys, fates: vec![None; source.entries.len()] }
    }

    pub(super) fn node(&self, entry: &Statement) -> Option<&'a Node> {
        self.source.graph.nodes.get(&self.source.graph.top(entry.object()))
    }

    /// May be refused without failing the run: it needs a kept table as it is on the source, or
    /// something that a warehouse rarely has.
    pub(super) fn is_loose(&self, entry: &Statement) -> bool {
        const RARE: &[Kind] = &[
            Kind::Comment,
            Kind::Extension,
            Kind::ExtensionDependency,
            Kind::Language,
            Kind::Transform,
            Kind::AccessMethod,
            Kind::Policy,
            Kind::Trigger,
            Kind::TriggerState,
            Kind::Rule,
        ];
        // A table left out would be rows lost in silence.
        RARE.contains(&entry.kind) || (entry.kind != Kind::Table && self.loose.contains(&self.source.graph.top(entry.object())))
    }

    /// Decides for entry `i`, those before it being decided.
    pub(super) fn judge(&self, i: usize, present: &HashSet<Key>) -> Fate {
        let entry = &self.source.entries[i];
        let step = entry.catalogue == 0;
        // These are done by us, in another order.
        if matches!(entry.kind, Kind::Refresh | Kind::ForeignKeyValidation) {
            return Fate::Ignored;
        }
        // It is the heir that is made or kept, whatever becomes of the parent.
        let heir = matches!(entry.kind, Kind::Partition | Kind::Inheritance);
        if heir && self.maker.get(&(PG_CLASS, entry.relation)).is_some_and(|m| self.fates[*m] != Some(Fate::Made)) {
            return Fate::Ignored;
        }
        for other in &entry.depends_on {
            match &self.fates[*other] {
                Some(Fate::Skipped(_)) if step => return Fate::Ignored,
                Some(Fate::Skipped(_)) => {
                    let other = &self.source.entries[*other];
                    return Fate::Skipped(format!("needs {} {}, which was left out", other.kind, other.told()));
                }
                // A comment, an attachment …: goes with its objects, and what is kept is not touched.
                Some(Fate::Ignored | Fate::Kept) if step && !heir => return Fate::Ignored,
                _ => {}
            }
        }
        if step {
            return if entry.depends_on.is_empty() { Fate::Ignored } else { Fate::Made };
        }
        let graph = &self.source.graph;
        let top = graph.top(entry.object());
        let Some(node) = self.node(entry) else { return Fate::Made };
        if node.is_foreign_key() && !self.foreign_keys {
            return Fate::Ignored;
        }
        let home = if node.is_foreign_key() { (PG_CLASS, node.table) } else { graph.owner_of_sequence(top).unwrap_or(top) };
        if home.0 == PG_CLASS && self.source.kept_oids.contains(&home.1) {
            return Fate::Ignored;
        }
        if let Some(table) = self.orphaned.get(&top) {
            return Fate::Skipped(format!("needs table `{table}`, which is kept and does not exist on the target"));
        }
        if entry.object() != top {
            // A part goes with its whole.
            return match self.maker.get(&top).and_then(|m| self.fates[*m].clone()) {
                Some(Fate::Kept | Fate::Ignored) => Fate::Ignored,
                Some(Fate::Skipped(reason)) => Fate::Skipped(reason),
                _ => Fate::Made,
            };
        }
        if present.contains(&node.key()) && node.id.0 != PG_PROC { Fate::Kept } else { Fate::Made }
    }

    pub(super) fn skip(&mut self, run: &Run, i: usize, reason: &str) {
        let entry = &self.source.entries[i];
        run.warn(format!("left out {} {}: {reason}", entry.kind, entry.told()));
        self.fates[i] = Some(Fate::Skipped(reason.to_owned()));
    }

    /// What entry `i` needs and was left out since it was decided on.
    pub(super) fn missing_need(&self, i: usize) -> Option<String> {
        let entry = &self.source.entries[i];
        entry.depends_on.iter().find(|d| matches!(self.fates[**d], Some(Fate::Skipped(_)))).map(|d| {
            let other = &self.source.entries[*d];
            format!("needs {} {}, which was left out", other.kind, other.told())
        })
    }

    /// Entries left out, for the summary.
    pub(super) fn skipped(&self) -> Vec<String> {
        self.fates
            .iter()
            .zip(&self.source.entries)
            .filter(|(fate, entry)| matches!(fate, Some(Fate::Skipped(_))) && entry.kind != Kind::Comment)
            .map(|(_, entry)| format!("{} {}", entry.kind, entry.told()))
            .collect()
    }

    /// What is ours on the target: everything that was made, and the source's indexes.
    pub(super) fn made_keys(&self) -> HashSet<Key> {
        let objects = self.source.entries.iter().enumerate().filter_map(|(i, entry)| {
            let stands_for_itself = self.fates[i] == Some(Fate::Made) && self.source.graph.top(entry.object()) == entry.object();
            self.node(entry).filter(|n| stands_for_itself && !n.is_foreign_key()).map(Node::key)
        });
        let indexes = self.source.index_identities.iter().map(|identity| ("index".to_owned(), identity.clone()));
        objects.chain(indexes).collect()
    }

    /// Whether the object was made, or is to be made after the rows.
    pub(super) fn is_made(&self, object: ObjectId) -> bool {
        self.maker.get(&object).is_some_and(|i| self.fates[*i] == Some(Fate::Made))
    }

    /// Whether the object touches a kept table.
    pub(super) fn touches_kept(&self, object: ObjectId) -> bool {
        self.loose.contains(&object)
    }
}

/// Adds the labels that kept enums lack. By itself, because a new label cannot be used in the
/// transaction that adds it; harmless when the run ends here.
pub(super) async fn complete_enums(run: &Run, source: &Client, target: &Client, wanted: &[Key]) -> Result<(), PostgresError> {
    const LABELS: &str = "select array_agg(e.enumlabel::text order by e.enumsortorder) from pg_enum e, \
                          pg_identify_object('pg_type'::regclass, e.enumtypid, 0) i where i.identity = $1";
    for (_, identity) in wanted {
        let doing = || format!("comparing the labels of {identity}");
        let ours: Option<Vec<String>> = source.query_one(LABELS, &[identity]).await.doing(doing)?.get(0);
        let theirs: Option<Vec<String>> = target.query_one(LABELS, &[identity]).await.doing(doing)?.get(0);
        let (ours, theirs) = (ours.unwrap_or_default(), theirs.unwrap_or_default());
        let mut before: Option<&String> = None;
        for label in &ours {
            if !theirs.contains(label) {
                let place = match before {
                    Some(before) => format!("after {}", quote_literal(before)),
                    None => theirs.first().map_or_else(String::new, |first| format!("before {}", quote_literal(first))),
                };
                let sql = format!("alter type {identity} add value if not exists {} {place}", quote_literal(label));
                target.batch_execute(&sql).await.doing(|| format!("adding label `{label}` to {identity}"))?;
                run.info(format!("added label `{label}` to {identity}, which a kept table uses"));
            }
            before = Some(label);
        }
        let lost: Vec<&String> = theirs.iter().filter(|l| !ours.contains(l)).collect();
        if !lost.is_empty() {
            run.warn(format!(
                "{identity} keeps {} label(s) that the source no longer has, because a kept table uses it",
                lost.len()
            ));
        }
    }
    Ok(())
}

/// Enums that stay on the target and that the source has too.
pub(super) fn kept_enums(source: &Source, target: &Graph, plan: &DropPlan) -> Vec<Key> {
    let mut keys: Vec<Key> = target
        .nodes
        .values()
        .filter(|n| {
            n.id.0 == PG_TYPE && n.sort == 'e' && !n.extension && !plan.gone.contains(&n.id) && source.keys.contains(&n.key())
        })
        .map(Node::key)
        .collect();
    keys.sort();
    keys
}

/// The one transaction. Returns what was decided for each definition.
pub(super) async fn rebuild<'s>(
    run: &Run,
    target: &mut Client,
    source: &'s Source,
    own_views: &HashSet<TableName>,
    own_indexes: &HashSet<TableName>,
    foreign_keys: bool,
) -> anyhow::Result<Judge<'s>> {
    let doing = || "starting the transaction on the target".to_owned();
    let mut tx = target.transaction().await.doing(doing)?;
    lock(&tx, source, &Graph::read(tx.client()).await?, own_views).await?;
    // Only now nobody can add a view to what goes.
    let before = Graph::read(tx.client()).await?;
    let recorded = state::recorded(tx.client()).await?;
    let plan = drops::decide(&before, &source.known(&recorded, own_views))?;
    drops::tell(run, &plan);
    for id in &plan.saved {
        let node = &before.nodes[id];
        run.info(format!("{} is somebody's own: stored, and made again at the end", node.told()));
        saved::store(tx.client(), node).await?;
    }
    // Indexes count as somebody's own once a run of ours has recorded which ones are not: the
    // system before us left its own behind.
    if recorded.iter().any(|(kind, _)| kind == "index") {
        for index in tables::plain_indexes(tx.client()).await? {
            let key = ("index".to_owned(), index.identity.clone());
            let of_source = source.index_names.contains(&index.name) || recorded.contains(&key);
            if plan.replaced.contains(&(PG_CLASS, index.table)) && !of_source && !own_indexes.contains(&index.name) {
                run.info(format!("index {} is somebody's own: stored, and made again at the end", index.identity));
                saved::store_index(tx.client(), &index).await?;
            }
        }
    }
    for id in &plan.foreign_keys {
        saved::ForeignKey::read(tx.client(), &before.nodes[id]).await?.store(tx.client()).await?;
    }
    let relations: Vec<u32> = plan.replaced.iter().filter(|id| id.0 == PG_CLASS).map(|id| id.1).collect();
    let privileges = saved::privileges(tx.client(), &relations).await?;
    let secured = source.entries.iter().filter(|entry| entry.kind == Kind::RowSecurity);
    let secured: HashSet<TableName> =
        secured.filter_map(|entry| Some(source.graph.nodes.get(&(PG_CLASS, entry.relation))?.table_name())).collect();
    let security = RowSecurity::of(tx.client(), &relations).await?.without(&secured);

    drop_replaced(&tx, &before, &plan).await?;
    let after = Graph::read(tx.client()).await?;
    refuse_other_losses(&before, &after, &plan)?;

    let mut judge = Judge::new(source, &after, foreign_keys);
    let present: HashSet<Key> = after.nodes.values().map(Node::key).collect();
    for i in 0..source.entries.len() {
        let fate = judge.judge(i, &present);
        make_one(run, &mut tx, &mut judge, i, fate, &present, false).await?;
    }
    drop_stale_functions(run, &mut tx, &after, &plan).await?;
    // Before the first row is there.
    security.give(run, &mut tx, &source.relocation).await?;
    grant(&mut tx, privileges).await?;

    let mut made: HashSet<Key> = recorded.into_iter().filter(|key| present.contains(key)).collect();
    made.extend(judge.made_keys());
    made.insert(("index".to_owned(), String::new()));
    state::record(tx.client(), made).await?;
    state::enter(tx.client(), state::Phase::Loading, 0).await?;
    tx.commit().await.doing(|| "committing the new definitions".to_owned())?;
    Ok(judge)
}

/// Makes definition `i` if it comes before the rows, and notes what became of it. Functions in `present` are replaced. `again`: it may be
/// there already.
pub(super) async fn make_one(
    run: &Run,
    tx: &mut Transaction<'_>,
    judge: &mut Judge<'_>,
    i: usize,
    fate: Fate,
    present: &HashSet<Key>,
    again: bool,
) -> anyhow::Result<()> {
    let entry = &judge.source.entries[i];
    match &fate {
        Fate::Skipped(reason) if entry.kind == Kind::Table => {
            anyhow::bail!("table `{}` cannot be made on the target: {reason}", entry.told())
        }
        Fate::Skipped(reason) => {
            judge.skip(run, i, reason);
            return Ok(());
        }
        Fate::Made if entry.section == Section::Pre => {
            let replaces = entry.catalogue == PG_PROC && judge.node(entry).is_some_and(|n| present.contains(&n.key()));
            if let Err(reason) = make(tx, entry, replaces, judge.is_loose(entry), judge.node(entry), again).await? {
                judge.skip(run, i, &reason);
                return Ok(());
            }
        }
        _ => {}
    }
    judge.fates[i] = Some(fate);
    Ok(())
}

async fn lock(tx: &Transaction<'_>, source: &Source, graph: &Graph, own_views: &HashSet<TableName>) -> anyhow::Result<()> {
    let recorded = state::recorded(tx.client()).await?;
    let plan = drops::decide(graph, &source.known(&recorded, own_views))?;
    let mut tables: Vec<String> = plan
        .replaced
        .iter()
        .map(|id| &graph.nodes[id])
        .filter(|n| n.is_relation() && matches!(n.sort, 'r' | 'p'))
        .map(|n| n.table_name().quoted())
        .collect();
    tables.sort();
    if !tables.is_empty() {
        let sql = format!("lock table {} in access exclusive mode", tables.join(", "));
        tx.batch_execute(&sql).await.doing(|| {
            "locking the tables that are replaced (after 300 s we give up; pg_locks and pg_stat_activity tell who holds them)"
                .to_owned()
        })?;
    }
    Ok(())
}

async fn drop_replaced(tx: &Transaction<'_>, graph: &Graph, plan: &DropPlan) -> Result<(), PostgresError> {
    for id in &plan.orphans {
        let name = graph.nodes[id].table_name().quoted();
        tx.batch_execute(&format!("alter sequence {name} owned by none")).await.doing(|| format!("keeping sequence {name}"))?;
    }
    let mut lists: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for node in plan.replaced.iter().map(|id| &graph.nodes[id]) {
        let (rank, name) = match (node.is_relation(), node.sort) {
            (true, 'v') => (0, node.table_name().quoted()),
            (true, 'm') => (1, node.table_name().quoted()),
            (true, 'f') => (2, node.table_name().quoted()),
            (true, 'S') => (4, node.table_name().quoted()),
            (true, _) => (3, node.table_name().quoted()),
            (false, _) => (5, node.identity.clone()),
        };
        lists.entry(rank).or_default().push(name);
    }
    const KINDS: [&str; 6] = ["view", "materialized view", "foreign table", "table", "sequence", "type"];
    for (rank, names) in lists {
        let kind = KINDS[usize::from(rank)];
        tx.batch_execute(&format!("drop {kind} if exists {} cascade", names.join(", ")))
            .await
            .doing(|| format!("dropping what is replaced ({} {kind}s)", names.len()))?;
    }
    Ok(())
}

/// Everything that was not to go must still be there, with all its parts.
fn refuse_other_losses(before: &Graph, after: &Graph, plan: &DropPlan) -> anyhow::Result<()> {
    for (id, node) in before.nodes.iter().filter(|(id, _)| !plan.gone.contains(id)) {
        let whole = after.nodes.get(id).is_some_and(|now| node.parts.iter().zip(&now.parts).all(|(was, is)| is >= was));
        anyhow::ensure!(
            whole,
            "{} would lose something with the tables that are replaced; nothing was dropped; undo what ties it to them",
            node.told()
        );
    }
    Ok(())
}

/// Makes one definition. The inner error is a reason to leave it out.
async fn make(
    tx: &mut Transaction<'_>,
    entry: &Statement,
    replaces: bool,
    loose: bool,
    node: Option<&Node>,
    again: bool,
) -> Result<Result<(), String>, PostgresError> {
    let doing = || format!("making {} {} on the target", entry.kind, entry.told());
    if !replaces && !loose {
        return tx.batch_execute(&entry.sql).await.doing(doing).map(Ok);
    }
    let definition = if replaces { or_replace(&entry.sql) } else { entry.sql.clone() };
    let kind = again.then_some(entry.kind);
    let first = attempt_again(tx, &definition, kind).await?;
    let (true, Some(node), Err(_)) = (replaces, node, &first) else { return Ok(first) };
    // A function whose result type changed cannot be replaced, only dropped, unless it is needed.
    attempt(tx, &format!("drop routine {} restrict; {}", node.identity, entry.sql)).await
}

pub(super) async fn attempt(tx: &mut Transaction<'_>, sql: &str) -> Result<Result<(), String>, PostgresError> {
    attempt_again(tx, sql, None).await
}

/// The same for what may be there already, as one of `kind`.
async fn attempt_again(tx: &mut Transaction<'_>, sql: &str, kind: Option<Kind>) -> Result<Result<(), String>, PostgresError> {
    let doing = || "setting a savepoint on the target".to_owned();
    let inner = tx.savepoint("definition").await.doing(doing)?;
    match inner.batch_execute(sql).await {
        Ok(()) => inner.commit().await.doing(doing).map(Ok),
        Err(error) => {
            inner.rollback().await.doing(doing)?;
            match kind {
                _ if error.is_closed() => Err(error).doing(doing),
                Some(kind) if resume::is_done(&error, kind) => Ok(Ok(())),
                _ => Ok(Err(explain(&error))),
            }
        }
    }
}

pub(super) fn or_replace(definition: &str) -> String {
    // The server writes the others with it.
    for kind in ["function", "procedure", "aggregate"] {
        if let Some(rest) = definition.strip_prefix(&format!("create {kind} ")) {
            return format!("create or replace {kind} {rest}");
        }
    }
    definition.to_owned()
}

async fn drop_stale_functions(run: &Run, tx: &mut Transaction<'_>, graph: &Graph, plan: &DropPlan) -> Result<(), PostgresError> {
    for node in plan.stale_functions.iter().filter_map(|id| graph.nodes.get(id)) {
        match attempt(tx, &format!("drop routine {} restrict", node.identity)).await? {
            Ok(()) => run.info(format!("gone from the source, so dropped: {}", node.told())),
            Err(reason) => run.warn(format!("{} is gone from the source and stays: {reason}", node.told())),
        }
    }
    Ok(())
}

/// Gives the privileges that the replaced relations had. What cannot be given now (a view that is
/// made after the rows) is stored and given at the end.
pub(super) async fn grant(tx: &mut Transaction<'_>, statements: Vec<String>) -> Result<(), PostgresError> {
    let mut later = Vec::new();
    for statement in statements {
        if attempt(tx, &statement).await?.is_err() {
            later.push(statement);
        }
    }
    if let Some((first, _)) = later.split_first() {
        // The first statement decides whether the stored object counts as made; a harmless one
        // leaves each grant to be tried by itself.
        let mut all = vec!["select".to_owned()];
        all.extend(later.iter().cloned());
        let identity = format!("{} and {} more", first, later.len() - 1);
        saved::write(tx.client(), "privileges", &identity, &all).await?;
    }
    Ok(())
}

impl Source {
    /// What the drop plan is decided on.
    pub(super) fn known<'k>(&'k self, recorded: &'k HashSet<Key>, own_views: &'k HashSet<TableName>) -> Known<'k> {
        Known { source: &self.keys, source_relations: &self.relations, recorded, kept: &self.kept, own_views }
    }
}
