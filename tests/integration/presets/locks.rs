//! Locks: who holds one, who may push, and how one ends.

use super::{Machine, text};
use crate::support::s3::S3;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_lock_keeps_others_from_pushing_until_its_key_or_force_ends_it() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    let absent = anna.db_p(&["get-lock", "name=base"]);
    assert_eq!(absent.status.code(), Some(3), "it is neither free nor locked");
    assert!(text(&absent.stderr).contains("no preset `base`") && absent.stdout.is_empty());
    for words in [vec!["reset-lock", "name=base", "force"], vec!["set-lock", "name=base", "who=A", "desc=x"]] {
        assert!(anna.bad(&words).contains("no preset `base`"), "{words:?}");
    }
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=one"]);
    assert_eq!(anna.good(&["get-lock", "name=base"]), "free");
    let key = anna.good(&["set-lock", "name=base", "who=Анна", "desc=переделываю схему"]);
    let lock = anna.db_p(&["get-lock", "name=base"]);
    let told = text(&lock.stdout);
    assert_eq!(lock.status.code(), Some(1));
    assert!(told.contains("locked by Анна since 20") && told.contains("переделываю схему") && !told.contains(&key), "{told}");

    // A store that does not answer, or settings that cannot be used, must not pass for a lock.
    let mut boris = Machine::sharing(&s3, Some(&anna)).await;
    for (name, value) in [("S3_SECRET_KEY", "another-secret-key-0123456789"), ("DBP_BRANCH", "a/b"), ("DBP_REPO", "")] {
        let right = boris.setting(name);
        boris.set(name, value);
        let output = boris.db_p(&["get-lock", "name=base"]);
        assert_eq!(output.status.code(), Some(3), "{name}: {}", text(&output.stderr));
        boris.set(name, &right);
    }
    assert_eq!(boris.db_p(&["get-lock", "name=base"]).status.code(), Some(1));
    assert!(boris.good(&["--help"]).contains("3 get-lock could not tell"));
    boris.good(&["get"]);
    boris.good(&["select", "base"]);
    let other = "0123456789abcdef0123456789abcdef";
    for (words, why) in [
        (vec!["set-lock", "name=base", "who=Борис", "desc=x"], "locked by Анна"),
        (vec!["push-ex", "name=base", "desc=x"], "give its key="),
        (vec!["delete", "name=base", "desc=x"], "locked by Анна"),
        (vec!["restore-version", "name=base", "revision=1"], "locked by Анна"),
        (vec!["reset-lock", "name=base", "key=0123456789abcdef0123456789abcdef"], "another one's"),
    ] {
        assert!(boris.bad(&words).contains(why), "{words:?}");
    }
    assert!(boris.bad(&["push-ex", "name=base", "desc=x", &format!("key={other}")]).contains("another one's"));
    // Its holder pushes, which ends it.
    anna.good(&["push-ex", "name=base", "desc=two", &format!("key={key}")]);
    assert_eq!(boris.good(&["get-lock", "name=base"]), "free");
    let stale = boris.bad(&["set-lock", "name=base", "who=Борис", "desc=x"]);
    assert!(stale.contains("descends from revision 1"), "{stale}");

    let key = anna.good(&["set-lock", "name=base", "who=Анна", "desc=again", "hours=1"]);
    assert!(text(&anna.db_p(&["get-lock", "name=base"]).stdout).contains(", until 20"));
    anna.good(&["reset-lock", "name=base", &format!("key={key}")]);
    assert!(anna.bad(&["reset-lock", "name=base", "force"]).contains("is not locked"));
    anna.good(&["set-lock", "name=base", "who=Анна", "desc=third"]);
    boris.good(&["reset-lock", "name=base", "force", "who=root"]);
    let log = std::fs::read_to_string(s3.objects().join("shop/main/base/log.txt")).unwrap();
    assert!(log.lines().next().unwrap().contains("root: unlocked by force; it was locked by Анна"), "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("locked by Анна since")).count(), 4, "{log}");
}
