//! Values over time: how they are packed, and how many of them become one point of a chart. Pure.

use schemars::JsonSchema;
use serde::Serialize;

use super::Span;
use crate::snapshot::Reading;

/// Number of values that are kept of a GPU: use in percent, memory in MiB, temperature in degrees Celsius, power in watts.
pub(super) const COLUMNS: usize = 4;
/// Unit of each packed value: as fine as sources are, and with two bytes far beyond any GPU (6,553 %, 1 TiB, 6,553 W).
const UNITS: [f32; COLUMNS] = [0.1, 16.0, 0.1, 0.1];
/// Packed value that stands for none.
const NONE: u16 = u16::MAX;
/// Number of a GPU's spans that a chart shows, the newest.
const SPANS: usize = 200;

/// Values of a GPU at one moment, each where it is known.
pub(super) type Values = [Option<f32>; COLUMNS];
/// The same in two bytes each.
pub(super) type Packed = [u16; COLUMNS];

/// Packed values of which none is known.
pub(super) const EMPTY: Packed = [NONE; COLUMNS];

/// Values that a reading has. One of a sleeping GPU has none.
pub(super) fn values(reading: Option<&Reading>) -> Values {
    let Some(reading) = reading.filter(|reading| !reading.asleep) else { return [None; COLUMNS] };
    let memory = reading.memory_used_bytes.map(|bytes| (bytes >> 20) as f32);
    [reading.utilisation_percent, memory, reading.temperature_c, reading.power_w].map(|v| v.filter(|v| v.is_finite()))
}

/// Packs values; what is beyond the range becomes its end.
pub(super) fn pack(values: &Values) -> Packed {
    let mut packed = EMPTY;
    for ((slot, value), unit) in packed.iter_mut().zip(values).zip(UNITS) {
        if let Some(value) = value {
            *slot = (value / unit).round().clamp(0.0, f32::from(NONE - 1)) as u16;
        }
    }
    packed
}

/// Values that were packed.
pub(super) fn unpack(packed: Packed) -> Values {
    let mut values = [None; COLUMNS];
    for ((slot, packed), unit) in values.iter_mut().zip(packed).zip(UNITS) {
        *slot = (packed != NONE).then(|| f32::from(packed) * unit);
    }
    values
}

/// Mean and maximum of some values.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stat {
    sum: f32,
    count: u32,
    max: f32,
}

impl Stat {
    /// Takes a value in, and the largest of those that it is the mean of.
    pub(super) fn add(&mut self, mean: f32, max: f32) {
        self.max = if self.count == 0 { max } else { self.max.max(max) };
        self.sum += mean;
        self.count += 1;
    }

    /// Mean of the values; `None` without any.
    pub(super) fn mean(self) -> Option<f32> {
        (self.count > 0).then(|| self.sum / self.count as f32)
    }

    /// Largest of the values.
    pub(super) fn max(self) -> Option<f32> {
        (self.count > 0).then_some(self.max)
    }
}

/// Mean and maximum of each value of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stats([Stat; COLUMNS]);

impl Stats {
    /// Takes values in, and the largest of those that they are the means of.
    pub(super) fn add(&mut self, means: &Values, maxima: &Values) {
        for ((stat, mean), max) in self.0.iter_mut().zip(means).zip(maxima) {
            if let Some(mean) = mean {
                stat.add(*mean, max.unwrap_or(*mean));
            }
        }
    }

    /// Mean of each value.
    pub(super) fn means(&self) -> Values {
        self.0.map(Stat::mean)
    }

    /// Largest of each value.
    pub(super) fn maxima(&self) -> Values {
        self.0.map(Stat::max)
    }
}

/// History of every GPU, for charts: all columns share the times.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize)]
pub struct HistoryView {
    /// Time from one point to the next, in seconds.
    pub step_s: i64,
    /// Beginning of each step, in seconds since the Unix epoch.
    pub time: Vec<i64>,
    /// GPUs: those of the lab first, then those that are gone.
    pub gpus: Vec<GpuHistory>,
}

/// History of one GPU. What was not known at a time is absent there.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize)]
pub struct GpuHistory {
    /// Id of the GPU.
    pub id: String,
    /// Service that has it now.
    pub worker: Option<String>,
    /// Mean use in percent.
    #[serde(rename = "use")]
    pub used: Vec<Option<f32>>,
    /// Highest use in percent.
    pub use_max: Vec<Option<f32>>,
    /// Mean of the memory in use, in bytes.
    pub memory: Vec<Option<u64>>,
    /// Most memory in use, in bytes.
    pub memory_max: Vec<Option<u64>>,
    /// Mean temperature in degrees Celsius.
    pub temperature: Vec<Option<f32>>,
    /// Highest temperature in degrees Celsius.
    pub temperature_max: Vec<Option<f32>>,
    /// Mean power in watts.
    pub power: Vec<Option<f32>>,
    /// Highest power in watts.
    pub power_max: Vec<Option<f32>>,
    /// Jobs that it worked for, oldest first.
    pub jobs: Vec<JobSpan>,
}

