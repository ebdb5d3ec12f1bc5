//! What an incident did to training: which runs it interrupted, when they trained again, and how much work they do twice.
//! Pure.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    checkpoints::StoreView,
    incident::{Incident, Interrupted},
    ray::{TrainRun, train::Attempt},
    time::Timestamp,
};

/// A worker group is called ended only after its death: this covers clocks that are read a moment apart.
const SLACK: Duration = Duration::from_millis(500);

/// The runs that had a worker, or their driver, on the node that died; `address` is the node's. The same answer again and
/// again while they are on their way, and one that changes no more once they train.
///
/// Give it every run that labd knows, and the store as it was looked at since the death (`Checkpoints::poke`): the newest
/// checkpoint from before the death is the one that a run resumes from.
pub fn training(
    incident: &Incident,
    address: Option<Ipv4Addr>,
    runs: &[TrainRun],
    store: &StoreView,
) -> Vec<Interrupted> {
    let Some(address) = address else { return Vec::new() };
    let died_at = incident.died_at;
    let mut all: Vec<Interrupted> = Vec::new();
    for run in runs {
        if all.iter().any(|i| i.run == run.name) || !was_hit(run, address, died_at) {
            continue;
        }
        let training_at = again(run, runs, died_at);
        let checkpoint = newest_before(run, store, died_at);
        let resumed = training_at.and(checkpoint.clone());
        // A run without a checkpoint begins anew; whether it has one is known only from a look at its store.
        let began_anew = training_at.is_some()
            && checkpoint.is_none()
            && run.prefix(&store.bucket).is_some()
            && store.looked_at.is_some_and(|at| at > died_at);
        let work_since = match &resumed {
            Some((_, written_at)) => Some(*written_at),
            None if began_anew => began(run, runs),
            None => None,
        };
        all.push(Interrupted {
            run: run.name.clone(),
            training_at,
            checkpoint: resumed.map(|(name, _)| name),
            lost_ms: work_since.map(|since| u64::try_from(died_at.since(since).as_millis()).unwrap_or(u64::MAX)),
        });
    }
    all.sort_by(|a, b| a.run.cmp(&b.run));
    all
}

/// Whether the run was under way on that node at that moment.
fn was_hit(run: &TrainRun, address: Ipv4Addr, died_at: Timestamp) -> bool {
    let spans =
        |from: Timestamp, to: Option<Timestamp>| from <= died_at && to.is_none_or(|to| to.plus(SLACK) >= died_at);
    if !spans(run.started_at, run.ended_at) {
        return false;
    }
    run.driver == Some(address)
        || run.attempts.iter().any(|a| spans(a.started_at, a.ended_at) && a.workers.contains(&address))
}

/// Entries of the same run, this one included: a run that is submitted again keeps its name and its place.
fn entries<'a>(run: &'a TrainRun, runs: &'a [TrainRun]) -> impl Iterator<Item = &'a TrainRun> {
    runs.iter().filter(|other| other.name == run.name && other.storage == run.storage)
}

/// When the first worker group after the death trained.
fn again(run: &TrainRun, runs: &[TrainRun], died_at: Timestamp) -> Option<Timestamp> {
    let attempts = entries(run, runs).flat_map(|r| &r.attempts);
    attempts.filter(|a| a.started_at > died_at).filter_map(trained_at).min()
}

/// When a worker group trained; when its workers were asked for, if labd did not see it.
fn trained_at(attempt: &Attempt) -> Option<Timestamp> {
    (!attempt.workers.is_empty()).then(|| attempt.running_at.unwrap_or(attempt.started_at))
}

/// When the run first trained.
fn began(run: &TrainRun, runs: &[TrainRun]) -> Option<Timestamp> {
    entries(run, runs).flat_map(|r| &r.attempts).filter_map(trained_at).min()
}

fn newest_before(run: &TrainRun, store: &StoreView, died_at: Timestamp) -> Option<(String, Timestamp)> {
    let prefix = run.prefix(&store.bucket)?;
    let stored = store.runs.iter().find(|s| s.prefix == prefix)?;
    stored.seen.iter().find(|c| c.at <= died_at).map(|c| (c.name.clone(), c.at))
}
