//! The job ledger: every submission that came through labd's front door, and what became of it.
//!
//! Ray keeps no job over the loss of its head's state, its driver's node or the machine, and leaves it to somebody else
//! to notice. The ledger is that somebody: it keeps each submission as it was sent before Ray hears of it, decides what
//! its end means, and submits again what was lost to infrastructure.
//!
//! * [`submission`]: a request, as a person sent it and as labd submits it to Ray. Pure.
//! * [`decide`]: what a job's end means and what follows. Pure.
//! * [`past`]: ids that are used again. Pure.
//! * [`store`]: the file.
//! * [`packages`]: uploaded code, kept beside it.
//! * [`whole`]: one job with every attempt at it, as the page and the command line show it. Pure.
//!
//! One task owns the book. It hears the front door (`mpsc`), what Ray reports, labd's incidents and where services are
//! (`watch`), and publishes the jobs as the snapshot shows them through one `watch`. Each submission to Ray is a task
//! of its own, so that a slow head delays nobody. A change is on disk before anything follows from it.

pub mod decide;
pub mod packages;
pub mod past;
mod reserve;
pub mod store;
pub mod submission;
#[cfg(test)]
mod tests;
mod view;
pub mod whole;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    config::Config,
    incident::{Incident, Order},
    journal::{Entry, Journal, Kind},
    ray::{Gcs, JobApi, RayView, Reply},
    services,
    snapshot::{JobStatus, JobView, ServiceState, ServiceView, Snapshot},
    time::{Moment, Now, Timestamp},
};
use decide::{ClusterView, Job, Next, Outcome, Policy, Present, Silence, State, Submitted, Transition};
use packages::{ASK_AGAIN, Packages};
use past::{End, Past};
use store::{Found, LedgerError, Store};
use submission::{Named, Submission};

/// Wait after a stop: Ray kills what a stopped job left after 3 s (`RAY_JOB_STOP_WAIT_TIME_S`), and a moment more.
const STOPPED: Duration = Duration::from_secs(4);
/// Time between two tries to submit the same job to Ray; doubles to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_millis(500);
/// Longest time between two tries.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Number of times that Ray may refuse to take a job, for reasons that are not the job's, before it is given up.
const TRIES: u32 = 30;
/// Time between two tries to write what could not be written, and between two requests to stop the same job.
const AGAIN: Duration = Duration::from_secs(10);
/// Number of tries to have the GCS keep a package, before the next round: a minute in all, which the dashboard may take to
/// come up after the GCS.
const PROVIDE_TRIES: u32 = 10;
/// Time for which it is remembered that a service did not answer: no failure is judged later.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Time between two sweeps of packages.
const SWEEP: Duration = Duration::from_hours(1);

/// View of the ledger for the snapshot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LedgerView {
    /// Jobs, newest first, at most 50: those of the ledger and those that only Ray knows.
    pub jobs: Vec<JobView>,
    /// Trouble of the ledger itself, in one line.
    pub trouble: Option<String>,
    /// Notices about jobs together, in a line each.
    pub notices: Vec<String>,
    /// Number of jobs submitted again since the ledger began.
    pub resubmissions: u64,
    /// Whether Ray calls a job failed, and what its containers did is waited for to judge it.
    pub unjudged: bool,
}

/// Destination of a request to stop a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Ray, for this submission: the attempt that runs now.
    Pass(String),
    /// None: the job was not submitted to Ray yet, and now never is.
    Done,
}

/// Handle on the ledger's task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    ask: mpsc::Sender<Ask>,
    view: watch::Receiver<Arc<LedgerView>>,
}

#[derive(Debug)]
enum Ask {
    Submit { submission: Submission, reply: oneshot::Sender<Reply> },
    Stop { id: String, reply: oneshot::Sender<Stop> },
    Deleting { id: String, last: JobStatus, reply: oneshot::Sender<()> },
    Forget { id: String, last: Option<JobStatus>, reply: oneshot::Sender<()> },
    Attempts { id: String, reply: oneshot::Sender<Vec<Job>> },
    Told { id: String, reply: oneshot::Sender<Vec<JobView>> },
    Older { than: Option<(Timestamp, String)>, most: usize, reply: oneshot::Sender<Vec<JobView>> },
    Unkept { what: String },
}

