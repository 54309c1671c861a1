//! Presets as template databases of the running cluster, switched by renaming.
//!
//! ```text
//! bullwork_preset_HEX_N    a database of a preset: a template that nobody connects to; its comment says of which
//! bullwork_part_HEX_N      a copy of that one, being made
//! bullwork_next_HEX_N      a whole copy, ready to get the database's name
//! bullwork_old_N           what had that name before; dropped after the switch
//! ```
//!
//! A copy is always kept ready, so a `select` waits for none: all databases of the preset get their names in one transaction, which
//! takes milliseconds, and the next copy is made when everything runs again. Whenever a `select` is killed the old preset is there or the new one. Roles
//! are the cluster's: those of all presets are there at once, and the databases `postgres` and `template1` belong to none of them.

use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::cluster::{Cluster, DATABASES, PURPOSE};
use super::local::{Local, Note, Template};
use super::{PresetError, hex};
use crate::postgres::{Connection, Doing, PostgresError, explain, quote_identifier, quote_literal, server_major};

/// What the names of all of ours begin with.
pub(super) const PREFIX: &str = "bullwork_";
/// How often sessions are ended and names changed, while new sessions come.
const TRIES: u32 = 20;

/// How long the rest of a killed command is waited for.
const REST: Duration = Duration::from_secs(60);

/// Whether a database of that name came up at this moment, by a killed command that the server goes on with: 42P04, or 23505 when
/// both were at it.
fn is_taken(error: &PostgresError) -> bool {
    let text = error.to_string();
    text.contains("SQLSTATE 42P04") || text.contains("SQLSTATE 23505")
}

/// Whether a database is ours, whatever it is for.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The name of a template's copy.
fn copy(template: &str, what: &str) -> String {
    template.replacen("preset", what, 1)
}

async fn ran(session: &Connection, sql: &str) -> Result<(), PostgresError> {
    session.batch_execute(sql).await.doing(|| format!("switching databases ({sql})"))
}

async fn user_databases(session: &Connection) -> Result<Vec<String>, PostgresError> {
    let rows = session.query(DATABASES, &[]).await.doing(|| "listing databases".to_owned())?;
    Ok(rows.iter().map(|row| row.get(0)).filter(|name: &String| !is_ours(name)).collect())
}

/// Drops one of ours, whatever it is.
async fn drop(session: &Connection, name: &str) -> Result<(), PostgresError> {
    let sql = "select datistemplate from pg_database where datname = $1";
    let there = session.query_opt(sql, &[&name]).await.doing(|| "listing databases".to_owned())?;
    let name = quote_identifier(name);
    if there.is_some_and(|row| row.get(0)) {
        ran(session, &format!("alter database {name} is_template false")).await?;
    }
    ran(session, &format!("drop database if exists {name} with (force)")).await
}

