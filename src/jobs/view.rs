//! Jobs as the snapshot shows them, from the ledger and from what Ray reports. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    LedgerView,
    decide::{self, Job, Next, Outcome, Present, State},
};
use crate::{
    ray::{Gcs, RayJob, RayView, TrainRun, resource_words, run_names},
    snapshot::{JobOutcome, JobStatus, JobView, RunStatus},
    spec::worker_slot,
    text::one_line,
    time::Timestamp,
};

/// Number of jobs that the snapshot shows.
const SHOWN: usize = 50;
/// Number of those that are kept for jobs that have just ended, so that each end is seen however many wait.
const JUST_ENDED: usize = 10;
/// Longest text shown, in characters.
const LONGEST: usize = 200;

/// Job, by who knows most of it.
#[derive(Clone, Copy)]
enum Known<'a> {
    Ledger(&'a Job),
    Ray(&'a RayJob),
}

/// Jobs that are shown: what has workers comes first, since GPUs and their hours are told by it, however many wait behind
/// it; then what ended last; then what else has not ended, with all attempts at it; then the newest.
fn chosen<'a>(
    book: &'a BTreeMap<String, Job>,
    told: &BTreeMap<&str, &'a RayJob>,
    at_work: &BTreeSet<&str>,
) -> Vec<Known<'a>> {
    let just_ended = just_ended(book, told);
    let rank = |ended: bool, id: &str| match ended {
        _ if at_work.contains(id) => 0,
        _ if just_ended.contains(id) => 1,
        ended => 2 + u8::from(ended),
    };
    let open: BTreeSet<&str> = book.values().filter(|job| !job.is_over()).map(|job| job.root.as_str()).collect();
    let ledger = book.values().map(|job| {
        let rank = rank(!open.contains(job.root.as_str()), &job.id);
        (rank, Reverse((Some(job.submitted_at), job.id.as_str())), Known::Ledger(job))
    });
    let others = told.values().filter(|job| !book.contains_key(&job.submission_id)).map(|&job| {
        let rank = rank(job.status.is_final(), &job.submission_id);
        (rank, Reverse((job.started_at, job.submission_id.as_str())), Known::Ray(job))
    });
    let mut all: Vec<_> = ledger.chain(others).collect();
    keep_first(&mut all, SHOWN, |(rank, newest, _)| (*rank, *newest));
    all.into_iter().map(|(_, _, known)| known).collect()
}

/// Jobs that ended last.
fn just_ended<'a>(book: &'a BTreeMap<String, Job>, told: &BTreeMap<&str, &'a RayJob>) -> BTreeSet<&'a str> {
    let ledger = book.values().filter_map(|job| match &job.state {
        // What was submitted again goes on as that.
        State::Ended { at, outcome } if !matches!(outcome, Outcome::Lost { next: Next::As(_), .. }) => {
            Some((*at, job.id.as_str()))
        }
        State::Ended { .. } | State::Queued { .. } | State::Submitted(_) => None,
    });
    let others = told.values().filter(|job| !book.contains_key(&job.submission_id));
    let others = others.filter_map(|job| Some((job.ended_at?, job.submission_id.as_str())));
    let mut all: Vec<_> = ledger.chain(others).collect();
    keep_first(&mut all, JUST_ENDED, |newest| Reverse(*newest));
    all.into_iter().map(|(_, id)| id).collect()
}

/// Keeps the first ones by this key, in no order: a ledger is long, and asked all the time.
fn keep_first<T, K: Ord>(all: &mut Vec<T>, most: usize, key: impl FnMut(&T) -> K) {
    if all.len() > most {
        all.select_nth_unstable_by_key(most, key);
        all.truncate(most);
    }
}

