//! The file of training curves. Every curve is bounded, and there are so many.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, Transaction, params};

use super::{
    Curve, CurveGroup, CurvePoint, Which,
    report::{DROPPED, METRICS, Report},
    thin,
};
use crate::{
    db::{self, OpenFailure, Shape},
    time::Timestamp,
};

/// Largest number of points of one curve: more than a screen has pixels.
pub(super) const POINTS: usize = 4_000;
/// Largest number of points by which a curve is larger than that at any time: thinning takes the square of them.
const BEYOND: usize = 1_000;
/// Largest number of curves; of the job that has most of them the one that was reported to longest ago goes first.
const CURVES: u32 = 200;
/// Largest number of worker groups of one curve; the newest ones.
const GROUPS: u32 = 200;
/// Largest number of calls of `fit()` of one curve of which there is neither a point nor a worker group; the newest ones.
const EMPTY: u32 = 200;
/// Largest step from one report to the next: a number far beyond would make all that come after it old ones.
const STEP: i64 = 10_000_000;

/// `labt` in ASCII marks the file.
const SHAPE: Shape = Shape { migrations: MIGRATIONS, application_id: 0x6c61_6274, what: "a file of training curves" };

const MIGRATIONS: &[&str] = &[
    // `entries` are calls of fit(): a job that is submitted again makes another one for the same curve. `stored` is the newest
    // report that was ever written, also when thinning took it away again. Values are little-endian doubles, NaN for nothing.
    "CREATE TABLE curves (
        id        INTEGER PRIMARY KEY,
        root      TEXT NOT NULL,
        submitted TEXT NOT NULL,
        run       TEXT NOT NULL,
        names     TEXT NOT NULL,
        newest_ms INTEGER NOT NULL,
        thinned   INTEGER NOT NULL,
        UNIQUE (root, submitted, run)
    ) STRICT;
    CREATE TABLE entries (
        id         INTEGER PRIMARY KEY,
        curve      INTEGER NOT NULL,
        run_id     TEXT NOT NULL,
        submission TEXT NOT NULL,
        attempt    INTEGER NOT NULL,
        stored     INTEGER NOT NULL,
        dropped    INTEGER NOT NULL,
        UNIQUE (curve, run_id)
    ) STRICT;
    CREATE TABLE points (
        entry      INTEGER NOT NULL,
        seq        INTEGER NOT NULL,
        at_ms      INTEGER NOT NULL,
        grp        INTEGER NOT NULL,
        checkpoint TEXT,
        vals       BLOB NOT NULL,
        PRIMARY KEY (entry, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE groups (
        entry    INTEGER NOT NULL,
        grp      INTEGER NOT NULL,
        began_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        why      TEXT,
        nodes    TEXT NOT NULL,
        PRIMARY KEY (entry, grp)
    ) STRICT, WITHOUT ROWID;",
];

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    db: Option<Connection>,
    /// Largest number of points of one curve.
    most: usize,
}

impl Store {
    /// Opens or begins the file, and says what is wrong with it, if anything is. A damaged one is set aside. Nothing else of
    /// the lab needs it: where it cannot be opened, it is tried again with each write.
    pub(super) fn open(path: &Path) -> (Self, Option<String>) {
        let mut store = Self { path: path.to_owned(), db: None, most: POINTS };
        let note = store.with(|_, _| Ok(())).err();
        (store, note)
    }

    #[cfg(test)]
    pub(super) fn with_most(path: &Path, most: usize) -> Self {
        Self { most, ..Self::open(path).0 }
    }

    /// Error in one line. A damaged file is set aside, and the next try begins a new one.
    fn failed(&self, failure: OpenFailure) -> String {
        let OpenFailure::Corrupt(reason) = failure else { return self.not_kept(&failure.reason()) };
        let path = self.path.display();
        match db::set_aside(&self.path, Timestamp::now()) {
            Ok(aside) => format!(
                "the training curves in `{path}` are damaged ({reason}): the file was kept as `{}` and a new one begins",
                aside.display()
            ),
            Err(e) => self.not_kept(&format!("the file is damaged and cannot be renamed: {e}")),
        }
    }

    fn not_kept(&self, reason: &str) -> String {
        format!("training curves are not recorded in `{}`: {reason}", self.path.display())
    }

