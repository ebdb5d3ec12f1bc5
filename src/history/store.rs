//! The file of the minutes and of the accounts. It is bounded by what was written, not by the clock: one that jumps deletes
//! nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::civil::Date;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{
    Span,
    minute::{Minute, each_row},
    series::Grid,
    usage::{Accounts, Key, Spent, spend, within},
};
use crate::{
    db::{self, OpenFailure, Shape},
    time::Timestamp,
};

/// `labh` in ASCII marks the file.
const SHAPE: Shape = Shape { migrations: MIGRATIONS, application_id: 0x6c61_6268, what: "a file of GPUs' history" };

const MIGRATIONS: &[&str] = &["CREATE TABLE gpus (
        id   INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE minutes (
        seq     INTEGER PRIMARY KEY,
        minute  INTEGER NOT NULL UNIQUE,
        seconds INTEGER NOT NULL,
        rows    BLOB NOT NULL
    ) STRICT;
    CREATE TABLE spans (
        seq    INTEGER PRIMARY KEY,
        gpu    INTEGER NOT NULL,
        job    TEXT NOT NULL,
        from_s INTEGER NOT NULL,
        to_s   INTEGER NOT NULL,
        UNIQUE (gpu, job, from_s)
    ) STRICT;
    CREATE INDEX spans_to ON spans (to_s);
    CREATE TABLE days (
        id  INTEGER PRIMARY KEY,
        day TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE usage (
        day     INTEGER NOT NULL,
        job     TEXT NOT NULL,
        user    TEXT NOT NULL,
        gpu     INTEGER NOT NULL,
        held_ms INTEGER NOT NULL,
        busy_ms INTEGER NOT NULL,
        idle_ms INTEGER NOT NULL,
        PRIMARY KEY (day, job, user, gpu)
    ) STRICT, WITHOUT ROWID;"];

/// Number of minutes that are kept: 7 days.
pub(super) const MINUTES: i64 = 7 * 24 * 60;
/// Number of spans that are kept: 16 GPUs with a new job every 8 minutes for 7 days.
const SPANS: i64 = 20_000;
/// Number of days that are kept of the accounts: a year, and a month to look back at it.
pub(super) const DAYS: i64 = 400;

/// What is written at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) minutes: Vec<Minute>,
    pub(super) spans: Vec<Span>,
    pub(super) accounts: Accounts,
}

impl Batch {
    /// Whether nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.minutes.is_empty() && self.spans.is_empty() && self.accounts.is_empty()
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    db: Option<Connection>,
}

impl Store {
    /// Opens or begins the file. A damaged one is set aside, a newer labd's is left alone, and where nothing can be written it
    /// is tried again with each write. The text is for a person.
    pub(super) fn open(path: &Path) -> (Self, Option<String>) {
        let mut store = Self { path: path.to_owned(), db: None };
        let note = store.connect().err();
        (store, note)
    }

    /// Opens the file if it is not open; the error is one line.
    fn connect(&mut self) -> Result<(), String> {
        if self.db.is_some() {
            return Ok(());
        }
        match self.open_now() {
            Ok(()) => Ok(()),
            Err(OpenFailure::Newer(found)) => Err(self.not_kept(&format!(
                "it was written by a newer labd (schema {found}, this one knows up to {}): install that labd again, or move \
                 the file away to begin a new one",
                SHAPE.version()
            ))),
            Err(OpenFailure::Corrupt(reason)) => Err(self.begin_anew(&reason)),
            Err(OpenFailure::NotNow(reason)) => Err(self.not_kept(&reason)),
        }
    }

    /// Sets a damaged file aside and begins a new one; says so.
    fn begin_anew(&mut self, reason: &str) -> String {
        let aside = match db::set_aside(&self.path, Timestamp::now()) {
            Ok(aside) => aside,
            Err(e) => return self.not_kept(&format!("it is damaged and cannot be renamed: {e}")),
        };
        match self.open_now() {
            Ok(()) => format!(
                "the GPUs' history `{}` is damaged ({reason}): it was kept as `{}` and a new one begins",
                self.path.display(),
                aside.display()
            ),
            Err(e) => self.not_kept(&e.reason()),
        }
    }

    fn open_now(&mut self) -> Result<(), OpenFailure> {
        self.db = Some(db::open(&self.path, &SHAPE)?);
        Ok(())
    }

    fn not_kept(&self, reason: &str) -> String {
        format!("the GPUs' history is not recorded in `{}`: {reason}", self.path.display())
    }

    /// Writes all of it or nothing; the error is one line.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), String> {
        let mut trouble = self.connect().err();
        // After an error the next try has a fresh connection: some leave the old one unusable.
        let Some(mut db) = self.db.take() else {
            return Err(trouble.take().unwrap_or_else(|| self.not_kept("it cannot be opened")));
        };
        if let Err(e) = put(&mut db, batch) {
            drop(db);
            let reason = db::in_words(&e);
            return Err(if db::is_corrupt(&e) { self.begin_anew(&reason) } else { self.not_kept(&reason) });
        }
        self.db = Some(db);
        if let Some(line) = trouble {
            tracing::warn!("{line}");
        }
        Ok(())
    }

    /// Sorts the minutes of a chart's time into it, and returns the spans of that time.
    pub(super) fn chart(&self, grid: &mut Grid) -> Vec<Span> {
        let Some(db) = &self.db else { return Vec::new() };
        chart(db, grid).unwrap_or_else(|e| {
            tracing::debug!("cannot read the GPUs' history: {}", db::in_words(&e));
            Vec::new()
        })
    }

    /// Accounts of the days from `first` on.
    pub(super) fn accounts(&self, first: Date) -> Accounts {
        let Some(db) = &self.db else { return Accounts::new() };
        accounts(db, Some(first)).unwrap_or_else(|e| {
            tracing::debug!("cannot read the account of GPU hours: {}", db::in_words(&e));
            Accounts::new()
        })
    }
}