/// View of every job, once: as the ledger knows it where it does, else as Ray reports it. `services` are by address.
pub(super) fn view(
    book: &BTreeMap<String, Job>,
    ray: &RayView,
    services: &BTreeMap<Ipv4Addr, String>,
    present: Present,
    trouble: Option<&str>,
) -> LedgerView {
    let told = told_of(ray);
    let mut jobs: Vec<JobView> = chosen(book, &told, &at_work(ray, services))
        .into_iter()
        .map(|known| match known {
            Known::Ledger(job) => of_ledger(job, entry(job, &told), present),
            Known::Ray(job) => of_ray(job),
        })
        .collect();
    jobs.sort_by(|a, b| (b.submitted_at, &b.submission_id).cmp(&(a.submitted_at, &a.submission_id)));
    let runs = run_names(&ray.runs);
    for job in &mut jobs {
        let id = job.submission_id.as_str();
        job.run = runs.get(id).map(|&name| name.to_owned());
        let run = ray.runs.iter().find(|run| run.submission_id.as_deref() == Some(id));
        match job.status {
            JobStatus::Running => {
                job.workers = workers(run, told.get(id).copied(), ray, services);
                job.waits_for = run.filter(|run| run.status == RunStatus::Scheduling).map(|_| waiting_run(ray));
            }
            JobStatus::Pending => job.waits_for = book.get(id).and_then(|job| waits_for(job, ray)),
            JobStatus::Stopped | JobStatus::Succeeded | JobStatus::Failed => {}
        }
    }
    let resubmissions = book.values().filter(|job| job.attempt > 1).count() as u64;
    LedgerView {
        jobs,
        trouble: trouble.map(str::to_owned),
        notices: shared_runs(book, ray),
        resubmissions,
        unjudged: false,
    }
}

/// Submissions that GPU workers work for: their run has a worker group, or their driver is on a worker.
fn at_work<'a>(ray: &'a RayView, services: &BTreeMap<Ipv4Addr, String>) -> BTreeSet<&'a str> {
    let runs = ray.runs.iter().filter(|run| !group(run).is_empty()).filter_map(|run| run.submission_id.as_deref());
    let told = ray.jobs.iter().flat_map(|told| &told.jobs).filter(|job| job.status == JobStatus::Running);
    let jobs = told.filter(|job| driver(job, ray).is_some_and(|address| gpu_worker(address, services).is_some()));
    runs.chain(jobs.map(|job| job.submission_id.as_str())).collect()
}

/// GPU workers a job runs on: its training run's, or the one that its driver is on.
fn workers(
    run: Option<&TrainRun>,
    told: Option<&RayJob>,
    ray: &RayView,
    services: &BTreeMap<Ipv4Addr, String>,
) -> Vec<String> {
    let of_run = run.map(group).unwrap_or_default();
    let of_driver = if of_run.is_empty() { told.and_then(|job| driver(job, ray)) } else { None };
    let addresses = of_run.iter().copied().chain(of_driver);
    let workers: BTreeSet<&String> = addresses.filter_map(|address| gpu_worker(address, services)).collect();
    workers.into_iter().cloned().collect()
}

/// Addresses of a run's worker group; none where it has none now.
fn group(run: &TrainRun) -> &[Ipv4Addr] {
    let now = run.attempts.last().filter(|attempt| attempt.ended_at.is_none());
    now.map(|attempt| attempt.workers.as_slice()).unwrap_or_default()
}

/// Address of the node that a job's driver is on.
fn driver(job: &RayJob, ray: &RayView) -> Option<Ipv4Addr> {
    let node = job.driver_node.as_ref()?;
    ray.nodes.iter().find(|known| known.id == *node).map(|known| known.address)
}

/// GPU worker with this address.
fn gpu_worker(address: Ipv4Addr, services: &BTreeMap<Ipv4Addr, String>) -> Option<&String> {
    services.get(&address).filter(|name| worker_slot(name).is_some())
}

/// Reason why a job that Ray has and that is PENDING waits.
fn waits_for(job: &Job, ray: &RayView) -> Option<String> {
    let State::Submitted(known) = &job.state else { return None };
    if known.stop_asked {
        return Some("is being stopped".to_owned());
    }
    let asks = resource_words(&job.submission.asks());
    if !asks.is_empty() {
        let demand = ray.demands.iter().find(|d| d.asks_for == asks);
        return Some(match demand {
            Some(d) if d.infeasible => {
                format!("waits for {asks}, which no node has: the largest has {}; `ray job stop` ends it", d.node_has)
            }
            Some(_) => format!("waits for {asks}: all in use"),
            None => format!("its driver is being started ({asks})"),
        });
    }
    if ray.gcs != Gcs::Reachable {
        return Some("waits for the Ray head".to_owned());
    }
    if !job.submission.names_place() && !ray.nodes.iter().any(|node| node.serves_as("driver")) {
        return Some("waits for ray-driver".to_owned());
    }
    Some("its driver is being started".to_owned())
}

