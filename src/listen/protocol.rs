//! What a line means and what is answered, without any input or output.
//!
//! ```text
//! request = [ "token=" … "," ] ( restore | command )
//! restore = field *( "," field )          field = key "=" value | "incremental"
//! command = "show" [ ", db_instance=" … ] | "status" [ ", id=" … ] | "cancel, id=" …
//! ```
//!
//! Blanks around commas and at both ends mean nothing; `-` in a key is `_`. Keys are `db_instance`, `db_host`, `backup_id` and
//! `incremental`; one that is not known, or comes twice, makes the request invalid, for a restore that was meant otherwise is worse than
//! none. Values are plain words.

use sha2::{Digest as _, Sha256};

use crate::ops::restore_service::Wish;
use crate::restore::target::is_name;

/// The answer to what cannot be understood.
pub const INVALID: &str = "Invalid data format";
/// The answer to a cancel that names no task.
pub const INVALID_CANCEL: &str = "Invalid cancel format";
/// The answer to a request without the token.
pub const UNAUTHORIZED: &str = "Unauthorized";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A restore.
    Restore(Wish),
    /// The catalogue, of one instance or of all.
    Show(Option<String>),
    /// One task, or all.
    Status(Option<String>),
    /// A task's end.
    Cancel(String),
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It cannot be understood.
    Format,
    /// It is a cancel that names no task.
    Cancel,
    /// It names neither instance nor host.
    NoInstance,
}

impl Fault {
    /// What is answered.
    #[must_use]
    pub fn reply(self) -> String {
        match self {
            Fault::Format => INVALID.to_owned(),
            Fault::Cancel => INVALID_CANCEL.to_owned(),
            Fault::NoInstance => crate::restore::config::Refusal::Unmapped("None".to_owned()).to_string(),
        }
    }
}

/// A request as it was read: its token, and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// What it says its token is.
    pub token: Option<String>,
    /// What it asks for.
    pub request: Result<Request, Fault>,
}

/// Reads a request: everything up to the end of its line.
#[must_use]
pub fn read(line: &[u8]) -> Read {
    let invalid = || Read { token: None, request: Err(Fault::Format) };
    let Ok(text) = std::str::from_utf8(line) else { return invalid() };
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return invalid();
    }
    let fields: Vec<(String, Option<&str>)> = text.split(',').map(field).collect();
    let (token, fields) = match &fields[0] {
        (key, Some(value)) if key == "token" => (Some((*value).to_owned()), &fields[1..]),
        _ => (None, &fields[..]),
    };
    Read { token, request: request(fields) }
}

fn field(text: &str) -> (String, Option<&str>) {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.trim())),
        None => (text, None),
    };
    (key.trim().replace('-', "_"), value)
}

fn request(fields: &[(String, Option<&str>)]) -> Result<Request, Fault> {
    let Some(((first, value), rest)) = fields.split_first() else { return Err(Fault::Format) };
    let one = |wanted: &str| match rest {
        [(key, Some(value))] if key == wanted => Some((*value).to_owned()),
        _ => None,
    };
    match (first.as_str(), value) {
        ("show", None) if rest.is_empty() => Ok(Request::Show(None)),
        ("show", None) => {
            one("db_instance").filter(|name| is_name(name)).map(|name| Request::Show(Some(name))).ok_or(Fault::Format)
        }
        ("status", None) if rest.is_empty() => Ok(Request::Status(None)),
        ("status", None) => one("id").and_then(|id| task(&id)).map(|id| Request::Status(Some(id))).ok_or(Fault::Format),
        ("cancel", None) => one("id").and_then(|id| task(&id)).map(Request::Cancel).ok_or(Fault::Cancel),
        _ => restore(fields),
    }
}

/// An id as we give them out.
fn task(id: &str) -> Option<String> {
    (id.len() == 36).then(|| uuid::Uuid::parse_str(id).ok()).flatten().map(|id| id.to_string())
}

