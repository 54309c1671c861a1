//! What is backed up, where to and for whom.

use std::path::{Path, PathBuf};

use super::Backup;
use super::name::{Compression, Sealing};
use super::pattern::Business;
use super::shelf::Shelf;
use super::watchdog::Watchdog;
use super::{destination, fixture, keys};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::PG_BIN;
use crate::redact::Secret;
use crate::replication::settings::database;
use crate::seal::{Seal, age, gpg};
use crate::storage::{self, key};

/// The database.
pub static BACKUP_DATABASE_URL: Setting = Setting::new(
    "BACKUP_DATABASE_URL",
    "Database to back up: postgres://user:password@host:5432/name?sslmode=require. Nothing is ever written to it.",
)
.aliases(&["DATABASE_URL"]);
/// Where archives go.
pub static BACKUP_STORE: Setting = Setting::new(
    "BACKUP_STORE",
    "Store for archives: s3://bucket/prefix or file:///directory. Unset: s3:// with S3_BUCKET_NAME; without that there are no backups.",
);
/// Where they go too.
pub static BACKUP_SECOND_STORE: Setting = Setting::new(
    "BACKUP_SECOND_STORE",
    "Second store that gets every archive too, written alike. What is not set of BACKUP_SECOND_S3_… is as in S3_…. A run whose copy does not arrive there fails, and the next one copies it again.",
);
/// Its server.
pub static BACKUP_SECOND_S3_ENDPOINT: Setting = Setting::new(
    "BACKUP_SECOND_S3_ENDPOINT",
    "URL of the second store's server, where it is not that of S3_ENDPOINT. Amazon's beside another one: https://s3.REGION.amazonaws.com.",
);
/// Where that is.
pub static BACKUP_SECOND_S3_REGION: Setting =
    Setting::new("BACKUP_SECOND_S3_REGION", "Region of the second store's bucket, where it is not that of S3_REGION.");
/// Who.
pub static BACKUP_SECOND_S3_ACCESS_KEY: Setting = Setting::new(
    "BACKUP_SECOND_S3_ACCESS_KEY",
    "Id of the second store's access key, where it is not S3_ACCESS_KEY; its secret is needed with it.",
);
/// And the proof.
pub static BACKUP_SECOND_S3_SECRET_KEY: Setting =
    Setting::new("BACKUP_SECOND_S3_SECRET_KEY", "Secret of BACKUP_SECOND_S3_ACCESS_KEY.").secret();
/// For temporary keys.
pub static BACKUP_SECOND_S3_SESSION_TOKEN: Setting =
    Setting::new("BACKUP_SECOND_S3_SESSION_TOKEN", "Token that belongs to a temporary BACKUP_SECOND_S3_ACCESS_KEY.").secret();
/// Below which names.
pub static BACKUP_PREFIX: Setting =
    Setting::new("BACKUP_PREFIX", "Begins the name of every object of the backups in both stores. Each database needs its own.")
        .default("db/");
/// How archives are made smaller.
pub static BACKUP_COMPRESSION: Setting = Setting::new(
    "BACKUP_COMPRESSION",
    "How archives are made smaller: zstd, gzip or xz. xz makes them a fifth smaller for 40 to 60 times the CPU of zstd.",
)
.default("zstd");
/// And how much.
pub static BACKUP_COMPRESSION_LEVEL: Setting = Setting::new(
    "BACKUP_COMPRESSION_LEVEL",
    "Level: zstd 1 to 19 (unset: 3), gzip 1 to 9 (6), xz 0 to 6 (6; higher ones need more memory than they save bytes).",
);
/// For whom, in the age format.
pub static BACKUP_AGE_RECIPIENTS: Setting = Setting::new(
    "BACKUP_AGE_RECIPIENTS",
    "Public keys (age1…) of those who can open archives, separated by commas, or the path of a file with one a line. The private keys belong on other machines: `bullwork backup keygen FILE` makes one.",
);
/// For whom, in OpenPGP.
pub static BACKUPS_GPG_RECIPIENT: Setting = Setting::new(
    "BACKUPS_GPG_RECIPIENT",
    "Instead of age keys: fingerprint or address of the OpenPGP key that can open archives; its public half has to be in the keyring of the installed gpg.",
)
.aliases(&["BACKUP_GPG_RECIPIENT"]);
/// For everybody.
pub static BACKUP_PLAIN: Setting = Setting::new(
    "BACKUP_PLAIN",
    "true stores archives without encryption, where everybody who can read the store can read the database. Without it, and without a recipient, there are no backups.",
)
.default("false");

