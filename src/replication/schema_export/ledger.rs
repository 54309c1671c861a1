//! What the export made in the catalogue, so that it replaces that and nothing else.
//!
//! ```text
//! bullwork.schema_export_object   kind      identity              as pg_identify_object tells them
//!                                 table     public."my-table"
//!                                 function  public.f(integer)
//! ```
//!
//! Only objects that are dropped by themselves stand there; columns, indexes, triggers, owned
//! sequences and partitions go with theirs. Names rather than oids, because a catalogue that was
//! restored from a backup has other oids.
//!
//! Before the first export there is no ledger, but perhaps what the reference system left: then
//! the source's names stand for it, as its drop-if-exists did. Two nets keep a wrong URL from
//! hurting anybody: tables with rows, and objects of others that depend on ours, refuse the export.

use std::collections::HashSet;

use tokio_postgres::{GenericClient, Transaction};

use super::{ExportError, Exported};
use crate::postgres::{Doing, PostgresError};

/// Schema of the ledger; never exported.
pub(super) const SCHEMA: &str = "bullwork";

/// Waiting longer for readers of the catalogue fails the export.
const LOCK_TIMEOUT: &str = "60s";

/// Told at most, of rows or dependents.
const TOLD: i64 = 5;

/// An object as `pg_identify_object` names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    classid: u32,
    objid: u32,
    kind: String,
    identity: String,
}

impl Object {
    fn name(&self) -> (&str, &str) {
        (&self.kind, &self.identity)
    }

    /// `DROP` for its kind; the words differ from the catalogue's for two kinds.
    fn drop_statement(&self) -> String {
        let word = match self.kind.as_str() {
            "statistics object" => "STATISTICS".to_owned(),
            "foreign-data wrapper" => "FOREIGN DATA WRAPPER".to_owned(),
            kind => kind.to_uppercase(),
        };
        format!("DROP {word} IF EXISTS {} CASCADE;\n", self.identity)
    }
}

/// All objects that users made and that are dropped by themselves: no part of a table, an
/// extension or the server, and nothing in our own schema.
const OBJECTS: &str = "
WITH object(classid, objid) AS (
              SELECT 'pg_class'::regclass::oid, oid FROM pg_catalog.pg_class
              WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'
    UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
              WHERE typtype <> 'c' OR c.relkind = 'c'
    UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_catalog.pg_proc
    UNION ALL SELECT 'pg_namespace'::regclass, oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_(temp|toast)'
    UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_catalog.pg_extension
    UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_catalog.pg_language
    UNION ALL SELECT 'pg_am'::regclass, oid FROM pg_catalog.pg_am
    UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_catalog.pg_cast
    UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_catalog.pg_collation
    UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_catalog.pg_conversion
    UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_catalog.pg_operator
    UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_catalog.pg_opclass
    UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_catalog.pg_opfamily
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid FROM pg_catalog.pg_statistic_ext
    UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_catalog.pg_ts_config
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_catalog.pg_ts_dict
    UNION ALL SELECT 'pg_ts_parser'::regclass, oid FROM pg_catalog.pg_ts_parser
    UNION ALL SELECT 'pg_ts_template'::regclass, oid FROM pg_catalog.pg_ts_template
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_catalog.pg_foreign_server
)
SELECT object.classid, object.objid, told.type, told.identity
FROM object CROSS JOIN LATERAL pg_identify_object(object.classid, object.objid, 0) AS told
WHERE object.objid >= 16384
  AND told.schema IS DISTINCT FROM 'bullwork' AND NOT (told.type = 'schema' AND told.identity IN ('public', 'bullwork'))
  AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = object.classid AND d.objid = object.objid AND d.objsubid = 0
          AND d.deptype IN ('i', 'a', 'e', 'P', 'S'))
ORDER BY object.objid";

/// The objects of [`OBJECTS`].
pub(super) async fn objects(client: &impl GenericClient) -> Result<Vec<Object>, PostgresError> {
    let rows = client.query(OBJECTS, &[]).await.doing(|| "listing the objects".to_owned())?;
    Ok(rows
        .into_iter()
        .map(|row| Object { classid: row.get(0), objid: row.get(1), kind: row.get(2), identity: row.get(3) })
        .collect())
}