    /// After an error the next try has a fresh connection: some leave the old one unusable.
    fn with<T>(&mut self, work: impl FnOnce(&mut Connection, usize) -> rusqlite::Result<T>) -> Result<T, String> {
        let opened = match self.db.take() {
            Some(db) => Ok(db),
            None => db::open(&self.path, &SHAPE),
        };
        let mut db = opened.map_err(|failure| self.failed(failure))?;
        match work(&mut db, self.most) {
            Ok(done) => {
                self.db = Some(db);
                Ok(done)
            }
            Err(e) => {
                drop(db);
                Err(self.failed(e.into()))
            }
        }
    }

    /// Writes reports, all or none. What is there already is left as it is. Returns for each of them the number of the newest
    /// report of its call of `fit()` that is on disk. The error is one line.
    pub(super) fn write(&mut self, reports: &[Report]) -> Result<Vec<u64>, String> {
        self.with(|db, most| {
            let tx = db.transaction()?;
            let mut newest = Vec::with_capacity(reports.len());
            // Curves that were written to, and how many points each of them got since it was within its bounds.
            let mut touched: BTreeMap<_, (i64, usize)> = BTreeMap::new();
            for report in reports {
                let key = (&report.root, &report.submitted, &report.run);
                let more = report.points.len();
                let mut unbounded = 0;
                if let Some(&(curve, points)) = touched.get(&key) {
                    unbounded = points;
                    if points + more > BEYOND {
                        bound(&tx, curve, most)?;
                        unbounded = 0;
                    }
                }
                let (curve, stored) = insert(&tx, report)?;
                touched.insert(key, (curve, unbounded + more));
                newest.push(stored);
            }
            for (curve, _) in touched.into_values() {
                bound(&tx, curve, most)?;
            }
            drop_oldest(&tx)?;
            tx.commit()?;
            Ok(newest)
        })
    }

    /// Curve of a job; `None` where there is none. The error is one line.
    pub(super) fn read(&mut self, which: &Which) -> Result<Option<Curve>, String> {
        self.with(|db, _| read(db, which))
    }
}

