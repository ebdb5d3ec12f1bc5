//! The journal of everything that happened: every transition with its reason, in SQLite.
//!
//! One writer thread owns the database ([`writer`]). Everyone else holds a [`Journal`]: entries go in on a bounded
//! channel, events come out on a `broadcast`, the journal's own health on a `watch`. Recording never blocks and never
//! fails: with a full or broken disk labd continues to supervise, keeps the newest entries in memory, and says that
//! history is not recorded.
//!
//! * [`schema`]: versions and migrations; what is refused and what is set aside.
//! * [`query`]: reading, on a connection of its own.
//! * [`steady`]: whether the clock may be believed when history is deleted. Pure.

mod query;
mod schema;
mod steady;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tokio::sync::{broadcast, oneshot, watch};

pub use query::EventQuery;

use crate::{
    incident::{Cause, Incident, KEPT},
    snapshot::Event,
    time::Timestamp,
};

/// Number of events kept in memory for when the database cannot be read.
const RING: usize = 500;
/// Largest number of entries on their way to the writer; more than this means that the disk hangs.
const CHANNEL: usize = 4_096;

/// Kind of an entry: which part of the lab it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A service entered a state.
    State,
    /// Action of labd on a service.
    Action,
    /// The daemon itself.
    Daemon,
    /// Image that was built, pulled, or could not be.
    Image,
    /// Configuration: `labd.toml` was read.
    Config,
    /// A job's end, as the ledger sees it.
    Job,
    /// Incident: a service died and is back.
    Incident,
    /// GPU that has a fault, or is healthy again.
    Gpu,
    /// Command of a person, by whom.
    Person,
}

impl Kind {
    /// Word in the database and in [`Event::kind`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Action => "action",
            Self::Daemon => "daemon",
            Self::Image => "image",
            Self::Config => "config",
            Self::Job => "job",
            Self::Incident => "incident",
            Self::Gpu => "gpu",
            Self::Person => "person",
        }
    }
}

/// Entry of the journal: something that happened. Never carries a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Time at which it happened.
    pub at: Timestamp,
    /// Service it concerns; `None` for the daemon itself.
    pub service: Option<String>,
    /// Kind of the entry.
    pub kind: Kind,
    /// State entered or action taken, such as `ready` or `start`. [`Kind::Action`] with `restart` is what
    /// [`Journal::restarts`] counts.
    pub what: String,
    /// Reason, in one line.
    pub reason: String,
}

/// Whether history is being kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalHealth {
    /// Every entry reaches the disk.
    Recording,
    /// Entries stay in memory, the oldest are dropped; tried again every 10 s.
    NotRecording {
        /// Time since which it has not been recorded.
        since: Timestamp,
        /// Reason, in one line.
        reason: String,
    },
}

/// Reason why the journal cannot be opened at all. Everything else is [`JournalHealth::NotRecording`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Written by a newer labd: to continue would lose what that one wrote.
    #[error(
        "the journal `{}` was written by a newer labd (schema {found}, this one knows up to {ours}): install that labd \
         again, or move the file away to begin a new history",
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
    /// The operating system has no thread left.
    #[error("cannot start the journal's writer thread: {0}")]
    Thread(String),
}

/// Options that only tests set.
#[derive(Debug, Clone)]
struct Options {
    retention: Duration,
    max_rows: i64,
    max_pending: usize,
    retry: Duration,
    /// Number of pages after which the disk is full; 0 is no limit.
    #[cfg(test)]
    max_pages: Arc<std::sync::atomic::AtomicU32>,
}

impl Options {
    fn new(retention: Duration) -> Self {
        Self {
            retention,
            max_rows: 1_000_000,
            max_pending: 10_000,
            retry: Duration::from_secs(10),
            #[cfg(test)]
            max_pages: Arc::default(),
        }
    }
}

/// Upper bounds of the times from death to ready, as a histogram has them, in seconds: a worker is back after some 2 s, the head
/// after 4 s, and a machine whose packages must be fetched anew takes minutes.
pub const RECOVERY_BOUNDS: [u64; 12] = [1, 2, 3, 5, 8, 15, 30, 60, 120, 300, 900, 3_600];

/// Incidents of one service with one cause, over everything the journal remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Number of incidents.
    pub incidents: u64,
    /// Number of incidents from which the service is back.
    pub recovered: u64,
    /// Sum of the times from death to ready, over those.
    pub recovery: Duration,
    /// Number of those that took no longer than each of [`RECOVERY_BOUNDS`].
    pub within: [u64; RECOVERY_BOUNDS.len()],
}

