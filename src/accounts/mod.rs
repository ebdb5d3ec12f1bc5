//! Accounts: who may log in to the page, and who is.
//!
//! People log in with a name and a password, or with a link that is good for once, and then have a session, which lasts over a
//! restart of labd. The page's second origin has cookies of its own, which belong to a session ([`visit`]). Everything is held
//! in memory, so that a request asks no disk, and is on disk in `accounts.db` before a caller hears that it was done. Where the
//! disk takes nothing, people still log in, since a full disk is what they want to look at: their sessions then last until labd
//! restarts.
//!
//! Neither a password nor a token is ever kept: of passwords there are argon2id hashes, of tokens SHA-256.

mod limit;
mod once;
mod password;
mod rules;
mod session;
mod store;
#[cfg(test)]
mod tests;
mod visit;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    limit::{Failures, Limit},
    once::Once,
    password::{Busy, Hasher, Turn, Verdict},
    session::{Digest, Sessions, Which},
    store::{Change, Entry, Found, OpenStore, Store},
    visit::Visits,
};
pub use self::{
    once::LINK_VALID,
    session::{NewSession, SESSION_LIFETIME, Session, SessionView, Way, is_for},
    visit::TICKET_VALID,
};
use crate::{
    secret::Secret,
    time::{Moment, Now, Timestamp, human},
};

/// File in the data directory.
const FILE: &str = "accounts.db";

/// Least time between two writes of when sessions were last used. A crash forgets as much of it.
const WRITE_EVERY: Duration = Duration::from_mins(1);

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looking at everything that holds no secret.
    Viewer,
    /// Everything.
    Admin,
}

impl Role {
    /// Word for it, in files and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        [Self::Viewer, Self::Admin].into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

/// Word that is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are two roles: use `viewer` or `admin`")]
pub struct UnknownRole;

/// Who a session is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Person {
    /// Name of the account, or of the user who asked for a link.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// Account as it is shown to people.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Account {
    /// Name to log in with.
    pub name: String,
    /// What its person may do.
    pub role: Role,
    /// Time at which it was added.
    pub created_at: Timestamp,
    /// Time of the last login by password; none that is known where it could not be written.
    pub last_login_at: Option<Timestamp>,
}

/// Reason why accounts cannot be opened: a newer labd wrote them, and to continue would lose what that one wrote.
#[derive(Debug, thiserror::Error)]
#[error(
    "the accounts in `{}` were written by a newer labd (schema {found}, this one knows up to {ours}): install that labd again, \
     or move the file away and add the accounts again with `labd user add`",
    path.display()
)]
pub struct AccountsError {
    /// The file.
    pub path: PathBuf,
    /// Its schema version.
    pub found: u32,
    /// The newest one this labd knows.
    pub ours: u32,
}

/// Reason why an account or a session was not changed, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// Name that no account may have, clipped.
    #[error(
        "{0:?} is not a valid name: use 1 to 64 letters, digits, `.`, `_`, `-` or `@`, and begin with neither `.` nor `-`"
    )]
    Name(String),
    /// Short password.
    #[error("the password is too short: use at least 10 characters, such as four words")]
    PasswordTooShort,
    /// Long password.
    #[error("the password is too long: use at most 1,000 bytes")]
    PasswordTooLong,
    /// Password that everybody knows who knows the name.
    #[error("the password is the account's name: use another one")]
    PasswordIsName,
    /// Name of another account.
    #[error("there is an account `{0}` already: `labd user passwd {0}` gives it another password")]
    Exists(String),
    /// Name of no account.
    #[error("there is no account {0:?}: `labd user list` shows which there are")]
    Missing(String),
    /// More passwords to compute than labd lets wait.
    #[error("too many passwords are being checked at this moment: try again in a few seconds")]
    Busy,
    /// Obstacle that may pass, such as a full disk; nothing was changed.
    #[error("nothing was changed: {0}")]
    Unavailable(String),
    /// Obstacle that may pass; what was to end has ended, in memory only.
    #[error("it has ended, but a restart of labd before the next successful write would bring it back: {0}")]
    EndedUntilRestart(String),
}

