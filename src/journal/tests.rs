//! Tests of the journal as its users see it, and of damage to the file under it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::atomic::Ordering,
};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;

/// Function that damages the file at a path.
type Damage = fn(&Path);

const A_YEAR: Duration = Duration::from_hours(24 * 365);

fn entry(service: &str, kind: Kind, what: &str) -> Entry {
    Entry {
        at: Timestamp::now(),
        service: Some(service.into()),
        kind,
        what: what.into(),
        reason: format!("{what} because of a test"),
    }
}

fn everything() -> EventQuery {
    EventQuery { after_seq: None, service: None, kind: None, limit: 10_000, newest: false }
}

fn quick() -> Options {
    Options { retry: Duration::from_millis(30), ..Options::new(A_YEAR) }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

async fn recording(journal: &Journal) {
    let mut health = journal.health();
    tokio::time::timeout(Duration::from_secs(10), health.wait_for(|h| *h == JournalHealth::Recording))
        .await
        .expect("it records within 10 s")
        .expect("the writer lives");
}

async fn not_recording(journal: &Journal) -> String {
    let mut health = journal.health();
    let health = tokio::time::timeout(
        Duration::from_secs(10),
        health.wait_for(|h| matches!(h, JournalHealth::NotRecording { .. })),
    )
    .await
    .expect("it notices within 10 s")
    .expect("the writer lives")
    .clone();
    match health {
        JournalHealth::NotRecording { reason, .. } => reason,
        JournalHealth::Recording => unreachable!("waited for the other"),
    }
}

#[tokio::test]
async fn what_is_recorded_comes_back() {
    let dir = folder();
    let path = dir.path().join("data/journal.db");
    let journal = Journal::open(&path, A_YEAR).expect("opens");
    let mut live = journal.subscribe();
    journal.record(entry("minio", Kind::State, "ready"));
    journal.record(entry("ray-head", Kind::Action, "restart"));
    journal.record(entry("ray-head", Kind::Action, "start"));
    journal.record(entry("minio", Kind::State, "unhealthy"));
    journal.set_memory("held", "[\"jupyter\"]");
    journal.flush().await;

    for seq in 1..=4 {
        assert_eq!(live.recv().await.expect("an event").seq, seq);
    }
    let all = journal.events(everything()).await;
    assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(all[1].kind, "action");
    let newest = journal.events(EventQuery { limit: 2, newest: true, ..everything() }).await;
    assert_eq!(newest.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4]);
    let after = journal.events(EventQuery { after_seq: Some(1), limit: 1, ..everything() }).await;
    assert_eq!(after[0].seq, 2);
    let minio = journal.events(EventQuery { service: Some("minio".into()), ..everything() }).await;
    assert_eq!(minio.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(journal.last_state("minio").await.expect("an event").what, "unhealthy");
    assert_eq!(journal.last_state("nobody").await, None);
    assert_eq!(journal.restarts(), BTreeMap::from([("ray-head".to_owned(), 1)]));

    drop(journal);
    let journal = Journal::open(&path, A_YEAR).expect("opens again");
    assert_eq!(journal.events(everything()).await, all);
    assert_eq!(journal.memory("held").as_deref(), Some("[\"jupyter\"]"));
    assert_eq!(journal.restarts()["ray-head"], 1);
    journal.record(entry("minio", Kind::State, "ready"));
    // What else is said of a service is no state.
    journal.record(entry("minio", Kind::Incident, "exit"));
    journal.flush().await;
    assert_eq!(journal.last_state("minio").await.expect("an event").seq, 5);
}

/// The other half of [`a_sigkill_loses_nothing_that_was_flushed`]; does nothing on its own.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Some(path) = std::env::var_os("LABD_TEST_JOURNAL") else { return };
    let journal = Journal::open(Path::new(&path), A_YEAR).expect("opens");
    for _ in 0..50 {
        journal.record(entry("ray-worker-0", Kind::Action, "restart"));
    }
    journal.set_memory("held", "jupyter");
    journal.flush().await;
    tokio::task::spawn_blocking(|| {
        use std::io::Write as _;
        let mut out = std::io::stderr().lock();
        let _ = writeln!(out, "FLUSHED");
    })
    .await
    .expect("it prints");
    loop {
        journal.record(entry("ray-worker-0", Kind::State, "ready"));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_sigkill_loses_nothing_that_was_flushed() {
    let dir = folder();
    let path = dir.path().join("journal.db");
    let mut child = Command::new(std::env::current_exe().expect("this test's own file"))
        .args(["--exact", "--nocapture", "journal::tests::child_that_writes_until_killed"])
        .env("LABD_TEST_JOURNAL", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("FLUSHED")), "the child wrote");
    child.kill().expect("SIGKILL");
    child.wait().expect("it is gone");

    let journal = Journal::open(&path, A_YEAR).expect("opens");
    assert_eq!(*journal.health().borrow(), JournalHealth::Recording);
    assert_eq!(journal.restarts()["ray-worker-0"], 50);
    assert_eq!(journal.memory("held").as_deref(), Some("jupyter"));
    let seqs: Vec<_> = journal.events(everything()).await.iter().map(|e| e.seq).collect();
    assert!(seqs.len() >= 50);
    assert!((1..).zip(&seqs).all(|(want, seq)| want == *seq), "no gap, nothing twice");
}

#[tokio::test]
async fn every_older_version_is_migrated() {
    for version in 1..schema::SHAPE.version() as usize {
        let dir = folder();
        let path = dir.path().join("journal.db");
        let mut db = Connection::open(&path).expect("a database");
        for step in 0..version {
            crate::db::apply(&mut db, &schema::SHAPE, step).expect("the old version");
        }
        db.execute_batch(
            "INSERT INTO events VALUES (7, 1795492872123, 'minio', 'state', 'ready', 'answers'),
                                       (8, 1795492872124, 'minio', 'action', 'restart', 'exited 137')",
        )
        .expect("old rows");
        drop(db);

        let journal = Journal::open(&path, A_YEAR * 100).expect("migrates");
        assert_eq!(*journal.health().borrow(), JournalHealth::Recording);
        let events = journal.events(everything()).await;
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(journal.restarts()["minio"], 1);
        journal.set_memory("k", "v");
        journal.flush().await;
        let db = Connection::open(&path).expect("a database");
        let found: u32 = db.pragma_query_value(None, "user_version", |r| r.get(0)).expect("a version");
        assert_eq!(found, schema::SHAPE.version());
        assert_eq!(query::memory(&db).expect("readable")["k"], "v");
    }
}

#[tokio::test]
async fn a_newer_database_is_refused_and_left_as_it_is() {
    let dir = folder();
    let path = dir.path().join("journal.db");
    let journal = Journal::open(&path, A_YEAR).expect("opens");
    journal.record(entry("minio", Kind::State, "ready"));
    journal.flush().await;
    drop(journal);
    let db = Connection::open(&path).expect("a database");
    db.pragma_update(None, "user_version", schema::SHAPE.version() + 3).expect("from the future");
    drop(db);
    closed(&path).await;
    let before = fs::read(&path).expect("readable");

    let error = Journal::open(&path, A_YEAR).expect_err("refused");
    assert_eq!(
        error,
        JournalError::Newer { path: path.clone(), found: schema::SHAPE.version() + 3, ours: schema::SHAPE.version() }
    );
    let line = error.to_string();
    assert!(
        line.contains(path.to_str().expect("UTF-8")) && line.contains("schema 6") && !line.contains('\n'),
        "{line}"
    );
    assert_eq!(fs::read(&path).expect("readable"), before);
    assert!(
        !fs::read_dir(dir.path())
            .expect("listable")
            .any(|f| { f.expect("an entry").file_name().to_string_lossy().contains("corrupt") })
    );
}

#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let dir = folder();
    let path = dir.path().join("journal.db");
    let options = Options { max_pending: 20, ..quick() };
    let pages = Arc::clone(&options.max_pages);
    pages.store(12, Ordering::Relaxed);
    let journal = Journal::open_with(&path, options).expect("opens");
    let mut live = journal.subscribe();
    let long = "x".repeat(3_000);
    for _ in 0..60 {
        journal.record(Entry { reason: long.clone(), ..entry("ray-head", Kind::State, "ready") });
        journal.flush().await;
    }
    let reason = not_recording(&journal).await;
    assert!(reason.contains("the disk is full") && reason.contains(path.to_str().expect("UTF-8")), "{reason}");
    for seq in 1..=60 {
        assert_eq!(live.recv().await.expect("told although not recorded").seq, seq);
    }
    assert_eq!(journal.last_state("ray-head").await.expect("from memory").seq, 60);
    journal.set_memory("held", "minio");

    pages.store(0, Ordering::Relaxed);
    recording(&journal).await;
    let resumed = live.recv().await.expect("an event");
    assert_eq!((resumed.what.as_str(), resumed.seq), ("journal-resumed", 61));
    assert!(resumed.reason.contains("entries were lost"), "{}", resumed.reason);
    journal.flush().await;
    drop(journal);

    let journal = Journal::open(&path, A_YEAR).expect("opens");
    assert_eq!(journal.memory("held").as_deref(), Some("minio"));
    let seqs: Vec<_> = journal.events(everything()).await.iter().map(|e| e.seq).collect();
    assert!(seqs.ends_with(&(41..=61).collect::<Vec<_>>()), "the newest 20 and the note were kept: {seqs:?}");
    assert!(seqs.len() < 61, "the oldest of those that waited were dropped: {seqs:?}");
}

