//! The real supervision over a simulated outside: the loop with its decisions, holds and incidents, the health checks,
//! and the task that listens to the engine are what the daemon runs; engine, containers, GCS, clock and journal are
//! simulated.
//!
//! One seed is one history: a lab comes up, 3 to 12 faults strike within a few minutes, they end, and within
//! [`BOUND`] everything that nobody holds must be ready. What must never be is checked at every call that labd makes
//! ([`world`]). Time is tokio's paused clock, so a history of ten minutes takes some milliseconds, and the same seed is
//! the same history to the last call.
//!
//! `LABD_SIM_HISTORIES`, `LABD_SIM_JOB_HISTORIES` and `LABD_SIM_SECONDS` bound how many are run (200, 100 and no limit
//! without them), `LABD_SIM_SEED` runs one and prints what happened.

mod faults;
mod jobs;
mod world;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::sleep,
};

use super::{DoorView, EVENTS_HEARD, Parts, RESYNC, Scrapes};
use crate::{
    checkpoints::Checkpoints,
    config::Config,
    control::{Command, Refusal, Request},
    desired::DesiredState,
    engine::{
        EngineEventKind, events,
        images::{ImageState, Images},
    },
    incident::{Cause, Incident},
    jobs::LedgerView,
    journal::{EventQuery, Journal},
    plan::{self, PlanView},
    ray::{Ray, RayView, Unregister},
    snapshot::{DaemonView, EngineView, GpuState, NodeView, ServiceState, Snapshot},
    spec::{Device, ImageName, Requirement},
    time::{Moment, Timestamp, simulated},
};
use faults::{Fault, Relief};
use world::{Dice, Outside, Power, Run, TICK, World, now};

/// Longest time from the last fault's end until everything is ready: a hang is found after half a minute, a wrong token
/// after two, a crash loop is tried once a minute.
const BOUND: Duration = Duration::from_mins(6);
/// Time for which everything must stay ready: a hang that began before is found by then.
const STAYS: Duration = Duration::from_secs(45);
/// Beginning of the simulated clock.
const EPOCH: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Desired state of the simulated lab; `version` makes settings that differ.
fn desired(version: u32) -> DesiredState {
    let toml = format!(
        "[[mounts]]\nsource = \"/data/{version}\"\ntarget = \"/mnt\"\n[services.grafana]\nenabled = false\n\
         [services.prometheus]\nenabled = false\n[lab]\nchange_window = \"2 h\""
    );
    let mut inputs = plan::tests::inputs(&toml, 2, 32);
    for gpu in &mut inputs.gpus {
        gpu.devices = vec![Device::Node { path: "/dev/kfd".into(), gid: 109 }];
    }
    let (plan, sizes) = plan::make(&inputs).expect("it fits");
    let view = PlanView { node: inputs.node, gpus: inputs.gpus.clone(), sizes, plan: plan.clone() };
    DesiredState {
        config: Config::parse(Path::new("labd.toml"), &toml).expect("valid"),
        plan,
        gpus: inputs.gpus,
        ray_token: inputs.secrets.ray_token,
        store: None,
        view: Arc::new(view),
        credentials: Vec::new(),
        sign_ins: crate::door::SignIns::none(),
    }
}

/// Life of labd.
struct Labd {
    tasks: Vec<AbortHandle>,
    requests: mpsc::Sender<Request>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    ray: watch::Receiver<Arc<RayView>>,
    incidents: watch::Receiver<Arc<Vec<Incident>>>,
    looked_at: watch::Receiver<Option<Moment>>,
    /// What it is told of the ledger: without jobs, which would have changed settings wait.
    ledger: watch::Sender<Arc<LedgerView>>,
    /// Sender that is never used: labd is killed, not stopped.
    _stop: watch::Sender<bool>,
}

