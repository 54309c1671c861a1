//! The list of servers.

use serde::{Deserialize, Serialize};

use super::{Book, Ledger, LedgerError, Result, journal, refused, server_state};
use crate::releases::states::ServerState;
use crate::ssh::Host;
use crate::state::{Row, Statement, Value};

/// What a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Where releases come from; there is one.
    Developers,
    /// Where they are tried, and from where they go on; there is one.
    Beta,
    /// Where they serve.
    Business,
}

impl Role {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Developers => "developers",
            Role::Beta => "beta",
            Role::Business => "business",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        [Role::Developers, Role::Beta, Role::Business]
            .into_iter()
            .find(|role| role.word() == word)
            .ok_or_else(|| format!("`{word}` is no role: developers, beta or business"))
    }
}

/// A server as a person describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewServer {
    /// What it is called here.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its host name or address.
    pub host: String,
    /// Who logs in.
    pub user: String,
    /// Port of SSH.
    #[serde(default = "ssh_port")]
    pub port: u16,
    /// The project directory, absolute.
    pub project: String,
    /// The archive of the project, absolute; business servers have one: `/backups/site.tar.gz`.
    #[serde(default)]
    pub backup: Option<String>,
}

fn ssh_port() -> u16 {
    22
}

/// A server, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What it is called here.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// How to get there.
    pub host: Host,
    /// The project directory.
    pub project: String,
    /// The archive of the project.
    pub archive: Option<String>,
    /// Where it stands.
    pub state: ServerState,
    /// Release that it works for, or worked for last.
    pub release: Option<i64>,
    /// What is done there: `copy` or `rollback`.
    pub task: Option<String>,
    /// Who does it.
    pub owner: Option<String>,
    /// Until when, unless it is renewed.
    pub lease_until: i64,
    /// Why it failed.
    pub problem: Option<String>,
}

/// Endings of archives, and what compresses them.
pub const ARCHIVES: &[(&str, &str)] = &[(".tar.gz", "gzip"), (".tgz", "gzip"), (".tar.zst", "zstd -q -3 -T0"), (".tar", "")];

impl NewServer {
    /// What is wrong with it.
    ///
    /// # Errors
    /// The field, and what would be right.
    pub fn check(&self) -> std::result::Result<(), String> {
        let named = |what: String| format!("server `{}`: {what}", self.name);
        let plain = self.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && self.name.len() <= 63
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !plain {
            return Err(named(
                "its name must be letters, digits, `.`, `_` and `-`, 63 at most, and begin with a letter or digit".to_owned(),
            ));
        }
        Host { address: self.host.clone(), user: self.user.clone(), port: self.port }.check().map_err(named)?;
        let absolute = |path: &str| {
            path.starts_with('/') && !path.contains(['\n', '\0']) && path.len() > 1 && !path.split('/').any(|part| part == "..")
        };
        if !absolute(&self.project) {
            return Err(named(format!("the project directory `{}` must be an absolute path, and not `/` itself", self.project)));
        }
        if self.port == 0 {
            return Err(named("its port must be 1 to 65535".to_owned()));
        }
        let Some(archive) = &self.backup else { return Ok(()) };
        let project = self.project.trim_end_matches('/');
        if self.role != Role::Business {
            return Err(named("only business servers are archived".to_owned()));
        }
        if !absolute(archive)
            || !ARCHIVES.iter().any(|(ending, _)| archive.ends_with(ending) && !archive.ends_with(&format!("/{ending}")))
        {
            return Err(named(format!(
                "the archive `{archive}` must be an absolute path that ends with .tar.gz, .tgz, .tar.zst or .tar"
            )));
        }
        if archive.starts_with(&format!("{project}/")) {
            return Err(named("the archive lies in the project directory, and would hold itself".to_owned()));
        }
        Ok(())
    }
}

const COLUMNS: &str = "select name, role, address, login, port, project, archive, state, release_id, task, owner, lease_until, problem from release_servers order by role, name";

fn server(row: &Row) -> Result<Server> {
    Ok(Server {
        name: row.text(0),
        role: row.text(1).parse().map_err(LedgerError::Unknown)?,
        host: Host { address: row.text(2), user: row.text(3), port: u16::try_from(row.integer(4)).unwrap_or(22) },
        project: row.text(5),
        archive: row.optional(6),
        state: server_state(&row.text(7))?,
        release: row.optional(8).map(|_| row.integer(8)),
        task: row.optional(9),
        owner: row.optional(10),
        lease_until: row.integer(11),
        problem: row.optional(12),
    })
}

