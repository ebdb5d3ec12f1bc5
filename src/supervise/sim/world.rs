//! The outside of a simulated lab: an engine with its containers, Ray's GCS, and whoever answers probes.
//!
//! Everything is in one [`World`] behind a lock that is never held across an await. What takes time is moved on by
//! [`World::tick`]; what must never happen is checked where labd's calls arrive, and written to `violations`.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use hyper::Method;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{
    engine::{
        Engine, EngineError, EngineEvent, EngineEventKind, ListedContainer, Observed, ObservedContainer, Patience, Ran,
        RunState, events::Source,
    },
    gpus::{Gpu, Inventory, Unit},
    ray::{self, Endpoint, Gcs, RayNode, RayView},
    secret::Secret,
    services::ray_head,
    snapshot::{EngineView, GpuState},
    spec::{ContainerSpec, Kind, NetworkSpec, Plan, Requirement},
    supervise::health_check::Ask,
    time::{Timestamp, simulated},
};

/// Time for which a container has to be well to be blameless: no health check can still be of another opinion.
const BLAMELESS: Duration = Duration::from_secs(15);
/// Time between two steps of the world.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Time in truth. The lab's wall clock ([`Timestamp::now`]) may be set; what the engine and Ray say goes by that one,
/// and everything that takes time goes by this one.
pub(super) fn now() -> Timestamp {
    simulated::steady().unwrap_or_default()
}

/// Random numbers from a seed: SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Number from `from` up to and without `to`.
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from).max(1)
    }

    pub(super) fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.between(0, from.len() as u64) as usize].clone()
    }
}

/// Whether and how the engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    On,
    /// Accepts calls and does not answer them.
    Mute,
    /// Accepts no new calls, and its events still come: it stops its containers.
    PlannedStop,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Run {
    Created,
    Running {
        since: Timestamp,
    },
    Exited {
        code: i64,
        oom: bool,
        at: Timestamp,
    },
    /// A container that the engine could not remove.
    Dead,
}

#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) service: String,
    pub(super) ours: bool,
    /// Whether its files were put in.
    whole: bool,
    /// Network that it was made for.
    network: Option<u64>,
    pub(super) hash: String,
    hard: String,
    kind: Option<Kind>,
    address: Ipv4Addr,
    ports: BTreeMap<u16, u16>,
    stop_timeout: Duration,
    pub(super) run: Run,
    /// Time at which that began, by the wall clock of that time: what the engine says.
    pub(super) stamp: Timestamp,
    /// End of the run before this one, in the same way.
    last_end: Option<Timestamp>,
    /// Time from start to the first answer, in this run.
    boot: Duration,
    pub(super) frozen: bool,
    pub(super) paused: bool,
    /// Whether its GPU cannot be opened inside it any more.
    pub(super) blind: bool,
    /// Whether its token is wrong: it never joins, and never ends.
    pub(super) deaf: bool,
    /// Whether its node was in the cluster in this run.
    joined: bool,
    /// Time since which its node is not in the cluster although it was.
    orphan_since: Option<Timestamp>,
    /// Time at which a stop that was asked for takes effect.
    stops_at: Option<Timestamp>,
    /// Time at which it ends by itself.
    pub(super) dies_at: Option<Timestamp>,
    /// Time until which it was not well.
    unwell_until: Timestamp,
    /// Whether the stop under way is somebody's `docker stop`.
    by_hand: bool,
}

impl Container {
    /// Container as the engine reports it.
    fn seen(&self) -> ObservedContainer {
        ObservedContainer {
            id: self.id.clone(),
            spec_hash: self.hash.clone(),
            hard_hash: self.hard.clone(),
            run: match self.run {
                Run::Created => RunState::Created,
                Run::Running { .. } if self.paused => RunState::Paused,
                Run::Running { .. } => RunState::Running { started_at: self.stamp },
                Run::Exited { code, oom, .. } => {
                    RunState::Exited { code, oom, finished_at: self.stamp, error: String::new() }
                }
                Run::Dead => RunState::Dead,
            },
            last_end: self.last_end.filter(|_| self.running().is_some()),
            pid: None,
            ports: if self.running().is_some() { self.ports.clone() } else { BTreeMap::new() },
            address: self.running().map(|_| self.address),
        }
    }