#[tokio::test]
async fn where_nothing_can_be_written_it_opens_all_the_same() {
    let dir = folder();
    let blocker = dir.path().join("data");
    fs::write(&blocker, "a file where a directory belongs").expect("writable");
    let path = blocker.join("journal.db");
    let journal = Journal::open_with(&path, quick()).expect("opens");
    not_recording(&journal).await;
    journal.record(entry("minio", Kind::Action, "restart"));
    journal.flush().await;
    assert_eq!(journal.events(everything()).await.len(), 1);
    assert_eq!(journal.restarts()["minio"], 1);

    fs::remove_file(&blocker).expect("removable");
    recording(&journal).await;
    assert_eq!(journal.restarts()["minio"], 1, "not counted twice");
    let events = journal.events(everything()).await;
    assert_eq!(events.iter().map(|e| e.what.as_str()).collect::<Vec<_>>(), ["restart", "journal-resumed"]);
    assert!(events[1].reason.contains("nothing was lost"), "{}", events[1].reason);
}

#[tokio::test]
async fn what_waited_lines_up_behind_what_the_file_held() {
    let dir = folder();
    let path = dir.path().join("data/journal.db");
    let journal = Journal::open(&path, A_YEAR).expect("opens");
    for _ in 0..5 {
        journal.record(entry("minio", Kind::State, "ready"));
    }
    journal.flush().await;
    drop(journal);
    let away = dir.path().join("away");
    fs::rename(dir.path().join("data"), &away).expect("renames");
    fs::write(dir.path().join("data"), "").expect("writable");

    let journal = Journal::open_with(&path, quick()).expect("opens");
    journal.record(entry("minio", Kind::State, "unhealthy"));
    journal.flush().await;
    // In one step: the journal is tried again all the time.
    std::os::unix::fs::symlink(&away, dir.path().join("link")).expect("linkable");
    fs::rename(dir.path().join("link"), dir.path().join("data")).expect("renames");
    recording(&journal).await;
    let events = journal.events(everything()).await;
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    assert_eq!(events[5].what, "unhealthy");
}

