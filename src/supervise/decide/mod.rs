//! Decision about the next step of one service. Pure: values in, values out.
//!
//! ```text
//!              image, then create           requirements, backoff        contract holds
//!   (nothing) -----------------> created ---------------------> running ---------------> ready
//!       ^                                                          | no answer for long: kill
//!       | remove (settings changed, or hung)                       v
//!       '------------------------------------------------------ exited --(start again)--> running
//! ```
//!
//! A decision is at most one step: the step is taken, the engine is looked at again, and the next decision comes from what
//! is there then. Nothing here remembers what was done; [`History`] holds only what no container can tell: failures, what
//! the GCS was told, what a person asked for.

mod exited;
mod hold;
pub mod rollout;
mod serving;
#[cfg(test)]
mod tests;

use std::time::Duration;

use exited::{Exit, absent, dead, ending, exited, failing, may_have_ended_by, removing, start};
use hold::held;
use rollout::RolloutTurn;
use serving::{missed_end, running};

use crate::{
    backoff::Backoff,
    engine::{EngineError, Observed, ObservedContainer, RunState},
    incident::Cause,
    snapshot::ServiceState,
    time::{Moment, Now, Timestamp},
};
pub use exited::{STOP_VERDICT, STOP_WORD};
pub use hold::{Hold, OutsideActions, hold};

/// Silence after which a service that was ready counts as hung. Busy is not hung: probes are answered within a second
/// under full load, and this is thirty of them.
pub const HUNG_AFTER: Duration = Duration::from_secs(30);
/// Silence after which a service counts as hung although somebody who should know calls it alive: a Ray node whose
/// dashboard agent is silent goes on training, and killing it loses more than waiting does.
pub const HUNG_ALTHOUGH_ALIVE: Duration = Duration::from_mins(10);
/// Delay of a killed GPU worker's own start when another GPU is free to take over its run: starting a Ray node and the
/// run's new training process at the same time makes both slower (measured: training again after 3.1 s with the pause
/// and 4.6 s without, on 2 cores).
pub const YIELD_TO_RECOVERY: Duration = Duration::from_secs(4);

/// State in which a service is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Running.
    Up,
    /// Stopped, and staying so, because a person asked for it.
    Held(Hold),
    /// Not running for as long as its GPU is unusable.
    Barred,
    /// Without a container: switched off, no longer planned, or the lab goes down.
    Off,
}

/// Last time during which the engine could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOutage {
    /// Beginning of the outage.
    pub from: Timestamp,
    /// End of the outage; absent while it lasts.
    pub to: Option<Timestamp>,
}

/// End of a service, or an end that labd is about to cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// Cause of the end.
    pub cause: Cause,
    /// The cause in one line.
    pub why: String,
    /// Time of the end; for a hang, when it last answered; on request, when the request came.
    pub at: Timestamp,
}

impl Termination {
    /// Termination on a person's or the plan's behalf.
    fn asked(why: &str, at: Timestamp) -> Self {
        Self { cause: Cause::Asked, why: why.to_owned(), at }
    }
}

/// Time for which a service that was ready has been failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FailingSince {
    /// Moment since which it is as it is now.
    since: Moment,
    /// Whether it is called alive all the same.
    alive: bool,
    /// Moment at which it is last known to have answered. What it was needed for since then may have failed for that.
    good_at: Moment,
}

/// Health of the running container, as its health check reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nothing known yet, or nothing that can be known now (the GCS is away).
    Unknown,
    /// The container's contract holds.
    Passing,
    /// The container's contract does not hold.
    Failing {
        /// Missing part of the contract, in one line.
        reason: String,
        /// Moment since which it has not held, in this way and without a good answer in between.
        since: Moment,
        /// Moment at which it is last known to have held; the first question where that is never.
        good_at: Moment,
        /// Whether somebody else who should know counts it as alive all the same.
        alive: bool,
    },
    /// The contract does not hold, and waiting cannot mend that.
    Lost {
        /// Reason, in one line.
        reason: String,
        /// Moment at which it is last known to have held.
        good_at: Moment,
    },
    /// The GPU is gone inside the container, or had a fault that cost the container's processes their state on it: only
    /// another container has it again.
    Gone {
        /// Reason, in one line.
        reason: String,
        /// Time since which it may have been gone.
        since: Timestamp,
    },
}

