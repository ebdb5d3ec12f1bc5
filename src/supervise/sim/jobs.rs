//! The job ledger in the same simulation: its task as it is, over a simulated job API and a simulated disk, beside the
//! supervision as it is. People submit jobs, stop some, delete some as soon as they have ended and use their ids again,
//! lists of jobs come late, the store is away while scripts need it, and labd is killed and started again.
//!
//! What must never be: two attempts of one job at once; another attempt after success, after a person's stop or deletion,
//! after the script's own error when nothing died in its last minute, or beyond the limit; an id twice; the run of a job
//! that succeeded for the next one of its id; a success that none of its drivers came to. Once faults end, every job that was
//! answered with 200 must have ended, within [`BOUND`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{sync::watch, task::AbortHandle, time::sleep};

use super::{
    EPOCH, Fault, History, Labd, Outcome,
    world::{Dice, Outside, now},
};
use crate::{
    config::Config,
    jobs::{self, Ledger, LedgerView, Parts, Stop, submission::Submission},
    journal::{EventQuery, Journal, Kind},
    ray::{ErrorType, Gcs, JobApi, Jobs, Mark, RayJob, RayView, Reply},
    snapshot::{JobOutcome, JobStatus, ServiceState},
    time::Timestamp,
};

/// Longest time from the last fault's end until every job has ended: everything is ready by [`super::BOUND`], an
/// attempt trains for at most 4 min, four jobs share two GPUs.
const BOUND: Duration = Duration::from_mins(45);
/// Time before a script's own error in which a service's death makes it one of the infrastructure's.
const AFTERMATH: Duration = Duration::from_mins(1);
/// Time after which the ledger has tried again to write, once a disk takes writes.
const WRITTEN_AGAIN: Duration = Duration::from_secs(12);

/// Behaviour of a script that nobody disturbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Succeeds,
    Raises,
}

/// Submission, in truth.
struct Job {
    root: String,
    attempt: u32,
    /// Time of the person's submission, as labd wrote it.
    submitted: Option<String>,
    /// Number of times its id had been submitted by then.
    life: u32,
    /// Name that its training is kept under.
    run: String,
    script: Script,
    survives_workers: bool,
    takes: Duration,
    /// Run of a container that its driver is in.
    driver: Option<(String, Timestamp)>,
    node: Option<u64>,
    worker: Option<(String, String, Timestamp)>,
    /// Whether its driver runs.
    alive: bool,
    begins: Timestamp,
    /// End of its driver that is about to come: when, and as what.
    ends: Option<(Timestamp, JobStatus)>,
    /// Result of its driver, which Ray has not noted yet.
    came_to: Option<JobStatus>,
    /// Whether its driver's node had left the cluster by then: its result says little.
    orphaned: bool,
    /// Time at which Ray notices that its supervisor is gone.
    missed: Option<Timestamp>,
    status: JobStatus,
    error: Option<ErrorType>,
    ended_at: Option<Timestamp>,
    /// Times that Ray reports of its beginning and end: by the wall clock of those times.
    stamps: (Timestamp, Option<Timestamp>),
    /// Time at which labd could read its end.
    read_at: Option<Timestamp>,
    /// Time at which it gives up the store, which has not answered it for a while.
    gives_up: Option<Timestamp>,
    /// Time at which it last missed the store.
    store_missed: Option<Timestamp>,
    /// Whether only a cluster that is no more knew it.
    forgotten: bool,
}

impl Job {
    /// Lets Ray note its end.
    fn end(&mut self, status: JobStatus, now: Timestamp) {
        (self.status, self.ended_at, self.stamps.1) = (status, Some(now), Some(Timestamp::now()));
    }
}

/// Ray's jobs.
struct Inner {
    dice: Dice,
    jobs: BTreeMap<String, Job>,
    /// Progress of each run's training.
    progress: BTreeMap<String, Duration>,
    clusters: u64,
    /// Whether answers get lost.
    faulty: bool,
    /// Whether a person holds the store: what fails for that fails as they want it.
    store_held: bool,
    /// Roots that a person stopped, and was told so; with the time.
    stopped: BTreeMap<String, Timestamp>,
    /// Roots of those whose ids were submitted again since.
    late_stops: BTreeSet<String>,
    /// Roots and lives that a person deleted; with the time at which labd was told.
    deleted: BTreeMap<(String, u32), Option<Timestamp>>,
    /// Roots and lives that a person wanted to delete, whether that reached Ray or not.
    unwanted: BTreeSet<(String, u32)>,
    /// Roots and lives of which a driver succeeded.
    succeeded: BTreeSet<(String, u32)>,
    /// Runs of jobs that labd knew to have succeeded when their owners deleted them.
    finished: BTreeSet<String>,
    asked_at: Timestamp,
}

