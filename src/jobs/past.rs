//! Ids that were used before, and what the run of their next job is called. Pure.
//!
//! A training run is found again by its name, and an unnamed one is called by its job's id. So an id that is used again
//! after its job failed or was stopped continues where that was, as its owner wants; after one that succeeded it would find
//! a run that is finished, train nothing and succeed. That one gets a run of its own.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use super::decide::{Job, Next, Outcome, State};
use crate::time::Timestamp;

/// Largest number of ids that are remembered; the newest ones.
pub(super) const REMEMBERED: usize = 10_000;

/// Largest number of ended jobs that the ledger keeps.
const ENDED: usize = 10_000;
/// Largest number of bytes of ended jobs that it keeps: they are in memory, as large as people sent them.
const ENDED_BYTES: usize = 64 << 20;
/// Largest number of bytes of all jobs that it takes: some four times as much memory.
pub(super) const MOST_BYTES: usize = 128 << 20;

/// Past of an id: what is remembered of it after its job ended, also when its owner deleted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Name of its run.
    pub run: String,
    /// End of its last attempt.
    pub end: End,
    /// Time of that end.
    pub at: Timestamp,
}

/// End of a job, as far as the next one under its id is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It succeeded.
    Succeeded,
    /// A person stopped it.
    Stopped,
    /// It failed by its own error.
    Failed,
    /// It was lost, and not resubmitted.
    Lost,
    /// Its owner deleted it before labd knew.
    #[serde(other)]
    Unknown,
}

impl End {
    /// The end that an outcome means.
    pub const fn of(outcome: Option<&Outcome>) -> Self {
        match outcome {
            Some(Outcome::Succeeded) => Self::Succeeded,
            Some(Outcome::Stopped) => Self::Stopped,
            Some(Outcome::Failed { .. }) => Self::Failed,
            Some(Outcome::Lost { .. }) => Self::Lost,
            None => Self::Unknown,
        }
    }

    /// The end in words, such as `was stopped`.
    pub const fn as_words(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Stopped => "was stopped",
            Self::Failed => "failed",
            Self::Lost => "was lost",
            Self::Unknown => "was deleted",
        }
    }
}

/// A job and the attempts that took its place, oldest first; empty for an id that the ledger does not know.
pub fn chain<'a>(book: &'a BTreeMap<String, Job>, id: &str) -> Vec<&'a Job> {
    let mut all: Vec<&Job> = Vec::new();
    let mut next = book.get(id);
    while let Some(job) = next.filter(|job| all.len() < book.len() && all.iter().all(|j| j.id != job.id)) {
        all.push(job);
        next = match &job.state {
            State::Ended { outcome: Outcome::Lost { next: Next::As(next), .. }, .. } => book.get(next),
            _ => None,
        };
    }
    all
}

/// Ended jobs that are too many or too large to be kept, oldest first to go. Attempts of a job that has not ended do
/// not count.
pub fn surplus(book: &BTreeMap<String, Job>) -> Vec<String> {
    surplus_of(book, ENDED, ENDED_BYTES)
}

fn surplus_of(book: &BTreeMap<String, Job>, number: usize, bytes: usize) -> Vec<String> {
    let open: BTreeSet<&str> = book.values().filter(|job| !job.is_over()).map(|job| job.root.as_str()).collect();
    let mut ended: Vec<&Job> = book.values().filter(|job| !open.contains(job.root.as_str())).collect();
    ended.sort_by_key(|job| Reverse((job.submitted_at, &job.id)));
    let mut used = 0;
    let room = |job: &&Job| {
        used += job.submission.bytes();
        used <= bytes
    };
    let fit = ended.iter().take(number).copied().take_while(room).count();
    ended.split_off(fit).into_iter().map(|job| job.id.clone()).collect()
}

/// Past of an id whose last attempt has ended; `None` while it has not, and for an unknown one.
pub fn of(book: &BTreeMap<String, Job>, id: &str) -> Option<Past> {
    let last = chain(book, id).pop()?;
    match &last.state {
        State::Ended { at, outcome } => Some(Past { run: last.run.clone(), end: End::of(Some(outcome)), at: *at }),
        _ => None,
    }
}

