//! Keeps the inventory: one task that hears the probes, the kernel's log, the engine and people, and tells what is known.
//!
//! What was attached to a worker's container is remembered over restarts, since any difference would recreate the
//! container: until the probes and the engine have answered, what was known last is what is planned with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use labd_gpu::{Device, Reading, pci::BusGpu};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Gpu, Inventory, Process, Unit, Vendor,
    attach::{self, EngineDevices},
    bus::{self, BusCheck, same_slot},
    bus_reads::{Answer, BusReads, Question},
    faults::{Action, Fault, Sign, look_up},
    handle::{Asked, Gpus, Order},
    health::{self, FaultState, Released},
    kmsg, simulate,
    slots::{self, Slots},
    unclaimed::{Start, Unclaimed},
    vendor,
};
use crate::{
    config::Config,
    control::Refusal,
    gpus::probe::{self, ProbeView},
    incident::Incident,
    journal::{Entry, Journal, Kind},
    node::numa::NumaNode,
    snapshot::{EngineView, GpuSource, GpuState, Notice, Severity},
    spec::worker_name,
    time::Timestamp,
};

/// Journal key for slots, what was attached to containers, and quarantines.
const MEMORY: &str = "gpus";
/// Silence of a probe after which it is not waited for any more: what is known is planned with.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the engine's answer; it is asked again when it is back.
const ENGINE: Duration = Duration::from_secs(10);
/// Time between two checks of what has no event: simulated readings, and how long something has lasted.
const TICK: Duration = Duration::from_secs(1);
/// Time in which the same fault of the same GPU is news only once, whatever happens on the kernel's log.
const SAID_AGAIN: Duration = Duration::from_mins(10);

/// Time after which readings without an error say that a GPU has started that the kernel said did not: one that was under
/// way then may still come.
const STARTED: Duration = Duration::from_secs(5);
/// Difference up to which the times of a line are the same, that of a labd that heard it and that of one that reads it
/// again: the kernel's clock is not corrected, and runs apart by some seconds in months.
const SAME_LINE: Duration = Duration::from_mins(1);

/// Parts that the manager is given.
pub struct Parts {
    /// Journal in which it remembers; absent where the inventory is wanted only once.
    pub journal: Option<Journal>,
    /// Whether GPUs are simulated, and how many.
    pub config: watch::Receiver<Arc<Config>>,
    /// `--simulate-gpus`, before the configuration.
    pub simulate: Option<u32>,
    /// Loads of the workers of simulated GPUs.
    pub loads: watch::Receiver<Arc<simulate::Loads>>,
    /// NUMA nodes of the machine, on which simulated GPUs are.
    pub numa: Vec<NumaNode>,
    /// Function that asks what the engine can attach.
    pub engine: Box<dyn Fn() -> EngineAnswer + Send + Sync>,
    /// Whether the engine answers.
    pub engine_view: watch::Receiver<EngineView>,
    /// Recent incidents, oldest first.
    pub incidents: watch::Receiver<Arc<Vec<Incident>>>,
    /// Root of the file system, `/` but for tests.
    pub root: PathBuf,
    /// Folder for files that probes need.
    pub dir: PathBuf,
}

/// Future answer of the engine: what it can attach.
pub type EngineAnswer = futures_util::future::BoxFuture<'static, Option<EngineDevices>>;

/// Memory of the manager that outlives the daemon.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Remembered {
    slots: Slots,
    gpus: Vec<Gpu>,
    #[serde(rename = "judge")]
    state: FaultState,
    /// Time of the newest line of the kernel: older ones were heard by the labd before.
    heard: Option<Timestamp>,
}

/// Starts the manager. The task ends with the last [`Gpus`] and receiver of its view.
pub fn spawn(parts: Parts) -> Gpus {
    start(parts, Vec::new())
}

/// Starts it with these probes, and with every vendor's own where there are none.
fn start(parts: Parts, probes: Vec<(Vendor, watch::Receiver<ProbeView>)>) -> Gpus {
    let told = parts.journal.as_ref().and_then(|j| j.memory(MEMORY));
    let remembered: Remembered = match told.map(|text| serde_json::from_str(&text)) {
        Some(Ok(remembered)) => remembered,
        // From another labd: the GPUs are found again, and a fault that lasts shows itself again.
        Some(Err(error)) => {
            tracing::warn!(%error, "what was remembered of the GPUs cannot be read");
            Remembered::default()
        }
        None => Remembered::default(),
    };
    let (orders, asked) = mpsc::channel(8);
    let (tell, view) = watch::channel(Arc::new(Inventory::default()));
    let place = probe::Place { root: parts.root.clone(), dir: parts.dir.clone() };
    let expected = vendor::on_bus(&place.root).into_iter().map(|(def, _)| def.vendor).collect();
    let bus_reads = BusReads::new(&place.root);
    let mut manager = GpuManager {
        reported_until: remembered.heard,
        parts,
        place,
        remembered,
        kept: None,
        probes,
        expected,
        engine: None,
        ask_engine: true,
        began: Instant::now(),
        said: BTreeMap::new(),
        unclaimed: Unclaimed::default(),
        missing_since: BTreeMap::new(),
        bus: BusCheck::default(),
        bus_reads,
        bus_asked: None,
        on_bus: Vec::new(),
        bus_gpus: None,
        undivided: Vec::new(),
        incidents_heard: Timestamp::now(),
        kernel: None,
        notices: Vec::new(),
        tell,
    };
    manager.mind_config();
    manager.tell_all(Timestamp::now());
    tokio::spawn(manager.run(asked));
    Gpus { orders, view }
}