/// Reason why a run without workers waits.
fn waiting_run(ray: &RayView) -> String {
    let mut demands = ray.demands.iter().filter(|d| d.asks_for.contains("GPU"));
    // Whose demand it is, Ray does not say: where several runs wait, what can be met is told of each.
    let several = ray.runs.iter().filter(|run| run.status == RunStatus::Scheduling).nth(1).is_some();
    let first = demands.next();
    match first.filter(|d| !(several && d.infeasible)).or_else(|| demands.find(|d| !d.infeasible)).or(first) {
        Some(d) if !d.lab_has.is_empty() => {
            format!(
                "its run asks for {} at once, the lab has {}: it can never run; `ray job stop` ends it",
                d.asks_for, d.lab_has
            )
        }
        Some(d) if d.infeasible => {
            format!("its run waits for {}, which no node has: the largest has {}", d.asks_for, d.node_has)
        }
        Some(d) => format!("its run waits for {}: all in use", d.asks_for),
        None => "its run waits for its workers to start".to_owned(),
    }
}

/// Runs that jobs of different submissions train at once, in a line each: each overwrites what the other saves.
fn shared_runs(book: &BTreeMap<String, Job>, ray: &RayView) -> Vec<String> {
    let running: BTreeSet<&str> = ray
        .jobs
        .iter()
        .flat_map(|told| &told.jobs)
        .filter(|job| job.status == JobStatus::Running)
        .map(|job| job.submission_id.as_str())
        .collect();
    let mut places: BTreeMap<(&str, &str), BTreeMap<&str, &str>> = BTreeMap::new();
    for run in ray.runs.iter().filter(|run| run.status.is_active()) {
        let Some(id) = run.submission_id.as_deref().filter(|id| running.contains(id)) else { continue };
        let root = book.get(id).map_or(id, |job| job.root.as_str());
        places.entry((&run.storage, &run.name)).or_default().insert(root, id);
    }
    let shared = places.into_iter().filter(|(_, jobs)| jobs.len() > 1);
    shared
        .map(|((_, name), jobs)| {
            let ids: Vec<&str> = jobs.into_values().collect();
            format!(
                "the jobs {} train the same run {name} at once and overwrite each other's checkpoints: stop all but one \
                 (`ray job stop`), or give each a name of its own (`RunConfig(name=...)`)",
                ids.join(" and ")
            )
        })
        .collect()
}

/// Line about jobs on disk that this labd cannot read.
pub(super) fn unreadable(ids: &BTreeSet<String>) -> Option<String> {
    let first = ids.iter().take(3).map(|id| one_line(id, 60)).collect::<Vec<_>>().join(", ");
    let (jobs, more) =
        if ids.len() == 1 { ("one job", "") } else { ("jobs", if ids.len() > 3 { ", ..." } else { "" }) };
    (!ids.is_empty()).then(|| {
        format!(
            "the ledger has {jobs} that this labd cannot read ({first}{more}), perhaps from a newer labd: kept on disk, and \
             not resubmitted"
        )
    })
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
        waits_for: None,
        workers: Vec::new(),
        note: None,
        user: None,
    }
}

/// Jobs that Ray reports, by submission.
fn told_of(ray: &RayView) -> BTreeMap<&str, &RayJob> {
    ray.jobs.iter().flat_map(|told| &told.jobs).map(|job| (job.submission_id.as_str(), job)).collect()
}

/// What Ray reports of a job of the ledger.
fn entry<'a>(job: &Job, told: &BTreeMap<&str, &'a RayJob>) -> Option<&'a RayJob> {
    told.get(job.id.as_str()).copied().filter(|entry| decide::is_about(job, entry))
}

/// Jobs of the ledger as they are told besides those that are shown: without where they run and what they wait for.
pub(super) fn besides<'a>(jobs: impl IntoIterator<Item = &'a Job>, ray: &RayView, present: Present) -> Vec<JobView> {
    let told = told_of(ray);
    jobs.into_iter().map(|job| of_ledger(job, entry(job, &told), present)).collect()
}

/// Newest jobs of the ledger that come after this place, newest first.
pub(super) fn older<'a>(
    book: &'a BTreeMap<String, Job>,
    than: Option<&(Timestamp, String)>,
    most: usize,
) -> Vec<&'a Job> {
    let place = |job: &Job| (job.submitted_at, job.id.clone());
    let is_older = |job: &&Job| than.is_none_or(|(at, id)| (job.submitted_at, &job.id) < (*at, id));
    let mut all: Vec<&Job> = book.values().filter(is_older).collect();
    keep_first(&mut all, most, |job| Reverse(place(job)));
    all.sort_by_cached_key(|job| Reverse(place(job)));
    all
}

