//! Deciding, whatever the world says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use proptest::prelude::*;
use serde_json::json;

use super::{
    decide::{self, Handed, Job, Move, Next, Outcome, Policy, State, World},
    submission::{Retry, Submission},
};
use crate::{
    incident::{Cause, Incident},
    ray::{ErrorType, Jobs, RayJob, RayNode},
    snapshot::JobStatus,
    time::Timestamp,
};

const DRIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 11);
const WORKER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 20);
const LIMIT: u32 = 3;

/// What happens between two decisions.
#[derive(Debug, Clone)]
enum Step {
    /// Seconds pass.
    Wait(u16),
    /// Ray says this of a job, by its number among the open ones.
    Say(usize, JobStatus, Option<ErrorType>, bool),
    /// Ray does not name a job any more.
    Forget(usize),
    /// A service dies; it may be ready again after so many seconds.
    Die(usize, Option<u16>),
    /// The GCS answers, or not; the driver node is ALIVE, or not.
    Cluster(bool, bool),
    /// A person wants a job stopped.
    Stop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let status = prop::sample::select(vec![
        JobStatus::Pending,
        JobStatus::Running,
        JobStatus::Failed,
        JobStatus::Failed,
        JobStatus::Stopped,
        JobStatus::Succeeded,
    ]);
    let error = prop::option::of(prop::sample::select(vec![
        ErrorType::JobEntrypointCommandError,
        ErrorType::JobSupervisorActorDied,
        ErrorType::JobSupervisorActorStartFailure,
        ErrorType::RuntimeEnvSetupFailure,
        ErrorType::Other,
    ]));
    prop_oneof![
        3 => (0..90_u16).prop_map(Step::Wait),
        4 => (0..4_usize, status, error, any::<bool>()).prop_map(|(n, s, e, d)| Step::Say(n, s, e, d)),
        1 => (0..4_usize).prop_map(Step::Forget),
        2 => (0..4_usize, prop::option::of(0..60_u16)).prop_map(|(n, back)| Step::Die(n, back)),
        2 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8)).prop_map(|(g, d)| Step::Cluster(g, d)),
        1 => (0..4_usize).prop_map(Step::Stop),
    ]
}

/// A ledger and what it hears.
struct Scene {
    book: BTreeMap<String, Job>,
    told: BTreeMap<String, RayJob>,
    incidents: Vec<Incident>,
    reachable: bool,
    driver: bool,
    now: Timestamp,
}

