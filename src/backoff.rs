//! Backoff: when a failed service is tried again. Pure.
//!
//! The first failure of a streak is answered at once, since most crashes do not repeat and every second of delay is a
//! second of lost training; from the second on the wait is 1 s, doubling to 60 s, each ±20 % so that services which fell
//! together do not start together. Ten seconds of health end the streak: what had been working is not what a wait is for.
//! Five failures within ten minutes are a crash loop all the same: tried once a minute, and said so. Two minutes of health
//! end that, too.

use std::time::Duration;

use crate::time::Moment;

/// Wait after the second failure of a streak.
pub const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait, jitter aside.
pub const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Time of health that ends a streak: the next failure is answered at once again.
pub const STEADY: Duration = Duration::from_secs(10);
/// Time of health after which all failures are forgotten.
pub const HEALTHY: Duration = Duration::from_mins(2);
/// Number of failures within [`LOOP_WINDOW`] that are a crash loop.
pub const LOOP_FAILURES: usize = 5;
/// Time within which [`LOOP_FAILURES`] failures are a crash loop.
pub const LOOP_WINDOW: Duration = Duration::from_mins(10);

/// Failures of a service, as they are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backoff {
    /// Number of failures since the service was steady.
    streak: u32,
    /// Moments of the newest failures, at most [`LOOP_FAILURES`], oldest first.
    recent: Vec<Moment>,
    next_try: Option<Moment>,
}

impl Backoff {
    /// Counts a failure and sets the time of the next try. `seed` makes the jitter: the same seed, the same wait.
    pub fn fail(&mut self, now: Moment, seed: u64) {
        self.streak = self.streak.saturating_add(1);
        self.recent.push(now);
        if self.recent.len() > LOOP_FAILURES {
            self.recent.remove(0);
        }
        let wait = if self.is_loop(now) { LONGEST_WAIT } else { wait(self.streak) };
        self.next_try = Some(now.plus(jitter(wait, seed.wrapping_add(u64::from(self.streak)))));
    }

    /// Counts health for this time. Returns the time of health that brings the next change; absent when nothing is
    /// remembered.
    pub fn healthy(&mut self, so_long: Duration) -> Option<Duration> {
        if so_long >= HEALTHY {
            *self = Self::default();
        } else if so_long >= STEADY {
            self.streak = 0;
        }
        match (self.recent.is_empty(), self.streak) {
            (true, _) => None,
            (false, 0) => Some(HEALTHY),
            (false, _) => Some(STEADY),
        }
    }

    /// Forgets the failures, since a person wants the service now.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Moment of the next try, if that is still to come.
    pub fn next_try(&self, now: Moment) -> Option<Moment> {
        self.next_try.filter(|&at| at > now)
    }

    /// Puts the next try off until `at` at least.
    pub fn not_before(&mut self, at: Moment) {
        self.next_try = self.next_try.max(Some(at));
    }

    /// Whether it fails so often that a person has to look at it.
    pub fn is_loop(&self, now: Moment) -> bool {
        self.recent.len() >= LOOP_FAILURES && self.recent.iter().all(|&at| now.since(at) <= LOOP_WINDOW)
    }

    /// Number of failures since the service was steady.
    pub fn streak(&self) -> u32 {
        self.streak
    }
}

/// Wait after the `streak`-th failure in a row, without jitter.
fn wait(streak: u32) -> Duration {
    match streak {
        0 | 1 => Duration::ZERO,
        n => LONGEST_WAIT.min(FIRST_WAIT.saturating_mul(1_u32.checked_shl(n - 2).unwrap_or(u32::MAX))),
    }
}

/// Wait with a jitter of ±20 %, by SplitMix64 of the seed.
fn jitter(wait: Duration, seed: u64) -> Duration {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
    wait.mul_f64(0.8 + 0.4 * unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_to_a_minute() {
        let waits: Vec<u64> = (1..=9).map(|n| wait(n).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(wait(u32::MAX), LONGEST_WAIT);
    }

    #[test]
    fn five_in_ten_minutes_are_a_loop_and_time_or_health_ends_it() {
        let mut b = Backoff::default();
        let at = |s: i64| Moment::from_millis(s * 1000);
        for s in 0..4 {
            b.fail(at(s * 100), 1);
            assert!(!b.is_loop(at(s * 100)));
        }
        b.fail(at(400), 1);
        assert!(b.is_loop(at(400)));
        assert!(!b.is_loop(at(601)), "the first of them is older than ten minutes");
        assert_eq!(b.healthy(HEALTHY), None);
        assert!(!b.is_loop(at(400)) && b.streak() == 0);
    }

    #[test]
    fn ten_seconds_of_health_end_the_wait_but_not_the_count() {
        let mut b = Backoff::default();
        let at = |s: i64| Moment::from_millis(s * 1000);
        b.fail(at(0), 1);
        assert_eq!(b.healthy(Duration::from_secs(9)), Some(STEADY));
        b.fail(at(9), 1);
        assert!(b.next_try(at(9)).is_some(), "it hardly ran");
        for s in [30, 60] {
            assert_eq!(b.healthy(STEADY), Some(HEALTHY));
            b.fail(at(s), 1);
            assert_eq!(b.next_try(at(s)), None, "it had been working");
        }
        b.healthy(STEADY);
        b.fail(at(90), 1);
        assert!(b.is_loop(at(90)) && b.next_try(at(90)).is_some());
    }

    proptest! {
        #[test]
        fn waits_keep_their_bounds(times in prop::collection::vec(0_i64..100_000_000, 1..40), seed: u64) {
            let mut b = Backoff::default();
            let mut now = 0;
            for (i, t) in times.into_iter().enumerate() {
                now += t;
                let now = Moment::from_millis(now);
                b.fail(now, seed);
                let wait = b.next_try(now).map_or(Duration::ZERO, |at| at.since(now));
                prop_assert!(wait <= LONGEST_WAIT.mul_f64(1.2));
                if i == 0 { prop_assert_eq!(wait, Duration::ZERO); }
                else { prop_assert!(wait >= FIRST_WAIT.mul_f64(0.8).saturating_sub(Duration::from_millis(1))); }
            }
        }
    }
}
