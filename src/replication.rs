//! The engines behind the replication kinds.
//!
//! - [`settings`]: source, target, and which table is copied how
//! - [`binary`]: which columns may be copied in COPY's binary format
//! - [`ddl`]: a database's definitions, written from its catalogue
//! - [`full`]: everything, streamed, into the target
//! - [`incremental`]: what was appended since the last run
//! - [`kindness`]: what spares the source
//! - [`learning_content`]: an HTTP API's JSON into tables
//! - [`schema_export`]: definitions only, into a catalogue database
//! - [`projection`]: what of a table leaves the source
//! - [`verify`]: whether the copy is the source, and the repair of what is not
//! - [`rules`]: which columns are masked and which rows are left behind
//! - [`production`]: makes sure that nothing is written to the source

pub mod binary;
pub mod ddl;
pub mod full;
pub mod incremental;
pub mod kindness;
pub mod learning_content;
pub mod production;
pub mod projection;
pub mod rules;
pub mod schema_export;
pub mod settings;
pub mod verify;
