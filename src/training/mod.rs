//! Training curves: what scripts report to Ray Train, over every attempt at a job, and what happened to it meanwhile.
//!
//! * [`report`]: what a run's controller posts. Reading is pure.
//! * [`store`]: the file; [`thin`]: which points of a full curve go. Pure.
//! * [`marks`]: deaths and resumptions on a curve, and what work was done twice. Pure.
//! * [`csv`]: a curve as a table. Pure.
//!
//! One task owns the file. It takes posts (`mpsc`), collects them for [`PAUSE`], and writes them together; it reads for whoever
//! shows a curve. A controller keeps its reports until they are on disk: what it posts is answered with the number of the newest
//! one that is. Nothing of the lab waits for this task or fails by it.

pub mod csv;
pub mod marks;
pub mod report;
mod store;
mod thin;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::time::Timestamp;
use report::Report;
use store::Store;

/// Time for which posts are collected before they are written. Chosen: a page that is open shows what is not written, too.
const PAUSE: Duration = Duration::from_secs(5);
/// Time between two tries to write what could not be written.
const AGAIN: Duration = Duration::from_secs(10);
/// Time between two writes that readers cause.
const FOR_READERS: Duration = Duration::from_secs(1);
/// Largest number of readers at once: a curve is up to 1 MB, and reports wait while one is read.
const READERS: usize = 4;
/// Longest time that a reader of points waits for its turn; who asks for less can do without.
const FOR_A_TURN: Duration = Duration::from_secs(10);
/// Largest number of points and worker groups that wait to be written; more are refused, and their controllers keep them.
const WAITING: usize = 8_192;
/// Largest number of runs of which is remembered what is on disk. One that is forgotten posts again what it still has.
const REMEMBERED: usize = 400;

/// Curve of one run of a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    /// Name of the run.
    pub run: String,
    /// Names of all runs of the job, the one that was reported to last first.
    pub runs: Vec<String>,
    /// Names of the metrics, in the order in which they were first reported.
    pub metrics: Vec<String>,
    /// Number of points there are.
    pub count: u64,
    /// Points by time; none where they were not asked for.
    pub points: Vec<CurvePoint>,
    /// Worker groups, oldest first.
    pub groups: Vec<CurveGroup>,
    /// Number of reports that are not among the points: thinned out, or without room in their controller.
    pub dropped: u64,
}

/// Point of a curve.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// Time of the report.
    pub at: Timestamp,
    /// Number of the worker group, over the whole job; 0 where nothing more is known of that.
    pub group: u32,
    /// Name of the checkpoint that came with it.
    pub checkpoint: Option<String>,
    /// Values in the order of [`Curve::metrics`]; absent for what was not reported or is no finite number.
    pub values: Vec<Option<f64>>,
}

/// Worker group of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurveGroup {
    /// Its number over the whole job, from 1.
    pub number: u32,
    /// Submission whose run it belongs to.
    pub submission_id: String,
    /// Number of that attempt at the job.
    pub attempt: u32,
    /// Time at which its workers began to train.
    pub began_at: Timestamp,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Reason why it failed, in one line.
    pub why: Option<String>,
    /// Addresses of the nodes its workers ran on; their services' names after [`Curve::name_nodes`].
    pub nodes: Vec<String>,
}

impl Curve {
    /// Puts the names of services in place of their nodes' addresses, where they are known.
    pub fn name_nodes<'a>(&mut self, name: impl Fn(&str) -> Option<&'a str>) {
        for node in self.groups.iter_mut().flat_map(|group| &mut group.nodes) {
            if let Some(name) = name(node) {
                name.clone_into(node);
            }
        }
    }
}

/// Curve that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Which {
    /// Submission of a person.
    pub root: String,
    /// Time at which that came, as its metadata say it; absent for the newest one of that id.
    pub submitted: Option<String>,
    /// Name of the run; absent for the one that was reported to last.
    pub run: Option<String>,
    /// Whether all but the points is enough.
    pub without_points: bool,
}

/// Answer to a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Number of the newest report of that call of `fit()` that is known to be on disk; 0 where none is.
    pub stored: u64,
    /// Number of this labd among all: with another one, what was posted and not stored is posted again.
    pub labd: u64,
}

/// Handle on the task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Training {
    ask: mpsc::Sender<Ask>,
    readers: Arc<Semaphore>,
}

