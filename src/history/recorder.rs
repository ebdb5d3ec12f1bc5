//! What one look at the snapshot after the other adds up to. Pure.

use std::{collections::VecDeque, time::Duration};

use jiff::tz::TimeZone;

use super::{
    Span,
    minute::{Bin, GpuNow, root},
    ring::{Ring, SECONDS},
    series::{Grid, unpack, values},
    store::Batch,
    usage::{Accounts, IdleGpu, Key, Streaks, spend},
};
use crate::{
    snapshot::{GpuState, Snapshot},
    time::{Moment, Now, Timestamp},
};

/// Longest time that one look stands for: what lies further back was not seen.
const LOOK: Duration = Duration::from_secs(5);
/// Time after which a job that is not on a GPU any more has left it, in seconds.
const LEFT: i64 = 5;
/// Time between two writes: a labd that is killed loses this much of the minutes, and none of the jobs.
const WRITE: Duration = Duration::from_mins(5);
/// Number of minutes that wait for a disk that takes nothing: a day's.
const WAITING: usize = 24 * 60;
/// Number of accounts that do.
const ACCOUNTS: usize = 4_000;
/// Number of spans that memory has: those of the last hour, for the most part.
const SPANS: usize = 2_000;
/// Milliseconds of a minute.
const MINUTE_MS: i64 = 60_000;

/// Everything that is kept in memory.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    ring: Ring,
    bin: Option<Bin>,
    looked: Option<Moment>,
    streaks: Streaks,
    /// Spans that go on.
    open: Vec<Span>,
    /// Spans that are over, oldest first.
    over: VecDeque<Span>,
    /// Part of the next write: minutes, accounts and spans that are over.
    pending: Batch,
    /// Moment of the last write.
    written: Option<Moment>,
}

/// Second of the clock that is never set.
fn second(moment: Moment) -> i64 {
    moment.as_millis().div_euclid(1_000)
}

/// Day of a time where the machine is.
fn day(at: Timestamp, zone: &TimeZone) -> jiff::civil::Date {
    let at = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap_or_default();
    zone.to_datetime(at).date()
}

/// First of the last `days` days.
pub(super) fn first_day(now: Timestamp, zone: &TimeZone, days: u32) -> jiff::civil::Date {
    let today = day(now, zone);
    today.checked_sub(jiff::Span::new().days(i64::from(days.max(1)) - 1)).unwrap_or(today)
}

impl Recorder {
    /// Takes a look at the lab. Returns whether it is time to write.
    pub(super) fn take(&mut self, now: Now, snapshot: &Snapshot, zone: impl Fn() -> TimeZone) -> bool {
        let this = second(now.moment);
        if self.looked.is_some_and(|looked| second(looked) == this) {
            return false;
        }
        let passed = self.looked.map_or(Duration::ZERO, |looked| now.moment.since(looked)).min(LOOK);
        self.looked = Some(now.moment);
        let minute = now.wall.as_millis().div_euclid(MINUTE_MS);
        if self.bin.as_ref().is_some_and(|bin| bin.at != minute) {
            self.close(now.moment, zone);
        }
        let mut bin = self.bin.take().unwrap_or(Bin::new(minute));
        bin.look();
        self.ring.begin(this);
        let wall = now.wall.as_millis().div_euclid(1_000);
        for gpu in &snapshot.gpus {
            let reading = gpu.reading.as_ref().filter(|_| gpu.state != GpuState::Missing);
            let jobs = gpu.worker.iter().flat_map(|worker| snapshot.jobs.iter().filter(|job| job.runs_on(worker)));
            let mut jobs: Vec<(&str, Option<&str>)> = jobs.map(|job| (root(job), job.user.as_deref())).collect();
            jobs.dedup_by_key(|(job, _)| *job);
            let values = values(reading);
            self.ring.put(&gpu.id, &values);
            for (job, _) in &jobs {
                self.works_for(&gpu.id, job, wall);
            }
            let asleep = reading.is_some_and(|reading| reading.asleep);
            bin.add(&GpuNow { id: &gpu.id, worker: gpu.worker.as_deref(), asleep, values, jobs }, passed);
        }
        self.bin = Some(bin);
        self.part(wall);
        let written = *self.written.get_or_insert(now.moment);
        now.moment.since(written) >= WRITE
    }

    /// Ends the minute that is under way.
    fn close(&mut self, now: Moment, zone: impl Fn() -> TimeZone) {
        let Some(bin) = self.bin.take() else { return };
        self.pending.minutes.extend(bin.minute());
        self.shorten();
        if bin.gpus.iter().any(|gpu| !gpu.held.is_empty()) {
            let day = day(Timestamp::from_millis(bin.at.saturating_mul(MINUTE_MS)), &zone());
            self.streaks.account(&bin, day, now, &mut self.pending.accounts);
        }
    }

