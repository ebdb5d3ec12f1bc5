//! Decisions about a job: what its end means, and what follows from it. Pure.
//!
//! ```text
//!   a person's submission                    Ray has taken it          Ray's report, labd's incidents
//!  -----------------------> Queued --------------------------> Submitted ---------------------------> Ended
//!                            ^  (the head is away: later)                        lost, and may be tried again
//!                            '----------------------------------------------------------------------'
//! ```
//!
//! What Ray reports is not enough. A job whose driver died can read RUNNING until somebody asks; one whose GPU worker
//! was killed reads as failed by its own error when it allows no failure (Ray Train's default). So Ray's report is
//! combined with [`Incident`]s, which labd knows for sure. When in doubt a job counts as failed by its own error: to
//! run a job again that nobody wants again costs a GPU, while a lost one is shown and can be submitted by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::submission::{Retry, Submission};
use crate::{
    incident::{Cause, Incident, OOM_INSIDE},
    ray::{ErrorType, Jobs, Mark, RayJob, RayNode, TrainRun},
    secret::hex,
    services::{self, ForJobs},
    snapshot::JobStatus,
    spec::worker_slot,
    text::clip,
    time::Timestamp,
};

/// Time after a death in which a job's own error counts as its consequence. A training run that allows no failure ends
/// within seconds of its worker's death in our tests; this leaves room for a busy node. Chosen, not measured.
const AFTERMATH: Duration = Duration::from_mins(1);
/// Time after a failure by which its cause is known: an engine under load takes up to 3 s to say that a container
/// ended. Chosen, not measured.
pub(super) const SETTLED: Duration = Duration::from_secs(5);
/// Time for which Ray must report that it does not know a job before that is believed.
const MISSING: Duration = Duration::from_secs(5);
/// Time after which a driver whose node is not ALIVE is gone, whatever Ray reports of the job.
const ORPHANED: Duration = Duration::from_secs(10);
/// Time after which a driver that still waits was forgotten after a crash of the head: one that names no place gets its
/// place within seconds.
const FORGOTTEN: Duration = Duration::from_mins(1);
/// Longest time that a failure waits for services that do not answer: one that hangs is called dead after 30 s.
const UNSURE: Duration = Duration::from_mins(2);
/// Shortest time of an attempt that is no quick failure: the next one starts at once.
const SOUND: Duration = Duration::from_mins(1);
/// Longest wait before a resubmission.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// One submission: a person's, or labd's own after that one was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Id of the submission.
    pub id: String,
    /// Id of the person's submission it belongs to; its own id for that one itself.
    pub root: String,
    /// Number of the attempt; 1 for the person's submission.
    pub attempt: u32,
    /// Time at which the person's submission came that it belongs to. It marks what Ray is given, since an id can be used
    /// again.
    pub came_at: Timestamp,
    /// Request that the person sent.
    pub submission: Submission,
    /// Time at which it came, or was made.
    pub submitted_at: Timestamp,
    /// Name of its training run when the script gives it none.
    pub run: String,
    /// One line for whoever reads its log, such as that its id was used before.
    pub note: Option<String>,
    /// State of the submission.
    pub state: State,
}

impl Job {
    /// Whether nothing more happens to it.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Mark on it as Ray is given it.
    pub fn mark(&self) -> Mark {
        Mark { root: self.root.clone(), attempt: self.attempt, submitted: Some(self.came_at.to_string()) }
    }
}

/// State of a submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Waiting in labd: Ray does not have it yet, as far as labd knows.
    #[serde(rename = "kept")]
    Queued {
        /// Earliest time of its submission to Ray.
        not_before: Timestamp,
        /// Attempt whose processes may still run, to be stopped first.
        stop_first: Option<String>,
        /// Number of times that Ray failed to take it.
        tries: u32,
    },
    /// Ray has it.
    #[serde(rename = "handed")]
    Submitted(Submitted),
    /// Ended: nothing more happens to it.
    Ended {
        /// Time at which labd knew.
        at: Timestamp,
        /// Meaning of the end.
        outcome: Outcome,
    },
}

/// Memory of labd about a job that Ray has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Time at which Ray took it.
    pub at: Timestamp,
    /// Whether a person asked it to stop.
    pub stop_asked: bool,
    /// Address of its driver's node, once that is known.
    pub driver: Option<Ipv4Addr>,
    /// Start of that node: what died there before took no part of this job along.
    #[serde(default)]
    pub driver_since: Option<Timestamp>,
    /// Time since which Ray does not know it.
    pub missing_since: Option<Timestamp>,
    /// Time since which its driver's node is not ALIVE.
    pub orphaned_since: Option<Timestamp>,
    /// Nodes that its training run's workers were seen on; empty while none is known.
    #[serde(default)]
    pub workers: BTreeSet<Ipv4Addr>,
    /// Status that Ray reported last before its owner's request to delete it was passed on: one that Ray forgets after
    /// that was deleted.
    #[serde(default)]
    pub deleting: Option<JobStatus>,
}

impl Submitted {
    /// State of a job that Ray has just taken.
    pub fn new(at: Timestamp) -> Self {
        Self {
            at,
            stop_asked: false,
            driver: None,
            driver_since: None,
            missing_since: None,
            orphaned_since: None,
            workers: BTreeSet::new(),
            deleting: None,
        }
    }
}

/// Meaning of a job's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It succeeded.
    Succeeded,
    /// A person stopped it.
    Stopped,
    /// It failed by its own error.
    Failed {
        /// Error, in one line.
        why: String,
    },
    /// It was lost to what happened around it.
    Lost {
        /// Event that it was lost to, in one line.
        why: String,
        /// Consequence.
        next: Next,
    },
}

/// Consequence of a lost job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// This submission takes its place.
    As(String),
    /// Nothing follows, and why.
    Not(String),
}

/// View of everything that is known besides the ledger.
#[derive(Debug, Clone)]
pub struct ClusterView<'a> {
    /// Whether the GCS answers now.
    pub reachable: bool,
    /// Jobs, as Ray last listed them.
    pub jobs: Option<&'a Jobs>,
    /// Nodes, while the GCS answers.
    pub nodes: &'a [RayNode],
    /// Recent deaths of services.
    pub incidents: &'a [Incident],
    /// Whether a service that can take a job along is ending: what that will do to jobs is not known yet.
    pub ending: bool,
    /// Time since which every container that can take a job along has been observed, so what ended before is among the
    /// incidents. The engine may hang, or labd may just have been started.
    pub looked_at: Timestamp,
    /// Time for which labd has known that Ray calls a job failed, by a clock that is never set.
    pub failed_for: &'a BTreeMap<String, Duration>,
    /// Times in which services that can take a job along did not answer, without having ended: one that hangs is no
    /// incident for half a minute, and none at all when it answers again by then.
    pub silences: &'a [Silence],
    /// Whether the store is ready, or a person holds it or runs the lab without.
    pub store: bool,
    /// Training runs.
    pub runs: &'a [TrainRun],
    /// Addresses of services.
    pub addresses: &'a BTreeMap<String, Ipv4Addr>,
    /// Jobs whose packages a node is installing.
    pub installing: &'a BTreeSet<String>,
    /// Newest place in the incidents' order when each job began to be submitted to Ray: whatever the clock says, what labd
    /// had learnt by then came before. Absent for what an earlier labd submitted.
    pub learnt: &'a BTreeMap<String, u64>,
}

impl ClusterView<'_> {
    fn present(&self) -> Present {
        Present { head: self.reachable, driver: driver_alive(self.nodes), store: self.store }
    }
}

/// Time in which a service did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Name of the service.
    pub service: String,
    /// Time at which that was noticed: up to [`SETTLED`] and a health check's pause after it began.
    pub from: Timestamp,
    /// Time at which it was last so.
    pub to: Timestamp,
}

/// Presence of everything that a job needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// Whether the head is there.
    pub head: bool,
    /// Whether the node for drivers is there.
    pub driver: bool,
    /// Whether the store, where a run's checkpoints are, is there.
    pub store: bool,
}

impl Present {
    /// Service that a job must wait for before it is submitted to Ray: without its store it would fail as if by its own
    /// error, and without a node for its driver Ray gives it up.
    pub fn lacks(self, job: &Submission) -> Option<&'static str> {
        if !self.head {
            Some("the Ray head")
        } else if !self.driver && !job.names_place() {
            Some(services::ray_driver::DEF.name())
        } else if !self.store {
            Some(services::minio::DEF.name())
        } else {
            None
        }
    }
}

/// Settings of `labd.toml` about resubmissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Largest number of times that one submission is resubmitted.
    pub resubmissions: u32,
}

/// Transition: one change of the ledger, or one thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    /// Submit this one to Ray.
    Hand(String),
    /// Store what is known of this one, which changed.
    Note(String, Submitted),
    /// Ask Ray to stop this one: a person wants it, and it still runs.
    Stop(String),
    /// Record the end of this one.
    End(String, Outcome),
    /// Record the loss of this one and the job that takes its place: both changes are one.
    Replace(String, Outcome, Box<Job>),
}

/// Transitions that follow from what is known, for every job that has not ended.
pub fn decide(
    book: &BTreeMap<String, Job>,
    world: &ClusterView<'_>,
    policy: Policy,
    now: Timestamp,
) -> Vec<Transition> {
    let open = book.values().filter(|job| !matches!(job.state, State::Ended { .. }));
    let one = |job: &Job| match &job.state {
        // Ray's report may come after the death of the node that it ended on.
        State::Queued { .. } if before(book, job).is_some_and(|old| succeeded(old, world)) => {
            Some(Transition::End(job.id.clone(), Outcome::Succeeded))
        }
        State::Queued { not_before, .. } => {
            let lacks = world.present().lacks(&job.submission);
            // None is so far away, unless the clock was set back.
            let due = now >= *not_before || not_before.since(now) > LONGEST_WAIT;
            (lacks.is_none() && due).then(|| Transition::Hand(job.id.clone()))
        }
        State::Submitted(handed) => match judge(job, handed, world, now) {
            Verdict::Going(known) if known == *handed => {
                (known.stop_asked && world.reachable).then(|| Transition::Stop(job.id.clone()))
            }
            Verdict::Going(known) => Some(Transition::Note(job.id.clone(), known)),
            Verdict::Ended(outcome) => Some(Transition::End(job.id.clone(), outcome)),
            Verdict::Lost { why, dead } => Some(resubmit_or_give_up(book, job, handed, why, dead, world, policy, now)),
        },
        State::Ended { .. } => None,
    };
    open.filter_map(|job| successor(book, job, world, now).or_else(|| one(job))).collect()
}

