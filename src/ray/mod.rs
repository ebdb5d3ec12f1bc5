//! Ray as labd sees it: nodes from the GCS, jobs from the job API, and what labd tells Ray: that a node is dead, and
//! whose placement groups nobody needs.
//!
//! * [`proto`]: the messages.
//! * [`gcs`]: the calls.
//! * [`jobs`]: the job API over HTTP.
//! * [`train`]: the training runs.
//! * [`dashboards`]: its own Grafana dashboards, as far as charts need them. Pure.
//! * [`demand`]: demands that cannot be met. Pure.
//! * [`leftovers`]: what dead drivers left in the GCS.
//! * [`spare`]: worker processes that wait for a run to need them.
//!
//! Two tasks poll, so that a slow dashboard never delays what is known of nodes: one polls the GCS, one the dashboard.
//! Both hear where the head is on one `watch`, and both publish through one `watch` of [`RayView`].

pub mod dashboards;
mod demand;
mod gcs;
mod jobs;
mod leftovers;
mod proto;
mod spare;
pub mod train;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{secret::Secret, snapshot::DemandView, time::Timestamp};
pub(crate) use demand::words as resource_words;
use gcs::Gcs as Client;
pub(crate) use jobs::parse as read_jobs;
pub use jobs::{ATTEMPT, ErrorType, HttpJobs, JobApi, Jobs, Mark, ROOT, RayJob, Reply, SUBMITTED};
pub use train::TrainRun;
pub(crate) use train::run_names;

/// Time between two polls of the nodes while the GCS answers.
const CALM: Duration = Duration::from_millis(500);
/// Time between two polls while it does not: a head that comes up is seen soon.
const EAGER: Duration = Duration::from_millis(200);
/// Number of polls in a row without an answer after which the GCS is away: a head under load misses one now and then.
/// One whose container has ended is not polled any more.
const MISSES: u32 = 2;
/// Time between two polls of jobs, while the dashboard answers.
const JOBS: Duration = Duration::from_secs(2);
/// Time between two polls of jobs while a run waits for its workers: when they train is part of the recovery record.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Time between two tries to read the list of all jobs, once it was too long to be read.
const ALL_JOBS: Duration = Duration::from_mins(1);
/// Longest time until the next question, however long an answer takes.
const LONGEST_BREATH: Duration = Duration::from_secs(10);
/// Time, in seconds, that a node may install packages before Ray gives up what needs them: a course's environment is
/// some 6 GB.
pub(crate) const SETUP_SECONDS: i32 = 3_600;

/// Addresses of the head, through ports published on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address of the GCS.
    pub gcs: SocketAddr,
    /// Address of the dashboard, which serves the job API.
    pub dashboard: SocketAddr,
    /// Ray's token.
    pub token: Secret,
    /// Whether worker processes are kept ready for runs on idle nodes.
    pub spares: bool,
}

/// View of the cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RayView {
    /// Whether the GCS answers.
    pub gcs: Gcs,
    /// The newest node of each address.
    pub nodes: Vec<RayNode>,
    /// Jobs; the last known ones while the head is away.
    pub jobs: Option<Arc<Jobs>>,
    /// Reason why [`Self::jobs`] has only those that must be followed, in one line.
    pub trouble: Option<String>,
    /// Answer of the job API to `GET /api/version`; kept while the head is away.
    pub version: Option<bytes::Bytes>,
    /// Training runs, newest first, at most 200; the last known ones while the head is away.
    pub runs: Vec<TrainRun>,
    /// Demands that cannot be met now.
    pub demands: Vec<DemandView>,
}

