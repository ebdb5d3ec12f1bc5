//! The ledger's file. What is written here is on disk before Ray hears of a job.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::{Connection, params};

use super::{
    decide::{Job, State},
    past::{self, Past},
    reserve::Reserve,
    submission::Submission,
};
use crate::{
    db::{self, OpenFailure, Shape},
    time::Timestamp,
};

/// `labj` in ASCII marks the file.
const SHAPE: Shape = Shape { migrations: MIGRATIONS, application_id: 0x6c61_626a, what: "a job ledger" };

const MIGRATIONS: &[&str] = &[
    "CREATE TABLE jobs (
        id           TEXT PRIMARY KEY,
        root         TEXT NOT NULL,
        attempt      INTEGER NOT NULL,
        request      TEXT NOT NULL,
        submitted_ms INTEGER NOT NULL,
        state        TEXT NOT NULL
    ) STRICT;
    CREATE INDEX jobs_root ON jobs (root, attempt);",
    // Until then a run was called as its root.
    "ALTER TABLE jobs ADD COLUMN run TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN note TEXT;
    UPDATE jobs SET run = root;
    CREATE TABLE used (
        id    TEXT PRIMARY KEY,
        run   TEXT NOT NULL,
        ended TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX used_at ON used (at_ms);",
    "ALTER TABLE jobs ADD COLUMN came_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE jobs SET came_ms = coalesce((SELECT submitted_ms FROM jobs AS of WHERE of.id = jobs.root), submitted_ms);",
];

/// Why the ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Written by a newer labd: to continue would lose what that one wrote.
    #[error(
        "the job ledger `{}` was written by a newer labd (schema {found}, this one knows up to {ours}): install that labd \
         again, or move the file away to begin a new ledger",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest one this labd knows.
        ours: u32,
    },
    /// The folder of packages cannot be used.
    #[error("the folder `{}` for uploaded packages cannot be used: {reason}", path.display())]
    Packages {
        /// The folder.
        path: PathBuf,
        /// Reason.
        reason: std::io::Error,
    },
}

/// Store of the ledger. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    db: Arc<Mutex<Option<Connection>>>,
    /// Whether what was on disk at the start has been read.
    read: Arc<AtomicBool>,
    reserve: Reserve,
    #[cfg(test)]
    shelf: Option<Shelf>,
}

/// A simulated disk. Clones are the same one.
#[cfg(test)]
pub(crate) type Shelf = Arc<Mutex<Disk>>;

/// Contents of a simulated disk.
#[cfg(test)]
#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) book: BTreeMap<String, Job>,
    used: BTreeMap<String, Past>,
    /// Whether nothing can be written.
    pub(crate) is_full: bool,
}

/// Contents of the ledger at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Every job.
    pub book: BTreeMap<String, Job>,
    /// Ids of jobs that ended, deleted ones included.
    pub used: BTreeMap<String, Past>,
    /// Ids of jobs whose entries this labd cannot read: they stay on disk as they are.
    pub unreadable: BTreeSet<String>,
    /// Note for a person, such as about a damaged file that was set aside.
    pub note: Option<String>,
}

impl Store {
    /// Opens or begins the ledger. Only a newer labd's is an error: it is left as it is. A damaged one is set aside;
    /// where nothing can be written, jobs are kept in memory, and [`Store::save`] says so.
    pub fn open(path: &Path) -> Result<(Self, Found), LedgerError> {
        let store = Self {
            path: path.to_owned(),
            db: Arc::default(),
            read: Arc::default(),
            reserve: Reserve::at(path.with_file_name("reserve")),
            #[cfg(test)]
            shelf: None,
        };
        let mut loaded = store.load();
        if matches!(&loaded, Err(OpenFailure::NotNow(reason)) if reason == db::FULL) && store.make_room() {
            loaded = store.load();
        }
        let found = match loaded {
            Ok(found) => found,
            Err(OpenFailure::Newer(found)) => {
                return Err(LedgerError::Newer { path: path.to_owned(), found, ours: SHAPE.version() });
            }
            Err(OpenFailure::Corrupt(reason)) => store.begin_anew(&reason),
            // What cannot be written can often be read.
            Err(OpenFailure::NotNow(reason)) => {
                let found = db::read(path, &SHAPE, read);
                store.read.store(found.is_ok(), Ordering::Release);
                Found { note: Some(store.not_kept(&reason)), ..found.unwrap_or_default() }
            }
        };
        store.keep_room();
        Ok((store, found))
    }

