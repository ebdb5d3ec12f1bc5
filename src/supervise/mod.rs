//! Keeps the lab as it should be.
//!
//! * [`decide`]: what to do next about one service. Pure.
//! * [`backoff`]: when a failed service is tried again. Pure.
//! * `incidents`: what died, and how it came back. Pure.
//! * [`rollout`]: when a container with changed settings is recreated. Pure.
//! * `oom`: memory that ran out inside containers. Pure.
//! * `probe`: whether a running container fulfils its contract; one task per container.
//! * [`inside`]: whether its GPU is still there inside it.
//! * `view`: the snapshot. Pure.
//!
//! The loop here is one task that owns every service's memory. Whatever happens (an engine event, a probe's word, a
//! command, 5 s of silence) only makes it look again: it observes through the engine, decides, takes one step per service,
//! and observes again. Observations and steps are tasks of their own, at most one per service, so that no slow engine call
//! delays another service or a person's command.

pub mod backoff;
pub mod decide;
mod incidents;
pub mod inside;
mod oom;
mod probe;
pub mod rollout;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::MissedTickBehavior,
};

use crate::{
    checkpoints::{Checkpoints, Store},
    config::{BuildSettings, Config},
    control::{Command, Refusal, Request},
    engine::{
        ContainerSeen, Engine, EngineError, Happened, Nudge, RunState, Seen,
        images::{ImageState, Images},
    },
    http::Credential,
    incident::{Cause, Incident},
    jobs::{LedgerView, decide::is_infrastructure},
    journal::{Entry as Record, Journal, Kind as RecordKind},
    node::{
        disk_guard,
        gpu::{Gpu, Inventory, Unit},
    },
    plan::{
        HEAD_PORTS, door,
        spec::{Change, ImageName, Kind, Plan, Probe, Requirement, ServiceSpec},
    },
    ray::{Endpoint, Gcs, Ray, RayView, TrainRun},
    recovery,
    secret::Secret,
    snapshot::{
        DaemonView, EngineView, GpuState, GpuTrouble, InstallsView, NodeView, Notice, ServiceState, ServiceView,
        Snapshot,
    },
    time::{Moment, Now, Timestamp, human},
};
use decide::{Action, Away, Bar, Decision, Health, Hold, Image, Memory, Situation, Touched, Wanted};
use incidents::Incidents;
pub use probe::{Ask, Http};
use rollout::{Peer, Turn, Work};
pub use view::METRICS_MISSING;

/// An event that was missed costs at most so much.
pub const RESYNC: Duration = Duration::from_secs(5);
/// So long after a death it is watched whether the runs that it interrupted train again: longer than a crash loop's wait.
const RECOVERY_WATCHED: Duration = Duration::from_mins(15);
/// After a step that failed, before the same service is looked at again.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// An engine that has not said for so long what a container does hangs: it takes milliseconds, and some seconds on a disk that
/// thrashes.
const SLOW_ANSWER: Duration = Duration::from_secs(10);
/// How often the GCS is told in vain before a node is started all the same.
const TELL_TRIES: u32 = 10;

/// The journal's memory of the last engine event that was heard: what happens while labd is away is asked for afterwards.
pub const EVENTS_HEARD: &str = "engine:events-heard";
/// Incidents in the snapshot.
const INCIDENTS_SHOWN: usize = 20;

/// What a configuration comes to: the plan, and what else follows from `labd.toml`.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The configuration.
    pub config: Config,
    /// The plan.
    pub plan: Plan,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// How images are built.
    pub settings: BuildSettings,
    /// Ray's token.
    pub ray_token: Secret,
    /// The store that replaces MinIO.
    pub store: Option<Store>,
    /// What `labd plan --json` prints.
    pub view: serde_json::Value,
    /// What people log in with.
    pub credentials: Vec<Credential>,
}

/// Reads `labd.toml` again, in its own time: the files that it names may be on a file system that hangs. The error is one
/// line, and nothing has changed then.
pub type Reread = Box<dyn Fn() -> BoxFuture<'static, Result<Wish, String>> + Send + Sync>;

/// Plans again from a configuration that holds, for GPUs that are others now. The error is one line.
pub type Replan = Box<dyn Fn(Config) -> BoxFuture<'static, Result<Wish, String>> + Send + Sync>;

/// What the loop is given.
pub struct Parts<E> {
    /// The container engine.
    pub engine: Arc<E>,
    /// Asks running containers whether they fulfil their contract.
    pub ask: Arc<dyn Ask>,
    /// The images.
    pub images: Images,
    /// Ray.
    pub ray: Ray,
    /// The checkpoints.
    pub checkpoints: Checkpoints,
    /// The journal.
    pub journal: Journal,
    /// What is wanted.
    pub wish: Wish,
    /// Reads `labd.toml` again.
    pub reread: Reread,
    /// The daemon, as the snapshot shows it.
    pub daemon: DaemonView,
    /// What people ask.
    pub requests: mpsc::Receiver<Request>,
    /// The engine's events.
    pub nudges: mpsc::Receiver<Nudge>,
    /// Whether the engine answers.
    pub engine_view: watch::Receiver<EngineView>,
    /// The machine.
    pub node: watch::Receiver<NodeView>,
    /// The GPUs.
    pub gpus: watch::Receiver<Arc<Inventory>>,
    /// What comes of a configuration with the GPUs as they are now.
    pub replan: Replan,
    /// The jobs.
    pub jobs: watch::Receiver<Arc<LedgerView>>,
    /// Packages that nodes install.
    pub installs: watch::Receiver<Arc<InstallsView>>,
    /// The front door on the host.
    pub door: watch::Receiver<DoorView>,
    /// Why the status page is not served, in one line.
    pub page: watch::Receiver<Option<String>>,
    /// What Prometheus asks of labd itself.
    pub scrapes: watch::Receiver<Scrapes>,
    /// Where the configuration goes that a reload brought.
    pub config: watch::Sender<Arc<Config>>,
    /// Where the snapshot goes.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Where incidents go, oldest first.
    pub incidents: watch::Sender<Arc<Vec<Incident>>>,
    /// Where it goes since when every container that can take a job along was looked at: after the incidents that were found.
    pub looked_at: watch::Sender<Option<Moment>>,
    /// Seed of the backoffs' jitter.
    pub seed: u64,
    /// Where the plan goes.
    pub plan: watch::Sender<Arc<serde_json::Value>>,
    /// Where the credentials go.
    pub credentials: watch::Sender<Arc<Vec<Credential>>>,
    /// Turns true when the daemon ends. Containers are left as they are.
    pub stop: watch::Receiver<bool>,
}

/// The front door's listener on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DoorView {
    /// The port it listens on.
    pub port: Option<u16>,
    /// Why it does not, in one line.
    pub trouble: Option<String>,
}

/// How labd's own metrics are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrapes {
    /// Where Prometheus asks, in the lab's network; `None` where that is not told from other requests.
    pub address: Option<SocketAddr>,
    /// When it asked last.
    pub last: Option<Timestamp>,
}

/// What tasks tell the loop.
enum Word {
    Seen(String, Result<Seen, EngineError>),
    /// The first process of the service's container has ended, which ran since then.
    Ended(String, (String, Timestamp)),
    Done(String, Action, Result<(), EngineError>),
    Told(String, Result<usize, String>),
    Health(String, (String, Timestamp), Health),
    Listed(Result<Vec<String>, EngineError>),
    Reread(Result<Box<Wish>, String>, oneshot::Sender<Result<String, Refusal>>),
    /// For these GPUs.
    Replanned(Vec<Gpu>, Result<Box<Wish>, String>),
}

/// One service, planned or left over.
struct Entry {
    /// Absent for a container of ours that no plan knows any more.
    spec: Option<ServiceSpec>,
    hash: String,
    /// Fingerprint of what the container cannot work with once it is another.
    hard: String,
    /// The settings that a person wants now, whatever runs.
    applied: Option<String>,
    /// The settings that the container does not have yet, and since when.
    changed: Option<(String, Moment)>,
    /// What ran on it when it was recreated, until it is ready again.
    interrupted: Option<Work>,
    seen: Option<Seen>,
    /// The container whose first process has ended, and since when it ran: the engine goes on calling it running for a moment.
    over: Option<(String, Timestamp)>,
    /// The engine did not answer the last time: what is seen may be no more, so nothing is done about it.
    stale: bool,
    touched: Option<Touched>,
    own_stop: Option<OwnStop>,
    shortage: Option<oom::Shortage>,
    /// Since when an observation is under way.
    observing: Option<Moment>,
    /// When the newest one that succeeded was asked for.
    looked_at: Option<Moment>,
    /// When the newest one that found the container running was asked for.
    ran_at: Timestamp,
    /// The newest event of the container.
    last_event: Option<Timestamp>,
    /// Something happened since the observation under way began.
    look_again: bool,
    /// A step is under way.
    acting: bool,
    /// Steps that the journal was told of since one of them has not succeeded.
    told: BTreeSet<&'static str>,
    not_before: Option<Moment>,
    health: Health,
    prober: Option<Prober>,
    memory: Memory,
    tell_tries: u32,
    state: ServiceState,
    since: Timestamp,
    reason: String,
    /// The journal's word on a service that was ready before labd was restarted, while it is shown what it waits for.
    journaled: Option<String>,
    progress: Option<String>,
    next_try: Option<Timestamp>,
    wake: Option<Moment>,
    /// Whether anything was decided yet in this daemon's life.
    fresh: bool,
    recorded: Option<ServiceState>,
}