    /// Notes that a GPU works for a job.
    fn works_for(&mut self, gpu: &str, job: &str, wall: i64) {
        let same = |span: &&mut Span| *span.gpu == *gpu && *span.job == *job && span.goes_on(wall);
        match self.open.iter_mut().find(same) {
            Some(span) => span.to = wall,
            None => self.open.push(Span { gpu: gpu.into(), job: job.into(), from: wall, to: wall }),
        }
    }

    /// Ends the spans of jobs that left their GPU; all of them where the clock was set.
    fn part(&mut self, wall: i64) {
        let (open, over): (Vec<Span>, Vec<Span>) =
            std::mem::take(&mut self.open).into_iter().partition(|span| span.goes_on(wall));
        self.open = open;
        self.pending.spans.extend(over.iter().cloned());
        self.over.extend(over);
        self.over.drain(..self.over.len().saturating_sub(SPANS));
    }

    /// Gives up the oldest of what waits for a disk that takes nothing.
    fn shorten(&mut self) {
        let Batch { minutes, spans, accounts } = &mut self.pending;
        minutes.drain(..minutes.len().saturating_sub(WAITING));
        spans.drain(..spans.len().saturating_sub(SPANS));
        while accounts.len() > ACCOUNTS {
            accounts.pop_first();
        }
    }

    /// What is to be written now.
    pub(super) fn batch(&mut self, now: Moment) -> Batch {
        self.written = Some(now);
        let mut batch = std::mem::take(&mut self.pending);
        batch.spans.extend(self.open.iter().cloned());
        batch
    }

    /// Ends the minute under way as well: for the last write of all.
    pub(super) fn last_batch(&mut self, now: Moment, zone: impl Fn() -> TimeZone) -> Batch {
        self.close(now, zone);
        self.batch(now)
    }

    /// Takes back what could not be written.
    pub(super) fn take_back(&mut self, batch: Batch) {
        let Batch { mut minutes, mut spans, accounts } = batch;
        minutes.append(&mut self.pending.minutes);
        spans.append(&mut self.pending.spans);
        let later = std::mem::replace(&mut self.pending, Batch { minutes, spans, accounts }).accounts;
        for (key, spent) in later {
            spend(&mut self.pending.accounts, key, spent);
        }
        self.shorten();
    }

    /// Sorts the last hour into a chart.
    pub(super) fn hour(&self, now: Now, most: usize) -> (Grid, Vec<Span>) {
        let wall = now.wall.as_millis().div_euclid(1_000);
        let offset = wall.saturating_sub(second(now.moment));
        let mut grid = Grid::up_to(wall, SECONDS, 1, most);
        self.ring.each(|gpu, second, values| grid.add(gpu, second.saturating_add(offset), values, values));
        (grid, self.spans(Vec::new()))
    }

    /// Sorts the minutes that are not on disk into a chart that those on disk are in; adds their spans.
    pub(super) fn add_minutes(&self, grid: &mut Grid, spans: Vec<Span>) -> Vec<Span> {
        let now = self.bin.iter().filter_map(Bin::minute).collect::<Vec<_>>();
        for minute in self.pending.minutes.iter().chain(&now) {
            for row in &minute.rows {
                let at = minute.at.saturating_mul(60);
                grid.add(&row.gpu, at, &unpack(row.means), &unpack(row.maxima));
            }
        }
        self.spans(spans)
    }

    /// Spans of memory beside others, each once.
    fn spans(&self, mut spans: Vec<Span>) -> Vec<Span> {
        spans.extend(self.over.iter().chain(&self.open).cloned());
        spans.sort_by(|a, b| (&a.gpu, &a.job, a.from, b.to).cmp(&(&b.gpu, &b.job, b.from, a.to)));
        spans.dedup_by(|a, b| a.gpu == b.gpu && a.job == b.job && a.from == b.from);
        spans
    }

    /// Adds the accounts that are not on disk.
    pub(super) fn add_accounts(&self, accounts: &mut Accounts, first: jiff::civil::Date) {
        let recent = self.pending.accounts.iter().filter(|(key, _)| key.day >= first);
        for (key, spent) in recent {
            spend(accounts, Key::clone(key), *spent);
        }
    }

    /// GPUs that are idle in jobs' hands.
    pub(super) fn idle(&self, now: Now) -> Vec<IdleGpu> {
        self.streaks.idle(now)
    }
}

impl Span {
    /// Whether it is still the same one at a time.
    fn goes_on(&self, wall: i64) -> bool {
        (0..=LEFT).contains(&wall.saturating_sub(self.to))
    }
}
