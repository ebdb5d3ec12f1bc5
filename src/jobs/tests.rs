//! Tests of decisions over arbitrary histories, and of the ledger's task beside a job API that refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::watch;

use super::{
    decide::{self, ClusterView, Job, Next, Outcome, Policy, State, Submitted, Transition},
    packages::Packages,
    submission::{Retry, Submission},
};
use crate::{
    config::Config,
    incident::{Cause, Incident, Order},
    ray::{ErrorType, Gcs, JobApi, Jobs, RayJob, RayNode, RayView, Reply},
    snapshot::{JobStatus, ServiceState, Snapshot},
    time::Timestamp,
};

const DRIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 11);
const WORKER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 20);
const LIMIT: u32 = 3;

/// Event between two decisions.
#[derive(Debug, Clone)]
enum Step {
    /// Seconds pass.
    Wait(u16),
    /// Ray reports this of a job, by its number among the open ones.
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

/// Scene: a ledger and what it hears.
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
                came_at: now,
                submitted_at: now,
                run: id.clone(),
                note: None,
                state: State::Queued { not_before: now, stop_first: None, tries: 0 },
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
            Step::Wait(s) => self.now = self.now.plus(Duration::from_secs(u64::from(*s))),
            Step::Say(n, status, error, placed) => {
                let Some(id) = self.open(*n).filter(|id| matches!(self.book[id].state, State::Submitted(_))) else {
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
                    mark: None,
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
                ready_at: back.map(|s| self.now.plus(Duration::from_secs(u64::from(s)))),
                training: Vec::new(),
                order: Order::default(),
            }),
            Step::Cluster(reachable, driver) => (self.reachable, self.driver) = (*reachable, *driver),
            Step::Stop(n) => {
                let Some(job) = self.open(*n).and_then(|id| self.book.get_mut(&id)) else { return };
                job.state = match job.state.clone() {
                    State::Submitted(known) => State::Submitted(Submitted { stop_asked: true, ..known }),
                    _ => State::Ended { at: self.now, outcome: Outcome::Stopped },
                };
            }
        }
    }

    fn moves(&self) -> Vec<Transition> {
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
        let world = ClusterView {
            reachable: self.reachable,
            jobs: Some(&jobs),
            nodes: &nodes,
            incidents: &self.incidents,
            ending: false,
            looked_at: self.now,
            failed_for: &BTreeMap::new(),
            silences: &[],
            store: true,
            runs: &[],
            addresses: &addresses,
            installing: &BTreeSet::new(),
            learnt: &BTreeMap::new(),
        };
        decide::decide(&self.book, &world, Policy { resubmissions: LIMIT }, self.now)
    }

    /// Applies transitions as the ledger's task does; Ray takes every job that is submitted.
    fn apply(&mut self, moves: Vec<Transition>) {
        for change in moves {
            let (id, state) = match change {
                Transition::Hand(id) => (id, State::Submitted(Submitted::new(self.now))),
                Transition::Note(id, known) => (id, State::Submitted(known)),
                Transition::Stop(_) => continue,
                Transition::End(id, outcome) => (id, State::Ended { at: self.now, outcome }),
                Transition::Replace(id, outcome, new) => {
                    self.book.insert(new.id.clone(), *new);
                    (id, State::Ended { at: self.now, outcome })
                }
            };
            self.book.get_mut(&id).expect("moves are about jobs of the book").state = state;
        }
    }
}

fn check(before: &BTreeMap<String, Job>, moves: &[Transition]) -> Result<(), TestCaseError> {
    for change in moves {
        let (Transition::Hand(id)
        | Transition::Note(id, _)
        | Transition::Stop(id)
        | Transition::End(id, _)
        | Transition::Replace(id, ..)) = change;
        prop_assert!(!matches!(before[id].state, State::Ended { .. }), "{id} has ended: {change:?}");
        if let Transition::Replace(_, outcome, new) = change {
            prop_assert!(
                matches!(outcome, Outcome::Lost { next: Next::As(next), .. } if *next == new.id),
                "{change:?}"
            );
            prop_assert!(!before.contains_key(&new.id), "{} is taken", new.id);
            let called = new.id.starts_with(&format!("{}-r", new.root));
            prop_assert!(called && new.root == before[id].root, "{}", new.id);
            prop_assert_eq!(new.attempt, before[id].attempt + 1);
            let asked = matches!(&before[id].state, State::Submitted(known) if known.stop_asked);
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
            prop_assert!(again.iter().all(|m| matches!(m, Transition::Hand(_) | Transition::Stop(_))), "{again:?}");
        }
    }
}

