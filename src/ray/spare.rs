//! Spare worker processes: on every idle GPU node one that has a run's environment and waits, and on the driver's node
//! one for each actor that Ray Train creates again with every group of workers. When the run loses a worker, Ray starts
//! the new ones in them, and neither Python nor a job's packages are waited for.
//!
//! Ray has a call for that (`PrestartWorkers`), which nobody makes for Ray Train's workers. What is started so is Ray's: it
//! takes it for the next worker with that job and environment, and ends it with the job.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Endpoint, RayNode, RayView,
    gcs::{self, ALIVE, Gcs},
    proto,
};

/// Time between two checks.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time that a run may be without workers while what was started for it is still counted on: between two
/// attempts there are none.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Time that a node must be there before it is asked: a raylet that does not know the job yet starts nothing and says
/// nothing.
const KNOWS_JOBS: Duration = Duration::from_secs(5);
/// Time an actor must have been alive before its spare is started: until then the run is still recovering and needs
/// the CPU.
const IS_BACK: Duration = Duration::from_secs(10);
/// Class of Ray Train's workers, as the GCS names it.
const TRAIN_WORKER: &str = "RayTrainWorker";
/// Actors that Ray Train starts beside each group of workers, and ends with it.
const BESIDE_WORKERS: [&str; 3] = ["SynchronizationActor", "DatasetManager", "PreemptionWatcher"];
/// Share of a GPU that is free for it to count as idle: less is the rounding of parts.
const FREE_GPU: f64 = 0.01;

/// Process to be kept ready: of which job, in which environment, on which node, and in place of which actor, if it is
/// for none but that one's successor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spare {
    pub(super) job: Vec<u8>,
    pub(super) environment: String,
    pub(super) node: Vec<u8>,
    in_place_of: Option<Vec<u8>>,
}

/// Node that can have a spare process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    id: Vec<u8>,
    raylet: SocketAddr,
    /// Whether a GPU of it is free.
    idle: bool,
}

impl Place {
    fn of(node: &RayNode) -> Self {
        Self {
            id: node.id.clone(),
            raylet: SocketAddr::new(node.address.into(), node.port),
            idle: node.available.get("GPU").is_some_and(|&free| free >= FREE_GPU),
        }
    }
}

/// Spares that were started and not used yet, as far as that can be told.
#[derive(Debug, Default)]
struct Kept {
    /// Spares, with the moment at which their run was last seen with workers.
    spares: BTreeMap<Spare, Instant>,
    /// Moment at which each node was first seen.
    nodes: BTreeMap<Vec<u8>, Instant>,
    /// The same of each actor that may have a spare.
    actors: BTreeMap<Vec<u8>, Instant>,
}

impl Kept {
    /// Spares that are missing now, one for each node at most: Ray starts only so many processes at a time on a node, fewer
    /// when some have died while they started, and what it is asked for beyond that may never come. Pure but for what it
    /// remembers.
    fn missing(&mut self, actors: &[proto::Actor], places: &[Place], now: Instant) -> Vec<Spare> {
        let of_train = |a: &&proto::Actor| a.class == TRAIN_WORKER || BESIDE_WORKERS.contains(&a.class.as_str());
        let actors: Vec<&proto::Actor> = actors.iter().filter(|a| a.state == ALIVE).filter(of_train).collect();
        remember(&mut self.actors, actors.iter().map(|actor| &actor.id), now);
        remember(&mut self.nodes, places.iter().map(|place| &place.id), now);
        let for_long = |seen: Option<&Instant>, time| seen.is_some_and(|&seen| now.duration_since(seen) >= time);
        let is_back = |actor: &&proto::Actor| for_long(self.actors.get(&actor.id), IS_BACK);
        let knows_jobs = |place: &&Place| for_long(self.nodes.get(&place.id), KNOWS_JOBS);
        let mut groups: BTreeMap<(&[u8], &str), BTreeSet<&[u8]>> = BTreeMap::new();
        let mut settled = BTreeSet::new();
        for worker in actors.iter().copied().filter(|w| w.class == TRAIN_WORKER) {
            groups.entry((&worker.job, &worker.environment)).or_default().insert(&worker.node);
            if is_back(&worker) {
                settled.insert((worker.job.as_slice(), worker.environment.as_str()));
            }
        }
        let of_runs: BTreeSet<&[u8]> = groups.keys().map(|(job, _)| *job).collect();
        // A node that is gone took its processes along; one that a worker is on now has used it up.
        self.spares.retain(|spare, wanted| {
            if of_runs.contains(spare.job.as_slice()) {
                *wanted = now;
            }
            let used = match &spare.in_place_of {
                Some(actor) => of_runs.contains(spare.job.as_slice()) && !actors.iter().any(|a| a.id == *actor),
                None => groups
                    .get(&(spare.job.as_slice(), spare.environment.as_str()))
                    .is_some_and(|nodes| nodes.contains(spare.node.as_slice())),
            };
            !used && places.iter().any(|place| place.id == spare.node) && now.duration_since(*wanted) < REMEMBERED
        });
        let places = || places.iter().filter(knows_jobs);
        let mut wanted = Vec::new();
        for ((job, environment), nodes) in groups.iter().filter(|(run, _)| settled.contains(*run)) {
            for place in places().filter(|place| place.idle && !nodes.contains(place.id.as_slice())) {
                wanted.push(Spare {
                    job: job.to_vec(),
                    environment: (*environment).to_owned(),
                    node: place.id.clone(),
                    in_place_of: None,
                });
            }
        }
        // While workers are on their way, so are these: one that comes would take the spare of another.
        let settled_jobs: BTreeSet<&[u8]> = settled.iter().map(|(job, _)| *job).collect();
        let beside = |a: &&proto::Actor| a.class != TRAIN_WORKER && settled_jobs.contains(a.job.as_slice());
        for actor in actors.iter().copied().filter(beside).filter(is_back) {
            wanted.extend(places().filter(|place| place.id == actor.node).map(|place| Spare {
                job: actor.job.clone(),
                environment: actor.environment.clone(),
                node: place.id.clone(),
                in_place_of: Some(actor.id.clone()),
            }));
        }
        let mut asked = BTreeSet::new();
        wanted.retain(|spare| !self.spares.contains_key(spare) && asked.insert(spare.node.clone()));
        wanted
    }
}