impl Ledger {
    /// Handle on a task that has ended.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { ask: mpsc::channel(1).0, view: watch::channel(Arc::default()).1 }
    }

    /// Keeps a submission and submits it to Ray: Ray's answer, or, while the head is away, one as Ray gives it.
    pub async fn submit(&self, submission: Submission) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Submit { submission, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Notes that a person wants a job stopped.
    pub async fn stop(&self, id: &str) -> Option<Stop> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Stop { id: id.to_owned(), reply }).await.ok()?;
        answer.await.ok()
    }

    /// Notes that a person's request to delete a job is about to be passed on, and what Ray reported of the job last:
    /// should it be gone after that, it was deleted, also when labd is killed before [`Self::forget`]. Whether it was
    /// noted: not while labd ends.
    pub async fn deleting(&self, id: &str, last: JobStatus) -> bool {
        let (reply, noted) = oneshot::channel();
        let sent = self.ask.send(Ask::Deleting { id: id.to_owned(), last, reply }).await;
        sent.is_ok() && noted.await.is_ok()
    }

    /// Notes that Ray deleted a job, which it does for ended ones only. `last` is what Ray reported of it last, where
    /// that is known. Whether it was noted: not while labd ends.
    pub async fn forget(&self, id: &str, last: Option<JobStatus>) -> bool {
        let (reply, noted) = oneshot::channel();
        let sent = self.ask.send(Ask::Forget { id: id.to_owned(), last, reply }).await;
        sent.is_ok() && noted.await.is_ok()
    }

    /// A job and the attempts that took its place, oldest first; empty for an id that the ledger does not know. `None`
    /// while labd ends.
    pub async fn attempts(&self, id: &str) -> Option<Vec<Job>> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Attempts { id: id.to_owned(), reply }).await.ok()?;
        answer.await.ok()
    }

    /// [`Self::attempts`] as they are told besides the jobs of the view, which say more of theirs.
    pub async fn told(&self, id: &str) -> Option<Vec<JobView>> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Told { id: id.to_owned(), reply }).await.ok()?;
        answer.await.ok()
    }

    /// Jobs of the ledger, newest first: those that were submitted before this time, or at it with a smaller id. `None` while
    /// labd ends.
    pub async fn older(&self, than: Option<(Timestamp, String)>, most: usize) -> Option<Vec<JobView>> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Ask::Older { than, most, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Notes in the journal that a copy of an uploaded package was not kept, and why.
    pub async fn unkept(&self, what: String) {
        let _ = self.ask.send(Ask::Unkept { what }).await;
    }

    /// Channel on which the ledger publishes its view whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<LedgerView>> {
        self.view.clone()
    }
}

/// Parts that the ledger's task is given.
pub struct Parts<A> {
    /// Job API of the head that runs now.
    pub api: Box<dyn Fn() -> Option<A> + Send + Sync>,
    /// Ray's state, as it reports it.
    pub ray: watch::Receiver<Arc<RayView>>,
    /// Channel for the jobs that must be followed, should Ray's list of all become too long.
    pub follow: watch::Sender<BTreeSet<String>>,
    /// Recent incidents.
    pub incidents: watch::Receiver<Arc<Vec<Incident>>>,
    /// Moment since which every container that can take a job along has been observed: what ended before is among the
    /// incidents.
    pub looked_at: watch::Receiver<Option<Moment>>,
    /// Snapshot, for where services are.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Configuration from `labd.toml`.
    pub config: watch::Receiver<Arc<Config>>,
    /// Journal, for what became of jobs.
    pub journal: Journal,
}

/// Files of the ledger, opened.
#[derive(Debug)]
pub struct Opened {
    store: Store,
    found: Found,
    /// Folder of uploaded packages.
    pub packages: Packages,
}

/// Opens the ledger in the data directory: its file and the folder of packages.
pub fn open(data_dir: &Path) -> Result<Opened, LedgerError> {
    let (store, found) = Store::open(&data_dir.join("ledger.db"))?;
    let path = data_dir.join("packages");
    let packages = Packages::open(&path).map_err(|reason| LedgerError::Packages { path, reason })?;
    Ok(Opened { store, found, packages })
}

/// Starts the ledger's task. Must be called inside a tokio runtime; ends with the last [`Ledger`].
pub fn spawn<A: JobApi>(opened: Opened, parts: Parts<A>) -> Ledger {
    start(opened, parts).0
}

/// Starts the ledger's task over a simulated file. Returns also the handle that kills it.
#[cfg(test)]
pub(crate) fn simulated<A: JobApi>(shelf: &store::Shelf, parts: Parts<A>) -> (Ledger, AbortHandle) {
    let (store, found) = Store::simulated(shelf);
    start(Opened { store, found, packages: Packages::none() }, parts)
}

fn start<A: JobApi>(opened: Opened, parts: Parts<A>) -> (Ledger, AbortHandle) {
    let Opened { store, found, packages } = opened;
    let (ask, asked) = mpsc::channel(64);
    let (tell, view) = watch::channel(Arc::new(LedgerView::default()));
    let (words, heard) = mpsc::unbounded_channel();
    let uncertain = uncertain(&found.book).collect();
    let keeper = LedgerTask {
        book: found.book,
        used: found.used,
        unsaved_used: BTreeSet::new(),
        trouble: found.note,
        unreadable: found.unreadable,
        store,
        packages,
        parts,
        words,
        tell,
        in_flight: BTreeMap::new(),
        replaced: BTreeMap::new(),
        waiting: BTreeMap::new(),
        stops: BTreeMap::new(),
        unsaved: BTreeSet::new(),
        removed: BTreeSet::new(),
        save_again: Instant::now(),
        sweep_at: Instant::now(),
        provide_at: Instant::now(),
        bytes: 0,
        silences: Vec::new(),
        failed: BTreeMap::new(),
        learnt: BTreeMap::new(),
        uncertain,
    };
    let task = tokio::spawn(keeper.run(asked, heard)).abort_handle();
    (Ledger { ask, view }, task)
}

/// Result of a submission to Ray.
#[derive(Debug)]
struct HandedIn {
    id: String,
    /// Time by which it is known which job of that id it is.
    submitted_at: Timestamp,
    result: Result<Reply, String>,
}

