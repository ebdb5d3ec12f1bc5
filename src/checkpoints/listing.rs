//! Runs and their checkpoints, from the objects of a bucket. Pure.
//!
//! Ray Train V2 keeps `<run>/checkpoint_manager_snapshot.json`, which names the checkpoints it knows and the one it resumes
//! from, and `<run>/checkpoint_<time>/...`, or another folder if the script names it. A folder that the file does not name is
//! being written, or was torn by a crash: it is no checkpoint. Ray Tune keeps no such file, only
//! `<run>/<trial>/checkpoint_<number>/...`. The hook in labd's Ray image leaves a mark for each job that begins or resumes a
//! sweep: the empty object `<run>/.labd/<attempt>.<how>.<submission id>`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{snapshot::CheckpointView, time::Timestamp};

/// Name of Ray Train's own record of a run.
pub(super) const RECORD: &str = "checkpoint_manager_snapshot.json";
/// Folder of the marks that the hook in labd's Ray image leaves in a sweep's.
const MARKS: &str = "/.labd";
/// Number of checkpoints of a run that are remembered one by one; the newest ones.
pub const REMEMBERED: usize = 64;

/// Object of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) at: Timestamp,
    pub(super) etag: String,
}

/// Ray's own record of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    /// Checkpoint at which it resumes.
    latest: Option<String>,
    names: BTreeSet<String>,
}

/// Run as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    /// Prefix of its keys, without a slash at the end: its name, with the folders above it.
    pub prefix: String,
    /// Checkpoints, newest first, at most 64. Those that were deleted since labd saw them are among them: work that was
    /// lost is counted from the checkpoint that was there.
    pub seen: Vec<CheckpointView>,
    /// Checkpoint it would resume from.
    pub newest: Option<CheckpointView>,
    /// Number of checkpoints now.
    pub count: u32,
    /// Size of everything under its prefix, in bytes.
    pub used_bytes: u64,
    /// Jobs that began or resumed it, when it is a Tune sweep; newest first, at most 64.
    pub sweeps: Vec<Sweep>,
    /// Whether Ray's own record names [`Self::newest`].
    pub from_record: bool,
    /// Whether this is what the listing before had, see [`carry_over`].
    pub carried_over: bool,
}

/// Use of a Tune sweep by one job, as its driver marked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// The job.
    pub submission_id: String,
    /// Number of the attempt: 1 for a person's submission, 2 for its first resubmission, and so on.
    pub attempt: u32,
    /// Start: whether it resumed.
    pub start: SweepStart,
    /// Time of the mark.
    pub at: Timestamp,
}

/// Start of a Tune sweep by a job's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepStart {
    /// `Tuner.restore`: finished trials are not run again.
    Restored,
    /// A new `Tuner`, after `Tuner.can_restore` was asked: the next attempt resumes.
    Asked,
    /// A new `Tuner`, and so would each further attempt.
    Fresh,
}

/// Objects of the bucket, folder by folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    folders: BTreeMap<String, Folder>,
    /// Folders with a record, and the record's ETag.
    pub(super) records: BTreeMap<String, String>,
    /// Folders of Ray Tune's experiments.
    experiments: BTreeSet<String>,
    /// Marks in such folders.
    sweeps: BTreeMap<String, Vec<Sweep>>,
    pub(super) total_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Folder {
    bytes: u64,
    at: Timestamp,
    files: u64,
}

impl Listing {
    pub(super) fn add(&mut self, object: Object) {
        self.total_bytes = self.total_bytes.saturating_add(object.bytes);
        let (folder, file) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
        if folder.is_empty() {
            return;
        }
        match file {
            RECORD => {
                self.records.insert(folder.to_owned(), object.etag);
            }
            "tuner.pkl" => {
                self.experiments.insert(folder.to_owned());
            }
            _ => {}
        }
        if let Some(root) = folder.strip_suffix(MARKS)
            && let Some(sweep) = mark(file, object.at)
        {
            self.sweeps.entry(root.to_owned()).or_default().push(sweep);
        }
        let seen = self.folders.entry(folder.to_owned()).or_default();
        seen.bytes = seen.bytes.saturating_add(object.bytes);
        // `folder/` alone is how a folder is made in S3; it says nothing of what is in it.
        if !file.is_empty() {
            seen.at = seen.at.max(object.at);
            seen.files += 1;
        }
    }

