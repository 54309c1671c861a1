//! Unique keys, and ranges of them that both sides understand alike.
//!
//! Keys of types whose order is fixed for good are compared as they are, so that an index helps. All others (texts, enums, a user's
//! types) are compared as text in byte order: collations sort differently from one system to the next.

use std::collections::HashSet;

use tokio_postgres::{Client, Row};

use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyColumn {
    name: String,
    sql_type: String,
    /// Its order is the same everywhere.
    native: bool,
    /// Its equality, with schema.
    equals: String,
}

/// Columns that no two rows have in common, none of them NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(Vec<KeyColumn>);

/// Rows from a key on, up to before another; each as the texts of its columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Option<Vec<String>>,
    pub(super) to: Option<Vec<String>>,
}

const KEYS: &str = "
select array_agg(a.attname::text order by k.n), array_agg(format_type(a.atttypid, a.atttypmod) order by k.n),
       array_agg(a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype, 'numeric'::regtype, 'uuid'::regtype, 'bool'::regtype,
                 'date'::regtype, 'time'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype, 'bytea'::regtype) order by k.n),
       array_agg((select format('operator(%I.%s)', n.nspname, o.oprname) from pg_opclass c
          join pg_amop p on p.amopfamily = c.opcfamily and p.amoplefttype = c.opcintype and p.amoprighttype = c.opcintype and p.amopstrategy = 3
          join pg_operator o on o.oid = p.amopopr join pg_namespace n on n.oid = o.oprnamespace where c.oid = i.indclass[k.n - 1]) order by k.n)
  from pg_index i cross join lateral unnest(i.indkey::int2[]) with ordinality k(num, n)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.num join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
 where i.indrelid = $1 and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null and k.n <= i.indnkeyatts and m.amname = 'btree'
 group by i.indexrelid, i.indisprimary having bool_and(a.attnotnull) and bool_and(a.attgenerated = '')
 order by i.indisprimary desc, count(*), i.indexrelid";

async fn keys(client: &Client, table: u32) -> Result<Vec<Key>, PostgresError> {
    let rows = client.query(KEYS, &[&table]).await.doing(|| "reading the keys of a table".to_owned())?;
    let key = |row: Row| {
        let (names, types): (Vec<String>, Vec<String>) = (row.get(0), row.get(1));
        let (native, equals): (Vec<bool>, Vec<Option<String>>) = (row.get(2), row.get(3));
        let columns = names.into_iter().zip(types).zip(native).zip(equals);
        let columns =
            columns.map(|(((name, sql_type), native), equals)| Some(KeyColumn { name, sql_type, native, equals: equals? }));
        columns.collect::<Option<Vec<_>>>().map(Key)
    };
    Ok(rows.into_iter().filter_map(key).collect())
}

/// A key that both sides have; rather one of columns that leave the source as they are, where an index helps. Masks of
/// a key tell rows apart as well, or the copy would not have it.
pub(super) async fn common(
    source: (&Client, u32),
    target: (&Client, u32),
    plain: &[String],
) -> Result<Option<Key>, PostgresError> {
    let there: Vec<HashSet<String>> = keys(target.0, target.1).await?.iter().map(Key::names).collect();
    let mut here = keys(source.0, source.1).await?;
    here.retain(|key| there.contains(&key.names()));
    let plainest = here.iter().position(|key| key.0.iter().all(|c| plain.contains(&c.name))).unwrap_or(0);
    Ok((plainest < here.len()).then(|| here.swap_remove(plainest)))
}

impl KeyColumn {
    fn value(&self, alias: &str) -> String {
        let name = format!("{alias}.{}", quote_identifier(&self.name));
        if self.native { name } else { format!("(concat({name}) collate \"C\")") }
    }

    fn literal(&self, text: &str) -> String {
        if self.native {
            format!("{}::{}", quote_literal(text), self.sql_type)
        } else {
            format!("({}::text collate \"C\")", quote_literal(text))
        }
    }
}