impl From<Busy> for AccountError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// Reason why nobody was logged in, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Unknown name or wrong password: a stranger does not learn which.
    #[error("the name or the password is wrong")]
    Wrong,
    /// Link that was used, is too old, was made before labd restarted, or never was one.
    #[error("this link was used already or is older than 10 minutes: `labd open` makes a new one")]
    Link,
    /// Ticket that was used, is too old, or never was one; or one of a session that is over.
    #[error("this way in was used already or is older than 30 s: open JupyterLab from labd's page again")]
    Ticket,
    /// Too many failures before.
    #[error("too many failed logins: try again in {}", human(*again_in))]
    TooMany {
        /// Time until the next attempt is let through.
        again_in: Duration,
    },
    /// More passwords to check than labd lets wait.
    #[error("too many people are logging in at this moment: try again in a few seconds")]
    Busy,
    /// Obstacle that may pass.
    #[error("nobody can log in with a password now: {0}")]
    Unavailable(String),
}

impl From<Busy> for LoginError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// Accounts and sessions. Clones are the same ones.
#[derive(Clone)]
pub struct Accounts(Arc<Inner>);

/// Accounts that were opened.
#[derive(Debug)]
pub struct Opened {
    /// The accounts.
    pub accounts: Accounts,
    /// Note for a person, such as about a damaged file that was set aside.
    pub note: Option<String>,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

struct Inner {
    /// Held over each write, so that they come in the order of what they write. Taken before the book where both are.
    disk: Mutex<Store>,
    /// Held for a moment only.
    book: Mutex<Book>,
    limit: Mutex<Limit>,
    hasher: Hasher,
}

/// Everything that is known, in memory.
#[derive(Debug)]
struct Book {
    accounts: BTreeMap<String, Entry>,
    /// Number of the newest password.
    epoch: u64,
    /// Whether `accounts` are those on disk.
    is_read: bool,
    sessions: Sessions,
    links: Once<Person>,
    visits: Visits,
    /// Moment at which the use of sessions was last written.
    written_at: Moment,
}

impl Book {
    fn apply(&mut self, change: Change) {
        if let Some((name, which)) = change.ends() {
            self.sessions.end_of(name, which);
        }
        match change {
            Change::Nothing => {}
            Change::Put { mut entry, is_new_password, .. } => {
                if is_new_password {
                    self.epoch += 1;
                    entry.epoch = self.epoch;
                }
                self.accounts.insert(entry.account.name.clone(), entry);
            }
            Change::Remove(name) => {
                self.links.retain(|person| person.name != name);
                self.accounts.remove(&name);
            }
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, AccountError> {
        self.accounts.get(name).ok_or_else(|| AccountError::Missing(crate::text::clip(name, 64)))
    }
}

impl Accounts {
    /// Opens the accounts in the data directory, or begins with none. Only a newer labd's file is an error: it is left as it
    /// is. A damaged one is set aside, and one that cannot be written now is read and written to later.
    pub fn open(data_dir: &Path) -> Result<Opened, AccountsError> {
        Self::open_with(data_dir, Hasher::new())
    }

    fn open_with(data_dir: &Path, hasher: Hasher) -> Result<Opened, AccountsError> {
        let OpenStore { store, found, note } = Store::open(&data_dir.join(FILE))?;
        let now = Now::read();
        let mut sessions = Sessions::default();
        sessions.read(found.sessions, now.wall);
        let book = Book {
            accounts: found.accounts,
            epoch: 0,
            is_read: store.is_read(),
            sessions,
            links: Once::new(LINK_VALID),
            visits: Visits::default(),
            written_at: now.moment,
        };
        let inner = Inner { disk: Mutex::new(store), book: Mutex::new(book), limit: Mutex::default(), hasher };
        Ok(Opened { accounts: Self(Arc::new(inner)), note })
    }

    /// Adds an account.
    pub async fn add(&self, name: &str, role: Role, password: &Secret) -> Result<(), AccountError> {
        rules::check_name(name)?;
        rules::check_password(name, password)?;
        let (name, password, now) = (name.to_owned(), password.clone(), Timestamp::now());
        let turn = self.0.hasher.turn().await?;
        self.blocking(move |inner| {
            let is_free = |book: &Book| match book.accounts.get(&name) {
                Some(_) => Err(AccountError::Exists(name.clone())),
                None => Ok(()),
            };
            inner.read_late(now).map_err(AccountError::Unavailable)?;
            is_free(&inner.book())?;
            let password = inner.hasher.hash(&password, &turn).map_err(AccountError::Unavailable)?;
            inner.change(now, |book| {
                is_free(book)?;
                let account = Account { name: name.clone(), role, created_at: now, last_login_at: None };
                let entry = Entry { account, password, epoch: 0 };
                Ok(Change::Put { entry, is_new_password: true, ends_sessions: false })
            })
        })
        .await
    }

    /// Every account, by name.
    pub async fn list(&self) -> Result<Vec<Account>, AccountError> {
        let now = Timestamp::now();
        self.blocking(move |inner| {
            inner.read_late(now).map_err(AccountError::Unavailable)?;
            Ok(inner.book().accounts.values().map(|entry| entry.account.clone()).collect())
        })
        .await
    }

    /// Gives an account another password. Sessions that began with the old one end.
    pub async fn set_password(&self, name: &str, password: &Secret) -> Result<(), AccountError> {
        rules::check_password(name, password)?;
        let (name, password, now) = (name.to_owned(), password.clone(), Timestamp::now());
        let turn = self.0.hasher.turn().await?;
        self.blocking(move |inner| {
            inner.read_late(now).map_err(AccountError::Unavailable)?;
            inner.book().entry(&name)?;
            let password = inner.hasher.hash(&password, &turn).map_err(AccountError::Unavailable)?;
            inner.change(now, |book| {
                let entry = Entry { password, ..book.entry(&name)?.clone() };
                Ok(Change::Put { entry, is_new_password: true, ends_sessions: true })
            })
        })
        .await
    }

    /// Gives an account another role. A lower one ends its sessions; a higher one counts from the next login, which brings a
    /// cookie that nobody had before.
    pub async fn set_role(&self, name: &str, role: Role) -> Result<(), AccountError> {
        let (name, now) = (name.to_owned(), Timestamp::now());
        self.blocking(move |inner| {
            inner.change(now, |book| {
                let mut entry = book.entry(&name)?.clone();
                let ends_sessions = role < entry.account.role;
                entry.account.role = role;
                Ok(Change::Put { entry, is_new_password: false, ends_sessions })
            })
        })
        .await
    }

    /// Removes an account, and ends all sessions and links of that name.
    pub async fn remove(&self, name: &str) -> Result<(), AccountError> {
        let (name, now) = (name.to_owned(), Timestamp::now());
        self.blocking(move |inner| inner.change(now, |book| book.entry(&name).map(|_| Change::Remove(name.clone()))))
            .await
    }

    /// Logs a person in who says a name and a password.
    pub async fn log_in(&self, name: &str, password: &Secret, way: Way) -> Result<NewSession, LoginError> {
        let now = Now::read();
        // No account has such a name, and it is not kept in the limit's memory.
        let counted = if rules::check_name(name).is_ok() { name } else { "" };
        let attempt = self.0.limit().begin(Some(counted), way.from, now.moment);
        let attempt = attempt.map_err(|again_in| LoginError::TooMany { again_in })?;
        let done = self.check_and_begin(name.to_owned(), password.clone(), way, now).await;
        match &done {
            Ok(_) => self.0.limit().succeeded(attempt),
            Err(LoginError::Busy | LoginError::Unavailable(_)) => self.0.limit().withdraw(attempt),
            // It was charged before, and stays so; as it does where the caller hangs up.
            Err(_) => {}
        }
        done
    }

    /// What somebody should be told of failed logins after an attempt, in one line; each is said once. `is_in`: whether that one
    /// was let in.
    pub fn failures(&self, is_in: bool) -> Option<String> {
        let Failures { number, name, from, .. } = self.0.limit().tell(is_in, Moment::now())?;
        // Who mistakes one field for the other types a password here.
        let is_known = self.0.book().accounts.contains_key(&name);
        let who = if is_known { format!("`{name}`") } else { "nobody known".to_owned() };
        Some(format!("{number} failed logins, the last as {who} from {from}"))
    }

    async fn check_and_begin(
        &self,
        name: String,
        password: Secret,
        way: Way,
        now: Now,
    ) -> Result<NewSession, LoginError> {
        let turn = self.0.hasher.turn().await?;
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let done = inner.log_in(&name, &password, way, turn, now.wall);
            // Here, where it is known also of a caller who has hung up.
            if matches!(done, Err(LoginError::Wrong)) {
                inner.limit().failed(name, way.from, now.moment);
            }
            done
        });
        let done = done.await;
        done.unwrap_or_else(|_| Err(LoginError::Unavailable(DIED.to_owned())))
    }

