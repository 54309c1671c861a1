//! Roles that the dump names: it makes none, since they are the server's and not the database's.

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};

/// Owners and grantees of what is in the database, and of the database itself. The first superuser owns much
/// without any note of it.
const ROLES: &str = "select rolname::text from pg_roles where oid = 10 or oid in (
    select d.refobjid from pg_shdepend d join pg_database b on b.datname = current_database()
     where d.refclassid = 'pg_authid'::regclass and (d.dbid = b.oid or d.classid = 'pg_database'::regclass and d.objid = b.oid))
    order by 1";

/// Their names.
pub(super) async fn names(client: &Client) -> Result<Vec<String>, PostgresError> {
    let rows = client.query(ROLES, &[]).await.doing(|| "listing the roles".to_owned())?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}

/// SQL that makes those that are missing, unable to log in.
pub(super) fn script(names: &[String]) -> String {
    let mut sql = String::from(
        "-- Roles that the database refers to. Those that the server does not have are made without any right, so that\n\
         -- owners and grants can be restored. Harmless to run again.\n",
    );
    for name in names {
        let (literal, identifier) = (quote_literal(name), quote_identifier(name));
        // Dollar quotes would need a tag that the name does not hold; a literal needs nothing.
        let body = format!(
            "begin if not exists (select from pg_catalog.pg_roles where rolname = {literal}) then create role {identifier} nologin; end if; end"
        );
        sql.push_str(&format!("do {};\n", quote_literal(&body).trim_start()));
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_in_both_places() {
        let sql = script(&["app".to_owned(), "o'ne\"\\".to_owned()]);
        assert!(sql.contains("rolname = ''app'') then create role \"app\" nologin"), "{sql}");
        assert!(sql.lines().last().unwrap().starts_with("do E'begin"), "{sql}");
        assert!(sql.contains("create role \"o''ne\"\"\\\\\" nologin"), "{sql}");
    }
}
