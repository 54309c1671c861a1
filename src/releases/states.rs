//! States of releases and servers, and the steps between them.
//!
//! ```text
//! created ─► beta_copying ─► beta_done ─► production_release ─► production_backup ─► production_copying ─► completed
//!                │  ▲            │             │    ▲                 │                 │    ▲
//!                ▼  │            │             ▼    │                 ▼                 ▼    │
//!             beta_error         │           production_error ◄───────┴─────────────────┘    │
//!                │               ▼             │    └────────────── retry ───────────────────┘
//!                └────────► abandoned ◄────────┘
//!
//! server: idle ─► copying ─► locked ─► idle | error        (a lease that ran out: locked ─► copying)
//! ```

use std::fmt;
use std::str::FromStr;

macro_rules! states {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $state:ident $word:literal $shown:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $state,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$state),+];

            /// The identifier: in the state store, in JSON.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($name::$state => $word,)+ }
            }

            /// The name that people read.
            #[must_use]
            pub fn shown(self) -> &'static str {
                match self { $($name::$state => $shown,)+ }
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                $name::ALL.iter().copied().find(|s| s.word() == word).ok_or_else(|| format!("`{word}` is no state"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} («{}»)", self.word(), self.shown())
            }
        }
    };
}

states! {
    /// Where a release stands.
    ReleaseState {
        /// Made, and nothing begun.
        Created "created" "создан",
        /// Worker 1 copies from the developers' server to beta.
        BetaCopying "beta_copying" "бета-копирование",
        /// That failed.
        BetaError "beta_error" "ошибка бета-копирования",
        /// Beta has it, and its digests are known.
        BetaDone "beta_done" "бета-копирование завершено",
        /// The controller wants it on the business servers.
        ProductionRelease "production_release" "production-релиз",
        /// Worker 1 archives a business server's project.
        ProductionBackup "production_backup" "production-резервирование",
        /// Workers 2 copy, a server each.
        ProductionCopying "production_copying" "production-копирование",
        /// The backup failed, or a server did.
        ProductionError "production_error" "production-ошибка",
        /// Every server has it.
        Completed "completed" "завершено",
        /// Given up by the controller.
        Abandoned "abandoned" "снято",
    }
}

states! {
    /// Where a server stands.
    ServerState {
        /// Nothing to do.
        Idle "idle" "свободен",
        /// A worker 2 shall copy to it.
        Copying "copying" "копирование",
        /// A worker 2 does.
        Locked "locked" "блокировка",
        /// It failed.
        Error "error" "ошибка",
    }
}

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A person, by a verb.
    Controller,
    /// The `release` job.
    Worker1,
    /// A `release-copy` job.
    Worker2,
}

use ReleaseState as R;
use ServerState as S;

/// Every step that a release may take; there are no others.
pub const RELEASE_STEPS: &[(R, R, Who)] = &[
    (R::Created, R::BetaCopying, Who::Controller),
    (R::BetaCopying, R::BetaDone, Who::Worker1),
    (R::BetaCopying, R::BetaError, Who::Worker1),
    (R::BetaDone, R::ProductionRelease, Who::Controller),
    (R::ProductionRelease, R::ProductionBackup, Who::Worker1),
    (R::ProductionRelease, R::ProductionError, Who::Worker1),
    (R::ProductionBackup, R::ProductionCopying, Who::Worker1),
    (R::ProductionBackup, R::ProductionError, Who::Worker1),
    (R::ProductionCopying, R::Completed, Who::Worker2),
    (R::ProductionCopying, R::ProductionError, Who::Worker2),
    (R::BetaError, R::BetaCopying, Who::Controller),
    (R::ProductionError, R::ProductionRelease, Who::Controller),
    (R::ProductionError, R::ProductionCopying, Who::Controller),
    (R::BetaError, R::Abandoned, Who::Controller),
    (R::ProductionError, R::Abandoned, Who::Controller),
    (R::BetaDone, R::Abandoned, Who::Controller),
    // Cancelled while it was worked at.
    (R::BetaCopying, R::BetaError, Who::Controller),
    (R::ProductionRelease, R::ProductionError, Who::Controller),
    (R::ProductionBackup, R::ProductionError, Who::Controller),
    (R::ProductionCopying, R::ProductionError, Who::Controller),
];