#[derive(Clone)]
struct Api {
    outside: Outside,
    inner: Arc<Mutex<Inner>>,
}

impl Api {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Way of a request or of its answer, on which either may be lost.
    async fn way(&self) -> Result<(), String> {
        let (takes, lost) = {
            let mut inner = self.lock();
            let slow = inner.faulty && inner.dice.one_in(10);
            let takes = if slow { inner.dice.ms(1_000, 9_000) } else { inner.dice.ms(2, 60) };
            (takes, inner.faulty && inner.dice.one_in(12))
        };
        sleep(takes).await;
        let up = self.outside.lock().gcs_up(now());
        if up && !lost { Ok(()) } else { Err("the dashboard does not answer".into()) }
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply { status, content_type: "application/json".into(), body: body.to_string().into() }
}

impl JobApi for Api {
    async fn submit(&self, body: Bytes) -> Result<Reply, String> {
        let sent_at = now();
        self.way().await?;
        let answer = self.take(&body, sent_at);
        self.way().await?;
        Ok(answer)
    }

    async fn stop(&self, id: &str) -> Result<Reply, String> {
        self.way().await?;
        let answer = {
            let mut w = self.outside.lock();
            let mut inner = self.lock();
            let at = now().plus(inner.dice.ms(100, 3_500));
            match inner.jobs.get_mut(id).filter(|job| !job.forgotten) {
                None => reply(404, &json!("no such job")),
                Some(job) => {
                    let open = job.ended_at.is_none();
                    w.say(format_args!("{id} is asked to stop: {open}"));
                    if open && job.ends.is_none() {
                        job.ends = Some((at, JobStatus::Stopped));
                    }
                    reply(200, &json!({ "stopped": open }))
                }
            }
        };
        self.way().await?;
        Ok(answer)
    }

    async fn stop_waiting(&self, id: &str) -> Result<(), String> {
        self.way().await?;
        let mut inner = self.lock();
        if let Some(job) = inner.jobs.get_mut(id).filter(|job| !job.forgotten && job.status == JobStatus::Pending) {
            job.end(JobStatus::Failed, now());
            job.error = Some(ErrorType::JobSupervisorActorDied);
        }
        Ok(())
    }

    async fn has_package(&self, _: &str) -> Result<bool, String> {
        Ok(true)
    }

