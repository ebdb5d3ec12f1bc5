//! Decisions about a container that does not run: why it ended, and what follows until it runs again.
use std::time::Duration;

use super::{
    Action, Decision, EngineOutage, History, Image, Observation, PlannedStop, Termination, YIELD_TO_RECOVERY, began,
    exit_of, gone, node_ended, tell,
};
use crate::{
    engine::{ObservedContainer, RunState},
    incident::Cause,
    snapshot::ServiceState,
    supervise::oom,
    time::{Now, Timestamp},
};

/// Decision where there is no container and one is wanted.
pub(super) fn absent(s: &Observation<'_>, m: &mut History, now: Now) -> Decision {
    let asked = matches!(m.ending, Some(PlannedStop::Asked(_)));
    m.ready = None;
    m.failing_since = None;
    m.adopted = None;
    m.ending = None;
    m.restart = false;
    let ended = (m.ran && !asked).then(|| {
        let why = "its container was removed".to_owned();
        m.last_failure = Some(why.clone());
        Termination { cause: Cause::Gone, why, at: s.last_event.map_or(now.wall, |at| at.min(now.wall)) }
    });
    gone(s, m);
    let mut decision = make(s, m, now);
    decision.ended = ended;
    decision
}

/// Next step towards a container where there is none: image, requirements, create.
pub(super) fn make(s: &Observation<'_>, m: &History, now: Now) -> Decision {
    use ServiceState as S;
    if let Some(decision) = tell(s, m, S::Starting, "the GCS is told that the old node is dead") {
        return decision;
    }
    if let Some(wait) = backing_off(m, now) {
        return wait;
    }
    match s.image {
        Image::Present => Decision::new(Action::Create, S::Starting, m.explain("its container is being created")),
        Image::Preparing(detail) => Decision::new(Action::PrepareImage, S::Preparing, detail.clone()),
        Image::Unavailable(reason) => Decision::new(Action::PrepareImage, S::Unavailable, reason.clone()),
    }
}

/// Decision about a container that has ended: why it did, and what follows.
pub(super) fn exited(
    s: &Observation<'_>,
    m: &mut History,
    now: Now,
    c: &ObservedContainer,
    exit: &Exit<'_>,
) -> Decision {
    use ServiceState as S;
    let Exit { code, oom, error, finished_at } = *exit;
    let renewable = c.spec_hash != s.hash && *s.image == Image::Present;
    let remove = |reason: &str| Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, reason);
    // The engine says of any exit that memory ran out, once it did in that run, however long before.
    let oom = oom && s.oom.is_none_or(|at| finished_at.since(at) <= oom::EXPLAINS);
    let exit = || exit_words(s.name, code, oom, error);
    let uncounted = m.counted != exit_of(c);
    if uncounted
        && m.ending.is_none()
        && let Some(wait) = perhaps_stopped(s, m, now, c, finished_at)
    {
        return wait;
    }
    m.ready = None;
    m.failing_since = None;
    m.adopted = None;
    m.ran = false;
    // Whoever asked for a restart gets it by this.
    m.restart = false;
    let ending = m.ending.clone();
    let asked = matches!(ending, Some(PlannedStop::Asked(_)));
    let with_engine = ending.is_none() && s.away.is_some_and(|away| away.explains(finished_at));
    let why = match &ending {
        Some(PlannedStop::Hung(reason) | PlannedStop::Lost(reason)) => reason.clone(),
        Some(PlannedStop::Asked(reason)) => (*reason).to_owned(),
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
            if !with_engine && !matches!(ending, Some(PlannedStop::Lost(_))) {
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
            ended = Some(Termination { cause, why: why.clone(), at: finished_at });
        }
    }
    let state = if asked { S::Stopping } else { S::Backoff };
    let mut decision = if let Some(decision) = tell(s, m, state, &why) {
        decision
    } else if renewable {
        remove("its settings changed")
    } else if matches!(ending, Some(PlannedStop::Hung(_) | PlannedStop::Lost(_))) {
        remove(&why)
    } else {
        start(s, m, now, c)
    };
    decision.ended = ended;
    decision
}

/// Exit of a container as the engine reports it.
pub(super) struct Exit<'a> {
    pub(super) code: i64,
    pub(super) oom: bool,
    pub(super) error: &'a str,
    pub(super) finished_at: Timestamp,
}

