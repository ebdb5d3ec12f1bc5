//! Decisions about a container that runs: whether it does its work, and what follows when it does not.
use std::time::Duration;

use super::{
    Action, Decision, FailingSince, HUNG_AFTER, HUNG_ALTHOUGH_ALIVE, Health, History, Image, Observation, PlannedStop,
    Termination, began, rollout::RolloutTurn,
};
use crate::{
    engine::ObservedContainer,
    incident::Cause,
    snapshot::ServiceState,
    time::{Now, Timestamp, human},
};

pub(super) fn running(
    s: &Observation<'_>,
    m: &mut History,
    now: Now,
    c: &ObservedContainer,
    started_at: Timestamp,
    outdated: bool,
) -> Decision {
    use ServiceState as S;
    // Wished for until the container is seen not to run: the stop may fail.
    if m.restart {
        let why = "restarted by hand";
        m.ending = Some(PlannedStop::Asked(why));
        return Decision::new(Action::Stop { id: c.id.clone() }, S::Stopping, why)
            .because(Termination::asked(why, now.wall));
    }
    if outdated {
        match (s.image, &s.turn) {
            (Image::Present, RolloutTurn::Now) => {
                let why = "recreated for its new settings";
                m.ending = Some(PlannedStop::Asked(why));
                let stop = Action::Stop { id: c.id.clone() };
                return Decision::new(stop, S::Stopping, "its settings changed")
                    .because(Termination::asked(why, now.wall));
            }
            // The old one serves until the new one's image is there.
            (Image::Preparing(_) | Image::Unavailable(_), RolloutTurn::Now) => {
                let mut decision = serving(s, m, now, c, started_at);
                if decision.action == Action::None {
                    decision.action = Action::PrepareImage;
                    decision.reason = "its settings changed; it is recreated once its new image is there".into();
                }
                return decision;
            }
            (_, RolloutTurn::After(other)) => {
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

/// End of a run that was followed by another run between two observations, such as a `docker restart` while the engine
/// is slow: what ran in it died all the same.
pub(super) fn missed_end(m: &mut History, c: &ObservedContainer, started_at: Timestamp) -> Option<Termination> {
    let before = m.run_seen.replace((c.id.clone(), started_at));
    let other = before.is_some_and(|(id, at)| id == c.id && at != started_at);
    if !other || !m.ran || m.ending.is_some() {
        return None;
    }
    let why = "its container ended and was started again by somebody else than labd".to_owned();
    m.last_failure = Some(why.clone());
    Some(Termination { cause: Cause::Exit, why, at: c.last_end.unwrap_or(started_at) })
}

/// Decision about a running container, from whether it does its work.
pub(super) fn serving(
    s: &Observation<'_>,
    m: &mut History,
    now: Now,
    c: &ObservedContainer,
    started_at: Timestamp,
) -> Decision {
    use ServiceState as S;
    if m.ready.is_some_and(|(start, _)| start != started_at) {
        m.ready = None;
        m.failing_since = None;
    }
    // What ended before this start is history: an exit of this container from now on is a new one.
    m.ending = None;
    m.death_unreported = None;
    m.seen_to_end = false;
    m.ran = true;
    match (s.health, m.ready) {
        // Counted and backed off from like a crash: where another container does not help, it keeps failing.
        (Health::Gone { reason, since }, _) => {
            let mut decision = kill(m, c, PlannedStop::Hung(reason.clone()), *since);
            decision.ended = decision.ended.map(|ended| Termination { cause: Cause::Gpu, ..ended });
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
            // What cannot be asked is not known to fail: the clock starts again.
            m.failing_since = None;
            Decision::new(Action::None, S::Ready, m.explain(""))
        }
        (Health::Failing { reason, since, good_at, alive }, Some(_)) => {
            let new = FailingSince { since: *since, alive: *alive, good_at: *good_at };
            let failing = *m.failing_since.insert(match m.failing_since {
                Some(known) if known.alive == *alive => known,
                // What was alive and is not any more gets its time from then on.
                Some(known) => FailingSince { good_at: known.good_at, ..new },
                None => new,
            });
            if !s.kill_silent {
                return silent(s, reason);
            }
            let patience = patience(*alive);
            let hung_at = failing.since.plus(patience);
            if now.moment >= hung_at {
                let at = now.wall_at(failing.good_at);
                return kill(m, c, PlannedStop::Hung(format!("hung: {reason} for {}", human(patience))), at);
            }
            Decision::new(Action::None, S::Unhealthy, reason.clone()).wake_at(hung_at)
        }
        (Health::Lost { reason, good_at }, Some(_)) => {
            let good_at = m.failing_since.map_or(*good_at, |failing| failing.good_at);
            kill(m, c, PlannedStop::Lost(reason.clone()), now.wall_at(good_at))
        }
        (health, None) => {
            let begun = began(&mut m.run, c, started_at, now);
            let deadline = begun.plus(s.start_deadline);
            let starting = Decision::new(Action::None, S::Starting, m.explain("started"));
            match health {
                // After labd's own restart the deadline has long passed: one that is busy just then is not hung.
                Health::Failing { reason, since, good_at, alive } => {
                    let hung_at = deadline.max(since.plus(patience(*alive)));
                    if now.moment >= hung_at && m.adopted.is_some() && !s.kill_silent {
                        return silent(s, reason);
                    }
                    if now.moment >= hung_at {
                        let reason = format!("not ready {} after its start: {reason}", human(now.moment.since(begun)));
                        // It may have hung since before it was first asked, which needs the engine: a job that it took along
                        // by then was not lost to its own error.
                        let silent_since = m.adopted.unwrap_or(*good_at);
                        return kill(m, c, PlannedStop::Hung(reason), now.wall_at(silent_since));
                    }
                    starting.wake_at(hung_at)
                }
                Health::Lost { reason, .. } if now.moment >= deadline => {
                    kill(m, c, PlannedStop::Lost(reason.clone()), now.wall)
                }
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

/// Longest silence before a service counts as hung.
pub(super) const fn patience(alive: bool) -> Duration {
    if alive { HUNG_ALTHOUGH_ALIVE } else { HUNG_AFTER }
}

/// Decision about a service that is silent and not killed for that.
pub(super) fn silent(s: &Observation<'_>, reason: &str) -> Decision {
    let why = format!("{reason}; `labd restart {}` ends it with all that runs in it", s.name);
    Decision::new(Action::None, ServiceState::Unhealthy, why)
}

pub(super) fn kill(m: &mut History, c: &ObservedContainer, ending: PlannedStop, since: Timestamp) -> Decision {
    let reason = match &ending {
        PlannedStop::Asked(reason) => (*reason).to_owned(),
        PlannedStop::Hung(reason) | PlannedStop::Lost(reason) => reason.clone(),
    };
    m.ending = Some(ending);
    let mut decision = Decision::new(Action::Kill { id: c.id.clone() }, ServiceState::Stopping, reason.clone());
    decision.ended = Some(Termination { cause: Cause::Hang, why: reason, at: since });
    decision
}