/// The task that probes one run of a container.
struct Prober {
    /// The container, and since when it runs.
    key: (String, Timestamp),
    /// What Ray says, for as long as it runs.
    ray: watch::Sender<Arc<RayView>>,
    task: AbortHandle,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// labd's own last stop of a container, by which its events are told from a stop by hand.
struct OwnStop {
    id: String,
    from: Timestamp,
    /// Until it was started again.
    to: Option<Timestamp>,
}

impl OwnStop {
    /// As the journal remembers it: container and time.
    fn parse(text: &str) -> Option<Self> {
        let (id, ms) = text.split_once(' ')?;
        Some(Self { id: id.to_owned(), from: Timestamp::from_millis(ms.parse().ok()?), to: None })
    }

    /// Whether it is the reason for an event of `at`, which is told at `now`.
    fn covers(&self, id: &str, at: Timestamp, now: Timestamp) -> bool {
        // Our clock and the engine's are the same, read a moment apart; a stop in the future was before the clock was set
        // back.
        let after = at.plus(Duration::from_secs(1)) >= self.from || self.from > now;
        self.id == id && after && self.to.is_none_or(|to| at <= to)
    }
}

impl Entry {
    fn new(spec: Option<ServiceSpec>, now: Timestamp) -> Self {
        Self {
            hash: spec.as_ref().map(|s| s.container.hash()).unwrap_or_default(),
            hard: spec.as_ref().map(|s| s.container.hard_hash()).unwrap_or_default(),
            applied: None,
            changed: None,
            interrupted: None,
            spec,
            seen: None,
            over: None,
            stale: false,
            touched: None,
            own_stop: None,
            shortage: None,
            observing: None,
            looked_at: None,
            ran_at: Timestamp::default(),
            last_event: None,
            look_again: false,
            acting: false,
            told: BTreeSet::new(),
            not_before: None,
            health: Health::Unknown,
            prober: None,
            memory: Memory::default(),
            tell_tries: 0,
            state: ServiceState::Waiting,
            since: now,
            reason: "labd looks at it".to_owned(),
            journaled: None,
            progress: None,
            next_try: None,
            wake: None,
            fresh: true,
            recorded: None,
        }
    }

    fn kind(&self) -> Option<Kind> {
        self.spec.as_ref().map(|s| s.kind)
    }

    fn container(&self) -> Option<&ContainerSeen> {
        match &self.seen {
            Some(Seen::Ours(c)) => Some(c),
            _ => None,
        }
    }

    fn running(&self) -> Option<(&ContainerSeen, Timestamp)> {
        let c = self.container()?;
        match c.run {
            RunState::Running { started_at } => Some((c, started_at)),
            _ => None,
        }
    }

    /// Corrects what the engine says by what the kernel has said.
    fn correct(&mut self) {
        if let Some(Seen::Ours(c)) = &mut self.seen
            && let RunState::Running { started_at } = c.run
            && self.over.as_ref().is_some_and(|(id, since)| *id == c.id && *since == started_at)
        {
            c.run = RunState::Ending;
        }
    }

    /// How long the engine has not said what the container does, once that is long.
    fn unanswered(&self, now: Moment) -> Option<Duration> {
        self.observing.map(|since| now.since(since)).filter(|&waited| waited >= SLOW_ANSWER)
    }

    /// How its container differs from what is wanted.
    fn change(&self) -> Option<Change> {
        self.container()?.change(&self.hash, &self.hard)
    }

    fn ready(&self) -> bool {
        self.state == ServiceState::Ready
    }
}

/// Runs until `stop` turns true or the lab is down. Returns whether it was brought down.
pub async fn run<E: Engine>(parts: Parts<E>) -> bool {
    let mut lab = Lab::new(parts);
    lab.adopt().await;
    lab.run().await
}

struct Lab<E> {
    p: Parts<E>,
    entries: BTreeMap<String, Entry>,
    tx: mpsc::UnboundedSender<Word>,
    rx: mpsc::UnboundedReceiver<Word>,
    held: BTreeMap<String, Hold>,
    incidents: Incidents,
    /// The engine answers, as far as is known.
    engine: bool,
    away: Option<Away>,
    /// Every container goes, then the daemon.
    down: bool,
    listed_empty: bool,
    /// The lab goes down without an engine: nothing can be stopped.
    given_up: bool,
    listing: bool,
    /// How full each file system is.
    disks: disk_guard::Levels,
    /// The last GPUs that could not be planned with: said once.
    gpus_refused: Option<Vec<Gpu>>,
    /// A plan with other GPUs is being made.
    replanning: bool,
    /// Images that could not be had when they were last tried, and why.
    no_image: BTreeMap<ImageName, String>,
}

impl<E: Engine> Lab<E> {
    fn new(p: Parts<E>) -> Self {
        let (tx, rx) = mpsc::unbounded_channel();
        let now = Timestamp::now();
        let entries = p.wish.plan.services.iter().map(|s| (s.name.clone(), Entry::new(Some(s.clone()), now))).collect();
        let names = p.wish.plan.services.iter().map(|s| s.name.clone());
        let held = names.filter_map(|n| held_before(&p.journal, &n).map(|hold| (n, hold))).collect();
        let incidents = Incidents::new(p.journal.incidents());
        p.incidents.send_replace(Arc::new(p.journal.incidents()));
        Self {
            p,
            entries,
            tx,
            rx,
            held,
            incidents,
            engine: false,
            away: None,
            down: false,
            listed_empty: false,
            given_up: false,
            listing: false,
            disks: disk_guard::Levels::new(),
            gpus_refused: None,
            replanning: false,
            no_image: BTreeMap::new(),
        }
    }

    /// What the journal says of before, so that a restarted labd shows the same reasons and times.
    async fn adopt(&mut self) {
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            if let Some(entry) = self.entries.get_mut(&name) {
                let kept = self.p.journal.memory(&shortage_key(&name));
                entry.shortage = kept.and_then(|text| serde_json::from_str(&text).ok());
            }
            let Some(last) = self.p.journal.last_state(&name).await else { continue };
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            entry.reason = last.reason;
            entry.own_stop = self.p.journal.memory(&stopping_key(&name)).and_then(|text| OwnStop::parse(&text));
            if let Some(state) = ServiceState::ALL.into_iter().find(|s| s.word() == last.what) {
                entry.recorded = Some(state);
                entry.since = last.at;
                if matches!(state, ServiceState::Ready | ServiceState::Unhealthy) {
                    entry.memory.has_run();
                }
            }
        }
    }

