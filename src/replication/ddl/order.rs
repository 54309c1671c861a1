//! Puts the items in an order that runs, cutting circles.
//!
//! A node between the two sections, the rows, needs every item that must come before it and is
//! needed by every item that must come after. So "a table needs a function that needs a view that
//! needs a primary key", which is built after the rows, is a circle like any other.
//!
//! Where several items could be next, kind and name decide, never oids: the same objects give the
//! same order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::draft::{Draft, Fate, Item, ObjectId, PG_CLASS, PG_PROC, PG_TYPE, STEP, Sql, Stage};
use super::{DdlError, Kind, Section, Statement};

pub(super) fn order(draft: &mut Draft) -> Result<Vec<Statement>, DdlError> {
    let mut cuts = Cuts::default();
    loop {
        let graph = Graph::of(draft, &cuts);
        let circles = graph.circles();
        if circles.is_empty() {
            return Ok(graph.statements(draft));
        }
        for circle in circles {
            cut(draft, &mut cuts, &graph, &circle)?;
        }
    }
}

#[derive(Default)]
struct Cuts {
    /// Item in two steps → its first step.
    shells: HashMap<usize, usize>,
    /// Who needs only the first step of what.
    content: HashSet<(usize, usize)>,
    /// The object whose dependencies are those of a shell alone.
    shell_needs: Vec<(usize, ObjectId)>,
}

struct Graph {
    /// Item → what it needs. The last node is the rows.
    needs: Vec<Vec<usize>>,
    made: Vec<bool>,
}

impl Graph {
    fn of(draft: &Draft, cuts: &Cuts) -> Graph {
        let rows = draft.items.len();
        let made: Vec<bool> = draft.items.iter().map(|i| i.fate == Fate::Made).chain([true]).collect();
        let mut needs = vec![Vec::new(); rows + 1];
        let shell_needs = cuts.shell_needs.iter().filter_map(|(shell, object)| Some((*shell, draft.home(*object)?)));
        for (from, to) in draft.edges().into_iter().chain(shell_needs) {
            let to = match cuts.shells.get(&to) {
                Some(shell) if *shell != from && (cuts.content.contains(&(from, to)) || from == to) => *shell,
                _ => to,
            };
            if made[from] && made[to] {
                needs[from].push(to);
            }
        }
        for (index, item) in draft.items.iter().enumerate().filter(|(i, _)| made[*i]) {
            match item.stage {
                Stage::Pre => needs[rows].push(index),
                Stage::Post => needs[index].push(rows),
                Stage::Float => {}
            }
        }
        for list in &mut needs {
            list.sort_unstable();
            list.dedup();
        }
        Graph { needs, made }
    }

    fn rows(&self) -> usize {
        self.needs.len() - 1
    }

    /// Sets of nodes that need each other (Tarjan's algorithm, without recursion).
    fn circles(&self) -> Vec<Vec<usize>> {
        const NEW: usize = usize::MAX;
        let n = self.needs.len();
        let (mut number, mut low, mut on_stack) = (vec![NEW; n], vec![NEW; n], vec![false; n]);
        let (mut stack, mut found, mut next) = (Vec::new(), Vec::new(), 0);
        for start in (0..n).filter(|i| self.made[*i]) {
            if number[start] != NEW {
                continue;
            }
            let mut path = vec![(start, 0)];
            while let Some((node, at)) = path.last_mut() {
                let node = *node;
                if *at == 0 {
                    number[node] = next;
                    low[node] = next;
                    next += 1;
                    stack.push(node);
                    on_stack[node] = true;
                }
                if let Some(to) = self.needs[node].get(*at) {
                    *at += 1;
                    if number[*to] == NEW {
                        path.push((*to, 0));
                    } else if on_stack[*to] {
                        low[node] = low[node].min(number[*to]);
                    }
                    continue;
                }
                path.pop();
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == number[node] {
                    let mut circle = Vec::new();
                    while let Some(member) = stack.pop() {
                        on_stack[member] = false;
                        circle.push(member);
                        if member == node {
                            break;
                        }
                    }
                    if circle.len() > 1 || self.needs[node].contains(&node) {
                        found.push(circle);
                    }
                }
            }
        }
        found
    }

