//! A disk that is soon full: a small file system in memory. Mounting takes root; others see a line that says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::postgres::give_to_server_user;

/// Unmounted when dropped: declare it before the servers that use it, so that it goes after them.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// One that belongs to the server user; nothing where that may not be done.
    pub fn mount(megabytes: u32) -> Option<SmallDisk> {
        let directory = tempfile::Builder::new().prefix("bullwork-disk-").tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("NOT RUN: mounting a small file system takes root");
            return None;
        }
        give_to_server_user(directory.path());
        Some(SmallDisk(directory))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn resize(&self, megabytes: u32) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={megabytes}m")]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }

    /// The file that takes the room away.
    pub fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Shell commands that leave so many kilobytes.
    pub fn filling(&self, left: u32) -> String {
        let (path, filler) = (self.path().display(), self.filler().display().to_string());
        format!("head -c $((($(df -Pk {path} | tail -1 | awk '{{print $4}}') - {left}) * 1024)) /dev/zero >{filler}")
    }

    pub fn fill(&self, left: u32) {
        let status = Command::new("sh").args(["-ec", &self.filling(left)]).status().unwrap();
        assert!(status.success());
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
