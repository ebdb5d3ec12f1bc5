//! `decide` by property: one service over a model of the engine, with everything that can happen to it.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{
    Action, EngineOutage, GONE_AFTER, GpuBlock, GpuVisibility, Health, History, Hold, Image, Observation,
    OutsideActions, Wanted, decide, hold, missing, rollout::RolloutTurn,
};
use crate::{
    engine::{EngineError, Observed, ObservedContainer, RunState},
    snapshot::ServiceState,
    time::{Moment, Timestamp},
};

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Crash(i64),
    /// The first process ends, and the engine does not say so yet.
    Ends,
    Vanish,
    Health(u8),
    Image(u8),
    Gcs(bool),
    Unmet(bool),
    Hold(bool),
    Barred(bool),
    /// `docker stop`: the exit is seen so many milliseconds before the engine's event.
    DockerStop(u64),
    /// `docker start`.
    DockerStart,
    /// `docker kill -s TERM`: a signal, an end, and no stop.
    DockerKill,
    Lost,
    /// The GPU is gone inside the container.
    Gone,
    /// The engine ends, all containers with it, and begins again.
    EngineRestart,
    Restart,
    NewSettings,
    StepFails,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u64..200_000).prop_map(Event::Pass),
        2 => prop_oneof![Just(137_i64), Just(1), Just(0)].prop_map(Event::Crash),
        1 => Just(Event::Ends),
        1 => Just(Event::Vanish),
        3 => (0_u8..3).prop_map(Event::Health),
        1 => (0_u8..3).prop_map(Event::Image),
        1 => any::<bool>().prop_map(Event::Gcs),
        1 => any::<bool>().prop_map(Event::Unmet),
        1 => any::<bool>().prop_map(Event::Hold),
        1 => any::<bool>().prop_map(Event::Barred),
        1 => (0_u64..1_500).prop_map(Event::DockerStop),
        1 => Just(Event::DockerStart),
        1 => Just(Event::DockerKill),
        1 => Just(Event::Lost),
        1 => Just(Event::Gone),
        1 => Just(Event::EngineRestart),
        1 => Just(Event::Restart),
        1 => Just(Event::NewSettings),
        1 => Just(Event::StepFails),
    ]
}

/// World of one service: the engine and whatever else is outside of labd.
struct World {
    now: Timestamp,
    seen: Observed,
    health: Health,
    image: Image,
    gcs: bool,
    unmet: bool,
    hold: Option<Hold>,
    touched: Option<OutsideActions>,
    last_event: Option<Timestamp>,
    away: Option<EngineOutage>,
    /// Time at which a process of the container was killed for memory.
    oom: Option<Timestamp>,
    off: bool,
    barred: bool,
    version: u32,
    made: u32,
    kill_silent: bool,
    fail_next: bool,
    /// Answer of the engine to each call from now on, without doing anything.
    answer: Option<Result<(), EngineError>>,
    /// Number of calls that were answered so.
    tries: u32,
    /// Lines that the journal was told of them.
    told: Vec<String>,
    /// Reason of the last decision.
    reason: String,
    /// Time of the last end that a decision told.
    ended_at: Option<Timestamp>,
    memory: History,
    started_by_restart_wish: bool,
}

