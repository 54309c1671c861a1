//! Every operator verb once; the command line, the REPL and the web page call these.
//!
//! - [`mod@backup`]: looking at archives
//! - [`check`]: what is wrong with the configuration as a whole
//! - [`store`]: the queues as an operator addresses them
//! - [`serve`]: what `background`, `worker` and `scheduler` run
//! - [`follow`]: one job, or its chain, to its end
//! - [`metrics`]: what `/metrics` says
//! - [`doctor`]: checks with a fix for each
//! - [`mod@reference`]: `sample.env` and `config show`
//! - [`mod@plain`]: texts of others, fit for a terminal
//! - [`preset`]: one command of `db-p`, here or by a worker
//! - [`release`]: releases as the controller handles them
//! - [`replication`]: the copies in the target
//! - [`restore_service`]: asking for a cluster's restore, looking, cancelling
//! - [`parse_logs`]: durations of a replication from its logs

pub mod backup;
pub mod check;
pub mod doctor;
pub mod follow;
pub mod metrics;
pub mod parse_logs;
pub mod plain;
pub mod preset;
pub mod reference;
pub mod release;
pub mod replication;
pub mod restore_service;
pub mod serve;
pub mod store;
