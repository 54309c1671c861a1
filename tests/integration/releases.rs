//! Releases: real sshd and rsync, real state stores.

mod fleet;
mod kill;
mod ledger;
mod names;
mod network;
mod production;
mod rollback;
mod verbs;
