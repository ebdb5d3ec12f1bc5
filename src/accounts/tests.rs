//! Logins as people and their browsers see them, on a clock that the tests move.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    pin::pin,
    task::{Context, Waker},
};

use argon2::Params;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::time::simulated;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const PASSWORD: &str = "correct horse battery";
const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A data directory, with a clock that stands still until [`pass`].
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        simulated::begin(Some(START));
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    /// labd as it starts, with hashes that cost nothing.
    fn open(&self) -> Accounts {
        let opened = self.try_open().expect("opens");
        assert_eq!(opened.note, None);
        opened.accounts
    }

    fn try_open(&self) -> Result<Opened, AccountsError> {
        Accounts::open_with(self.dir.path(), password::tests::cheap())
    }

    /// labd that has an account of Ada's, an administrator.
    async fn with_ada(&self) -> Accounts {
        let accounts = self.open();
        accounts.add("ada", Role::Admin, &secret(PASSWORD)).await.expect("added");
        accounts
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(FILE)
    }

    fn db(&self) -> Connection {
        Connection::open(self.path()).expect("opens")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        simulated::begin(None);
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

fn person(name: &str, role: Role) -> Person {
    Person { name: name.into(), role }
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

async fn log_in(accounts: &Accounts, name: &str) -> NewSession {
    accounts.log_in(name, &secret(PASSWORD), HERE.into()).await.expect("logged in")
}

async fn by_link(accounts: &Accounts, name: &str, role: Role) -> NewSession {
    let link = accounts.link(person(name, role));
    accounts.log_in_by_link(&link, HERE.into()).await.expect("logged in")
}

fn is_in(accounts: &Accounts, session: &NewSession) -> bool {
    accounts.session(session.cookie.expose()).is_some()
}

async fn fail(accounts: &Accounts, name: &str, from: IpAddr) -> LoginError {
    accounts.log_in(name, &secret("incorrect horse"), from.into()).await.expect_err("refused")
}

#[tokio::test(start_paused = true)]
async fn an_account_is_added_listed_changed_and_removed() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    pass(MINUTE).await;
    accounts.add("bob", Role::Viewer, &secret(PASSWORD)).await.expect("added");
    pass(MINUTE).await;
    log_in(&accounts, "ada").await;
    let account =
        |name: &str, role, created_at, last_login_at| Account { name: name.into(), role, created_at, last_login_at };
    let ada = account("ada", Role::Admin, START, Some(START.plus(2 * MINUTE)));
    let want = [ada.clone(), account("bob", Role::Viewer, START.plus(MINUTE), None)];
    assert_eq!(accounts.list().await.expect("listed"), want);
    assert_eq!(lab.open().list().await.expect("listed"), want, "after a restart");
    accounts.set_role("bob", Role::Admin).await.expect("set");
    accounts.set_password("bob", &secret("another password")).await.expect("set");
    assert_eq!(accounts.log_in("bob", &secret(PASSWORD), HERE.into()).await.expect_err("old"), LoginError::Wrong);
    let bob = accounts.log_in("bob", &secret("another password"), HERE.into()).await.expect("logged in");
    assert_eq!(bob.person, person("bob", Role::Admin));
    accounts.remove("bob").await.expect("removed");
    for accounts in [accounts, lab.open()] {
        assert_eq!(accounts.list().await.expect("listed"), std::slice::from_ref(&ada));
        assert!(!is_in(&accounts, &bob));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_account_or_may_be_none_is_refused_in_one_line() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let good = secret(PASSWORD);
    let short = secret("short");
    let refused = [
        accounts.add("ada", Role::Viewer, &good).await,
        accounts.add("a\nb", Role::Viewer, &good).await,
        accounts.add("bob", Role::Viewer, &short).await,
        accounts.set_password("ada", &short).await,
        accounts.set_password("b\nb", &good).await,
        accounts.set_role("bob", Role::Admin).await,
        accounts.remove(&"b".repeat(10_000)).await,
    ];
    let wants =
        ["already", "1 to 64", "10 characters", "10 characters", "no account", "`labd user list`", "no account"];
    for (refused, want) in refused.into_iter().zip(wants) {
        let line = refused.expect_err(want).to_string();
        assert!(line.contains(want) && !line.contains('\n') && line.len() < 300, "{line}");
    }
    assert_eq!(accounts.list().await.expect("listed")[0].role, Role::Admin, "nothing was changed");
    log_in(&accounts, "ada").await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_and_a_wrong_password_are_told_apart_by_nobody() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let long = "x".repeat(5_000);
    let errors = [
        fail(&accounts, "ada", HERE).await,
        fail(&accounts, "bob", HERE).await,
        fail(&accounts, &long, THERE).await,
        accounts.log_in("ada", &secret(&long), THERE.into()).await.expect_err("refused"),
        accounts.log_in("ada", &secret(""), THERE.into()).await.expect_err("refused"),
    ];
    assert!(errors.iter().all(|e| *e == LoginError::Wrong), "{errors:?}");
}

#[tokio::test(start_paused = true)]
async fn sessions_survive_a_restart() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let ada = log_in(&accounts, "ada").await;
    assert_eq!(ada.expires_at, START.plus(7 * 24 * HOUR));
    let root = by_link(&accounts, "root", Role::Admin).await;
    pass(11 * HOUR).await;
    assert!(is_in(&accounts, &ada) && is_in(&accounts, &root));
    accounts.flush().await.expect("written");
    drop(accounts);
    pass(11 * HOUR).await;
    let accounts = lab.open();
    let session = accounts.session(ada.cookie.expose()).expect("there");
    assert_eq!((session.person.clone(), session.expires_at), (person("ada", Role::Admin), ada.expires_at));
    assert!(session.admits(ada.csrf.expose()));
    for wrong in ["", root.csrf.expose(), ada.cookie.expose()] {
        assert!(!session.admits(wrong));
    }
    assert_eq!(accounts.session(root.cookie.expose()).expect("there").person.name, "root");
    // Nobody uses them any more.
    accounts.flush().await.expect("written");
    pass(12 * HOUR).await;
    assert!(!is_in(&accounts, &ada) && !is_in(&lab.open(), &root));
    accounts.flush().await.expect("written");
    let kept: u32 = lab.db().query_row("SELECT count(*) FROM sessions", [], |row| row.get(0)).expect("readable");
    assert_eq!(kept, 1, "what ended is not kept");
}

#[tokio::test(start_paused = true)]
async fn a_stolen_cookie_is_nothing_after_its_owner_logged_out() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let (stolen, other) = (log_in(&accounts, "ada").await, log_in(&accounts, "ada").await);
    assert!(is_in(&accounts, &stolen));
    accounts.log_out(stolen.cookie.expose()).await.expect("logged out");
    accounts.log_out("nobody's").await.expect("nothing to do");
    for accounts in [accounts, lab.open()] {
        assert!(!is_in(&accounts, &stolen) && is_in(&accounts, &other));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_opens_nothing() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let new = log_in(&accounts, "ada").await;
    let stored = |column: &str| -> Vec<u8> {
        lab.db().query_row(&format!("SELECT {column} FROM sessions"), [], |row| row.get(0)).expect("there")
    };
    let cookie = crate::secret::hex(&stored("cookie"));
    assert!(accounts.session(&cookie).is_none());
    let session = accounts.session(new.cookie.expose()).expect("there");
    assert!(!session.admits(&crate::secret::hex(&stored("csrf"))));
    assert!(!is_in(&accounts, &NewSession { cookie: secret(&session.id), ..new }));
}

#[tokio::test(start_paused = true)]
async fn a_new_password_a_lower_role_and_a_removal_end_sessions_at_once() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    accounts.add("bob", Role::Viewer, &secret(PASSWORD)).await.expect("added");
    let bob = log_in(&accounts, "bob").await;
    // Root may ask for a link in anybody's name; that is root's session.
    let linked = by_link(&accounts, "ada", Role::Admin).await;
    let after_restart = |session: &NewSession| is_in(&lab.open(), session);

    let ada = log_in(&accounts, "ada").await;
    accounts.set_password("ada", &secret(PASSWORD)).await.expect("set");
    assert!(!is_in(&accounts, &ada) && !after_restart(&ada));

    let ada = log_in(&accounts, "ada").await;
    accounts.set_role("ada", Role::Admin).await.expect("set");
    assert!(is_in(&accounts, &ada), "the same role");
    accounts.set_role("ada", Role::Viewer).await.expect("set");
    assert!(!is_in(&accounts, &ada) && !after_restart(&ada));

    let ada = log_in(&accounts, "ada").await;
    accounts.set_role("ada", Role::Admin).await.expect("set");
    let session = accounts.session(ada.cookie.expose()).expect("a higher role ends nothing");
    assert_eq!(session.person.role, Role::Viewer, "until the next login");
    assert_eq!(log_in(&accounts, "ada").await.person.role, Role::Admin);
    assert!(is_in(&accounts, &linked));

    let waiting = accounts.link(person("ada", Role::Admin));
    accounts.remove("ada").await.expect("removed");
    assert!(!is_in(&accounts, &ada) && !after_restart(&ada));
    assert!(!is_in(&accounts, &linked) && !after_restart(&linked));
    assert_eq!(accounts.log_in_by_link(&waiting, HERE.into()).await.expect_err("ended"), LoginError::Link);
    assert!(is_in(&accounts, &bob) && after_restart(&bob), "somebody else's");
}

