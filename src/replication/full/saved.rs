//! Other people's views, functions and foreign keys that stand over replaced tables: stored before
//! they go, made again at the end.
//!
//! The definition is stored in the same transaction that drops the object, so it is never in
//! neither place. What cannot be made again (a column it reads is gone) stays stored, is told by
//! name at every run, and is tried again at the next.

use tokio_postgres::{Client, Transaction};

use super::catalog::{Graph, Key, Node, PG_PROC};
use super::relocate::Relocation;
use super::tables::PlainIndex;
use super::target;
use crate::postgres::{Doing, PostgresError, explain};
use crate::worker::Run;

/// Statements that make the privileges of relations again, those of its columns included. The
/// owner's own are implied.
const PRIVILEGES: &str = r#"
with acl as (
  select format('%I.%I', n.nspname, c.relname) as name, null::text as col, c.relowner as owner, a.*
    from pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) a where c.oid = any($1)
  union all
  select format('%I.%I', n.nspname, c.relname), t.attname, c.relowner, a.*
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute t on t.attrelid = c.oid and not t.attisdropped,
         aclexplode(t.attacl) a where c.oid = any($1)
)
select format('grant %s%s on %s to %s%s', privilege_type, case when col is null then '' else format(' (%I)', col) end, name,
              case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
              case when is_grantable then ' with grant option' else '' end)
  from acl where grantee <> owner
"#;

const VIEW: &str = r#"
select format('create %s %I.%I (%s)%s as %s', case c.relkind when 'm' then 'materialized view' else 'view' end, n.nspname, c.relname,
              (select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped),
              coalesce(' with (' || array_to_string(c.reloptions, ', ') || ')', ''),
              rtrim(pg_get_viewdef(c.oid), ';') || case when c.relkind = 'm' then ' with no data' else '' end)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1
"#;

