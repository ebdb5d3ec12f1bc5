//! From the ledger and Ray's word to jobs as the snapshot shows them. Pure.

use std::collections::BTreeMap;

use super::{
    LedgerView,
    decide::{Job, Next, Outcome, State},
};
use crate::{
    ray::{Jobs, RayJob, TrainRun, run_names},
    snapshot::{JobOutcome, JobStatus, JobView},
    text::one_line,
};

/// How many jobs the snapshot shows.
const SHOWN: usize = 50;
/// Longest text shown, in characters.
const LONGEST: usize = 200;

/// Every job once: as the ledger knows it where it does, else as Ray tells it.
pub(super) fn view(
    book: &BTreeMap<String, Job>,
    told: Option<&Jobs>,
    runs: &[TrainRun],
    trouble: Option<&str>,
) -> LedgerView {
    let told: BTreeMap<&str, &RayJob> =
        told.into_iter().flat_map(|t| &t.jobs).map(|job| (job.submission_id.as_str(), job)).collect();
    let ledger = book.values().map(|job| of_ledger(job, told.get(job.id.as_str()).copied()));
    let others = told.values().filter(|job| !book.contains_key(&job.submission_id)).map(|job| of_ray(job));
    let mut jobs: Vec<JobView> = ledger.chain(others).collect();
    let runs = run_names(runs);
    for job in &mut jobs {
        job.run = runs.get(job.submission_id.as_str()).map(|&name| name.to_owned());
    }
    jobs.sort_by(|a, b| (b.submitted_at, &b.submission_id).cmp(&(a.submitted_at, &a.submission_id)));
    jobs.truncate(SHOWN);
    let resubmissions = book.values().filter(|job| job.attempt > 1).count() as u64;
    LedgerView { jobs, trouble: trouble.map(str::to_owned), resubmissions }
}

fn of_ray(job: &RayJob) -> JobView {
    JobView {
        submission_id: job.submission_id.clone(),
        status: job.status,
        run: None,
        entrypoint: one_line(&job.entrypoint, LONGEST),
        submitted_at: job.started_at,
        ended_at: job.ended_at,
        message: one_line(&job.message, LONGEST),
        outcome: None,
        attempt: None,
        resubmission_of: None,
        resubmitted_as: None,
    }
}

fn of_ledger(job: &Job, told: Option<&RayJob>) -> JobView {
    let (status, outcome, message, next) = match &job.state {
        State::Kept { .. } if job.attempt > 1 => {
            (JobStatus::Pending, None, format!("{} was lost: handed in again once its place is there", job.root), None)
        }
        State::Kept { .. } => (JobStatus::Pending, None, "kept until the Ray head is back".to_owned(), None),
        State::Handed(_) => {
            let status = told.map_or(JobStatus::Pending, |t| t.status);
            let message = if job.attempt > 1 { format!("goes on with {}", job.root) } else { String::new() };
            (status, None, message, None)
        }
        State::Ended { outcome, .. } => match outcome {
            Outcome::Succeeded => (JobStatus::Succeeded, Some(JobOutcome::Succeeded), String::new(), None),
            Outcome::Stopped => (JobStatus::Stopped, Some(JobOutcome::Stopped), "stopped by a person".to_owned(), None),
            Outcome::Failed { why } => (JobStatus::Failed, Some(JobOutcome::Failed), why.clone(), None),
            Outcome::Lost { why, next: Next::As(next) } => {
                let message = format!("lost ({why}); resubmitted as {next}");
                (JobStatus::Failed, Some(JobOutcome::Lost), message, Some(next.clone()))
            }
            Outcome::Lost { why, next: Next::Not(reason) } => {
                (JobStatus::Failed, Some(JobOutcome::Lost), format!("lost ({why}); {reason}"), None)
            }
        },
    };
    let ended_at = match &job.state {
        State::Ended { at, .. } => Some(told.and_then(|t| t.ended_at).unwrap_or(*at)),
        State::Kept { .. } | State::Handed(_) => None,
    };
    JobView {
        submission_id: job.id.clone(),
        status,
        run: None,
        entrypoint: one_line(job.submission.entrypoint(), LONGEST),
        submitted_at: Some(job.submitted_at),
        ended_at,
        message: one_line(&message, LONGEST),
        outcome,
        attempt: Some(job.attempt),
        resubmission_of: (job.attempt > 1).then(|| job.root.clone()),
        resubmitted_as: next,
    }
}