fn of_ledger(job: &Job, told: Option<&RayJob>, present: Present) -> JobView {
    let (status, outcome, message, next) = match &job.state {
        State::Queued { .. } if job.root != job.id => {
            (JobStatus::Pending, None, format!("{} was lost: submitted again once its place is there", job.root), None)
        }
        State::Queued { .. } => {
            let message = match present.lacks(&job.submission) {
                Some(lacks) => format!("kept until {lacks} is back"),
                None => "kept: Ray does not take it yet".to_owned(),
            };
            (JobStatus::Pending, None, message, None)
        }
        State::Submitted(_) => {
            let status = told.map_or(JobStatus::Pending, |t| t.status);
            let message = if job.root == job.id { String::new() } else { format!("continues {}", job.root) };
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
        State::Queued { .. } | State::Submitted(_) => None,
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
        resubmission_of: (job.root != job.id).then(|| job.root.clone()),
        resubmitted_as: next,
        waits_for: None,
        workers: Vec::new(),
        note: job.note.clone(),
        user: job.submission.user(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        jobs::{decide::Submitted, submission::Submission},
        ray::{
            Jobs, RayNode,
            train::{Attempt, AttemptStatus},
        },
        snapshot::DemandView,
        time::Timestamp,
    };

    const WORKER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 20);
    const DRIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 11);

    fn ts(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    #[test]
    fn older_jobs_are_told_newest_first_from_any_place_on() {
        let at = |id: &str, s: i64| Job { submitted_at: ts(s), ..job(id, json!({})) };
        let book: BTreeMap<String, Job> =
            [at("a", 3), at("b", 1), at("c", 2), at("d", 2)].map(|job| (job.id.clone(), job)).into();
        for (than, most, want) in [
            (None, 9, vec!["a", "d", "c", "b"]),
            (None, 2, vec!["a", "d"]),
            (Some((ts(2), "d")), 9, vec!["c", "b"]),
            (Some((ts(2), "x")), 1, vec!["d"]),
            (Some((ts(0), "x")), 9, vec![]),
        ] {
            let than = than.map(|(at, id)| (at, id.to_owned()));
            let told = older(&book, than.as_ref(), most);
            assert_eq!(told.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), want, "{than:?} {most}");
        }
    }

    fn job(id: &str, sent: Value) -> Job {
        let mut sent = sent;
        sent["entrypoint"] = json!("python train.py");
        Job {
            id: id.into(),
            root: id.trim_end_matches("-r1").into(),
            attempt: 1,
            submission: Submission::parse(sent.to_string().as_bytes()).expect("one"),
            came_at: ts(1),
            submitted_at: ts(1),
            run: id.into(),
            note: None,
            state: State::Submitted(Submitted::new(ts(2))),
        }
    }

    fn told(id: &str, status: JobStatus) -> RayJob {
        RayJob {
            submission_id: id.into(),
            status,
            error: None,
            message: String::new(),
            entrypoint: String::new(),
            started_at: Some(ts(2)),
            ended_at: None,
            driver_node: Some(vec![1]),
            exit_code: None,
            mark: None,
        }
    }

    fn run(id: &str, name: &str, status: RunStatus, workers: Vec<Ipv4Addr>) -> TrainRun {
        TrainRun {
            name: name.into(),
            id: format!("{id}/{name}"),
            submission_id: Some(id.into()),
            status,
            started_at: ts(3),
            ended_at: None,
            storage: "s3://ray".into(),
            driver: None,
            attempts: vec![Attempt {
                id: "1".into(),
                started_at: ts(3),
                running_at: None,
                ended_at: None,
                status: AttemptStatus::Running,
                error: None,
                workers,
            }],
        }
    }

    fn node(id: u8, address: Ipv4Addr) -> RayNode {
        RayNode {
            id: vec![id],
            address,
            port: 0,
            alive: true,
            is_head: false,
            started_at: ts(1),
            name: String::new(),
            resources: BTreeMap::new(),
            available: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    fn shown(jobs: Vec<Job>, ray: &RayView) -> LedgerView {
        let book = jobs.into_iter().map(|job| (job.id.clone(), job)).collect();
        let services = [(WORKER, "ray-worker-0".to_owned()), (DRIVER, "ray-driver".to_owned())].into();
        let present = Present { head: true, driver: true, store: false };
        view(&book, ray, &services, present, None)
    }

    #[test]
    fn what_has_not_ended_is_shown_however_many_came_later() {
        let ended = |n: i64| Job {
            submitted_at: ts(100 + n),
            state: State::Ended { at: ts(200 + n), outcome: Outcome::Succeeded },
            ..job(&format!("short-{n:02}"), json!({}))
        };
        let lost = Outcome::Lost { why: "x".into(), next: Next::As("sweep-r1".into()) };
        let first = Job { state: State::Ended { at: ts(50), outcome: lost }, ..job("sweep", json!({})) };
        let jobs = (0..60).map(ended).chain([first, job("sweep-r1", json!({}))]).collect();
        let shown = shown(jobs, &RayView::default()).jobs;
        let ids: Vec<&str> = shown.iter().map(|job| job.submission_id.as_str()).collect();
        assert_eq!((ids.len(), ids[0], ids[47]), (50, "short-59", "short-12"));
        assert_eq!(ids[48..], ["sweep-r1", "sweep"], "with the attempts before");
    }

    #[test]
    fn each_end_is_shown_however_many_wait() {
        let waiting = (0..60).map(|n| Job { submitted_at: ts(100 + n), ..job(&format!("waits-{n:02}"), json!({})) });
        let ended = (0..60).map(|n| Job {
            submitted_at: ts(n),
            state: State::Ended { at: ts(1_000 + n), outcome: Outcome::Succeeded },
            ..job(&format!("ended-{n:02}"), json!({}))
        });
        let outcome = Outcome::Lost { why: "x".into(), next: Next::As("waits-01".into()) };
        let lost = Job { state: State::Ended { at: ts(2_000), outcome }, ..job("lost", json!({})) };
        let shown = shown(waiting.chain(ended).chain([lost]).collect(), &RayView::default()).jobs;
        let ids: Vec<&str> = shown.iter().map(|job| job.submission_id.as_str()).collect();
        assert_eq!(
            (ids.len(), ids[0], ids[39], ids[40], ids[49]),
            (50, "waits-59", "waits-20", "ended-59", "ended-50")
        );
    }

    #[test]
    fn a_job_that_is_not_among_the_newest_is_told_as_ray_has_it() {
        let (running, queued) = (
            job("a", json!({})),
            Job { state: State::Queued { not_before: ts(1), stop_first: None, tries: 0 }, ..job("b", json!({})) },
        );
        let jobs = Some(Jobs { asked_at: ts(3), jobs: vec![told("a", JobStatus::Running)] }.into());
        let ray = RayView { jobs, ..RayView::default() };
        let told = besides([&running, &queued], &ray, Present { head: true, driver: true, store: true });
        assert_eq!([told[0].status, told[1].status], [JobStatus::Running, JobStatus::Pending]);
    }

    #[test]
    fn what_has_a_gpu_is_shown_however_many_wait_behind_it() {
        let jobs =
            (0..60).map(|n| Job { submitted_at: ts(100 + n), ..job(&format!("trial-{n:02}"), json!({})) }).collect();
        // Of one the run has a worker; of another the driver is on one, or was, or is elsewhere.
        let elsewhere = RayJob { driver_node: Some(vec![2]), ..told("trial-03", JobStatus::Running) };
        let told = vec![told("trial-01", JobStatus::Running), told("trial-02", JobStatus::Succeeded), elsewhere];
        let ray = RayView {
            runs: vec![run("trial-00", "trial-00", RunStatus::Running, vec![WORKER])],
            jobs: Some(Jobs { asked_at: ts(3), jobs: told }.into()),
            nodes: vec![node(1, WORKER), node(2, DRIVER)],
            ..RayView::default()
        };
        let shown = shown(jobs, &ray).jobs;
        let ids: Vec<&str> = shown.iter().map(|job| job.submission_id.as_str()).collect();
        assert_eq!((ids.len(), &ids[47..]), (50, &["trial-12", "trial-01", "trial-00"][..]), "the oldest ones run");
    }

    #[test]
    fn nothing_is_shown_of_the_job_that_had_this_id_before() {
        let before = RayJob { started_at: Some(ts(0)), ..told("again", JobStatus::Succeeded) };
        let jobs = Jobs { asked_at: ts(3), jobs: vec![before] };
        let ray = RayView { jobs: Some(jobs.into()), ..RayView::default() };
        assert_eq!(shown(vec![job("again", json!({}))], &ray).jobs[0].status, JobStatus::Pending);
    }

    #[test]
    fn a_pending_job_says_what_it_waits_for() {
        let demand = |asks: &str, infeasible| DemandView {
            asks_for: asks.into(),
            count: 1,
            infeasible,
            node_has: "1 GPU, 8 CPU".into(),
            lab_has: String::new(),
        };
        let node = RayNode { labels: [("labd.role".to_owned(), "driver".to_owned())].into(), ..node(1, WORKER) };
        let there = RayView { gcs: Gcs::Reachable, nodes: vec![node], ..RayView::default() };
        let with = |demands| RayView { demands, ..there.clone() };
        let two = json!({"entrypoint_num_gpus": 2, "entrypoint_num_cpus": 8});
        for (sent, ray, said) in [
            (
                two.clone(),
                with(vec![demand("2 GPU, 8 CPU", true)]),
                "2 GPU, 8 CPU, which no node has: the largest has 1 GPU",
            ),
            (two.clone(), with(vec![demand("2 GPU, 8 CPU", false)]), "waits for 2 GPU, 8 CPU: all in use"),
            (two, with(vec![demand("1 GPU", true)]), "is being started (2 GPU, 8 CPU)"),
            (json!({}), there.clone(), "its driver is being started"),
            (json!({}), RayView { gcs: Gcs::Reachable, ..RayView::default() }, "waits for ray-driver"),
            (json!({}), RayView::default(), "waits for the Ray head"),
        ] {
            let view = shown(vec![job("a", sent)], &ray);
            let waits = view.jobs[0].waits_for.clone().unwrap_or_default();
            assert!(waits.contains(said), "{waits}");
        }
    }

    #[test]
    fn a_run_says_whether_it_waits_its_turn_or_for_what_the_lab_does_not_have() {
        let demand = |asks: &str, infeasible: bool, lab: &str| DemandView {
            asks_for: asks.into(),
            count: 1,
            infeasible,
            node_has: "1 GPU, 8 CPU".into(),
            lab_has: lab.into(),
        };
        let whole = || demand("3 GPU", true, "2 GPU");
        for (runs, demands, said) in [
            (1, vec![whole()], "asks for 3 GPU at once, the lab has 2 GPU: it can never run"),
            (1, vec![demand("4 GPU", true, "")], "4 GPU, which no node has: the largest has 1 GPU"),
            (1, vec![demand("1 GPU", false, "")], "waits for 1 GPU: all in use"),
            (2, vec![whole(), demand("1 GPU", false, "")], "waits for 1 GPU: all in use"),
            (2, vec![whole()], "it can never run"),
        ] {
            let runs = ["a", "b"][..runs].iter().map(|id| run(id, id, RunStatus::Scheduling, vec![])).collect();
            let jobs = Jobs { asked_at: ts(5), jobs: vec![told("a", JobStatus::Running)] };
            let ray = RayView { runs, demands, jobs: Some(jobs.into()), ..RayView::default() };
            let waits = shown(vec![job("a", json!({}))], &ray).jobs[0].waits_for.clone().unwrap_or_default();
            assert!(waits.contains(said), "{waits}");
        }
    }

    #[test]
    fn a_running_job_says_where_and_two_in_one_run_are_told() {
        let jobs = ["a", "b", "b-r1", "c"].map(|id| told(id, JobStatus::Running)).to_vec();
        let runs = vec![
            run("a", "mine", RunStatus::Running, vec![WORKER]),
            run("b-r1", "mine", RunStatus::Scheduling, vec![]),
            run("b", "mine", RunStatus::Aborted, vec![WORKER]),
            run("c", "other", RunStatus::Running, vec![]),
        ];
        let mut ray =
            RayView { runs, jobs: Some(std::sync::Arc::new(Jobs { asked_at: ts(5), jobs })), ..RayView::default() };
        let view = shown(["a", "b-r1"].map(|id| job(id, json!({}))).to_vec(), &ray);
        let of = |id: &str| view.jobs.iter().find(|j| j.submission_id == id).expect("shown");
        assert_eq!((of("a").workers.join(" "), of("b-r1").workers.len()), ("ray-worker-0".into(), 0));
        assert!(of("b-r1").waits_for.as_ref().is_some_and(|w| w.contains("its run waits")));
        assert_eq!(view.notices.len(), 1, "{:?}", view.notices);
        assert!(view.notices[0].contains("the jobs a and b-r1 train the same run mine"), "{:?}", view.notices);
        // Attempts of one submission are one job.
        ray.runs[0].submission_id = Some("b".into());
        let view = shown(["b", "b-r1"].map(|id| job(id, json!({}))).to_vec(), &ray);
        assert_eq!(view.notices, [""; 0]);
    }
}