impl Cluster<'_> {
    /// Turns the databases of the preset that was just applied into templates.
    pub(super) async fn keep_templates(&self, local: &Local, name: &str, revision: u64) -> Result<Vec<Template>, PresetError> {
        self.phase("keep");
        let mut session = self.session().await?;
        let digest = hex(&Sha256::digest(format!("{}/{name}/{revision}/{}", local.of(), crate::identity::new_uuid()).as_bytes()));
        let databases = user_databases(&session).await?;
        let templates: Vec<Template> = databases
            .into_iter()
            .enumerate()
            .map(|(n, database)| Template { database, template: format!("{PREFIX}preset_{}_{n}", &digest[..16]) })
            .collect();
        let mut sql = String::new();
        for Template { database, template } in &templates {
            let comment = json!({"of": local.of(), "preset": name, "revision": revision, "database": database}).to_string();
            let (from, to) = (quote_identifier(database), quote_identifier(template));
            sql.push_str(&format!(
                "alter database {from} rename to {to}; alter database {to} is_template true allow_connections false;
                 comment on database {to} is {};",
                quote_literal(&comment)
            ));
        }
        self.renamed(&mut session, &sql).await?;
        Ok(templates)
    }

    /// Drops templates that no note of the branch names, of earlier revisions and of killed commands, and copies without a template.
    pub(super) async fn tidy_templates(&self, local: &Local) -> Result<(), PresetError> {
        self.drop_left().await?;
        let session = self.session().await?;
        let named: Vec<String> =
            local.notes()?.into_iter().flat_map(|(_, note)| note.templates).map(|template| template.template).collect();
        let sql = "select datname::text, shobj_description(oid, 'pg_database') from pg_database where starts_with(datname, $1)";
        let rows = session.query(sql, &[&format!("{PREFIX}preset_")]).await.doing(|| "listing templates".to_owned())?;
        for row in rows {
            let (name, comment): (String, Option<String>) = (row.get(0), row.get(1));
            let of: Option<String> = comment
                .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
                .and_then(|value| Some(value.get("of")?.as_str()?.to_owned()));
            if !named.contains(&name) && of.is_none_or(|of| of == local.of()) {
                drop(&session, &copy(&name, "next")).await?;
                drop(&session, &name).await?;
            }
        }
        Ok(())
    }

    /// Makes the copies of the templates that are not there yet.
    pub(super) async fn copy_templates(&self, note: &Note) -> Result<(), PresetError> {
        self.phase("copy");
        let session = self.session().await?;
        let strategy = if server_major(&session).await? >= 15 { " strategy file_copy" } else { "" };
        for Template { template, .. } in &note.templates {
            let begun = Instant::now();
            loop {
                match self.copy_template(&session, template, strategy).await {
                    Err(PresetError::Postgres(error)) if is_taken(&error) && begun.elapsed() < REST => {
                        self.run.unless_stopped(tokio::time::sleep(Duration::from_millis(200))).await?;
                    }
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    /// Makes the copy of one template, unless it is there.
    async fn copy_template(&self, session: &Connection, template: &str, strategy: &str) -> Result<(), PresetError> {
        let (next, part) = (copy(template, "next"), copy(template, "part"));
        let sql = "select from pg_database where datname = $1";
        if session.query_opt(sql, &[&next]).await.doing(|| "listing databases".to_owned())?.is_some() {
            return Ok(());
        }
        // The server goes on with what a killed command asked for; nobody waits for that any more.
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where pid <> pg_backend_pid() and application_name = $1 and starts_with(query, $2)";
        let (ours, making) = (format!("bullwork: {PURPOSE}"), format!("create database \"{PREFIX}part_"));
        session.query_one(end, &[&ours, &making]).await.doing(|| "ending what a killed command left".to_owned())?;
        drop(session, &part).await?;
        let made = format!("create database {} template {}{strategy}", quote_identifier(&part), quote_identifier(template));
        self.run.unless_stopped(ran(session, &made)).await??;
        // A copy has its maker's rights and no settings; it is ready when it has the template's.
        let (template, next, part) = (quote_literal(template), quote_literal(&next), quote_literal(&part));
        let finished = format!(
            "do $do$ begin
                execute (select format('alter database %I owner to %I', {part}, rolname)
                    from pg_database d join pg_roles r on r.oid = d.datdba where datname = {template});
                update pg_database n set datacl = t.datacl, datconnlimit = t.datconnlimit
                    from pg_database t where n.datname = {part} and t.datname = {template};
                insert into pg_db_role_setting select n.oid, setrole, setconfig from pg_db_role_setting s
                    join pg_database t on t.oid = s.setdatabase, pg_database n where t.datname = {template} and n.datname = {part};
                execute format('alter database %I rename to %I', {part}, {next});
            end $do$"
        );
        Ok(ran(session, &finished).await?)
    }

    /// Gives the copies the databases' names, all at once.
    pub(super) async fn switch_templates(&self, note: &Note) -> Result<(), PresetError> {
        self.phase("switch");
        let mut session = self.session().await?;
        let mut sql = String::new();
        for (n, database) in user_databases(&session).await?.iter().enumerate() {
            sql.push_str(&format!("alter database {} rename to {PREFIX}old_{n};", quote_identifier(database)));
        }
        for Template { database, template } in &note.templates {
            let next = quote_identifier(&copy(template, "next"));
            sql.push_str(&format!("alter database {next} rename to {};", quote_identifier(database)));
        }
        self.renamed(&mut session, &sql).await
    }

    /// Drops what was switched out, and copies that were not finished.
    pub(super) async fn drop_left(&self) -> Result<(), PresetError> {
        let session = self.session().await?;
        let sql = "select datname::text from pg_database where starts_with(datname, $1) or starts_with(datname, $2)";
        let (part, old) = (format!("{PREFIX}part_"), format!("{PREFIX}old_"));
        for row in session.query(sql, &[&part, &old]).await.doing(|| "listing databases".to_owned())? {
            drop(&session, row.get(0)).await?;
        }
        Ok(())
    }

    /// Changes names in one transaction, after ending the sessions that are in the way.
    async fn renamed(&self, session: &mut Connection, sql: &str) -> Result<(), PresetError> {
        let end =
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null";
        for attempt in 1.. {
            session.query_one(end, &[]).await.doing(|| "ending sessions".to_owned())?;
            let renaming = async {
                let transaction = session.client_mut().transaction().await?;
                transaction.batch_execute(sql).await?;
                transaction.commit().await
            };
            match renaming.await {
                Ok(()) => break,
                // 55006: somebody is connected.
                Err(error) if error.code().is_some_and(|code| code.code() == "55006") && attempt < TRIES => {
                    self.run.unless_stopped(tokio::time::sleep(Duration::from_millis(100))).await?;
                }
                Err(error) => {
                    let error = PostgresError::Statement { doing: "renaming databases".to_owned(), reason: explain(&error) };
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}
