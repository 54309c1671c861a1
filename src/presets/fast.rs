//! Presets as template databases of the running cluster, switched by renaming.
//!
//! ```text
//! bullwork_preset_HEX_N    a database of a preset: a template that nobody connects to; its comment says of which
//! bullwork_next_N          its copy, which is about to get the database's name
//! bullwork_old_N           what had that name before; dropped after the switch
//! ```
//!
//! All databases of a preset get their names in one transaction: whenever a `select` is killed the old preset is there or the new one. Roles
//! are the cluster's: those of all presets are there at once, and the databases `postgres` and `template1` belong to none of them.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::cluster::{Cluster, DATABASES};
use super::local::{Local, Note, Template};
use super::{PresetError, hex};
use crate::postgres::{Connection, Doing, PostgresError, explain, quote_identifier, quote_literal, server_major};

/// What the names of all of ours begin with.
pub(super) const PREFIX: &str = "bullwork_";
/// How often sessions are ended and names changed, while new sessions come.
const TRIES: u32 = 20;

/// Whether a database is ours, whatever it is for.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
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

    /// Drops what no note of the branch names: templates of earlier revisions and of killed commands.
    pub(super) async fn tidy_templates(&self, local: &Local) -> Result<(), PresetError> {
        let session = self.session().await?;
        let named: Vec<String> =
            local.notes()?.into_iter().flat_map(|(_, note)| note.templates).map(|template| template.template).collect();
        let sql = "select datname::text, shobj_description(oid, 'pg_database') from pg_database where starts_with(datname, $1)";
        for row in session.query(sql, &[&PREFIX]).await.doing(|| "listing templates".to_owned())? {
            let (name, comment): (String, Option<String>) = (row.get(0), row.get(1));
            let of: Option<String> = comment
                .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
                .and_then(|value| Some(value.get("of")?.as_str()?.to_owned()));
            // Without a comment it is one that was to be switched in or out.
            if !named.contains(&name) && of.is_none_or(|of| of == local.of()) {
                drop(&session, &name).await?;
            }
        }
        Ok(())
    }

    /// Makes copies of the templates, to be switched in. The old ones of a killed command go before.
    pub(super) async fn copy_templates(&self, note: &Note) -> Result<(), PresetError> {
        self.phase("copy");
        let session = self.session().await?;
        self.drop_left().await?;
        let strategy = if server_major(&session).await? >= 15 { " strategy file_copy" } else { "" };
        for (n, Template { template, .. }) in note.templates.iter().enumerate() {
            let next = format!("{PREFIX}next_{n}");
            let (from, to) = (quote_identifier(template), quote_identifier(&next));
            self.run.unless_stopped(ran(&session, &format!("create database {to} template {from}{strategy}"))).await??;
            // A copy has its maker's rights and no settings.
            let (template, next) = (quote_literal(template), quote_literal(&next));
            ran(
                &session,
                &format!(
                    "do $do$ begin
                        execute (select format('alter database %I owner to %I', {next}, rolname)
                            from pg_database d join pg_roles r on r.oid = d.datdba where datname = {template});
                        update pg_database n set datacl = t.datacl, datconnlimit = t.datconnlimit
                            from pg_database t where n.datname = {next} and t.datname = {template};
                        insert into pg_db_role_setting select n.oid, setrole, setconfig from pg_db_role_setting s
                            join pg_database t on t.oid = s.setdatabase, pg_database n where t.datname = {template} and n.datname = {next};
                    end $do$"
                ),
            )
            .await?;
        }
        Ok(())
    }

    /// Gives the copies the databases' names, all at once.
    pub(super) async fn switch_templates(&self, note: &Note) -> Result<(), PresetError> {
        self.phase("switch");
        let mut session = self.session().await?;
        let mut sql = String::new();
        for (n, database) in user_databases(&session).await?.iter().enumerate() {
            sql.push_str(&format!("alter database {} rename to {PREFIX}old_{n};", quote_identifier(database)));
        }
        for (n, Template { database, .. }) in note.templates.iter().enumerate() {
            sql.push_str(&format!("alter database {PREFIX}next_{n} rename to {};", quote_identifier(database)));
        }
        self.renamed(&mut session, &sql).await
    }

    /// Drops what was switched out, or never in.
    pub(super) async fn drop_left(&self) -> Result<(), PresetError> {
        let session = self.session().await?;
        let sql = "select datname::text from pg_database where starts_with(datname, $1) or starts_with(datname, $2)";
        let (next, old) = (format!("{PREFIX}next_"), format!("{PREFIX}old_"));
        for row in session.query(sql, &[&next, &old]).await.doing(|| "listing databases".to_owned())? {
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