    async fn put_package(&self, _: &str, _: &std::path::Path) -> Result<Reply, String> {
        Ok(reply(200, &json!({})))
    }
}

impl Api {
    /// Ray's answer to a submission.
    fn take(&self, body: &Bytes, sent_at: Timestamp) -> Reply {
        let now = now();
        let mut w = self.outside.lock();
        let mut inner = self.lock();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (id, root) = (text(&sent["submission_id"]), text(&sent["metadata"]["labd.root"]));
        if inner.jobs.get(&id).is_some_and(|job| !job.forgotten) {
            return reply(500, &json!(format!("Job with submission_id {id} already exists.")));
        }
        if inner.faulty && inner.dice.one_in(8) {
            return reply(500, &json!("No available agent to submit job, please try again later."));
        }
        let attempt: u32 = text(&sent["metadata"]["labd.attempt"]).parse().unwrap_or(0);
        let limit = match sent["metadata"]["labd.retry"].as_str() {
            None => Config::default().jobs.resubmissions,
            Some(n) => n.parse().unwrap_or(0),
        };
        w.say(format_args!("Ray takes {id}"));
        if attempt > limit + 1 {
            w.never(format_args!("{id} is one attempt too many"));
        }
        let life: u32 = text(&sent["metadata"]["life"]).parse().unwrap_or(0);
        let run = text(&sent["metadata"]["labd.run"]);
        if inner.deleted.get(&(root.clone(), life)).copied().flatten().is_some_and(|told| told < sent_at) {
            w.never(format_args!("{id} is submitted although its owner deleted {root}"));
        }
        if attempt == 1 && inner.finished.contains(&run) {
            w.never(format_args!("{id} continues {run}, which is finished"));
        }
        if attempt != 1 && !id.starts_with(&format!("{root}-r")) {
            w.never(format_args!("{id} is called so as attempt {attempt} of {root}"));
        }
        if inner.stopped.get(&root).is_some_and(|&at| now.since(at) > Duration::from_secs(20)) {
            w.never(format_args!("{id} is submitted although a person stopped {root}"));
        }
        for (old, job) in inner.jobs.iter().filter(|(_, job)| job.root == root && job.life == life) {
            // labd had the time to read it, and to write it down.
            let read = job.read_at.is_some_and(|at| now.since(at) >= Duration::from_secs(1));
            // What hangs is killed half a minute later.
            let lately = |&at: &Timestamp| {
                job.ended_at.is_some_and(|end| end.plus(AFTERMATH) >= at && end.since(at) <= AFTERMATH * 4)
            };
            let blamed = w.deaths.iter().any(lately) || job.store_missed.is_some_and(|at| lately(&at));
            match job.status {
                JobStatus::Succeeded if read => w.never(format_args!("{id} is submitted after {old} succeeded")),
                JobStatus::Failed
                    if read && job.script == Script::Raises && job.came_to.is_some() && !job.orphaned && !blamed =>
                {
                    w.never(format_args!("{id} is submitted after {old} failed by its own error"));
                }
                _ => {}
            }
        }
        let takes = Duration::from_secs(sent["metadata"]["takes"].as_str().and_then(|s| s.parse().ok()).unwrap_or(60));
        let begins = now.plus(inner.dice.ms(500, 4_000));
        let job = Job {
            root,
            attempt,
            submitted: sent["metadata"]["labd.submitted"].as_str().map(str::to_owned),
            life,
            run,
            script: if sent["metadata"]["script"] == "raises" { Script::Raises } else { Script::Succeeds },
            survives_workers: sent["metadata"]["max_failures"] == "-1",
            takes,
            driver: None,
            node: None,
            worker: None,
            alive: false,
            begins,
            ends: None,
            came_to: None,
            orphaned: false,
            missed: None,
            status: JobStatus::Pending,
            error: None,
            ended_at: None,
            stamps: (Timestamp::now(), None),
            read_at: None,
            gives_up: None,
            store_missed: None,
            forgotten: false,
        };
        if let Some(old) = inner.jobs.insert(id.clone(), job) {
            // Of a cluster that is no more; its driver may still run there.
            if old.alive {
                inner.jobs.insert(format!("{id} of an old cluster"), old);
            }
        }
        reply(200, &json!({ "submission_id": id }))
    }

    /// Status that Ray reports of one job now.
    async fn status(&self, id: &str) -> Option<JobStatus> {
        self.way().await.ok()?;
        let status = self.lock().jobs.get(id).filter(|job| !job.forgotten).map(|job| job.status);
        self.way().await.ok()?;
        status
    }

    /// Lets Ray delete a job that has ended. Returns whether it says so.
    async fn delete(&self, id: &str) -> bool {
        if self.way().await.is_err() {
            return false;
        }
        let done = {
            let mut w = self.outside.lock();
            let mut inner = self.lock();
            let ended = inner.jobs.get(id).filter(|job| !job.forgotten && job.ended_at.is_some());
            let life = ended.map(|job| (job.root.clone(), job.life));
            if let Some(life) = &life {
                w.say(format_args!("Ray deletes {id}"));
                inner.jobs.remove(id);
                inner.deleted.entry(life.clone()).or_insert(None);
            }
            life.is_some()
        };
        self.way().await.is_ok() && done
    }

    /// List of jobs from the job API.
    fn list(&self, now: Timestamp) -> Jobs {
        let mut inner = self.lock();
        inner.asked_at = now;
        let jobs = inner.jobs.iter().filter(|(_, job)| !job.forgotten).map(|(id, job)| RayJob {
            submission_id: id.clone(),
            status: job.status,
            error: job.error,
            message: String::new(),
            entrypoint: "python train.py".into(),
            started_at: Some(job.stamps.0),
            ended_at: job.stamps.1,
            driver_node: job.node.map(|id| id.to_be_bytes().to_vec()),
            exit_code: None,
            mark: Some(Mark { root: job.root.clone(), attempt: job.attempt, submitted: job.submitted.clone() }),
        });
        Jobs { asked_at: Timestamp::now(), jobs: jobs.collect() }
    }

    /// Takes note that labd has heard this list.
    fn heard(&self, list: &Jobs, now: Timestamp) {
        let mut inner = self.lock();
        for told in list.jobs.iter().filter(|told| told.status.is_final()) {
            if let Some(job) = inner.jobs.get_mut(&told.submission_id).filter(|job| job.ended_at.is_some()) {
                job.read_at.get_or_insert(now);
            }
        }
    }

