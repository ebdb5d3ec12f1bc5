//! Incidents of this lab: opened, followed until the service is back, and put in words. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use super::decide::Termination;
use crate::{
    incident::{Cause, Incident, Interrupted, KEPT, Order},
    time::{Timestamp, human},
};

/// Number of incidents kept of what happened inside one living container.
const INSIDE_KEPT: usize = 10;

/// Newest incidents, and which of them have something new to tell.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    /// Incidents, oldest first, at most [`KEPT`].
    all: Vec<Incident>,
    /// Incidents changed since the last [`Self::news`]: time of death and service.
    changed: BTreeSet<(Timestamp, String)>,
    /// Start of each service's container that was seen running last.
    runs: BTreeMap<String, Timestamp>,
    /// Start of the run that each service's newest incident ended; absent for one that an earlier labd opened.
    ended: BTreeMap<String, Timestamp>,
}

/// Changes since the last time they were asked for.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Every incident that changed, as it is now.
    pub(super) changed: Vec<Incident>,
    /// Every incident that is kept, oldest first.
    pub(super) all: Vec<Incident>,
}

impl Incidents {
    /// Incidents from the journal, oldest first.
    pub(super) fn new(all: Vec<Incident>) -> Self {
        Self { all, ..Self::default() }
    }

    /// Opens an incident for a service that ended. Returns an incident that this one cuts short: the service ran again
    /// and was not ready yet.
    pub(super) fn open(&mut self, service: &str, ended: Termination, now: Timestamp) -> Option<Incident> {
        let mut cut_short = None;
        if let Some(last) = self.last(service).filter(|i| i.ready_at.is_none()) {
            // One in the future was before the clock was set back.
            let known = last.died_at >= ended.at && last.died_at <= now;
            if last.running_at.is_none() || known {
                // It has not been back meanwhile: the same incident, seen again.
                return None;
            }
            cut_short = Some(last.clone());
        }
        match self.runs.get(service) {
            Some(&run) => self.ended.insert(service.to_owned(), run),
            None => self.ended.remove(service),
        };
        self.changed.insert((ended.at, service.to_owned()));
        let order = Order { begun: self.next_place(), over: 0 };
        self.all.push(Incident {
            service: service.to_owned(),
            cause: ended.cause,
            why: ended.why,
            died_at: ended.at,
            noticed_at: now,
            running_at: None,
            ready_at: None,
            training: Vec::new(),
            order,
        });
        let excess = self.all.len().saturating_sub(KEPT);
        self.all.drain(..excess);
        cut_short
    }

    /// Adds what happened inside a service's container, which lives on: over as it begins. Of one service's the newest
    /// [`INSIDE_KEPT`] are kept, so that a container that thrashes does not push out what died.
    pub(super) fn inside(&mut self, incident: Incident) {
        let same = |i: &Incident| i.service == incident.service && i.cause == incident.cause;
        // Before any is removed: a place is never given twice.
        let place = self.next_place();
        if self.all.iter().filter(|i| same(i)).count() >= INSIDE_KEPT
            && let Some(oldest) = self.all.iter().position(same)
        {
            self.all.remove(oldest);
        }
        self.changed.insert((incident.died_at, incident.service.clone()));
        self.all.push(Incident { order: Order { begun: place, over: place }, ..incident });
        let excess = self.all.len().saturating_sub(KEPT);
        self.all.drain(..excess);
    }

    /// Follows a service by what is observed now. Returns its incident when it is over by this.
    pub(super) fn follow(
        &mut self,
        service: &str,
        running: Option<Timestamp>,
        ready: bool,
        now: Timestamp,
    ) -> Option<Incident> {
        if let Some(at) = running {
            self.runs.insert(service.to_owned(), at);
        }
        let ended = self.ended.get(service).copied();
        let place = self.next_place();
        let last = self.last(service).filter(|i| i.ready_at.is_none())?;
        // Another run than the one that ended. Where that is not known the times tell, unless the clock was set back since.
        let again = running.filter(|&at| ended.map_or(at > last.died_at || last.died_at > now, |run| at != run));
        if last.running_at.is_none() && again.is_some() {
            last.running_at = again;
        } else if last.running_at.is_none() || !ready {
            return None;
        }
        let over = ready && again.is_some();
        if over {
            last.ready_at = Some(now);
            last.order.over = place;
        }
        let (key, last) = ((last.died_at, last.service.clone()), last.clone());
        self.changed.insert(key);
        over.then_some(last)
    }

