//! Holds: a service that a person stopped stays stopped until a person starts it.
use super::Observation;
use crate::{
    engine::{Observed, RunState},
    time::Timestamp,
};

/// Hold on a service: how a person stopped it. It lasts until a person starts the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Stopped with `labd stop`; it may still run.
    Asked,
    /// Stopped with `labd stop`, and seen not to run since.
    Stopped,
    /// Stopped with `docker stop`, or anything that speaks to the engine in the same way.
    ByHand,
}

/// Outside actions on one container that the engine's events tell and its state does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideActions {
    /// Id of the container.
    pub id: String,
    /// Time of the last signal that somebody else than labd sent; SIGKILL is left out, as no stop begins with it.
    pub signalled: Option<Timestamp>,
    /// Time of the last stop by somebody else than labd, or by the engine at its own end.
    pub stopped: Option<Timestamp>,
    /// Time of the last stop by somebody else than labd after which the engine lived on.
    pub by_hand: Option<Timestamp>,
}

/// Hold on the service after this observation. `docker stop` holds it; what runs although it was stopped was started by
/// hand, which releases it. A crash, `docker kill` and `docker rm` change nothing.
pub fn hold(before: Option<Hold>, seen: &Observed, touched: Option<&OutsideActions>, now: Timestamp) -> Option<Hold> {
    let run = match seen {
        Observed::Ours(c) => Some(&c.run),
        Observed::Absent | Observed::Foreign { .. } => None,
    };
    let runs = matches!(run, Some(RunState::Running { .. } | RunState::Paused));
    match (before, seen) {
        (None, Observed::Ours(c)) => {
            let RunState::Exited { finished_at, .. } = c.run else { return None };
            let stop = touched.filter(|t| t.id == c.id).and_then(|t| t.by_hand);
            // The engine says `stop` after the end; one from before a later start has an earlier time than this end.
            stop.is_some_and(|at| at.not_before(finished_at, now)).then_some(Hold::ByHand)
        }
        (None, _) => None,
        (Some(Hold::Asked), _) => Some(if runs { Hold::Asked } else { Hold::Stopped }),
        (Some(Hold::Stopped | Hold::ByHand), _) if runs => None,
        (Some(hold), _) => Some(hold),
    }
}

pub(super) fn held(s: &Observation<'_>, hold: Hold) -> String {
    let how = if hold == Hold::ByHand { " (docker stop)" } else { "" };
    format!("stopped by hand{how}; `labd start {}` or `docker start {}` releases it", s.name, s.container)
}