    /// Token of a link that logs this person in once, within 10 minutes and before labd restarts. The person need not have an
    /// account.
    pub fn link(&self, person: Person) -> Secret {
        self.0.book().links.make(person, Moment::now())
    }

    /// Logs a person in who has a link. Nobody guesses one, so that who has a link is let in whatever failed before from
    /// their address; what is none counts as a failure of the address.
    pub async fn log_in_by_link(&self, token: &Secret, way: Way) -> Result<NewSession, LoginError> {
        let now = Now::read();
        let begun = {
            let mut book = self.0.book();
            let person = book.links.take(token, now.moment);
            person.map(|person| book.sessions.begin(person, true, way, now.wall))
        };
        let Some(new) = begun else {
            return Err(self.none(LoginError::Link, way.from, now.moment));
        };
        if let Err(reason) = self.save(now.wall).await {
            tracing::warn!("the session of `{}` lasts until labd restarts: {reason}", new.person.name);
        }
        Ok(new)
    }

    /// Session of a request's cookie, which counts as used now. Answers from memory; what it changes is written once a minute.
    pub fn session(&self, cookie: &str) -> Option<Session> {
        self.used(|_| Some(Digest::of(cookie)))
    }

    fn used(&self, key: impl FnOnce(&Book) -> Option<Digest>) -> Option<Session> {
        let now = Now::read();
        let mut book = self.0.book();
        let key = key(&book)?;
        let session = book.sessions.used(key, now.wall);
        let is_due = book.sessions.is_unwritten() && now.moment.since(book.written_at) >= WRITE_EVERY;
        if is_due && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            book.written_at = now.moment;
            let inner = Arc::clone(&self.0);
            runtime.spawn_blocking(move || {
                if let Err(reason) = inner.save(now.wall) {
                    tracing::warn!("{reason}");
                }
            });
        }
        session
    }

