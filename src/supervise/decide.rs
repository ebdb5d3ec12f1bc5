//! What to do next about one service. Pure: values in, values out.
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
//! is there then. Nothing here remembers what was done; [`Memory`] holds only what no container can tell: failures, what
//! the GCS was told, what a person asked for.

use std::time::Duration;

use super::{backoff::Backoff, oom, rollout::Turn};
use crate::{
    engine::{ContainerSeen, EngineError, RunState, Seen},
    incident::Cause,
    snapshot::ServiceState,
    time::{Moment, Now, Timestamp, human},
};

/// A service that was ready and does not answer for so long is hung. Busy is not hung: probes are answered within a
/// second under full load, and this is thirty of them.
pub const HUNG_AFTER: Duration = Duration::from_secs(30);
/// The same where somebody who should know calls it alive: a Ray node whose dashboard agent is silent goes on training, and
/// killing it loses more than waiting does.
pub const HUNG_ALTHOUGH_ALIVE: Duration = Duration::from_mins(10);
/// How long an engine may take to remove a container: its layers may be large, and the disk busy.
const REMOVED: Duration = Duration::from_mins(1);
/// How long an engine takes to clear up after a container, and say so: some tenths of a second.
const CLEARED: Duration = Duration::from_secs(1);
/// After an exit that a signal by hand preceded, for the word that it was a `docker stop`: it comes within milliseconds.
pub const STOP_WORD: Duration = Duration::from_secs(1);
/// And then for the word that the engine lives on: one question to it.
pub const STOP_VERDICT: Duration = Duration::from_secs(8);
/// An engine that ends stops listening first and its containers next, and is found to be away only after that.
const ENGINE_ENDS: Duration = Duration::from_secs(10);
/// An engine that begins clears up what died with its predecessor before it answers.
const ENGINE_BEGINS: Duration = Duration::from_secs(2);
/// How long a killed GPU worker's own start waits when another GPU is free to take over its run: starting a Ray node
/// and starting the run's new training process at the same time makes both slower (measured: training again after 3.1 s
/// with the pause and 4.6 s without, on 2 cores).
pub const YIELD_TO_RECOVERY: Duration = Duration::from_secs(4);

/// What is wanted of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it runs.
    Up,
    /// That it is stopped and stays there: a person said so.
    Held(Hold),
    /// That it does not run for as long as its GPU cannot be worked with.
    Barred,
    /// That it has no container: switched off, no longer planned, or the lab goes down.
    Off,
}

/// How a person stopped a service. Held until a person starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// With `labd stop`, and it may still run.
    Asked,
    /// With `labd stop`, and it was seen not to run since.
    Stopped,
    /// With `docker stop`, or whatever speaks to the engine as that does.
    ByHand,
}

/// What the engine's events say of one container and its state does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The container.
    pub id: String,
    /// When it was last sent a signal by somebody else than labd, SIGKILL left out: no stop begins with that.
    pub signalled: Option<Timestamp>,
    /// When somebody else than labd, or the engine at its end, last stopped it.
    pub stopped: Option<Timestamp>,
    /// When somebody else than labd last stopped it, and the engine lived on.
    pub by_hand: Option<Timestamp>,
}

/// When the engine was not to be reached, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// Since when.
    pub from: Timestamp,
    /// Until when; absent while it lasts.
    pub to: Option<Timestamp>,
}

/// A service ended, or is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What ended it.
    pub cause: Cause,
    /// The cause in one line.
    pub why: String,
    /// When; for a hang, when it first did not answer; on request, when that came.
    pub at: Timestamp,
}

impl Ended {
    /// On a person's or the plan's behalf.
    fn asked(why: &str, at: Timestamp) -> Self {
        Self { cause: Cause::Asked, why: why.to_owned(), at }
    }
}

/// What the prober says of the running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nothing yet, or nothing that can be known now (the GCS is away).
    Unknown,
    /// Its contract holds.
    Passing,
    /// Its contract does not hold.
    Failing {
        /// What is missing, in one line.
        reason: String,
        /// Since when it has not held, without a good answer in between.
        since: Moment,
        /// Whether somebody else who should know counts it as alive all the same.
        alive: bool,
    },
    /// Its contract does not hold, and waiting cannot mend that.
    Lost {
        /// Why, in one line.
        reason: String,
    },
    /// Its GPU is gone inside the container, or had a fault that it lost what the container's processes had of it: only
    /// another container has it again.
    Gone {
        /// Why, in one line.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
}

/// What a look into the container says of its GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// It could not be looked.
    Unknown,
    /// It is there.
    There,
    /// It is not, or does not answer; why, in one line.
    Gone(String),
}

