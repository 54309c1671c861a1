//! What a database holds and what depends on what, read from its catalogues.
//!
//! Both sides are read the same way, so that an object here and an object there are the same when
//! kind and identity (schema-qualified, with argument types) are. Dependencies are told between
//! objects that stand for themselves: what belongs to a table (indexes, defaults, rules, its row
//! type …) counts as the table. A foreign key is an object of its own here, because it ties two
//! tables without either needing the other.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::replication::settings::TableName;

/// A catalogue and an oid in it.
pub(super) type ObjectId = (u32, u32);

// Catalogue oids are fixed for ever (src/include/catalog/*.h).
pub(super) const PG_TYPE: u32 = 1247;
pub(super) const PG_PROC: u32 = 1255;
pub(super) const PG_CLASS: u32 = 1259;
pub(super) const PG_CONSTRAINT: u32 = 2606;

/// Our own schema on a target; never replicated, never dropped.
pub(super) const OWN_SCHEMA: &str = "bullwork";

/// Whether a schema holds a generation that is being built, or one that served before ([`super::generation`]).
pub(super) fn is_stand_in(schema: &str) -> bool {
    let old = schema.strip_prefix("bullwork_old").and_then(|rest| rest.split_once('_'));
    schema.starts_with("bullwork_new_") || old.is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a schema is ours, and what stands in it nobody's business but ours.
pub(super) fn is_own(schema: &str) -> bool {
    schema == OWN_SCHEMA || is_stand_in(schema)
}

/// An object that stands for itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) id: ObjectId,
    /// `table`, `view`, `function`, `type` … in the server's words.
    pub(super) kind: String,
    pub(super) schema: Option<String>,
    pub(super) name: String,
    /// Qualified name, with argument types where they belong to it.
    pub(super) identity: String,
    /// `pg_class.relkind`, `pg_type.typtype`, `pg_proc.prokind`, or `-`.
    pub(super) sort: char,
    /// Belongs to an extension.
    pub(super) extension: bool,
    /// Our role may drop it.
    pub(super) owned: bool,
    /// Of a foreign key: its table, and the key that it is a partition's part of.
    pub(super) table: u32,
    pub(super) parent: u32,
    /// How many columns, defaults, checks, triggers, policies, indexes, rules it has.
    pub(super) parts: Vec<u32>,
}

impl Node {
    pub(super) fn key(&self) -> Key {
        (self.kind.clone(), self.identity.clone())
    }

    /// Something with rows or a position, in the name space of tables.
    pub(super) fn is_relation(&self) -> bool {
        self.id.0 == PG_CLASS
    }

    pub(super) fn is_table(&self) -> bool {
        self.is_relation() && matches!(self.sort, 'r' | 'p' | 'f')
    }

    pub(super) fn is_foreign_key(&self) -> bool {
        self.id.0 == PG_CONSTRAINT
    }

    pub(super) fn table_name(&self) -> TableName {
        TableName { schema: self.schema.clone().unwrap_or_default(), name: self.name.clone() }
    }

    /// For people: `view public.x`.
    pub(super) fn told(&self) -> String {
        format!("{} {}", self.kind, self.identity)
    }
}

/// Kind and identity: the same on both sides for the same object.
pub(super) type Key = (String, String);

/// All objects of a database that are not the system's, and their dependencies.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: HashMap<ObjectId, Node>,
    /// Dependent → what it needs; the flag says that it goes with it (owned sequence, partition).
    pub(super) needs: HashMap<ObjectId, Vec<(ObjectId, bool)>>,
    pub(super) dependents: HashMap<ObjectId, Vec<ObjectId>>,
    /// Part (index, default, rule …) → the object that it belongs to.
    pub(super) part_of: HashMap<ObjectId, ObjectId>,
    /// Partition or heir → its parents.
    pub(super) parents: HashMap<u32, Vec<u32>>,
}