/// Result of a check of the GPU inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuVisibility {
    /// The check could not be done.
    Unknown,
    /// The GPU is there.
    There,
    /// The GPU is missing or does not answer; the reason, in one line.
    Gone(String),
}

/// Number of checks in a row without the GPU after which it counts as gone.
pub const GONE_AFTER: u32 = 2;

/// Number of checks in a row without the GPU, after one more check.
pub fn missing(before: u32, inside: &GpuVisibility) -> u32 {
    match inside {
        GpuVisibility::There => 0,
        GpuVisibility::Unknown => before,
        GpuVisibility::Gone(_) => before + 1,
    }
}

/// Availability of a service's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// The engine has the image.
    Present,
    /// The image is being looked for, built or pulled; the progress in one line.
    Preparing(String),
    /// The image cannot be had now; the reason in one line.
    Unavailable(String),
}

/// Reason for which a worker cannot use its GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuBlock {
    /// Whether a person has to lift the block; otherwise it ends by itself, when the GPU is back.
    pub quarantine: bool,
    /// Reason, in one line that ends in what to do.
    pub reason: String,
}

/// Observation of one service: everything a decision is made from, apart from history and time.
#[derive(Debug, Clone)]
pub struct Observation<'a> {
    /// The service's name.
    pub name: &'a str,
    /// Name of the service's container.
    pub container: &'a str,
    /// Fingerprint of the wanted container.
    pub hash: &'a str,
    /// Longest time from start to ready.
    pub start_deadline: Duration,
    /// Whether the container is killed after a long silence. JupyterLab is not: one cell that blocks its event loop
    /// would cost every kernel.
    pub kill_silent: bool,
    /// Time the engine gives the container to end by itself when it is stopped.
    pub stop_timeout: Duration,
    /// Whether the GCS must be told when its container ended.
    pub is_ray_node: bool,
    /// State in which the service is wanted.
    pub wanted: Wanted,
    /// Container as it was last observed.
    pub seen: &'a Observed,
    /// Outside actions on the container, known from the engine's events.
    pub touched: Option<&'a OutsideActions>,
    /// Time of the newest event of the container since it was last seen running: one that is gone ended by then.
    pub last_event: Option<Timestamp>,
    /// Engine's last outage.
    pub away: Option<EngineOutage>,
    /// Time at which a process of the container was last killed for memory.
    pub oom: Option<Timestamp>,
    /// Health, as the health check reports it.
    pub health: &'a Health,
    /// Availability of the image.
    pub image: &'a Image,
    /// The first requirement that does not hold, such as `minio is not ready`.
    pub unmet: Option<String>,
    /// Whether the GCS answers. While it does not, nothing that needs it is started, so telling it can wait.
    pub gcs: bool,
    /// Whether the service may be recreated for changed settings.
    pub turn: RolloutTurn,
    /// Whether another GPU worker is ready and has nothing to do.
    pub spare_worker: bool,
    /// Block on its GPU, for [`Wanted::Barred`].
    pub bar: Option<&'a GpuBlock>,
    /// Seed of the backoff's jitter.
    pub seed: u64,
}

/// History of a service: what is remembered from one decision to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Failures so far, and the time of the next try.
    pub backoff: Backoff,
    /// Exit that was already counted: container and time.
    counted: Option<(String, Timestamp)>,
    /// Whether it ran when it was last observed.
    ran: bool,
    /// Run that was seen last: container, and when it was started.
    run_seen: Option<(String, Timestamp)>,
    /// Death of the node that was here, which the GCS has yet to be told; the reason in one line.
    death_unreported: Option<String>,
    /// Whether its first process was seen to end before the engine said so: the GCS is told, or will be.
    seen_to_end: bool,
    /// Run in which it has been ready (by the start of its container), and the moment at which it was.
    ready: Option<(Timestamp, Moment)>,
    /// Run of a container that was seen last, and the moment it began: the time from then on is not the wall clock's.
    run: Option<(String, Timestamp, Moment)>,
    /// End of a container that was seen last, in the same way.
    end: Option<(String, Timestamp, Moment)>,
    /// How long it has been failing, where it was ready before.
    failing_since: Option<FailingSince>,
    /// Moment at which this labd began to observe it, where it ran by then and was ready when an earlier one last looked.
    adopted: Option<Moment>,
    /// Stop by labd itself that is under way; the exit is no failure, or is one for this reason.
    ending: Option<PlannedStop>,
    /// Whether a person asked for a restart that has not happened yet.
    pub restart: bool,
    /// Last failure, until a person intervenes: `ready` is explained by it.
    pub last_failure: Option<String>,
    /// Whether the container was created completely, its files included, as far as this labd knows.
    whole: bool,
    /// Id of a container that lacks something which the engine cannot give it any more.
    unfit: Option<String>,
    /// Step taken last, until an observation shows that it had an effect.
    taken: Option<Taken>,
    /// Step that keeps failing.
    stuck: Option<Stuck>,
    /// Moment since which the engine has been removing the container.
    removing_since: Option<Moment>,
}