struct LedgerTask<A> {
    book: BTreeMap<String, Job>,
    /// Ids of jobs that ended, deleted ones included.
    used: BTreeMap<String, Past>,
    /// Those of `used` that are not on disk.
    unsaved_used: BTreeSet<String>,
    /// Length of all submissions, in bytes.
    bytes: usize,
    /// Ids on disk of jobs that this labd cannot read.
    unreadable: BTreeSet<String>,
    store: Store,
    packages: Packages,
    parts: Parts<A>,
    words: mpsc::UnboundedSender<HandedIn>,
    tell: watch::Sender<Arc<LedgerView>>,
    /// Jobs that are being submitted to Ray, and whether each is still wanted.
    in_flight: BTreeMap<String, Arc<AtomicBool>>,
    /// Ended jobs whose ids are used again, until Ray has said that it takes the new one.
    replaced: BTreeMap<String, Job>,
    /// People who wait for Ray's answer, by job.
    waiting: BTreeMap<String, oneshot::Sender<Reply>>,
    /// Time at which Ray was last asked to stop each job.
    stops: BTreeMap<String, (Instant, AbortHandle)>,
    /// Jobs whose newest state is not on disk.
    unsaved: BTreeSet<String>,
    /// Jobs that are on disk and should not be.
    removed: BTreeSet<String>,
    save_again: Instant,
    sweep_at: Instant,
    /// Time at which the GCS is next asked for packages.
    provide_at: Instant,
    /// Recent times in which services did not answer.
    silences: Vec<Silence>,
    /// Moment since which Ray is known to call a job failed that has not ended for labd.
    failed: BTreeMap<String, Instant>,
    /// Newest place in the incidents' order when each job was first submitted to Ray.
    learnt: BTreeMap<String, u64>,
    /// Jobs that an earlier labd may have submitted to Ray, and could not write that down.
    uncertain: BTreeSet<String>,
    trouble: Option<String>,
}

