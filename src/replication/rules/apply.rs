//! Holds the rules against the source, before anything is changed, and collects everything that is wrong.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::catalogue::{self, Column, Relation};
use super::file::TableRules;
use super::mask::{Mask, mask};
use super::{Applied, Fingerprint, REPLICATION_RULES, Rule, Ruled, Rules, RulesError};
use crate::postgres::{Doing, PostgresError, explain, quote_identifier};
use crate::replication::projection::{Projection, Reading};
use crate::replication::settings::TableName;

/// A table with its rules, the masks that they gave, and what takes after it.
struct Candidate<'r> {
    rules: &'r TableRules,
    relation: &'r Relation,
    /// Its partitions at all depths, when it has partitions.
    parts: Vec<&'r Relation>,
    masks: HashMap<String, (Rule, Mask)>,
}

impl Rules {
    /// The rules as they apply to the source that `source` is in a transaction with. `keys_made` tells whether
    /// the source's foreign keys are to hold on the target.
    ///
    /// # Errors
    /// Everything that does not fit, by table and column; or that the source could not be asked.
    pub async fn apply(&self, source: &Client, keys_made: bool) -> Result<Applied, RulesError> {
        if self.tables.is_empty() {
            return Ok(Applied::default());
        }
        let relations = catalogue::relations(source).await?;
        let mut problems = Vec::new();
        let mut candidates = find(&self.tables, &relations, &mut problems);
        let oids: Vec<u32> = candidates.iter().map(|c| c.relation.oid).collect();
        let columns = catalogue::columns(source, &oids).await?;
        let mut applied = Applied::default();
        for candidate in &mut candidates {
            let columns = columns.get(&candidate.relation.oid).map_or(&[][..], Vec::as_slice);
            let ruled = self.columns(candidate, columns, &mut problems);
            for oid in std::iter::once(candidate.relation.oid).chain(candidate.parts.iter().map(|p| p.oid)) {
                applied.tables.insert(oid, ruled.clone());
            }
        }
        unmasked_heirs(&candidates, &relations, &mut problems);
        partition_keys(source, &candidates, &mut problems).await?;
        unique(source, &candidates, &oids, &mut problems).await?;
        foreign_keys(source, &candidates, &relations, &oids, keys_made, &mut applied, &mut problems).await?;
        for candidate in &candidates {
            statements(source, candidate, &applied, &mut problems).await?;
        }
        if problems.is_empty() {
            return Ok(applied);
        }
        Err(RulesError::Refused(format!("{} does not fit the source: {}", REPLICATION_RULES.name, problems.join("; "))))
    }

    /// The rule of every column.
    fn columns(&self, candidate: &mut Candidate<'_>, columns: &[Column], problems: &mut Vec<String>) -> Ruled {
        let TableRules { key, condition, others, columns: rules } = candidate.rules;
        for (name, rule) in rules {
            match columns.iter().find(|c| c.name == *name) {
                None => {
                    let near = near(name, columns.iter().map(|c| c.name.as_str()));
                    problems.push(format!("table `{key}` has no column `{name}`{near}"));
                }
                Some(column) if column.generated => problems.push(format!(
                    "table `{key}`, column `{name}`: it is computed from other columns, on the target from their masks; take rule `{}` out",
                    rule.name()
                )),
                Some(_) => {}
            }
        }
        let mut ruled =
            Ruled { condition: condition.clone(), fingerprint: Fingerprint::new(condition.as_deref()), ..Ruled::default() };
        let mut unnamed = Vec::new();
        for column in columns.iter().filter(|c| !c.generated) {
            let rule = match rules.iter().find(|(name, _)| *name == column.name) {
                Some((_, rule)) => rule.clone(),
                None if *others => Rule::Keep,
                None => {
                    unnamed.push(format!("`{}`", column.name));
                    continue;
                }
            };
            match mask(&rule, column) {
                Ok(mask) => {
                    ruled.columns.insert(column.name.clone(), mask.sql.clone());
                    ruled.fingerprint.add(&column.name, &rule, &column.sql_type, self.key.as_ref());
                    candidate.masks.insert(column.name.clone(), (rule, mask));
                }
                Err(problem) => problems.push(format!("table `{key}`, column `{}`: {problem}", column.name)),
            }
        }
        // From masks they are computed on the target; without any, they are as good as the others.
        if candidate.masks.values().all(|(rule, _)| *rule == Rule::Keep) {
            ruled.columns.extend(columns.iter().filter(|c| c.generated).map(|c| (c.name.clone(), None)));
        }
        if !unnamed.is_empty() {
            problems.push(format!(
                "table `{key}` has masks, but no rule for column {}; name a rule for each (\"keep\" copies it), or write other_columns = \"copy\"",
                unnamed.join(", ")
            ));
        }
        ruled
    }
}