impl Drop for Labd {
    /// Kills labd as SIGKILL would: what was sent to the engine is sent, nothing else happens any more.
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Labd {
    fn start(outside: &Outside, journal: &Journal, version: &Arc<Mutex<u32>>, seed: u64) -> Self {
        let now = Timestamp::now();
        let daemon = DaemonView { version: "0".into(), lab: "lab".into(), pid: 1, started_at: now, config: None };
        let node = NodeView {
            hostname: "gpu1".into(),
            address: "192.0.2.7".into(),
            cpus: 16,
            numa_nodes: 1,
            memory_bytes: 32 << 30,
            memory_available_bytes: 16 << 30,
            load_1m: 0.5,
            engine_data: "/var/lib/docker".into(),
            disks: Vec::new(),
        };
        let present = ImageState::Present { id: "i".into(), size_bytes: 1, built_at: now };
        let images: BTreeMap<ImageName, ImageState> = ImageName::ALL.map(|n| (n, present.clone())).into();
        let mut tasks = Vec::new();

        let (tell, engine_view) = watch::channel(EngineView::Connecting);
        let (nudge, mut heard) = mpsc::channel(256);
        let since = journal.memory(EVENTS_HEARD).and_then(|ms| ms.parse().ok()).map(Timestamp::from_millis);
        tasks.push(tokio::spawn(events::watch(outside.clone(), since, tell, nudge)).abort_handle());
        // From the moment that labd is told of a stop by hand it must know that the service is held.
        let (pass, nudges) = mpsc::channel(256);
        let world = outside.clone();
        tasks.push(
            tokio::spawn(async move {
                while let Some(nudge) = heard.recv().await {
                    let stop = (nudge.id.clone(), nudge.at);
                    if nudge.what == EngineEventKind::StoppedByHand {
                        let mut w = world.lock();
                        let still = w.of(&nudge.service).is_some_and(|c| {
                            c.id == nudge.id && matches!(c.run, Run::Exited { .. }) && c.stamp <= nudge.at
                        });
                        if still && w.hand_stops.get(&nudge.service) == Some(&stop) {
                            w.say(format_args!("labd knows that {} was stopped by hand", nudge.service));
                            w.held.insert(nudge.service.clone(), world::now());
                        }
                    }
                    if pass.send(nudge).await.is_err() {
                        return;
                    }
                }
            })
            .abort_handle(),
        );

        let (set_endpoint, aimed) = watch::channel(None);
        let (look, ray) = watch::channel(Arc::new(RayView::default()));
        tasks.push(tokio::spawn(outside.clone().watch_ray(aimed, look)).abort_handle());
        let ear = outside.clone();
        let unregister = Unregister(Arc::new(move |address, before, _| ear.hear_of_dead(address, before)));

        let (requests, asked) = mpsc::channel(32);
        let wanted = *version.lock().expect("no panic under it");
        let version = version.clone();
        let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::unobserved(daemon.clone(), node.clone(), now)));
        let (stop, stopped) = watch::channel(false);
        let (tell_incidents, incidents) = watch::channel(Arc::new(Vec::new()));
        let (looked, looked_at) = watch::channel(None);
        let (ledger, jobs) = watch::channel(Arc::new(LedgerView::default()));
        let parts = Parts {
            engine: Arc::new(outside.clone()),
            ask: Arc::new(outside.clone()),
            images: Images::simulated(watch::channel(images).1),
            ray: Ray::simulated(ray.clone(), set_endpoint, unregister),
            checkpoints: Checkpoints::simulated(),
            jobs,
            installs: watch::channel(Arc::default()).1,
            notify: watch::channel(Arc::default()).1,
            door: watch::channel(DoorView::default()).1,
            page: watch::channel(None).1,
            second: watch::channel(DoorView::default()).1,
            tls: watch::channel(Arc::default()).1,
            scrapes: watch::channel(Scrapes::default()).1,
            config: watch::channel(Arc::new(Config::default())).0,
            upstreams: watch::channel(Arc::default()).0,
            journal: journal.clone(),
            desired: desired(wanted),
            reload: Box::new(move || {
                let read = Ok(desired(*version.lock().expect("no panic under it")));
                Box::pin(std::future::ready(read))
            }),
            daemon,
            requests: asked,
            nudges,
            engine_view,
            node: watch::channel(node).1,
            gpus: outside.lock().gpus.subscribe(),
            replan: Box::new(|_| Box::pin(std::future::ready(Err("the GPUs stay what they are".to_owned())))),
            snapshot,
            incidents: tell_incidents,
            looked_at: looked,
            seed,
            plan: watch::channel(desired(0).view).0,
            credentials: watch::channel(Arc::new(Vec::new())).0,
            stop: stopped,
        };
        tasks.push(tokio::spawn(super::run(parts)).abort_handle());
        Self { tasks, requests, snapshot: snapshots, ray, incidents, looked_at, ledger, _stop: stop }
    }

    /// Sends a command, and waits for the answer as a person would.
    async fn ask(&self, command: Command) -> bool {
        matches!(self.answer(command).await, Some(Ok(_)))
    }

    /// The same, with the answer; `None` where there is none in time.
    async fn answer(&self, command: Command) -> Option<Result<String, Refusal>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { command, reply }).await.ok()?;
        tokio::time::timeout(Duration::from_secs(5), answer).await.ok()?.ok()
    }
}

/// Lab, its outside, and the people who do things to it.
struct History {
    outside: Outside,
    journal: Journal,
    version: Arc<Mutex<u32>>,
    seed: u64,
    /// The running labd; absent while it is dead.
    labd: Option<Labd>,
    labd_back: Option<Timestamp>,
    /// Jobs of this lab, where a history has some.
    jobs: Option<jobs::People>,
    reliefs: Vec<(Timestamp, Relief)>,
}

/// Outcome of a history.
struct Outcome {
    violations: Vec<String>,
    trace: Vec<String>,
    /// Time from the last fault's end until everything was ready.
    recovery: Duration,
    simulated: Duration,
}