/// Objects by themselves. Temporary tables and everything of the system's (oids below 16384) are
/// left out.
const NODES: &str = r#"
with n(classid, objid, sort, owner, t1, t2, parts) as (
  select 'pg_class'::regclass::oid, c.oid, c.relkind::text, c.relowner, 0::oid, 0::oid,
         (select count(*) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
         || ' ' || (select count(*) from pg_attrdef d where d.adrelid = c.oid)
         || ' ' || (select count(*) from pg_constraint k where k.conrelid = c.oid and k.contype <> 'f')
         || ' ' || (select count(*) from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal)
         || ' ' || (select count(*) from pg_policy p where p.polrelid = c.oid)
         || ' ' || (select count(*) from pg_index i where i.indrelid = c.oid)
         || ' ' || (select count(*) from pg_rewrite r where r.ev_class = c.oid)
    from pg_class c where c.relkind in ('r','p','v','m','S','f') and c.relpersistence <> 't'
  union all
  select 'pg_proc'::regclass, p.oid, p.prokind::text, p.proowner, 0, 0, '' from pg_proc p
   where not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_type'::regclass
                     and d.deptype = 'i')
  union all
  select 'pg_type'::regclass, t.oid, t.typtype::text, t.typowner, 0, 0,
         (select count(*) from pg_constraint k where k.contypid = t.oid)
         || ' ' || (select count(*) from pg_enum e where e.enumtypid = t.oid)
         || ' ' || (select count(*) from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)
    from pg_type t
   where (t.typtype in ('e','d','r') or (t.typtype = 'b' and not exists (select from pg_type e where e.typarray = t.oid))
          or (t.typtype = 'c' and (select c.relkind from pg_class c where c.oid = t.typrelid) = 'c'))
  union all
  select 'pg_constraint'::regclass, oid, contype::text, 0, conrelid, conparentid, '' from pg_constraint where contype = 'f'
  union all select 'pg_namespace'::regclass, oid, '-', nspowner, 0, 0, '' from pg_namespace
  union all select 'pg_extension'::regclass, oid, '-', extowner, 0, 0, '' from pg_extension
  union all select 'pg_operator'::regclass, oid, '-', oprowner, 0, 0, '' from pg_operator
  union all select 'pg_cast'::regclass, oid, '-', 0, 0, 0, '' from pg_cast
  union all select 'pg_collation'::regclass, oid, '-', collowner, 0, 0, '' from pg_collation
  union all select 'pg_conversion'::regclass, oid, '-', conowner, 0, 0, '' from pg_conversion
  union all select 'pg_opclass'::regclass, oid, '-', opcowner, 0, 0, '' from pg_opclass
  union all select 'pg_opfamily'::regclass, oid, '-', opfowner, 0, 0, '' from pg_opfamily
  union all select 'pg_ts_config'::regclass, oid, '-', cfgowner, 0, 0, '' from pg_ts_config
  union all select 'pg_ts_dict'::regclass, oid, '-', dictowner, 0, 0, '' from pg_ts_dict
  union all select 'pg_ts_parser'::regclass, oid, '-', 0, 0, 0, '' from pg_ts_parser
  union all select 'pg_ts_template'::regclass, oid, '-', 0, 0, 0, '' from pg_ts_template
  union all select 'pg_language'::regclass, oid, '-', lanowner, 0, 0, '' from pg_language
  union all select 'pg_foreign_data_wrapper'::regclass, oid, '-', fdwowner, 0, 0, '' from pg_foreign_data_wrapper
  union all select 'pg_foreign_server'::regclass, oid, '-', srvowner, 0, 0, '' from pg_foreign_server
  union all select 'pg_event_trigger'::regclass, oid, '-', evtowner, 0, 0, '' from pg_event_trigger
  union all select 'pg_am'::regclass, oid, '-', 0, 0, 0, '' from pg_am
  union all select 'pg_transform'::regclass, oid, '-', 0, 0, 0, '' from pg_transform
)
select n.classid, n.objid, i.type, i.schema, coalesce(i.name, i.identity), i.identity, n.sort,
       exists (select from pg_depend d where d.classid = n.classid and d.objid = n.objid and d.objsubid = 0 and d.deptype = 'e'),
       n.owner = 0 or pg_has_role(n.owner, 'usage'), n.t1, n.t2, n.parts,
       case when n.classid = 'pg_class'::regclass then (select c.relname::text from pg_class c where c.oid = n.objid) end
  from n, pg_identify_object(n.classid, n.objid, 0) i
 where n.objid >= 16384 or n.classid = 'pg_namespace'::regclass and n.objid = to_regnamespace('public')::oid
"#;