impl Ledger {
    /// All servers.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn servers(&self) -> Result<Vec<Server>> {
        self.state.query(COLUMNS, []).await?.iter().map(server).collect()
    }

    /// The server called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn server(&self, name: &str) -> Result<Server> {
        let servers = self.servers().await?;
        let names = servers.iter().map(|server| server.name.clone()).collect::<Vec<_>>().join(", ");
        let known = if names.is_empty() {
            "none is known: `bullwork release servers add`".to_owned()
        } else {
            format!("there are {names}")
        };
        servers
            .into_iter()
            .find(|server| server.name == name)
            .ok_or(LedgerError::Refused(format!("no server is called `{name}`; {known}")))
    }

    /// The one server of a role.
    ///
    /// # Errors
    /// When there is none.
    pub async fn the(&self, role: Role) -> Result<Server> {
        let found = self.servers().await?.into_iter().find(|server| server.role == role);
        found.ok_or_else(|| {
            let role = role.word();
            LedgerError::Refused(format!(
                "there is no server with the role {role}: `bullwork release servers add NAME --role {role} …`"
            ))
        })
    }

    /// Adds all of them, or none.
    ///
    /// # Errors
    /// When one is wrong, its name or its place is taken; all that is wrong is told.
    pub async fn add_servers(&self, servers: &[NewServer]) -> Result<()> {
        const ADD: &str = "insert into release_servers (name, role, only_one, address, login, port, project, archive, state, claims) \
                           values ($1, $2, $3, $4, $5, $6, $7, $8, 'idle', 0) on conflict do nothing";
        let wrong: Vec<String> = servers.iter().filter_map(|server| server.check().err()).collect();
        if !wrong.is_empty() {
            return refused(wrong.join("; "));
        }
        let known = self.servers().await?;
        let places = known.iter().map(|other| (&other.name, &other.host.address, other.host.port, &other.project));
        let mut places: Vec<_> = places.chain(servers.iter().map(|new| (&new.name, &new.host, new.port, &new.project))).collect();
        places.sort_by_key(|(name, host, port, project)| (*host, *port, project.trim_end_matches('/'), *name));
        let twice = places.windows(2).find(|two| {
            let [(one, host, port, project), (other, other_host, other_port, other_project)] = two else { return false };
            let same = project.trim_end_matches('/') == other_project.trim_end_matches('/');
            same && one != other && (host, port) == (other_host, other_port)
        });
        if let Some([(one, ..), (other, host, port, project)]) = twice {
            return refused(format!("`{one}` and `{other}` would be one place, {project} on {host}, port {port}"));
        }
        let add = |server: &NewServer| {
            let role = server.role.word();
            let values: [Value; 8] = [
                server.name.as_str().into(),
                role.into(),
                (server.role != Role::Business).then_some(role).into(),
                server.host.as_str().into(),
                server.user.as_str().into(),
                i64::from(server.port).into(),
                server.project.as_str().into(),
                server.backup.as_deref().into(),
            ];
            Statement::new(ADD, values)
        };
        if self.state.all_or_nothing(servers.iter().map(add).collect()).await? {
            return Ok(());
        }
        let known = self.servers().await?;
        let mut taken = Vec::new();
        for server in servers {
            if known.iter().any(|other| other.name == server.name) {
                taken.push(format!(
                    "there is a server `{}` already (`bullwork release servers remove` takes it off the list)",
                    server.name
                ));
            } else if let Some(other) = known.iter().find(|other| other.role == server.role && server.role != Role::Business) {
                taken.push(format!("`{}` has the role {} already, and there is one such server", other.name, server.role.word()));
            }
        }
        if taken.is_empty() {
            taken.push("a name, or the role developers or beta, is there twice".to_owned());
        }
        refused(taken.join("; "))
    }

    /// Frees a server whose rollback failed: it stays as it is.
    ///
    /// # Errors
    /// When it is not in error, or the unfinished release failed there.
    pub async fn free(&self, name: &str, actor: &str) -> Result<()> {
        const FREE: &str = "update release_servers set state = 'idle', problem = null where name = $1 and state = 'error' and not exists \
                            (select 1 from releases where id = release_servers.release_id and unfinished = 1)";
        let server = self.server(name).await?;
        let mut statements = vec![Statement::new(FREE, [name.into()])];
        let line = format!("{}: freed as it is", ServerState::Idle);
        statements.extend(server.release.map(|id| journal(id, &Book::Server(name), actor, &line)));
        if self.state.all_or_nothing(statements).await? {
            return Ok(());
        }
        refused(match (server.state, server.release) {
            (ServerState::Error, Some(id)) => format!(
                "release {id} is unfinished, and failed at `{name}`: `bullwork release retry {id}`, or `abandon {id}`, which frees it"
            ),
            (state, _) => format!("server `{name}` is {state}: only one in error is freed"),
        })
    }

    /// Takes a server off the list.
    ///
    /// # Errors
    /// When it works, or the unfinished release needs it.
    pub async fn remove_server(&self, name: &str) -> Result<()> {
        const REMOVE: &str = "delete from release_servers where name = $1 and state in ('idle', 'error') and not exists \
                              (select 1 from releases where unfinished = 1)";
        self.server(name).await?;
        if self.state.execute(REMOVE, [name.into()]).await? == 1 {
            return Ok(());
        }
        refused(format!("server `{name}` works, or a release is unfinished (`bullwork release status`)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_could_do_harm_is_refused() {
        let right = NewServer {
            name: "web-1".to_owned(),
            role: Role::Business,
            host: "web1.example".to_owned(),
            user: "deploy".to_owned(),
            port: 22,
            project: "/srv/site".to_owned(),
            backup: Some("/backups/site.tar.gz".to_owned()),
        };
        right.check().unwrap();
        type Change = fn(&mut NewServer);
        let wrong: [(&str, Change); 9] = [
            ("its name must be", |s| s.name = "-rf".to_owned()),
            ("is no host", |s| s.host = "-oProxyCommand=x".to_owned()),
            ("is no user", |s| s.user = "a b".to_owned()),
            ("absolute path", |s| s.project = "site".to_owned()),
            ("absolute path", |s| s.project = "/srv/../etc".to_owned()),
            ("ends with .tar.gz", |s| s.backup = Some("/backups/site.zip".to_owned())),
            ("ends with .tar.gz", |s| s.backup = Some("/backups/.tar.gz".to_owned())),
            ("would hold itself", |s| s.backup = Some("/srv/site/b.tar".to_owned())),
            ("only business", |s| s.role = Role::Beta),
        ];
        for (text, change) in wrong {
            let mut server = right.clone();
            change(&mut server);
            let error = server.check().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
