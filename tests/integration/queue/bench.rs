//! A queue on a Redis of its own, with a clock that stands still and an ear on all channels.

use std::collections::BTreeMap;
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Admission, Job, JobOptions, NewJob, Queue, Taken};
use futures_util::StreamExt;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::redis::RedisServer;

pub(crate) const NOW: i64 = 1_700_000_000_000;
pub(crate) const LOCK: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) server: RedisServer,
    pub(crate) connection: redis::aio::MultiplexedConnection,
    pub(crate) clock: Clock,
    pub(crate) queue: Queue,
}

impl Bench {
    /// The queue `bull:v`.
    pub(crate) async fn start() -> Bench {
        let server = RedisServer::start();
        let connection = server.connection().await;
        let clock = Clock::manual(NOW);
        let redis = bullwork::redis::Redis::new(&server.url()).expect("a valid URL");
        let queue = Queue::new(redis, "bull", "v", clock.clone());
        Bench { server, connection, clock, queue }
    }

    /// Another queue on the same server.
    pub(crate) fn other(&self, name: &str) -> Queue {
        Queue::new(self.queue.redis().clone(), "bull", name, self.clock.clone())
    }

    pub(crate) async fn add(&self, options: JobOptions) -> String {
        let job = NewJob { name: "n".into(), data: json!({}), options };
        self.queue.add(&job).await.expect("the add succeeds").id().to_owned()
    }

    pub(crate) async fn take(&self, token: &str) -> Job {
        match self.queue.take(token, LOCK, Admission::Any).await.expect("the take succeeds") {
            Taken::Job(job) => *job,
            other => panic!("{other:?} instead of a job"),
        }
    }

    pub(crate) async fn command<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut self.connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    pub(crate) async fn hash(&mut self, id: &str) -> BTreeMap<String, String> {
        self.connection.hgetall(format!("bull:v:{id}")).await.expect("a hash")
    }

    pub(crate) async fn list(&mut self, key: &str) -> Vec<String> {
        self.connection.lrange(format!("bull:v:{key}"), 0, -1).await.expect("a list")
    }

    /// Members and scores in turn, as `ZRANGE … WITHSCORES` prints them.
    pub(crate) async fn zset(&mut self, key: &str) -> Vec<String> {
        self.command(&["ZRANGE", &format!("bull:v:{key}"), "0", "-1", "WITHSCORES"]).await
    }

    pub(crate) async fn set(&mut self, key: &str) -> Vec<String> {
        let mut members: Vec<String> = self.connection.smembers(format!("bull:v:{key}")).await.expect("a set");
        members.sort();
        members
    }

    pub(crate) async fn exists(&mut self, key: &str) -> bool {
        self.connection.exists(format!("bull:v:{key}")).await.expect("redis answers")
    }

    /// How many of the places that hold ids hold this one.
    pub(crate) async fn places(&mut self, id: &str) -> Vec<&'static str> {
        let mut found = Vec::new();
        for list in ["wait", "paused", "active"] {
            found.extend(self.list(list).await.iter().filter(|i| *i == id).map(|_| list));
        }
        for zset in ["delayed", "completed", "failed"] {
            let score: Option<String> = self.command(&["ZSCORE", &format!("bull:v:{zset}"), id]).await;
            found.extend(score.map(|_| zset));
        }
        found
    }

    /// The same where `wait` is no list.
    pub(crate) async fn places_but_wait(&mut self, id: &str) -> Vec<&'static str> {
        let _: i64 = self.command(&["DEL", "bull:v:wait"]).await;
        self.places(id).await
    }

    /// Everything the server holds, for showing that nothing changed.
    pub(crate) async fn dump(&mut self) -> BTreeMap<String, Vec<u8>> {
        let mut keys: Vec<String> = self.command(&["KEYS", "*"]).await;
        keys.sort();
        let mut all = BTreeMap::new();
        for key in keys {
            let dump: Vec<u8> = self.command(&["DUMP", &key]).await;
            all.insert(key, dump);
        }
        all
    }

    pub(crate) async fn ear(&self) -> Ear {
        let mut pubsub =
            redis::Client::open(self.server.url()).expect("a valid URL").get_async_pubsub().await.expect("redis answers");
        pubsub.psubscribe("bull:*").await.expect("the subscription succeeds");
        Ear { pubsub, speaker: self.server.connection().await, spoken: 0 }
    }
}

/// Hears every message of every queue.
pub(crate) struct Ear {
    pubsub: redis::aio::PubSub,
    speaker: redis::aio::MultiplexedConnection,
    spoken: u32,
}

impl Ear {
    /// Channel and payload of all that was published since the last call, with tokens as `<token>`.
    pub(crate) async fn heard(&mut self) -> Vec<(String, String)> {
        // Messages come in order, so one of our own ends the list.
        self.spoken += 1;
        let end = format!("end {}", self.spoken);
        let _: () = self.speaker.publish("bull:test", &end).await.expect("redis answers");
        let mut all = Vec::new();
        let mut messages = self.pubsub.on_message();
        loop {
            let message = tokio::time::timeout(Duration::from_secs(10), messages.next())
                .await
                .expect("our own message comes")
                .expect("the connection stays");
            let payload: String = message.get_payload().expect("text");
            if payload == end {
                return all;
            }
            let channel = match message.get_channel_name().split_once('@') {
                Some((channel, token)) if !token.is_empty() => {
                    assert_eq!(token.len(), 36, "the publisher's token is a uuid");
                    format!("{channel}@<token>")
                }
                _ => message.get_channel_name().to_owned(),
            };
            all.push((channel, payload));
        }
    }
}

pub(crate) fn vectors() -> Value {
    serde_json::from_str(include_str!("../../vectors/bull-vectors.json")).expect("the vectors are JSON")
}

pub(crate) fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("an array").iter().map(|v| v.as_str().expect("text").to_owned()).collect()
}

/// Hash fields as a map, with `opts` as parsed JSON: key order is not part of the contract.
pub(crate) fn comparable(hash: &BTreeMap<String, String>) -> Value {
    let mut all: Value = json!(hash);
    if let Some(opts) = hash.get("opts") {
        all["opts"] = serde_json::from_str(opts).expect("opts is JSON");
    }
    all
}

/// Pairs as the vectors write them.
pub(crate) fn pairs(value: &Value) -> Vec<(String, String)> {
    value
        .as_array()
        .expect("an array")
        .iter()
        .map(|pair| (pair[0].as_str().expect("text").to_owned(), pair[1].as_str().expect("text").to_owned()))
        .collect()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

pub(crate) fn number(value: &Value) -> i64 {
    value.as_i64().expect("a whole number")
}
