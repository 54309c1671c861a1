//! The queue against the wire format: what Redis holds and what is published after each operation.

mod bench;
mod events;
mod hostile;
mod limits;
mod many;
mod operators;
mod places;
mod schedules;
mod transitions;
mod vectors;
