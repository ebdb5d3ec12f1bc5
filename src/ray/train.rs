//! Training runs as Ray Train V2 reports them: `/api/train/v2/runs/v1` of the dashboard. Reading and merging are pure.
//!
//! Ray keeps runs in the memory of an actor on the head: a crash of the head forgets them, and a run comes back only with
//! its next change of state. So what was known is kept until Ray says something newer.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;

use super::RayJob;
use crate::{snapshot::RunStatus, time::Timestamp};

/// Number of runs that are remembered; the newest ones.
const KEPT: usize = 200;
/// Number of attempts of one run that are remembered; the newest ones.
const ATTEMPTS: usize = 50;
/// Longest error shown, in characters.
const ERROR: usize = 200;
/// Longest time that a run waits for its workers before it counts as waiting for a GPU.
const SOON: Duration = Duration::from_mins(2);

/// Entry of Ray's list: what one driver called `fit()` for. A run that was submitted again is a new entry with the same
/// name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainRun {
    /// Name: `RunConfig(name=...)`, or the dated name that Ray made up.
    pub name: String,
    /// Ray's id of this entry.
    pub id: String,
    /// The job it belongs to; absent when it was not submitted as one.
    pub submission_id: Option<String>,
    /// Status.
    pub status: RunStatus,
    /// Time at which `fit()` was called.
    pub started_at: Timestamp,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Storage: `RunConfig(storage_path=...)`, such as `s3://ray`.
    pub storage: String,
    /// The node its driver and controller run on.
    pub driver: Option<Ipv4Addr>,
    /// Its worker groups, oldest first, at most 50.
    pub attempts: Vec<Attempt>,
}

/// Worker group of a run: the first, and one more after each failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Ray's id.
    pub id: String,
    /// Time at which its workers were asked for. They train some seconds later.
    pub started_at: Timestamp,
    /// Time at which labd first saw it train; absent while it does not, and when it did so before labd observed it.
    pub running_at: Option<Timestamp>,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Status.
    pub status: AttemptStatus,
    /// Reason why it failed, in one line.
    pub error: Option<String>,
    /// The nodes its workers ran on; empty until they do.
    pub workers: Vec<Ipv4Addr>,
}

/// Ray's states of a worker group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AttemptStatus {
    /// Waits for its workers.
    Pending,
    /// Trains.
    Running,
    /// Trained to the end.
    Finished,
    /// A worker failed.
    Errored,
    /// Ended with its controller.
    Aborted,
    /// A state that this labd does not know.
    #[serde(other)]
    Unknown,
}

impl TrainRun {
    /// Prefix in `bucket` of the keys of its checkpoints, without a slash at the end. `None` when they are kept
    /// elsewhere.
    pub fn prefix(&self, bucket: &str) -> Option<String> {
        let path = self.storage.strip_prefix("s3://")?;
        let path = path.split_once('?').map_or(path, |(path, _)| path).trim_matches('/');
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let parts = [rest, &self.name].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>();
        (first == bucket).then(|| parts.join("/"))
    }

    /// Whether its workers are expected within seconds.
    pub(super) fn is_on_its_way(&self, now: Timestamp) -> bool {
        let last = self.attempts.last().map_or(self.started_at, |a| a.ended_at.unwrap_or(a.started_at));
        self.status.is_active() && self.status != RunStatus::Running && now.since(last) < SOON
    }
}

/// Times of the newest polls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Polled {
    /// Time at which the list was asked for before, if it was.
    pub(super) before: Option<Timestamp>,
    /// Time at which this list was asked for.
    pub(super) now: Timestamp,
    /// Whether the jobs that came with it are all that Ray knows.
    pub(super) all_jobs: bool,
}

#[derive(Deserialize)]
struct Run {
    id: String,
    name: String,
    status: RunStatus,
    start_time_ns: i64,
    end_time_ns: Option<i64>,
    #[serde(default, rename = "run_settings")]
    settings: Value,
    #[serde(default)]
    job_details: Value,
    #[serde(default)]
    attempts: Vec<Value>,
}

#[derive(Deserialize)]
struct RawAttempt {
    attempt_id: String,
    status: AttemptStatus,
    status_detail: Option<String>,
    start_time_ns: i64,
    end_time_ns: Option<i64>,
    #[serde(default)]
    workers: Vec<Value>,
}

