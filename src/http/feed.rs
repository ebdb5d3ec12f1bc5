//! The snapshot as a sequence of changes: what differs from one to the next is worked out once, however many look.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use crate::{
    snapshot::{JobView, Snapshot},
    time::Timestamp,
};

/// Number of changes that are kept for clients that come back or are slow: 8 s where GPUs are read each second. With 16 of
/// them one has 10 kB.
const KEPT: usize = 8;

/// Audience: what is shown to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Whoever is known.
    People,
    /// Everybody else: no command lines.
    Nobody,
}

/// One state of the lab, and how it differs from the one before it.
#[derive(Debug)]
struct Frame {
    number: u64,
    /// Members that changed, as JSON.
    delta: String,
}

/// Members of a snapshot, each as JSON.
type Members = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Told {
    /// Snapshot that the newest frame is of.
    newest: Option<Arc<Snapshot>>,
    members: Members,
    number: u64,
    frames: VecDeque<Frame>,
}

/// The sequence. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Mark of this sequence in the events' ids: numbers of an earlier daemon mean nothing.
    began: i64,
    /// What each audience was told; nothing is worked out for one that nobody is of.
    told: Arc<[Mutex<Told>; 2]>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { began: Timestamp::now().as_millis(), told: Arc::default() }
    }
}

impl Feed {
    /// What a client that has seen `seen` is to hear, oldest first: the changes since, or the whole.
    pub(super) fn since(&self, seen: Option<Seen>, now: &Arc<Snapshot>, audience: Audience) -> Vec<Message> {
        let mut told = self.told[audience as usize].lock().unwrap_or_else(PoisonError::into_inner);
        told.take(now, audience);
        let number = told.number;
        let seen = seen.filter(|seen| seen.began == self.began && seen.number <= number);
        let kept = told.frames.front().map_or(u64::MAX, |frame| frame.number);
        let message = |number, name, data| Message { id: Seen { began: self.began, number }, name, data };
        match seen {
            Some(seen) if seen.number + 1 >= kept || seen.number == number => {
                let missed = told.frames.iter().filter(|frame| frame.number > seen.number);
                missed.map(|f| message(f.number, "delta", f.delta.clone())).collect()
            }
            _ => vec![message(number, "snapshot", object(&told.members))],
        }
    }
}

impl Told {
    /// Takes on a snapshot, if it is another than the newest.
    fn take(&mut self, now: &Arc<Snapshot>, audience: Audience) {
        if self.newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, now)) {
            return;
        }
        let members = match audience {
            Audience::People => members(now),
            Audience::Nobody => members(&without_commands(now)),
        };
        self.number += 1;
        let delta = object(&changed(&self.members, &members));
        self.frames.push_back(Frame { number: self.number, delta });
        let excess = self.frames.len().saturating_sub(KEPT);
        self.frames.drain(..excess);
        self.members = members;
        self.newest = Some(Arc::clone(now));
    }
}

/// Snapshot for everybody: what jobs run is not told.
pub(super) fn without_commands(snapshot: &Snapshot) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.jobs.iter_mut().for_each(without_command);
    // Both tell what a script, or what installs its packages, said last.
    snapshot.runs.iter_mut().for_each(|run| run.note = None);
    snapshot.installs.iter_mut().for_each(|install| install.reason = None);
    snapshot
}

/// Hides from everybody what a job runs, for whom, and what became of it in words.
pub(super) fn without_command(job: &mut JobView) {
    "(shown after a login)".clone_into(&mut job.entrypoint);
    job.message.clear();
    job.note = None;
    job.user = None;
}

fn members(snapshot: &Snapshot) -> Members {
    match serde_json::to_value(snapshot) {
        Ok(Value::Object(members)) => members.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
        // A snapshot is an object of strings, numbers and lists.
        _ => Members::new(),
    }
}

/// Members as one JSON object. Their names are those of fields, so nothing in them is to be escaped.
fn object(members: &Members) -> String {
    let members: Vec<String> = members.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    format!("{{{}}}", members.join(","))
}

