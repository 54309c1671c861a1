//! What can go wrong with a store, by what a caller does about it.

/// Why an operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {fault}")]
pub struct StorageError {
    /// The operation, with key and store: `creating `a/b` in s3://bucket`.
    pub doing: String,
    /// What happened.
    pub fault: Fault,
}

/// What happened, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Somebody was first.
    #[error("it is there already, and objects are never overwritten")]
    AlreadyThere,
    /// Somebody else wrote or removed it since it was read.
    #[error("it was changed or removed by somebody else meanwhile; read it again first")]
    Changed,
    /// No such object.
    #[error("it is not there")]
    Missing,
    /// The key is none that a store takes.
    #[error("{0}")]
    Key(String),
    /// The store says no, and would say it again: rights, settings, a full disk.
    #[error("{0}")]
    Refused(String),
    /// No answer, or one that says "later"; tried several times.
    #[error("{0}")]
    Unreachable(String),
    /// What the store holds, or says that it holds, is not what was sent.
    #[error("{0}")]
    Corrupt(String),
    /// The last request may or may not have taken effect, and the store does not say.
    #[error("{0}")]
    Unknown(String),
}

impl StorageError {
    /// Whether the same may succeed later without anybody doing something about it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self.fault, Fault::Unreachable(_) | Fault::Unknown(_) | Fault::Corrupt(_))
    }

    /// What was carried through a reader.
    #[must_use]
    pub fn of_reading(error: std::io::Error, key: &str, store: &str) -> Self {
        match error.downcast::<StorageError>() {
            Ok(error) => error,
            Err(error) => {
                StorageError { doing: format!("reading `{key}` from {store}"), fault: Fault::Unreachable(error.to_string()) }
            }
        }
    }
}

/// For readers, whose errors are of this type.
impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        std::io::Error::other(error)
    }
}