/// Keeps the moment at which each of these was first seen, and forgets the others.
fn remember<'a>(seen: &mut BTreeMap<Vec<u8>, Instant>, ids: impl Iterator<Item = &'a Vec<u8>>, now: Instant) {
    let before = std::mem::take(seen);
    seen.extend(ids.map(|id| (id.clone(), before.get(id).copied().unwrap_or(now))));
}

/// Checks again and again while runs are active. Ends with the last handle on the watcher.
pub(super) async fn watch(mut set_endpoint: watch::Receiver<Option<Endpoint>>, view: watch::Receiver<Arc<RayView>>) {
    let mut kept = Kept::default();
    let mut connected: Option<(Endpoint, Gcs)> = None;
    loop {
        let target = set_endpoint.borrow_and_update().clone().filter(|head| head.spares);
        if connected.as_ref().map(|(head, _)| head) != target.as_ref() {
            connected = target.map(|head| (head.clone(), Gcs::connect(&head)));
        }
        let active = view.borrow().runs.iter().any(|run| run.status.is_active());
        if let Some((head, gcs)) = connected.as_ref().filter(|_| active)
            && let Err(reason) = look(head, gcs, &view, &mut kept).await
        {
            tracing::debug!(reason, "no spare worker processes now");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = set_endpoint.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(head: &Endpoint, gcs: &Gcs, view: &watch::Receiver<Arc<RayView>>, kept: &mut Kept) -> Result<(), String> {
    let actors = gcs.actors().await?;
    let places: Vec<Place> = view
        .borrow()
        .nodes
        .iter()
        .filter(|node| node.serves_as("worker") || node.serves_as("driver"))
        .map(Place::of)
        .collect();
    for spare in kept.missing(&actors, &places, Instant::now()) {
        if let Some(place) = places.iter().find(|place| place.id == spare.node) {
            gcs::prestart(place.raylet, &head.token, &spare).await?;
            kept.spares.insert(spare, Instant::now());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(job: u8, environment: &str, node: u8) -> proto::Actor {
        proto::Actor {
            id: vec![job, node],
            state: ALIVE,
            job: vec![job],
            environment: environment.into(),
            class: TRAIN_WORKER.into(),
            node: vec![node],
        }
    }

    fn place(id: u8) -> Place {
        Place { id: vec![id], raylet: "127.0.0.1:1".parse().expect("an address"), idle: true }
    }

    /// Memory that has seen these actors and nodes for long enough, and the time.
    fn known(actors: &[proto::Actor], places: &[Place]) -> (Kept, Instant) {
        let (mut kept, seen) = (Kept::default(), Instant::now());
        assert_eq!(kept.missing(actors, places, seen), [], "a node that is new knows no job, and a run is on its way");
        (kept, seen + IS_BACK.max(KNOWS_JOBS))
    }

    /// Job and node of each missing spare; all of them are then started, one after the other on each node.
    fn start(kept: &mut Kept, workers: &[proto::Actor], places: &[Place], now: Instant) -> Vec<(u8, u8)> {
        let mut started = Vec::new();
        loop {
            let missing = kept.missing(workers, places, now);
            if missing.is_empty() {
                started.sort_unstable();
                return started;
            }
            let nodes: BTreeSet<&[u8]> = missing.iter().map(|spare| spare.node.as_slice()).collect();
            assert_eq!(nodes.len(), missing.len(), "one at a time");
            kept.spares.extend(missing.iter().map(|spare| (spare.clone(), now)));
            started.extend(missing.iter().map(|spare| (spare.job[0], spare.node[0])));
        }
    }

    #[test]
    fn each_run_has_one_on_each_idle_node_that_it_is_not_on() {
        let workers = [worker(1, "a", 1), worker(2, "b", 2)];
        let places = [place(1), place(2), place(3), Place { idle: false, ..place(4) }];
        let (mut kept, now) = known(&workers, &places);
        assert_eq!(start(&mut kept, &workers, &places, now), [(1, 2), (1, 3), (2, 1), (2, 3)]);
        assert_eq!(start(&mut kept, &workers, &places, now), [], "once");
        let others = [
            proto::Actor { class: "Other".into(), ..worker(3, "c", 1) },
            proto::Actor { state: 1, ..worker(4, "d", 1) },
        ];
        let (mut kept, now) = known(&others, &places);
        assert_eq!(start(&mut kept, &others, &places, now), [], "none of Ray Train's workers");
    }

    #[test]
    fn one_that_was_used_or_went_with_its_node_is_started_again_and_no_other() {
        let [first, second, third, fourth] = [1, 2, 3, 4].map(|node| [worker(1, "a", node)]);
        let places = [place(1), place(2), place(3)];
        let (mut kept, now) = known(&first, &places);
        assert_eq!(start(&mut kept, &first, &places, now), [(1, 2), (1, 3)]);
        // Node 1 dies: there is no worker for a while, then one on node 2; node 1 is back under another id.
        assert_eq!(start(&mut kept, &[], &places[1..], now + LOOK), []);
        let places = [place(2), place(3), place(4)];
        let back = now + LOOK * 2;
        assert_eq!(start(&mut kept, &second, &places, back), [], "a node that is new knows no job");
        assert_eq!(start(&mut kept, &second, &places, back + KNOWS_JOBS), [], "and the run has not been back for long");
        assert_eq!(start(&mut kept, &second, &places, back + IS_BACK), [(1, 4)]);
        // Node 2 dies, too, and is back: its process was used up by then.
        let places = [place(3), place(4), place(5)];
        let back = back + IS_BACK * 2;
        assert_eq!(start(&mut kept, &third, &places, back), []);
        assert_eq!(start(&mut kept, &third, &places, back + IS_BACK), [(1, 5)]);
        // The worker leaves a node that lives on.
        let left = back + IS_BACK * 2;
        assert_eq!(start(&mut kept, &fourth, &places, left), []);
        assert_eq!(start(&mut kept, &fourth, &places, left + IS_BACK), [(1, 3)]);
    }

    #[test]
    fn what_ray_train_recreates_with_each_group_of_workers_has_one_beside_it() {
        let places = [place(1), Place { idle: false, ..place(9) }];
        let beside = |id: u8, class: &str| proto::Actor { id: vec![id], class: class.into(), ..worker(1, "b", 9) };
        let first = [
            worker(1, "a", 1),
            beside(50, "SynchronizationActor"),
            beside(51, "DatasetManager"),
            beside(52, "PreemptionWatcher"),
            beside(53, "Other"),
        ];
        let (mut kept, now) = known(&first, &places);
        assert_eq!(start(&mut kept, &first, &places, now), [(1, 9), (1, 9), (1, 9)]);
        assert_eq!(start(&mut kept, &first, &places, now + LOOK), [], "once");
        assert_eq!(start(&mut kept, &[], &places, now + LOOK), [], "between two groups");
        let next = [
            worker(1, "a", 1),
            beside(60, "SynchronizationActor"),
            beside(51, "DatasetManager"),
            beside(62, "PreemptionWatcher"),
        ];
        assert_eq!(start(&mut kept, &next, &places, now + LOOK * 2), [], "the run is on its way back");
        let back = now + LOOK * 2 + IS_BACK;
        assert_eq!(start(&mut kept, &next, &places, back), [(1, 9), (1, 9)], "two were used");
        let (mut kept, now) = known(&first[1..], &places);
        assert_eq!(start(&mut kept, &first[1..], &places, now), [], "no run");
        // Workers that were long in coming: what comes with them would take what was started for those before it.
        assert_eq!(start(&mut kept, &first, &places, now), [], "the workers have just come");
        assert_eq!(start(&mut kept, &first, &places, now + IS_BACK), [(1, 9), (1, 9), (1, 9)]);
    }

    #[test]
    fn what_was_started_for_a_run_that_is_gone_for_long_is_forgotten() {
        let places = [place(1), place(2)];
        let workers = [worker(1, "a", 1)];
        let (mut kept, now) = known(&workers, &places);
        start(&mut kept, &workers, &places, now);
        start(&mut kept, &[], &places, now + REMEMBERED / 2);
        assert_eq!(kept.spares.len(), 1, "an attempt may yet follow");
        start(&mut kept, &[], &places, now + REMEMBERED);
        assert_eq!(kept.spares.len(), 0);
    }
}