impl World {
    fn new() -> Self {
        Self {
            now: Timestamp::from_millis(1_000_000),
            seen: Observed::Absent,
            health: Health::Unknown,
            image: Image::Present,
            gcs: true,
            unmet: false,
            hold: None,
            touched: None,
            last_event: None,
            away: None,
            oom: None,
            off: false,
            barred: false,
            version: 1,
            made: 0,
            kill_silent: true,
            fail_next: false,
            answer: None,
            tries: 0,
            told: Vec::new(),
            reason: String::new(),
            ended_at: None,
            memory: History::default(),
            started_by_restart_wish: false,
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Pass(ms) => self.now = self.now.plus(Duration::from_millis(*ms)),
            Event::Crash(code) => {
                self.exit(*code);
            }
            Event::Ends => {
                if let Observed::Ours(c) = &mut self.seen
                    && matches!(c.run, RunState::Running { .. })
                {
                    c.run = RunState::Ending;
                    self.health = Health::Unknown;
                }
            }
            Event::DockerStop(late) => {
                let signalled = self.now;
                if let Some(id) = self.exit(143) {
                    self.touched =
                        Some(OutsideActions { id, signalled: Some(signalled), stopped: None, by_hand: None });
                    let ended = self.now;
                    // Looked at before the word is there, and again when it is.
                    let _ = self.step();
                    self.now = ended.plus(Duration::from_millis(*late));
                    if let Some(touched) = &mut self.touched {
                        (touched.stopped, touched.by_hand) = (Some(self.now), Some(self.now));
                    }
                }
            }
            Event::DockerStart => {
                let now = self.now;
                if let Observed::Ours(c) = &mut self.seen
                    && matches!(c.run, RunState::Exited { .. })
                {
                    c.run = RunState::Running { started_at: now };
                    self.health = Health::Unknown;
                }
            }
            Event::DockerKill => {
                let signalled = self.now;
                if let Some(id) = self.exit(143) {
                    self.touched =
                        Some(OutsideActions { id, signalled: Some(signalled), stopped: None, by_hand: None });
                }
            }
            Event::Gone => self.health = Health::Gone { reason: "the GPU is gone".into(), since: self.now },
            Event::Lost => {
                self.health =
                    Health::Lost { reason: "a new cluster".into(), good_at: Moment::from_millis(self.now.as_millis()) }
            }
            Event::EngineRestart => {
                let from = self.now;
                self.exit(143);
                self.now = self.now.plus(Duration::from_secs(3));
                self.away = Some(EngineOutage { from, to: Some(self.now) });
            }
            Event::Vanish => {
                self.seen = Observed::Absent;
                self.health = Health::Unknown;
            }
            Event::Health(0) => self.health = Health::Unknown,
            Event::Health(1) => self.health = Health::Passing,
            Event::Health(_) => self.health = self.failing(),
            Event::Image(0) => self.image = Image::Present,
            Event::Image(1) => self.image = Image::Preparing("step 1/2".into()),
            Event::Image(_) => self.image = Image::Unavailable("no registry".into()),
            Event::Gcs(on) => self.gcs = *on,
            Event::Unmet(unmet) => self.unmet = *unmet,
            Event::Barred(barred) => self.barred = *barred,
            Event::Hold(held) => {
                self.hold = held.then_some(Hold::Asked);
                if !held {
                    self.touched = None;
                }
            }
            Event::Restart => {
                self.memory.reset_failures();
                self.memory.restart =
                    matches!(&self.seen, Observed::Ours(c) if matches!(c.run, RunState::Running { .. }));
                self.started_by_restart_wish = self.memory.restart;
            }
            Event::NewSettings => self.version += 1,
            Event::StepFails => self.fail_next = true,
        }
    }

    /// Puts the container into this state.
    fn run(&mut self, run: RunState) {
        if let Observed::Ours(c) = &mut self.seen {
            c.run = run;
        }
        self.health = Health::Unknown;
    }

    fn failing(&self) -> Health {
        let now = Moment::from_millis(self.now.as_millis());
        Health::Failing { reason: "no answer".into(), since: now, good_at: now, alive: false }
    }

    /// Ends the container, if it runs.
    fn exit(&mut self, code: i64) -> Option<String> {
        let now = self.now;
        let Observed::Ours(c) = &mut self.seen else { return None };
        if !matches!(c.run, RunState::Running { .. } | RunState::Ending) {
            return None;
        }
        c.run = RunState::Exited { code, oom: false, finished_at: now, error: String::new() };
        self.health = Health::Unknown;
        Some(c.id.clone())
    }

    fn wanted(&self) -> Wanted {
        match self.hold {
            _ if self.off => Wanted::Off,
            Some(hold) => Wanted::Held(hold),
            None if self.barred => Wanted::Barred,
            None => Wanted::Up,
        }
    }

    fn hash(&self) -> String {
        format!("v{}", self.version)
    }