    #[cfg(test)]
    pub(super) fn simulated(shelf: &Shelf) -> (Self, Found) {
        let Disk { book, used, .. } = shelf.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let store = Self {
            path: PathBuf::new(),
            db: Arc::default(),
            read: Arc::new(true.into()),
            reserve: Reserve::at(PathBuf::new()),
            shelf: Some(shelf.clone()),
        };
        (store, Found { book, used, ..Found::default() })
    }

    fn begin_anew(&self, reason: &str) -> Found {
        *self.slot() = None;
        let path = self.path.display();
        let note = match db::set_aside(&self.path, Timestamp::now()) {
            Ok(aside) => format!(
                "the job ledger `{path}` is damaged ({reason}): it was kept as `{}` and a new one begins; jobs that were \
                 not finished are not resubmitted",
                aside.display()
            ),
            Err(e) => self.not_kept(&format!("it is damaged and cannot be renamed: {e}")),
        };
        Found { note: Some(note), ..self.load().unwrap_or_default() }
    }

    fn load(&self) -> Result<Found, OpenFailure> {
        let db = self.connect()?;
        let found = read(&db)?;
        *self.slot() = Some(db);
        self.read.store(true, Ordering::Release);
        Ok(found)
    }

    /// Whether what was on disk at the start has been read. Until then, what it says of a job is not known.
    pub fn is_read(&self) -> bool {
        self.read.load(Ordering::Acquire)
    }

    /// Keeps room for the ledger, where there is plenty.
    pub fn keep_room(&self) {
        #[cfg(test)]
        if self.shelf.is_some() {
            return;
        }
        if let Err(e) = self.reserve.take() {
            tracing::debug!("no room is kept on disk for the job ledger: {e}");
        }
    }

    fn connect(&self) -> Result<Connection, OpenFailure> {
        db::open(&self.path, &SHAPE)
    }

    /// Writes jobs as they are now, all or none; what no longer stands in the ledger is removed. Returns once they are on
    /// disk. `used` are ids of jobs that ended. What was on disk at the start comes back if this is the first time that it can
    /// be read; it is as it was before. The error is one line.
    pub async fn save(
        &self,
        jobs: Vec<Job>,
        removed: Vec<String>,
        used: Vec<(String, Past)>,
    ) -> Result<Option<Found>, String> {
        #[cfg(test)]
        if let Some(shelf) = &self.shelf {
            // labd may be killed before it is written, and after.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            {
                let mut disk = shelf.lock().unwrap_or_else(PoisonError::into_inner);
                if disk.is_full {
                    return Err(self.not_kept(db::FULL));
                }
                disk.book.retain(|id, _| !removed.contains(id));
                disk.book.extend(jobs.into_iter().map(|job| (job.id.clone(), job)));
                disk.used.extend(used);
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            return Ok(None);
        }
        let store = self.clone();
        let written = tokio::task::spawn_blocking(move || store.write(&jobs, &removed, &used)).await;
        written.unwrap_or_else(|_| Err("the ledger's writer died".to_owned())).map_err(|reason| self.not_kept(&reason))
    }

    fn write(&self, jobs: &[Job], removed: &[String], used: &[(String, Past)]) -> Result<Option<Found>, String> {
        let mut done = self.try_write(jobs, removed, used);
        if matches!(&done, Err(e) if e.is_full) && self.make_room() {
            done = self.try_write(jobs, removed, used);
        }
        done.map_err(|e| e.reason)
    }

    /// Gives up what was kept for a full disk; whether there was anything.
    fn make_room(&self) -> bool {
        let made = self.reserve.give_up();
        if made {
            tracing::warn!("the disk is full: the room that was kept for the job ledger is used");
        }
        made
    }

    fn try_write(
        &self,
        jobs: &[Job],
        removed: &[String],
        used: &[(String, Past)],
    ) -> Result<Option<Found>, NotWritten> {
        let mut slot = self.slot();
        let mut db = match slot.take() {
            Some(db) => db,
            None => self.connect()?,
        };
        let found = if self.is_read() { None } else { Some(read(&db)?) };
        // After an error the next try has a fresh connection: some leave the old one unusable.
        insert(&mut db, jobs, removed, used)?;
        self.read.store(true, Ordering::Release);
        *slot = Some(db);
        Ok(found)
    }

