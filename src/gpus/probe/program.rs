//! Starting a probe's program, from memory where it is embedded.
//!
//! An embedded executable goes into a sealed memory file, which the kernel runs through `/proc/self/fd`: nothing is left on
//! a disk, and nobody can put another program in its place. Where that is refused (`vm.memfd_noexec`, a security module),
//! it is written to a folder of our own under the data directory.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use labd_gpu::line::Source;
use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};
use tokio::process::{Child, Command};

/// Time between two tries to run a file that somebody holds open for writing: another process that is being started
/// inherits the descriptor for a moment.
const BUSY_RETRY: Duration = Duration::from_millis(20);
const BUSY_TRIES: u32 = 10;

/// Program that speaks the line protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Executable that is part of labd.
    Embedded {
        /// File name, also its name among the processes.
        name: &'static str,
        /// Contents of the executable.
        bytes: &'static [u8],
    },
    /// The executable of labd itself, whatever is at its path by now.
    Labd,
    /// A file.
    Path(PathBuf),
}

/// Launch of one source's probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Source that it asks.
    pub source: Source,
    /// Program to run.
    pub program: Program,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables added to labd's own environment.
    pub env: Vec<(&'static str, OsString)>,
}

impl Launch {
    /// Starts the program in a process group of its own, with pipes for all three streams. `dir` is where an executable
    /// is put that cannot be run from memory. Blocks for as long as the kernel needs to load the program.
    pub(super) fn start(&self, dir: &Path) -> io::Result<Child> {
        match &self.program {
            Program::Labd => self.run(Path::new("/proc/self/exe"), "labd"),
            Program::Path(path) => self.run(path, &path.to_string_lossy()),
            Program::Embedded { name, bytes } => match in_memory(name, bytes).and_then(|file| {
                // The child has the same descriptor until the program is loaded.
                self.run(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), name)
            }) {
                Ok(child) => Ok(child),
                Err(in_memory) => {
                    tracing::debug!(error = %in_memory, name, "cannot be run from memory, so it is written to a file");
                    self.run(&on_disk(dir, name, bytes)?, name)
                }
            },
        }
    }

    fn run(&self, path: &Path, name: &str) -> io::Result<Child> {
        let mut command = Command::new(path);
        command
            .arg0(name)
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut tries = BUSY_TRIES;
        loop {
            match command.spawn() {
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(BUSY_RETRY);
                }
                done => return done,
            }
        }
    }
}

/// A sealed memory file with these bytes.
fn in_memory(name: &str, bytes: &[u8]) -> io::Result<fs::File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 a memory file is executable only if asked for, where `vm.memfd_noexec` is 1; before, nobody knows the
    // flag.
    let made = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        made => made,
    };
    let mut file = fs::File::from(made?);
    io::Write::write_all(&mut file, bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// A file with these bytes that only we may read and run. Never written over while it runs: it is replaced as a whole.
fn on_disk(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let path = dir.join(name);
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(path);
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = dir.join(format!("{name}.new"));
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&new)?;
    io::Write::write_all(&mut file, bytes)?;
    drop(file);
    fs::rename(&new, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn shell() -> Launch {
        let bytes = fs::read("/bin/sh").expect("there is a shell").leak();
        Launch {
            source: Source::Nvml,
            program: Program::Embedded { name: "labd-probe-test", bytes },
            args: vec!["-c".into(), "echo $0 $WORD; readlink /proc/$$/exe".into()],
            env: vec![("WORD", "said".into())],
        }
    }

    #[tokio::test]
    async fn an_embedded_program_runs_from_memory_and_leaves_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let done = shell().start(dir.path()).expect("it starts").wait_with_output().await.expect("it ends");
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(text.starts_with("labd-probe-test said\n") && text.contains("/memfd:labd-probe-test"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0);
    }

    #[tokio::test]
    async fn where_memory_may_not_be_run_a_private_file_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let (under, bytes) = (dir.path().join("probes"), fs::read("/bin/true").expect("there is one"));
        for _ in 0..2 {
            let path = on_disk(&under, "p", &bytes).expect("it can be written");
            assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o700);
            // Another test that starts a program may hold what was just written open until its own runs.
            let status = loop {
                match std::process::Command::new(&path).status() {
                    Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                    status => break status.expect("it runs"),
                }
            };
            assert!(status.success());
        }
        assert_eq!(fs::metadata(&under).expect("it is there").permissions().mode() & 0o777, 0o700);
        let path = on_disk(&under, "p", b"another").expect("it can be replaced");
        assert_eq!(fs::read(path).expect("it is there"), b"another");
        assert_eq!(fs::read_dir(&under).expect("it is there").count(), 1);
    }

    #[test]
    fn a_memory_file_cannot_be_changed() {
        let mut file = in_memory("p", b"text").expect("the kernel has memory files");
        assert!(io::Write::write_all(&mut file, b"more").is_err());
    }
}
