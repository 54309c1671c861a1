//! What is asked for: a command and its `key=value` arguments, in any order.
//!
//! One table says what each command takes. All mistakes of a call are told together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest reason or person, in characters.
const TEXT: usize = 500;

/// A command as the table declares it.
#[derive(Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// The short one.
    pub alias: Option<&'static str>,
    /// `key`s that must be there.
    pub required: &'static [&'static str],
    /// `key`s that may.
    pub optional: &'static [&'static str],
    /// Bare words.
    pub flags: &'static [&'static str],
    /// Whether it takes so long that it may be left to a worker.
    pub long: bool,
    /// One line for the help.
    pub about: &'static str,
}

const fn spec(name: &'static str, about: &'static str) -> Spec {
    Spec { name, alias: None, required: &[], optional: &[], flags: &[], long: false, about }
}

/// Every command.
pub static COMMANDS: &[Spec] = &[
    spec("gen-key", "make the branch's key, a new file at DBP_KEY_PATH"),
    spec("init", "make the local directories, and forget which preset the cluster holds"),
    Spec {
        alias: Some("get"),
        optional: &["include", "exclude"],
        long: true,
        ..spec(
            "pull-and-update-local",
            "fetch missing and changed presets, migrate and keep them; application and PostgreSQL end up stopped",
        )
    },
    Spec {
        alias: Some("add"),
        required: &["name", "desc"],
        optional: &["who"],
        long: true,
        ..spec("push-new", "store what the cluster holds as a new preset")
    },
    Spec {
        alias: Some("update"),
        required: &["name", "desc"],
        optional: &["who", "key", "base"],
        long: true,
        ..spec("push-ex", "store what the cluster holds as a preset's next revision")
    },
    Spec {
        required: &["name", "who", "desc"],
        optional: &["hours"],
        ..spec("set-lock", "keep others from pushing a preset; prints the key that push-ex and reset-lock take")
    },
    Spec {
        required: &["name"],
        ..spec("get-lock", "tell who locked a preset; exit code 1 when somebody did, 0 when it is free, 3 when that is not known")
    },
    Spec {
        required: &["name"],
        optional: &["key", "who"],
        flags: &["force"],
        ..spec("reset-lock", "unlock a preset, with its key or by `force`")
    },
    Spec {
        required: &["name"],
        flags: &["clean"],
        long: true,
        ..spec("select", "put a preset into the cluster and start everything; `clean` also when it is there already")
    },
    Spec { required: &["where"], flags: &["short"], ..spec("ls", "list presets, where=local or where=s3; `short`: their names") },
    spec("what-selected", "tell which preset the cluster holds"),
    Spec { long: true, ..spec("start-app", "start PostgreSQL and the application, and wait until it answers") },
    Spec { required: &["name"], ..spec("versions", "list a preset's revisions") },
    Spec {
        required: &["name", "revision"],
        optional: &["who", "key"],
        ..spec("restore-version", "make an earlier revision the current one, as a new revision")
    },
    Spec {
        required: &["to"],
        optional: &["include", "exclude", "who"],
        long: true,
        ..spec("rekey", "encrypt current revisions for the key file `to`, as new revisions")
    },
    Spec {
        required: &["name", "desc"],
        optional: &["who", "key"],
        ..spec("delete", "mark a preset as deleted; its revisions stay")
    },
    Spec {
        required: &["name"],
        optional: &["keep", "who"],
        ..spec("purge", "remove a deleted preset's revisions, or all but the newest `keep` of another one")
    },
    Spec {
        required: &["name", "desc", "file", "old-key"],
        optional: &["who"],
        long: true,
        ..spec("import", "store an old archive (AES-256-CBC) as a new preset; the archive is only read")
    },
];

/// A call that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct UsageError(pub Vec<String>);

/// A command with its arguments; also the data of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Call {
    /// The command's whole name.
    pub command: String,
    /// `key=value`; a flag's value is `true`.
    pub arguments: BTreeMap<String, String>,
}