#[tokio::test]
async fn a_damaged_file_is_set_aside() {
    let damaged: [(&str, Damage); 3] = [
        ("not a database", |path| fs::write(path, "SQLite? No: a cat on the keyboard.".repeat(200)).expect("writable")),
        ("overwritten pages", |path| {
            let journal = Connection::open(path).expect("a database");
            journal
                .execute_batch("PRAGMA application_id = 1818321508; CREATE TABLE events (a); PRAGMA user_version = 2")
                .expect("made");
            drop(journal);
            let mut bytes = fs::read(path).expect("readable");
            bytes[100..].fill(0xa5);
            fs::write(path, bytes).expect("writable");
        }),
        ("another program's", |path| {
            Connection::open(path).expect("a database").execute_batch("CREATE TABLE cats (name)").expect("made");
        }),
    ];
    for (what, damage) in damaged {
        let dir = folder();
        let path = dir.path().join("journal.db");
        damage(&path);
        let before = fs::read(&path).expect("readable");
        let journal = Journal::open(&path, A_YEAR).expect("opens");
        assert_eq!(*journal.health().borrow(), JournalHealth::Recording, "{what}");
        let events = journal.events(everything()).await;
        assert_eq!(events.len(), 1, "{what}: {events:?}");
        assert_eq!(events[0].what, "journal-set-aside");
        let kept = fs::read_dir(dir.path())
            .expect("listable")
            .map(|f| f.expect("an entry").path())
            .find(|p| p.to_string_lossy().contains("journal.db.corrupt-"))
            .expect("it was kept");
        assert!(events[0].reason.contains(kept.to_str().expect("UTF-8")));
        assert_eq!(fs::read(kept).expect("readable"), before, "{what}");
        journal.record(entry("minio", Kind::State, "ready"));
        journal.flush().await;
        assert_eq!(journal.events(everything()).await.len(), 2);
    }
}