/// Time in which a GPU worked for a job.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct JobSpan {
    /// The job, by its first submission's id.
    pub job: String,
    /// Beginning, in seconds since the Unix epoch.
    pub from: i64,
    /// End.
    pub to: i64,
}

/// Points of a chart that values are sorted into.
#[derive(Debug)]
pub(super) struct Grid {
    start: i64,
    step: i64,
    points: i64,
    gpus: Vec<(String, Vec<Stats>)>,
    /// Place of the GPU that something was taken in of last: most often the next value is its own, too.
    last: usize,
}

impl Grid {
    /// Points for the `seconds` up to `now`, each a whole multiple of `unit` seconds long, at most `most` of them. They begin
    /// at multiples of their length, so that one asked for again stands where it stood.
    pub(super) fn up_to(now: i64, seconds: i64, unit: i64, most: usize) -> Self {
        let most = i64::try_from(most).unwrap_or(i64::MAX).max(1);
        let unit = unit.max(1);
        let units = (seconds / unit).max(1);
        let step = (units / most + i64::from(units % most != 0)).max(1) * unit;
        let points = ((seconds + step - 1) / step).clamp(1, most);
        let last = now.div_euclid(step) * step;
        let start = last.saturating_sub((points - 1) * step);
        Self { start, step, points, gpus: Vec::new(), last: 0 }
    }

    /// Beginning of the first point.
    pub(super) const fn start(&self) -> i64 {
        self.start
    }

    /// End of the last point.
    pub(super) const fn end(&self) -> i64 {
        self.start.saturating_add(self.step * self.points)
    }

    fn empty(&self) -> Vec<Stats> {
        vec![Stats::default(); self.points as usize]
    }

    /// Takes in what a GPU did at a time. What is before the first point or after the last is left out.
    pub(super) fn add(&mut self, gpu: &str, at: i64, means: &Values, maxima: &Values) {
        let Some(point) = at.checked_sub(self.start).map(|past| past.div_euclid(self.step)) else { return };
        let Some(point) = usize::try_from(point).ok().filter(|_| point < self.points) else { return };
        if self.gpus.get(self.last).is_none_or(|(id, _)| id != gpu) {
            self.last = self.gpus.iter().position(|(id, _)| id == gpu).unwrap_or(self.gpus.len());
            if self.last == self.gpus.len() {
                let empty = self.empty();
                self.gpus.push((gpu.to_owned(), empty));
            }
        }
        if let Some(stats) = self.gpus.get_mut(self.last).and_then(|(_, points)| points.get_mut(point)) {
            stats.add(means, maxima);
        }
    }

    /// History of these GPUs, by id with their worker, and of those beyond them that have any.
    pub(super) fn view(mut self, present: &[(String, Option<String>)], spans: &[Span]) -> HistoryView {
        let (start, end) = (self.start, self.end());
        let time = (0..self.points).map(|i| start + self.step * i).collect();
        let mut gpus = Vec::with_capacity(present.len());
        for (id, worker) in present {
            let known = self.gpus.iter().position(|(known, _)| known == id).map(|at| self.gpus.swap_remove(at).1);
            let points = known.unwrap_or_else(|| self.empty());
            gpus.push(column(id.clone(), worker.clone(), &points, spans, (start, end)));
        }
        self.gpus.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (id, points) in self.gpus {
            gpus.push(column(id, None, &points, spans, (start, end)));
        }
        HistoryView { step_s: self.step, time, gpus }
    }
}

