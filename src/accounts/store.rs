//! The accounts' file. A login or the end of a session is on disk before its caller hears of it, where the disk takes anything.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, Row, Transaction, params};

use super::{
    Account, AccountsError, Person, Role,
    session::{Digest, Stored, Unwritten, Which},
};
use crate::{
    db::{self, OpenFailure, Shape},
    secret::Secret,
    time::Timestamp,
};

/// `laba` in ASCII marks the file.
const SHAPE: Shape = Shape { migrations: MIGRATIONS, application_id: 0x6c61_6261, what: "a file of accounts" };

const MIGRATIONS: &[&str] = &["CREATE TABLE accounts (
        name          TEXT PRIMARY KEY,
        role          TEXT NOT NULL,
        password      TEXT NOT NULL,
        created_ms    INTEGER NOT NULL,
        last_login_ms INTEGER
    ) STRICT;
    CREATE TABLE sessions (
        cookie   BLOB PRIMARY KEY,
        csrf     BLOB NOT NULL,
        name     TEXT NOT NULL,
        role     TEXT NOT NULL,
        by_link  INTEGER NOT NULL,
        address  TEXT NOT NULL,
        began_ms INTEGER NOT NULL,
        used_ms  INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX sessions_name ON sessions (name);"];

/// Account as it is kept.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) account: Account,
    /// Hash of the password, as a PHC string.
    pub(super) password: Secret,
    /// Number of the password in this process, which stays over a new hash of the same one.
    pub(super) epoch: u64,
}

/// Change of one account, on disk first.
#[derive(Debug)]
pub(super) enum Change {
    /// Nothing but what sessions there are.
    Nothing,
    /// Account as it is from now on.
    Put {
        entry: Entry,
        /// Whether it has another password than before.
        is_new_password: bool,
        /// Whether its sessions end.
        ends_sessions: bool,
    },
    /// Name of the account that is no more.
    Remove(String),
}

impl Change {
    /// Sessions that end by it.
    pub(super) fn ends(&self) -> Option<(&str, Which)> {
        match self {
            Self::Put { entry, ends_sessions: true, .. } => Some((&entry.account.name, Which::ByPassword)),
            Self::Remove(name) => Some((name, Which::All)),
            Self::Nothing | Self::Put { .. } => None,
        }
    }
}

/// Contents of the file.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) accounts: BTreeMap<String, Entry>,
    pub(super) sessions: Vec<(Digest, Stored)>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    db: Option<Connection>,
    /// Whether what was on disk at the start has been read.
    is_read: bool,
}

/// Store that was opened.
pub(super) struct OpenStore {
    pub(super) store: Store,
    pub(super) found: Found,
    /// Note for a person.
    pub(super) note: Option<String>,
}

impl Store {
    /// Opens or begins the file. Only a newer labd's is an error: it is left as it is. A damaged one is set aside; where
    /// nothing can be written, what can be read counts.
    pub(super) fn open(path: &Path) -> Result<OpenStore, AccountsError> {
        let mut store = Self { path: path.to_owned(), db: None, is_read: false };
        let (found, note) = match store.load() {
            Ok(found) => (found, None),
            Err(OpenFailure::Newer(found)) => {
                return Err(AccountsError { path: path.to_owned(), found, ours: SHAPE.version() });
            }
            Err(OpenFailure::Corrupt(reason)) => {
                let note = store.set_aside(&reason);
                (store.load().unwrap_or_default(), Some(note))
            }
            // What cannot be written can often be read.
            Err(OpenFailure::NotNow(reason)) => {
                let found = db::read(path, &SHAPE, read);
                store.is_read = found.is_ok();
                let mut note = store.not_kept(&reason);
                if !store.is_read {
                    note += "; until it can be read, nobody can log in by password";
                }
                (found.unwrap_or_default(), Some(note))
            }
        };
        Ok(OpenStore { store, found, note })
    }

    fn set_aside(&mut self, reason: &str) -> String {
        self.db = None;
        let path = self.path.display();
        match db::set_aside(&self.path, Timestamp::now()) {
            Ok(aside) => format!(
                "the accounts in `{path}` are damaged ({reason}): the file was kept as `{}` and a new one begins; nobody can \
                 log in by password until accounts are added again with `labd user add`",
                aside.display()
            ),
            Err(e) => self.not_kept(&format!("it is damaged and cannot be renamed: {e}")),
        }
    }

    fn load(&mut self) -> Result<Found, OpenFailure> {
        let db = db::open(&self.path, &SHAPE)?;
        let found = read(&db)?;
        self.db = Some(db);
        self.is_read = true;
        Ok(found)
    }

