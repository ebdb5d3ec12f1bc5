//! Opening a SQLite file of labd's: its shape, version by version, and the decision what to do with the file that is there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig, ffi};

use crate::{files, time::Timestamp};

/// Suffixes that SQLite adds to a database's name for the files beside it.
const SIDES: [&str; 2] = ["-wal", "-shm"];

/// Longest wait for another connection that holds a database.
const BUSY: Duration = Duration::from_secs(2);

/// Reason why a full disk takes nothing, in words.
pub(crate) const FULL: &str = "the disk is full";

/// Shape of one kind of database.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Step `n` takes a database from version `n` to `n + 1`. Steps that were released are never changed.
    pub(crate) migrations: &'static [&'static str],
    /// Number that marks the file, so that another program's database is not taken for an old one.
    pub(crate) application_id: i32,
    /// Description, such as `a journal`.
    pub(crate) what: &'static str,
}

impl Shape {
    /// Version that this labd writes.
    pub(crate) const fn version(&self) -> u32 {
        self.migrations.len() as u32
    }
}

/// Reason why there is no database to write to.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// Database written by a newer labd; its schema version.
    Newer(u32),
    /// File that is not a database, is damaged, or is another program's.
    Corrupt(String),
    /// Obstacle that may pass: full disk, read-only file system, missing permission, locked.
    NotNow(String),
}

impl From<rusqlite::Error> for OpenFailure {
    fn from(e: rusqlite::Error) -> Self {
        if is_corrupt(&e) { Self::Corrupt(in_words(&e)) } else { Self::NotNow(in_words(&e)) }
    }
}

impl OpenFailure {
    /// Reason in one line.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Newer(found) => {
                format!("a newer labd wrote it (schema {found}): install that labd again, or move the file away")
            }
            Self::Corrupt(reason) | Self::NotNow(reason) => reason,
        }
    }
}

/// Whether the file itself is damaged.
pub(crate) fn is_corrupt(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// SQLite's error for a person.
pub(crate) fn in_words(e: &rusqlite::Error) -> String {
    // The index of the write-ahead log found no room.
    if e.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_SHMSIZE) {
        return FULL.into();
    }
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => FULL.into(),
        Some(ErrorCode::ReadOnly) => "the file system or the file is read-only".into(),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => "the file cannot be opened".into(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another program holds the database".into(),
        Some(ErrorCode::SystemIoFailure) => "the disk cannot be read or written".into(),
        _ => e.to_string(),
    }
}

/// Opens the database, making or migrating it as needed. A newer or damaged one is not written to.
pub(crate) fn open(path: &Path, shape: &Shape) -> Result<Connection, OpenFailure> {
    if let Some(parent) = path.parent() {
        files::private_folder(parent)
            .map_err(|e| OpenFailure::NotNow(format!("cannot create `{}`: {e}", parent.display())))?;
    }
    close(path).map_err(|e| OpenFailure::NotNow(io_in_words(&e)))?;
    if fs::metadata(path).is_ok_and(|m| m.len() > 0) {
        refuse_newer(path, shape)?;
    }
    let mut db = Connection::open(path)?;
    if db.is_readonly(rusqlite::MAIN_DB)? {
        return Err(OpenFailure::NotNow("the file system or the file is read-only".into()));
    }
    db.busy_timeout(BUSY)?;
    // WAL survives a SIGKILL in either mode; FULL also keeps the last entries over a power cut, for one fsync per batch
    // that only the writer thread waits for.
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    // The log of a busy lab stays small on disk while nobody reads it for long.
    db.pragma_update(None, "journal_size_limit", 8 * 1024 * 1024)?;
    // In KiB: what is written are the last few pages, and what is read now and then is not worth 2 MiB of memory for ever.
    db.pragma_update(None, "cache_size", -256)?;
    migrate(&mut db, shape)?;
    Ok(db)
}

/// Reads a database that cannot be opened for writing now. On a full disk SQLite cannot even make the index by which it reads
/// its write-ahead log, unless it holds the database alone and keeps that in memory. Nothing is written.
pub(crate) fn read<T>(
    path: &Path,
    shape: &Shape,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, OpenFailure> {
    // Not read-only: only who may write is allowed to keep the index in memory.
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.pragma_update(None, "locking_mode", "exclusive")?;
    // The log stays for who can write it back.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    is_ours(&db, shape)?;
    Ok(read(&db)?)
}

/// Makes the file for labd alone before SQLite opens it: SQLite gives its side files the mode of the main one. Those that an
/// older labd left readable are closed as well.
fn close(path: &Path) -> io::Result<()> {
    for side in SIDES {
        files::make_private(&with_suffix(path, side))?;
    }
    drop(files::open_private(path)?);
    Ok(())
}

fn io_in_words(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FULL.into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system or the file is read-only".into(),
        _ => "the file cannot be opened".into(),
    }
}