impl<A: JobApi> LedgerTask<A> {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, mut heard: mpsc::UnboundedReceiver<HandedIn>) {
        self.trim();
        let mut ray = self.parts.ray.clone();
        let mut incidents = self.parts.incidents.clone();
        let mut looked_at = self.parts.looked_at.clone();
        let mut config = self.parts.config.clone();
        let mut snapshot = self.parts.snapshot.clone();
        let mut wake = tokio::time::Instant::now();
        let mut settled = false;
        loop {
            self.provide_packages();
            if !settled {
                if self.settle().await {
                    // What takes a lost one's place is submitted at once, even if nothing else happens for a while.
                    self.settle().await;
                }
                self.publish();
                self.sweep();
                let now = Timestamp::now();
                let due = decide::wake(&self.book, now).map(|at| at.since(now).max(Duration::from_millis(20)));
                wake = tokio::time::Instant::now() + due.map_or(AGAIN, |due| due.min(AGAIN));
            }
            settled = false;
            tokio::select! {
                biased;
                Some(HandedIn { id, submitted_at, result }) = heard.recv() => {
                    self.handed_in(&id, submitted_at, result).await;
                }
                Ok(()) = ray.changed() => {}
                Ok(()) = incidents.changed() => {}
                Ok(()) = looked_at.changed() => {}
                Ok(()) = config.changed() => {}
                Ok(()) = snapshot.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
                // Last, as many clients may ask at once.
                ask = asked.recv() => match ask {
                    Some(ask) => settled = !self.hear(ask).await,
                    None => return,
                },
            }
        }
    }

    // ---- deciding ----

    /// Carries out what follows from what is known. Returns whether more follows from that.
    async fn settle(&mut self) -> bool {
        let now = Timestamp::now();
        self.listen(now);
        self.mind_failed();
        let moves = self.decide(now);
        let mut hand = Vec::new();
        let again = moves.iter().any(|change| matches!(change, Transition::Replace(..)));
        for change in moves {
            match change {
                Transition::Hand(id) => hand.push(id),
                Transition::Note(id, known) => self.set(&id, State::Submitted(known)),
                Transition::Stop(id) => self.ask_to_stop(id),
                Transition::End(id, outcome) => self.end(&id, outcome, now),
                Transition::Replace(id, outcome, replacement) => {
                    self.unsaved.insert(replacement.id.clone());
                    self.book.insert(replacement.id.clone(), *replacement);
                    self.end(&id, outcome, now);
                }
            }
        }
        self.save().await;
        for id in hand {
            self.submit(id);
        }
        again
    }

    /// Notes which jobs Ray calls failed.
    fn mind_failed(&mut self) {
        let list = self.parts.ray.borrow().jobs.clone();
        let is_open = |id: &str| self.book.get(id).is_some_and(|job| !job.is_over());
        let told = list.iter().flat_map(|list| &list.jobs).filter(|job| job.status == JobStatus::Failed);
        let since = |id: &String| self.failed.get(id).copied().unwrap_or_else(Instant::now);
        let ids = told.map(|job| &job.submission_id).filter(|id| is_open(id));
        self.failed = ids.map(|id| (id.clone(), since(id))).collect();
    }

    /// Notes which services do not answer.
    fn listen(&mut self, now: Timestamp) {
        let snapshot = self.parts.snapshot.borrow().clone();
        let silent = |s: &&ServiceView| s.state == ServiceState::Unhealthy && decide::is_infrastructure(&s.name);
        for service in snapshot.services.iter().filter(silent) {
            let same = |known: &&mut Silence| known.service == service.name && known.to >= service.since;
            if let Some(known) = self.silences.iter_mut().find(same) {
                known.to = now;
            } else {
                let silence = Silence { service: service.name.clone(), from: service.since, to: now };
                self.silences.push(silence);
            }
        }
        self.silences.retain(|silence| now.since(silence.to) < REMEMBERED);
    }

    fn decide(&self, now: Timestamp) -> Vec<Transition> {
        let ray = self.parts.ray.borrow().clone();
        // Before the incidents: those that the look found are there by then.
        let looked_at = self.parts.looked_at.borrow().map_or_else(Timestamp::default, |at| Now::read().wall_at(at));
        let incidents = self.parts.incidents.borrow().clone();
        let snapshot = self.parts.snapshot.borrow().clone();
        let services = snapshot.services.iter();
        let addresses: BTreeMap<String, Ipv4Addr> =
            services.clone().filter_map(|s| Some((s.name.clone(), s.address.parse().ok()?))).collect();
        let under_way = snapshot.installs.iter().filter(|install| install.ended_at.is_none());
        let failed_for = self.failed.iter().map(|(id, since)| (id.clone(), since.elapsed())).collect();
        let installing = under_way.map(|install| install.job.clone()).collect();
        let world = ClusterView {
            reachable: ray.gcs == Gcs::Reachable,
            jobs: ray.jobs.as_deref(),
            nodes: &ray.nodes,
            incidents: &incidents,
            ending: services.clone().any(|s| s.state == ServiceState::Stopping && decide::is_infrastructure(&s.name)),
            looked_at,
            failed_for: &failed_for,
            silences: &self.silences,
            store: store_serves(&snapshot),
            runs: &ray.runs,
            addresses: &addresses,
            installing: &installing,
            learnt: &self.learnt,
        };
        let policy = Policy { resubmissions: self.parts.config.borrow().jobs.resubmissions };
        decide::decide(&self.book, &world, policy, now)
    }

    /// Presence of everything that a job needs.
    fn present(&self) -> Present {
        let (ray, snapshot) = (self.parts.ray.borrow().clone(), self.parts.snapshot.borrow().clone());
        Present {
            head: ray.gcs == Gcs::Reachable,
            driver: decide::driver_alive(&ray.nodes),
            store: store_serves(&snapshot),
        }
    }

    fn set(&mut self, id: &str, state: State) {
        if let Some(job) = self.book.get_mut(id) {
            job.state = state;
            self.unsaved.insert(id.to_owned());
        }
    }

    fn end(&mut self, id: &str, outcome: Outcome, now: Timestamp) {
        let (what, reason) = match &outcome {
            Outcome::Succeeded => ("succeeded", format!("{id}: succeeded")),
            Outcome::Stopped => ("stopped", format!("{id}: stopped by a person")),
            Outcome::Failed { why } => ("failed", format!("{id}: failed by its own error: {why}")),
            Outcome::Lost { why, next: Next::As(next) } => {
                ("resubmitted", format!("{id}: lost ({why}); resubmitted as {next}"))
            }
            Outcome::Lost { why, next: Next::Not(reason) } => ("lost", format!("{id}: lost ({why}); {reason}")),
        };
        self.note(what, reason);
        if !matches!(outcome, Outcome::Lost { next: Next::As(_), .. })
            && let Some(job) = self.book.get(id)
        {
            let past = Past { run: job.run.clone(), end: End::of(Some(&outcome)), at: now };
            self.remember(job.root.clone(), past);
        }
        self.set(id, State::Ended { at: now, outcome });
    }

    /// Remembers how an id was used, over the job's deletion.
    fn remember(&mut self, id: String, past: Past) {
        self.unsaved_used.insert(id.clone());
        self.used.insert(id, past);
        if self.used.len() > past::REMEMBERED + past::REMEMBERED / 10 {
            let mut ages: Vec<Timestamp> = self.used.values().map(|past| past.at).collect();
            ages.sort_unstable();
            let oldest = ages[ages.len() - past::REMEMBERED];
            self.used.retain(|_, past| past.at >= oldest);
        }
    }

    fn note(&self, what: &str, reason: String) {
        tracing::info!("{reason}");
        self.parts.journal.record(Entry {
            at: Timestamp::now(),
            service: None,
            kind: Kind::Job,
            what: what.to_owned(),
            reason,
        });
    }

    async fn save(&mut self) {
        let nothing = self.unsaved.is_empty() && self.removed.is_empty() && self.unsaved_used.is_empty();
        // Where there is trouble, nothing is written as well: to know when it is over.
        if nothing && self.trouble.is_none() {
            return;
        }
        // A disk that is full now is full a millisecond later, too.
        if self.trouble.is_some() && Instant::now() < self.save_again {
            return;
        }
        let jobs = self.unsaved.iter().filter_map(|id| self.book.get(id).cloned()).collect();
        let removed = self.removed.iter().cloned().collect();
        let used = self.unsaved_used.iter().filter_map(|id| Some((id.clone(), self.used.get(id)?.clone()))).collect();
        match self.store.save(jobs, removed, used).await {
            Ok(found) => {
                self.unsaved.clear();
                self.unsaved_used.clear();
                self.removed.clear();
                self.trouble = None;
                if let Some(found) = found {
                    self.take_over(found);
                }
            }
            Err(reason) => {
                tracing::warn!("{reason}");
                self.trouble = Some(reason);
                self.save_again = Instant::now() + AGAIN;
            }
        }
    }

    /// Takes over what an earlier labd wrote, which could not be read until now. What has happened since counts.
    fn take_over(&mut self, found: Found) {
        self.uncertain.extend(uncertain(&found.book).filter(|id| !self.book.contains_key(id)));
        for (id, job) in found.book {
            self.book.entry(id).or_insert(job);
        }
        for (id, past) in found.used {
            self.used.entry(id).or_insert(past);
        }
        self.unreadable.extend(found.unreadable);
        self.trim();
    }

    fn sweep(&mut self) {
        // What is needed is not known before.
        if !self.store.is_read() {
            return;
        }
        if Instant::now() < self.sweep_at {
            return;
        }
        self.sweep_at = Instant::now() + SWEEP;
        let is_open = |id: &str| self.book.get(id).is_some_and(|job| !job.is_over());
        self.learnt.retain(|id, _| is_open(id));
        self.uncertain.retain(|id| is_open(id));
        self.stops.retain(|id, _| is_open(id));
        self.trim();
        self.store.keep_room();
        let open = self.book.values().filter(|job| !matches!(job.state, State::Ended { .. }));
        let needed: BTreeSet<String> = open.flat_map(|job| job.submission.packages()).collect();
        let packages = self.packages.clone();
        #[cfg(test)]
        if packages.is_none() {
            return;
        }
        tokio::task::spawn_blocking(move || packages.sweep(&needed, SystemTime::now()));
    }

    /// Has the GCS keep the packages of the jobs that it has, every few minutes and as soon as it is there again.
    fn provide_packages(&mut self) {
        let now = Instant::now();
        if self.parts.ray.borrow().gcs != Gcs::Reachable {
            self.provide_at = now;
            return;
        }
        if now < self.provide_at {
            return;
        }
        let Some(api) = (self.parts.api)() else { return };
        self.provide_at = now + ASK_AGAIN;
        let submitted = self.book.values().filter(|job| matches!(job.state, State::Submitted(_)));
        let needed: BTreeSet<String> = submitted.flat_map(|job| job.submission.packages()).collect();
        let (packages, ray) = (self.packages.clone(), self.parts.ray.clone());
        tokio::spawn(async move {
            for name in needed {
                // The next start of the GCS has its own.
                for tries in (0..PROVIDE_TRIES).take_while(|_| ray.borrow().gcs == Gcs::Reachable) {
                    let reason = match packages.provide(&api, &name).await {
                        Ok(None) => break,
                        Ok(Some(refusal)) => last_line(&refusal.body),
                        Err(reason) => reason,
                    };
                    tracing::debug!(package = name, reason, "not kept in the GCS");
                    tokio::time::sleep(retry_after(tries)).await;
                }
            }
        });
    }

    /// Forgets ended jobs that are too many or too large.
    fn trim(&mut self) {
        for id in past::surplus(&self.book) {
            self.book.remove(&id);
            self.unsaved.remove(&id);
            self.removed.insert(id);
        }
        self.bytes = self.book.values().map(|job| job.submission.bytes()).sum();
    }

    /// Whether there is room for one more submission.
    fn has_room(&mut self, submission: &Submission) -> bool {
        let new = submission.bytes();
        if self.bytes + new > past::MOST_BYTES {
            self.trim();
        }
        self.bytes += new;
        self.bytes <= past::MOST_BYTES
    }

    fn besides(&self, jobs: Vec<&Job>) -> Vec<JobView> {
        let ray = self.parts.ray.borrow().clone();
        view::besides(jobs, &ray, self.present())
    }

    fn publish(&self) {
        let view = {
            // Not borrowed for long: whoever borrows twice waits for a writer that waits for the first.
            let (ray, snapshot) = (self.parts.ray.borrow().clone(), self.parts.snapshot.borrow().clone());
            let present = self.present();
            let at = |s: &ServiceView| Some((s.address.parse().ok()?, s.name.clone()));
            let services = snapshot.services.iter().filter_map(at).collect();
            let lists = ray.trouble.as_ref();
            let trouble = self.trouble.as_ref().or(lists).map(String::as_str);
            let mut view = view::view(&self.book, &ray, &services, present, trouble);
            view.notices.extend(view::unreadable(&self.unreadable));
            view.unjudged = !self.failed.is_empty();
            view
        };
        let open = self.book.values().filter(|job| matches!(job.state, State::Submitted(_)));
        let open: BTreeSet<String> = open.map(|job| job.id.clone()).collect();
        self.parts.follow.send_if_modified(|old| {
            let changed = *old != open;
            *old = open;
            changed
        });
        self.tell.send_if_modified(|old| {
            let changed = **old != view;
            if changed {
                *old = Arc::new(view);
            }
            changed
        });
    }

    // ---- submission to Ray ----

    fn submit(&mut self, id: String) {
        let (Some(job), Some(api)) = (self.book.get(&id).cloned(), (self.parts.api)()) else { return };
        if self.in_flight.contains_key(&id) {
            return;
        }
        let wanted = Arc::new(AtomicBool::new(true));
        self.in_flight.insert(id.clone(), wanted.clone());
        // At the first try: Ray may have taken it then, and the answer may not have come.
        if matches!(job.state, State::Queued { tries: 0, .. }) {
            self.learnt.insert(id.clone(), Order::newest(&self.parts.incidents.borrow()));
        }
        let name_runs = self.parts.config.borrow().jobs.name_runs;
        let (packages, words) = (self.packages.clone(), self.words.clone());
        tokio::spawn(async move {
            let result = submit(&api, &packages, &job, name_runs, &wanted).await;
            let _ = words.send(HandedIn { id, submitted_at: job.submitted_at, result });
        });
    }

    /// Marks a job that is being submitted to Ray as unwanted, so that it is not sent if it has not been sent yet: it
    /// may wait seconds for the end of the attempt before it.
    fn unwant(&self, id: &str) {
        if let Some(wanted) = self.in_flight.get(id) {
            wanted.store(false, Ordering::Release);
        }
    }

    fn ask_to_stop(&mut self, id: String) {
        let due = self.stops.get(&id).is_none_or(|(at, _)| at.elapsed() >= AGAIN);
        let Some(api) = (self.parts.api)().filter(|_| due) else { return };
        let stopped = id.clone();
        let task = tokio::spawn(async move {
            let _ = api.stop(&id).await;
            stop_waiting(&api, &id).await;
        });
        self.stops.insert(stopped, (Instant::now(), task.abort_handle()));
    }

    async fn handed_in(&mut self, id: &str, submitted_at: Timestamp, result: Result<Reply, String>) {
        self.in_flight.remove(id);
        if self.book.get(id).is_some_and(|job| job.submitted_at != submitted_at) {
            // Its owner deleted it meanwhile and used its id again: that one is submitted next.
            return;
        }
        let waiting = self.waiting.remove(id);
        let now = Timestamp::now();
        let (stop_first, tries) = match self.book.get(id).map(|job| job.state.clone()) {
            Some(State::Queued { stop_first, tries, .. }) => (stop_first, tries),
            state => {
                self.replaced.remove(id);
                let taken = result.as_ref().is_ok_and(Reply::is_success);
                match (state, &result) {
                    // Stopped by a person meanwhile. Where Ray's answer was lost it may have the job.
                    (Some(State::Submitted(known)), _) if taken => {
                        self.set(
                            id,
                            State::Submitted(Submitted { stop_asked: known.stop_asked, ..Submitted::new(now) }),
                        );
                    }
                    (Some(State::Submitted(_)), Ok(_)) => self.end(id, Outcome::Stopped, now),
                    // Needed no more.
                    _ if taken => self.ask_to_stop(id.to_owned()),
                    _ => {}
                }
                self.save().await;
                if let Some(waiting) = waiting {
                    let _ = waiting.send(result.unwrap_or_else(|_| kept(id)));
                }
                return;
            }
        };
        let again = |tries: u32, stop_first| State::Queued {
            not_before: now.plus(retry_after(tries)),
            stop_first,
            tries: tries.saturating_add(1),
        };
        let answer = match result {
            Ok(reply) if reply.is_success() => {
                self.set(id, State::Submitted(Submitted::new(now)));
                reply
            }
            // An answer that did not reach labd, the first time; or another job has the id, as Ray's list will say.
            Ok(reply) if waiting.is_none() && says(&reply, "already exists") => {
                if self.uncertain.contains(id) {
                    // An earlier labd submitted it: what this one had learnt by then may have come after that.
                    self.learnt.remove(id);
                }
                self.set(id, State::Submitted(Submitted::new(now)));
                reply
            }
            Ok(reply) if waiting.is_some() && !is_transient(&reply) => {
                // Ray's answer is the person's; what Ray refuses is not a job.
                self.withdraw(id);
                reply
            }
            Ok(reply) if !is_transient(&reply) || tries >= TRIES => {
                let why = format!("Ray refuses it: {}", last_line(&reply.body));
                self.end(id, Outcome::Failed { why }, now);
                reply
            }
            Ok(_) => {
                self.set(id, again(tries, stop_first));
                kept(id)
            }
            Err(reason) => {
                tracing::debug!(job = id, reason, "not submitted to Ray");
                // The head is away: its return is what counts, not the number of tries.
                self.set(id, again(tries.min(4), stop_first));
                kept(id)
            }
        };
        self.save().await;
        if let Some(waiting) = waiting {
            let is_kept = matches!(self.book.get(id), Some(Job { state: State::Queued { .. }, .. }));
            let _ = waiting.send(if is_kept { self.promise(id, answer).await } else { answer });
        }
        self.replaced.remove(id);
    }

    /// Answer for a job that Ray does not have: a promise that holds only where the job is on disk. What cannot be
    /// written is no job.
    async fn promise(&mut self, id: &str, answer: Reply) -> Reply {
        if !self.unsaved.contains(id) {
            return answer;
        }
        let why = self.trouble.clone().unwrap_or_default();
        self.withdraw(id);
        self.save().await;
        refusal(507, format!("labd can neither submit the job nor keep it until then: {why}\n"))
    }

    /// Removes a submission again; one that ended and had its id before stands again.
    fn withdraw(&mut self, id: &str) {
        if let Some(old) = self.replaced.remove(id) {
            self.book.insert(id.to_owned(), old);
            self.unsaved.insert(id.to_owned());
        } else {
            self.book.remove(id);
            self.unsaved.remove(id);
            self.removed.insert(id.to_owned());
        }
    }

    // ---- the front door ----

    /// Handles a request. Returns whether that may have changed anything: each waiting client asks for attempts every
    /// second.
    async fn hear(&mut self, ask: Ask) -> bool {
        match ask {
            Ask::Submit { submission, reply } => self.accept(submission, reply).await,
            Ask::Stop { id, reply } => {
                let answer = self.stop(&id);
                self.save().await;
                let _ = reply.send(answer);
            }
            Ask::Deleting { id, last, reply } => {
                let state = self.book.get(&id).map(|job| job.state.clone());
                if let Some(State::Submitted(known)) = state.filter(|_| last.is_final()) {
                    self.set(&id, State::Submitted(Submitted { deleting: Some(last), ..known }));
                    self.save().await;
                }
                let _ = reply.send(());
            }
            Ask::Forget { id, last, reply } => {
                self.forget(&id, last);
                self.save().await;
                let _ = reply.send(());
            }
            Ask::Attempts { id, reply } => {
                let _ = reply.send(past::chain(&self.book, &id).into_iter().cloned().collect());
                return false;
            }
            Ask::Told { id, reply } => {
                let _ = reply.send(self.besides(past::chain(&self.book, &id)));
                return false;
            }
            Ask::Older { than, most, reply } => {
                let _ = reply.send(self.besides(view::older(&self.book, than.as_ref(), most)));
                return false;
            }
            Ask::Unkept { what } => self.note("package-not-kept", what),
        }
        true
    }

    /// Takes note that Ray deleted a job, as its owner asked: it has ended, and nothing more happens to it.
    fn forget(&mut self, id: &str, last: Option<JobStatus>) {
        let attempts: Vec<Job> = past::chain(&self.book, id).into_iter().cloned().collect();
        let Some(newest) = attempts.last() else { return };
        if newest.id == id && !matches!(newest.state, State::Ended { .. }) {
            let outcome = decide::deleted(newest, last);
            let past = Past { run: newest.run.clone(), end: End::of(outcome.as_ref()), at: Timestamp::now() };
            self.note("deleted", format!("{id}: {} and was deleted by its owner", past.end.as_words()));
            self.remember(newest.root.clone(), past);
        } else if let State::Submitted(known) = &newest.state {
            // It was replaced at the same moment, and what took its place runs: it is still one job, which nobody wants.
            let (newest, known) = (newest.id.clone(), Submitted { stop_asked: true, ..known.clone() });
            self.set(&newest, State::Submitted(known));
            return;
        }
        for job in attempts {
            self.unwant(&job.id);
            self.book.remove(&job.id);
            self.unsaved.remove(&job.id);
            self.removed.insert(job.id);
        }
    }

    async fn accept(&mut self, submission: Submission, reply: oneshot::Sender<Reply>) {
        let id = submission.id().map_or_else(submission::new_id, str::to_owned);
        // Of one that was lost, the attempt that took its place counts.
        let ended = past::chain(&self.book, &id).pop().map(Job::is_over);
        let list = self.parts.ray.borrow().jobs.clone();
        let told = list.as_ref().is_some_and(|list| list.jobs.iter().any(|j| j.submission_id == id));
        if ended == Some(true) && list.is_none() {
            let text = format!(
                "a job with submission_id {id} has ended, and Ray, which may still know it, does not answer yet: try again \
                 in a moment, or use another id\n"
            );
            let _ = reply.send(refusal(503, text));
            return;
        }
        // One that ended, and that Ray forgot with its head's state, leaves its id free, as Ray would say.
        if ended.is_some_and(|ended| !ended || told) || self.unreadable.contains(&id) {
            let text = format!("Job with submission_id {id} already exists. Please use a different submission_id.");
            let _ = reply.send(refusal(500, text));
            return;
        }
        if !self.has_room(&submission) {
            let text = format!(
                "labd keeps at most {} MiB of submissions, and unfinished ones fill that: wait for some, or stop them\n",
                past::MOST_BYTES >> 20
            );
            let _ = reply.send(refusal(507, text));
            return;
        }
        // A request to stop that is still on its way is not meant for this one.
        if let Some((_, task)) = self.stops.remove(&id) {
            task.abort();
        }
        let now = Timestamp::now();
        let (run, note) = self.run_for(&id, &submission);
        if let Some(note) = &note {
            self.note("id-used-again", note.clone());
        }
        // Attempts of the job that had this id before are jobs of the past of their own.
        let before: Vec<String> =
            self.book.values().filter(|job| job.root == id && job.id != id).map(|job| job.id.clone()).collect();
        for old in before {
            if let Some(job) = self.book.get_mut(&old) {
                job.root.clone_from(&job.id);
                self.unsaved.insert(old);
            }
        }
        let job = Job {
            id: id.clone(),
            root: id.clone(),
            attempt: 1,
            submission,
            came_at: now,
            submitted_at: now,
            run,
            note,
            state: State::Queued { not_before: now, stop_first: None, tries: 0 },
        };
        if let Some(old) = self.book.insert(id.clone(), job) {
            self.replaced.insert(id.clone(), old);
        }
        self.removed.remove(&id);
        self.unsaved.insert(id.clone());
        self.save().await;
        let lacks = self.book.get(&id).and_then(|job| self.present().lacks(&job.submission));
        if lacks.is_none() && (self.parts.api)().is_some() {
            self.waiting.insert(id.clone(), reply);
            self.submit(id);
        } else {
            let answer = self.promise(&id, kept(&id)).await;
            self.replaced.remove(&id);
            if answer.is_success() {
                self.note("kept", format!("{id}: kept until {} is back", lacks.unwrap_or("the Ray head")));
            }
            let _ = reply.send(answer);
        }
    }

    /// Name of the run of a new job under this id, and the line that says so when the id was used before.
    fn run_for(&self, id: &str, submission: &Submission) -> (String, Option<String>) {
        let past = past::of(&self.book, id).or_else(|| self.used.get(id).cloned());
        let taken = |name: &str| {
            self.book.contains_key(name)
                || self.used.contains_key(name)
                || self.book.values().any(|job| job.root != id && job.run == name)
        };
        let (run, note) = past::next_run(id, past.as_ref(), taken);
        // Where the person names the run, or wants no names, there is nothing to be said.
        let named = self.parts.config.borrow().jobs.name_runs && !submission.names_run();
        (run, note.filter(|_| named))
    }

    fn stop(&mut self, id: &str) -> Stop {
        let Some(root) = self.book.get(id).map(|job| job.root.clone()) else { return Stop::Pass(id.to_owned()) };
        let family = self.book.values().filter(|job| job.root == root && !matches!(job.state, State::Ended { .. }));
        let Some(open) = family.max_by_key(|job| job.attempt).cloned() else { return Stop::Pass(id.to_owned()) };
        match open.state {
            // Ray may have it already, and asking it now may be too early: it is asked until it is so.
            State::Queued { .. } if self.in_flight.contains_key(&open.id) => {
                self.unwant(&open.id);
                self.set(
                    &open.id,
                    State::Submitted(Submitted { stop_asked: true, ..Submitted::new(Timestamp::now()) }),
                );
                Stop::Done
            }
            State::Queued { stop_first, .. } => {
                self.end(&open.id, Outcome::Stopped, Timestamp::now());
                // What it was to take the place of may still run.
                stop_first.map_or(Stop::Done, Stop::Pass)
            }
            State::Submitted(known) => {
                self.set(&open.id, State::Submitted(Submitted { stop_asked: true, ..known }));
                Stop::Pass(open.id)
            }
            State::Ended { .. } => Stop::Pass(id.to_owned()),
        }
    }
}