#[derive(Debug)]
enum Ask {
    Take { report: Report, reply: oneshot::Sender<Option<Taken>> },
    Read { which: Which, reply: oneshot::Sender<Result<Option<Curve>, String>>, permit: OwnedSemaphorePermit },
    Flush { reply: oneshot::Sender<()> },
}

/// Curves that were opened.
pub struct Opened {
    /// Handle on the task.
    pub training: Training,
    /// Note for a person, such as about a damaged file that was set aside.
    pub note: Option<String>,
}

impl Training {
    /// Opens or begins the curves in the data directory, and starts their task. Must be called inside a tokio runtime. The task
    /// ends with the last handle.
    pub fn open(data_dir: &Path) -> Opened {
        let (store, note) = Store::open(&data_dir.join("training.db"));
        Opened { training: Self::start(store), note }
    }

    fn start(store: Store) -> Self {
        let (ask, asked) = mpsc::channel(64);
        let task = Task {
            store: Arc::new(Mutex::new(store)),
            waiting: Vec::new(),
            stored: BTreeMap::new(),
            write_at: None,
            wrote_at: None,
            trouble: false,
            labd: rand::random::<u32>().into(),
        };
        tokio::spawn(task.run(asked));
        Self { ask, readers: Arc::new(Semaphore::new(READERS)) }
    }

    /// Takes a post. `None` while there is no room: it is to be posted again.
    pub async fn take(&self, report: Report) -> Option<Taken> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Take { report, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Curve of a job; `None` where there is none. Who waits too long for a turn is refused. The error is one line.
    pub async fn read(&self, which: Which) -> Result<Option<Curve>, String> {
        let ending = || "labd is shutting down".to_owned();
        // It goes with the question: who gives up waiting does not make room for another.
        let patience = if which.without_points { Duration::ZERO } else { FOR_A_TURN };
        let turn = tokio::time::timeout(patience, Arc::clone(&self.readers).acquire_owned()).await;
        let permit = turn.ok().and_then(Result::ok).ok_or("busy: try again in a moment")?;
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Read { which, reply, permit }).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Writes what was taken; returns once that is on disk, or cannot be written.
    pub async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.ask.send(Ask::Flush { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }
}

struct Task {
    store: Arc<Mutex<Store>>,
    /// Posts that are not on disk.
    waiting: Vec<Report>,
    /// Newest report on disk, by Ray's id of the run.
    stored: BTreeMap<String, u64>,
    /// Time at which what waits is written.
    write_at: Option<Instant>,
    /// Time of the last try to write.
    wrote_at: Option<Instant>,
    /// Whether the log says that something is wrong with the file.
    trouble: bool,
    labd: u64,
}

impl Task {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        loop {
            let due = self.write_at;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.write().await,
                ask = asked.recv() => match ask {
                    Some(ask) => self.hear(ask).await,
                    None => return self.write().await,
                },
            }
        }
    }

    async fn hear(&mut self, ask: Ask) {
        // Whoever asked may have gone.
        match ask {
            Ask::Take { report, reply } => {
                let _ = reply.send(self.take(report));
            }
            Ask::Read { which, reply, permit } => {
                if self.wrote_at.is_none_or(|at| at.elapsed() >= FOR_READERS) {
                    self.write().await;
                }
                let read = self.with_store(move |store| store.read(&which)).await;
                if let Err(line) = &read {
                    self.note(line);
                }
                drop(permit);
                let _ = reply.send(read);
            }
            Ask::Flush { reply } => {
                self.write().await;
                let _ = reply.send(());
            }
        }
    }

    fn take(&mut self, report: Report) -> Option<Taken> {
        let size = |report: &Report| report.points.len() + report.groups.len();
        if self.waiting.iter().map(size).sum::<usize>() + size(&report) > WAITING {
            return None;
        }
        let stored = self.stored.get(&report.run_id).copied().unwrap_or(0);
        if size(&report) > 0 {
            self.waiting.push(report);
            self.write_at.get_or_insert_with(|| Instant::now() + PAUSE);
        }
        Some(Taken { stored, labd: self.labd })
    }