/// What several kinds read: where archives are, how they are opened, and where they are restored to.
pub static SHARED: &[&Setting] = &[
    &BACKUP_STORE,
    &BACKUP_PREFIX,
    &BACKUP_SECOND_STORE,
    &BACKUP_SECOND_S3_ENDPOINT,
    &BACKUP_SECOND_S3_REGION,
    &BACKUP_SECOND_S3_ACCESS_KEY,
    &BACKUP_SECOND_S3_SECRET_KEY,
    &BACKUP_SECOND_S3_SESSION_TOKEN,
    &fixture::BACKUP_FIXTURES,
    &destination::RESTORE_DATABASE_URL,
    &keys::RESTORE_AGE_KEY_FILE,
    &keys::RESTORE_GPG_PASSPHRASE_FILE,
];

/// What a verb or a job says that has no store to work with.
pub const NO_STORE: &str = "no store is configured; set BACKUP_STORE or S3_BUCKET_NAME";

/// Whether backups are configured at all.
#[must_use]
pub fn wanted(reader: &Reader<'_>) -> bool {
    [&BACKUP_STORE, &storage::settings::S3_BUCKET_NAME].iter().any(|setting| reader.optional(setting).is_some())
}

/// The store with the archives, for whoever reads or writes them; nothing when none is configured.
pub fn shelf(reader: &Reader<'_>) -> Option<Shelf> {
    let prefix = reader.text(&BACKUP_PREFIX);
    if let Err(problem) = key::check_prefix(&prefix) {
        reader.problem(BACKUP_PREFIX.name, problem);
    }
    let options = storage::Options::from_settings(reader);
    let (setting, address) = match reader.optional(&BACKUP_STORE) {
        Some(_) => (&BACKUP_STORE, storage::settings::address(reader, &BACKUP_STORE)?),
        None => {
            let bucket = reader.optional(&storage::settings::S3_BUCKET_NAME)?;
            options.need_keys(reader);
            (&storage::settings::S3_BUCKET_NAME, format!("s3://{bucket}"))
        }
    };
    open(reader, setting, &address, &options, prefix)
}

/// The second store; nothing when none is configured.
pub fn second(reader: &Reader<'_>) -> Option<Shelf> {
    reader.optional(&BACKUP_SECOND_STORE)?;
    let options = second_options(reader);
    let own_key = reader.optional(&BACKUP_SECOND_S3_ACCESS_KEY).or_else(|| reader.optional(&BACKUP_SECOND_S3_SECRET_KEY));
    let address = storage::settings::address_with(reader, &BACKUP_SECOND_STORE, || match own_key {
        Some(_) => options.need_keys_of(reader, &BACKUP_SECOND_S3_ACCESS_KEY, &BACKUP_SECOND_S3_SECRET_KEY),
        None => options.need_keys(reader),
    })?;
    open(reader, &BACKUP_SECOND_STORE, &address, &options, reader.text(&BACKUP_PREFIX))
}

/// How the second store is spoken to.
fn second_options(reader: &Reader<'_>) -> storage::Options {
    let mut options = storage::Options::from_settings(reader);
    if let Some(endpoint) = reader.url(&BACKUP_SECOND_S3_ENDPOINT, &["https", "http"]) {
        options.endpoint = Some(endpoint);
    }
    if let Some(region) = reader.optional(&BACKUP_SECOND_S3_REGION) {
        options.region = region;
    }
    let (id, secret) = (reader.optional(&BACKUP_SECOND_S3_ACCESS_KEY), reader.optional(&BACKUP_SECOND_S3_SECRET_KEY));
    if id.is_some() || secret.is_some() {
        // Of two halves of different keys nothing is ever signed, and no token goes with another's key.
        options.access_key = id.unwrap_or_default();
        options.secret_key = Secret::new(secret.unwrap_or_default());
        options.session_token = reader.optional(&BACKUP_SECOND_S3_SESSION_TOKEN).map(Secret::new);
    }
    options
}

/// Whether two stores would be one: with the same address, and S3 at the same server.
fn same(reader: &Reader<'_>, first: &Shelf, second: &Shelf) -> bool {
    first.shown() == second.shown()
        && (!first.shown().starts_with("s3://")
            || second_options(reader).endpoint == storage::Options::from_settings(reader).endpoint)
}

fn open(reader: &Reader<'_>, setting: &Setting, address: &str, options: &storage::Options, prefix: String) -> Option<Shelf> {
    match storage::open(address, options) {
        Ok(store) => Some(Shelf { store, prefix }),
        Err(error) => {
            reader.problem(setting.name, error.to_string());
            None
        }
    }
}