struct GpuManager {
    parts: Parts,
    remembered: Remembered,
    /// What the journal has of it.
    kept: Option<Remembered>,
    place: probe::Place,
    probes: Vec<(Vendor, watch::Receiver<ProbeView>)>,
    /// Vendors whose hardware was there at the start: their probes will answer.
    expected: Vec<Vendor>,
    /// Devices that the engine can attach, as it said last.
    engine: Option<EngineDevices>,
    /// Whether the engine is to be asked again.
    ask_engine: bool,
    began: Instant,
    /// Time at which each fault of each GPU was last reported.
    said: BTreeMap<(String, &'static str), Timestamp>,
    /// Time since which a GPU is missing, by id.
    missing_since: BTreeMap<String, Timestamp>,
    /// GPUs on the bus that do not answer; when the bus was last asked for, and what is said of them.
    bus: BusCheck,
    bus_reads: BusReads,
    bus_asked: Option<Instant>,
    on_bus: Vec<Notice>,
    /// GPUs on the bus, as it was read last.
    bus_gpus: Option<Vec<BusGpu>>,
    /// GPUs that are in MIG mode and have no instance.
    undivided: Vec<String>,
    /// Time of the newest incident that was handled.
    incidents_heard: Timestamp,
    /// Time of the newest line of the kernel that the labd before heard. Not that of this one's newest: many lines come
    /// within a millisecond, such as those of several GPUs.
    reported_until: Option<Timestamp>,
    /// Lines of the kernel about no GPU that is known.
    unclaimed: Unclaimed,
    /// Reason why the kernel's log is not read.
    kernel: Option<String>,
    /// Notices about the node as a whole.
    notices: Vec<Notice>,
    tell: watch::Sender<Arc<Inventory>>,
}

impl GpuManager {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let mut lines = match kmsg::follow(&self.parts.root.join("dev/kmsg")) {
            Ok(lines) => Some(lines),
            Err(reason) => {
                self.kernel = Some(reason.to_string());
                None
            }
        };
        let mut engine_view = self.parts.engine_view.clone();
        let mut config = self.parts.config.clone();
        let mut incidents = self.parts.incidents.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.tell.closed() => return,
                order = asked.recv() => match order {
                    Some((order, reply)) => {
                        let answer = self.obey(&order);
                        // Whoever asked may have gone.
                        let _ = reply.send(answer);
                    }
                    None => return,
                },
                Ok(()) = engine_view.changed() => self.ask_engine = true,
                Ok(()) = config.changed() => self.mind_config(),
                Ok(()) = incidents.changed() => self.incidents_say(),
                line = next(&mut lines) => self.kernel_says(&line),
                () = changed(&mut self.probes) => self.probes_say(),
                Some(answer) = self.bus_reads.answer() => self.bus_answers(answer),
                _ = tick.tick() => {}
            }
            if std::mem::take(&mut self.ask_engine) {
                self.ask_engine().await;
            }
            self.mind_missing();
            self.mind_bus();
            self.mind_unclaimed();
            self.tell_all(Timestamp::now());
        }
    }

    /// Handles GPUs that are missing and those that returned.
    fn mind_missing(&mut self) {
        let now = Timestamp::now();
        let ids: Vec<String> = self.remembered.slots.iter().map(|(_, d)| d.id.clone()).collect();
        for id in ids {
            let missing = self.settled() && self.missing(&id);
            match (missing, self.missing_since.contains_key(&id)) {
                (true, false) => {
                    self.missing_since.insert(id.clone(), now);
                    if let Some(fault) = look_up(Sign::Missing) {
                        self.report(&id, fault, now);
                    }
                }
                (false, true) => {
                    self.missing_since.remove(&id);
                    self.record(None, "returned", &format!("GPU {id}: is there again"));
                }
                _ => {}
            }
        }
    }

    /// Asks now and then what is on the bus.
    fn mind_bus(&mut self) {
        if self.observed() && self.bus_asked.is_none_or(|at| at.elapsed() >= bus::EVERY) {
            self.bus_asked = Some(Instant::now());
            self.bus_reads.ask(Question::Gpus);
        }
    }

    fn bus_answers(&mut self, answer: Answer) {
        match answer {
            Answer::Gpus(gpus, slots) => {
                self.compare_bus(&gpus, &slots);
                self.bus_gpus = Some(gpus);
            }
            Answer::Behind(line, gpus) => {
                for gpu in gpus {
                    self.of_a_gpu(&kmsg::KernelLine { pci: Some(gpu), ..line.clone() }, false);
                }
            }
        }
    }

    /// Compares what is on the bus with what is listed. `names` are those of the slots, by address.
    fn compare_bus(&mut self, gpus: &[BusGpu], names: &BTreeMap<String, String>) {
        // Of a vendor in trouble, that says more. A GPU that was there and is gone has a worker that waits for it.
        let counted = |def: &vendor::VendorDef| {
            self.probes.iter().any(|(vendor, view)| {
                let view = view.borrow();
                let answers = view.inventory_at.is_some() && view.stale_since.is_none() && view.trouble.is_none();
                *vendor == def.vendor && answers
            })
        };
        let found = self.found();
        let listed = found.iter().chain(self.remembered.slots.iter().map(|(_, d)| d)).filter_map(|d| d.pci.clone());
        let new = self.bus.observe(gpus, &listed.collect(), counted, |a| names.get(a).cloned(), Timestamp::now());
        for notice in new.iter().filter(|n| !self.on_bus.contains(n)) {
            self.record(None, "unanswered", &notice.text);
        }
        self.on_bus = new;
    }

    /// Writes down what is told of the node, and forgets what is over.
    fn mind_unclaimed(&mut self) {
        let mut unclaimed = std::mem::take(&mut self.unclaimed);
        let failed = unclaimed.settle(|line, last| self.start(line, last));
        self.unclaimed = unclaimed;
        for (line, told) in failed {
            self.of_known(&line, told);
        }
        self.unclaimed.expire(Timestamp::now());
        if self.observed() && self.simulated().is_none() {
            self.unclaimed.observed();
            for (code, text) in self.unclaimed.unrecorded() {
                self.record(None, code, &text);
            }
        }
    }

    /// State of the GPU of which the kernel said, `last`ly then, that it did not start.
    fn start(&self, line: &kmsg::KernelLine, last: Timestamp) -> Start {
        match line.pci.as_deref() {
            Some(pci) => self.start_at(pci, line.fault, last),
            None => self.start_of_any(line.fault, last),
        }
    }

    /// The same where the kernel did not say which GPU: none fails any more when all of the vendor's on the bus answer.
    fn start_of_any(&self, fault: &Fault, last: Timestamp) -> Start {
        let Some(bus) = &self.bus_gpus else {
            return if self.began.elapsed() < PATIENCE { Start::Listed } else { Start::Unlisted };
        };
        let vendor = vendor::of_fault(fault).map(|def| def.vendor);
        let own = bus.iter().filter(|gpu| Some(gpu.vendor) == vendor);
        let starts = own.map(|gpu| (gpu, self.start_at(&gpu.address, fault, last)));
        let starts = starts.filter(|(gpu, start)| *start != Start::Unlisted || bus::may_be_the_labs(gpu));
        let starts: Vec<Start> = starts.map(|(_, start)| start).collect();
        if starts.is_empty() || starts.iter().any(|start| matches!(start, Start::Unlisted | Start::Fails)) {
            Start::Unlisted
        } else if starts.contains(&Start::Listed) {
            Start::Listed
        } else {
            Start::Answers
        }
    }

    /// The same of the GPU at an address.
    fn start_at(&self, pci: &str, fault: &Fault, last: Timestamp) -> Start {
        let here = |d: &Device| d.pci.as_deref().is_some_and(|own| same_slot(own, pci));
        let fails = if fault.action == Action::Quarantine { Start::Fails } else { Start::Unlisted };
        let listed: Vec<String> = self.found().into_iter().filter(here).map(|d| d.id).collect();
        if listed.is_empty() {
            let known = self.remembered.slots.iter().find(|(_, d)| here(d));
            let missing = known.is_some_and(|(_, d)| self.settled() && self.missing(&d.id));
            return if missing { fails } else { Start::Unlisted };
        }
        // Readings from before the line say nothing about it, nor do those of a GPU that sleeps.
        let readings = self.probes.iter().flat_map(|(_, view)| {
            let view = view.borrow();
            let after = view.stale_since.is_none() && view.read_at.is_some_and(|at| at.since(last) >= STARTED);
            let own = view.readings.iter().filter(|r| after && listed.contains(&r.id) && !r.asleep);
            own.cloned().collect::<Vec<_>>()
        });
        let readings: Vec<Reading> = readings.collect();
        match readings[..] {
            [] => Start::Listed,
            _ if readings.iter().all(|r| r.error.is_none()) => Start::Answers,
            // What is no reason to hold it says less than the answer itself.
            _ if fails == Start::Fails => Start::Fails,
            _ => Start::Listed,
        }
    }

    async fn ask_engine(&mut self) {
        if matches!(*self.parts.engine_view.borrow(), EngineView::Reachable { .. })
            && let Ok(Some(devices)) = tokio::time::timeout(ENGINE, (self.parts.engine)()).await
        {
            self.engine = Some(devices);
            self.hand_out();
        }
    }

    /// Looks for real GPUs unless others are simulated.
    fn mind_config(&mut self) {
        if self.simulated().is_some() {
            self.probes.clear();
        } else if self.probes.is_empty() {
            self.probes =
                vendor::ALL.into_iter().map(|def| (def.vendor, probe::spawn(def, self.place.clone()))).collect();
        }
    }

    fn simulated(&self) -> Option<u32> {
        self.parts.simulate.or(self.parts.config.borrow().gpus.simulate)
    }

    /// Whether every probe that should has answered, and the engine.
    fn settled(&self) -> bool {
        let engine = self.engine.is_some() || self.remembered.slots.iter().next().is_none();
        self.simulated().is_some() || (self.observed() && engine)
    }

    /// Whether every probe that should has answered: the first look at the GPUs is over.
    fn observed(&self) -> bool {
        let patient = self.began.elapsed() < PATIENCE;
        self.probes.iter().all(|(vendor, view)| {
            let view = view.borrow();
            let there = view.present || self.expected.contains(vendor);
            !there || view.inventory_at.is_some() || view.trouble.is_some() || !patient
        })
    }

    fn found(&self) -> Vec<Device> {
        self.probes.iter().flat_map(|(_, view)| view.borrow().devices.clone()).collect()
    }

    fn probes_say(&mut self) {
        let now = Timestamp::now();
        let before = self.remembered.slots.clone();
        let found = self.found();
        for change in before.divided_otherwise(&found) {
            self.record(None, "divided", &format!("{change}; its workers are made for what it has now"));
        }
        self.remembered.slots.update(&found);
        self.undivided = slots::divided_into_nothing(&found).map(|d| d.id.clone()).collect();
        if self.remembered.slots != before {
            // What the engine can hand out of a new one it may say only now.
            self.ask_engine = true;
            self.hand_out();
            self.handle_again();
        }
        let slots = self.remembered.slots.iter();
        let readings: Vec<Reading> = slots.filter_map(|(_, d)| self.reading(&d.id, d.parent.as_deref())).collect();
        for reading in readings {
            if let Some(fault) = self.remembered.state.reading(&reading, now) {
                self.report(&reading.id, fault, now);
            }
        }
    }

    /// Present readings of a GPU; of a partition, together with what only its GPU as a whole has. `None` while they are
    /// stale.
    fn reading(&self, id: &str, parent: Option<&str>) -> Option<Reading> {
        let of = |id: &str| {
            let fresh = self.probes.iter().map(|(_, view)| view.borrow()).filter(|view| view.stale_since.is_none());
            fresh.flat_map(|view| view.readings.clone()).find(|r| r.id == id)
        };
        with_parent(id, of(id), parent.filter(|&parent| parent != id).and_then(of))
    }

    /// Handles again the lines about GPUs that are known only now.
    fn handle_again(&mut self) {
        let slots = &self.remembered.slots;
        for (line, told) in self.unclaimed.claim(|line| slots.iter().any(|(_, d)| has(line, d))) {
            self.of_known(&line, told);
        }
    }

    fn kernel_says(&mut self, line: &kmsg::KernelLine) {
        // The lines of this boot are read again by every labd: what they say is known, and was told.
        let told = self.reported_until.is_some_and(|heard| line.at <= heard);
        self.remembered.heard = self.remembered.heard.max(Some(line.at));
        if line.fault.is_of_any_device() {
            if told {
                // Heard when that GPU was there, or was not any more: what is in that place now may be another, and works.
                return;
            }
            self.bus_reads.ask(Question::Behind(line.clone()));
        } else {
            self.of_a_gpu(line, told);
        }
    }

    /// Handles a line about the GPU at an address, or about none in particular.
    fn of_a_gpu(&mut self, line: &kmsg::KernelLine, told: bool) {
        // Of a GPU that did not start, its readings say whether that is still so.
        let known = !line.fault.keeps_from_starting() && self.remembered.slots.iter().any(|(_, d)| has(line, d));
        if known {
            self.of_known(line, told);
        } else {
            // From before the probes found it, or of no GPU of the lab's.
            self.unclaimed.handle(line, self.observed(), told);
        }
    }

    /// Handles a line about GPUs that are known.
    fn of_known(&mut self, line: &kmsg::KernelLine, told: bool) {
        let (now, fault) = (Timestamp::now(), line.fault);
        let slots = self.remembered.slots.iter();
        let card = |d: &Device| d.parent.clone().unwrap_or_else(|| d.id.clone());
        let gpus: Vec<_> = slots.filter(|(_, d)| has(line, d)).map(|(_, d)| (d.id.clone(), card(d))).collect();
        for (id, card) in gpus {
            let state = &mut self.remembered.state;
            let restarted = state.restart(&id).map(|(since, _)| since);
            let first = state.fault(&id, fault, line.at).then_some(fault);
            let again = state.again(&id, &card, fault, &line.text, line.at);
            // The labd before may have had no row for the line. What changes the state is news, whoever heard it first.
            let changes = |fault: &Fault| match fault.action {
                Action::Quarantine => true,
                Action::Restart => restarted.is_none_or(|known| line.at.since(known) > SAME_LINE),
                Action::Nothing => false,
            };
            for fault in first.into_iter().chain(again).filter(|fault| !told || changes(fault)) {
                self.report(&id, fault, now);
            }
        }
    }

    /// Handles workers that aborted: their exit codes tell of their GPUs.
    fn incidents_say(&mut self) {
        let now = Timestamp::now();
        let new: Vec<Incident> = {
            let incidents = self.parts.incidents.borrow();
            incidents.iter().filter(|i| i.noticed_at > self.incidents_heard).cloned().collect()
        };
        for incident in new {
            self.incidents_heard = self.incidents_heard.max(incident.noticed_at);
            let gpu = self.gpus().into_iter().find(|g| worker_name(g.slot) == incident.service);
            let Some((gpu, code)) = gpu.zip(exit_code(&incident.why)) else { continue };
            if vendor::of(gpu.vendor).is_some_and(|def| def.explains_exits)
                && let Some(fault) = look_up(Sign::Exit(code))
                && self.remembered.state.fault(&gpu.id, fault, incident.died_at)
            {
                self.report(&gpu.id, fault, now);
            }
        }
    }

    fn report(&mut self, id: &str, fault: &'static Fault, now: Timestamp) {
        let key = (id.to_owned(), fault.code);
        if self.said.get(&key).is_some_and(|&at| now.since(at) < SAID_AGAIN) {
            return;
        }
        self.said.insert(key, now);
        let gpu = self.gpus().into_iter().find(|g| g.id == id);
        let worker = gpu.as_ref().map(|g| worker_name(g.slot));
        let remedy = fault.remedy_for(gpu.as_ref().and_then(|g| g.pci.as_deref()), Some(id));
        let line = format!("GPU {id}: {}; {}; {remedy}", fault.meaning, fault.action.words());
        self.record(worker.as_deref(), fault.code, &line);
    }

    fn record(&self, service: Option<&str>, what: &str, reason: &str) {
        tracing::warn!(service, reason, "{what}");
        let Some(journal) = &self.parts.journal else { return };
        journal.record(Entry {
            at: Timestamp::now(),
            service: service.map(str::to_owned),
            kind: Kind::Gpu,
            what: what.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Determines how each GPU is attached to its worker's container.
    fn hand_out(&mut self) {
        let Some(engine) = &self.engine else { return };
        self.notices.retain(|n| !n.text.starts_with(NOT_HANDED));
        let mut gpus = Vec::new();
        for (slot, device) in self.remembered.slots.iter() {
            let devices = match attach::container_devices(device, engine) {
                Ok(devices) => devices,
                Err(reason) => {
                    let text = format!("{NOT_HANDED}{}: {reason}", device.id);
                    self.notices.push(Notice { severity: Severity::Error, text });
                    // Tried all the same: the engine's own word is the last.
                    Vec::new()
                }
            };
            gpus.push(Gpu::of(slot, device, devices));
        }
        self.remembered.gpus = gpus;
    }

    fn gpus(&self) -> Vec<Gpu> {
        if let Some(count) = self.simulated() {
            return simulate::gpus(count, &self.parts.numa);
        }
        let mut gpus = self.remembered.gpus.clone();
        // Not attached yet: the engine has not answered.
        let new = self.remembered.slots.iter().filter(|(_, d)| self.remembered.gpus.iter().all(|g| g.id != d.id));
        gpus.extend(new.map(|(slot, device)| Gpu::of(slot, device, Vec::new())));
        gpus
    }

    fn obey(&mut self, order: &Order) -> Result<String, Refusal> {
        let (Order::Release { gpu: name } | Order::Drill { gpu: name, .. }) = order;
        let gpus = self.gpus();
        let gpu = resolve(&gpus, name).map_err(Refusal::UnknownService)?;
        let (id, worker) = (gpu.id.clone(), worker_name(gpu.slot));
        match order {
            Order::Release { .. } => Ok(self.release(&id, &worker)),
            Order::Drill { .. } if gpu.vendor != Vendor::Simulated => {
                Err(Refusal::Invalid(format!("{id} is a real GPU; drills are for simulated ones")))
            }
            Order::Drill { fault, .. } => {
                let Some(fault) = health::by_code(fault) else {
                    return Err(Refusal::UnknownService(format!("no fault `{fault}`; `labd gpu faults` lists them")));
                };
                let now = Timestamp::now();
                self.said.retain(|(of, _), _| *of != id);
                if self.remembered.state.fault(&id, fault, now) {
                    self.report(&id, fault, now);
                }
                Ok(format!("{id}: has {} now: {}", fault.code, fault.action.words()))
            }
        }
    }

    /// Ends a GPU's quarantine, forgets one that is gone, or dismisses a notice about it, in this order. Returns the answer.
    fn release(&mut self, id: &str, worker: &str) -> String {
        let released = self.remembered.state.release(id, Timestamp::now());
        if released != Released::Nothing {
            self.said.retain(|(of, _), _| *of != id);
        }
        match released {
            Released::Quarantine => {
                self.record(Some(worker), "released", &format!("GPU {id}: released by hand"));
                format!("{id}: is released; {worker} starts")
            }
            _ if self.missing(id) => {
                self.remembered.slots.forget(id);
                self.remembered.gpus.retain(|g| g.id != id);
                self.record(None, "forgotten", &format!("GPU {id}: gone, and forgotten by hand"));
                format!("{id}: is forgotten; {worker} is removed")
            }
            Released::Notice(fault) => {
                self.record(Some(worker), "dismissed", &format!("GPU {id}: {} dismissed by hand", fault.code));
                format!("{id}: {} is dismissed until it comes again", fault.code)
            }
            Released::Nothing => format!("{id}: is neither quarantined nor gone"),
        }
    }

    fn missing(&self, id: &str) -> bool {
        let vendor = self.remembered.slots.get(id).map(|(_, d)| d.vendor);
        self.simulated().is_none()
            && self.probes.iter().any(|(of, view)| {
                let view = view.borrow();
                // Hardware that is not there at all has no probe; one that never spoke says nothing of what is there.
                let knows = !view.present || (view.inventory_at.is_some() && view.stale_since.is_none());
                Some(*of) == vendor && knows && !view.devices.iter().any(|d| d.id == id)
            })
    }

    fn unit(&self, gpu: Gpu, now: Timestamp) -> Unit {
        let state = &self.remembered.state;
        let id = gpu.id.clone();
        let mut unit = Unit::new(gpu);
        if let Some(trouble) = state.quarantine(&unit.gpu) {
            (unit.state, unit.trouble) = (GpuState::Quarantined, Some(trouble));
        } else if self.missing(&id) {
            unit.state = GpuState::Missing;
            let since = self.missing_since.get(&id).copied().unwrap_or(now);
            unit.trouble = look_up(Sign::Missing).map(|fault| health::trouble(fault, &unit.gpu, since));
        } else {
            unit.trouble = state.warning(&unit.gpu);
        }
        unit.restart = state.restart(&id);
        if unit.gpu.vendor == Vendor::Simulated {
            let loads = self.parts.loads.borrow();
            let workers = self.simulated().unwrap_or_default() as usize;
            unit.reading = Some(simulate::reading(&unit.gpu, workers, loads.get(&worker_name(unit.gpu.slot))));
            return unit;
        }
        if let Some(mut reading) = self.reading(&id, unit.gpu.parent.as_deref()) {
            let processes = std::mem::take(&mut reading.processes);
            unit.processes = processes
                .into_iter()
                .map(|p| Process {
                    pid: p.pid,
                    container: container_of(&self.parts.root, p.pid),
                    memory_bytes: p.memory_bytes,
                })
                .collect();
            unit.reading = Some(reading);
        }
        unit
    }

    fn tell_all(&mut self, now: Timestamp) {
        if let Some(journal) = &self.parts.journal
            && self.kept.as_ref() != Some(&self.remembered)
            && let Ok(text) = serde_json::to_string(&self.remembered)
        {
            if journal.memory(MEMORY).as_deref() != Some(&text) {
                journal.set_memory(MEMORY, text);
            }
            self.kept = Some(self.remembered.clone());
        }
        let mut notices = self.notices.clone();
        notices.extend(self.on_bus.iter().cloned());
        notices.extend(self.undivided.iter().filter(|_| self.simulated().is_none()).map(|id| Notice {
            severity: Severity::Warning,
            text: format!(
                "GPU {id} is in MIG mode and has no instance, so no worker has it: make some with `nvidia-smi mig -i {id} -cgi \
                 PROFILES -C`, or end the mode with `nvidia-smi -i {id} -mig 0`"
            ),
        }));
        if self.observed() && self.simulated().is_none() {
            notices.extend(self.unclaimed.notices());
        }
        if let Some(reason) = self.kernel.as_ref().filter(|_| self.simulated().is_none()) {
            notices.push(Notice { severity: Severity::Info, text: reason.clone() });
        }
        let inventory = Inventory {
            units: self.gpus().into_iter().map(|gpu| self.unit(gpu, now)).collect(),
            sources: self.probes.iter().filter_map(|(vendor, view)| source(*vendor, &view.borrow())).collect(),
            notices,
            settled: self.settled(),
        };
        self.tell.send_if_modified(|old| {
            let news = **old != inventory;
            if news {
                *old = Arc::new(inventory);
            }
            news
        });
    }
}

/// Reading of a partition, with what only its GPU as a whole has.
fn with_parent(id: &str, own: Option<Reading>, parent: Option<Reading>) -> Option<Reading> {
    let (own, parent) = match (own, parent) {
        (None, None) => return None,
        (Some(own), None) => return Some(own),
        (None, Some(parent)) => {
            return Some(Reading { id: id.to_owned(), processes: Vec::new(), ecc_uncorrected: None, ..parent });
        }
        (Some(own), Some(parent)) => (own, parent),
    };
    Some(Reading {
        temperature_c: own.temperature_c.or(parent.temperature_c),
        power_w: own.power_w.or(parent.power_w),
        power_limit_w: own.power_limit_w.or(parent.power_limit_w),
        clock_mhz: own.clock_mhz.or(parent.clock_mhz),
        memory_clock_mhz: own.memory_clock_mhz.or(parent.memory_clock_mhz),
        throttled: if own.throttled.is_empty() { parent.throttled } else { own.throttled },
        ecc_corrected: own.ecc_corrected.or(parent.ecc_corrected),
        // Its own or none: the GPU's grows with another tenant's error, and beside its own it would look like new ones.
        ecc_uncorrected: own.ecc_uncorrected,
        remapped_rows: own.remapped_rows.or(parent.remapped_rows),
        remap_pending: own.remap_pending || parent.remap_pending,
        remap_failed: own.remap_failed || parent.remap_failed,
        recovery_action: own.recovery_action.or(parent.recovery_action),
        error: own.error.or(parent.error),
        ..own
    })
}

/// Beginning of the notice that says why no container can get its GPU.
const NOT_HANDED: &str = "no container can be given GPU ";

fn source(vendor: Vendor, view: &ProbeView) -> Option<GpuSource> {
    if !view.present {
        return None;
    }
    let hello = view.hello.as_ref();
    Some(GpuSource {
        name: hello.map_or_else(|| vendor.as_str().to_owned(), |h| h.source.as_str().to_owned()),
        driver: hello.and_then(|h| h.driver.clone()),
        library: hello.and_then(|h| h.library.clone()),
        stale_since: view.stale_since,
        trouble: view.trouble.as_ref().map(|t| {
            let known = look_up(Sign::Answer(&t.code));
            known.map_or_else(|| t.text.clone(), |fault| format!("{}; {}", fault.meaning, fault.remedy_for(None, None)))
        }),
    })
}

/// Waits until any probe has something new; never returns without probes.
async fn changed(probes: &mut [(Vendor, watch::Receiver<ProbeView>)]) {
    let waits: Vec<_> = probes
        .iter_mut()
        .map(|(_, view)| {
            Box::pin(async move {
                // A probe's task lives as long as this receiver.
                if view.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        })
        .collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    futures_util::future::select_all(waits).await;
}

async fn next(lines: &mut Option<mpsc::Receiver<kmsg::KernelLine>>) -> kmsg::KernelLine {
    loop {
        match lines {
            Some(receiver) => match receiver.recv().await {
                Some(line) => return line,
                None => *lines = None,
            },
            None => std::future::pending::<()>().await,
        }
    }
}

/// Whether a line of the kernel, about an address and about a GPU instance if it names one, is about a GPU or a partition.
/// One tenant's fault is the others' only where it needs a reset: that takes all of them along.
fn has(line: &kmsg::KernelLine, device: &Device) -> bool {
    let at_pci = line.pci.as_deref().zip(device.pci.as_deref()).is_some_and(|(pci, own)| same_slot(own, pci));
    let others = kmsg::instance(&line.text).zip(device.instance).is_some_and(|(named, own)| named != own.gpu);
    at_pci && (!others || line.fault.action == Action::Quarantine)
}

/// GPU that a person means: by id, by the beginning of one, or by its worker. The error names those there are.
fn resolve<'a>(gpus: &'a [Gpu], name: &str) -> Result<&'a Gpu, String> {
    let mut begins = gpus.iter().filter(|g| g.id.starts_with(name));
    let exact = gpus.iter().find(|g| g.id == name || worker_name(g.slot) == name);
    match (exact, begins.next(), begins.next()) {
        (Some(gpu), _, _) | (None, Some(gpu), None) => Ok(gpu),
        (None, Some(_), Some(_)) => Err(format!("more than one GPU begins with `{name}`; give more of its id")),
        (None, None, _) => {
            let ids: Vec<&str> = gpus.iter().map(|g| g.id.as_str()).collect();
            let there =
                if ids.is_empty() { "no GPU is known".to_owned() } else { format!("there are: {}", ids.join(", ")) };
            Err(format!("no GPU `{name}`; {there}"))
        }
    }
}

/// Id of the container that a process of the host runs in.
fn container_of(root: &Path, pid: u32) -> Option<String> {
    container_in(&std::fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).ok()?)
}

/// Container id in the text of `/proc/PID/cgroup`: 64 hexadecimal digits, whatever the engine and cgroup version put
/// around them.
fn container_in(cgroup: &str) -> Option<String> {
    cgroup.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64).map(str::to_owned)
}