    /// Whether the session of a cookie goes on. To look is no use of it.
    pub fn goes_on(&self, cookie: &str) -> bool {
        self.0.book().sessions.goes_on(&Digest::of(cookie), Timestamp::now())
    }

    /// Ticket with which the session of this cookie begins a visit of the second origin, once, within 30 s; none when that
    /// session is over.
    pub fn ticket(&self, cookie: &str) -> Option<Secret> {
        let (now, session) = (Now::read(), Digest::of(cookie));
        let mut book = self.0.book();
        book.sessions.goes_on(&session, now.wall).then(|| book.visits.ticket(session, now.moment))
    }

    /// Begins a visit of the second origin for whoever has a ticket, and returns its cookie, which is good there only. What is
    /// no ticket counts as a failure of the address, as with links.
    pub fn enter(&self, ticket: &Secret, way: Way) -> Result<Secret, LoginError> {
        let now = Now::read();
        let begun = {
            let mut book = self.0.book();
            let Book { sessions, visits, .. } = &mut *book;
            let goes_on = |session: &Digest| sessions.goes_on(session, now.wall);
            let session = visits.take(ticket, now.moment).filter(&goes_on);
            session.map(|session| visits.begin(session, way.over_tls, now.moment, goes_on))
        };
        begun.ok_or_else(|| self.none(LoginError::Ticket, way.from, now.moment))
    }

