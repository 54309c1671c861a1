//! The steps of a task, each recorded before it begins and when it ends; and what the target is like by that record.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Find the backup.
    Choose,
    /// Look at everything that can be wrong.
    Check,
    /// Stop the cluster, and see that it is.
    Stop,
    /// Empty its directories.
    Empty,
    /// Have the tool restore.
    Restore,
    /// Instead of all from [`Step::Stop`] to [`Step::Wait`]: bring a database that takes its place when it is whole.
    Load,
    /// Start the cluster.
    Start,
    /// Until it accepts connections and has left recovery.
    Wait,
    /// Tell people.
    Notify,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Choose => "choose",
            Step::Check => "check",
            Step::Stop => "stop",
            Step::Empty => "empty",
            Step::Restore => "restore",
            Step::Load => "load",
            Step::Start => "start",
            Step::Wait => "wait",
            Step::Notify => "notify",
        })
    }
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// It has begun; whether it did anything is not known.
    Begun,
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// A step as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Which.
    pub step: Step,
    /// How far.
    pub state: StepState,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// What a target is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing was done to it.
    Untouched,
    /// Stopped, or about to be; its data are as they were.
    Stopped,
    /// Stopped, and its data directory is not whole.
    Incomplete,
    /// Restored; not known to run.
    Restored,
    /// Restored, and it runs.
    Running,
}

impl Condition {
    /// The word for it in the state store and in replies.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Condition::Untouched => "untouched",
            Condition::Stopped => "stopped",
            Condition::Incomplete => "incomplete",
            Condition::Restored => "restored",
            Condition::Running => "running",
        }
    }

    /// What it means, and the way out.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Condition::Untouched => "the target is as it was",
            Condition::Stopped => "the target's data are as they were, but its cluster may be stopped: start it, or ask again",
            Condition::Incomplete => {
                "the target is half-restored and stopped: ask again, with `incremental` to keep what is there already"
            }
            Condition::Restored => {
                "the target is restored, but its cluster was not seen running: look at its log and start it, or ask again"
            }
            Condition::Running => "the target is restored and runs",
        }
    }
}

/// The record of a task's steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Steps(pub Vec<Recorded>);

impl Steps {
    /// Notes that `step` begins.
    pub fn begin(&mut self, step: Step, now: String) {
        self.0.push(Recorded { step, state: StepState::Begun, started_at: now, ended_at: None });
    }

    /// Notes how the step that began last ended.
    pub fn end(&mut self, state: StepState, now: String) {
        if let Some(last) = self.0.last_mut() {
            last.state = state;
            last.ended_at = Some(now);
        }
    }

    /// Whether `step` was done in the run of steps that began last.
    #[must_use]
    pub fn is_done(&self, step: Step) -> bool {
        self.last_run().iter().any(|recorded| recorded.step == step && recorded.state == StepState::Done)
    }

    /// A task that was begun again has its earlier steps in the record too.
    fn last_run(&self) -> &[Recorded] {
        let begin = self.0.iter().rposition(|recorded| recorded.step == Step::Choose).unwrap_or(0);
        &self.0[begin..]
    }

    /// What the target is like, when nobody has touched it since the last record.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let mut condition = Condition::Untouched;
        for recorded in &self.0 {
            let done = recorded.state == StepState::Done;
            condition = match (recorded.step, done) {
                // A run that began again says nothing new before it changes something.
                (Step::Choose | Step::Check | Step::Notify, _) | (Step::Load, false) => condition,
                (Step::Stop, _) if matches!(condition, Condition::Incomplete) => Condition::Incomplete,
                (Step::Stop, _) if matches!(condition, Condition::Restored | Condition::Running) => Condition::Restored,
                (Step::Stop, _) => Condition::Stopped,
                (Step::Empty, _) | (Step::Restore, false) => Condition::Incomplete,
                (Step::Restore, true) | (Step::Start, _) | (Step::Wait, false) => Condition::Restored,
                (Step::Wait | Step::Load, true) => Condition::Running,
            };
        }
        condition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(steps: &[(Step, StepState)]) -> Steps {
        let mut all = Steps::default();
        for (step, state) in steps {
            all.begin(*step, "2026-01-01T00:00:00.000Z".to_owned());
            if *state != StepState::Begun {
                all.end(*state, "2026-01-01T00:00:01.000Z".to_owned());
            }
        }
        all
    }

    #[test]
    fn the_condition_follows_from_the_record_wherever_it_breaks_off() {
        let order = [Step::Choose, Step::Check, Step::Stop, Step::Empty, Step::Restore, Step::Start, Step::Wait];
        let wanted = |step, done| match (step, done) {
            (Step::Choose | Step::Check | Step::Notify, _) | (Step::Load, false) => Condition::Untouched,
            (Step::Stop, _) => Condition::Stopped,
            (Step::Empty, _) | (Step::Restore, false) => Condition::Incomplete,
            (Step::Restore, true) | (Step::Start, _) | (Step::Wait, false) => Condition::Restored,
            (Step::Wait | Step::Load, true) => Condition::Running,
        };
        for (place, last) in order.iter().enumerate() {
            for state in [StepState::Begun, StepState::Failed, StepState::Done] {
                let mut steps: Vec<_> = order[..place].iter().map(|step| (*step, StepState::Done)).collect();
                steps.push((*last, state));
                assert_eq!(record(&steps).condition(), wanted(*last, state == StepState::Done), "{last} {state:?}");
            }
        }
        assert_eq!(record(&[]).condition(), Condition::Untouched);
    }

    #[test]
    fn a_second_run_does_not_make_a_half_restored_target_whole() {
        let done = StepState::Done;
        let broken = [(Step::Choose, done), (Step::Check, done), (Step::Stop, done), (Step::Restore, StepState::Begun)];
        let again = [&broken[..], &[(Step::Choose, done), (Step::Check, done), (Step::Stop, done)]].concat();
        assert_eq!(record(&again).condition(), Condition::Incomplete);
        assert!(record(&again).is_done(Step::Stop) && !record(&again).is_done(Step::Restore));
    }

    #[test]
    fn the_record_is_json_that_people_can_read() {
        let text = serde_json::to_string(&record(&[(Step::Choose, StepState::Done)])).unwrap();
        let wanted =
            r#"[{"step":"choose","state":"done","started_at":"2026-01-01T00:00:00.000Z","ended_at":"2026-01-01T00:00:01.000Z"}]"#;
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<Steps>(&text).unwrap(), record(&[(Step::Choose, StepState::Done)]));
    }
}
