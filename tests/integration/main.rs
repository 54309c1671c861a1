//! Everything that needs real servers. One binary, so that it links once; each test starts the
//! servers it needs, on free ports (`support`).

mod support;

mod bull;
mod chain;
mod cli;
mod cron;
mod disk_full;
mod fixtures;
mod full_replication;
mod incremental_replication;
mod layers;
mod learning_content;
mod notification;
mod packaging;
mod parse_logs;
mod queue;
mod repl;
mod scheduler;
mod schema_export;
mod worker;
