//! The steps of servers: who works at one, and how that ends.
//!
//! A worker 2 *claims* a server for the time of a lease, renews it, and *finishes*. A lease that ran out is anybody's: the
//! worker is dead, or stood still for longer than it may. Whoever lost a lease finds out at its next renewal, and the room in the
//! project directory names the owner too, so that a late hand puts nothing in place (`switch.sh`).

use std::time::Duration;

use super::{Book, Ledger, Result, Row, Statement, Value, journal, millis, now, refused};
use crate::releases::states::{ReleaseState, ServerState};

/// A server that is ours for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub server: String,
    /// For this release.
    pub release: i64,
    /// `copy` or `rollback`.
    pub task: String,
    /// Who we are; another claim has another owner.
    pub owner: String,
}

/// What a claim came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is ours.
    Ours(Claim),
    /// Somebody works at it, for so many milliseconds more at least.
    Busy(i64),
    /// There is nothing to do, or not yet.
    Nothing,
}

/// May be claimed: it waits, or its lease ran out ($1 is the time), and no server of an earlier wave is to be done first.
const CLAIMABLE: &str = "select name from release_servers where (state = 'copying' or (state = 'locked' and lease_until < $1)) \
                         and (task = 'rollback' or not exists \
                         (select 1 from release_targets me join release_targets earlier on earlier.release_id = me.release_id \
                         and earlier.wave < me.wave and earlier.done_at is null \
                         where me.release_id = release_servers.release_id and me.server = release_servers.name)) order by name";
const CLAIM: &str = "update release_servers set state = 'locked', owner = $2, lease_until = $3, claims = claims + 1 \
                     where name = $1 and (state = 'copying' or (state = 'locked' and lease_until < $4)) \
                     and (task = 'rollback' or not exists \
                     (select 1 from release_targets me join release_targets earlier on earlier.release_id = me.release_id \
                     and earlier.wave < me.wave and earlier.done_at is null \
                     where me.release_id = release_servers.release_id and me.server = release_servers.name))";