impl Scene {
    fn new(retries: &[Option<&str>]) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let job = |(n, retry): (usize, Option<&str>)| {
            let id = format!("job{n}");
            let metadata = retry.map_or(json!({}), |r| json!({ "labd.retry": r }));
            let sent = json!({"entrypoint": "python train.py", "metadata": metadata}).to_string();
            let job = Job {
                id: id.clone(),
                root: id.clone(),
                attempt: 1,
                submission: Submission::parse(sent.as_bytes()).expect("a submission"),
                submitted_at: now,
                run: id.clone(),
                note: None,
                state: State::Kept { not_before: now, stop_first: None, tries: 0 },
            };
            (id, job)
        };
        let book = retries.iter().copied().enumerate().map(job).collect();
        Self { book, told: BTreeMap::new(), incidents: Vec::new(), reachable: true, driver: true, now }
    }

    fn open(&self, n: usize) -> Option<String> {
        let open: Vec<&Job> = self.book.values().filter(|j| !matches!(j.state, State::Ended { .. })).collect();
        (!open.is_empty()).then(|| open[n % open.len()].id.clone())
    }

    fn happen(&mut self, step: &Step) {
        match step {
            Step::Wait(s) => self.now = self.now.plus(std::time::Duration::from_secs(u64::from(*s))),
            Step::Say(n, status, error, placed) => {
                let Some(id) = self.open(*n).filter(|id| matches!(self.book[id].state, State::Handed(_))) else {
                    return;
                };
                let over = !matches!(status, JobStatus::Pending | JobStatus::Running);
                let job = RayJob {
                    submission_id: id.clone(),
                    status: *status,
                    error: error.filter(|_| *status == JobStatus::Failed),
                    message: String::new(),
                    entrypoint: String::new(),
                    started_at: Some(self.book[&id].submitted_at),
                    ended_at: over.then_some(self.now),
                    driver_node: placed.then(|| vec![1]),
                    exit_code: None,
                };
                self.told.insert(id, job);
            }
            Step::Forget(n) => {
                if let Some(id) = self.open(*n) {
                    self.told.remove(&id);
                }
            }
            Step::Die(n, back) => self.incidents.push(Incident {
                service: ["ray-head", "ray-driver", "ray-worker-0", "jupyter"][n % 4].to_owned(),
                cause: Cause::Exit,
                why: "container exited 137 (SIGKILL)".into(),
                died_at: self.now,
                noticed_at: self.now,
                running_at: None,
                ready_at: back.map(|s| self.now.plus(std::time::Duration::from_secs(u64::from(s)))),
                training: Vec::new(),
            }),
            Step::Cluster(reachable, driver) => (self.reachable, self.driver) = (*reachable, *driver),
            Step::Stop(n) => {
                let Some(job) = self.open(*n).and_then(|id| self.book.get_mut(&id)) else { return };
                job.state = match job.state.clone() {
                    State::Handed(known) => State::Handed(Handed { stop_asked: true, ..known }),
                    _ => State::Ended { at: self.now, outcome: Outcome::Stopped },
                };
            }
        }
    }

    fn moves(&self) -> Vec<Move> {
        let node = |id: u8, address, alive, role: &str| RayNode {
            id: vec![id],
            address,
            port: 0,
            alive,
            is_head: false,
            started_at: Timestamp::from_millis(1),
            name: String::new(),
            resources: BTreeMap::new(),
            available: BTreeMap::new(),
            labels: BTreeMap::from([("labd.role".to_owned(), role.to_owned())]),
        };
        let nodes = [node(1, DRIVER, self.driver, "driver"), node(2, WORKER, true, "worker")];
        let addresses = BTreeMap::from([("ray-driver".to_owned(), DRIVER), ("ray-worker-0".to_owned(), WORKER)]);
        let jobs = Jobs { asked_at: self.now, jobs: self.told.values().cloned().collect() };
        let world = World {
            reachable: self.reachable,
            jobs: Some(&jobs),
            nodes: &nodes,
            incidents: &self.incidents,
            ending: false,
            addresses: &addresses,
            installing: &BTreeSet::new(),
        };
        decide::decide(&self.book, &world, Policy { resubmissions: LIMIT }, self.now)
    }

    /// What the keeper does with them; every job that is handed in is taken.
    fn apply(&mut self, moves: Vec<Move>) {
        for change in moves {
            let (id, state) = match change {
                Move::Hand(id) => (id, State::Handed(Handed::new(self.now))),
                Move::Note(id, known) => (id, State::Handed(known)),
                Move::Stop(_) => continue,
                Move::End(id, outcome) => (id, State::Ended { at: self.now, outcome }),
                Move::Replace(id, outcome, new) => {
                    self.book.insert(new.id.clone(), *new);
                    (id, State::Ended { at: self.now, outcome })
                }
            };
            self.book.get_mut(&id).expect("moves are about jobs of the book").state = state;
        }
    }
}

fn check(before: &BTreeMap<String, Job>, moves: &[Move]) -> Result<(), TestCaseError> {
    for change in moves {
        let (Move::Hand(id) | Move::Note(id, _) | Move::Stop(id) | Move::End(id, _) | Move::Replace(id, ..)) = change;
        prop_assert!(!matches!(before[id].state, State::Ended { .. }), "{id} has ended: {change:?}");
        if let Move::Replace(_, outcome, new) = change {
            prop_assert!(
                matches!(outcome, Outcome::Lost { next: Next::As(next), .. } if *next == new.id),
                "{change:?}"
            );
            prop_assert!(!before.contains_key(&new.id), "{} is taken", new.id);
            let called = new.id.starts_with(&format!("{}-r", new.root));
            prop_assert!(called && new.root == before[id].root, "{}", new.id);
            prop_assert_eq!(new.attempt, before[id].attempt + 1);
            let asked = matches!(&before[id].state, State::Handed(known) if known.stop_asked);
            prop_assert!(!asked, "{} takes the place of one that a person stopped", new.id);
            let limit = match new.submission.retry() {
                Retry::Default => LIMIT,
                Retry::AtMost(n) => n,
            };
            prop_assert!(new.attempt <= limit + 1, "{} is one too many", new.id);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_the_world_says_the_book_stays_sound(
        retries in prop::collection::vec(prop::sample::select(vec![None, None, Some("never"), Some("1")]), 1..4),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut scene = Scene::new(&retries);
        for step in &steps {
            scene.happen(step);
            let before = scene.book.clone();
            let moves = scene.moves();
            check(&before, &moves)?;
            scene.apply(moves);
            for (id, job) in &before {
                if matches!(job.state, State::Ended { .. }) {
                    prop_assert_eq!(job, &scene.book[id]);
                }
                let open = |j: &&Job| j.root == job.root && !matches!(j.state, State::Ended { .. });
                prop_assert!(scene.book.values().filter(open).count() <= 1, "{} has two open attempts", job.root);
            }
            // The same world says nothing new the second time.
            let again = scene.moves();
            prop_assert!(again.iter().all(|m| matches!(m, Move::Hand(_) | Move::Stop(_))), "{again:?}");
        }
    }
}