/// Runs in Ray's answer, newest first. What does not look like a run is skipped. Pure.
pub(crate) fn read(answer: &Value) -> Vec<TrainRun> {
    let runs = answer["train_runs"].as_array().into_iter().flatten();
    let mut runs: Vec<TrainRun> = runs.filter_map(|run| Run::deserialize(run).ok()).map(run).collect();
    newest_first(&mut runs);
    runs
}

fn run(run: Run) -> TrainRun {
    let attempts = run.attempts.into_iter().filter_map(|a| RawAttempt::deserialize(a).ok()).map(attempt);
    let mut attempts: Vec<Attempt> = attempts.collect();
    attempts.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    attempts.drain(..attempts.len().saturating_sub(ATTEMPTS));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    TrainRun {
        name: run.name,
        id: run.id,
        submission_id: text(&run.job_details["submission_id"]),
        status: run.status,
        started_at: at(run.start_time_ns),
        ended_at: run.end_time_ns.map(at),
        storage: text(&run.settings["run_config"]["storage_path"]).unwrap_or_default(),
        driver: run.job_details["driver_info"]["node_ip_address"].as_str().and_then(|ip| ip.parse().ok()),
        attempts,
    }
}

fn attempt(raw: RawAttempt) -> Attempt {
    let mut workers: Vec<Ipv4Addr> = raw.workers.iter().filter_map(|w| w["node_ip"].as_str()?.parse().ok()).collect();
    workers.sort_unstable();
    workers.dedup();
    let failed = matches!(raw.status, AttemptStatus::Errored | AttemptStatus::Aborted);
    Attempt {
        id: raw.attempt_id,
        started_at: at(raw.start_time_ns),
        running_at: None,
        ended_at: raw.end_time_ns.map(at),
        status: raw.status,
        error: raw.status_detail.filter(|_| failed).and_then(|text| essence(&text)),
        workers,
    }
}

fn at(ns: i64) -> Timestamp {
    Timestamp::told(ns / 1_000_000)
}

/// Line of a stack trace that says what happened: the last one.
fn essence(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|l| !l.trim().is_empty())?;
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= ERROR {
        return Some(line);
    }
    Some(line.chars().take(ERROR - 1).chain(['…']).collect())
}

fn newest_first(runs: &mut Vec<TrainRun>) {
    runs.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    runs.truncate(KEPT);
}

/// Runs after Ray's answer: as the answer has them, and those that Ray forgot with its head. A forgotten run whose job
/// has ended has ended too. Pure.
pub(super) fn merge(known: &[TrainRun], answer: Vec<TrainRun>, jobs: &[RayJob], polled: Polled) -> Vec<TrainRun> {
    let old: HashMap<&str, &TrainRun> = known.iter().map(|run| (run.id.as_str(), run)).collect();
    let mut runs: Vec<TrainRun> = answer.into_iter().map(|run| watched(run, &old, polled)).collect();
    for run in known {
        if !runs.iter().any(|r| r.id == run.id) {
            runs.push(forgotten(run.clone(), jobs, polled));
        }
    }
    newest_first(&mut runs);
    runs
}

/// Run together with what labd saw itself.
fn watched(mut run: TrainRun, old: &HashMap<&str, &TrainRun>, polled: Polled) -> TrainRun {
    let before = old.get(run.id.as_str());
    for attempt in &mut run.attempts {
        let known = before.and_then(|run| run.attempts.iter().find(|a| a.id == attempt.id));
        let trains = !attempt.workers.is_empty();
        let waited = match known {
            Some(known) => known.workers.is_empty(),
            None => polled.before.is_some_and(|before| before <= attempt.started_at),
        };
        attempt.running_at = match known.and_then(|a| a.running_at) {
            None if trains && waited => Some(attempt.ended_at.unwrap_or(polled.now).min(polled.now)),
            seen => seen,
        };
    }
    // The driver is named only while its job is known.
    if let Some(before) = before {
        run.driver = run.driver.or(before.driver);
        run.submission_id = run.submission_id.or_else(|| before.submission_id.clone());
    }
    run
}