/// Waits until a dropped journal is closed: its own thread does that, and with the last to close it the other files go.
async fn closed(path: &Path) {
    let log = path.with_file_name("journal.db-wal");
    tokio::time::timeout(Duration::from_mins(1), async {
        while log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is closed");
}

#[tokio::test]
async fn what_is_too_old_or_too_much_goes() {
    let dir = folder();
    let path = dir.path().join("journal.db");
    let journal = Journal::open(&path, A_YEAR).expect("opens");
    let last_week = Timestamp::from_millis(Timestamp::now().as_millis() - 7 * 86_400_000);
    for _ in 0..6 {
        journal.record(Entry { at: last_week, ..entry("minio", Kind::Action, "restart") });
    }
    for _ in 0..4 {
        journal.record(entry("minio", Kind::Action, "restart"));
    }
    journal.flush().await;
    drop(journal);
    closed(&path).await;

    // The clock could have jumped by a week: nothing goes.
    let journal = Journal::open(&path, Duration::from_hours(48)).expect("opens");
    journal.flush().await;
    assert_eq!(query::events(&path, &everything()).expect("readable").len(), 10);
    let ms = |at: Timestamp| at.as_millis();
    journal.set_memory(steady::MEMORY, format!("{} {}", ms(last_week), ms(Timestamp::now())));
    journal.flush().await;
    drop(journal);
    closed(&path).await;

    let journal = Journal::open(&path, Duration::from_hours(48)).expect("opens");
    journal.flush().await;
    let seqs: Vec<_> = query::events(&path, &everything()).expect("readable").iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [7, 8, 9, 10]);
    assert_eq!(journal.restarts()["minio"], 4);
    drop(journal);

    let journal = Journal::open_with(&path, Options { max_rows: 2, ..Options::new(A_YEAR) }).expect("opens");
    journal.flush().await;
    let seqs: Vec<_> = query::events(&path, &everything()).expect("readable").iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [9, 10]);
}

#[tokio::test]
async fn recording_never_waits() {
    let dir = folder();
    let journal = Journal::open(&dir.path().join("journal.db"), A_YEAR).expect("opens");
    let begun = std::time::Instant::now();
    for _ in 0..100_000 {
        journal.record(entry("ray-head", Kind::State, "ready"));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "took {:?}", begun.elapsed());
    journal.flush().await;
    let events = journal.events(EventQuery { limit: 1, newest: true, ..everything() }).await;
    assert!(events[0].seq > 1_000);
}

#[tokio::test]
async fn incidents_are_kept_in_their_newest_form_and_counted_once() {
    let dir = folder();
    let path = dir.path().join("journal.db");
    let now = Timestamp::now();
    let at = |ms| Timestamp::from_millis(now.as_millis() + ms);
    let mut incident = Incident {
        service: "ray-worker-0".into(),
        cause: Cause::Exit,
        why: "container exited 137 (SIGKILL)".into(),
        died_at: at(10_000),
        noticed_at: at(10_040),
        running_at: None,
        ready_at: None,
        training: Vec::new(),
        order: crate::incident::Order::default(),
    };
    let journal = Journal::open_with(&path, quick()).expect("opens");
    journal.keep_incident(incident.clone());
    journal.flush().await;
    incident.running_at = Some(at(10_300));
    incident.ready_at = Some(at(13_000));
    journal.keep_incident(incident.clone());
    for n in 0..150 {
        journal.keep_incident(Incident {
            service: "minio".into(),
            died_at: at(20_000 + n),
            ready_at: None,
            ..incident.clone()
        });
        if n % 50 == 0 {
            journal.flush().await;
        }
    }
    journal.flush().await;
    let totals = journal.incident_totals();
    drop(journal);
    let journal = Journal::open_with(&path, quick()).expect("opens again");
    assert_eq!(journal.incidents().len(), KEPT, "the newest");
    assert_eq!(journal.incident_totals(), totals, "the same before and after a restart");
    let worker = totals[&("ray-worker-0".to_owned(), Cause::Exit)];
    let within = RECOVERY_BOUNDS.map(|bound| u64::from(bound >= 3));
    assert_eq!(worker, Totals { incidents: 1, recovered: 1, recovery: Duration::from_secs(3), within });
    let minio = totals[&("minio".to_owned(), Cause::Exit)];
    assert_eq!((minio.incidents, minio.recovered), (150, 0));
    // Those that are not in memory any more are told all the same.
    let (mut told, mut than) = (0, None);
    loop {
        let page = journal.older_incidents(than, 40).await;
        let Some(last) = page.last() else { break };
        assert!(page.is_sorted_by_key(|incident| std::cmp::Reverse(incident.died_at)));
        told += page.len();
        than = Some((last.died_at, last.service.clone()));
    }
    assert_eq!(told, 151);
}
