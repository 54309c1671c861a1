//! Schedules: declared by kinds, reconciled with the repeatables in Redis.

use crate::queue::JobOptions;

/// When a kind runs by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Cron expression in Bull's dialect ([`crate::cron`]).
    pub cron: String,
    /// IANA time zone.
    pub time_zone: String,
    /// Options of the jobs it adds.
    pub options: JobOptions,
}