/// Whether the GCS answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Gcs {
    /// Not asked yet, or no head runs.
    #[default]
    Unknown,
    /// Answering.
    Reachable,
    /// Not answering.
    Unreachable {
        /// Reason, in one line.
        reason: String,
    },
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct RayNode {
    /// Ray's node id.
    pub id: Vec<u8>,
    /// Its address on the lab's network.
    pub address: Ipv4Addr,
    /// Port of its raylet there.
    pub port: u16,
    /// Whether the GCS counts it as ALIVE.
    pub alive: bool,
    /// Whether it is the head.
    pub is_head: bool,
    /// Start of its raylet.
    pub started_at: Timestamp,
    /// Its name.
    pub name: String,
    /// Resources that it has.
    pub resources: BTreeMap<String, f64>,
    /// Resources that are free; empty while not known.
    pub available: BTreeMap<String, f64>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl RayNode {
    /// Whether something has taken some of its GPUs or CPUs.
    pub fn is_busy(&self) -> bool {
        ["GPU", "CPU"].into_iter().filter_map(|name| self.taken(name)).any(|taken| taken > 1e-6)
    }

    /// Amount of a resource of it that is taken; `None` where it has none, or while that is not known.
    fn taken(&self, name: &str) -> Option<f64> {
        let all = self.resources.get(name).copied().filter(|&all| all > 0.0 && !self.available.is_empty())?;
        // Ray leaves out what nothing is free of.
        Some(all - self.available.get(name).copied().unwrap_or(0.0))
    }

    /// Share of its GPUs that is taken, from 0 to 1; `None` where it has none, or while that is not known.
    pub fn gpu_taken(&self) -> Option<f64> {
        let share = self.taken("GPU")? / self.resources.get("GPU")?;
        // Ray counts in steps of 0.0001.
        Some((share * 10_000.0).round() / 10_000.0)
    }

    /// Whether it is ALIVE and has this role: `driver` or `worker`, by the label that labd gives it.
    pub fn serves_as(&self, role: &str) -> bool {
        self.alive && self.labels.get("labd.role").is_some_and(|own| own == role)
    }
}

/// Handle on the watcher; cheap to clone. The tasks end with the last handle.
#[derive(Debug, Clone)]
pub struct Ray {
    set_endpoint: Arc<watch::Sender<Option<Endpoint>>>,
    follow: watch::Sender<BTreeSet<String>>,
    planned: watch::Sender<BTreeSet<Ipv4Addr>>,
    view: watch::Receiver<Arc<RayView>>,
    refresh_now: Arc<Notify>,
    #[cfg(test)]
    simulated: Option<Unregister>,
}

/// Receiver of a simulated cluster's dead nodes: address, before, reason.
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct Unregister(pub(crate) Arc<Ear>);

#[cfg(test)]
type Ear = dyn Fn(Ipv4Addr, Timestamp, String) -> futures_util::future::BoxFuture<'static, Result<usize, String>>
    + Send
    + Sync;

#[cfg(test)]
impl std::fmt::Debug for Unregister {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unregister")
    }
}

impl Ray {
    /// Starts the tasks. Must be called inside a tokio runtime.
    pub fn spawn() -> Self {
        let (set_endpoint, heard) = watch::channel(None);
        let (follow, followed) = watch::channel(BTreeSet::new());
        let (planned, nodes) = watch::channel(BTreeSet::new());
        let (tell, view) = watch::channel(Arc::new(RayView::default()));
        let tell = Arc::new(tell);
        let refresh_now = Arc::new(Notify::new());
        tokio::spawn(watch_nodes(heard.clone(), nodes, tell.clone(), refresh_now.clone()));
        tokio::spawn(watch_jobs(heard.clone(), followed, tell));
        tokio::spawn(leftovers::watch(heard.clone()));
        tokio::spawn(spare::watch(heard, view.clone()));
        Self {
            set_endpoint: Arc::new(set_endpoint),
            follow,
            planned,
            view,
            refresh_now,
            #[cfg(test)]
            simulated: None,
        }
    }

    /// Simulated cluster: what is seen of it, where labd believes the head to be, and who is told of dead nodes.
    #[cfg(test)]
    pub(crate) fn simulated(
        view: watch::Receiver<Arc<RayView>>,
        set_endpoint: watch::Sender<Option<Endpoint>>,
        unregister: Unregister,
    ) -> Self {
        let (follow, planned) = (watch::channel(BTreeSet::new()).0, watch::channel(BTreeSet::new()).0);
        Self {
            set_endpoint: Arc::new(set_endpoint),
            follow,
            planned,
            view,
            refresh_now: Arc::default(),
            simulated: Some(unregister),
        }
    }

    /// Sets where the head is now; `None` when no head runs. What was known of nodes is then forgotten, jobs are kept.
    pub fn set_endpoint(&self, head: Option<Endpoint>) {
        self.set_endpoint.send_if_modified(|old| {
            let changed = *old != head;
            *old = head;
            changed
        });
    }

    /// Sets the addresses of the nodes that the lab has when all of it is there: what it can never run is judged by them.
    pub fn set_planned(&self, nodes: BTreeSet<Ipv4Addr>) {
        self.planned.send_if_modified(|old| {
            let changed = *old != nodes;
            *old = nodes;
            changed
        });
    }