    /// Decides once, checks what must never be, takes the step. Returns the state and whether a step was taken.
    fn step(&mut self) -> Result<(ServiceState, bool), TestCaseError> {
        self.now = self.now.plus(Duration::from_millis(5));
        let hash = self.hash();
        let seen = self.seen.clone();
        let restart = self.memory.restart;
        let before = self.hold;
        self.hold = hold(before, &seen, self.touched.as_ref(), self.now);
        let wanted = self.wanted();
        let bar = self.barred.then(|| GpuBlock { quarantine: true, reason: "its GPU is lost".to_owned() });
        let situation = Observation {
            name: "ray-worker-0",
            container: "lab-ray-worker-0",
            hash: &hash,
            start_deadline: Duration::from_mins(2),
            kill_silent: self.kill_silent,
            stop_timeout: Duration::from_secs(40),
            is_ray_node: true,
            wanted,
            seen: &seen,
            touched: self.touched.as_ref(),
            last_event: self.last_event,
            away: self.away,
            oom: self.oom,
            health: &self.health,
            image: &self.image,
            unmet: (self.unmet || !self.gcs).then(|| "waits for minio".to_owned()),
            gcs: self.gcs,
            turn: RolloutTurn::Now,
            spare_worker: false,
            bar: bar.as_ref(),
            seed: 7,
        };
        let decision = decide(&situation, &mut self.memory, self.now.into());
        prop_assert!(!decision.reason.contains('\n'));
        let running = matches!(&seen, Observed::Ours(c) if matches!(c.run, RunState::Running { .. }));
        let unchanged = matches!(&seen, Observed::Ours(c) if c.spec_hash == hash);
        if matches!(&seen, Observed::Ours(c) if c.run == RunState::Ending) {
            prop_assert!(matches!(decision.action, Action::None | Action::TellGcs { .. }), "{decision:?}");
        }
        match &decision.action {
            // Never two containers for a service.
            Action::Create => prop_assert_eq!(&seen, &Observed::Absent),
            Action::Start { .. } => prop_assert!(!running && wanted == Wanted::Up && self.gcs && !self.unmet),
            // Never restarts what is healthy and unchanged.
            Action::Stop { .. } | Action::Kill { .. } => {
                prop_assert!(running);
                let healthy = self.health == Health::Passing && unchanged && wanted == Wanted::Up && !restart;
                prop_assert!(!healthy, "{decision:?}");
            }
            Action::Remove { .. } => prop_assert!(!running),
            // Never a living one.
            Action::TellGcs { .. } => prop_assert!(!running && self.gcs),
            Action::None | Action::PrepareImage => {}
        }
        // Every wait ends by itself.
        if matches!(decision.state, ServiceState::Backoff | ServiceState::CrashLoop) && decision.action == Action::None
        {
            let wake = decision.wake.expect("a time to try again");
            let now = Moment::from_millis(self.now.as_millis());
            prop_assert!(wake > now && wake.since(now) <= Duration::from_secs(72));
        }
        let acted = !matches!(decision.action, Action::None | Action::PrepareImage);
        let is_call = acted && !matches!(decision.action, Action::TellGcs { .. });
        let refused =
            std::mem::take(&mut self.fail_next).then(|| Err(EngineError::Conflict("port 8265 is taken".into())));
        if is_call && let Some(answer) = self.answer.clone().or(refused) {
            self.tries += 1;
            self.told.extend(self.memory.done(&answer, self.now.into(), 7));
            return Ok((decision.state, true));
        }
        if is_call {
            self.memory.done(&Ok(()), self.now.into(), 7);
        }
        self.reason.clone_from(&decision.reason);
        self.ended_at = decision.ended.as_ref().map(|ended| ended.at).or(self.ended_at);
        self.take(&decision.action);
        Ok((decision.state, acted))
    }

    fn take(&mut self, action: &Action) {
        let (now, hash) = (self.now, self.hash());
        match action {
            Action::None | Action::PrepareImage => {}
            Action::TellGcs { .. } => self.memory.death_reported(),
            Action::Create => {
                self.made += 1;
                self.seen = Observed::Ours(ObservedContainer {
                    id: format!("c{}", self.made),
                    spec_hash: hash,
                    hard_hash: String::new(),
                    run: RunState::Created,
                    last_end: None,
                    pid: None,
                    ports: BTreeMap::new(),
                    address: None,
                });
            }
            Action::Remove { .. } => self.seen = Observed::Absent,
            Action::Start { .. } | Action::Stop { .. } | Action::Kill { .. } => {
                self.health = Health::Unknown;
                let Observed::Ours(c) = &mut self.seen else { return };
                c.run = if let Action::Start { .. } = action {
                    RunState::Running { started_at: now }
                } else {
                    RunState::Exited { code: 143, oom: false, finished_at: now, error: String::new() }
                };
            }
        }
    }