    fn not_kept(&self, reason: &str) -> String {
        format!("jobs are not recorded in `{}`: {reason}", self.path.display())
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        // A connection is never half replaced under this lock.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reason why something is not on disk.
struct NotWritten {
    /// Reason in words.
    reason: String,
    /// Whether there is no room.
    is_full: bool,
}

impl From<OpenFailure> for NotWritten {
    fn from(e: OpenFailure) -> Self {
        let reason = e.reason();
        Self { is_full: reason == db::FULL, reason }
    }
}

impl From<rusqlite::Error> for NotWritten {
    fn from(e: rusqlite::Error) -> Self {
        OpenFailure::from(e).into()
    }
}

/// Reads everything that a ledger holds.
fn read(db: &Connection) -> rusqlite::Result<Found> {
    let (mut book, mut used, mut unreadable) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut rows =
        db.prepare("SELECT id, root, attempt, request, submitted_ms, state, run, note, came_ms FROM jobs")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let (request, state): (String, String) = (row.get(3)?, row.get(5)?);
        let read = (Submission::parse(request.as_bytes()), serde_json::from_str::<State>(&state));
        // A newer labd may have written a state that this one does not know; the others are no worse for that.
        let (Some(submission), Ok(state)) = read else {
            unreadable.insert(id);
            continue;
        };
        let job = Job {
            root: row.get(1)?,
            attempt: row.get(2)?,
            submission,
            submitted_at: Timestamp::from_millis(row.get(4)?),
            run: row.get(6)?,
            note: row.get(7)?,
            came_at: Timestamp::from_millis(row.get(8)?),
            state,
            id: id.clone(),
        };
        book.insert(id, job);
    }
    let mut rows = db.prepare("SELECT id, run, ended, at_ms FROM used")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let ended: String = row.get(2)?;
        // A word that this labd does not know says no more than that the id was used.
        let end = serde_json::from_value(ended.into()).unwrap_or(past::End::Unknown);
        used.insert(row.get(0)?, Past { run: row.get(1)?, end, at: Timestamp::from_millis(row.get(3)?) });
    }
    Ok(Found { book, used, unreadable, note: None })
}