    /// Moves drivers and training one tick on.
    fn tick(&self) {
        let now = now();
        let mut w = self.outside.lock();
        let up = w.gcs_up(now);
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.clusters != w.clusters {
            inner.clusters = w.clusters;
            inner.jobs.values_mut().for_each(|job| job.forgotten = true);
        }
        let mut taken: BTreeSet<String> = inner
            .jobs
            .values()
            .filter(|j| j.alive)
            .filter_map(|j| j.worker.as_ref().map(|(s, ..)| s.clone()))
            .collect();
        for (id, job) in &mut inner.jobs {
            if job.alive && !job.driver.as_ref().is_some_and(|run| w.is_run(run)) {
                job.alive = false;
                w.say(format_args!("the driver of {id} died"));
            }
            if job.status == JobStatus::Pending && !job.forgotten && up && now >= job.begins {
                if job.ends.is_some_and(|(at, _)| now >= at) {
                    job.end(JobStatus::Stopped, now);
                } else if let (Some(node), Some(c)) = (w.node_of("ray-driver"), w.of("ray-driver"))
                    && !c.frozen
                    && !c.paused
                {
                    job.driver = Some((c.id.clone(), c.running().unwrap_or(now)));
                    (job.node, job.alive, job.status) = (Some(node), true, JobStatus::Running);
                    w.say(format_args!("{id} runs"));
                }
                continue;
            }
            if job.ended_at.is_some() {
                continue;
            }
            let frozen = w.of("ray-driver").is_some_and(|c| c.frozen || c.paused);
            if job.alive && !frozen && !w.serves("minio") && !inner.store_held {
                job.store_missed = Some(now);
                // Two health checks with 5 s each must miss it before labd can know; Arrow's client is more patient than that.
                let gives_up = *job.gives_up.get_or_insert_with(|| now.plus(inner.dice.ms(15_000, 45_000)));
                if now >= gives_up && job.ends.is_none() {
                    w.say(format_args!("{id} fails without the store"));
                    job.ends = Some((now, JobStatus::Failed));
                }
            } else {
                job.gives_up = None;
            }
            if job.alive && !frozen {
                if let Some((service, container, since)) = job.worker.clone() {
                    if !w.is_run(&(container, since)) {
                        job.worker = None;
                        taken.remove(&service);
                        if !job.survives_workers && job.ends.is_none() {
                            job.ends = Some((now.plus(inner.dice.ms(500, 8_000)), JobStatus::Failed));
                        }
                    } else if w.of(&service).is_some_and(|c| !c.frozen && !c.paused) {
                        let done = inner.progress.entry(job.run.clone()).or_default();
                        *done += super::TICK;
                        if *done >= job.takes && job.ends.is_none() {
                            let end = match job.script {
                                Script::Succeeds => JobStatus::Succeeded,
                                Script::Raises => JobStatus::Failed,
                            };
                            if job.script == Script::Raises {
                                job.came_to = Some(end);
                            }
                            job.ends = Some((now, end));
                        }
                    }
                } else if up && !job.forgotten && job.ends.is_none() {
                    let free = ["ray-worker-0", "ray-worker-1"]
                        .into_iter()
                        .find(|s| !taken.contains(*s) && w.node_of(s).is_some() && w.serves(s));
                    if let Some(c) = free.and_then(|s| w.of(s)) {
                        taken.insert(c.service.clone());
                        job.worker = Some((c.service.clone(), c.id.clone(), c.running().unwrap_or(now)));
                    }
                }
                if let Some((at, end)) = job.ends.filter(|(at, _)| now >= *at) {
                    job.alive = false;
                    job.came_to = Some(end);
                    if end == JobStatus::Succeeded {
                        inner.succeeded.insert((job.root.clone(), job.life));
                    }
                    job.orphaned = !job.node.is_some_and(|n| w.node_alive(n));
                    w.say(format_args!("the driver of {id} ends at {at}: {end:?}"));
                }
            }
            // What Ray says of it.
            if !up || job.forgotten || job.alive || job.status != JobStatus::Running {
                continue;
            }
            if let Some(end) = job.came_to.filter(|_| job.ends.is_some_and(|(at, _)| now >= at)) {
                job.end(end, now);
                job.error = (end == JobStatus::Failed).then_some(ErrorType::JobEntrypointCommandError);
            } else if !job.node.is_some_and(|n| w.node_alive(n)) {
                // RUNNING for a while, whoever asks.
                let at = *job.missed.get_or_insert_with(|| now.plus(inner.dice.ms(200, 20_000)));
                if now >= at {
                    job.end(JobStatus::Failed, now);
                    job.error = Some(ErrorType::JobSupervisorActorDied);
                }
            }
        }
        let mut running: BTreeMap<(&str, u32), Vec<&str>> = BTreeMap::new();
        for (id, job) in inner.jobs.iter().filter(|(_, job)| job.alive) {
            running.entry((&job.root, job.life)).or_default().push(id);
        }
        for ((root, _), ids) in running.into_iter().filter(|(_, ids)| ids.len() > 1) {
            let text = format!("{root} runs more than once: {}", ids.join(", "));
            if !w.violations.iter().any(|v| v.ends_with(&text)) {
                w.never(text);
            }
        }
    }
}

/// Life of the ledger's task.
struct LedgerTask {
    ledger: Ledger,
    task: AbortHandle,
    view: watch::Sender<Arc<RayView>>,
    look_at: Timestamp,
    /// List on its way.
    late: Option<(Timestamp, Jobs)>,
}

impl Drop for LedgerTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// People who submit jobs, and the ledger that they talk to.
pub(super) struct People {
    api: Api,
    shelf: jobs::store::Shelf,
    journal: Journal,
    keeper: Option<LedgerTask>,
    /// Submissions answered with 200: script, limit, life.
    accepted: BTreeMap<String, (Script, u32, u32)>,
    /// Number of times each id was submitted.
    lives: BTreeMap<String, u32>,
    /// Time until which nothing can be written.
    full_until: Timestamp,
}

impl People {
    fn new(outside: &Outside, journal: &Journal, seed: u64) -> Self {
        let inner = Inner {
            dice: Dice::new(seed ^ 0x10b5),
            jobs: BTreeMap::new(),
            progress: BTreeMap::new(),
            clusters: outside.lock().clusters,
            faulty: true,
            store_held: false,
            stopped: BTreeMap::new(),
            late_stops: BTreeSet::new(),
            deleted: BTreeMap::new(),
            unwanted: BTreeSet::new(),
            succeeded: BTreeSet::new(),
            finished: BTreeSet::new(),
            asked_at: EPOCH,
        };
        Self {
            api: Api { outside: outside.clone(), inner: Arc::new(Mutex::new(inner)) },
            shelf: Arc::default(),
            journal: journal.clone(),
            keeper: None,
            accepted: BTreeMap::new(),
            lives: BTreeMap::new(),
            full_until: EPOCH,
        }
    }