    /// Runs by prefix.
    pub(super) fn runs(&self, records: &BTreeMap<String, Record>) -> Vec<StoredRun> {
        let known = self.records.keys().chain(&self.experiments).chain(self.sweeps.keys());
        let mut roots: BTreeSet<&str> = known.map(String::as_str).collect();
        roots.extend(self.folders.keys().filter_map(|folder| {
            let (start, _) = numbered(folder)?;
            Some(folder[..start].trim_end_matches('/')).filter(|root| !root.is_empty())
        }));
        let mut runs: BTreeMap<&str, Run> = BTreeMap::new();
        for (path, folder) in &self.folders {
            let Some(root) = root_of(path, &roots) else { continue };
            let record = records.get(root);
            let run = runs.entry(root).or_default();
            run.used_bytes = run.used_bytes.saturating_add(folder.bytes);
            let below = path[root.len()..].trim_start_matches('/');
            if let Some(name) = checkpoint_of(below, record) {
                let sum = run.checkpoints.entry(name).or_default();
                sum.bytes = sum.bytes.saturating_add(folder.bytes);
                sum.at = sum.at.max(folder.at);
                sum.files += folder.files;
            }
        }
        let finish = |(root, run): (&str, Run<'_>)| StoredRun {
            sweeps: self.sweeps(root),
            ..run.finish(root, records.get(root))
        };
        runs.into_iter().map(finish).collect()
    }
}

impl Listing {
    fn sweeps(&self, root: &str) -> Vec<Sweep> {
        let mut sweeps = self.sweeps.get(root).cloned().unwrap_or_default();
        sweeps.sort_by_key(|s| std::cmp::Reverse((s.at, s.attempt)));
        sweeps.truncate(REMEMBERED);
        sweeps
    }
}

/// Sweep that a mark's name tells of; `None` when it is not a mark.
fn mark(file: &str, at: Timestamp) -> Option<Sweep> {
    let mut parts = file.splitn(3, '.');
    let attempt = parts.next()?.parse().ok()?;
    let start = match parts.next()? {
        "restored" => SweepStart::Restored,
        "asked" => SweepStart::Asked,
        "fresh" => SweepStart::Fresh,
        _ => return None,
    };
    // The hook quotes every byte that means something here.
    let (submission_id, _) = url::form_urlencoded::parse(parts.next()?.as_bytes()).next()?;
    Some(Sweep { submission_id: submission_id.into_owned(), attempt, start, at })
}

#[derive(Default)]
struct Run<'a> {
    checkpoints: BTreeMap<&'a str, Folder>,
    used_bytes: u64,
}

impl Run<'_> {
    fn finish(self, root: &str, record: Option<&Record>) -> StoredRun {
        let written = |folder: &Folder| folder.files > 0;
        let named = |name: &str| record.is_none_or(|r| r.names.contains(name));
        // The record is read after the listing: of a run that saves often and keeps few, all that was listed may be deleted by
        // then, and all that the record names be newer. What is older than all of that was a checkpoint.
        let outrun = !self.checkpoints.iter().any(|(name, folder)| written(folder) && named(name));
        let oldest = record.and_then(|r| r.names.first()).filter(|_| outrun).map(String::as_str);
        let mut seen: Vec<CheckpointView> = self
            .checkpoints
            .into_iter()
            .filter(|(name, folder)| written(folder) && (named(name) || oldest.is_some_and(|oldest| *name < oldest)))
            .map(|(name, folder)| CheckpointView { name: name.to_owned(), at: folder.at, bytes: folder.bytes })
            .collect();
        newest_first(&mut seen);
        let latest = record.and_then(|r| r.latest.as_ref());
        let recorded = seen.iter().find(|c| Some(&c.name) == latest);
        let from_record = recorded.is_some();
        let newest = recorded.or(seen.first()).cloned();
        let count = u32::try_from(seen.len()).unwrap_or(u32::MAX);
        seen.truncate(REMEMBERED);
        let (prefix, used_bytes) = (root.to_owned(), self.used_bytes);
        let (sweeps, carried_over) = (Vec::new(), false);
        StoredRun { prefix, seen, newest, count, used_bytes, sweeps, from_record, carried_over }
    }
}