/// So many looks in a row that do not find the GPU mean that it is gone.
pub const GONE_AFTER: u32 = 2;

/// How many looks in a row have not found the GPU, after one more.
pub fn missing(before: u32, inside: &Inside) -> u32 {
    match inside {
        Inside::There => 0,
        Inside::Unknown => before,
        Inside::Gone(_) => before + 1,
    }
}

/// What is known of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// The engine has it.
    Present,
    /// It is being looked for, built or pulled.
    Preparing(String),
    /// It cannot be had now.
    Unavailable(String),
}

/// What keeps a worker from its GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// Whether it is for a person to lift it; else it ends by itself, when the GPU is back.
    pub quarantine: bool,
    /// Why, in one line that ends in what to do.
    pub reason: String,
}

/// Everything a decision is made from, apart from memory and time.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// The service's name.
    pub name: &'a str,
    /// Its container's name.
    pub container: &'a str,
    /// Fingerprint of the wanted container.
    pub hash: &'a str,
    /// Longest time from start to ready.
    pub start_deadline: Duration,
    /// Whether it is killed when it does not answer for long. JupyterLab is not: one cell that blocks its event loop would
    /// cost every kernel.
    pub kill_silent: bool,
    /// How long the engine lets it end by itself when it is stopped.
    pub stop_timeout: Duration,
    /// Whether the GCS must be told when its container ended.
    pub is_ray_node: bool,
    /// What is wanted.
    pub wanted: Wanted,
    /// What stands there.
    pub seen: &'a Seen,
    /// What events say of its container.
    pub touched: Option<&'a Touched>,
    /// The newest event of its container since that was last seen to run: one that is gone ended by then.
    pub last_event: Option<Timestamp>,
    /// When the engine was away.
    pub away: Option<Away>,
    /// When a process of its container was last killed for memory.
    pub oom: Option<Timestamp>,
    /// What the prober says.
    pub health: &'a Health,
    /// Its image.
    pub image: &'a Image,
    /// The first requirement that does not hold, such as `minio is not ready`.
    pub unmet: Option<String>,
    /// Whether the GCS answers. While it does not, nothing that needs it is started, so telling it can wait.
    pub gcs: bool,
    /// Whether it may be recreated for changed settings.
    pub turn: Turn,
    /// Whether another GPU worker is ready and has nothing to do.
    pub spare_worker: bool,
    /// Why its GPU cannot be worked with, for [`Wanted::Barred`].
    pub bar: Option<&'a Bar>,
    /// Seed of the backoff's jitter.
    pub seed: u64,
}

/// What is remembered of a service between decisions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// Failures and the next try.
    pub backoff: Backoff,
    /// Exit that was already counted: container and time.
    counted: Option<(String, Timestamp)>,
    /// It ran when it was last looked at.
    ran: bool,
    /// The run that was seen last: container, and when it was started.
    run_seen: Option<(String, Timestamp)>,
    /// What the GCS has yet to be told of the node that was here.
    untold: Option<String>,
    /// Its first process was seen to end, before the engine said so: the GCS is told, or will be.
    seen_to_end: bool,
    /// Whether it has been ready since its container was started, and when that was.
    ready: Option<(Timestamp, Moment)>,
    /// The run of a container that was seen last, and when it began: the time from then on is not the wall clock's.
    run: Option<(String, Timestamp, Moment)>,
    /// The end that was seen last, in the same way.
    end: Option<(String, Timestamp, Moment)>,
    /// Since when it does not answer, and whether it is called alive all the same.
    failing_since: Option<(Moment, bool)>,
    /// It ran before this labd began to look, and may have been ready.
    adopted: bool,
    /// labd itself ends the container; its exit is no failure, or is one for this reason.
    ending: Option<Ending>,
    /// A person's restart that has not happened yet.
    pub restart: bool,
    /// The last failure, until a person intervenes: what `ready` is explained by.
    pub last_failure: Option<String>,
    /// The container that stands there was made to the end, its files included, as far as this labd knows.
    whole: bool,
    /// A container that lacks something which the engine cannot give it any more.
    unfit: Option<String>,
    /// The step taken last, until what is seen shows that it had an effect.
    taken: Option<Taken>,
    /// The step that does not succeed.
    stuck: Option<Stuck>,
    /// Since when the engine has been removing it.
    removing_since: Option<Moment>,
}

/// The step taken last, and what stood there before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    step: Step,
    seen: Seen,
    /// What the engine answered, when that alone is no failure: it was away, or the container was gone. The same step on
    /// the same container once more shows that it was one.
    said: Option<EngineError>,
}