/// Step taken last, and the container that was there before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    step: Step,
    seen: Observed,
    /// Error of the engine that alone is no failure: it was away, or the container was gone. The same step on the same
    /// container once more shows that it was one.
    said: Option<EngineError>,
}

/// Step that keeps failing: tried again later each time, with the engine's error as the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stuck {
    step: Step,
    /// Id of the container; absent for one that cannot be created.
    id: Option<String>,
    /// Engine's error message.
    said: String,
    backoff: Backoff,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PlannedStop {
    /// Stopped on a person's or the plan's behalf.
    Asked(&'static str),
    /// Ended because it hung, or its GPU was gone inside; it is recreated afterwards.
    Hung(String),
    /// Ended because the cluster that it was in is no more: it is recreated, and nothing waits for what was not its
    /// fault.
    Lost(String),
}

/// Next step for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do now.
    None,
    /// Request the image.
    PrepareImage,
    /// Tell the GCS that the node is dead. Only ever for a container that does not run.
    TellGcs {
        /// Reason that Ray's own errors will show.
        reason: String,
    },
    /// Create the container.
    Create,
    /// Start the container.
    Start {
        /// Id of the container.
        id: String,
        /// Whether it is started again after a failure.
        again: bool,
    },
    /// Stop the container gracefully.
    Stop {
        /// Id of the container.
        id: String,
    },
    /// Send SIGKILL to the container.
    Kill {
        /// Id of the container.
        id: String,
    },
    /// Remove the container, never its volumes.
    Remove {
        /// Id of the container.
        id: String,
    },
}

/// Kind of step that the engine is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// [`Action::Create`].
    Create,
    /// [`Action::Start`].
    Start,
    /// [`Action::Stop`].
    Stop,
    /// [`Action::Kill`].
    Kill,
    /// [`Action::Remove`].
    Remove,
}

impl Step {
    /// Participle for what the container cannot be when this step fails, such as `started`.
    const fn participle(self) -> &'static str {
        match self {
            Self::Create => "made",
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Kill => "killed",
            Self::Remove => "removed",
        }
    }

    /// Whether the step leads to a running container: its failures are the service's own, and count towards a crash
    /// loop.
    const fn brings_up(self) -> bool {
        matches!(self, Self::Create | Self::Start)
    }
}

impl Action {
    /// Kind of step that the engine is asked for; absent where it is not asked.
    const fn step(&self) -> Option<Step> {
        match self {
            Self::None | Self::PrepareImage | Self::TellGcs { .. } => None,
            Self::Create => Some(Step::Create),
            Self::Start { .. } => Some(Step::Start),
            Self::Stop { .. } => Some(Step::Stop),
            Self::Kill { .. } => Some(Step::Kill),
            Self::Remove { .. } => Some(Step::Remove),
        }
    }
}

/// Decision about a service: what to do, what to show, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Next step.
    pub action: Action,
    /// State to show.
    pub state: ServiceState,
    /// Reason to show, in one line.
    pub reason: String,
    /// Moment to decide again even if nothing changes.
    pub wake: Option<Moment>,
    /// End of the service, or one about to happen on request, that is known as of now.
    pub ended: Option<Termination>,
}

impl Decision {
    fn new(action: Action, state: ServiceState, reason: impl Into<String>) -> Self {
        Self { action, state, reason: reason.into(), wake: None, ended: None }
    }

    fn wake_at(mut self, at: Moment) -> Self {
        self.wake = Some(at);
        self
    }

    fn because(mut self, ended: Termination) -> Self {
        self.ended = Some(ended);
        self
    }
}

