//! What is wrong with the configuration as a whole, for the verbs that only look at it.

use super::reference;
use super::serve::Service;
use crate::config::{self, Environment, Origin, Problem, Reader};
use crate::jobs;
use crate::logging::LogSettings;
use crate::sentry::SentrySettings;

/// Every mistake that any process would stop for, and every setting that one would miss on this machine.
#[must_use]
pub fn problems(environment: &Environment) -> Vec<Problem> {
    let reader = Reader::new(environment);
    let _ = LogSettings::from_settings(&reader);
    let _ = SentrySettings::from_settings(&reader);
    let _ = Service::from_settings(&jobs::set_up(&reader), &reader);
    let _ = crate::web::address(&reader);
    reader.finish().err().map(|error| error.0).unwrap_or_default()
}

/// Those of [`problems`] that are about a value that somebody wrote.
#[must_use]
pub fn bad_values(environment: &Environment) -> Vec<Problem> {
    let written = |name: &str| {
        let setting = reference::all().find(|setting| setting.name == name);
        let origin = setting.and_then(|setting| environment.lookup(setting)).or_else(|| environment.get(name));
        name == ".env" || origin.is_some_and(|(_, origin)| origin != Origin::Default)
    };
    problems(environment).into_iter().filter(|problem| written(&problem.setting)).collect()
}

/// Names that are probably misspelt: in `.env` all that are no setting, in the environment, which holds
/// much that is not ours, those that are nearly one. One fragment for each.
#[must_use]
pub fn unknown(environment: &Environment) -> Vec<String> {
    let known: Vec<&str> = reference::all()
        .flat_map(|setting| std::iter::once(setting.name).chain(setting.aliases.iter().copied()))
        .chain(config::IGNORED.iter().copied())
        .collect();
    environment
        .names()
        .filter(|(name, _)| !known.contains(name))
        .filter_map(|(name, origin)| {
            // Short names are near one another by chance: HOST and PORT, PATH and PG_BIN.
            let near = known.iter().filter(|k| k.len() > 5 && name.len() > 5).find(|k| strsim::osa_distance(k, name) <= 2);
            match (near, origin) {
                (Some(near), _) => Some(format!("`{name}` ({origin}) is no setting; is `{near}` meant?")),
                (None, Origin::File) => Some(format!("`{name}` ({origin}) is no setting")),
                (None, _) => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_a_bad_value() {
        let environment = Environment::of([("DATABASE_URL", "mysql://h/d"), ("PORT", "http"), ("LOG_LEVEL", "loud")]);
        let names = |problems: Vec<Problem>| problems.into_iter().map(|p| p.setting).collect::<Vec<_>>();
        let all = names(problems(&environment));
        assert!(all.contains(&"SOURCE_DATABASE_URL".to_owned()), "{all:?}");
        let mut bad = names(bad_values(&environment));
        bad.sort();
        assert_eq!(bad, ["LOG_LEVEL", "PORT", "TARGET_DATABASE_URL"]);
    }

    #[test]
    fn nearly_right_names_are_told_with_the_right_one() {
        let environment =
            Environment::of([("BACKUP_MODES", "{}"), ("REDIS_URI", "x"), ("HOSTS", "a"), ("EDITOR", "vi"), ("MIN_TIMEOUT", "1")]);
        assert_eq!(
            unknown(&environment),
            [
                "`BACKUP_MODES` (environment) is no setting; is `BACKUP_MODE` meant?",
                "`REDIS_URI` (environment) is no setting; is `REDIS_URL` meant?"
            ]
        );
    }
}