    pub(super) fn running(&self) -> Option<Timestamp> {
        match self.run {
            Run::Running { since } => Some(since),
            _ => None,
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stops_at.is_some()
    }

    /// Whether Ray counts it as a node; the head is one too.
    fn in_cluster(&self) -> bool {
        self.kind.is_some_and(|k| k.is_ray_node() || k == Kind::RAY_HEAD)
    }

    fn works(&self, now: Timestamp) -> bool {
        !self.frozen && !self.paused && self.running().is_some_and(|since| now >= since.plus(self.boot))
    }
}

/// Node in the GCS's memory.
#[derive(Debug, Clone)]
struct Node {
    id: u64,
    address: Ipv4Addr,
    /// Run of a container that this node is: container and start.
    run: (String, Timestamp),
    /// Start, by the wall clock of that time.
    started_at: Timestamp,
    alive: bool,
    is_head: bool,
    /// Time since which its raylet does not answer.
    silent_since: Option<Timestamp>,
    /// Whether it left the cluster while its container goes on.
    lingers: bool,
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) plan: Plan,
    pub(super) containers: Vec<Container>,
    nodes: Vec<Node>,
    /// Whether the head keeps its nodes over a crash.
    pub(super) persist: bool,
    pub(super) power: Power,
    /// Number of the engine's present life.
    life: u64,
    counter: u64,
    /// Events of this life, as the engine keeps them for those who ask later.
    log: Vec<EngineEvent>,
    listeners: Vec<mpsc::UnboundedSender<EngineEvent>>,
    pub(super) slow_until: Timestamp,
    pub(super) deaf_until: Timestamp,
    /// Number of times that a container was asked for.
    pub(super) observations: usize,
    pub(super) busy_until: Timestamp,
    /// GPUs of the node, as labd is told of them.
    pub(super) gpus: watch::Sender<Arc<Inventory>>,
    /// Workers whose GPU is unusable, with the time since when; and those that got theirs back.
    barred: BTreeMap<String, Timestamp>,
    released: BTreeMap<String, Timestamp>,
    /// Workers whose GPU the driver healed, with the time of that: they are recreated once.
    healed: BTreeMap<String, Timestamp>,
    /// Time in which labd does not know which GPUs there are: from when to when.
    gpus_unchecked: Option<(Timestamp, Timestamp)>,
    /// Number of next starts that fail, by service.
    pub(super) start_fails: BTreeMap<String, u32>,
    /// Workers that train: from when to when.
    pub(super) works: BTreeMap<String, (Timestamp, Timestamp)>,
    pub(super) create_fails: BTreeMap<String, u32>,
    /// Number of next creates that are carried out and not answered, by service: nobody puts the files in.
    pub(super) create_lost: BTreeMap<String, u32>,
    pub(super) stop_fails: BTreeMap<String, u32>,
    pub(super) remove_fails: BTreeMap<String, u32>,
    /// Network of the lab, while there is one: somebody may prune it, and the next one is another.
    pub(super) network: Option<u64>,
    /// Services that a person asked labd to restart, lately.
    pub(super) restart_asked: BTreeMap<String, Timestamp>,
    /// Services held beyond doubt, with the time since when.
    pub(super) held: BTreeMap<String, Timestamp>,
    /// Last `docker stop` of each service that was carried out: container and time.
    pub(super) hand_stops: BTreeMap<String, (String, Timestamp)>,
    /// Services stopped by hand at some time: they may rightly be held.
    pub(super) touched: BTreeMap<String, Timestamp>,
    /// Time since which the GCS has not answered.
    gcs_down_since: Option<Timestamp>,
    /// Time at which labd last had an answer of the GCS.
    gcs_answered: Timestamp,
    /// Number of times that the head lost its state.
    pub(super) clusters: u64,
    /// Times at which any container ended.
    pub(super) deaths: Vec<Timestamp>,
    /// Times at which the clock was set.
    pub(super) clock_steps: Vec<Timestamp>,
    pub(super) violations: Vec<String>,
    pub(super) trace: Vec<String>,
    pub(super) begun: Timestamp,
}

/// Handle on the world.
#[derive(Clone)]
pub(super) struct Outside(pub(super) Arc<Mutex<World>>);