/// Checking a password takes a while, in which the account may change.
#[tokio::test(start_paused = true)]
async fn a_password_that_was_changed_or_removed_while_it_was_checked_begins_no_session() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let epoch = || accounts.0.book().accounts.get("ada").map_or(0, |entry| entry.epoch);
    let begin = |epoch| accounts.0.begin_by_password("ada", epoch, None, HERE.into(), START);
    let old = epoch();
    accounts.set_role("ada", Role::Viewer).await.expect("set");
    assert_eq!(begin(old).expect("the same password").person.role, Role::Viewer);
    accounts.set_password("ada", &secret(PASSWORD)).await.expect("set");
    assert_eq!(begin(old).expect_err("changed"), LoginError::Wrong);
    let old = epoch();
    accounts.remove("ada").await.expect("removed");
    assert_eq!(begin(old).expect_err("removed"), LoginError::Wrong);
    accounts.add("ada", Role::Admin, &secret(PASSWORD)).await.expect("added");
    assert_eq!(begin(old).expect_err("another account"), LoginError::Wrong);
    assert_eq!(accounts.sessions(), []);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_listed_and_ended_by_their_id_or_their_persons_name() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let ada = log_in(&accounts, "ada").await;
    pass(HOUR).await;
    let mapped: IpAddr = "::ffff:192.0.2.2".parse().expect("an address");
    let link = accounts.link(person("root", Role::Admin));
    let root = accounts.log_in_by_link(&link, mapped.into()).await.expect("logged in");
    pass(HOUR).await;
    assert!(is_in(&accounts, &ada));
    let views = accounts.sessions();
    let [first, second] = views.as_slice() else { panic!("two of them: {views:?}") };
    assert_eq!((first.name.as_str(), first.from, first.since), ("root", THERE, START.plus(HOUR)));
    assert_eq!((second.name.as_str(), second.from, second.since), ("ada", HERE, START));
    assert_eq!((first.last_used, second.last_used), (START.plus(HOUR), START.plus(2 * HOUR)));
    assert_eq!(second.id, accounts.session(ada.cookie.expose()).expect("there").id);
    assert!(second.id.len() == 8 && !ada.cookie.expose().starts_with(&second.id));

    assert_eq!(accounts.end("00").await, Ok(false));
    assert_eq!(accounts.end(&second.id).await, Ok(true));
    assert!(!is_in(&accounts, &ada) && is_in(&accounts, &root));
    let more = [by_link(&accounts, "root", Role::Viewer).await, log_in(&accounts, "ada").await];
    assert_eq!(accounts.end_all("root").await, Ok(2));
    for accounts in [accounts, lab.open()] {
        assert!(!is_in(&accounts, &root) && !is_in(&accounts, &more[0]) && is_in(&accounts, &more[1]));
        assert_eq!(accounts.sessions().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_is_good_once_for_ten_minutes_and_until_a_restart() {
    let lab = Lab::new();
    let accounts = lab.open();
    let link = accounts.link(person("root", Role::Viewer));
    let root = accounts.log_in_by_link(&link, HERE.into()).await.expect("logged in");
    assert_eq!(accounts.session(root.cookie.expose()).expect("there").person, person("root", Role::Viewer));
    assert_eq!(accounts.log_in_by_link(&link, HERE.into()).await.expect_err("used"), LoginError::Link);
    let old = accounts.link(person("root", Role::Viewer));
    pass(10 * MINUTE).await;
    assert_eq!(accounts.log_in_by_link(&old, HERE.into()).await.expect_err("old"), LoginError::Link);
    let lost = accounts.link(person("root", Role::Viewer));
    let accounts = lab.open();
    assert_eq!(accounts.log_in_by_link(&lost, HERE.into()).await.expect_err("ended"), LoginError::Link);
    assert!(is_in(&accounts, &root));
}

#[tokio::test(start_paused = true)]
async fn who_fails_too_often_waits_and_nobody_else_does() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    for n in 0..6 {
        assert_eq!(fail(&accounts, "ada", THERE).await, LoginError::Wrong);
        let told = format!("5 failed logins, the last as `ada` from {THERE}");
        assert_eq!(accounts.failures(false), (n == 4).then_some(told), "said once");
    }
    let refused = fail(&accounts, "ada", THERE).await;
    assert_eq!(refused, LoginError::TooMany { again_in: Duration::from_secs(1) });
    assert!(refused.to_string().contains("try again in 1.0 s"), "{refused}");
    let right = || secret(PASSWORD);
    assert!(accounts.log_in("ada", &right(), THERE.into()).await.is_err(), "not even with the password");
    log_in(&accounts, "ada").await;
    let link = accounts.link(person("ada", Role::Admin));
    accounts.log_in_by_link(&link, THERE.into()).await.expect("nobody guesses a link");
    let guess = || secret("a guess at a link");
    assert!(matches!(accounts.log_in_by_link(&guess(), THERE.into()).await, Err(LoginError::TooMany { .. })));
    pass(Duration::from_secs(1)).await;
    assert_eq!(accounts.log_in_by_link(&guess(), THERE.into()).await.expect_err("none"), LoginError::Link);
    assert!(accounts.log_in("ada", &right(), THERE.into()).await.is_err(), "that counted, too");
    pass(Duration::from_secs(2)).await;
    accounts.log_in("ada", &right(), THERE.into()).await.expect("after the wait");
}

#[tokio::test(start_paused = true)]
async fn a_password_typed_as_the_name_is_not_told() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    for _ in 0..5 {
        fail(&accounts, PASSWORD, THERE).await;
    }
    assert_eq!(accounts.failures(false), Some(format!("5 failed logins, the last as nobody known from {THERE}")));
}