/// Fake job API that answers as it is told, and records what it was asked.
#[derive(Clone, Default)]
struct Fake {
    /// HTTP statuses of answers to `stop` and `put_package`; 200 where none is told.
    stop: Option<u16>,
    put: Option<u16>,
    /// Whether Ray has what is submitted already.
    has_it: bool,
    /// Holds submissions back until told otherwise; `false`: the answer is lost.
    gate: Option<watch::Receiver<Option<bool>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().expect("unpoisoned").push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("unpoisoned").clone()
    }

    fn answer(status: Option<u16>) -> Reply {
        Reply { status: status.unwrap_or(200), content_type: String::new(), body: "{\"stopped\": false}".into() }
    }
}

impl JobApi for Fake {
    async fn submit(&self, _: Bytes) -> Result<Reply, String> {
        self.note("submit".into());
        if self.has_it {
            return Ok(Reply { body: "Job with submission_id a already exists.".into(), ..Self::answer(Some(500)) });
        }
        if let Some(mut gate) = self.gate.clone() {
            let open = gate.wait_for(Option::is_some).await.is_ok_and(|open| *open == Some(true));
            return if open { Ok(Self::answer(None)) } else { Err("the dashboard does not answer".into()) };
        }
        Ok(Self::answer(None))
    }

    async fn stop(&self, id: &str) -> Result<Reply, String> {
        self.note(format!("stop {id}"));
        Ok(Self::answer(self.stop))
    }