impl Outside {
    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan, gpus: &[Gpu]) -> Self {
        let now = now();
        let mut dice = Dice::new(seed);
        Self {
            persist: !dice.one_in(4),
            dice,
            plan,
            containers: Vec::new(),
            nodes: Vec::new(),
            power: Power::On,
            life: 0,
            counter: 0,
            log: Vec::new(),
            listeners: Vec::new(),
            slow_until: now,
            deaf_until: now,
            observations: 0,
            busy_until: now,
            gpus: watch::Sender::new(Arc::new(Inventory {
                units: gpus.iter().cloned().map(Unit::new).collect(),
                settled: true,
                ..Inventory::default()
            })),
            barred: BTreeMap::new(),
            released: BTreeMap::new(),
            healed: BTreeMap::new(),
            gpus_unchecked: None,
            start_fails: BTreeMap::new(),
            works: BTreeMap::new(),
            create_fails: BTreeMap::new(),
            create_lost: BTreeMap::new(),
            stop_fails: BTreeMap::new(),
            remove_fails: BTreeMap::new(),
            network: None,
            restart_asked: BTreeMap::new(),
            held: BTreeMap::new(),
            hand_stops: BTreeMap::new(),
            touched: BTreeMap::new(),
            gcs_down_since: Some(now),
            gcs_answered: now,
            clusters: 0,
            deaths: Vec::new(),
            clock_steps: Vec::new(),
            violations: Vec::new(),
            trace: Vec::new(),
            begun: now,
        }
    }

    pub(super) fn say(&mut self, text: impl std::fmt::Display) {
        let at = now().since(self.begun);
        self.trace.push(format!("{:>8.3} {text}", at.as_secs_f64()));
    }

    pub(super) fn never(&mut self, text: impl std::fmt::Display) {
        self.say(format_args!("VIOLATION: {text}"));
        let at = now().since(self.begun);
        self.violations.push(format!("at {:.3} s: {text}", at.as_secs_f64()));
    }

    pub(super) fn of(&self, service: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.service == service)
    }

    pub(super) fn of_mut(&mut self, service: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.service == service)
    }

    fn kind(&self, service: &str) -> Option<Kind> {
        self.plan.service(service).map(|s| s.kind)
    }

    fn hash(&self, service: &str) -> Option<String> {
        self.plan.service(service).map(|s| s.container.hash())
    }

    // ---- the engine ----

    fn event(&mut self, c: &str, id: &str, what: EngineEventKind) {
        let nudge = EngineEvent { service: c.to_owned(), id: id.to_owned(), what, at: Timestamp::now() };
        if !matches!(what, EngineEventKind::Other) {
            self.say(format_args!("event {c} {what:?}"));
        }
        self.log.push(nudge.clone());
        if now() >= self.deaf_until {
            self.listeners.retain(|l| l.send(nudge.clone()).is_ok());
        }
    }

    /// Lets the kernel kill a process of a container for memory; the container lives on.
    pub(super) fn runs_out_of_memory(&mut self, service: &str) {
        if let Some(id) = self.of(service).filter(|c| c.running().is_some()).map(|c| c.id.clone()) {
            self.event(service, &id, EngineEventKind::OutOfMemory);
        }
    }

    pub(super) fn exit(&mut self, service: &str, code: i64, oom: bool) {
        let at = now();
        if oom {
            self.runs_out_of_memory(service);
        }
        let Some(c) = self.of_mut(service).filter(|c| c.running().is_some()) else { return };
        (c.run, c.stamp) = (Run::Exited { code, oom, at }, Timestamp::now());
        c.last_end = Some(c.stamp);
        self.deaths.push(at);
        let Some(c) = self.of_mut(service) else { return };
        (c.frozen, c.paused, c.stops_at, c.dies_at) = (false, false, None, None);
        let id = c.id.clone();
        self.say(format_args!("{service} exits {code}"));
        self.event(service, &id, EngineEventKind::Other);
    }

    /// Sets the state in which a worker's GPU is found.
    pub(super) fn set_gpu(&mut self, worker: &str, state: GpuState) {
        if state == GpuState::Ok {
            self.barred.remove(worker);
            self.released.insert(worker.to_owned(), now());
        } else {
            self.barred.entry(worker.to_owned()).or_insert(now());
        }
        self.gpus.send_modify(|inventory| {
            let slot = worker.strip_prefix("ray-worker-").and_then(|n| n.parse().ok());
            let units = &mut Arc::make_mut(inventory).units;
            units.iter_mut().filter(|unit| Some(unit.gpu.slot) == slot).for_each(|unit| unit.state = state);
        });
    }

    /// Lets the driver heal a worker's GPU: what was on it is void.
    pub(super) fn heal_gpu(&mut self, worker: &str) {
        self.healed.insert(worker.to_owned(), now());
        let slot = crate::spec::worker_slot(worker);
        self.gpus.send_modify(|inventory| {
            let units = &mut Arc::make_mut(inventory).units;
            let void = Some((Timestamp::now(), "its GPU had xid-94: a memory error hit one program".to_owned()));
            units.iter_mut().filter(|unit| Some(unit.gpu.slot) == slot).for_each(|unit| unit.restart.clone_from(&void));
        });
    }

    /// Lets labd not know which GPUs there are until then.
    pub(super) fn check_gpus_at(&mut self, at: Timestamp) {
        self.gpus_unchecked = Some((now(), at));
        self.gpus.send_modify(|inventory| Arc::make_mut(inventory).settled = false);
    }

    /// Sends a signal, as `docker kill` does.
    pub(super) fn signal(&mut self, service: &str, signal: i32) {
        let Some(id) = self.of(service).filter(|c| c.running().is_some()).map(|c| c.id.clone()) else { return };
        self.event(service, &id, EngineEventKind::Signal(signal));
        if signal == 9 {
            self.exit(service, 137, false);
            return;
        }
        let ends = now().plus(self.dice.ms(10, 900));
        if let Some(c) = self.of_mut(service) {
            c.dies_at = Some(ends);
        }
    }

    /// Begins a `docker stop`, or labd's own.
    pub(super) fn begin_stop(&mut self, service: &str, by_hand: bool) {
        let now = now();
        let takes = self.dice.ms(20, 3_000);
        let Some(c) = self.of_mut(service).filter(|c| c.running().is_some()) else { return };
        if c.stops_at.is_some() {
            c.by_hand &= by_hand;
            return;
        }
        c.by_hand = by_hand;
        // A frozen or paused process cannot act on SIGTERM.
        let takes = if c.frozen || c.paused { c.stop_timeout } else { takes.min(c.stop_timeout) };
        c.stops_at = Some(now.plus(takes));
        let id = c.id.clone();
        // What it does is over from now on.
        self.deaths.push(now);
        self.event(service, &id, EngineEventKind::Signal(15));
    }

    pub(super) fn begin_start(&mut self, service: &str) -> Result<(), EngineError> {
        let now = now();
        let (quick, slow) = (self.dice.ms(200, 3_000), self.dice.ms(1_500, 5_000));
        let Some(c) = self.of_mut(service) else { return Err(EngineError::NotFound("no such container".into())) };
        if c.running().is_some() {
            return Ok(());
        }
        if c.run == Run::Dead {
            return Err(EngineError::Conflict("container is marked for removal and cannot be started".into()));
        }
        (c.run, c.stamp) = (Run::Running { since: now }, Timestamp::now());
        c.boot = if c.in_cluster() { slow } else { quick };
        (c.joined, c.orphan_since, c.stops_at, c.dies_at) = (false, None, None, None);
        let id = c.id.clone();
        self.say(format_args!("{service} runs"));
        self.event(service, &id, EngineEventKind::Other);
        Ok(())
    }

    pub(super) fn remove(&mut self, service: &str) {
        let Some(i) = self.containers.iter().position(|c| c.service == service) else { return };
        if self.containers[i].running().is_some() {
            let id = self.containers[i].id.clone();
            self.event(service, &id, EngineEventKind::Signal(9));
            self.exit(service, 137, false);
        }
        let c = self.containers.remove(i);
        self.say(format_args!("{service} is removed"));
        self.event(service, &c.id, EngineEventKind::Other);
    }

    /// Lets the engine begin to remove a container and fail.
    pub(super) fn half_remove(&mut self, service: &str) {
        self.exit(service, 137, false);
        if let Some(c) = self.of_mut(service) {
            c.run = Run::Dead;
        }
        self.say(format_args!("{service} is dead: it cannot be removed"));
    }

    pub(super) fn add(&mut self, service: &str, spec: &ContainerSpec, ours: bool) {
        self.counter += 1;
        let ports = spec.ports.iter().enumerate();
        let base = 20_000 + (self.counter % 4_000) as u16 * 10;
        let c = Container {
            id: format!("c{}", self.counter),
            service: service.to_owned(),
            ours,
            whole: true,
            network: self.network,
            hash: spec.hash(),
            hard: spec.hard_hash(),
            kind: self.kind(service),
            address: spec.address,
            ports: ports.map(|(i, p)| (p.container, base + i as u16)).collect(),
            stop_timeout: spec.stop_timeout,
            run: Run::Created,
            stamp: Timestamp::now(),
            last_end: None,
            boot: Duration::ZERO,
            frozen: false,
            paused: false,
            blind: false,
            deaf: false,
            joined: false,
            orphan_since: None,
            stops_at: None,
            dies_at: None,
            unwell_until: now(),
            by_hand: false,
        };
        let id = c.id.clone();
        self.containers.push(c);
        self.event(service, &id, EngineEventKind::Other);
    }

    /// Ends the engine: its events end, and it forgets them.
    pub(super) fn power_off(&mut self) {
        self.power = Power::Off;
        self.life += 1;
        self.log.clear();
        self.listeners.clear();
        self.say("the engine is off");
    }

    // ---- the passing of time ----

    pub(super) fn tick(&mut self) {
        let now = now();
        if self.gpus_unchecked.take_if(|(_, until)| now >= *until).is_some() {
            self.gpus.send_modify(|inventory| Arc::make_mut(inventory).settled = true);
        }
        let services: Vec<String> = self.containers.iter().map(|c| c.service.clone()).collect();
        for service in &services {
            let Some(c) = self.of(service) else { continue };
            if c.dies_at.is_some_and(|at| now >= at) && !c.frozen {
                self.exit(service, 1, false);
            }
            let Some(c) = self.of(service) else { continue };
            if c.running().is_some() && c.stops_at.is_some_and(|at| now >= at) {
                let (code, id, by_hand) = (if c.frozen { 137 } else { 143 }, c.id.clone(), c.by_hand);
                self.exit(service, code, false);
                self.event(service, &id, EngineEventKind::Stopped);
                if by_hand {
                    self.hand_stops.insert(service.clone(), (id, Timestamp::now()));
                }
            }
        }
        self.tick_cluster(now);
        let well: Vec<bool> = self.containers.iter().map(|c| self.is_well(c, now)).collect();
        for (c, well) in self.containers.iter_mut().zip(well) {
            if !well {
                c.unwell_until = now;
            }
        }
    }

    /// Whether its contract holds in truth.
    fn is_well(&self, c: &Container, now: Timestamp) -> bool {
        let node = c.kind.is_some_and(Kind::is_ray_node) && c.kind != Some(Kind::RAY_HEAD);
        let run = (c.id.clone(), c.running().unwrap_or_default());
        c.works(now)
            && !c.blind
            && c.stops_at.is_none()
            && (!node || self.nodes.iter().any(|n| n.alive && n.run == run))
    }

    pub(super) fn serves(&self, service: &str) -> bool {
        self.of(service).is_some_and(|c| c.ours && self.is_well(c, now()))
    }

    /// Time since which a worker has been training.
    fn works_since(&self, service: &str) -> Option<Timestamp> {
        let (from, to) = self.works.get(service)?;
        (*to > now() && self.serves(service)).then_some(*from)
    }

    pub(super) fn gcs_up(&self, now: Timestamp) -> bool {
        self.containers.iter().any(|c| c.kind == Some(Kind::RAY_HEAD) && c.ours && c.works(now))
    }

    fn tick_cluster(&mut self, now: Timestamp) {
        let up = self.gcs_up(now);
        match (up, self.gcs_down_since) {
            (true, Some(_)) => {
                self.gcs_down_since = None;
                if !self.persist {
                    // A new cluster knows nobody.
                    self.lose_cluster();
                }
                self.say("the GCS is up");
            }
            (false, None) => {
                self.gcs_down_since = Some(now);
                self.say("the GCS is down");
            }
            _ => {}
        }
        let mut dying = Vec::new();
        for i in 0..self.containers.len() {
            let c = &self.containers[i];
            let (Some(since), true) = (c.running(), c.in_cluster()) else { continue };
            let run = (c.id.clone(), since);
            let node = self.nodes.iter().position(|n| n.run == run);
            let can_join = up && c.works(now) && !c.deaf;
            match node {
                None if can_join && !c.joined => {
                    let (address, is_head) = (c.address, c.kind == Some(Kind::RAY_HEAD));
                    for old in self.nodes.iter_mut().filter(|n| n.address == address) {
                        old.alive = false;
                    }
                    self.counter += 1;
                    self.nodes.push(Node {
                        id: self.counter,
                        address,
                        run,
                        started_at: Timestamp::now().minus(now.since(since.plus(c.boot / 2))),
                        alive: true,
                        is_head,
                        silent_since: None,
                        lingers: false,
                    });
                    self.containers[i].joined = true;
                    let service = self.containers[i].service.clone();
                    self.say(format_args!("{service} joins"));
                }
                None if c.joined && up && c.kind != Some(Kind::RAY_HEAD) => {
                    // The cluster that it was in is no more; it finds that out after a minute.
                    let since = *self.containers[i].orphan_since.get_or_insert(now);
                    if now.since(since) >= Duration::from_mins(1) {
                        dying.push(i);
                    }
                }
                Some(n) if !self.nodes[n].alive && !self.nodes[n].lingers && c.works(now) => dying.push(i),
                _ => {}
            }
            // Without a GCS for a minute a raylet gives up.
            if c_gives_up(&self.containers[i], self.gcs_down_since, now) {
                dying.push(i);
            }
        }
        for i in dying {
            let service = self.containers[i].service.clone();
            self.exit(&service, 1, false);
        }
        if !up {
            return;
        }
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let c = self.containers.iter().find(|c| c.id == node.run.0 && c.running() == Some(node.run.1));
            let answers = c.is_some_and(|c| !c.frozen && !c.paused);
            let patience = if c.is_some() { Duration::from_mins(1) } else { Duration::from_secs(12) };
            let node = &mut self.nodes[n];
            if answers {
                node.silent_since = None;
            } else if now.since(*node.silent_since.get_or_insert(now)) >= patience {
                node.alive = false;
            }
        }
    }

    /// Calls a living node dead, as somebody might by hand. With `lingers` its container does not take note.
    pub(super) fn unregister_by_hand(&mut self, service: &str, lingers: bool) {
        let Some(c) = self.of(service) else { return };
        let run = (c.id.clone(), c.running().unwrap_or_default());
        for node in self.nodes.iter_mut().filter(|n| n.run == run) {
            node.alive = false;
            node.lingers = lingers;
        }
    }

    /// Damages the head's state, so that it begins with an empty one.
    pub(super) fn lose_cluster(&mut self) {
        self.nodes.clear();
        self.clusters += 1;
    }

    /// Ray's id of the node that this service's container is in its present run, while it is ALIVE.
    pub(super) fn node_of(&self, service: &str) -> Option<u64> {
        let c = self.of(service)?;
        let run = (c.id.clone(), c.running()?);
        self.nodes.iter().find(|n| n.alive && n.run == run).map(|n| n.id)
    }

    /// Whether this run of a container goes on.
    pub(super) fn is_run(&self, (id, since): &(String, Timestamp)) -> bool {
        self.containers.iter().any(|c| c.id == *id && c.running() == Some(*since))
    }

    pub(super) fn node_alive(&self, id: u64) -> bool {
        self.nodes.iter().any(|n| n.alive && n.id == id)
    }

    /// View of Ray that the GCS gives.
    fn ray_view(&mut self, set_endpoint: Option<&Endpoint>) -> (Gcs, Vec<RayNode>) {
        let now = now();
        let Some(endpoint) = set_endpoint else { return (Gcs::Unknown, Vec::new()) };
        let head = self.containers.iter().find(|c| c.ours && c.kind == Some(Kind::RAY_HEAD));
        let there = head.is_some_and(|c| c.ports.get(&ray_head::GCS_PORT) == Some(&endpoint.gcs.port()));
        if !there || !self.gcs_up(now) {
            return (Gcs::Unreachable { reason: "does not answer".into() }, Vec::new());
        }
        self.gcs_answered = now;
        let busy: Vec<Ipv4Addr> =
            self.containers.iter().filter(|c| self.works_since(&c.service).is_some()).map(|c| c.address).collect();
        let nodes: Vec<RayNode> = self
            .nodes
            .iter()
            .map(|n| RayNode {
                id: n.id.to_be_bytes().to_vec(),
                address: n.address,
                port: 0,
                alive: n.alive,
                is_head: n.is_head,
                started_at: n.started_at,
                name: String::new(),
                resources: BTreeMap::from([("GPU".to_owned(), 1.0)]),
                available: BTreeMap::from([("GPU".to_owned(), if busy.contains(&n.address) { 0.0 } else { 1.0 })]),
                labels: BTreeMap::new(),
            })
            .collect();
        (Gcs::Reachable, ray::newest(nodes, Timestamp::now()))
    }

    fn unregister(&mut self, address: Ipv4Addr, before: Timestamp) -> Result<usize, String> {
        let now = now();
        if !self.gcs_up(now) {
            return Err("the GCS does not answer".into());
        }
        let mut told = 0;
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let old = ray::began_before(node.started_at, before, Timestamp::now());
            if !node.alive || node.is_head || node.address != address || !old {
                continue;
            }
            let run = node.run.clone();
            if self.containers.iter().any(|c| c.id == run.0 && c.running() == Some(run.1)) {
                self.never(format_args!("a living node at {address} was called dead"));
            }
            self.nodes[n].alive = false;
            told += 1;
        }
        Ok(told)
    }

    // ---- what must never be ----

    /// Checks, when labd is about to end a container, that it may.
    fn check_end(&mut self, how: &str, id: &str) {
        let now = now();
        let Some(c) = self.containers.iter().find(|c| c.id == id) else { return };
        let (service, running) = (c.service.clone(), c.running().is_some());
        let blameless = running && self.is_well(c, now) && now.since(c.unwell_until) >= BLAMELESS;
        let unchanged = Some(&c.hash) == self.hash(&service).as_ref();
        let ours = c.ours;
        let lately = |at: Option<&Timestamp>| at.is_some_and(|&at| now.since(at) <= Duration::from_mins(2));
        let barred = self.barred.contains_key(&service) || lately(self.released.get(&service));
        let barred = barred || lately(self.healed.get(&service));
        let asked = barred || lately(self.restart_asked.get(&service)) || lately(self.touched.get(&service));
        self.say(format_args!("labd: {how} {service}"));
        if !ours {
            self.never(format_args!("{how} of {service}, which is somebody else's"));
        }
        if blameless && unchanged && !asked {
            self.never(format_args!("{how} of {service}, which is well and was left alone"));
        }
        let works = self.works_since(&service).is_some_and(|from| now.since(from) >= Duration::from_secs(3));
        if blameless && works && !asked {
            self.never(format_args!("{how} of {service}, which trains, for settings that can wait"));
        }
        if how == "remove" && running && blameless {
            self.never(format_args!("removal of {service} while it runs"));
        }
    }

    fn check_start(&mut self, id: &str) {
        let now = now();
        let Some(c) = self.containers.iter().find(|c| c.id == id) else { return };
        let (service, whole) = (c.service.clone(), c.whole);
        self.say(format_args!("labd: start {service}"));
        if !whole {
            self.never(format_args!("{service} was started without its files"));
        }
        if self.held.get(&service).is_some_and(|&since| now.since(since) >= Duration::from_millis(50)) {
            self.never(format_args!("{service} was started although it is held"));
        }
        if self.barred.get(&service).is_some_and(|&since| now.since(since) >= Duration::from_millis(50)) {
            self.never(format_args!("{service} was started although its GPU is unusable"));
        }
        let unchecked = self.gpus_unchecked.is_some_and(|(since, _)| now.since(since) >= Duration::from_millis(50));
        if unchecked && service.starts_with("ray-worker-") {
            self.never(format_args!("{service} was started before its GPU was looked for"));
        }
        let down = self.gcs_down_since.filter(|_| !self.gcs_up(now));
        let long_down = down.is_some_and(|at| now.since(at.max(self.gcs_answered)) >= Duration::from_secs(5));
        let needs = self.plan.service(&service).map(|s| s.requires.clone()).unwrap_or_default();
        if needs.contains(&Requirement::Gcs) && long_down {
            self.never(format_args!("{service} was started without the GCS"));
        }
    }
}