/// What may have been meant.
fn near<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let lower = name.to_lowercase();
    let best = known.map(|k| (strsim::osa_distance(&lower, &k.to_lowercase()), k)).min();
    match best {
        Some((distance, near)) if distance <= (name.len() / 3).max(1) => format!(" (near: `{near}`)"),
        _ => String::new(),
    }
}

/// The tables that the rules name.
fn find<'r>(rules: &'r [TableRules], relations: &'r [Relation], problems: &mut Vec<String>) -> Vec<Candidate<'r>> {
    let mut found: Vec<Candidate<'r>> = Vec::new();
    for table in rules {
        let key = table.key.as_str();
        let is = |t: &TableName| t.schema == "public" && key == t.name || *key == format!("{}.{}", t.schema, t.name);
        let relation = match relations.iter().filter(|r| is(&r.name)).collect::<Vec<_>>().as_slice() {
            [] => {
                let names: Vec<String> = relations.iter().map(|r| r.name.to_string()).collect();
                let near = near(key, names.iter().map(String::as_str));
                problems.push(format!("the source has no table `{key}`{near}; names are exact, `schema.table` outside `public`"));
                continue;
            }
            [one] => *one,
            several => {
                let names: Vec<String> = several.iter().map(|r| r.name.quoted()).collect();
                problems.push(format!("`{key}` means any of {}; rename one", names.join(", ")));
                continue;
            }
        };
        if !matches!(relation.kind, 'r' | 'p') {
            problems.push(format!(
                "`{key}` is no table but a view or a foreign table, of which no rows are copied; give rules to its tables"
            ));
        } else if relation.partition {
            let parent = relations.iter().find(|r| relation.parents.contains(&r.oid)).map(|r| r.name.to_string());
            problems.push(format!(
                "`{key}` is a partition; give its rules to `{}`, where they hold for all partitions",
                parent.unwrap_or_default()
            ));
        } else if let Some(other) = found.iter().find(|c| c.relation.oid == relation.oid) {
            problems.push(format!("`{}` and `{key}` are one table; keep one of the two", other.rules.key));
        } else {
            let parts = descendants(relation, relations).into_iter().filter(|r| r.partition).collect();
            found.push(Candidate { rules: table, relation, parts, masks: HashMap::new() });
        }
    }
    found
}

fn descendants<'r>(of: &Relation, relations: &'r [Relation]) -> Vec<&'r Relation> {
    let mut seen = HashSet::from([of.oid]);
    let mut found = Vec::new();
    let mut waiting = vec![of.oid];
    while let Some(oid) = waiting.pop() {
        for child in relations.iter().filter(|r| r.parents.contains(&oid)) {
            if seen.insert(child.oid) {
                found.push(child);
                waiting.push(child.oid);
            }
        }
    }
    found
}