impl History {
    fn new(seed: u64) -> Self {
        let version = Arc::new(Mutex::new(0));
        let outside = Outside(Arc::new(Mutex::new(World::new(seed, desired(0).plan, &desired(0).gpus))));
        let journal = Journal::in_memory();
        let labd = Some(Labd::start(&outside, &journal, &version, seed));
        Self { outside, journal, version, seed, labd, labd_back: None, jobs: None, reliefs: Vec::new() }
    }

    /// What people are shown; labd must live.
    fn shown(&self) -> Arc<Snapshot> {
        self.labd.as_ref().expect("it lives").snapshot.borrow().clone()
    }

    /// State in which people are shown a service.
    fn state(&self, name: &str) -> Option<ServiceState> {
        self.shown().services.iter().find(|v| v.name == name).map(|v| v.state)
    }

    /// Lets time pass.
    async fn pass(&mut self, d: Duration) {
        let until = now().plus(d);
        while now() < until {
            sleep(TICK).await;
            let now = now();
            let due: Vec<Relief> = self.reliefs.extract_if(.., |(at, _)| *at <= now).map(|(_, r)| r).collect();
            {
                let mut w = self.outside.lock();
                for relief in due {
                    if let Some((after, next)) = relief.strike(&mut w) {
                        self.reliefs.push((now.plus(after), next));
                    }
                }
                w.tick();
            }
            if let Some(jobs) = &mut self.jobs {
                jobs.tick(&self.outside, self.labd.as_ref());
            }
            if self.labd_back.is_some_and(|at| at <= now) {
                self.labd_back = None;
                self.outside.lock().say("labd starts");
                self.labd = Some(Labd::start(&self.outside, &self.journal, &self.version, self.seed));
            }
        }
    }

    async fn strike(&mut self, fault: &Fault) {
        let now = now();
        {
            let mut w = self.outside.lock();
            // What needs an engine does not happen without one, and an engine ends once at a time.
            let by_hand = matches!(
                fault,
                Fault::DockerStop(_)
                    | Fault::DockerStart(_)
                    | Fault::DockerKill(..)
                    | Fault::DockerRestart(_)
                    | Fault::DockerRemove(_)
                    | Fault::DockerPause(..)
                    | Fault::Foreign(..)
                    | Fault::EngineRestart(_)
                    | Fault::LiveRestore(_)
                    | Fault::EngineMute(_)
                    | Fault::PowerCut(..)
            );
            if by_hand && w.power != Power::On {
                return;
            }
            w.say(format_args!("FAULT {fault:?}"));
            fault.strike(&mut w);
        }
        if let Some((after, relief)) = fault.relief() {
            self.reliefs.push((now.plus(after), relief));
        }
        match fault {
            Fault::KillLabd(back) | Fault::PowerCut(_, _, back) => {
                self.labd = None;
                self.labd_back = Some(now.plus(*back));
            }
            Fault::GpuLate(..) => {
                self.labd = None;
                self.labd_back = Some(now.plus(TICK));
            }
            Fault::LabdStop(s) => {
                self.outside.lock().touched.insert(s.clone(), now);
                if self.ask(Command::Stop { service: s.clone() }).await {
                    let mut w = self.outside.lock();
                    w.held.entry(s.clone()).or_insert(world::now());
                }
            }
            Fault::LabdStart(s) => {
                self.outside.lock().held.remove(s);
                self.ask(Command::Start { service: s.clone() }).await;
            }
            Fault::LabdRestart(s) => {
                {
                    let mut w = self.outside.lock();
                    w.restart_asked.insert(s.clone(), now);
                    w.held.remove(s);
                }
                self.ask(Command::Restart { service: s.clone() }).await;
            }
            Fault::Reload => {
                let version = {
                    let mut version = self.version.lock().expect("no panic under it");
                    *version += 1;
                    *version
                };
                // A dead labd reads it when it starts the next time.
                self.ask(Command::Reload).await;
                self.outside.lock().plan = desired(version).plan;
            }
            _ => {}
        }
    }

    async fn ask(&self, command: Command) -> bool {
        match &self.labd {
            Some(labd) => labd.ask(command).await,
            None => false,
        }
    }

    /// Services that should be ready and are not, in truth or in labd's view.
    fn missing(&self) -> Vec<String> {
        let Some(labd) = &self.labd else { return vec!["labd".to_owned()] };
        let snapshot = labd.snapshot.borrow().clone();
        let w = self.outside.lock();
        let state = |name: &str| snapshot.services.iter().find(|v| v.name == name).map(|v| v.state);
        let held = |name: &str| state(name) == Some(ServiceState::Held) && w.touched.contains_key(name);
        let on = w.plan.services.iter().filter(|s| s.enabled);
        on.filter_map(|s| {
            let waits_for_held = s.requires.iter().any(|r| match r {
                Requirement::Gcs => held("ray-head"),
                Requirement::Ready(other) => held(other),
            });
            let ready = state(&s.name) == Some(ServiceState::Ready) && w.serves(&s.name);
            (!held(&s.name) && !waits_for_held && !ready).then(|| {
                let why = snapshot.services.iter().find(|v| v.name == s.name).map_or("", |v| &v.last_reason);
                format!("{} is {:?} ({why}); serves: {}", s.name, state(&s.name), w.serves(&s.name))
            })
        })
        .collect()
    }