    /// Moves everything one tick on; the ledger's task lives and dies with labd.
    pub(super) fn tick(&mut self, outside: &Outside, labd: Option<&Labd>) {
        let now = now();
        self.api.tick();
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).is_full = now < self.full_until;
        let Some(labd) = labd else {
            if self.keeper.take().is_some() {
                self.forget_unwritten(outside);
                for job in self.api.lock().jobs.values_mut() {
                    job.read_at = job.read_at.filter(|&at| now.since(at) >= Duration::from_secs(1));
                }
            }
            return;
        };
        if self.keeper.is_none() {
            let (view, ray) = watch::channel(Arc::new(RayView::default()));
            let (api, seen) = (self.api.clone(), ray.clone());
            let parts = Parts {
                api: Box::new(move || (seen.borrow().gcs == Gcs::Reachable).then(|| api.clone())),
                ray,
                follow: watch::channel(BTreeSet::new()).0,
                incidents: labd.incidents.clone(),
                looked_at: labd.looked_at.clone(),
                snapshot: labd.snapshot.clone(),
                config: watch::channel(Arc::new(Config::default())).1,
                journal: self.journal.clone(),
            };
            let (ledger, task) = jobs::simulated(&self.shelf, parts);
            self.keeper = Some(LedgerTask { ledger, task, view, look_at: now, late: None });
        }
        let store = labd.snapshot.borrow().services.iter().find(|s| s.name == "minio").map(|s| s.state);
        self.api.lock().store_held = matches!(store, Some(ServiceState::Held | ServiceState::Stopping));
        let Some(keeper) = &mut self.keeper else { return };
        let unjudged = keeper.ledger.watch().borrow().unjudged;
        labd.ledger.send_if_modified(|old| {
            let changed = old.unjudged != unjudged;
            if changed {
                *old = Arc::new(LedgerView { unjudged, ..LedgerView::default() });
            }
            changed
        });
        let mut seen = RayView::clone(&labd.ray.borrow());
        let driver = outside.lock().plan.service("ray-driver").map(|s| s.container.address);
        for node in seen.nodes.iter_mut().filter(|n| Some(n.address) == driver) {
            node.labels.insert("labd.role".into(), "driver".into());
        }
        seen.jobs = keeper.view.borrow().jobs.clone();
        if keeper.late.is_none() && now >= keeper.look_at && outside.lock().gcs_up(now) {
            let takes = {
                let mut inner = self.api.lock();
                if inner.faulty && inner.dice.one_in(5) { inner.dice.ms(500, 9_000) } else { Duration::ZERO }
            };
            keeper.late = Some((now.plus(takes), self.api.list(now)));
        }
        if keeper.late.as_ref().is_some_and(|(at, _)| now >= *at)
            && let Some((_, jobs)) = keeper.late.take()
        {
            keeper.look_at = now.plus(Duration::from_secs(2));
            self.api.heard(&jobs, now);
            seen.jobs = Some(Arc::new(jobs));
        }
        keeper.view.send_if_modified(|old| {
            let changed = **old != seen;
            *old = Arc::new(seen);
            changed
        });
    }

