//! The one task that owns every service: hears what happens, decides, takes steps, and shows the result.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};

use super::{
    decide::{Action, EngineOutage, Health, Hold},
    health_check::Ask,
    incidents::Incidents,
    memory::{held_before, shortage_key, started_after_key, stopping_key},
    segments::Swept,
    service::{Entry, OwnStop},
};
use crate::{
    checkpoints::Checkpoints,
    config::Config,
    control::{Refusal, Request},
    credentials::Credential,
    desired::DesiredState,
    door::Upstreams,
    engine::{Engine, EngineError, EngineEvent, ListedContainer, Observed, images::Images},
    gpus::{Gpu, Inventory},
    incident::Incident,
    jobs::LedgerView,
    journal::{Entry as Record, Journal, Kind as RecordKind},
    node::disk_guard,
    notify::TargetView,
    plan::PlanView,
    ray::Ray,
    snapshot::{DaemonView, EngineView, InstallsView, NodeView, ServiceState, Snapshot},
    spec::ImageName,
    time::{Moment, Now, Timestamp},
    tls,
};

/// Interval between two looks at everything, by the engine's list of all containers: an event that was missed costs at most
/// so much, unless a run began again meanwhile.
pub const RESYNC: Duration = Duration::from_secs(5);
/// Number of looks of which one asks for each container, whatever the list says: one that was started again between two
/// looks, without an event, is listed as it was.
pub(super) const LOOKS: u32 = 12;
/// Time after a death for which it is watched whether the runs that it interrupted train again: longer than a crash
/// loop's wait.
pub(super) const RECOVERY_WATCHED: Duration = Duration::from_mins(15);
/// Delay after a failed step until the same service is observed again.
pub(super) const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Time from which on what was seen before the network was looked for is seen again: an engine takes milliseconds for that.
pub(super) const OUTDATED: Duration = Duration::from_millis(500);
/// Silence after which an engine that was asked about a container counts as hanging: an answer takes milliseconds, and
/// some seconds on a disk that thrashes.
pub(super) const SLOW_ANSWER: Duration = Duration::from_secs(10);
/// Number of vain attempts to tell the GCS after which a node is started all the same.
pub(super) const TELL_TRIES: u32 = 10;
/// Number of incidents in the snapshot.
pub(super) const INCIDENTS_SHOWN: usize = 20;

/// Function that reads `labd.toml` again, in its own time: the files that it names may be on a file system that hangs.
/// The error is one line, and nothing has changed then.
pub type Reload = Box<dyn Fn() -> BoxFuture<'static, Result<DesiredState, String>> + Send + Sync>;

/// Function that plans again from a valid configuration, for GPUs that are others now. The error is one line.
pub type Replan = Box<dyn Fn(Config) -> BoxFuture<'static, Result<DesiredState, String>> + Send + Sync>;

/// Parts that the loop is given.
pub struct Parts<E> {
    /// The container engine.
    pub engine: Arc<E>,
    /// HTTP requests to running containers about their contract.
    pub ask: Arc<dyn Ask>,
    /// Images.
    pub images: Images,
    /// Connection to Ray.
    pub ray: Ray,
    /// Checkpoints.
    pub checkpoints: Checkpoints,
    /// The journal.
    pub journal: Journal,
    /// Desired state at the start.
    pub desired: DesiredState,
    /// Function that reads `labd.toml` again.
    pub reload: Reload,
    /// View of the daemon for the snapshot.
    pub daemon: DaemonView,
    /// Requests of people.
    pub requests: mpsc::Receiver<Request>,
    /// Events of the engine.
    pub nudges: mpsc::Receiver<EngineEvent>,
    /// Whether the engine answers.
    pub engine_view: watch::Receiver<EngineView>,
    /// View of the machine.
    pub node: watch::Receiver<NodeView>,
    /// GPUs.
    pub gpus: watch::Receiver<Arc<Inventory>>,
    /// Function that plans again with the GPUs as they are now.
    pub replan: Replan,
    /// Jobs.
    pub jobs: watch::Receiver<Arc<LedgerView>>,
    /// Packages that nodes install.
    pub installs: watch::Receiver<Arc<InstallsView>>,
    /// Targets that are told what happens, and which of them are not.
    pub notify: watch::Receiver<Arc<Vec<TargetView>>>,
    /// State of the front door on the host.
    pub door: watch::Receiver<DoorView>,
    /// Reason why the status page is not served, in one line.
    pub page: watch::Receiver<Option<String>>,
    /// Listener of the page's second origin.
    pub second: watch::Receiver<DoorView>,
    /// Certificate of both.
    pub tls: watch::Receiver<Arc<tls::Served>>,
    /// Requests of Prometheus for labd's own metrics.
    pub scrapes: watch::Receiver<Scrapes>,
    /// Channel for the configuration that a reload brought.
    pub config: watch::Sender<Arc<Config>>,
    /// Channel for where labd's own page reaches services.
    pub upstreams: watch::Sender<Arc<Upstreams>>,
    /// Channel for the snapshot.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Channel for incidents, oldest first.
    pub incidents: watch::Sender<Arc<Vec<Incident>>>,
    /// Channel for the moment since which every container that can take a job along has been observed: sent after the
    /// incidents that were found.
    pub looked_at: watch::Sender<Option<Moment>>,
    /// Seed of the backoffs' jitter.
    pub seed: u64,
    /// Channel for the plan.
    pub plan: watch::Sender<Arc<PlanView>>,
    /// Channel for the credentials.
    pub credentials: watch::Sender<Arc<Vec<Credential>>>,
    /// Signal that turns true when the daemon ends. Containers are left as they are.
    pub stop: watch::Receiver<bool>,
}

