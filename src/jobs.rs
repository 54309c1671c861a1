//! The kinds of job, one file each.

pub mod full_replication;
pub mod incremental_replication;
pub mod learning_content_replication;
pub mod notification;
pub mod schema_export;
