//! Service as the supervisor's loop knows it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, task::AbortHandle};

use super::{
    decide::{Health, History, OutsideActions, rollout::Work},
    oom,
    supervisor::SLOW_ANSWER,
};
use crate::{
    engine::{Observed, ObservedContainer, RunState},
    ray::RayView,
    snapshot::ServiceState,
    spec::{Change, Kind, ServiceSpec},
    time::{Moment, Timestamp},
};

/// Service, planned or left over.
pub(super) struct Entry {
    /// Plan of the service; absent for a container of ours that no plan knows any more.
    pub(super) spec: Option<Arc<ServiceSpec>>,
    pub(super) hash: String,
    /// Fingerprint of the settings with which, once they change, the old container does not work any more.
    pub(super) hard: String,
    /// Fingerprint of the settings that a person wants now, whatever runs.
    pub(super) applied: Option<String>,
    /// Fingerprint of the settings that the container does not have yet, and the moment since when.
    pub(super) changed: Option<(String, Moment)>,
    /// Work that ran on it when it was recreated, until it is ready again.
    pub(super) interrupted: Option<Work>,
    pub(super) seen: Option<Observed>,
    /// Container whose first process has ended, and since when it ran: the engine calls it running for another moment.
    pub(super) over: Option<(String, Timestamp)>,
    /// Whether the engine did not answer the last time: the observation may be outdated, so nothing is done about it.
    pub(super) stale: bool,
    pub(super) touched: Option<OutsideActions>,
    pub(super) own_stop: Option<OwnStop>,
    pub(super) shortage: Option<oom::Shortage>,
    /// Moment since which an observation is under way.
    pub(super) observing: Option<Moment>,
    /// Moment at which the newest observation that succeeded was begun.
    pub(super) looked_at: Option<Moment>,
    /// Time at which the newest observation that found the container running was begun.
    pub(super) ran_at: Timestamp,
    /// Time of the newest event of the container.
    pub(super) last_event: Option<Timestamp>,
    /// Whether something happened since the observation or the step under way began.
    pub(super) look_again: bool,
    /// Whether a step is under way.
    pub(super) acting: bool,
    /// Fault of the worker's GPU that was known when labd last started the container: it is no fault of that run.
    pub(super) started_after: Option<Timestamp>,
    /// Whether the lab's network was found to be there, for the next step.
    pub(super) network_there: bool,
    /// Kinds of steps that failed, which the journal was told of, since the last one succeeded.
    pub(super) told: BTreeSet<&'static str>,
    pub(super) not_before: Option<Moment>,
    pub(super) health: Health,
    pub(super) prober: Option<Prober>,
    pub(super) memory: History,
    pub(super) tell_tries: u32,
    pub(super) state: ServiceState,
    pub(super) since: Timestamp,
    pub(super) reason: String,
    /// Reason in the journal for a service that was ready before labd was restarted, kept while it is shown what it waits
    /// for.
    pub(super) journaled: Option<String>,
    pub(super) progress: Option<String>,
    pub(super) next_try: Option<Timestamp>,
    pub(super) wake: Option<Moment>,
    /// Whether nothing was decided yet in this daemon's life.
    pub(super) fresh: bool,
    pub(super) recorded: Option<ServiceState>,
}

impl Entry {
    pub(super) fn new(spec: Option<Arc<ServiceSpec>>, now: Timestamp) -> Self {
        Self {
            hash: spec.as_ref().map(|s| s.container.hash()).unwrap_or_default(),
            hard: spec.as_ref().map(|s| s.container.hard_hash()).unwrap_or_default(),
            applied: None,
            changed: None,
            interrupted: None,
            spec,
            seen: None,
            over: None,
            stale: false,
            touched: None,
            own_stop: None,
            shortage: None,
            observing: None,
            looked_at: None,
            ran_at: Timestamp::default(),
            last_event: None,
            look_again: false,
            acting: false,
            started_after: None,
            network_there: false,
            told: BTreeSet::new(),
            not_before: None,
            health: Health::Unknown,
            prober: None,
            memory: History::default(),
            tell_tries: 0,
            state: ServiceState::Waiting,
            since: now,
            reason: "checking".to_owned(),
            journaled: None,
            progress: None,
            next_try: None,
            wake: None,
            fresh: true,
            recorded: None,
        }
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.spec.as_ref().map(|s| s.kind)
    }

