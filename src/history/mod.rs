//! History of the GPUs, and the account of their hours.
//!
//! Once a second a task takes what the snapshot says, and asks nobody: a sleeping GPU sleeps on. The last hour is kept by the
//! second in memory ([`ring`]), 7 days by the minute in `history.db` ([`store`]), which is written every 5 minutes. What was
//! not seen is absent, never made up.
//!
//! A GPU is held while a job runs on its worker. Who held which for how long, and whether it had anything to do, is counted by
//! the day of the machine's time zone ([`usage`]).

mod minute;
mod recorder;
mod ring;
mod series;
mod store;
mod usage;

#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{civil::Date, tz::TimeZone};
use tokio::{sync::watch, time::MissedTickBehavior};

use self::{recorder::Recorder, store::Store};
pub use self::{
    series::{GpuHistory, HistoryView, JobSpan},
    usage::{BUSY, DayUse, Hours, IDLE, IdleGpu, JobUse, OTHERS, UsageView, UserUse, WeekUse},
};
use crate::{
    snapshot::Snapshot,
    time::{Moment, Now},
};

/// Time between two looks at the snapshot.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for the file: a hanging disk is no reason to hang.
const DISK: Duration = Duration::from_secs(10);

/// Most hours that a chart shows: what is kept by the minute.
pub const HOURS: u32 = 168;
/// Most days that the account goes back.
pub const DAYS: u32 = store::DAYS as u32;
/// Most points of a chart of the last hour.
pub const HOUR_POINTS: usize = 720;
/// Most points of another chart.
pub const POINTS: usize = 1_500;

/// Time in which a GPU worked for a job, in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    gpu: Arc<str>,
    job: Arc<str>,
    from: i64,
    to: i64,
}

/// Query for a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chart<'a> {
    /// Number of hours, 1 to [`HOURS`].
    pub hours: u32,
    /// Largest number of points; the least and the most that is sensible otherwise.
    pub points: Option<usize>,
    /// The one GPU to show; all when absent.
    pub gpu: Option<&'a str>,
}

/// Handle on the history; clones are the same one.
#[derive(Debug, Clone)]
pub struct History {
    recorder: Arc<Mutex<Recorder>>,
    /// Held by one at a time: what is written is never read half, and a chart's memory is needed once.
    store: Arc<tokio::sync::Mutex<Store>>,
}

impl History {
    /// Opens or begins the history in labd's folder. The text is for a person: what cannot be kept is no reason not to start.
    pub fn open(data_dir: &Path) -> (Self, Option<String>) {
        let (store, note) = Store::open(&data_dir.join("history.db"));
        (Self { recorder: Arc::default(), store: Arc::new(tokio::sync::Mutex::new(store)) }, note)
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        // Nothing that can panic leaves it half changed.
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a look at the lab. Returns whether it is time to [`save`](Self::save).
    pub fn look(&self, now: Now, snapshot: &Snapshot) -> bool {
        self.recorder().take(now, snapshot, TimeZone::system)
    }

    /// Writes what has gathered; with `all`, also the minute under way. The error is one line.
    pub async fn save(&self, now: Moment, all: bool) -> Result<(), String> {
        let store = Arc::clone(&self.store).lock_owned().await;
        let batch = {
            let mut recorder = self.recorder();
            if all { recorder.last_batch(now, TimeZone::system) } else { recorder.batch(now) }
        };
        if batch.is_empty() {
            return Ok(());
        }
        // The file stays taken until memory agrees with it, so that nobody counts anything twice.
        let write = move || {
            let mut store = store;
            let done = store.write(&batch);
            (done, batch, store)
        };
        let Ok((done, batch, _store)) = tokio::task::spawn_blocking(write).await else {
            return Err("the writer of the GPUs' history died".to_owned());
        };
        if done.is_err() {
            self.recorder().take_back(batch);
        }
        done
    }

    /// History for a chart. The error is one line.
    pub async fn chart(&self, query: Chart<'_>, snapshot: &Snapshot, now: Now) -> Result<HistoryView, String> {
        let hours = query.hours.clamp(1, HOURS);
        let present = snapshot.gpus.iter().map(|gpu| (gpu.id.clone(), gpu.worker.clone()));
        let present: Vec<_> = present.filter(|(id, _)| query.gpu.is_none_or(|only| only == id)).collect();
        let only = |view: HistoryView| match query.gpu {
            Some(only) => HistoryView { gpus: view.gpus.into_iter().filter(|gpu| gpu.id == only).collect(), ..view },
            None => view,
        };
        if hours == 1 {
            let most = query.points.unwrap_or(HOUR_POINTS).clamp(1, HOUR_POINTS);
            let history = self.clone();
            let work = tokio::task::spawn_blocking(move || {
                let (grid, spans) = history.recorder().hour(now, most);
                grid.view(&present, &spans)
            });
            return work.await.map(only).map_err(|_| "the reader of the GPUs' history died".to_owned());
        }
        let most = query.points.unwrap_or(POINTS).clamp(1, POINTS);
        let wall = now.wall.as_millis().div_euclid(1_000);
        let mut grid = series::Grid::up_to(wall, i64::from(hours) * 3_600, 60, most);
        let history = self.clone();
        self.with_store(move |store| {
            let spans = store.chart(&mut grid);
            let spans = history.recorder().add_minutes(&mut grid, spans);
            grid.view(&present, &spans)
        })
        .await
        .map(only)
    }

    /// What is made of the accounts, in the thread that reads them.
    async fn of_accounts<T: Send + 'static>(
        &self,
        first: Date,
        make: impl FnOnce(&usage::Accounts) -> T + Send + 'static,
    ) -> Result<T, String> {
        let history = self.clone();
        self.with_store(move |store| {
            let mut accounts = store.accounts(first);
            history.recorder().add_accounts(&mut accounts, first);
            make(&accounts)
        })
        .await
    }