impl Call {
    /// Reads the words behind the program's name.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Call, UsageError> {
        let one = |problem: String| UsageError(vec![problem]);
        let mut words = words.iter().map(AsRef::as_ref);
        let name = words.next().ok_or_else(|| one("no command is given; `db-p --help` lists them".to_owned()))?;
        let spec = COMMANDS
            .iter()
            .find(|spec| spec.name == name || spec.alias == Some(name))
            .ok_or_else(|| one(format!("there is no command `{}`; `db-p --help` lists them", name.escape_default())))?;
        let mut call = Call { command: spec.name.to_owned(), arguments: BTreeMap::new() };
        let mut problems = Vec::new();
        for word in words {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, value),
                // The seed's `select NAME`.
                None if spec.name == "select" && !spec.flags.contains(&word) && !call.arguments.contains_key("name") => {
                    ("name", word)
                }
                None => (word, "true"),
            };
            if call.arguments.insert(key.to_owned(), value.to_owned()).is_some() {
                problems.push(format!("`{key}` is given twice"));
            }
        }
        problems.extend(call.problems());
        if problems.is_empty() { Ok(call) } else { Err(UsageError(problems)) }
    }

    /// The declaration of its command.
    ///
    /// # Errors
    /// When there is none: a job's data may hold anything.
    pub fn spec(&self) -> Result<&'static Spec, UsageError> {
        let problem = || UsageError(vec![format!("there is no command `{}`", self.command.escape_default())]);
        COMMANDS.iter().find(|spec| spec.name == self.command).ok_or_else(problem)
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let spec = match self.spec() {
            Ok(spec) => spec,
            Err(UsageError(problems)) => return problems,
        };
        let takes = || {
            let keys = spec.required.iter().chain(spec.optional).map(|key| format!("{key}="));
            keys.chain(spec.flags.iter().map(|flag| (*flag).to_owned())).collect::<Vec<_>>().join(", ")
        };
        let mut problems = Vec::new();
        for (key, value) in &self.arguments {
            let key = key.as_str();
            let shown = key.escape_default();
            if spec.flags.contains(&key) {
                if value != "true" && value != "false" {
                    problems.push(format!("`{shown}` is given alone, or is true or false"));
                }
            } else if !spec.required.contains(&key) && !spec.optional.contains(&key) {
                problems.push(format!("`{}` takes no `{shown}`; it takes: {}", spec.name, takes()));
            } else if let Err(problem) = check(key, value) {
                problems.push(format!("{shown}=: {problem}"));
            }
        }
        let missing: Vec<String> =
            spec.required.iter().filter(|key| !self.arguments.contains_key(**key)).map(|key| format!("{key}=")).collect();
        if !missing.is_empty() {
            problems.push(format!("`{}` needs {}", spec.name, missing.join(" and ")));
        }
        if spec.name == "reset-lock" && !self.flag("force") && self.value("key").is_none() {
            problems.push("`reset-lock` needs key= or force".to_owned());
        }
        problems
    }

    /// The value of `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.arguments.get(key).map(String::as_str)
    }

    /// One that [`Call::problems`] has seen to be there.
    #[must_use]
    pub fn required(&self, key: &str) -> &str {
        self.value(key).unwrap_or_default()
    }

    /// Whether the bare word was given.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// A list without blanks.
    #[must_use]
    pub fn list(&self, key: &str) -> Option<Vec<&str>> {
        self.value(key).map(|text| text.split(',').collect())
    }

    /// Who asks: `who=`, or the system's user.
    #[must_use]
    pub fn who(&self) -> String {
        self.value("who").map_or_else(system_user, str::to_owned)
    }
}

/// Name of the user that runs this.
fn system_user() -> String {
    let id = nix::unistd::getuid();
    nix::unistd::User::from_uid(id).ok().flatten().map_or_else(|| format!("uid {id}"), |user| user.name)
}

fn check(key: &str, value: &str) -> Result<(), String> {
    match key {
        "name" => check_name(value),
        "include" | "exclude" => value.split(',').try_for_each(check_name),
        "where" if matches!(value, "local" | "s3") => Ok(()),
        "where" => Err(format!("`{}` is neither local nor s3", value.escape_default())),
        "base" if value == "any" => Ok(()),
        "base" => Err(format!("`{}` is not any", value.escape_default())),
        "hours" | "revision" | "keep" => match value.parse::<u32>() {
            Ok(number) if number > 0 && number <= 1_000_000 => Ok(()),
            _ => Err(format!("`{}` is no whole number from 1", value.escape_default())),
        },
        "key" if value.len() == 32 && value.chars().all(|c| c.is_ascii_hexdigit()) => Ok(()),
        "key" => Err("it is no key: set-lock printed one of 32 hexadecimal digits".to_owned()),
        _ if value.trim().is_empty() => Err("it is empty".to_owned()),
        _ if value.chars().count() > TEXT => Err(format!("it has more than {TEXT} characters")),
        _ if value.chars().any(char::is_control) => Err("it holds a line end or another control character".to_owned()),
        _ => Ok(()),
    }
}

/// Whether this may name a preset, a project or a branch.
///
/// # Errors
/// What a name is.
pub(super) fn check_name(text: &str) -> Result<(), String> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let good = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if begins && good && text.len() <= 63 {
        return Ok(());
    }
    Err(format!(
        "`{}` is no name: Latin letters, digits and `._-`, begun with a letter or digit, 63 at most",
        text.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_in_any_order_and_aliases_are_known() {
        let call = Call::parse(&["add", "desc=Первая версия", "who=Анна", "name=shop"]).unwrap();
        assert_eq!((call.command.as_str(), call.required("desc"), call.who().as_str()), ("push-new", "Первая версия", "Анна"));
        for words in [["select", "shop", "clean"], ["select", "clean", "name=shop"]] {
            let call = Call::parse(&words).unwrap();
            assert_eq!((call.required("name"), call.flag("clean")), ("shop", true));
        }
        assert_eq!(Call::parse(&["get", "include=a,b"]).unwrap().list("include"), Some(vec!["a", "b"]));
        assert_eq!(Call::parse(&["push-new", "name=a", "desc=x=y"]).unwrap().required("desc"), "x=y");
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let error = Call::parse(&["set-lock", "nme=a", "hours=0", "who=a\nb"]).unwrap_err().to_string();
        for part in ["no `nme`", "hours=", "control character", "needs name= and desc="] {
            assert!(error.contains(part), "{part}: {error}");
        }
        for name in ["", "../x", "имя", "a b", "-a", ".a", "a/b", "a;b", "a\n"] {
            assert!(Call::parse(&["get-lock", &format!("name={name}")]).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(63)).is_ok() && check_name(&"a".repeat(64)).is_err());
        assert!(Call::parse(&["get", "include=a, b"]).is_err() && Call::parse::<&str>(&[]).is_err());
        assert!(Call::parse(&["reset-lock", "name=a"]).unwrap_err().to_string().contains("key= or force"));
    }

    #[test]
    fn no_name_or_alias_stands_for_two_commands() {
        let mut names: Vec<&str> = COMMANDS.iter().flat_map(|spec| [Some(spec.name), spec.alias]).flatten().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
