//! Decides which items become statements: what the caller leaves out goes, and what needs
//! something that is not made goes too, each with its reason.
//!
//! Of a table, only the default or the check that needs the missing thing goes, not the table.

use std::collections::{HashMap, HashSet};

use super::draft::{Draft, Fate, ObjectId, PG_CLASS};
use super::{Cause, Chosen, Kind, Options, Refusal};

pub(super) fn judge(draft: &mut Draft, options: &Options) {
    let without = family(draft, &options.without);
    let kept = family(draft, &options.kept);
    let gone: HashSet<&str> = options.without_schemas.iter().map(String::as_str).collect();
    for item in &mut draft.items {
        let schema = if item.kind == Kind::Schema { Some(&item.name) } else { item.schema.as_ref() };
        if kept.contains(&item.relation) {
            item.fate = Fate::Present;
        } else if without.contains(&item.relation) || schema.is_some_and(|s| gone.contains(s.as_str())) {
            item.fate = Fate::LeftOut;
        }
    }
    spread(draft);
}

/// The relations meant, with their partitions and the sequences that they own.
fn family(draft: &Draft, chosen: &[Chosen]) -> HashSet<u32> {
    let mut found: HashSet<u32> = HashSet::new();
    for item in draft.items.iter().filter(|i| i.id.0 == PG_CLASS) {
        let is_meant = chosen.iter().any(|c| match c {
            Chosen::Oid(oid) => *oid == item.id.1,
            Chosen::Name(name) => name.name == item.name && item.schema.as_ref() == Some(&name.schema),
        });
        if is_meant {
            found.insert(item.id.1);
        }
    }
    loop {
        let before = found.len();
        let partitions: Vec<u32> = draft
            .relations
            .values()
            .filter(|r| r.is_partition() && r.parents.iter().any(|p| found.contains(p)))
            .map(|r| r.oid)
            .collect();
        found.extend(partitions);
        if found.len() == before {
            break;
        }
    }
    let sequences: Vec<u32> = draft.owned_sequences.iter().filter(|(table, _)| found.contains(table)).map(|(_, s)| *s).collect();
    found.extend(sequences);
    found
}

/// Takes along what needs something that is not made.
fn spread(draft: &mut Draft) {
    // Who needs an item: by which object (of the catalogue's dependencies) or by itself.
    let mut needed_by: HashMap<usize, Vec<(usize, Option<ObjectId>)>> = HashMap::new();
    for d in &draft.dependencies {
        if let (Some(from), Some(to)) = (draft.home(d.from), draft.home(d.to))
            && from != to
        {
            needed_by.entry(to).or_default().push((from, Some(d.from)));
        }
    }
    let by_object = draft.needs.iter().filter_map(|(from, object)| Some((*from, draft.home(*object)?)));
    for (from, to) in draft.explicit.iter().copied().chain(by_object) {
        needed_by.entry(to).or_default().push((from, None));
    }
    let is_lost = |fate: &Fate| matches!(fate, Fate::LeftOut | Fate::Refused(..));
    let mut waiting: Vec<usize> = (0..draft.items.len()).filter(|i| is_lost(&draft.items[*i].fate)).collect();
    while let Some(lost) = waiting.pop() {
        let left_out = draft.items[lost].fate == Fate::LeftOut;
        let told = draft.items[lost].told();
        let reason = format!("needs {told}, which is {}", if left_out { "left out" } else { "not copied" });
        for (from, by) in needed_by.remove(&lost).unwrap_or_default() {
            let item = &mut draft.items[from];
            if item.fate != Fate::Made {
                continue;
            }
            if let Some(part) = by.and_then(|object| item.sql.take(object)) {
                let schema = item.schema.clone();
                let cause = Cause::Needs;
                draft.lost.push(Refusal {
                    kind: part.kind,
                    schema,
                    name: part.name,
                    oid: part.object.1,
                    cause,
                    reason: reason.clone(),
                });
            } else if by.is_some_and(|object| draft.lost.iter().any(|r| r.oid == object.1 && r.cause == Cause::Needs)) {
                // That part is gone already.
            } else {
                let own = item.relation != 0 && item.relation == draft.items[lost].relation;
                // What belongs to a table that is left out goes with it, and nobody needs to hear.
                let fate = if left_out && own { Fate::LeftOut } else { Fate::Refused(Cause::Needs, reason.clone()) };
                draft.items[from].fate = fate;
                waiting.push(from);
            }
        }
    }
}