fn insert(db: &mut Connection, jobs: &[Job], removed: &[String], used: &[(String, Past)]) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    {
        let mut put = tx.prepare_cached(
            "INSERT OR REPLACE INTO jobs (id, root, attempt, request, submitted_ms, state, run, note, came_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        for job in jobs {
            // Plain data with string keys always serialises.
            let state = serde_json::to_string(&job.state).unwrap_or_default();
            let request = job.submission.to_json();
            let (at, came) = (job.submitted_at.as_millis(), job.came_at.as_millis());
            put.execute(params![job.id, job.root, job.attempt, request, at, state, job.run, job.note, came])?;
        }
        let mut remove = tx.prepare_cached("DELETE FROM jobs WHERE id = ?1")?;
        for id in removed {
            remove.execute([id])?;
        }
        let mut put =
            tx.prepare_cached("INSERT OR REPLACE INTO used (id, run, ended, at_ms) VALUES (?1, ?2, ?3, ?4)")?;
        for (id, past) in used {
            let ended = serde_json::to_value(past.end).unwrap_or_default();
            put.execute(params![id, past.run, ended.as_str(), past.at.as_millis()])?;
        }
        if !used.is_empty() {
            tx.execute(
                "DELETE FROM used WHERE id IN (SELECT id FROM used ORDER BY at_ms DESC LIMIT -1 OFFSET ?1)",
                [past::REMEMBERED as u32],
            )?;
        }
    }
    tx.commit()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::jobs::decide::{Next, Outcome, Submitted};

    fn job(id: &str, state: State) -> Job {
        Job {
            id: id.into(),
            root: "food11".into(),
            attempt: 1,
            submission: Submission::parse(br#"{"entrypoint": "python train.py", "metadata": {"a": "b"}}"#)
                .expect("one"),
            came_at: Timestamp::from_millis(900),
            submitted_at: Timestamp::from_millis(1_000),
            run: "food11.2".into(),
            note: Some("used before".into()),
            state,
        }
    }

    #[tokio::test]
    async fn what_is_saved_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        let lost = Outcome::Lost { why: "x".into(), next: Next::As("food11-r1".into()) };
        let jobs = vec![
            job("food11", State::Ended { at: Timestamp::from_millis(5), outcome: lost }),
            job(
                "food11-r1",
                State::Queued { not_before: Timestamp::from_millis(7), stop_first: Some("food11".into()), tries: 2 },
            ),
            job("other", State::Submitted(Submitted { stop_asked: true, ..Submitted::new(Timestamp::from_millis(9)) })),
        ];
        let (store, found) = Store::open(&path).expect("opens");
        assert!(found.book.is_empty() && found.note.is_none());
        let past = Past { run: "food11.2".into(), end: past::End::Succeeded, at: Timestamp::from_millis(9) };
        let used = vec![("other".to_owned(), past)];
        store.save(jobs.clone(), Vec::new(), Vec::new()).await.expect("saved");
        store.save(Vec::new(), vec!["other".into()], used.clone()).await.expect("removed");
        drop(store);
        let (_, found) = Store::open(&path).expect("opens");
        assert_eq!(found.book.into_values().collect::<Vec<_>>(), jobs[..2]);
        assert_eq!(found.used.into_iter().collect::<Vec<_>>(), used, "over its deletion");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_read_is_left_as_it_is_and_the_others_are_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        let handed = |id| job(id, State::Submitted(Submitted::new(Timestamp::from_millis(1))));
        let (store, _) = Store::open(&path).expect("opens");
        store.save(vec![handed("a"), handed("b"), handed("c")], Vec::new(), Vec::new()).await.expect("saved");
        drop(store);
        let db = Connection::open(&path).expect("opens");
        db.execute("UPDATE jobs SET state = '{\"state\": \"dreams\"}' WHERE id = 'a'", []).expect("written");
        db.execute("UPDATE jobs SET request = '[]' WHERE id = 'b'", []).expect("written");
        drop(db);
        let (store, found) = Store::open(&path).expect("opens");
        assert_eq!((found.book.len(), found.note), (1, None));
        assert_eq!(found.unreadable, ["a".to_owned(), "b".to_owned()].into());
        store.save(vec![handed("d")], Vec::new(), Vec::new()).await.expect("saved");
        drop(store);
        let db = Connection::open(&path).expect("opens");
        let rows: u32 = db.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).expect("readable");
        assert_eq!(rows, 4);
    }

    #[test]
    fn an_earlier_labds_is_read_and_its_attempts_came_with_the_persons_submission() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        let db = Connection::open(&path).expect("opens");
        MIGRATIONS[..2].iter().for_each(|step| db.execute_batch(step).expect("a step"));
        db.pragma_update(None, "application_id", SHAPE.application_id).expect("written");
        db.pragma_update(None, "user_version", 2).expect("written");
        let state = serde_json::to_string(&State::Submitted(Submitted::new(Timestamp::from_millis(9)))).expect("JSON");
        let put = "INSERT INTO jobs VALUES (?1, ?2, 1, '{\"entrypoint\": \"x\"}', ?3, ?4, 'run', NULL)";
        for (id, root, at) in [("a", "a", 5), ("a-r1", "a", 7), ("b-r1", "b", 8)] {
            db.execute(put, params![id, root, at, state]).expect("written");
        }
        drop(db);
        let (_, found) = Store::open(&path).expect("opens");
        let came = |id: &str| found.book[id].came_at.as_millis();
        assert_eq!([came("a"), came("a-r1"), came("b-r1")], [5, 5, 8]);
    }

    #[test]
    fn a_newer_one_is_refused_in_one_line_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        drop(Store::open(&path).expect("opens"));
        let db = Connection::open(&path).expect("opens");
        db.pragma_update(None, "user_version", 99).expect("from the future");
        drop(db);
        let before = fs::read(&path).expect("readable");
        let line = Store::open(&path).expect_err("refused").to_string();
        assert!(
            line.contains("newer labd (schema 99") && line.contains("move the file away") && !line.contains('\n'),
            "{line}"
        );
        assert_eq!(fs::read(&path).expect("readable"), before);
    }

    #[tokio::test]
    async fn a_damaged_one_is_set_aside_and_said_so() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        fs::write(&path, "this is no database, but it is long enough to look like the beginning of one")
            .expect("written");
        let (store, found) = Store::open(&path).expect("opens");
        assert!(found.note.is_some_and(|n| n.contains("is damaged") && n.contains(".corrupt-")));
        store
            .save(vec![job("a", State::Submitted(Submitted::new(Timestamp::from_millis(1))))], Vec::new(), Vec::new())
            .await
            .expect("saved");
        assert_eq!(
            fs::read_dir(dir.path())
                .expect("readable")
                .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().contains("corrupt")))
                .count(),
            1
        );
    }

    #[tokio::test]
    async fn where_nothing_can_be_written_it_says_so_and_tries_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let blocked = dir.path().join("data");
        fs::write(&blocked, "a file where a folder should be").expect("written");
        let (store, found) = Store::open(&blocked.join("ledger.db")).expect("opens");
        assert!(found.note.is_some_and(|n| n.contains("jobs are not recorded")));
        let one = vec![job("a", State::Submitted(Submitted::new(Timestamp::from_millis(1))))];
        assert!(
            store
                .save(one.clone(), Vec::new(), Vec::new())
                .await
                .expect_err("blocked")
                .contains("jobs are not recorded")
        );
        fs::remove_file(&blocked).expect("removable");
        store.save(one, Vec::new(), Vec::new()).await.expect("saved now");
    }

    #[tokio::test]
    async fn what_could_not_be_read_at_the_start_comes_back_with_the_first_success() {
        let dir = tempfile::tempdir().expect("a folder");
        let (data, away) = (dir.path().join("data"), dir.path().join("away"));
        let job = |id| job(id, State::Submitted(Submitted::new(Timestamp::from_millis(1))));
        let (store, _) = Store::open(&data.join("ledger.db")).expect("opens");
        assert!(store.is_read());
        store.save(vec![job("a")], Vec::new(), Vec::new()).await.expect("saved");
        drop(store);
        fs::rename(&data, &away).expect("moved");
        fs::write(&data, "a file where a folder should be").expect("written");
        let (store, found) = Store::open(&data.join("ledger.db")).expect("opens");
        assert!(!store.is_read() && found.book.is_empty());
        store.save(vec![job("b")], Vec::new(), Vec::new()).await.expect_err("blocked");
        fs::remove_file(&data).expect("removable");
        fs::rename(&away, &data).expect("moved");
        let found =
            store.save(vec![job("b")], Vec::new(), Vec::new()).await.expect("saved").expect("for the first time");
        assert_eq!(found.book.into_keys().collect::<Vec<_>>(), ["a"]);
        assert!(store.save(vec![job("c")], Vec::new(), Vec::new()).await.expect("saved").is_none());
    }

    #[tokio::test]
    async fn a_ledger_of_the_first_schema_is_taken_over_and_used_ids_are_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ledger.db");
        let first = Shape { migrations: &MIGRATIONS[..1], ..SHAPE };
        let db = db::open(&path, &first).unwrap_or_else(|_| panic!("opens"));
        let state = serde_json::to_string(&State::Ended { at: Timestamp::from_millis(5), outcome: Outcome::Succeeded })
            .expect("JSON");
        db.execute("INSERT INTO jobs VALUES ('a-r1', 'a', 2, '{\"entrypoint\": \"x\"}', 1, ?1)", [state])
            .expect("written");
        drop(db);
        let (store, found) = Store::open(&path).expect("opens");
        assert_eq!(found.book["a-r1"].run, "a");
        let past = |at| Past { run: "x".into(), end: past::End::Failed, at: Timestamp::from_millis(at) };
        let many = (0..past::REMEMBERED + 10).zip(0..).map(|(n, at)| (format!("id{n}"), past(at))).collect();
        store.save(Vec::new(), Vec::new(), many).await.expect("saved");
        drop(store);
        let (_, found) = Store::open(&path).expect("opens");
        assert!(
            found.used.len() == past::REMEMBERED && !found.used.contains_key("id9") && found.used.contains_key("id10")
        );
    }
}