/// Opens the ledger, making it if there is none, and returns the objects of its list that exist.
/// `source` is the source's objects, which stand for the ledger the first time.
pub(super) async fn open(transaction: &Transaction<'_>, source: Vec<Object>) -> Result<Vec<Object>, ExportError> {
    let opening = || format!("opening the list of exported objects in schema `{SCHEMA}`");
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")).await.doing(opening)?;
    let known: bool = transaction
        .query_one("SELECT to_regclass('bullwork.schema_export_object') IS NOT NULL", &[])
        .await
        .doing(opening)?
        .get(0);
    let listed: HashSet<(String, String)> = if known {
        let rows = transaction.query("SELECT kind, identity FROM bullwork.schema_export_object", &[]).await.doing(opening)?;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    } else {
        transaction
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS bullwork;
                 CREATE TABLE bullwork.schema_export_object (kind text, identity text, PRIMARY KEY (kind, identity));
                 COMMENT ON TABLE bullwork.schema_export_object IS 'What the schema export made in this database, and may drop'",
            )
            .await
            .doing(opening)?;
        // An extension that is there already serves: the script says IF NOT EXISTS.
        source.into_iter().filter(|o| o.kind != "extension").map(|o| (o.kind, o.identity)).collect()
    };
    let existing = objects(transaction).await?;
    Ok(existing.into_iter().filter(|o| listed.contains(&(o.kind.clone(), o.identity.clone()))).collect())
}

/// What would be dropped with the objects `$1`, `$2` though it is no part of them.
const DEPENDENTS: &str = "
WITH RECURSIVE gone(classid, objid) AS (
    SELECT * FROM unnest($1::oid[], $2::oid[])
    UNION
    SELECT d.classid, d.objid
    FROM gone JOIN pg_catalog.pg_depend d ON d.refclassid = gone.classid AND d.refobjid = gone.objid
    WHERE d.deptype IN ('i', 'a', 'e', 'P', 'S')
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' on ' || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
FROM gone JOIN pg_catalog.pg_depend d ON d.refclassid = gone.classid AND d.refobjid = gone.objid
WHERE d.deptype = 'n'
  AND d.classid NOT IN ('pg_user_mapping'::regclass, 'pg_transform'::regclass)
  AND NOT EXISTS (SELECT FROM gone AS part WHERE part.classid = d.classid AND part.objid = d.objid)
LIMIT $3";

/// Drops `earlier`, unless that would lose rows or somebody else's objects. Locks the tables first,
/// so that neither appears in between.
pub(super) async fn remove(transaction: &Transaction<'_>, earlier: &[Object]) -> Result<(), ExportError> {
    let removing = || "dropping what the last export made".to_owned();
    let tables: Vec<&Object> = earlier.iter().filter(|o| o.kind == "table").collect();
    if !tables.is_empty() {
        let names: Vec<&str> = tables.iter().map(|t| t.identity.as_str()).collect();
        let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", names.join(", "));
        transaction.batch_execute(&lock).await.doing(|| "locking the catalogue's tables".to_owned())?;
        let filled: Vec<String> = tables
            .iter()
            .map(|t| {
                let name = &t.identity;
                format!("SELECT {} WHERE EXISTS (SELECT FROM {name})", crate::postgres::quote_literal(name))
            })
            .collect();
        let rows = transaction
            .query(&format!("{} LIMIT {TOLD}", filled.join(" UNION ALL ")), &[])
            .await
            .doing(|| "looking for rows in the catalogue's tables".to_owned())?;
        if !rows.is_empty() {
            return Err(ExportError::Rows(rows.iter().map(|row| row.get(0)).collect()));
        }
    }
    let classes: Vec<u32> = earlier.iter().map(|o| o.classid).collect();
    let ids: Vec<u32> = earlier.iter().map(|o| o.objid).collect();
    let rows = transaction.query(DEPENDENTS, &[&classes, &ids, &TOLD]).await.doing(removing)?;
    if !rows.is_empty() {
        return Err(ExportError::Dependents(rows.iter().map(|row| row.get(0)).collect()));
    }
    // CASCADE for the cycles among our own objects; what it may reach has just been checked.
    let script: String = earlier.iter().map(Object::drop_statement).collect();
    transaction.batch_execute(&script).await.doing(removing)?;
    Ok(())
}

/// Lists what is in `after` but not in `before` as ours.
pub(super) async fn close(
    transaction: &Transaction<'_>,
    earlier: &[Object],
    before: &[Object],
    after: Vec<Object>,
) -> Result<Exported, ExportError> {
    let listing = || "listing what was exported".to_owned();
    let before: HashSet<(u32, u32)> = before.iter().map(|o| (o.classid, o.objid)).collect();
    let made: Vec<Object> = after.into_iter().filter(|o| !before.contains(&(o.classid, o.objid))).collect();
    let kinds: Vec<&str> = made.iter().map(|o| o.kind.as_str()).collect();
    let identities: Vec<&str> = made.iter().map(|o| o.identity.as_str()).collect();
    transaction.execute("DELETE FROM bullwork.schema_export_object", &[]).await.doing(listing)?;
    transaction
        .execute(
            "INSERT INTO bullwork.schema_export_object (kind, identity) SELECT * FROM unnest($1::text[], $2::text[])",
            &[&kinds, &identities],
        )
        .await
        .doing(listing)?;
    let names: HashSet<(&str, &str)> = made.iter().map(Object::name).collect();
    let removed = earlier.iter().filter(|o| !names.contains(&o.name())).count();
    Ok(Exported { objects: made.len() as u64, removed: removed as u64 })
}
