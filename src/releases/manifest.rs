//! What a release holds, to the byte: each file with its digest, each directory and symlink.
//!
//! It is made on the developers' server before anything is copied, stored when beta has it all, compared with beta before
//! production begins, and with each server before its files change places. A [`Survey`] is what such a look finds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::paths;

/// Findings that are told one by one.
const TOLD: usize = 10;

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Thing {
    /// A file.
    File {
        /// Bytes.
        size: u64,
        /// SHA-256 in hexadecimal; empty in a survey without digests.
        sha256: String,
        /// Permissions.
        mode: u32,
    },
    /// A directory.
    Directory {
        /// Permissions.
        mode: u32,
    },
    /// A symlink.
    Link {
        /// What it says.
        to: String,
    },
    /// Something that cannot be copied: a device, a pipe, a socket.
    Other,
}

impl Thing {
    fn word(&self) -> &'static str {
        match self {
            Thing::File { .. } => "a file",
            Thing::Directory { .. } => "a directory",
            Thing::Link { .. } => "a symlink",
            Thing::Other => "a device, pipe or socket",
        }
    }
}

/// Everything a release holds, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest(pub BTreeMap<String, Thing>);

impl Manifest {
    /// Files and symlinks, and the bytes of the files.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        let mut extent = (0, 0);
        for thing in self.0.values() {
            match thing {
                Thing::File { size, .. } => extent = (extent.0 + 1, extent.1 + size),
                Thing::Link { .. } => extent.0 += 1,
                _ => {}
            }
        }
        extent
    }
}

/// What a look at a project directory found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Bytes that are free there.
    pub free: u64,
    /// What was found, by name.
    pub found: Manifest,
    /// Names that were asked for and are not there.
    pub missing: BTreeSet<String>,
    /// What stands above the names that were asked for: `l`, `d`, `f` or `-`.
    pub above: BTreeMap<String, char>,
}

/// A look whose answer, or whose result, is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The answer cannot be read.
    #[error("the server's answer cannot be read: {0}")]
    Answer(String),
    /// There is no such name.
    #[error("missing on {place}: {}", listed(.names))]
    Missing {
        /// Where.
        place: String,
        /// Which.
        names: Vec<String>,
    },
    /// It cannot be part of a release.
    #[error("refused on {place}: {}", listed(.reasons))]
    Refused {
        /// Where.
        place: String,
        /// Why, one for each.
        reasons: Vec<String>,
    },
    /// It is not what the manifest tells.
    #[error("{place} is not what the manifest tells: {}", listed(.names))]
    Differs {
        /// Where.
        place: String,
        /// Which.
        names: Vec<String>,
    },
}

fn listed(names: &[String]) -> String {
    let told: Vec<&str> = names.iter().take(TOLD).map(String::as_str).collect();
    let more = names.len().saturating_sub(TOLD);
    if more == 0 { told.join(", ") } else { format!("{}, and {more} more", told.join(", ")) }
}