    /// Lets `change` add what it knows, such as training that was interrupted; it returns whether it added anything.
    pub(super) fn amend(&mut self, mut change: impl FnMut(&mut Incident) -> bool) {
        for incident in &mut self.all {
            if change(incident) {
                self.changed.insert((incident.died_at, incident.service.clone()));
            }
        }
    }

    /// Changes since the last call, if there are any.
    pub(super) fn news(&mut self) -> Option<News> {
        let keys = std::mem::take(&mut self.changed);
        if keys.is_empty() {
            return None;
        }
        let is_new = |i: &&Incident| keys.iter().any(|(at, service)| *at == i.died_at && *service == i.service);
        Some(News { changed: self.all.iter().filter(is_new).cloned().collect(), all: self.all.clone() })
    }

    /// The newest `n` incidents that nobody asked for, newest first.
    pub(super) fn newest(&self, n: usize) -> Vec<Incident> {
        self.all.iter().rev().filter(|i| i.cause != Cause::Asked).take(n).cloned().collect()
    }

    /// Place after every one that was given: what is removed is never the newest.
    fn next_place(&self) -> u64 {
        Order::newest(&self.all) + 1
    }

    fn last(&mut self, service: &str) -> Option<&mut Incident> {
        self.all.iter_mut().rev().find(|i| i.service == service && i.cause.ends())
    }
}

/// Effect of an incident on one training run that trains again, in one line.
pub(super) fn training_in_words(i: &Incident, t: &Interrupted, training_at: Timestamp) -> String {
    let died = match i.cause {
        Cause::Asked => format!("was {}", i.why),
        // Its worker is drained from then on.
        Cause::Gpu => "lost its GPU".to_owned(),
        _ => "died".to_owned(),
    };
    let mut line =
        format!("run {} trains again {} after {} {died}", t.run, human(training_at.since(i.died_at)), i.service);
    // Writing to a string cannot fail.
    let _ = match (&t.checkpoint, t.lost_ms) {
        (Some(checkpoint), Some(lost)) => {
            write!(line, ", from {checkpoint}; {} of work are done again", human(Duration::from_millis(lost)))
        }
        (None, Some(lost)) => {
            write!(line, ", from the beginning; {} of work are lost", human(Duration::from_millis(lost)))
        }
        (_, None) => Ok(()),
    };
    line
}