/// Name of the run of a new job under this id, and the line that says so when the id was used before. `is_taken` says
/// whether another job's run is called so.
pub fn next_run(id: &str, past: Option<&Past>, is_taken: impl Fn(&str) -> bool) -> (String, Option<String>) {
    let Some(past) = past else { return (id.to_owned(), None) };
    let end = past.end.as_words();
    if past.end != End::Succeeded {
        let run = past.run.clone();
        let line = format!("the id {id} was used before and its job {end}: the run {run} continues where it was");
        return (run, Some(line));
    }
    let used: u32 = past.run.strip_prefix(id).and_then(|n| n.strip_prefix('.')?.parse().ok()).unwrap_or(1);
    let run = (used.saturating_add(1)..u32::MAX).map(|n| format!("{id}.{n}")).find(|name| !is_taken(name));
    // There are more numbers than names.
    let run = run.unwrap_or_else(|| id.to_owned());
    let line = format!("the id {id} was used before and its job {end}: this one begins a new run, {run}");
    (run, Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{decide::Submitted, submission::Submission};

    fn past(run: &str, end: End) -> Past {
        Past { run: run.into(), end, at: Timestamp::from_millis(1) }
    }

    #[test]
    fn the_oldest_ended_jobs_go_when_there_are_too_many_or_too_large_ones() {
        let job = |n: i64, root: &str, state: State, size: usize| {
            let sent = format!(r#"{{"entrypoint": "{}"}}"#, "x".repeat(size));
            let job = Job {
                id: format!("job{n}"),
                root: root.to_owned(),
                attempt: 1,
                submission: Submission::parse(sent.as_bytes()).expect("a submission"),
                came_at: Timestamp::from_millis(n),
                submitted_at: Timestamp::from_millis(n),
                run: String::new(),
                note: None,
                state,
            };
            (job.id.clone(), job)
        };
        let ended = |n| State::Ended { at: Timestamp::from_millis(n), outcome: Outcome::Succeeded };
        let book = BTreeMap::from([
            job(1, "job1", State::Submitted(Submitted::new(Timestamp::from_millis(1))), 10),
            job(2, "job1", ended(2), 10),
            job(3, "job3", ended(3), 10),
            job(4, "job4", ended(4), 10),
            job(5, "job5", ended(5), 1000),
            job(6, "job6", ended(6), 10),
        ]);
        assert_eq!(surplus(&book), Vec::<String>::new());
        assert_eq!(surplus_of(&book, 3, 10_000), ["job3"], "not what belongs to an unfinished one");
        assert_eq!(surplus_of(&book, 9, 1_070), ["job4", "job3"]);
    }

    #[test]
    fn an_id_that_succeeded_gets_a_new_run_and_any_other_continues_and_both_say_so() {
        let free = |_: &str| false;
        assert_eq!(next_run("food11", None, free), ("food11".into(), None));
        for (run, end, next) in [
            ("food11", End::Succeeded, "food11.2"),
            ("food11.2", End::Succeeded, "food11.3"),
            ("food11.9", End::Succeeded, "food11.10"),
            ("food11.2", End::Stopped, "food11.2"),
            ("food11", End::Failed, "food11"),
            ("food11", End::Lost, "food11"),
            ("food11", End::Unknown, "food11"),
        ] {
            let (name, line) = next_run("food11", Some(&past(run, end)), free);
            let line = line.expect("a line");
            assert_eq!(name, next, "{run} {end:?}");
            assert!(line.contains("food11 was used before") && line.contains(next) && !line.contains('\n'), "{line}");
            assert_eq!(line.contains("new run"), end == End::Succeeded, "{line}");
        }
        // Somebody's own id is that somebody's run.
        let taken = |name: &str| name == "food11.2";
        assert_eq!(next_run("food11", Some(&past("food11", End::Succeeded)), taken).0, "food11.3");
    }
}
