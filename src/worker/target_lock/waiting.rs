//! Tells when a run waits for somebody else's session on the target. A reader that left its
//! transaction open holds every lock it ever took, and without a word the run would just stand still.

use std::sync::Arc;
use std::time::Duration;

use crate::postgres::Connection;
use crate::worker::run::Run;

/// Between two looks. A wait that is shorter than this is nobody's concern.
const LOOK: Duration = Duration::from_secs(10);
/// A wait that goes on is told again after this many looks.
const AGAIN: u32 = 30;

/// Sessions of ours in this database that wait for a lock, and the sessions of others that are in the
/// way. The lock that the caller holds makes sure that ours are this run's. Of another role's
/// session only the process and the user can be seen.
const BLOCKED: &str = "select distinct b.pid, coalesce(b.usename, '?')::text, coalesce(b.application_name, ''), coalesce(b.state, ''), \
    coalesce(extract(epoch from clock_timestamp() - b.xact_start), 0)::int8 \
    from pg_stat_activity a cross join lateral unnest(pg_blocking_pids(a.pid)) blocker(pid) join pg_stat_activity b on b.pid = blocker.pid \
    where a.datname = current_database() and a.wait_event_type = 'Lock' and a.application_name like 'bullwork: %' \
    and coalesce(b.application_name, '') not like 'bullwork: %' order by 1";

/// Looks until it is dropped; ends when the session does.
pub(super) async fn tell(session: Arc<Connection>, run: Run) {
    look_every(LOOK, &session, &run).await;
}

async fn look_every(pause: Duration, session: &Connection, run: &Run) {
    let mut known: Vec<i32> = Vec::new();
    let mut looks = 0;
    loop {
        tokio::time::sleep(pause).await;
        let Ok(rows) = session.query(BLOCKED, &[]).await else { return };
        let blockers: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        looks += 1;
        if blockers != known || looks >= AGAIN {
            looks = 0;
            if !rows.is_empty() {
                let told: Vec<String> = rows.iter().map(named).collect();
                run.warn(format!(
                    "waiting for a lock on the target that another session holds: {}; end its transaction, or the session with pg_terminate_backend",
                    told.join("; ")
                ));
            }
        }
        known = blockers;
    }
}

fn named(row: &tokio_postgres::Row) -> String {
    let (pid, user, application, state, seconds): (i32, &str, &str, &str, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    let mut text = format!("server process {pid} of {user}");
    if !application.is_empty() {
        text.push_str(&format!(", \"{application}\""));
    }
    if !state.is_empty() {
        text.push_str(&format!(", {state}, in a transaction for {seconds} s"));
    }
    text
}