const RENEW: &str = "update release_servers set lease_until = $3 where name = $1 and owner = $2 and state = 'locked'";
const END: &str = "update release_servers set state = $3, owner = null, lease_until = null, problem = $4 \
                   where name = $1 and owner = $2 and state = 'locked'";

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Ledger {
    /// Servers that may be claimed now.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn claimable(&self) -> Result<Vec<String>> {
        Ok(self.state.query(CLAIMABLE, [Value::from(millis())]).await?.iter().map(|row| row.text(0)).collect())
    }

    /// Makes the server ours, if it may be.
    ///
    /// # Errors
    /// When the store cannot be used, or there is no such server.
    pub async fn claim(&self, name: &str, owner: &str, lease: Duration) -> Result<Claimed> {
        let before = self.server(name).await?;
        let (Some(release), Some(task)) = (before.release, before.task.clone()) else { return Ok(Claimed::Nothing) };
        let now = millis();
        let taken_over = match (before.state, &before.owner) {
            (ServerState::Locked, Some(other)) => format!(", because the lease of {other} ran out"),
            _ => String::new(),
        };
        let line = format!("{}: {task}{taken_over}", ServerState::Locked);
        let statements = vec![
            Statement::new(CLAIM, [name.into(), owner.into(), now.saturating_add(ms(lease)).into(), now.into()]),
            journal(release, &Book::Server(name), owner, &line),
        ];
        if !self.state.all_or_nothing(statements).await? {
            let after = self.server(name).await?;
            return Ok(match after.state {
                ServerState::Locked => Claimed::Busy((after.lease_until - now).max(1)),
                _ => Claimed::Nothing,
            });
        }
        // What it is to do may have changed since it was looked at, though not any more.
        let held = self.server(name).await?;
        let (release, task) = (held.release.unwrap_or(release), held.task.unwrap_or(task));
        Ok(Claimed::Ours(Claim { server: name.to_owned(), release, task, owner: owner.to_owned() }))
    }

    /// Keeps it for another lease; whether it still is ours.
    ///
    /// # Errors
    /// When the store cannot be used, which does not say that it is lost.
    pub async fn renew(&self, claim: &Claim, lease: Duration) -> Result<bool> {
        let until = millis().saturating_add(ms(lease));
        Ok(self.state.execute(RENEW, [claim.server.as_str().into(), claim.owner.as_str().into(), until.into()]).await? == 1)
    }

    /// Its files may begin to change: whether it still is ours.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn touch(&self, claim: &Claim, lease: Duration) -> Result<bool> {
        const TOUCH: &str =
            "update release_targets set touched_at = coalesce(touched_at, $3) where release_id = $1 and server = $2";
        let until = millis().saturating_add(ms(lease));
        let statements = vec![
            Statement::new(RENEW, [claim.server.as_str().into(), claim.owner.as_str().into(), until.into()]),
            Statement::new(TOUCH, [claim.release.into(), claim.server.as_str().into(), now().into()]),
        ];
        Ok(self.state.all_or_nothing(statements).await?)
    }

    /// `locked` to `copying`: another worker may go on.
    ///
    /// # Errors
    /// When the store cannot be used; the lease runs out by itself.
    pub async fn give_back(&self, claim: &Claim) -> Result<bool> {
        let (name, owner) = (claim.server.as_str(), claim.owner.as_str());
        let line = format!("{}: interrupted, another worker goes on", ServerState::Copying);
        let statements = vec![
            Statement::new(END, [name.into(), owner.into(), ServerState::Copying.word().into(), Value::Null]),
            journal(claim.release, &Book::Server(name), owner, &line),
        ];
        Ok(self.state.all_or_nothing(statements).await?)
    }

    /// `locked` to `idle` or `error`: whether it still was ours.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn finish(&self, claim: &Claim, result: std::result::Result<&str, &str>) -> Result<bool> {
        const DONE: &str = "update release_targets set done_at = $3, touched_at = coalesce(touched_at, $3) where release_id = $1 and server = $2";
        const UNDONE: &str = "update release_targets set done_at = null, touched_at = null where release_id = $1 and server = $2";
        let (name, owner) = (claim.server.as_str(), claim.owner.as_str());
        let (state, problem, line) = match result {
            Ok(line) => (ServerState::Idle, None, line),
            Err(problem) => (ServerState::Error, Some(crate::redact::scrub(problem)), problem),
        };
        let mut statements = vec![
            Statement::new(END, [name.into(), owner.into(), state.word().into(), problem.into()]),
            journal(claim.release, &Book::Server(name), owner, &format!("{state}: {line}")),
        ];
        let of: [Value; 2] = [claim.release.into(), name.into()];
        match (result, claim.task.as_str()) {
            (Ok(_), "rollback") => statements.push(Statement::new(UNDONE, of)),
            (Ok(_), _) => statements.push(Statement::new(DONE, of.into_iter().chain([now().into()]))),
            _ => {}
        }
        Ok(self.state.all_or_nothing(statements).await?)
    }

    /// Ends what is at its end: later waves are held back when a server before them failed; the release is `completed` when all
    /// servers are done, `production_error` when none works any more and one is not. May be called by anybody at any time.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn settle(&self, id: i64, actor: &str) -> Result<ReleaseState> {
        const HELD: &str = "select me.server from release_targets me join release_servers own on own.name = me.server \
                            where me.release_id = $1 and own.release_id = $1 and own.task = 'copy' and own.state = 'copying' and exists \
                            (select 1 from release_targets earlier join release_servers failed on failed.name = earlier.server \
                            where earlier.release_id = $1 and earlier.wave < me.wave and earlier.done_at is null \
                            and failed.release_id = $1 and failed.state = 'error')";
        const HOLD: &str = "update release_servers set state = 'idle', task = null where name = $1 and release_id = $2 and task = 'copy' and state = 'copying'";
        const COMPLETE: &str = "update releases set state = 'completed', unfinished = null, problem = null \
                                where id = $1 and state = 'production_copying' \
                                and not exists (select 1 from release_targets where release_id = $1 and done_at is null)";
        const FAIL: &str = "update releases set state = 'production_error', problem = $2 where id = $1 and state = 'production_copying' \
                            and exists (select 1 from release_targets where release_id = $1 and done_at is null) \
                            and not exists (select 1 from release_servers where release_id = $1 and task = 'copy' and state in ('copying', 'locked'))";
        for row in self.state.query(HELD, [Value::from(id)]).await? {
            let name = row.text(0);
            let line = format!("{}: held back, because a server before it failed", ServerState::Idle);
            let hold = Statement::new(HOLD, [name.as_str().into(), id.into()]);
            self.state.all_or_nothing(vec![hold, journal(id, &Book::Server(&name), actor, &line)]).await?;
        }
        let line = ReleaseState::Completed.to_string();
        let complete = vec![Statement::new(COMPLETE, [id.into()]), journal(id, &Book::Production, actor, &line)];
        if !self.state.all_or_nothing(complete).await? {
            let problem = self.failures(id).await?;
            let line = format!("{}: {problem}", ReleaseState::ProductionError);
            let fail = Statement::new(FAIL, [id.into(), problem.into()]);
            self.state.all_or_nothing(vec![fail, journal(id, &Book::Production, actor, &line)]).await?;
        }
        Ok(self.release(id).await?.state)
    }

    /// Which servers failed, and why.
    async fn failures(&self, id: i64) -> Result<String> {
        let servers = self.servers().await?;
        let targets = self.targets(id).await?;
        let of = |name: &str| servers.iter().find(|server| server.name == name && server.release == Some(id));
        let told = targets.iter().filter(|target| target.done_at.is_none()).map(|target| {
            let problem = of(&target.server).and_then(|server| server.problem.clone());
            let name = &target.server;
            match problem {
                None => format!("{name}: not begun"),
                // Most say by themselves where they met it.
                Some(problem) if problem.starts_with(&format!("{name}: ")) => problem,
                Some(problem) => format!("{name}: {problem}"),
            }
        });
        Ok(told.collect::<Vec<_>>().join("; "))
    }

    /// Ends what a release does, as a failure: by an order.
    ///
    /// # Errors
    /// When nothing works at it.
    pub async fn cancel(&self, id: i64, actor: &str) -> Result<ReleaseState> {
        const STOP: &str = "update release_servers set state = 'error', owner = null, lease_until = null, problem = $2 \
                            where name = $1 and release_id = $3 and state in ('copying', 'locked')";
        let problem = format!("cancelled by {actor}");
        let mut stopped = false;
        for server in self.servers().await?.into_iter().filter(|server| server.release == Some(id)) {
            let stop = Statement::new(STOP, [server.name.as_str().into(), problem.as_str().into(), id.into()]);
            let line = format!("{}: {problem}", ServerState::Error);
            stopped |= self.state.all_or_nothing(vec![stop, journal(id, &Book::Server(&server.name), actor, &line)]).await?;
        }
        let release = self.release(id).await?;
        match release.state {
            ReleaseState::ProductionCopying => return self.settle(id, actor).await,
            state => {
                if let Some(failed) = state.failed() {
                    stopped |= self.step(id, state, failed, actor, &problem, Some(&problem)).await?;
                }
            }
        }
        if stopped {
            Ok(self.release(id).await?.state)
        } else {
            refused(format!("release {id} is {}: nothing works at it", release.state))
        }
    }

    /// Has the servers get back what the release replaced: those in `only`, or all whose files it touched. Their names.
    ///
    /// # Errors
    /// When the release is not over, a later one touched the same server, or a server is in the way.
    pub async fn want_rollback(&self, id: i64, only: &[String], actor: &str) -> Result<Vec<String>> {
        const STANDS: &str = "update releases set rolled_back_at = rolled_back_at where id = $1 and state in ('completed', 'production_error', 'abandoned')";
        const TO_ROLLBACK: &str = "update release_servers set state = 'copying', release_id = $2, task = 'rollback', owner = null, problem = null \
                                   where name = $1 and (state = 'idle' or (state = 'error' and release_id = $2)) and not exists \
                                   (select 1 from release_targets later where later.server = $1 and later.release_id > $2 and later.touched_at is not null)";
        let release = self.release(id).await?;
        let touched =
            self.targets(id).await?.into_iter().filter(|target| target.touched_at.is_some()).map(|target| target.server);
        let servers: Vec<String> = touched.filter(|name| only.is_empty() || only.contains(name)).collect();
        if let (true, Some(at)) = (servers.is_empty(), &release.rolled_back_at) {
            return refused(format!("release {id} was rolled back at {at}: every server has what it had before"));
        }
        if servers.is_empty() {
            return refused(format!(
                "release {id} is {}, and has changed no file of a business server that is still as it left it",
                release.state
            ));
        }
        if let Some(name) = only.iter().find(|name| !servers.contains(name)) {
            return refused(format!("release {id} has changed no file of `{name}`"));
        }
        let mut statements = vec![
            Statement::new(STANDS, [id.into()]),
            journal(id, &Book::Production, actor, &format!("rollback of {}", servers.join(", "))),
        ];
        for server in &servers {
            statements.push(Statement::new(TO_ROLLBACK, [server.as_str().into(), id.into()]));
            statements.push(journal(id, &Book::Server(server), actor, &format!("{}: rollback", ServerState::Copying)));
        }
        if self.state.all_or_nothing(statements).await? {
            return Ok(servers);
        }
        const LATER: &str = "select server, max(release_id) from release_targets where release_id > $1 and touched_at is not null group by server";
        let later = self.state.query(LATER, [Value::from(id)]).await?;
        let later: Vec<String> = later
            .iter()
            .filter(|row: &&Row| servers.contains(&row.text(0)))
            .map(|row| format!("release {} changed {} later: roll it back first", row.integer(1), row.text(0)))
            .collect();
        if !later.is_empty() {
            return refused(later.join("; "));
        }
        let busy: Vec<String> = self
            .servers()
            .await?
            .into_iter()
            .filter(|server| servers.contains(&server.name) && server.state != ServerState::Idle)
            .map(|server| format!("{} is {}", server.name, server.state))
            .collect();
        refused(format!("release {id} is {}, and cannot be rolled back now: {}", release.state, busy.join(", ")))
    }

    /// Ends a rollback: once no server has anything of the release any more, a release that had failed is `abandoned`.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn settle_rollback(&self, id: i64, actor: &str) -> Result<()> {
        const BACK: &str = "update releases set rolled_back_at = $2, state = case when state = 'production_error' then 'abandoned' else state end, \
                            unfinished = null where id = $1 and rolled_back_at is null and state in ('completed', 'production_error', 'abandoned') \
                            and not exists (select 1 from release_targets where release_id = $1 and touched_at is not null) \
                            and not exists (select 1 from release_servers where release_id = $1 and task = 'rollback' and state <> 'idle')";
        const FREE: &str = "update release_servers set state = 'idle', problem = null where release_id = $1 and state = 'error' and task = 'copy'";
        let back = vec![
            Statement::new(BACK, [id.into(), now().into()]),
            journal(id, &Book::Production, actor, "rolled back: every server has what it had before"),
        ];
        if self.state.all_or_nothing(back).await? {
            self.state.execute(FREE, [Value::from(id)]).await?;
        }
        Ok(())
    }

    /// Releases whose rooms on this machine are of no use any more: they are over.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn over(&self) -> Result<Vec<i64>> {
        let rows = self.state.query("select id from releases where unfinished is null", []).await?;
        Ok(rows.iter().map(|row| row.integer(0)).collect())
    }
}
