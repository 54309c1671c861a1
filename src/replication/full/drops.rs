//! Decides what goes from the target before it is made anew, and what must not.
//!
//! Every object of the target is one of these:
//!
//! - **replaced**: the source has it by the same name, or an earlier run of ours made it. It goes.
//! - **kept**: a table whose mode is `incremental` or `none`, a table the source does not have,
//!   and whatever such a table needs: its sequences, types, functions. It stays as it is.
//! - **saved**: somebody's view, materialized view or function over a replaced table, and foreign
//!   keys of kept tables to replaced ones. It goes, its definition is stored first, and it is
//!   made again at the end.
//! - anything else stays. Where such a thing stands in the way, nothing is changed at all and the
//!   message names both.
//!
//! This is decided here from the two catalogues alone, before anything is touched.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::catalog::{Graph, Key, Node, OWN_SCHEMA, ObjectId, PG_PROC, PG_TYPE};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// What the decision rests on besides the target's own catalogue.
pub(super) struct Known<'a> {
    /// What the source has.
    pub(super) source: &'a HashSet<Key>,
    /// Tables, views and sequences of the source by name, with their kind.
    pub(super) source_relations: &'a HashMap<TableName, String>,
    /// What earlier runs made.
    pub(super) recorded: &'a HashSet<Key>,
    /// Names of tables that are kept.
    pub(super) kept: &'a HashSet<TableName>,
    /// Views that the enrichment makes.
    pub(super) own_views: &'a HashSet<TableName>,
}

/// What goes, in what way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DropPlan {
    /// Relations and types to drop by name; their dependents are in `gone`.
    pub(super) replaced: BTreeSet<ObjectId>,
    /// Everything that goes, those included.
    pub(super) gone: HashSet<ObjectId>,
    /// Views and functions to store and make again, in an order they can be made in.
    pub(super) saved: Vec<ObjectId>,
    /// Foreign keys of kept tables to store and make again.
    pub(super) foreign_keys: Vec<ObjectId>,
    /// Sequences that stay although their owner goes.
    pub(super) orphans: Vec<ObjectId>,
    /// Functions that an earlier run made and the source no longer has.
    pub(super) stale_functions: Vec<ObjectId>,
    /// For the log: what was ours and has gone from the source.
    pub(super) outdated: Vec<String>,
    /// For the log: tables and views that are nobody's business but their owner's.
    pub(super) left_alone: Vec<String>,
}

/// Why nothing may be changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct Conflict(pub(super) String);

/// Logs what goes for good, and what is nobody's business but its owner's.
pub(super) fn tell(run: &Run, plan: &DropPlan) {
    if !plan.outdated.is_empty() {
        run.info(format!("gone from the source, so dropped: {}", plan.outdated.join(", ")));
    }
    if !plan.left_alone.is_empty() {
        run.info(format!("left alone, for the source does not have them: {}", plan.left_alone.join(", ")));
    }
}

pub(super) fn decide(target: &Graph, known: &Known<'_>) -> Result<DropPlan, Conflict> {
    let mut decision = Decision { target, known, plan: DropPlan::default(), rigid: HashSet::new() };
    decision.choose_replaced()?;
    decision.keep_what_is_needed()?;
    decision.follow_dependents()?;
    decision.describe();
    Ok(decision.plan)
}

struct Decision<'a> {
    target: &'a Graph,
    known: &'a Known<'a>,
    plan: DropPlan,
    /// Stays as it is, with all that it needs.
    rigid: HashSet<ObjectId>,
}