/// A step that does not succeed: tried again later each time, with the engine's words as the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stuck {
    step: Step,
    /// The container; absent for one that cannot be made.
    id: Option<String>,
    /// The engine's words.
    said: String,
    backoff: Backoff,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    /// On a person's or the plan's behalf.
    Asked(&'static str),
    /// Because it hung, or its GPU was gone inside; then it is made anew.
    Hung(String),
    /// Because the cluster that it was in is no more: it is made anew, and nothing waits for what was not its fault.
    Lost(String),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do now.
    None,
    /// Ask for the image.
    PrepareImage,
    /// Tell the GCS that the node is dead. Only ever for a container that does not run.
    TellGcs {
        /// What Ray's own errors will say.
        reason: String,
    },
    /// Make the container.
    Create,
    /// Start it.
    Start {
        /// The container.
        id: String,
        /// Whether it is started again after a failure.
        again: bool,
    },
    /// Stop it gracefully.
    Stop {
        /// The container.
        id: String,
    },
    /// SIGKILL it.
    Kill {
        /// The container.
        id: String,
    },
    /// Remove it, never its volumes.
    Remove {
        /// The container.
        id: String,
    },
}

/// A step's kind: what the engine is asked for.
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
    /// What the container cannot be, when this step fails.
    const fn participle(self) -> &'static str {
        match self {
            Self::Create => "made",
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Kill => "killed",
            Self::Remove => "removed",
        }
    }

    /// Whether it is on the way to a running container: its failures are the service's own, and count towards a crash loop.
    const fn brings_up(self) -> bool {
        matches!(self, Self::Create | Self::Start)
    }
}

impl Action {
    /// What the engine is asked for; absent where it is not asked.
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

/// What to do, what to show, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The next step.
    pub action: Action,
    /// The state shown.
    pub state: ServiceState,
    /// Why, in one line.
    pub reason: String,
    /// When to decide again even if nothing changes.
    pub wake: Option<Moment>,
    /// It has ended, or is about to on request, which is known as of now.
    pub ended: Option<Ended>,
}

impl Decision {
    fn new(action: Action, state: ServiceState, reason: impl Into<String>) -> Self {
        Self { action, state, reason: reason.into(), wake: None, ended: None }
    }

    fn wake_at(mut self, at: Moment) -> Self {
        self.wake = Some(at);
        self
    }

    fn because(mut self, ended: Ended) -> Self {
        self.ended = Some(ended);
        self
    }
}

impl Memory {
    /// What became of the step that was decided last. A refusal is a failure at once; an engine that was away and a
    /// container that was gone are one only if the same step must be taken on the same container again, and so is a success
    /// that changed nothing. Returns the line for the journal, when this is the first such failure.
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

    /// Whether a step does not succeed: what is tried because of it is no news.
    pub fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Why the container cannot be taken away, once that has failed so often that it needs a person.
    pub fn stays(&self, now: Now) -> Option<&str> {
        let stuck = self.stuck.as_ref().filter(|stuck| !stuck.step.brings_up() && stuck.backoff.is_loop(now.moment))?;
        Some(&stuck.said)
    }

    /// The GCS was told of the node that was here, or need not be any more.
    pub fn told(&mut self) {
        self.untold = None;
    }

    /// It ran before this labd began to look: if nothing is there now, that is news.
    pub fn has_run(&mut self) {
        self.ran = true;
        self.adopted = true;
    }

    /// A person wants it: forget what failed.
    pub fn forgive(&mut self) {
        self.backoff.forget();
        self.last_failure = None;
        self.stuck = None;
    }
}

fn id_of(seen: &Seen) -> Option<String> {
    match seen {
        Seen::Ours(c) => Some(c.id.clone()),
        Seen::Absent | Seen::Foreign { .. } => None,
    }
}

fn exit_of(container: &ContainerSeen) -> Option<(String, Timestamp)> {
    match container.run {
        RunState::Exited { finished_at, .. } => Some((container.id.clone(), finished_at)),
        _ => None,
    }
}