/// Rows, indexes, triggers, rules and comments of a view, then its owner. The rows come by `refresh`: it writes them frozen, so that
/// who has an older snapshot sees them, too.
const VIEW_PARTS: &str = r#"
select s from (
  select 0, format('refresh materialized view %I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid = $1 and c.relkind = 'm' and c.relispopulated
  union all select 1, pg_get_indexdef(indexrelid) from pg_index where indrelid = $1
  union all select 2, pg_get_triggerdef(oid) from pg_trigger where tgrelid = $1 and not tgisinternal
  union all select 3, pg_get_ruledef(oid) from pg_rewrite where ev_class = $1 and rulename <> '_RETURN'
  union all select 4, format('comment on %s %I.%I is %L', case c.relkind when 'm' then 'materialized view' else 'view' end, n.nspname, c.relname, d.description)
    from pg_description d join pg_class c on c.oid = d.objoid join pg_namespace n on n.oid = c.relnamespace
   where d.classoid = 'pg_class'::regclass and d.objoid = $1 and d.objsubid = 0
  union all select 5, format('comment on column %I.%I.%I is %L', n.nspname, c.relname, a.attname, d.description)
    from pg_description d join pg_class c on c.oid = d.objoid join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum = d.objsubid
   where d.classoid = 'pg_class'::regclass and d.objoid = $1 and d.objsubid > 0
) p(o, s) order by o
"#;

const FUNCTION: &str = r#"
select pg_get_functiondef(p.oid),
       array(select format('comment on routine %s is %L', i.identity, d.description) from pg_description d
              where d.classoid = 'pg_proc'::regclass and d.objoid = p.oid)
       || array(select format('grant execute on routine %s to %s%s', i.identity,
                              case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
                              case when a.is_grantable then ' with grant option' else '' end)
                  from aclexplode(p.proacl) a where a.grantee <> p.proowner)
       || case when p.proacl is not null and not exists (select from aclexplode(p.proacl) a where a.grantee = 0)
               then array[format('revoke execute on routine %s from public', i.identity)] else '{}'::text[] end
  from pg_proc p, pg_identify_object('pg_proc'::regclass, p.oid, 0) i where p.oid = $1
"#;

const FOREIGN_KEY: &str = r#"
select format('alter table %I.%I add constraint %I %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)),
       k.convalidated, format('alter table %I.%I validate constraint %I', n.nspname, c.relname, k.conname),
       c.relkind = 'r'
  from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace where k.oid = $1
"#;

/// Statements that give the privileges of relations again.
pub(super) async fn privileges(target: &Client, oids: &[u32]) -> Result<Vec<String>, PostgresError> {
    let rows = target.query(PRIVILEGES, &[&oids]).await.doing(|| "reading privileges on the target".to_owned())?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}

/// Stores a view or function.
pub(super) async fn store(target: &Client, node: &Node) -> Result<(), PostgresError> {
    write(target, &node.kind, &node.identity, &definition(target, node).await?).await
}

/// What makes a view or function again: the first statement makes it, the others are tried one by one.
pub(super) async fn definition(target: &Client, node: &Node) -> Result<Vec<String>, PostgresError> {
    let doing = || format!("storing the definition of {}", node.told());
    let oid = node.id.1;
    let mut statements: Vec<String> = Vec::new();
    let owner_of = if node.id.0 == PG_PROC {
        let row = target.query_one(FUNCTION, &[&oid]).await.doing(doing)?;
        statements.push(row.get(0));
        statements.extend(row.get::<_, Vec<String>>(1));
        "select format('alter routine %s owner to %I', i.identity, pg_get_userbyid(p.proowner)) from pg_proc p, \
         pg_identify_object('pg_proc'::regclass, p.oid, 0) i where p.oid = $1"
    } else {
        statements.push(target.query_one(VIEW, &[&oid]).await.doing(doing)?.get(0));
        for row in target.query(VIEW_PARTS, &[&oid]).await.doing(doing)? {
            statements.push(row.get(0));
        }
        statements.extend(privileges(target, &[oid]).await?);
        "select format('alter %s %I.%I owner to %I', case c.relkind when 'm' then 'materialized view' else 'view' end, n.nspname, \
         c.relname, pg_get_userbyid(c.relowner)) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1"
    };
    statements.push(target.query_one(owner_of, &[&oid]).await.doing(doing)?.get(0));
    Ok(statements)
}

/// A foreign key of a kept table to what is replaced.
pub(super) struct ForeignKey {
    kind: String,
    identity: String,
    /// Makes it, where it can be without looking at the rows; then `validate` looks at them.
    add: String,
    validate: Option<String>,
    /// Making it looks at no row.
    quick: bool,
}

impl ForeignKey {
    pub(super) async fn read(target: &Client, node: &Node) -> Result<ForeignKey, PostgresError> {
        let row = target
            .query_one(FOREIGN_KEY, &[&node.id.1])
            .await
            .doing(|| format!("storing the definition of foreign key {}", node.identity))?;
        let (add, validated, ordinary): (String, bool, bool) = (row.get(0), row.get(1), row.get(3));
        let defer = validated && ordinary;
        Ok(ForeignKey {
            kind: node.kind.clone(),
            identity: node.identity.clone(),
            add: if defer { format!("{add} not valid") } else { add },
            validate: defer.then(|| row.get(2)),
            quick: ordinary,
        })
    }

    /// Stores it, to be made at the end.
    pub(super) async fn store(&self, target: &Client) -> Result<(), PostgresError> {
        let statements: Vec<String> = std::iter::once(&self.add).chain(&self.validate).cloned().collect();
        write(target, &self.kind, &self.identity, &statements).await
    }

    /// Makes it in the transaction that puts another table in the place of the one it refers to, without looking at
    /// rows; what is left to do is stored.
    pub(super) async fn make(&self, tx: &mut Transaction<'_>) -> Result<(), PostgresError> {
        if !self.quick || target::attempt(tx, &self.add).await?.is_err() {
            return self.store(tx.client()).await;
        }
        match &self.validate {
            Some(validate) => write(tx.client(), VALIDATION, &self.identity, std::slice::from_ref(validate)).await,
            None => Ok(()),
        }
    }
}

/// Makes a view, function or index of somebody else on the tables that come, which stand where `relocation` says. What cannot be
/// made is stored, told by name, and tried again by each run.
pub(super) async fn make_beside(
    run: &Run,
    tx: &mut Transaction<'_>,
    (kind, identity): &Key,
    statements: &[String],
    relocation: &Relocation,
) -> Result<(), PostgresError> {
    let Some((first, rest)) = statements.split_first() else { return Ok(()) };
    // Its reason is told with the switch, when it is tried once more.
    if target::attempt(tx, &relocation.sql(first)).await?.is_err() {
        return write(tx.client(), kind, identity, statements).await;
    }
    run.info(format!("made {kind} {identity} again"));
    for statement in rest {
        if let Err(reason) = target::attempt(tx, &relocation.sql(statement)).await? {
            run.warn(format!("{kind} {identity}: `{statement}` was refused: {reason}"));
        }
    }
    Ok(())
}

/// Stores an index that somebody added to a replaced table.
pub(super) async fn store_index(target: &Client, index: &PlainIndex) -> Result<(), PostgresError> {
    write(target, "index", &index.identity, &[index_definition(target, index).await?]).await
}

/// What makes an index again.
pub(super) async fn index_definition(target: &Client, index: &PlainIndex) -> Result<String, PostgresError> {
    let sql = "select pg_get_indexdef($1)";
    let row =
        target.query_one(sql, &[&index.oid]).await.doing(|| format!("storing the definition of index {}", index.identity))?;
    Ok(row.get(0))
}

/// What the server calls a foreign key.
const KEY: &str = "table constraint";
/// Of a foreign key that was made without looking at the rows.
const VALIDATION: &str = "validation of";

/// Stores statements under a name.
pub(super) async fn write(target: &Client, kind: &str, identity: &str, statements: &[String]) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.saved_object (kind, identity, statements) values ($1, $2, $3) \
               on conflict (kind, identity) do update set statements = $3, saved_at = now(), problem = null";
    target
        .execute(sql, &[&kind, &identity, &statements])
        .await
        .doing(|| format!("storing {kind} {identity} in bullwork.saved_object"))?;
    Ok(())
}

/// What becomes of a stored definition whose object is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Present {
    /// Somebody made it: the definition is of no use any more.
    Forget,
    /// It is of an earlier generation, which a rollback brought back, and may go with that again.
    Keep,
}