    /// Waits until everything is ready and stays so for [`STAYS`]; fails when that does not begin within `bound`. Returns
    /// how long it took to begin.
    async fn ready_within(&mut self, bound: Duration, what: &str) -> Duration {
        let from = now();
        let mut ready_since = None;
        loop {
            let (missing, now) = (self.missing(), now());
            if missing.is_empty() {
                let since: Timestamp = *ready_since.get_or_insert(now);
                if now.since(since) >= STAYS {
                    return since.since(from);
                }
            } else {
                ready_since = None;
                if now.since(from) > bound {
                    let line = format!("not ready {} s after {what}: {}", bound.as_secs(), missing.join("; "));
                    self.outside.lock().violations.push(line);
                    return bound;
                }
            }
            self.pass(Duration::from_millis(500)).await;
        }
    }

    async fn run(mut self) -> Outcome {
        self.ready_within(Duration::from_mins(1), "the beginning").await;
        let mut dice = Dice::new(self.seed ^ 0x5eed);
        let services = services();
        for _ in 0..dice.between(3, 13) {
            // Often while the last one is being dealt with, sometimes in peace.
            let pause = if dice.one_in(3) { dice.ms(1, 800) } else { dice.ms(500, 45_000) };
            self.pass(pause).await;
            let fault = if dice.one_in(10) { Fault::clock(&mut dice) } else { Fault::any(&mut dice, &services) };
            self.strike(&fault).await;
        }
        self.end_faults().await;
        let recovery = self.ready_within(BOUND, "the last fault").await;
        self.outcome(recovery)
    }

    /// Waits for the end of what ends by itself, and ends the rest.
    async fn end_faults(&mut self) {
        while !self.reliefs.is_empty() || self.labd.is_none() {
            self.pass(Duration::from_secs(1)).await;
        }
        let mut w = self.outside.lock();
        w.say("faults are over");
        w.start_fails.clear();
        w.create_fails.clear();
        w.create_lost.clear();
        w.works.clear();
        w.stop_fails.clear();
        w.remove_fails.clear();
        // It is not killed for that: somebody ends what blocks it.
        if let Some(c) = w.of_mut("jupyter") {
            c.frozen = false;
        }
        let now = now();
        (w.slow_until, w.busy_until, w.deaf_until) = (now, now, now);
    }

    fn outcome(&self, recovery: Duration) -> Outcome {
        let mut w = self.outside.lock();
        Outcome {
            violations: std::mem::take(&mut w.violations),
            trace: std::mem::take(&mut w.trace),
            recovery,
            simulated: now().since(EPOCH),
        }
    }
}

/// Services that a person has switched on.
fn services() -> Vec<String> {
    desired(0).plan.services.iter().filter(|s| s.enabled).map(|s| s.name.clone()).collect()
}

fn history(seed: u64) -> Outcome {
    simulate(|| History::new(seed).run())
}

/// Runs a history in simulated time.
fn simulate<F: Future<Output = Outcome>>(run: impl FnOnce() -> F) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        simulated::begin(Some(EPOCH));
        let outcome = run().await;
        simulated::begin(None);
        outcome
    })
}

