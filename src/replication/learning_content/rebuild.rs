//! A table is made again because its columns changed; what hung on it comes back where it still fits.
//!
//! Views and materialized views over it (and over those), foreign keys that point to it, its own
//! additional indexes, owners, grants and comments are read from the catalogue before the drop and
//! made again after it, each in a savepoint of its own. What no longer fits is told with its
//! definition, so that a human can bring it back by hand.

use tokio_postgres::Transaction;

use super::ContentError;
use super::mapping::Table;
use super::publish::{Published, make, public};
use crate::postgres::{Doing, explain};
use crate::worker::Run;

/// What depends on the table `$1`, innermost first, each as a name and the statements that make it
/// again; the first row is the table itself with what is kept of it.
const DEPENDENTS: &str = "
WITH RECURSIVE dependent(oid, depth) AS (
    SELECT $1::oid, 0
    UNION
    SELECT r.ev_class, dependent.depth + 1
    FROM dependent
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = dependent.oid
                               AND d.classid = 'pg_catalog.pg_rewrite'::regclass
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
    WHERE r.ev_class <> dependent.oid
),
relation AS (
    SELECT c.*, depth, format('%I.%I', n.nspname, c.relname) AS quoted,
           CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END AS word
    FROM (SELECT oid, max(depth) AS depth FROM dependent GROUP BY oid) AS deepest
    JOIN pg_catalog.pg_class c USING (oid)
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
),
statement(depth, kind, what, oid, rank, sql) AS (
    SELECT depth, 'view', word || ' ' || quoted, oid, 0,
           format('CREATE %s %s%s AS %s', word, quoted, ' WITH (' || array_to_string(reloptions, ', ') || ')',
                  pg_get_viewdef(oid))
    FROM relation WHERE relkind IN ('v', 'm')
    UNION ALL
    SELECT depth, 'view', word || ' ' || quoted, relation.oid, 1, pg_get_indexdef(i.indexrelid)
    FROM relation JOIN pg_catalog.pg_index i ON i.indrelid = relation.oid
    WHERE relkind = 'm'
    UNION ALL
    SELECT 0, 'index', 'INDEX ' || i.indexrelid::regclass::text, i.indexrelid, 0, pg_get_indexdef(i.indexrelid)
    FROM relation JOIN pg_catalog.pg_index i ON i.indrelid = relation.oid
    JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
    WHERE relation.relkind = 'r' AND NOT x.relname::text = ANY ($2::text[])
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid)
    UNION ALL
    SELECT 0, 'grant', 'COMMENT ON ' || word || ' ' || quoted, d.objoid, 4,
           format('COMMENT ON %s %s IS %L', CASE d.objsubid WHEN 0 THEN word ELSE 'COLUMN' END,
                  quoted || coalesce('.' || quote_ident(a.attname), ''), d.description)
    FROM relation JOIN pg_catalog.pg_description d ON d.objoid = relation.oid AND d.classoid = 'pg_catalog.pg_class'::regclass
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid <> 0
    UNION ALL
    SELECT 0, 'grant', 'grants on ' || quoted, relation.oid, 5,
           format('GRANT %s ON %s TO %s%s', acl.privilege_type, quoted,
                  CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END,
                  CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM relation CROSS JOIN LATERAL aclexplode(relacl) AS acl
    WHERE acl.grantee <> relowner
    UNION ALL
    SELECT 0, 'grant', 'owner of ' || quoted, relation.oid, 6,
           format('ALTER %s %s OWNER TO %I', word, quoted, pg_get_userbyid(relowner))
    FROM relation WHERE pg_get_userbyid(relowner) <> current_user
    UNION ALL
    SELECT 0, 'key', format('foreign key %I of %s', k.conname, k.conrelid::regclass), k.oid, 0,
           format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_catalog.pg_constraint k WHERE k.confrelid = $1 AND k.contype = 'f' AND k.conrelid <> $1
)
SELECT min(what), array_agg(sql ORDER BY rank, sql)
FROM statement
GROUP BY kind, depth, oid, CASE WHEN kind = 'view' THEN '' ELSE sql END
ORDER BY array_position(ARRAY['index', 'view', 'key', 'grant'], kind), depth, oid";

/// Drops `table` and makes it again with what hung on it. Takes the strongest lock on it and on its
/// views, so it waits for their readers and they wait until the commit: this happens on the night
/// after the mapping changed, not on others.
pub(super) async fn rebuild(run: &Run, transaction: &Transaction<'_>, table: &Table) -> Result<Published, ContentError> {
    let reading = || format!("reading what depends on `{}`", table.name);
    let name = public(table);
    // Locked first, so that nobody hangs more on it meanwhile. The empty path makes the server
    // write every name in the definitions with its schema.
    transaction
        .batch_execute(&format!("LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE; SET LOCAL search_path = ''"))
        .await
        .doing(|| format!("locking `{}`", table.name))?;
    let ours: Vec<String> = table.columns.iter().filter(|c| c.indexed).map(|c| table.index_name(c)).collect();
    let oid: u32 = transaction.query_one("SELECT to_regclass($1)::oid", &[&name]).await.doing(reading)?.get(0);
    let dependents = transaction.query(DEPENDENTS, &[&oid, &ours]).await.doing(reading)?;
    transaction.batch_execute("SET LOCAL search_path TO DEFAULT").await.doing(reading)?;
    let deleted: i64 = transaction.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await.doing(reading)?.get(0);
    transaction.batch_execute(&format!("DROP TABLE {name} CASCADE")).await.doing(|| format!("dropping `{}`", table.name))?;
    let made = make(transaction, table).await?;
    for dependent in dependents {
        let (what, statements): (String, Vec<String>) = (dependent.get(0), dependent.get(1));
        let sql = statements.join(";\n");
        transaction.batch_execute("SAVEPOINT dependent").await.doing(reading)?;
        match transaction.batch_execute(&sql).await {
            Ok(()) => transaction.batch_execute("RELEASE SAVEPOINT dependent").await.doing(reading)?,
            // A lost connection shows itself at the next statement.
            Err(error) => {
                transaction.batch_execute("ROLLBACK TO SAVEPOINT dependent").await.doing(reading)?;
                run.warn(format!("{what} no longer fits `{}` and is gone: {}; it was: {sql}", table.name, explain(&error)));
            }
        }
    }
    Ok(Published { deleted: deleted.unsigned_abs(), ..made })
}