impl Backup {
    /// Reads everything; nothing when no store is configured, or a mistake was noted.
    pub fn from_settings(reader: &Reader<'_>) -> Option<Self> {
        if !wanted(reader) {
            return None;
        }
        let (compression, level) = compression(reader);
        let source = database(reader, &BACKUP_DATABASE_URL);
        let (shelf, second) = (shelf(reader), second(reader));
        if let (Some(shelf), Some(second)) = (&shelf, &second)
            && same(reader, shelf, second)
        {
            reader.problem(BACKUP_SECOND_STORE.name, "is the first store; name another one");
        }
        let seal = seal(reader);
        let business = Business::from_settings(reader);
        let groups = fixture::groups(reader);
        let watchdog = Watchdog::from_settings(reader);
        let programs = reader.optional(&PG_BIN).map(PathBuf::from);
        Some(Backup {
            source: source?,
            shelf: shelf?,
            second,
            business,
            groups,
            compression,
            level,
            seal: seal?,
            programs,
            watchdog,
        })
    }
}

fn compression(reader: &Reader<'_>) -> (Compression, u32) {
    let (compression, range, default) = match reader.text(&BACKUP_COMPRESSION).as_str() {
        "zstd" => (Compression::Zstd, 1..=19, 3),
        "gzip" => (Compression::Gzip, 1..=9, 6),
        "xz" => (Compression::Xz, 0..=6, 6),
        other => {
            reader.problem(BACKUP_COMPRESSION.name, format!("`{other}` is none of: zstd, gzip, xz"));
            return (Compression::Zstd, 3);
        }
    };
    let level = match reader.optional(&BACKUP_COMPRESSION_LEVEL) {
        Some(_) => reader.integer(&BACKUP_COMPRESSION_LEVEL, range),
        None => default,
    };
    (compression, u32::try_from(level).unwrap_or(3))
}

/// For whom; the inner nothing is everybody.
fn seal(reader: &Reader<'_>) -> Option<Option<Seal>> {
    let (keys, gpg_key) = (reader.optional(&BACKUP_AGE_RECIPIENTS), reader.optional(&BACKUPS_GPG_RECIPIENT));
    let plain = reader.flag(&BACKUP_PLAIN);
    let chosen = [(keys.is_some(), Sealing::Age), (gpg_key.is_some(), Sealing::Gpg), (plain, Sealing::Plain)];
    let mut chosen = chosen.into_iter().filter_map(|(is, sealing)| is.then_some(sealing));
    match (chosen.next(), chosen.next()) {
        (Some(_), Some(_)) => {
            let rule =
                format!("set one of {}, {} and {}", BACKUP_AGE_RECIPIENTS.name, BACKUPS_GPG_RECIPIENT.name, BACKUP_PLAIN.name);
            reader.problem(BACKUP_AGE_RECIPIENTS.name, format!("leaves open for whom archives are encrypted; {rule}, not more"));
            None
        }
        (Some(Sealing::Age), None) => match recipients(&keys.unwrap_or_default()) {
            Ok(recipients) => Some(Some(Seal::Age(recipients))),
            Err(error) => {
                reader.problem(BACKUP_AGE_RECIPIENTS.name, error.to_string());
                None
            }
        },
        (Some(Sealing::Gpg), None) => Some(Some(Seal::Gpg(gpg::Recipient::new(&gpg_key.unwrap_or_default())))),
        (Some(Sealing::Plain), None) => Some(None),
        (None, _) => {
            let way_out = "public keys from `bullwork backup keygen FILE`, or BACKUPS_GPG_RECIPIENT; BACKUP_PLAIN=true stores archives without encryption";
            reader.problem(BACKUP_AGE_RECIPIENTS.name, format!("is not set, so nobody could open an archive; write {way_out}"));
            None
        }
    }
}