/// An heir has the masked columns too, and rows of its own.
fn unmasked_heirs(candidates: &[Candidate<'_>], relations: &[Relation], problems: &mut Vec<String>) {
    for candidate in candidates.iter().filter(|c| c.masks.values().any(|(rule, _)| *rule != Rule::Keep)) {
        for heir in descendants(candidate.relation, relations).into_iter().filter(|r| !r.partition) {
            if !candidates.iter().any(|c| c.relation.oid == heir.oid) {
                problems.push(format!(
                    "table `{}` inherits from `{}`, which has masks; rules are not inherited, so give it its own (other_columns = \"copy\" with one column's \"keep\" copies all)",
                    heir.name, candidate.rules.key
                ));
            }
        }
    }
}

async fn partition_keys(source: &Client, candidates: &[Candidate<'_>], problems: &mut Vec<String>) -> Result<(), PostgresError> {
    let owner: HashMap<u32, &Candidate<'_>> = candidates
        .iter()
        .filter(|c| c.relation.kind == 'p')
        .flat_map(|c| std::iter::once(c.relation.oid).chain(c.parts.iter().map(|p| p.oid)).map(move |oid| (oid, c)))
        .collect();
    let tables: Vec<u32> = owner.keys().copied().collect();
    let mut told = HashSet::new();
    for (table, column) in catalogue::partition_keys(source, &tables).await? {
        let candidate = owner[&table];
        if let Some((rule, Mask { sql: Some(_), .. })) = candidate.masks.get(&column)
            && told.insert((candidate.relation.oid, column.clone()))
        {
            problems.push(format!(
                "table `{}`, column `{column}`: it decides which partition a row is in, so rule `{}` would put rows into wrong ones; write \"keep\"",
                candidate.rules.key,
                rule.name()
            ));
        }
    }
    Ok(())
}

/// A unique index fails when masks make different values alike, unless others of its columns are unique anyway.
async fn unique(
    source: &Client,
    candidates: &[Candidate<'_>],
    oids: &[u32],
    problems: &mut Vec<String>,
) -> Result<(), PostgresError> {
    let all = catalogue::unique(source, oids).await?;
    for candidate in candidates {
        let own: Vec<_> = all.iter().filter(|(table, ..)| *table == candidate.relation.oid).collect();
        let merges = |column: &String| candidate.masks.get(column).is_some_and(|(_, mask)| mask.merges);
        let safe: Vec<&Vec<String>> =
            own.iter().map(|(.., columns)| columns).filter(|columns| !columns.iter().any(merges)).collect();
        for (_, index, columns) in &own {
            let Some(column) = columns.iter().find(|c| merges(c)) else { continue };
            if safe.iter().any(|safe| safe.iter().all(|c| columns.contains(c))) {
                continue;
            }
            let rule = candidate.masks.get(column).map_or("keep", |(rule, _)| rule.name());
            problems.push(format!(
                "table `{}`, column `{column}`: rule `{rule}` may make different values alike, which unique index `{index}` would refuse; write \"null\", {{ sql = … }}, or \"hash\" in a wider type",
                candidate.rules.key
            ));
        }
    }
    Ok(())
}

/// Finds the foreign keys that cannot hold, and those that need not.
async fn foreign_keys(
    source: &Client,
    candidates: &[Candidate<'_>],
    relations: &[Relation],
    oids: &[u32],
    keys_made: bool,
    applied: &mut Applied,
    problems: &mut Vec<String>,
) -> Result<(), PostgresError> {
    // A partition's own keys are found too.
    let tables: Vec<u32> = oids.iter().copied().chain(candidates.iter().flat_map(|c| c.parts.iter().map(|p| p.oid))).collect();
    let of = |oid: u32| candidates.iter().find(|c| c.relation.oid == oid || c.parts.iter().any(|p| p.oid == oid));
    let name = |oid: u32| relations.iter().find(|r| r.oid == oid).map(|r| r.name.to_string()).unwrap_or_default();
    for key in catalogue::foreign_keys(source, &tables).await? {
        let (from, to) = (of(key.from), of(key.to));
        if to.is_some_and(|c| c.rules.condition.is_some()) {
            applied.loose_keys.insert(key.oid);
        }
        for (own, theirs) in &key.columns {
            let side = |candidate: Option<&Candidate<'_>>, column: &String| {
                let found = candidate.and_then(|c| c.masks.get(column)).map(|(rule, mask)| (rule.clone(), mask.family.clone()));
                found.unwrap_or((Rule::Keep, Some("keep".to_owned())))
            };
            let ((rule, family), (their_rule, their_family)) = (side(from, own), side(to, theirs));
            match (&family, &their_family) {
                // No value, nothing to point to.
                _ if rule == Rule::Null => {}
                (Some(a), Some(b)) if a == b => {}
                (Some(_), Some(_)) if keys_made => problems.push(format!(
                    "foreign key `{}` of table `{}` would not hold: `{own}` has rule `{}` and `{}`.`{theirs}` has rule `{}`{}; give both one rule and one type, or set RESTORE_FK_CONSTRAINTS=false",
                    key.name,
                    name(key.from),
                    rule.name(),
                    name(key.to),
                    their_rule.name(),
                    if rule == their_rule { ", but another type" } else { "" }
                )),
                _ => {
                    applied.loose_keys.insert(key.oid);
                }
            }
        }
    }
    Ok(())
}

/// Has the source read every expression and condition, one by one, then all as they will be sent.
async fn statements(
    source: &Client,
    candidate: &Candidate<'_>,
    applied: &Applied,
    problems: &mut Vec<String>,
) -> Result<(), PostgresError> {
    let TableRules { key, condition, .. } = candidate.rules;
    let Some(ruled) = applied.tables.get(&candidate.relation.oid) else { return Ok(()) };
    // Partitions have names of their own, so what is qualified with the table's name would fail on them.
    let from = match candidate.relation.kind {
        'p' => format!("{} as bullwork_rows", candidate.relation.name.quoted()),
        _ => format!("only {}", candidate.relation.name.quoted()),
    };
    let before = problems.len();
    for (column, (rule, mask)) in &candidate.masks {
        if let (Rule::Sql(_) | Rule::Fixed(_), Some(sql)) = (rule, &mask.sql) {
            // Where a condition stands, the server takes neither aggregates nor functions that return several rows.
            let probe = format!("select from {from} where ({sql}) is not null");
            if let Some(problem) = objection(source, Probe::Prepare(&probe), key).await? {
                problems.push(format!("table `{key}`, column `{column}`, {}: {problem}", rule.name()));
            }
        }
    }
    if let Some(condition) = condition {
        let probe = format!("select from {from} where ({condition})");
        if let Some(problem) = objection(source, Probe::Prepare(&probe), key).await? {
            problems.push(format!("table `{key}`, where: {problem}"));
        }
    }
    if problems.len() == before && !ruled.columns.is_empty() {
        let names: Vec<String> = ruled.columns.keys().cloned().collect();
        let readings = ruled.columns.iter().map(|(column, instead)| Reading { column: column.clone(), instead: instead.clone() });
        let projection = Projection { readings: readings.collect(), condition: condition.clone() };
        let explain = format!("explain {}", projection.select(&from, &names, None));
        if let Some(problem) = objection(source, Probe::Run(&explain), key).await? {
            problems.push(format!("table `{key}`: {problem}"));
        }
    }
    Ok(())
}

enum Probe<'s> {
    Prepare(&'s str),
    Run(&'s str),
}

/// The server's words against a statement; the transaction goes on either way.
async fn objection(source: &Client, probe: Probe<'_>, table: &str) -> Result<Option<String>, PostgresError> {
    let doing = || format!("checking the rules of table `{table}`");
    let savepoint = quote_identifier("bullwork rules");
    source.batch_execute(&format!("savepoint {savepoint}")).await.doing(doing)?;
    // By the extended protocol, which takes one statement only.
    let result = match probe {
        Probe::Prepare(sql) => source.prepare(sql).await.map(|_| ()),
        Probe::Run(sql) => source.query(sql, &[]).await.map(|_| ()),
    };
    let words = match result {
        Ok(()) => None,
        // Syntax, rights, data, what is not supported: the text's fault, not the server's.
        Err(error)
            if error
                .code()
                .is_some_and(|c| ["42", "22", "0A", "23", "2B", "P0"].iter().any(|class| c.code().starts_with(class))) =>
        {
            Some(explain(&error))
        }
        Err(error) => return Err(error).doing(doing),
    };
    source.batch_execute(&format!("rollback to savepoint {savepoint}; release savepoint {savepoint}")).await.doing(doing)?;
    Ok(words)
}