    /// Whether what was on disk at the start has been read.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// What was on disk at the start, if this is the first time that it can be read. The error is one line.
    pub(super) fn read_late(&mut self) -> Result<Option<Found>, String> {
        if self.is_read {
            return Ok(None);
        }
        self.load().map(Some).map_err(|e| self.not_kept(&e.reason()))
    }

    /// Writes an account and the sessions, all or nothing. Returns once they are on disk; the error is one line.
    pub(super) fn write(&mut self, change: &Change, sessions: &Unwritten) -> Result<(), String> {
        self.try_write(change, sessions).map_err(|e| self.not_kept(&e.reason()))
    }

    fn try_write(&mut self, change: &Change, sessions: &Unwritten) -> Result<(), OpenFailure> {
        // After an error the next try has a fresh connection: some leave the old one unusable.
        let mut db = match self.db.take() {
            Some(db) => db,
            None => db::open(&self.path, &SHAPE)?,
        };
        let tx = db.transaction()?;
        put_sessions(&tx, sessions)?;
        put_account(&tx, change)?;
        tx.commit()?;
        self.db = Some(db);
        Ok(())
    }

    fn not_kept(&self, reason: &str) -> String {
        format!("accounts and sessions are not recorded in `{}`: {reason}", self.path.display())
    }
}

fn put_sessions(tx: &Transaction<'_>, sessions: &Unwritten) -> rusqlite::Result<()> {
    let mut put = tx.prepare_cached(
        "INSERT OR REPLACE INTO sessions (cookie, csrf, name, role, by_link, address, began_ms, used_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for (cookie, session) in &sessions.put {
        put.execute(params![
            cookie.as_bytes(),
            session.csrf.as_bytes(),
            session.person.name,
            session.person.role.as_str(),
            session.by_link,
            session.from.to_string(),
            session.began.as_millis(),
            session.used.as_millis(),
        ])?;
    }
    let mut remove = tx.prepare_cached("DELETE FROM sessions WHERE cookie = ?1")?;
    for cookie in &sessions.ended {
        remove.execute([cookie.as_bytes()])?;
    }
    Ok(())
}

fn put_account(tx: &Transaction<'_>, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Nothing => {}
        Change::Put { entry: Entry { account, password, .. }, .. } => {
            tx.execute(
                "INSERT OR REPLACE INTO accounts (name, role, password, created_ms, last_login_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    account.name,
                    account.role.as_str(),
                    password.expose(),
                    account.created_at.as_millis(),
                    account.last_login_at.map(Timestamp::as_millis),
                ],
            )?;
        }
        Change::Remove(name) => {
            tx.execute("DELETE FROM accounts WHERE name = ?1", [name])?;
        }
    }
    if let Some((name, which)) = change.ends() {
        tx.execute("DELETE FROM sessions WHERE name = ?1 AND (?2 OR NOT by_link)", params![name, which == Which::All])?;
    }
    Ok(())
}

/// Reads everything. A row that this labd does not understand stays on disk as it is; the others are no worse for that.
fn read(db: &Connection) -> rusqlite::Result<Found> {
    let mut found = Found::default();
    let mut rows = db.prepare("SELECT name, role, password, created_ms, last_login_ms FROM accounts")?;
    for entry in rows.query_map([], account)? {
        if let Some(entry) = entry? {
            found.accounts.insert(entry.account.name.clone(), entry);
        }
    }
    let mut rows = db.prepare("SELECT cookie, csrf, name, role, by_link, address, began_ms, used_ms FROM sessions")?;
    for session in rows.query_map([], session)? {
        found.sessions.extend(session?);
    }
    Ok(found)
}

fn account(row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let Ok(role) = row.get::<_, String>(1)?.parse::<Role>() else { return Ok(None) };
    let account = Account {
        name: row.get(0)?,
        role,
        created_at: Timestamp::from_millis(row.get(3)?),
        last_login_at: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
    };
    Ok(Some(Entry { account, password: Secret::new(row.get::<_, String>(2)?), epoch: 0 }))
}

fn session(row: &Row<'_>) -> rusqlite::Result<Option<(Digest, Stored)>> {
    let digest = |column| row.get::<_, Vec<u8>>(column).map(|bytes| Digest::from_bytes(&bytes));
    let (cookie, csrf) = (digest(0)?, digest(1)?);
    let (role, from): (String, String) = (row.get(3)?, row.get(5)?);
    let (Some(cookie), Some(csrf), Ok(role), Ok(from)) = (cookie, csrf, role.parse(), from.parse()) else {
        return Ok(None);
    };
    let stored = Stored {
        person: Person { name: row.get(2)?, role },
        by_link: row.get(4)?,
        csrf,
        from,
        began: Timestamp::from_millis(row.get(6)?),
        used: Timestamp::from_millis(row.get(7)?),
    };
    Ok(Some((cookie, stored)))
}
