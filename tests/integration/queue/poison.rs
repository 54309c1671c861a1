//! Jobs that no correct program writes, one for each way of being wrong.

use redis::aio::MultiplexedConnection;

/// JSON that is right, but nested as no document is.
pub(crate) fn deep(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

const NUMBERS: &[&str] = &[
    "-1",
    "NaN",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e300",
    "99999999999999999999",
    "4294967295",
    "9223372036854775807",
    "-9223372036854775808",
    "0x10",
    "1.5",
    "x",
    "",
];
const NUMBER_FIELDS: &[&str] =
    &["timestamp", "delay", "priority", "attemptsMade", "processedOn", "finishedOn", "stalledCounter", "retriedOn"];

const OPTIONS: &[&str] = &[
    "",
    "null",
    "[1]",
    "\"x\"",
    "7",
    "true",
    "{",
    "{}x",
    r#"{"attempts":[1],"backoff":[],"priority":{},"lifo":[],"removeOnComplete":[],"removeOnFail":[],"timeout":{}}"#,
    r#"{"attempts":"x","backoff":"x","priority":"x","lifo":"x","removeOnComplete":"x","removeOnFail":"x","timeout":"x"}"#,
    r#"{"attempts":null,"backoff":null,"priority":null,"lifo":null,"removeOnComplete":null,"removeOnFail":null}"#,
    r#"{"attempts":-1e300,"backoff":{"type":7,"delay":"x"},"timeout":-1,"stackTraceLimit":-1}"#,
    r#"{"attempts":1e300,"backoff":{"type":"exponential","delay":1e300},"timeout":1e300,"stackTraceLimit":1e300}"#,
    r#"{"attempts":1e999}"#,
    r#"{"attempts":NaN}"#,
    r#"{"removeOnComplete":0.5,"removeOnFail":0.5}"#,
    r#"{"removeOnComplete":-1,"removeOnFail":-1e300}"#,
    r#"{"removeOnComplete":{"count":-1,"age":-1},"removeOnFail":{"count":0.5}}"#,
    r#"{"removeOnComplete":{"count":{},"age":[]},"removeOnFail":{"count":"x","age":1e300}}"#,
    r#"{"removeOnComplete":{"age":1e300},"removeOnFail":{"count":1e300}}"#,
    r#"{"repeat":"daily"}"#,
    r#"{"repeat":{"key":7}}"#,
    r#"{"repeat":{"key":"listed","cron":7}}"#,
    r#"{"repeat":{"key":"listed","cron":"whenever"}}"#,
    r#"{"repeat":{"key":"listed","cron":"* * * * *","tz":"Mars/Base"}}"#,
    r#"{"repeat":{"key":"listed","cron":"* * * * *","every":5}}"#,
    r#"{"repeat":{"key":"listed","every":"x"}}"#,
    r#"{"repeat":{"key":"listed","every":-5}}"#,
    r#"{"repeat":{"key":"listed","every":1e300}}"#,
    r#"{"repeat":{"key":"listed","every":5000,"count":1e300},"prevMillis":1e300}"#,
    r#"{"repeat":{"key":"listed","cron":"0 3 * * *"},"prevMillis":1e300}"#,
    r#"{"repeat":{"key":"listed","cron":"0 3 * * *","limit":-1},"prevMillis":-1e300}"#,
    r#"{"repeat":{"key":"listed","cron":"0 3 * * *","startDate":"x","endDate":{}},"prevMillis":"x"}"#,
    r#"{"repeat":{"key":"unlisted","every":5000}}"#,
];

/// A job as a hash.
pub(crate) struct Poison {
    pub(crate) name: String,
    pub(crate) id: String,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Poison {
    fn new(name: impl Into<String>, fields: &[(&str, &str)]) -> Poison {
        let fields = fields.iter().map(|(field, value)| (field.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        Poison { name: name.into(), id: String::new(), fields }
    }

    /// Writes the hash of a job of the queue whose keys begin with `base`, and returns its id.
    pub(crate) async fn write(&self, connection: &mut MultiplexedConnection, base: &str) {
        let mut command = redis::cmd("HSET");
        command.arg(format!("{base}{}", self.id));
        for (field, value) in &self.fields {
            command.arg(field.as_slice()).arg(value.as_slice());
        }
        let _: i64 = command.query_async(connection).await.expect("redis takes it");
        let _: i64 = redis::Cmd::zadd(format!("{base}repeat"), "listed", 1).query_async(connection).await.expect("a set");
    }

    /// The same, and puts it behind what waits.
    pub(crate) async fn plant(&self, connection: &mut MultiplexedConnection, base: &str) {
        self.write(connection, base).await;
        let _: i64 = redis::Cmd::lpush(format!("{base}wait"), &self.id).query_async(connection).await.expect("a list");
    }
}

/// All of them, with ids of their own.
pub(crate) fn all() -> Vec<Poison> {
    let deepest = deep(100_000);
    let mut all = vec![
        Poison::new("a hash with nothing of a job's", &[("x", "y")]),
        Poison::new("no options", &[("name", "n"), ("data", "{}")]),
        Poison::new("no data", &[("name", "n"), ("opts", "{}")]),
        Poison::new("empty fields", &[("name", ""), ("data", ""), ("opts", ""), ("progress", ""), ("stacktrace", "")]),
        Poison::new("text as data", &[("data", "\"x\""), ("opts", "{}")]),
        Poison::new("a list as data", &[("data", "[1,2]"), ("opts", "{}")]),
        Poison::new("a field called id", &[("id", "another"), ("data", "{}"), ("opts", "{}")]),
        Poison::new("a stack trace of anything", &[("stacktrace", r#"[1,null,{"a":[]},"x"]"#), ("opts", r#"{"attempts":2}"#)]),
        Poison::new(
            "everything broken",
            &[("data", "{\"a\":"), ("opts", "{"), ("progress", "{"), ("returnvalue", "nope"), ("stacktrace", "\"")],
        ),
    ];
    for field in ["data", "opts", "progress", "returnvalue", "stacktrace"] {
        all.push(Poison::new(format!("broken JSON in {field}"), &[("name", "n"), (field, "{\"a\":[1,")]));
        all.push(Poison::new(format!("{field} nested 100 000 deep"), &[("name", "n"), (field, &deepest)]));
        let mut odd = Poison::new(format!("no text in {field}"), &[("name", "n")]);
        odd.fields.push((field.as_bytes().to_vec(), b"\"\xff\xfe\0\"".to_vec()));
        all.push(odd);
    }
    for number in NUMBERS {
        let mut fields: Vec<(&str, &str)> = NUMBER_FIELDS.iter().map(|field| (*field, *number)).collect();
        fields.extend([("data", "{}"), ("opts", r#"{"attempts":2}"#)]);
        all.push(Poison::new(format!("`{number}` as every number"), &fields));
    }
    for options in OPTIONS {
        all.push(Poison::new(format!("options `{options}`"), &[("name", "n"), ("data", "{}"), ("opts", options)]));
    }
    let mut giant = Poison::new("a field name of 1 MB", &[("data", "{}"), ("opts", "{}")]);
    giant.fields.push((vec![b'f'; 1 << 20], b"x".to_vec()));
    all.push(giant);
    let mut many = Poison::new("100 000 fields", &[("data", "{}"), ("opts", "{}")]);
    many.fields.extend((0..100_000).map(|n| (format!("field {n}").into_bytes(), b"x".to_vec())));
    all.push(many);
    for (n, poison) in all.iter_mut().enumerate() {
        poison.id = format!("poison-{n}");
    }
    for (name, id) in [
        ("colons in its id", "a::b:c:".to_owned()),
        ("a line break in its id", "a\r\nb".to_owned()),
        ("NUL in its id", "a\0b".to_owned()),
        ("a pattern as its id", "*[a-z]?\\".to_owned()),
        ("quotes in its id", "\"},{'\u{2028}".to_owned()),
        ("an id like a run's", "repeat:x:1".to_owned()),
        ("an id of 1 MB", "i".repeat(1 << 20)),
    ] {
        all.push(Poison { id, ..Poison::new(name, &[("name", "n"), ("data", "{}"), ("opts", "{}")]) });
    }
    all
}