    async fn run(&mut self) -> bool {
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut images = self.p.images.watch();
        let mut ray = self.p.ray.watch();
        let mut checkpoints = self.p.checkpoints.watch();
        let mut node = self.p.node.clone();
        let mut gpus = self.p.gpus.clone();
        let mut jobs = self.p.jobs.clone();
        let mut installs = self.p.installs.clone();
        let mut door = self.p.door.clone();
        let mut page = self.p.page.clone();
        let mut engine_view = self.p.engine_view.clone();
        let mut stop = self.p.stop.clone();
        loop {
            self.settle();
            self.guard_disks();
            self.tell_images();
            self.publish();
            // An unwatched daemon is not told so; the error only says that nobody listens.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            if self.down && self.finished() {
                self.clear_network().await;
                return true;
            }
            let wake = self.next_wake();
            // In a fixed order: what the tasks say is heard before what they make necessary, and a simulated lab behaves
            // the same way twice.
            tokio::select! {
                biased;
                stopped = stop.wait_for(|stop| *stop) => {
                    drop(stopped);
                    return false;
                }
                Some(request) = self.p.requests.recv() => self.obey(request),
                Some(nudge) = self.p.nudges.recv() => self.happened(nudge),
                Ok(()) = engine_view.changed() => self.mind_engine(),
                Some(word) = self.rx.recv() => {
                    self.hear(word);
                    // Everything that is already said is heard before the next decision.
                    while let Ok(word) = self.rx.try_recv() {
                        self.hear(word);
                    }
                }
                Ok(()) = images.changed() => {}
                Ok(()) = ray.changed() => self.pass_on(&mut ray),
                Ok(()) = checkpoints.changed() => {}
                Ok(()) = node.changed() => {}
                Ok(()) = gpus.changed() => self.mind_gpus(),
                Ok(()) = jobs.changed() => {}
                Ok(()) = installs.changed() => {}
                Ok(()) = door.changed() => {}
                Ok(()) = page.changed() => {}
                _ = resync.tick() => self.look_at_all(),
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Probers hear of Ray through the loop.
    fn pass_on(&self, ray: &mut watch::Receiver<Arc<RayView>>) {
        let view = ray.borrow_and_update().clone();
        for prober in self.entries.values().filter_map(|e| e.prober.as_ref()) {
            prober.ray.send_replace(view.clone());
        }
    }

    /// Whether the engine answers has changed.
    fn mind_engine(&mut self) {
        let now = Timestamp::now();
        let answers = matches!(*self.p.engine_view.borrow(), EngineView::Reachable { .. });
        if answers && !self.engine {
            for away in self.away.iter_mut().filter(|away| away.to.is_none()) {
                away.to = Some(now);
            }
        } else if !answers && self.away.is_none_or(|away| away.to.is_some()) {
            // One that has not answered in this labd's life yet: after a power cut nobody knows since when.
            let from = if self.engine { now } else { Timestamp::default() };
            self.away = Some(Away { from, to: None });
        }
        if self.engine != answers {
            // What was seen before is no ground for a step.
            self.entries.values_mut().for_each(|e| e.stale = true);
        }
        self.engine = answers;
        self.look_at_all();
    }

    /// Plans again when the GPUs are others than those that were planned with.
    fn mind_gpus(&mut self) {
        let (settled, gpus) = {
            let inventory = self.p.gpus.borrow();
            (inventory.settled, inventory.gpus())
        };
        if !settled || self.down || gpus == self.p.wish.gpus || self.gpus_refused.as_ref() == Some(&gpus) {
            return;
        }
        if std::mem::replace(&mut self.replanning, true) {
            return;
        }
        let (plan, tx) = ((self.p.replan)(self.p.wish.config.clone()), self.tx.clone());
        tokio::spawn(async move {
            let _ = tx.send(Word::Replanned(gpus, plan.await.map(Box::new)));
        });
    }

    /// What came of [`Self::mind_gpus`].
    fn replanned(&mut self, gpus: Vec<Gpu>, result: Result<Box<Wish>, String>) {
        self.replanning = false;
        match result {
            // Simulated ones are planned whatever there is.
            Ok(wish) if wish.gpus == self.p.wish.gpus => self.gpus_refused = Some(gpus),
            Ok(wish) => {
                let before: Vec<String> = self.p.wish.gpus.iter().map(|g| g.id.clone()).collect();
                let line = gpu_change(&before, &wish.gpus);
                self.note(RecordKind::Daemon, None, "gpus", &line);
                self.replace(*wish);
                // They may have become others again meanwhile.
                self.mind_gpus();
            }
            Err(reason) => {
                self.gpus_refused = Some(gpus);
                self.note(
                    RecordKind::Daemon,
                    None,
                    "gpus",
                    &format!("GPUs changed and cannot be planned with: {reason}"),
                );
            }
        }
    }

    /// An event of the engine: what it says is kept with the container it is about, and the container is looked at.
    fn happened(&mut self, nudge: Nudge) {
        let Nudge { service, id, what, at } = nudge;
        self.p.journal.set_memory(EVENTS_HEARD, at.as_millis().to_string());
        let entry = self.entries.entry(service.clone()).or_insert_with(|| Entry::new(None, Timestamp::now()));
        entry.last_event = Some(at);
        if what == Happened::OutOfMemory
            && let Some(limit) = entry.spec.as_ref().map(|s| s.container.memory_bytes)
        {
            let shortage = oom::Shortage::after(entry.shortage.take(), &id, at, limit);
            keep_shortage(&self.p.journal, &service, &shortage);
            entry.shortage = Some(shortage);
        }
        let own = entry.own_stop.as_ref().is_some_and(|own| own.covers(&id, at, Timestamp::now()));
        if !own && !matches!(what, Happened::OutOfMemory | Happened::Other) {
            let touched = match &mut entry.touched {
                Some(touched) if touched.id == id => touched,
                other => other.insert(Touched { id, signalled: None, stopped: None, by_hand: None }),
            };
            match what {
                Happened::Signal(9) | Happened::OutOfMemory | Happened::Other => {}
                Happened::Signal(_) => touched.signalled = Some(at),
                Happened::Stopped => touched.stopped = Some(at),
                Happened::StoppedByHand => (touched.stopped, touched.by_hand) = (Some(at), Some(at)),
            }
        }
        self.look(&service);
    }

    fn next_wake(&self) -> Duration {
        let now = Now::read();
        // A step or a look under way wakes the loop by itself.
        let idle = self.entries.values().filter(|e| !e.acting && e.observing.is_none());
        let seen = |e: &Entry| self.engine && !e.stale && e.seen.is_some();
        let due = |e: &Entry| Some(now.moment.plus(e.shortage.as_ref().filter(|_| seen(e))?.due_in(now.wall)?));
        let at = idle.filter_map(|e| e.wake.into_iter().chain(e.not_before).chain(due(e)).min()).min();
        // Never quite zero: a wake in the past would spin.
        at.map_or(RESYNC, |at| at.since(now.moment).max(Duration::from_millis(20)).min(RESYNC))
    }

    // ---- observing ----

    fn look_at_all(&mut self) {
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            self.look(&name);
        }
        if !self.listing {
            self.listing = true;
            let (engine, tx) = (self.p.engine.clone(), self.tx.clone());
            tokio::spawn(async move {
                let _ = tx.send(Word::Listed(engine.list().await));
            });
        }
    }

    fn look(&mut self, name: &str) {
        let entry = self.entries.entry(name.to_owned()).or_insert_with(|| Entry::new(None, Timestamp::now()));
        if entry.acting {
            // Looked at when the step is done.
            return;
        }
        if entry.observing.is_some() {
            entry.look_again = true;
            return;
        }
        entry.observing = Some(Moment::now());
        let (engine, tx, name) = (self.p.engine.clone(), self.tx.clone(), name.to_owned());
        tokio::spawn(async move {
            let seen = engine.observe(&name).await;
            let _ = tx.send(Word::Seen(name, seen));
        });
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Seen(name, seen) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                let asked_at = entry.observing.take();
                match seen {
                    Ok(seen) => {
                        entry.looked_at = asked_at.or(entry.looked_at);
                        entry.seen = Some(seen);
                        entry.correct();
                        entry.stale = false;
                        if let Some(at) = asked_at.filter(|_| entry.running().is_some()) {
                            entry.ran_at = Now::read().wall_at(at);
                        }
                        let again = entry.running().map(|(_, at)| at);
                        if let (Some(own), Some(again)) = (&mut entry.own_stop, again)
                            && own.to.is_none()
                            && again > own.from
                        {
                            own.to = Some(again);
                            self.p.journal.set_memory(stopping_key(&name), "");
                        }
                    }
                    // What was seen last is shown on; the engine's own view says that it is away.
                    Err(reason) => {
                        entry.stale = true;
                        tracing::debug!(service = name, %reason, "cannot be looked at");
                    }
                }
                if std::mem::take(&mut entry.look_again) {
                    self.look(&name);
                    return;
                }
                self.mind_prober(&name);
            }
            Word::Ended(name, which) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.over = Some(which);
                entry.correct();
                self.mind_prober(&name);
            }
            Word::Listed(found) => {
                self.listing = false;
                let Ok(found) = found else { return };
                self.listed_empty = found.is_empty();
                for name in found {
                    if !self.entries.contains_key(&name) {
                        self.look(&name);
                    }
                }
            }
            Word::Health(name, key, health) => {
                if let Some(entry) = self.entries.get_mut(&name)
                    && entry.prober.as_ref().is_some_and(|p| p.key == key)
                {
                    entry.health = health;
                }
            }
            Word::Done(name, action, result) => self.done(&name, &action, result),
            Word::Reread(result, reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.reloaded(result));
            }
            Word::Replanned(gpus, result) => self.replanned(gpus, result),
            Word::Told(name, result) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.acting = false;
                match result {
                    Ok(_) => {
                        entry.memory.told();
                        entry.tell_tries = 0;
                    }
                    Err(reason) => {
                        tracing::debug!(service = name, reason, "the GCS could not be told");
                        entry.tell_tries += 1;
                        entry.not_before = Some(Moment::now().plus(AFTER_FAILURE));
                        if entry.tell_tries >= TELL_TRIES {
                            entry.memory.told();
                            entry.tell_tries = 0;
                        }
                    }
                }
                self.look(&name);
            }
        }
    }

    fn done(&mut self, name: &str, action: &Action, result: Result<(), EngineError>) {
        let now = Now::read();
        let seed = self.p.seed;
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.acting = false;
        let news = entry.memory.done(&result, now, seed);
        if let Err(error) = result {
            entry.not_before = Some(now.moment.plus(AFTER_FAILURE));
            tracing::info!(service = name, %error, "a step failed");
            if let (EngineError::NotFound(_), Some(spec), Action::Create) = (&error, &entry.spec, action) {
                self.p.images.mark_missing(spec.image);
            }
        }
        if let Some(line) = news {
            self.note(RecordKind::Action, Some(name), "failed", &line);
        }
        self.look(name);
    }

    /// One prober per run of a container.
    fn mind_prober(&mut self, name: &str) {
        let view = self.p.ray.watch().borrow().clone();
        let (tx, ask, engine) = (self.tx.clone(), self.p.ask.clone(), self.p.engine.clone());
        let Some(entry) = self.entries.get_mut(name) else { return };
        let key = entry.running().map(|(c, at)| (c.id.clone(), at));
        if entry.prober.as_ref().map(|p| &p.key) == key.as_ref() {
            return;
        }
        entry.prober = None;
        entry.health = Health::Unknown;
        let (Some(key), Some(spec), Some((container, started_at))) = (key, entry.spec.clone(), entry.running()) else {
            return;
        };
        let (service, told_key, container) = (name.to_owned(), key.clone(), container.clone());
        let end = {
            let (tx, engine, container) = (tx.clone(), engine.clone(), container.clone());
            let (service, key) = (service.clone(), key.clone());
            async move {
                engine.first_process_ended(container).await;
                let _ = tx.send(Word::Ended(service, key));
            }
        };
        let tell = move |health| {
            let _ = tx.send(Word::Health(service.clone(), told_key.clone(), health));
        };
        let (ray, heard) = watch::channel(view);
        let probes = probe::run(engine, ask, spec, container, started_at, heard, tell);
        let task = tokio::spawn(async move { tokio::join!(probes, end) }).abort_handle();
        entry.prober = Some(Prober { key, ray, task });
    }

    // ---- deciding ----

    /// Decides for every service, again while states change: what becomes ready lets others start at once.
    fn settle(&mut self) {
        self.aim();
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for _ in 0..3 {
            let mut changed = false;
            for name in &names {
                changed |= self.decide(name);
            }
            if !changed {
                break;
            }
        }
        self.mind_memory(Timestamp::now());
        self.tell_incidents(Timestamp::now());
        if !self.down {
            // A container that no plan knows is forgotten once it is gone.
            self.entries
                .retain(|_, e| e.spec.is_some() || e.acting || e.observing.is_some() || e.seen != Some(Seen::Absent));
        }
    }

    /// Ray's watcher looks where the head is.
    fn aim(&self) {
        let head = self.entries.values().find(|e| e.kind() == Some(Kind::RayHead));
        let endpoint = head.and_then(|head| {
            let (container, _) = head.running()?;
            let at = |ip, port: u16| container.ports.get(&port).map(|&p| SocketAddr::new(ip, p));
            Some(Endpoint {
                gcs: at(self.publish_ip(), HEAD_PORTS.0)?,
                dashboard: at(Ipv4Addr::LOCALHOST.into(), HEAD_PORTS.1)?,
                token: self.p.wish.ray_token.clone(),
                spares: self.p.wish.config.ray.warm_starts,
            })
        });
        self.p.ray.aim(endpoint);
        self.p.checkpoints.aim(self.p.wish.store.clone().or_else(|| self.minio()));
    }

    /// MinIO as a store, while it is ready.
    fn minio(&self) -> Option<Store> {
        // One that starts or hangs says so itself; what was seen in it stays.
        let entry = self.entries.values().find(|e| e.kind() == Some(Kind::Minio) && e.ready())?;
        let Probe::Minio { port, bucket, region, user, .. } = &entry.spec.as_ref()?.probe else {
            return None;
        };
        let port = *entry.running()?.0.ports.get(port)?;
        Some(Store {
            endpoint: format!("http://{}", SocketAddr::new(self.publish_ip(), port)).parse().ok()?,
            bucket: bucket.clone(),
            region: region.clone(),
            access_key: user.access.clone(),
            secret_key: user.secret.clone(),
        })
    }

    /// Tells the journal of every file system that crossed a threshold.
    fn guard_disks(&mut self) {
        let disks = self.p.node.borrow().disks.clone();
        for disk in disks.iter().filter(|d| !self.disks.contains_key(&d.mount)).collect::<Vec<_>>() {
            // A restarted labd does not tell again what it told before.
            let told = self.p.journal.memory(&disk_key(&disk.mount));
            let level = disk_guard::Level::ALL.into_iter().find(|level| told.as_deref() == Some(level.word()));
            self.disks.insert(disk.mount.clone(), level.unwrap_or_default());
        }
        for crossing in disk_guard::look(&mut self.disks, &disks) {
            self.p.journal.set_memory(disk_key(&crossing.mount), crossing.to.word());
            self.note(RecordKind::Daemon, None, crossing.to.word(), &crossing.text);
        }
    }

    /// Tells the journal of every image that cannot be had, once for each reason, and when it is there after all.
    fn tell_images(&mut self) {
        let mut news = Vec::new();
        for (name, state) in self.p.images.watch().borrow().iter() {
            match state {
                ImageState::Unavailable { reason, .. } => {
                    if self.no_image.insert(*name, reason.clone()).as_ref() != Some(reason) {
                        news.push(("unavailable", format!("{} image: {reason}", name.word())));
                    }
                }
                ImageState::Present { .. } => {
                    if self.no_image.remove(name).is_some() {
                        news.push(("present", format!("{} image: is there", name.word())));
                    }
                }
                ImageState::Unknown | ImageState::Missing | ImageState::Preparing { .. } => {}
            }
        }
        for (what, line) in news {
            self.note(RecordKind::Image, None, what, &line);
        }
    }

    /// Where published ports are reached from here.
    fn publish_ip(&self) -> IpAddr {
        probe::reached_at(self.p.wish.config.network.publish)
    }

    fn wanted(&self, name: &str) -> Wanted {
        let enabled = self.entries.get(name).and_then(|e| e.spec.as_ref()).is_some_and(|s| s.enabled);
        match (self.down, enabled, self.held.get(name)) {
            (true, _, _) | (_, false, _) => Wanted::Off,
            (false, true, Some(hold)) => Wanted::Held(*hold),
            (false, true, None) if self.bar(name).is_some() => Wanted::Barred,
            (false, true, None) => Wanted::Up,
        }
    }

    /// What keeps a worker from its GPU.
    fn bar(&self, name: &str) -> Option<Bar> {
        bar(self.p.gpus.borrow().of_worker(name)?)
    }

    /// What a worker's processes have of its GPU is void since a fault that came after its start.
    fn void(&self, name: &str) -> Option<Health> {
        let (since, reason) = self.p.gpus.borrow().of_worker(name)?.restart.clone()?;
        let (_, started_at) = self.entries.get(name)?.running()?;
        // A fault in the future was before the clock was set back: what has been started since may be of an earlier time.
        (started_at < since && since <= Timestamp::now()).then_some(Health::Gone { reason, since })
    }

    /// On the way down the head and MinIO go last: a Ray node without its head waits for it until it is killed, and a
    /// run's last checkpoint needs its store.
    fn carries_others(&self, name: &str) -> bool {
        let carries = matches!(self.entries.get(name).and_then(Entry::kind), Some(Kind::RayHead | Kind::Minio));
        let now = Now::read();
        let needs = |e: &Entry| e.kind().is_some_and(Kind::is_ray_node) && e.running().is_some();
        carries && self.entries.values().any(|e| needs(e) && e.memory.stays(now).is_none())
    }

    /// What was seen says whether a person stopped or started it past labd.
    fn mind_hold(&mut self, name: &str) {
        let Some(entry) = self.entries.get_mut(name).filter(|e| e.spec.is_some()) else { return };
        let Some(seen) = &entry.seen else { return };
        let before = self.held.get(name).copied();
        let after = decide::hold(before, seen, entry.touched.as_ref());
        if before == after {
            return;
        }
        if let Some(hold) = after {
            self.held.insert(name.to_owned(), hold);
        } else {
            self.held.remove(name);
            entry.memory.forgive();
        }
        self.p.journal.set_memory(held_key(name), held_word(after));
        match (before, after) {
            (None, _) => self.note(RecordKind::Action, Some(name), "held", "stopped by hand (docker stop)"),
            (_, None) => self.note(RecordKind::Action, Some(name), "released", "started by hand (docker start)"),
            _ => {}
        }
    }

    /// Returns whether the state changed.
    fn decide(&mut self, name: &str) -> bool {
        let now = Now::read();
        let Some(entry) = self.entries.get(name) else { return false };
        if entry.seen.is_none()
            || entry.acting
            || (entry.observing.is_some() && entry.unanswered(now.moment).is_none())
            || entry.not_before.is_some_and(|at| at > now.moment)
            || (self.down && self.carries_others(name))
        {
            return false;
        }
        let stale = entry.stale || entry.observing.is_some() || !self.engine;
        if !stale {
            self.mind_hold(name);
        }
        let wanted = self.wanted(name);
        let (unmet, turn, spare_worker) = (self.unmet(name), self.turn(name, now.moment), self.spare_worker(name));
        if !stale {
            self.mind_change(name, &turn, now);
        }
        let gcs = self.p.ray.watch().borrow().gcs == Gcs::Reachable;
        let seed = self.p.seed ^ name.bytes().fold(0, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let image = self.image(name);
        let bar = self.bar(name);
        let void = self.void(name);
        let container = self.p.wish.plan.container_name(name);
        let away = self.away;
        let kill_silent_jupyter = self.p.wish.config.services.jupyter.restart_silent.unwrap_or(false);
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let Some(there) = entry.seen.clone() else { return false };
        entry.not_before = None;
        let situation = Situation {
            name,
            container: &container,
            hash: &entry.hash,
            start_deadline: entry.spec.as_ref().map_or(Duration::MAX, |s| s.start_deadline),
            kill_silent: entry.kind() != Some(Kind::Jupyter) || kill_silent_jupyter,
            stop_timeout: entry.spec.as_ref().map_or(Duration::ZERO, |s| s.container.stop_timeout),
            is_ray_node: entry.kind().is_some_and(Kind::is_ray_node),
            wanted,
            seen: &there,
            touched: entry.touched.as_ref(),
            last_event: entry.last_event.filter(|&at| at >= entry.ran_at),
            away,
            oom: entry.container().and_then(|c| entry.shortage.as_ref()?.last_in(&c.id)),
            health: void.as_ref().unwrap_or(&entry.health),
            image: &image,
            unmet,
            gcs,
            turn,
            spare_worker,
            bar: bar.as_ref(),
            seed,
        };
        if stale {
            // Nothing is done about what may be no more, and nothing is concluded from it; it is only shown.
            let decision = decide::decide(&situation, &mut entry.memory.clone(), now);
            let decision = Decision { wake: None, ..decision };
            let shown =
                matches!(decision.state, ServiceState::Ready | ServiceState::Unhealthy | ServiceState::Starting);
            entry.wake = None;
            return shown && decision.action == Action::None && self.show(name, &decision, now);
        }
        let decision = decide::decide(&situation, &mut entry.memory, now);
        let changed = self.show(name, &decision, now);
        self.follow(name, &decision, now.wall);
        self.act(name, decision, now.wall);
        changed
    }

    // ---- incidents ----

    /// Tells of memory that ran out inside a container that lives on.
    fn mind_memory(&mut self, now: Timestamp) {
        for (name, entry) in &mut self.entries {
            // What is not seen as it is now is no ground for a verdict.
            if entry.stale || entry.acting || entry.observing.is_some() || entry.seen.is_none() || !self.engine {
                continue;
            }
            let running = entry.running().map(|(c, started_at)| (c.id.clone(), started_at));
            let Some(shortage) = entry.shortage.as_mut().filter(|s| s.due_in(now).is_some_and(|d| d.is_zero())) else {
                continue;
            };
            if let Some(incident) = shortage.judge(name, running.as_ref().map(|(id, at)| (id.as_str(), *at)), now) {
                if let Some(times) = shortage.say(now) {
                    let reason = format!("{}{times}", incidents::in_words(&incident));
                    tracing::warn!(service = name, "{reason}");
                    self.p.journal.record(Record {
                        at: now,
                        service: Some(name.clone()),
                        kind: RecordKind::Incident,
                        what: incident.cause.word().to_owned(),
                        reason,
                    });
                }
                self.incidents.inside(incident);
            }
            keep_shortage(&self.p.journal, name, shortage);
        }
    }

    /// What people should know of memory that ran out lately.
    fn shortages(&self, now: Timestamp) -> Vec<Notice> {
        let services = self.p.wish.plan.services.iter().filter(|s| s.enabled);
        let short = services.filter_map(|spec| {
            let shortage = self.entries.get(&spec.name)?.shortage.as_ref()?;
            let over = shortage.is_over(Some(spec.container.memory_bytes), now);
            (!over).then(|| shortage.notice(&spec.name))
        });
        short.collect()
    }

    /// Opens an incident when the service ended, and follows the one that is open.
    fn follow(&mut self, name: &str, decision: &Decision, now: Timestamp) {
        if let Some(mut ended) = decision.ended.clone()
            && let Some(cut_short) = {
                if self.down && ended.cause == Cause::Asked {
                    "stopped with the lab".clone_into(&mut ended.why);
                }
                // The newest checkpoint of this moment is the one that a run resumes from.
                self.p.checkpoints.poke();
                self.incidents.open(name, ended, now)
            }
        {
            self.close(&cut_short, now);
        }
        let running = self.entries.get(name).and_then(|e| e.running().map(|(_, at)| at));
        let ready = decision.state == ServiceState::Ready;
        if let Some(over) = self.incidents.follow(name, running, ready, now) {
            self.close(&over, now);
        }
    }

    /// One line in the journal for an incident that is over. What an earlier labd ended on request is too old to tell.
    fn close(&self, incident: &Incident, now: Timestamp) {
        if incident.cause == Cause::Asked && incident.died_at < self.p.daemon.started_at {
            return;
        }
        self.p.journal.record(Record {
            at: now,
            service: Some(incident.service.clone()),
            kind: RecordKind::Incident,
            what: incident.cause.word().to_owned(),
            reason: incidents::in_words(incident),
        });
    }

    /// What the runs and the store say of the incidents that are not long over.
    fn amend_incidents(&mut self, now: Timestamp) {
        let ray = self.p.ray.watch().borrow().clone();
        let store = self.p.checkpoints.watch().borrow().clone();
        let (entries, begun) = (&self.entries, self.p.daemon.started_at);
        let mut again = Vec::new();
        self.incidents.amend(|incident| {
            // When a run trained again is known only by who watched: this daemon, from its start on.
            let old = now.since(incident.died_at) > RECOVERY_WATCHED || incident.noticed_at < begun;
            // Which run lost a process inside a living container, Ray alone knows.
            if old || !incident.cause.ends() {
                return false;
            }
            let address = entries.get(&incident.service).and_then(|e| e.spec.as_ref()).map(|s| s.container.address);
            let training = recovery::training(incident, address, &ray.runs, &store);
            let changed = training != incident.training;
            for run in &training {
                let known = incident.training.iter().any(|old| old.run == run.run && old.training_at.is_some());
                if let (Some(at), false) = (run.training_at, known) {
                    again.push((incident.service.clone(), incidents::training_in_words(incident, run, at)));
                }
            }
            incident.training = training;
            changed
        });
        for (service, line) in again {
            self.note(RecordKind::Incident, Some(&service), "training", &line);
        }
    }

    /// Keeps and tells what changed.
    fn tell_incidents(&mut self, now: Timestamp) {
        self.amend_incidents(now);
        if let Some(news) = self.incidents.news() {
            for incident in news.changed {
                self.p.journal.keep_incident(incident);
            }
            self.p.incidents.send_replace(Arc::new(news.all));
        }
        // One that a step is under way for is not looked at meanwhile, and its end is known: that is what the step is for.
        let carries_jobs = |e: &&Entry| !e.acting && e.spec.as_ref().is_some_and(|s| is_infrastructure(&s.name));
        if let Some(looked_at) = self.entries.values().filter(carries_jobs).map(|e| e.looked_at).min() {
            self.p.looked_at.send_if_modified(|old| std::mem::replace(old, looked_at) != looked_at);
        }
    }

    fn unmet(&self, name: &str) -> Option<String> {
        let spec = self.entries.get(name)?.spec.as_ref()?;
        if spec.kind == Kind::RayWorker && !self.p.gpus.borrow().settled {
            return Some("waits until the GPUs are looked at".to_owned());
        }
        spec.requires.iter().find_map(|requirement| match requirement {
            Requirement::Ready(other) => {
                let ready = self.entries.get(other).is_some_and(Entry::ready);
                (!ready).then(|| format!("waits for {other}"))
            }
            Requirement::Gcs => {
                let reachable = self.p.ray.watch().borrow().gcs == Gcs::Reachable;
                (!reachable).then(|| "waits for ray-head".to_owned())
            }
        })
    }

    /// Whether a service whose container is not what is wanted any more may be recreated now.
    fn turn(&self, name: &str, now: Moment) -> Turn {
        if self.entries.get(name).and_then(Entry::change).is_none() {
            return Turn::Now;
        }
        let lab = self.lab_work();
        // In the plan's order: `ray-worker-10` comes after `ray-worker-9`.
        let services = self.p.wish.plan.services.iter().filter(|s| s.enabled);
        let peers: Vec<Peer<'_>> =
            services.filter_map(|s| Some(self.peer(s, self.entries.get(&s.name)?, &lab, now))).collect();
        let me = peers.iter().position(|p| p.name == name).unwrap_or(usize::MAX);
        rollout::turn(&peers, me)
    }

    fn peer<'a>(&self, spec: &'a ServiceSpec, entry: &Entry, lab: &Work, now: Moment) -> Peer<'a> {
        use ServiceState as S;
        let broken = matches!(entry.state, S::CrashLoop | S::Blocked | S::Unavailable);
        // One that has not answered for so long was asked often enough, after labd's own restart too.
        let silent = matches!(&entry.health, Health::Failing { since, .. } if now.since(*since) >= decide::HUNG_AFTER);
        let never = !entry.ready() && entry.state != S::Unhealthy && silent && spec.kind != Kind::Jupyter;
        let window = self.p.wish.config.lab.change_window.get();
        let waited = entry.changed.as_ref().is_some_and(|(_, since)| now.since(*since) >= window);
        let work = match spec.kind {
            Kind::RayWorker => self.work_on(spec.container.address),
            Kind::RayHead | Kind::RayDriver | Kind::Minio => lab.clone(),
            // It does not say what runs in its kernels.
            Kind::Jupyter => Work::Busy("its next stop".to_owned()),
            Kind::Prometheus | Kind::Grafana | Kind::FrontDoor => Work::None,
        };
        Peer {
            name: &spec.name,
            kind: spec.kind,
            counts: self.wanted(&spec.name) == Wanted::Up,
            ready: entry.ready() && !entry.acting,
            fails: broken || never,
            broken,
            change: entry.change(),
            due: entry.applied.as_ref() == Some(&entry.hash)
                || (waited && matches!(spec.kind, Kind::RayHead | Kind::RayDriver | Kind::Minio)),
            work: entry.interrupted.clone().unwrap_or(work),
        }
    }

    /// What runs on the Ray node at this address.
    fn work_on(&self, address: Ipv4Addr) -> Work {
        let view = self.p.ray.watch().borrow().clone();
        let Some(node) = view.nodes.iter().find(|n| n.address == address && n.alive) else { return Work::Unknown };
        if view.gcs != Gcs::Reachable || node.available.is_empty() {
            return Work::Unknown;
        }
        if !node.is_busy() {
            return Work::None;
        }
        let trains = |run: &&TrainRun| {
            let last = run.attempts.last().filter(|_| run.status.is_active());
            last.is_some_and(|attempt| attempt.ended_at.is_none() && attempt.workers.contains(&address))
        };
        let run = view.runs.iter().find(trains);
        Work::Busy(run.map_or_else(|| "what runs on it".to_owned(), |run| format!("run {}", run.name)))
    }

    /// What runs in the lab as a whole.
    fn lab_work(&self) -> Work {
        let ledger = self.p.jobs.borrow().clone();
        let open: Vec<&str> =
            ledger.jobs.iter().filter(|j| !j.status.is_final()).map(|j| j.submission_id.as_str()).collect();
        let view = self.p.ray.watch().borrow().clone();
        match open.as_slice() {
            [job] => Work::Busy(format!("job {job}")),
            [_, ..] => Work::Busy(format!("{} jobs", open.len())),
            // What a notebook runs is no job.
            [] if view.nodes.iter().any(|n| n.alive && n.is_busy()) => {
                Work::Busy("what runs in the cluster".to_owned())
            }
            [] if view.gcs != Gcs::Reachable || view.jobs.is_none() => Work::Unknown,
            [] => Work::None,
        }
    }

    /// Keeps since when the container has not been what is wanted, over restarts of labd.
    fn mind_change(&mut self, name: &str, turn: &Turn, now: Now) {
        let Some(entry) = self.entries.get(name) else { return };
        let change = entry.change();
        let interrupted = match (change, turn, &entry.spec) {
            (None, ..) if entry.ready() => Some(None),
            (Some(_), Turn::Now, Some(spec)) if spec.kind == Kind::RayWorker && entry.ready() => {
                Some(Some(self.work_on(spec.container.address)).filter(|w| *w != Work::Unknown))
            }
            _ => None,
        };
        let Some(entry) = self.entries.get_mut(name) else { return };
        if let Some(work) = interrupted {
            entry.interrupted = work;
        }
        if change.is_none() {
            entry.changed = None;
        } else if entry.changed.as_ref().is_none_or(|(hash, _)| *hash != entry.hash) {
            let kept = self.p.journal.memory(&change_key(name));
            let before = kept.as_deref().and_then(|text| text.split_once(' ')).filter(|(hash, _)| *hash == entry.hash);
            let since = before.and_then(|(_, ms)| ms.parse().ok()).map(Timestamp::from_millis);
            if since.is_none() {
                let line = format!("{} {}", entry.hash, now.wall.as_millis());
                self.p.journal.set_memory(change_key(name), line);
            }
            entry.changed = Some((entry.hash.clone(), since.map_or(now.moment, |at| now.moment_of(at))));
        }
    }

    /// Whether it is a GPU worker, and another one is ready and Ray counts its GPU as free.
    fn spare_worker(&self, name: &str) -> bool {
        if self.entries.get(name).and_then(Entry::kind) != Some(Kind::RayWorker) {
            return false;
        }
        let view = self.p.ray.watch().borrow().clone();
        self.entries.iter().any(|(other, e)| {
            let address = e.spec.as_ref().map(|s| s.container.address);
            other != name
                && e.kind() == Some(Kind::RayWorker)
                && e.ready()
                && view.nodes.iter().any(|n| {
                    Some(n.address) == address && n.alive && n.available.get("GPU").is_some_and(|&free| free >= 1.0)
                })
        })
    }

    fn image(&self, name: &str) -> Image {
        let Some(image) = self.entries.get(name).and_then(|e| e.spec.as_ref()).map(|s| s.image) else {
            return Image::Present;
        };
        match self.p.images.watch().borrow().get(&image) {
            Some(ImageState::Present { .. }) => Image::Present,
            Some(ImageState::Preparing { detail, .. }) => Image::Preparing(format!("{} image: {detail}", image.word())),
            Some(ImageState::Unavailable { reason, .. }) => Image::Unavailable(reason.clone()),
            Some(ImageState::Unknown | ImageState::Missing) | None => {
                Image::Preparing(format!("looks for the {} image", image.word()))
            }
        }
    }

    // ---- acting ----

    fn act(&mut self, name: &str, decision: Decision, now: Timestamp) {
        let Decision { action, reason, .. } = decision;
        let Some(entry) = self.entries.get_mut(name) else { return };
        let what = match &action {
            Action::None => return,
            Action::PrepareImage => {
                if let Some(spec) = &entry.spec {
                    self.p.images.want(spec.image);
                }
                return;
            }
            Action::TellGcs { .. } => "tell-gcs",
            Action::Create => "create",
            Action::Start { again: true, .. } => "restart",
            Action::Start { again: false, .. } => "start",
            Action::Stop { .. } => "stop",
            Action::Kill { .. } => "kill",
            Action::Remove { .. } => "remove",
        };
        tracing::info!(service = name, reason, "{what}");
        // What is tried because a step does not succeed is told once: it is tried for as long as nobody helps.
        if !entry.memory.is_stuck() {
            entry.told.clear();
        }
        if entry.told.insert(what) || !entry.memory.is_stuck() {
            self.p.journal.record(Record {
                at: now,
                service: Some(name.to_owned()),
                kind: RecordKind::Action,
                what: what.to_owned(),
                reason,
            });
        }
        entry.acting = true;
        if let Action::Stop { id } = &action {
            entry.own_stop = Some(OwnStop { id: id.clone(), from: now, to: None });
            // A labd that is killed meanwhile must not take it for a stop by hand when it is back.
            self.p.journal.set_memory(stopping_key(name), format!("{id} {}", now.as_millis()));
        }
        let (engine, tx, name) = (self.p.engine.clone(), self.tx.clone(), name.to_owned());
        if let Action::TellGcs { reason } = action {
            let address = entry.spec.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |s| s.container.address);
            let ray = self.p.ray.clone();
            tokio::spawn(async move {
                let told = ray.unregister(address, now, &reason).await;
                let _ = tx.send(Word::Told(name, told));
            });
            return;
        }
        let (spec, network) = (entry.spec.clone(), self.p.wish.plan.network.clone());
        tokio::spawn(async move {
            let result = match (&action, spec) {
                (Action::Create, Some(spec)) => match engine.ensure_network(&network).await {
                    Ok(()) => engine.create(&name, &spec.container).await,
                    Err(e) => Err(e),
                },
                // Its network may have been pruned while it was stopped; without one it is not started.
                (Action::Start { id, .. }, _) => match engine.ensure_network(&network).await {
                    Ok(()) => engine.start(id).await,
                    Err(e) => Err(e),
                },
                (Action::Stop { id }, _) => engine.stop(id).await,
                (Action::Kill { id }, _) => engine.kill(id).await,
                (Action::Remove { id }, _) => engine.remove(id).await,
                _ => Ok(()),
            };
            let _ = tx.send(Word::Done(name, action, result));
        });
    }

    // ---- showing ----

    /// Brings what is shown up to date, and the journal when the state changed.
    fn show(&mut self, name: &str, decision: &Decision, now: Now) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let before = entry.state;
        let unchanged_since = entry.running().is_some_and(|(_, started_at)| started_at <= entry.since);
        if entry.fresh
            && matches!(decision.state, ServiceState::Starting | ServiceState::Waiting)
            && entry.health == Health::Unknown
            && entry.recorded == Some(ServiceState::Ready)
            && unchanged_since
        {
            // It was ready before labd was restarted, and the first probe is under way: nothing has happened that the
            // journal should be told. A wait is shown with what it is for, not with the journal's word on how it began.
            entry.state = decision.state;
            entry.wake = decision.wake;
            if decision.state == ServiceState::Waiting {
                let journaled = std::mem::replace(&mut entry.reason, decision.reason.clone());
                entry.journaled.get_or_insert(journaled);
            }
            return before != decision.state;
        }
        let adopted = std::mem::take(&mut entry.fresh);
        let changed = before != decision.state || adopted;
        entry.state = decision.state;
        let same_wake = std::mem::replace(&mut entry.wake, decision.wake) == decision.wake;
        entry.next_try = match decision.state {
            // Said once, so that it does not move by the moment in which it is looked at.
            ServiceState::Backoff | ServiceState::CrashLoop if same_wake && entry.next_try.is_some() => entry.next_try,
            ServiceState::Backoff | ServiceState::CrashLoop | ServiceState::Blocked => {
                decision.wake.map(|at| now.wall_at(at))
            }
            _ => None,
        };
        entry.progress = (decision.state == ServiceState::Preparing).then(|| decision.reason.clone());
        let mut reason = decision.reason.clone();
        if decision.state == ServiceState::Ready && reason.is_empty() {
            let word = entry.journaled.take().unwrap_or_else(|| entry.reason.clone());
            reason = match entry.running() {
                // Adopted: the journal's word stands, if it has one.
                Some(_) if adopted && !word.is_empty() => word,
                Some((_, at)) if changed => format!("ready {} after its start", human(now.wall.since(at))),
                _ => entry.reason.clone(),
            };
        }
        if decision.state == ServiceState::Preparing {
            // Steps of a build are progress, not reasons: the journal would fill with them.
            reason = if changed { "its image is prepared".to_owned() } else { entry.reason.clone() };
        }
        if !changed {
            entry.reason = reason;
            return false;
        }
        if before != decision.state || entry.recorded != Some(decision.state) {
            let recorded = entry.recorded.replace(decision.state);
            if recorded != Some(decision.state) {
                entry.since = now.wall;
                // An image that is tried again and again is told once, for all that need it.
                let no_image = |s| matches!(s, ServiceState::Preparing | ServiceState::Unavailable);
                if !(recorded.is_some_and(no_image) && no_image(decision.state)) {
                    self.p.journal.record(Record {
                        at: now.wall,
                        service: Some(name.to_owned()),
                        kind: RecordKind::State,
                        what: decision.state.word().to_owned(),
                        reason: reason.clone(),
                    });
                }
            }
        }
        entry.reason = reason;
        before != decision.state
    }

    fn publish(&self) {
        let now = Timestamp::now();
        let restarts = self.p.journal.restarts();
        let plan = &self.p.wish.plan;
        let left_over = self.entries.values().filter(|e| e.spec.is_none()).count();
        let mut services: Vec<ServiceView> = Vec::with_capacity(plan.services.len() + left_over);
        for spec in &plan.services {
            let Some(entry) = self.entries.get(&spec.name) else { continue };
            services.push(ServiceView {
                name: spec.name.clone(),
                state: entry.state,
                since: entry.since,
                restarts: restarts.get(&spec.name).copied().unwrap_or(0),
                last_reason: entry.reason.clone(),
                progress: entry.progress.clone(),
                next_try: entry.next_try,
                container: entry.container().map(|_| plan.container_name(&spec.name)),
                image: spec.container.image.clone(),
                address: spec.container.address.to_string(),
            });
        }
        let ray = self.p.ray.watch().borrow().clone();
        let door = self.p.door.borrow().clone();
        let page = self.p.page.borrow().clone();
        let moment = Moment::now();
        let unanswered: Vec<&str> = self
            .entries
            .iter()
            .filter(|(_, e)| e.unanswered(moment).is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        let ledger = self.p.jobs.borrow().clone();
        let installs = self.p.installs.borrow().clone();
        let store = self.p.checkpoints.watch().borrow().clone();
        let port_of = |service: &str, port: u16| {
            if service == door::NAME {
                return door.port;
            }
            let entry = self.entries.get(service)?;
            entry.running()?.0.ports.get(&port).copied()
        };
        let service_of = |container: &str| {
            let of = |e: &&Entry| e.container().is_some_and(|c| c.id == container);
            self.entries.values().find(of).and_then(|e| e.spec.as_ref()).map(|s| s.name.clone())
        };
        let snapshot = view::snapshot(view::Known {
            now,
            daemon: &self.p.daemon,
            node: self.p.node.borrow().clone(),
            engine: self.p.engine_view.borrow().clone(),
            journal: self.p.journal.health().borrow().clone(),
            ray: &ray,
            ledger: &ledger,
            installs: &installs,
            door: door.trouble.as_deref(),
            page: page.as_deref(),
            unanswered: &unanswered,
            scrapes: *self.p.scrapes.borrow(),
            store: &store,
            disks: &self.disks,
            config: &self.p.wish.config,
            gpus: &self.p.wish.gpus,
            inventory: &self.p.gpus.borrow().clone(),
            services,
            shortages: self.shortages(now),
            incidents: self.incidents.newest(INCIDENTS_SHOWN),
            service_of: &service_of,
            port_of: &port_of,
        });
        self.p.snapshot.send_if_modified(|old| {
            // The time alone is no news.
            let same = Snapshot { taken_at: old.taken_at, ..snapshot.clone() } == **old;
            if !same {
                *old = Arc::new(snapshot);
            }
            !same
        });
    }

    // ---- obeying ----

    fn obey(&mut self, request: Request) {
        if request.command == Command::Reload && !self.down {
            let (read, tx) = ((self.p.reread)(), self.tx.clone());
            tokio::spawn(async move {
                let _ = tx.send(Word::Reread(read.await.map(Box::new), request.reply));
            });
            return;
        }
        let answer = match request.command {
            Command::Start { service } => self.known(&service).and_then(|()| self.start(&service)),
            Command::Stop { service } => self.known(&service).map(|()| self.hold(&service)),
            Command::Restart { service } => self.known(&service).and_then(|()| self.restart(&service)),
            Command::Reload => Err(Refusal::ShuttingDown),
            Command::Apply => self.apply(),
            Command::Down if matches!(*self.p.engine_view.borrow(), EngineView::Unreachable { .. }) => {
                self.down = true;
                self.given_up = true;
                Ok("the container engine does not answer: labd ends, and what still runs is left as it is".to_owned())
            }
            Command::Down => {
                self.down = true;
                self.note(RecordKind::Daemon, None, "down", "a person asked for it");
                self.look_at_all();
                Ok("stopping every container; volumes and images are kept".to_owned())
            }
        };
        // Whoever asked may have gone.
        let _ = request.reply.send(answer);
    }

    fn note(&self, kind: RecordKind, service: Option<&str>, what: &str, reason: &str) {
        self.p.journal.record(Record {
            at: Timestamp::now(),
            service: service.map(str::to_owned),
            kind,
            what: what.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn known(&self, service: &str) -> Result<(), Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        match self.p.wish.plan.service(service) {
            Some(spec) if spec.enabled => Ok(()),
            Some(_) => Err(Refusal::Invalid(format!(
                "{service} is switched off; set `services.{service}.enabled = true` in labd.toml"
            ))),
            None => {
                let names: Vec<&str> = self.p.wish.plan.services.iter().map(|s| s.name.as_str()).collect();
                Err(Refusal::UnknownService(format!("no service `{service}`; there are: {}", names.join(", "))))
            }
        }
    }

    fn start(&mut self, service: &str) -> Result<String, Refusal> {
        let released = self.held.remove(service).is_some();
        if released {
            self.p.journal.set_memory(held_key(service), held_word(None));
        }
        let entry = self.entries.get_mut(service).ok_or(Refusal::ShuttingDown)?;
        if !released && entry.ready() {
            return Ok(format!("{service}: is ready already"));
        }
        entry.memory.forgive();
        // What was said of its stop is answered by this.
        entry.touched = None;
        self.note(RecordKind::Action, Some(service), "released", "started by hand");
        self.look(service);
        Ok(format!("{service}: is being started"))
    }

    fn hold(&mut self, service: &str) -> String {
        if !self.held.contains_key(service) {
            self.held.insert(service.to_owned(), Hold::Asked);
            self.p.journal.set_memory(held_key(service), held_word(Some(Hold::Asked)));
            self.note(RecordKind::Action, Some(service), "held", "stopped by hand");
        }
        self.look(service);
        format!("{service}: is being stopped, and held until `labd start {service}`")
    }

    fn restart(&mut self, service: &str) -> Result<String, Refusal> {
        if self.held.contains_key(service) {
            return self.start(service);
        }
        let entry = self.entries.get_mut(service).ok_or(Refusal::ShuttingDown)?;
        entry.memory.forgive();
        entry.memory.restart = entry.running().is_some() || entry.acting;
        self.look(service);
        Ok(format!("{service}: is being restarted"))
    }

    /// What waits with changed settings waits no longer.
    fn apply(&mut self) -> Result<String, Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        let mut names = Vec::new();
        for spec in &self.p.wish.plan.services {
            let Some(entry) = self.entries.get_mut(&spec.name).filter(|e| e.change().is_some()) else { continue };
            entry.applied = Some(entry.hash.clone());
            names.push(spec.name.clone());
        }
        if names.is_empty() {
            return Ok("nothing waits: every container is what is wanted".to_owned());
        }
        let message = format!("recreated now: {}", names.join(", "));
        self.note(RecordKind::Config, None, "applied", &message);
        self.look_at_all();
        Ok(message)
    }

    /// `labd.toml` was read again.
    fn reloaded(&mut self, read: Result<Box<Wish>, String>) -> Result<String, Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        let wish = read.map_err(|reason| {
            self.note(RecordKind::Config, None, "refused", &reason);
            Refusal::Invalid(reason)
        })?;
        let changed = self.replace(*wish);
        // It was planned with the GPUs that were there when the reading began.
        self.mind_gpus();
        let message = if changed.is_empty() {
            "labd.toml was read; no container is concerned".to_owned()
        } else {
            format!(
                "labd.toml was read; concerned: {}; what is at work keeps its container until it is idle, or for `labd apply`",
                changed.join(", ")
            )
        };
        self.note(RecordKind::Config, None, "reloaded", &message);
        Ok(message)
    }

    /// Takes over what is wanted from now on. Returns the services that are concerned.
    fn replace(&mut self, wish: Wish) -> Vec<String> {
        let before = std::mem::replace(&mut self.p.wish, wish);
        self.gpus_refused = None;
        let now = Timestamp::now();
        let mut changed = Vec::new();
        for spec in self.p.wish.plan.services.clone() {
            let name = spec.name.clone();
            let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry::new(None, now));
            let hash = spec.container.hash();
            let toggled = before.plan.service(&name).is_none_or(|old| old.enabled != spec.enabled);
            if (hash != entry.hash && spec.enabled) || toggled {
                changed.push(name);
                // New settings are a new chance.
                entry.memory.forgive();
            }
            entry.hash = hash;
            entry.hard = spec.container.hard_hash();
            entry.spec = Some(spec);
        }
        // What is not planned any more becomes a left-over container, and goes.
        for (name, entry) in &mut self.entries {
            if self.p.wish.plan.service(name).is_none() && entry.spec.take().is_some() {
                changed.push(name.clone());
            }
        }
        self.p.images.update(self.p.wish.plan.images.clone(), self.p.wish.settings.clone());
        self.p.config.send_replace(Arc::new(self.p.wish.config.clone()));
        self.p.plan.send_replace(Arc::new(self.p.wish.view.clone()));
        self.p.credentials.send_replace(Arc::new(self.p.wish.credentials.clone()));
        self.look_at_all();
        changed
    }

    /// Whether the lab is down: no container left but those that the engine does not take away, and the network gone.
    fn finished(&mut self) -> bool {
        if self.given_up {
            return true;
        }
        let now = Now::read();
        let there = |e: &&Entry| e.acting || e.observing.is_some() || matches!(e.seen, Some(Seen::Ours(_)));
        let left: Vec<Option<String>> =
            self.entries.values().filter(there).map(|e| e.memory.stays(now).map(str::to_owned)).collect();
        if !left.is_empty() && left.iter().all(Option::is_some) {
            for (name, entry) in self.entries.iter().filter(|(_, e)| there(e)) {
                let container = self.p.wish.plan.container_name(name);
                let why = entry.memory.stays(now).unwrap_or_default();
                let line = format!("the container {container} is left: {why}");
                tracing::error!("{line}");
                self.note(RecordKind::Daemon, Some(name), "left", &line);
            }
            return true;
        }
        let gone =
            self.entries.values().all(|e| !e.acting && e.observing.is_none() && !matches!(e.seen, Some(Seen::Ours(_))));
        if !gone || !self.listed_empty {
            if gone && !self.listing {
                self.look_at_all();
            }
            return false;
        }
        true
    }

    async fn clear_network(&self) {
        if self.given_up {
            return;
        }
        match tokio::time::timeout(RESYNC, self.p.engine.remove_network()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lab's network is left"),
            Err(_) => tracing::warn!("the lab's network is left: the engine did not answer"),
        }
    }
}

