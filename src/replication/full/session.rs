//! Sessions with both databases, set up alike, and cancelled together when the run stops.

use std::sync::{Arc, Mutex};

use crate::postgres::{Canceller, Connection, Database, Doing, PostgresError};
use crate::replication::rules::Rules;
use crate::throttle::Throttle;

/// Settings of a source session: nothing may end it by a timer, and text forms are the same as on
/// the target, every night. `row_security = off` makes the server refuse to hide rows from us.
const SOURCE: &str = "
('search_path', ''), ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
('idle_session_timeout', '0'), ('lock_timeout', '60s'), ('row_security', 'off'), ('datestyle', 'ISO'), ('intervalstyle', 'postgres'),
('extra_float_digits', '3'), ('synchronize_seqscans', 'off'), ('xmloption', 'content'), ('timezone', 'UTC'), ('bytea_output', 'hex'),
('lc_monetary', 'C'), ('jit', 'off'), ('standard_conforming_strings', 'on')";

/// Settings of a target session. A lost commit after a crash is no harm (the run has failed then),
/// so commits do not wait for the disk. lz4 halves the CPU of large values (docs/benchmarks.md).
const TARGET: &str = "
('search_path', ''), ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
('idle_session_timeout', '0'), ('lock_timeout', '300s'), ('row_security', 'off'), ('datestyle', 'ISO'), ('intervalstyle', 'postgres'),
('xmloption', 'content'), ('check_function_bodies', 'off'), ('synchronous_commit', 'off'), ('client_min_messages', 'warning'),
('standard_conforming_strings', 'on'), ('default_tablespace', ''), ('default_table_access_method', 'heap'),
('transform_null_equals', 'off'), ('default_transaction_read_only', 'off'), ('jit', 'off')";

/// What the sorts of all workers on the target may take together, and what each has at least, in MB.
const SORTS_MB: usize = 512;
const LEAST_MB: usize = 128;

/// A session with a target for something else than a copy.
pub(super) async fn for_target(database: &Database, purpose: &str) -> Result<Connection, PostgresError> {
    set_up(database.connect(purpose).await?, database, TARGET).await
}

async fn set_up(session: Connection, database: &Database, settings: &str) -> Result<Connection, PostgresError> {
    // Joined with pg_settings, because older servers do not know all of these.
    let sql = format!(
        "select set_config(s.name, v.value, false) from (values {settings}) v(name, value) join pg_settings s on lower(s.name) = v.name"
    );
    session.execute(&sql, &[]).await.doing(|| format!("setting up a session with {database}"))?;
    Ok(session)
}

/// Opens sessions and remembers how to cancel what they do.
pub(in crate::replication) struct Sessions<'d> {
    source: &'d Database,
    target: &'d Database,
    rules: &'d Rules,
    throttle: Option<Arc<Throttle>>,
    cancellers: Mutex<Vec<Canceller>>,
}

impl<'d> Sessions<'d> {
    pub(in crate::replication) fn new(source: &'d Database, target: &'d Database, rules: &'d Rules) -> Self {
        Sessions { source, target, rules, throttle: None, cancellers: Mutex::default() }
    }

    /// What is copied out of the source waits for it.
    pub(super) fn throttled(mut self, throttle: Option<Arc<Throttle>>) -> Self {
        self.throttle = throttle;
        self
    }

    pub(super) fn throttle(&self) -> Option<&Throttle> {
        self.throttle.as_deref()
    }

    /// A source session without transaction.
    pub(in crate::replication) async fn source(&self) -> Result<Connection, PostgresError> {
        Ok(self.open(self.source, SOURCE).await?.throttled(self.throttle.clone()))
    }

    /// A source session inside the exported snapshot.
    pub(in crate::replication) async fn source_in(&self, snapshot: &str) -> Result<Connection, PostgresError> {
        let session = self.source().await?;
        let sql = format!(
            "begin isolation level repeatable read read only; set transaction snapshot {}",
            crate::postgres::quote_literal(snapshot)
        );
        session.batch_execute(&sql).await.doing(|| "entering the source's snapshot".to_owned())?;
        self.rules.enter(&session).await?;
        Ok(session)
    }

    /// A target session.
    pub(in crate::replication) async fn target(&self) -> Result<Connection, PostgresError> {
        self.target_with(LEAST_MB).await
    }

    /// A target session that sorts in `memory` MB, or in what the server gives where that is more.
    async fn target_with(&self, memory: usize) -> Result<Connection, PostgresError> {
        let session = self.open(self.target, TARGET).await?;
        let sql = format!(
            "select set_config(name, case name when 'maintenance_work_mem' then '{memory}MB' else 'lz4' end, false) from pg_settings \
             where (name = 'maintenance_work_mem' and setting::bigint < {}) \
             or (name = 'default_toast_compression' and 'lz4' = any(enumvals))",
            memory * 1024
        );
        session.execute(&sql, &[]).await.doing(|| "setting up a target session".to_owned())?;
        Ok(session)
    }

    /// A target session for one of `workers` that work side by side. They are the parallelism then: the
    /// server's own, within a statement, costs 1.3 times the CPU.
    pub(in crate::replication) async fn target_for_one_of(&self, workers: usize) -> Result<Connection, PostgresError> {
        let session = self.target_with((SORTS_MB / workers.max(1)).max(LEAST_MB)).await?;
        if workers > 1 {
            let sql = "set max_parallel_maintenance_workers = 0; set max_parallel_workers_per_gather = 0";
            session.batch_execute(sql).await.doing(|| "setting up a target session".to_owned())?;
        }
        Ok(session)
    }

    async fn open(&self, database: &Database, settings: &str) -> Result<Connection, PostgresError> {
        let session = database.connect("full replication").await?;
        self.cancellers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(session.canceller());
        set_up(session, database, settings).await
    }

    /// Asks both servers to give up whatever our sessions still do.
    pub(in crate::replication) async fn cancel_all(&self) {
        let cancellers = std::mem::take(&mut *self.cancellers.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        futures_util::future::join_all(cancellers.iter().map(Canceller::cancel)).await;
    }
}
