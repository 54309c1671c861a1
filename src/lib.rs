//! Bullwork runs a team's PostgreSQL chores as jobs in Bull-compatible Redis queues.
//!
//! The modules form layers; each may use those above it in this list, never those below
//! (`tests/integration/layers.rs` checks it):
//!
//! 1. plain: [`clock`] [`cron`] [`identity`] [`redact`] [`shutdown`] [`throttle`] [`logging`] [`config`]
//! 2. one outside system each: [`redis`] [`postgres`] [`process`] [`seal`] [`ssh`] [`storage`] [`webhook`] [`sentry`] [`state`]
//! 3. [`queue`]: Bull 4's layout in Redis, the only place that knows Redis keys
//! 4. engines: [`worker`] [`schedule`], which know kinds of job only through [`worker::JobKind`]
//! 5. work: [`jobs`], one file a kind, and the engines behind them: [`backup`], [`presets`], [`releases`], [`replication`], [`restore`]
//! 6. faces: [`ops`], each operator verb once, then [`cli`], [`repl`], [`web`] and [`listen`], which call it

pub mod clock;
pub mod config;
pub mod cron;
pub mod identity;
pub mod logging;
pub mod redact;
pub mod shutdown;
pub mod throttle;

pub mod postgres;
pub mod process;
pub mod redis;
pub mod seal;
pub mod sentry;
pub mod ssh;
pub mod state;
pub mod storage;
pub mod webhook;

pub mod queue;

pub mod schedule;
pub mod worker;

pub mod backup;
pub mod jobs;
pub mod presets;
pub mod releases;
pub mod replication;
pub mod restore;

pub mod cli;
pub mod listen;
pub mod ops;
pub mod repl;
pub mod web;