/// What keeps a worker from this GPU.
fn bar(unit: &Unit) -> Option<Bar> {
    let trouble = unit.trouble.as_ref();
    let said = |text: fn(&GpuTrouble) -> &str| trouble.map_or("", text);
    match unit.state {
        GpuState::Ok => None,
        GpuState::Missing => Some(Bar { quarantine: false, reason: format!("waits for its GPU {}", unit.gpu.id) }),
        GpuState::Quarantined => Some(Bar {
            quarantine: true,
            reason: format!(
                "its GPU is quarantined: {}; {}; then `labd gpu release {}`",
                said(|t| &t.meaning),
                said(|t| &t.remedy),
                unit.gpu.id
            ),
        }),
    }
}

/// Which GPUs came and went, in one line.
fn gpu_change(before: &[String], now: &[Gpu]) -> String {
    let came: Vec<&str> = now.iter().map(|g| g.id.as_str()).filter(|id| !before.iter().any(|b| b == id)).collect();
    let went: Vec<&str> = before.iter().map(String::as_str).filter(|id| !now.iter().any(|g| g.id == *id)).collect();
    let part = |word: &str, ids: &[&str]| (!ids.is_empty()).then(|| format!("{word} {}", ids.join(", ")));
    let parts: Vec<String> = [part("new:", &came), part("gone:", &went)].into_iter().flatten().collect();
    if parts.is_empty() { "what containers are handed of the GPUs changed".to_owned() } else { parts.join("; ") }
}

