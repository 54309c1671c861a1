//! What is copied: odd names, modes, times, symlinks; what is refused, and that nothing is copied then.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use bullwork::releases::states::ReleaseState;
use bullwork::releases::worker1::Stands;
use bullwork::releases::worker2::Worked;

use super::fleet::Fleet;

const ODD: &[&str] = &[
    "with blanks and  more",
    "it's \"quoted\" `id` $HOME",
    "-leading dash",
    "--delete",
    "back\\slash",
    "кириллица/файл с пробелом.txt",
    "percent %s %n",
    "star*?[x]",
    "emoji 🚀",
    "semi;colon & pipe|",
    "#hash",
    ";semicolon",
    "=equals",
    "+plus",
];

#[tokio::test]
async fn odd_names_modes_times_and_symlinks_arrive_as_they_are() {
    let fleet = Fleet::start(1).await;
    for name in ODD {
        fleet.write("dev", name, format!("content of {name}"));
    }
    fleet.write("dev", "tree/deep/run.sh", "#!/bin/sh");
    fleet.write("dev", "tree/empty", "");
    let run = fleet.project("dev").join("tree/deep/run.sh");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o750)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(&run).unwrap().set_modified(then).unwrap();
    std::fs::create_dir(fleet.project("dev").join("tree/hollow")).unwrap();
    symlink("deep/run.sh", fleet.project("dev").join("tree/link")).unwrap();
    symlink("../../tree/empty", fleet.project("dev").join("tree/deep/up")).unwrap();
    symlink("nowhere", fleet.project("dev").join("tree/dangling")).unwrap();
    fleet.write("dev", "not listed", "stays");
    let paths: Vec<&str> = ODD.iter().copied().chain(["tree"]).collect();
    let id = fleet.on_beta(&paths).await;
    let mut wanted = fleet.tree("dev");
    wanted.remove("not listed");
    assert_eq!(fleet.tree("beta"), wanted);
    assert_eq!(fleet.to_production(id, &["web1"]).await, Stands::At(id, ReleaseState::ProductionCopying));
    let worked = fleet.worker2("web1").await;
    assert!(matches!(worked, Worked::Done(_, ReleaseState::Completed)), "{worked:?}");
    assert_eq!(fleet.tree("web1"), wanted);
}

/// The release fails with this, and beta is as it was.
async fn refused(fleet: &Fleet, paths: &[&str], wanted: &str) -> i64 {
    let before = fleet.tree("beta");
    let id = fleet.begin(paths, false).await;
    match fleet.worker1().await {
        Stands::Failed(failed, ReleaseState::BetaError, problem) => {
            assert!(failed == id && problem.contains(wanted), "{problem}");
        }
        other => panic!("{wanted}: {other:?}"),
    }
    assert_eq!(fleet.tree("beta"), before, "{wanted}: nothing is copied");
    assert!(!fleet.project("beta").join(".bullwork-releases").exists(), "{wanted}: not even beside");
    id
}

#[tokio::test]
async fn a_missing_path_is_named_and_nothing_is_copied_and_once_it_is_there_the_release_goes_on() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "there", "1");
    let id = refused(&fleet, &["there", "not/there", "nor this"], "missing on dev: `nor this`, `not/there`").await;
    assert!(fleet.journal(id).await.last().unwrap().contains("beta_error («ошибка бета-копирования»): missing on dev"));
    fleet.write("dev", "not/there", "2");
    fleet.write("dev", "nor this", "3");
    let (code, _, errors) = super::fleet::told(&fleet.bullwork(&["release", "retry", &id.to_string(), "--dry-run"]));
    assert_eq!(code, Some(0), "{errors}");
    assert!(fleet.ledger().step(id, ReleaseState::BetaError, ReleaseState::BetaCopying, "me", "", None).await.unwrap());
    assert_eq!(fleet.worker1().await, Stands::At(id, ReleaseState::BetaDone));
    assert_eq!(fleet.read("beta", "not/there").as_deref(), Some("2"));
}