    /// View of the cluster, whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<RayView>> {
        self.view.clone()
    }

    /// Channel for the jobs that must be followed, should Ray's list of all become too long.
    pub fn follow(&self) -> watch::Sender<BTreeSet<String>> {
        self.follow.clone()
    }

    /// Endpoint of the head, whenever that changes; `None` while none runs.
    pub fn endpoint(&self) -> watch::Receiver<Option<Endpoint>> {
        self.set_endpoint.subscribe()
    }

    /// Polls at once.
    pub fn refresh_now(&self) {
        self.refresh_now.notify_one();
    }

    /// Tells the GCS that every node at `address` that is ALIVE and was started before `before` is dead, in our words, and
    /// returns how many there were. Never the head. Only for containers that the engine says do not run.
    ///
    /// Fails in one line when the GCS is away.
    pub async fn unregister(&self, address: Ipv4Addr, before: Timestamp, reason: &str) -> Result<usize, String> {
        let Some(endpoint) = self.set_endpoint.borrow().clone() else { return Err("no Ray head runs".to_owned()) };
        #[cfg(test)]
        if let Some(Unregister(tell)) = &self.simulated {
            return tell(address, before, reason.to_owned()).await;
        }
        let client = Client::connect(&endpoint);
        let mut told = 0;
        for node in client.nodes().await? {
            let node = convert(node);
            let old = began_before(node.started_at, before, Timestamp::now());
            if node.alive && !node.is_head && node.address == address && old {
                client.unregister(node.id, reason).await?;
                told += 1;
            }
        }
        self.refresh_now();
        Ok(told)
    }
}