impl Survey {
    /// Reads what `survey.sh` writes at `place`.
    ///
    /// # Errors
    /// When it was cut short, or a name is no UTF-8.
    pub fn read(answer: &[u8], place: &str) -> Result<Survey, ManifestError> {
        let bad = |what: &str| ManifestError::Answer(what.to_owned());
        let mut odd = Vec::new();
        let mut survey = Survey::default();
        let mut digests: BTreeMap<String, String> = BTreeMap::new();
        let mut rest = answer;
        let free = field(&mut rest).ok_or_else(|| bad("it is empty"))?;
        let free =
            free.strip_prefix("free ").and_then(|kib| kib.parse::<u64>().ok()).ok_or_else(|| bad("no free space is told"))?;
        survey.free = free.saturating_mul(1024);
        while !rest.is_empty() {
            if let Some((digest, name)) = digest_line(&mut rest) {
                // Those of odd names are told below.
                digests.extend(name.map(|name| (name, digest)));
                continue;
            }
            let (Some(head), Some(name), Some(link)) = (field(&mut rest), bytes(&mut rest), bytes(&mut rest)) else {
                return Err(bad("it ends in the middle of an entry"));
            };
            let (name, link) = match (std::str::from_utf8(name), std::str::from_utf8(link)) {
                (Ok(name), Ok(link)) => (name, link.to_owned()),
                (Err(_), _) => {
                    let name = String::from_utf8_lossy(name.strip_prefix(b"./").unwrap_or(name));
                    odd.push(format!("`{}` is no UTF-8 text", name.escape_debug()));
                    continue;
                }
                (Ok(name), Err(_)) => {
                    odd.push(format!("`{name}` is a symlink to a name that is no UTF-8 text"));
                    continue;
                }
            };
            let name = name.strip_prefix("./").unwrap_or(name).to_owned();
            let mut words = head.split(' ');
            let (kind, mode, size) =
                (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if let Some(kind) = kind.strip_prefix('=') {
                survey.above.insert(name, kind.chars().next().unwrap_or('-'));
                continue;
            }
            let mode = u32::from_str_radix(mode, 8).map_err(|_| bad(&head))?;
            let thing = match kind {
                "-" => {
                    survey.missing.insert(name);
                    continue;
                }
                "f" => Thing::File { size: size.parse().map_err(|_| bad(&head))?, sha256: String::new(), mode },
                "d" => Thing::Directory { mode },
                "l" => Thing::Link { to: link },
                _ => Thing::Other,
            };
            survey.found.0.insert(name, thing);
        }
        if !odd.is_empty() {
            return Err(ManifestError::Refused { place: place.to_owned(), reasons: odd });
        }
        for (name, digest) in digests {
            if let Some(Thing::File { sha256, .. }) = survey.found.0.get_mut(&name) {
                *sha256 = digest;
            }
        }
        Ok(survey)
    }

    /// What a release of these entries would hold, if it can be one.
    ///
    /// # Errors
    /// When something is missing, cannot be copied, or leads out of the project; all of it is told.
    pub fn into_manifest(self, place: &str) -> Result<Manifest, ManifestError> {
        let place = place.to_owned();
        if !self.missing.is_empty() {
            let names = self.missing.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
            return Err(ManifestError::Missing { place, names });
        }
        let mut reasons = self.links_above();
        for (name, thing) in &self.found.0 {
            let why = match thing {
                _ if name.contains('\n') => "has a line end in its name",
                Thing::Other => "is a device, pipe or socket",
                Thing::Link { to } if !stays(name, to) => "is a symlink that leads out of the project",
                Thing::File { sha256, .. } if sha256.is_empty() => "changed while it was read",
                _ => continue,
            };
            reasons.push(format!("`{}` {why}", name.escape_debug()));
        }
        if reasons.is_empty() { Ok(self.found) } else { Err(ManifestError::Refused { place, reasons }) }
    }

    fn links_above(&self) -> Vec<String> {
        let links = self.above.iter().filter(|(_, kind)| **kind == 'l');
        links.map(|(name, _)| format!("`{}` is a symlink, and what is named lies behind it", name.escape_debug())).collect()
    }

    /// What has to be done here, so that the names of `wanted` are as they should be.
    ///
    /// # Errors
    /// When something is in the way.
    pub fn changes_to(&self, wanted: &Manifest, place: &str) -> Result<Changes, ManifestError> {
        let (mut changes, mut reasons) = (Changes::default(), self.links_above());
        for (name, kind) in &self.above {
            if *kind == 'f' {
                reasons.push(format!("`{}` is a file, and what is named lies below it", name.escape_debug()));
            }
        }
        for (name, thing) in &wanted.0 {
            match (thing, self.found.0.get(name)) {
                (Thing::Directory { .. }, Some(Thing::Directory { .. })) => {}
                (Thing::Directory { .. }, None) => changes.directories.push(name.clone()),
                (Thing::File { .. } | Thing::Link { .. }, None) => changes.added.push(name.clone()),
                (Thing::File { .. } | Thing::Link { .. }, Some(Thing::File { .. } | Thing::Link { .. })) => {
                    if self.found.0.get(name) == Some(thing) {
                        changes.same += 1;
                    } else {
                        changes.replaced.push(name.clone());
                    }
                }
                (_, Some(there)) => {
                    reasons.push(format!(
                        "`{}` is {} there, and {} in the release",
                        name.escape_debug(),
                        there.word(),
                        thing.word()
                    ));
                }
                (Thing::Other, None) => {}
            }
        }
        // A directory of which only the inside is named, and that is not there.
        for (name, kind) in &self.above {
            if *kind == '-' && !wanted.0.contains_key(name) {
                changes.directories.push(name.clone());
            }
        }
        changes.directories.sort();
        if reasons.is_empty() { Ok(changes) } else { Err(ManifestError::Refused { place: place.to_owned(), reasons }) }
    }

    /// Whether the names of `wanted` are all here, and as it tells; those in `only`, when given.
    ///
    /// # Errors
    /// Those that are not.
    pub fn matches(&self, wanted: &Manifest, only: Option<&[String]>, place: &str) -> Result<(), ManifestError> {
        let only: Option<BTreeSet<&String>> = only.map(|names| names.iter().collect());
        let differ = |(name, thing): &(&String, &Thing)| match (thing, self.found.0.get(*name)) {
            (Thing::Directory { .. }, found) => !matches!(found, Some(Thing::Directory { .. })),
            (_, found) => found != Some(thing),
        };
        let wanted = wanted.0.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only.contains(name)));
        let names: Vec<String> = wanted.filter(differ).map(|(name, _)| format!("`{}`", name.escape_debug())).collect();
        if names.is_empty() { Ok(()) } else { Err(ManifestError::Differs { place: place.to_owned(), names }) }
    }
}

