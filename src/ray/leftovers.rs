//! Leftovers of drivers that the GCS counts as running, though their nodes are dead: the placement groups of their jobs.
//!
//! A driver that dies while the GCS restarts is one: the GCS writes down that its node is dead, ends before it has written
//! that its job is, and never looks again. The job's placement groups then hold GPUs for nobody, or the GCS tries to place
//! them some thousand times a second, which takes a core from the lab for as long as it runs (Ray 2.60).
//!
//! The job itself stays as the GCS has it: when a job ends, the GCS deletes the working directory that only it still holds,
//! and that may be the one with which the next attempt has just been submitted.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Endpoint, gcs::Gcs, proto};
use crate::secret;

/// Time between two checks once the GCS has started. What is left over in two of them is told: Ray itself needs a moment.
const SOON: Duration = Duration::from_secs(10);
/// Time after a start of the GCS in which leftovers are looked for often: its nodes come back, or are found dead.
const AFTER_START: Duration = Duration::from_mins(3);
/// Time between two checks else. The table of jobs grows as long as the lab lives.
const LATER: Duration = Duration::from_mins(5);
/// State `PlacementGroupTableData.REMOVED`.
const REMOVED: i32 = 3;
/// State `ActorTableData.DEAD`: in every other one an actor is there, or will be.
const DEAD: i32 = 4;

/// Placement groups that nobody will use, by Ray's ids, each with the actor that made it; ones, or nothing, for a driver's
/// own.
type Groups = BTreeSet<(Vec<u8>, Vec<u8>)>;

/// Placement groups that are left over in what the GCS keeps; `nodes` asked for last, so that every driver's node is among
/// them unless Ray has forgotten it. Those of actors that live on are still among them. Pure.
fn leftovers(jobs: &[proto::GcsJob], groups: &[proto::PlacementGroup], nodes: &[proto::Node]) -> Groups {
    let alive: BTreeSet<&[u8]> = nodes.iter().filter(|n| n.is_alive()).map(|n| n.id.as_slice()).collect();
    // No node at all is a cluster that is just coming up.
    if alive.is_empty() {
        return Groups::new();
    }
    let gone = |driver: &proto::Address| !driver.node.is_empty() && !alive.contains(driver.node.as_slice());
    let is_over = |job: &&proto::GcsJob| job.is_dead || job.driver.as_ref().is_some_and(gone);
    let over: BTreeSet<&[u8]> = jobs.iter().filter(is_over).map(|job| job.id.as_slice()).collect();
    let left = groups.iter().filter(|g| g.state != REMOVED && !g.is_detached && over.contains(g.job.as_slice()));
    left.map(|g| (g.id.clone(), g.actor.clone())).collect()
}

/// Looks for leftovers, more often after each start of the GCS. Ends with the last handle on the watcher.
pub(super) async fn watch(mut set_endpoint: watch::Receiver<Option<Endpoint>>) {
    let mut before = Groups::new();
    let (mut client, mut since) = (None, Instant::now());
    loop {
        if client.is_none() || set_endpoint.has_changed().unwrap_or(true) {
            client = set_endpoint.borrow_and_update().as_ref().map(Gcs::connect);
            (before, since) = (Groups::new(), Instant::now());
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

/// Removes the leftovers that were there `before` too. Returns all that are there now.
async fn tell(gcs: &Gcs, before: &Groups) -> Result<Groups, String> {
    let (jobs, groups) = (gcs.jobs().await?, gcs.placement_groups().await?);
    let now = leftovers(&jobs, &groups, &gcs.nodes().await?);
    for (group, actor) in now.intersection(before).cloned() {
        // One that a detached actor made lives as long as that one. No actor is an id of ones.
        let of_driver = actor.iter().all(|&byte| byte == 0xff);
        if of_driver || !lives(gcs.actor(actor).await?.as_ref()) {
            tracing::info!(group = secret::hex(&group), "Ray is told to remove a placement group: its job is over");
            gcs.remove_placement_group(group).await?;
        }
    }
    Ok(now)
}

/// Whether an actor is there, or will be.
fn lives(actor: Option<&proto::Actor>) -> bool {
    actor.is_some_and(|actor| actor.state != DEAD)
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
    fn a_group_is_left_over_whose_job_is_over_or_has_its_driver_on_a_dead_node() {
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
            group(6, 4, 2, false),
            group(7, 5, 2, false),
        ];
        let found: Vec<u8> = leftovers(&jobs, &groups, &nodes).iter().map(|(id, _)| id[0]).collect();
        assert_eq!(found, [2, 3, 7]);
        assert_eq!(leftovers(&jobs, &groups, &[node(2, 1)]), Groups::new(), "a cluster that comes up");
    }

    #[test]
    fn an_actor_that_restarts_is_there() {
        let actor = |state| Some(proto::Actor { state, ..proto::Actor::default() });
        assert_eq!([0, 1, 2, 3, 4].map(|state| lives(actor(state).as_ref())), [true, true, true, true, false]);
        assert!(!lives(None));
    }
}
