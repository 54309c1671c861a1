//! Foreign keys of the target that lead to delta tables: in which order tables are filled, and
//! which rows may be deleted.
//!
//! Keys are checked at the end of each statement, unless they may wait for the commit. So a
//! referenced table is filled before the ones that refer to it, the appended ones included, and
//! emptied after them. Where references go round in a circle of tables, a key that cannot wait may refuse.

use std::collections::HashSet;

use tokio::sync::OnceCell;
use tokio_postgres::error::SqlState;

use super::{Table, state};
use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, quote_qualified};

/// A foreign key that leads to a delta table or an appended one.
pub(super) struct ForeignKey {
    pub name: String,
    /// The referenced table, as a whole.
    pub parent: u32,
    /// The table that refers, where it belongs to this run, as a whole.
    pub child: Option<u32>,
    /// The table that refers, for people.
    pub shown: String,
    /// The same for `FROM`.
    from: String,
    columns: Vec<String>,
    referenced: Vec<String>,
    /// What a deletion does to rows that refer, as the catalogue's letter.
    action: String,
    /// Whether what we find to refer is what the server would: by what `=` means anywhere, neither by an extension's operator nor
    /// by periods; and no policy hides rows from us.
    plain: bool,
}

/// The foreign keys that lead to the run's tables, and what deletions from these need to know.
#[derive(Default)]
pub(super) struct Keys {
    pub all: Vec<ForeignKey>,
    /// The tables with triggers or rules of somebody's.
    triggered: HashSet<u32>,
    /// Whether we may switch the server's own checks off.
    unchecked: OnceCell<bool>,
}

const KEYS: &str = "with parts(top, oid) as (
        select t.oid, t.oid from unnest($1::oid[]) t(oid)
        union select t.oid, p.relid from unnest($1::oid[]) t(oid), pg_catalog.pg_partition_tree(t.oid::regclass) p)
    select c.conname::text, p.top, y.top, n.nspname::text, r.relname::text, r.relkind = 'p',
        (select array_agg(a.attname::text order by k.n) from unnest(c.conkey) with ordinality k(number, n)
            join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.number),
        (select array_agg(a.attname::text order by k.n) from unnest(c.confkey) with ordinality k(number, n)
            join pg_catalog.pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.number),
        c.confdeltype::text,
        not pg_catalog.row_security_active(c.conrelid) and not pg_catalog.row_security_active(c.confrelid)
        and not exists (select from unnest(c.conpfeqop) k(operator) join pg_catalog.pg_operator o on o.oid = k.operator
            where o.oprname <> '=' or o.oprnamespace <> 'pg_catalog'::regnamespace)
    from pg_catalog.pg_constraint c
    join parts p on p.oid = c.confrelid
    left join parts y on y.oid = c.conrelid
    join pg_catalog.pg_class r on r.oid = c.conrelid join pg_catalog.pg_namespace n on n.oid = r.relnamespace
    where c.contype = 'f' and c.conparentid = 0
    order by n.nspname, r.relname, c.conname";

impl Keys {
    /// Those that lead to `deltas` or `appended`.
    pub(super) async fn read(target: &Connection, deltas: &[u32], appended: &[u32]) -> Result<Keys, PostgresError> {
        let (all, triggered) =
            tokio::try_join!(read(target, deltas, appended), state::triggered(target, deltas.iter().copied()))?;
        Ok(Keys { all, triggered, unchecked: OnceCell::new() })
    }

    /// Those that lead to `table`.
    pub(super) fn to<'k>(&'k self, table: &Table) -> impl Iterator<Item = &'k ForeignKey> + use<'k> {
        let oid = table.target.oid;
        self.all.iter().filter(move |key| key.parent == oid)
    }

    /// Whether rows of `table` that nothing refers to may go without the server's own checks, which would read each referring
    /// table once for each row, where no index leads there: that took longer than all else of a night. Not where
    /// somebody's triggers would be passed over with them, or where what we can ask is not what the server asks.
    pub(super) async fn spare_checks(&self, target: &Connection, table: &Table) -> Result<bool, PostgresError> {
        if self.to(table).next().is_none() || !self.to(table).all(|key| key.plain) || self.triggered.contains(&table.target.oid) {
            return Ok(false);
        }
        self.unchecked.get_or_try_init(|| may_go_unchecked(target)).await.copied()
    }
}

/// Superusers may, and from 15 on whom they granted it to.
async fn may_go_unchecked(target: &Connection) -> Result<bool, PostgresError> {
    let doing = || "asking whether checks of foreign keys may be left to us".to_owned();
    let ask = "savepoint bullwork_unchecked; set local session_replication_role = replica";
    let allowed = match target.batch_execute(ask).await {
        Ok(()) => true,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => false,
        Err(error) => return Err(error).doing(doing),
    };
    let back = "rollback to savepoint bullwork_unchecked; release savepoint bullwork_unchecked";
    target.batch_execute(back).await.doing(doing)?;
    Ok(allowed)
}

