//! Each operator verb, once; the faces call these.

pub mod parse_logs;
