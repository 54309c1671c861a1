//! Archives as files here: fetched and cleaned.

use std::path::Path;

use super::{bullwork, sealed_archive, text};
use crate::backup::Setup;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_latest_archive_is_fetched_as_the_name_says() {
    let setup = Setup::new().await;
    let here = setup.directory.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let to = here.display().to_string();
    let output = bullwork(&setup, &[], &["backup", "fetch", "--latest", "--to", &to]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("warning: there is no complete archive"), "{}", text(&output.stderr));
    assert_eq!(names(&here), [""; 0]);

    sealed_archive(&setup).await;
    let first = setup.newest().await;
    let output = bullwork(&setup, &[], &["backup", "fetch", "--latest", "--to", &to]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), here.join("latest.tar.zst.age").display().to_string());
    assert_eq!(std::fs::read(here.join("latest.tar.zst.age")).unwrap(), std::fs::read(setup.newest_file().await).unwrap());

    setup.shop.batch_execute("insert into customer (name) values ('more')").await.unwrap();
    setup.take(&[("BACKUP_COMPRESSION", "gzip")]).await;
    assert_eq!(bullwork(&setup, &[], &["backup", "fetch", "--to", &to]).status.code(), Some(0));
    let by_name = first.archive.to_string();
    assert_eq!(bullwork(&setup, &[], &["backup", "fetch", &by_name, "--to", &to]).status.code(), Some(0));
    // Again is no harm; what is another file under its name is not overwritten.
    assert_eq!(bullwork(&setup, &[], &["backup", "fetch", &by_name, "--to", &to]).status.code(), Some(0));
    let right = std::fs::read(here.join(&by_name)).unwrap();
    std::fs::write(here.join(&by_name), "mine").unwrap();
    let output = bullwork(&setup, &[], &["backup", "fetch", &by_name, "--to", &to]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("is there already and is not this archive"), "{said}");
    assert_eq!(std::fs::read(here.join(&by_name)).unwrap(), b"mine");
    std::fs::write(here.join(&by_name), right).unwrap();
    let at = format!("{}Z", first.archive.stamp());
    assert_eq!(bullwork(&setup, &[("BACKUP_LOCAL_DIRECTORY", &to)], &["backup", "fetch", "--at", &at]).status.code(), Some(0));
    assert_eq!(names(&here), [by_name.as_str(), "latest.tar.gz", "latest.tar.zst.age"]);
    let output = bullwork(&setup, &[], &["backup", "fetch", "--at", "2001-01-01", "--to", &to]);
    assert_eq!((output.status.code(), names(&here).len()), (Some(1), 3), "{}", text(&output.stderr));
    let output = bullwork(&setup, &[], &["backup", "fetch", "--to", &format!("{to}/deeper")]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("deeper is no directory; make it first"), "{said}");
    assert_eq!(bullwork(&setup, &[], &["backup", "list", "--limit", "0"]).status.code(), Some(2));

    // A damaged one does not take the place of a good one.
    let (good, file) = (std::fs::read(here.join("latest.tar.gz")).unwrap(), setup.newest_file().await);
    let mut bytes = good.clone();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let output = bullwork(&setup, &[], &["backup", "fetch", "--to", &to]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("is damaged"), "{said}");
    assert_eq!(said.matches(".tar.gz").count(), 1, "it is named once: {said}");
    assert_eq!((names(&here).len(), std::fs::read(here.join("latest.tar.gz")).unwrap()), (3, good));

    let output = bullwork(&setup, &[("BACKUP_LOCAL_DIRECTORY", &to)], &["backup", "clean"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(names(&here), ["latest.tar.gz", "latest.tar.zst.age"]);
    // The store's own directory is not cleared by mistake.
    let store = setup.store().join("db");
    let before = names(&store);
    assert_eq!(bullwork(&setup, &[], &["backup", "clean", &store.display().to_string()]).status.code(), Some(0));
    assert_eq!(names(&store), before);
}

#[tokio::test]
async fn list_shows_what_there_is() {
    let setup = Setup::new().await;
    let output = bullwork(&setup, &[], &["backup", "list"]);
    assert!(output.status.success() && text(&output.stderr).contains("no complete archive"), "{}", text(&output.stderr));
    setup.take(&[]).await;
    setup.shop.batch_execute("update customer set note = 'x' where id = 1; create table fresh (id int)").await.unwrap();
    setup.take(&[]).await;
    let out = text(&bullwork(&setup, &[], &["backup", "list"]).stdout);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    let newest = setup.newest().await.archive.to_string();
    assert!(
        lines[1].contains(&newest) && lines[1].contains("customer, fresh, definitions") && lines[1].contains("never"),
        "{out}"
    );
    assert!(lines[2].contains("(first)"), "{out}");
    let json: serde_json::Value =
        serde_json::from_slice(&bullwork(&setup, &[], &["backup", "list", "--json", "--limit", "1"]).stdout).unwrap();
    assert_eq!((json.as_array().unwrap().len(), json[0]["archive"].as_str()), (1, Some(newest.as_str())));
    let shown: serde_json::Value =
        serde_json::from_slice(&bullwork(&setup, &[], &["backup", "show", &newest, "--json"]).stdout).unwrap();
    assert_eq!(shown["archive"].as_str(), Some(newest.as_str()));
    let output = bullwork(&setup, &[("BACKUP_STORE", "")], &["backup", "list"]);
    assert!(
        output.status.code() == Some(1) && text(&output.stderr).contains("no store is configured"),
        "{}",
        text(&output.stderr)
    );
}