/// Every step that a server may take.
pub const SERVER_STEPS: &[(S, S, Who)] = &[
    (S::Idle, S::Copying, Who::Worker1),
    (S::Copying, S::Locked, Who::Worker2),
    (S::Locked, S::Idle, Who::Worker2),
    (S::Locked, S::Error, Who::Worker2),
    // Interrupted, or its lease ran out.
    (S::Locked, S::Copying, Who::Worker2),
    // Held back, because a server before it failed.
    (S::Copying, S::Idle, Who::Worker2),
    (S::Error, S::Copying, Who::Controller),
    (S::Idle, S::Copying, Who::Controller),
    (S::Copying, S::Error, Who::Controller),
    (S::Locked, S::Error, Who::Controller),
    // The release that it failed in is given up.
    (S::Error, S::Idle, Who::Controller),
];

impl ReleaseState {
    /// Whether a release may go from here to `next`.
    #[must_use]
    pub fn leads_to(self, next: ReleaseState) -> bool {
        RELEASE_STEPS.iter().any(|(from, to, _)| (*from, *to) == (self, next))
    }

    /// Whether it is over, so that another release may begin.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, R::Completed | R::Abandoned)
    }

    /// Whether a worker has something to do.
    #[must_use]
    pub fn is_worked_at(self) -> bool {
        matches!(self, R::BetaCopying | R::ProductionRelease | R::ProductionBackup | R::ProductionCopying)
    }

    /// The state after a failure in this one.
    #[must_use]
    pub fn failed(self) -> Option<ReleaseState> {
        match self {
            R::BetaCopying => Some(R::BetaError),
            R::ProductionRelease | R::ProductionBackup | R::ProductionCopying => Some(R::ProductionError),
            _ => None,
        }
    }
}

impl ServerState {
    /// Whether a server may go from here to `next`.
    #[must_use]
    pub fn leads_to(self, next: ServerState) -> bool {
        SERVER_STEPS.iter().any(|(from, to, _)| (*from, *to) == (self, next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn states_have_the_names_of_the_service_that_this_replaces() {
        let shown: Vec<&str> = ReleaseState::ALL.iter().map(|state| state.shown()).collect();
        assert_eq!(
            shown[..9],
            [
                "создан",
                "бета-копирование",
                "ошибка бета-копирования",
                "бета-копирование завершено",
                "production-релиз",
                "production-резервирование",
                "production-копирование",
                "production-ошибка",
                "завершено"
            ]
        );
        for state in ReleaseState::ALL {
            assert_eq!(state.word().parse(), Ok(*state));
        }
        for (state, name) in [(S::Copying, "копирование"), (S::Locked, "блокировка"), (S::Error, "ошибка")]
        {
            assert_eq!((state.shown(), state.word().parse()), (name, Ok(state)));
        }
    }

    #[test]
    fn what_is_over_stays_over_and_what_fails_can_be_taken_up() {
        for state in ReleaseState::ALL {
            assert_eq!(state.is_over(), !ReleaseState::ALL.iter().any(|next| state.leads_to(*next)), "{state}");
            if let Some(failed) = state.failed() {
                assert!(state.leads_to(failed) && failed.leads_to(*state) || *state == R::ProductionBackup, "{state}");
                assert!(failed.leads_to(R::Abandoned));
            }
        }
    }

    proptest! {
        /// However the steps are taken: nothing is completed that was not on beta, archived and copied in this order.
        #[test]
        fn no_walk_leaves_out_a_stage(choices in proptest::collection::vec(0_usize..8, 1..60)) {
            let (mut at, mut seen) = (R::Created, vec![R::Created]);
            for choice in choices {
                let next: Vec<R> = RELEASE_STEPS.iter().filter(|step| step.0 == at).map(|step| step.1).collect();
                if next.is_empty() {
                    break;
                }
                at = next[choice % next.len()];
                seen.push(at);
            }
            let first = |state| seen.iter().position(|s| *s == state);
            let order = [R::BetaCopying, R::BetaDone, R::ProductionRelease];
            for pair in order.windows(2) {
                if let Some(later) = first(pair[1]) {
                    prop_assert!(first(pair[0]).is_some_and(|earlier| earlier < later));
                }
            }
            if let Some(done) = first(R::Completed) {
                prop_assert_eq!(seen[done - 1], R::ProductionCopying);
                prop_assert!(first(R::BetaDone).is_some_and(|beta| beta < done));
            }
        }
    }
}