    /// Ends all faults and lets time pass. Returns the number of steps until it is ready.
    fn recover(&mut self) -> Result<u32, TestCaseError> {
        self.gcs = true;
        self.unmet = false;
        self.image = Image::Present;
        self.hold = None;
        self.barred = false;
        self.touched = None;
        self.fail_next = false;
        if matches!(&self.seen, Observed::Ours(c) if c.run == RunState::Ending) {
            self.exit(137);
        }
        for n in 0..60 {
            if matches!(&self.seen, Observed::Ours(c) if matches!(c.run, RunState::Running { .. })) {
                self.health = Health::Passing;
            }
            let (state, acted) = self.step()?;
            if state == ServiceState::Ready && !acted {
                return Ok(n);
            }
            if !acted {
                self.now = self.now.plus(Duration::from_secs(73));
            }
        }
        Err(TestCaseError::fail(format!("not ready after 60 steps: {:?}", self.seen)))
    }
}

/// Case: what is tried, what comes before, what the engine answers; what is shown then, and how often the journal was
/// told.
type Case = (&'static str, fn(&mut World), Result<(), EngineError>, ServiceState, String, usize);

#[test]
fn a_step_that_does_not_succeed_is_taken_later_each_time_with_the_engines_words_and_told_once() {
    let refused = Err(EngineError::Other("no exit event".into()));
    let gone = Err(EngineError::NotFound("network n not found".into()));
    let nothing = "the engine reports success, and nothing changed";
    let cases: [Case; 7] = [
        (
            "stop",
            |w| w.hold = Some(Hold::Asked),
            refused.clone(),
            ServiceState::Blocked,
            "cannot be stopped: no exit event".into(),
            1,
        ),
        (
            "stop, in vain",
            |w| w.hold = Some(Hold::Asked),
            Ok(()),
            ServiceState::Blocked,
            format!("cannot be stopped: {nothing}"),
            0,
        ),
        (
            "restart",
            |w| w.happen(&Event::Restart),
            refused.clone(),
            ServiceState::Blocked,
            "cannot be stopped: no exit event".into(),
            1,
        ),
        (
            "kill",
            |w| w.happen(&Event::Gone),
            refused.clone(),
            ServiceState::Blocked,
            "cannot be killed: no exit event".into(),
            1,
        ),
        (
            "dead",
            |w| w.run(RunState::Dead),
            refused.clone(),
            ServiceState::Blocked,
            "cannot be removed: no exit event".into(),
            1,
        ),
        (
            "removing",
            |w| w.run(RunState::Removing),
            Ok(()),
            ServiceState::Blocked,
            format!("cannot be removed: {nothing}"),
            0,
        ),
        (
            "start",
            |w| w.happen(&Event::Crash(1)),
            gone,
            ServiceState::CrashLoop,
            "network n not found; keeps failing, tried once a minute".into(),
            1,
        ),
    ];
    for (what, prepare, answer, state, reason, told) in cases {
        let mut world = World::new();
        world.recover().expect("ready");
        world.happen(&Event::Pass(600_000));
        prepare(&mut world);
        world.answer = Some(answer);
        let mut last = ServiceState::Ready;
        for _ in 0..7_200 {
            world.happen(&Event::Pass(495));
            last = world.step().expect("safe").0;
        }
        assert!((8..=130).contains(&world.tries), "{what}: {} tries in an hour", world.tries);
        if what == "start" {
            // Recreated now and then, which fails as well.
            assert!(
                world.told.len() <= told && world.memory.last_failure.as_deref() == Some("network n not found"),
                "{:?}",
                world.told
            );
        } else {
            assert_eq!(
                (last, world.reason.as_str(), world.told.len()),
                (state, reason.as_str(), told),
                "{what}: {:?}",
                world.told
            );
        }
        world.answer = None;
        let made = world.made;
        world.happen(&Event::Pass(80_000));
        world.hold = None;
        if what == "restart" {
            let before = world.seen.clone();
            world.step().expect("safe");
            assert_ne!(world.seen, before, "the wish outlives a stop that fails");
        }
        world.recover().expect("ready");
        assert!(world.made <= made + 1, "{what}");
    }
}

#[test]
fn an_engine_that_was_away_during_a_step_and_a_container_that_is_gone_are_no_failures() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.happen(&Event::Crash(1));
    world.step().expect("told");
    world.answer = Some(Err(EngineError::Unreachable("nobody".into())));
    world.step().expect("safe");
    assert!(!world.memory.is_stuck());
    world.answer = None;
    // It was started all the same.
    world.run(RunState::Running { started_at: world.now });
    world.recover().expect("ready");
    assert_eq!(world.memory.last_failure.as_deref(), Some("container exited 1"));
    world.happen(&Event::Crash(1));
    world.step().expect("told");
    world.answer = Some(Err(EngineError::NotFound("no such container".into())));
    world.happen(&Event::Pass(120_000));
    world.step().expect("safe");
    world.answer = None;
    world.happen(&Event::Vanish);
    world.recover().expect("ready");
    assert!(!world.memory.is_stuck());
}

