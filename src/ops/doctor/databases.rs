//! The two databases, each by itself and side by side.

use tokio_postgres::Client;

use super::Finding;
use crate::config::{Environment, Reader, Setting};
use crate::postgres::same::same_database;
use crate::postgres::{Connection, Database, PostgresError, explain};
use crate::replication::settings::{self as replication, SOURCE_DATABASE_URL, TARGET_DATABASE_URL};
use crate::replication::settings::{TableMode, TableModes, TableName};

/// Tables and sequences that hold data, with the table that a sequence belongs to and whether they can be read.
const RELATIONS: &str = "select n.nspname::text, c.relname::text, c.relkind::text = 'S', tn.nspname::text, t.relname::text, \
    case c.relkind when 'S' then has_sequence_privilege(c.oid, 'select') else has_table_privilege(c.oid, 'select') and not row_security_active(c.oid) end \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    left join pg_depend d on c.relkind = 'S' and d.classid = 'pg_class'::regclass and d.objid = c.oid \
      and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') \
    left join pg_class t on t.oid = d.refobjid left join pg_namespace tn on tn.oid = t.relnamespace \
    where c.relkind in ('r', 'p', 'f', 'S') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'bullwork') \
    order by 1, 2";

/// Of the target: what bears a name of the source's tables and is somebody else's.
const NOT_OWNED: &str = "select distinct format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    join unnest($1::text[], $2::text[]) s(schema, name) on s.schema = n.nspname and s.name = c.relname \
    where not pg_has_role(c.relowner, 'usage') order by 1 limit 20";

/// Of the target: schemas in which the role has to make tables and may not.
const CLOSED: &str = "select format('%I', nspname) from pg_namespace \
    where nspname = any($1::text[]) and not (has_schema_privilege(oid, 'usage') and has_schema_privilege(oid, 'create')) order by 1";

/// Our own schema and what is in it, when it is another role's.
const NOTES: &str = "select distinct pg_get_userbyid(x.owner)::text from (select nspowner from pg_namespace where nspname = 'bullwork' \
    union all select c.relowner from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'bullwork') x(owner) \
    where not pg_has_role(x.owner, 'usage')";

/// A database that was asked, or why it could not be.
struct Side {
    database: Option<Database>,
    session: Option<Connection>,
    findings: Vec<Finding>,
    major: Option<u32>,
    relations: Vec<Relation>,
}

struct Relation {
    name: TableName,
    is_sequence: bool,
    /// The table that a sequence numbers.
    of: Option<TableName>,
    readable: bool,
}

/// The findings on both databases, and the target's major version.
pub(super) async fn examine(environment: &Environment) -> (Vec<Finding>, Option<u32>) {
    let modes = TableModes::from_settings(&Reader::new(environment));
    let (source, target) = tokio::join!(
        Side::ask(environment, &SOURCE_DATABASE_URL, "source", "point SOURCE_DATABASE_URL at the primary"),
        Side::ask(environment, &TARGET_DATABASE_URL, "target", "point TARGET_DATABASE_URL at a primary")
    );
    let mut findings = source.findings.clone();
    findings.push(source_rights(&source, &modes));
    findings.extend(target.findings.iter().cloned());
    if let (Some(a), Some(b)) = (source.major, target.major)
        && b < a
    {
        findings.push(Finding::bad(
            "target version",
            format!("PostgreSQL {b} is older than the source"),
            "upgrade the target to the source's major version or later",
        ));
    }
    findings.push(target_rights(&target, &source, &modes).await);
    findings.push(match &target.session {
        Some(session) => space(session).await,
        None => Finding::skipped("target space", "the target cannot be asked"),
    });
    findings.push(two_databases(&source, &target).await);
    findings.push(table_modes(&source, &target, &modes));
    (findings, target.major)
}

