//! Probe that runs, as labd sees it. Also used by labd's own test of `labd probe nvidia-smi`.
#![allow(dead_code, reason = "each test uses a part")]

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use labd_gpu::{
    Device, Reading,
    line::{Line, Trouble},
};

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_mins(1);
/// Silence after which labd kills a probe.
const SILENCE: Duration = Duration::from_secs(5);

pub(crate) struct Probe {
    pub(crate) child: Child,
    pub(crate) input: Option<ChildStdin>,
    pub(crate) lines: mpsc::Receiver<Line>,
}

impl Probe {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the probe");
        let output = child.stdout.take().expect("it is a pipe");
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for text in BufReader::new(output).lines() {
                let text = text.expect("UTF-8");
                if tell.send(Line::parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"))).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take(), child, lines }
    }

    pub(crate) fn line(&self) -> Line {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    /// First line from now on that has what is looked for.
    pub(crate) fn until<T>(&self, mut wanted: impl FnMut(Line) -> Option<T>) -> T {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(found) = wanted(self.line()) {
                return found;
            }
        }
        panic!("no such line in {DEADLINE:?}");
    }

    pub(crate) fn inventory(&self) -> Vec<Device> {
        self.until(|line| if let Line::Inventory(devices) = line { Some(devices) } else { None })
    }

    pub(crate) fn readings(&self, wanted: impl Fn(&[Reading]) -> bool) -> Vec<Reading> {
        self.until(|line| if let Line::Readings(r) = line { Some(r).filter(|r| wanted(r)) } else { None })
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.until(|line| if let Line::Trouble(trouble) = line { Some(trouble) } else { None })
    }

    /// Waits until nothing has come for as long as labd waits.
    pub(crate) fn falls_silent(&self) {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            match self.lines.recv_timeout(SILENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("it ended"),
            }
        }
        panic!("it still speaks after {DEADLINE:?}");
    }

    pub(crate) fn ends(&mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it runs after {DEADLINE:?}");
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // With what it started.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.wait();
    }
}

pub(crate) fn ids<'a>(all: impl IntoIterator<Item = &'a Device>) -> Vec<&'a str> {
    all.into_iter().map(|d| d.id.as_str()).collect()
}

pub(crate) fn errors(readings: &[Reading]) -> Vec<(&str, Option<&str>)> {
    readings.iter().map(|r| (r.id.as_str(), r.error.as_deref())).collect()
}
