//! Makes the next generation's definitions beside the copy that serves.
//!
//! Nothing of the live copy is changed, locked or dropped here: what the source has is made in stand-in schemas
//! ([`super::generation`]) from definitions in which the names of staged objects are exchanged ([`super::relocate`]).
//! Then the catalogue is asked whether any of it refers to what is to be replaced.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::catalog::{Graph, Key, Node, ObjectId, PG_CLASS, PG_PROC, PG_TYPE};
use super::drops::DropPlan;
use super::generation::new_schema;
use super::relocate::{self, Relocation};
use super::source::Source;
use super::target::{self, Fate, Judge};
use super::{generation, resume, state};
use crate::postgres::Doing;
use crate::replication::ddl::Kind;
use crate::replication::incremental::watermark::SourceState;
use crate::replication::settings::TableName;
use crate::worker::Run;

/// Functions that the target has already.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// Entries that make what is there in the same words.
    pub(super) same: HashSet<usize>,
    /// Entries that change what is there; done when the copies are switched, so that readers see function and data of one
    /// generation.
    pub(super) late: Vec<usize>,
}

/// Exchanges the names of everything that will be made in the definitions of `source`.
pub(super) async fn relocate(
    reader: &Client,
    target: &Client,
    source: &mut Source,
    there: &Graph,
    plan: &DropPlan,
    foreign_keys: bool,
) -> anyhow::Result<Functions> {
    let present = staying(there, plan);
    let (ours, theirs) = (function_definitions(reader).await?, function_definitions(target).await?);
    let mut functions = Functions::default();
    let mut names: HashSet<TableName> = HashSet::new();
    let mut tables: HashSet<u32> = HashSet::new();
    let mut judge = Judge::new(source, there, foreign_keys);
    for (i, entry) in source.entries.iter().enumerate() {
        let mut fate = judge.judge(i, &present);
        let node = source.graph.nodes.get(&entry.object());
        match node.filter(|_| fate == Fate::Made) {
            Some(node) if node.id.0 == PG_PROC && present.contains(&node.key()) => {
                if ours.get(&node.identity) == theirs.get(&node.identity) {
                    functions.same.insert(i);
                } else {
                    functions.late.push(i);
                }
                fate = Fate::Kept;
            }
            Some(node) if node.is_relation() => {
                names.insert(node.table_name());
                tables.insert(node.id.1);
            }
            Some(node) if matches!(node.id.0, PG_TYPE | PG_PROC) => names.extend(relocate::split(&node.identity)),
            _ if fate == Fate::Made && entry.kind == Kind::Statistics => {
                names.extend(entry.schema.clone().map(|schema| TableName { schema, name: entry.name.clone() }));
            }
            _ => {}
        }
        judge.fates[i] = Some(fate);
    }
    // Those of identity columns come with their tables.
    let sequences = source.graph.nodes.values().filter(|n| n.is_relation() && n.sort == 'S');
    let owned = |id| source.graph.owner_of_sequence(id).is_some_and(|owner| tables.contains(&owner.1));
    names.extend(sequences.filter(|n| owned(n.id)).map(Node::table_name));
    const INDEXES: &str = "select n.nspname::text, c.relname::text, i.indrelid from pg_index i join pg_class c on c.oid = i.indexrelid \
                           join pg_namespace n on n.oid = c.relnamespace where c.oid >= 16384";
    for row in reader.query(INDEXES, &[]).await.doing(|| "reading the names of the source's indexes".to_owned())? {
        if tables.contains(&row.get(2)) {
            names.insert(TableName { schema: row.get(0), name: row.get(1) });
        }
    }
    const MULTIRANGES: &str = "select n.nspname::text, m.typname::text, i.identity from pg_type m join pg_namespace n on n.oid = m.typnamespace \
                               join pg_depend d on d.classid = 'pg_type'::regclass and d.objid = m.oid and d.refclassid = 'pg_type'::regclass \
                               and d.deptype = 'i', pg_identify_object('pg_type'::regclass, d.refobjid, 0) i where m.typtype = 'm' and m.oid >= 16384";
    for row in reader.query(MULTIRANGES, &[]).await.doing(|| "reading the source's multiranges".to_owned())? {
        if relocate::split(row.get(2)).is_some_and(|range| names.contains(&range)) {
            names.insert(TableName { schema: row.get(0), name: row.get(1) });
        }
    }
    drop(judge);
    source.relocate(Relocation::new(names, new_schema), &functions.late);
    Ok(functions)
}