    /// Forgets, when labd is killed while nothing could be written, what it knew and promised since.
    fn forget_unwritten(&mut self, outside: &Outside) {
        // What could not be written is tried again a while later.
        if now() >= self.full_until.plus(WRITTEN_AGAIN) {
            return;
        }
        let disk = self.shelf.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut w = outside.lock();
        w.say("what is not on disk is forgotten");
        let mut inner = self.api.lock();
        let is_open = |id: &String| disk.book.get(id).is_some_and(|job| !job.is_over());
        self.accepted.retain(|id, (.., life)| {
            let this = format!("\"life\":\"{life}\"");
            disk.book.get(id).is_some_and(|job| job.submission.to_json().contains(&this))
        });
        for (id, job) in &mut inner.jobs {
            job.read_at = job.read_at.filter(|_| !is_open(id));
        }
        let stopped = std::mem::take(&mut inner.stopped);
        inner.late_stops.extend(stopped.into_keys());
        for ((root, _), told) in &mut inner.deleted {
            *told = told.filter(|_| !is_open(root));
        }
        inner.finished.clear();
    }
}

impl History {
    fn ledger(&self) -> Option<Ledger> {
        Some(self.jobs.as_ref()?.keeper.as_ref()?.ledger.clone())
    }

    /// Submits a job as a person does, and waits for the answer while time passes.
    async fn submit(&mut self, n: usize, dice: &mut Dice) {
        let id = format!("job{n}");
        let script = if dice.one_in(4) { Script::Raises } else { Script::Succeeds };
        let (retry, limit) = dice.pick(&[(None, 10), (None, 10), (Some("never"), 0), (Some("2"), 2)]);
        let mut metadata = json!({
            "takes": dice.between(20, 240).to_string(),
            "script": if script == Script::Raises { "raises" } else { "succeeds" },
            "max_failures": dice.pick(&["0", "-1"]),
        });
        if let Some(retry) = retry {
            metadata["labd.retry"] = json!(retry);
        }
        let Some(ledger) = self.ledger() else { return };
        let Some(people) = self.jobs.as_mut() else { return };
        let life = people.lives.entry(id.clone()).or_default();
        *life += 1;
        let life = *life;
        metadata["life"] = json!(life.to_string());
        let sent = json!({"entrypoint": "python train.py", "submission_id": id, "metadata": metadata}).to_string();
        let submission = Submission::parse(sent.as_bytes()).expect("a submission");
        self.outside.lock().say(format_args!("{id} is submitted: {metadata}"));
        {
            let Some(api) = self.jobs.as_ref().map(|people| people.api.clone()) else { return };
            let mut inner = api.lock();
            // A request on its way may still reach the next job of that id, and this one may be refused.
            if inner.stopped.remove(&id).is_some() {
                inner.late_stops.insert(id.clone());
            }
        }
        let mut answer = tokio::spawn(async move { ledger.submit(submission).await });
        for _ in 0..600 {
            self.pass(super::TICK).await;
            if answer.is_finished() {
                break;
            }
        }
        let answer = tokio::time::timeout(Duration::from_millis(1), &mut answer).await;
        let Ok(Ok(Some(answer))) = answer else { return };
        self.outside.lock().say(format_args!("{id} is answered with {}", answer.status));
        if let Some(people) = self.jobs.as_mut().filter(|_| answer.is_success()) {
            people.accepted.insert(id, (script, limit, life));
        }
    }