/// Stops a job that waits for its place or its packages: Ray's own stop reaches it only once it has them, and it would begin
/// beside what takes its place.
async fn stop_waiting<A: JobApi>(api: &A, id: &str) {
    if let Err(reason) = api.stop_waiting(id).await {
        tracing::debug!(job = id, reason, "not stopped while it waits");
    }
}

/// Submits a job to Ray, with everything that takes. The error means that the head is away.
async fn submit<A: JobApi>(
    api: &A,
    packages: &Packages,
    job: &Job,
    name_runs: bool,
    wanted: &AtomicBool,
) -> Result<Reply, String> {
    if let State::Queued { stop_first: Some(old), .. } = &job.state {
        let reply = api.stop(old).await?;
        // Two attempts at once would write the same run: one that may still run is in the way.
        if !reply.is_success() && reply.status != 404 {
            return Ok(Reply { status: 503, ..reply });
        }
        if says(&reply, "true") {
            tokio::time::sleep(STOPPED).await;
        }
        stop_waiting(api, old).await;
    }
    for name in job.submission.packages() {
        if let Some(refusal) = packages.provide(api, &name).await? {
            return Ok(refusal);
        }
    }
    if !wanted.load(Ordering::Acquire) {
        return Ok(refusal(409, "it was stopped or deleted before Ray had it\n".to_owned()));
    }
    let named = Named { run: name_runs.then_some(&job.run), note: job.note.as_deref() };
    api.submit(Bytes::from(job.submission.body(&job.id, job.mark(), named))).await
}