impl History {
    /// Takes note of what became of the last step. A refusal is a failure at once; an engine that was away and a
    /// container that was gone are one only if the same step must be taken on the same container again, and so is a
    /// success that changed nothing. Returns the line for the journal, when this is the first such failure.
    pub fn done(&mut self, result: &Result<(), EngineError>, now: Now, seed: u64) -> Option<String> {
        let taken = self.taken.as_mut()?;
        if taken.step == Step::Create {
            self.whole = result.is_ok();
        }
        let said = match result {
            Ok(()) => return None,
            Err(error) => error.to_string(),
        };
        if let Err(error @ (EngineError::Unreachable(_) | EngineError::NotFound(_))) = result {
            taken.said = Some(error.clone());
            return None;
        }
        let (step, id) = (taken.step, id_of(&taken.seen));
        self.taken = None;
        self.failed(step, id, said, now, seed)
    }

    /// Takes note that the last step was not taken after all.
    pub fn not_taken(&mut self) {
        self.taken = None;
    }

    fn failed(&mut self, step: Step, id: Option<String>, said: String, now: Now, seed: u64) -> Option<String> {
        let news = self.stuck.as_ref().is_none_or(|stuck| stuck.step != step || stuck.said != said);
        let line = news.then(|| format!("cannot be {}: {said}", step.participle()));
        if step.brings_up() {
            self.backoff.fail(now.moment, seed);
            self.last_failure = Some(said.clone());
        }
        // One container after another that cannot be started is the same trouble.
        let same = self.stuck.take().filter(|stuck| stuck.step == step && (step.brings_up() || stuck.id == id));
        let mut backoff = same.map(|stuck| stuck.backoff).unwrap_or_default();
        backoff.fail(now.moment, seed);
        self.stuck = Some(Stuck { step, id, said, backoff });
        line.filter(|_| !step.brings_up())
    }

    /// Whether a step keeps failing: what is tried because of it is no news.
    pub fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Reason why the container cannot be removed, once that has failed so often that it needs a person.
    pub fn stays(&self, now: Now) -> Option<&str> {
        let stuck = self.stuck.as_ref().filter(|stuck| !stuck.step.brings_up() && stuck.backoff.is_loop(now.moment))?;
        Some(&stuck.said)
    }

    /// Notes that the GCS was told of the dead node, or need not be any more.
    pub fn death_reported(&mut self) {
        self.death_unreported = None;
    }

    /// Notes that it was ready when an earlier labd last looked, and that this one begins to observe: if nothing is there
    /// now, that is news.
    pub fn was_ready(&mut self, now: Moment) {
        self.ran = true;
        self.adopted = Some(now);
    }

    /// Forgets what failed, because a person wants the service to run.
    pub fn reset_failures(&mut self) {
        self.backoff.forget();
        self.last_failure = None;
        self.stuck = None;
    }
}

fn id_of(seen: &Observed) -> Option<String> {
    match seen {
        Observed::Ours(c) => Some(c.id.clone()),
        Observed::Absent | Observed::Foreign { .. } => None,
    }
}

fn exit_of(container: &ObservedContainer) -> Option<(String, Timestamp)> {
    match container.run {
        RunState::Exited { finished_at, .. } => Some((container.id.clone(), finished_at)),
        _ => None,
    }
}

/// Decides the next step and brings the history up to date.
pub fn decide(s: &Observation<'_>, m: &mut History, now: Now) -> Decision {
    m.see(s.seen);
    let decision = next(s, m, now);
    m.take(s, decision, now)
}

impl History {
    /// Compares an observation with the last step: it may have had its effect, and a failing one may have succeeded.
    fn see(&mut self, seen: &Observed) {
        let runs = matches!(seen, Observed::Ours(c) if matches!(c.run, RunState::Running { .. } | RunState::Paused));
        self.taken.take_if(|taken| taken.seen != *seen);
        if !matches!(seen, Observed::Ours(c) if c.run == RunState::Removing) {
            self.removing_since = None;
        }
        self.stuck.take_if(|stuck| match stuck.step {
            Step::Create | Step::Start => runs,
            Step::Stop | Step::Kill => !runs || stuck.id != id_of(seen),
            Step::Remove => stuck.id != id_of(seen),
        });
    }

