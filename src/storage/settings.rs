//! Where objects go and how: addresses, and the `S3_…` variables that every S3 store of the process uses.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::key;
use crate::config::{Reader, Setting};
use crate::redact::Secret;

/// The bucket, for those who name it alone.
pub static S3_BUCKET_NAME: Setting = Setting::new(
    "S3_BUCKET_NAME",
    "Bucket for archives, where no other destination is named: the same as the address s3://NAME. Dots in it work.",
);
/// Whose server it is.
pub static S3_ENDPOINT: Setting =
    Setting::new("S3_ENDPOINT", "URL of an S3-compatible server, such as https://s3.example.org. Unset: Amazon's, by region.")
        .aliases(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
/// Where.
pub static S3_REGION: Setting =
    Setting::new("S3_REGION", "Region of the bucket; part of every signature, so the server has to know it by this name.")
        .aliases(&["AWS_REGION", "AWS_DEFAULT_REGION"])
        .default("us-east-1");
/// How the bucket is named in requests.
pub static S3_PATH_STYLE: Setting = Setting::new(
    "S3_PATH_STYLE",
    "Whether the bucket stands in the path of URLs (true) or in the host name (false); auto: in the path when S3_ENDPOINT is set or its name holds a dot, which no certificate covers.",
)
.default("auto");
/// Who.
pub static S3_ACCESS_KEY: Setting = Setting::new("S3_ACCESS_KEY", "Id of the access key.").aliases(&["AWS_ACCESS_KEY_ID"]);
/// And the proof.
pub static S3_SECRET_KEY: Setting =
    Setting::new("S3_SECRET_KEY", "Secret of the access key.").aliases(&["AWS_SECRET_ACCESS_KEY"]).secret();
/// For temporary keys.
pub static S3_SESSION_TOKEN: Setting =
    Setting::new("S3_SESSION_TOKEN", "Token that belongs to a temporary access key.").aliases(&["AWS_SESSION_TOKEN"]).secret();
/// Encryption by the store itself.
pub static S3_SSE: Setting = Setting::new(
    "S3_SSE",
    "Encryption that the store is asked for, beside ours: AES256 or aws:kms. Unset: as the bucket's own default is.",
);
/// With which key.
pub static S3_SSE_KMS_KEY_ID: Setting =
    Setting::new("S3_SSE_KMS_KEY_ID", "Id or ARN of the key for S3_SSE=aws:kms. Unset: the account's default key.");
/// How much the store is made to prove.
pub static S3_CHECKSUM: Setting = Setting::new(
    "S3_CHECKSUM",
    "when-required: the signature covers each part's SHA-256, and the MD5 that most stores answer with is compared. always: SHA-256 checksums are kept by the store and compared with its answers; not every S3-compatible server takes them.",
)
.default("when-required");
/// Objects that nobody can remove.
pub static S3_OBJECT_LOCK_MODE: Setting = Setting::new(
    "S3_OBJECT_LOCK_MODE",
    "Lock on every new object of a bucket made for it: GOVERNANCE or COMPLIANCE, for S3_OBJECT_LOCK_DAYS. Unset: as the bucket's own default is.",
);
/// For how long.
pub static S3_OBJECT_LOCK_DAYS: Setting =
    Setting::new("S3_OBJECT_LOCK_DAYS", "Days that S3_OBJECT_LOCK_MODE lasts, 1 to 36500; needed with it.");
/// Size of the parts of large objects.
pub static S3_PART_SIZE: Setting = Setting::new(
    "S3_PART_SIZE",
    "MiB in each part of a large object, 5 to 1024. An object has 10000 parts at most (156 GiB by default); an upload needs this times S3_CONCURRENCY + 1 of memory.",
)
.default("16");
/// Parts under way.
pub static S3_CONCURRENCY: Setting =
    Setting::new("S3_CONCURRENCY", "Parts of one object that are sent at the same time, 1 to 32.").default("4");
/// A limit for what is sent.
pub static S3_MAX_RATE: Setting = Setting::new(
    "S3_MAX_RATE",
    "Most megabytes (10^6 bytes) a second that are sent to a store, over all its uploads in the process; 1 to 100000. Unset: no limit.",
);
/// Patience.
pub static S3_TIMEOUT: Setting = Setting::new(
    "S3_TIMEOUT",
    "Seconds until an answer that does not come counts as none, 1 to 3600; for a part one more for each 64 KiB. Each request is tried five times.",
)
.default("60");
/// Who vouches for the server.
pub static S3_CA_FILE: Setting =
    Setting::new("S3_CA_FILE", "PEM file with the certificates that vouch for the server, instead of the system's.")
        .aliases(&["AWS_CA_BUNDLE"]);

/// All of them, in the order of `sample.env`.
pub static SETTINGS: &[&Setting] = &[
    &S3_BUCKET_NAME,
    &S3_ENDPOINT,
    &S3_REGION,
    &S3_PATH_STYLE,
    &S3_ACCESS_KEY,
    &S3_SECRET_KEY,
    &S3_SESSION_TOKEN,
    &S3_SSE,
    &S3_SSE_KMS_KEY_ID,
    &S3_CHECKSUM,
    &S3_OBJECT_LOCK_MODE,
    &S3_OBJECT_LOCK_DAYS,
    &S3_PART_SIZE,
    &S3_CONCURRENCY,
    &S3_MAX_RATE,
    &S3_TIMEOUT,
    &S3_CA_FILE,
];

/// Encryption that the store does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// `AES256`.
    Aes256,
    /// `aws:kms`, with a key's id or the account's default.
    Kms(Option<String>),
}