/// Exit code in an incident's words, such as `container exited 134 (SIGABRT)`.
fn exit_code(why: &str) -> Option<i64> {
    why.strip_prefix("container exited ")?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use labd_gpu::line::Trouble;

    use super::*;
    use crate::{gpus::faults, time::simulated};

    #[test]
    fn what_the_journal_remembers_can_be_read_by_the_next_labd() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/golden/memory.json")).expect("JSON");
        crate::golden::holds::<Remembered>(&golden[MEMORY]);
    }

    #[test]
    fn what_is_remembered_is_read_back() {
        let mut remembered = Remembered { gpus: simulate::gpus(2, &[]), ..Remembered::default() };
        let fault = health::by_code("xid-79").expect("a row");
        remembered.state.fault("SIM-0", fault, Timestamp::from_millis(1_000));
        let text = serde_json::to_string(&remembered).expect("plain values");
        assert_eq!(serde_json::from_str::<Remembered>(&text).expect("read back"), remembered);
    }

    #[test]
    fn a_gpu_is_meant_by_its_id_its_beginning_or_its_worker() {
        let gpus = simulate::gpus(12, &[]);
        for name in ["SIM-10", "ray-worker-10"] {
            assert_eq!(resolve(&gpus, name).map(|g| g.slot), Ok(10));
        }
        assert_eq!(resolve(&gpus, "SIM-2").map(|g| g.slot), Ok(2));
        assert_eq!(resolve(&gpus, "SIM-1").map(|g| g.slot), Ok(1), "exactly that one, not SIM-10");
        assert!(resolve(&gpus, "SIM").is_err_and(|e| e.contains("more than one")));
        assert!(resolve(&gpus, "GPU-1").is_err_and(|e| e.contains("there are: SIM-0")));
        assert!(resolve(&[], "GPU-1").is_err_and(|e| e.contains("no GPU is known")));
    }

    #[test]
    fn a_process_is_placed_by_its_container() {
        let id = "0123456789abcdef".repeat(4);
        for text in [
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("12:pids:/docker/{id}\n11:cpu:/docker/{id}\n"),
            format!("0::/user.slice/user-1000.slice/libpod-{id}.scope/container\n"),
        ] {
            assert_eq!(container_in(&text).as_ref(), Some(&id), "{text}");
        }
        assert_eq!(container_in("0::/user.slice/user-1000.slice/session-3.scope\n"), None);
    }

    #[test]
    fn an_exit_code_is_read_from_an_incident() {
        assert_eq!(exit_code("container exited 134 (SIGABRT)"), Some(134));
        assert_eq!(exit_code("hung: no answer"), None);
    }

    #[test]
    fn a_partition_has_its_own_numbers_and_its_gpus_troubles() {
        let own =
            Reading { id: "MIG-1".into(), ecc_uncorrected: Some(0), memory_used_bytes: Some(7), ..Reading::default() };
        let whole = Reading {
            id: "GPU-1".into(),
            ecc_uncorrected: Some(5),
            memory_used_bytes: Some(9),
            temperature_c: Some(60.0),
            remap_pending: true,
            recovery_action: Some(1),
            error: Some("NVML_ERROR_GPU_IS_LOST".into()),
            ..Reading::default()
        };
        let both = with_parent("MIG-1", Some(own.clone()), Some(whole.clone())).expect("a reading");
        assert_eq!((both.id.as_str(), both.ecc_uncorrected, both.memory_used_bytes), ("MIG-1", Some(0), Some(7)));
        assert_eq!((both.temperature_c, both.remap_pending, both.error.is_some()), (Some(60.0), true, true));
        assert_eq!(both.recovery_action, Some(1));
        // `nvidia-smi` has no count of an instance, and a library may not answer for it once.
        let silent = Reading { ecc_uncorrected: None, ..own.clone() };
        assert_eq!(with_parent("MIG-1", Some(silent), Some(whole.clone())).and_then(|r| r.ecc_uncorrected), None);
        let of_whole = with_parent("MIG-1", None, Some(whole)).expect("a reading");
        assert_eq!((of_whole.id.as_str(), of_whole.ecc_uncorrected), ("MIG-1", None));
        assert_eq!(with_parent("MIG-1", Some(own.clone()), None), Some(own));
        assert_eq!(with_parent("MIG-1", None, None), None);
    }

    #[test]
    fn what_a_source_answers_is_told_without_places_for_a_gpu() {
        let answers = faults::all().flat_map(|fault| fault.signs);
        let codes: Vec<&str> =
            answers.filter_map(|s| if let Sign::Answer(code) = s { Some(*code) } else { None }).collect();
        assert!(codes.contains(&"NVML_ERROR_UNKNOWN") && codes.len() > 10);
        for code in codes {
            let trouble = Trouble { code: code.to_owned(), text: "words of its own".to_owned() };
            let view = ProbeView { present: true, trouble: Some(trouble), ..ProbeView::default() };
            let told = source(Vendor::Nvidia, &view).and_then(|s| s.trouble).expect("it says so");
            // Nothing can be released where no GPU is meant.
            assert!(!told.contains('<') && !told.contains("gpu release"), "{told}");
        }
    }

    /// Runs a test whose time passes by itself.
    fn in_its_own_time(test: impl Future<Output = ()>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().enable_io().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            simulated::begin(Some(Timestamp::from_millis(1_800_000_000_000)));
            test.await;
            simulated::begin(None);
        });
    }

    /// Machine with NVIDIA's GPUs at 0000:3b:00.0 and 0000:3c:00.0, of which a test says what the probe says.
    struct Machine {
        root: tempfile::TempDir,
        vendor: Vendor,
        probe: watch::Sender<ProbeView>,
        incidents: watch::Sender<Arc<Vec<Incident>>>,
        journal: Option<Journal>,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a directory");
            let probe = watch::channel(ProbeView { present: true, ..ProbeView::default() }).0;
            let incidents = watch::channel(Arc::default()).0;
            let machine = Self { root, vendor: Vendor::Nvidia, probe, incidents, journal: None };
            for pci in ["0000:3b:00.0", "0000:3c:00.0"] {
                machine.file(&format!("sys/bus/pci/devices/{pci}/vendor"), "0x10de\n");
                machine.file(&format!("sys/bus/pci/devices/{pci}/class"), "0x030200\n");
            }
            machine.file("dev/kmsg", "");
            machine
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }

        /// Lines that the kernel printed at boot.
        fn printed(&self, lines: &[&str]) {
            let records: Vec<String> = lines.iter().map(|line| format!("3,1,1,-;{line}\n")).collect();
            self.file("dev/kmsg", &records.concat());
        }

        fn start(&self) -> Gpus {
            let config = Config::parse(Path::new("labd.toml"), "").expect("valid");
            let reachable = EngineView::Reachable { version: "28.2.2".into(), api: "1.50".into() };
            let parts = Parts {
                journal: self.journal.clone(),
                config: watch::channel(Arc::new(config)).1,
                simulate: None,
                loads: watch::channel(Arc::default()).1,
                numa: Vec::new(),
                engine: Box::new(|| Box::pin(std::future::ready(Some(EngineDevices::default())))),
                engine_view: watch::channel(reachable).1,
                incidents: self.incidents.subscribe(),
                root: self.root.path().to_owned(),
                dir: self.root.path().to_owned(),
            };
            start(parts, vec![(self.vendor, self.probe.subscribe())])
        }

        /// The probe lists these, and reads of each that it is well, or this.
        fn lists(&self, devices: &[Device], error: Option<&str>) {
            let reading = |d: &Device| Reading { error: error.map(str::to_owned), ..Reading::of_failed(&d.id, "") };
            self.probe.send_modify(|view| {
                (view.devices, view.inventory_at) = (devices.to_vec(), Some(Timestamp::now()));
                (view.readings, view.read_at) = (devices.iter().map(reading).collect(), Some(Timestamp::now()));
            });
        }
    }

    /// GPUs of that machine.
    fn both() -> [Device; 2] {
        [slots::tests::device("GPU-a", "0000:3b:00.0"), slots::tests::device("GPU-b", "0000:3c:00.0")]
    }

    async fn until(gpus: &Gpus, what: &str, is: impl Fn(&Inventory) -> bool) -> Arc<Inventory> {
        let mut inventory = gpus.watch();
        let seen = tokio::time::timeout(Duration::from_mins(5), inventory.wait_for(|i| is(i))).await;
        seen.unwrap_or_else(|_| panic!("never: {what}")).expect("it goes on").clone()
    }

    fn troubles(inventory: &Inventory) -> Vec<Option<&str>> {
        inventory.units.iter().map(|u| u.trouble.as_ref().map(|t| t.code.as_str())).collect()
    }

    #[test]
    fn a_start_that_failed_holds_a_gpu_only_while_it_does_not_answer() {
        // At the first look at all, and where the GPU is known from before.
        for (known, error, want) in [
            (false, None, None),
            (true, None, None),
            (false, Some("NVML_ERROR_UNKNOWN"), Some("nvidia-init-failed")),
            (true, Some("NVML_ERROR_UNKNOWN"), Some("nvidia-init-failed")),
        ] {
            in_its_own_time(async {
                let mut machine = Machine::new();
                machine.printed(&["NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1568)"]);
                let journal =
                    Journal::open(&machine.root.path().join("journal.db"), Duration::from_hours(1)).expect("opens");
                let mut remembered = Remembered::default();
                if known {
                    remembered.slots.update(&both());
                }
                journal.set_memory(MEMORY, serde_json::to_string(&remembered).expect("plain values"));
                machine.journal = Some(journal);
                let gpus = machine.start();
                machine.lists(&both(), error);
                let settled = |i: &Inventory| i.settled && i.units.len() == 2 && troubles(i)[0] == want;
                until(&gpus, "the GPU is as it is", settled).await;
                tokio::time::sleep(Duration::from_secs(10)).await;
                let inventory = gpus.watch().borrow().clone();
                assert_eq!(troubles(&inventory)[0], want, "{known} {error:?}");
                assert!(
                    inventory.notices.iter().all(|n| !n.text.contains("nvidia-init-failed")),
                    "{:?}",
                    inventory.notices
                );
            });
        }
    }

    #[test]
    fn a_start_that_failed_of_a_gpu_that_is_not_named_is_told_until_all_on_the_bus_answer() {
        in_its_own_time(async {
            let machine = Machine::new();
            machine.printed(&[
                "NVRM: RmInitAdapter failed! (0x26:0xffff:1375)",
                "[drm:amdgpu_device_init [amdgpu]] *ERROR* hw_init of IP block <psp> failed -22",
            ]);
            let gpus = machine.start();
            let wait = || tokio::time::sleep(Duration::from_mins(1));
            let told = || {
                let inventory = gpus.watch().borrow().clone();
                let codes = ["nvidia-init-failed", "amdgpu-init-failed"];
                codes.map(|code| inventory.notices.iter().any(|n| n.text.contains(code)))
            };
            let [one, other] = both();
            machine.lists(std::slice::from_ref(&one), None);
            wait().await;
            machine.lists(std::slice::from_ref(&one), None);
            wait().await;
            assert_eq!(told(), [true, true], "the second does not answer");
            machine.lists(&[one.clone(), other.clone()], Some("NVML_ERROR_UNKNOWN"));
            wait().await;
            assert_eq!(told(), [true, true], "neither is well");
            machine.lists(&[one, other], None);
            wait().await;
            assert_eq!(told(), [false, true], "there is no GPU of AMD's");
        });
    }

    #[test]
    fn what_an_older_labd_heard_and_did_not_know_is_reported_and_no_old_word_of_a_port_holds_a_card() {
        in_its_own_time(async {
            let mut machine = Machine::new();
            machine.printed(&[
                "pcieport 0000:3c:00.0: pciehp: Slot(3): Link Down",
                "NVRM: Xid (PCI:0000:3c:00): 31, pid=1, name=python3, Ch 00000008",
                "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
            ]);
            let journal =
                Journal::open(&machine.root.path().join("journal.db"), Duration::from_hours(1)).expect("opens");
            let mut remembered = Remembered { heard: Some(Timestamp::now()), ..Remembered::default() };
            remembered.slots.update(&both());
            journal.set_memory(MEMORY, serde_json::to_string(&remembered).expect("plain values"));
            let mut events = journal.subscribe();
            machine.journal = Some(journal.clone());
            let gpus = machine.start();
            machine.lists(&both(), None);
            until(&gpus, "the first is held", |i| i.settled && troubles(i) == [Some("xid-79"), None]).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(troubles(&gpus.watch().borrow()), [Some("xid-79"), None], "the second works");
            journal.flush().await;
            let told: Vec<String> = std::iter::from_fn(|| events.try_recv().ok()).map(|e| e.what).collect();
            assert_eq!(told, ["xid-79"], "what changes nothing was told before");
        });
    }

    #[test]
    fn a_divided_gpu_and_one_that_does_not_answer_are_told_as_they_are() {
        in_its_own_time(tell_of_a_divided_gpu());
    }

    async fn tell_of_a_divided_gpu() {
        let machine = Machine::new();
        let part = |id: &str, gpu| Device {
            parent: Some("GPU-a".into()),
            partition: Some("1g.10gb".into()),
            instance: Some(labd_gpu::Instance { gpu, compute: 0 }),
            ..slots::tests::device(id, "0000:3b:00.0")
        };
        let whole = Device { divided: true, ..slots::tests::device("GPU-a", "0000:3b:00.0") };
        let gpus = machine.start();
        let find = |devices: Vec<Device>| {
            let found = |view: &mut ProbeView| (view.devices, view.inventory_at) = (devices, Some(Timestamp::now()));
            machine.probe.send_modify(found);
        };
        let until = async |what: &str, is: fn(&Inventory) -> bool| until(&gpus, what, is).await;
        let says = |i: &Inventory, text: &str| i.notices.iter().any(|n| n.text.contains(text));

        find(vec![whole.clone(), part("MIG-1", 5), part("MIG-2", 9)]);
        until("two workers", |i| i.settled && i.units.len() == 2).await;
        let line = "NVRM: Xid (PCI:0000:3b:00 GPU-I:09): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No";
        machine.file("dev/kmsg", &format!("3,1,{},-;{line}\n", u64::MAX / 2));
        let hit = until("a fault", |i| i.units.iter().any(|u| u.restart.is_some())).await;
        let restarts: Vec<_> = hit.units.iter().map(|u| (u.gpu.id.as_str(), u.restart.is_some())).collect();
        assert_eq!(restarts, [("MIG-1", false), ("MIG-2", true)], "the other tenant's worker goes on");

        let silent = until("the bus", |i| i.notices.iter().any(|n| n.text.contains("on the PCI bus"))).await;
        assert!(
            says(&silent, "2 on the PCI bus, 1 answers: the NVIDIA GPU at 0000:3c:00.0 does not"),
            "{:?}",
            silent.notices
        );
        let second = slots::tests::device("GPU-b", "0000:3c:00.0");
        find(vec![whole.clone(), part("MIG-3", 5), second]);
        let other = until("all answer", |i| i.notices.iter().all(|n| !n.text.contains("on the PCI bus"))).await;
        let ids: Vec<_> = other.units.iter().map(|u| u.gpu.id.as_str()).collect();
        assert_eq!(ids, ["MIG-3", "GPU-b"]);
        find(vec![whole]);
        until("no instance", |i| i.notices.iter().any(|n| n.text.contains("GPU-a is in MIG mode and has no instance")))
            .await;
    }

    #[test]
    fn a_worker_that_aborts_on_a_partition_of_an_amd_gpu_tells_of_that_partition_and_a_reset_of_all() {
        in_its_own_time(async {
            let machine = Machine { vendor: Vendor::Amd, ..Machine::new() };
            let part = |id: &str, pci: &str, of: &str| Device {
                vendor: Vendor::Amd,
                parent: Some(of.into()),
                partition: Some("CPX".into()),
                ..slots::tests::device(id, pci)
            };
            let (first, second) = ("0000:3b:00.0", "0000:3c:00.0");
            let parts = [part("0xa", first, "0xa"), part("0xa.1", first, "0xa"), part("0xb", second, "0xb")];
            let gpus = machine.start();
            machine.lists(&parts, None);
            let all = until(&gpus, "three workers", |i| i.settled && i.units.len() == 3).await;
            let slot = all.units.iter().find(|u| u.gpu.id == "0xa.1").map(|u| u.gpu.slot).expect("it has one");
            let restarts = |i: &Inventory| {
                let units = i.units.iter().filter(|u| u.restart.is_some());
                units.map(|u| u.gpu.id.clone()).collect::<Vec<_>>()
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            let incident = Incident {
                service: worker_name(slot),
                cause: crate::incident::Cause::Exit,
                why: "container exited 134 (SIGABRT)".into(),
                died_at: Timestamp::now(),
                noticed_at: Timestamp::now(),
                running_at: None,
                ready_at: None,
                training: Vec::new(),
                order: crate::incident::Order::default(),
            };
            machine.incidents.send_replace(Arc::new(vec![incident]));
            let hit = until(&gpus, "a restart", |i| !restarts(i).is_empty()).await;
            assert_eq!(restarts(&hit), ["0xa.1"]);
            let line = "amdgpu 0000:3b:00.0: amdgpu: GPU reset(1) succeeded!";
            machine.file("dev/kmsg", &format!("3,1,{},-;{line}\n", u64::MAX / 2));
            until(&gpus, "both have it", |i| restarts(i) == ["0xa", "0xa.1"]).await;
        });
    }

    #[test]
    fn one_tenants_fault_concerns_its_own_instance_unless_the_whole_gpu_needs_a_reset() {
        let instance = |gpu| Some(labd_gpu::Instance { gpu, compute: 0 });
        let part = |gpu| Device { instance: instance(gpu), ..slots::tests::device("MIG", "0000:3b:00.0") };
        let (own, other, unknown) = (part(5), part(9), Device { instance: None, ..part(5) });
        let elsewhere = Device { pci: Some("0000:3c:00.0".into()), ..part(5) };
        let concerned = |code: &str, text: &str| {
            let fault = health::by_code(code).expect("a row");
            let (found, pci) = kmsg::parse(text).expect("a fault");
            assert_eq!(found.code, code, "{text}");
            assert!(pci.is_some(), "it names its GPU");
            let line = kmsg::KernelLine { at: Timestamp::from_millis(0), fault, pci, text: text.to_owned() };
            [&own, &other, &unknown, &elsewhere].map(|d| has(&line, d))
        };
        let of_one = "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No";
        assert_eq!(concerned("xid-94", of_one), [true, false, true, false]);
        let of_all = "NVRM: Xid (PCI:0000:3b:00): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No";
        assert_eq!(concerned("xid-94", of_all), [true, true, true, false]);
        let reset = "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 95, pid=4321, name=python3, Uncontained: LTC TAG. RST: Yes";
        assert_eq!(concerned("xid-95", reset), [true, true, true, false]);
    }
}
