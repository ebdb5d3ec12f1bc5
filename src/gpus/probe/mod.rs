//! GPU probes: processes that ask a vendor's library or command, since the daemon must not. A library can hang in the kernel or
//! take its process along, and a static program cannot load one.
//!
//! One task per vendor ([`spawn`]); it owns the process and tells a [`ProbeView`] (`watch`). It begins when the machine has
//! such hardware, starts the best source there is, watches it, and kills and restarts it when it is silent, dies or
//! floods. What was last known is kept meanwhile, with the time since which it is stale.
//!
//! * `decide`: what is done, and when. Pure.
//! * `sources`: the ways to start a probe. Which of them a vendor has, best first, is in its [`VendorDef`].
//! * `program`: starting an executable, from memory where it is embedded.
//! * `lines`: lines out of a pipe's pieces. Pure.
//!
//! A probe's standard input is a pipe that labd holds and never writes to: it ends when labd does. (A signal at the parent's
//! death, `PR_SET_PDEATHSIG`, takes unsafe code, and is about threads.) A probe must end then, or when its output cannot be
//! written.
//!
//! A process that hangs in the kernel does not die of SIGKILL before the kernel lets go of it. Nothing waits for that: a task
//! of its own reaps it, and after three such processes no other is started until one is gone.

mod decide;
mod lines;
mod program;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use labd_gpu::{
    Device, Reading,
    line::{Hello, LIBRARY_MISSING, Line, Trouble},
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::Serialize;
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

pub(super) use self::sources::{embedded, labd, launch};
pub use self::{
    decide::SILENCE,
    program::{Launch, Program},
};
use self::{
    decide::{End, LOOK, Memory, Step, UNREAPED},
    lines::Lines,
};
use super::vendor::{self, VendorDef};
use crate::time::{Moment, Timestamp};

/// Time for which a process whose output ended may take to end itself before it is no longer waited for.
const LAST_BREATH: Duration = Duration::from_secs(1);
const LOOK_AT_DEATH: Duration = Duration::from_millis(20);
/// Time for which its standard error is waited for after that.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Number of bytes that are read at once.
const PIECE: usize = 16 << 10;
/// Number of bytes of one process's standard error that are logged; the rest is thrown away.
const STDERR_LOGGED: usize = 64 << 10;
/// Longest line of standard error, in bytes, that is logged as a whole.
const STDERR_LINE: usize = 500;

/// View of one vendor's GPUs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProbeView {
    /// Whether the machine has such hardware. No probe runs before it has. Once so, it stays so: a GPU that fell off
    /// the bus is missing in `devices`, and news.
    pub present: bool,
    /// First message of the probe, which names its source.
    pub hello: Option<Hello>,
    /// The last inventory. Kept when the probe dies.
    pub devices: Vec<Device>,
    /// Time of the last inventory; absent before the first one, when `devices` means nothing.
    pub inventory_at: Option<Timestamp>,
    /// The last readings. Kept when the probe dies.
    pub readings: Vec<Reading>,
    /// Time of the last readings.
    pub read_at: Option<Timestamp>,
    /// Time since which there are no new readings, where there should be: the probe died or is silent, or has none to
    /// give.
    pub stale_since: Option<Timestamp>,
    /// Trouble that the probe reports instead of readings or beside them, or labd about the probe (code `probe-...`). Ends
    /// with the first round of the probe that does not repeat it.
    pub trouble: Option<Trouble>,
    /// Whether the probe said so since its last readings: those of its next round do not end it yet.
    #[serde(skip)]
    pub trouble_said: bool,
    /// Number of times that a probe had to be started again since labd's start.
    pub restarts: u64,
    /// Number of lines that could not be read since labd's start.
    pub garbled: u64,
}

/// Places of files on the machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// Root of the file system, `/` but for tests.
    pub root: PathBuf,
    /// Folder of labd's own for what must be in files, such as `probes` in the data directory. Made when needed.
    pub dir: PathBuf,
}

