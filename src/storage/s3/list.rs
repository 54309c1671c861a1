//! Listing objects and open uploads, page by page.

use std::time::Duration;

use chrono::Utc;

use super::super::{Entry, Fault, Tidied, key};
use super::client::Server;
use super::time;

/// Every object below the store's prefix whose key begins with `prefix`.
pub(super) async fn objects(server: &Server, prefix: &str) -> Result<Vec<Entry>, Fault> {
    let mut found = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let request = || {
            let request = server.client.list_objects_v2().bucket(&server.bucket).prefix(server.full(prefix));
            request.set_continuation_token(next.clone()).send()
        };
        let page = server.call("ListObjectsV2", 0, request).await.map_err(|failure| server.fault(&failure))?;
        for object in page.contents() {
            // Others may keep things there whose names are none of ours.
            let Some(key) = object.key().and_then(|full| full.strip_prefix(&server.prefix)).filter(|key| key::check(key).is_ok())
            else {
                continue;
            };
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            let (Some(size), Some(modified)) = (size, object.last_modified().and_then(time)) else {
                return Err(Fault::Corrupt(format!("the server's list tells no size or time of `{key}`")));
            };
            found.push(Entry { key: key.to_owned(), size, modified });
        }
        let before = next;
        next = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true)).map(str::to_owned);
        match &next {
            None if page.is_truncated() == Some(true) => {
                return Err(Fault::Corrupt("the server's list goes on, but it does not say where".to_owned()));
            }
            None => break,
            Some(_) if next == before => return Err(Fault::Corrupt("the server lists the same page again".to_owned())),
            Some(_) => {}
        }
    }
    // Most servers list in this order; the trait promises it.
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    found.dedup_by(|a, b| a.key == b.key);
    Ok(found)
}

/// Ends uploads that were begun before `older_than` ago.
pub(super) async fn tidy(server: &Server, prefix: &str, older_than: Duration) -> Result<Tidied, Fault> {
    let limit = Utc::now() - chrono::Duration::from_std(older_than).unwrap_or(chrono::Duration::MAX);
    let mut ended = Vec::new();
    let mut next: Option<(Option<String>, Option<String>)> = None;
    loop {
        let request = || {
            let (key, id) = next.clone().unwrap_or_default();
            let request = server.client.list_multipart_uploads().bucket(&server.bucket).prefix(server.full(prefix));
            request.set_key_marker(key).set_upload_id_marker(id).send()
        };
        let page = match server.call("ListMultipartUploads", 0, request).await {
            Ok(page) => page,
            Err(failure) if failure.not_done_here() => {
                return Ok(Tidied::Unlisted(
                    "the server does not list open uploads; give the bucket a lifecycle rule that ends them (AbortIncompleteMultipartUpload)"
                        .to_owned(),
                ));
            }
            Err(failure) => return Err(server.fault(&failure)),
        };
        for upload in page.uploads() {
            let (Some(full), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
            let Some(key) = full.strip_prefix(&server.prefix).filter(|key| key.starts_with(prefix) && key::check(key).is_ok())
            else {
                continue;
            };
            if upload.initiated().and_then(time).is_some_and(|begun| begun <= limit) && abort(server, full, id).await? {
                ended.push(key.to_owned());
            }
        }
        let following = (page.next_key_marker().map(str::to_owned), page.next_upload_id_marker().map(str::to_owned));
        if page.is_truncated() != Some(true) {
            break;
        }
        if following.0.is_none() || Some(&following) == next.as_ref() {
            return Err(Fault::Corrupt("the server's list goes on, but it does not say where".to_owned()));
        }
        next = Some(following);
    }
    ended.sort_unstable();
    Ok(Tidied::Ended(ended))
}

/// Ends an open upload; false when it had ended by itself.
pub(super) async fn abort(server: &Server, full: &str, id: &str) -> Result<bool, Fault> {
    let request = || server.client.abort_multipart_upload().bucket(&server.bucket).key(full).upload_id(id).send();
    match server.call("AbortMultipartUpload", 0, request).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.status == Some(404) => Ok(false),
        Err(failure) => Err(server.fault(&failure)),
    }
}