/// Whether a person holds the service, after what is seen now. `docker stop` holds it; what runs although it was stopped
/// was started by hand, which releases it. A crash, `docker kill` and `docker rm` change nothing.
pub fn hold(before: Option<Hold>, seen: &Seen, touched: Option<&Touched>) -> Option<Hold> {
    let run = match seen {
        Seen::Ours(c) => Some(&c.run),
        Seen::Absent | Seen::Foreign { .. } => None,
    };
    let runs = matches!(run, Some(RunState::Running { .. } | RunState::Paused));
    match (before, seen) {
        (None, Seen::Ours(c)) => {
            let RunState::Exited { finished_at, .. } = c.run else { return None };
            let stop = touched.filter(|t| t.id == c.id).and_then(|t| t.by_hand);
            // The engine says `stop` after the end; one from before a later start has an earlier time than this end.
            stop.is_some_and(|at| at >= finished_at).then_some(Hold::ByHand)
        }
        (None, _) => None,
        (Some(Hold::Asked), _) => Some(if runs { Hold::Asked } else { Hold::Stopped }),
        (Some(Hold::Stopped | Hold::ByHand), _) if runs => None,
        (Some(hold), _) => Some(hold),
    }
}

/// Decides the next step and brings the memory up to date.
pub fn decide(s: &Situation<'_>, m: &mut Memory, now: Now) -> Decision {
    m.see(s.seen);
    let decision = next(s, m, now);
    m.take(s, decision, now)
}

impl Memory {
    /// What is seen may show that the last step had its effect, and that a stuck one is stuck no more.
    fn see(&mut self, seen: &Seen) {
        let runs = matches!(seen, Seen::Ours(c) if matches!(c.run, RunState::Running { .. } | RunState::Paused));
        self.taken.take_if(|taken| taken.seen != *seen);
        if !matches!(seen, Seen::Ours(c) if c.run == RunState::Removing) {
            self.removing_since = None;
        }
        self.stuck.take_if(|stuck| match stuck.step {
            Step::Create | Step::Start => runs,
            Step::Stop | Step::Kill => !runs || stuck.id != id_of(seen),
            Step::Remove => stuck.id != id_of(seen),
        });
    }