/// Attempt in this one's place that Ray already has: labd was killed before it could write that down, as on a full
/// disk. A further one would run beside it.
fn successor(book: &BTreeMap<String, Job>, job: &Job, world: &ClusterView<'_>, now: Timestamp) -> Option<Transition> {
    let told = world.jobs?;
    let is_next = |entry: &&RayJob| {
        let later = entry.mark.as_ref().filter(|mark| mark.root == job.root && mark.attempt > job.attempt);
        // Another job may have had the id before.
        let same = later.is_some_and(|mark| mark.submitted == job.mark().submitted);
        same && !book.contains_key(&entry.submission_id)
    };
    let attempt = |entry: &RayJob| entry.mark.as_ref().map_or(job.attempt, |mark| mark.attempt);
    let next = told.jobs.iter().filter(is_next).max_by_key(|entry| attempt(entry))?;
    let began = next.started_at.unwrap_or(now);
    let id = next.submission_id.clone();
    let replacement = Job {
        id: id.clone(),
        attempt: attempt(next),
        submitted_at: began,
        note: None,
        state: State::Submitted(Submitted::new(began)),
        ..job.clone()
    };
    let why = "labd was killed before it could write down why".to_owned();
    Some(Transition::Replace(job.id.clone(), Outcome::Lost { why, next: Next::As(id) }, Box::new(replacement)))
}

/// Time to decide again even if nothing changes.
pub fn wake(book: &BTreeMap<String, Job>, now: Timestamp) -> Option<Timestamp> {
    let due = book.values().filter_map(|job| match &job.state {
        State::Queued { not_before, .. } => Some(*not_before).filter(|&at| at > now),
        State::Submitted(h) => {
            let missing = h.missing_since.map(|at| at.plus(MISSING));
            missing.into_iter().chain(h.orphaned_since.map(|at| at.plus(ORPHANED))).min()
        }
        State::Ended { .. } => None,
    });
    due.min()
}

/// Attempt whose place this one takes.
fn before<'a>(book: &'a BTreeMap<String, Job>, job: &Job) -> Option<&'a Job> {
    let by = |old: &&Job| match &old.state {
        State::Ended { outcome: Outcome::Lost { next: Next::As(next), .. }, .. } => *next == job.id,
        _ => false,
    };
    if job.attempt == 1 { None } else { book.values().find(by) }
}

/// Whether an attempt that was given up succeeded all the same; an earlier job of the same id does not count.
fn succeeded(old: &Job, world: &ClusterView<'_>) -> bool {
    let jobs = world.jobs.map(|told| told.jobs.as_slice()).unwrap_or_default();
    jobs.iter().any(|job| job.submission_id == old.id && job.status == JobStatus::Succeeded && is_of(old, job))
}

/// Whether a node for drivers is ALIVE.
pub fn driver_alive(nodes: &[RayNode]) -> bool {
    nodes.iter().any(|node| node.serves_as("driver"))
}

enum Verdict {
    Going(Submitted),
    Ended(Outcome),
    Lost {
        why: String,
        /// Whether none of its processes can still run.
        dead: bool,
    },
}

/// Ray's report on this very submission: `Err` while there is none, `Ok(None)` when Ray does not know it.
fn word<'a>(job: &Job, handed: &Submitted, told: Option<&'a Jobs>, now: Timestamp) -> Result<Option<&'a RayJob>, ()> {
    let Some(told) = told else { return Err(()) };
    match told.jobs.iter().find(|entry| entry.submission_id == job.id && is_of(job, entry)) {
        None if !was_asked_after(told.asked_at, handed.at, now) => Err(()),
        entry => Ok(entry),
    }
}

/// Whether a list was asked for after that; it may be a moment ahead of `now`, since two tasks read the clock.
fn was_asked_after(asked_at: Timestamp, at: Timestamp, now: Timestamp) -> bool {
    !at.not_before(asked_at, now.plus(Duration::from_secs(1)))
}

/// Whether Ray's entry of this id is about this very job. Another may have had the id before.
fn is_of(job: &Job, entry: &RayJob) -> bool {
    match &entry.mark {
        // An earlier labd wrote no time.
        Some(mark) => mark.submitted.is_none() || mark.submitted == job.mark().submitted,
        // Not by labd.
        None => entry.started_at.is_none_or(|began| began >= job.submitted_at),
    }
}

/// Whether Ray's entry of this id is to be shown as this very job.
pub fn is_about(job: &Job, entry: &RayJob) -> bool {
    !matches!(job.state, State::Queued { .. }) && is_of(job, entry)
}

/// Outcome of a job whose owner deleted it, which Ray allows once it has ended: its own end where the ledger knows it,
/// else as Ray reported last. `None` when nobody knows.
pub fn deleted(job: &Job, told: Option<JobStatus>) -> Option<Outcome> {
    let stop_asked = match &job.state {
        State::Ended { outcome, .. } => return Some(outcome.clone()),
        State::Submitted(handed) => handed.stop_asked,
        State::Queued { .. } => false,
    };
    match told? {
        JobStatus::Succeeded => Some(Outcome::Succeeded),
        JobStatus::Stopped => Some(Outcome::Stopped),
        JobStatus::Failed if stop_asked => Some(Outcome::Stopped),
        JobStatus::Failed => Some(Outcome::Failed { why: "its owner asked to delete it after it failed".to_owned() }),
        JobStatus::Pending | JobStatus::Running => None,
    }
}

/// Time since which something is so: from now on where that is new, or where the clock was set back since.
fn since(known: &mut Option<Timestamp>, now: Timestamp) -> Timestamp {
    let since = known.filter(|&at| at <= now).unwrap_or(now);
    *known = Some(since);
    since
}

fn judge(job: &Job, handed: &Submitted, world: &ClusterView<'_>, now: Timestamp) -> Verdict {
    let mut known = handed.clone();
    let Ok(told) = word(job, handed, world.jobs, now) else { return Verdict::Going(known) };
    let Some(told) = told else {
        if !world.reachable {
            return Verdict::Going(known);
        }
        if let Some(outcome) = known.deleting.and_then(|last| deleted(job, Some(last))) {
            return Verdict::Ended(outcome);
        }
        let since = since(&mut known.missing_since, now);
        // One list is not believed, however long ago it came.
        let again = world.jobs.is_some_and(|list| list.asked_at > since);
        if now.since(since) < MISSING || !again {
            return Verdict::Going(known);
        }
        // Ray nodes of the old cluster cannot join the new one: their containers were started again.
        let why = if world.jobs.is_some_and(|list| list.jobs.iter().any(|entry| entry.submission_id == job.id)) {
            "Ray did not take it: it still had another job of this id"
        } else {
            "Ray no longer knows it: the head's state was lost"
        };
        return Verdict::Lost { why: why.to_owned(), dead: true };
    };
    known.missing_since = None;
    let began = told.started_at.unwrap_or(handed.at);
    if let Some(id) = &told.driver_node
        && let Some(node) = world.nodes.iter().find(|n| n.id == *id)
    {
        (known.driver, known.driver_since) = (Some(node.address), Some(node.started_at));
    }
    let own_runs = world.runs.iter().filter(|run| run.submission_id.as_ref() == Some(&job.id));
    known.workers.extend(own_runs.flat_map(|run| &run.attempts).flat_map(|attempt| &attempt.workers));
    let ended = told.ended_at.unwrap_or(now);
    // Where the clock was set back meanwhile, nothing is known of its beginning.
    let learnt = world.learnt.get(&job.id).copied();
    let life = Life { began: if began > ended { Timestamp::default() } else { began }, ended, now, learnt };
    match told.status {
        JobStatus::Succeeded => Verdict::Ended(Outcome::Succeeded),
        JobStatus::Stopped => Verdict::Ended(Outcome::Stopped),
        JobStatus::Failed if handed.stop_asked => Verdict::Ended(Outcome::Stopped),
        JobStatus::Failed => failed(job, told, &known, life, world, now),
        JobStatus::Pending | JobStatus::Running => going(job, told, known, life, world, now),
    }
}

