//! Whether a store keeps what everything here relies on.

use bytes::Bytes;

use super::{Fault, StorageError, Store};

/// Creates, replaces and removes an object of its own, and tries what has to be refused: a server that
/// ignores preconditions would overwrite archives, and let two runs hold one lock.
///
/// # Errors
/// What does not work, or works that must not.
pub async fn probe(store: &dyn Store) -> Result<(), StorageError> {
    let key = format!("bullwork-probe-{}", uuid::Uuid::new_v4().simple());
    let first = store.create(&key, Bytes::from_static(b"1")).await?;
    let outcome = refusals(store, &key, &first).await;
    // Whatever came out: nothing of it should stay. A lock may keep it.
    let removed = store.remove(&key).await;
    outcome.and(removed.map(|_| ()))
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
