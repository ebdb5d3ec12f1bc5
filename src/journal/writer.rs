//! The one thread that writes. It takes what has gathered in its channel, writes it in one transaction, and only then
//! tells the subscribers, so that who subscribes first and reads second misses nothing.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use tokio::sync::{broadcast, oneshot, watch};

use super::{
    Entry, EventQuery, JournalError, JournalHealth, Kind, Message, Options, RING, Shared, lock, query,
    schema::SHAPE,
    steady::{self, Steady},
};
use crate::{
    db::{self, OpenFailure},
    incident::Incident,
    snapshot::Event,
    time::{Timestamp, human},
};

/// Time between two sweeps of what is too old or too much.
const SWEEP: Duration = Duration::from_hours(1);
/// Number of rows deleted at once; new entries get their turn in between.
const SWEEP_BATCH: usize = 5_000;

/// The writer's whole state.
pub(super) struct Writer {
    path: PathBuf,
    options: Options,
    shared: Arc<Mutex<Shared>>,
    overflow: Arc<AtomicU64>,
    health: watch::Sender<JournalHealth>,
    events: broadcast::Sender<Event>,
    db: Option<Connection>,
    /// Whether memory knows what was on disk at the start.
    read: bool,
    /// Number given out last.
    last_seq: i64,
    /// Events that are numbered and announced, and not on disk.
    pending: VecDeque<Event>,
    /// Number of entries that memory had no room for.
    dropped: u64,
    retry_at: Instant,
    sweep_at: Instant,
    /// Moment at which the wall clock was last compared.
    compared: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        path: PathBuf,
        options: Options,
        shared: Arc<Mutex<Shared>>,
        overflow: Arc<AtomicU64>,
        health: watch::Sender<JournalHealth>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let now = Instant::now();
        Self {
            path,
            options,
            shared,
            overflow,
            health,
            events,
            db: None,
            read: false,
            last_seq: 0,
            pending: VecDeque::new(),
            dropped: 0,
            retry_at: now,
            sweep_at: now,
            compared: None,
        }
    }

    /// Opens the database for the first time; only a newer one is an error.
    pub(super) fn first_open(&mut self) -> Result<(), JournalError> {
        match self.open() {
            Err(OpenFailure::Newer(found)) => {
                Err(JournalError::Newer { path: self.path.clone(), found, ours: SHAPE.version() })
            }
            Err(OpenFailure::Corrupt(reason) | OpenFailure::NotNow(reason)) => {
                self.not_recording(&reason);
                Ok(())
            }
            Ok(()) => {
                self.write(Vec::new());
                Ok(())
            }
        }
    }

    /// Runs until every [`super::Journal`] is gone.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let mut entries = Vec::new();
            let mut flushes = Vec::new();
            let mut open = true;
            match messages.recv_timeout(self.nap()) {
                Ok(first) => {
                    sort(first, &mut entries, &mut flushes);
                    // Bounded, so that a flood of entries cannot keep the first of them from the disk.
                    while entries.len() < 1_000 {
                        match messages.try_recv() {
                            Ok(message) => sort(message, &mut entries, &mut flushes),
                            Err(TryRecvError::Empty) => break,
                            Err(TryRecvError::Disconnected) => {
                                open = false;
                                break;
                            }
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if self.db.is_none() && Instant::now() >= self.retry_at {
                self.reopen();
            }
            self.write(entries);
            self.sweep();
            for done in flushes {
                let _ = done.send(());
            }
            if !open {
                return;
            }
        }
    }

    fn nap(&self) -> Duration {
        let next = if self.db.is_some() { self.sweep_at } else { self.retry_at };
        next.saturating_duration_since(Instant::now())
    }

    /// Opens the database, setting a damaged one aside, and reads what memory should know.
    fn open(&mut self) -> Result<(), OpenFailure> {
        match self.try_open() {
            Err(OpenFailure::Corrupt(reason)) => {
                self.set_aside(&reason)?;
                self.try_open()
            }
            other => other,
        }
    }

    fn try_open(&mut self) -> Result<(), OpenFailure> {
        let db = match db::open(&self.path, &SHAPE) {
            // What cannot be written can often be read: what labd must remember counts on a full disk, too.
            Err(OpenFailure::NotNow(reason)) if !self.read => {
                let path = self.path.clone();
                let _ = db::read(&path, &SHAPE, |db| self.take_in(db));
                return Err(OpenFailure::NotNow(reason));
            }
            other => other?,
        };
        #[cfg(test)]
        self.limit_pages(&db)?;
        self.take_in(&db)?;
        self.db = Some(db);
        Ok(())
    }

    /// Reads what memory should know.
    fn take_in(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let stored_seq = query::last_seq(db)?;
        let restarts = query::restarts(db)?;
        let memory = query::memory(db)?;
        let incidents = query::incidents(db)?;
        let totals = query::incident_totals(db)?;
        let newest = EventQuery { after_seq: None, service: None, kind: None, limit: RING, newest: true };
        let mut stored = query::select(db, &newest)?;
        stored.reverse();

        let mut guard = lock(&self.shared);
        let shared = &mut *guard;
        // What was announced while the file could not be read moves behind what the file turned out to hold.
        let clash = self.pending.front().is_some_and(|first| first.seq <= stored_seq);
        if clash {
            let mut seq = stored_seq;
            for event in &mut self.pending {
                seq += 1;
                event.seq = seq;
            }
        }
        self.last_seq = self.pending.back().map_or(self.last_seq, |e| e.seq).max(self.last_seq).max(stored_seq);
        shared.ring = stored.into_iter().chain(self.pending.iter().cloned()).collect();
        trim(&mut shared.ring, RING);
        shared.restarts = restarts;
        for event in &self.pending {
            count_restart(shared, event);
        }
        for (key, value) in memory {
            if !shared.unsaved.contains(&key) {
                shared.memory.insert(key, value);
            }
        }
        shared.totals = totals;
        let unsaved: Vec<Incident> =
            shared.unsaved_incidents.iter().filter_map(|k| shared.incidents.get(k).cloned()).collect();
        shared.incidents = incidents.into_iter().map(|i| ((i.died_at, i.service.clone()), i)).collect();
        for incident in unsaved {
            shared.keep(incident);
        }
        drop(guard);
        self.read = true;
        Ok(())
    }

    fn set_aside(&mut self, reason: &str) -> Result<(), OpenFailure> {
        self.db = None;
        let aside = db::set_aside(&self.path, Timestamp::now()).map_err(|e| {
            OpenFailure::NotNow(format!("`{}` is damaged and cannot be renamed: {e}", self.path.display()))
        })?;
        // What labd must remember is still in its memory, if it was ever read.
        {
            let mut shared = lock(&self.shared);
            let keys: Vec<String> = shared.memory.keys().cloned().collect();
            shared.unsaved.extend(keys);
        }
        self.say(
            "journal-set-aside",
            format!(
                "the journal `{}` is damaged ({reason}): it was kept as `{}` and a new history begins",
                self.path.display(),
                aside.display()
            ),
        );
        Ok(())
    }

    fn reopen(&mut self) {
        match self.open() {
            Ok(()) => {}
            Err(OpenFailure::Newer(found)) => {
                let newer = JournalError::Newer { path: self.path.clone(), found, ours: SHAPE.version() };
                self.not_recording(&newer.to_string());
            }
            Err(OpenFailure::Corrupt(reason) | OpenFailure::NotNow(reason)) => self.not_recording(&reason),
        }
    }

    /// Numbers the entries, brings them to the disk if that can be done, and announces them either way.
    fn write(&mut self, entries: Vec<Entry>) {
        let from = self.pending.len();
        for entry in entries {
            self.number(entry);
        }
        let fresh: Vec<Event> = self.pending.iter().skip(from).cloned().collect();
        self.dropped += self.overflow.swap(0, Ordering::Relaxed);
        {
            let mut shared = lock(&self.shared);
            for event in &fresh {
                count_restart(&mut shared, event);
                shared.ring.push_back(event.clone());
            }
            trim(&mut shared.ring, RING);
        }
        self.store();
        for event in fresh {
            let _ = self.events.send(event);
        }
        if self.pending.len() > self.options.max_pending {
            let excess = self.pending.len() - self.options.max_pending;
            self.pending.drain(..excess);
            self.dropped += excess as u64;
        }
    }

    /// Writes everything pending in one transaction.
    fn store(&mut self) {
        let unsaved: Vec<(String, String)> = {
            let shared = lock(&self.shared);
            shared.unsaved.iter().filter_map(|k| shared.memory.get(k).map(|v| (k.clone(), v.clone()))).collect()
        };
        let incidents: Vec<Incident> = {
            let shared = lock(&self.shared);
            shared.unsaved_incidents.iter().filter_map(|k| shared.incidents.get(k).cloned()).collect()
        };
        let resumed = self.resumed();
        let Some(db) = self.db.as_mut() else { return };
        if self.pending.is_empty() && unsaved.is_empty() && incidents.is_empty() && resumed.is_none() {
            return;
        }
        let extra = resumed.map(|entry| numbered(self.last_seq + 1, entry));
        match insert(db, self.pending.iter().chain(&extra), &unsaved, &incidents) {
            Ok(()) => {
                self.pending.clear();
                {
                    let mut shared = lock(&self.shared);
                    for (key, value) in unsaved {
                        if shared.memory.get(&key) == Some(&value) {
                            shared.unsaved.remove(&key);
                        }
                    }
                    for incident in incidents {
                        let key = (incident.died_at, incident.service.clone());
                        if shared.incidents.get(&key) == Some(&incident) {
                            shared.unsaved_incidents.remove(&key);
                        }
                    }
                }
                if let Some(event) = extra {
                    self.dropped = 0;
                    self.last_seq = event.seq;
                    lock(&self.shared).ring.push_back(event.clone());
                    let _ = self.events.send(event);
                    self.health.send_replace(JournalHealth::Recording);
                    tracing::info!("history is recorded again");
                }
            }
            Err(e) => self.failed(&e),
        }
    }

    /// Entry that closes a gap in the history.
    fn resumed(&self) -> Option<Entry> {
        let now = Timestamp::now();
        let (since, why) = match &*self.health.borrow() {
            JournalHealth::NotRecording { since, reason } => (*since, reason.clone()),
            JournalHealth::Recording if self.dropped > 0 => (now, "more happened than could be written".to_owned()),
            JournalHealth::Recording => return None,
        };
        let lost = match self.dropped {
            0 => "nothing was lost".to_owned(),
            1 => "1 entry was lost".to_owned(),
            n => format!("{n} entries were lost"),
        };
        let reason = format!("history is recorded again after {}; {lost} ({why})", human(now.since(since)));
        Some(Entry { at: now, service: None, kind: Kind::Daemon, what: "journal-resumed".into(), reason })
    }

    fn failed(&mut self, e: &rusqlite::Error) {
        // A fresh connection at the next try: some errors leave the old one unusable.
        self.db = None;
        if db::is_corrupt(e) {
            match self.set_aside(&db::in_words(e)).and_then(|()| self.try_open()) {
                Ok(()) => {
                    // Written on the next wake, which is at once.
                    self.sweep_at = Instant::now();
                }
                Err(OpenFailure::Corrupt(reason) | OpenFailure::NotNow(reason)) => self.not_recording(&reason),
                Err(OpenFailure::Newer(_)) => self.not_recording("a newer labd took the journal over"),
            }
        } else {
            self.not_recording(&db::in_words(e));
        }
    }

    fn not_recording(&mut self, reason: &str) {
        self.db = None;
        self.retry_at = Instant::now() + self.options.retry;
        let reason = format!("history is not recorded: `{}`: {reason}", self.path.display());
        self.health.send_if_modified(|health| match health {
            JournalHealth::NotRecording { reason: old, .. } if *old == reason => false,
            JournalHealth::NotRecording { reason: old, .. } => {
                tracing::warn!("{reason}");
                *old = reason;
                true
            }
            JournalHealth::Recording => {
                tracing::warn!("{reason}");
                *health = JournalHealth::NotRecording { since: Timestamp::now(), reason };
                true
            }
        });
    }

    /// Records an entry of the journal about itself.
    fn say(&mut self, what: &str, reason: String) {
        tracing::warn!("{reason}");
        let at = Timestamp::now();
        self.number(Entry { at, service: None, kind: Kind::Daemon, what: what.to_owned(), reason });
        if let Some(event) = self.pending.back() {
            lock(&self.shared).ring.push_back(event.clone());
            let _ = self.events.send(event.clone());
        }
    }

    fn number(&mut self, entry: Entry) {
        self.last_seq += 1;
        self.pending.push_back(numbered(self.last_seq, entry));
    }

    /// Deletes, once an hour and at the start, what is too old or too much, a batch at a time.
    fn sweep(&mut self) {
        if Instant::now() < self.sweep_at {
            return;
        }
        if self.db.is_none() {
            return;
        }
        let now = Timestamp::now();
        // Before the beginning of time is nothing.
        let oldest =
            if self.believes(now) { now.minus(self.options.retention) } else { Timestamp::default() }.as_millis();
        let Some(db) = &self.db else { return };
        let swept = (|| {
            let old = db.execute(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at_ms < ?1 LIMIT ?2)",
                params![oldest, SWEEP_BATCH as u32],
            )?;
            let many = db.execute(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
                params![self.last_seq - self.options.max_rows, SWEEP_BATCH as u32],
            )?;
            db.execute("DELETE FROM incidents WHERE died_at_ms < ?1", params![oldest])?;
            let more = old.max(many) >= SWEEP_BATCH;
            let restarts = if old + many > 0 && !more { Some(query::restarts(db)?) } else { None };
            Ok::<_, rusqlite::Error>((more, restarts))
        })();
        match swept {
            Ok((more, restarts)) => {
                if let Some(restarts) = restarts {
                    lock(&self.shared).restarts = restarts;
                }
                self.sweep_at = Instant::now() + if more { Duration::ZERO } else { SWEEP };
            }
            Err(e) => {
                self.sweep_at = Instant::now() + self.options.retry;
                self.failed(&e);
            }
        }
    }

    /// Whether the wall clock is right about what is old.
    fn believes(&mut self, now: Timestamp) -> bool {
        let passed = self.compared.replace(Instant::now()).map(|at| at.elapsed());
        let mut shared = lock(&self.shared);
        let kept = shared.memory.get(steady::MEMORY).and_then(|text| Steady::parse(text));
        let clock = Steady::after(kept, now, passed);
        shared.memory.insert(steady::MEMORY.to_owned(), clock.text());
        shared.unsaved.insert(steady::MEMORY.to_owned());
        clock.is_believed()
    }

    #[cfg(test)]
    fn limit_pages(&self, db: &Connection) -> rusqlite::Result<()> {
        match self.options.max_pages.load(Ordering::Relaxed) {
            0 => Ok(()),
            pages => db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())),
        }
    }
}

