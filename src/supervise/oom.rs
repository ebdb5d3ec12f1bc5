//! Memory that ran out inside containers: how often, when last, and which setting would help. Pure.
//!
//! The engine's `oom` event says that the kernel killed a process of a container for memory. Where that was the container's
//! first process, the exit that follows tells everything. Where it was another one, the container lives on, and nothing else
//! would ever say that a job lost its driver or the dashboard its helper: that is an [`Incident`] which is over at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    config::Bytes,
    incident::{Cause, Incident, OOM_INSIDE, Order},
    services::memory_setting,
    snapshot::{Notice, Severity},
    time::Timestamp,
};

/// Longest pause between kills that count as one burst: the kernel takes several processes when the first was not
/// enough.
const BURST: Duration = Duration::from_secs(3);
/// Grace after a kill for the exit of the container itself, which the engine reports within milliseconds. Short, since a
/// failed job is judged 5 s after its end.
const LIVES_ON: Duration = Duration::from_secs(1);
/// Longest time from a kill to a container's exit that it explains: what watches a container's processes checks every
/// second.
pub(super) const EXPLAINS: Duration = Duration::from_secs(5);
/// Time without another kill after which the shortage is over.
const OVER: Duration = Duration::from_hours(1);
/// Shortest time between two journal entries about the same service.
const SAID_AGAIN: Duration = Duration::from_mins(1);

/// One service's shortage of memory, kept over restarts of labd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shortage {
    /// Container of the last kill.
    container: String,
    /// Beginning of the first burst of kills.
    first: Timestamp,
    /// Beginning of the newest burst of kills.
    burst: Timestamp,
    /// The newest kill.
    last: Timestamp,
    /// Number of bursts since `first`.
    times: u32,
    /// The container's memory limit at that time, in bytes.
    limit: u64,
    /// Whether it is still open if the container lived on after the newest burst.
    open: bool,
    /// Time of the last journal entry.
    said: Option<Timestamp>,
}

impl Shortage {
    /// Shortage after one more kill. An event that was heard before, by an earlier labd, changes nothing.
    pub(super) fn after(before: Option<Self>, container: &str, at: Timestamp, limit: u64) -> Self {
        let container = container.to_owned();
        match before {
            Some(old) if old.container == container && at <= old.last => old,
            Some(old) if at.since(old.last) < OVER && limit <= old.limit => {
                let same = old.container == container && at.since(old.burst) < BURST;
                let (burst, times) = if same { (old.burst, old.times) } else { (at, old.times.saturating_add(1)) };
                Self { container, burst, times, last: at, limit, open: old.open || !same, ..old }
            }
            _ => Self { container, first: at, burst: at, last: at, times: 1, limit, open: true, said: None },
        }
    }

    /// Time of the newest kill in this container.
    pub(super) fn last_in(&self, container: &str) -> Option<Timestamp> {
        (self.container == container).then_some(self.last)
    }

    /// Time until the check whether the container lived on; nothing once that is known. Zero for a kill in the future,
    /// which was before the clock was set back.
    pub(super) fn due_in(&self, now: Timestamp) -> Option<Duration> {
        self.open.then(|| self.burst.plus(LIVES_ON).since(now)).map(|d| if d > LIVES_ON { Duration::ZERO } else { d })
    }

    /// Incident of the newest burst, once it is due. `running` is the container as it was observed since: where it
    /// ended or was started again meanwhile, its exit is the incident, and this is none.
    pub(super) fn judge(
        &mut self,
        service: &str,
        running: Option<(&str, Timestamp)>,
        now: Timestamp,
    ) -> Option<Incident> {
        if self.due_in(now).is_none_or(|d| !d.is_zero()) {
            return None;
        }
        self.open = false;
        let lives = running.is_some_and(|(id, started_at)| id == self.container && started_at <= self.burst);
        lives.then(|| Incident {
            service: service.to_owned(),
            cause: Cause::OomInside,
            why: format!("{OOM_INSIDE}; {}", remedy(service, self.limit)),
            died_at: self.burst,
            noticed_at: now,
            running_at: Some(self.burst),
            ready_at: Some(self.burst),
            training: Vec::new(),
            order: Order::default(),
        })
    }

    /// Whether a journal entry is due for the newest burst; a container that thrashes is told of once a minute.
    pub(super) fn say(&mut self, now: Timestamp) -> Option<String> {
        if self.said.is_some_and(|at| at <= now && now.since(at) < SAID_AGAIN) {
            return None;
        }
        self.said = Some(now);
        let times =
            if self.times > 1 { format!(" ({} since {})", times(self.times), self.first) } else { String::new() };
        Some(times)
    }

    /// Whether nothing need be said any more: long ago, or the limit was raised since.
    pub(super) fn is_over(&self, limit: Option<u64>, now: Timestamp) -> bool {
        now.since(self.last) >= OVER || limit.is_some_and(|limit| limit > self.limit)
    }