/// Listener on the host: of the front door, or of the page's second origin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DoorView {
    /// Port it listens on; absent while it does not.
    pub port: Option<u16>,
    /// Reason why it does not, in one line.
    pub trouble: Option<String>,
}

/// Requests of Prometheus for labd's own metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrapes {
    /// Address at which Prometheus asks, in the lab's network; `None` before that is known.
    pub address: Option<SocketAddr>,
    /// Time of the last request.
    pub last: Option<Timestamp>,
}

/// Message from a task to the loop.
pub(super) enum TaskMsg {
    Observed(String, Result<Observed, EngineError>),
    /// End of the first process of the service's container, which ran since then.
    FirstProcessEnded(String, (String, Timestamp)),
    /// Whether the lab's network is there, for a step that was decided on then.
    Network(String, Action, Moment, Result<(), EngineError>),
    Done(String, Action, Result<(), EngineError>),
    Told(String, Result<usize, String>),
    Health(String, (String, Timestamp), Health),
    Listed(Result<Vec<ListedContainer>, EngineError>),
    Reload(Result<Box<DesiredState>, String>, oneshot::Sender<Result<String, Refusal>>),
    /// Time to look what ended processes left in this volume in memory.
    SweepDue(String),
    Swept(Option<Swept>),
    /// Plan for these GPUs.
    Replanned(Vec<Gpu>, Result<Box<DesiredState>, String>),
}

/// Runs until `stop` turns true or the lab is down. Returns whether it was brought down.
pub async fn run<E: Engine>(parts: Parts<E>) -> bool {
    let mut lab = Supervisor::new(parts);
    lab.adopt().await;
    lab.run().await
}

pub(super) struct Supervisor<E> {
    pub(super) p: Parts<E>,
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) tx: mpsc::UnboundedSender<TaskMsg>,
    pub(super) rx: mpsc::UnboundedReceiver<TaskMsg>,
    pub(super) held: BTreeMap<String, Hold>,
    pub(super) incidents: Incidents,
    /// Whether the engine answers, as far as is known.
    pub(super) engine: bool,
    pub(super) away: Option<EngineOutage>,
    /// Whether the lab goes down: every container, then the daemon.
    pub(super) down: bool,
    pub(super) listed_empty: bool,
    /// Whether the lab goes down without an engine: nothing can be stopped.
    pub(super) given_up: bool,
    /// Whether the engine is asked for a list of all containers.
    pub(super) listing: bool,
    /// Number of looks so far.
    pub(super) looks: u32,
    /// Whether a look at what ended processes left in shared memory is due or under way.
    pub(super) sweeping: bool,
    /// Fill level of each file system.
    pub(super) disks: disk_guard::Levels,
    /// Last GPUs that could not be planned with, so that it is said once.
    pub(super) gpus_refused: Option<Vec<Gpu>>,
    /// Whether a plan with other GPUs is being made.
    pub(super) replanning: bool,
    /// Images that could not be had when they were last tried, and why.
    pub(super) no_image: BTreeMap<ImageName, String>,
}