#[test]
fn a_container_that_is_gone_ended_when_the_engine_told_of_it_last() {
    for told in [true, false] {
        let mut world = World::new();
        world.recover().expect("ready");
        let gone = world.now;
        world.happen(&Event::Vanish);
        world.last_event = told.then_some(gone);
        // The engine is slow to say that nothing is there.
        world.happen(&Event::Pass(3_000));
        let seen = world.now;
        world.step().expect("safe");
        let ended = world.ended_at.expect("it ran");
        assert!(if told { ended == gone } else { ended >= seen }, "{ended:?}");
    }
}

#[test]
fn a_run_that_ended_and_was_followed_by_another_between_two_looks_is_told_once() {
    for said in [true, false] {
        let mut world = World::new();
        world.recover().expect("ready");
        let end = world.now.plus(Duration::from_secs(1));
        world.now = end.plus(Duration::from_millis(300));
        let again = world.now;
        world.run(RunState::Running { started_at: again });
        if let Observed::Ours(c) = &mut world.seen {
            c.last_end = said.then_some(end);
        }
        world.step().expect("safe");
        assert_eq!(world.ended_at.take(), Some(if said { end } else { again }));
        world.recover().expect("ready");
        assert_eq!(world.ended_at, None, "told once");
        assert!(world.reason.starts_with("restarted: "), "{}", world.reason);
        // Its end is seen and its start is not: nothing is left to tell.
        world.exit(137);
        world.step().expect("safe");
        assert!(world.ended_at.take().is_some());
        world.run(RunState::Running { started_at: world.now.plus(Duration::from_millis(9)) });
        world.recover().expect("ready");
        assert_eq!(world.ended_at, None, "told when it ended");
    }
}

#[test]
fn the_gcs_is_told_of_a_death_before_the_engine_says_it_and_once() {
    let mut world = World::new();
    assert!(world.recover().is_ok());
    world.happen(&Event::Ends);
    world.gcs = false;
    for _ in 0..3 {
        assert_eq!(world.step().ok(), Some((ServiceState::Backoff, false)), "the GCS is away");
    }
    world.gcs = true;
    assert_eq!(world.step().ok(), Some((ServiceState::Backoff, true)), "the GCS is told");
    assert_eq!(world.step().ok(), Some((ServiceState::Backoff, false)), "once");
    world.exit(137);
    assert_eq!(world.step().ok(), Some((ServiceState::Starting, true)), "started again, with nothing more to tell");
    assert!(matches!(&world.seen, Observed::Ours(c) if matches!(c.run, RunState::Running { .. })));
}