/// A lock on each new object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whether nobody at all can shorten it.
    pub compliance: bool,
    /// How long.
    pub days: u32,
}

/// How S3 stores are spoken to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server; Amazon's when none.
    pub endpoint: Option<Url>,
    /// Its region.
    pub region: String,
    /// Bucket in the path; by endpoint and name when none.
    pub path_style: Option<bool>,
    /// Id of the access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// What belongs to a temporary key.
    pub session_token: Option<Secret>,
    /// Encryption by the store.
    pub encryption: Option<Encryption>,
    /// Whether the store keeps checksums of its own.
    pub checksums: bool,
    /// A lock for new objects.
    pub lock: Option<Lock>,
    /// Bytes of a part.
    pub part_size: usize,
    /// Parts sent at the same time.
    pub concurrency: usize,
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Until an answer counts as none.
    pub timeout: Duration,
    /// The first pause before the same request is tried again; it doubles with each try.
    pub pause: Duration,
    /// Certificates, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: None,
            access_key: String::new(),
            secret_key: Secret::default(),
            session_token: None,
            encryption: None,
            checksums: false,
            lock: None,
            part_size: 16 << 20,
            concurrency: 4,
            rate: None,
            timeout: Duration::from_secs(60),
            pause: Duration::from_millis(500),
            ca_file: None,
        }
    }
}

