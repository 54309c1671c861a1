//! The settings, told: `sample.env` and `config show`. Both come from the declarations, so they
//! cannot drift from the code; `scripts/test` compares `sample.env` with what this prints.

use std::fmt::Write as _;

use crate::config::{self, Environment, Setting};
use crate::{jobs, redact, schedule, sentry, storage, worker};

/// Settings under one heading.
struct Section {
    title: String,
    settings: Vec<&'static Setting>,
}

fn sections() -> Vec<Section> {
    let mut all = vec![
        Section { title: "Every process".to_owned(), settings: config::COMMON.to_vec() },
        Section {
            title: "Workers and schedules".to_owned(),
            settings: [&worker::JOB_LOCK_SECONDS, &super::serve::PG_CLIENT_VERSION]
                .into_iter()
                .chain(schedule::SETTINGS.iter().copied())
                .chain([&crate::state::STATE_DATABASE_URL])
                .collect(),
        },
        Section { title: "Object storage".to_owned(), settings: storage::settings::SETTINGS.to_vec() },
        Section { title: "Archives".to_owned(), settings: crate::backup::settings::SHARED.to_vec() },
    ];
    for (kind, settings) in jobs::settings() {
        let settings: Vec<_> = settings
            .into_iter()
            .filter(|s| !all.iter().any(|section| section.settings.iter().any(|known| known.name == s.name)))
            .collect();
        if !settings.is_empty() {
            all.push(Section { title: format!("{}: {}", kind.name, kind.summary), settings });
        }
    }
    let service = crate::restore::config::SETTINGS.iter().copied();
    all.push(Section { title: "Restore service: clusters on demand".to_owned(), settings: service.collect() });
    all.push(Section { title: "Error tracker".to_owned(), settings: sentry::SETTINGS.to_vec() });
    all.push(Section { title: "Web".to_owned(), settings: vec![&crate::web::PORT, &crate::web::HOST] });
    all
}

/// Every setting.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    sections().into_iter().flat_map(|section| section.settings)
}

/// The text of `sample.env`.
#[must_use]
pub fn sample() -> String {
    let mut out = String::from(
        "# Settings of Bullwork. Copy to `.env` and change what you need; variables of the process\n\
         # environment win over this file. Written by `bullwork config sample`: do not edit by hand.\n",
    );
    for section in sections() {
        let _ = write!(out, "\n# ---- {} ----\n", section.title);
        for setting in section.settings {
            out.push('\n');
            for line in wrap(setting.about, 96) {
                let _ = writeln!(out, "# {line}");
            }
            if !setting.aliases.is_empty() {
                let _ = writeln!(out, "# Also read from: {}.", setting.aliases.join(", "));
            }
            match setting.default {
                Some(default) => {
                    let _ = writeln!(out, "#{}={}", setting.name, quoted(default));
                }
                None => {
                    let _ = writeln!(out, "# Not set by default.\n#{}=", setting.name);
                }
            }
        }
    }
    let _ = write!(out, "\n# ---- Accepted and ignored ----\n# {}\n", config::IGNORED.join(", "));
    out
}

/// Values that hold more than plain characters need quotes in a `.env` file.
fn quoted(value: &str) -> String {
    if value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@,+=[]{}".contains(c)) {
        value.to_owned()
    } else {
        format!("'{value}'")
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Every setting with its value, secrets masked, and where the value comes from.
#[must_use]
pub fn show(environment: &Environment) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["setting", "value", "from"]);
    for section in sections() {
        for setting in section.settings {
            let (value, from) = match environment.lookup(setting) {
                None => (String::new(), "not set".to_owned()),
                Some((value, origin)) if setting.secret && !value.is_empty() => ("***".to_owned(), origin.to_string()),
                // As a whole: a password may hold what would end a URL in a text.
                Some((value, origin)) if setting.name.contains("DATABASE") || setting.name.ends_with("URL") => {
                    (redact::mask_url(value), origin.to_string())
                }
                Some((value, origin)) => (redact::scrub(value), origin.to_string()),
            };
            table.add_row([setting.name, &value, &from]);
        }
    }
    table
}
