//! OpenPGP from end to end: one ring with the public key makes archives, one with the protected private key restores them.

use serde_json::Value;

use super::{bullwork, databases, dump, text};
use crate::backup::Setup;
use crate::seal::gpg::Home;

#[tokio::test]
async fn an_archive_for_an_openpgp_key_is_restored_and_proven_by_who_has_it() {
    let Some(private) = Home::new() else { return };
    private.protected_key("backup@example.invalid", "open sesame");
    let public = private.public();
    let setup = Setup::new().await;
    let (server, keeper) = (public.path().display().to_string(), private.path().display().to_string());
    let passphrase = setup.directory.path().join("passphrase");
    std::fs::write(&passphrase, "open sesame\n").unwrap();
    let passphrase = passphrase.display().to_string();

    let on_server = [("BACKUPS_GPG_RECIPIENT", "backup@example.invalid"), ("BACKUP_PLAIN", ""), ("GNUPGHOME", &server)];
    let output = bullwork(&setup, &on_server, &["backup", "now"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(setup.newest_file().await.display().to_string().ends_with(".tar.zst.gpg"));

    let before = databases(&setup.cluster).await;
    let restore = ["backup", "restore", "--into", "copy"];
    let output = bullwork(&setup, &on_server, &restore);
    assert_eq!(output.status.code(), Some(1), "the server cannot read what it stores");
    let wrong = setup.directory.path().join("wrong");
    std::fs::write(&wrong, "shut sesame\n").unwrap();
    let wrong = wrong.display().to_string();
    let output = bullwork(&setup, &[("GNUPGHOME", &keeper), ("RESTORE_GPG_PASSPHRASE_FILE", &wrong)], &restore);
    assert!(output.status.code() == Some(1) && !text(&output.stderr).contains("shut sesame"), "{}", text(&output.stderr));
    assert_eq!(databases(&setup.cluster).await, before, "nothing was made before the archive had been opened");

    let on_keeper = [("GNUPGHOME", keeper.as_str()), ("RESTORE_GPG_PASSPHRASE_FILE", passphrase.as_str())];
    let output = bullwork(&setup, &on_keeper, &restore);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(dump(&setup.cluster, "copy", &[]) == dump(&setup.cluster, "shop", &[]));
    let output = bullwork(&setup, &on_keeper, &["backup", "drill"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let proof: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(proof["tables"], 3, "{proof}");

    // A flipped bit in the middle is refused although gpg gives bytes before it has seen the end.
    let file = setup.newest_file().await;
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let output = bullwork(&setup, &on_keeper, &["backup", "restore", "--into", "damaged"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!databases(&setup.cluster).await.contains(&"damaged".to_owned()));
}