/// Makes everything stored again. Returns what could not be made, each with its reason; that
/// stays stored.
pub(super) async fn make_again(run: &Run, target: &mut Client, present: Present) -> Result<Vec<String>, PostgresError> {
    let doing = || "reading bullwork.saved_object".to_owned();
    let rows =
        target.query("select id, kind, identity, statements from bullwork.saved_object order by id", &[]).await.doing(doing)?;
    let mut waiting: Vec<Stored> = rows
        .into_iter()
        .map(|r| Stored { id: r.get(0), kind: r.get(1), identity: r.get(2), statements: r.get(3), reason: String::new() })
        .collect();
    // One may need another that was stored by an earlier run, in whatever order: go round until
    // a round makes nothing.
    loop {
        let before = waiting.len();
        let mut left = Vec::new();
        for mut stored in waiting {
            match make(run, target, &stored, present).await? {
                Ok(()) => {}
                Err(reason) => {
                    stored.reason = reason;
                    left.push(stored);
                }
            }
        }
        waiting = left;
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    let mut failed = Vec::new();
    for stored in waiting {
        let sql = "update bullwork.saved_object set problem = $2 where id = $1";
        target.execute(sql, &[&stored.id, &stored.reason]).await.doing(doing)?;
        let text = format!("{} {}: {}", stored.kind, stored.identity, stored.reason);
        run.warn(format!(
            "could not make {text}; its definition stays in bullwork.saved_object and is tried again by the next run"
        ));
        failed.push(text);
    }
    Ok(failed)
}

struct Stored {
    id: i64,
    kind: String,
    identity: String,
    statements: Vec<String>,
    reason: String,
}

async fn make(run: &Run, target: &mut Client, stored: &Stored, if_present: Present) -> Result<Result<(), String>, PostgresError> {
    let doing = || format!("making {} {} again", stored.kind, stored.identity);
    let present = if stored.kind == "index" {
        let sql = "select to_regclass($1) is not null";
        target.query_one(sql, &[&stored.identity]).await.doing(doing)?.get(0)
    } else {
        Graph::read_keys(target).await?.contains(&(stored.kind.clone(), stored.identity.clone()))
    };
    if present && if_present == Present::Keep {
        return Ok(Ok(()));
    }
    if present {
        run.info(format!("{} {} is there already: its stored definition is dropped", stored.kind, stored.identity));
        return forget(target, stored.id).await.map(Ok);
    }
    let Some((first, rest)) = stored.statements.split_first() else { return forget(target, stored.id).await.map(Ok) };
    let tx = target.transaction().await.doing(doing)?;
    if let Err(error) = tx.batch_execute(first).await {
        return Ok(Err(explain(&error)));
    }
    tx.execute("delete from bullwork.saved_object where id = $1", &[&stored.id]).await.doing(doing)?;
    tx.commit().await.doing(doing)?;
    run.info(match stored.kind.as_str() {
        VALIDATION => format!("foreign key {} is validated", stored.identity),
        kind => format!("made {kind} {} again", stored.identity),
    });
    for statement in rest {
        if let Err(error) = target.batch_execute(statement).await {
            // An unvalidated key and a view without one of its grants are still better than none.
            if statement.contains(" validate constraint ") && stored.kind == KEY {
                // Its rows may fit tomorrow.
                write(target, VALIDATION, &stored.identity, std::slice::from_ref(statement)).await?;
            }
            run.warn(format!("{} {}: `{statement}` was refused: {}", stored.kind, stored.identity, explain(&error)));
        }
    }
    Ok(Ok(()))
}

async fn forget(target: &Client, id: i64) -> Result<(), PostgresError> {
    target
        .execute("delete from bullwork.saved_object where id = $1", &[&id])
        .await
        .doing(|| "tidying bullwork.saved_object".to_owned())?;
    Ok(())
}