/// Parts, and the object that each belongs to.
const PARTS: &str = r#"
with home(typrelid, top_class, top_id) as (
  select c.oid, case when c.relkind = 'c' then 'pg_type'::regclass::oid else 'pg_class'::regclass::oid end,
         case when c.relkind = 'c' then c.reltype else c.oid end
    from pg_class c where c.oid >= 16384
),
-- A range's multirange; by dependency, because pg_range tells it only from PostgreSQL 14 on.
multi(oid, typarray, range) as (
  select t.oid, t.typarray, d.refobjid from pg_type t join pg_depend d on d.classid = 'pg_type'::regclass and d.objid = t.oid
   where t.typtype = 'm' and d.refclassid = 'pg_type'::regclass and d.deptype = 'i' and t.oid >= 16384
)
select 'pg_type'::regclass::oid, oid, 'pg_type'::regclass::oid, range from multi
union all
select 'pg_type'::regclass, typarray, 'pg_type'::regclass, range from multi
union all
-- What makes values of a range type.
select 'pg_proc'::regclass, d.objid, 'pg_type'::regclass, coalesce(m.range, d.refobjid) from pg_depend d left join multi m on m.oid = d.refobjid
 where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_type'::regclass and d.deptype = 'i' and d.objid >= 16384
union all
select 'pg_class'::regclass::oid, i.indexrelid, 'pg_class'::regclass::oid, i.indrelid from pg_index i where i.indexrelid >= 16384
union all
select 'pg_class'::regclass, c.oid, 'pg_type'::regclass, c.reltype from pg_class c where c.relkind = 'c' and c.oid >= 16384
union all
select 'pg_type'::regclass, t.oid, h.top_class, h.top_id from pg_type t join home h using (typrelid)
 where not (h.top_class = 'pg_type'::regclass and h.top_id = t.oid)
union all
select 'pg_type'::regclass, t.typarray, coalesce(h.top_class, 'pg_type'::regclass), coalesce(h.top_id, t.oid)
  from pg_type t left join home h using (typrelid) where t.typarray >= 16384 and t.typtype <> 'm'
union all
select 'pg_attrdef'::regclass, oid, 'pg_class'::regclass, adrelid from pg_attrdef where oid >= 16384
union all
select 'pg_constraint'::regclass, k.oid, 'pg_class'::regclass, k.conrelid from pg_constraint k
 where k.conrelid <> 0 and k.contype <> 'f' and k.oid >= 16384
union all
select 'pg_constraint'::regclass, oid, 'pg_type'::regclass, contypid from pg_constraint where contypid <> 0 and oid >= 16384
union all
select 'pg_rewrite'::regclass, oid, 'pg_class'::regclass, ev_class from pg_rewrite where oid >= 16384
union all
select 'pg_trigger'::regclass, t.oid,
       case when k.contype = 'f' then 'pg_constraint'::regclass::oid else 'pg_class'::regclass::oid end,
       case when k.contype = 'f' then k.oid else t.tgrelid end
  from pg_trigger t left join pg_constraint k on k.oid = t.tgconstraint where t.oid >= 16384
union all
select 'pg_policy'::regclass, oid, 'pg_class'::regclass, polrelid from pg_policy where oid >= 16384
union all
select 'pg_statistic_ext'::regclass, oid, 'pg_class'::regclass, stxrelid from pg_statistic_ext where oid >= 16384
union all
select 'pg_amop'::regclass, oid, 'pg_opfamily'::regclass, amopfamily from pg_amop where oid >= 16384
union all
select 'pg_amproc'::regclass, oid, 'pg_opfamily'::regclass, amprocfamily from pg_amproc where oid >= 16384
"#;

const EDGES: &str = "select distinct classid, objid, refclassid, refobjid, deptype in ('a', 'i') from pg_depend \
                     where deptype not in ('e', 'x', 'p') and objid >= 16384 and refobjid >= 16384";