impl Options {
    /// Reads the `S3_…` settings. That keys are missing is told by [`Options::need_keys`], because a directory needs none.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let choice = |setting: &'static Setting, known: &[&str]| {
            let text = reader.text(setting);
            let found = known.iter().position(|word| word.eq_ignore_ascii_case(text.trim()));
            if found.is_none() && !text.is_empty() {
                reader.problem(setting.name, format!("`{text}` is none of: {}", known.join(", ")));
            }
            found
        };
        let encryption = match choice(&S3_SSE, &["AES256", "aws:kms"]) {
            Some(0) => Some(Encryption::Aes256),
            Some(_) => Some(Encryption::Kms(reader.optional(&S3_SSE_KMS_KEY_ID))),
            None => None,
        };
        if reader.optional(&S3_SSE_KMS_KEY_ID).is_some() && !matches!(encryption, Some(Encryption::Kms(_))) {
            reader.problem(S3_SSE_KMS_KEY_ID.name, "is set without S3_SSE=aws:kms; set that too, or unset this");
        }
        let lock_mode = choice(&S3_OBJECT_LOCK_MODE, &["GOVERNANCE", "COMPLIANCE"]);
        let lock_days = reader.optional(&S3_OBJECT_LOCK_DAYS).map(|_| reader.integer(&S3_OBJECT_LOCK_DAYS, 1..=36_500));
        let lock = match (lock_mode, lock_days) {
            (Some(mode), Some(days)) => Some(Lock { compliance: mode == 1, days: u32::try_from(days).unwrap_or(1) }),
            (None, None) => None,
            _ => {
                reader.problem(
                    S3_OBJECT_LOCK_DAYS.name,
                    "S3_OBJECT_LOCK_MODE and S3_OBJECT_LOCK_DAYS need each other; set both or none",
                );
                None
            }
        };
        Options {
            endpoint: reader.url(&S3_ENDPOINT, &["https", "http"]),
            region: reader.text(&S3_REGION),
            path_style: match choice(&S3_PATH_STYLE, &["auto", "true", "false"]) {
                Some(1) => Some(true),
                Some(2) => Some(false),
                _ => None,
            },
            access_key: reader.text(&S3_ACCESS_KEY),
            secret_key: reader.secret(&S3_SECRET_KEY),
            session_token: reader.optional(&S3_SESSION_TOKEN).map(Secret::new),
            encryption,
            checksums: choice(&S3_CHECKSUM, &["when-required", "always"]) == Some(1),
            lock,
            part_size: usize::try_from(reader.integer(&S3_PART_SIZE, 5..=1024)).unwrap_or(16) << 20,
            concurrency: usize::try_from(reader.integer(&S3_CONCURRENCY, 1..=32)).unwrap_or(4),
            rate: reader.optional(&S3_MAX_RATE).map(|_| reader.integer(&S3_MAX_RATE, 1..=100_000) * 1_000_000),
            timeout: reader.seconds(&S3_TIMEOUT, 1..=3600),
            ca_file: reader.optional(&S3_CA_FILE).map(PathBuf::from),
            ..Options::default()
        }
    }

    /// Notes what is missing for speaking to a bucket, under the names that S3 stores have by default.
    pub fn need_keys(&self, reader: &Reader<'_>) {
        self.need_keys_of(reader, &S3_ACCESS_KEY, &S3_SECRET_KEY);
    }

    /// The same where the keys stand in these settings.
    pub fn need_keys_of(&self, reader: &Reader<'_>, access_key: &Setting, secret_key: &Setting) {
        for (setting, missing) in [(access_key, self.access_key.is_empty()), (secret_key, self.secret_key.is_empty())] {
            if missing {
                let others = setting.aliases.join(", ");
                let others = if others.is_empty() { others } else { format!(" ({others} does as well)") };
                reader.problem(setting.name, format!("is not set, and an s3:// address needs it{others}"));
            }
        }
    }
}

/// Reads a setting that is a store's address and the options it needs; nothing when it is not set.
pub fn address(reader: &Reader<'_>, setting: &Setting) -> Option<String> {
    address_with(reader, setting, || Options::from_settings(reader).need_keys(reader))
}

/// The same; `need_keys` notes what is missing when it names a bucket.
pub fn address_with(reader: &Reader<'_>, setting: &Setting, need_keys: impl FnOnce()) -> Option<String> {
    let text = reader.optional(setting)?;
    match Place::parse(&text) {
        Ok(place) => {
            if matches!(place, Place::Bucket { .. }) {
                need_keys();
            }
            Some(text)
        }
        Err(problem) => {
            reader.problem(setting.name, problem);
            None
        }
    }
}

/// What an address names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Directory(PathBuf),
    Bucket { bucket: String, prefix: String },
}

