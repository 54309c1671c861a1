//! A log file of bounded size: when the next line would make it larger, it becomes `<name>.1`, the one before that `<name>.2` and so
//! on; the oldest goes. One process writes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file, open for appending.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    max_bytes: u64,
    kept: u32,
    file: File,
    size: u64,
}

impl Rotating {
    /// Opens it, and makes its directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(path: &Path, max_bytes: u64, kept: u32) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Rotating { path: path.to_owned(), max_bytes, kept, file, size })
    }

    fn earlier(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.kept).rev() {
            let from = self.earlier(number);
            if from.exists() {
                fs::rename(from, self.earlier(number + 1))?;
            }
        }
        if self.kept > 0 {
            fs::rename(&self.path, self.earlier(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let new = bytes.len() as u64;
        // A file that cannot be renamed grows on rather than lose lines.
        if self.size > 0 && self.size + new > self.max_bytes && self.rotate().is_err() {
            self.size = 0;
        }
        self.file.write_all(bytes)?;
        self.size += new;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_only_so_many_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("Logs/bot.log");
        let mut log = Rotating::open(&path, 20, 2).unwrap();
        for number in 0..10 {
            writeln!(log, "line number {number}").unwrap();
        }
        drop(log);
        // What was there is added to.
        let mut log = Rotating::open(&path, 20, 2).unwrap();
        log.write_all(b"x\n").unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join("Logs").join(name)).unwrap();
        assert_eq!(read("bot.log"), "line number 9\nx\n");
        assert_eq!(read("bot.log.1"), "line number 8\n");
        assert_eq!(read("bot.log.2"), "line number 7\n");
        assert_eq!(fs::read_dir(directory.path().join("Logs")).unwrap().count(), 3);
    }
}