/// Watches one vendor's GPUs. The task, and the probe with it, ends with the last receiver.
pub(super) fn spawn(def: &'static VendorDef, place: Place) -> watch::Receiver<ProbeView> {
    let (tell, view) = watch::channel(ProbeView::default());
    tokio::spawn(async move {
        let there = {
            let root = place.root.clone();
            move || vendor::on_bus(&root).iter().any(|(found, _)| found.vendor == def.vendor)
        };
        // Looked for in threads of their own: a file system can hang.
        while !off_the_loop(there.clone()).await.unwrap_or(false) {
            tokio::select! {
                () = tell.closed() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let launches = {
            let place = place.clone();
            move || (def.sources)(&place.root, &place.dir)
        };
        watch_sources(launches, place.dir, tell).await;
    });
    view
}

/// Watches a probe that is started in one of these ways, best first; an absent one cannot be started now. They are asked for
/// again every 5 s. `dir` as in [`Place`]. The task, and the probe with it, ends with the last receiver.
pub fn spawn_from(
    launches: impl Fn() -> Vec<Option<Launch>> + Clone + Send + 'static,
    dir: PathBuf,
) -> watch::Receiver<ProbeView> {
    let (tell, view) = watch::channel(ProbeView::default());
    tokio::spawn(watch_sources(launches, dir, tell));
    view
}

async fn off_the_loop<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(look).await.ok()
}

async fn watch_sources(
    launches: impl Fn() -> Vec<Option<Launch>> + Clone + Send + 'static,
    dir: PathBuf,
    tell: watch::Sender<ProbeView>,
) {
    let (began, wall) = (Instant::now(), Timestamp::now());
    // Of a clock that nobody sets.
    let clock = || Moment::from_millis(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX));
    let instant = |at: Moment| began + at.since(Moment::from_millis(0));
    let mut memory = Memory::new(rand::random());
    let mut process: Option<Process> = None;
    let unreaped = Arc::new(AtomicUsize::new(0));
    let mut known: Vec<Option<Launch>> = Vec::new();
    let mut looked: Option<Moment> = None;
    let mut read_at = clock();
    tell.send_modify(|view| view.present = true);

    while !tell.is_closed() {
        if looked.is_none_or(|at| clock().since(at) >= LOOK) {
            known = off_the_loop(launches.clone()).await.unwrap_or_default();
            looked = Some(clock());
        }
        let usable: Vec<bool> = known.iter().map(Option::is_some).collect();
        let waiting = unreaped.load(Ordering::Relaxed);
        match memory.step(clock(), &usable, waiting) {
            Step::Start(i) => {
                let Some(launch) = known.get(i).cloned().flatten() else { continue };
                let (what, dir) = (launch.clone(), dir.clone());
                let started = off_the_loop(move || Process::start(&what, &dir)).await;
                memory.started(i, clock(), &usable);
                match started.unwrap_or_else(|| Err("the system has no thread to start it".to_owned())) {
                    Ok(new) => {
                        process = Some(new);
                        // What another one said is none of this one's.
                        tell.send_if_modified(|view| std::mem::take(&mut view.trouble_said));
                    }
                    Err(why) => {
                        let end = End::NotStarted(why);
                        let goes_on = memory.ended(&end, clock(), &usable);
                        say(&tell, launch.source.as_str(), &end, goes_on);
                    }
                }
            }
            Step::Kill(end) => {
                let Some(old) = process.take() else { continue };
                let word = old.word;
                old.kill(&unreaped);
                let goes_on = memory.ended(&end, clock(), &usable);
                say(&tell, word, &end, goes_on);
            }
            Step::Wait(until) => {
                if waiting >= UNREAPED && process.is_none() {
                    trouble(&tell, "probe-stuck", "killed GPU probes hang in the kernel; look at `dmesg`, then reboot");
                }
                let stale = read_at.plus(SILENCE);
                if clock() >= stale {
                    tell.send_if_modified(|view| {
                        let fresh = view.stale_since.is_none();
                        view.stale_since = view.stale_since.or(view.read_at).or(Some(wall));
                        fresh
                    });
                }
                let next_look = looked.unwrap_or_else(clock).plus(LOOK);
                let wake = [until, next_look, stale].into_iter().filter(|&at| at > clock()).min();
                // What is there to be read is read before silence is judged: labd itself may have slept.
                let piece = tokio::select! {
                    biased;
                    () = tell.closed() => return,
                    piece = read(&mut process) => piece,
                    () = sleep_until(instant(wake.unwrap_or(until))) => continue,
                };
                if let Some(piece) = piece {
                    let Some(process) = &mut process else { continue };
                    let now = clock();
                    let too_long = process.lines.push(&piece, |line| {
                        let parsed = std::str::from_utf8(line).map_err(|e| e.to_string()).and_then(Line::parse);
                        memory.line(now, line.len(), parsed.is_ok());
                        if matches!(&parsed, Ok(Line::Trouble(t)) if t.code == LIBRARY_MISSING) {
                            memory.library_missing();
                        }
                        if matches!(parsed, Ok(Line::Readings(_))) {
                            read_at = now;
                        }
                        tell.send_modify(|view| view.handle(parsed, process.word, Timestamp::now()));
                    });
                    if too_long.is_err() {
                        memory.line_too_long();
                    }
                } else if let Some(old) = process.take() {
                    let word = old.word;
                    let end = old.end(&unreaped).await;
                    let goes_on = memory.ended(&end, clock(), &usable);
                    say(&tell, word, &end, goes_on);
                }
            }
        }
    }
}

