//! The queue against the wire format: what Redis holds and what is published after each operation.

mod bench;
mod transitions;
