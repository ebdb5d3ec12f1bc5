//! Steadiness of the wall clock: whether history may be deleted by it. Pure.
//!
//! A clock that jumps, by a dead battery or a wrong time server, would make all of it too old at once. So nothing is deleted
//! by age before the clock has gone on as time does for a day of labd's life: by then it was corrected, or somebody has
//! noticed. The cap on the number of rows holds in any case.

use std::time::Duration;

use crate::time::Timestamp;

/// Journal key for it.
pub(super) const MEMORY: &str = "journal:clock";
/// Time for which the clock must have been steady.
const LONG: Duration = Duration::from_hours(24);
/// Largest difference from the clock that is never set between two readings: time services correct this much.
const SLACK: Duration = Duration::from_mins(1);
/// Longest absence of labd over which the clock still counts as steady. A jump of this much goes unnoticed, and then
/// this much is deleted too early.
const AWAY: Duration = Duration::from_hours(24);

/// Steadiness of the wall clock, as far as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steady {
    /// Time since which it has advanced as time does.
    since: Timestamp,
    /// Time of the last reading.
    last: Timestamp,
}

impl Steady {
    /// Value from the journal's memory.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (since, last) = text.split_once(' ')?;
        let at = |ms: &str| ms.parse().ok().map(Timestamp::from_millis);
        Some(Self { since: at(since)?, last: at(last)? })
    }

    /// Value for the journal's memory.
    pub(super) fn text(self) -> String {
        format!("{} {}", self.since.as_millis(), self.last.as_millis())
    }

    /// Value after another reading, which is `passed` after the last one; absent where another labd took that one.
    pub(super) fn after(kept: Option<Self>, wall: Timestamp, passed: Option<Duration>) -> Self {
        let went_on = kept.is_some_and(|kept| match passed {
            Some(passed) => {
                let expected = kept.last.plus(passed);
                wall.since(expected).max(expected.since(wall)) <= SLACK
            }
            None => wall >= kept.last && wall.since(kept.last) <= AWAY,
        });
        let since = kept.filter(|_| went_on).map_or(wall, |kept| kept.since);
        Self { since, last: wall }
    }

    /// Whether the clock is believed: what is too old by it may be deleted.
    pub(super) fn is_believed(self) -> bool {
        self.last.since(self.since) >= LONG
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(hours * 3_600_000)
    }

    #[test]
    fn a_clock_is_believed_after_a_day_in_which_nobody_set_it() {
        let mut clock = Steady::after(None, at(0), None);
        for hour in 1..=24 {
            assert!(!clock.is_believed(), "{hour}");
            clock = Steady::after(Some(clock), at(hour), Some(HOUR));
        }
        assert!(clock.is_believed());
        assert_eq!(Steady::parse(&clock.text()), Some(clock));
        // labd is updated, or the machine off for the night.
        clock = Steady::after(Some(clock), at(40), None);
        assert!(clock.is_believed());
        for jump in [at(41 + 24 * 365), at(40), at(0)] {
            assert!(!Steady::after(Some(clock), jump, Some(HOUR)).is_believed(), "set while labd ran");
        }
        assert!(!Steady::after(Some(clock), at(40 + 24 * 365), None).is_believed(), "set while labd was away");
        assert!(!Steady::after(Some(clock), at(39), None).is_believed());
    }
}
