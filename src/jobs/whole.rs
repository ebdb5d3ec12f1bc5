//! One job whole: every attempt at it, its run, its packages and its faults. Pure.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    incident::{Cause, Incident},
    snapshot::{CheckpointView, InstallView, JobOutcome, JobStatus, JobView, RunView, Snapshot},
    time::Timestamp,
    training::{
        Curve, CurveGroup,
        marks::{self, Attempt, End},
    },
};

/// Job with every attempt at it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Folded<'a> {
    /// Id that its owner knows.
    pub id: &'a str,
    /// Status: its newest attempt's.
    pub status: JobStatus,
    /// Outcome: its newest attempt's.
    pub outcome: Option<JobOutcome>,
    /// Name of its Ray Train run.
    pub run: Option<String>,
    /// GPU workers that it runs on now.
    pub workers: &'a [String],
    /// Reason why it waits, in one line.
    pub waits_for: Option<&'a str>,
    /// Attempts, oldest first.
    pub attempts: Vec<&'a JobView>,
}

impl Folded<'_> {
    /// Whether this is the id of one of its attempts.
    pub fn is(&self, id: &str) -> bool {
        self.attempts.iter().any(|attempt| attempt.submission_id == id)
    }

    /// Attempts as its curve has them.
    pub fn on_curve(&self) -> Vec<Attempt> {
        self.attempts.iter().map(|attempt| of_attempt(attempt)).collect()
    }
}

fn of_attempt(job: &JobView) -> Attempt {
    let is_over = job.outcome.is_some() || (job.attempt.is_none() && job.status.is_final());
    let text = match job.outcome {
        Some(JobOutcome::Succeeded) => "finished".to_owned(),
        Some(JobOutcome::Failed) => format!("failed: {}", job.message),
        _ if job.message.is_empty() => job.status.as_str().to_lowercase(),
        _ => job.message.clone(),
    };
    let is_lost = job.outcome == Some(JobOutcome::Lost) && job.resubmitted_as.is_some();
    // Of what did not come through the front door, only Ray says how it ended.
    let by_status = match job.status {
        JobStatus::Succeeded => Some(JobOutcome::Succeeded),
        JobStatus::Failed => Some(JobOutcome::Failed),
        JobStatus::Stopped => Some(JobOutcome::Stopped),
        JobStatus::Pending | JobStatus::Running => None,
    };
    let outcome = job.outcome.or(by_status);
    let end = job.ended_at.filter(|_| is_over).map(|at| End { at, is_lost, outcome, text });
    Attempt { submission_id: job.submission_id.clone(), submitted_at: job.submitted_at, end }
}

/// Jobs, the one with the newest attempt first. `jobs` are newest first.
pub fn fold(jobs: &[JobView]) -> Vec<Folded<'_>> {
    let root = |job: &JobView| job.resubmission_of.clone().unwrap_or_else(|| job.submission_id.clone());
    let mut families: Vec<(String, Vec<&JobView>)> = Vec::new();
    for job in jobs {
        let id = root(job);
        match families.iter_mut().find(|(known, _)| *known == id) {
            Some((_, attempts)) => attempts.push(job),
            None => families.push((id, vec![job])),
        }
    }
    let mut folded = Vec::new();
    for (id, mut attempts) in families {
        attempts.sort_by_key(|job| job.attempt);
        let (Some(first), Some(&newest)) = (attempts.first(), attempts.last()) else { continue };
        let of_root = first.resubmission_of.as_deref().filter(|root| *root == id).unwrap_or(&first.submission_id);
        folded.push(Folded {
            id: of_root,
            status: newest.status,
            outcome: newest.outcome,
            run: attempts.iter().rev().find_map(|job| job.run.clone()),
            workers: &newest.workers,
            waits_for: newest.waits_for.as_deref(),
            attempts,
        });
    }
    folded
}

/// Jobs that are shown, and those of these attempts that are not: the snapshot has the newest only.
pub fn with_older(shown: &[JobView], mut attempts: Vec<JobView>) -> Vec<JobView> {
    attempts.retain(|job| shown.iter().all(|shown| shown.submission_id != job.submission_id));
    shown.iter().cloned().chain(attempts).collect()
}