/// GPUs by their numbers on disk.
fn gpus(db: &Connection) -> rusqlite::Result<BTreeMap<i64, Arc<str>>> {
    let mut all = db.prepare_cached("SELECT id, name FROM gpus")?;
    all.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?.into())))?.collect()
}

fn chart(db: &Connection, grid: &mut Grid) -> rusqlite::Result<Vec<Span>> {
    let gpus = gpus(db)?;
    let mut minutes = db.prepare_cached("SELECT minute, rows FROM minutes WHERE minute >= ?1 AND minute < ?2")?;
    let mut rows = minutes.query(params![grid.start().div_euclid(60), grid.end().div_euclid(60)])?;
    while let Some(row) = rows.next()? {
        let at = row.get::<_, i64>(0)?.saturating_mul(60);
        each_row(row.get_ref(1)?.as_blob().unwrap_or_default(), |gpu, means, maxima| {
            if let Some(gpu) = gpus.get(&i64::from(gpu)) {
                grid.add(gpu, at, means, maxima);
            }
        });
    }
    let mut spans = db.prepare_cached("SELECT gpu, job, from_s, to_s FROM spans WHERE to_s >= ?1 AND from_s < ?2")?;
    let span = |row: &rusqlite::Row<'_>| {
        let gpu = gpus.get(&row.get(0)?).cloned();
        let (job, from, to) = (row.get::<_, String>(1)?.into(), row.get(2)?, row.get(3)?);
        Ok(gpu.map(|gpu| Span { gpu, job, from, to }))
    };
    let spans = spans.query_map([grid.start(), grid.end()], span)?;
    spans.filter_map(Result::transpose).collect()
}

/// Accounts from a day on.
fn accounts(db: &Connection, first: Option<Date>) -> rusqlite::Result<Accounts> {
    let gpus = gpus(db)?;
    let first = first.map(|day| day.to_string()).unwrap_or_default();
    let mut all = db.prepare_cached(
        "SELECT days.day, job, user, gpu, held_ms, busy_ms, idle_ms FROM usage JOIN days ON days.id = usage.day \
         WHERE days.day >= ?1",
    )?;
    let mut found = Accounts::new();
    let mut rows = all.query([first])?;
    while let Some(row) = rows.next()? {
        // What another labd may have written and cannot be read is left out.
        let Ok(day) = row.get::<_, String>(0)?.parse() else { continue };
        let Some(gpu) = gpus.get(&row.get(3)?).cloned() else { continue };
        let user: String = row.get(2)?;
        let user = (!user.is_empty()).then(|| user.into());
        let ms = |column| row.get::<_, i64>(column).map(|ms| u64::try_from(ms).unwrap_or(0));
        let spent = Spent { held: ms(4)?, busy: ms(5)?, idle: ms(6)? };
        found.entry(Key { day, job: row.get::<_, String>(1)?.into(), user, gpu }).or_default().add(spent);
    }
    Ok(found)
}

