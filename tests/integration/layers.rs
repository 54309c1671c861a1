//! The layers of `src/lib.rs` hold: no module uses one that stands below it.

use std::path::{Path, PathBuf};

const LAYERS: &[&[&str]] = &[
    &["clock", "config", "cron", "identity", "logging", "redact", "shutdown", "throttle"],
    &["postgres", "process", "redis", "seal", "sentry", "ssh", "state", "storage", "webhook"],
    &["queue"],
    &["schedule", "worker"],
    &["backup", "jobs", "presets", "releases", "replication", "restore"],
    &["cli", "listen", "ops", "repl", "web"],
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("src is readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_module_uses_one_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for file in files {
        let relative = file.strip_prefix(&root).expect("found below src");
        let top = relative.iter().next().expect("has a first part").to_string_lossy();
        let module = top.trim_end_matches(".rs").to_owned();
        if matches!(module.as_str(), "lib" | "main" | "bin") {
            continue;
        }
        let own = layer_of(&module).unwrap_or_else(|| panic!("`{module}` stands in no layer; add it here and in lib.rs"));
        let text = std::fs::read_to_string(&file).expect("source is text");
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(other) = layer_of(&used) {
                    checked += 1;
                    let same_face_calls_sibling = own == LAYERS.len() - 1 && module != "ops" && used == "queue";
                    if other > own || same_face_calls_sibling {
                        wrong.push(format!("{}:{}: `{module}` uses `{used}`", relative.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(checked > 10, "the check saw hardly any `use crate::` line");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