impl Place {
    pub(super) fn parse(address: &str) -> Result<Place, String> {
        const FORMS: &str = "write s3://bucket/prefix or file:///directory";
        if let Some(path) = address.strip_prefix("file://") {
            return match path.strip_prefix('/') {
                Some(below)
                    if !path.contains('\0') && below.split('/').any(|s| !s.is_empty()) && below.split('/').all(|s| s != "..") =>
                {
                    Ok(Place::Directory(PathBuf::from(path)))
                }
                _ => Err(format!("a directory is named by its whole path, and is not the root; {FORMS}")),
            };
        }
        let Some(rest) = address.strip_prefix("s3://") else { return Err(format!("is no address of a store; {FORMS}")) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_') || c.is_ascii_uppercase();
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(fits) || bucket.contains("..") {
            return Err(format!(
                "a bucket's name has 3 to 63 letters, digits, dots and dashes; keys go to S3_ACCESS_KEY and S3_SECRET_KEY; {FORMS}"
            ));
        }
        key::check_prefix(prefix)?;
        let prefix = if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
        Ok(Place::Bucket { bucket: bucket.to_owned(), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn addresses_are_a_bucket_or_a_whole_path() {
        let bucket = |bucket: &str, prefix: &str| Ok(Place::Bucket { bucket: bucket.into(), prefix: prefix.into() });
        assert_eq!(Place::parse("s3://my.bucket"), bucket("my.bucket", ""));
        assert_eq!(Place::parse("s3://b-1/a/b"), bucket("b-1", "a/b/"));
        assert_eq!(Place::parse("s3://b-1/a/"), bucket("b-1", "a/"));
        assert_eq!(Place::parse("file:///var/lib/x y"), Ok(Place::Directory("/var/lib/x y".into())));
        for bad in [
            "s3://",
            "s3://k:s@bucket",
            "s3://bu cket",
            "s3://bucket/../x",
            "s3://bucket//",
            "file://x",
            "file:///",
            "file:///a/../b",
            "/x",
            "http://h/",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        let error = Place::parse("s3://id:hunter22@bucket").unwrap_err();
        assert!(!error.contains("hunter22") && error.contains("S3_SECRET_KEY"), "{error}");
    }

    #[test]
    fn settings_are_read_under_each_of_their_names_and_mistakes_are_named_together() {
        let environment = Environment::of([
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "top-secret-1"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
            ("S3_SSE", "aes256"),
            ("S3_OBJECT_LOCK_MODE", "compliance"),
            ("S3_OBJECT_LOCK_DAYS", "30"),
            ("S3_MAX_RATE", "5"),
            ("TO", "s3://bucket/x"),
        ]);
        static TO: Setting = Setting::new("TO", "");
        let reader = Reader::new(&environment);
        let options = Options::from_settings(&reader);
        assert_eq!(address(&reader, &TO).as_deref(), Some("s3://bucket/x"));
        reader.finish().unwrap();
        assert_eq!((options.access_key.as_str(), options.secret_key.expose()), ("id", "top-secret-1"));
        assert_eq!(options.encryption, Some(Encryption::Aes256));
        assert_eq!(options.lock, Some(Lock { compliance: true, days: 30 }));
        assert_eq!((options.rate, options.part_size, options.concurrency), (Some(5_000_000), 16 << 20, 4));
        assert!(!format!("{options:?}").contains("top-secret"));

        let environment = Environment::of([
            ("S3_SSE", "rot13"),
            ("S3_SSE_KMS_KEY_ID", "k"),
            ("S3_OBJECT_LOCK_MODE", "GOVERNANCE"),
            ("S3_PART_SIZE", "4"),
            ("S3_CHECKSUM", "never"),
            ("S3_ENDPOINT", "ftp://h"),
            ("TO", "s3://bucket"),
        ]);
        let reader = Reader::new(&environment);
        address(&reader, &TO);
        let error = reader.finish().unwrap_err().to_string();
        for name in [
            "S3_SSE:",
            "S3_SSE_KMS_KEY_ID:",
            "S3_OBJECT_LOCK_DAYS:",
            "S3_PART_SIZE:",
            "S3_CHECKSUM:",
            "S3_ENDPOINT:",
            "S3_ACCESS_KEY:",
            "S3_SECRET_KEY:",
        ] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
