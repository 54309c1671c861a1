//! Whether a store keeps what everything here relies on.

use bytes::Bytes;

use super::{Fault, Removal, StorageError, Store};

/// What may be done in a store that keeps the rules.
#[derive(Debug)]
pub enum Probed {
    /// Everything.
    Everything,
    /// The object is kept by a lock, for this reason.
    Kept(String),
    /// Who writes archives need not be allowed to remove them. The object stays.
    MayNotRemove(StorageError),
    /// Nor who only restores to write.
    MayNotWrite(StorageError),
}

/// Creates, replaces, reads and removes an object of its own (`bullwork-probe-…`), and tries what has to be refused: a
/// server that ignores preconditions would overwrite archives, and let two runs hold one lock.
///
/// # Errors
/// What does not work, or works that must not.
pub async fn probe(store: &dyn Store) -> Result<Probed, StorageError> {
    let key = format!("bullwork-probe-{}", uuid::Uuid::new_v4().simple());
    let first = match store.create(&key, Bytes::from_static(b"1")).await {
        Ok(first) => first,
        Err(error) if matches!(error.fault, Fault::Refused(_)) => return Ok(Probed::MayNotWrite(error)),
        Err(error) => return Err(error),
    };
    let outcome = refusals(store, &key, &first).await;
    // Whatever came out: nothing of it should stay.
    let removed = store.remove(&key).await;
    outcome?;
    match removed {
        Ok(Removal::Removed) => Ok(Probed::Everything),
        Ok(Removal::Kept(why)) => Ok(Probed::Kept(why)),
        Err(error) if matches!(error.fault, Fault::Refused(_)) => Ok(Probed::MayNotRemove(error)),
        Err(error) => Err(error),
    }
}

async fn refusals(store: &dyn Store, key: &str, first: &super::Version) -> Result<(), StorageError> {
    let careless = |header: &str| StorageError {
        doing: format!("probing {}", store.shown()),
        fault: Fault::Refused(format!(
            "the server ignores {header} and overwrote an object; archives would not be safe there, so use another server or version"
        )),
    };
    match store.create(key, Bytes::from_static(b"2")).await {
        Err(StorageError { fault: Fault::AlreadyThere, .. }) => {}
        Ok(_) => return Err(careless("If-None-Match")),
        Err(error) => return Err(error),
    }
    let second = store.replace(key, Bytes::from_static(b"3"), first).await?;
    match store.replace(key, Bytes::from_static(b"4"), first).await {
        Err(StorageError { fault: Fault::Changed, .. }) => {}
        Ok(_) => return Err(careless("If-Match")),
        Err(error) => return Err(error),
    }
    let (bytes, meta) = store.read(key, 16).await?;
    if bytes != "3" || meta.version != second {
        let fault = Fault::Corrupt("what was written is not what is read".to_owned());
        return Err(StorageError { doing: format!("probing {}", store.shown()), fault });
    }
    Ok(())
}