    /// Waits for a job's end and deletes it at once, as the front door lets people. Returns whether that was done.
    async fn delete_job(&mut self, id: &str) -> bool {
        let Some(api) = self.jobs.as_ref().map(|people| people.api.clone()) else { return false };
        let newest = |history: &Self| history.ledger().map(|ledger| (ledger, id.to_owned()));
        for _ in 0..600 {
            let Some((ledger, id)) = newest(self) else { return false };
            let attempts = tokio::time::timeout(Duration::from_secs(5), ledger.attempts(&id)).await;
            let Ok(Some(attempts)) = attempts else { return false };
            let Some(last) = attempts.last() else { return false };
            let over = api.lock().jobs.get(&last.id).is_some_and(|job| !job.forgotten && job.ended_at.is_some());
            if over && (last.id == id || last.is_over()) {
                return self.delete_now(&api, ledger, &id, last.id.clone(), last.run.clone()).await;
            }
            self.pass(super::TICK).await;
        }
        false
    }

    async fn delete_now(&mut self, api: &Api, ledger: Ledger, id: &str, newest: String, run: String) -> bool {
        let Some(life) = self.jobs.as_ref().and_then(|people| people.lives.get(id).copied()) else { return false };
        let (api, named) = (api.clone(), id.to_owned());
        let mut work = tokio::spawn(async move {
            let last = api.status(&newest).await;
            if let Some(last) = last {
                api.lock().unwanted.insert((named.clone(), life));
                ledger.deleting(&newest, last).await;
            }
            // labd may be killed before it hears of it.
            let told = api.delete(&named).await && ledger.forget(&named, last).await;
            (told, last)
        });
        for _ in 0..600 {
            self.pass(super::TICK).await;
            if work.is_finished() {
                break;
            }
        }
        let done = tokio::time::timeout(Duration::from_millis(1), &mut work).await;
        let (Some(people), Ok(Ok((true, last)))) = (self.jobs.as_mut(), done) else { return false };
        let mut inner = people.api.lock();
        inner.deleted.insert((id.to_owned(), life), Some(now()));
        if last == Some(JobStatus::Succeeded) {
            inner.finished.insert(run);
        }
        drop(inner);
        people.accepted.remove(id);
        self.outside.lock().say(format_args!("{id} was deleted by its owner; Ray's last word: {last:?}"));
        true
    }

    async fn stop_job(&mut self, id: &str) {
        let Some(ledger) = self.ledger() else { return };
        let Ok(Some(stop)) = tokio::time::timeout(Duration::from_secs(5), ledger.stop(id)).await else { return };
        let Some(api) = self.jobs.as_ref().map(|people| people.api.clone()) else { return };
        self.outside.lock().say(format_args!("a person stops {id}: {stop:?}"));
        api.lock().stopped.insert(id.to_owned(), now());
        if let Stop::Pass(id) = stop {
            // The front door passes it on; whether it gets there is another question.
            tokio::spawn(async move { api.stop(&id).await });
        }
    }

    async fn run_with_jobs(mut self) -> Outcome {
        self.jobs = Some(People::new(&self.outside, &self.journal, self.seed));
        self.ready_within(Duration::from_mins(1), "the beginning").await;
        let mut dice = Dice::new(self.seed ^ 0xacce);
        let services = super::services();
        let (jobs, mut submitted) = (dice.between(1, 5) as usize, 0);
        for _ in 0..dice.between(4, 14) {
            let pause = if dice.one_in(3) { dice.ms(1, 800) } else { dice.ms(500, 45_000) };
            self.pass(pause).await;
            match dice.between(0, 7) {
                0 | 1 if submitted < jobs => {
                    submitted += 1;
                    self.submit(submitted, &mut dice).await;
                }
                2 if submitted > 0 && dice.one_in(3) => {
                    let id = format!("job{}", dice.between(1, submitted as u64 + 1));
                    self.stop_job(&id).await;
                }
                3 if submitted > 0 && dice.one_in(2) => {
                    let n = dice.between(1, submitted as u64 + 1) as usize;
                    let done = self.delete_job(&format!("job{n}")).await;
                    if done || dice.one_in(4) {
                        let pause = dice.ms(1, 5_000);
                        if dice.one_in(2) {
                            self.pass(pause).await;
                        }
                        self.submit(n, &mut dice).await;
                    }
                }
                5 if dice.one_in(3) => {
                    let lasts = dice.ms(500, 60_000);
                    self.outside.lock().say(format_args!("nothing can be written for {lasts:?}"));
                    if let Some(people) = &mut self.jobs {
                        people.full_until = now().plus(lasts);
                    }
                }
                6 if dice.one_in(4) => {
                    let fault = Fault::clock(&mut dice);
                    self.strike(&fault).await;
                }
                _ => {
                    let fault = Fault::any(&mut dice, &services);
                    self.strike(&fault).await;
                }
            }
        }
        self.end_faults().await;
        if let Some(people) = &mut self.jobs {
            people.api.lock().faulty = false;
            people.full_until = EPOCH;
        }
        // What is being stopped by hand has stopped by then.
        self.pass(Duration::from_secs(45)).await;
        // A person lets go of everything that was stopped by hand.
        for service in &services {
            self.strike(&Fault::LabdStart(service.clone())).await;
        }
        let recovery = self.ready_within(super::BOUND, "the last fault").await;
        let until = now().plus(BOUND);
        while !self.open().is_empty() && now() < until {
            self.pass(Duration::from_secs(1)).await;
        }
        self.judge();
        let query = EventQuery { after_seq: None, service: None, kind: Some(Kind::Job), limit: 500, newest: true };
        for event in self.journal.events(query).await {
            self.outside.lock().say(format_args!("the ledger said at {}: {}", event.at, event.reason));
        }
        self.outcome(recovery)
    }