/// Output of the process; `None` at the end of it. Never comes while there is no process.
async fn read(process: &mut Option<Process>) -> Option<Vec<u8>> {
    let Some(process) = process else { return std::future::pending().await };
    let mut piece = Vec::with_capacity(PIECE);
    match process.out.read_buf(&mut piece).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(piece),
    }
}

impl ProbeView {
    /// Takes one line. Pure. `word`: whom the probe asks.
    fn handle(&mut self, line: Result<Line, String>, word: &str, now: Timestamp) {
        match line {
            Ok(Line::Hello(hello)) => self.hello = Some(hello),
            Ok(Line::Inventory(devices)) => {
                (self.devices, self.inventory_at) = (devices, Some(now));
                self.trouble.take_if(|_| !self.trouble_said);
            }
            Ok(Line::Readings(readings)) => {
                (self.readings, self.read_at, self.stale_since) = (readings, Some(now), None);
                // One that has trouble beside readings prints both, one after the other: it has not gone in between.
                self.trouble.take_if(|_| !self.trouble_said);
                self.trouble_said = false;
            }
            Ok(Line::Trouble(trouble)) => (self.trouble, self.trouble_said) = (Some(trouble), true),
            Err(why) => {
                self.garbled += 1;
                self.trouble_said = false;
                tracing::debug!(probe = word, why, "a line of the probe cannot be read");
                self.trouble = Some(Trouble {
                    code: "probe-garbled".to_owned(),
                    text: format!("the GPU probe ({word}) printed a line that cannot be read: {why}"),
                });
            }
        }
    }
}

/// Makes the end of a probe part of the view. `goes_on`: another source is asked at once.
fn say(tell: &watch::Sender<ProbeView>, word: &str, end: &End, goes_on: bool) {
    let (code, what) = match end {
        End::NotStarted(why) => ("probe-not-started", format!("cannot be started: {why}")),
        End::Ended(how) => ("probe-ended", format!("ended: {how}")),
        End::Silent => ("probe-silent", format!("said nothing for {} s and was killed", SILENCE.as_secs())),
        End::Flood => ("probe-flood", "printed more than a probe should and was killed".to_owned()),
        End::NoLibrary => (LIBRARY_MISSING, "has no library".to_owned()),
        End::Better => ("probe-replaced", "is replaced by a better one".to_owned()),
    };
    if goes_on {
        tracing::debug!("the GPU probe ({word}) {what}; another source is asked");
        return;
    }
    let now = Timestamp::now();
    tell.send_modify(|view| {
        view.stale_since = view.stale_since.or(view.read_at).or(Some(now));
        view.restarts += 1;
    });
    // Its own words on the library say more than ours.
    if *end != End::NoLibrary {
        trouble(tell, code, &format!("the GPU probe ({word}) {what}; it is started again"));
    }
}