fn recipients(text: &str) -> Result<age::Recipients, crate::seal::SealError> {
    let path = Path::new(text.trim());
    if text.contains('/') || path.is_file() { age::Recipients::from_file(path) } else { age::Recipients::parse(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(pairs: &[(&str, &str)]) -> (Option<Backup>, String) {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let backup = Backup::from_settings(&reader);
        (backup, reader.finish().err().map(|e| e.to_string()).unwrap_or_default())
    }

    #[test]
    fn the_names_that_the_seed_reads_are_enough() {
        let (backup, problems) = read(&[
            ("DATABASE_URL", "postgres://u@h/shop"),
            ("S3_BUCKET_NAME", "my.bucket"),
            ("S3_ACCESS_KEY", "id"),
            ("S3_SECRET_KEY", "secret-enough"),
            ("BACKUPS_GPG_RECIPIENT", "backup@example.org"),
        ]);
        let backup = backup.expect(&problems);
        assert_eq!((backup.source.name(), backup.sealing()), ("shop", Sealing::Gpg));
        assert_eq!((backup.shelf.prefix.as_str(), backup.compression, backup.level), ("db/", Compression::Zstd, 3));
    }

    #[test]
    fn without_a_store_there_are_no_backups_and_no_problems() {
        let (backup, problems) = read(&[("BACKUP_COMPRESSION", "zip")]);
        assert!(backup.is_none() && problems.is_empty(), "{problems}");
    }

    #[test]
    fn encryption_is_left_out_only_when_somebody_says_so() {
        let base = [("DATABASE_URL", "postgres://u@h/shop"), ("BACKUP_STORE", "file:///srv/backups")];
        let with = |more: &[(&'static str, &'static str)]| read(&[&base[..], more].concat());
        assert!(with(&[]).1.contains("nobody could open an archive"));
        assert!(with(&[("BACKUP_PLAIN", "true")]).0.unwrap().seal.is_none());
        assert!(with(&[("BACKUP_PLAIN", "true"), ("BACKUPS_GPG_RECIPIENT", "a")]).1.contains("not more"));
        assert!(with(&[("BACKUP_AGE_RECIPIENTS", "age1nonsense")]).1.contains("BACKUP_AGE_RECIPIENTS"));
        assert!(with(&[("BACKUP_AGE_RECIPIENTS", "/nowhere/keys")]).1.contains("/nowhere/keys"));
    }

    #[test]
    fn the_second_store_may_be_another_server_with_keys_of_its_own() {
        let base = [
            ("DATABASE_URL", "postgres://u@h/shop"),
            ("BACKUP_PLAIN", "true"),
            ("BACKUP_STORE", "s3://archives"),
            ("BACKUP_SECOND_STORE", "s3://archives"),
            ("S3_ACCESS_KEY", "first-id"),
            ("S3_SECRET_KEY", "first-secret"),
            ("S3_SESSION_TOKEN", "first-token"),
        ];
        let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
        assert!(read(&base).1.contains("is the first store"));
        let other = [("BACKUP_SECOND_S3_ENDPOINT", "https://s3.example.org"), ("BACKUP_SECOND_S3_REGION", "far")];
        let (backup, problems) = read(&with(&other));
        assert!(backup.is_some_and(|backup| backup.second.is_some()), "{problems}");

        let own = [&other[..], &[("BACKUP_SECOND_S3_ACCESS_KEY", "second-id"), ("BACKUP_SECOND_S3_SECRET_KEY", "second-secret")]];
        let environment = Environment::of(with(&own.concat()));
        let reader = Reader::new(&environment);
        let options = second_options(&reader);
        reader.finish().unwrap();
        assert_eq!((options.access_key.as_str(), options.secret_key.expose()), ("second-id", "second-secret"));
        assert!(options.session_token.is_none(), "the first key's token goes with no other key");
        assert_eq!((options.region.as_str(), options.endpoint.unwrap().host_str()), ("far", Some("s3.example.org")));
        let half = [&other[..], &[("BACKUP_SECOND_S3_ACCESS_KEY", "second-id")]].concat();
        assert!(read(&with(&half)).1.contains("BACKUP_SECOND_S3_SECRET_KEY: is not set"), "{}", read(&with(&half)).1);
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let (_, problems) = read(&[
            ("BACKUP_STORE", "file:///srv/backups"),
            ("BACKUP_SECOND_STORE", "file:///srv/backups"),
            ("BACKUP_PREFIX", "../x"),
            ("BACKUP_COMPRESSION", "xz"),
            ("BACKUP_COMPRESSION_LEVEL", "9"),
            ("BACKUP_FIXTURES", "[]"),
            ("BACKUP_PING_URL", "ftp://h"),
        ]);
        for name in [
            "BACKUP_DATABASE_URL",
            "BACKUP_SECOND_STORE",
            "BACKUP_PREFIX",
            "BACKUP_COMPRESSION_LEVEL",
            "BACKUP_FIXTURES",
            "BACKUP_PING_URL",
            "BACKUP_AGE_RECIPIENTS",
        ] {
            assert!(problems.contains(&format!("{name}:")), "{name} in {problems}");
        }
    }
}