    /// GPU hours of the last days, today included, and of the weeks that they are in. The error is one line.
    pub async fn usage(&self, days: u32, now: Now) -> Result<UsageView, String> {
        let zone = TimeZone::system();
        let name = zone.iana_name().unwrap_or("local time").to_owned();
        let (idle, first) = (self.idle_now(now), first_of(days, now));
        // A week is told whole.
        self.of_accounts(usage::monday(first), move |accounts| usage::view(accounts, first, name, idle)).await
    }

    /// The same as CSV, a line for each day, job, user and GPU. The error is one line.
    pub async fn usage_csv(&self, days: u32, now: Now) -> Result<String, String> {
        self.of_accounts(first_of(days, now), usage::csv).await
    }

    /// GPUs that jobs have held for half an hour without using them, the longest first.
    pub fn idle_now(&self, now: Now) -> Vec<IdleGpu> {
        self.recorder().idle(now)
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, String> {
        let late = || "the disk does not answer; try again later".to_owned();
        let store = tokio::time::timeout(DISK, Arc::clone(&self.store).lock_owned()).await.map_err(|_| late())?;
        let work = tokio::task::spawn_blocking(move || work(&store));
        match tokio::time::timeout(DISK, work).await {
            Ok(done) => done.map_err(|_| "the reader of the GPUs' history died".to_owned()),
            Err(_) => Err(late()),
        }
    }
}

/// Looks at the lab once a second, and writes every 5 minutes, until the daemon ends. It ends with the last write.
pub async fn follow(history: History, snapshots: watch::Receiver<Arc<Snapshot>>, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = None;
    let mut write: Option<tokio::task::JoinHandle<Result<(), String>>> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let now = Now::read();
        let snapshot = Arc::clone(&snapshots.borrow());
        let due = history.look(now, &snapshot);
        if let Some(done) = write.take_if(|task| task.is_finished()) {
            say(&mut trouble, done.await.unwrap_or(Ok(())));
        }
        // A disk that hangs is waited for, and the looks go on.
        if due && write.is_none() {
            let history = history.clone();
            write = Some(tokio::spawn(async move { history.save(now.moment, false).await }));
        }
    }
    say(&mut trouble, history.save(Moment::now(), true).await);
}

/// First of the last days, of those that are kept.
fn first_of(days: u32, now: Now) -> Date {
    recorder::first_day(now.wall, &TimeZone::system(), days.clamp(1, DAYS))
}

/// Says once what is in the way, and once that it has passed.
fn say(trouble: &mut Option<String>, done: Result<(), String>) {
    let now = done.err();
    match (&trouble, &now) {
        (before, Some(line)) if before.as_ref() != Some(line) => tracing::warn!("{line}"),
        (Some(_), None) => tracing::info!("the GPUs' history is recorded again"),
        _ => {}
    }
    *trouble = now;
}