/// What a release changes on a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Directories that are made, outer ones first.
    pub directories: Vec<String>,
    /// Files and symlinks that are new.
    pub added: Vec<String>,
    /// Those that replace others.
    pub replaced: Vec<String>,
    /// Those that are taken away.
    pub removed: Vec<String>,
    /// Those that are there already.
    pub same: usize,
}

impl Changes {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.added.is_empty() && self.replaced.is_empty() && self.removed.is_empty()
    }

    /// Names of what is sent.
    #[must_use]
    pub fn sent(&self) -> Vec<String> {
        self.added.iter().chain(&self.replaced).cloned().collect()
    }

    /// In a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Changes { directories, added, replaced, removed, same } = self;
        format!(
            "{} new, {} replaced, {} taken away, {} new directories, {same} the same",
            added.len(),
            replaced.len(),
            removed.len(),
            directories.len()
        )
    }
}

/// Whether a symlink called `name` that says `to` stays in the project, whatever the names on its way are: it may climb only
/// before it descends, and not above the project.
fn stays(name: &str, to: &str) -> bool {
    let parts: Vec<&str> = to.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let climbs = parts.iter().take_while(|part| **part == "..").count();
    !to.starts_with('/') && climbs <= paths::parents(name).count() && !parts[climbs..].contains(&"..")
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let bytes = &rest[..end];
    *rest = &rest[end + 1..];
    Some(bytes)
}

fn field(rest: &mut &[u8]) -> Option<String> {
    std::str::from_utf8(bytes(rest)?).ok().map(str::to_owned)
}