#[tokio::test]
async fn what_leads_out_of_the_project_or_has_a_line_end_in_its_name_is_refused() {
    let fleet = Fleet::start(1).await;
    let project = fleet.project("dev");
    std::fs::write(fleet.path("secret"), "secret").unwrap();
    fleet.write("dev", "ok/file", "1");
    for (name, to) in [("out1", "/etc/passwd"), ("ok/out2", "../../secret"), ("out3", "ok/../../../secret")] {
        symlink(to, project.join(name)).unwrap();
        let id = refused(&fleet, &["ok", name], &format!("`{name}` is a symlink that leads out of the project")).await;
        fleet.ledger().abandon(id, "me").await.unwrap();
        std::fs::remove_file(project.join(name)).unwrap();
    }
    std::fs::create_dir(fleet.path("elsewhere")).unwrap();
    std::fs::write(fleet.path("elsewhere/x"), "1").unwrap();
    symlink(fleet.path("elsewhere"), project.join("behind")).unwrap();
    let id = refused(&fleet, &["behind/x"], "`behind` is a symlink, and what is named lies behind it").await;
    fleet.ledger().abandon(id, "me").await.unwrap();
    fleet.write("dev", "ok/line\nend", "1");
    let id = refused(&fleet, &["ok"], "`ok/line\\nend` has a line end in its name").await;
    fleet.ledger().abandon(id, "me").await.unwrap();
    std::fs::remove_file(project.join("ok/line\nend")).unwrap();
    let odd = project.join("ok").join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::write(&odd, "1").unwrap();
    let id = refused(&fleet, &["ok"], "refused on dev: `ok/caf\u{fffd}` is no UTF-8 text").await;
    fleet.ledger().abandon(id, "me").await.unwrap();
    std::fs::remove_file(odd).unwrap();
    nix::unistd::mkfifo(&project.join("ok/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&fleet, &["ok"], "`ok/pipe` is a device, pipe or socket").await;
}

#[tokio::test]
async fn lists_with_absolute_paths_dots_or_nothing_are_refused_at_once() {
    let fleet = Fleet::start(1).await;
    std::fs::write(fleet.path("list"), "ok\n\n/etc/passwd\n../up\n").unwrap();
    std::fs::write(fleet.path("empty"), "\n \n").unwrap();
    for (arguments, wanted) in [
        (vec!["--files", "list"], "`/etc/passwd` is absolute"),
        (vec!["--files", "list"], "`../up` holds `..`"),
        (vec!["--files", "empty"], "no path is named"),
        (vec!["a\nb"], "holds a line end or NUL"),
        (vec!["."], "is the whole project"),
        (vec![".bullwork-releases/1"], "is where releases keep"),
    ] {
        let arguments: Vec<&str> = ["release", "beta"].into_iter().chain(arguments).collect();
        let (code, _, errors) = super::fleet::told(&fleet.bullwork(&arguments));
        assert!(code == Some(1) && errors.contains(wanted), "{arguments:?}: {errors}");
    }
    assert_eq!(fleet.ledger().unfinished().await.unwrap(), None);
}

/// A symlink on the server that receives must not lead the files elsewhere, and nothing of another sort is replaced.
#[tokio::test]
async fn what_is_in_the_way_on_the_other_server_is_refused_before_anything_is_sent() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "dir/file", "1");
    std::fs::create_dir(fleet.path("elsewhere")).unwrap();
    symlink(fleet.path("elsewhere"), fleet.project("beta").join("dir")).unwrap();
    let id = fleet.begin(&["dir/file"], false).await;
    let stands = fleet.worker1().await;
    assert!(matches!(&stands, Stands::Failed(_, _, p) if p.contains("`dir` is a symlink")), "{stands:?}");
    assert_eq!(std::fs::read_dir(fleet.path("elsewhere")).unwrap().count(), 0);
    assert!(!Path::new(&fleet.project("beta").join(".bullwork-releases/1/new/dir")).exists());
    fleet.ledger().abandon(id, "me").await.unwrap();
    std::fs::remove_file(fleet.project("beta").join("dir")).unwrap();
    std::fs::create_dir_all(fleet.project("beta").join("dir/file")).unwrap();
    fleet.begin(&["dir/file"], false).await;
    let stands = fleet.worker1().await;
    assert!(matches!(&stands, Stands::Failed(_, _, p) if p.contains("`dir/file` is a directory there")), "{stands:?}");
}