/// A class logs in at the same moment: what is not known to be wrong is no failure.
#[tokio::test(start_paused = true)]
async fn only_what_was_wrong_is_told_and_also_of_who_hung_up() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let (right, loopback) = (secret(PASSWORD), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let names: Vec<String> = (0..8).map(|n| format!("student-{n}")).collect();
    for name in &names {
        accounts.add(name, Role::Viewer, &right).await.expect("added");
    }
    let told = futures_util::future::join_all(names.iter().map(async |name| {
        let done = accounts.log_in(name, &right, loopback.into()).await;
        (done.is_ok(), accounts.failures(done.is_ok()))
    }));
    assert!(told.await.iter().all(|told| *told == (true, None)));
    let (wrong, hasher) = (secret("incorrect horse"), &accounts.0.hasher);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..5 {
        // The book is held, so that it is still being checked when its caller goes; when both turns are free again, it was.
        let held = accounts.0.book();
        let looked = pin!(accounts.log_in("ada", &wrong, THERE.into())).poll(&mut cx);
        assert!(looked.is_pending(), "{looked:?}");
        drop(held);
        drop([hasher.turn().await.expect("free"), hasher.turn().await.expect("free")]);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let told = loop {
        match accounts.failures(false) {
            Some(told) => break told,
            None => assert!(std::time::Instant::now() < deadline, "nothing is told"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(told, format!("5 failed logins, the last as `ada` from {THERE}"));
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_before_the_answer_has_failed_and_who_is_turned_away_has_not() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let hasher = &accounts.0.hasher;
    let turns = [hasher.turn().await.expect("free"), hasher.turn().await.expect("free")];
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..6 {
        let password = secret(PASSWORD);
        assert!(pin!(accounts.log_in("ada", &password, THERE.into())).poll(&mut cx).is_pending());
    }
    let mut waiting: Vec<_> = (0..32).map(|_| Box::pin(hasher.turn())).collect();
    for turn in &mut waiting {
        assert!(turn.as_mut().poll(&mut cx).is_pending());
    }
    for _ in 0..20 {
        assert_eq!(fail(&accounts, "ada", HERE).await, LoginError::Busy);
    }
    assert_eq!(accounts.add("bob", Role::Viewer, &secret(PASSWORD)).await, Err(AccountError::Busy));
    drop((turns, waiting));
    assert!(matches!(fail(&accounts, "ada", THERE).await, LoginError::TooMany { .. }));
    log_in(&accounts, "ada").await;
}

#[tokio::test(start_paused = true)]
async fn a_visit_goes_on_with_the_next_session_of_the_same_person_alone() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let visit_of = |session: &NewSession| {
        let ticket = accounts.ticket(session.cookie.expose()).expect("it goes on");
        accounts.enter(&ticket, HERE.into()).expect("good once")
    };
    let first = log_in(&accounts, "ada").await;
    let visit = visit_of(&first);
    let next = log_in(&accounts, "ada").await;
    accounts.hand_over(first.cookie.expose(), &next);
    accounts.log_out(first.cookie.expose()).await.expect("written");
    assert!(accounts.visit_goes_on(visit.expose()));
    let link = accounts.link(person("root", Role::Admin));
    let other = accounts.log_in_by_link(&link, HERE.into()).await.expect("logged in");
    accounts.hand_over(next.cookie.expose(), &other);
    accounts.log_out(next.cookie.expose()).await.expect("written");
    assert!(!accounts.visit_goes_on(visit.expose()));
    accounts.hand_over(next.cookie.expose(), &other);
    assert!(!accounts.visit_goes_on(visit.expose()), "what is over is handed over to nobody");
}

#[tokio::test(start_paused = true)]
async fn a_hash_of_another_cost_is_renewed_at_the_next_login_and_ends_nothing() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let before = log_in(&accounts, "ada").await;
    drop(accounts);
    let cost = |want: &str| {
        let hash: String = lab.db().query_row("SELECT password FROM accounts", [], |row| row.get(0)).expect("there");
        assert!(hash.starts_with(want), "{hash}");
    };
    cost("$argon2id$v=19$m=8,t=1,p=1$");
    let dearer = Hasher::with(Params::new(16, 2, 1, None).expect("allowed"));
    let accounts = Accounts::open_with(lab.dir.path(), dearer).expect("opens").accounts;
    fail(&accounts, "ada", HERE).await;
    cost("$argon2id$v=19$m=8,t=1,p=1$");
    log_in(&accounts, "ada").await;
    cost("$argon2id$v=19$m=16,t=2,p=1$");
    log_in(&accounts, "ada").await;
    assert!(is_in(&accounts, &before));
}

#[tokio::test(start_paused = true)]
async fn the_use_of_sessions_is_written_once_a_minute() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let ada = log_in(&accounts, "ada").await;
    let db = lab.db();
    let on_disk = || -> i64 { db.query_row("SELECT used_ms FROM sessions", [], |row| row.get(0)).expect("there") };
    let mut written = Vec::new();
    for _ in 0..200 {
        pass(Duration::from_secs(1)).await;
        let before = accounts.0.book().written_at;
        assert!(is_in(&accounts, &ada));
        if accounts.0.book().written_at != before {
            let now = Timestamp::now();
            while on_disk() != now.as_millis() {
                tokio::task::spawn_blocking(|| ()).await.expect("a thread");
            }
            written.push(now.since(START).as_secs());
        }
    }
    assert_eq!(written, [60, 120, 180]);
    assert_eq!(on_disk(), START.plus(3 * MINUTE).as_millis(), "and not in between");
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_keeps_sessions_and_makes_none_last_longer() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    simulated::set_by(1_000 * 3_600_000);
    let ada = log_in(&accounts, "ada").await;
    simulated::set_by(-1_000 * 3_600_000);
    for accounts in [&accounts, &lab.open()] {
        let session = accounts.session(ada.cookie.expose()).expect("there");
        assert_eq!(session.expires_at, START.plus(7 * 24 * HOUR));
    }
}

#[tokio::test(start_paused = true)]
async fn people_log_in_and_out_while_the_disk_takes_nothing() {
    let lab = Lab::new();
    let accounts = lab.with_ada().await;
    let before = log_in(&accounts, "ada").await;
    let full = |table: &str, of: &str| {
        lab.db()
            .execute_batch(&format!(
                "CREATE TRIGGER no_{of}_{table} BEFORE {of} ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
            ))
            .expect("made");
    };
    full("sessions", "INSERT");
    full("sessions", "DELETE");
    full("accounts", "INSERT");
    let during = log_in(&accounts, "ada").await;
    let linked = by_link(&accounts, "root", Role::Admin).await;
    assert!(is_in(&accounts, &during) && is_in(&accounts, &linked));
    let error = accounts.add("bob", Role::Viewer, &secret(PASSWORD)).await.expect_err("refused").to_string();
    assert!(error.contains("nothing was changed") && error.contains("full") && !error.contains('\n'), "{error}");
    assert!(accounts.list().await.expect("from memory").iter().all(|a| a.name == "ada"));
    let error = accounts.log_out(before.cookie.expose()).await.expect_err("not on disk").to_string();
    assert!(error.contains("has ended") && error.contains("full") && !error.contains('\n'), "{error}");
    assert!(!is_in(&accounts, &before), "it ended all the same");
    // The next write makes up for it.
    for trigger in ["no_INSERT_sessions", "no_DELETE_sessions", "no_INSERT_accounts"] {
        lab.db().execute_batch(&format!("DROP TRIGGER {trigger}")).expect("removed");
    }
    accounts.flush().await.expect("written");
    let accounts = lab.open();
    assert!(!is_in(&accounts, &before) && is_in(&accounts, &during) && is_in(&accounts, &linked));
}

#[tokio::test(start_paused = true)]
async fn where_nothing_can_be_read_it_says_so_and_tries_again() {
    let lab = Lab::new();
    let (data, away) = (lab.dir.path().join("data"), lab.dir.path().join("away"));
    let open = || Accounts::open_with(&data, password::tests::cheap()).expect("opens");
    let accounts = open().accounts;
    accounts.add("ada", Role::Admin, &secret(PASSWORD)).await.expect("added");
    let before = log_in(&accounts, "ada").await;
    drop(accounts);
    fs::rename(&data, &away).expect("moved");
    fs::write(&data, "a file where a folder should be").expect("written");
    let Opened { accounts, note } = open();
    assert!(note.is_some_and(|note| note.contains("nobody can log in by password") && !note.contains('\n')));
    let refused = accounts.log_in("ada", &secret(PASSWORD), HERE.into()).await.expect_err("unknown");
    assert!(matches!(&refused, LoginError::Unavailable(_)) && !refused.to_string().contains('\n'), "{refused}");
    assert!(matches!(accounts.list().await, Err(AccountError::Unavailable(_))));
    assert!(matches!(accounts.set_role("ada", Role::Viewer).await, Err(AccountError::Unavailable(_))));
    let root = by_link(&accounts, "root", Role::Admin).await;
    accounts.log_out(before.cookie.expose()).await.expect_err("not on disk");
    fs::remove_file(&data).expect("removed");
    fs::rename(&away, &data).expect("moved");
    log_in(&accounts, "ada").await;
    assert!(is_in(&accounts, &root) && is_in(&accounts, &before));
}

#[test]
fn a_newer_labds_accounts_are_refused_in_one_line_and_left_as_they_are() {
    let lab = Lab::new();
    drop(lab.open());
    lab.db().pragma_update(None, "user_version", 99).expect("from the future");
    let before = fs::read(lab.path()).expect("readable");
    let line = lab.try_open().expect_err("refused").to_string();
    let says = ["newer labd (schema 99", "move the file away", "`labd user add`"];
    assert!(says.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{line}");
    assert_eq!(fs::read(lab.path()).expect("readable"), before);
}

#[tokio::test(start_paused = true)]
async fn damaged_accounts_are_set_aside_and_said_so() {
    let lab = Lab::new();
    let before = log_in(&lab.with_ada().await, "ada").await;
    for side in ["-wal", "-shm"] {
        let _ = fs::remove_file(lab.dir.path().join(format!("{FILE}{side}")));
    }
    fs::write(lab.path(), "this is no database, but it is long enough to look like one's beginning").expect("written");
    let Opened { accounts, note } = lab.try_open().expect("opens");
    let note = note.expect("a note");
    assert!(note.contains(".corrupt-") && note.contains("`labd user add`") && !note.contains('\n'), "{note}");
    assert_eq!(accounts.list().await.expect("listed"), []);
    assert_eq!(fail(&accounts, "ada", HERE).await, LoginError::Wrong);
    assert!(!is_in(&accounts, &before));
    accounts.add("ada", Role::Admin, &secret(PASSWORD)).await.expect("added again");
    log_in(&accounts, "ada").await;
}

#[tokio::test(start_paused = true)]
async fn the_file_is_labds_alone_and_marked() {
    let lab = Lab::new();
    let _accounts = lab.with_ada().await;
    for side in ["", "-wal", "-shm"] {
        let path = lab.dir.path().join(format!("{FILE}{side}"));
        assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600);
    }
    let mark: i32 = lab.db().pragma_query_value(None, "application_id", |row| row.get(0)).expect("there");
    assert_eq!(mark.to_be_bytes(), *b"laba");
}

#[tokio::test(start_paused = true)]
async fn nothing_secret_is_shown_or_stored() {
    let lab = Lab::new();
    let opened = lab.try_open().expect("opens");
    let accounts = &opened.accounts;
    accounts.add("ada", Role::Admin, &secret(PASSWORD)).await.expect("added");
    let link = accounts.link(person("root", Role::Viewer));
    let new = log_in(accounts, "ada").await;
    let root = by_link(accounts, "root", Role::Viewer).await;
    let session = accounts.session(new.cookie.expose()).expect("there");
    let wrong = "incorrect horse battery";
    let mut shown = format!("{opened:?} {new:?} {root:?} {session:?} {:?}", accounts.0.book());
    shown += &format!("{:?} {:?}", accounts.sessions(), accounts.list().await.expect("listed"));
    shown += &serde_json::to_string(&(accounts.sessions(), accounts.list().await.expect("listed"))).expect("JSON");
    let show = |e: &dyn std::error::Error| format!("{e} {e:?}");
    shown += &show(&accounts.log_in("ada", &secret(wrong), HERE.into()).await.expect_err("wrong"));
    shown += &show(&accounts.log_in_by_link(&new.cookie, HERE.into()).await.expect_err("no link"));
    shown += &show(&accounts.add("bob", Role::Viewer, &secret("incorrect")).await.expect_err("short"));
    shown += &show(&accounts.set_password("ada", &secret("incorrect")).await.expect_err("short"));
    shown += &show(&accounts.set_password("bob", &secret(wrong)).await.expect_err("nobody"));
    let hash: String = lab.db().query_row("SELECT password FROM accounts", [], |row| row.get(0)).expect("there");
    let tokens = [&link, &new.cookie, &new.csrf, &root.cookie, &root.csrf].map(Secret::expose);
    for secret in tokens.into_iter().chain([PASSWORD, wrong, "incorrect", hash.as_str()]) {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    let mut stored = Vec::new();
    for side in ["", "-wal"] {
        stored.extend(fs::read(lab.dir.path().join(format!("{FILE}{side}"))).expect("there"));
    }
    for secret in tokens.into_iter().chain([PASSWORD]) {
        assert!(!stored.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} on disk");
    }
    assert!(stored.windows(hash.len()).any(|part| part == hash.as_bytes()));
}

#[test]
fn roles_have_an_order_and_words() {
    assert!(Role::Viewer < Role::Admin);
    for role in [Role::Viewer, Role::Admin] {
        assert_eq!(role.as_str().parse(), Ok(role));
        assert_eq!(serde_json::to_value(role).expect("JSON"), role.as_str());
        assert_eq!(serde_json::from_value::<Role>(role.as_str().into()).expect("a role"), role);
    }
    let error = "Admin".parse::<Role>().expect_err("no role").to_string();
    assert!(error.contains("`viewer` or `admin`"), "{error}");
}