/// Transitions of a job that Ray reports as waiting or running.
fn going(
    job: &Job,
    told: &RayJob,
    mut known: Submitted,
    life: Life,
    world: &ClusterView<'_>,
    now: Timestamp,
) -> Verdict {
    // Its driver's container ended since: whatever Ray still says, it does not run any more. One that is only asked to end
    // runs on for a while, and Ray says when that is over.
    let is_alive = world.reachable && world.nodes.iter().any(|n| n.alive && told.driver_node.as_ref() == Some(&n.id));
    // An end that the clock was set back after may seem to be later than the start of a node that took its place.
    let is_older = |i: &Incident| i.noticed_at > now || i.ready_at.is_some_and(|back| back < i.died_at);
    let died = |i: &&Incident| {
        let ended = life.saw_begin(i) && i.cause != Cause::Asked && i.cause.ends() && on_driver(i, &known, world);
        ended && !(is_alive && is_older(i))
    };
    if let Some(incident) = world.incidents.iter().find(died) {
        // A list from before that cannot say that the job had ended by then.
        if !world.jobs.is_some_and(|told| was_asked_after(told.asked_at, incident.died_at, now)) {
            return Verdict::Going(known);
        }
        if known.stop_asked {
            return Verdict::Ended(Outcome::Stopped);
        }
        return Verdict::Lost { why: in_words(incident), dead: true };
    }
    if told.driver_node.is_some() && world.reachable && !is_alive {
        let since = since(&mut known.orphaned_since, now);
        if now.since(since) >= ORPHANED {
            return Verdict::Lost { why: "the node of its driver left the Ray cluster".to_owned(), dead: false };
        }
    } else {
        known.orphaned_since = None;
    }
    if told.status == JobStatus::Pending && told.driver_node.is_none() && !job.submission.names_place() {
        let head =
            world.incidents.iter().rev().find(|i| life.saw_begin(i) && i.service == "ray-head" && i.cause.ends());
        let back = head.and_then(|i| i.ready_at);
        // Ray says where a driver is once its packages are there, which takes minutes.
        let installs = world.installing.contains(job.id.as_str());
        if back.is_some_and(|back| now.since(back) >= FORGOTTEN) && driver_alive(world.nodes) && !installs {
            return Verdict::Lost { why: "it was being started when the Ray head died".to_owned(), dead: false };
        }
    }
    Verdict::Going(known)
}

/// Outcome of a job that Ray reports as failed, which need not be by its own error.
fn failed(job: &Job, told: &RayJob, known: &Submitted, life: Life, world: &ClusterView<'_>, now: Timestamp) -> Verdict {
    // By the clock as it is now: it may have been set back since.
    let heard = now.minus(world.failed_for.get(&told.submission_id).copied().unwrap_or_default());
    let ended = if life.ended <= now { life.ended } else { heard };
    let age = now.since(ended);
    let hangs = |s: &Silence| now.since(s.to) < SETTLED && !is_foreign(&s.service, known, world);
    let unanswered = !world.store || world.silences.iter().any(hangs);
    // Without the engine's word nobody knows what died: that is waited for however long it takes.
    let unseen = world.looked_at < ended;
    let unsettled = age < SETTLED || world.ending || unseen || (unanswered && age < UNSURE);
    let own = |why: String| Verdict::Ended(Outcome::Failed { why });
    let near = |names: &dyn Fn(&Incident) -> bool| {
        world.incidents.iter().rev().find(|i| life.saw(i, world) && life.ended_by(i, world) && names(i)).map(in_words)
    };
    let on_driver = |i: &Incident| on_driver(i, known, world);
    let any = |i: &Incident| is_infrastructure(&i.service) && !is_foreign(&i.service, known, world);
    let silent = || {
        let found = world.silences.iter().find(|s| is_shared(&s.service) && life.saw_silence(s));
        found.map(|s| format!("{}: did not answer for a while", s.service))
    };
    let ended = |i: &Incident| i.cause != Cause::Asked && i.cause.ends();
    let driver_died = world.incidents.iter().any(|i| life.saw_begin(i) && ended(i) && on_driver(i));
    let short = || {
        let message = told.message.as_str();
        memory_of_ray(message, world)
            .or_else(|| package_of_ray(message, &job.submission))
            .or_else(|| node_of_ray(message, life, world))
    };
    match told.error {
        Some(ErrorType::JobSupervisorActorDied) => Verdict::Lost {
            why: near(&any).or_else(short).unwrap_or_else(|| "the process that watches its driver died".to_owned()),
            dead: driver_died,
        },
        // Its words are the entrypoint's own, which Ray's errors with labd's reasons are part of.
        Some(ErrorType::JobEntrypointCommandError) | None => {
            let quoted = world
                .incidents
                .iter()
                .rev()
                .find(|i| life.saw(i, world) && told.message.contains(&format!("labd: {}", i.why)));
            match quoted.map(in_words).or_else(|| near(&any)).or_else(silent).or_else(short) {
                Some(why) => Verdict::Lost { why, dead: true },
                None if unsettled => Verdict::Going(known.clone()),
                None => own(exit_words(told)),
            }
        }
        Some(_) => match near(&any).or_else(silent).or_else(short) {
            Some(why) => Verdict::Lost { why, dead: driver_died },
            None if unsettled => Verdict::Going(known.clone()),
            None => own(in_one_line(&told.message)),
        },
    }
}

/// Lifetime of a job.
#[derive(Clone, Copy)]
struct Life {
    began: Timestamp,
    ended: Timestamp,
    /// Present time, by which a time in the future was before the clock was set back.
    now: Timestamp,
    /// Newest place in the incidents' order before it, where that is known.
    learnt: Option<u64>,
}

impl Life {
    /// Whether labd had learnt of what has this place before it submitted the job to Ray.
    fn knew(self, place: u64) -> bool {
        self.learnt.is_some_and(|newest| place <= newest)
    }

    /// Whether the job was there when the incident happened.
    fn saw_begin(self, i: &Incident) -> bool {
        !self.knew(i.order.begun) && i.died_at >= self.began && self.ended_after(i)
    }

    /// Whether the job ended later than the incident happened. What lies in the future was before the clock was set back: how
    /// long before is known only where it lasted until then, and whether the job was there by its place in their order.
    fn ended_after(self, i: &Incident) -> bool {
        let lasted = i.died_at > self.now && i.ready_at.is_none_or(|back| back <= self.now);
        i.died_at <= self.ended || (lasted && self.learnt.is_some())
    }

    /// Whether the job was there while the incident lasted: what was away when a job began is no less in its way. A
    /// node is given no work any more once it is known to be dead; the store and the head are asked all the time.
    fn saw(self, i: &Incident, world: &ClusterView<'_>) -> bool {
        let over = if is_shared(&i.service) { self.over(i, world) } else { Some((i.noticed_at, i.order.begun)) };
        self.ended_after(i) && over.is_none_or(|(at, place)| !self.knew(place) && at >= self.began)
    }

    /// Whether the job ended in the silence, or shortly after. It may have begun a moment before it was noticed.
    fn saw_silence(self, s: &Silence) -> bool {
        s.from <= self.ended.plus(SETTLED * 2) && s.to >= self.began && self.ended <= s.to.plus(AFTERMATH)
    }

    /// Whether the incident happened, or was not over, shortly before the job's end. What is held by hand may be so for
    /// days.
    fn ended_by(self, i: &Incident, world: &ClusterView<'_>) -> bool {
        let lasts =
            i.cause != Cause::Asked && self.over(i, world).is_none_or(|(back, _)| self.ended <= back.plus(AFTERMATH));
        lasts || (i.died_at <= self.now && self.ended <= i.died_at.plus(AFTERMATH))
    }

    /// Time at which the incident was over, and the place of that in their order: its service was ready again, or ended once
    /// more before it was.
    fn over(self, incident: &Incident, world: &ClusterView<'_>) -> Option<(Timestamp, u64)> {
        let next = || {
            // By their order where it is known: the clock may have been set back between the two.
            let later = |i: &Incident| match (incident.order.begun, i.order.begun) {
                (0, _) | (_, 0) => i.died_at > incident.died_at,
                (own, other) => other > own,
            };
            let same = |i: &&Incident| i.service == incident.service && i.cause.ends() && later(i);
            let first = world.incidents.iter().filter(same).min_by_key(|i| (i.order.begun, i.died_at))?;
            Some((first.died_at, first.order.begun))
        };
        let (back, place) = incident.ready_at.map(|back| (back, incident.order.over)).or_else(next)?;
        // When in the past that was is not known any more where the clock was set back since.
        Some((if back > self.now { incident.died_at } else { back }, place))
    }
}

fn at(incident: &Incident, world: &ClusterView<'_>) -> Option<Ipv4Addr> {
    world.addresses.get(&incident.service).copied()
}

fn service_at<'a>(address: Ipv4Addr, world: &ClusterView<'a>) -> Option<&'a str> {
    world.addresses.iter().find(|(_, at)| **at == address).map(|(name, _)| name.as_str())
}

/// Whether the incident ended the node that the job's driver runs on. A job can wait, PENDING, while that node dies and
/// comes back.
fn on_driver(incident: &Incident, known: &Submitted, world: &ClusterView<'_>) -> bool {
    known.driver.is_some()
        && at(incident, world) == known.driver
        && known.driver_since.is_none_or(|since| incident.died_at >= since)
}

/// Whether the service is a worker that the job's run, whose workers are known, did not train on.
fn is_foreign(service: &str, known: &Submitted, world: &ClusterView<'_>) -> bool {
    let at = world.addresses.get(service).filter(|_| worker_slot(service).is_some());
    !known.workers.is_empty() && at.is_some_and(|at| !known.workers.contains(at))
}

/// Whether every job asks the service all the time, wherever it runs.
fn is_shared(service: &str) -> bool {
    services::for_jobs(service) == ForJobs::Shared
}

/// Whether the death of the service can take a job along.
pub fn is_infrastructure(service: &str) -> bool {
    services::for_jobs(service) != ForJobs::Nothing
}

fn in_words(incident: &Incident) -> String {
    format!("{}: {}", incident.service, incident.why)
}

fn exit_words(told: &RayJob) -> String {
    match told.exit_code {
        Some(code) => format!("its command exited {code}; `ray job logs {}` shows why", told.submission_id),
        None => first_line(&told.message),
    }
}

/// Report of Ray's own monitor that it killed a process before the kernel had to, which no container and no engine
/// tells of. The node is named by its address: `... the node running low on memory. Memory on the node (IP:
/// 198.18.0.11, ID: ...`.
fn memory_of_ray(message: &str, world: &ClusterView<'_>) -> Option<String> {
    let (_, told) = message.split_once("running low on memory")?;
    let address: Option<Ipv4Addr> =
        told.split_once("(IP: ").and_then(|(_, rest)| rest.split(',').next()?.trim().parse().ok());
    let service = address.and_then(|address| service_at(address, world));
    Some(match service.and_then(|name| Some((name, services::memory_setting(name)?))) {
        Some((name, setting)) => format!("{name}: {OOM_INSIDE} by Ray; raise `{setting}` in labd.toml"),
        None => format!("{OOM_INSIDE} by Ray"),
    })
}

