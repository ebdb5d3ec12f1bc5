//! What Ray says of runs and what the store has of them, as one. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::{StoreView, StoredRun};
use crate::{
    ray::TrainRun,
    snapshot::{RunStatus, RunView},
    time::Timestamp,
};

/// How many runs the snapshot shows.
const SHOWN: usize = 50;
/// A run that trains longer than this without a checkpoint is worth a word.
const SOON: Duration = Duration::from_mins(2);

/// Runs, newest first. A run is one place in the store, however many jobs continued it.
pub fn runs(known: &[TrainRun], store: &StoreView, now: Timestamp) -> Vec<RunView> {
    let stored: BTreeMap<&str, &StoredRun> = store.runs.iter().map(|run| (run.prefix.as_str(), run)).collect();
    let mut views: BTreeMap<String, RunView> = BTreeMap::new();
    // `known` is newest first: the first entry of a name is what the run is now, those after it add their attempts.
    for run in known {
        let prefix = run.prefix(&store.bucket);
        let place = prefix.clone().unwrap_or_else(|| format!("{}/{}", run.storage, run.name));
        let attempts = u32::try_from(run.attempts.len()).unwrap_or(u32::MAX);
        if let Some(view) = views.get_mut(&place) {
            view.attempts = view.attempts.saturating_add(attempts);
            continue;
        }
        let kept = prefix.as_ref().and_then(|prefix| stored.get(prefix.as_str()).copied());
        let mut view = of_store(prefix.clone().unwrap_or_else(|| run.name.clone()), kept);
        view.submission_id.clone_from(&run.submission_id);
        view.status = Some(run.status);
        view.started_at = Some(run.started_at);
        view.attempts = attempts;
        view.looked_at = store.looked_at.filter(|_| prefix.is_some());
        view.note = note(run, &view, prefix.is_some(), store, now);
        views.insert(place, view);
    }
    for run in &store.runs {
        let view = || RunView { looked_at: store.looked_at, ..of_store(run.prefix.clone(), Some(run)) };
        views.entry(run.prefix.clone()).or_insert_with(view);
    }
    let mut views: Vec<RunView> = views.into_values().collect();
    let newest = |run: &RunView| run.started_at.max(run.checkpoint.as_ref().map(|c| c.at));
    views.sort_by(|a, b| (newest(b), &a.name).cmp(&(newest(a), &b.name)));
    // Runs that train are shown, whatever their age.
    views.sort_by_key(|run| !run.status.is_some_and(RunStatus::is_active));
    views.truncate(SHOWN);
    views
}

fn of_store(name: String, kept: Option<&StoredRun>) -> RunView {
    RunView {
        name,
        submission_id: None,
        status: None,
        started_at: None,
        attempts: 0,
        checkpoint: kept.and_then(|run| run.newest.clone()),
        checkpoints: kept.map_or(0, |run| run.count),
        used_bytes: kept.map_or(0, |run| run.used_bytes),
        looked_at: None,
        note: None,
    }
}

fn note(run: &TrainRun, view: &RunView, in_store: bool, store: &StoreView, now: Timestamp) -> Option<String> {
    if !run.status.is_active() {
        return None;
    }
    if !in_store {
        // Before the first look nobody knows which bucket is the lab's.
        let known = !store.bucket.is_empty() && !run.storage.is_empty();
        return known.then(|| {
            format!(
                "keeps its checkpoints in {}, which labd does not look at; `storage_path=\"s3://{}\"` keeps them in the \
                 lab's store",
                run.storage, store.bucket
            )
        });
    }
    let trains_since =
        run.attempts.last().filter(|a| !a.workers.is_empty()).map(|a| a.running_at.unwrap_or(a.started_at));
    let looked = store.looked_at.is_some_and(|at| trains_since.is_some_and(|since| at.since(since) > SOON));
    (run.status == RunStatus::Running && looked && view.checkpoint.is_none() && store.complete).then(|| {
        let since = trains_since.unwrap_or(run.started_at);
        format!(
            "has saved no checkpoint in {}: after a failure it would begin again; see samples/train.py for how to save one",
            crate::time::human(Duration::from_mins(now.since(since).as_secs() / 60))
        )
    })
}