fn newest_first(checkpoints: &mut [CheckpointView]) {
    checkpoints.sort_by(|a, b| (b.at, &b.name).cmp(&(a.at, &a.name)));
}

/// Keeps, once, the runs that a listing has less of than the one before: those that are gone, and those whose newest
/// checkpoint is an older one, though Ray's record does not say so. A MinIO that stood still for some seconds ends a listing
/// at one of its pages and calls it whole.
pub(super) fn carry_over(before: &[StoredRun], now: &mut Vec<StoredRun>) {
    let newest = |run: &StoredRun| run.newest.as_ref().map(|c| (c.at, c.name.clone()));
    for old in before.iter().filter(|old| !old.carried_over) {
        let kept = StoredRun { carried_over: true, ..old.clone() };
        match now.iter_mut().find(|run| run.prefix == old.prefix) {
            Some(run) if run.from_record || newest(run) >= newest(old) => {}
            Some(run) => *run = kept,
            None => now.push(kept),
        }
    }
    now.sort_by(|a, b| a.prefix.cmp(&b.prefix));
}

/// Adds what was there before, for a run whose old checkpoints are deleted.
pub(super) fn remember(before: &[StoredRun], now: &mut [StoredRun]) {
    for run in now {
        let Some(old) = before.iter().find(|old| old.prefix == run.prefix) else { continue };
        let gone = old.seen.iter().filter(|c| !run.seen.iter().any(|known| known.name == c.name));
        let gone: Vec<CheckpointView> = gone.cloned().collect();
        run.seen.extend(gone);
        newest_first(&mut run.seen);
        run.seen.truncate(REMEMBERED);
    }
}

/// Outermost run that a folder belongs to.
fn root_of<'a>(path: &'a str, roots: &BTreeSet<&str>) -> Option<&'a str> {
    let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
    ends.map(|end| &path[..end]).find(|part| roots.contains(part))
}

/// Position of the outermost `checkpoint_<digit>...` in a path.
fn numbered(path: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for part in path.split('/') {
        let rest = part.strip_prefix("checkpoint_");
        if rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            return Some((start, start + part.len()));
        }
        start += part.len() + 1;
    }
    None
}

/// Checkpoint that a folder is part of; `below` is its path below the run's.
fn checkpoint_of<'a>(below: &'a str, record: Option<&Record>) -> Option<&'a str> {
    let first = below.split('/').next().unwrap_or(below);
    if record.is_some_and(|r| r.names.contains(first)) {
        return Some(first);
    }
    numbered(below).map(|(_, end)| &below[..end])
}