fn row(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<String> = values.into_iter().collect();
    if let [only] = values.as_slice() { only.clone() } else { format!("row({})", values.join(", ")) }
}

impl Key {
    fn names(&self) -> HashSet<String> {
        self.0.iter().map(|c| c.name.clone()).collect()
    }

    /// What keys are compared by.
    fn value(&self, alias: &str) -> String {
        row(self.0.iter().map(|c| c.value(alias)))
    }

    fn bound(&self, bound: &[String]) -> String {
        row(self.0.iter().zip(bound).map(|(column, text)| column.literal(text)))
    }

    /// Whether the rows behind two aliases are the same one.
    pub(super) fn same(&self, a: &str, b: &str) -> String {
        let columns = self.0.iter().map(|c| {
            let name = quote_identifier(&c.name);
            format!("{a}.{name} {} {b}.{name}", c.equals)
        });
        columns.collect::<Vec<_>>().join(" and ")
    }

    /// The rows of a range; nothing when it is all of them.
    pub(super) fn within(&self, range: &Range, alias: &str) -> Option<String> {
        let from = range.from.as_ref().map(|bound| format!("{} >= {}", self.value(alias), self.bound(bound)));
        let to = range.to.as_ref().map(|bound| format!("{} < {}", self.value(alias), self.bound(bound)));
        match (from, to) {
            (Some(from), Some(to)) => Some(format!("{from} and {to}")),
            (from, to) => from.or(to),
        }
    }

    /// Every `step`th key of the rows in a range, in order.
    pub(super) fn steps(&self, select: &str, range: &Range, step: i64) -> String {
        let texts: Vec<String> = self.0.iter().map(|c| format!("{}::text", c.value("t"))).collect();
        let order: Vec<String> = self.0.iter().map(|c| c.value("t")).collect();
        let filter = self.within(range, "t").map(|c| format!(" where {c}")).unwrap_or_default();
        format!(
            "select k from (select array[{}] as k, row_number() over (order by {}) as n from ({select}) t{filter}) s where n % {step} = 0 order by n",
            texts.join(", "),
            order.join(", ")
        )
    }

    /// The number of the part that a row is in, of those that `bounds` make.
    pub(super) fn part(&self, bounds: &[Vec<String>], alias: &str) -> String {
        let bounds: Vec<String> = bounds.iter().map(|b| self.bound(b)).collect();
        format!("width_bucket({}, array[{}])", self.value(alias), bounds.join(", "))
    }
}

impl Range {
    /// The parts that `bounds` make of it.
    pub(super) fn parts(&self, bounds: &[Vec<String>]) -> Vec<Range> {
        let edges = || bounds.iter().cloned().map(Some);
        let from = std::iter::once(self.from.clone()).chain(edges());
        let to = edges().chain(std::iter::once(self.to.clone()));
        from.zip(to).map(|(from, to)| Range { from, to }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_composite_keys_compare_as_rows() {
        let column = |name: &str, sql_type: &str, native| KeyColumn {
            name: name.into(),
            sql_type: sql_type.into(),
            native,
            equals: "operator(pg_catalog.=)".into(),
        };
        let key = Key(vec![column("id", "bigint", true), column("Na\"me", "text", false)]);
        let bound = |id: &str, name: &str| Some(vec![id.to_owned(), name.to_owned()]);
        let range = Range { from: bound("1", "it's"), to: None };
        assert_eq!(
            key.within(&range, "t").unwrap(),
            "row(t.\"id\", (concat(t.\"Na\"\"me\") collate \"C\")) >= row('1'::bigint, ('it''s'::text collate \"C\"))"
        );
        assert_eq!(key.within(&Range::default(), "t"), None);
        let parts = range.parts(&[vec!["5".into(), "b".into()], vec!["7".into(), "c".into()]]);
        assert_eq!(parts.len(), 3);
        assert_eq!((&parts[0].from, &parts[0].to), (&range.from, &bound("5", "b")));
        assert_eq!((&parts[2].from, &parts[2].to), (&bound("7", "c"), &None));
    }
}
