//! Shows a followed job: a moving line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {elapsed} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Terminal { bar, shown: String::new() }
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

pub(super) fn told(progress: &Progress) -> String {
    let mut text = if progress.phase.is_empty() { "running".to_owned() } else { progress.phase.clone() };
    if progress.total > 0 {
        text.push_str(&format!(", {} of {}", progress.done, progress.total));
    }
    if progress.rows > 0 {
        text.push_str(&format!(", {} rows", progress.rows));
    }
    if progress.bytes > 0 {
        text.push_str(&format!(", {}", indicatif::HumanBytes(progress.bytes)));
    }
    text
}