    async fn write(&mut self) {
        self.write_at = None;
        if self.waiting.is_empty() {
            return;
        }
        self.wrote_at = Some(Instant::now());
        let reports = Arc::new(std::mem::take(&mut self.waiting));
        let written = Arc::clone(&reports);
        let done = self.with_store(move |store| store.write(&written)).await;
        let reports = Arc::unwrap_or_clone(reports);
        match done {
            Ok(newest) => {
                if std::mem::take(&mut self.trouble) {
                    tracing::info!("training curves are recorded again");
                }
                if self.stored.len() > REMEMBERED {
                    self.stored.clear();
                }
                for (report, newest) in reports.into_iter().zip(newest) {
                    let stored = self.stored.entry(report.run_id).or_default();
                    *stored = newest.max(*stored);
                }
            }
            Err(line) => {
                self.note(&line);
                self.waiting = reports;
                self.write_at = Some(Instant::now() + AGAIN);
            }
        }
    }

    /// Writes into the log, once, what is wrong with the file.
    fn note(&mut self, line: &str) {
        if !std::mem::replace(&mut self.trouble, true) {
            tracing::warn!("{line}");
        }
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            // What a panic left is opened anew: the connection was taken out for the time of the work.
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await
            .unwrap_or_else(|_| Err("the training curves' reader died: try again; labd's log says why".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use report::Point;

    fn report(seqs: std::ops::RangeInclusive<u64>) -> Report {
        let point = |seq| Point { seq, at: Timestamp::from_millis(1), group: 1, checkpoint: None, values: Vec::new() };
        Report {
            root: "a".into(),
            submitted: String::new(),
            submission: "a".into(),
            attempt: 1,
            run: "a".into(),
            run_id: "one".into(),
            names: Vec::new(),
            points: seqs.map(point).collect(),
            groups: Vec::new(),
            dropped: 0,
        }
    }

    async fn points(training: &Training) -> Option<usize> {
        let which = Which { root: "a".into(), ..Which::default() };
        training.read(which).await.expect("readable").map(|curve| curve.points.len())
    }

    #[tokio::test]
    async fn what_was_taken_is_shown_at_once_and_called_stored_once_it_is_on_disk() {
        let dir = tempfile::tempdir().expect("a folder");
        let training = Training::open(dir.path()).training;
        assert_eq!(points(&training).await, None);
        let first = training.take(report(1..=5)).await.expect("room");
        assert_eq!((first.stored, points(&training).await), (0, Some(5)));
        assert_eq!(training.take(report(6..=6)).await, Some(Taken { stored: 5, ..first.clone() }));
        // A killed labd has forgotten what it had not written; another one says that it is another.
        training.flush().await;
        let next = Training::open(dir.path()).training;
        let again = next.take(report(6..=7)).await.expect("room");
        assert!(again.labd != first.labd && again.stored == 0, "{again:?}");
        assert_eq!(points(&next).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_do_not_make_it_write_more_than_once_a_second_and_wait_their_turn() {
        let dir = tempfile::tempdir().expect("a folder");
        let training = Training::open(dir.path()).training;
        training.take(report(1..=5)).await.expect("room");
        assert_eq!(points(&training).await, Some(5));
        training.take(report(6..=6)).await.expect("room");
        assert_eq!(points(&training).await, Some(5), "written a moment ago");
        tokio::time::advance(FOR_READERS).await;
        assert_eq!(points(&training).await, Some(6));
        let read = || training.read(Which { root: "a".into(), ..Which::default() });
        let answers = futures_util::future::join_all((0..=READERS).map(|_| read())).await;
        assert!(answers.iter().all(Result::is_ok), "one after the other");
        let turns = training.readers.clone().acquire_many_owned(READERS as u32).await.expect("free");
        assert_eq!(read().await.expect_err("none is free"), "busy: try again in a moment");
        drop(turns);
        assert!((0..READERS).all(|_| read().now_or_never().is_none()));
        assert!(read().now_or_never().is_none(), "who gives up makes no room for another");
        training.flush().await;
        assert!(read().await.is_ok(), "there is room again");
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_up_to_a_bound_and_the_rest_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("training.db")).expect("a folder where a file should be");
        let opened = Training::open(dir.path());
        assert!(opened.note.is_some_and(|line| line.contains("not recorded")));
        let training = opened.training;
        let mut taken = 0;
        while taken < WAITING && training.take(report(1..=1_000)).await.is_some() {
            taken += 1;
            training.flush().await;
        }
        assert_eq!(taken, WAITING / 1_000);
        std::fs::remove_dir(dir.path().join("training.db")).expect("gone");
        training.flush().await;
        assert!(training.take(report(1_001..=1_001)).await.is_some_and(|taken| taken.stored == 1_000));
    }
}