/// One job, as `GET /api/v1/jobs/{id}` tells it.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct JobDetail {
    /// Id that its owner knows.
    pub id: String,
    /// Status: its newest attempt's.
    pub status: JobStatus,
    /// Outcome: its newest attempt's.
    pub outcome: Option<JobOutcome>,
    /// Name of its Ray Train run.
    pub run: Option<String>,
    /// GPU workers that it runs on now.
    pub workers: Vec<String>,
    /// Ids of their GPUs.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Reason why it waits, in one line.
    pub waits_for: Option<String>,
    /// The command line, as submitted.
    #[serde(default)]
    pub entrypoint: String,
    /// Time at which its owner submitted it.
    #[serde(default)]
    pub submitted_at: Option<Timestamp>,
    /// Time at which its newest attempt ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Attempts, oldest first.
    pub attempts: Vec<JobView>,
    /// Its run, as Ray and the store know it.
    pub train_run: Option<RunView>,
    /// Newest checkpoint of its run.
    #[serde(default)]
    pub checkpoint: Option<CheckpointView>,
    /// Age of that checkpoint, in milliseconds.
    #[serde(default)]
    pub checkpoint_age_ms: Option<u64>,
    /// Worker groups of its run, oldest first.
    #[serde(default)]
    pub groups: Vec<GroupView>,
    /// Packages that are installed for it, or just were.
    #[serde(default)]
    pub installs: Vec<InstallView>,
    /// Deaths that interrupted it, oldest first.
    #[serde(default)]
    pub faults: Vec<FaultView>,
    /// Whether there is a curve of it.
    #[serde(default)]
    pub curve: bool,
}

/// Worker group of a job's run.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GroupView {
    /// Its number over the whole job, from 1: the `attempt` of the curve's points.
    pub number: u32,
    /// Submission whose run it belongs to.
    pub submission_id: String,
    /// Time at which its workers began to train.
    pub began_at: Timestamp,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Reason why it failed, in one line.
    pub why: Option<String>,
    /// Services its workers ran on.
    pub workers: Vec<String>,
}

/// Death of a service that interrupted a job.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct FaultView {
    /// Time of the death.
    pub at: Timestamp,
    /// Service that died.
    pub service: String,
    /// Cause.
    pub cause: Cause,
    /// Cause in one line.
    pub why: String,
    /// Time at which the run trained again.
    pub resumed_at: Option<Timestamp>,
    /// Checkpoint that it resumed from.
    pub checkpoint: Option<String>,
    /// Work that was done again, in milliseconds.
    pub lost_ms: Option<u64>,
}

/// Detail of a job. `job` is one of the folded `jobs` of [`with_older`], `curve` its curve, where there is one, with services'
/// names for nodes.
pub fn detail(
    job: &Folded<'_>,
    snapshot: &Snapshot,
    incidents: &[Incident],
    curve: Option<&Curve>,
    now: Timestamp,
) -> Option<JobDetail> {
    let (first, newest) = (job.attempts.first()?, job.attempts.last()?);
    let name = job.run.clone().or_else(|| curve.map(|curve| curve.run.clone()));
    let train_run = snapshot.runs.iter().find(|run| name.as_ref() == Some(&run.name)).cloned();
    let checkpoint = train_run.as_ref().and_then(|run| run.checkpoint.clone());
    let gpu_of = |worker: &String| {
        snapshot.gpus.iter().filter(|gpu| gpu.worker.as_ref() == Some(worker)).map(|gpu| gpu.id.clone()).collect()
    };
    let attempts = job.on_curve();
    let groups = curve.map(|curve| curve.groups.as_slice()).unwrap_or_default();
    let hit = name.as_ref().map(|run| marks::of_run(incidents, run, groups, &attempts)).unwrap_or_default();
    let age = |checkpoint: &CheckpointView| millis(now.since(checkpoint.at));
    Some(JobDetail {
        id: job.id.to_owned(),
        status: job.status,
        outcome: job.outcome,
        workers: job.workers.to_vec(),
        gpus: job.workers.iter().flat_map(|worker| -> Vec<String> { gpu_of(worker) }).collect(),
        waits_for: job.waits_for.map(str::to_owned),
        entrypoint: newest.entrypoint.clone(),
        submitted_at: first.submitted_at,
        ended_at: newest.ended_at,
        attempts: job.attempts.iter().map(|attempt| (*attempt).clone()).collect(),
        checkpoint_age_ms: checkpoint.as_ref().map(age),
        checkpoint,
        train_run,
        groups: groups.iter().map(of_group).collect(),
        installs: snapshot.installs.iter().filter(|install| job.is(&install.job)).cloned().collect(),
        faults: hit.into_iter().map(|incident| fault(incident, name.as_deref())).collect(),
        curve: curve.is_some_and(|curve| curve.count > 0),
        run: name,
    })
}