/// Incident in one line; every time counts from the death.
pub(super) fn in_words(i: &Incident) -> String {
    if !i.cause.ends() {
        return format!("{}; the container lives on", i.why);
    }
    let after = |at: Timestamp| human(at.since(i.died_at));
    let noticed = (i.cause != Cause::Asked).then(|| format!("noticed after {}", after(i.noticed_at)));
    let running = i
        .running_at
        .map_or_else(|| "not running again yet".to_owned(), |at| format!("running again after {}", after(at)));
    let ready = match (i.running_at, i.ready_at) {
        (Some(_), Some(at)) => Some(format!("ready after {}", after(at))),
        (Some(_), None) => Some("ended again before it was ready".to_owned()),
        (None, _) => None,
    };
    let steps: Vec<String> = noticed.into_iter().chain([running]).chain(ready).collect();
    format!("{}; {}", i.why, steps.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn exit(ms: i64) -> Termination {
        Termination { cause: Cause::Exit, why: "container exited 137 (SIGKILL)".into(), at: at(ms) }
    }

    fn inside(ms: i64) -> Incident {
        Incident {
            service: "w".into(),
            cause: Cause::OomInside,
            why: "out of memory".into(),
            died_at: at(ms),
            noticed_at: at(ms),
            running_at: Some(at(ms)),
            ready_at: Some(at(ms)),
            training: Vec::new(),
            order: Order::default(),
        }
    }

    #[test]
    fn it_is_followed_until_the_service_is_ready_and_then_over() {
        let mut all = Incidents::default();
        assert_eq!(all.open("w", exit(1_000), at(1_040)), None);
        assert_eq!(all.news().expect("it is new").changed.len(), 1);
        assert!(all.news().is_none(), "told once");
        assert_eq!(all.follow("w", Some(at(500)), true, at(1_050)), None, "that run is the one that ended");
        assert_eq!(all.follow("w", None, false, at(1_100)), None);
        assert_eq!(all.follow("w", Some(at(1_310)), false, at(1_320)), None);
        let over = all.follow("w", Some(at(1_310)), true, at(4_100)).expect("it is over");
        assert_eq!(
            in_words(&over),
            "container exited 137 (SIGKILL); noticed after 40 ms, running again after 310 ms, ready after 3.1 s"
        );
        assert_eq!(all.follow("w", Some(at(1_310)), true, at(9_000)), None, "said once");
        assert_eq!(all.newest(9), [over]);
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_no_incident_open() {
        for known in [true, false] {
            let mut all = Incidents::default();
            if known {
                all.follow("w", Some(at(3_000_000)), true, at(3_500_000));
            }
            all.open("w", exit(3_600_000), at(3_600_040));
            // An hour back: the container is started again long before its death.
            assert_eq!(all.follow("w", known.then(|| at(3_000_000)), false, at(100)), None);
            assert_eq!(all.follow("w", Some(at(310)), false, at(320)), None);
            let over = all.follow("w", Some(at(310)), true, at(4_100)).expect("it is over");
            assert_eq!((over.running_at, over.ready_at), (Some(at(310)), Some(at(4_100))));
            all.open("w", exit(60_000), at(60_040));
            assert_eq!(all.newest(9).len(), 2, "the next death is one of its own");
        }
    }

    #[test]
    fn what_was_asked_for_is_told_quietly() {
        let mut all = Incidents::default();
        all.open("w", Termination { cause: Cause::Asked, why: "restarted by hand".into(), at: at(1_000) }, at(1_000));
        assert_eq!(all.newest(9), [], "nothing died");
        all.follow("w", Some(at(3_310)), false, at(3_320));
        let over = all.follow("w", Some(at(3_310)), true, at(5_100)).expect("it is over");
        assert_eq!(in_words(&over), "restarted by hand; running again after 2.3 s, ready after 4.1 s");
        let run = Interrupted { run: "food11".into(), training_at: Some(at(8_000)), checkpoint: None, lost_ms: None };
        let line = training_in_words(&over, &run, at(8_000));
        assert_eq!(line, "run food11 trains again 7.0 s after w was restarted by hand");
        let quarantined = Incident { cause: Cause::Gpu, ..over };
        let line = training_in_words(&quarantined, &run, at(8_000));
        assert_eq!(line, "run food11 trains again 7.0 s after w lost its GPU", "it trained on for a while");
    }

    #[test]
    fn one_that_dies_again_on_its_way_back_is_cut_short() {
        let mut all = Incidents::default();
        all.open("w", exit(1_000), at(1_040));
        assert_eq!(all.open("w", exit(1_000), at(1_060)), None, "the same death, seen twice");
        all.follow("w", Some(at(1_310)), false, at(1_320));
        let cut = all.open("w", exit(2_000), at(2_010)).expect("the first one");
        assert!(in_words(&cut).ends_with("running again after 310 ms, ended again before it was ready"));
        assert_eq!(all.newest(9).len(), 2);
    }

    #[test]
    fn beginnings_and_ends_have_their_place_in_one_order() {
        let mut all = Incidents::default();
        all.open("w", exit(1_000), at(1_040));
        all.open("head", exit(900), at(1_050));
        all.follow("head", Some(at(1_310)), true, at(1_320));
        all.inside(inside(800));
        all.follow("w", Some(at(1_310)), true, at(1_400));
        let order: Vec<(&str, u64, u64)> =
            all.all.iter().map(|i| (i.service.as_str(), i.order.begun, i.order.over)).collect();
        assert_eq!(order, [("w", 1, 5), ("head", 2, 3), ("w", 4, 4)]);
        let mut later = Incidents::new(all.all);
        later.open("w", exit(2_000), at(2_010));
        assert_eq!(later.newest(1)[0].order.begun, 6, "after what was there");
    }

    #[test]
    fn what_happened_inside_a_living_container_changes_nothing_of_its_own_incidents() {
        let mut all = Incidents::default();
        all.open("w", exit(1_000), at(1_040));
        all.news();
        all.inside(inside(1_100));
        let second = Order { begun: 2, over: 2 };
        assert_eq!(all.news().expect("it is new").changed, [Incident { order: second, ..inside(1_100) }]);
        all.follow("w", Some(at(1_310)), false, at(1_320));
        assert!(all.follow("w", Some(at(1_310)), true, at(4_100)).is_some(), "the exit is followed all the same");
        assert_eq!(in_words(&inside(1)), "out of memory; the container lives on");
        for n in 0..50 {
            all.inside(inside(5_000 + n));
        }
        assert_eq!(all.newest(1_000).len(), 1 + INSIDE_KEPT, "a thrashing container pushes nothing else out");
        assert_eq!(all.newest(1)[0].died_at, at(5_049));
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut all = Incidents::default();
        for n in 0..150 {
            all.open(&format!("s{n}"), exit(n), at(n));
        }
        assert_eq!((all.newest(1_000).len(), all.newest(1)[0].service.as_str()), (KEPT, "s149"));
    }
}