/// Runs a history in which nothing forbidden may be done.
fn scenario<F: Future<Output = Outcome>>(run: impl FnOnce() -> F) -> Outcome {
    let outcome = simulate(run);
    assert_eq!(outcome.violations, Vec::<String>::new());
    outcome
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_nothing_forbidden_is_done_and_everything_comes_back() {
    run_many("supervise::sim", number("LABD_SIM_HISTORIES").unwrap_or(200), history);
}

/// Runs histories from seed 1 on, side by side; or the one of `LABD_SIM_SEED`, and prints what happened. `test` is how
/// the failing ones are run again.
fn run_many(test: &str, histories: u64, history: fn(u64) -> Outcome) {
    if let Some(seed) = number("LABD_SIM_SEED") {
        let outcome = history(seed);
        for line in &outcome.trace {
            print(line);
        }
        assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
        return;
    }
    let begun = Instant::now();
    let limit = number("LABD_SIM_SECONDS").map(Duration::from_secs);
    let (next, done, simulated, slowest) = (AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| begun.elapsed() < limit) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > histories {
                        return;
                    }
                    let outcome = history(seed);
                    done.fetch_add(1, Ordering::Relaxed);
                    simulated.fetch_add(outcome.simulated.as_secs(), Ordering::Relaxed);
                    slowest.fetch_max(outcome.recovery.as_secs(), Ordering::Relaxed);
                    if !outcome.violations.is_empty() {
                        let mut failed = failed.lock().expect("no panic under it");
                        failed.push((seed, outcome.violations));
                        stop.store(failed.len() >= 5, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic under it");
    print(&format!(
        "{} histories, {} simulated hours in {:.1} s; the slowest recovery took {} s",
        done.load(Ordering::Relaxed),
        simulated.load(Ordering::Relaxed) / 3_600,
        begun.elapsed().as_secs_f64(),
        slowest.load(Ordering::Relaxed),
    ));
    let lines: Vec<String> = failed
        .iter()
        .map(|(seed, violations)| {
            format!("LABD_SIM_SEED={seed} cargo test --lib {test} -- --nocapture\n    {}", violations.join("\n    "))
        })
        .collect();
    assert!(failed.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn what_does_not_succeed_for_an_hour_is_tried_now_and_then_and_told_in_a_few_lines() {
    // What a person has stopped by labd is nothing forbidden, which the outside does not know.
    simulate(|| async {
        let mut h = History::new(1);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        {
            let mut w = h.outside.lock();
            w.start_fails.insert("ray-worker-0".into(), u32::MAX);
            w.exit("ray-worker-0", 137, false);
            w.stop_fails.insert("ray-worker-1".into(), u32::MAX);
            w.remove_fails.insert("jupyter".into(), u32::MAX);
            w.exit("jupyter", 137, false);
            w.half_remove("jupyter");
        }
        h.ask(Command::Stop { service: "ray-worker-1".into() }).await;
        h.pass(Duration::from_hours(1)).await;
        let labd = h.labd.as_ref().expect("it lives");
        let snapshot = labd.snapshot.borrow().clone();
        for (name, state, why) in [
            ("ray-worker-0", ServiceState::CrashLoop, "port 8265 is taken; keeps failing, tried once a minute"),
            ("ray-worker-1", ServiceState::Blocked, "cannot be stopped: tried to stop the container, but"),
            (
                "jupyter",
                ServiceState::Blocked,
                "cannot be removed: unable to remove filesystem: operation not permitted",
            ),
        ] {
            let shown = snapshot.services.iter().find(|v| v.name == name).expect("planned");
            assert!(shown.state == state && shown.last_reason.starts_with(why), "{shown:?}");
            let service = Some(name.to_owned());
            let query = EventQuery { after_seq: None, service, kind: None, limit: 500, newest: true };
            let told = h.journal.events(query).await;
            assert!(told.len() <= 24, "{}: {told:#?}", told.len());
            let tries = h.outside.lock().trace.iter().filter(|l| l.contains("labd: ") && l.ends_with(name)).count();
            assert!((5..=220).contains(&tries), "{name} was tried {tries} times");
        }
        {
            let mut w = h.outside.lock();
            w.start_fails.clear();
            w.stop_fails.clear();
            w.remove_fails.clear();
        }
        h.pass(Duration::from_secs(80)).await;
        h.ask(Command::Start { service: "ray-worker-1".into() }).await;
        h.ready_within(BOUND, "the end of the refusals").await;
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn changed_settings_wait_for_what_trains_and_a_person_can_have_them_at_once() {
    scenario(|| async {
        let mut h = History::new(5);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let hash = |h: &History, s: &str| h.outside.lock().of(s).map(|c| c.hash.clone());
        let services = ["ray-worker-0", "ray-worker-1", "ray-head", "ray-driver", "jupyter"];
        let before = services.map(|s| hash(&h, s));
        h.strike(&Fault::Works("ray-worker-0".into(), Duration::from_hours(1))).await;
        h.pass(Duration::from_secs(20)).await;
        h.strike(&Fault::Reload).await;
        h.pass(Duration::from_mins(10)).await;
        let renewed = |h: &History| {
            let now = services.map(|s| hash(h, s));
            [0, 1, 2, 3, 4].map(|i| now[i] != before[i])
        };
        // The head's settings are the same; the driver node waits for what runs, JupyterLab for its next stop.
        assert_eq!(renewed(&h), [false, true, false, false, false], "the idle worker alone");
        let shown = h.shown();
        let reason = |name: &str| shown.services.iter().find(|v| v.name == name).map(|v| v.last_reason.clone());
        let why = "its settings changed; it is recreated after what runs on it (`labd apply` does it now)";
        assert_eq!(reason("ray-worker-0").as_deref(), Some(why));
        // Another labd knows it as well.
        h.strike(&Fault::KillLabd(Duration::from_secs(1))).await;
        h.pass(Duration::from_mins(1)).await;
        assert_eq!(renewed(&h), [false, true, false, false, false]);
        for service in services {
            h.outside.lock().touched.insert(service.to_owned(), now());
        }
        assert!(h.ask(Command::Apply).await);
        h.ready_within(BOUND, "the settings are applied").await;
        assert_eq!(renewed(&h), [true, true, false, true, true]);
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn what_carries_every_job_waits_for_the_window_and_no_longer() {
    scenario(|| async {
        let mut h = History::new(6);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let driver = |h: &History| h.outside.lock().of("ray-driver").map(|c| c.hash.clone());
        let before = driver(&h);
        h.strike(&Fault::Works("ray-worker-0".into(), Duration::from_hours(48))).await;
        h.pass(Duration::from_secs(20)).await;
        h.strike(&Fault::Reload).await;
        h.pass(Duration::from_hours(1)).await;
        // The window goes on over a restart of labd.
        h.strike(&Fault::KillLabd(Duration::from_secs(1))).await;
        h.pass(Duration::from_mins(55)).await;
        assert_eq!(driver(&h), before);
        h.outside.lock().touched.insert("ray-driver".into(), now().plus(Duration::from_hours(1)));
        h.pass(Duration::from_mins(10)).await;
        assert_ne!(driver(&h), before);
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn an_engine_that_does_not_say_what_containers_do_is_said_and_what_probes_see_is_shown() {
    scenario(|| async {
        let mut h = History::new(4);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        h.strike(&Fault::EngineMute(Duration::from_mins(2))).await;
        h.pass(Duration::from_secs(6)).await;
        h.strike(&Fault::Freeze("minio".into(), Some(Duration::from_mins(2)))).await;
        h.pass(Duration::from_secs(35)).await;
        let snapshot = h.shown();
        let said = |part: &str| snapshot.notices.iter().any(|n| n.text.contains(part));
        assert!(said("does not say what front-door, grafana, jupyter, minio"), "{:?}", snapshot.notices);
        assert_eq!(h.state("minio"), Some(ServiceState::Unhealthy), "and not ready for as long as the engine hangs");
        assert_eq!(h.state("ray-worker-0"), Some(ServiceState::Ready));
        h.end_faults().await;
        h.ready_within(BOUND, "the engine's silence").await;
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn an_engine_that_ends_after_the_clock_was_set_back_is_nobodys_stop() {
    scenario(|| async {
        let mut h = History::new(3);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        h.strike(&Fault::ClockSet(-3_600_000)).await;
        h.pass(Duration::from_secs(20)).await;
        h.strike(&Fault::EngineRestart(Duration::from_secs(5))).await;
        h.end_faults().await;
        h.ready_within(BOUND, "the engine's restart").await;
        let snapshot = h.shown();
        assert!(snapshot.services.iter().all(|s| s.state != ServiceState::Held), "{snapshot:?}");
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn a_clock_that_is_set_by_an_hour_makes_nobody_wait_and_no_incident_stay_open() {
    for step in [-3_600_000, 3_600_000] {
        simulate(|| async move {
            let mut h = History::new(2);
            h.ready_within(Duration::from_mins(1), "the beginning").await;
            h.pass(Duration::from_mins(3)).await;
            // Crashes enough for a wait, and the clock is set in the middle of it.
            for _ in 0..3 {
                h.strike(&Fault::Crash("ray-worker-0".into(), 1)).await;
                h.pass(Duration::from_secs(6)).await;
            }
            h.strike(&Fault::Crash("ray-worker-0".into(), 1)).await;
            h.pass(Duration::from_millis(300)).await;
            h.strike(&Fault::ClockSet(step)).await;
            assert!(h.ready_within(Duration::from_secs(30), "the clock was set").await <= Duration::from_secs(20));
            h.strike(&Fault::Crash("ray-driver".into(), 1)).await;
            h.pass(Duration::from_secs(1)).await;
            h.strike(&Fault::LabdRestart("ray-worker-1".into())).await;
            h.ready_within(Duration::from_secs(30), "the next crash").await;
            let incidents = h.labd.as_ref().expect("it lives").incidents.borrow().clone();
            for name in ["ray-worker-0", "ray-worker-1", "ray-driver"] {
                let newest = incidents.iter().rfind(|i| i.service == name).expect("it died");
                assert!(newest.ready_at.is_some(), "{step}: {newest:#?}");
            }
            assert!(incidents.iter().any(|i| i.service == "ray-driver"), "{incidents:#?}");
            let w = h.outside.lock();
            assert!(w.held.is_empty() && w.violations.is_empty(), "{:?}", w.violations);
            drop(w);
            h.outcome(Duration::ZERO)
        });
    }
}

#[test]
fn a_worker_waits_for_its_late_or_lost_gpu_and_leaves_a_quarantined_one_and_no_other_is_touched() {
    let (worker, other) = ("ray-worker-0", "ray-worker-1");
    let lasts = Duration::from_mins(2);
    for (fault, state, why) in [
        (Fault::GpuMissing(worker.into(), lasts), ServiceState::Waiting, "waits for its GPU"),
        (Fault::GpuLate(worker.into(), lasts), ServiceState::Waiting, "waits for its GPU"),
        (Fault::Quarantine(worker.into(), lasts), ServiceState::Held, "its GPU is quarantined"),
    ] {
        simulate(|| async move {
            let mut h = History::new(8);
            h.ready_within(Duration::from_mins(1), "the beginning").await;
            let id = |h: &History, s: &str| h.outside.lock().of(s).and_then(|c| Some((c.id.clone(), c.running()?)));
            let before = id(&h, other);
            h.strike(&fault).await;
            h.pass(Duration::from_secs(90)).await;
            let shown = h.shown();
            let service = shown.services.iter().find(|v| v.name == worker).expect("planned").clone();
            assert!(service.state == state && service.last_reason.starts_with(why), "{fault:?}: {service:?}");
            assert_eq!(id(&h, worker), None, "{fault:?}");
            h.end_faults().await;
            h.ready_within(BOUND, "its GPU is there").await;
            assert_eq!(id(&h, other), before, "{fault:?}");
            assert!(h.outside.lock().violations.is_empty());
            h.outcome(Duration::ZERO)
        });
    }
}

#[test]
fn a_worker_whose_gpu_is_quarantined_is_started_by_no_command_but_the_release_and_each_says_so() {
    scenario(|| async {
        let mut h = History::new(8);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let worker = "ray-worker-0";
        let service = || worker.to_owned();
        h.strike(&Fault::Quarantine(service(), Duration::from_mins(2))).await;
        h.pass(Duration::from_mins(1)).await;
        let labd = h.labd.as_ref().expect("it runs");
        for command in [Command::Start { service: service() }, Command::Restart { service: service() }] {
            let refused = labd.answer(command).await.expect("an answer").expect_err("it would not end");
            let refused = refused.to_string();
            assert!(refused.contains("`labd gpu release SIM-0`") && !refused.contains('\n'), "{refused}");
        }
        // Stopped by a person as well: that is ended, and what is left is said.
        assert!(labd.ask(Command::Stop { service: service() }).await);
        let started =
            labd.answer(Command::Start { service: service() }).await.expect("an answer").expect("it is ended");
        assert!(started.contains("not started yet") && started.contains("`labd gpu release SIM-0`"), "{started}");
        h.end_faults().await;
        h.ready_within(BOUND, "its GPU is there").await;
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn a_worker_whose_gpu_was_healed_is_another_container_once_also_for_the_next_labd() {
    scenario(|| async {
        let mut h = History::new(9);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let id = |h: &History, s: &str| h.outside.lock().of(s).and_then(|c| Some((c.id.clone(), c.running()?)));
        let before = ["ray-worker-0", "ray-worker-1"].map(|s| id(&h, s));
        h.strike(&Fault::GpuHealed("ray-worker-0".into())).await;
        h.pass(Duration::from_secs(5)).await;
        h.ready_within(BOUND, "the driver healed its GPU").await;
        let after = ["ray-worker-0", "ray-worker-1"].map(|s| id(&h, s));
        assert!(after[0].is_some() && after[0] != before[0]);
        assert_eq!(after[1], before[1], "the other tenant's");
        h.strike(&Fault::ClockSet(-3_600_000)).await;
        h.strike(&Fault::Crash("ray-worker-0".into(), 1)).await;
        h.pass(Duration::from_secs(5)).await;
        h.ready_within(BOUND, "it died by itself").await;
        h.strike(&Fault::ClockSet(3_600_000)).await;
        let after = ["ray-worker-0", "ray-worker-1"].map(|s| id(&h, s));
        h.pass(Duration::from_mins(3)).await;
        assert_eq!(["ray-worker-0", "ray-worker-1"].map(|s| id(&h, s)), after, "what was started after that");
        h.strike(&Fault::KillLabd(Duration::from_secs(1))).await;
        h.pass(Duration::from_mins(3)).await;
        assert_eq!(["ray-worker-0", "ray-worker-1"].map(|s| id(&h, s)), after);
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn a_container_whose_network_was_recreated_is_recreated_within_seconds() {
    scenario(|| async {
        let mut h = History::new(7);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        h.strike(&Fault::NetworkGone).await;
        h.strike(&Fault::Crash("jupyter".into(), 1)).await;
        assert!(h.ready_within(Duration::from_secs(20), "the network is gone").await <= Duration::from_secs(10));
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn what_nobody_told_is_seen_at_the_next_look_and_no_container_is_asked_for_that_is_as_it_was() {
    scenario(|| async {
        let mut h = History::new(8);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        h.pass(Duration::from_mins(1)).await;
        let asked = |h: &History| h.outside.lock().observations;
        let before = asked(&h);
        h.pass(Duration::from_mins(2)).await;
        assert_eq!(asked(&h) - before, 2 * desired(0).plan.services.len(), "each once a minute");
        let judges = |h: &History, unjudged| {
            let view = LedgerView { unjudged, ..LedgerView::default() };
            h.labd.as_ref().expect("it runs").ledger.send_replace(Arc::new(view));
        };
        judges(&h, true);
        let before = asked(&h);
        h.pass(RESYNC * 4).await;
        let each = 4 * desired(0).plan.services.len();
        assert!(
            (each..=each + desired(0).plan.services.len()).contains(&(asked(&h) - before)),
            "what a job failed of is asked for"
        );
        judges(&h, false);
        h.strike(&Fault::DockerStop("jupyter".into())).await;
        h.pass(Duration::from_secs(10)).await;
        assert_eq!(h.state("jupyter"), Some(ServiceState::Held));
        h.strike(&Fault::EventsLost(Duration::from_mins(5))).await;
        h.strike(&Fault::DockerStart("jupyter".into())).await;
        h.pass(RESYNC + Duration::from_secs(1)).await;
        assert_ne!(h.state("jupyter"), Some(ServiceState::Held), "it runs");
        h.end_faults().await;
        h.ready_within(BOUND, "it was started by hand").await;
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn what_was_decided_before_the_engine_hung_is_decided_again() {
    scenario(|| async {
        let mut h = History::new(9);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let worker = "ray-worker-1";
        h.outside.lock().set_gpu(worker, GpuState::Missing);
        h.pass(Duration::from_secs(20)).await;
        h.strike(&Fault::EngineMute(Duration::from_secs(10))).await;
        h.outside.lock().set_gpu(worker, GpuState::Ok);
        h.pass(Duration::from_secs(1)).await;
        h.outside.lock().set_gpu(worker, GpuState::Quarantined);
        h.pass(Duration::from_secs(20)).await;
        assert!(h.outside.lock().of(worker).is_some_and(|c| matches!(c.run, Run::Exited { .. })));
        h.outside.lock().set_gpu(worker, GpuState::Ok);
        h.ready_within(BOUND, "its GPU is there again").await;
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn a_lab_that_goes_down_ends_although_the_engine_keeps_a_container() {
    // What a person has stopped by labd is nothing forbidden, which the outside does not know.
    simulate(|| async {
        let mut h = History::new(1);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        h.outside.lock().remove_fails.insert("ray-driver".into(), u32::MAX);
        h.ask(Command::Down).await;
        h.pass(Duration::from_mins(1)).await;
        let labd = h.labd.as_ref().expect("it was started");
        assert!(labd.requests.is_closed(), "it has ended");
        let query = EventQuery { after_seq: None, service: None, kind: None, limit: 500, newest: true };
        let told = h.journal.events(query).await;
        let left: Vec<&str> = told.iter().filter(|e| e.what == "left").map(|e| e.reason.as_str()).collect();
        let line = "the container labd-ray-driver is left: unable to remove filesystem: operation not permitted";
        assert_eq!(left, [line]);
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn memory_that_runs_out_is_told_once_whether_the_container_lives_on_or_not() {
    scenario(|| async {
        let mut h = History::new(1);
        h.ready_within(Duration::from_mins(1), "the beginning").await;
        let told = |h: &History| {
            let labd = h.labd.as_ref().expect("it lives");
            let all = labd.incidents.borrow().iter().map(|i| (i.service.clone(), i.cause)).collect::<Vec<_>>();
            let notices = labd.snapshot.borrow().notices.clone();
            (all, notices.into_iter().map(|n| n.text).filter(|t| t.contains("out of memory")).collect::<Vec<_>>())
        };
        assert_eq!(told(&h), (vec![], vec![]));
        h.outside.lock().runs_out_of_memory("ray-driver");
        h.pass(Duration::from_millis(200)).await;
        h.outside.lock().runs_out_of_memory("ray-driver");
        h.pass(Duration::from_secs(3)).await;
        let inside = ("ray-driver".to_owned(), Cause::OomInside);
        let (incidents, notices) = told(&h);
        assert_eq!(incidents, std::slice::from_ref(&inside), "one burst");
        assert!(notices.len() == 1 && notices[0].starts_with("ray-driver: out of memory once"), "{notices:?}");
        // The container itself: its exit says so, and says all.
        h.outside.lock().exit("ray-driver", 137, true);
        h.pass(Duration::from_secs(3)).await;
        let (incidents, notices) = told(&h);
        assert_eq!(incidents, [inside, ("ray-driver".to_owned(), Cause::Oom)]);
        assert!(notices.len() == 1 && notices[0].contains("2 times"), "{notices:?}");
        h.ready_within(BOUND, "the exit").await;
        h.pass(Duration::from_mins(61)).await;
        assert_eq!(told(&h).1, [""; 0], "an hour later it is over");
        h.outcome(Duration::ZERO)
    });
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 1..=5 {
        assert_eq!(history(seed).trace, history(seed).trace, "seed {seed}");
    }
}

/// Prints a test's own words, past the lint that keeps prints out of the daemon.
#[expect(clippy::print_stderr, reason = "how many histories were run is the result")]
fn print(line: &str) {
    eprintln!("{line}");
}
