//! Stores: the rules that each keeps (`rules`), what a bucket's server may do to us (`faults`, `outcomes`), and
//! what is asked of it (`requests`).

mod directory;
mod faults;
mod outcomes;
mod requests;
mod rules;

/// Bytes that differ from place to place.
fn noise(length: usize) -> bytes::Bytes {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The whole rest of an object.
async fn read_from(store: &dyn bullwork::storage::Store, key: &str, from: u64) -> std::io::Result<Vec<u8>> {
    let mut opened = store.open(key, from).await?;
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut opened.body, &mut bytes).await?;
    Ok(bytes)
}

/// Uploads in pieces of 300 kB.
async fn upload(
    store: &dyn bullwork::storage::Store,
    key: &str,
    content: &bytes::Bytes,
) -> Result<bullwork::storage::Stored, bullwork::storage::StorageError> {
    let mut upload = store.upload(key).await?;
    for piece in content.chunks(300_000) {
        upload.write(content.slice_ref(piece)).await?;
    }
    upload.finish().await
}