    /// Error of whoever showed what is no token: it counts as a failure of the address.
    fn none(&self, error: LoginError, from: IpAddr, now: Moment) -> LoginError {
        match self.0.limit().begin(None, from, now) {
            Ok(_charged) => error,
            Err(again_in) => LoginError::TooMany { again_in },
        }
    }

    /// Session to which the visit of this cookie belongs. It counts as used now: whoever works in JupyterLab need not look at
    /// the page, too.
    pub fn visit(&self, cookie: &str) -> Option<Session> {
        self.used(|book| book.visits.session(cookie))
    }

    /// Whether the visit of this cookie goes on, as its session does. To look is no use of it.
    pub fn visit_goes_on(&self, cookie: &str) -> bool {
        let book = self.0.book();
        book.visits.session(cookie).is_some_and(|session| book.sessions.goes_on(&session, Timestamp::now()))
    }

    /// Lets the visits of a cookie's session go on with the one that its person has begun since.
    pub fn hand_over(&self, cookie: &str, to: &NewSession) {
        let mut book = self.0.book();
        let old = Digest::of(cookie);
        let is_theirs = book.sessions.person(&old, Timestamp::now()).is_some_and(|person| *person == to.person);
        if is_theirs {
            book.visits.hand_over(old, Digest::of(to.cookie.expose()));
        }
    }

    /// Ends the session of a cookie, where there is one. Returns once that is on disk.
    pub async fn log_out(&self, cookie: &str) -> Result<(), AccountError> {
        self.0.book().sessions.end_cookie(cookie);
        self.save_end().await
    }

    /// Ends all sessions of a person, with an account or without, and returns how many. Returns once that is on disk.
    pub async fn end_all(&self, name: &str) -> Result<usize, AccountError> {
        let ended = self.0.book().sessions.end_of(name, Which::All);
        self.save_end().await.map(|()| ended)
    }

    /// Ends the session with this id of [`SessionView`]'s; whether there was one. Returns once that is on disk.
    pub async fn end(&self, id: &str) -> Result<bool, AccountError> {
        let ended = self.0.book().sessions.end_id(id);
        self.save_end().await.map(|()| ended)
    }

    /// Every session, those that began last first.
    pub fn sessions(&self) -> Vec<SessionView> {
        self.0.book().sessions.view(Timestamp::now())
    }

    /// Writes what is not on disk yet, such as the time at which sessions were last used: for when labd stops. The error is
    /// one line.
    pub async fn flush(&self) -> Result<(), String> {
        self.save(Timestamp::now()).await
    }

    async fn save_end(&self) -> Result<(), AccountError> {
        self.save(Timestamp::now()).await.map_err(AccountError::EndedUntilRestart)
    }

    async fn save(&self, now: Timestamp) -> Result<(), String> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || inner.save(now)).await.unwrap_or_else(|_| Err(DIED.to_owned()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, AccountError> + Send + 'static,
    ) -> Result<T, AccountError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|_| Err(AccountError::Unavailable(DIED.to_owned())))
    }
}

