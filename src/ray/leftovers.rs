//! Leftovers of drivers that the GCS counts as running, though their nodes are dead: their jobs, and the placement groups
//! of these.
//!
//! A driver that dies while the GCS restarts is one: the GCS writes down that its node is dead, ends before it has written
//! that its job is, and never looks again. The job's placement groups then hold GPUs for nobody, or the GCS tries to place
//! them some thousand times a second, which takes a core from the lab for as long as it runs (Ray 2.60).

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    Endpoint,
    gcs::{ALIVE, Gcs},
    proto,
};
use crate::secret;

/// Time between two checks once the GCS has started. What is left over in two of them is told: Ray itself needs a moment.
const SOON: Duration = Duration::from_secs(10);
/// Time after a start of the GCS in which leftovers are looked for often: its nodes come back, or are found dead.
const AFTER_START: Duration = Duration::from_mins(3);
/// Time between two checks else. The table of jobs grows as long as the lab lives.
const LATER: Duration = Duration::from_mins(5);
/// State `PlacementGroupTableData.REMOVED`.
const REMOVED: i32 = 3;

/// Things that the GCS still keeps, by Ray's ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Leftovers {
    /// Jobs whose drivers cannot be alive.
    jobs: BTreeSet<Vec<u8>>,
    /// Placement groups that nobody will use, each with the actor that made it; ones, or nothing, for a driver's own.
    groups: BTreeSet<(Vec<u8>, Vec<u8>)>,
}

impl Leftovers {
    /// Leftovers in what the GCS keeps; `nodes` asked for last, so that every job's node is among them unless Ray has
    /// forgotten it. Groups of actors that live on are still among them. Pure.
    fn of(jobs: &[proto::GcsJob], groups: &[proto::PlacementGroup], nodes: &[proto::Node]) -> Self {
        let alive: BTreeSet<&[u8]> = nodes.iter().filter(|n| n.state == 0).map(|n| n.id.as_slice()).collect();
        let node = |job: &proto::GcsJob| job.driver.as_ref().map(|driver| driver.node.clone()).unwrap_or_default();
        let left = |job: &&proto::GcsJob| {
            let node = node(job);
            !job.is_dead && !node.is_empty() && !alive.contains(node.as_slice())
        };
        // No node at all is a cluster that is just coming up.
        let left: BTreeSet<Vec<u8>> =
            if alive.is_empty() { BTreeSet::new() } else { jobs.iter().filter(left).map(|j| j.id.clone()).collect() };
        let over = |id: &Vec<u8>| left.contains(id) || jobs.iter().any(|job| job.id == *id && job.is_dead);
        let groups = groups.iter().filter(|g| g.state != REMOVED && !g.is_detached && over(&g.job));
        Self { groups: groups.map(|g| (g.id.clone(), g.actor.clone())).collect(), jobs: left }
    }

    /// Those that are in both.
    fn and(&self, other: &Self) -> Self {
        Self { jobs: &self.jobs & &other.jobs, groups: &self.groups & &other.groups }
    }
}

/// Looks for leftovers, more often after each start of the GCS. Ends with the last handle on the watcher.
pub(super) async fn watch(mut set_endpoint: watch::Receiver<Option<Endpoint>>) {
    let mut before = Leftovers::default();
    let (mut client, mut since) = (None, Instant::now());
    loop {
        if client.is_none() || set_endpoint.has_changed().unwrap_or(true) {
            client = set_endpoint.borrow_and_update().as_ref().map(Gcs::connect);
            (before, since) = (Leftovers::default(), Instant::now());
        }
        if let Some(gcs) = &client {
            match tell(gcs, &before).await {
                Ok(now) => before = now,
                Err(reason) => tracing::debug!(reason, "leftovers in the GCS are not known now"),
            }
        }
        let pause = if since.elapsed() < AFTER_START { SOON } else { LATER };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = set_endpoint.changed() => {
                if changed.is_err() {
                    return;
                }
                set_endpoint.mark_changed();
            }
        }
    }
}