impl Side {
    async fn ask(environment: &Environment, setting: &'static Setting, name: &'static str, primary: &str) -> Side {
        let mut side = Side { database: None, session: None, findings: Vec::new(), major: None, relations: Vec::new() };
        let Some(database) = replication::database(&Reader::new(environment), setting) else {
            side.findings.push(Finding::bad(
                name,
                format!("{} is not set, or cannot be used", setting.name),
                format!("set {}", setting.name),
            ));
            return side;
        };
        side.database = Some(database.clone());
        let session = match database.connect("doctor").await {
            Ok(session) => session,
            Err(error) => {
                let fix = format!("check {}, the network and pg_hba.conf", setting.name);
                side.findings.push(Finding::bad(name, error.to_string(), fix));
                return side;
            }
        };
        match server(&session).await {
            Ok((version, major, recovering)) => {
                side.major = Some(major);
                side.findings.push(Finding::good(name, format!("PostgreSQL {version}, {database}")));
                if recovering {
                    let role = if name == "source" { "source role" } else { "target role" };
                    let seen = format!("the {name} is a standby (in recovery)");
                    side.findings.push(Finding::bad(role, seen, primary));
                }
            }
            Err(error) => side.findings.push(Finding::bad(name, error, format!("check {}", setting.name))),
        }
        match relations(&session).await {
            Ok(relations) => side.relations = relations,
            Err(error) => side.findings.push(Finding::bad(name, error, format!("check {}", setting.name))),
        }
        side.session = Some(session);
        side
    }

    fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.relations.iter().filter(|relation| !relation.is_sequence).map(|relation| &relation.name)
    }
}

async fn server(client: &Client) -> Result<(String, u32, bool), String> {
    let row = client
        .query_one(
            "select current_setting('server_version'), current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery()",
            &[],
        )
        .await
        .map_err(|error| explain(&error))?;
    let major: i32 = row.get(1);
    Ok((row.get(0), u32::try_from(major).unwrap_or(0), row.get(2)))
}

async fn relations(client: &Client) -> Result<Vec<Relation>, String> {
    let rows = client.query(RELATIONS, &[]).await.map_err(|error| explain(&error))?;
    Ok(rows
        .into_iter()
        .map(|row| Relation {
            name: TableName { schema: row.get(0), name: row.get(1) },
            is_sequence: row.get(2),
            of: row.get::<_, Option<String>>(3).zip(row.get(4)).map(|(schema, name)| TableName { schema, name }),
            readable: row.get(5),
        })
        .collect())
}

/// Tables whose mode is `none` are not read, nor are their sequences.
fn source_rights(source: &Side, modes: &TableModes) -> Finding {
    const CHECK: &str = "source rights";
    if source.session.is_none() {
        return Finding::skipped(CHECK, "the source cannot be asked");
    }
    let needed = |relation: &&Relation| modes.mode_of(relation.of.as_ref().unwrap_or(&relation.name)) != TableMode::None;
    let unreadable: Vec<String> =
        source.relations.iter().filter(needed).filter(|r| !r.readable).take(20).map(|r| r.name.to_string()).collect();
    if unreadable.is_empty() {
        return Finding::good(CHECK, "every table that is copied can be read");
    }
    Finding::bad(
        CHECK,
        format!("cannot read {}", unreadable.join(", ")),
        "GRANT SELECT on them to the user of SOURCE_DATABASE_URL, or give them the mode `none` in BACKUP_MODE",
    )
}

async fn target_rights(target: &Side, source: &Side, modes: &TableModes) -> Finding {
    const CHECK: &str = "target rights";
    let Some(session) = &target.session else { return Finding::skipped(CHECK, "the target cannot be asked") };
    let replaced: Vec<&TableName> = source.tables().filter(|table| modes.mode_of(table) == TableMode::Full).collect();
    match missing_rights(session, &replaced).await {
        Ok((user, missing)) if missing.is_empty() && source.session.is_none() => {
            Finding::good(CHECK, format!("{user} may create schemas; what it replaces is not known without the source"))
        }
        Ok((user, missing)) if missing.is_empty() => {
            Finding::good(CHECK, format!("{user} may create schemas and owns what it replaces"))
        }
        Ok((_, missing)) => {
            let (seen, fixes): (Vec<String>, Vec<String>) = missing.into_iter().unzip();
            Finding::bad(CHECK, seen.join("; "), fixes.join("; "))
        }
        Err(error) => Finding::bad(CHECK, explain(&error), "check the rights of the user of TARGET_DATABASE_URL"),
    }
}