#[test]
fn a_node_that_a_new_labd_finds_waits_for_a_head_that_is_held() {
    let mut world = World::new();
    assert!(world.recover().is_ok());
    (world.memory, world.health, world.unmet) = (History::default(), Health::Unknown, true);
    assert_eq!(world.step().ok(), Some((ServiceState::Waiting, false)), "`labd up` does not wait for it");
    (world.health, world.unmet) = (Health::Passing, false);
    assert_eq!(world.step().ok(), Some((ServiceState::Ready, false)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_it_is_safe_and_once_it_ends_the_service_is_ready(events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            for _ in 0..4 {
                world.step()?;
            }
        }
        let steps = world.recover()?;
        prop_assert!(steps < 40, "took {steps} steps");
        let made = world.made;
        let before = world.seen.clone();
        for _ in 0..20 {
            world.now = world.now.plus(Duration::from_secs(5));
            let (state, acted) = world.step()?;
            prop_assert!(state == ServiceState::Ready && !acted, "it is left alone");
        }
        prop_assert_eq!((world.made, world.seen), (made, before));
    }
}

#[test]
fn a_container_that_was_not_completely_created_is_recreated_and_never_started() {
    let mut world = World::new();
    // The engine makes it, and labd does not hear of it in time.
    for answer in [Err(EngineError::Unreachable("no answer in time".into())), Ok(())] {
        world.answer = Some(answer.clone());
        world.step().expect("safe");
        world.answer = None;
        world.take(&Action::Create);
        world.step().expect("safe");
        let removed = world.seen == Observed::Absent;
        assert_eq!(removed, answer.is_err(), "{:?}", world.seen);
    }
    // Neither does the next labd know that it has its files.
    let mut world = World::new();
    world.step().expect("made");
    world.memory = History::default();
    world.step().expect("safe");
    assert_eq!(world.seen, Observed::Absent);
    world.recover().expect("ready");
}

#[test]
fn a_killed_node_is_told_before_it_is_started_again() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.happen(&Event::Crash(137));
    let mut actions = Vec::new();
    for _ in 0..3 {
        let before = world.seen.clone();
        world.step().expect("safe");
        actions.push((before, world.seen.clone()));
    }
    assert!(matches!(&actions[0].1, Observed::Ours(c) if matches!(c.run, RunState::Exited { .. })), "told first");
    assert!(
        matches!(&actions[1].1, Observed::Ours(c) if matches!(c.run, RunState::Running { .. })),
        "the first failure at once"
    );
}

#[test]
fn an_exit_is_blamed_on_memory_only_shortly_after_a_kill_whatever_the_engine_says() {
    for (killed_before, blamed) in [(None, true), (Some(0), true), (Some(4_900), true), (Some(60_000), false)] {
        let mut world = World::new();
        world.recover().expect("ready");
        world.exit(137);
        let now = world.now;
        if let Observed::Ours(c) = &mut world.seen {
            // The engine says so of every end of a container in which it ever happened.
            c.run = RunState::Exited { code: 137, oom: true, finished_at: now, error: String::new() };
        }
        world.oom = killed_before.map(|ms| Timestamp::from_millis(now.as_millis() - ms));
        world.step().expect("safe");
        let why = world.memory.last_failure.clone().expect("a failure");
        let want = if blamed {
            "container exited 137 (out of memory: raise `services.ray-worker.memory` in labd.toml)"
        } else {
            "container exited 137 (SIGKILL)"
        };
        assert_eq!(why, want, "{killed_before:?}");
    }
}

#[test]
fn a_foreign_container_is_never_touched() {
    let mut world = World::new();
    world.seen = Observed::Foreign { id: "f".into() };
    for (hold, off) in [(None, false), (Some(Hold::Asked), false), (None, true)] {
        (world.hold, world.off) = (hold, off);
        let (state, acted) = world.step().expect("safe");
        assert!(!acted);
        assert_eq!(state == ServiceState::Blocked, hold.is_none() && !off);
    }
}

#[test]
fn a_hung_one_is_killed_and_recreated_but_not_while_the_gcs_is_away() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.health = world.failing();
    assert_eq!(world.step().expect("safe").0, ServiceState::Unhealthy);
    world.health = Health::Unknown;
    world.now = world.now.plus(Duration::from_mins(10));
    assert_eq!(world.step().expect("safe"), (ServiceState::Ready, false));
    world.health = world.failing();
    world.step().expect("safe");
    world.now = world.now.plus(Duration::from_secs(31));
    assert_eq!(world.step().expect("safe"), (ServiceState::Stopping, true));
    let made = world.made;
    world.recover().expect("ready");
    assert_eq!(world.made, made + 1);
}

/// Lets the service settle, and returns its last state.
fn settle(world: &mut World) -> ServiceState {
    let mut state = ServiceState::Waiting;
    for _ in 0..6 {
        state = world.step().expect("safe").0;
    }
    state
}