fn c_gives_up(c: &Container, gcs_down_since: Option<Timestamp>, now: Timestamp) -> bool {
    let patience = Duration::from_mins(1);
    let away = gcs_down_since.is_some_and(|at| now.since(at) >= patience);
    let ran = c.running().is_some_and(|at| now.since(at) >= patience);
    c.kind != Some(Kind::RAY_HEAD) && away && ran && !c.frozen && !c.paused
}

fn no_network() -> EngineError {
    EngineError::NotFound("network lab not found".into())
}

fn unreachable() -> EngineError {
    EngineError::Unreachable("no container engine answers".into())
}

impl Outside {
    /// Carries out one call to the engine: the way there, the effect, the way back; any of them may be lost.
    async fn call<T>(&self, effect: impl FnOnce(&mut World) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let half = || {
            let mut w = self.lock();
            if now() < w.slow_until { w.dice.ms(100, 1_500) } else { w.dice.ms(1, 15) }
        };
        sleep(half()).await;
        let life = self.answers(None).await?;
        let result = effect(&mut self.lock());
        sleep(half()).await;
        self.answers(Some(life)).await?;
        result
    }

    /// Waits while the engine does not answer; returns which life of it does.
    async fn answers(&self, life: Option<u64>) -> Result<u64, EngineError> {
        loop {
            {
                let w = self.lock();
                match w.power {
                    _ if life.is_some_and(|life| life != w.life) => return Err(unreachable()),
                    Power::On => return Ok(w.life),
                    Power::Off | Power::PlannedStop => return Err(unreachable()),
                    Power::Mute => {}
                }
            }
            sleep(TICK).await;
        }
    }