impl<E: Engine> Supervisor<E> {
    fn new(p: Parts<E>) -> Self {
        let (tx, rx) = mpsc::unbounded_channel();
        let now = Timestamp::now();
        let entries =
            p.desired.plan.services.iter().map(|s| (s.name.clone(), Entry::new(Some(s.clone()), now))).collect();
        let names = p.desired.plan.services.iter().map(|s| s.name.clone());
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
            looks: 0,
            sweeping: false,
            disks: disk_guard::Levels::new(),
            gpus_refused: None,
            replanning: false,
            no_image: BTreeMap::new(),
        }
    }

    /// Takes over what the journal says of earlier, so that a restarted labd shows the same reasons and times.
    async fn adopt(&mut self) {
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            if let Some(entry) = self.entries.get_mut(&name) {
                let kept = self.p.journal.memory(&shortage_key(&name));
                entry.shortage = kept.and_then(|text| serde_json::from_str(&text).ok());
                let fault = self.p.journal.memory(&started_after_key(&name));
                entry.started_after = fault.and_then(|at| Some(Timestamp::from_millis(at.parse().ok()?)));
            }
            let Some(last) = self.p.journal.last_state(&name).await else { continue };
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            entry.reason = last.reason;
            entry.own_stop = self.p.journal.memory(&stopping_key(&name)).and_then(|text| OwnStop::parse(&text));
            if let Some(state) = ServiceState::ALL.into_iter().find(|s| s.as_str() == last.what) {
                entry.recorded = Some(state);
                entry.since = last.at;
                if matches!(state, ServiceState::Ready | ServiceState::Unhealthy) {
                    entry.memory.was_ready(Now::read().moment);
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
        let mut second = self.p.second.clone();
        let mut tls = self.p.tls.clone();
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
                    self.handle(word);
                    // Everything that is already said is heard before the next decision.
                    while let Ok(word) = self.rx.try_recv() {
                        self.handle(word);
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
                Ok(()) = second.changed() => {}
                Ok(()) = tls.changed() => {}
                _ = resync.tick() => self.look(),
                () = tokio::time::sleep(wake) => {}
            }
        }
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

    fn handle(&mut self, word: TaskMsg) {
        match word {
            TaskMsg::Observed(name, seen) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                let asked_at = entry.observing.take();
                match seen {
                    Ok(seen) => {
                        entry.seen = Some(seen);
                        entry.correct();
                        entry.stale = false;
                        entry.looked_at = asked_at.or(entry.looked_at);
                        if let Some(at) = asked_at.filter(|_| entry.running().is_some()) {
                            entry.ran_at = Now::read().wall_at(at);
                        }
                        let again = entry.running().map(|(_, at)| at);
                        if let (Some(own), Some(again)) = (&mut entry.own_stop, again)
                            && own.is_over(again, Timestamp::now())
                        {
                            self.p.journal.set_memory(stopping_key(&name), "");
                        }
                    }
                    // What was seen last is shown on; the engine's own view says that it is away.
                    Err(reason) => {
                        entry.stale = true;
                        tracing::debug!(service = name, %reason, "cannot be observed");
                    }
                }
                if std::mem::take(&mut entry.look_again) {
                    self.observe(&name);
                    return;
                }
                self.mind_prober(&name);
            }
            TaskMsg::FirstProcessEnded(name, which) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.over = Some(which);
                entry.correct();
                self.mind_prober(&name);
            }
            TaskMsg::Listed(found) => {
                self.listing = false;
                self.listed(found);
            }
            TaskMsg::Health(name, key, health) => {
                if let Some(entry) = self.entries.get_mut(&name)
                    && entry.prober.as_ref().is_some_and(|p| p.key == key)
                {
                    entry.health = health;
                }
            }
            TaskMsg::Network(name, _, decided_at, Ok(())) => self.network_found(&name, decided_at),
            TaskMsg::Network(name, action, _, failed) => self.done(&name, &action, failed),
            TaskMsg::Done(name, action, result) => self.done(&name, &action, result),
            TaskMsg::SweepDue(volume) => self.sweep(&volume),
            TaskMsg::Swept(swept) => {
                self.sweeping = false;
                if let Some(swept) = swept {
                    self.note(RecordKind::Action, None, "segments", &swept.in_words());
                }
            }
            TaskMsg::Reload(result, reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.reloaded(result));
            }
            TaskMsg::Replanned(gpus, result) => self.replanned(gpus, result),
            TaskMsg::Told(name, result) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.acting = false;
                match result {
                    Ok(_) => {
                        entry.memory.death_reported();
                        entry.tell_tries = 0;
                    }
                    Err(reason) => {
                        tracing::debug!(service = name, reason, "the GCS could not be told");
                        entry.tell_tries += 1;
                        entry.not_before = Some(Moment::now().plus(AFTER_FAILURE));
                        if entry.tell_tries >= TELL_TRIES {
                            entry.memory.death_reported();
                            entry.tell_tries = 0;
                        }
                    }
                }
                self.observe(&name);
            }
        }
    }

    /// Decides for every service, again while states change: what becomes ready lets others start at once.
    fn settle(&mut self) {
        self.set_endpoint();
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
            self.entries.retain(|_, e| {
                e.spec.is_some() || e.acting || e.observing.is_some() || e.seen != Some(Observed::Absent)
            });
        }
    }

    pub(super) fn note(&self, kind: RecordKind, service: Option<&str>, what: &str, reason: &str) {
        self.p.journal.record(Record {
            at: Timestamp::now(),
            service: service.map(str::to_owned),
            kind,
            what: what.to_owned(),
            reason: reason.to_owned(),
        });
    }
}
