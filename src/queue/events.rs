//! What is published about a queue (wire format §5).
//!
//! Nothing of it is stored: who is not connected misses it. A worker uses it to wake up early, never to know.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSubStream;
use serde_json::Value;

use super::keys::Keys;
use super::{Queue, QueueError, options};
use crate::clock::Millis;
use crate::redis::RedisError;

/// Longest wait for the confirmation of a subscription.
const LIMIT: Duration = Duration::from_secs(10);

/// Something that happened to a queue, told by whatever program did it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A job can be taken. Automatic retries and recovered jobs are not told.
    Waiting {
        /// The job.
        id: String,
    },
    /// A job was taken.
    Active {
        /// The job.
        id: String,
    },
    /// A job is done.
    Completed {
        /// The job.
        id: String,
        /// Its result; none when its handler returned nothing.
        value: Option<Value>,
    },
    /// A job failed for good.
    Failed {
        /// The job.
        id: String,
        /// Why.
        reason: String,
    },
    /// A job in the delayed set is due at that time, rounded up.
    Delayed {
        /// When.
        until: Millis,
    },
    /// A run told how far it is.
    Progress {
        /// The job.
        id: String,
        /// What it told.
        progress: Value,
    },
    /// A job was put back since its worker vanished.
    Stalled {
        /// The job.
        id: String,
    },
    /// The queue was paused.
    Paused,
    /// The queue was resumed.
    Resumed,
    /// A worker found nothing more to do.
    Drained,
    /// A job was not added, since its id exists.
    Duplicated {
        /// The job.
        id: String,
    },
    /// A job was not added, since another stands for the same thing.
    Debounced {
        /// The job that does.
        id: String,
    },
    /// The run of a job is to stop. Only our own programs tell this.
    CancelRequested {
        /// The job.
        id: String,
    },
}

/// The events of one queue, on a connection of its own.
pub struct EventStream {
    messages: PubSubStream,
    keys: Keys,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EventStream({})", self.keys.base())
    }
}

impl EventStream {
    /// The next event; none when the connection is cut: subscribe again and look at the queue, since
    /// events were missed. Safe to drop at any await.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let message = self.messages.next().await?;
            let payload = String::from_utf8_lossy(message.get_payload_bytes());
            if let Some(event) = event(&self.keys, message.get_channel_name(), &payload) {
                return Some(event);
            }
        }
    }
}

/// What a message means; nothing when it is none of ours.
fn event(keys: &Keys, channel: &str, payload: &str) -> Option<Event> {
    let id = || payload.to_owned();
    if channel == keys.cancel_channel() {
        return Some(Event::CancelRequested { id: id() });
    }
    let name = channel.strip_prefix(keys.base())?;
    let json = || serde_json::from_str::<Value>(payload).ok();
    let job_id = |message: &Value| match message.get("jobId")? {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    };
    match name.split_once('@').map_or(name, |(name, _)| name) {
        "waiting" => Some(Event::Waiting { id: id() }),
        "active" => Some(Event::Active { id: id() }),
        "stalled" => Some(Event::Stalled { id: id() }),
        "duplicated" => Some(Event::Duplicated { id: id() }),
        "debounced" => Some(Event::Debounced { id: id() }),
        "paused" => Some(Event::Paused),
        "resumed" => Some(Event::Resumed),
        "drained" => Some(Event::Drained),
        "delayed" => options::number(Some(&Value::from(payload))).map(|due| Event::Delayed { until: due.ceil() as Millis }),
        "completed" => {
            let message = json()?;
            // The result is JSON inside JSON.
            let value = message.get("val").and_then(Value::as_str).and_then(|raw| serde_json::from_str(raw).ok());
            Some(Event::Completed { id: job_id(&message)?, value })
        }
        "failed" => {
            let message = json()?;
            let reason = message.get("val").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some(Event::Failed { id: job_id(&message)?, reason })
        }
        "progress" => {
            let mut message = json()?;
            Some(Event::Progress {
                id: job_id(&message)?,
                progress: message.get_mut("progress").map(Value::take).unwrap_or_default(),
            })
        }
        _ => None,
    }
}

/// `text` as a channel pattern that matches only itself.
pub(super) fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

impl Queue {
    /// Listens to everything published about the queue from now on, on a connection of its own.
    ///
    /// # Errors
    /// Redis's.
    pub async fn events(&self) -> Result<EventStream, QueueError> {
        let keys = self.keys().clone();
        let mut channels: Vec<String> = ["completed", "failed", "delayed", "progress", "paused", "resumed", "drained"]
            .iter()
            .map(|name| keys.of(name))
            .collect();
        channels.push(keys.cancel_channel().to_owned());
        // These carry their publisher's token.
        let patterns: Vec<String> = ["waiting@", "active", "stalled", "duplicated@", "debounced@"]
            .iter()
            .map(|name| format!("{}*", literal(&keys.of(name))))
            .collect();
        let mut pubsub = self.redis().subscriber().await?;
        let subscribe = async {
            pubsub.subscribe(&channels).await?;
            pubsub.psubscribe(&patterns).await
        };
        match tokio::time::timeout(LIMIT, subscribe).await {
            Ok(done) => done?,
            Err(_) => return Err(RedisError::Command(format!("no answer to a subscription within {} s", LIMIT.as_secs())).into()),
        }
        Ok(EventStream { messages: pubsub.into_on_message(), keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_bull_are_understood_and_others_ignored() {
        let keys = Keys::new("bull", "a:b");
        let read = |channel: &str, payload: &str| event(&keys, channel, payload);
        let id = || "7".to_owned();
        assert_eq!(read("bull:a:b:waiting@t", "7"), Some(Event::Waiting { id: id() }));
        assert_eq!(read("bull:a:b:debounced@t", "7"), Some(Event::Debounced { id: id() }));
        assert_eq!(read("bull:a:b:active", "7"), Some(Event::Active { id: id() }));
        assert_eq!(read("bull:a:b:delayed", "1795175401141.0002"), Some(Event::Delayed { until: 1_795_175_401_142 }));
        assert_eq!(
            read("bull:a:b:completed", r#"{"jobId":"7","val":"{\"held\":true}"}"#),
            Some(Event::Completed { id: id(), value: Some(serde_json::json!({"held": true})) })
        );
        assert_eq!(read("bull:a:b:completed", r#"{"jobId":"7"}"#), Some(Event::Completed { id: id(), value: None }));
        assert_eq!(
            read("bull:a:b:failed", r#"{"jobId":"7", "val": "boom"}"#),
            Some(Event::Failed { id: id(), reason: "boom".into() })
        );
        assert_eq!(read("bullwork:cancel:bull:a:b", "7"), Some(Event::CancelRequested { id: id() }));
        for (channel, payload) in
            [("bull:a:c:waiting@t", "7"), ("bull:a:b:delayed", "soon"), ("bull:a:b:failed", "{"), ("bull:a:b:x", "")]
        {
            assert_eq!(read(channel, payload), None, "{channel} {payload}");
        }
    }
}