    async fn stop_waiting(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn has_package(&self, _: &str) -> Result<bool, String> {
        Ok(false)
    }

    async fn put_package(&self, name: &str, _: &Path) -> Result<Reply, String> {
        self.note(format!("put {name}"));
        Ok(Self::answer(self.put))
    }
}

fn kept(sent: &serde_json::Value, stop_first: Option<&str>) -> Job {
    Job {
        id: "a".into(),
        root: "a".into(),
        attempt: 1,
        submission: Submission::parse(sent.to_string().as_bytes()).expect("a submission"),
        came_at: Timestamp::from_millis(1),
        submitted_at: Timestamp::from_millis(1),
        run: "a".into(),
        note: None,
        state: State::Queued {
            not_before: Timestamp::from_millis(1),
            stop_first: stop_first.map(str::to_owned),
            tries: 0,
        },
    }
}

#[tokio::test]
async fn nothing_is_submitted_beside_an_attempt_that_may_run_or_without_its_package() {
    let dir = tempfile::tempdir().expect("a folder");
    let packages = Packages::open(dir.path()).expect("opens");
    let name = "_ray_pkg_0123456789abcdef.zip";
    std::fs::write(dir.path().join(name), "PK").expect("written");
    let job =
        kept(&json!({"entrypoint": "x", "runtime_env": {"working_dir": format!("gcs://{name}")}}), Some("before"));
    let put = format!("put {name}");
    for (stop, put_answer, asked, status) in [
        (None, None, vec!["stop before", &put, "submit"], 200),
        (Some(404), None, vec!["stop before", &put, "submit"], 200),
        (Some(500), None, vec!["stop before"], 503),
        (None, Some(500), vec!["stop before", &put], 500),
        (None, Some(413), vec!["stop before", &put], 413),
    ] {
        let api = Fake { stop, put: put_answer, ..Fake::default() };
        let reply = super::submit(&api, &packages, &job, false, &true.into()).await.expect("answered");
        assert_eq!((api.asked(), reply.status), (asked.iter().map(|&s| s.to_owned()).collect(), status));
    }
    // It was stopped or deleted while the attempt before it was being stopped.
    let api = Fake::default();
    let reply = super::submit(&api, &packages, &job, false, &false.into()).await.expect("answered");
    assert_eq!((api.asked(), reply.status), (vec!["stop before".to_owned(), put.clone()], 409));
}

#[tokio::test]
async fn the_gcs_is_asked_to_keep_the_packages_of_its_jobs_whenever_it_has_started() {
    let rig = Rig::new(Fake::default(), false);
    let name = "_ray_pkg_0123456789abcdef.zip";
    let mut incoming = rig.packages.receive(name).await.expect("a name").expect("a file");
    incoming.write(b"PK").await.expect("written");
    incoming.finish().await.expect("finished");
    let sent =
        json!({"entrypoint": "x", "submission_id": "a", "runtime_env": {"working_dir": format!("gcs://{name}")}});
    let sent = Submission::parse(sent.to_string().as_bytes()).expect("a submission");
    assert!(rig.ledger.submit(sent).await.expect("answered").is_success());
    let put = format!("put {name}");
    assert_eq!(rig.api.asked(), [&put, "submit"]);
    rig.ray.send_modify(|view| Arc::make_mut(view).gcs = Gcs::Unreachable { reason: "it restarts".into() });
    assert!(rig.submit_as("b", "").await.is_success());
    rig.until(|rig| rig.message() == "kept until the Ray head is back").await;
    rig.ray.send_modify(|view| Arc::make_mut(view).gcs = Gcs::Reachable);
    rig.until(|rig| rig.api.asked().iter().filter(|&asked| *asked == put).count() == 2).await;
}

/// Ledger's task over a fake API, and all that it hears.
struct Rig {
    ledger: super::Ledger,
    packages: Packages,
    api: Fake,
    ray: watch::Sender<Arc<RayView>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    incidents: watch::Sender<Arc<Vec<Incident>>>,
    _alive: Box<dyn std::any::Any + Send + Sync>,
}

impl Rig {
    /// Rig whose ledger is in a folder where nothing can be written, if `broken`.
    fn new(api: Fake, broken: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = if broken { dir.path().join("a file/ledger.db") } else { dir.path().join("ledger.db") };
        std::fs::write(dir.path().join("a file"), "where a folder should be").expect("written");
        let (store, found) = super::Store::open(&path).expect("opens");
        Self::over(api, dir, store, found)
    }

    /// Rig whose ledger found that on its disk.
    fn over(api: Fake, dir: tempfile::TempDir, store: super::Store, found: super::Found) -> Self {
        let packages = Packages::open(&dir.path().join("packages")).expect("opens");
        let nodes = vec![RayNode {
            id: vec![1],
            address: DRIVER,
            port: 0,
            alive: true,
            is_head: false,
            started_at: Timestamp::from_millis(0),
            name: String::new(),
            resources: BTreeMap::new(),
            available: BTreeMap::new(),
            labels: BTreeMap::from([("labd.role".into(), "driver".into())]),
        }];
        let (ray, rays) = watch::channel(Arc::new(RayView { gcs: Gcs::Reachable, nodes, ..RayView::default() }));
        let (snapshot, snapshots) = watch::channel(Arc::new(crate::http::testing::a_snapshot()));
        let (incidents, died) = watch::channel(Arc::default());
        let (config, configs) = watch::channel(Arc::new(Config::default()));
        let asked = api.clone();
        let parts = super::Parts {
            api: Box::new(move || Some(asked.clone())),
            ray: rays,
            follow: watch::channel(BTreeSet::new()).0,
            incidents: died,
            looked_at: watch::channel(Some(crate::time::Moment::now())).1,
            snapshot: snapshots,
            config: configs,
            journal: crate::journal::Journal::open(&dir.path().join("journal.db"), Duration::from_hours(1))
                .expect("opens"),
        };
        let ledger = super::spawn(super::Opened { store, found, packages: packages.clone() }, parts);
        Self { ledger, packages, api, ray, snapshot, incidents, _alive: Box::new((config, dir)) }
    }