/// Kind and identity of what the target has and keeps.
pub(super) fn staying(there: &Graph, plan: &DropPlan) -> HashSet<Key> {
    there.nodes.values().filter(|n| !plan.gone.contains(&n.id)).map(Node::key).collect()
}

/// Definitions of functions and procedures by identity; aggregates have none that could be compared.
async fn function_definitions(client: &Client) -> anyhow::Result<HashMap<String, String>> {
    const SQL: &str = "select i.identity, pg_get_functiondef(p.oid) from pg_proc p, pg_identify_object('pg_proc'::regclass, p.oid, 0) i \
                       where p.oid >= 16384 and p.prokind in ('f', 'p', 'w') \
                       and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')";
    let rows = client.query(SQL, &[]).await.doing(|| "reading functions".to_owned())?;
    Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What is to be made beside the live copy.
pub(super) struct Stage<'s> {
    pub(super) source: &'s Source,
    pub(super) there: &'s Graph,
    pub(super) plan: &'s DropPlan,
    pub(super) functions: &'s Functions,
    pub(super) foreign_keys: bool,
}

impl<'s> Stage<'s> {
    /// Makes all definitions that come before the rows, in one transaction; `again`: they are there already.
    pub(super) async fn make(
        &self,
        run: &Run,
        target: &mut Client,
        (digest, moment): (&str, &SourceState),
        again: bool,
    ) -> anyhow::Result<Judge<'s>> {
        let present = staying(self.there, self.plan);
        let mut tx = target.transaction().await.doing(|| "starting the transaction on the target".to_owned())?;
        for (_, stand_in) in self.source.relocation.schemas().filter(|_| !again) {
            generation::stage_schema(tx.client(), stand_in).await?;
        }
        let mut judge = Judge::new(self.source, self.there, self.foreign_keys);
        for (i, entry) in self.source.entries.iter().enumerate() {
            let mut fate = judge.judge(i, &present);
            if self.functions.same.contains(&i) || self.functions.late.contains(&i) {
                fate = Fate::Kept;
            }
            // Without looking: had it been refused, nothing would be there.
            if again && fate == Fate::Made && !judge.is_loose(entry) {
                judge.fates[i] = Some(fate);
                continue;
            }
            target::make_one(run, &mut tx, &mut judge, i, fate, &HashSet::new(), again).await?;
        }
        refuse_live_references(tx.client(), self.source, self.plan).await?;
        refuse_taken_names(tx.client(), self.source, self.plan).await?;
        if !again {
            resume::begin(tx.client(), digest, moment).await?;
        }
        state::enter(tx.client(), state::Phase::Staging, 0).await?;
        tx.commit().await.doing(|| "committing the new definitions".to_owned())?;
        Ok(judge)
    }
}

/// What is staged must not refer to what is replaced: it would go on doing so after the switch.
async fn refuse_live_references(target: &Client, source: &Source, plan: &DropPlan) -> anyhow::Result<()> {
    const SQL: &str = r"
with gone(oid) as (
  select unnest($1::oid[])
  union select reltype from pg_class where oid = any($1) and reltype <> 0
  union select t.typarray from pg_class c join pg_type t on t.oid = c.reltype where c.oid = any($1)
  union select typarray from pg_type where oid = any($1)
)
select distinct i.identity || ' needs ' || r.identity
  from pg_depend d join gone g on g.oid = d.refobjid, pg_identify_object(d.classid, d.objid, d.objsubid) i,
       pg_identify_object(d.refclassid, d.refobjid, 0) r
 where d.refclassid in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_proc'::regclass) and d.deptype in ('n', 'a', 'i')
   and exists (select from unnest($2::text[]) s where starts_with(i.identity, quote_ident(s) || '.')
               or position(' on ' || quote_ident(s) || '.' in i.identity) > 0 or position('for ' || quote_ident(s) || '.' in i.identity) > 0)
 order by 1";
    let gone: Vec<u32> = movable(plan).iter().map(|id| id.1).collect();
    let staged: Vec<&str> = source.relocation.schemas().map(|(_, stand_in)| stand_in).collect();
    let rows = target.query(SQL, &[&gone, &staged]).await.doing(|| "checking what the new definitions refer to".to_owned())?;
    let found: Vec<String> = rows.into_iter().map(|row| row.get(0)).collect();
    anyhow::ensure!(
        found.is_empty(),
        "the copy cannot be built beside the live one, because its definitions would refer to that: {}; set REPLICATION_SWAP=off to replace in place",
        found.join(", ")
    );
    Ok(())
}