fn of_group(group: &CurveGroup) -> GroupView {
    GroupView {
        number: group.number,
        submission_id: group.submission_id.clone(),
        began_at: group.began_at,
        ended_at: group.ended_at,
        why: group.why.clone(),
        workers: group.nodes.clone(),
    }
}

fn fault(incident: &Incident, run: Option<&str>) -> FaultView {
    let hit = incident.training.iter().find(|interrupted| Some(interrupted.run.as_str()) == run);
    FaultView {
        at: incident.died_at,
        service: incident.service.clone(),
        cause: incident.cause,
        why: incident.why.clone(),
        resumed_at: hit.and_then(|hit| hit.training_at),
        checkpoint: hit.and_then(|hit| hit.checkpoint.clone()),
        lost_ms: hit.and_then(|hit| hit.lost_ms),
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::testing::a_snapshot,
        incident::{Interrupted, Order},
        snapshot::{GpuView, InstallPhase},
    };

    /// Time of what the snapshot shows, in milliseconds, and so many seconds after it.
    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(1_795_492_872_123 + s * 1_000)
    }

    /// Snapshot with a job whose first attempt was lost, and with another job beside it.
    fn snapshot() -> Snapshot {
        let mut all = a_snapshot();
        let running = all.jobs[0].clone();
        let first = JobView {
            run: Some("food11".into()),
            status: JobStatus::Failed,
            outcome: Some(JobOutcome::Lost),
            message: "lost".into(),
            ended_at: Some(at(22)),
            resubmitted_as: Some("raysubmit_1-r1".into()),
            ..running.clone()
        };
        let second = JobView {
            submission_id: "raysubmit_1-r1".into(),
            submitted_at: Some(at(23)),
            attempt: Some(2),
            resubmission_of: Some("raysubmit_1".into()),
            workers: vec!["ray-worker-0".into()],
            ..running.clone()
        };
        let other = JobView { submission_id: "other".into(), ..running };
        all.jobs = vec![other, second, first];
        let gpu = GpuView { id: "SIM-1".into(), worker: Some("ray-worker-1".into()), ..all.gpus[0].clone() };
        all.gpus.push(gpu);
        let install = |job: &str| InstallView {
            node: "ray-worker-0".into(),
            job: job.into(),
            phase: InstallPhase::Installing,
            since: at(1),
            ended_at: None,
            bytes: 1,
            packages: 0,
            reason: None,
        };
        all.installs = vec![install("other"), install("raysubmit_1-r1")];
        all
    }

    fn of(id: &str, incidents: &[Incident], curve: Option<&Curve>) -> JobDetail {
        let all = snapshot();
        let jobs = fold(&all.jobs);
        let job = jobs.iter().find(|job| job.is(id)).expect("there");
        detail(job, &all, incidents, curve, at(60)).expect("an attempt")
    }

    #[test]
    fn a_job_is_told_with_what_is_its_own_and_nothing_of_the_others() {
        let job = of("raysubmit_1-r1", &[], None);
        assert_eq!((job.id.as_str(), job.status, job.attempts.len()), ("raysubmit_1", JobStatus::Running, 2));
        assert_eq!((job.submitted_at, job.ended_at), (Some(at(0)), None));
        assert_eq!((job.workers, job.gpus), (vec!["ray-worker-0".to_owned()], vec!["SIM-0".to_owned()]));
        assert_eq!(job.installs.iter().map(|i| i.job.as_str()).collect::<Vec<_>>(), ["raysubmit_1-r1"]);
        assert_eq!(job.train_run.map(|run| run.name), Some("food11".to_owned()));
        assert_eq!(
            (job.checkpoint.map(|c| c.name), job.checkpoint_age_ms),
            (Some("checkpoint_1".into()), Some(60_000))
        );
        let other = of("other", &[], None);
        assert_eq!((other.run, other.checkpoint, other.checkpoint_age_ms), (None, None, None), "it has no run");
    }

    #[test]
    fn a_curve_is_one_once_it_has_a_point_and_names_the_run_of_a_job_that_says_none() {
        let mut curve = Curve { run: "food11".into(), ..Curve::default() };
        let job = of("other", &[], Some(&curve));
        assert_eq!((job.curve, job.run.as_deref(), job.train_run.is_some()), (false, Some("food11"), true));
        curve.count = 1;
        assert!(of("other", &[], Some(&curve)).curve);
    }

    #[test]
    fn a_fault_says_what_became_of_this_run_of_those_that_it_hit() {
        let hit = |run: &str, s: i64| Interrupted {
            run: run.into(),
            training_at: Some(at(s)),
            checkpoint: Some(format!("of {run}")),
            lost_ms: Some(5),
        };
        let incident = Incident {
            service: "ray-driver".into(),
            cause: Cause::Exit,
            why: "killed".into(),
            died_at: at(20),
            noticed_at: at(20),
            running_at: None,
            ready_at: None,
            training: vec![hit("b", 30), hit("food11", 40)],
            order: Order::default(),
        };
        let faults = of("raysubmit_1", &[incident], None).faults;
        let expected = FaultView {
            at: at(20),
            service: "ray-driver".into(),
            cause: Cause::Exit,
            why: "killed".into(),
            resumed_at: Some(at(40)),
            checkpoint: Some("of food11".into()),
            lost_ms: Some(5),
        };
        assert_eq!(faults, [expected]);
    }

    #[test]
    fn an_attempt_is_over_when_labd_says_so_or_ray_of_what_is_not_labds() {
        let running = a_snapshot().jobs[0].clone();
        let lost = JobView { outcome: Some(JobOutcome::Lost), resubmitted_as: Some("x-r1".into()), ..running.clone() };
        let given_up = JobView { resubmitted_as: None, message: "gave up".into(), ..lost.clone() };
        let failed = JobView { status: JobStatus::Failed, message: "x".into(), ..running.clone() };
        let foreign = |status| JobView { status, attempt: None, ..running.clone() };
        for (what, job, expected) in [
            ("it runs", running.clone(), None),
            ("Ray says so before labd has judged", failed.clone(), None),
            ("labd says so", JobView { outcome: Some(JobOutcome::Failed), ..failed }, Some("false Failed failed: x")),
            ("it is continued", lost, Some("true Lost running")),
            ("nobody continues it", given_up, Some("false Lost gave up")),
            ("not by the front door", foreign(JobStatus::Succeeded), Some("false Succeeded succeeded")),
            ("nor one that was stopped", foreign(JobStatus::Stopped), Some("false Stopped stopped")),
            ("or failed", foreign(JobStatus::Failed), Some("false Failed failed")),
            ("or runs", foreign(JobStatus::Running), None),
        ] {
            let end = of_attempt(&JobView { ended_at: Some(at(1)), ..job }).end;
            let told = end.map(|end| {
                format!("{} {} {}", end.is_lost, end.outcome.map_or("-".into(), |o| format!("{o:?}")), end.text)
            });
            assert_eq!(told.as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn attempts_that_are_not_shown_any_more_come_from_the_ledger() {
        let shown = snapshot().jobs;
        let job =
            |id: &str| JobView { submission_id: id.into(), entrypoint: "python old.py".into(), ..shown[0].clone() };
        let all = with_older(&shown, vec![job("other"), job("older")]);
        assert_eq!(all[..3], shown[..], "what is shown knows more than the ledger");
        assert_eq!((all.len(), all[3].submission_id.as_str()), (4, "older"));
        assert_eq!(all[3].entrypoint, "python old.py");
    }
}
