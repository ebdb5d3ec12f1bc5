//! The daemon's log: where it goes, and how much of it is kept.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{OFlags, fcntl_getfl, fstat};

use crate::text::log_line;

/// Name of the file beside the socket that [`labd up`](super::up) has the daemon log to.
const NAME: &str = "labd.log";
/// Size, in bytes, at which that file begins again. It is in /run, which is memory; a daemon that warns once a second
/// fills it in a day.
const LARGEST: u64 = 8 << 20;

/// The log's path beside a socket.
pub(super) fn beside(socket: &Path) -> PathBuf {
    socket.with_file_name(NAME)
}

/// Opens the log of a daemon that is about to start, empty. Whoever writes to it does so at its end, wherever that is
/// by then.
pub(super) fn begin(log: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = File::options().create(true).append(true).mode(0o600).open(log)?;
    file.set_len(0)?;
    Ok(file)
}

/// Log of the daemon: standard error, each entry on one line of its own. The subscriber writes an entry at once.
#[derive(Clone)]
pub(super) struct Lines {
    /// File behind it, where it is one that nobody else keeps small.
    file: Option<PathBuf>,
}

impl Lines {
    /// Log of the daemon that listens at `socket`.
    pub(super) fn new(socket: &Path) -> Self {
        let file = beside(socket);
        Self { file: grows(io::stderr(), &file).then_some(file) }
    }
}

impl Write for Lines {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let line = log_line(&String::from_utf8_lossy(entry));
        io::stderr().lock().write_all(line.as_bytes())?;
        if let Some(file) = &self.file {
            // There is no place to say that it failed.
            let _ = bound(file, LARGEST);
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether what is written to `output` makes this file longer, at its end.
fn grows(output: impl AsFd, file: &Path) -> bool {
    let (Ok(open), Ok(named), Ok(flags)) = (fstat(&output), fs::metadata(file), fcntl_getfl(&output)) else {
        return false;
    };
    (open.st_dev, open.st_ino) == (named.dev(), named.ino()) && flags.contains(OFlags::APPEND)
}

/// Lets a file that is larger than this begin again, and keeps what was in it as `.1`. It stays the same file: others,
/// such as probes, have it open.
fn bound(file: &Path, largest: u64) -> io::Result<()> {
    if fs::metadata(file)?.len() <= largest {
        return Ok(());
    }
    let mut kept = file.as_os_str().to_owned();
    kept.push(".1");
    // Where there is no room for a copy, there is all the more reason to go on.
    let copied = fs::copy(file, &kept);
    File::options().write(true).open(file)?.set_len(0)?;
    copied.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_does_not_grow_forever() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = beside(&dir.path().join("labd.sock"));
        let mut log = begin(&path).expect("opened");
        assert!(grows(&log, &path));
        for n in 0..100 {
            writeln!(log, "line {n:03}").expect("written");
            bound(&path, 90).expect("bounded");
        }
        let (now, before) = (fs::read_to_string(&path), fs::read_to_string(dir.path().join("labd.log.1")));
        let (now, before) = (now.expect("there"), before.expect("kept"));
        assert!(now.len() <= 90 && before.len() <= 100, "{} and {}", now.len(), before.len());
        assert!(format!("{before}{now}").ends_with("line 098\nline 099\n"), "{before}{now}");
        assert!(before.starts_with("line 0"), "no hole at its beginning");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2);
    }

    #[test]
    fn only_a_file_that_is_written_at_its_end_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = beside(&dir.path().join("labd.sock"));
        let elsewhere = File::create(dir.path().join("x")).expect("made");
        assert!(!grows(&elsewhere, &path), "there is none");
        let overwritten = File::create(&path).expect("made");
        assert!(!grows(&overwritten, &path), "it would have a hole");
        assert!(!grows(&elsewhere, &path));
    }
}