async fn read(target: &Connection, deltas: &[u32], appended: &[u32]) -> Result<Vec<ForeignKey>, PostgresError> {
    let all: Vec<u32> = deltas.iter().chain(appended).copied().collect();
    let rows = target.query(KEYS, &[&all]).await.doing(|| "reading the target's foreign keys".to_owned())?;
    let key = |row: &tokio_postgres::Row| {
        let (schema, name): (String, String) = (row.get(3), row.get(4));
        let quoted = quote_qualified(&schema, &name);
        ForeignKey {
            name: row.get(0),
            parent: row.get(1),
            child: row.get(2),
            from: if row.get(5) { quoted } else { format!("only {quoted}") },
            shown: if schema == "public" { name } else { format!("{schema}.{name}") },
            columns: row.get(6),
            referenced: row.get(7),
            action: row.get(8),
            plain: row.get(9),
        }
    };
    Ok(rows.iter().map(key).collect())
}

/// In which order the delta tables are filled, as places in their list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Before rows are appended to other tables, which refer to these.
    pub before: Vec<usize>,
    /// After that.
    pub after: Vec<usize>,
}

/// Referenced tables first. `edges` lead from the table that refers to the one it refers to.
pub(super) fn order(deltas: &[u32], appended: &[u32], edges: &[(u32, u32)]) -> Order {
    let parents = |table: u32| edges.iter().filter(move |(child, _)| *child == table).map(|(_, parent)| *parent);
    // Depth first, so that a table comes after what it refers to; a circle is cut where it closes.
    fn visit(table: u32, parents: &dyn Fn(u32) -> Vec<u32>, seen: &mut Vec<u32>, out: &mut Vec<u32>) {
        if seen.contains(&table) {
            return;
        }
        seen.push(table);
        for parent in parents(table) {
            visit(parent, parents, seen, out);
        }
        out.push(table);
    }
    let of = |table: u32| parents(table).collect::<Vec<_>>();
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    for table in appended {
        visit(*table, &of, &mut seen, &mut out);
    }
    let referenced = out.len();
    for table in deltas {
        visit(*table, &of, &mut seen, &mut out);
    }
    let places = |tables: &[u32]| tables.iter().filter_map(|t| deltas.iter().position(|d| d == t)).collect();
    Order { before: places(&out[..referenced]), after: places(&out[referenced..]) }
}

impl ForeignKey {
    /// Whether a deletion does something to the rows that refer, rather than to be refused.
    pub(super) fn acts(&self) -> bool {
        matches!(self.action.as_str(), "c" | "n" | "d")
    }

    /// Condition: a row refers to the row of `table` whose key `d` has. Rows whose own key is among
    /// `leaving` do not count.
    pub(super) fn refers(&self, table: &Table, leaving: Option<&str>) -> String {
        // Where rows refer by the key itself, it need not be looked up in the table.
        let by_key = self.referenced.iter().all(|column| table.plan.key.columns.contains(column));
        let referred = if by_key { "d" } else { "t" };
        let pairs = self.columns.iter().zip(&self.referenced);
        let equal = pairs.map(|(c, r)| format!("c.{} = {referred}.{}", quote_identifier(c), quote_identifier(r)));
        let equal = equal.collect::<Vec<_>>().join(" and ");
        let but = match leaving {
            Some(leaving) if self.child == Some(table.target.oid) => {
                format!(" and not exists (select from {leaving} x where {})", table.same_key("x", "c"))
            }
            _ => String::new(),
        };
        if by_key {
            return format!("exists (select from {} c where {equal}{but})", self.from);
        }
        format!(
            "exists (select from {} t join {} c on {equal} where {}{but})",
            table.there(),
            self.from,
            table.same_key("t", "d")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn referenced_tables_are_filled_first_and_before_rows_that_refer_are_appended() {
        // 1 and 2 are delta tables, 2 refers to 1; 9 is appended.
        assert_eq!(order(&[2, 1], &[9], &[(2, 1)]), Order { before: vec![], after: vec![1, 0] });
        assert_eq!(order(&[2, 1], &[9], &[(2, 1), (9, 2)]), Order { before: vec![1, 0], after: vec![] });
        assert_eq!(order(&[2, 1], &[9], &[(2, 1), (9, 1), (2, 9)]), Order { before: vec![1], after: vec![0] });
        // Round in a circle, and to itself.
        assert_eq!(order(&[1, 2], &[], &[(1, 2), (2, 1), (1, 1)]), Order { before: vec![], after: vec![1, 0] });
    }
}
