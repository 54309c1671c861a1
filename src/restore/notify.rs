//! Who hears of the end of a task: the form that the chat's page takes, in its words, and webhooks.
//!
//! A failure to tell is logged and changes nothing: the task's end is in the state store.

use std::time::Duration;

use serde_json::json;

use super::steps::Condition;
use super::tasks::{Status, Task};
use crate::webhook::{self, Endpoint, Message, Redirects};
use crate::worker::Run;

/// Longest wait for one receiver.
const LIMIT: Duration = Duration::from_secs(15);

/// Who hears.
#[derive(Clone, Debug, Default)]
pub struct Receivers {
    /// Gets a form with the field `message`.
    pub form: Option<reqwest::Url>,
    /// Get JSON.
    pub webhooks: Vec<Endpoint>,
}

/// The words for people; `cluster` is the target's cluster.
#[must_use]
pub fn text(cluster: &str, task: &Task) -> String {
    match task.status {
        Status::Completed => format!("{cluster} восстановлен в тестовом контуре"),
        Status::Canceled => format!("{cluster} восстановление отменено, задача {}: {}", task.id, Condition::of(task).word()),
        _ => format!("{cluster} сервер не запустился за отведённое время или не восстановился корректно бэкап"),
    }
}

impl Receivers {
    /// Tells all of them.
    pub async fn tell(&self, run: &Run, cluster: &str, task: &Task) {
        if self.form.is_none() && self.webhooks.is_empty() {
            return;
        }
        let client = match webhook::client(LIMIT, Redirects::KeepRequest) {
            Ok(client) => client,
            Err(error) => return run.error(format!("nobody was told of the end of task {}: {error}", task.id)),
        };
        if let Some(url) = &self.form {
            let sent = webhook::post_form(&client, LIMIT, url, &[("message", &text(cluster, task))]).await;
            self.note(run, &crate::redact::mask_path(url.as_str()), sent);
        }
        for endpoint in &self.webhooks {
            let event = format!("restore.{}", task.status.word());
            let body = json!({"event": event, "cluster": cluster, "message": text(cluster, task), "task": task.with_steps()});
            let message = Message { id: format!("msg_{}_{}", task.id, task.status.word()), body: body.to_string() };
            let sent = webhook::post(&client, LIMIT, endpoint, message).await;
            self.note(run, &endpoint.shown(), sent);
        }
    }

    fn note(&self, run: &Run, shown: &str, sent: Result<reqwest::StatusCode, webhook::WebhookError>) {
        match sent {
            Ok(status) => run.info(format!("told {shown}: {status}")),
            Err(error) => run.error(format!("not told {shown}: {error}")),
        }
    }
}