/// Tells the GCS of the leftovers that were there `before` too. Returns all that are there now.
async fn tell(gcs: &Gcs, before: &Leftovers) -> Result<Leftovers, String> {
    let (jobs, groups) = (gcs.jobs().await?, gcs.placement_groups().await?);
    let now = Leftovers::of(&jobs, &groups, &gcs.nodes().await?);
    let lasting = now.and(before);
    for job in lasting.jobs {
        tracing::info!(job = secret::hex(&job), "Ray is told that a job is over: its driver's node is dead");
        gcs.finish_job(job).await?;
    }
    for (group, actor) in lasting.groups {
        // One that a detached actor made lives as long as that one. No actor is an id of ones.
        let of_driver = actor.iter().all(|&byte| byte == 0xff);
        if of_driver || !lives(gcs.actor(actor).await?.as_ref()) {
            tracing::info!(group = secret::hex(&group), "Ray is told to remove a placement group: its job is over");
            gcs.remove_placement_group(group).await?;
        }
    }
    Ok(now)
}

/// Whether an actor is there, or will be: every state but `DEAD`, 4.
fn lives(actor: Option<&proto::Actor>) -> bool {
    actor.is_some_and(|actor| actor.state <= ALIVE + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u8, state: i32) -> proto::Node {
        proto::Node { id: vec![id], state, ..proto::Node::default() }
    }

    fn job(id: u8, node: &[u8], is_dead: bool) -> proto::GcsJob {
        proto::GcsJob { id: vec![id], is_dead, driver: Some(proto::Address { node: node.to_vec() }) }
    }

    fn group(id: u8, job: u8, state: i32, is_detached: bool) -> proto::PlacementGroup {
        proto::PlacementGroup { id: vec![id], state, job: vec![job], actor: vec![100 + id], is_detached }
    }

    #[test]
    fn a_job_is_left_over_whose_drivers_node_is_dead_and_a_group_whose_job_is_over() {
        let nodes = [node(1, 0), node(2, 1)];
        let jobs = [
            job(1, &[1], false),
            job(2, &[2], false),
            job(3, &[2], true),
            job(4, &[], false),
            // Its node died so long ago that Ray forgot it.
            job(5, &[9], false),
        ];
        let groups = [
            group(1, 1, 2, false),
            group(2, 2, 4, false),
            group(3, 3, 2, false),
            group(4, 3, 2, true),
            group(5, 3, REMOVED, false),
        ];
        let found = Leftovers::of(&jobs, &groups, &nodes);
        assert_eq!(found.jobs, [vec![2], vec![5]].into());
        assert_eq!(found.groups, [(vec![2], vec![102]), (vec![3], vec![103])].into());
        assert_eq!(Leftovers::of(&jobs[..1], &groups[..1], &nodes), Leftovers::default());
    }

    #[test]
    fn nothing_is_left_over_in_a_cluster_that_comes_up_or_that_was_not_twice() {
        let (jobs, groups) = ([job(2, &[2], false)], [group(2, 2, 4, false)]);
        assert_eq!(Leftovers::of(&jobs, &groups, &[node(2, 1)]), Leftovers::default());
        assert_eq!(Leftovers::of(&jobs, &groups, &[]), Leftovers::default());
        let found = Leftovers::of(&jobs, &groups, &[node(1, 0), node(2, 1)]);
        assert_eq!(found.and(&Leftovers::default()), Leftovers::default());
        assert_eq!(found.and(&found), found);
    }

    #[test]
    fn an_actor_that_restarts_is_there() {
        let actor = |state| Some(proto::Actor { state, ..proto::Actor::default() });
        assert_eq!([0, 1, 2, 3, 4].map(|state| lives(actor(state).as_ref())), [true, true, true, true, false]);
        assert!(!lives(None));
    }
}