fn forgotten(mut run: TrainRun, jobs: &[RayJob], polled: Polled) -> TrainRun {
    let ended_at = run.submission_id.as_ref().and_then(|id| match jobs.iter().find(|j| j.submission_id == *id) {
        Some(job) => job.ended_at,
        // Ray forgot it with its run; a list takes a moment to name a job that has just begun.
        None => Some(polled.now).filter(|now| polled.all_jobs && now.since(run.started_at) > SOON),
    });
    if run.status.is_active()
        && let Some(ended_at) = ended_at
    {
        run.status = RunStatus::Aborted;
        run.ended_at = Some(ended_at);
        for attempt in run.attempts.iter_mut().filter(|a| a.ended_at.is_none()) {
            attempt.status = AttemptStatus::Aborted;
            attempt.ended_at = Some(ended_at);
        }
    }
    run
}

/// Name of the newest training run by submission id. `runs` are newest first. Pure.
pub(crate) fn run_names(runs: &[TrainRun]) -> BTreeMap<&str, &str> {
    // The last one stays: the newest.
    runs.iter().rev().filter_map(|run| Some((run.submission_id.as_deref()?, run.name.as_str()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MS: i64 = 1_000_000;

    /// Answer of Ray 2.60 while a run whose worker was killed trained again.
    fn real() -> Value {
        serde_json::from_str(include_str!("../../tests/data/ray-2.60-train-runs.json")).expect("JSON")
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn polled(before: Option<i64>, now: i64) -> Polled {
        Polled { before: before.map(at), now: at(now), all_jobs: true }
    }

    fn one(id: &str, status: &str, attempts: &[(&str, &str, i64, bool)]) -> TrainRun {
        let attempts: Vec<Value> = attempts
            .iter()
            .map(|(id, status, start, trains)| {
                let workers = if *trains { json!([{"node_ip": "198.18.1.20"}]) } else { json!([]) };
                json!({"attempt_id": id, "status": status, "start_time_ns": start * MS, "end_time_ns": null,
                       "workers": workers})
            })
            .collect();
        let answer = json!({"train_runs": [{"id": id, "name": "food11", "status": status, "start_time_ns": 1_000 * MS,
            "end_time_ns": null, "attempts": attempts, "job_details": {"submission_id": "job-1"}}]});
        read(&answer).pop().expect("a run")
    }

    #[test]
    fn a_real_answer_is_read_whole() {
        let runs = read(&real());
        assert_eq!(runs.len(), 1);
        let run = &runs[0];
        assert_eq!((run.name.as_str(), run.submission_id.as_deref()), ("surv", Some("surv")));
        assert_eq!((run.status, run.ended_at), (RunStatus::Scheduling, None));
        assert_eq!(run.started_at, at(1_795_561_706_311));
        assert_eq!(run.driver, Some(Ipv4Addr::new(198, 18, 245, 11)));
        assert_eq!(run.prefix("ray").as_deref(), Some("surv"));
        let [first, second] = run.attempts.as_slice() else { panic!("two attempts: {run:?}") };
        assert_eq!((first.status, first.ended_at), (AttemptStatus::Errored, Some(at(1_795_561_716_325))));
        assert_eq!(first.workers, [Ipv4Addr::new(198, 18, 245, 20)]);
        assert_eq!(
            first.error.as_deref(),
            Some("the actor's node was terminated unexpectedly: labd: container exited 137 (SIGKILL)")
        );
        assert_eq!((second.status, &second.error), (AttemptStatus::Running, &None));
        assert_eq!(second.workers, [Ipv4Addr::new(198, 18, 245, 21)]);
    }

    #[test]
    fn nonsense_is_no_run_and_hides_none() {
        for nonsense in [json!(null), json!({"train_runs": 7}), json!({"train_runs": [null, 3, {"name": "x"}]})] {
            assert!(read(&nonsense).is_empty());
        }
        let mut answer = real();
        answer["train_runs"].as_array_mut().expect("a list").push(json!({"id": 1}));
        answer["train_runs"][0]["status"] = json!("SOMETHING_NEW");
        answer["train_runs"][0]["job_details"] = json!(null);
        answer["train_runs"][0]["attempts"][0] = json!("?");
        let runs = read(&answer);
        assert_eq!((runs.len(), runs[0].status, runs[0].attempts.len()), (1, RunStatus::Unknown, 1));
        assert_eq!(runs[0].driver, None);
    }

    #[test]
    fn checkpoints_are_found_where_the_run_puts_them() {
        for (storage, prefix) in [
            ("s3://ray", Some("food11")),
            ("s3://ray/", Some("food11")),
            ("s3://ray/team/a", Some("team/a/food11")),
            ("s3://ray/team?endpoint_override=http://minio:9000", Some("team/food11")),
            ("s3://rays", None),
            ("/root/ray_results", None),
            ("", None),
        ] {
            let run = TrainRun { storage: storage.to_owned(), ..one("a", "RUNNING", &[]) };
            assert_eq!(run.prefix("ray").as_deref(), prefix, "{storage}");
        }
    }

    #[test]
    fn when_a_worker_group_trains_is_seen_from_one_poll_to_the_next() {
        let none: &[TrainRun] = &[];
        let running = |runs: &[TrainRun]| runs[0].attempts.last().and_then(|a| a.running_at);
        // labd was started while it trained: nobody knows since when.
        let trains = || vec![one("a", "RUNNING", &[("1", "RUNNING", 5_000, true)])];
        assert_eq!(running(&merge(none, trains(), &[], polled(None, 9_000))), None);
        // It was asked for since the last poll.
        assert_eq!(running(&merge(none, trains(), &[], polled(Some(4_000), 6_000))), Some(at(6_000)));
        assert_eq!(running(&merge(none, trains(), &[], polled(Some(5_500), 6_000))), None);
        // It was seen to wait; and what was seen stays.
        let waits =
            merge(none, vec![one("a", "SCHEDULING", &[("1", "PENDING", 5_000, false)])], &[], polled(None, 6_000));
        assert_eq!(running(&waits), None);
        let first = merge(&waits, trains(), &[], polled(Some(6_000), 7_000));
        assert_eq!(running(&first), Some(at(7_000)));
        assert_eq!(running(&merge(&first, trains(), &[], polled(Some(7_000), 9_000))), Some(at(7_000)));
    }

    #[test]
    fn what_a_crashed_head_forgot_is_kept_until_its_job_ends() {
        let known = vec![one("a", "RUNNING", &[("1", "RUNNING", 5_000, true)])];
        let job = |ended_at: Option<i64>| RayJob {
            submission_id: "job-1".into(),
            status: crate::snapshot::JobStatus::Running,
            error: None,
            message: String::new(),
            entrypoint: String::new(),
            started_at: None,
            ended_at: ended_at.map(at),
            driver_node: None,
            exit_code: None,
            mark: None,
        };
        let kept = merge(&known, vec![], &[job(None)], polled(Some(1), 2));
        assert_eq!(kept, known);
        let late = polled(Some(1), 200_000);
        let gone = merge(&known, vec![], &[], late);
        assert_eq!(
            (gone[0].status, gone[0].ended_at),
            (RunStatus::Aborted, Some(at(200_000))),
            "its job is forgotten, too"
        );
        let all = merge(&known, vec![], &[], Polled { all_jobs: false, ..late });
        assert_eq!(all[0].status, RunStatus::Running, "not every job was told");
        let ended = merge(&known, vec![one("b", "RUNNING", &[])], &[job(Some(9_000))], polled(Some(1), 2));
        let run = ended.iter().find(|run| run.id == "a").expect("kept");
        assert_eq!((run.status, run.ended_at), (RunStatus::Aborted, Some(at(9_000))));
        assert_eq!(run.attempts[0].status, AttemptStatus::Aborted);
        assert_eq!(ended.len(), 2);
    }

    #[test]
    fn a_job_has_the_name_of_its_newest_run() {
        let runs = ["new", "old"].map(|name| TrainRun { name: name.to_owned(), ..one(name, "RUNNING", &[]) });
        assert_eq!(run_names(&runs).into_iter().collect::<Vec<_>>(), [("job-1", "new")]);
    }

    #[test]
    fn a_run_that_waits_for_a_gpu_is_not_asked_for_more_often() {
        let now = at(1_000_000);
        let waits = |since| one("a", "SCHEDULING", &[("1", "PENDING", since, false)]).is_on_its_way(now);
        assert!(waits(990_000));
        assert!(!waits(10_000));
        assert!(!one("a", "RUNNING", &[("1", "RUNNING", 990_000, true)]).is_on_its_way(now));
        assert!(!one("a", "FINISHED", &[]).is_on_its_way(now));
    }
}
