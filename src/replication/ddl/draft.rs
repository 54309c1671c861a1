//! What was read, before it is judged and ordered: items, and which object of the catalogue is
//! made by which item.
//!
//! `pg_depend` speaks of objects; many of them are made by the statement of another (a table's row
//! type, an inline default, an extension's member). [`Draft::home`] leads from any object to the
//! item that makes it, so a dependency between objects becomes one between items.

use std::collections::{HashMap, HashSet};

use super::{Cause, Kind, Options, Refusal, Table};

/// A catalogue and an oid in it.
pub(super) type ObjectId = (u32, u32);

// Catalogue oids are fixed for ever (src/include/catalog/*.h).
pub(super) const PG_TYPE: u32 = 1247;
pub(super) const PG_PROC: u32 = 1255;
pub(super) const PG_CLASS: u32 = 1259;
pub(super) const PG_CONSTRAINT: u32 = 2606;
pub(super) const PG_ATTRDEF: u32 = 2604;
pub(super) const PG_REWRITE: u32 = 2618;
pub(super) const PG_EXTENSION: u32 = 3079;
/// Stands for a partition's being attached.
pub(super) const PG_INHERITS: u32 = 2611;
/// No catalogue of the server's: for items that are a step of making an object.
pub(super) const STEP: u32 = 0;

/// Where an item stands relative to the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before them, always.
    Pre,
    /// Before them, unless it needs something that comes after.
    Float,
    /// After them.
    Post,
}

/// Whether an item becomes a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Made,
    /// The target has it.
    Present,
    /// The caller does not want it.
    LeftOut,
    Refused(Cause, String),
}

/// A part of a statement that can be set by a statement of its own instead.
#[derive(Clone, Debug)]
pub(super) struct Inline {
    /// What `pg_depend` says of this part, it says of this object.
    pub(super) object: ObjectId,
    pub(super) kind: Kind,
    pub(super) name: String,
    /// Within the statement.
    pub(super) text: String,
    /// The statement of its own.
    pub(super) apart: String,
}

#[derive(Clone, Debug)]
pub(super) enum Segment {
    Text(String),
    Inline(Inline),
}

/// The text of a statement; elements are joined by commas.
#[derive(Clone, Debug)]
pub(super) enum Sql {
    Plain(String),
    List { head: String, elements: Vec<Vec<Segment>>, tail: String },
}

impl Sql {
    pub(super) fn render(&self) -> String {
        match self {
            Sql::Plain(text) => text.clone(),
            Sql::List { head, elements, tail } => {
                let elements: Vec<String> = elements
                    .iter()
                    .map(|segments| {
                        segments
                            .iter()
                            .map(|s| match s {
                                Segment::Text(text) => text.as_str(),
                                Segment::Inline(inline) => inline.text.as_str(),
                            })
                            .collect::<String>()
                    })
                    .filter(|text| !text.is_empty())
                    .collect();
                format!("{head}{}{tail}", elements.join(",\n    "))
            }
        }
    }

    /// Takes the inline part for `object` out.
    pub(super) fn take(&mut self, object: ObjectId) -> Option<Inline> {
        let Sql::List { elements, .. } = self else { return None };
        for segments in elements {
            if let Some(at) = segments.iter().position(|s| matches!(s, Segment::Inline(i) if i.object == object))
                && let Segment::Inline(inline) = segments.remove(at)
            {
                return Some(inline);
            }
        }
        None
    }

    /// The objects of the inline parts.
    pub(super) fn parts(&self) -> Vec<ObjectId> {
        let Sql::List { elements, .. } = self else { return Vec::new() };
        let parts = elements.iter().flatten().filter_map(|s| match s {
            Segment::Inline(inline) => Some(inline.object),
            Segment::Text(_) => None,
        });
        parts.collect()
    }

    pub(super) fn has(&self, object: ObjectId) -> bool {
        matches!(self, Sql::List { elements, .. }
            if elements.iter().flatten().any(|s| matches!(s, Segment::Inline(i) if i.object == object)))
    }
}

/// How an object is made in two steps, when one is not enough.
#[derive(Clone, Debug)]
pub(super) struct Shell {
    pub(super) kind: Kind,
    pub(super) sql: String,
    /// Objects that the first step needs.
    pub(super) needs: Vec<ObjectId>,
    /// The second step, where it differs from the only one.
    pub(super) then: Option<String>,
}

/// Something that a statement makes.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) id: ObjectId,
    pub(super) kind: Kind,
    pub(super) schema: Option<String>,
    pub(super) name: String,
    pub(super) relation: u32,
    pub(super) sql: Sql,
    pub(super) stage: Stage,
    pub(super) fate: Fate,
    pub(super) shell: Option<Shell>,
    pub(super) roles: Vec<String>,
}

impl Item {
    pub(super) fn new(id: ObjectId, kind: Kind, stage: Stage, schema: Option<String>, name: String, sql: String) -> Item {
        Item {
            id,
            kind,
            schema,
            name,
            relation: 0,
            sql: Sql::Plain(sql),
            stage,
            fate: Fate::Made,
            shell: None,
            roles: Vec::new(),
        }
    }

    pub(super) fn of(mut self, relation: u32) -> Item {
        self.relation = relation;
        self
    }

    pub(super) fn told(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{:?} {schema}.{}", self.kind, self.name),
            None => format!("{:?} {}", self.kind, self.name),
        }
    }
}

