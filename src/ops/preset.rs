//! A command of `db-p`, here or by a worker, and what it says about itself.

use std::fmt::Write as _;

use crate::config::Reader;
pub use crate::jobs::preset::unfit;
pub use crate::presets::arguments::{COMMANDS, Call, UsageError};
pub use crate::presets::settings::Settings;
use crate::presets::{self, Done, PresetError, Presets};
use crate::worker::Run;

/// The settings; what is wrong with those that are set is in `reader`.
pub fn settings(reader: &Reader<'_>) -> Settings {
    Settings::from_settings(reader)
}

/// Does what `call` asks for, here and now.
///
/// # Errors
/// When it is refused or fails.
pub async fn run(settings: Settings, run: &Run, call: &Call) -> Result<Done, PresetError> {
    Presets::new(settings).run(run, call).await
}

/// Commands and environment.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "Usage: db-p COMMAND [KEY=VALUE]... [--queue [--wait]]\n\nArguments stand in any order; lists are separated by commas, without blanks. --queue leaves a command\nmarked with * to a worker (`bullwork worker preset`). Exit codes: 0 done (get-lock: free), 1 refused or\nfailed (get-lock: locked), 2 wrong arguments, 3 get-lock could not tell.\n\nCommands:\n",
    );
    for spec in COMMANDS {
        let mut usage = format!("{}{}", spec.name, if spec.long { "*" } else { "" });
        if let Some(alias) = spec.alias {
            let _ = write!(usage, " ({alias})");
        }
        for key in spec.required {
            let _ = write!(usage, " {key}=");
        }
        for key in spec.optional {
            let _ = write!(usage, " [{key}=]");
        }
        for flag in spec.flags {
            let _ = write!(usage, " [{flag}]");
        }
        let _ = writeln!(text, "  {usage}\n      {}", spec.about);
    }
    text.push_str("\nEnvironment, also read from .env; and the S3_… settings of `bullwork config sample`:\n");
    for setting in presets::settings::SETTINGS {
        let mut name = setting.name.to_owned();
        for alias in setting.aliases {
            let _ = write!(name, ", {alias}");
        }
        if let Some(default) = setting.default {
            let _ = write!(name, " [{default}]");
        }
        let _ = writeln!(text, "  {name}\n      {}", setting.about.trim_start_matches("Presets: "));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_help_names_every_command_and_variable() {
        let text = super::help();
        for word in [
            "pull-and-update-local* (get)",
            "push-ex* (update) name= desc=",
            "DBP_S3_BACKET, DBP_S3_BUCKET",
            "DBP_PG_PORT [5432]",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