/// Inserts a report; returns the number of its curve, and that of the newest report of its call of `fit()`.
fn insert(tx: &Transaction<'_>, report: &Report) -> rusqlite::Result<(i64, u64)> {
    let newest =
        report.points.iter().map(|p| p.at).chain(report.groups.iter().map(|g| g.ended.unwrap_or(g.began))).max();
    let newest = newest.unwrap_or_default().as_millis();
    tx.prepare_cached(
        "INSERT INTO curves (root, submitted, run, names, newest_ms, thinned) VALUES (?1, ?2, ?3, '[]', ?4, 0) \
         ON CONFLICT (root, submitted, run) DO UPDATE SET newest_ms = max(newest_ms, ?4)",
    )?
    .execute(params![report.root, report.submitted, report.run, newest])?;
    let (curve, known): (i64, String) = tx
        .prepare_cached("SELECT id, names FROM curves WHERE root = ?1 AND submitted = ?2 AND run = ?3")?
        .query_row(params![report.root, report.submitted, report.run], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut names = names_of(&known);
    let before = names.len();
    for name in &report.names {
        if names.len() < METRICS && !names.contains(name) {
            names.push(name.clone());
        }
    }
    if names.len() > before {
        let text = serde_json::to_string(&names).unwrap_or_default();
        tx.prepare_cached("UPDATE curves SET names = ?2 WHERE id = ?1")?.execute(params![curve, text])?;
    }
    tx.prepare_cached(
        "INSERT INTO entries (curve, run_id, submission, attempt, stored, dropped) VALUES (?1, ?2, ?3, ?4, 0, 0) \
         ON CONFLICT (curve, run_id) DO NOTHING",
    )?
    .execute(params![curve, report.run_id, report.submission, report.attempt])?;
    let (entry, stored): (i64, i64) = tx
        .prepare_cached("SELECT id, stored FROM entries WHERE curve = ?1 AND run_id = ?2")?
        .query_row(params![curve, report.run_id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let places: Vec<Option<usize>> =
        names.iter().map(|name| report.names.iter().position(|reported| reported == name)).collect();
    let mut put = tx.prepare_cached(
        "INSERT OR IGNORE INTO points (entry, seq, at_ms, grp, checkpoint, vals) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let mut last = stored;
    for point in &report.points {
        let seq = i64::try_from(point.seq).unwrap_or(i64::MAX);
        if seq <= stored || seq - stored > STEP {
            continue;
        }
        let values: Vec<u8> = places
            .iter()
            .flat_map(|place| place.and_then(|place| point.values[place]).unwrap_or(f64::NAN).to_le_bytes())
            .collect();
        put.execute(params![entry, seq, point.at.as_millis(), point.group, point.checkpoint, values])?;
        last = last.max(seq);
    }
    tx.prepare_cached("UPDATE entries SET stored = ?2, dropped = max(dropped, ?3) WHERE id = ?1")?.execute(params![
        entry,
        last,
        i64::try_from(report.dropped).unwrap_or(i64::MAX)
    ])?;
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO groups (entry, grp, began_ms, ended_ms, why, nodes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for group in &report.groups {
        let ended = group.ended.map(Timestamp::as_millis);
        put.execute(params![entry, group.group, group.began.as_millis(), ended, group.why, group.nodes.join(" ")])?;
    }
    Ok((curve, u64::try_from(last).unwrap_or(0)))
}

/// Keeps a curve within its bounds.
fn bound(tx: &Transaction<'_>, curve: i64, most: usize) -> rusqlite::Result<()> {
    const OF_CURVE: &str = "entry IN (SELECT id FROM entries WHERE curve = ?1)";
    let count: i64 = tx
        .prepare_cached(&format!("SELECT count(*) FROM points WHERE {OF_CURVE}"))?
        .query_row([curve], |row| row.get(0))?;
    if usize::try_from(count).unwrap_or(0) > most {
        let sql = format!(
            "SELECT entry, seq, at_ms, checkpoint IS NOT NULL FROM points WHERE {OF_CURVE} ORDER BY at_ms, entry, seq"
        );
        let (mut keys, mut marks) = (Vec::new(), Vec::new());
        let mut rows = tx.prepare_cached(&sql)?;
        let mut rows = rows.query([curve])?;
        while let Some(row) = rows.next()? {
            keys.push((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
            marks.push(thin::Mark { at: Timestamp::from_millis(row.get(2)?), has_checkpoint: row.get(3)? });
        }
        let gone = thin::dropped(&marks, most);
        let mut remove = tx.prepare_cached("DELETE FROM points WHERE entry = ?1 AND seq = ?2")?;
        for place in &gone {
            remove.execute(params![keys[*place].0, keys[*place].1])?;
        }
        tx.execute(
            "UPDATE curves SET thinned = thinned + ?2 WHERE id = ?1",
            params![curve, i64::try_from(gone.len()).unwrap_or(i64::MAX)],
        )?;
    }
    let groups: u32 = tx
        .prepare_cached(&format!("SELECT count(*) FROM groups WHERE {OF_CURVE}"))?
        .query_row([curve], |row| row.get(0))?;
    if groups > GROUPS {
        let sql = format!(
            "DELETE FROM groups WHERE (entry, grp) IN (SELECT entry, grp FROM groups WHERE {OF_CURVE} \
             ORDER BY began_ms DESC, entry DESC, grp DESC LIMIT -1 OFFSET ?2)"
        );
        tx.execute(&sql, params![curve, GROUPS])?;
    }
    let entries: u32 =
        tx.prepare_cached("SELECT count(*) FROM entries WHERE curve = ?1")?.query_row([curve], |row| row.get(0))?;
    if entries > EMPTY {
        drop_empty(tx, curve)?;
    }
    Ok(())
}

/// Drops calls of `fit()` of which nothing is shown, but for the newest. What they dropped is added to the newest one's.
fn drop_empty(tx: &Transaction<'_>, curve: i64) -> rusqlite::Result<()> {
    const OLD: &str = "id IN (SELECT id FROM entries WHERE curve = ?1 ORDER BY id DESC LIMIT -1 OFFSET ?2) \
        AND NOT EXISTS (SELECT 1 FROM points WHERE entry = entries.id) \
        AND NOT EXISTS (SELECT 1 FROM groups WHERE entry = entries.id)";
    let dropped: i64 = tx.query_row(
        &format!("SELECT coalesce(sum(min(dropped, ?3)), 0) FROM entries WHERE {OLD}"),
        params![curve, EMPTY, most_dropped()],
        |row| row.get(0),
    )?;
    tx.execute(&format!("DELETE FROM entries WHERE {OLD}"), params![curve, EMPTY])?;
    tx.execute(
        "UPDATE entries SET dropped = min(min(dropped, ?3) + ?2, ?3) \
         WHERE id = (SELECT max(id) FROM entries WHERE curve = ?1)",
        params![curve, dropped, most_dropped()],
    )?;
    Ok(())
}

/// Largest number of dropped reports, for SQL.
fn most_dropped() -> i64 {
    i64::try_from(DROPPED).unwrap_or(i64::MAX)
}

/// Drops so many curves that not too many are left: those of the job that has most of them first, and of equal ones that which
/// was reported to longest ago. A job with many runs does not drive out the others.
fn drop_oldest(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let count: u32 = tx.prepare_cached("SELECT count(*) FROM curves")?.query_row([], |row| row.get(0))?;
    if count <= CURVES {
        return Ok(());
    }
    tx.execute(
        "DELETE FROM curves WHERE id IN (SELECT id FROM (SELECT id, newest_ms, \
         row_number() OVER (PARTITION BY root ORDER BY newest_ms DESC, id DESC) AS place FROM curves) \
         ORDER BY place, newest_ms DESC, id DESC LIMIT -1 OFFSET ?1)",
        [CURVES],
    )?;
    tx.execute("DELETE FROM entries WHERE curve NOT IN (SELECT id FROM curves)", [])?;
    for of_entries in ["points", "groups"] {
        tx.execute(&format!("DELETE FROM {of_entries} WHERE entry NOT IN (SELECT id FROM entries)"), [])?;
    }
    Ok(())
}

fn names_of(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_default()
}

/// Row of `curves`.
struct Known {
    id: i64,
    submitted: String,
    run: String,
    names: String,
    thinned: i64,
}

fn read(db: &Connection, which: &Which) -> rusqlite::Result<Option<Curve>> {
    let mut known = db.prepare_cached(
        "SELECT id, submitted, run, names, thinned FROM curves WHERE root = ?1 ORDER BY newest_ms DESC, id DESC",
    )?;
    let known = known.query_map([&which.root], |row| {
        Ok(Known {
            id: row.get(0)?,
            submitted: row.get(1)?,
            run: row.get(2)?,
            names: row.get(3)?,
            thinned: row.get(4)?,
        })
    })?;
    let mut known: Vec<Known> = known.collect::<rusqlite::Result<_>>()?;
    // An id that was used again is another job: the newest one is meant, unless it is said which.
    let submitted = which.submitted.clone().or_else(|| known.first().map(|newest| newest.submitted.clone()));
    known.retain(|curve| Some(&curve.submitted) == submitted.as_ref());
    let runs: Vec<String> = known.iter().map(|curve| curve.run.clone()).collect();
    let Some(chosen) = known.into_iter().find(|curve| which.run.as_ref().is_none_or(|run| *run == curve.run)) else {
        return Ok(None);
    };
    let metrics = names_of(&chosen.names);
    let mut curve = Curve {
        run: chosen.run,
        runs,
        dropped: u64::try_from(chosen.thinned).unwrap_or(0),
        count: 0,
        points: Vec::new(),
        groups: Vec::new(),
        metrics,
    };
    // An earlier labd stored what it was told, and a sum that overflows is an error.
    let mut dropped = db.prepare_cached("SELECT coalesce(sum(min(dropped, ?2)), 0) FROM entries WHERE curve = ?1")?;
    let dropped: i64 = dropped.query_row(params![chosen.id, most_dropped()], |row| row.get(0))?;
    curve.dropped = curve.dropped.saturating_add(u64::try_from(dropped).unwrap_or(0));
    let mut groups = db.prepare_cached(
        "SELECT entry, grp, submission, attempt, began_ms, ended_ms, why, nodes FROM groups JOIN entries ON entries.id = entry \
         WHERE curve = ?1 ORDER BY attempt, entry, grp",
    )?;
    let mut rows = groups.query([chosen.id])?;
    let mut keys: Vec<(i64, u32)> = Vec::new();
    while let Some(row) = rows.next()? {
        keys.push((row.get(0)?, row.get(1)?));
        let nodes: String = row.get(7)?;
        curve.groups.push(CurveGroup {
            number: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            submission_id: row.get(2)?,
            attempt: row.get(3)?,
            began_at: Timestamp::from_millis(row.get(4)?),
            ended_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
            why: row.get(6)?,
            nodes: nodes.split_whitespace().map(str::to_owned).collect(),
        });
    }
    let mut count =
        db.prepare_cached("SELECT count(*) FROM points WHERE entry IN (SELECT id FROM entries WHERE curve = ?1)")?;
    curve.count = count.query_row([chosen.id], |row| row.get::<_, u32>(0))?.into();
    if which.without_points {
        return Ok(Some(curve));
    }
    let mut points = db.prepare_cached(
        "SELECT entry, grp, at_ms, checkpoint, vals FROM points JOIN entries ON entries.id = entry \
         WHERE curve = ?1 ORDER BY at_ms, entry, seq",
    )?;
    let mut rows = points.query([chosen.id])?;
    while let Some(row) = rows.next()? {
        let key = (row.get(0)?, row.get(1)?);
        let number = keys.iter().position(|known| *known == key).map_or(0, |place| place + 1);
        let blob = row.get_ref(4)?.as_blob()?;
        let values = (0..curve.metrics.len()).map(|i| {
            let bytes = blob.get(i * 8..i * 8 + 8)?.try_into().ok()?;
            Some(f64::from_le_bytes(bytes)).filter(|value| value.is_finite())
        });
        curve.points.push(CurvePoint {
            at: Timestamp::from_millis(row.get(2)?),
            group: u32::try_from(number).unwrap_or(u32::MAX),
            checkpoint: row.get(3)?,
            values: values.collect(),
        });
    }
    Ok(Some(curve))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::report::{Group, Point};

    fn report(root: &str, run_id: &str, seqs: std::ops::RangeInclusive<u64>) -> Report {
        let point = |seq: u64| Point {
            seq,
            at: Timestamp::from_millis(1_000 * i64::try_from(seq).unwrap_or(0)),
            group: 1,
            checkpoint: seq.is_multiple_of(10).then(|| format!("checkpoint_{seq}")),
            values: vec![Some(1.0 / seq as f64), seq.is_multiple_of(2).then_some(0.5)],
        };
        Report {
            root: root.into(),
            submitted: "2026".into(),
            submission: root.into(),
            attempt: 1,
            run: "food11".into(),
            run_id: run_id.into(),
            names: vec!["loss".into(), "accuracy".into()],
            points: seqs.map(point).collect(),
            groups: Vec::new(),
            dropped: 0,
        }
    }

    fn of(root: &str) -> Which {
        Which { root: root.into(), ..Which::default() }
    }

    fn began(group: u32, s: i64) -> Group {
        Group {
            group,
            began: Timestamp::from_millis(s * 1_000),
            ended: None,
            why: None,
            nodes: vec!["198.18.1.20".into()],
        }
    }

    #[test]
    fn a_job_that_is_submitted_again_continues_its_curve_and_a_restart_changes_nothing_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("training.db");
        let (mut store, note) = Store::open(&path);
        assert_eq!(note, None);
        let first = Report { groups: vec![began(1, 1)], ..report("a", "one", 1..=3) };
        let failed = Group { ended: Some(Timestamp::from_millis(3_500)), why: Some("killed".into()), ..began(1, 1) };
        let ended = Report { groups: vec![failed], ..report("a", "one", 2..=3) };
        let again = Report {
            submission: "a-r1".into(),
            attempt: 2,
            names: vec!["accuracy".into(), "lr".into()],
            groups: vec![began(1, 5)],
            ..report("a", "two", 6..=7)
        };
        store.write(&[first, ended, again]).expect("written");
        drop(store);
        let curve = Store::open(&path).0.read(&of("a")).expect("readable").expect("there");
        assert_eq!(curve.metrics, ["loss", "accuracy", "lr"]);
        let points: Vec<_> =
            curve.points.iter().map(|p| (p.at.as_millis() / 1_000, p.group, p.values.clone())).collect();
        let expected = [
            (1, 1, vec![Some(1.0), None, None]),
            (2, 1, vec![Some(0.5), Some(0.5), None]),
            (3, 1, vec![Some(1.0 / 3.0), None, None]),
            (6, 2, vec![None, Some(1.0 / 6.0), Some(0.5)]),
            (7, 2, vec![None, Some(1.0 / 7.0), None]),
        ];
        assert_eq!(points, expected, "each once, whoever posted it how often");
        let groups: Vec<_> =
            curve.groups.iter().map(|g| (g.number, g.submission_id.as_str(), g.why.as_deref())).collect();
        assert_eq!(groups, [(1, "a", Some("killed")), (2, "a-r1", None)]);
        assert_eq!((curve.run.as_str(), curve.dropped), ("food11", 0));
    }

    #[test]
    fn a_full_curve_is_thinned_and_what_was_thinned_out_does_not_come_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = Store::with_most(&dir.path().join("training.db"), 100);
        for tens in 0..50 {
            store.write(&[report("a", "one", tens * 10 + 1..=tens * 10 + 10)]).expect("written");
        }
        store.write(&[report("a", "one", 1..=500)]).expect("posted again");
        let curve = store.read(&of("a")).expect("readable").expect("there");
        let checkpoints = curve.points.iter().filter(|p| p.checkpoint.is_some()).count();
        assert!(curve.points.len() <= 100 && checkpoints == 50, "{} and {checkpoints}", curve.points.len());
        assert_eq!(curve.points.last().map(|p| p.at.as_millis()), Some(500_000), "the newest");
        assert_eq!(curve.dropped, 500 - curve.points.len() as u64);
    }

    #[test]
    fn there_are_so_many_curves_and_the_one_that_nothing_came_to_for_longest_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, _) = Store::open(&dir.path().join("training.db"));
        let reports: Vec<Report> = (1..=u64::from(CURVES) + 1)
            .map(|n| Report { groups: vec![began(1, 1)], ..report(&format!("job{n}"), "one", n..=n) })
            .collect();
        store.write(&reports).expect("written");
        assert_eq!(store.read(&of("job1")).expect("readable"), None);
        assert!(store.read(&of("job2")).expect("readable").is_some_and(|curve| curve.points.len() == 1));
        let rows = |table: &str| -> u32 {
            let db = store.db.as_ref().expect("open");
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a number")
        };
        assert_eq!(["curves", "entries", "points", "groups"].map(rows), [CURVES; 4]);
    }

    #[test]
    fn a_job_with_many_runs_drives_out_its_own_curves_and_no_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, _) = Store::open(&dir.path().join("training.db"));
        store.write(&[report("old", "one", 1..=1), report("older", "one", 1..=1)]).expect("written");
        let greedy = |n: u64| Report { run: format!("run{n}"), ..report("greedy", &format!("id{n}"), n..=n) };
        let reports: Vec<Report> = (2..=u64::from(CURVES) + 51).map(greedy).collect();
        store.write(&reports).expect("written");
        assert!(["old", "older"].iter().all(|root| store.read(&of(root)).expect("readable").is_some()));
        let runs = store.read(&of("greedy")).expect("readable").expect("there").runs;
        assert_eq!((runs.len(), runs.last().map(String::as_str)), (198, Some("run54")), "its oldest went");
    }

    #[test]
    fn numbers_without_measure_neither_spoil_a_curve_nor_end_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, _) = Store::open(&dir.path().join("training.db"));
        let lost = |id: &str| Report { dropped: u64::MAX, ..report("a", id, 1..=1) };
        store.write(&[lost("one"), lost("two")]).expect("written");
        assert_eq!(store.read(&of("a")).expect("readable").map(|curve| curve.dropped), Some(2 * DROPPED));
        let far = 1 << 53;
        assert_eq!(store.write(&[report("a", "one", far..=far)]), Ok(vec![1]), "not taken, and not called stored");
        assert_eq!(store.write(&[report("a", "one", 2..=3)]), Ok(vec![3]));
        assert_eq!(store.read(&of("a")).expect("readable").map(|curve| curve.points.len()), Some(4));
    }

    #[test]
    fn calls_of_which_nothing_is_shown_are_bounded_and_what_they_dropped_is_still_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, _) = Store::open(&dir.path().join("training.db"));
        let call = |n: i64| Report {
            points: Vec::new(),
            groups: vec![began(1, n)],
            dropped: 2,
            ..report("a", &format!("id{n}"), 1..=1)
        };
        store.write(&[report("a", "first", 1..=1)]).expect("written");
        for hundred in 0..6 {
            store.write(&(hundred * 100..hundred * 100 + 100).map(call).collect::<Vec<_>>()).expect("written");
        }
        let db = store.db.as_ref().expect("open");
        let entries: u32 = db.query_row("SELECT count(*) FROM entries", [], |row| row.get(0)).expect("a number");
        assert_eq!(entries, EMPTY + 1, "the newest, and the one with a point");
        let curve = store.read(&of("a")).expect("readable").expect("there");
        assert_eq!((curve.dropped, curve.points.len()), (1_200, 1));
    }

    #[test]
    fn a_curve_is_thinned_while_it_is_written_and_not_when_it_is_large() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("training.db");
        let mut store = Store::with_most(&path, 100);
        store
            .with(|db, _| {
                db.execute_batch(
                    "CREATE TABLE most (points INTEGER); INSERT INTO most VALUES (0);
                 CREATE TRIGGER largest AFTER INSERT ON points BEGIN
                     UPDATE most SET points = max(points, (SELECT count(*) FROM points)); END;",
                )
            })
            .expect("a trigger");
        let reports: Vec<Report> = (0..6).map(|n| report("a", "one", n * 400 + 1..=n * 400 + 400)).collect();
        store.write(&reports).expect("written");
        let db = store.db.as_ref().expect("open");
        let most: u32 = db.query_row("SELECT points FROM most", [], |row| row.get(0)).expect("a number");
        assert!(most > 500 && most <= 100 + 1_000, "{most}");
    }

    #[test]
    fn an_id_that_was_used_again_is_another_job_and_a_job_may_have_several_runs() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, _) = Store::open(&dir.path().join("training.db"));
        let old = Report { submitted: "2025".into(), ..report("a", "one", 1..=1) };
        let other = Report { run: "second".into(), ..report("a", "three", 3..=3) };
        store.write(&[old, report("a", "two", 2..=2), other]).expect("written");
        let mut times = |submitted: Option<&str>, run: Option<&str>| {
            let which = Which {
                root: "a".into(),
                submitted: submitted.map(str::to_owned),
                run: run.map(str::to_owned),
                without_points: false,
            };
            let curve = store.read(&which).expect("readable")?;
            Some((curve.points[0].at.as_millis() / 1_000, curve.runs))
        };
        let both = vec!["second".to_owned(), "food11".to_owned()];
        assert_eq!(times(None, None), Some((3, both.clone())), "what was reported to last");
        assert_eq!(times(Some("2026"), Some("food11")), Some((2, both)));
        assert_eq!(times(Some("2025"), None), Some((1, vec!["food11".to_owned()])));
        assert_eq!(times(Some("2024"), None), None);
        assert_eq!(times(None, Some("third")), None);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_a_newer_labds_is_left_alone_and_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("training.db");
        std::fs::write(&path, "no database at all, and long enough to be taken for one by its length")
            .expect("written");
        let (mut store, note) = Store::open(&path);
        assert!(note.is_some_and(|line| line.contains("is damaged") || line.contains("are damaged")));
        store.write(&[report("a", "one", 1..=1)]).expect("a new one");
        store.with(|db, _| db.pragma_update(None, "user_version", 99)).expect("from the future");
        drop(store);
        let (mut store, note) = Store::open(&path);
        assert!(note.is_some_and(|line| line.contains("newer labd") && !line.contains('\n')));
        assert!(store.write(&[report("a", "one", 2..=2)]).is_err_and(|line| line.contains("not recorded")));
    }

    #[test]
    fn a_file_whose_damage_shows_later_is_set_aside_then() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("training.db");
        Store::open(&path).0.write(&[report("a", "one", 1..=1)]).expect("written");
        let mut bytes = std::fs::read(&path).expect("there");
        bytes[4_096..].fill(0xff);
        std::fs::write(&path, bytes).expect("written");
        let (mut store, note) = Store::open(&path);
        assert_eq!(note, None, "its first page is whole");
        let line = store.write(&[report("a", "one", 2..=2)]).expect_err("damaged");
        assert!(line.contains("are damaged") && line.contains(".corrupt-") && !line.contains('\n'), "{line}");
        assert_eq!(store.write(&[report("a", "one", 2..=2)]), Ok(vec![2]), "a new one");
    }
}