/// Report of Ray's environment agent that a package of the job was no longer in the GCS, which deletes it when what it has
/// counted of who refers to it says so: no script can do that. `Failed to download runtime_env file package gcs://... from
/// the GCS to the Ray worker node. The package may have prematurely been deleted from the GCS due to ...`.
fn package_of_ray(message: &str, submission: &Submission) -> Option<String> {
    let mut missing = message.split("Failed to download runtime_env file package gcs://").skip(1);
    let is_own =
        |told: &str| submission.packages().iter().any(|name| told.starts_with(&format!("{name} from the GCS")));
    missing.any(is_own).then(|| "Ray deleted its uploaded files too early".to_owned())
}

/// Report of Ray that a node died, which it says of one that answered too late, too: its container ends later, or not at all.
/// One that was back long before the job ended is what the run survived. `The actor died because its node has died. Node Id:
/// 1478...`.
fn node_of_ray(message: &str, life: Life, world: &ClusterView<'_>) -> Option<String> {
    let ids = message.split("its node has died. Node Id: ").skip(1);
    let died = |told: &str| world.nodes.iter().find(|n| !n.alive && told.starts_with(&hex(&n.id)));
    let lately = |dead: &&RayNode| {
        let back = world.nodes.iter().filter(|n| n.alive && n.address == dead.address).map(|n| n.started_at).max();
        back.is_none_or(|back| life.ended <= back.plus(AFTERMATH))
    };
    let dead = ids.filter_map(died).find(lately)?;
    Some(format!("{}: Ray counted its node as dead", service_at(dead.address, world)?))
}

/// Ray's reason in one line: the end of a traceback says what happened, and its beginning in what.
fn in_one_line(message: &str) -> String {
    let first = first_line(message);
    let last = message.lines().rev().map(str::trim).find(|l| !l.is_empty());
    match last {
        Some(last) if message.contains("Traceback (most recent call last)") => {
            clip(&format!("{}: {last}", first.split(": ").next().unwrap_or_default()), LONGEST)
        }
        _ => first,
    }
}

/// Number of characters of Ray's message that are kept.
const LONGEST: usize = 200;

fn first_line(text: &str) -> String {
    clip(text.lines().find(|l| !l.trim().is_empty()).unwrap_or("Ray does not say why").trim(), LONGEST)
}

/// Whether this attempt took the place of one that lost a process for memory. One such loss may be another job's doing; the
/// second in a row is its own.
fn came_of_memory(book: &BTreeMap<String, Job>, id: &str) -> bool {
    book.values().any(|job| match &job.state {
        State::Ended { outcome: Outcome::Lost { why, next: Next::As(next) }, .. } => {
            next == id && why.contains(OOM_INSIDE)
        }
        _ => false,
    })
}

/// Wait before the attempt that takes a lost one's place: an attempt that ran for a minute is followed at once, and so is
/// the first that did not.
fn wait_before_next(book: &BTreeMap<String, Job>, job: &Job, handed: &Submitted, now: Timestamp) -> Duration {
    if now.since(handed.at) >= SOUND {
        return Duration::ZERO;
    }
    let mut before: Vec<&Job> = book.values().filter(|j| j.root == job.root && j.attempt < job.attempt).collect();
    before.sort_by_key(|attempt| attempt.attempt);
    let mut quick = 0;
    for attempt in before {
        let State::Ended { at, .. } = attempt.state else { continue };
        // What is known of it began with its own wait.
        let sound = at.since(attempt.submitted_at) >= SOUND + wait_after(quick);
        quick = if sound { 0 } else { quick + 1 };
    }
    wait_after(quick + 1)
}

/// Wait after so many quick failures in a row.
fn wait_after(quick: u32) -> Duration {
    match quick.checked_sub(2) {
        Some(more) => LONGEST_WAIT.min(Duration::from_secs(1 << more.min(6))),
        None => Duration::ZERO,
    }
}

