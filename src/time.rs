//! Points in time as the pure parts see them: whole milliseconds since the Unix epoch, passed in by the caller.
//!
//! Nothing below `plan` and `supervise::decide` reads a clock; [`Timestamp::now`] is for the edges.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds since 1970-01-01T00:00:00Z. Serialised as RFC 3339 with milliseconds, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Present time of the wall clock.
    pub fn now() -> Self {
        #[cfg(test)]
        if let Some(now) = simulated::now() {
            return now;
        }
        Self::told(jiff::Timestamp::now().as_millisecond())
    }

    /// Present time as other programs on this machine have it, who take nothing of another time: [`now`](Self::now), but not
    /// under a clock that a test sets. One that was set back shows a time twice, and that of the machine is not to be told
    /// from it.
    pub fn machines_now() -> Self {
        #[cfg(feature = "test-clock")]
        return Self(jiff::Timestamp::now().as_millisecond());
        #[cfg(not(feature = "test-clock"))]
        Self::now()
    }

    /// Time from milliseconds since the Unix epoch.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Time that another program on this machine (the engine, Ray, the store) gives in milliseconds since the Unix
    /// epoch. It reads the same clock, which may have been set since.
    pub fn told(ms: i64) -> Self {
        #[cfg(feature = "test-clock")]
        let ms = stepped::from_machine(&stepped::steps(), ms);
        Self(ms)
    }

    /// This time as other programs on this machine call it, in milliseconds since the Unix epoch.
    pub fn as_told(self) -> i64 {
        #[cfg(feature = "test-clock")]
        return stepped::to_machine(&stepped::steps(), self.0);
        #[cfg(not(feature = "test-clock"))]
        self.0
    }

    /// This time in ISO 8601's basic form and whole seconds: `20261128T005146Z`.
    pub fn basic(self) -> String {
        let text: String = self.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        format!("{}Z", text.get(..15).unwrap_or_default())
    }

    /// Parses RFC 3339, as engines write it. `None` for the engine's "never" (year 1) and for anything unreadable.
    pub fn parse(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        (at.as_millisecond() > 0).then(|| Self::told(at.as_millisecond()))
    }

    /// This moment plus `d`; saturates at the end of time.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(millis(d)))
    }

    /// This moment minus `d`.
    #[must_use]
    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(millis(d)))
    }

    /// Whether this came no earlier than `other`, as far as it can be told at `now`: what lies in the future was before the
    /// clock was set back, and so before all that does not.
    pub fn not_before(self, other: Self, now: Self) -> bool {
        if self.is_of_the_clock_of(other, now) { self >= other } else { other > now }
    }

    /// Whether none or both of the two were before the clock was set back, as far as it can be told at `now`: then their
    /// difference means something.
    pub fn is_of_the_clock_of(self, other: Self, now: Self) -> bool {
        (self > now) == (other > now)
    }

    /// Duration since `earlier`; zero when it lies in the future (clocks step).
    pub fn since(self, earlier: Self) -> Duration {
        between(earlier.0, self.0)
    }
}

/// A wall clock that a test sets while the machine's stays as it is, for `make chaos`: each line of the file that
/// `LABD_TEST_CLOCK` names is a step, when it was made by the machine's clock and by how much, in milliseconds. All times that
/// labd reads or is told go through it, so that to labd it looks as if everybody's clock had been set.
#[cfg(any(test, feature = "test-clock"))]
mod stepped {
    /// Step of the clock: when by the machine's clock, and by how much.
    type Step = (i64, i64);

    /// Time of the set clock when the machine's showed `ms`.
    pub(super) fn from_machine(steps: &[Step], ms: i64) -> i64 {
        ms + steps.iter().filter(|(at, _)| *at <= ms).map(|(_, by)| by).sum::<i64>()
    }

    /// Time of the machine's clock when the set one showed `ms`: the first one, where it was set back over that.
    pub(super) fn to_machine(steps: &[Step], ms: i64) -> i64 {
        let mut offset = 0;
        for (at, by) in steps {
            if ms - offset < *at {
                return ms - offset;
            }
            offset += by;
            // This step jumped over it.
            if ms - offset < *at && *by > 0 {
                return *at;
            }
        }
        ms - offset
    }

    /// Steps in the file, oldest first. It is read at most every 20 ms.
    #[cfg(feature = "test-clock")]
    pub(super) fn steps() -> Vec<Step> {
        use std::{
            sync::{Mutex, PoisonError},
            time::{Duration, Instant},
        };
        const FRESH: Duration = Duration::from_millis(20);
        static READ: Mutex<(Option<Instant>, Vec<Step>)> = Mutex::new((None, Vec::new()));

        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0.is_some_and(|at| at.elapsed() < FRESH) {
            return read.1.clone();
        }
        let path = std::env::var_os("LABD_TEST_CLOCK");
        let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let step = |line: &str| line.split_once(' ').and_then(|(at, by)| Some((at.parse().ok()?, by.parse().ok()?)));
        *read = (Some(Instant::now()), text.lines().filter_map(step).collect());
        read.1.clone()
    }
}

/// Milliseconds of a duration, as both clocks count; saturates at the end of time.
fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

/// Duration from one point to another of the same clock; zero where the second is the earlier one.
fn between(earlier: i64, later: i64) -> Duration {
    Duration::from_millis(u64::try_from(later.saturating_sub(earlier)).unwrap_or(0))
}