/// Reason of an error that only a bug or labd's end causes.
const DIED: &str = "the thread for accounts died";

/// What blocks: all but the locks is called on a thread for that, with its caller's time.
impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    fn limit(&self) -> MutexGuard<'_, Limit> {
        lock(&self.limit)
    }

    /// Reads what could not be read at the start.
    fn read_late(&self, now: Timestamp) -> Result<(), String> {
        if self.book().is_read { Ok(()) } else { self.read_with(&mut lock(&self.disk), now) }
    }

    fn read_with(&self, disk: &mut Store, now: Timestamp) -> Result<(), String> {
        if let Some(Found { accounts, sessions }) = disk.read_late()? {
            let mut book = self.book();
            book.accounts = accounts;
            book.sessions.read(sessions, now);
            book.is_read = true;
        }
        Ok(())
    }

    /// Makes a change on disk, together with what else is to be written, and then in memory.
    fn change(
        &self,
        now: Timestamp,
        decide: impl FnOnce(&Book) -> Result<Change, AccountError>,
    ) -> Result<(), AccountError> {
        let mut disk = lock(&self.disk);
        self.read_with(&mut disk, now).map_err(AccountError::Unavailable)?;
        let (change, unwritten) = {
            let book = self.book();
            (decide(&book)?, book.sessions.unwritten())
        };
        disk.write(&change, &unwritten).map_err(AccountError::Unavailable)?;
        let mut book = self.book();
        book.sessions.written(&unwritten);
        book.apply(change);
        Ok(())
    }

    /// Writes what sessions there are.
    fn save(&self, now: Timestamp) -> Result<(), String> {
        match self.change(now, |_| Ok(Change::Nothing)) {
            Err(AccountError::Unavailable(reason)) => Err(reason),
            _ => Ok(()),
        }
    }

    fn log_in(
        &self,
        name: &str,
        password: &Secret,
        way: Way,
        turn: Turn,
        now: Timestamp,
    ) -> Result<NewSession, LoginError> {
        self.read_late(now).map_err(LoginError::Unavailable)?;
        let entry = self.book().accounts.get(name).cloned();
        let verdict = self.hasher.check(password, entry.as_ref().map(|entry| &entry.password), &turn);
        let (Verdict::Right { is_outdated }, Some(Entry { epoch, .. })) =
            (verdict.map_err(LoginError::Unavailable)?, entry)
        else {
            return Err(LoginError::Wrong);
        };
        // An old hash is as good as no new one.
        let renewed = if is_outdated { self.hasher.hash(password, &turn).ok() } else { None };
        drop(turn);
        self.begin_by_password(name, epoch, renewed, way, now)
    }

    /// Begins a session of an account whose password with this number was just given.
    fn begin_by_password(
        &self,
        name: &str,
        epoch: u64,
        renewed: Option<Secret>,
        way: Way,
        now: Timestamp,
    ) -> Result<NewSession, LoginError> {
        let current = |book: &Book| book.entry(name).ok().filter(|entry| entry.epoch == epoch).cloned();
        let new = {
            let mut book = self.book();
            // It may have got another password, or be gone, while this one was checked.
            let Some(Entry { account, .. }) = current(&book) else { return Err(LoginError::Wrong) };
            let person = Person { name: account.name, role: account.role };
            book.sessions.begin(person, false, way, now)
        };
        let recorded = self.change(now, |book| {
            let Some(mut entry) = current(book) else { return Ok(Change::Nothing) };
            entry.account.last_login_at = Some(now);
            entry.password = renewed.unwrap_or(entry.password);
            Ok(Change::Put { entry, is_new_password: false, ends_sessions: false })
        });
        if let Err(e) = recorded {
            tracing::warn!("the session of `{name}` lasts until labd restarts: {e}");
        }
        Ok(new)
    }
}

/// What is behind a lock. Nothing panics while it holds one of them half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