/// Members that are new or differ; one that is gone is null.
fn changed(before: &Members, after: &Members) -> Members {
    let differing = after.iter().filter(|(name, json)| before.get(*name) != Some(json));
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| (name.clone(), "null".to_owned()));
    differing.map(|(name, json)| (name.clone(), json.clone())).chain(gone).collect()
}

/// Place in the sequence that a client has come to, as the id of an event says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    began: i64,
    number: u64,
}

impl Seen {
    /// Place that an id names; `None` for what is no id of ours.
    pub(super) fn read(id: &str) -> Option<Self> {
        let (began, number) = id.split_once('-')?;
        Some(Self { began: began.parse().ok()?, number: number.parse().ok()? })
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.began, self.number)
    }
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Place to which it brings its client.
    pub(super) id: Seen,
    /// `snapshot` for the whole, `delta` for what changed.
    pub(super) name: &'static str,
    /// JSON.
    pub(super) data: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::a_snapshot;

    fn restarted(times: u32) -> Arc<Snapshot> {
        let mut snapshot = a_snapshot();
        snapshot.services[0].restarts = times;
        Arc::new(snapshot)
    }

    fn names(messages: &[Message]) -> Vec<&'static str> {
        messages.iter().map(|m| m.name).collect()
    }

    #[test]
    fn who_comes_hears_the_whole_and_then_only_what_changed() {
        let feed = Feed::default();
        let first = feed.since(None, &restarted(0), Audience::People);
        assert_eq!(names(&first), ["snapshot"]);
        let seen = first[0].id;
        assert_eq!(feed.since(Some(seen), &restarted(1), Audience::People).len(), 1, "another value is another frame");
        let now = restarted(2);
        let missed = feed.since(Some(seen), &now, Audience::People);
        assert_eq!(names(&missed), ["delta", "delta"]);
        let delta: BTreeMap<String, Value> = serde_json::from_str(&missed[1].data).expect("JSON");
        assert_eq!(delta.keys().collect::<Vec<_>>(), ["services"], "nothing but what changed");
        assert!(missed[1].data.contains("\"restarts\":2"));
        let last = missed[1].id;
        assert!(feed.since(Some(last), &now, Audience::People).is_empty(), "nothing new");
    }

    #[test]
    fn who_was_away_for_long_or_before_a_restart_hears_the_whole() {
        let feed = Feed::default();
        let seen = feed.since(None, &restarted(0), Audience::People)[0].id;
        for times in 1..=u32::try_from(KEPT).expect("small") + 1 {
            feed.since(None, &restarted(times), Audience::People);
        }
        let now = Arc::clone(feed.told[0].lock().expect("whole").newest.as_ref().expect("one"));
        assert_eq!(names(&feed.since(Some(seen), &now, Audience::People)), ["snapshot"]);
        let newest = feed.told[0].lock().expect("whole").number;
        let earlier = |number| Seen { began: feed.began - 1, number };
        for other in [earlier(1), earlier(newest), Seen { began: feed.began, number: 999 }] {
            assert_eq!(names(&feed.since(Some(other), &now, Audience::People)), ["snapshot"]);
        }
    }

    #[test]
    fn command_lines_are_in_nothing_that_nobody_hears() {
        let feed = Feed::default();
        let seen = feed.since(None, &restarted(0), Audience::Nobody);
        assert!(!seen[0].data.contains("train.py"));
        let mut other = a_snapshot();
        other.jobs[0].message = "lost".into();
        other.jobs[0].run = Some("food11".into());
        other.runs.iter_mut().for_each(|run| run.note = Some("failed: a secret".into()));
        let delta = feed.since(Some(seen[0].id), &Arc::new(other), Audience::Nobody);
        assert!(
            delta[0].data.contains("food11")
                && !delta[0].data.contains("secret")
                && !delta[0].data.contains("lost")
                && !delta[0].data.contains("train.py")
        );
    }

    #[test]
    fn only_ids_of_ours_are_read() {
        let seen = Seen { began: 17, number: 4 };
        assert_eq!(Seen::read(&seen.to_string()), Some(seen));
        for id in ["", "17", "x-4", "17-", "17-4-1", "-1-2"] {
            assert_eq!(Seen::read(id), None, "{id}");
        }
    }
}