    fn by_id<'a>(w: &'a mut World, id: &str) -> Result<&'a mut Container, EngineError> {
        let found = w.containers.iter_mut().find(|c| c.id == id);
        found.ok_or_else(|| EngineError::NotFound("no such container".into()))
    }
}

impl Engine for Outside {
    async fn observe(&self, service: &str) -> Result<Observed, EngineError> {
        self.call(|w| {
            w.observations += 1;
            let Some(c) = w.of(service) else { return Ok(Observed::Absent) };
            if !c.ours {
                return Ok(Observed::Foreign { id: c.id.clone() });
            }
            Ok(Observed::Ours(c.seen()))
        })
        .await
    }

    async fn first_process_ended(&self, container: ObservedContainer) {
        let RunState::Running { started_at } = container.run else { return std::future::pending().await };
        let runs = |w: &World| {
            w.containers.iter().any(|c| c.id == container.id && c.running().is_some() && c.stamp == started_at)
        };
        while runs(&self.lock()) {
            sleep(TICK).await;
        }
    }

    async fn list(&self) -> Result<Vec<ListedContainer>, EngineError> {
        self.call(|w| {
            let listed = |c: &Container| {
                let seen = c.seen();
                ListedContainer {
                    service: c.service.clone(),
                    named: true,
                    id: seen.id,
                    state: seen.run.word().unwrap_or_default().to_owned(),
                    ports: seen.ports,
                    address: seen.address,
                }
            };
            Ok(w.containers.iter().filter(|c| c.ours).map(listed).collect())
        })
        .await
    }