async fn watch_nodes(
    mut set_endpoint: watch::Receiver<Option<Endpoint>>,
    planned: watch::Receiver<BTreeSet<Ipv4Addr>>,
    tell: Arc<watch::Sender<Arc<RayView>>>,
    refresh_now: Arc<Notify>,
) {
    let mut client: Option<Client> = None;
    let mut misses = 0;
    loop {
        if set_endpoint.has_changed().unwrap_or(true) || client.is_none() {
            let target = set_endpoint.borrow_and_update().clone();
            client = target.as_ref().map(Client::connect);
            misses = 0;
            update(&tell, |view| {
                view.gcs = Gcs::Unknown;
                view.nodes.clear();
                view.demands.clear();
            });
        }
        let Some(gcs) = &client else {
            if set_endpoint.changed().await.is_err() {
                return;
            }
            continue;
        };
        let (nodes, state) = tokio::join!(gcs.nodes(), gcs.state());
        let pause = match nodes {
            Ok(nodes) => {
                misses = 0;
                let mut nodes = newest(nodes.into_iter().map(convert).collect(), Timestamp::now());
                let lab = demand::Lab::new(&nodes, &planned.borrow());
                let demands = state.as_ref().ok().map(|state| demand::demands(state, &lab));
                for node in &mut nodes {
                    let found = state.as_ref().ok().and_then(|s| s.nodes.iter().find(|n| n.id == node.id));
                    node.available = found.map(|n| n.available.clone().into_iter().collect()).unwrap_or_default();
                }
                update(&tell, |view| {
                    view.gcs = Gcs::Reachable;
                    view.nodes = nodes;
                    if let Some(demands) = demands {
                        view.demands = demands;
                    }
                });
                CALM
            }
            Err(reason) => {
                misses += 1;
                update(&tell, |view| view.gcs = after_misses(misses, &view.gcs, reason));
                EAGER
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = refresh_now.notified() => {}
            changed = set_endpoint.changed() => {
                if changed.is_err() {
                    return;
                }
                set_endpoint.mark_changed();
            }
        }
    }
}

async fn watch_jobs(
    mut set_endpoint: watch::Receiver<Option<Endpoint>>,
    followed: watch::Receiver<BTreeSet<String>>,
    tell: Arc<watch::Sender<Arc<RayView>>>,
) {
    let mut before = None;
    // Why the list of all jobs cannot be read, and when it is tried again.
    let mut unread: Option<(Instant, String)> = None;
    loop {
        let target = set_endpoint.borrow_and_update().clone();
        let Some(endpoint) = target else {
            // Nobody to ask until there is a head.
            if set_endpoint.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut pause = EAGER;
        let begun = Instant::now();
        let api = HttpJobs::new(endpoint);
        let due = unread.as_ref().is_none_or(|(again, _)| begun >= *again);
        let all = async { if due { Some(api.list().await) } else { None } };
        // An upgraded head says another version.
        let (all, runs, version) = tokio::join!(all, api.get("/api/train/v2/runs/v1"), api.version());
        let (now, all_jobs) = (Timestamp::now(), matches!(all, Some(Ok(_))));
        let jobs = match all {
            Some(Ok(jobs)) => {
                unread = None;
                Some(jobs)
            }
            // It answers, and not this.
            all if version.is_ok() => {
                if let Some(Err(reason)) = all {
                    let why = format!(
                        "Ray's list of jobs cannot be read ({reason}): unfinished jobs are asked for one by one; delete \
                         old ones (`ray job delete`)"
                    );
                    unread = Some((Instant::now() + ALL_JOBS, why));
                }
                let wanted = followed.borrow().clone();
                api.each(&wanted).await.ok()
            }
            _ => None,
        };
        // A dashboard that has much to tell, or a busy node, is asked less often.
        let breath = begun.elapsed() * 2;
        if jobs.is_some() {
            pause = JOBS;
        }
        update(&tell, |view| {
            if let Some(jobs) = jobs {
                view.jobs = Some(Arc::new(jobs));
            }
            view.trouble = unread.as_ref().map(|(_, why)| why.clone());
            view.version = version.ok().or(view.version.take());
            if let Ok(runs) = runs {
                let known = view.jobs.as_ref().map_or(&[][..], |told| &told.jobs);
                view.runs =
                    train::merge(&view.runs, train::read(&runs), known, train::Polled { before, now, all_jobs });
                before = Some(now);
            }
            if view.runs.iter().any(|run| run.is_on_its_way(now)) {
                pause = pause.min(ON_ITS_WAY);
            }
        });
        pause = pause.max(breath.min(LONGEST_BREATH));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = set_endpoint.changed() => if changed.is_err() { return },
        }
    }
}

/// State of the GCS after so many polls in a row without an answer.
fn after_misses(misses: u32, before: &Gcs, reason: String) -> Gcs {
    match before {
        Gcs::Reachable if misses < MISSES => Gcs::Reachable,
        _ => Gcs::Unreachable { reason },
    }
}

/// Changes the view, and wakes nobody when nothing changed.
fn update(tell: &watch::Sender<Arc<RayView>>, change: impl FnOnce(&mut RayView)) {
    tell.send_if_modified(|view| {
        let mut new = RayView::clone(view);
        change(&mut new);
        let changed = new != **view;
        if changed {
            *view = Arc::new(new);
        }
        changed
    });
}

fn convert(node: proto::Node) -> RayNode {
    let alive = node.is_alive();
    RayNode {
        id: node.id,
        address: node.address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
        port: u16::try_from(node.port).unwrap_or_default(),
        alive,
        is_head: node.is_head,
        started_at: Timestamp::told(i64::try_from(node.start_time_ms).unwrap_or(i64::MAX)),
        name: node.name,
        resources: node.resources.into_iter().collect(),
        available: BTreeMap::new(),
        labels: node.labels.into_iter().collect(),
    }
}

/// Whether a node began before `before`. One that began in the future, by `now`, did so before the clock was set back.
pub(crate) fn began_before(began: Timestamp, before: Timestamp, now: Timestamp) -> bool {
    began < before || began > now.plus(Duration::from_secs(1))
}

/// Newest node of each address: the living one, else the one that was started last. A node that returned leaves its
/// dead predecessors in the GCS, and one of those may have the later time, when the clock was set back since: what was started in
/// the future, by `now`, was so before.
pub(crate) fn newest(mut nodes: Vec<RayNode>, now: Timestamp) -> Vec<RayNode> {
    let future = now.plus(Duration::from_secs(1));
    nodes.sort_by_key(|n| (n.address, !n.alive, n.started_at > future, std::cmp::Reverse(n.started_at)));
    nodes.dedup_by_key(|n| n.address);
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_node_of_an_address_counts() {
        let node = |address: &str, state, start_time_ms| {
            convert(proto::Node { address: address.into(), state, start_time_ms, ..Default::default() })
        };
        let now = Timestamp::from_millis(10);
        let nodes = newest(vec![node("198.18.1.2", 1, 5), node("198.18.1.1", 0, 1), node("198.18.1.2", 0, 9)], now);
        let seen: Vec<(u8, bool)> = nodes.iter().map(|n| (n.address.octets()[3], n.alive)).collect();
        assert_eq!(seen, [(1, true), (2, true)]);
        // The clock was set back between the two.
        let nodes = newest(vec![node("198.18.1.2", 1, 3_600_000), node("198.18.1.2", 0, 9)], now);
        assert!(nodes.len() == 1 && nodes[0].alive);
        let dead = newest(vec![node("198.18.1.2", 1, 3_600_000), node("198.18.1.2", 1, 9)], now);
        assert!(dead.len() == 1 && dead[0].started_at == Timestamp::from_millis(9), "{dead:?}");
    }

    #[test]
    fn a_node_from_before_the_clock_was_set_back_is_an_old_one() {
        let at = |s: i64| Timestamp::from_millis(s * 1_000);
        let old = |began| began_before(at(began), at(100), at(102));
        assert_eq!([90, 101, 102, 3_700].map(old), [true, false, false, true]);
    }

    #[test]
    fn a_node_is_busy_however_little_is_taken_of_it() {
        let of = |gpu: f64, cpu: f64| [("GPU".to_owned(), gpu), ("CPU".to_owned(), cpu)].into();
        let node = |free: BTreeMap<String, f64>| RayNode {
            resources: of(1.0, 128.0),
            available: free,
            ..convert(proto::Node::default())
        };
        let told = |free| (node(free)).gpu_taken().map(|share| (share, node(of(1.0, 127.999)).is_busy()));
        assert_eq!(told(of(0.5, 128.0)), Some((0.5, true)));
        assert_eq!(told([("CPU".to_owned(), 128.0)].into()), Some((1.0, true)), "nothing is free of it");
        assert_eq!(told(BTreeMap::new()), None, "not known");
        assert!(!node(of(1.0, 128.0)).is_busy() && node(of(1.0, 128.0)).gpu_taken() == Some(0.0));
    }

    #[test]
    fn one_missed_look_is_no_dead_head() {
        let after = |misses, before: &Gcs| after_misses(misses, before, "late".into());
        let away = Gcs::Unreachable { reason: "late".into() };
        assert_eq!(after(1, &Gcs::Reachable), Gcs::Reachable);
        assert_eq!(after(2, &Gcs::Reachable), away);
        assert_eq!(after(1, &Gcs::Unknown), away, "one that never answered");
    }

    #[tokio::test]
    async fn when_the_list_of_jobs_cannot_be_read_unfinished_ones_are_asked_for_one_by_one() {
        use axum::{Json, Router, http::StatusCode, routing::get};
        use serde_json::json;
        let dashboard = Router::new()
            .route("/api/version", get(|| async { Json(json!({"version": "4"})) }))
            .route("/api/jobs/", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
            .route("/api/jobs/going", get(|| async { Json(json!({"submission_id": "going", "status": "RUNNING"})) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let dashboard_at = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, dashboard).await });
        let ray = Ray::spawn();
        ray.follow().send_replace(["going".to_owned(), "gone".to_owned()].into());
        let token = Secret::new("t0ken");
        ray.set_endpoint(Some(Endpoint { gcs: dashboard_at, dashboard: dashboard_at, token, spares: false }));
        let mut view = ray.watch();
        let told = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| view.jobs.is_some())).await;
        let told = told.expect("in time").expect("the task runs").clone();
        let ids: Vec<&str> = told.jobs.iter().flat_map(|t| &t.jobs).map(|job| job.submission_id.as_str()).collect();
        assert_eq!(ids, ["going"], "the other one is not known to Ray");
        let trouble = told.trouble.clone().unwrap_or_default();
        assert!(trouble.contains("HTTP status 500") && trouble.contains("one by one"), "{trouble}");
    }

    #[tokio::test]
    async fn without_a_head_nothing_is_known_and_nobody_is_told() {
        let ray = Ray::spawn();
        assert_eq!(ray.watch().borrow().gcs, Gcs::Unknown);
        assert!(ray.unregister(Ipv4Addr::LOCALHOST, Timestamp::now(), "labd: test").await.is_err());
        // Somebody listens there who is no GCS.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        ray.set_endpoint(Some(Endpoint { gcs: addr, dashboard: addr, token: Secret::new("t0ken"), spares: false }));
        let mut view = ray.watch();
        let view = view.wait_for(|v| matches!(v.gcs, Gcs::Unreachable { .. })).await.expect("the task runs").clone();
        assert!(!format!("{view:?}").contains("t0ken"));
    }
}
