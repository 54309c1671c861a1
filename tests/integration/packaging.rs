//! The files that deployments read know every kind of job.

use std::collections::BTreeMap;
use std::path::Path;

/// Longest process name that the platforms accept.
const NAME_LIMIT: usize = 24;

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Process name to command line.
fn procfile() -> BTreeMap<String, String> {
    read("Procfile")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, command) = line.split_once(": ").unwrap_or_else(|| panic!("`{line}` is no process"));
            (name.to_owned(), command.to_owned())
        })
        .collect()
}

#[test]
fn procfile_has_a_separately_scaled_worker_for_every_kind() {
    let processes = procfile();
    for kind in bullwork::jobs::ALL {
        let worker = format!("./target/release/bullwork worker {}", kind.name);
        assert_eq!(processes.values().filter(|command| **command == worker).count(), 1, "workers of {}", kind.name);
    }
    for process in ["web", "background", "scheduler"] {
        assert!(processes[process].ends_with(&format!("./target/release/bullwork {process}")), "{process}");
    }
    for (name, command) in &processes {
        assert!(name.len() <= NAME_LIMIT && name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        if let Some(kind) = command.strip_prefix("./target/release/bullwork worker ") {
            assert!(bullwork::jobs::named(kind).is_some(), "{name} runs the unknown kind {kind}");
        }
    }
}

#[test]
fn platform_manifest_scales_the_processes_of_the_procfile() {
    let manifest: serde_json::Value = serde_json::from_str(&read("scalingo.json")).unwrap();
    let scaled: Vec<_> = manifest["formation"].as_object().unwrap().keys().cloned().collect();
    let mut declared: Vec<_> = procfile().into_keys().collect();
    declared.sort();
    let mut sorted = scaled;
    sorted.sort();
    assert_eq!(sorted, declared);
}