    async fn ensure_network(&self, _: &NetworkSpec) -> Result<(), EngineError> {
        self.call(|w| {
            w.counter += 1;
            w.network.get_or_insert(w.counter);
            Ok(())
        })
        .await
    }

    async fn remove_network(&self) -> Result<(), EngineError> {
        self.call(|_| Ok(())).await
    }

    async fn create(&self, service: &str, spec: &ContainerSpec) -> Result<(), EngineError> {
        self.call(|w| {
            if w.of(service).is_some() {
                return Err(EngineError::Conflict("the name is taken".into()));
            }
            if let Some(n) = w.create_fails.get_mut(service).filter(|n| **n > 0) {
                *n -= 1;
                return Err(EngineError::Other("no space left on device".into()));
            }
            if w.network.is_none() {
                return Err(no_network());
            }
            w.say(format_args!("labd: create {service}"));
            w.add(service, spec, true);
            if let Some(n) = w.create_lost.get_mut(service).filter(|n| **n > 0) {
                *n -= 1;
                if let Some(c) = w.of_mut(service) {
                    c.whole = false;
                }
                return Err(EngineError::Unreachable("the container engine does not answer in time".into()));
            }
            Ok(())
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.lock().check_start(id);
        self.call(|w| {
            let service = Self::by_id(w, id)?.service.clone();
            if let Some(n) = w.start_fails.get_mut(&service).filter(|n| **n > 0) {
                *n -= 1;
                return Err(EngineError::Conflict("port 8265 is taken".into()));
            }
            if w.network.is_none() || w.of(&service).is_some_and(|c| c.network != w.network) {
                return Err(no_network());
            }
            w.begin_start(&service)
        })
        .await
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        self.lock().check_end("stop", id);
        self.call(|w| {
            let service = Self::by_id(w, id)?.service.clone();
            if let Some(n) = w.stop_fails.get_mut(&service).filter(|n| **n > 0) {
                *n -= 1;
                return Err(EngineError::Other(
                    "tried to stop the container, but did not receive an exit event".into(),
                ));
            }
            w.begin_stop(&service, false);
            Ok(())
        })
        .await?;
        while self.lock().containers.iter().any(|c| c.id == id && c.stops_at.is_some()) {
            sleep(TICK).await;
        }
        self.call(|_| Ok(())).await
    }

    async fn kill(&self, id: &str) -> Result<(), EngineError> {
        self.lock().check_end("kill", id);
        self.call(|w| {
            let service = Self::by_id(w, id)?.service.clone();
            w.signal(&service, 9);
            Ok(())
        })
        .await
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.lock().check_end("remove", id);
        self.call(|w| {
            if let Ok(c) = Self::by_id(w, id) {
                let service = c.service.clone();
                if let Some(n) = w.remove_fails.get_mut(&service).filter(|n| **n > 0) {
                    *n -= 1;
                    w.half_remove(&service);
                    return Err(EngineError::Other("unable to remove filesystem: operation not permitted".into()));
                }
                w.remove(&service);
            }
            Ok(())
        })
        .await
    }

    /// Answers a check inside a container without dice: many of them happen in every history.
    async fn run(&self, id: &str, _: &[String], _: Patience) -> Result<Ran, EngineError> {
        let life = self.answers(None).await?;
        let busy = now() < self.lock().busy_until;
        sleep(if busy { Duration::from_secs(5) } else { TICK }).await;
        self.answers(Some(life)).await?;
        match Self::by_id(&mut self.lock(), id)? {
            c if c.running().is_none() || c.paused => Err(EngineError::Conflict("is not running".into())),
            c if c.blind => Ok(Ran::Ended { code: 3, output: "/dev/kfd: Operation not permitted\n".into() }),
            _ => Ok(Ran::Ended { code: 0, output: String::new() }),
        }
    }
}

impl Source for Outside {
    async fn view(&self) -> Result<EngineView, EngineError> {
        self.call(|_| Ok(EngineView::Reachable { version: "20.10".into(), api: "1.41".into() })).await
    }

    async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, EngineEvent>, EngineError> {
        let since = since.unwrap_or_else(Timestamp::now);
        self.answers(None).await?;
        let (tx, rx) = mpsc::unbounded_channel();
        let mut w = self.lock();
        for old in w.log.iter().filter(|n| n.at >= since) {
            let _ = tx.send(old.clone());
        }
        w.listeners.push(tx);
        drop(w);
        Ok(stream::unfold(rx, |mut rx| async { rx.recv().await.map(|nudge| (nudge, rx)) }).boxed())
    }
}

impl Ask for Outside {
    fn ask<'a>(
        &'a self,
        _: Method,
        url: &'a str,
        _: Option<(&'a str, &'a Secret)>,
    ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>> {
        Box::pin(async move {
            let port = url::Url::parse(url).ok().and_then(|u| u.port()).unwrap_or(0);
            let busy = {
                let mut w = self.lock();
                if now() < w.busy_until { w.dice.ms(500, 4_500) } else { w.dice.ms(1, 20) }
            };
            sleep(busy).await;
            loop {
                {
                    let w = self.lock();
                    let now = now();
                    let there =
                        w.containers.iter().find(|c| c.running().is_some() && c.ports.values().any(|&p| p == port));
                    match there {
                        Some(c) if c.frozen || c.paused => {}
                        Some(c) if c.works(now) && (c.kind != Some(Kind::RAY_HEAD) || w.gcs_up(now)) => return Ok(200),
                        _ => return Err("does not answer yet".into()),
                    }
                }
                sleep(TICK).await;
            }
        })
    }
}

impl Outside {
    /// Does what labd's Ray watcher does, without the network.
    pub(super) async fn watch_ray(
        self,
        mut set_endpoint: watch::Receiver<Option<Endpoint>>,
        tell: watch::Sender<Arc<RayView>>,
    ) {
        loop {
            let target = set_endpoint.borrow_and_update().clone();
            let (gcs, nodes) = self.lock().ray_view(target.as_ref());
            let pause = if gcs == Gcs::Reachable { 500 } else { 200 };
            tell.send_if_modified(|view| {
                let mut new = RayView::clone(view);
                if gcs == Gcs::Reachable {
                    new.jobs
                        .get_or_insert_with(|| Arc::new(ray::Jobs { asked_at: Timestamp::now(), jobs: Vec::new() }));
                }
                if gcs == Gcs::Reachable || gcs == Gcs::Unknown {
                    new.nodes = nodes;
                }
                new.gcs = gcs;
                let changed = new != **view;
                *view = Arc::new(new);
                changed
            });
            tokio::select! {
                biased;
                changed = set_endpoint.changed() => if changed.is_err() { return },
                () = sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    pub(super) fn hear_of_dead(
        &self,
        address: Ipv4Addr,
        before: Timestamp,
    ) -> BoxFuture<'static, Result<usize, String>> {
        let outside = self.clone();
        Box::pin(async move {
            let takes = outside.lock().dice.ms(2, 30);
            sleep(takes).await;
            outside.lock().unregister(address, before)
        })
    }
}