/// Sets the trouble, and logs it once.
fn trouble(tell: &watch::Sender<ProbeView>, code: &str, text: &str) {
    tell.send_if_modified(|view| {
        let new = Trouble { code: code.to_owned(), text: text.to_owned() };
        if view.trouble.as_ref() == Some(&new) {
            return false;
        }
        tracing::warn!("{text}");
        (view.trouble, view.trouble_said) = (Some(new), false);
        true
    });
}

/// A running probe. Dropping it kills it.
struct Process {
    /// Process group; dropped before `child`, so that it is killed while its leader is not reaped yet.
    group: Group,
    child: Child,
    out: ChildStdout,
    /// Standard input, held open and never written to.
    _stdin: ChildStdin,
    log: JoinHandle<()>,
    last_words: Arc<Mutex<String>>,
    lines: Lines,
    /// Name of what it asks.
    word: &'static str,
}

/// Process group of a probe: itself, and the vendor's command where it runs one.
struct Group(Option<Pid>);

impl Group {
    /// End of the probe itself, if it ended, in words. It is not reaped by that: as long as it is there, dead or alive,
    /// the group's number cannot become another's.
    fn leader_ended(&self) -> Option<String> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(self.0?), options).ok()??;
        Some(match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => format!("signal {signal}"),
            (None, code) => format!("exit status {}", code.unwrap_or_default()),
        })
    }

    /// Kills the whole group. Nothing is done the second time: the number may be another's then.
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // Gone already is just as well.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn start(launch: &Launch, dir: &Path) -> Result<Self, String> {
        let mut child = launch.start(dir).map_err(|e| e.to_string())?;
        let group = Group(child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())));
        let (Some(stdin), Some(out), Some(err)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err("it has no pipes".to_owned());
        };
        let last_words = Arc::new(Mutex::new(String::new()));
        let word = launch.source.as_str();
        let log = tokio::spawn(log(err, last_words.clone(), word));
        tracing::debug!(probe = word, pid = child.id(), "started");
        Ok(Self { group, child, out, _stdin: stdin, log, last_words, lines: Lines::default(), word })
    }

    /// Kills the process without waiting for its death.
    fn kill(self, unreaped: &Arc<AtomicUsize>) {
        let Self { mut group, mut child, .. } = self;
        group.kill();
        unreaped.fetch_add(1, Ordering::Relaxed);
        let unreaped = unreaped.clone();
        tokio::spawn(async move {
            // An error means that there is no such process any more.
            let _ = child.wait().await;
            unreaped.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// End of the process, once its output has ended.
    async fn end(mut self, unreaped: &Arc<AtomicUsize>) -> End {
        let deadline = Instant::now() + LAST_BREATH;
        let how = loop {
            if let Some(how) = self.group.leader_ended() {
                break how;
            }
            if Instant::now() >= deadline {
                break "it closed its output".to_owned();
            }
            tokio::time::sleep(LOOK_AT_DEATH).await;
        };
        // What it said last is in the pipe, unless others have that open.
        let _ = timeout(LAST_WORDS, &mut self.log).await;
        let last_words = self.last_words.lock().map(|said| said.clone()).unwrap_or_default();
        self.kill(unreaped);
        End::Ended(if last_words.is_empty() { how } else { format!("{how}: {last_words}") })
    }
}

/// Reads standard error to its end, so that a probe never waits for it, and logs the beginning. Its last line is kept, since it
/// often says why a process ended.
async fn log(mut from: ChildStderr, last_words: Arc<Mutex<String>>, word: &'static str) {
    let (mut lines, mut logged, mut piece) = (Lines::default(), 0, Vec::with_capacity(4 << 10));
    while let Ok(1..) = from.read_buf(&mut piece).await {
        let done = lines.push(&piece, |line| {
            let text = String::from_utf8_lossy(&line[..line.len().min(STDERR_LINE)]).trim().to_owned();
            if logged < STDERR_LOGGED {
                tracing::debug!(probe = word, "{text}");
                logged += text.len().max(1);
            }
            if let (Ok(mut last), false) = (last_words.lock(), text.is_empty()) {
                *last = text;
            }
        });
        if done.is_err() {
            lines = Lines::default();
        }
        piece.clear();
    }
}