    /// Delays a step that has failed before, and says so.
    fn take(&mut self, s: &Observation<'_>, mut decision: Decision, now: Now) -> Decision {
        let Some(step) = decision.action.step() else { return decision };
        if let Some(taken) = self.taken.take_if(|taken| taken.step == step) {
            if step == Step::Start && matches!(taken.said, Some(EngineError::NotFound(_))) {
                self.unfit = id_of(s.seen);
            }
            let said = taken.said.map_or_else(
                || "the engine reports success, and nothing changed".to_owned(),
                |error| error.to_string(),
            );
            self.failed(step, id_of(s.seen), said, now, s.seed);
        }
        let up = s.wanted == Wanted::Up;
        if let Some(stuck) = self.stuck.as_ref().filter(|stuck| stuck.step == step || (up && stuck.step.brings_up())) {
            // The state is the same while it waits and while it is tried: no journal entry comes of a try.
            if stuck.step.brings_up() {
                (decision.state, decision.reason) = failing(self, now);
            } else {
                decision.reason = format!("cannot be {}: {}", stuck.step.participle(), stuck.said);
                if stuck.backoff.is_loop(now.moment) {
                    decision.state = ServiceState::Blocked;
                }
            }
            if stuck.step == step
                && let Some(at) = stuck.backoff.next_try(now.moment)
            {
                decision.action = Action::None;
                return decision.wake_at(at);
            }
        }
        self.taken = Some(Taken { step, seen: s.seen.clone(), said: None });
        decision
    }
}

fn next(s: &Observation<'_>, m: &mut History, now: Now) -> Decision {
    use ServiceState as S;
    let container = match s.seen {
        Observed::Foreign { .. } if s.wanted == Wanted::Up => {
            return Decision::new(
                Action::None,
                S::Blocked,
                format!(
                    "a container with the name of {0} that labd did not make is in the way: remove or rename it",
                    s.name
                ),
            );
        }
        Observed::Foreign { .. } | Observed::Absent => None,
        Observed::Ours(container) => Some(container),
    };
    match (s.wanted, container) {
        (Wanted::Up, None) => absent(s, m, now),
        (Wanted::Up, Some(c)) => present(s, m, now, c),
        (Wanted::Off, None) => {
            gone(s, m);
            Decision::new(Action::None, S::Off, "switched off")
        }
        (Wanted::Held(hold), None) => {
            gone(s, m);
            Decision::new(Action::None, S::Held, held(s, hold))
        }
        (Wanted::Barred, None) => {
            gone(s, m);
            barred(s)
        }
        (Wanted::Barred, Some(c)) => end(s, m, now, c, barred(s)),
        (Wanted::Off, Some(c)) => {
            let remove = Action::Remove { id: c.id.clone() };
            end(s, m, now, c, Decision::new(remove, S::Stopping, "switched off"))
        }
        (Wanted::Held(hold), Some(c)) => end(s, m, now, c, Decision::new(Action::None, S::Held, held(s, hold))),
    }
}

fn barred(s: &Observation<'_>) -> Decision {
    let state = if s.bar.is_some_and(|bar| bar.quarantine) { ServiceState::Held } else { ServiceState::Waiting };
    Decision::new(Action::None, state, why_barred(s))
}

/// Reason why a worker is barred, in short.
const NO_GPU: &str = "its GPU is unusable";

fn why_barred<'a>(s: &Observation<'a>) -> &'a str {
    s.bar.map_or(NO_GPU, |bar| &bar.reason)
}

/// Takes note that nothing is there any more, and that nobody asks why.
fn gone(s: &Observation<'_>, m: &mut History) {
    if std::mem::take(&mut m.ran) {
        node_ended(s, m, "container was removed");
    }
}