    pub(super) fn container(&self) -> Option<&ObservedContainer> {
        match &self.seen {
            Some(Observed::Ours(c)) => Some(c),
            _ => None,
        }
    }

    pub(super) fn running(&self) -> Option<(&ObservedContainer, Timestamp)> {
        let c = self.container()?;
        match c.run {
            RunState::Running { started_at } => Some((c, started_at)),
            _ => None,
        }
    }

    /// Corrects the engine's observation by what the kernel reported.
    pub(super) fn correct(&mut self) {
        if let Some(Observed::Ours(c)) = &mut self.seen
            && let RunState::Running { started_at } = c.run
            && self.over.as_ref().is_some_and(|(id, since)| *id == c.id && *since == started_at)
        {
            c.run = RunState::Ending;
        }
    }

    /// Time for which the engine has not said what the container does, once that is long.
    pub(super) fn unanswered(&self, now: Moment) -> Option<Duration> {
        self.observing.map(|since| now.since(since)).filter(|&waited| waited >= SLOW_ANSWER)
    }

    /// Difference between its container and the wanted one.
    pub(super) fn change(&self) -> Option<Change> {
        self.container()?.change(&self.hash, &self.hard)
    }

    pub(super) fn ready(&self) -> bool {
        self.state == ServiceState::Ready
    }
}

/// Task that checks the health of one run of a container.
pub(super) struct Prober {
    /// Container, and the time since which it runs.
    pub(super) key: (String, Timestamp),
    /// Channel on which it hears what Ray reports, for as long as it runs.
    pub(super) ray: watch::Sender<Arc<RayView>>,
    pub(super) task: AbortHandle,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Last stop of a container by labd itself, by which its events are told from a stop by hand.
pub(super) struct OwnStop {
    pub(super) id: String,
    pub(super) from: Timestamp,
    /// Time at which it was started again; absent until then.
    pub(super) to: Option<Timestamp>,
}

impl OwnStop {
    /// Stop as the journal keeps it: container and time.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (id, ms) = text.split_once(' ')?;
        Some(Self { id: id.to_owned(), from: Timestamp::from_millis(ms.parse().ok()?), to: None })
    }

    /// Whether it is the reason for an event of `at`, which is told at `now`.
    pub(super) fn covers(&self, id: &str, at: Timestamp, now: Timestamp) -> bool {
        // Our clock and the engine's are the same, read a moment apart. Between times of before and after it was set back
        // there is no telling: it may have been set forward and back since the stop.
        let after = !at.is_of_the_clock_of(self.from, now) || at.plus(Duration::from_secs(1)) >= self.from;
        self.id == id && after && self.to.is_none_or(|to| to.not_before(at, now))
    }

    /// Whether this run, which was started at `again`, is the first that is known to have begun after it. A stop in the future
    /// was before the clock was set back: what runs now was started since, or is about to end by it.
    pub(super) fn is_over(&mut self, again: Timestamp, now: Timestamp) -> bool {
        let over = self.to.is_none() && (self.from > now || (again > self.from && again <= now));
        if over {
            self.to = Some(again);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_labds_own_explains_no_later_stop_even_when_the_clock_was_set_back_meanwhile() {
        let at = |s: i64| Timestamp::from_millis(s * 1_000);
        for (from, started, stopped) in [(100, 110, 200), (4_000, 410, 500), (4_000, 4_010, 500)] {
            let mut own = OwnStop { id: "c".into(), from: at(from), to: None };
            assert!(own.covers("c", at(from), at(started)), "its own");
            assert!(own.is_over(at(started), at(started)));
            assert!(!own.is_over(at(started), at(started)), "once");
            assert!(!own.covers("c", at(stopped), at(stopped)), "somebody else's");
            assert!(own.covers("c", at(from), at(stopped)), "its own, told late");
        }
        let mut own = OwnStop { id: "c".into(), from: at(100), to: None };
        assert!(!own.is_over(at(50), at(101)), "it still runs");
        assert!(own.covers("c", at(103), at(103)));
        let own_of_before = OwnStop { id: "c".into(), from: at(3_700), to: None };
        assert!(own_of_before.covers("c", at(101), at(102)), "the clock was set back before it ended");
        assert!(own.covers("c", at(3_701), at(102)), "the clock was set forward and back meanwhile");
        let mut own = OwnStop { id: "c".into(), from: at(100), to: None };
        assert!(!own.is_over(at(3_700), at(101)), "it still runs, and began before the clock was set back");
    }
}