/// What is staged must find its name free when it moves.
async fn refuse_taken_names(target: &Client, source: &Source, plan: &DropPlan) -> anyhow::Result<()> {
    const SQL: &str = r"
with place(stand_in, real) as (select s.oid, r.oid from unnest($1::text[], $2::text[]) p(s, r)
                                 join pg_namespace s on s.nspname = p.s join pg_namespace r on r.nspname = p.r)
select format('%s %I.%I', case o.relkind when 'i' then 'index' when 'S' then 'sequence' when 'v' then 'view' when 'c' then 'type' else 'table' end,
              o.relnamespace::regnamespace, o.relname)
  from pg_class c join place on place.stand_in = c.relnamespace join pg_class o on o.relnamespace = place.real and o.relname = c.relname
 where o.oid <> all($3) and not exists (select from pg_index i where i.indexrelid = o.oid and i.indrelid = any($3))
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = o.oid and d.deptype in ('a', 'i')
                   and d.refobjid = any($3))
   and not exists (select from pg_type t where t.typrelid = o.oid and t.oid = any($3))
union
select format('type %I.%I', o.typnamespace::regnamespace, o.typname)
  from pg_type t join place on place.stand_in = t.typnamespace join pg_type o on o.typnamespace = place.real and o.typname = t.typname
 where t.typtype in ('e', 'd', 'r', 'c') and o.oid <> all($3) and o.typrelid <> all($3)
   and not exists (select from pg_type e where e.typarray = o.oid)
order by 1";
    let (real, stand_in): (Vec<&str>, Vec<&str>) = source.relocation.schemas().unzip();
    let gone: Vec<u32> = movable(plan).iter().map(|id| id.1).collect();
    let rows = target.query(SQL, &[&stand_in, &real, &gone]).await.doing(|| "looking for names that are taken".to_owned())?;
    let taken: Vec<String> = rows.into_iter().map(|row| row.get(0)).collect();
    anyhow::ensure!(
        taken.is_empty(),
        "the target has something of its own where the source's belongs: {}; rename or drop it",
        taken.join(", ")
    );
    Ok(())
}

/// What goes, but for foreign keys, which go with their tables.
pub(super) fn movable(plan: &DropPlan) -> Vec<ObjectId> {
    let mut ids: Vec<ObjectId> = plan
        .gone
        .iter()
        .chain(&plan.stale_functions)
        .filter(|id| matches!(id.0, PG_CLASS | PG_TYPE | PG_PROC))
        .copied()
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Source {
    /// Exchanges the names in all definitions but the late ones, which are run when everything has its real name again.
    fn relocate(&mut self, relocation: Relocation, late: &[usize]) {
        let change = |text: &mut String| {
            if let std::borrow::Cow::Owned(changed) = relocation.sql(text) {
                *text = changed;
            }
        };
        let early = self.entries.iter_mut().enumerate().filter(|(i, _)| !late.contains(i));
        early.for_each(|(_, entry)| change(&mut entry.sql));
        for index in self.indexes.values_mut().flatten() {
            change(&mut index.definition);
            index.marks.iter_mut().for_each(change);
            if let Some((_, attach)) = &mut index.constraint {
                change(attach);
            }
        }
        for key in &mut self.foreign_keys {
            change(&mut key.add);
            key.validate.iter_mut().for_each(change);
        }
        self.relocation = relocation;
    }
}