/// Moment of a clock that is never set, in milliseconds since some moment of this process, for measuring waits. Means
/// nothing outside this process, so it is never kept or shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(i64);

impl Moment {
    /// Present moment.
    pub fn now() -> Self {
        static BEGAN: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
        #[cfg(test)]
        if let Some(now) = simulated::steady() {
            return Self(now.0);
        }
        let now = tokio::time::Instant::now();
        Self(i64::try_from(now.duration_since(*BEGAN.get_or_init(|| now)).as_millis()).unwrap_or(i64::MAX))
    }

    /// Moment from milliseconds of the same clock.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds of the same clock.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment plus `d`; saturates at the end of time.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(millis(d)))
    }

    /// This moment minus `d`; it may lie before this process.
    #[must_use]
    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(millis(d)))
    }

    /// Duration since `earlier`; zero when that is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        between(earlier.0, self.0)
    }
}

/// The present by both clocks: the wall clock, which engines and people go by and which may be set, and the one for waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time of the wall clock.
    pub wall: Timestamp,
    /// Moment of the clock that is never set.
    pub moment: Moment,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { wall: Timestamp::now(), moment: Moment::now() }
    }

    /// Time of the wall clock at a moment near this one.
    pub fn wall_at(self, moment: Moment) -> Timestamp {
        self.wall.plus(moment.since(self.moment)).minus(self.moment.since(moment))
    }

    /// The moment at which something happened at `at` by the wall clock; the present where that lies in the future, since the
    /// clock was set back then. Right only as long as the clock is not set meanwhile, so it is asked for once.
    pub fn moment_of(self, at: Timestamp) -> Moment {
        self.moment.minus(self.wall.since(at))
    }
}

#[cfg(test)]
impl From<Timestamp> for Now {
    /// Both clocks at a time at which they agree.
    fn from(at: Timestamp) -> Self {
        Self { wall: at, moment: Moment(at.0) }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not an RFC 3339 time")))
    }
}

/// A clock that follows tokio's paused one, for simulated labs.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::Timestamp;

    thread_local! {
        static BEGAN: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
        /// Number of milliseconds by which the wall clock was set since.
        static SET: Cell<i64> = const { Cell::new(0) };
    }

    /// Sets the present time of this thread to `at`, from which time passes as in this thread's tokio runtime; `None`
    /// ends that.
    pub(crate) fn begin(at: Option<Timestamp>) {
        BEGAN.set(at.map(|at| (Instant::now(), at)));
        SET.set(0);
    }

    /// Sets the wall clock forward by `ms`, as somebody would.
    pub(crate) fn set_by(ms: i64) {
        SET.set(SET.get() + ms);
    }

    pub(super) fn now() -> Option<Timestamp> {
        steady().map(|at| Timestamp(at.0 + SET.get()))
    }

    /// Time without what the clock was set by.
    pub(crate) fn steady() -> Option<Timestamp> {
        BEGAN.get().map(|(began, at)| at.plus(began.elapsed()))
    }
}

/// Duration in one or two units, for people: `850 ms`, `4.1 s`, `2 min 5 s`, `3 h 20 min`, `5 d 2 h`.
pub fn human(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{} ms", d.as_millis()),
        1..10 => format!("{:.1} s", d.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3_600 => two(s / 60, "min", s % 60, "s"),
        3_600..86_400 => two(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

fn two(a: u64, unit_a: &str, b: u64, unit_b: &str) -> String {
    if b == 0 { format!("{a} {unit_a}") } else { format!("{a} {unit_a} {b} {unit_b}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_through_rfc3339() {
        let at = Timestamp::from_millis(1_795_492_872_123);
        let json = serde_json::to_string(&at).expect("a timestamp is a string");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).expect("it was just written"), at);
    }

    #[test]
    fn the_engines_never_is_none() {
        assert_eq!(Timestamp::parse("0001-01-01T00:00:00Z"), None);
        assert!(Timestamp::parse("2026-11-24T03:41:12.123456789Z").is_some());
    }

    #[test]
    fn what_lies_in_the_future_was_before_the_clock_was_set_back() {
        let at = Timestamp::from_millis;
        for (this, other, now, want) in [
            (10, 10, 20, true),
            (9, 10, 20, false),
            (10, 3_610, 20, true),
            (3_610, 10, 20, false),
            (3_610, 3_605, 20, true),
            (3_605, 3_610, 20, false),
        ] {
            assert_eq!(at(this).not_before(at(other), at(now)), want, "{this} and {other} at {now}");
        }
    }

    #[test]
    fn a_clock_that_a_test_sets_goes_forward_and_back() {
        let steps = [(100, 50), (200, -80)];
        let seen = [90, 100, 199, 200, 290].map(|ms| stepped::from_machine(&steps, ms));
        assert_eq!(seen, [90, 150, 249, 170, 260]);
        // 120 was jumped over; 170 to 249 were seen twice.
        let told = [90, 120, 150, 220, 249, 250].map(|ms| stepped::to_machine(&steps, ms));
        assert_eq!(told, [90, 100, 100, 170, 199, 280]);
    }

    #[test]
    fn durations_read_well() {
        for (ms, want) in
            [(850, "850 ms"), (4_100, "4.1 s"), (59_999, "59 s"), (125_000, "2 min 5 s"), (12_000_000, "3 h 20 min")]
        {
            assert_eq!(human(Duration::from_millis(ms)), want);
        }
    }
}