    /// Jobs that have not ended, as the ledger shows them.
    fn open(&self) -> Vec<String> {
        let Some(ledger) = self.ledger() else { return vec!["labd".into()] };
        let view = ledger.watch().borrow().clone();
        view.jobs.iter().filter(|j| j.outcome.is_none()).map(|j| j.submission_id.clone()).collect()
    }

    /// Checks that every accepted job came to what it should.
    fn judge(&self) {
        let (Some(people), Some(ledger)) = (&self.jobs, self.ledger()) else { return };
        let view = ledger.watch().borrow().clone();
        let mut w = self.outside.lock();
        for (root, (script, limit, life)) in &people.accepted {
            let find = |id: &String| view.jobs.iter().find(|j| j.submission_id == *id);
            let mut family: Vec<_> = find(root).into_iter().collect();
            while let Some(next) = family.last().and_then(|j| find(j.resubmitted_as.as_ref()?)) {
                family.push(next);
            }
            let (deleted, unwanted, succeeded) = {
                let inner = people.api.lock();
                let life = (root.clone(), *life);
                (inner.deleted.contains_key(&life), inner.unwanted.contains(&life), inner.succeeded.contains(&life))
            };
            let Some(last) = family.last() else {
                if deleted {
                    continue;
                }
                w.never(format_args!("{root} was answered with 200 and is in no ledger"));
                continue;
            };
            let stopped = {
                let inner = people.api.lock();
                inner.stopped.contains_key(root) || inner.late_stops.contains(root)
            };
            // Nobody can tell how long before its end a service died when the clock was set between the two.
            let blurred = {
                let inner = people.api.lock();
                let ends: Vec<_> = inner.jobs.values().filter(|j| j.root == *root).filter_map(|j| j.ended_at).collect();
                let near = |step: &Timestamp| ends.iter().any(|end| end >= step && end.since(*step) <= AFTERMATH);
                w.clock_steps.iter().any(near)
            };
            let right = match last.outcome {
                None => false,
                Some(JobOutcome::Succeeded) => *script == Script::Succeeds && succeeded,
                // Its owner deleted it, and labd was not told: it may be run again.
                Some(_) if deleted => true,
                Some(JobOutcome::Stopped) => stopped,
                // Whoever wants to delete one that failed wants no other attempt.
                Some(JobOutcome::Failed) => *script == Script::Raises || unwanted || blurred,
                Some(JobOutcome::Lost) => stopped || last.attempt > Some(*limit),
            };
            if !right {
                w.never(format_args!("{root} came to {:?} as {}: {}", last.outcome, last.submission_id, last.message));
            }
            for job in &family {
                let next = job.resubmitted_as.as_ref();
                if next.is_some_and(|next| !family.iter().any(|j| j.submission_id == *next)) {
                    w.never(format_args!("{} goes on as {next:?}, which is nowhere", job.submission_id));
                }
            }
        }
    }
}

fn history(seed: u64) -> Outcome {
    super::simulate(|| History::new(seed).run_with_jobs())
}

#[test]
fn whatever_happens_no_job_is_lost_or_run_twice() {
    super::run_many("supervise::sim::jobs", super::number("LABD_SIM_JOB_HISTORIES").unwrap_or(100), history);
}

#[test]
fn the_same_seed_is_the_same_history_with_jobs() {
    for seed in 1..=2 {
        assert_eq!(history(seed).trace, history(seed).trace, "seed {seed}");
    }
}