/// Waits after an exit that may turn out to be somebody's `docker stop`: the engine says so only afterwards.
pub(super) fn perhaps_stopped(
    s: &Observation<'_>,
    m: &mut History,
    now: Now,
    c: &ObservedContainer,
    finished_at: Timestamp,
) -> Option<Decision> {
    let ended = began(&mut m.end, c, finished_at, now);
    let touched = s.touched.filter(|t| t.id == c.id)?;
    let stopped = touched.stopped.is_some_and(|at| at.not_before(finished_at, now.wall));
    let signalled = touched.signalled.is_some_and(|at| may_have_ended_by(s, at, finished_at, now.wall));
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

/// Whether a signal at `at` can be what the container ended by: a stop ends within its timeout, one long before was
/// something else, and so was one of before the clock was set back.
pub(super) fn may_have_ended_by(s: &Observation<'_>, at: Timestamp, finished_at: Timestamp, now: Timestamp) -> bool {
    at.is_of_the_clock_of(finished_at, now) && finished_at.since(at) <= s.stop_timeout + STOP_WORD
}

impl EngineOutage {
    /// Whether the engine's outage explains that a container ended at that time.
    fn explains(self, finished_at: Timestamp) -> bool {
        // One that is back before it went saw its clock being set back.
        let before = |to: Timestamp| to < self.from || finished_at <= to.plus(ENGINE_BEGINS);
        finished_at.plus(ENGINE_ENDS) >= self.from && self.to.is_none_or(before)
    }
}

/// Waits, after the kernel reported the end of a container, until the engine reports it, too.
pub(super) fn ending(s: &Observation<'_>, m: &mut History, now: Now, state: ServiceState, why: &str) -> Decision {
    node_ended(s, m, why);
    m.seen_to_end = true;
    tell(s, m, state, why).unwrap_or_else(|| Decision::new(Action::None, state, why).wake_at(now.moment.plus(CLEARED)))
}

/// Waits for the engine to remove the container, which takes a moment; asks again when the removal does not end.
pub(super) fn removing(m: &mut History, now: Now, c: &ObservedContainer) -> Decision {
    let asked_again = m.removing_since.get_or_insert(now.moment).plus(REMOVED);
    if now.moment >= asked_again {
        let remove = Action::Remove { id: c.id.clone() };
        return Decision::new(remove, ServiceState::Stopping, "its removal does not finish");
    }
    Decision::new(Action::None, ServiceState::Stopping, "is being removed").wake_at(asked_again)
}

/// Decision about a container that the engine could not remove, and does not try to again by itself.
pub(super) fn dead(c: &ObservedContainer) -> Decision {
    let remove = Action::Remove { id: c.id.clone() };
    Decision::new(remove, ServiceState::Stopping, "the engine could not remove it")
}

/// Starts a container that does not run, when nothing speaks against it.
pub(super) fn start(s: &Observation<'_>, m: &History, now: Now, c: &ObservedContainer) -> Decision {
    use ServiceState as S;
    if m.unfit.as_ref() == Some(&c.id) {
        // A network that was recreated is another one to the engine, under the same name.
        return Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, m.explain("recreated"));
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
        return Decision::new(Action::Remove { id: c.id.clone() }, S::Stopping, m.explain("recreated"));
    }
    let again = m.backoff.streak() > 0;
    let reason = if again { m.explain("started again") } else { m.explain("started") };
    Decision::new(Action::Start { id: c.id.clone(), again }, S::Starting, reason)
}

pub(super) fn backing_off(m: &History, now: Now) -> Option<Decision> {
    let at = m.backoff.next_try(now.moment)?;
    let (state, why) = failing(m, now);
    Some(Decision::new(Action::None, state, why).wake_at(at))
}

/// State and reason shown for a service that fails.
pub(super) fn failing(m: &History, now: Now) -> (ServiceState, String) {
    let why = m.last_failure.as_deref().unwrap_or("failed");
    if m.backoff.is_loop(now.moment) {
        (ServiceState::CrashLoop, format!("{why}; keeps failing, tried once a minute"))
    } else {
        (ServiceState::Backoff, why.to_owned())
    }
}

/// End of a container, in words.
pub(super) fn exit_words(service: &str, code: i64, oom: bool, error: &str) -> String {
    if !error.is_empty() {
        return format!("could not be started: {}", error.trim());
    }
    if oom {
        let remedy =
            crate::services::memory_setting(service).map(|s| format!(": raise `{s}` in labd.toml")).unwrap_or_default();
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

/// Grace after an exit that followed a manual signal: the event of a `docker stop` comes within milliseconds.
pub const STOP_WORD: Duration = Duration::from_secs(1);

/// Further grace, after [`STOP_WORD`], to learn whether the engine lives on, which takes one question to it.
pub const STOP_VERDICT: Duration = Duration::from_secs(8);

/// Time from an engine's end to the moment it is found to be away: it stops listening first and its containers next.
pub(super) const ENGINE_ENDS: Duration = Duration::from_secs(10);

/// Time for which an engine that has just begun clears up what died with its predecessor, before it answers.
pub(super) const ENGINE_BEGINS: Duration = Duration::from_secs(2);

/// Time that an engine takes to clear up after a container and report it: some tenths of a second.
pub(super) const CLEARED: Duration = Duration::from_secs(1);

/// Longest time that an engine may take to remove a container: its layers may be large, and the disk busy.
pub(super) const REMOVED: Duration = Duration::from_mins(1);