/// One end of `pg_depend` to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dependency {
    pub(super) from: ObjectId,
    pub(super) to: ObjectId,
}

#[derive(Debug)]
pub(super) struct Draft {
    /// The source's.
    pub(super) version: i32,
    /// The target's version.
    pub(super) target: i32,
    pub(super) superuser: bool,
    pub(super) items: Vec<Item>,
    /// Object → item that makes it.
    pub(super) made_by: HashMap<ObjectId, usize>,
    /// Object → object that it is a part of.
    pub(super) part_of: HashMap<ObjectId, ObjectId>,
    pub(super) dependencies: Vec<Dependency>,
    /// Dependencies between items that the catalogue does not tell.
    pub(super) explicit: Vec<(usize, usize)>,
    /// The same from an item to whatever makes an object, which may be read later.
    pub(super) needs: Vec<(usize, ObjectId)>,
    /// Properties that are lost.
    pub(super) lost: Vec<Refusal>,
    pub(super) tables: Vec<Table>,
    pub(super) relations: HashMap<u32, super::tables::Relation>,
    /// Table → those that inherit from it; no partitions.
    pub(super) heirs: HashMap<u32, Vec<u32>>,
    /// Sequences of identity columns: table and column → what stands behind the column.
    pub(super) identities: HashMap<(u32, i16), super::sequences::Identity>,
    /// Sequences by table that owns them.
    pub(super) owned_sequences: Vec<(u32, u32)>,
    pub(super) sequences: Vec<super::sequences::Sequence>,
    /// Foreign key item → table that it refers to.
    pub(super) references: Vec<(usize, u32)>,
}

impl Draft {
    pub(super) fn new(version: i32, options: &Options) -> Draft {
        Draft {
            version,
            target: options.target.unwrap_or(version),
            superuser: options.superuser,
            items: Vec::new(),
            made_by: HashMap::new(),
            part_of: HashMap::new(),
            dependencies: Vec::new(),
            explicit: Vec::new(),
            needs: Vec::new(),
            lost: Vec::new(),
            tables: Vec::new(),
            relations: HashMap::new(),
            heirs: HashMap::new(),
            identities: HashMap::new(),
            owned_sequences: Vec::new(),
            sequences: Vec::new(),
            references: Vec::new(),
        }
    }

    /// Whether the target changed something in `version` that the source's server still does the old way.
    pub(super) fn crosses(&self, version: i32) -> bool {
        self.version < version && version <= self.target
    }

    /// Adds an item that makes the object of its id.
    pub(super) fn add(&mut self, item: Item) -> usize {
        let index = self.items.len();
        if item.id.0 != STEP {
            self.made_by.insert(item.id, index);
        }
        self.items.push(item);
        index
    }

    /// Adds a step that needs `needs`, and the objects told so.
    pub(super) fn add_step(&mut self, mut item: Item, needs: &[ObjectId]) -> usize {
        item.id.0 = STEP;
        let index = self.add(item);
        self.needs.extend(needs.iter().map(|object| (index, *object)));
        index
    }

    /// The item that makes `object`.
    pub(super) fn home(&self, object: ObjectId) -> Option<usize> {
        let mut at = object;
        // A part of a part at most four times over (array of row type of an extension's table).
        for _ in 0..6 {
            if let Some(item) = self.made_by.get(&at) {
                return Some(*item);
            }
            at = *self.part_of.get(&at)?;
        }
        None
    }

    /// All dependencies between items; those within one item left out, but for a view's rule on its
    /// own row type and a function that calls itself.
    pub(super) fn edges(&self) -> HashSet<(usize, usize)> {
        let from_catalogue = self.dependencies.iter().filter_map(|d| {
            let from = self.home(d.from)?;
            let to = self.home(d.to)?;
            let own_type = d.from.0 == PG_REWRITE && d.to.0 == PG_TYPE;
            let calls_itself = d.from == d.to && d.from.0 == PG_PROC;
            (from != to || own_type || calls_itself).then_some((from, to))
        });
        let by_object = self.needs.iter().filter_map(|(from, object)| Some((*from, self.home(*object)?)).filter(|(f, t)| f != t));
        from_catalogue.chain(self.explicit.iter().copied()).chain(by_object).collect()
    }

    /// Everything that will be missing.
    pub(super) fn told(&mut self) -> Vec<Refusal> {
        let mut told = std::mem::take(&mut self.lost);
        for item in &self.items {
            let Fate::Refused(cause, reason) = &item.fate else { continue };
            // Of a refused object's comment nobody needs to hear.
            if matches!(item.kind, Kind::Comment | Kind::ExtensionDependency | Kind::SequenceOwner) && *cause == Cause::Needs {
                continue;
            }
            told.push(Refusal {
                kind: item.kind,
                schema: item.schema.clone(),
                name: item.name.clone(),
                oid: item.id.1,
                cause: *cause,
                reason: reason.clone(),
            });
        }
        told.sort_by(|a, b| (a.kind, &a.schema, &a.name).cmp(&(b.kind, &b.schema, &b.name)));
        told
    }

    /// Relations whose item is made, and extensions' tables.
    pub(super) fn made_relations(&self) -> HashSet<u32> {
        self.tables
            .iter()
            .filter(|t| self.home((PG_CLASS, t.oid)).is_some_and(|i| self.items[i].fate == Fate::Made))
            .map(|t| t.oid)
            .collect()
    }
}