#[test]
fn docker_stop_is_held_and_docker_start_releases_it_however_late_the_word_comes() {
    // Late: it was taken for a crash and started again meanwhile, which the stop does not undo.
    for (late, want) in [(0, ServiceState::Held), (900, ServiceState::Held), (2_000, ServiceState::Starting)] {
        let mut world = World::new();
        world.recover().expect("ready");
        world.happen(&Event::Pass(60_000));
        if late > 1_000 {
            world.happen(&Event::DockerKill);
            world.happen(&Event::Pass(late));
            settle(&mut world);
        } else {
            world.happen(&Event::DockerStop(late));
        }
        assert_eq!(settle(&mut world), want, "{late} ms");
        if want == ServiceState::Held {
            world.happen(&Event::Pass(3_600_000));
            assert_eq!(settle(&mut world), ServiceState::Held);
            world.happen(&Event::DockerStart);
            world.happen(&Event::Health(1));
            assert_eq!(settle(&mut world), ServiceState::Ready, "and is not stopped again");
        }
    }
}

#[test]
fn a_stop_of_before_the_clock_was_set_back_holds_nothing_that_ended_since() {
    let mut world = World::new();
    world.recover().expect("ready");
    let id = world.exit(1).expect("it runs");
    let told = world.now.plus(Duration::from_hours(1));
    world.touched = Some(OutsideActions { id, signalled: Some(told), stopped: Some(told), by_hand: Some(told) });
    assert_eq!(settle(&mut world), ServiceState::Starting, "and is started again at once");
}

#[test]
fn what_labd_stopped_runs_again_when_somebody_starts_it() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.happen(&Event::Hold(true));
    assert_eq!(settle(&mut world), ServiceState::Held);
    assert!(matches!(&world.seen, Observed::Ours(c) if matches!(c.run, RunState::Exited { .. })), "it was stopped");
    world.happen(&Event::DockerStart);
    world.happen(&Event::Health(1));
    assert_eq!(settle(&mut world), ServiceState::Ready);
}

#[test]
fn the_engines_end_is_nobodys_failure() {
    let mut world = World::new();
    for _ in 0..8 {
        world.recover().expect("ready");
        world.happen(&Event::EngineRestart);
        let steps = world.recover().expect("ready");
        assert!(steps <= 4, "told, started, ready, and no wait: {steps}");
    }
    assert_eq!(world.memory.backoff.streak(), 0);
}

#[test]
fn a_node_that_a_new_cluster_does_not_know_is_recreated_at_once() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.happen(&Event::Lost);
    assert_eq!(world.step().expect("safe"), (ServiceState::Stopping, true));
    let made = world.made;
    world.recover().expect("ready");
    assert_eq!(world.made, made + 1);
}

#[test]
fn after_labds_own_restart_one_missed_answer_of_an_old_container_is_no_hang() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.happen(&Event::Pass(10 * 60_000));
    world.memory = History::default();
    world.health = world.failing();
    assert_eq!(world.step().expect("safe"), (ServiceState::Starting, false));
    world.health = Health::Passing;
    assert_eq!(world.step().expect("safe"), (ServiceState::Ready, false));
}

/// Whether a service that is silent for so long is killed.
fn is_killed_after(world: &mut World, minutes: u64) -> bool {
    for _ in 0..minutes * 6 {
        world.happen(&Event::Pass(9_995));
        if world.step().expect("safe").1 {
            return true;
        }
    }
    false
}

#[test]
fn a_node_that_ray_calls_alive_is_not_killed_for_a_silent_agent_for_minutes() {
    const CHECKED: Duration = Duration::from_secs(2);
    let mut world = World::new();
    world.recover().expect("ready");
    let silent = |world: &World, alive| {
        let since = Moment::from_millis(world.now.as_millis());
        Health::Failing { reason: "its agent".into(), since, good_at: since.minus(CHECKED), alive }
    };
    let answered = world.now.minus(CHECKED);
    world.health = silent(&world, true);
    assert!(!is_killed_after(&mut world, 9));
    assert_eq!(world.step().expect("safe"), (ServiceState::Unhealthy, false));
    // From now on it is not alive either: it gets the time that every dead one gets.
    world.health = silent(&world, false);
    assert_eq!(world.step().expect("safe"), (ServiceState::Unhealthy, false));
    assert!(is_killed_after(&mut world, 1));
    // A job that ended in between ended while it was silent, whatever it was called.
    assert_eq!(world.ended_at, Some(answered));
    let mut world = World::new();
    world.recover().expect("ready");
    world.health = silent(&world, true);
    assert!(is_killed_after(&mut world, 11), "and not left silent forever");
}

