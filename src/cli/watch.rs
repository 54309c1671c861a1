//! Shows a followed job: a moving line on a terminal, plain lines elsewhere.

use std::fmt::Write as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::Value;

use crate::ops::follow::Watcher;
use crate::ops::plain::plain;
use crate::ops::store::State;
use crate::worker::Progress;

/// Writes to stderr; stdout stays for the result.
pub(super) struct Terminal {
    bar: ProgressBar,
    shown: String,
}

impl Terminal {
    pub(super) fn new() -> Self {
        Terminal { bar: bar(), shown: String::new() }
    }

    /// A line above the bar; indicatif drops lines when stderr is no terminal.
    fn say(&self, line: &str) {
        let line = plain(line);
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Watcher for Terminal {
    fn job(&mut self, queue: &str, id: &str) {
        self.say(&format!("== {queue}, job {id}"));
    }

    fn line(&mut self, line: &str) {
        self.say(&format!("   {line}"));
    }

    fn progress(&mut self, state: State, progress: &Progress) {
        let text = match state {
            State::Active => plain(&told(progress)),
            State::Delayed => "waiting for its next try".to_owned(),
            State::Paused => "waiting: the queue is paused".to_owned(),
            _ => "waiting for a worker (`bullwork background` runs them)".to_owned(),
        };
        if text != self.shown {
            if self.bar.is_hidden() && (state != State::Active || self.shown.is_empty()) {
                eprintln!("   {text}");
            }
            match state {
                State::Active => show(&self.bar, progress),
                _ => self.bar.unset_length(),
            }
            self.bar.set_message(text.clone());
            self.shown = text;
        }
        self.bar.tick();
    }

    fn ended(&mut self, result: &Value) {
        self.shown.clear();
        self.say(&format!("   done: {result}"));
    }
}

/// A turning sign, and how much is done where that is known.
pub(super) fn bar() -> ProgressBar {
    const WIDTH: usize = 20;
    let share = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        if let Some(total) = state.len().filter(|total| *total > 0) {
            let done = state.pos().min(total);
            let full = usize::try_from(u128::from(done) * WIDTH as u128 / u128::from(total)).unwrap_or(WIDTH);
            let percent = u128::from(done) * 100 / u128::from(total);
            let _ = write!(out, "[{}{}] {percent} % ", "#".repeat(full), "-".repeat(WIDTH - full));
        }
    };
    let style = ProgressStyle::with_template("{spinner} {elapsed} {share}{msg}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key("share", share));
    bar
}

/// By bytes where their end is known, else by what is counted.
pub(super) fn show(bar: &ProgressBar, progress: &Progress) {
    let counted = (progress.done, progress.total);
    let (done, total) = if progress.bytes_total > 0 { (progress.bytes, progress.bytes_total) } else { counted };
    if total > 0 {
        bar.set_length(total);
        bar.set_position(done);
    } else {
        bar.unset_length();
    }
}

pub(super) fn told(progress: &Progress) -> String {
    let mut text = if progress.phase.is_empty() { "running".to_owned() } else { progress.phase.clone() };
    if progress.total > 0 {
        let _ = write!(text, ", {} of {}", progress.done, progress.total);
    }
    if progress.rows > 0 {
        let _ = write!(text, ", {} rows", progress.rows);
    }
    if progress.bytes > 0 {
        let _ = write!(text, ", {}", indicatif::HumanBytes(progress.bytes));
        if progress.bytes_total > 0 {
            let _ = write!(text, " of {}", indicatif::HumanBytes(progress.bytes_total));
        }
    }
    text
}