    /// Notice for a person.
    pub(super) fn notice(&self, service: &str) -> Notice {
        let text = format!(
            "{service}: out of memory {}, last at {}: processes in it were killed; {}",
            times(self.times),
            self.last,
            remedy(service, self.limit)
        );
        Notice { severity: Severity::Warning, text }
    }
}

fn times(n: u32) -> String {
    match n {
        1 => "once".to_owned(),
        n => format!("{n} times"),
    }
}

fn remedy(service: &str, limit: u64) -> String {
    let now = Bytes::new(limit);
    match memory_setting(service) {
        Some(setting) => format!("raise `{setting}` in labd.toml (now {now})"),
        None => format!("its limit of {now} is labd's own: please report it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    const GIB: u64 = 1 << 30;

    fn kills(times: &[i64]) -> Shortage {
        let all = times.iter().fold(None, |before, &s| Some(Shortage::after(before, "c1", at(s), GIB)));
        all.expect("at least one")
    }

    #[test]
    fn what_the_journal_remembers_of_it_can_be_read_by_the_next_labd() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/golden/memory.json")).expect("JSON");
        crate::golden::holds::<Shortage>(&golden["oom:minio"]);
    }

    #[test]
    fn a_burst_counts_once_and_what_was_heard_before_not_at_all() {
        assert_eq!(kills(&[100, 101, 102]).times, 1);
        assert_eq!(kills(&[100, 101, 104, 200]).times, 3);
        assert_eq!(kills(&[100, 200, 200, 100]).times, 2, "an earlier labd heard them");
        assert_eq!(kills(&[100, 3_699]).times, 2);
        assert_eq!(kills(&[100, 3_700]).times, 1, "an hour later it begins again");
        let raised = Shortage::after(Some(kills(&[100, 200])), "c2", at(300), 2 * GIB);
        assert_eq!((raised.times, raised.limit), (1, 2 * GIB), "and with a higher limit");
    }

    #[test]
    fn it_is_an_incident_of_its_own_only_where_the_container_lives_on() {
        let running = Some(("c1", at(10)));
        let mut living = kills(&[100, 101]);
        let due = |s: &Shortage, now| s.due_in(at(now)).map(|d| d.as_secs());
        assert_eq!([due(&living, 100), due(&living, 101), due(&living, 102)], [Some(1), Some(0), Some(0)]);
        assert_eq!(due(&living, 50), Some(0), "the clock was set back");
        assert_eq!(living.judge("ray-driver", running, at(100)), None, "not yet");
        let incident = living.judge("ray-driver", running, at(102)).expect("it lives on");
        assert_eq!((incident.cause, incident.died_at, incident.ready_at), (Cause::OomInside, at(100), Some(at(100))));
        assert_eq!(
            incident.why,
            "out of memory: a process in it was killed; raise `services.ray-driver.memory` in labd.toml (now 1.0 GiB)"
        );
        assert_eq!(living.judge("ray-driver", running, at(103)), None, "told once");
        assert_eq!(due(&living, 104), None);
        for (what, seen) in
            [("ended", None), ("started again", Some(("c1", at(101)))), ("recreated", Some(("c2", at(10))))]
        {
            assert_eq!(kills(&[100]).judge("ray-driver", seen, at(110)), None, "{what}");
        }
    }

    #[test]
    fn one_that_goes_on_and_on_is_an_incident_each_time_and_told_once_a_minute() {
        let (mut all, mut incidents, mut told) = (None, 0, Vec::new());
        for s in (0..120).step_by(4) {
            let mut one = Shortage::after(all.take(), "c1", at(s), GIB);
            if one.judge("ray-worker-3", Some(("c1", at(-5))), at(s + 2)).is_some() {
                incidents += 1;
                told.extend(one.say(at(s + 2)));
            }
            all = Some(one);
        }
        assert_eq!(incidents, 30);
        assert_eq!(told, ["", " (16 times since 1970-01-01T00:00:00.000Z)"]);
    }

    #[test]
    fn the_notice_names_the_setting_and_goes_by_itself() {
        let shortage = kills(&[100, 200, 300]);
        assert_eq!(
            shortage.notice("ray-worker-3").text,
            "ray-worker-3: out of memory 3 times, last at 1970-01-01T00:05:00.000Z: processes in it were killed; raise \
             `services.ray-worker.memory` in labd.toml (now 1.0 GiB)"
        );
        assert!(!shortage.is_over(Some(GIB), at(3_899)) && shortage.is_over(Some(GIB), at(3_900)), "an hour");
        assert!(shortage.is_over(Some(GIB + 1), at(301)), "raised");
        assert!(!shortage.is_over(Some(GIB / 2), at(301)), "lowered");
        assert!(kills(&[1]).notice("front-door").text.contains("please report it"));
    }

    #[test]
    fn it_is_read_back_by_the_next_labd() {
        let shortage = kills(&[100, 200]);
        let text = serde_json::to_string(&shortage).expect("plain values");
        assert_eq!(serde_json::from_str::<Shortage>(&text).expect("read back"), shortage);
    }
}