/// Steps from running to not running, and then `then`, once it does not run and the GCS knows.
fn end(s: &Observation<'_>, m: &mut History, now: Now, c: &ObservedContainer, then: Decision) -> Decision {
    use ServiceState as S;
    m.ready = None;
    m.failing_since = None;
    m.restart = false;
    m.ran = matches!(c.run, RunState::Running { .. });
    let why = match s.wanted {
        Wanted::Held(Hold::ByHand) => "stopped by hand (docker stop)",
        Wanted::Held(_) => "stopped by hand",
        Wanted::Barred => NO_GPU,
        Wanted::Off | Wanted::Up => "switched off",
    };
    let ended = |at| match s.wanted {
        Wanted::Barred => Termination { cause: Cause::Gpu, why: why_barred(s).to_owned(), at },
        _ => Termination::asked(why, at),
    };
    match &c.run {
        RunState::Running { .. } => {
            m.ending = Some(PlannedStop::Asked(why));
            Decision::new(Action::Stop { id: c.id.clone() }, S::Stopping, why).because(ended(now.wall))
        }
        // A paused process cannot act on SIGTERM.
        RunState::Paused => Decision::new(Action::Kill { id: c.id.clone() }, S::Stopping, why).because(ended(now.wall)),
        RunState::Removing => removing(m, now, c),
        RunState::Dead => dead(c),
        RunState::Ending => ending(s, m, now, S::Stopping, why),
        RunState::Exited { finished_at, .. } => {
            let mut died = None;
            if m.counted != exit_of(c) {
                m.counted = exit_of(c);
                node_ended(s, m, why);
                // What it did was over from the signal on.
                let signal = s.touched.filter(|t| t.id == c.id).and_then(|t| t.signalled);
                let at = signal.filter(|&at| at <= *finished_at && may_have_ended_by(s, at, *finished_at, now.wall));
                died = Some(ended(at.unwrap_or(*finished_at)));
            }
            Decision { ended: died, ..tell(s, m, S::Stopping, why).unwrap_or(then) }
        }
        RunState::Created => then,
    }
}

/// Takes note of the end of the node that was here, which the GCS is told once.
fn node_ended(s: &Observation<'_>, m: &mut History, why: &str) {
    if !std::mem::take(&mut m.seen_to_end) {
        m.death_unreported = s.is_ray_node.then(|| format!("labd: {why}"));
    }
}

/// Step that tells the GCS, before anything takes the dead node's place; `None` when there is nothing to tell.
fn tell(s: &Observation<'_>, m: &History, state: ServiceState, why: &str) -> Option<Decision> {
    let reason = m.death_unreported.clone().filter(|_| s.gcs)?;
    Some(Decision::new(Action::TellGcs { reason }, state, why))
}

/// Decision about a container of ours that is there, and should run.
fn present(s: &Observation<'_>, m: &mut History, now: Now, c: &ObservedContainer) -> Decision {
    use ServiceState as S;
    let outdated = c.spec_hash != s.hash;
    // The old one is better than none while the new one's image is built.
    let renewable = outdated && *s.image == Image::Present;
    let remove = |reason: &str| Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, reason);
    match &c.run {
        RunState::Removing => removing(m, now, c),
        RunState::Dead => dead(c),
        RunState::Paused => Decision::new(
            Action::None,
            S::Unhealthy,
            format!("paused by somebody; `docker unpause` or `labd restart {}` ends that", s.name),
        ),
        RunState::Created if renewable => remove("its settings changed"),
        // A create that was not answered, or that a labd was killed in, goes on in the engine; nobody puts the files in then.
        RunState::Created if !m.whole => remove("it was not completely created"),
        RunState::Created => {
            tell(s, m, S::Starting, "the GCS is told that the old node is dead").unwrap_or_else(|| start(s, m, now, c))
        }
        RunState::Running { started_at } => {
            let missed = missed_end(m, c, *started_at);
            let mut decision = running(s, m, now, c, *started_at, outdated);
            decision.ended = decision.ended.or(missed);
            decision
        }
        RunState::Ending => {
            let asked = matches!(m.ending, Some(PlannedStop::Asked(_)));
            ending(s, m, now, if asked { S::Stopping } else { S::Backoff }, "its first process has ended")
        }
        RunState::Exited { code, oom, error, finished_at } => {
            exited(s, m, now, c, &Exit { code: *code, oom: *oom, error, finished_at: *finished_at })
        }
    }
}

/// The moment at which a run or an end of a container began: found out when it is first seen, and kept, so that a clock that
/// is set later makes no wait longer or shorter.
fn began(known: &mut Option<(String, Timestamp, Moment)>, c: &ObservedContainer, at: Timestamp, now: Now) -> Moment {
    match known {
        Some((id, same, began)) if *id == c.id && *same == at => *began,
        _ => known.insert((c.id.clone(), at, now.moment_of(at))).2,
    }
}

impl History {
    /// `what`, together with the failure that led here.
    fn explain(&self, what: &str) -> String {
        match (&self.last_failure, what) {
            (Some(failure), "") => format!("restarted: {failure}"),
            (Some(failure), what) => format!("{what} after: {failure}"),
            (None, what) => what.to_owned(),
        }
    }
}
