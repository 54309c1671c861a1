//! The private half: keys that open archives. They belong on the machine that restores, not on the one that is
//! backed up.

use std::path::{Path, PathBuf};

use super::name::Sealing;
use crate::config::{Reader, Setting};
use crate::seal::{Opener, age, gpg};

/// Keys of the age format.
pub static RESTORE_AGE_KEY_FILE: Setting = Setting::new(
    "RESTORE_AGE_KEY_FILE",
    "File with the private age keys (AGE-SECRET-KEY-1…) that open archives, mode 600; only on machines that restore. `bullwork backup keygen FILE` makes one.",
);
/// What protects the OpenPGP key.
pub static RESTORE_GPG_PASSPHRASE_FILE: Setting = Setting::new(
    "RESTORE_GPG_PASSPHRASE_FILE",
    "File whose first line is the passphrase of the OpenPGP key that opens archives, mode 600. Unset: the key has none, or gpg's agent knows it.",
);

/// Keys that a machine has.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    age: Option<age::Identities>,
    gpg: gpg::Keyring,
}

/// There is no key for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the archive is encrypted with age, and RESTORE_AGE_KEY_FILE is not set; set it to the file with the private key")]
pub struct NoKey;

impl Keys {
    /// Reads both settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let age = reader.optional(&RESTORE_AGE_KEY_FILE).and_then(|file| match age::Identities::from_file(Path::new(&file)) {
            Ok(identities) => Some(identities),
            Err(error) => {
                reader.problem(RESTORE_AGE_KEY_FILE.name, error.to_string());
                None
            }
        });
        let passphrase_file = reader.optional(&RESTORE_GPG_PASSPHRASE_FILE).map(PathBuf::from);
        if let Some(file) = passphrase_file.as_ref().filter(|file| !file.is_file()) {
            reader.problem(RESTORE_GPG_PASSPHRASE_FILE.name, format!("{} is no file", file.display()));
        }
        Keys { age, gpg: gpg::Keyring { home: None, passphrase_file } }
    }

    /// What opens an archive that is closed like this; nothing where none is needed.
    ///
    /// # Errors
    /// When there is no key of that sort. Whether gpg has one shows when it is asked.
    pub fn opener(&self, sealing: Sealing) -> Result<Option<Opener>, NoKey> {
        match sealing {
            Sealing::Plain => Ok(None),
            Sealing::Age => self.age.clone().map(Opener::Age).map(Some).ok_or(NoKey),
            Sealing::Gpg => Ok(Some(Opener::Gpg(self.gpg.clone()))),
        }
    }
}
