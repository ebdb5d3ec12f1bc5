//! One minute: what each GPU did in it, and for whom. Pure.

use std::{sync::Arc, time::Duration};

use super::series::{COLUMNS, Packed, Stat, Stats, Values, pack, unpack};
use crate::snapshot::JobView;

/// Bytes of one value of a row on disk.
const VALUE: usize = size_of::<u16>();
/// Bytes of a row on disk: the GPU's number, its means, its maxima.
const ROW: usize = VALUE * (1 + 2 * COLUMNS);

/// A minute as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Minute {
    /// Number of the minute since the Unix epoch.
    pub(super) at: i64,
    /// Number of seconds of it that were seen.
    pub(super) seconds: u32,
    /// GPUs of which something is known.
    pub(super) rows: Vec<Row>,
}

/// Means and maxima of one GPU over a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) gpu: Arc<str>,
    pub(super) means: Packed,
    pub(super) maxima: Packed,
}

impl Minute {
    /// Rows in bytes. `number` is the number that stands for a GPU on disk; without one it is left out.
    pub(super) fn bytes(&self, number: impl Fn(&str) -> Option<u16>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows.len() * ROW);
        for row in &self.rows {
            let Some(number) = number(&row.gpu) else { continue };
            let values = [number].into_iter().chain(row.means).chain(row.maxima);
            bytes.extend(values.flat_map(u16::to_le_bytes));
        }
        bytes
    }
}

/// Shows each row in bytes from the disk: number of the GPU, means, maxima. What is cut off at the end is left out.
pub(super) fn each_row(bytes: &[u8], mut show: impl FnMut(u16, &Values, &Values)) {
    for row in bytes.chunks_exact(ROW) {
        let mut values = [0; 1 + 2 * COLUMNS];
        for (value, pair) in values.iter_mut().zip(row.chunks_exact(VALUE)) {
            *value = u16::from_le_bytes([pair[0], pair[1]]);
        }
        let (mut means, mut maxima) = ([0; COLUMNS], [0; COLUMNS]);
        means.copy_from_slice(&values[1..=COLUMNS]);
        maxima.copy_from_slice(&values[1 + COLUMNS..]);
        show(values[0], &unpack(means), &unpack(maxima));
    }
}

/// A job that a GPU works for, by its first submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) job: Arc<str>,
    pub(super) user: Option<Arc<str>>,
}

/// First submission of a job.
pub(super) fn root(job: &JobView) -> &str {
    job.resubmission_of.as_deref().unwrap_or(&job.submission_id)
}

/// A minute under way.
#[derive(Debug)]
pub(super) struct Bin {
    pub(super) at: i64,
    seconds: u32,
    pub(super) gpus: Vec<BinGpu>,
}

/// What is known of one GPU in a minute under way.
#[derive(Debug)]
pub(super) struct BinGpu {
    pub(super) gpu: Arc<str>,
    pub(super) worker: Option<Arc<str>>,
    stats: Stats,
    /// Use for the account: a sleeping GPU does nothing.
    load: Stat,
    /// Time for which each job held it.
    pub(super) held: Vec<(Holder, Duration)>,
}

impl BinGpu {
    /// Mean use in percent, as far as it is known.
    pub(super) fn load(&self) -> Option<f32> {
        self.load.mean()
    }
}

impl Bin {
    /// Minute without anything in it.
    pub(super) const fn new(at: i64) -> Self {
        Self { at, seconds: 0, gpus: Vec::new() }
    }

    /// Counts a look at the GPUs.
    pub(super) fn look(&mut self) {
        self.seconds = self.seconds.saturating_add(1);
    }