fn restore(fields: &[(String, Option<&str>)]) -> Result<Request, Fault> {
    let (mut instance, mut host, mut backup, mut incremental) = (None, None, None, None);
    for (key, value) in fields {
        let place = match (key.as_str(), value) {
            ("incremental", value) => {
                let on = value.is_none_or(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes"));
                if incremental.replace(on).is_some() {
                    return Err(Fault::Format);
                }
                continue;
            }
            ("db_instance", Some(_)) => &mut instance,
            ("db_host", Some(_)) => &mut host,
            ("backup_id", Some(_)) => &mut backup,
            _ => return Err(Fault::Format),
        };
        let value = value.filter(|value| is_name(value)).ok_or(Fault::Format)?;
        if place.replace(value.to_owned()).is_some() {
            return Err(Fault::Format);
        }
    }
    match (instance, &host) {
        (Some(db_instance), _) => Ok(Request::Restore(Wish {
            db_instance,
            db_host: host,
            backup_id: backup,
            incremental: incremental.unwrap_or(false),
        })),
        (None, Some(_)) => Err(Fault::Format),
        (None, None) => Err(Fault::NoInstance),
    }
}

/// Whether two tokens are the same, in a time that tells nothing of where they differ.
#[must_use]
pub fn same_token(one: &str, other: &str) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn wish(line: &str) -> Wish {
        match read(line.as_bytes()).request {
            Ok(Request::Restore(wish)) => wish,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn fault(line: &str) -> Fault {
        read(line.as_bytes()).request.expect_err(line)
    }

    #[test]
    fn a_restore_is_read_in_all_its_spellings() {
        let whole = Wish {
            db_instance: "main1".to_owned(),
            db_host: Some("S-DB1".to_owned()),
            backup_id: Some("SSCOAD".to_owned()),
            incremental: true,
        };
        for line in [
            "db_instance=main1, db_host=S-DB1, backup_id=SSCOAD, incremental",
            "db_instance=main1,db_host=S-DB1,backup_id=SSCOAD,incremental\n",
            "  db-instance = main1 ,  db-host=S-DB1, backup-id=SSCOAD, incremental=true \r\n",
            "incremental=1, backup_id=SSCOAD, db_host=S-DB1, db_instance=main1",
            "db_instance=main1, db_host=S-DB1, backup_id=SSCOAD, incremental=YES",
        ] {
            assert_eq!(wish(line), whole, "{line}");
        }
        assert!(!wish("db_instance=main1, incremental=no").incremental && !wish("db_instance=main1").incremental);
        assert!(!wish("db_instance=main1, incremental=").incremental);
    }

    #[test]
    fn commands_are_read() {
        let read = |line: &str| read(line.as_bytes()).request;
        assert_eq!(read("show"), Ok(Request::Show(None)));
        assert_eq!(read("show, db_instance=main1"), Ok(Request::Show(Some("main1".to_owned()))));
        assert_eq!(read("status"), Ok(Request::Status(None)));
        assert_eq!(read(&format!("status, id={ID}")), Ok(Request::Status(Some(ID.to_owned()))));
        assert_eq!(read(&format!("cancel, id={ID}\n")), Ok(Request::Cancel(ID.to_owned())));
        assert_eq!(read(&format!("cancel,id={}", ID.to_uppercase())), Ok(Request::Cancel(ID.to_owned())));
        for line in
            ["cancel", "cancel, id=7", "cancel id=x", "cancel, id=", &format!("cancel, id={ID}, id={ID}"), "cancel, name=x"]
        {
            let wanted = if line.starts_with("cancel,") || line == "cancel" { Fault::Cancel } else { Fault::Format };
            assert_eq!(read(line), Err(wanted), "{line}");
        }
        for line in ["status, id=7", "show, x", "show, db_instance=a b", "status, status", "Show"] {
            assert_eq!(read(line), Err(Fault::Format), "{line}");
        }
    }

    #[test]
    fn what_is_not_meant_for_us_changes_nothing() {
        for line in [
            "",
            "\n",
            "db_host=S-DB1",
            "db_instance=main1; touch x",
            "db_instance=main1, --pgdata=/",
            "db_instance=main1, pgdata=/",
            "db_instance=main1, db_instance=main2",
            "db_instance=main1, incremental, incremental",
            "db_instance=",
            "db_instance",
            "db_instance=main1,,incremental",
            "db_instance=main1,",
            "db_instance=-main1",
            "db_instance=$(id)",
            "db_instance=main1, backup_id=../../etc",
            "db_instance=main1\0",
            "db_instance=main1\rcancel",
            "hello",
            "token=x",
            "incremental, token=x",
        ] {
            assert_eq!(fault(line), Fault::Format, "{line:?}");
        }
        assert_eq!(read(b"db_instance=main1\xff").request, Err(Fault::Format));
        assert_eq!(fault("incremental").reply(), "Не найдено сопоставление db_host для db_instance: None");
        assert_eq!(fault("backup_id=SSCOAD"), Fault::NoInstance);
        assert_eq!(fault(&format!("db_instance={}", "a".repeat(64))), Fault::Format);
    }

    #[test]
    fn the_token_is_the_first_field() {
        let seen = read(b"token=s3cret-token=1, db_instance=main1");
        assert_eq!(seen.token.as_deref(), Some("s3cret-token=1"));
        assert!(matches!(seen.request, Ok(Request::Restore(_))));
        assert_eq!(read(b"db_instance=main1").token, None);
        assert!(same_token("abc", "abc") && !same_token("abc", "abd") && !same_token("abc", "") && !same_token("abc", "abcd"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_asked_for_is_plain(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Request::Restore(wish)) = read(&bytes).request {
                prop_assert!(is_name(&wish.db_instance));
            }
        }

        #[test]
        fn near_misses_make_it_neither(text in "(token=)?[a-z_=, -]{0,12}(db_instance|db-host|backup_id|incremental|cancel|status|show|id)?[=, ;]{0,2}[a-zA-Z0-9./;$`'\" \n\r\0-]{0,12}") {
            match read(text.as_bytes()).request {
                Ok(Request::Restore(wish)) => {
                    let words = [Some(&wish.db_instance), wish.db_host.as_ref(), wish.backup_id.as_ref()];
                    prop_assert!(words.into_iter().flatten().all(|word| is_name(word)), "{wish:?}");
                }
                Ok(Request::Cancel(id) | Request::Status(Some(id))) => prop_assert!(uuid::Uuid::parse_str(&id).is_ok()),
                _ => {}
            }
        }

        /// What is written by the rules is read as it was meant.
        #[test]
        fn what_is_written_by_the_rules_is_read_back(
            instance in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}", host in proptest::option::of("[A-Za-z0-9][A-Za-z0-9._-]{0,20}"),
            backup in proptest::option::of("[A-Z0-9]{6}"), incremental: bool, blank in "[ ]{0,2}"
        ) {
            let mut fields = vec![format!("db_instance={instance}")];
            fields.extend(host.iter().map(|host| format!("db-host={host}")));
            fields.extend(backup.iter().map(|backup| format!("backup_id={backup}")));
            fields.extend(incremental.then(|| "incremental".to_owned()));
            let line = fields.join(&format!(",{blank}"));
            let meant = Wish { db_instance: instance, db_host: host, backup_id: backup, incremental };
            prop_assert_eq!(read(line.as_bytes()).request, Ok(Request::Restore(meant)));
        }
    }
}