    /// Puts a step off that has failed before, and says so.
    fn take(&mut self, s: &Situation<'_>, mut decision: Decision, now: Now) -> Decision {
        let Some(step) = decision.action.step() else { return decision };
        if let Some(taken) = self.taken.take_if(|taken| taken.step == step) {
            if step == Step::Start && matches!(taken.said, Some(EngineError::NotFound(_))) {
                self.unfit = id_of(s.seen);
            }
            let said = taken.said.map_or_else(
                || "the engine says that it did, and nothing changed".to_owned(),
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

fn next(s: &Situation<'_>, m: &mut Memory, now: Now) -> Decision {
    use ServiceState as S;
    let container = match s.seen {
        Seen::Foreign { .. } if s.wanted == Wanted::Up => {
            return Decision::new(
                Action::None,
                S::Blocked,
                format!(
                    "a container with the name of {0} that labd did not make is in the way: remove or rename it",
                    s.name
                ),
            );
        }
        Seen::Foreign { .. } | Seen::Absent => None,
        Seen::Ours(container) => Some(container),
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

fn barred(s: &Situation<'_>) -> Decision {
    let state = if s.bar.is_some_and(|bar| bar.quarantine) { ServiceState::Held } else { ServiceState::Waiting };
    Decision::new(Action::None, state, why_barred(s))
}

/// Why a worker is barred, in short.
const NO_GPU: &str = "its GPU cannot be worked with";

fn why_barred<'a>(s: &Situation<'a>) -> &'a str {
    s.bar.map_or(NO_GPU, |bar| &bar.reason)
}

fn held(s: &Situation<'_>, hold: Hold) -> String {
    let how = if hold == Hold::ByHand { " (docker stop)" } else { "" };
    format!("stopped by hand{how}; `labd start {}` or `docker start {}` releases it", s.name, s.container)
}

/// Nothing is there any more, and nobody asks why.
fn gone(s: &Situation<'_>, m: &mut Memory) {
    if std::mem::take(&mut m.ran) {
        node_ended(s, m, "container was removed");
    }
}

/// The way from running to not running, and what follows once it does not run and the GCS knows.
fn end(s: &Situation<'_>, m: &mut Memory, now: Now, c: &ContainerSeen, then: Decision) -> Decision {
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
        Wanted::Barred => Ended { cause: Cause::Gpu, why: why_barred(s).to_owned(), at },
        _ => Ended::asked(why, at),
    };
    match &c.run {
        RunState::Running { .. } => {
            m.ending = Some(Ending::Asked(why));
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
                let at = signal.filter(|&at| at <= *finished_at && may_have_ended_by(s, at, *finished_at));
                died = Some(ended(at.unwrap_or(*finished_at)));
            }
            Decision { ended: died, ..tell(s, m, S::Stopping, why).unwrap_or(then) }
        }
        RunState::Created => then,
    }
}

/// The engine is removing it, which takes a moment; one that does not come to an end is asked again.
fn removing(m: &mut Memory, now: Now, c: &ContainerSeen) -> Decision {
    let asked_again = m.removing_since.get_or_insert(now.moment).plus(REMOVED);
    if now.moment >= asked_again {
        let remove = Action::Remove { id: c.id.clone() };
        return Decision::new(remove, ServiceState::Stopping, "its removal does not come to an end");
    }
    Decision::new(Action::None, ServiceState::Stopping, "is being removed").wake_at(asked_again)
}

/// The engine could not remove it, and does not try again by itself.
fn dead(c: &ContainerSeen) -> Decision {
    let remove = Action::Remove { id: c.id.clone() };
    Decision::new(remove, ServiceState::Stopping, "the engine could not remove it")
}

/// The node that was here is no more, which the GCS is told once.
fn node_ended(s: &Situation<'_>, m: &mut Memory, why: &str) {
    if !std::mem::take(&mut m.seen_to_end) {
        m.untold = s.is_ray_node.then(|| format!("labd: {why}"));
    }
}

/// The container has ended, as the kernel says; what follows waits until the engine says so, too.
fn ending(s: &Situation<'_>, m: &mut Memory, now: Now, state: ServiceState, why: &str) -> Decision {
    node_ended(s, m, why);
    m.seen_to_end = true;
    tell(s, m, state, why).unwrap_or_else(|| Decision::new(Action::None, state, why).wake_at(now.moment.plus(CLEARED)))
}

/// The GCS is told before anything takes the dead node's place.
fn tell(s: &Situation<'_>, m: &Memory, state: ServiceState, why: &str) -> Option<Decision> {
    let reason = m.untold.clone().filter(|_| s.gcs)?;
    Some(Decision::new(Action::TellGcs { reason }, state, why))
}

/// Nothing is there, and something should be.
fn absent(s: &Situation<'_>, m: &mut Memory, now: Now) -> Decision {
    let asked = matches!(m.ending, Some(Ending::Asked(_)));
    m.ready = None;
    m.failing_since = None;
    m.adopted = false;
    m.ending = None;
    m.restart = false;
    let ended = (m.ran && !asked).then(|| {
        let why = "its container was removed".to_owned();
        m.last_failure = Some(why.clone());
        Ended { cause: Cause::Gone, why, at: s.last_event.map_or(now.wall, |at| at.min(now.wall)) }
    });
    gone(s, m);
    let mut decision = make(s, m, now);
    decision.ended = ended;
    decision
}

/// The way from nothing to a container.
fn make(s: &Situation<'_>, m: &Memory, now: Now) -> Decision {
    use ServiceState as S;
    if let Some(decision) = tell(s, m, S::Starting, "the GCS is told of the node that was here") {
        return decision;
    }
    if let Some(wait) = backing_off(m, now) {
        return wait;
    }
    match s.image {
        Image::Present => Decision::new(Action::Create, S::Starting, m.explain("its container is made")),
        Image::Preparing(detail) => Decision::new(Action::PrepareImage, S::Preparing, detail.clone()),
        Image::Unavailable(reason) => Decision::new(Action::PrepareImage, S::Unavailable, reason.clone()),
    }
}

/// A container of ours is there, and should run.
fn present(s: &Situation<'_>, m: &mut Memory, now: Now, c: &ContainerSeen) -> Decision {
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
        RunState::Created if !m.whole => remove("it was not made to the end"),
        RunState::Created => {
            tell(s, m, S::Starting, "the GCS is told of the node that was here").unwrap_or_else(|| start(s, m, now, c))
        }
        RunState::Running { started_at } => {
            let missed = missed_end(m, c, *started_at);
            let mut decision = running(s, m, now, c, *started_at, outdated);
            decision.ended = decision.ended.or(missed);
            decision
        }
        RunState::Ending => {
            let asked = matches!(m.ending, Some(Ending::Asked(_)));
            ending(s, m, now, if asked { S::Stopping } else { S::Backoff }, "its first process has ended")
        }
        RunState::Exited { code, oom, error, finished_at } => {
            // The engine says of any exit that memory ran out, once it did in that run, however long before.
            let oom = *oom && s.oom.is_none_or(|at| finished_at.since(at) <= oom::EXPLAINS);
            let exit = || exit_words(s.name, *code, oom, error);
            let uncounted = m.counted != exit_of(c);
            if uncounted
                && m.ending.is_none()
                && let Some(wait) = perhaps_stopped(s, m, now, c, *finished_at)
            {
                return wait;
            }
            m.ready = None;
            m.failing_since = None;
            m.adopted = false;
            m.ran = false;
            // Whoever asked for a restart gets it by this.
            m.restart = false;
            let ending = m.ending.clone();
            let asked = matches!(ending, Some(Ending::Asked(_)));
            let with_engine = ending.is_none() && s.away.is_some_and(|away| away.explains(*finished_at));
            let why = match &ending {
                Some(Ending::Hung(reason) | Ending::Lost(reason)) => reason.clone(),
                Some(Ending::Asked(reason)) => (*reason).to_owned(),
                _ if with_engine => format!("ended with the container engine ({})", exit()),
                _ => exit(),
            };
            let mut ended = None;
            if uncounted {
                m.counted = exit_of(c);
                node_ended(s, m, &why);
                if !asked {
                    m.last_failure = Some(why.clone());
                    // The engine's end is not the service's failure: nothing waits for what it did not do wrong.
                    if !with_engine && !matches!(ending, Some(Ending::Lost(_))) {
                        m.backoff.fail(now.moment, s.seed);
                        if s.spare_worker && m.backoff.streak() == 1 {
                            m.backoff.not_before(now.moment.plus(YIELD_TO_RECOVERY));
                        }
                    }
                }
                // A hang was told when it was found, and what could not even be started has not died.
                if ending.is_none() && error.is_empty() {
                    let cause = match () {
                        () if oom => Cause::Oom,
                        () if with_engine => Cause::Gone,
                        () => Cause::Exit,
                    };
                    ended = Some(Ended { cause, why: why.clone(), at: *finished_at });
                }
            }
            let state = if asked { S::Stopping } else { S::Backoff };
            let mut decision = if let Some(decision) = tell(s, m, state, &why) {
                decision
            } else if renewable {
                remove("its settings changed")
            } else if matches!(ending, Some(Ending::Hung(_) | Ending::Lost(_))) {
                remove(&why)
            } else {
                start(s, m, now, c)
            };
            decision.ended = ended;
            decision
        }
    }
}

/// Waits with an exit that may turn out to be somebody's `docker stop`: the engine says so only afterwards.
fn perhaps_stopped(
    s: &Situation<'_>,
    m: &mut Memory,
    now: Now,
    c: &ContainerSeen,
    finished_at: Timestamp,
) -> Option<Decision> {
    let ended = began(&mut m.end, c, finished_at, now);
    let touched = s.touched.filter(|t| t.id == c.id)?;
    let stopped = touched.stopped.is_some_and(|at| at >= finished_at);
    let signalled = touched.signalled.is_some_and(|at| may_have_ended_by(s, at, finished_at));
    let until = match (stopped, signalled) {
        (true, _) => ended.plus(STOP_VERDICT),
        (false, true) => ended.plus(STOP_WORD),
        (false, false) => return None,
    };
    if now.moment >= until {
        return None;
    }
    let reason = "ended after a signal by hand; it shows in a moment whether it was stopped";
    Some(Decision::new(Action::None, ServiceState::Stopping, reason).wake_at(until))
}

/// The moment at which a run or an end of a container began: found out when it is first seen, and kept, so that a clock that
/// is set later makes no wait longer or shorter.
fn began(known: &mut Option<(String, Timestamp, Moment)>, c: &ContainerSeen, at: Timestamp, now: Now) -> Moment {
    match known {
        Some((id, same, began)) if *id == c.id && *same == at => *began,
        _ => known.insert((c.id.clone(), at, now.moment_of(at))).2,
    }
}

/// Whether a signal at `at` can be what the container ended by: a stop ends within its timeout, one long before was
/// something else.
fn may_have_ended_by(s: &Situation<'_>, at: Timestamp, finished_at: Timestamp) -> bool {
    finished_at.since(at) <= s.stop_timeout + STOP_WORD
}

impl Away {
    /// Whether a container that ended then ended because the engine did.
    fn explains(self, finished_at: Timestamp) -> bool {
        // One that is back before it went saw its clock being set back.
        let before = |to: Timestamp| to < self.from || finished_at <= to.plus(ENGINE_BEGINS);
        finished_at.plus(ENGINE_ENDS) >= self.from && self.to.is_none_or(before)
    }
}

fn running(
    s: &Situation<'_>,
    m: &mut Memory,
    now: Now,
    c: &ContainerSeen,
    started_at: Timestamp,
    outdated: bool,
) -> Decision {
    use ServiceState as S;
    // Wished for until the container is seen not to run: the stop may fail.
    if m.restart {
        let why = "restarted by hand";
        m.ending = Some(Ending::Asked(why));
        return Decision::new(Action::Stop { id: c.id.clone() }, S::Stopping, why).because(Ended::asked(why, now.wall));
    }
    if outdated {
        match (s.image, &s.turn) {
            (Image::Present, Turn::Now) => {
                let why = "recreated for its new settings";
                m.ending = Some(Ending::Asked(why));
                let stop = Action::Stop { id: c.id.clone() };
                return Decision::new(stop, S::Stopping, "its settings changed").because(Ended::asked(why, now.wall));
            }
            // The old one serves until the new one's image is there.
            (Image::Preparing(_) | Image::Unavailable(_), Turn::Now) => {
                let mut decision = serving(s, m, now, c, started_at);
                if decision.action == Action::None {
                    decision.action = Action::PrepareImage;
                    decision.reason = "its settings changed; it is recreated once its new image is there".into();
                }
                return decision;
            }
            (_, Turn::After(other)) => {
                let mut decision = serving(s, m, now, c, started_at);
                if decision.state == S::Ready {
                    decision.reason = format!("its settings changed; it is recreated after {other}");
                }
                return decision;
            }
        }
    }
    serving(s, m, now, c, started_at)
}

/// The end of a run that was followed by another between two looks, such as a `docker restart` while the engine is slow: what
/// ran in it died all the same.
fn missed_end(m: &mut Memory, c: &ContainerSeen, started_at: Timestamp) -> Option<Ended> {
    let before = m.run_seen.replace((c.id.clone(), started_at));
    let other = before.is_some_and(|(id, at)| id == c.id && at != started_at);
    if !other || !m.ran || m.ending.is_some() {
        return None;
    }
    let why = "its container ended and was started again by somebody else than labd".to_owned();
    m.last_failure = Some(why.clone());
    Some(Ended { cause: Cause::Exit, why, at: c.last_end.unwrap_or(started_at) })
}

/// Whether a running container does its work.
fn serving(s: &Situation<'_>, m: &mut Memory, now: Now, c: &ContainerSeen, started_at: Timestamp) -> Decision {
    use ServiceState as S;
    if m.ready.is_some_and(|(start, _)| start != started_at) {
        m.ready = None;
        m.failing_since = None;
    }
    // What ended before this start is history: an exit of this container from now on is a new one.
    m.ending = None;
    m.untold = None;
    m.seen_to_end = false;
    m.ran = true;
    match (s.health, m.ready) {
        // Counted and backed off from like a crash: where another container does not help, it keeps failing.
        (Health::Gone { reason, since }, _) => {
            let mut decision = kill(m, c, Ending::Hung(reason.clone()), *since);
            decision.ended = decision.ended.map(|ended| Ended { cause: Cause::Gpu, ..ended });
            decision
        }
        (Health::Passing, ready) => {
            // Health is counted from the last trouble.
            let since = ready.filter(|_| m.failing_since.is_none()).map_or(now.moment, |(_, since)| since);
            m.failing_since = None;
            m.ready = Some((started_at, since));
            let reason = m.explain("");
            let decision = Decision::new(Action::None, S::Ready, reason);
            match m.backoff.healthy(now.moment.since(since)) {
                Some(enough) => decision.wake_at(since.plus(enough)),
                None => decision,
            }
        }
        (Health::Unknown, Some(_)) => {
            // What cannot be asked is not known to fail: the clock starts anew.
            m.failing_since = None;
            Decision::new(Action::None, S::Ready, m.explain(""))
        }
        (Health::Failing { reason, since, alive }, Some(_)) => {
            // What was alive and is not any more gets its time from then on.
            let same = m.failing_since.filter(|(_, before)| before == alive);
            let (since, _) = *m.failing_since.insert(same.unwrap_or((*since, *alive)));
            if !s.kill_silent {
                return silent(s, reason);
            }
            let patience = patience(*alive);
            let hung_at = since.plus(patience);
            if now.moment >= hung_at {
                let at = now.wall_at(since);
                return kill(m, c, Ending::Hung(format!("hung: {reason} for {}", human(patience))), at);
            }
            Decision::new(Action::None, S::Unhealthy, reason.clone()).wake_at(hung_at)
        }
        (Health::Lost { reason }, Some(_)) => kill(m, c, Ending::Lost(reason.clone()), now.wall),
        (health, None) => {
            let begun = began(&mut m.run, c, started_at, now);
            let deadline = begun.plus(s.start_deadline);
            let starting = Decision::new(Action::None, S::Starting, m.explain("started"));
            match health {
                // After labd's own restart the deadline has long passed: one that is busy just then is not hung.
                Health::Failing { reason, since, alive } => {
                    let hung_at = deadline.max(since.plus(patience(*alive)));
                    if now.moment >= hung_at && m.adopted && !s.kill_silent {
                        return silent(s, reason);
                    }
                    if now.moment >= hung_at {
                        let reason = format!("not ready {} after its start: {reason}", human(now.moment.since(begun)));
                        return kill(m, c, Ending::Hung(reason), now.wall_at(*since));
                    }
                    starting.wake_at(hung_at)
                }
                Health::Lost { reason } if now.moment >= deadline => kill(m, c, Ending::Lost(reason.clone()), now.wall),
                // Whether it is ready, or whose fault it is that it is not, cannot be told while the GCS is away.
                Health::Unknown => match &s.unmet {
                    Some(unmet) => Decision::new(Action::None, S::Waiting, m.explain(unmet)),
                    None if now.moment >= deadline => starting,
                    None => starting.wake_at(deadline),
                },
                _ => starting.wake_at(deadline),
            }
        }
    }
}

/// How long it may be silent.
const fn patience(alive: bool) -> Duration {
    if alive { HUNG_ALTHOUGH_ALIVE } else { HUNG_AFTER }
}

/// It is silent, and not killed for that.
fn silent(s: &Situation<'_>, reason: &str) -> Decision {
    let why = format!("{reason}; `labd restart {}` ends it with all that runs in it", s.name);
    Decision::new(Action::None, ServiceState::Unhealthy, why)
}

fn kill(m: &mut Memory, c: &ContainerSeen, ending: Ending, since: Timestamp) -> Decision {
    let reason = match &ending {
        Ending::Asked(reason) => (*reason).to_owned(),
        Ending::Hung(reason) | Ending::Lost(reason) => reason.clone(),
    };
    m.ending = Some(ending);
    let mut decision = Decision::new(Action::Kill { id: c.id.clone() }, ServiceState::Stopping, reason.clone());
    decision.ended = Some(Ended { cause: Cause::Hang, why: reason, at: since });
    decision
}

/// A container that does not run is started when nothing speaks against it.
fn start(s: &Situation<'_>, m: &Memory, now: Now, c: &ContainerSeen) -> Decision {
    use ServiceState as S;
    if m.unfit.as_ref() == Some(&c.id) {
        // A network that was made anew is another one to the engine, under the same name.
        return Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, m.explain("made anew"));
    }
    if let Some(wait) = backing_off(m, now) {
        return wait;
    }
    let fresh = c.run == RunState::Created;
    if let Some(unmet) = &s.unmet {
        return Decision::new(Action::None, S::Waiting, m.explain(unmet));
    }
    if m.backoff.is_loop(now.moment) && !fresh {
        // Starting it again did not help four times: what is wrong may be in the container itself. It stays until the next
        // try, so that its output can be read.
        return Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, m.explain("made anew"));
    }
    let again = m.backoff.streak() > 0;
    let reason = if again { m.explain("started again") } else { m.explain("started") };
    Decision::new(Action::Start { id: c.id.clone(), again }, S::Starting, reason)
}