/// Reads the version without changing a byte.
fn refuse_newer(path: &Path, shape: &Shape) -> Result<(), OpenFailure> {
    is_ours(&connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?, shape)
}

/// Connection of one thread's to a database that is there. Who holds it is waited for a moment.
pub(crate) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY)?;
    Ok(db)
}

/// Whether it is a database of this kind, of a version that this labd knows.
fn is_ours(db: &Connection, shape: &Shape) -> Result<(), OpenFailure> {
    let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != shape.application_id && tables > 0 {
        return Err(OpenFailure::Corrupt(format!("it is not {} of labd", shape.what)));
    }
    if found > shape.version() { Err(OpenFailure::Newer(found)) } else { Ok(()) }
}

/// Brings the database to this labd's version, each step in a transaction with its version number.
fn migrate(db: &mut Connection, shape: &Shape) -> Result<(), OpenFailure> {
    let at: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for step in at as usize..shape.migrations.len() {
        apply(db, shape, step)?;
    }
    Ok(())
}

/// One migration step.
pub(crate) fn apply(db: &mut Connection, shape: &Shape, step: usize) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(shape.migrations[step])?;
    tx.pragma_update(None, "application_id", shape.application_id)?;
    tx.pragma_update(None, "user_version", step as u32 + 1)?;
    tx.commit()
}

/// Moves a damaged database out of the way, with its side files, and says where it is now.
pub(crate) fn set_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let stamp: String = now.to_string().chars().filter(char::is_ascii_alphanumeric).collect();
    let aside = (0..100)
        .map(|n| with_suffix(path, &if n == 0 { format!(".corrupt-{stamp}") } else { format!(".corrupt-{stamp}-{n}") }))
        .find(|p| !p.exists())
        .ok_or_else(|| io::Error::other("too many damaged ones were set aside already"))?;
    // Side files first: a fresh database must never meet an old write-ahead log.
    for side in SIDES {
        let from = with_suffix(path, side);
        if from.exists() {
            fs::rename(&from, with_suffix(&aside, side))?;
        }
    }
    fs::rename(path, &aside)?;
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SHAPE: Shape =
        Shape { migrations: &["CREATE TABLE t (x TEXT) STRICT;"], application_id: 7, what: "a database for a test" };

    #[test]
    fn what_a_killed_labd_wrote_is_read_without_its_index_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let db = open(&path, &SHAPE).expect("made");
        db.execute("INSERT INTO t VALUES ('a token')", []).expect("written");
        std::mem::forget(db);
        let bytes = || ["", "-wal"].map(|side| fs::read(with_suffix(&path, side)).expect("there"));
        let before = bytes();
        fs::remove_file(with_suffix(&path, "-shm")).expect("it has no room");
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0));
        // A name of this test's own: POSIX locks of one process do not tell its connections apart.
        let copy = dir.path().join("copy.db");
        for side in ["", "-wal"] {
            fs::copy(with_suffix(&path, side), with_suffix(&copy, side)).expect("copied");
        }
        assert_eq!(read(&copy, &SHAPE, count).expect("read"), 1);
        assert!(!with_suffix(&copy, "-shm").exists());
        assert_eq!(["", "-wal"].map(|side| fs::read(with_suffix(&copy, side)).expect("there")), before);
        let newer = Shape { migrations: &[], ..SHAPE };
        assert!(matches!(read(&copy, &newer, count), Err(OpenFailure::Newer(1))));
    }

    /// `.cargo/config.toml` says what for.
    #[test]
    fn sqlite_sets_no_memory_aside() {
        let db = Connection::open_in_memory().expect("made");
        let mut options = db.prepare("PRAGMA compile_options").expect("a question");
        let options = options.query_map([], |row| row.get(0)).expect("an answer");
        let options: Vec<String> = options.collect::<rusqlite::Result<_>>().expect("text");
        for option in ["DEFAULT_LOOKASIDE=0,0", "DEFAULT_PCACHE_INITSZ=0"] {
            assert!(options.iter().any(|known| known == option), "{option} is not among {options:?}");
        }
    }

    /// Other people's tokens are in there, so nobody else may open it, nor what SQLite puts beside it.
    #[test]
    fn a_database_and_its_side_files_are_labds_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let all = || ["", "-wal", "-shm"].map(|side| with_suffix(&path, side));
        let modes = || all().map(|p| fs::metadata(&p).expect("there").permissions().mode() & 0o777);
        let db = open(&path, &SHAPE).expect("made");
        db.execute("INSERT INTO t VALUES ('a token')", []).expect("written");
        assert_eq!(modes(), [0o600; 3]);
        // As an older labd left them when it was killed.
        std::mem::forget(db);
        for path in all() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("set");
        }
        let _db = open(&path, &SHAPE).expect("opened");
        assert_eq!(modes(), [0o600; 3]);
    }
}