#[test]
fn a_jupyter_that_is_silent_is_shown_and_not_killed_by_this_labd_or_the_next() {
    let mut world = World::new();
    world.kill_silent = false;
    world.recover().expect("ready");
    world.health = world.failing();
    assert!(!is_killed_after(&mut world, 60));
    assert_eq!(world.step().expect("safe"), (ServiceState::Unhealthy, false));
    assert!(world.reason.contains("`labd restart ray-worker-0` ends it"), "{}", world.reason);
    world.memory = History::default();
    world.memory.was_ready(Moment::from_millis(world.now.as_millis()));
    assert!(!is_killed_after(&mut world, 60));
    assert_eq!(world.step().expect("safe"), (ServiceState::Unhealthy, false));
    world.health = Health::Passing;
    assert_eq!(world.step().expect("safe"), (ServiceState::Ready, false));
    // One that hangs on its way up has no kernels yet.
    world.happen(&Event::Crash(1));
    settle(&mut world);
    world.health = world.failing();
    assert!(is_killed_after(&mut world, 3));
}

#[test]
fn one_that_hangs_on_its_way_up_is_silent_since_it_last_answered() {
    let mut world = World::new();
    world.recover().expect("ready");
    world.memory = History::default();
    let answered = world.now;
    world.happen(&Event::Pass(2_000));
    let since = Moment::from_millis(world.now.as_millis());
    let good_at = Moment::from_millis(answered.as_millis());
    world.health = Health::Failing { reason: "no answer".into(), since, good_at, alive: false };
    assert!(is_killed_after(&mut world, 10));
    assert_eq!(world.ended_at, Some(answered));
}

#[test]
fn one_that_hangs_when_this_labd_first_asks_it_is_silent_since_this_labd_began() {
    for adopted in [true, false] {
        let mut world = World::new();
        world.recover().expect("ready");
        world.memory = History::default();
        let began = world.now;
        if adopted {
            world.memory.was_ready(Moment::from_millis(began.as_millis()));
        }
        // The engine was away.
        world.happen(&Event::Pass(9_000));
        let asked = world.now;
        world.health = world.failing();
        assert!(is_killed_after(&mut world, 10));
        assert_eq!(world.ended_at, Some(if adopted { began } else { asked }));
    }
}

#[test]
fn a_gpu_that_is_gone_inside_twice_in_a_row_is_gone() {
    let gone = || GpuVisibility::Gone("x".into());
    for (looks, want) in [
        (vec![GpuVisibility::There, gone()], 1),
        (vec![gone(), GpuVisibility::There, gone()], 1),
        (vec![gone(), gone()], 2),
        // What could not be looked at says nothing either way.
        (vec![gone(), GpuVisibility::Unknown, gone()], 2),
        (vec![GpuVisibility::Unknown, GpuVisibility::Unknown], 0),
    ] {
        assert_eq!(looks.iter().fold(0, missing), want, "{looks:?}");
    }
    assert_eq!(GONE_AFTER, 2);
}

#[test]
fn a_node_without_its_gpu_is_killed_at_once_and_recreated_and_that_counts() {
    let reason = "the GPU is gone inside the container (was systemctl daemon-reload run?): /dev/nvidia0: x";
    for was_ready in [true, false] {
        let mut world = World::new();
        world.recover().expect("ready");
        world.happen(&Event::Pass(600_000));
        if !was_ready {
            world.happen(&Event::Crash(137));
            assert_eq!(settle(&mut world), ServiceState::Starting);
        }
        let (made, failures) = (world.made, world.memory.backoff.streak());
        world.health = Health::Gone { reason: reason.into(), since: world.now };
        assert_eq!(world.step().expect("safe"), (ServiceState::Stopping, true), "ready before: {was_ready}");
        assert!(matches!(&world.seen, Observed::Ours(c) if matches!(c.run, RunState::Exited { .. })), "killed");
        world.recover().expect("ready");
        assert_eq!(world.made, made + 1, "recreated, not started again");
        // Where another container does not help it becomes a crash loop, and not a busy one.
        assert_eq!(world.memory.backoff.streak(), failures + 1);
        assert_eq!(world.memory.last_failure.as_deref(), Some(reason));
    }
}