    /// Takes in what a GPU does, and that it did so for its jobs over `passed`. Jobs that share it share the time.
    pub(super) fn add(&mut self, gpu: &GpuNow<'_>, passed: Duration) {
        let at = self.gpus.iter().position(|known| *known.gpu == *gpu.id).unwrap_or_else(|| {
            let id = gpu.id.into();
            self.gpus.push(BinGpu {
                gpu: id,
                worker: None,
                stats: Stats::default(),
                load: Stat::default(),
                held: vec![],
            });
            self.gpus.len() - 1
        });
        let known = &mut self.gpus[at];
        if known.worker.as_deref() != gpu.worker {
            known.worker = gpu.worker.map(Into::into);
        }
        known.stats.add(&gpu.values, &gpu.values);
        if let Some(load) = if gpu.asleep { Some(0.0) } else { gpu.values[0] } {
            known.load.add(load, load);
        }
        let share = passed / u32::try_from(gpu.jobs.len()).unwrap_or(u32::MAX).max(1);
        for &(job, user) in &gpu.jobs {
            let same = |(holder, _): &&mut (Holder, Duration)| *holder.job == *job && holder.user.as_deref() == user;
            match known.held.iter_mut().find(same) {
                Some((_, held)) => *held += share,
                None => known.held.push((Holder { job: job.into(), user: user.map(Into::into) }, share)),
            }
        }
    }

    /// The minute as it is kept; `None` where nothing is known of it.
    pub(super) fn minute(&self) -> Option<Minute> {
        let known = |gpu: &BinGpu| {
            let means = gpu.stats.means();
            let row = || Row { gpu: Arc::clone(&gpu.gpu), means: pack(&means), maxima: pack(&gpu.stats.maxima()) };
            means.iter().any(Option::is_some).then(row)
        };
        let rows: Vec<Row> = self.gpus.iter().filter_map(known).collect();
        (!rows.is_empty()).then_some(Minute { at: self.at, seconds: self.seconds, rows })
    }
}

/// A GPU at one moment.
#[derive(Debug)]
pub(super) struct GpuNow<'a> {
    pub(super) id: &'a str,
    pub(super) worker: Option<&'a str>,
    pub(super) asleep: bool,
    pub(super) values: Values,
    /// Jobs that it works for, with their users.
    pub(super) jobs: Vec<(&'a str, Option<&'a str>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now<'a>(id: &'a str, used: Option<f32>, jobs: &[&'a str]) -> GpuNow<'a> {
        let jobs = jobs.iter().map(|job| (*job, None)).collect();
        GpuNow { id, worker: None, asleep: false, values: [used, None, None, None], jobs }
    }

    #[test]
    fn a_minute_has_means_maxima_and_who_held_what() {
        let mut bin = Bin::new(7);
        assert_eq!(bin.minute(), None);
        let second = Duration::from_secs(1);
        for (used, jobs) in [(Some(0.0), &["a", "b"][..]), (Some(90.0), &["a"]), (None, &["a"])] {
            bin.look();
            bin.add(&now("G", used, jobs), second);
        }
        bin.add(&GpuNow { asleep: true, ..now("S", None, &["a"]) }, second);
        assert_eq!((bin.gpus[0].load(), bin.gpus[1].load()), (Some(45.0), Some(0.0)));
        let held: Vec<(&str, u128)> = bin.gpus[0].held.iter().map(|(h, d)| (&*h.job, d.as_millis())).collect();
        assert_eq!(held, [("a", 2_500), ("b", 500)]);
        let minute = bin.minute().expect("something is known");
        assert_eq!((minute.at, minute.seconds, minute.rows.len()), (7, 3, 1), "nothing is known of a sleeping one");

        let mut bytes = minute.bytes(|gpu| (gpu == "G").then_some(300));
        assert!(minute.bytes(|_| None).is_empty());
        bytes.extend([1, 2, 3]);
        let mut rows = Vec::new();
        each_row(&bytes, |gpu, means, maxima| rows.push((gpu, means[0], maxima[0], means[1])));
        assert_eq!(rows, [(300, Some(45.0), Some(90.0), None)]);
    }
}
