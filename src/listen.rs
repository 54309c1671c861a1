//! The TCP face of the restore service: one line asks, one answer comes, the connection ends. `nc` is a client.
//!
//! - [`protocol`]: what a line means and what is answered, without any input or output
//! - [`server`]: connections, and their limits

pub mod protocol;
pub mod server;
