//! What a database has besides what is in it: owner, rights, settings, limit of connections, comment. A dump holds none
//! of it, so a restored database that takes the place of another one takes them from that.

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};
use crate::redact::scrub;

/// Statements that make a database like another one, each of which may be refused by itself. Rights that nobody ever
/// changed are not written down in the catalogue, and need no statement.
const OWNED: &str = "select statement from (
    select 1 as rank, format('alter database %I owner to %I', $2::text, pg_get_userbyid(datdba)) as statement from pg_database where datname = $1
    union all
    select 2, format('alter database %I connection limit %s', $2, datconnlimit) from pg_database where datname = $1 and datconnlimit <> -1
    union all
    select 3, format('revoke all on database %I from public', $2) from pg_database where datname = $1 and datacl is not null
    union all
    select 4, format('grant %s on database %I to %s%s', x.privilege_type, $2, case x.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end,
                     case when x.is_grantable then ' with grant option' else '' end)
      from pg_database d, aclexplode(d.datacl) x where d.datname = $1 and (x.grantee = 0 or exists (select from pg_roles r where r.oid = x.grantee))
) s order by rank, statement";
const SETTINGS: &str = "select r.rolname::text, split_part(s.setting, '=', 1), substr(s.setting, strpos(s.setting, '=') + 1)
    from (select setrole, unnest(setconfig) as setting from pg_db_role_setting p join pg_database d on d.oid = p.setdatabase where d.datname = $1) s
    left join pg_roles r on r.oid = s.setrole order by 1 nulls first, 2";
const COMMENT: &str = "select shobj_description(oid, 'pg_database') from pg_database where datname = $1";

/// Settings whose value is a list of names: quoted as a whole, it would be one name.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Makes the database `to` like `from`, as far as the role may. What it may not, with the reason.
pub(super) async fn take_over(session: &Client, from: &str, to: &str) -> Result<Vec<String>, PostgresError> {
    let doing = || format!("reading owner, rights and settings of database `{from}`");
    let rows = session.query(OWNED, &[&from, &to]).await.doing(doing)?;
    let mut statements: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for row in session.query(SETTINGS, &[&from]).await.doing(doing)? {
        let (role, name, value): (Option<String>, String, String) = (row.get(0), row.get(1), row.get(2));
        statements.push(setting(to, role.as_deref(), &name, &value));
    }
    let mut refused = Vec::new();
    for statement in statements {
        if let Err(error) = session.batch_execute(&statement).await {
            if error.is_closed() {
                return Err(error).doing(doing);
            }
            refused.push(format!("`{}`: {}", scrub(&statement), crate::postgres::explain(&error)));
        }
    }
    Ok(refused)
}

/// What somebody wrote about the database; nothing where it is ours alone.
pub(super) async fn comment(session: &Client, name: &str) -> Result<Option<String>, PostgresError> {
    let row = session.query_opt(COMMENT, &[&name]).await.doing(|| format!("reading the comment of database `{name}`"))?;
    let text: Option<String> = row.and_then(|row| row.get(0));
    Ok(text.and_then(|text| match text.strip_prefix("bullwork: ") {
        Some(ours) => ours.split_once('\n').map(|(_, theirs)| theirs.to_owned()),
        None => Some(text),
    }))
}

fn setting(database: &str, role: Option<&str>, name: &str, value: &str) -> String {
    let whose = role.map(|role| format!("role {} in ", quote_identifier(role))).unwrap_or_default();
    // A setting of an extension's has a dot, and each part is a name.
    let name: Vec<String> = name.split('.').map(quote_identifier).collect();
    let name = name.join(".");
    let value = match LISTS.iter().any(|list| quote_identifier(list) == name) {
        true => names(value).iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", "),
        false => quote_literal(value),
    };
    let value = if value.is_empty() { "''".to_owned() } else { value };
    format!("alter {whose}database {} set {name} to {value}", quote_identifier(database))
}

/// The names of a list as PostgreSQL stores it: `"$user", public`.
fn names(list: &str) -> Vec<String> {
    let (mut names, mut rest) = (Vec::new(), list.trim_start());
    while !rest.is_empty() {
        let mut name = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            while let Some((part, after)) = quoted.split_once('"') {
                name.push_str(part);
                match after.strip_prefix('"') {
                    Some(more) => {
                        name.push('"');
                        quoted = more;
                    }
                    None => {
                        quoted = after;
                        break;
                    }
                }
            }
            rest = quoted;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            name.push_str(rest[..end].trim_end());
            rest = &rest[end..];
        }
        names.push(name);
        rest = rest.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_quoted_name_by_name() {
        assert_eq!(names(r#""$user", public"#), ["$user", "public"]);
        assert_eq!(names(r#""a""b,c" ,d"#), [r#"a"b,c"#, "d"]);
        assert_eq!(names("x;drop, y"), ["x;drop", "y"]);
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names(r#""open"#), [""], "what cannot be read does not hang");
    }

    #[test]
    fn settings_are_of_the_database_or_of_a_role_in_it() {
        let made = setting("my shop", None, "search_path", r#""$user", public"#);
        assert_eq!(made, r#"alter database "my shop" set "search_path" to '$user', 'public'"#);
        let made = setting("shop", Some("o'ne"), "app.tenant", "it's");
        assert_eq!(made, r#"alter role "o'ne" in database "shop" set "app"."tenant" to 'it''s'"#);
        assert_eq!(setting("s", None, "search_path", ""), r#"alter database "s" set "search_path" to ''"#);
    }
}