impl Totals {
    /// Counts a service that is ready again, so long after its death.
    pub(crate) fn add_recovery(&mut self, took: Duration) {
        self.recovered += 1;
        self.recovery += took;
        for (count, bound) in self.within.iter_mut().zip(RECOVERY_BOUNDS) {
            *count += u64::from(took <= Duration::from_secs(bound));
        }
    }

    /// Adds those of another cause.
    pub(crate) fn add(&mut self, other: &Self) {
        self.incidents += other.incidents;
        self.recovered += other.recovered;
        self.recovery += other.recovery;
        for (count, more) in self.within.iter_mut().zip(other.within) {
            *count += more;
        }
    }
}

/// State that writer and readers both need, without the database.
#[derive(Debug, Default)]
struct Shared {
    /// The newest events, recorded or not.
    ring: VecDeque<Event>,
    restarts: BTreeMap<String, u32>,
    memory: BTreeMap<String, String>,
    /// Keys of `memory` that are not on disk yet.
    unsaved: BTreeSet<String>,
    /// The newest incidents by death and service, at most [`KEPT`].
    incidents: BTreeMap<IncidentKey, Incident>,
    /// Keys of `incidents` whose present form is not on disk yet.
    unsaved_incidents: BTreeSet<IncidentKey>,
    totals: BTreeMap<(String, Cause), Totals>,
}

/// Key that tells incidents apart.
type IncidentKey = (Timestamp, String);

impl Shared {
    fn keep(&mut self, incident: Incident) {
        let key = (incident.died_at, incident.service.clone());
        let back = |i: &Incident| i.ready_at.map(|at| at.since(i.died_at));
        let total = self.totals.entry((incident.service.clone(), incident.cause)).or_default();
        let now_back = back(&incident);
        let old = self.incidents.insert(key.clone(), incident);
        total.incidents += u64::from(old.is_none());
        if let (None, Some(took)) = (old.as_ref().and_then(back), now_back) {
            total.add_recovery(took);
        }
        self.unsaved_incidents.insert(key);
        // The oldest that is on disk goes; with a disk that takes nothing the newest count.
        while self.incidents.len() > KEPT {
            if let Some((key, _)) = self.incidents.pop_first() {
                self.unsaved_incidents.remove(&key);
            }
        }
    }
}

#[derive(Debug)]
enum Message {
    /// Boxed: the channel's room for so many messages is made at the start.
    Entry(Box<Entry>),
    /// Change of some key of the memory, or of an incident.
    Memory,
    Flush(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Inner {
    /// Path of the database; empty for a journal that is kept in memory only.
    path: PathBuf,
    to_writer: SyncSender<Message>,
    /// Number of entries that found the channel full.
    overflow: Arc<AtomicU64>,
    shared: Arc<Mutex<Shared>>,
    health: watch::Receiver<JournalHealth>,
    events: broadcast::Sender<Event>,
}

/// Handle on the journal; clones are the same journal. When the last one goes, what is queued is still written.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

impl Journal {
    /// Opens or begins the journal at `path` and starts its writer. Only a database of a newer labd is an error: it is
    /// left as it is. A corrupt one is set aside, and where nothing can be written the journal opens all the same, see
    /// [`Journal::health`].
    pub fn open(path: &Path, retention: Duration) -> Result<Self, JournalError> {
        Self::open_with(path, Options::new(retention))
    }

    fn open_with(path: &Path, options: Options) -> Result<Self, JournalError> {
        let (to_writer, messages) = sync_channel(CHANNEL);
        let (events, _) = broadcast::channel(1_024);
        let (health_tx, health) = watch::channel(JournalHealth::Recording);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let overflow = Arc::new(AtomicU64::new(0));
        let mut writer = writer::Writer::new(
            path.to_owned(),
            options,
            Arc::clone(&shared),
            Arc::clone(&overflow),
            health_tx,
            events.clone(),
        );
        writer.first_open()?;
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&messages))
            .map_err(|e| JournalError::Thread(e.to_string()))?;
        Ok(Self(Arc::new(Inner { path: path.to_owned(), to_writer, overflow, shared, health, events })))
    }