impl Graph {
    /// Reads a database's objects; in the session's snapshot where it holds one.
    pub(super) async fn read(client: &Client) -> Result<Graph, PostgresError> {
        let doing = || "reading the catalogue".to_owned();
        let mut graph = Graph::default();
        for row in client.query(NODES, &[]).await.doing(doing)? {
            let id: ObjectId = (row.get(0), row.get(1));
            let name: Option<String> = row.get(12);
            let sort: &str = row.get(6);
            let node = Node {
                id,
                kind: row.get(2),
                schema: row.get(3),
                // pg_identify_object gives no name where the schema makes it unique only with
                // arguments, and quotes those that it gives.
                name: name.unwrap_or_else(|| row.get(4)),
                identity: row.get(5),
                sort: sort.chars().next().unwrap_or('-'),
                extension: row.get(7),
                owned: row.get(8),
                table: row.get(9),
                parent: row.get(10),
                parts: row.get::<_, &str>(11).split(' ').filter_map(|n| n.parse().ok()).collect(),
            };
            graph.nodes.insert(id, node);
        }
        // Quoted names of schemas are told raw everywhere else.
        for node in graph.nodes.values_mut() {
            if let Some(schema) = &mut node.schema {
                *schema = unquote(schema);
            }
        }
        // Other generations are nobody's business here, nor are keys between their tables.
        graph.nodes.retain(|_, node| {
            let stand_in = node.schema.as_deref().is_some_and(is_stand_in);
            !(stand_in || node.kind == "schema" && is_stand_in(&unquote(&node.identity)))
        });
        let tables: HashSet<u32> = graph.nodes.keys().filter(|id| id.0 == PG_CLASS).map(|id| id.1).collect();
        graph.nodes.retain(|_, node| !node.is_foreign_key() || tables.contains(&node.table));
        for row in client.query(PARTS, &[]).await.doing(doing)? {
            graph.part_of.insert((row.get(0), row.get(1)), (row.get(2), row.get(3)));
        }
        let mut seen = HashSet::new();
        for row in client.query(EDGES, &[]).await.doing(doing)? {
            let from = graph.top((row.get(0), row.get(1)));
            let to = graph.top((row.get(2), row.get(3)));
            let goes_along: bool = row.get(4);
            if from != to
                && graph.nodes.contains_key(&from)
                && graph.nodes.contains_key(&to)
                && seen.insert((from, to, goes_along))
            {
                graph.needs.entry(from).or_default().push((to, goes_along));
                graph.dependents.entry(to).or_default().push(from);
            }
        }
        for row in client.query("select inhrelid, inhparent from pg_inherits where inhrelid >= 16384", &[]).await.doing(doing)? {
            graph.parents.entry(row.get(0)).or_default().push(row.get(1));
        }
        Ok(graph)
    }

    /// Kind and identity of every object.
    pub(super) async fn read_keys(client: &Client) -> Result<HashSet<Key>, PostgresError> {
        Ok(Graph::read(client).await?.nodes.values().map(Node::key).collect())
    }

    /// The object that `id` is or belongs to.
    pub(super) fn top(&self, id: ObjectId) -> ObjectId {
        self.part_of.get(&id).copied().unwrap_or(id)
    }

    /// The table that owns this sequence.
    pub(super) fn owner_of_sequence(&self, id: ObjectId) -> Option<ObjectId> {
        let node = self.nodes.get(&id).filter(|n| n.is_relation() && n.sort == 'S')?;
        self.needs.get(&node.id)?.iter().find(|(to, along)| *along && self.nodes[to].is_table()).map(|(to, _)| *to)
    }

    /// Whether `oid` or one it is a partition or heir of, at any depth, satisfies `wanted`.
    pub(super) fn is_within(&self, oid: u32, wanted: &impl Fn(u32) -> bool) -> bool {
        wanted(oid) || self.parents.get(&oid).is_some_and(|parents| parents.iter().any(|p| self.is_within(*p, wanted)))
    }

    /// `start` and everything that depends on it.
    pub(super) fn closure_of_dependents(&self, start: impl IntoIterator<Item = ObjectId>) -> HashSet<ObjectId> {
        let mut found: HashSet<ObjectId> = HashSet::new();
        let mut waiting: Vec<ObjectId> = start.into_iter().collect();
        while let Some(id) = waiting.pop() {
            if found.insert(id) {
                waiting.extend(self.dependents.get(&id).into_iter().flatten().copied());
            }
        }
        found
    }

    /// `ids`, each after those of them that it needs.
    pub(super) fn by_need(&self, ids: Vec<ObjectId>) -> Vec<ObjectId> {
        fn visit(graph: &Graph, id: ObjectId, waiting: &mut BTreeSet<ObjectId>, done: &mut Vec<ObjectId>) {
            if !waiting.remove(&id) {
                return;
            }
            for (needed, _) in graph.needs.get(&id).into_iter().flatten() {
                visit(graph, *needed, waiting, done);
            }
            done.push(id);
        }
        let mut waiting: BTreeSet<ObjectId> = ids.into_iter().collect();
        let mut done = Vec::new();
        while let Some(id) = waiting.first().copied() {
            visit(self, id, &mut waiting, &mut done);
        }
        done
    }

    /// Tables of all kinds, by name.
    pub(super) fn table_names(&self) -> Vec<TableName> {
        self.nodes.values().filter(|n| n.is_table() && !n.extension).map(Node::table_name).collect()
    }
}

/// `pg_identify_object` quotes what needs quotes.
fn unquote(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_names_are_told_raw() {
        assert_eq!(unquote("public"), "public");
        assert_eq!(unquote("\"we\"\"ird.na*me\""), "we\"ird.na*me");
    }
}