    async fn submit(&self) -> Reply {
        self.submit_as("a", "").await
    }

    async fn submit_as(&self, id: &str, note: &str) -> Reply {
        let sent = json!({"entrypoint": "x", "submission_id": id, "metadata": {"note": note}}).to_string();
        self.ledger.submit(Submission::parse(sent.as_bytes()).expect("a submission")).await.expect("answered")
    }

    fn lists(&self, status: Option<JobStatus>) {
        let list = Self::list(status);
        self.ray.send_modify(|view| Arc::make_mut(view).jobs = Some(Arc::new(list)));
    }

    fn list(status: Option<JobStatus>) -> Jobs {
        let job = status.map(|status| RayJob {
            submission_id: "a".into(),
            status,
            error: None,
            message: String::new(),
            entrypoint: "x".into(),
            started_at: None,
            ended_at: None,
            driver_node: None,
            exit_code: None,
            mark: None,
        });
        // A list of the same millisecond may be from before Ray took the job.
        let asked_at = Timestamp::now().plus(Duration::from_secs(1));
        Jobs { asked_at, jobs: job.into_iter().collect() }
    }

    fn store_is(&self, state: ServiceState) {
        self.snapshot.send_modify(|snapshot| {
            let services = &mut Arc::make_mut(snapshot).services;
            services.iter_mut().filter(|s| s.name == "minio").for_each(|s| s.state = state);
        });
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let mut view = self.ledger.watch();
        let work = async {
            while !what(self) {
                let _ = tokio::time::timeout(Duration::from_millis(20), view.changed()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("it comes to that");
    }

    fn message(&self) -> String {
        self.ledger.watch().borrow().jobs.first().map(|job| job.message.clone()).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_stop_while_the_job_is_being_submitted_is_not_lost() {
    for answered in [true, false] {
        let (open, gate) = watch::channel(None);
        let rig = Arc::new(Rig::new(Fake { gate: Some(gate), ..Fake::default() }, false));
        let person = tokio::spawn({
            let rig = rig.clone();
            async move { rig.submit().await }
        });
        rig.until(|rig| rig.api.asked() == ["submit"]).await;
        assert_eq!(rig.ledger.stop("a").await, Some(super::Stop::Done));
        open.send_replace(Some(answered));
        assert!(person.await.expect("answered").is_success());
        // Ray has it, whatever became of its answer.
        rig.lists(Some(JobStatus::Running));
        rig.until(|rig| rig.api.asked().starts_with(&["submit".to_owned(), "stop a".to_owned()])).await;
        rig.lists(Some(JobStatus::Stopped));
        rig.until(|rig| rig.ledger.watch().borrow().jobs[0].status == JobStatus::Stopped).await;
    }
}

#[tokio::test]
async fn what_died_before_this_labd_submitted_a_job_that_ray_had_already_is_no_less_its_loss() {
    let dir = tempfile::tempdir().expect("a folder");
    let (store, mut found) = super::Store::open(&dir.path().join("ledger.db")).expect("opens");
    let now = Timestamp::now();
    let (began, died) = (now.minus(Duration::from_secs(20)), now.minus(Duration::from_secs(9)));
    // The labd before was killed, and had written down only that it keeps the job.
    let job = Job { came_at: began, submitted_at: began, ..kept(&json!({"entrypoint": "x"}), None) };
    let mark = job.mark();
    found.book.insert("a".into(), job);
    let rig = Rig::over(Fake { has_it: true, ..Fake::default() }, dir, store, found);
    let incident = Incident {
        service: "ray-worker-0".into(),
        cause: Cause::Gpu,
        why: "its GPU is gone".into(),
        died_at: died,
        noticed_at: died,
        running_at: None,
        ready_at: None,
        training: Vec::new(),
        order: Order { begun: 1, over: 0 },
    };
    rig.incidents.send_replace(Arc::new(vec![incident]));
    rig.until(|rig| rig.api.asked() == ["submit"]).await;
    let mut list = Rig::list(Some(JobStatus::Failed));
    list.jobs[0] = RayJob {
        mark: Some(mark),
        error: Some(ErrorType::JobEntrypointCommandError),
        started_at: Some(began),
        ended_at: Some(died.plus(Duration::from_secs(3))),
        ..list.jobs[0].clone()
    };
    rig.ray.send_modify(|view| Arc::make_mut(view).jobs = Some(Arc::new(list)));
    rig.until(|rig| rig.ledger.watch().borrow().jobs.iter().any(|job| job.outcome.is_some())).await;
    let view = rig.ledger.watch().borrow().clone();
    let first = view.jobs.iter().find(|job| job.submission_id == "a").expect("shown");
    assert_eq!(first.outcome, Some(crate::snapshot::JobOutcome::Lost), "{first:?}");
}

#[tokio::test]
async fn an_id_that_ray_may_still_know_is_not_taken_before_ray_has_been_asked() {
    let rig = Rig::new(Fake::default(), false);
    assert!(rig.submit().await.is_success());
    rig.lists(Some(JobStatus::Succeeded));
    rig.until(|rig| rig.ledger.watch().borrow().jobs.first().is_some_and(|job| job.outcome.is_some())).await;
    // As after a restart of labd, while the head is away.
    rig.ray.send_modify(|view| Arc::make_mut(view).jobs = None);
    let reply = rig.submit().await;
    assert_eq!(reply.status, 503);
    assert!(String::from_utf8_lossy(&reply.body).contains("try again in a moment, or use another id"), "{reply:?}");
    assert!(rig.submit_as("b", "").await.is_success(), "nobody had that one");
    rig.lists(None);
    assert!(rig.submit().await.is_success(), "Ray does not know it");
}

#[tokio::test]
async fn a_submission_waits_for_the_store_and_is_told_so() {
    let rig = Rig::new(Fake::default(), false);
    rig.store_is(ServiceState::Starting);
    assert!(rig.submit().await.is_success());
    rig.until(|rig| rig.message() == "kept until minio is back").await;
    assert_eq!(rig.api.asked(), Vec::<String>::new());
    rig.store_is(ServiceState::Ready);
    rig.until(|rig| rig.api.asked() == ["submit"]).await;
}

#[tokio::test]
async fn a_lab_whose_store_a_person_holds_or_does_not_want_takes_jobs() {
    for state in [ServiceState::Held, ServiceState::Off] {
        let rig = Rig::new(Fake::default(), false);
        rig.store_is(state);
        assert!(rig.submit().await.is_success());
        rig.until(|rig| rig.api.asked() == ["submit"]).await;
    }
}

#[tokio::test]
async fn what_neither_ray_nor_the_disk_has_is_refused() {
    let rig = Rig::new(Fake::default(), true);
    assert!(rig.submit().await.is_success(), "Ray has it");
    let rig = Rig::new(Fake::default(), true);
    rig.store_is(ServiceState::Starting);
    let reply = rig.submit().await;
    assert_eq!(reply.status, 507);
    assert!(String::from_utf8_lossy(&reply.body).contains("jobs are not recorded in"), "{reply:?}");
    rig.store_is(ServiceState::Ready);
    assert!(rig.submit().await.is_success(), "its id is free");
    assert_eq!(rig.api.asked(), ["submit"]);
}

#[tokio::test]
async fn unfinished_submissions_have_a_budget_of_memory() {
    let rig = Rig::new(Fake::default(), true);
    let fat = "x".repeat(8 << 20);
    let mut taken = 0;
    let reply = loop {
        let reply = rig.submit_as(&format!("job{taken}"), &fat).await;
        if !reply.is_success() || taken > 20 {
            break reply;
        }
        taken += 1;
    };
    assert_eq!((taken, reply.status), (15, 507), "of 8 MiB and a little each");
    assert!(String::from_utf8_lossy(&reply.body).contains("at most 128 MiB"), "{reply:?}");
    assert!(rig.submit_as("small", "").await.is_success(), "there is room for that");
}