/// Writes a batch, and removes what is too much then.
fn put(db: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    let mut numbers: BTreeMap<Arc<str>, i64> = gpus(&tx)?.into_iter().map(|(id, name)| (name, id)).collect();
    let named = batch.minutes.iter().flat_map(|minute| &minute.rows).map(|row| &row.gpu);
    let named = named.chain(batch.spans.iter().map(|span| &span.gpu)).chain(batch.accounts.keys().map(|key| &key.gpu));
    for gpu in named {
        if !numbers.contains_key(gpu) {
            tx.prepare_cached("INSERT INTO gpus (name) VALUES (?1)")?.execute([&**gpu])?;
            numbers.insert(Arc::clone(gpu), tx.last_insert_rowid());
        }
    }
    let number = |gpu: &str| numbers.get(gpu).and_then(|id| u16::try_from(*id).ok());
    for minute in &batch.minutes {
        // A clock that was set back shows a minute twice: the one of which more was seen stays.
        tx.prepare_cached(
            "INSERT INTO minutes (minute, seconds, rows) VALUES (?1, ?2, ?3) ON CONFLICT (minute) DO UPDATE \
             SET seconds = excluded.seconds, rows = excluded.rows WHERE excluded.seconds >= seconds",
        )?
        .execute(params![minute.at, minute.seconds, minute.bytes(number)])?;
    }
    for span in &batch.spans {
        let Some(gpu) = number(&span.gpu) else { continue };
        tx.prepare_cached(
            "INSERT INTO spans (gpu, job, from_s, to_s) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (gpu, job, from_s) DO UPDATE \
             SET to_s = max(to_s, excluded.to_s)",
        )?
        .execute(params![gpu, &*span.job, span.from, span.to])?;
    }
    put_accounts(&tx, &batch.accounts, &numbers)?;
    for (sql, most) in [
        ("DELETE FROM minutes WHERE seq <= (SELECT max(seq) FROM minutes) - ?1", MINUTES),
        ("DELETE FROM spans WHERE seq <= (SELECT max(seq) FROM spans) - ?1", SPANS),
        ("DELETE FROM usage WHERE day <= (SELECT max(id) FROM days) - ?1", DAYS),
        ("DELETE FROM days WHERE id <= (SELECT max(id) FROM days) - ?1", DAYS),
    ] {
        tx.prepare_cached(sql)?.execute([most])?;
    }
    tx.commit()
}

/// Adds to the accounts. A day that has its jobs already takes no more of them.
fn put_accounts(tx: &Transaction<'_>, new: &Accounts, numbers: &BTreeMap<Arc<str>, i64>) -> rusqlite::Result<()> {
    let days: BTreeSet<Date> = new.keys().map(|key| key.day).collect();
    for day in days {
        let text = day.to_string();
        let id: Option<i64> =
            tx.prepare_cached("SELECT id FROM days WHERE day = ?1")?.query_row([&text], |row| row.get(0)).optional()?;
        let id = if let Some(id) = id {
            id
        } else {
            tx.prepare_cached("INSERT INTO days (day) VALUES (?1)")?.execute([&text])?;
            tx.last_insert_rowid()
        };
        let mut of_day = of_day(tx, id, day)?;
        for (key, spent) in new.iter().filter(|(key, _)| key.day == day) {
            let key = within(key.clone(), of_day.keys());
            let Some(gpu) = numbers.get(&key.gpu) else { continue };
            tx.prepare_cached(
                "INSERT INTO usage (day, job, user, gpu, held_ms, busy_ms, idle_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                 ON CONFLICT (day, job, user, gpu) DO UPDATE SET held_ms = held_ms + excluded.held_ms, \
                 busy_ms = busy_ms + excluded.busy_ms, idle_ms = idle_ms + excluded.idle_ms",
            )?
            .execute(params![
                id,
                &*key.job,
                key.user.as_deref().unwrap_or_default(),
                gpu,
                i64::try_from(spent.held).unwrap_or(i64::MAX),
                i64::try_from(spent.busy).unwrap_or(i64::MAX),
                i64::try_from(spent.idle).unwrap_or(i64::MAX),
            ])?;
            spend(&mut of_day, key, *spent);
        }
    }
    Ok(())
}