/// Transition to the lost job's end, and to the job that takes its place if there is one.
#[expect(clippy::too_many_arguments, reason = "everything that is known of the loss, once")]
fn resubmit_or_give_up(
    book: &BTreeMap<String, Job>,
    job: &Job,
    handed: &Submitted,
    why: String,
    dead: bool,
    world: &ClusterView<'_>,
    policy: Policy,
    now: Timestamp,
) -> Transition {
    let id = job.id.clone();
    let not = |why: String, reason: &str| {
        Transition::End(id.clone(), Outcome::Lost { why, next: Next::Not(reason.to_owned()) })
    };
    if handed.stop_asked {
        return Transition::End(id, Outcome::Stopped);
    }
    // Its owner is deleting it: nobody wants it again.
    if let Some(outcome) = handed.deleting.and_then(|last| deleted(job, Some(last))) {
        return Transition::End(id, outcome);
    }
    if why.contains(OOM_INSIDE) && came_of_memory(book, &id) {
        let why = format!("{why}; the attempt before ended so too: the job needs more memory than there is");
        return Transition::End(id, Outcome::Failed { why });
    }
    let (limit, by) = match job.submission.retry() {
        Retry::Default => (policy.resubmissions, "`jobs.resubmissions` in labd.toml"),
        Retry::AtMost(n) => (n, "its metadata `labd.retry`"),
    };
    let done = job.attempt.saturating_sub(1);
    if done >= limit {
        let reason = match limit {
            0 => format!("not resubmitted: switched off by {by}"),
            1 => format!("not resubmitted again: {by} allows it once"),
            n => format!("not resubmitted again: {by} allows it {n} times"),
        };
        return not(why, &reason);
    }
    // Ray may still know an attempt that its owner deleted from the ledger.
    let told = world.jobs.iter().flat_map(|told| &told.jobs).map(|job| job.submission_id.as_str());
    let taken: BTreeSet<&str> = book.keys().map(String::as_str).chain(told).collect();
    let next = (done + 1..u32::MAX).map(|n| format!("{}-r{n}", job.root)).find(|name| !taken.contains(name.as_str()));
    // There are more numbers than jobs.
    let Some(next) = next else { return not(why, "no id is left") };
    let wait = wait_before_next(book, job, handed, now);
    let replacement = Job {
        id: next.clone(),
        root: job.root.clone(),
        attempt: job.attempt.saturating_add(1),
        came_at: job.came_at,
        submission: job.submission.clone(),
        submitted_at: now,
        run: job.run.clone(),
        note: None,
        state: State::Queued { not_before: now.plus(wait), stop_first: (!dead).then(|| id.clone()), tries: 0 },
    };
    Transition::Replace(id, Outcome::Lost { why, next: Next::As(next) }, Box::new(replacement))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        incident::Order,
        ray::train::{Attempt, AttemptStatus},
        snapshot::RunStatus,
    };

    const DRIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 11);
    const WORKER: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 20);

    #[test]
    fn a_ledger_that_stands_on_a_machine_is_read_by_the_next_labd() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/data/golden/ledger.json")).expect("JSON");
        golden["states"].as_array().expect("states").iter().for_each(crate::golden::holds::<State>);
        golden["ends"].as_array().expect("ends").iter().for_each(crate::golden::holds::<super::super::past::End>);
    }

    #[test]
    fn a_list_knows_what_came_before_it_was_asked_for_whatever_was_done_to_the_clock() {
        let now = ts(110);
        for (what, asked_at, at, knows) in [
            ("later", ts(105), ts(100), true),
            ("earlier", ts(100), ts(105), false),
            ("at that moment", ts(100), ts(100), false),
            ("a moment ahead of this task's clock", now.plus(Duration::from_millis(500)), now, true),
            ("before the clock was set back", ts(200), ts(100), false),
            ("after that, and the other before", ts(100), ts(200), true),
            ("both before, later", ts(201), ts(200), true),
        ] {
            assert_eq!(was_asked_after(asked_at, at, now), knows, "{what}");
        }
    }

    fn ts(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn job(id: &str, request: Value) -> Job {
        let mut request = request;
        request["entrypoint"] = json!("python train.py");
        Job {
            id: id.into(),
            root: id.into(),
            attempt: 1,
            submission: Submission::parse(request.to_string().as_bytes()).expect("a submission"),
            came_at: ts(100),
            submitted_at: ts(100),
            run: id.into(),
            note: None,
            state: State::Submitted(Submitted { driver: Some(DRIVER), ..Submitted::new(ts(100)) }),
        }
    }

    fn told(status: JobStatus, error: Option<ErrorType>, ended: Option<i64>, message: &str) -> RayJob {
        RayJob {
            submission_id: "food11".into(),
            status,
            error,
            message: message.into(),
            entrypoint: String::new(),
            started_at: Some(ts(100)),
            ended_at: ended.map(ts),
            driver_node: Some(vec![1]),
            exit_code: Some(1),
            mark: Some(Mark { root: "food11".into(), attempt: 1, submitted: None }),
        }
    }

    fn node(id: u8, address: Ipv4Addr, alive: bool, role: &str) -> RayNode {
        RayNode {
            id: vec![id],
            address,
            port: 0,
            alive,
            is_head: false,
            started_at: ts(1),
            name: String::new(),
            resources: BTreeMap::new(),
            available: BTreeMap::new(),
            labels: BTreeMap::from([("labd.role".into(), role.into())]),
        }
    }

    fn incident(service: &str, died: i64, ready: Option<i64>) -> Incident {
        Incident {
            service: service.into(),
            cause: Cause::Exit,
            why: "container exited 137 (SIGKILL)".into(),
            died_at: ts(died),
            noticed_at: ts(died),
            running_at: ready.map(ts),
            ready_at: ready.map(ts),
            training: Vec::new(),
            order: Order::default(),
        }
    }

    struct Case {
        job: Job,
        told: Vec<RayJob>,
        incidents: Vec<Incident>,
        nodes: Vec<RayNode>,
        reachable: bool,
        ending: bool,
        /// Time at which the engine was last asked for everything, where that is not now.
        looked_at: Option<i64>,
        failed_for: BTreeMap<String, Duration>,
        silences: Vec<Silence>,
        store: bool,
        runs: Vec<TrainRun>,
        installing: BTreeSet<String>,
        learnt: Option<u64>,
        /// Time at which the list was asked for, where that is not now.
        asked_at: Option<i64>,
        now: i64,
    }

    impl Case {
        fn new(told: Vec<RayJob>, incidents: Vec<Incident>) -> Self {
            let nodes = vec![node(1, DRIVER, true, "driver"), node(2, WORKER, true, "worker")];
            Self {
                job: job("food11", json!({})),
                told,
                incidents,
                nodes,
                reachable: true,
                ending: false,
                looked_at: None,
                failed_for: BTreeMap::new(),
                silences: Vec::new(),
                store: true,
                runs: Vec::new(),
                installing: BTreeSet::new(),
                learnt: None,
                asked_at: None,
                now: 1000,
            }
        }

        fn moves(&self) -> Vec<Transition> {
            let addresses =
                [("ray-driver", DRIVER), ("ray-worker-0", WORKER), ("ray-head", Ipv4Addr::new(198, 18, 100, 10))];
            let addresses = addresses.map(|(name, ip)| (name.to_owned(), ip)).into();
            let jobs = Jobs { asked_at: ts(self.asked_at.unwrap_or(self.now)), jobs: self.told.clone() };
            let world = ClusterView {
                reachable: self.reachable,
                jobs: Some(&jobs),
                nodes: &self.nodes,
                incidents: &self.incidents,
                ending: self.ending,
                looked_at: ts(self.looked_at.unwrap_or(self.now)),
                failed_for: &self.failed_for,
                silences: &self.silences,
                store: self.store,
                runs: &self.runs,
                addresses: &addresses,
                installing: &self.installing,
                learnt: &self.learnt.map(|newest| (self.job.id.clone(), newest)).into_iter().collect(),
            };
            let book = BTreeMap::from([(self.job.id.clone(), self.job.clone())]);
            decide(&book, &world, Policy { resubmissions: 10 }, ts(self.now))
        }

        /// Outcome of the only job, when it has one.
        fn outcome(&self) -> Option<Outcome> {
            match self.moves().pop()? {
                Transition::End(_, outcome) | Transition::Replace(_, outcome, _) => Some(outcome),
                Transition::Hand(_) | Transition::Note(..) | Transition::Stop(_) => None,
            }
        }

        fn lost(&self) -> Option<String> {
            match self.outcome()? {
                Outcome::Lost { why, .. } => Some(why),
                _ => None,
            }
        }
    }

    #[test]
    fn rays_word_is_taken_where_it_can_be() {
        use ErrorType as E;
        use JobStatus as S;
        assert_eq!(
            Case::new(vec![told(S::Succeeded, None, Some(900), "")], vec![incident("ray-worker-0", 890, None)])
                .outcome(),
            Some(Outcome::Succeeded)
        );
        assert_eq!(Case::new(vec![told(S::Stopped, None, Some(900), "")], vec![]).outcome(), Some(Outcome::Stopped));
        assert_eq!(Case::new(vec![told(S::Running, None, None, "")], vec![]).outcome(), None);
        let own = Case::new(vec![told(S::Failed, Some(E::JobEntrypointCommandError), Some(900), "Traceback")], vec![]);
        assert_eq!(
            own.outcome(),
            Some(Outcome::Failed { why: "its command exited 1; `ray job logs food11` shows why".into() })
        );
    }

    #[test]
    fn what_an_installer_refused_is_told_in_its_own_words() {
        let message = "runtime_env setup failed: Failed to set up runtime environment.\nTraceback (most recent call last):\n  \
                       File \"x.py\"\nRefused: pip cannot install:\nERROR: No matching distribution found for emoji==0.0.0.1\n";
        let failed = |message| {
            Case::new(
                vec![told(JobStatus::Failed, Some(ErrorType::RuntimeEnvSetupFailure), Some(900), message)],
                vec![],
            )
        };
        let why = "runtime_env setup failed: ERROR: No matching distribution found for emoji==0.0.0.1";
        assert_eq!(failed(message).outcome(), Some(Outcome::Failed { why: why.into() }));
        assert_eq!(failed("no node\ntook it").outcome(), Some(Outcome::Failed { why: "no node".into() }));
    }

    #[test]
    fn a_job_whose_package_ray_deleted_is_lost_and_one_that_speaks_of_another_package_is_not() {
        let failed = |error, package: &str| {
            let message = format!(
                "OSError: Failed to download runtime_env file package gcs://{package} from the GCS to the Ray worker node. \
                 The package may have prematurely been deleted from the GCS due to a long upload time\nx"
            );
            let mut case = Case::new(vec![told(JobStatus::Failed, Some(error), Some(900), &message)], vec![]);
            case.job = job("food11", json!({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}));
            case.lost()
        };
        for error in [ErrorType::JobEntrypointCommandError, ErrorType::RuntimeEnvSetupFailure] {
            assert_eq!(failed(error, "_ray_pkg_1.zip").as_deref(), Some("Ray deleted its uploaded files too early"));
            assert_eq!(failed(error, "_ray_pkg_12.zip"), None);
        }
    }

    #[test]
    fn a_workers_death_makes_a_users_error_a_loss_and_an_old_or_foreign_one_does_not() {
        let failed = |message| told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), message);
        let with = |message, incidents| Case::new(vec![failed(message)], incidents).lost();
        let why = Some("ray-worker-0: container exited 137 (SIGKILL)".to_owned());
        assert_eq!(with("x", vec![incident("ray-worker-0", 880, Some(884))]), why);
        assert_eq!(
            with("x", vec![incident("minio", 700, None)]),
            Some("minio: container exited 137 (SIGKILL)".into()),
            "still away"
        );
        assert_eq!(with("x", vec![incident("ray-worker-0", 500, Some(504))]), None, "long over");
        assert_eq!(
            with("... labd: container exited 137 (SIGKILL) ...", vec![incident("ray-worker-0", 500, Some(504))]),
            why,
            "quoted by Ray"
        );
        assert_eq!(with("x", vec![incident("ray-worker-0", 50, Some(54))]), None, "before its time");
        assert_eq!(with("x", vec![incident("ray-worker-0", 950, None)]), None, "after its end");
        assert_eq!(with("x", vec![incident("jupyter", 890, None)]), None, "not its business");
    }

    #[test]
    fn an_outage_counts_that_began_before_the_job() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(130), "x");
        let with = |i| Case::new(vec![failed.clone()], vec![i]).lost();
        let minio = Some("minio: container exited 137 (SIGKILL)".to_owned());
        assert_eq!(with(incident("minio", 90, Some(120))), minio, "it began at 100");
        assert_eq!(with(incident("minio", 90, None)), minio, "and is still away");
        assert_eq!(with(incident("minio", 90, Some(99))), None, "over before the job began");
        let twice = vec![incident("minio", 20, None), incident("minio", 25, Some(30))];
        assert_eq!(Case::new(vec![failed.clone()], twice).lost(), None, "the first was cut short by the second");
        // Once a node's death is known, Ray starts nothing there.
        assert_eq!(with(incident("ray-worker-0", 90, None)), None);
        let hung = Incident { noticed_at: ts(125), cause: Cause::Hang, ..incident("ray-worker-0", 90, Some(140)) };
        assert!(with(hung).is_some());
    }

    #[test]
    fn no_failure_is_a_jobs_own_while_what_it_needs_does_not_answer_but_for_no_longer_than_two_minutes() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        let case = || Case { now: 920, ..Case::new(vec![failed.clone()], vec![]) };
        assert!(matches!(case().outcome(), Some(Outcome::Failed { .. })));
        let silence = |service: &str, from, to| Silence { service: service.into(), from: ts(from), to: ts(to) };
        let worker = || vec![silence("ray-worker-0", 890, 920)];
        assert_eq!(Case { silences: worker(), ..case() }.outcome(), None);
        assert_eq!(Case { store: false, ..case() }.outcome(), None);
        let late = Case { silences: vec![silence("ray-worker-0", 890, 1021)], store: false, now: 1021, ..case() };
        assert!(matches!(late.outcome(), Some(Outcome::Failed { .. })));
        let over = Case { silences: vec![silence("ray-worker-0", 890, 910)], ..case() };
        assert!(matches!(over.outcome(), Some(Outcome::Failed { .. })), "a node that answers again");
        // What every job asks all the time explains a failure, also when it answers again by itself.
        for (from, to, lost) in
            [(905, 910, true), (880, 890, true), (915, 920, false), (700, 830, false), (50, 90, false)]
        {
            let case = Case { silences: vec![silence("minio", from, to)], now: 990, ..case() };
            assert_eq!(case.lost().is_some(), lost, "{from} to {to}");
        }
    }

    #[test]
    fn a_worker_that_the_run_did_not_have_is_no_excuse() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        let run = |workers: &[Ipv4Addr]| TrainRun {
            name: "food11".into(),
            id: "1".into(),
            submission_id: Some("food11".into()),
            status: RunStatus::Running,
            started_at: ts(110),
            ended_at: None,
            storage: "s3://ray".into(),
            driver: Some(DRIVER),
            attempts: vec![Attempt {
                id: "a".into(),
                started_at: ts(110),
                running_at: None,
                ended_at: None,
                status: AttemptStatus::Running,
                error: None,
                workers: workers.to_vec(),
            }],
        };
        let other = Ipv4Addr::new(198, 18, 100, 21);
        let mut case = Case::new(vec![failed], vec![incident("ray-worker-0", 880, Some(884))]);
        case.runs = vec![run(&[other])];
        assert!(matches!(case.outcome(), Some(Outcome::Failed { .. })));
        case.runs = vec![run(&[other, WORKER])];
        assert!(case.lost().is_some());
        case.runs = vec![run(&[])];
        assert!(case.lost().is_some(), "its workers are not known");
        // They are remembered when Ray forgets the run.
        case.runs = Vec::new();
        let known = Submitted { workers: [other].into(), driver: Some(DRIVER), ..Submitted::new(ts(100)) };
        case.job.state = State::Submitted(known);
        assert_eq!(case.lost(), None);
        case.incidents = vec![incident("ray-driver", 880, Some(884))];
        assert!(case.lost().is_some());
        // While it runs they are noted.
        let mut case = Case::new(vec![told(JobStatus::Running, None, None, "")], vec![]);
        case.runs = vec![run(&[WORKER])];
        let moves = case.moves();
        assert!(
            matches!(moves.first(), Some(Transition::Note(_, known)) if known.workers == [WORKER].into()),
            "{moves:?}"
        );
    }

    #[test]
    fn an_end_on_request_makes_a_users_error_a_loss_for_a_minute_only() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        let asked = |service, at, ready| Incident {
            cause: Cause::Asked,
            why: "restarted by hand".into(),
            ..incident(service, at, ready)
        };
        let with = |i| Case::new(vec![failed.clone()], vec![i]).lost();
        let why = Some("ray-worker-0: restarted by hand".to_owned());
        assert_eq!(with(asked("ray-worker-0", 860, Some(895))), why);
        assert_eq!(with(asked("ray-worker-0", 860, None)), why, "and held");
        assert_eq!(with(asked("ray-worker-0", 500, None)), None, "held for long");
        assert_eq!(with(asked("ray-worker-0", 500, Some(890))), None, "it was not there for long");
        // The driver's node: only Ray knows whether the driver has ended yet.
        let mut case = Case::new(vec![told(JobStatus::Running, None, None, "")], vec![asked("ray-driver", 990, None)]);
        assert_eq!(case.lost(), None);
        case.told = vec![told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(995), "")];
        let moves = case.moves();
        let Some(Transition::Replace(_, _, new)) = moves.first() else { panic!("{moves:?}") };
        assert!(matches!(&new.state, State::Queued { stop_first: Some(old), .. } if old == "food11"), "{new:?}");
    }

    #[test]
    fn a_failure_is_judged_once_it_is_known_what_ended() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        let mut case = Case { ending: true, ..Case::new(vec![failed], vec![]) };
        assert_eq!(case.outcome(), None);
        case.incidents = vec![incident("ray-worker-0", 898, None)];
        assert!(case.lost().is_some());
        (case.incidents, case.ending) = (vec![], false);
        assert!(matches!(case.outcome(), Some(Outcome::Failed { .. })));
        case.now = 904;
        assert_eq!(case.outcome(), None, "an engine may be slow");
    }

    #[test]
    fn a_dead_supervisor_is_a_loss_and_what_may_still_run_is_stopped_first() {
        let died = told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(900), "");
        for (incidents, stop_first) in
            [(vec![incident("ray-driver", 890, None)], None), (vec![], Some("food11".to_owned()))]
        {
            let moves = Case::new(vec![died.clone()], incidents).moves();
            let Some(Transition::Replace(id, Outcome::Lost { next, .. }, new)) = moves.first() else {
                panic!("{moves:?}")
            };
            assert_eq!((id.as_str(), next), ("food11", &Next::As("food11-r1".into())));
            assert_eq!((new.root.as_str(), new.attempt), ("food11", 2));
            assert!(matches!(&new.state, State::Queued { stop_first: s, .. } if *s == stop_first), "{new:?}");
        }
    }

    #[test]
    fn a_job_that_reads_running_is_lost_with_its_drivers_container() {
        let running = told(JobStatus::Running, None, None, "");
        let mut case = Case::new(vec![running.clone()], vec![incident("ray-driver", 990, None)]);
        assert_eq!(case.lost().as_deref(), Some("ray-driver: container exited 137 (SIGKILL)"));
        // Also while the head is away, and never for another node's death.
        case.reachable = false;
        assert!(case.lost().is_some());
        assert_eq!(
            Case::new(
                vec![running.clone()],
                vec![incident("ray-worker-0", 990, None), incident("ray-head", 990, None)]
            )
            .lost(),
            None
        );
        // Without an incident, a driver's node that is gone counts after a while.
        let mut case = Case::new(vec![running], vec![]);
        case.nodes[0].alive = false;
        let moves = case.moves();
        let Some(Transition::Note(_, known)) = moves.first() else { panic!("{moves:?}") };
        assert_eq!(known.orphaned_since, Some(ts(1000)));
        case.job.state = State::Submitted(known.clone());
        case.now = 1011;
        assert!(case.lost().is_some());
    }

    #[test]
    fn a_job_that_waited_while_its_drivers_node_died_is_not_lost_with_it() {
        let running = told(JobStatus::Running, None, None, "");
        let mut case = Case::new(vec![running], vec![incident("ray-driver", 500, Some(504))]);
        assert!(case.lost().is_some(), "it was there");
        case.nodes[0].started_at = ts(502);
        assert_eq!(case.lost(), None, "it began on the node that came back");
        // The clock was set back between its node's end and its start.
        for (noticed, ready) in [(1_040, None), (900, Some(450))] {
            case.nodes[0].started_at = ts(440);
            (case.incidents[0].noticed_at, case.incidents[0].ready_at) = (ts(noticed), ready.map(ts));
            assert_eq!(case.lost(), None, "and Ray calls the node alive that it runs on");
            case.nodes[0].alive = false;
            assert!(case.lost().is_some());
            case.nodes[0].alive = true;
        }
    }

    #[test]
    fn one_that_was_given_up_and_succeeded_all_the_same_is_not_run_again() {
        // Whether its processes may still run, or died with their node before Ray's report came.
        for stop_first in [Some("food11".to_owned()), None] {
            let kept = State::Queued { not_before: ts(0), stop_first, tries: 0 };
            let lost = Outcome::Lost { why: "x".into(), next: Next::As("food11-r1".into()) };
            let new = Job { id: "food11-r1".into(), attempt: 2, state: kept, ..job("food11", json!({})) };
            let old = Job { state: State::Ended { at: ts(950), outcome: lost }, ..job("food11", json!({})) };
            let book = BTreeMap::from([("food11".to_owned(), old), ("food11-r1".to_owned(), new)]);
            let nodes = [node(1, DRIVER, true, "driver")];
            for (status, moves) in [
                (JobStatus::Running, vec![Transition::Hand("food11-r1".into())]),
                (JobStatus::Stopped, vec![Transition::Hand("food11-r1".into())]),
                (JobStatus::Succeeded, vec![Transition::End("food11-r1".into(), Outcome::Succeeded)]),
            ] {
                let jobs = Jobs { asked_at: ts(1000), jobs: vec![told(status, None, Some(960), "")] };
                let world = ClusterView {
                    reachable: true,
                    jobs: Some(&jobs),
                    nodes: &nodes,
                    incidents: &[],
                    ending: false,
                    looked_at: ts(1000),
                    failed_for: &BTreeMap::new(),
                    silences: &[],
                    store: true,
                    runs: &[],
                    addresses: &BTreeMap::new(),
                    installing: &BTreeSet::new(),
                    learnt: &BTreeMap::new(),
                };
                assert_eq!(decide(&book, &world, Policy { resubmissions: 10 }, ts(1000)), moves, "{status:?}");
            }
        }
    }

    #[test]
    fn what_ray_forgot_is_lost_only_when_it_says_so_for_long() {
        let mut case = Case::new(vec![], vec![]);
        let moves = case.moves();
        let Some(Transition::Note(_, known)) = moves.first() else { panic!("{moves:?}") };
        case.job.state = State::Submitted(known.clone());
        case.now = 1006;
        assert!(case.lost().expect("lost").contains("no longer knows"));
        case.asked_at = Some(1000);
        assert_eq!(case.lost(), None, "one list is not believed, however old it is");
        case.asked_at = None;
        case.reachable = false;
        assert_eq!(case.lost(), None, "nobody says anything");
        // A list that is older than the job.
        let mut case = Case::new(vec![], vec![]);
        case.job.state = State::Submitted(Submitted::new(ts(1000)));
        assert_eq!(case.moves(), []);
    }

    #[test]
    fn a_job_whose_driver_died_had_perhaps_succeeded_by_then() {
        let running = told(JobStatus::Running, None, None, "");
        let mut case = Case::new(vec![running], vec![incident("ray-driver", 990, None)]);
        case.asked_at = Some(989);
        assert_eq!(case.lost(), None, "the list is from before that");
        case.asked_at = Some(991);
        assert!(case.lost().is_some());
        // The clock was set back after the death, and after the list.
        case.nodes[0].alive = false;
        (case.learnt, case.incidents[0].order) = (Some(0), Order { begun: 1, over: 0 });
        (case.incidents[0].died_at, case.incidents[0].noticed_at) = (ts(4_600), ts(4_600));
        assert!(case.lost().is_some());
        (case.incidents[0].died_at, case.incidents[0].noticed_at, case.asked_at) = (ts(995), ts(995), Some(4_600));
        assert_eq!(case.lost(), None);
    }

    #[test]
    fn a_head_that_died_forgets_what_it_was_starting_but_not_a_job_whose_packages_are_being_installed() {
        let waits = RayJob { ended_at: None, driver_node: None, ..told(JobStatus::Pending, None, None, "") };
        let mut case = Case::new(vec![waits], vec![incident("ray-head", 900, Some(905))]);
        assert!(case.lost().expect("forgotten").contains("when the Ray head died"));
        case.installing.insert("food11".to_owned());
        assert_eq!(case.lost(), None);
        case.installing.clear();
        case.incidents[0].cause = Cause::OomInside;
        assert_eq!(case.lost(), None, "the head lived on");
    }

    #[test]
    fn what_is_told_of_an_ids_former_job_is_no_word_on_this_one() {
        let mark = |came| Some(Mark { root: "food11".into(), attempt: 1, submitted: Some(ts(came).to_string()) });
        let former = |status| RayJob { mark: mark(10), ..told(status, None, Some(20), "") };
        let handed = |at| State::Submitted(Submitted::new(ts(at)));
        for status in [JobStatus::Succeeded, JobStatus::Failed] {
            let mut case = Case::new(vec![former(status)], vec![]);
            (case.job.state, case.asked_at) = (handed(990), Some(980));
            assert_eq!(case.moves(), [], "a list that was asked for before this one was taken");
        }
        // This one, whatever the clock was set to meanwhile.
        let this = RayJob { mark: mark(100), started_at: Some(ts(10)), ..former(JobStatus::Succeeded) };
        let mut case = Case::new(vec![this.clone()], vec![]);
        for (at, now) in [(100, 1_000), (990, 1_000), (5_000, 1_000)] {
            (case.job.state, case.now) = (handed(at), now);
            assert_eq!(case.outcome(), Some(Outcome::Succeeded), "taken at {at}, now {now}");
        }
        // An earlier labd's, and one that labd did not submit.
        case.told = vec![RayJob { mark: Some(Mark { submitted: None, ..case.job.mark() }), ..this.clone() }];
        assert_eq!(case.outcome(), Some(Outcome::Succeeded));
        case.told = vec![RayJob { mark: None, ..this }];
        assert_eq!(case.outcome(), None);
        // Ray said that it has the id already, and for long that it is another's.
        let mut case = Case::new(vec![former(JobStatus::Running)], vec![]);
        case.job.state = State::Submitted(Submitted { missing_since: Some(ts(990)), ..Submitted::new(ts(980)) });
        assert_eq!(case.lost().as_deref(), Some("Ray did not take it: it still had another job of this id"));
    }

    #[test]
    fn one_that_its_owner_deleted_is_not_lost() {
        for (last, outcome) in [(JobStatus::Succeeded, Outcome::Succeeded), (JobStatus::Stopped, Outcome::Stopped)] {
            let mut case = Case::new(vec![], vec![]);
            case.job.state = State::Submitted(Submitted { deleting: Some(last), ..Submitted::new(ts(100)) });
            assert_eq!(case.outcome(), Some(outcome.clone()), "labd was killed before it heard that Ray did it");
            assert_eq!(deleted(&case.job, Some(last)), Some(outcome));
        }
        // It was judged before Ray had done it.
        let died = told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(900), "");
        let mut case = Case::new(vec![died], vec![]);
        case.job.state = State::Submitted(Submitted { deleting: Some(JobStatus::Failed), ..Submitted::new(ts(100)) });
        assert!(matches!(case.outcome(), Some(Outcome::Failed { .. })), "{:?}", case.moves());
        // Ray refused: it is still there.
        let mut case = Case::new(vec![told(JobStatus::Running, None, None, "")], vec![]);
        case.job.state = State::Submitted(Submitted { deleting: Some(JobStatus::Failed), ..Submitted::new(ts(100)) });
        assert_eq!(case.outcome(), None);
        let job = |state| Job { state, ..job("food11", json!({})) };
        let running = job(State::Submitted(Submitted::new(ts(100))));
        assert!(matches!(deleted(&running, Some(JobStatus::Failed)), Some(Outcome::Failed { .. })));
        assert_eq!((deleted(&running, Some(JobStatus::Running)), deleted(&running, None)), (None, None));
        let stopped = job(State::Submitted(Submitted { stop_asked: true, ..Submitted::new(ts(100)) }));
        assert_eq!(deleted(&stopped, Some(JobStatus::Failed)), Some(Outcome::Stopped));
        let lost = Outcome::Lost { why: "x".into(), next: Next::Not("y".into()) };
        assert_eq!(deleted(&job(State::Ended { at: ts(5), outcome: lost.clone() }), None), Some(lost));
    }

    #[test]
    fn nothing_is_a_jobs_own_error_before_the_engine_has_told_what_died() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        let mut case = Case::new(vec![failed], vec![]);
        (case.looked_at, case.now) = (Some(899), 100_000);
        assert_eq!(case.outcome(), None, "the engine has said nothing since, however long ago that was");
        case.looked_at = Some(900);
        assert!(matches!(case.outcome(), Some(Outcome::Failed { .. })));
        (case.looked_at, case.incidents) = (Some(899), vec![incident("ray-worker-0", 890, None)]);
        assert!(case.lost().is_some(), "what is known is enough");
    }

    #[test]
    fn only_quick_failures_in_a_row_make_the_next_attempt_wait() {
        // So many seconds passed from each attempt's making to its end; the last one's is its time in Ray.
        let wait = |lived: &[i64]| {
            let (mut newest, mut book, mut began) = (job("food11", json!({})), BTreeMap::new(), 0);
            for (attempt, lived) in (1..).zip(lived) {
                let (submitted_at, ended) = (ts(began), ts(began + lived));
                began += lived;
                let outcome = Outcome::Lost { why: "x".into(), next: Next::As("next".into()) };
                newest = Job { id: format!("food11-r{attempt}"), attempt, submitted_at, ..newest };
                let state = State::Ended { at: ended, outcome };
                book.insert(newest.id.clone(), Job { state, ..newest.clone() });
            }
            wait_before_next(&book, &newest, &Submitted::new(newest.submitted_at), ts(began)).as_secs()
        };
        for (lived, want) in [
            (&[5][..], 0),
            (&[5, 5], 1),
            (&[5, 5, 5], 2),
            (&[5, 5, 5, 90], 0),
            (&[90, 90, 90, 90, 90, 90, 90, 90, 5], 0),
            (&[90, 90, 90, 90, 90, 90, 90, 5, 5], 1),
            (&[5, 5, 5, 90, 5, 5], 1),
            // A minute of its own wait is no minute of work.
            (&[5, 5, 6, 7, 9, 13, 21, 37, 65, 65, 5], 60),
        ] {
            assert_eq!(wait(lived), want, "{lived:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_job_wait_for_the_hour() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(4_600), "x");
        let mut case = Case::new(vec![failed], vec![]);
        assert_eq!(case.outcome(), None, "it ended in the future, and nobody knows how long ago that was");
        case.failed_for.insert("food11".into(), Duration::from_secs(6));
        assert!(matches!(case.outcome(), Some(Outcome::Failed { .. })));
        case.looked_at = Some(990);
        assert_eq!(case.outcome(), None, "not looked at since");
        // It was set back while the job ran, and a worker died after that.
        let failed = RayJob { started_at: Some(ts(4_000)), ..told(JobStatus::Failed, None, Some(900), "x") };
        assert!(Case::new(vec![failed], vec![incident("ray-worker-0", 895, Some(899))]).lost().is_some());
        // It was set forward while the head was away, and back: that is long over.
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), "x");
        assert_eq!(Case::new(vec![failed], vec![incident("ray-head", 150, Some(3_800))]).lost(), None);
        let mut case = Case::new(vec![], vec![]);
        case.job.state = State::Queued { not_before: ts(1_060), stop_first: None, tries: 0 };
        assert_eq!(case.moves(), [], "a minute is a wait");
        case.job.state = State::Queued { not_before: ts(4_600), stop_first: None, tries: 0 };
        assert_eq!(case.moves(), [Transition::Hand("food11".into())]);
        // Ray took it after the clock was set back, and the list is from before that.
        case.job.state = State::Submitted(Submitted::new(ts(990)));
        case.asked_at = Some(4_600);
        assert_eq!(case.moves(), [], "the list can say nothing of it");
        case.asked_at = None;
        case.job.state = State::Submitted(Submitted { missing_since: Some(ts(4_600)), ..Submitted::new(ts(100)) });
        let moves = case.moves();
        assert!(
            matches!(moves.first(), Some(Transition::Note(_, known)) if known.missing_since == Some(ts(1_000))),
            "{moves:?}"
        );
    }

    #[test]
    fn what_was_over_before_a_job_does_not_end_it_when_a_clock_that_was_set_back_comes_to_it_again() {
        let running = || told(JobStatus::Running, None, None, "");
        let failed = || told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(910), "x");
        let places = |begun, over| Order { begun, over };
        for (told, service, order, learnt, lost) in [
            (running(), "ray-driver", places(1, 2), None, true),
            (running(), "ray-driver", places(1, 2), Some(2), false),
            (running(), "ray-driver", places(1, 2), Some(1), false),
            (running(), "ray-driver", places(3, 4), Some(2), true),
            (failed(), "ray-worker-0", places(1, 2), Some(2), false),
            (failed(), "ray-worker-0", places(3, 4), Some(2), true),
            (failed(), "ray-head", places(1, 2), Some(2), false),
            // It began before the job, and was in its way.
            (failed(), "ray-head", places(1, 2), Some(1), true),
        ] {
            let mut case = Case::new(vec![told], vec![Incident { order, ..incident(service, 900, Some(905)) }]);
            case.learnt = learnt;
            assert_eq!(case.lost().is_some(), lost, "{service} {order:?} {learnt:?}");
        }
    }

    #[test]
    fn an_outage_in_which_the_clock_was_set_back_takes_a_job_along_as_any_other() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(910), "x");
        for (service, ready, learnt, lost) in [
            ("minio", Some(950), Some(0), true),
            ("minio", None, Some(0), true),
            ("ray-worker-0", Some(950), Some(0), true),
            // It was over long before the job failed, or nobody knows how long before.
            ("minio", Some(800), Some(0), false),
            ("minio", Some(4_500), Some(0), false),
            ("minio", Some(950), None, false),
        ] {
            let order = Order { begun: 1, over: 2 };
            let mut case = Case::new(vec![failed.clone()], vec![Incident { order, ..incident(service, 4_400, ready) }]);
            case.learnt = learnt;
            assert_eq!(case.lost().is_some(), lost, "{service} {ready:?} {learnt:?}");
        }
        // It was over when the store died once more, which was long before the job.
        let first = Incident { order: Order { begun: 1, over: 0 }, ..incident("minio", 4_400, None) };
        let again = Incident { order: Order { begun: 2, over: 3 }, ..incident("minio", 700, Some(705)) };
        let mut case = Case::new(vec![failed.clone()], vec![first.clone(), again]);
        case.learnt = Some(0);
        assert_eq!(case.lost(), None);
        // Both were before the clock was set back, and over before the job was submitted.
        let again = Incident { order: Order { begun: 2, over: 3 }, ..incident("minio", 4_410, Some(4_420)) };
        let mut case = Case::new(vec![failed], vec![first, again]);
        case.learnt = Some(3);
        assert_eq!(case.lost(), None);
    }

    #[test]
    fn a_job_whose_node_ray_counted_as_dead_is_lost_though_its_container_lived_on() {
        let failed = |id: &str, back: Option<i64>| {
            let message =
                format!("The actor died because its node has died. Node Id: {id}\n\tthe actor's node was terminated");
            let told = told(JobStatus::Failed, Some(ErrorType::JobEntrypointCommandError), Some(900), &message);
            let mut case = Case::new(vec![told], vec![]);
            case.nodes = vec![node(1, DRIVER, true, "driver"), node(0xab, WORKER, false, "worker")];
            case.nodes.extend(back.map(|at| RayNode { started_at: ts(at), ..node(3, WORKER, true, "worker") }));
            case.lost()
        };
        let why = "ray-worker-0: Ray counted its node as dead";
        assert_eq!(failed("ab", None).as_deref(), Some(why));
        assert_eq!(failed("ab", Some(950)).as_deref(), Some(why));
        assert_eq!(failed("ab", Some(500)), None, "an old death that the run survived");
        assert_eq!(failed("cd", None), None, "no node of this lab");
    }

    #[test]
    fn an_attempt_that_ray_has_and_the_ledger_has_not_is_taken_over() {
        let died = told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(900), "");
        let attempt = |n: u32, came| RayJob {
            submission_id: format!("food11-r{}", n - 1),
            mark: Some(Mark { root: "food11".into(), attempt: n, submitted: Some(ts(came).to_string()) }),
            started_at: Some(ts(950)),
            ..told(JobStatus::Running, None, None, "")
        };
        let kept = State::Queued { not_before: ts(0), stop_first: None, tries: 0 };
        for state in [job("food11", json!({})).state, kept] {
            let mut case = Case::new(vec![died.clone(), attempt(2, 100), attempt(3, 100)], vec![]);
            case.job.state = state;
            let moves = case.moves();
            let [Transition::Replace(id, Outcome::Lost { next, .. }, new)] = &moves[..] else { panic!("{moves:?}") };
            assert_eq!((id.as_str(), next), ("food11", &Next::As("food11-r2".into())));
            assert_eq!((new.id.as_str(), new.root.as_str(), new.attempt), ("food11-r2", "food11", 3));
            assert_eq!(new.state, State::Submitted(Submitted::new(ts(950))));
        }
        // Another job had the id.
        for came in [50, 2_000] {
            let moves = Case::new(vec![died.clone(), attempt(2, came)], vec![]).moves();
            assert!(
                matches!(moves.first(), Some(Transition::Replace(_, _, new)) if new.id == "food11-r2"),
                "{moves:?}"
            );
        }
    }

    #[test]
    fn an_attempt_takes_no_id_that_ray_still_knows() {
        let died = told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(900), "");
        let old = RayJob { submission_id: "food11-r1".into(), ..told(JobStatus::Failed, None, Some(50), "") };
        let moves = Case::new(vec![died, old], vec![]).moves();
        assert!(matches!(moves.first(), Some(Transition::Replace(_, _, new)) if new.id == "food11-r2"), "{moves:?}");
    }

    #[test]
    fn a_stop_is_a_stop_and_limits_are_kept() {
        let failed = told(JobStatus::Failed, Some(ErrorType::JobSupervisorActorDied), Some(900), "");
        let mut case = Case::new(vec![failed.clone()], vec![incident("ray-driver", 890, None)]);
        case.job.state = State::Submitted(Submitted { stop_asked: true, ..Submitted::new(ts(100)) });
        assert_eq!(case.outcome(), Some(Outcome::Stopped));
        for (retry, attempt, again) in [("never", 1, false), ("0", 1, false), ("2", 2, true), ("2", 3, false)] {
            let mut case = Case::new(vec![failed.clone()], vec![]);
            case.job = Job { attempt, ..job("food11", json!({"metadata": {"labd.retry": retry}})) };
            assert_eq!(matches!(case.moves()[..], [Transition::Replace(..)]), again, "{retry} {attempt}");
        }
    }

    #[test]
    fn memory_that_ran_out_in_a_living_container_is_a_loss_once_and_then_the_jobs_own_error() {
        let oom = |service: &str, at| Incident {
            cause: Cause::OomInside,
            why: format!("{OOM_INSIDE}; raise `services.ray-worker.memory` in labd.toml (now 3 GiB)"),
            ..incident(service, at, Some(at))
        };
        let failed = |id: &str, error, ended| RayJob {
            submission_id: id.into(),
            started_at: Some(ts(ended - 100)),
            ..told(JobStatus::Failed, error, Some(ended), "x")
        };
        let command = Some(ErrorType::JobEntrypointCommandError);
        let addresses = [("ray-driver".to_owned(), DRIVER), ("ray-worker-0".to_owned(), WORKER)].into();
        let nodes = [node(1, DRIVER, true, "driver")];
        let after = |book: &BTreeMap<String, Job>, told: RayJob, incidents: &[Incident]| {
            let jobs = Jobs { asked_at: ts(1000), jobs: vec![told] };
            let world = ClusterView {
                reachable: true,
                jobs: Some(&jobs),
                nodes: &nodes,
                incidents,
                ending: false,
                looked_at: ts(1000),
                failed_for: &BTreeMap::new(),
                silences: &[],
                store: true,
                runs: &[],
                addresses: &addresses,
                installing: &BTreeSet::new(),
                learnt: &BTreeMap::new(),
            };
            decide(book, &world, Policy { resubmissions: 10 }, ts(1000)).pop()
        };
        let mut book = BTreeMap::from([("food11".to_owned(), job("food11", json!({})))]);
        // The driver's node lives on: a job that runs there runs on.
        let runs = RayJob { ended_at: None, ..told(JobStatus::Running, None, None, "") };
        let going = after(&book, runs, &[oom("ray-driver", 850)]);
        assert!(matches!(going, Some(Transition::Note(..))), "{going:?}");
        // One whose watching process was killed may still run.
        let unwatched = failed("food11", Some(ErrorType::JobSupervisorActorDied), 500);
        let Some(Transition::Replace(_, _, new)) = after(&book, unwatched, &[oom("ray-driver", 499)]) else {
            panic!("lost")
        };
        assert!(matches!(new.state, State::Queued { stop_first: Some(_), .. }), "{new:?}");
        let first = after(&book, failed("food11", command, 500), &[oom("ray-worker-0", 499)]);
        let Some(Transition::Replace(id, lost, new)) = first else { panic!("{first:?}") };
        assert!(matches!(&lost, Outcome::Lost { why, .. } if why.contains("raise `services.ray-worker.memory`")));
        let ended = Job { state: State::Ended { at: ts(505), outcome: lost }, ..book[&id].clone() };
        book.insert(id, ended);
        let mut new = *new;
        new.state = State::Submitted(Submitted { driver: Some(DRIVER), ..Submitted::new(ts(506)) });
        let again = BTreeMap::from([(new.id.clone(), new.clone())]);
        book.extend(again);
        let second = after(&book, failed("food11-r1", command, 900), &[oom("ray-worker-0", 898)]);
        let Some(Transition::End(id, Outcome::Failed { why })) = second else { panic!("{second:?}") };
        assert_eq!(id, "food11-r1");
        assert!(why.starts_with("ray-worker-0: out of memory") && why.contains("the attempt before"), "{why}");
        // Ray's own monitor is sometimes quicker than the kernel, and tells the job only.
        let said = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 198.18.100.11, ID: 1) was";
        let by_ray = |id: &str, error, ended| RayJob { message: said.into(), ..failed(id, error, ended) };
        for error in [ErrorType::JobSupervisorActorUnknownFailure, ErrorType::JobSupervisorActorDied] {
            let second = after(&book, by_ray("food11-r1", Some(error), 900), &[]);
            let Some(Transition::End(_, Outcome::Failed { why })) = second else { panic!("{second:?}") };
            assert!(
                why.starts_with(&format!("ray-driver: {OOM_INSIDE}")) && why.contains("services.ray-driver.memory"),
                "{why}"
            );
        }
        // Lost to something else, the second attempt is as good as the first.
        let killed = after(&book, failed("food11-r1", command, 900), &[incident("ray-worker-0", 898, None)]);
        assert!(matches!(killed, Some(Transition::Replace(..))), "{killed:?}");
    }

    #[test]
    fn a_queued_one_is_submitted_when_its_place_is_there() {
        let mut case = Case::new(vec![], vec![]);
        let kept = State::Queued { not_before: ts(0), stop_first: None, tries: 0 };
        case.job.state = kept.clone();
        assert_eq!(case.moves(), [Transition::Hand("food11".into())]);
        case.store = false;
        assert_eq!(case.moves(), [], "the store is not there");
        case.store = true;
        case.nodes[0].alive = false;
        assert_eq!(case.moves(), [], "the driver node is not there");
        case.job = Job { state: kept, ..job("food11", json!({"entrypoint_num_gpus": 1})) };
        assert_eq!(case.moves(), [Transition::Hand("food11".into())], "it goes elsewhere");
        case.reachable = false;
        assert_eq!(case.moves(), []);
    }
}