/// The target's user, and what it lacks with the way out of each.
async fn missing_rights(
    target: &Client,
    replaced: &[&TableName],
) -> Result<(String, Vec<(String, String)>), tokio_postgres::Error> {
    let all = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(", ");
    let sql = "select has_database_privilege(current_database(), 'create'), format('%I', current_user), format('%I', current_database())";
    let row = target.query_one(sql, &[]).await?;
    let (may_create, user, database): (bool, String, String) = (row.get(0), row.get(1), row.get(2));
    let mut missing = Vec::new();
    if !may_create {
        missing.push((format!("{user} may not create schemas"), format!("GRANT CREATE ON DATABASE {database} TO {user}")));
    }
    let notes = all(target.query(NOTES, &[]).await?);
    if !notes.is_empty() {
        missing.push((
            format!("the schema bullwork, where the state of the copy is kept, is owned by {notes}"),
            format!("GRANT {notes} TO {user}, or drop the schema if no other Bullwork writes here"),
        ));
    }
    let mut schemas: Vec<&str> = replaced.iter().map(|table| table.schema.as_str()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let closed = all(target.query(CLOSED, &[&schemas]).await?);
    if !closed.is_empty() {
        missing.push((
            format!("{user} may not create tables in {closed}"),
            format!("GRANT USAGE, CREATE ON SCHEMA {closed} TO {user}"),
        ));
    }
    let (in_schemas, names): (Vec<&str>, Vec<&str>) = replaced.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    let foreign = all(target.query(NOT_OWNED, &[&in_schemas, &names]).await?);
    if !foreign.is_empty() {
        missing.push((
            format!("{user} does not own what it replaces: {foreign}"),
            format!("ALTER TABLE … OWNER TO {user}, or GRANT their owner TO {user}"),
        ));
    }
    Ok((user, missing))
}

/// Free space can be read only by a superuser of a server on this very machine, or not at all.
async fn space(client: &Client) -> Finding {
    const CHECK: &str = "target space";
    let size: i64 = match client.query_one("select pg_database_size(current_database())", &[]).await {
        Ok(row) => row.get(0),
        Err(error) => return Finding::warning(CHECK, explain(&error), "watch the disk of the target yourself"),
    };
    let directory: Option<String> =
        client.query_one("select current_setting('data_directory', true)", &[]).await.ok().and_then(|row| row.get(0));
    let free = directory.and_then(|directory| nix::sys::statvfs::statvfs(directory.as_str()).ok());
    let mebibytes = |bytes: u64| bytes / (1 << 20);
    let size = size.unsigned_abs();
    let Some(stat) = free else {
        return Finding::good(CHECK, format!("database {} MiB; free space is not readable from here", mebibytes(size)));
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let seen = format!("database {} MiB, free {} MiB", mebibytes(size), mebibytes(free));
    if free < size {
        Finding::warning(CHECK, seen, "a full copy may need as much again while it builds indexes: free some space")
    } else {
        Finding::good(CHECK, seen)
    }
}

async fn two_databases(source: &Side, target: &Side) -> Finding {
    const CHECK: &str = "two databases";
    let same: Result<bool, PostgresError> = match (&source.session, &target.session) {
        (Some(a), Some(b)) => same_database(a, b).await,
        // No need to connect for one URL under two names.
        _ if source.database.is_some() && source.database == target.database => Ok(true),
        _ => return Finding::skipped(CHECK, "needs both of them"),
    };
    match same {
        Ok(false) => Finding::good(CHECK, "source and target are not the same"),
        Ok(true) => Finding::bad(
            CHECK,
            "source and target are one database: a full copy would drop what it copies, so every run refuses",
            "correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL",
        ),
        Err(error) => Finding::warning(CHECK, error.to_string(), "make sure that they are not the same"),
    }
}

/// A run refuses names that it does not find on either side.
fn table_modes(source: &Side, target: &Side, modes: &TableModes) -> Finding {
    const CHECK: &str = "table modes";
    if source.session.is_none() || target.session.is_none() {
        return Finding::skipped(CHECK, "needs both databases");
    }
    let existing: Vec<TableName> = source.tables().chain(target.tables()).cloned().collect();
    let unknown = modes.unknown(&existing);
    if unknown.is_empty() {
        return Finding::good(CHECK, "every table of BACKUP_MODE is there");
    }
    Finding::bad(
        CHECK,
        format!("BACKUP_MODE names tables that neither source nor target has: {}", unknown.join(", ")),
        "correct the names in BACKUP_MODE; they are exact, with `schema.` in front outside `public`",
    )
}