/// Reads Ray's own record of a run; `None` when it is not one. Pure.
pub(super) fn record(json: &[u8]) -> Option<Record> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let name = |result: &Value| result["checkpoint_dir_name"].as_str().map(str::to_owned);
    let names = value["checkpoint_results"].as_array()?.iter().filter_map(name).collect();
    let latest = name(&value["latest_checkpoint_result"]);
    Some(Record { latest, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn listing(objects: &[(&str, u64, i64)]) -> Listing {
        let mut listing = Listing::default();
        for (key, bytes, ms) in objects {
            listing.add(Object { key: (*key).to_owned(), bytes: *bytes, at: at(*ms), etag: format!("e{ms}") });
        }
        listing
    }

    fn records(all: &[(&str, &[&str])]) -> BTreeMap<String, Record> {
        let record = |names: &[&str]| Record {
            latest: names.last().map(|&name| name.to_owned()),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        all.iter().map(|(prefix, names)| ((*prefix).to_owned(), record(names))).collect()
    }

    /// Objects that Ray 2.60 left in MinIO.
    const REAL: &[(&str, u64, i64)] = &[
        ("surv/", 0, 900),
        ("surv/.validate_storage_marker", 0, 100),
        ("surv/checkpoint_2026-11-24_23-09-05.790015/", 0, 500),
        ("surv/checkpoint_2026-11-24_23-09-05.790015/state.json", 66, 501),
        ("surv/checkpoint_2026-11-24_23-09-06.310181/", 0, 600),
        ("surv/checkpoint_2026-11-24_23-09-06.310181/state.json", 64, 601),
        ("surv/checkpoint_manager_snapshot.json", 704, 700),
    ];
    const A: &str = "checkpoint_2026-11-24_23-09-05.790015";
    const B: &str = "checkpoint_2026-11-24_23-09-06.310181";

    #[test]
    fn a_real_bucket_is_understood() {
        let listing = listing(REAL);
        assert_eq!(listing.records.keys().collect::<Vec<_>>(), ["surv"]);
        let runs = listing.runs(&records(&[("surv", &[A, B])]));
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].prefix.as_str(), runs[0].count, runs[0].used_bytes), ("surv", 2, 834));
        assert_eq!(runs[0].newest, Some(CheckpointView { name: B.to_owned(), at: at(601), bytes: 64 }));
        assert_eq!(runs[0].seen.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), [B, A]);
    }

    #[test]
    fn what_rays_record_does_not_name_is_no_checkpoint() {
        // B was torn by a crash, or is still being written.
        let torn = listing(REAL).runs(&records(&[("surv", &[A])]));
        assert_eq!(torn[0].newest.as_ref().map(|c| c.name.as_str()), Some(A));
        assert_eq!((torn[0].count, torn[0].used_bytes), (1, 834));
        // The record says where it resumes, not the clock of the store.
        let back = listing(REAL).runs(&records(&[("surv", &[B, A])]));
        assert_eq!(back[0].newest.as_ref().map(|c| c.name.as_str()), Some(A));
        // Not read yet: the newest folder it is.
        let unread = listing(REAL).runs(&BTreeMap::new());
        assert_eq!(unread[0].newest.as_ref().map(|c| c.name.as_str()), Some(B));
    }

    #[test]
    fn a_run_that_saves_faster_than_it_is_looked_at_has_the_newest_checkpoint_that_was_listed() {
        let newest = |names: &[&str]| {
            let runs = listing(REAL).runs(&records(&[("surv", names)]));
            runs[0].newest.as_ref().map(|c| c.name.clone())
        };
        let (between, later) = ("checkpoint_2026-11-24_23-09-06.000000", "checkpoint_2026-11-24_23-09-07.500000");
        assert_eq!(newest(&[later, "checkpoint_2026-11-24_23-09-08.100000"]).as_deref(), Some(B));
        assert_eq!(newest(&[B, later]).as_deref(), Some(B));
        // What is newer than all that Ray names is being written, or was torn; where it names none, none is there.
        assert_eq!(newest(&[between]).as_deref(), Some(A));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn folders_scripts_and_tuners_are_told_apart() {
        let listing = listing(&[
            ("food11.zip", 1 << 30, 1),
            ("data/food11/train/a.jpg", 500, 1),
            ("team/a/run/checkpoint_000001/rank_0/deep/model.pt", 10, 5),
            ("team/a/run/checkpoint_000001/rank_1/model.pt", 20, 6),
            ("team/a/run/checkpoint_000002/", 0, 9),
            ("named/best/model.pt", 7, 3),
            ("named/other/model.pt", 1, 3),
            ("named/checkpoint_manager_snapshot.json", 2, 3),
            ("asha/tuner.pkl", 5, 1),
            ("asha/train_0/checkpoint_000000/s.json", 1, 2),
            ("asha/train_1/checkpoint_000000/s.json", 1, 3),
            ("asha/train_1/progress.csv", 3, 3),
            ("checkpoint_5/loose.pt", 9, 9),
        ]);
        let runs = listing.runs(&records(&[("named", &["best"])]));
        let told: Vec<(&str, Option<&str>, u32, u64)> = runs
            .iter()
            .map(|r| (r.prefix.as_str(), r.newest.as_ref().map(|c| c.name.as_str()), r.count, r.used_bytes))
            .collect();
        assert_eq!(
            told,
            [
                ("asha", Some("train_1/checkpoint_000000"), 2, 10),
                ("named", Some("best"), 1, 10),
                ("team/a/run", Some("checkpoint_000001"), 1, 30),
            ]
        );
        assert_eq!(runs[2].newest.as_ref().map(|c| (c.at, c.bytes)), Some((at(6), 30)));
        assert!(listing.total_bytes > 1 << 30);
    }

    #[test]
    fn the_jobs_of_a_sweep_are_read_from_its_marks() {
        let listing = listing(&[
            ("asha/tuner.pkl", 5, 1),
            ("asha/.labd/1.asked.asha%20one%2F%C3%A4", 0, 2),
            ("asha/.labd/2.restored.asha%20one%2F%C3%A4-r1", 0, 9),
            ("asha/.labd/", 0, 2),
            ("asha/.labd/nonsense", 0, 2),
            ("asha/.labd/1.unheard-of.x", 0, 2),
            ("asha/.labd/x.fresh.x", 0, 2),
            ("asha/.labd/1.fresh.", 0, 2),
            ("asha/train_0/checkpoint_000000/s.json", 1, 2),
            ("team/new/.labd/1.fresh.lr%2B1.5", 0, 3),
        ]);
        let runs = listing.runs(&BTreeMap::new());
        let told = |run: &StoredRun| -> Vec<(String, u32, SweepStart)> {
            run.sweeps.iter().map(|s| (s.submission_id.clone(), s.attempt, s.start)).collect()
        };
        assert_eq!(runs.iter().map(|r| r.prefix.as_str()).collect::<Vec<_>>(), ["asha", "team/new"]);
        let one = "asha one/ä".to_owned();
        assert_eq!(told(&runs[0]), [(format!("{one}-r1"), 2, SweepStart::Restored), (one, 1, SweepStart::Asked)]);
        assert_eq!((runs[0].count, runs[0].used_bytes), (1, 6));
        assert_eq!(told(&runs[1]), [("lr+1.5".to_owned(), 1, SweepStart::Fresh)]);
    }

    #[test]
    fn a_deleted_checkpoint_is_remembered_and_not_counted() {
        let both = listing(REAL).runs(&records(&[("surv", &[A, B])]));
        let mut one = listing(&REAL[4..]).runs(&records(&[("surv", &[B])]));
        remember(&both, &mut one);
        assert_eq!(one[0].seen.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), [B, A]);
        assert_eq!(one[0].count, 1);
        let again = one.clone();
        remember(&again, &mut one);
        assert_eq!(one, again, "once each");
    }

    #[test]
    fn a_listing_that_ends_too_soon_takes_no_checkpoint_back_and_one_that_says_it_again_is_believed() {
        let whole = listing(REAL).runs(&records(&[("surv", &[A, B])]));
        let newest = |runs: &[StoredRun]| runs.iter().find_map(|r| r.newest.as_ref().map(|c| c.name.clone()));
        for (objects, records, want) in [
            // The store ended it before its newest checkpoint and its record, or before the run.
            (&REAL[..4], records(&[]), [Some(B), Some(A)]),
            (&REAL[..0], records(&[]), [Some(B), None]),
            // Ray itself went back, and says so.
            (REAL, records(&[("surv", &[B, A])]), [Some(A), Some(A)]),
        ] {
            let mut before = whole.clone();
            for want in want {
                let mut now = listing(objects).runs(&records);
                carry_over(&before, &mut now);
                assert_eq!(newest(&now).as_deref(), want);
                before = now;
            }
        }
        let mut more = whole.clone();
        carry_over(&listing(&REAL[..4]).runs(&records(&[])), &mut more);
        assert_eq!(more, whole);
    }

    #[test]
    fn rays_record_is_read_or_refused() {
        let json = br#"{"ray_version":"2.60.0","checkpoint_results":[{"version":0,"checkpoint_dir_name":"a","metrics":{}},
            {"version":0,"checkpoint_dir_name":"b","metrics":{}}],"latest_checkpoint_result":{"checkpoint_dir_name":"b"}}"#;
        let read = record(json).expect("a record");
        assert_eq!((read.latest.as_deref(), read.names.len()), (Some("b"), 2));
        assert_eq!(record(br#"{"checkpoint_results":[],"latest_checkpoint_result":null}"#), Some(Record::default()));
        for nonsense in [&b""[..], b"{}", b"[1]", b"{\"checkpoint_results\": 3}", b"\xff"] {
            assert_eq!(record(nonsense), None);
        }
    }
}
