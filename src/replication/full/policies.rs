//! Row security that somebody put on tables of the target whose source has none: it stays with the table's name, or nothing is
//! replaced. Grants stay, and without the policies their holders would see rows that they must not see.

use std::collections::HashSet;

use tokio_postgres::{Client, Transaction};

use super::relocate::Relocation;
use super::target;
use crate::postgres::{Doing, PostgresError};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// Tables with row security that is switched on, and the statements that make them so.
const POLICIES: &str = r#"
select n.nspname::text, c.relname::text,
       array[format('alter table %I.%I enable row level security', n.nspname, c.relname)]
       || case when c.relforcerowsecurity then array[format('alter table %I.%I force row level security', n.nspname, c.relname)] else '{}' end
       || array(select format('create policy %I on %I.%I as %s for %s to %s%s%s', p.polname, n.nspname, c.relname,
                              case when p.polpermissive then 'permissive' else 'restrictive' end,
                              case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                              (select string_agg(case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end, ', ') from unnest(p.polroles) r),
                              ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
                  from pg_policy p where p.polrelid = c.oid order by p.polname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any($1) and c.relkind in ('r', 'p') and c.relrowsecurity
 order by 1, 2
"#;
/// Whether the table that comes has security of its own: that is the source's, and rules.
const OWN: &str = "select relrowsecurity from pg_class where oid = to_regclass($1)";

/// Row security of tables that go.
pub(super) struct RowSecurity(Vec<(TableName, Vec<String>)>);

impl RowSecurity {
    /// What these tables have. The session has an empty `search_path`, so that expressions name things whole.
    pub(super) async fn of(target: &Client, tables: &[u32]) -> Result<RowSecurity, PostgresError> {
        let rows = target.query(POLICIES, &[&tables]).await.doing(|| "reading row security on the target".to_owned())?;
        Ok(RowSecurity(rows.into_iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2))).collect()))
    }

    /// The same but for tables that get some from the source.
    pub(super) fn without(mut self, tables: &HashSet<TableName>) -> RowSecurity {
        self.0.retain(|(table, _)| !tables.contains(table));
        self
    }

    /// Gives it to the tables of those names, which stand where `relocation` says, unless the source gave them some. Safe to repeat.
    ///
    /// # Errors
    /// When a policy does not fit.
    pub(super) async fn give(&self, run: &Run, tx: &mut Transaction<'_>, relocation: &Relocation) -> anyhow::Result<()> {
        for (table, statements) in &self.0 {
            let new = relocation.at(table).quoted();
            let own = tx.query_one(OWN, &[&new]).await.doing(|| format!("looking at row security of table `{table}`"));
            if own.is_ok_and(|row| row.get::<_, Option<bool>>(0) != Some(false)) {
                continue;
            }
            for statement in statements {
                if let Err(reason) = target::attempt(tx, &relocation.sql(statement)).await? {
                    anyhow::bail!(
                        "table `{table}` of the target has row security that the source does not have, and it does not fit the new table: \
                         `{statement}` was refused: {reason}; change it or drop it there"
                    );
                }
            }
            run.info(format!("table `{table}` keeps the row security that it has on the target alone"));
        }
        Ok(())
    }
}
