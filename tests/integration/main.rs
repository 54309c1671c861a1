//! Everything that needs real servers. One binary, so that it links once; each test starts the
//! servers it needs, on free ports (`support`).

#![expect(unreachable_pub, reason = "one binary: everything in it is private to it anyway")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

mod backup;
mod backup_reading;
mod binary;
mod bull;
mod chain;
mod cli;
mod cron;
mod ddl;
mod disk_full;
mod fixtures;
mod full_replication;
mod incremental_replication;
mod layers;
mod learning_content;
mod majors;
mod notification;
mod packaging;
mod parse_logs;
mod postgres;
mod presets;
mod queue;
mod queue_consumer;
mod queue_turns;
mod redis_addresses;
mod redis_cluster;
mod redis_consumer_faults;
mod redis_faults;
mod redis_sentinel;
mod releases;
mod repl;
mod restore_service;
mod rules;
mod scheduler;
mod schema_export;
mod seal;
mod state;
mod storage;
mod verify;
mod worker;
mod worker_hostile;
