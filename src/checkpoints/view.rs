//! Runs as Ray reports them and as the store has them, in one view. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::{
    StoreView, StoredRun,
    listing::{Sweep, SweepStart},
};
use crate::{
    ray::{
        RayJob, TrainRun,
        train::{Attempt, AttemptStatus},
    },
    snapshot::{JobStatus, RunStatus, RunView},
    time::Timestamp,
};

/// Number of runs that the snapshot shows.
const SHOWN: usize = 50;
/// Time of training without a checkpoint after which that is worth a note.
const SOON: Duration = Duration::from_mins(2);
/// Number of failures without progress that are no accident. With `max_failures=-1` Ray would go on forever.
const FAILURES: usize = 3;

/// Runs, newest first. A run is one place in the store, however many jobs continued it.
pub fn runs(known: &[TrainRun], jobs: &[RayJob], store: &StoreView, now: Timestamp) -> Vec<RunView> {
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
        let view = || {
            let mut view = RunView { looked_at: store.looked_at, ..of_store(run.prefix.clone(), Some(run)) };
            sweep(&mut view, run, jobs, store);
            view
        };
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

/// Adds what the marks of a Tune sweep say, which Ray's list of runs does not know.
fn sweep(view: &mut RunView, run: &StoredRun, jobs: &[RayJob], store: &StoreView) {
    let Some(newest) = run.sweeps.first() else { return };
    view.submission_id = Some(newest.submission_id.clone());
    view.started_at = Some(newest.at);
    view.attempts = u32::try_from(run.sweeps.len()).unwrap_or(u32::MAX);
    // An id can be used again: a job that began after the mark is another one.
    let its =
        |job: &&RayJob| job.submission_id == newest.submission_id && job.started_at.is_none_or(|at| at <= newest.at);
    // A job may have several sweeps, one after the other: only its last one has the job's state.
    let mut later = store.runs.iter().flat_map(|run| &run.sweeps);
    if later.any(|other| other.submission_id == newest.submission_id && other.at > newest.at) {
        return;
    }
    view.status = jobs.iter().find(its).map(|job| match job.status {
        JobStatus::Pending | JobStatus::Running => RunStatus::Running,
        JobStatus::Succeeded => RunStatus::Finished,
        JobStatus::Failed => RunStatus::Errored,
        JobStatus::Stopped => RunStatus::Aborted,
    });
    view.note = view.status.filter(|status| status.is_active()).and_then(|_| resumes(newest));
}

/// Reason why a sweep does not resume, or did not; `None` when it does.
fn resumes(sweep: &Sweep) -> Option<String> {
    let again = format!("a Tune sweep that began again in attempt {} of its job", sweep.attempt);
    let advice = "its script does not ask Tuner.can_restore; see samples/tune.py for how to resume";
    match (sweep.start, sweep.attempt) {
        (SweepStart::Restored, _) | (SweepStart::Asked, ..=1) => None,
        (SweepStart::Asked, _) => Some(format!("{again}: Tuner.can_restore found none to resume")),
        (SweepStart::Fresh, ..=1) => Some(format!("a Tune sweep that would begin again after a failure: {advice}")),
        (SweepStart::Fresh, _) => Some(format!("{again}: {advice}")),
    }
}

/// Worker groups that were asked for after its newest checkpoint, and failed.
fn failures<'a>(run: &'a TrainRun, view: &RunView) -> Vec<&'a Attempt> {
    let newest = view.checkpoint.as_ref().map(|c| c.at);
    let since = run.attempts.iter().filter(|a| newest.is_none_or(|at| a.started_at > at));
    since.filter(|a| a.status == AttemptStatus::Errored).collect()
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
                "keeps its checkpoints in {}, which labd does not list; `storage_path=\"s3://{}\"` keeps them in the \
                 lab's store",
                run.storage, store.bucket
            )
        });
    }
    let failures = failures(run, view);
    if failures.len() >= FAILURES {
        let error = failures.last().and_then(|a| a.error.as_deref()).unwrap_or("Ray does not say why");
        return Some(format!("failed {} times without a new checkpoint: {error}", failures.len()));
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::snapshot::CheckpointView;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    fn known(name: &str, status: RunStatus, started_at: i64) -> TrainRun {
        TrainRun {
            name: name.to_owned(),
            id: format!("{name}-{started_at}"),
            submission_id: Some(format!("job-{started_at}")),
            status,
            started_at: at(started_at),
            ended_at: None,
            storage: "s3://ray".to_owned(),
            driver: None,
            attempts: vec![Attempt {
                id: "1".to_owned(),
                started_at: at(started_at + 2),
                running_at: Some(at(started_at + 5)),
                ended_at: None,
                status: AttemptStatus::Running,
                error: None,
                workers: vec![Ipv4Addr::LOCALHOST],
            }],
        }
    }

    fn stored(prefix: &str, written: Option<i64>) -> StoredRun {
        let newest = written.map(|s| CheckpointView { name: format!("checkpoint_{s}"), at: at(s), bytes: 10 });
        StoredRun {
            prefix: prefix.to_owned(),
            seen: newest.iter().cloned().collect(),
            count: u32::from(newest.is_some()),
            newest,
            used_bytes: 20,
            sweeps: Vec::new(),
            from_record: false,
            carried_over: false,
        }
    }

    fn job(id: &str, status: JobStatus, started_at: i64) -> RayJob {
        RayJob {
            submission_id: id.to_owned(),
            status,
            error: None,
            message: String::new(),
            entrypoint: String::new(),
            started_at: Some(at(started_at)),
            ended_at: None,
            driver_node: None,
            exit_code: None,
            mark: None,
        }
    }

    fn marked(prefix: &str, id: &str, marks: &[(u32, SweepStart, i64)]) -> StoredRun {
        let sweep = |&(attempt, start, s): &(u32, SweepStart, i64)| Sweep {
            submission_id: if attempt == 1 { id.to_owned() } else { format!("{id}-r{}", attempt - 1) },
            attempt,
            start,
            at: at(s),
        };
        StoredRun { sweeps: marks.iter().rev().map(sweep).collect(), ..stored(prefix, None) }
    }

    fn store(runs: Vec<StoredRun>, looked_at: i64) -> StoreView {
        StoreView {
            bucket: "ray".to_owned(),
            looked_at: Some(at(looked_at)),
            trouble: None,
            runs,
            total_bytes: 99,
            complete: true,
        }
    }

    #[test]
    fn ray_and_the_store_are_joined_and_what_trains_comes_first() {
        let ray = [
            known("new", RunStatus::Finished, 900),
            known("twice", RunStatus::Running, 500),
            known("twice", RunStatus::Aborted, 300),
        ];
        let views = runs(
            &ray,
            &[],
            &store(vec![stored("twice", Some(520)), stored("a/only-stored", Some(950))], 1_000),
            at(1_000),
        );
        let told: Vec<_> = views.iter().map(|v| (v.name.as_str(), v.status, v.attempts)).collect();
        assert_eq!(
            told,
            [("twice", Some(RunStatus::Running), 2), ("a/only-stored", None, 0), ("new", Some(RunStatus::Finished), 1),]
        );
        assert_eq!(views[0].submission_id.as_deref(), Some("job-500"));
        assert_eq!(views[0].checkpoint.as_ref().map(|c| c.at), Some(at(520)));
        assert_eq!((views[0].used_bytes, views[0].looked_at), (20, Some(at(1_000))));
        assert_eq!((views[2].checkpoint.as_ref(), views[2].used_bytes), (None, 0));
    }

    #[test]
    fn a_run_that_saves_nothing_is_told_of_in_time() {
        let told = |status, looked_at, kept: Option<i64>, storage: &str| {
            let ray = [TrainRun { storage: storage.to_owned(), ..known("r", status, 100) }];
            let kept = kept.map(|s| stored("r", Some(s))).into_iter().collect();
            runs(&ray, &[], &store(kept, looked_at), at(400))
                .into_iter()
                .find(|v| v.status.is_some())
                .and_then(|v| v.note)
        };
        let s3 = "s3://ray";
        let none = told(RunStatus::Running, 300, None, s3).expect("a note");
        assert!(none.starts_with("has saved no checkpoint in 4 min"), "{none}");
        assert_eq!(told(RunStatus::Running, 200, None, s3), None, "it trained for 95 s when the store was looked at");
        assert_eq!(told(RunStatus::Running, 300, Some(290), s3), None);
        assert_eq!(told(RunStatus::Finished, 300, None, s3), None);
        let elsewhere = told(RunStatus::Running, 300, None, "/root/ray_results").expect("a note");
        assert!(elsewhere.contains("/root/ray_results") && elsewhere.contains("s3://ray"), "{elsewhere}");
    }

    #[test]
    fn a_run_that_fails_over_and_over_is_told_of() {
        let mut run = known("r", RunStatus::Restarting, 100);
        let failed = |s| Attempt {
            started_at: at(s),
            status: AttemptStatus::Errored,
            error: Some(format!("ValueError: {s}")),
            ..run.attempts[0].clone()
        };
        run.attempts = vec![failed(100), failed(110), failed(120)];
        let note =
            |kept| runs(std::slice::from_ref(&run), &[], &store(vec![stored("r", kept)], 130), at(130))[0].note.clone();
        assert_eq!(note(None).as_deref(), Some("failed 3 times without a new checkpoint: ValueError: 120"));
        assert_eq!(note(Some(105)), None, "it came further after the first failure");
    }

    #[test]
    fn a_sweep_that_does_not_resume_is_told_of_while_it_runs() {
        use SweepStart::{Asked, Fresh, Restored};
        let told = |marks: &[(u32, SweepStart, i64)], status| {
            let last = marks.last().map_or(1, |m| m.0);
            let id = if last == 1 { "tune".to_owned() } else { format!("tune-r{}", last - 1) };
            let store = store(vec![marked("asha", "tune", marks)], 400);
            let view = runs(&[], &[job(&id, status, 90)], &store, at(400)).pop().expect("a run");
            assert_eq!(
                (view.submission_id.as_deref(), view.attempts),
                (Some(id.as_str()), u32::try_from(marks.len()).expect("few"))
            );
            (view.status.expect("a state"), view.note.unwrap_or_default())
        };
        let running = JobStatus::Running;
        let would = told(&[(1, Fresh, 100)], running);
        assert!(
            would.0 == RunStatus::Running
                && would.1.contains("would begin again")
                && would.1.contains("samples/tune.py")
        );
        assert!(told(&[(1, Fresh, 100), (2, Fresh, 200)], running).1.contains("began again in attempt 2"));
        assert!(told(&[(2, Asked, 100)], running).1.ends_with("Tuner.can_restore found none to resume"));
        for resumes in
            [&[(1, Asked, 100)][..], &[(1, Asked, 100), (2, Restored, 200)], &[(1, Fresh, 100), (2, Restored, 200)]]
        {
            assert_eq!(told(resumes, running), (RunStatus::Running, String::new()));
        }
        for (ended, status) in [
            (JobStatus::Succeeded, RunStatus::Finished),
            (JobStatus::Failed, RunStatus::Errored),
            (JobStatus::Stopped, RunStatus::Aborted),
        ] {
            assert_eq!(told(&[(1, Fresh, 100)], ended), (status, String::new()));
        }
    }

    #[test]
    fn a_sweeps_state_is_that_of_the_job_that_is_at_it() {
        let states = |runs_of_store: Vec<StoredRun>, jobs: &[RayJob]| -> Vec<(String, Option<RunStatus>)> {
            runs(&[], jobs, &store(runs_of_store, 400), at(400)).into_iter().map(|v| (v.name, v.status)).collect()
        };
        let running = [job("tune", JobStatus::Running, 90)];
        let mark = |prefix, s| marked(prefix, "tune", &[(1, SweepStart::Fresh, s)]);
        // The second sweep of one job, an id that was used again, a job that Ray forgot, a run without marks.
        let two = vec![mark("first", 100), mark("second", 200)];
        assert_eq!(states(two, &running), [("second".into(), Some(RunStatus::Running)), ("first".into(), None)]);
        assert_eq!(states(vec![mark("old", 80)], &running), [("old".into(), None)]);
        assert_eq!(states(vec![mark("old", 100)], &[]), [("old".into(), None)]);
        assert_eq!(states(vec![stored("plain", None)], &running), [("plain".into(), None)]);
    }

    #[test]
    fn an_unknown_store_is_no_reason_for_words() {
        let views = runs(&[known("r", RunStatus::Running, 100)], &[], &StoreView::default(), at(9_000));
        assert_eq!((views.len(), views[0].looked_at, &views[0].note), (1, None, &None));
    }
}