impl Decision<'_> {
    fn is_ours(&self, node: &Node) -> bool {
        let key = node.key();
        !node.extension
            && node.schema.as_deref() != Some(OWN_SCHEMA)
            && (self.known.source.contains(&key) || self.known.recorded.contains(&key))
    }

    fn is_kept(&self, node: &Node) -> bool {
        node.is_table()
            && self.target.is_within(node.id.1, &|oid| {
                self.target.nodes.get(&(node.id.0, oid)).is_some_and(|n| self.known.kept.contains(&n.table_name()))
            })
    }

    fn choose_replaced(&mut self) -> Result<(), Conflict> {
        let mut replaced = BTreeSet::new();
        for node in self.target.nodes.values().filter(|n| !n.extension && n.schema.as_deref() != Some(OWN_SCHEMA)) {
            if node.is_relation() {
                // A sequence that belongs to a table shares its fate.
                let owner = self.target.owner_of_sequence(node.id).map(|id| &self.target.nodes[&id]);
                if self.replaces(owner.unwrap_or(node))? {
                    replaced.insert(node.id);
                }
            } else if node.id.0 == PG_TYPE && node.sort != 'b' && self.is_ours(node) {
                // Base types are held up by C functions, which are never replaced.
                replaced.insert(node.id);
            }
        }
        self.plan.replaced = replaced;
        Ok(())
    }

    /// Whether this table, view or free sequence is to be replaced.
    fn replaces(&self, node: &Node) -> Result<bool, Conflict> {
        if self.is_kept(node) || node.extension {
            return Ok(false);
        }
        let name = node.table_name();
        if self.known.recorded.contains(&node.key()) || (node.kind == "view" && self.known.own_views.contains(&name)) {
            return Ok(true);
        }
        match self.known.source_relations.get(&name) {
            None => Ok(false),
            Some(kind) if node.is_table() && !kind.contains("table") => Err(Conflict(format!(
                "the target's {} has the name of the source's {kind} and holds rows that no run of ours put there; rename or drop it",
                node.told()
            ))),
            Some(_) => Ok(true),
        }
    }

    /// Finds what stays, and keeps what it needs.
    fn keep_what_is_needed(&mut self) -> Result<(), Conflict> {
        let mut waiting: Vec<ObjectId> = Vec::new();
        for node in self.target.nodes.values() {
            let savable = Self::savable(node) && !self.is_ours(node);
            let flexible = node.is_foreign_key() || savable || self.is_ours(node) || self.plan.replaced.contains(&node.id);
            if !flexible || node.extension || self.is_kept(node) {
                waiting.push(node.id);
            }
        }
        while let Some(id) = waiting.pop() {
            if !self.rigid.insert(id) {
                continue;
            }
            if self.plan.replaced.remove(&id)
                && self.target.owner_of_sequence(id).is_some_and(|o| self.plan.replaced.contains(&o))
            {
                self.plan.orphans.push(id);
            }
            for (needed, _) in self.target.needs.get(&id).into_iter().flatten() {
                let (node, other) = (&self.target.nodes[&id], &self.target.nodes[needed]);
                let owned_by = self.target.owner_of_sequence(id) == Some(*needed);
                if other.is_foreign_key() || (owned_by && self.plan.replaced.contains(needed)) {
                    continue;
                }
                if self.plan.replaced.contains(needed) && other.is_relation() && other.sort != 'S' {
                    return Err(Conflict(format!(
                        "{} stays on the target and needs {}, which is to be replaced; keep that too (BACKUP_MODE) or undo what ties them",
                        node.told(),
                        other.told()
                    )));
                }
                waiting.push(*needed);
            }
        }
        self.plan.orphans.sort_unstable();
        Ok(())
    }

    fn savable(node: &Node) -> bool {
        !node.extension
            && ((node.is_relation() && matches!(node.sort, 'v' | 'm'))
                || (node.id.0 == PG_PROC && matches!(node.sort, 'f' | 'p')))
    }

    fn follow_dependents(&mut self) -> Result<(), Conflict> {
        let mut waiting: Vec<ObjectId> = self.plan.replaced.iter().copied().collect();
        let mut saved = HashSet::new();
        let mut keys = Vec::new();
        while let Some(id) = waiting.pop() {
            if !self.plan.gone.insert(id) {
                continue;
            }
            for dependent in self.target.dependents.get(&id).into_iter().flatten() {
                let node = &self.target.nodes[dependent];
                if node.is_foreign_key() {
                    keys.push(*dependent);
                } else if self.plan.orphans.contains(dependent) {
                } else if self.rigid.contains(dependent) {
                    return Err(Conflict(format!(
                        "{} stays on the target and needs {}, which is to be replaced; drop one of them by hand",
                        node.told(),
                        self.target.nodes[&id].told()
                    )));
                } else {
                    if !self.is_ours(node) && !self.plan.replaced.contains(dependent) {
                        saved.insert(*dependent);
                    }
                    waiting.push(*dependent);
                }
            }
        }
        for id in keys {
            let node = &self.target.nodes[&id];
            let of_gone_table = self.plan.gone.iter().any(|gone| gone.1 == node.table && self.target.nodes[gone].is_table());
            self.plan.gone.insert(id);
            if !of_gone_table && node.parent == 0 {
                self.plan.foreign_keys.push(id);
            }
        }
        self.plan.foreign_keys.sort_unstable();
        self.plan.foreign_keys.dedup();
        let mut done = HashSet::new();
        let mut ordered: Vec<ObjectId> = saved.iter().copied().collect();
        ordered.sort_unstable();
        for id in ordered {
            self.after_its_needs(id, &saved, &mut done);
        }
        Ok(())
    }

    fn after_its_needs(&mut self, id: ObjectId, saved: &HashSet<ObjectId>, done: &mut HashSet<ObjectId>) {
        if !done.insert(id) {
            return;
        }
        for (needed, _) in self.target.needs.get(&id).cloned().unwrap_or_default() {
            if saved.contains(&needed) {
                self.after_its_needs(needed, saved, done);
            }
        }
        self.plan.saved.push(id);
    }

    fn describe(&mut self) {
        for node in self.target.nodes.values() {
            let key = node.key();
            let outdated = self.known.recorded.contains(&key) && !self.known.source.contains(&key) && !self.is_kept(node);
            if outdated && node.id.0 == PG_PROC && !self.rigid.contains(&node.id) && !self.plan.gone.contains(&node.id) {
                self.plan.stale_functions.push(node.id);
            }
            if outdated && self.plan.replaced.contains(&node.id) && !self.known.own_views.contains(&node.table_name()) {
                self.plan.outdated.push(node.told());
            }
            let is_leftover = node.is_relation()
                && node.sort != 'S'
                && !node.extension
                && node.schema.as_deref() != Some(OWN_SCHEMA)
                && !self.plan.gone.contains(&node.id)
                && !self.is_kept(node);
            if is_leftover {
                self.plan.left_alone.push(node.told());
            }
        }
        self.plan.stale_functions.sort_unstable();
        self.plan.outdated.sort();
        self.plan.left_alone.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{PG_CLASS, PG_CONSTRAINT};
    use super::*;

    /// A small target: `t` replaced, `k` kept.
    struct World {
        graph: Graph,
        source: HashSet<Key>,
        recorded: HashSet<Key>,
    }

    impl World {
        fn new() -> Self {
            World { graph: Graph::default(), source: HashSet::new(), recorded: HashSet::new() }
        }

        fn add(&mut self, class: u32, oid: u32, kind: &str, sort: char, name: &str) -> ObjectId {
            let node = Node {
                id: (class, oid),
                kind: kind.into(),
                schema: Some("public".into()),
                name: name.into(),
                identity: format!("public.{name}"),
                sort,
                owned: true,
                ..Node::default()
            };
            self.graph.nodes.insert((class, oid), node);
            (class, oid)
        }

        fn needs(&mut self, from: ObjectId, to: ObjectId, along: bool) {
            self.graph.needs.entry(from).or_default().push((to, along));
            self.graph.dependents.entry(to).or_default().push(from);
        }

        fn in_source(&mut self, id: ObjectId) {
            self.source.insert(self.graph.nodes[&id].key());
        }

        fn decide(&self) -> Result<DropPlan, Conflict> {
            let relations = self.source.iter().map(|(k, i)| (TableName::public(&i["public.".len()..]), k.clone())).collect();
            decide(
                &self.graph,
                &Known {
                    source: &self.source,
                    source_relations: &relations,
                    recorded: &self.recorded,
                    kept: &HashSet::from([TableName::public("k")]),
                    own_views: &HashSet::new(),
                },
            )
        }
    }

    #[test]
    fn a_type_that_a_kept_table_needs_stays_and_one_that_none_needs_goes() {
        let mut w = World::new();
        let (t, k) = (w.add(PG_CLASS, 1, "table", 'r', "t"), w.add(PG_CLASS, 2, "table", 'r', "k"));
        let (used, free) = (w.add(PG_TYPE, 3, "type", 'e', "used"), w.add(PG_TYPE, 4, "type", 'e', "free"));
        w.needs(t, used, false);
        w.needs(t, free, false);
        w.needs(k, used, false);
        for id in [t, k, used, free] {
            w.in_source(id);
        }
        let plan = w.decide().unwrap();
        assert_eq!(plan.gone, HashSet::from([t, free]));
        assert!(plan.saved.is_empty());
    }

    #[test]
    fn views_of_others_are_saved_in_the_order_they_can_be_made_in() {
        let mut w = World::new();
        let t = w.add(PG_CLASS, 1, "table", 'r', "t");
        let upper = w.add(PG_CLASS, 5, "view", 'v', "upper");
        let lower = w.add(PG_CLASS, 6, "view", 'v', "lower");
        w.in_source(t);
        w.needs(upper, lower, false);
        w.needs(lower, t, false);
        assert_eq!(w.decide().unwrap().saved, [lower, upper]);
    }

    #[test]
    fn a_foreign_key_of_a_kept_table_is_saved_and_one_between_replaced_tables_is_not() {
        let mut w = World::new();
        let (t, k, u) =
            (w.add(PG_CLASS, 1, "table", 'r', "t"), w.add(PG_CLASS, 2, "table", 'r', "k"), w.add(PG_CLASS, 3, "table", 'r', "u"));
        for (oid, table) in [(10, k), (11, u)] {
            let key = w.add(PG_CONSTRAINT, oid, "table constraint", 'f', "fk");
            w.graph.nodes.get_mut(&key).unwrap().table = table.1;
            w.needs(key, table, true);
            w.needs(key, t, false);
        }
        for id in [t, k, u] {
            w.in_source(id);
        }
        let plan = w.decide().unwrap();
        assert_eq!(plan.foreign_keys, [(PG_CONSTRAINT, 10)]);
        assert!(!plan.gone.contains(&k) && plan.gone.contains(&u));
    }

    #[test]
    fn a_strange_table_is_never_dropped() {
        let mut w = World::new();
        let mine = w.add(PG_CLASS, 1, "table", 'r', "mine");
        assert_eq!(w.decide().unwrap().left_alone, ["table public.mine"]);
        // Not even when the source has a view of that name.
        w.source.insert(("view".into(), "public.mine".into()));
        assert!(w.decide().unwrap_err().0.contains("table public.mine"));
        w.recorded.insert(w.graph.nodes[&mine].key());
        assert_eq!(w.decide().unwrap().gone, HashSet::from([mine]));
    }

    #[test]
    fn a_kept_table_that_needs_a_replaced_one_stops_everything() {
        let mut w = World::new();
        let (t, k) = (w.add(PG_CLASS, 1, "table", 'r', "t"), w.add(PG_CLASS, 2, "table", 'r', "k"));
        w.in_source(t);
        w.needs(k, t, false);
        let text = w.decide().unwrap_err().0;
        assert!(text.contains("table public.k") && text.contains("table public.t"), "{text}");
    }

    #[test]
    fn a_sequence_that_a_kept_table_uses_survives_its_owner() {
        let mut w = World::new();
        let (t, k, s) = (
            w.add(PG_CLASS, 1, "table", 'r', "t"),
            w.add(PG_CLASS, 2, "table", 'r', "k"),
            w.add(PG_CLASS, 3, "sequence", 'S', "s"),
        );
        w.in_source(t);
        w.needs(s, t, true);
        w.needs(k, s, false);
        let plan = w.decide().unwrap();
        assert_eq!((plan.gone, plan.orphans), (HashSet::from([t]), vec![s]));
    }

    #[test]
    fn our_own_functions_go_with_what_they_need_and_are_not_saved() {
        let mut w = World::new();
        let (t, f) = (w.add(PG_CLASS, 1, "table", 'r', "t"), w.add(PG_PROC, 2, "function", 'f', "f(t)"));
        let theirs = w.add(PG_PROC, 3, "function", 'f', "theirs(t)");
        for id in [t, f] {
            w.in_source(id);
        }
        w.needs(f, t, false);
        w.needs(theirs, t, false);
        let plan = w.decide().unwrap();
        assert_eq!(plan.gone, HashSet::from([t, f, theirs]));
        assert_eq!(plan.saved, [theirs]);
    }
}
