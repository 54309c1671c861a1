//! Restoring whole clusters when somebody asks: one at a time, every step recorded, nothing destroyed before everything that
//! can be checked was checked. The work behind tasks of the restore service; faces reach it through `ops`.
//!
//! ```text
//!  a task:  accepting ─► queued ─► in_progress ─► completed | error | canceled
//!  steps:   choose ─► check ─► stop ─► empty ─► restore ─► start ─► wait ─► notify
//!  target:  ───── untouched ─────│ stopped│── incomplete ──│ restored ─│ running
//! ```
//!
//! What is true of a target at each moment follows from the steps that are recorded, and those are on the disk before they
//! begin ([`steps`]). So a worker may die anywhere: whoever looks next knows what it left. A task whose worker died is begun
//! again if nothing had been changed yet; later, it becomes an error that tells the target's condition, or, with `resume`, goes on
//! incrementally with what is there.
//!
//! - [`config`]: `config.json`, the environment over it, all mistakes in one message
//! - [`target`]: which cluster a request means, and whether anybody may restore there
//! - [`tasks`]: tasks and their history, in the state store
//! - [`steps`]: what was done, and what the target is like then
//! - [`engine`]: what a backup tool does for us: [`probackup`], [`pgbackrest`], [`archive`]
//! - [`remote`]: the target's machine, over SSH; [`leash`]: programs that end when we do
//! - [`service`]: one task from its beginning to its end
//! - [`notify`]: who hears of the end

pub mod archive;
pub mod config;
pub mod engine;
pub mod leash;
pub mod notify;
pub mod pgbackrest;
pub mod probackup;
pub mod remote;
pub mod service;
pub mod steps;
pub mod target;
pub mod tasks;