/// Where the journal remembers since when a container has not been what is wanted.
fn change_key(service: &str) -> String {
    format!("change:{service}")
}

fn disk_key(mount: &str) -> String {
    format!("disk:{mount}")
}

/// Where the journal remembers memory that ran out in a service.
fn shortage_key(service: &str) -> String {
    format!("oom:{service}")
}

fn keep_shortage(journal: &Journal, service: &str, shortage: &oom::Shortage) {
    if let Ok(text) = serde_json::to_string(shortage) {
        journal.set_memory(shortage_key(service), text);
    }
}

fn held_key(service: &str) -> String {
    format!("held:{service}")
}

/// Where the journal remembers a stop of labd's own that is under way.
fn stopping_key(service: &str) -> String {
    format!("stopping:{service}")
}

fn held_word(hold: Option<Hold>) -> &'static str {
    match hold {
        None => "no",
        Some(Hold::Asked) => "yes",
        Some(Hold::Stopped) => "stopped",
        Some(Hold::ByHand) => "by-hand",
    }
}

fn held_before(journal: &Journal, service: &str) -> Option<Hold> {
    let word = journal.memory(&held_key(service))?;
    [Hold::Asked, Hold::Stopped, Hold::ByHand].into_iter().find(|&hold| held_word(Some(hold)) == word)
}