/// Jobs and users that a day has accounts of; which GPUs they held does not matter here.
fn of_day(tx: &Transaction<'_>, id: i64, day: Date) -> rusqlite::Result<Accounts> {
    let mut known = tx.prepare_cached("SELECT DISTINCT job, user FROM usage WHERE day = ?1")?;
    let known = known.query_map([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    known
        .map(|row| {
            let (job, user) = row?;
            let user = (!user.is_empty()).then(|| user.into());
            Ok((Key { day, job: job.into(), user, gpu: "".into() }, Spent::default()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::civil::date;

    use super::*;
    use crate::history::{
        minute::Row,
        series::{HistoryView, pack},
    };

    fn minute(at: i64, seconds: u32, used: f32) -> Minute {
        let values = pack(&[Some(used), None, None, None]);
        Minute { at, seconds, rows: vec![Row { gpu: "G".into(), means: values, maxima: values }] }
    }

    fn minutes(minutes: impl IntoIterator<Item = Minute>) -> Batch {
        Batch { minutes: minutes.into_iter().collect(), ..Batch::default() }
    }

    fn key(day: Date, job: &str, gpu: &str) -> Key {
        Key { day, job: job.into(), user: None, gpu: gpu.into() }
    }

    fn held(batch: impl IntoIterator<Item = (Key, u64)>) -> Batch {
        let spent = |held| Spent { held, ..Spent::default() };
        Batch { accounts: batch.into_iter().map(|(key, ms)| (key, spent(ms))).collect(), ..Batch::default() }
    }

    /// Chart of the first hours after the epoch.
    fn shown(store: &Store, hours: i64) -> HistoryView {
        let mut grid = Grid::up_to(hours * 3_600 - 1, hours * 3_600, 60, 2_000);
        let spans = store.chart(&mut grid);
        grid.view(&[], &spans)
    }

    fn opened(path: &Path) -> Store {
        let (store, note) = Store::open(path);
        assert_eq!(note, None);
        store
    }

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        let mut store = opened(&path);
        let span = |to| Span { gpu: "G".into(), job: "food11".into(), from: 60, to };
        let mut batch = Batch { spans: vec![span(100)], ..minutes([minute(1, 60, 10.0), minute(3, 60, 30.0)]) };
        batch.accounts = held([(key(date(2026, 11, 30), "food11", "G"), 60_000)]).accounts;
        store.write(&batch).expect("written");
        // A minute that the clock shows again: the better one stays. A span goes on.
        store
            .write(&Batch { spans: vec![span(170)], ..minutes([minute(1, 59, 99.0), minute(3, 60, 31.0)]) })
            .expect("written");
        store.write(&held([(key(date(2026, 11, 30), "food11", "G"), 30_000)])).expect("written");
        drop(store);
        let store = opened(&path);
        let view = shown(&store, 1);
        assert_eq!(view.gpus[0].used[..5], [None, Some(10.0), None, Some(31.0), None]);
        assert_eq!((view.gpus[0].jobs.len(), view.gpus[0].jobs[0].to), (1, 170));
        let accounts = store.accounts(date(2026, 11, 30));
        assert_eq!(accounts.values().map(|spent| spent.held).collect::<Vec<_>>(), [90_000]);
        assert_eq!(store.accounts(date(2026, 12, 1)), Accounts::new());
    }

    #[test]
    fn it_is_bounded_and_a_clock_that_jumps_deletes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = opened(&dir.path().join("history.db"));
        store.write(&minutes((0..100).map(|at| minute(at, 60, 1.0)))).expect("written");
        // Ten years on, and back again.
        store.write(&minutes((5_000_000..5_000_060).map(|at| minute(at, 60, 2.0)))).expect("written");
        store.write(&minutes((100..110).map(|at| minute(at, 60, 3.0)))).expect("written");
        assert_eq!(shown(&store, 2).gpus[0].used.iter().flatten().count(), 110);
        store.write(&minutes((200..200 + MINUTES).map(|at| minute(at, 60, 4.0)))).expect("written");
        let count = |store: &Store, table: &str| -> i64 {
            let db = store.db.as_ref().expect("open");
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("counted")
        };
        assert_eq!(count(&store, "minutes"), MINUTES);
        let day = |n: i64| date(2026, 1, 1).checked_add(jiff::Span::new().days(n)).expect("a day");
        for n in 0..DAYS + 10 {
            store.write(&held([(key(day(n), "food11", "G"), 1)])).expect("written");
        }
        assert_eq!((count(&store, "days"), count(&store, "usage")), (DAYS, DAYS));
        let spans = (0..SPANS + 10).map(|n| Span { gpu: "G".into(), job: "a".into(), from: n, to: n });
        store.write(&Batch { spans: spans.collect(), ..Batch::default() }).expect("written");
        assert_eq!(count(&store, "spans"), SPANS);
    }

    #[test]
    fn a_day_takes_two_hundred_jobs_over_all_batches() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = opened(&dir.path().join("history.db"));
        let day = date(2026, 11, 30);
        for batch in 0..3 {
            let jobs = (0..150).map(|n| (key(day, &format!("job-{batch}-{n}"), "G"), 1));
            store.write(&held(jobs.chain([(key(day, "job-0-0", &format!("H{batch}")), 1)]))).expect("written");
        }
        let accounts = store.accounts(day);
        let jobs: BTreeSet<&Arc<str>> = accounts.keys().map(|key| &key.job).collect();
        assert_eq!(jobs.len(), super::super::usage::JOBS + 1);
        let of = |job: &str, gpu: &str| accounts.get(&key(day, job, gpu)).map(|spent| spent.held);
        assert_eq!((of("others", "G"), of("job-0-0", "H2")), (Some(250), Some(1)));
        assert_eq!(accounts.values().map(|spent| spent.held).sum::<u64>(), 453);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_a_newer_one_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        fs::write(&path, "not a database, and longer than the head of one would be".repeat(20)).expect("written");
        let (mut store, note) = Store::open(&path);
        assert!(note.expect("said").contains("is damaged"));
        store.write(&minutes([minute(1, 60, 10.0)])).expect("a new one begins");
        assert_eq!(
            fs::read_dir(dir.path())
                .expect("read")
                .filter(|f| { f.as_ref().is_ok_and(|f| f.file_name().to_string_lossy().contains("corrupt")) })
                .count(),
            1
        );
        store.db.as_ref().expect("open").pragma_update(None, "user_version", 99).expect("set");
        drop(store);
        let (mut store, note) = Store::open(&path);
        assert!(note.expect("said").contains("newer labd"));
        assert!(store.write(&minutes([minute(2, 60, 10.0)])).expect_err("refused").contains("newer labd"));
        assert!(shown(&store, 1).gpus.is_empty());
        fs::remove_file(&path).expect("removed");
        store.write(&minutes([minute(3, 60, 10.0)])).expect("as the line says, a new one begins");
        assert_eq!(shown(&store, 1).gpus[0].used.iter().flatten().count(), 1);
    }

    #[test]
    fn one_that_cannot_be_written_now_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        // Something that is no folder stands in the way.
        let folder = dir.path().join("lab");
        fs::write(&folder, "").expect("written");
        let (mut store, note) = Store::open(&folder.join("history.db"));
        assert!(note.expect("said").contains("is not recorded"));
        assert!(store.write(&minutes([minute(1, 60, 10.0)])).is_err());
        fs::remove_file(&folder).expect("removed");
        store.write(&minutes([minute(1, 60, 10.0)])).expect("written now");
        assert_eq!(shown(&store, 1).gpus.len(), 1);
    }
}
