//! The queue against the wire format: what Redis holds and what is published after each operation.

mod bench;
mod events;
mod hostile;
mod hostile_jobs;
mod hostile_keys;
pub(crate) mod hostile_large;
mod limits;
mod many;
mod model;
mod operators;
mod places;
pub(crate) mod poison;
mod schedules;
mod transitions;
mod traps;
mod vectors;