    /// Journal without a file and without a thread, for simulated labs: it outlives them as a file would.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let (to_writer, _) = sync_channel(1);
        Self(Arc::new(Inner {
            path: PathBuf::new(),
            to_writer,
            overflow: Arc::default(),
            shared: Arc::default(),
            health: watch::channel(JournalHealth::Recording).1,
            events: broadcast::channel(1_024).0,
        }))
    }

    /// Records that something happened. Never blocks, never fails.
    pub fn record(&self, entry: Entry) {
        #[cfg(test)]
        if self.0.path.as_os_str().is_empty() {
            writer::note(&mut lock(&self.0.shared), entry);
            return;
        }
        if let Err(TrySendError::Full(_)) = self.0.to_writer.try_send(Message::Entry(Box::new(entry))) {
            self.0.overflow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether history is being kept.
    pub fn health(&self) -> watch::Receiver<JournalHealth> {
        self.0.health.clone()
    }

    /// Events from now on, recorded or not.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Events in the order they happened. What the database cannot tell comes from memory: the last 500.
    pub async fn events(&self, query: EventQuery) -> Vec<Event> {
        let path = self.0.path.clone();
        if path.as_os_str().is_empty() {
            return query.merge(Vec::new(), &lock(&self.0.shared).ring);
        }
        let asked = query.clone();
        let stored = tokio::task::spawn_blocking(move || query::events(&path, &asked)).await;
        let stored = match stored {
            Ok(Ok(events)) => events,
            Ok(Err(e)) => {
                tracing::debug!("cannot read the journal, answering from memory: {e}");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        query.merge(stored, &lock(&self.0.shared).ring)
    }

    /// Number of the newest event since labd began, from memory.
    pub fn newest(&self) -> Option<i64> {
        lock(&self.0.shared).ring.back().map(|event| event.seq)
    }

    /// Event of the state that a service entered last.
    pub async fn last_state(&self, service: &str) -> Option<Event> {
        let service = Some(service.to_owned());
        let query = EventQuery { after_seq: None, service, kind: Some(Kind::State), limit: 1, newest: true };
        self.events(query).await.pop()
    }

    /// Number of restarts of each service, over everything the journal remembers.
    pub fn restarts(&self) -> BTreeMap<String, u32> {
        lock(&self.0.shared).restarts.clone()
    }

    /// The newest incidents, oldest first, at most [`KEPT`].
    pub fn incidents(&self) -> Vec<Incident> {
        lock(&self.0.shared).incidents.values().cloned().collect()
    }

    /// Incidents that nobody asked for, newest first: those before this time, or at it of a service that comes before this one
    /// by name. What the database cannot tell comes from memory.
    pub async fn older_incidents(&self, than: Option<(Timestamp, String)>, most: usize) -> Vec<Incident> {
        let path = self.0.path.clone();
        let asked = than.clone();
        let stored = tokio::task::spawn_blocking(move || {
            if path.as_os_str().is_empty() {
                Ok(Vec::new())
            } else {
                query::older_incidents(&path, asked.as_ref(), most)
            }
        });
        let stored = stored.await.ok().and_then(|read| {
            read.inspect_err(|e| tracing::debug!("cannot read the journal, answering from memory: {e}")).ok()
        });
        let key = |incident: &Incident| (incident.died_at, incident.service.clone());
        let is_wanted = |i: &Incident| i.cause != Cause::Asked && than.as_ref().is_none_or(|than| key(i) < *than);
        let mut all: BTreeMap<IncidentKey, Incident> =
            stored.unwrap_or_default().into_iter().map(|incident| (key(&incident), incident)).collect();
        // What is in memory is newer than what is on disk.
        all.extend(self.incidents().into_iter().filter(is_wanted).map(|incident| (key(&incident), incident)));
        all.into_values().rev().take(most).collect()
    }

    /// Keeps an incident in place of its earlier form, which is known by service and time of death. Never blocks.
    pub fn keep_incident(&self, incident: Incident) {
        lock(&self.0.shared).keep(incident);
        self.wake_writer();
    }

    /// Totals of incidents, by service and cause.
    pub fn incident_totals(&self) -> BTreeMap<(String, Cause), Totals> {
        lock(&self.0.shared).totals.clone()
    }

    /// Keeps a value over restarts of labd.
    pub fn set_memory(&self, key: impl Into<String>, value: impl Into<String>) {
        let key = key.into();
        {
            let mut shared = lock(&self.0.shared);
            shared.memory.insert(key.clone(), value.into());
            shared.unsaved.insert(key);
        }
        self.wake_writer();
    }

    fn wake_writer(&self) {
        // A full channel wakes the writer anyway, and it looks at what is unsaved on every wake.
        let _ = self.0.to_writer.try_send(Message::Memory);
    }

    /// A value kept by [`Journal::set_memory`].
    pub fn memory(&self, key: &str) -> Option<String> {
        lock(&self.0.shared).memory.get(key).cloned()
    }

    /// Returns once everything recorded so far is on disk, or could not be brought there. Call it before the process
    /// ends.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let mut message = Message::Flush(done);
        // The channel is only ever full for as long as one transaction takes.
        for _ in 0..200 {
            match self.0.to_writer.try_send(message) {
                Ok(()) => {
                    let _ = wait.await;
                    return;
                }
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Nothing is left half done under this lock, so a panic elsewhere does not spoil what it guards.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