/// Jobs of an earlier labd that may have submitted them to Ray, and was killed before it could write that down.
fn uncertain(found: &BTreeMap<String, Job>) -> impl Iterator<Item = String> {
    found.values().filter(|job| matches!(job.state, State::Queued { .. })).map(|job| job.id.clone())
}

/// Whether jobs have their store: it is ready, or a person wants it as it is.
fn store_serves(snapshot: &Snapshot) -> bool {
    let store = snapshot.services.iter().find(|s| s.name == services::minio::DEF.name());
    store.is_some_and(|s| matches!(s.state, ServiceState::Ready | ServiceState::Held | ServiceState::Off))
}

/// Wait after so many tries that failed.
fn retry_after(tries: u32) -> Duration {
    LONGEST_RETRY.min(RETRY.saturating_mul(1 << tries.min(8)))
}

/// Answer that Ray gives to a submission that it took.
fn kept(id: &str) -> Reply {
    let body = serde_json::json!({ "job_id": id, "submission_id": id }).to_string();
    Reply { status: 200, content_type: "application/json".into(), body: body.into() }
}

/// Answer that Ray gives to a submission that it does not take.
fn refusal(status: u16, text: String) -> Reply {
    Reply { status, content_type: "text/plain; charset=utf-8".into(), body: text.into() }
}

fn says(reply: &Reply, text: &str) -> bool {
    String::from_utf8_lossy(&reply.body).contains(text)
}

/// Whether Ray's refusal is about Ray and not about the job.
fn is_transient(reply: &Reply) -> bool {
    reply.status >= 500 && !says(reply, "already exists") && !says(reply, "ValueError") && !says(reply, "TypeError")
}

/// Last line of an answer, where the point of a traceback is.
fn last_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it does not say why").trim();
    line.chars().take(200).collect()
}