fn column(
    id: String,
    worker: Option<String>,
    points: &[Stats],
    spans: &[Span],
    (start, end): (i64, i64),
) -> GpuHistory {
    let of = |i: usize, what: fn(Stat) -> Option<f32>| -> Vec<Option<f32>> {
        points.iter().map(|stats| what(stats.0[i]).map(|v| (v * 10.0).round() / 10.0)).collect()
    };
    let bytes = |what: fn(Stat) -> Option<f32>| -> Vec<Option<u64>> {
        points.iter().map(|stats| what(stats.0[1]).map(|mib| (mib.max(0.0) as u64) << 20)).collect()
    };
    let mut jobs: Vec<JobSpan> = spans
        .iter()
        .filter(|span| *span.gpu == *id && span.from < end && span.to >= start)
        .map(|span| JobSpan { job: span.job.to_string(), from: span.from.max(start), to: span.to.min(end) })
        .collect();
    jobs.sort_by(|a, b| (a.from, &a.job).cmp(&(b.from, &b.job)));
    jobs.drain(..jobs.len().saturating_sub(SPANS));
    GpuHistory {
        used: of(0, Stat::mean),
        use_max: of(0, Stat::max),
        memory: bytes(Stat::mean),
        memory_max: bytes(Stat::max),
        temperature: of(2, Stat::mean),
        temperature_max: of(2, Stat::max),
        power: of(3, Stat::mean),
        power_max: of(3, Stat::max),
        id,
        worker,
        jobs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(percent: f32) -> Values {
        [Some(percent), None, None, None]
    }

    #[test]
    fn what_was_packed_comes_back_and_what_is_not_known_stays_so() {
        for (given, back) in [
            ([None; 4], [None; 4]),
            ([Some(0.0); 4], [Some(0.0); 4]),
            (
                [Some(100.0), Some(81_920.0), Some(61.5), Some(312.4)],
                [Some(100.0), Some(81_920.0), Some(61.5), Some(312.4)],
            ),
            ([Some(-3.0), None, Some(1e9), None], [Some(0.0), None, Some(6_553.4), None]),
        ] {
            for (value, want) in unpack(pack(&given)).iter().zip(back) {
                assert!(value.zip(want).map_or(value.is_none() && want.is_none(), |(a, b)| (a - b).abs() < 0.06));
            }
        }
    }

    #[test]
    fn a_sleeping_gpu_and_nonsense_have_no_values() {
        let reading = Reading { utilisation_percent: Some(7.0), temperature_c: Some(f32::NAN), ..Reading::default() };
        assert_eq!(values(Some(&reading)), used(7.0));
        assert_eq!(values(Some(&Reading { asleep: true, ..reading })), [None; 4]);
        assert_eq!(values(None), [None; 4]);
    }

    #[test]
    fn there_are_never_more_points_than_asked_for_and_they_stand_still() {
        for (seconds, unit, most, step, points) in [
            (3_600, 1, 720, 5, 720),
            (3_600, 1, 100, 36, 100),
            (7_200, 60, 1_500, 60, 120),
            (24 * 3_600, 60, 1_500, 60, 1_440),
            (168 * 3_600, 60, 1_500, 420, 1_440),
            (168 * 3_600, 60, 1, 168 * 3_600, 1),
        ] {
            for now in [1_795_492_872, 1_795_492_873, -7] {
                let grid = Grid::up_to(now, seconds, unit, most);
                assert_eq!((grid.step, grid.points), (step, points), "{seconds} s");
                assert!(grid.start.rem_euclid(step) == 0 && grid.end() > now && grid.end() - step <= now);
            }
        }
        // A clock beyond all reason breaks nothing.
        for now in [i64::MAX / 1_000, i64::MIN / 1_000] {
            Grid::up_to(now, 3_600, 1, 720).add("a", i64::MAX, &used(1.0), &used(1.0));
        }
    }

    #[test]
    fn a_point_has_mean_and_maximum_and_a_gap_stays_one() {
        let mut grid = Grid::up_to(119, 60, 1, 6);
        for at in 60..70 {
            grid.add("a", at, &used(if at == 65 { 100.0 } else { 0.0 }), &used(if at == 65 { 100.0 } else { 0.0 }));
        }
        grid.add("gone", 119, &used(3.0), &used(9.0));
        for at in [59, 120, i64::MIN, i64::MAX] {
            grid.add("a", at, &used(50.0), &used(50.0));
        }
        let span = |gpu: &str, job: &str, from, to| Span { gpu: gpu.into(), job: job.into(), from, to };
        let spans = [span("a", "late", 100, 200), span("a", "food11", 0, 80), span("a", "past", 0, 59)];
        let view = grid.view(&[("a".into(), Some("ray-worker-0".into())), ("b".into(), None)], &spans);
        assert_eq!((view.step_s, view.time), (10, vec![60, 70, 80, 90, 100, 110]));
        let ids: Vec<&str> = view.gpus.iter().map(|gpu| gpu.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "gone"]);
        assert_eq!(view.gpus[0].used, [Some(10.0), None, None, None, None, None]);
        assert_eq!(view.gpus[0].use_max[0], Some(100.0));
        assert_eq!(view.gpus[1].used, [None; 6]);
        assert_eq!((view.gpus[2].used[5], view.gpus[2].use_max[5]), (Some(3.0), Some(9.0)));
        let job = |job: &str, from, to| JobSpan { job: job.into(), from, to };
        assert_eq!(view.gpus[0].jobs, [job("food11", 60, 80), job("late", 100, 120)]);
    }
}