fn sort(message: Message, entries: &mut Vec<Entry>, flushes: &mut Vec<oneshot::Sender<()>>) {
    match message {
        Message::Entry(entry) => entries.push(*entry),
        Message::Memory => {}
        Message::Flush(done) => flushes.push(done),
    }
}

fn numbered(seq: i64, entry: Entry) -> Event {
    let Entry { at, service, kind, what, reason } = entry;
    Event { seq, at, service, kind: kind.as_str().to_owned(), what, reason }
}

fn count_restart(shared: &mut Shared, event: &Event) {
    if let Some(service) = &event.service
        && event.kind == Kind::Action.as_str()
        && event.what == "restart"
    {
        *shared.restarts.entry(service.clone()).or_default() += 1;
    }
}

/// Takes an entry into memory as the writer does, without a disk.
#[cfg(test)]
pub(super) fn note(shared: &mut Shared, entry: Entry) {
    let seq = shared.ring.back().map_or(0, |last| last.seq) + 1;
    let event = numbered(seq, entry);
    count_restart(shared, &event);
    shared.ring.push_back(event);
    trim(&mut shared.ring, RING);
}

fn trim(ring: &mut VecDeque<Event>, to: usize) {
    let excess = ring.len().saturating_sub(to);
    ring.drain(..excess);
}

fn insert<'a>(
    db: &mut Connection,
    events: impl Iterator<Item = &'a Event>,
    memory: &[(String, String)],
    incidents: &[Incident],
) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    {
        let mut add = tx.prepare_cached(
            "INSERT INTO events (seq, at_ms, service, kind, what, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for e in events {
            add.execute(params![e.seq, e.at.as_millis(), e.service, e.kind, e.what, e.reason])?;
        }
        let mut keep = tx.prepare_cached("INSERT OR REPLACE INTO memory (key, value) VALUES (?1, ?2)")?;
        for (key, value) in memory {
            keep.execute(params![key, value])?;
        }
        let mut keep = tx.prepare_cached(
            "INSERT OR REPLACE INTO incidents (died_at_ms, service, cause, recovery_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for i in incidents {
            let took = i.ready_at.map(|at| at.since(i.died_at).as_millis() as i64);
            // Plain data with string keys always serialises.
            let body = serde_json::to_string(i).unwrap_or_default();
            keep.execute(params![i.died_at.as_millis(), i.service, i.cause.as_str(), took, body])?;
        }
    }
    tx.commit()
}