fn backing_off(m: &Memory, now: Now) -> Option<Decision> {
    let at = m.backoff.next_try(now.moment)?;
    let (state, why) = failing(m, now);
    Some(Decision::new(Action::None, state, why).wake_at(at))
}

/// What is shown of a service that fails.
fn failing(m: &Memory, now: Now) -> (ServiceState, String) {
    let why = m.last_failure.as_deref().unwrap_or("failed");
    if m.backoff.is_loop(now.moment) {
        (ServiceState::CrashLoop, format!("{why}; keeps failing, tried once a minute"))
    } else {
        (ServiceState::Backoff, why.to_owned())
    }
}

impl Memory {
    /// `what`, with the failure that led here.
    fn explain(&self, what: &str) -> String {
        match (&self.last_failure, what) {
            (Some(failure), "") => format!("restarted: {failure}"),
            (Some(failure), what) => format!("{what} after: {failure}"),
            (None, what) => what.to_owned(),
        }
    }
}

/// How a container ended, in words.
fn exit_words(service: &str, code: i64, oom: bool, error: &str) -> String {
    if !error.is_empty() {
        return format!("could not be started: {}", error.trim());
    }
    if oom {
        let remedy =
            crate::incident::memory_setting(service).map(|s| format!(": raise `{s}` in labd.toml")).unwrap_or_default();
        return format!("container exited {code} (out of memory{remedy})");
    }
    let meaning = match code {
        137 => " (SIGKILL)",
        143 => " (SIGTERM)",
        139 => " (segmentation fault)",
        134 => " (aborted)",
        127 => " (its program was not found in the image)",
        _ => "",
    };
    format!("container exited {code}{meaning}")
}