/// `DIGEST *./NAME` and a line end; a backslash before it says that the name is written with escapes. No name where it is no UTF-8.
fn digest_line(rest: &mut &[u8]) -> Option<(String, Option<String>)> {
    let escaped = rest.first() == Some(&b'\\');
    let line = &rest[usize::from(escaped)..];
    let hex = line.get(..64).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
    let name = line[64..].strip_prefix(b" *").or_else(|| line[64..].strip_prefix(b"  "))?;
    let end = name.iter().position(|byte| *byte == b'\n')?;
    *rest = &name[end + 1..];
    let name = std::str::from_utf8(&name[..end]).ok().map(|name| {
        let name = name.strip_prefix("./").unwrap_or(name);
        if escaped { name.replace("\\\\", "\\") } else { name.to_owned() }
    });
    Some((String::from_utf8_lossy(hex).to_ascii_lowercase(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sha256: &str) -> Thing {
        Thing::File { size: 1, sha256: sha256.repeat(64), mode: 0o644 }
    }

    fn manifest(things: &[(&str, Thing)]) -> Manifest {
        Manifest(things.iter().map(|(name, thing)| ((*name).to_owned(), thing.clone())).collect())
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let digest = "a".repeat(64);
        let answer = format!(
            "free 2\0=d 0 0\0./d\0\0- 0 0\0./gone\0\0d 755 4096\0./d/e\0\0f 644 1\0./d/x y\0\0l 777 1\0./l\0d/x y\0{digest} *./d/x y\n\
             f 600 1\0./b\\s\0\0\\{digest} *./b\\\\s\np 644 0\0./pipe\0\0"
        );
        let survey = Survey::read(answer.as_bytes(), "dev").unwrap();
        assert_eq!(survey.free, 2048);
        assert_eq!(survey.missing.iter().collect::<Vec<_>>(), ["gone"]);
        assert_eq!(survey.above.get("d"), Some(&'d'));
        assert_eq!(
            survey.found,
            manifest(&[
                ("d/e", Thing::Directory { mode: 0o755 }),
                ("d/x y", file("a")),
                ("l", Thing::Link { to: "d/x y".to_owned() }),
                ("b\\s", Thing::File { size: 1, sha256: digest, mode: 0o600 }),
                ("pipe", Thing::Other),
            ])
        );
        assert_eq!(survey.found.extent(), (3, 2));
        for broken in [&answer.as_bytes()[..answer.len() - 1], b"", b"free x\0", b"free 1\0f 644 1\0./\xff\0\0"] {
            assert!(Survey::read(broken, "dev").is_err());
        }
    }

    #[test]
    fn what_cannot_be_released_is_told_together() {
        let link = |to: &str| Thing::Link { to: to.to_owned() };
        let survey = Survey {
            found: manifest(&[
                ("ok", file("a")),
                ("out", link("../x")),
                ("d/in", link("../ok")),
                ("p", Thing::Other),
                ("a\nb", file("b")),
            ]),
            above: [("s".to_owned(), 'l')].into(),
            ..Survey::default()
        };
        let error = survey.clone().into_manifest("dev").unwrap_err().to_string();
        for part in
            ["on dev", "`out` is a symlink that leads out", "`p` is a device", "`a\\nb` has a line end", "`s` is a symlink, and"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("d/in") && !error.contains("`ok`"), "{error}");
        let missing = Survey { missing: ["no".to_owned()].into(), ..survey };
        assert_eq!(missing.into_manifest("dev").unwrap_err().to_string(), "missing on dev: `no`");
    }

    #[test]
    fn a_symlink_climbs_before_it_descends_and_not_out_of_the_project() {
        for (name, to) in [("l", "x"), ("d/l", "../x"), ("d/e/l", ".././../x/y"), ("l", "./x/")] {
            assert!(stays(name, to), "{name} -> {to}");
        }
        for (name, to) in [("l", "/etc"), ("l", "../x"), ("d/l", "../../x"), ("l", "d/../../x"), ("d/l", "e/.."), ("l", "..")] {
            assert!(!stays(name, to), "{name} -> {to}");
        }
    }

    #[test]
    fn only_what_differs_is_changed_and_what_is_in_the_way_is_refused() {
        let wanted =
            manifest(&[("d", Thing::Directory { mode: 0o755 }), ("d/new", file("a")), ("old", file("b")), ("same", file("c"))]);
        let mut there = Survey { found: manifest(&[("old", file("d")), ("same", file("c"))]), ..Survey::default() };
        let changes = there.changes_to(&wanted, "web").unwrap();
        assert_eq!(changes.summary(), "1 new, 1 replaced, 0 taken away, 1 new directories, 1 the same");
        assert_eq!(changes.sent(), ["d/new", "old"]);
        let error = there.matches(&wanted, None, "web").unwrap_err().to_string();
        assert_eq!(error, "web is not what the manifest tells: `d`, `d/new`, `old`");
        assert!(there.matches(&wanted, Some(&["same".to_owned()]), "web").is_ok());
        there.found.0.insert("d".to_owned(), file("e"));
        let error = there.changes_to(&wanted, "web").unwrap_err().to_string();
        assert_eq!(error, "refused on web: `d` is a file there, and a directory in the release");
    }
}