    fn statements(&self, draft: &Draft) -> Vec<Statement> {
        let rows = self.rows();
        let mut waits: Vec<usize> = self.needs.iter().map(Vec::len).collect();
        let mut frees: Vec<Vec<usize>> = vec![Vec::new(); self.needs.len()];
        for (from, list) in self.needs.iter().enumerate() {
            for to in list {
                frees[*to].push(from);
            }
        }
        let mut ready: BinaryHeap<Reverse<(Key<'_>, usize)>> = BinaryHeap::new();
        for node in (0..self.needs.len()).filter(|i| self.made[*i] && waits[*i] == 0) {
            ready.push(Reverse((key(draft, node), node)));
        }
        let mut place = vec![usize::MAX; self.needs.len()];
        let mut section = Section::Pre;
        let mut statements = Vec::new();
        while let Some(Reverse((_, node))) = ready.pop() {
            if node == rows {
                section = Section::Post;
            } else {
                place[node] = statements.len();
                let mut depends_on: Vec<usize> = self.needs[node].iter().filter(|n| **n != rows).map(|n| place[*n]).collect();
                depends_on.sort_unstable();
                statements.push(statement(&draft.items[node], section, depends_on));
            }
            for free in &frees[node] {
                waits[*free] -= 1;
                if waits[*free] == 0 {
                    ready.push(Reverse((key(draft, *free), *free)));
                }
            }
        }
        statements
    }
}

fn statement(item: &Item, section: Section, depends_on: Vec<usize>) -> Statement {
    Statement {
        section,
        kind: item.kind,
        schema: item.schema.clone(),
        name: item.name.clone(),
        oid: item.id.1,
        catalogue: match (item.id.0, item.kind) {
            // The first step of making an object in two counts as it.
            (STEP, Kind::ShellType | Kind::Domain) => PG_TYPE,
            (STEP, Kind::ShellView) => PG_CLASS,
            (STEP, Kind::ShellFunction) => PG_PROC,
            (catalogue, _) => catalogue,
        },
        relation: item.relation,
        sql: item.sql.render(),
        depends_on,
        roles: item.roles.clone(),
    }
}

/// What comes first of what could: 0 and 2 around the rows, then kind and name.
type Key<'a> = (u8, Option<Kind>, Option<&'a str>, &'a str);

fn key(draft: &Draft, node: usize) -> Key<'_> {
    let Some(item) = draft.items.get(node) else { return (1, None, None, "") };
    (if item.stage == Stage::Post { 2 } else { 0 }, Some(item.kind), item.schema.as_deref(), &item.name)
}

/// Makes one cut in a circle, the cheapest that may help.
fn cut(draft: &mut Draft, cuts: &mut Cuts, graph: &Graph, circle: &[usize]) -> Result<(), DdlError> {
    let within: HashSet<usize> = circle.iter().copied().collect();
    if set_apart(draft, &within) {
        return Ok(());
    }
    let mut open: Vec<usize> = circle
        .iter()
        .copied()
        .filter(|i| draft.items.get(*i).is_some_and(|item| item.shell.is_some()) && !cuts.shells.contains_key(i))
        .collect();
    let rank = |i: &usize| {
        let item = &draft.items[*i];
        let rank = match item.kind {
            Kind::BaseType | Kind::Range => 0,
            Kind::Domain => 1,
            Kind::View => 2,
            _ => 3,
        };
        (rank, item.schema.clone(), item.name.clone())
    };
    open.sort_by_key(rank);
    if let Some(item) = open.first() {
        make_shell(draft, cuts, graph, &within, *item);
        return Ok(());
    }
    // Nothing can be made in two steps: a key or index comes before the rows then, which is slow
    // and right.
    let mut moved = false;
    if within.contains(&graph.rows()) {
        for index in circle {
            if let Some(item) = draft.items.get_mut(*index)
                && item.stage == Stage::Post
            {
                item.stage = Stage::Float;
                moved = true;
            }
        }
    }
    if moved {
        return Ok(());
    }
    let mut names: Vec<String> = circle.iter().filter_map(|i| draft.items.get(*i)).map(Item::told).collect();
    names.sort();
    Err(DdlError::Circle(names.join(", ")))
}

/// Sets defaults and checks by statements of their own, where they need something of the circle.
fn set_apart(draft: &mut Draft, within: &HashSet<usize>) -> bool {
    let mut parts: Vec<(usize, ObjectId)> = Vec::new();
    for d in &draft.dependencies {
        let (Some(from), Some(to)) = (draft.home(d.from), draft.home(d.to)) else { continue };
        if from != to && within.contains(&from) && within.contains(&to) && draft.items[from].sql.has(d.from) {
            parts.push((from, d.from));
        }
    }
    parts.sort_unstable();
    parts.dedup();
    for (from, object) in &parts {
        by_itself(draft, *from, *object);
    }
    !parts.is_empty()
}

/// Makes the item's part for `object` an item of its own.
fn by_itself(draft: &mut Draft, owner: usize, object: ObjectId) {
    let Some(part) = draft.items[owner].sql.take(object) else { return };
    let whole = &draft.items[owner];
    let item = Item::new(object, part.kind, Stage::Pre, whole.schema.clone(), part.name, part.apart).of(whole.relation);
    let index = draft.add(item);
    draft.explicit.push((index, owner));
}

fn make_shell(draft: &mut Draft, cuts: &mut Cuts, graph: &Graph, within: &HashSet<usize>, main: usize) {
    // The second step is another statement, which has no place for them.
    for object in draft.items[main].sql.parts() {
        by_itself(draft, main, object);
    }
    let item = &mut draft.items[main];
    let Some(shell) = item.shell.take() else { return };
    if let Some(then) = shell.then {
        item.sql = Sql::Plain(then);
    }
    let (schema, name, relation, oid) = (item.schema.clone(), item.name.clone(), item.relation, item.id.1);
    let step = Item::new((STEP, oid), shell.kind, Stage::Float, schema, name, shell.sql).of(relation);
    let index = draft.add_step(step, &[]);
    cuts.shells.insert(main, index);
    cuts.shell_needs.extend(shell.needs.into_iter().map(|object| (index, object)));
    draft.explicit.push((main, index));
    for from in within.iter().filter(|i| **i != main && graph.needs[**i].contains(&main)) {
        cuts.content.insert((*from, main));
    }
}
