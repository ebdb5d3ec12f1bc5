//! Decisions about a probe's process: what is done with it, and when. Pure: nothing here starts, kills or reads.
//!
//! ```text
//!          Start(source)              lines: goes on
//!   Idle ----------------> Running ------------------.
//!    ^                        |                      |
//!    |    ended by itself     |  silent, floods,     |
//!    '------------------------'  no library, better <'
//!          or Kill(why)
//! ```
//!
//! Sources are tried best first. The next one is asked when a library is missing, or when a probe ends before its first
//! line (a library that it is linked with does not fit). After any other end, and after the last source, it begins with the
//! best one again, later each time: libraries and drivers are installed while labd runs.
//!
//! Times are those of a clock that is never set, from the start of the task on.

use std::time::Duration;

use crate::{backoff::Backoff, time::Moment};

/// Silence after which a probe hangs: it prints a line at least every second.
pub const SILENCE: Duration = Duration::from_secs(5);
/// Largest number of lines a second. A probe prints up to three; the rest leaves room for what gathered in the pipe (64
/// KiB) while labd slept.
const LINES_A_SECOND: u32 = 200;
/// Largest number of bytes a second: two lines of the longest kind.
const BYTES_A_SECOND: usize = 2 * super::lines::LONGEST;
/// Number of killed processes that may wait for the kernel to let go of them; another would meet the same fate.
pub(super) const UNREAPED: usize = 3;
/// Time between two checks of what can be started.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// End of a probe's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Start that failed, for this reason.
    NotStarted(String),
    /// End by itself, in these words.
    Ended(String),
    /// Silence: no line for [`SILENCE`].
    Silent,
    /// Flood: more than a probe has to say.
    Flood,
    /// Library that the probe reports missing.
    NoLibrary,
    /// Better source that can be asked now.
    Better,
}

/// Next step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Start this source's process.
    Start(usize),
    /// Kill the process.
    Kill(End),
    /// Do nothing before this time.
    Wait(Moment),
}

/// Memory of a vendor's probe.
#[derive(Debug)]
pub(super) struct Memory {
    state: State,
    /// Source that is tried next.
    next: usize,
    backoff: Backoff,
    /// Seed of the backoff's jitter.
    seed: u64,
}

#[derive(Debug)]
enum State {
    Idle,
    Running(Running),
}

#[derive(Debug)]
struct Running {
    source: usize,
    since: Moment,
    last_line: Moment,
    spoke: bool,
    /// Better sources that could be asked when it was started, and were not or in vain.
    passed_over: Vec<bool>,
    /// Beginning of the second in which lines and bytes are counted.
    second: Moment,
    lines: u32,
    bytes: usize,
    end: Option<End>,
}

impl Memory {
    /// Memory before anything has happened. `seed` makes the jitter.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: State::Idle, next: 0, backoff: Backoff::default(), seed }
    }

    /// Next step. `usable`: which sources can be started now, best first. `unreaped`: killed processes that are still
    /// there.
    pub(super) fn step(&self, now: Moment, usable: &[bool], unreaped: usize) -> Step {
        match &self.state {
            State::Running(r) => {
                let due = r.last_line.plus(SILENCE);
                if let Some(end) = &r.end {
                    Step::Kill(end.clone())
                } else if now >= due {
                    Step::Kill(End::Silent)
                } else if usable.iter().zip(&r.passed_over).any(|(&now, &then)| now && !then) {
                    Step::Kill(End::Better)
                } else {
                    Step::Wait(due)
                }
            }
            State::Idle if unreaped >= UNREAPED => Step::Wait(now.plus(LOOK)),
            State::Idle => match self.backoff.next_try(now) {
                Some(at) => Step::Wait(at),
                None => (self.next..usable.len())
                    .chain(0..self.next)
                    .find(|&i| usable.get(i) == Some(&true))
                    .map_or_else(|| Step::Wait(now.plus(LOOK)), Step::Start),
            },
        }
    }

    /// Notes that this source's process was started.
    pub(super) fn started(&mut self, source: usize, now: Moment, usable: &[bool]) {
        self.state = State::Running(Running {
            source,
            since: now,
            last_line: now,
            spoke: false,
            passed_over: usable.iter().copied().take(source).collect(),
            second: now,
            lines: 0,
            bytes: 0,
            end: None,
        });
    }

    /// Notes a line of so many bytes; `understood` if it is one of the protocol. Others are no sign of life.
    pub(super) fn line(&mut self, now: Moment, bytes: usize, understood: bool) {
        let State::Running(r) = &mut self.state else { return };
        if now.since(r.second) >= Duration::from_secs(1) {
            (r.second, r.lines, r.bytes) = (now, 0, 0);
        }
        r.lines += 1;
        r.bytes += bytes;
        if r.lines > LINES_A_SECOND || r.bytes > BYTES_A_SECOND {
            r.end.get_or_insert(End::Flood);
        }
        if understood {
            r.spoke = true;
            r.last_line = now;
            self.backoff.healthy(now.since(r.since));
        }
    }

    /// Notes that the probe reports its library missing.
    pub(super) fn library_missing(&mut self) {
        if let State::Running(r) = &mut self.state {
            r.end.get_or_insert(End::NoLibrary);
        }
    }

    /// Notes a line that does not end.
    pub(super) fn line_too_long(&mut self) {
        if let State::Running(r) = &mut self.state {
            r.end.get_or_insert(End::Flood);
        }
    }

    /// Notes that the process is gone, or was killed. Returns whether another source is asked instead, at once.
    pub(super) fn ended(&mut self, end: &End, now: Moment, usable: &[bool]) -> bool {
        let State::Running(r) = std::mem::replace(&mut self.state, State::Idle) else { return false };
        let worse = (r.source + 1..usable.len()).find(|&i| usable[i]);
        let next = match end {
            End::Better => Some(0),
            End::NoLibrary | End::NotStarted(_) => worse,
            End::Ended(_) if !r.spoke => worse,
            End::Ended(_) | End::Silent | End::Flood => None,
        };
        self.next = next.unwrap_or(0);
        if next.is_none() {
            self.backoff.fail(now, self.seed);
        }
        next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: &[bool] = &[true, true];

    fn at(ms: i64) -> Moment {
        Moment::from_millis(ms)
    }

    fn running(source: usize, usable: &[bool]) -> Memory {
        let mut memory = Memory::new(7);
        memory.started(source, at(0), usable);
        memory
    }

    /// Time from `now` on until the next try.
    fn wait(memory: &Memory, now: i64) -> Duration {
        match memory.step(at(now), BOTH, 0) {
            Step::Wait(until) => until.since(at(now)),
            Step::Start(_) => Duration::ZERO,
            Step::Kill(end) => panic!("nothing runs: {end:?}"),
        }
    }

    #[test]
    fn five_seconds_of_silence_are_the_end_and_only_the_protocol_breaks_it() {
        let mut memory = running(0, BOTH);
        assert_eq!(memory.step(at(4_999), BOTH, 0), Step::Wait(at(5_000)));
        assert_eq!(memory.step(at(5_000), BOTH, 0), Step::Kill(End::Silent));
        memory.line(at(4_000), 10, true);
        assert_eq!(memory.step(at(8_999), BOTH, 0), Step::Wait(at(9_000)));
        memory.line(at(8_000), 10, false);
        assert_eq!(memory.step(at(9_000), BOTH, 0), Step::Kill(End::Silent));
    }

    #[test]
    fn failures_wait_longer_each_time_and_health_forgets_them() {
        let mut memory = Memory::new(7);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..4 {
            memory.started(0, at(now), BOTH);
            memory.line(at(now), 10, true);
            assert!(!memory.ended(&End::Ended("signal 11".into()), at(now), BOTH));
            waits.push(wait(&memory, now));
            now += 100_000;
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits.is_sorted() && waits[1] >= Duration::from_millis(800), "{waits:?}");
        assert!(waits[3] <= Duration::from_secs(72));
        memory.started(0, at(now), BOTH);
        memory.line(at(now + 120_000), 10, true);
        memory.ended(&End::Silent, at(now + 125_000), BOTH);
        assert_eq!(wait(&memory, now + 125_000), Duration::ZERO);
    }

    #[test]
    fn a_missing_library_means_the_next_source_and_after_the_last_one_the_first() {
        let mut memory = running(0, BOTH);
        memory.line(at(10), 10, true);
        memory.library_missing();
        assert_eq!(memory.step(at(10), BOTH, 0), Step::Kill(End::NoLibrary));
        assert!(memory.ended(&End::NoLibrary, at(10), BOTH));
        assert_eq!(memory.step(at(10), BOTH, 0), Step::Start(1));
        for n in 0..2 {
            memory.started(1, at(20), BOTH);
            memory.library_missing();
            assert!(!memory.ended(&End::NoLibrary, at(20 + n), BOTH));
        }
        assert!(wait(&memory, 21) >= Duration::from_millis(800), "not in a tight circle");
        assert_eq!(memory.step(at(5_000), BOTH, 0), Step::Start(0));
    }

    #[test]
    fn a_probe_that_cannot_begin_means_the_next_source_and_one_that_worked_does_not() {
        for end in [End::NotStarted("no such file".into()), End::Ended("exit status 127".into())] {
            let mut memory = running(0, BOTH);
            assert!(memory.ended(&end, at(10), BOTH));
            assert_eq!(memory.step(at(10), BOTH, 0), Step::Start(1), "{end:?}");
        }
        let mut memory = running(0, BOTH);
        memory.line(at(5), 10, true);
        assert!(!memory.ended(&End::Ended("signal 11".into()), at(10), BOTH));
        assert_eq!(memory.step(at(10), BOTH, 0), Step::Start(0));
        let mut memory = running(0, BOTH);
        assert!(!memory.ended(&End::Silent, at(5_000), BOTH), "what hangs one hangs the other");
        assert_eq!(memory.step(at(5_000), BOTH, 0), Step::Start(0));
    }

    #[test]
    fn a_better_source_is_asked_once_it_can_be() {
        let memory = running(1, &[false, true]);
        assert!(matches!(memory.step(at(1), &[false, true], 0), Step::Wait(_)));
        assert_eq!(memory.step(at(1), BOTH, 0), Step::Kill(End::Better));
        let mut memory = running(1, BOTH);
        assert!(matches!(memory.step(at(1), BOTH, 0), Step::Wait(_)), "it was tried before");
        assert!(memory.ended(&End::Better, at(2), BOTH));
        assert_eq!(memory.step(at(2), BOTH, 0), Step::Start(0));
    }

    #[test]
    fn a_flood_is_the_end_and_what_gathered_while_asleep_is_none() {
        let mut memory = running(0, BOTH);
        for _ in 0..40 {
            memory.line(at(1_500), 1_500, true);
        }
        assert!(matches!(memory.step(at(1_500), BOTH, 0), Step::Wait(_)));
        for _ in 0..LINES_A_SECOND {
            memory.line(at(1_600), 10, true);
        }
        assert_eq!(memory.step(at(1_600), BOTH, 0), Step::Kill(End::Flood));
        let mut memory = running(0, BOTH);
        for _ in 0..3 {
            memory.line(at(1), super::super::lines::LONGEST, true);
        }
        assert_eq!(memory.step(at(1), BOTH, 0), Step::Kill(End::Flood));
    }

    #[test]
    fn nothing_is_started_while_the_kernel_holds_on_to_killed_ones() {
        let memory = Memory::new(7);
        assert_eq!(memory.step(at(0), BOTH, UNREAPED - 1), Step::Start(0));
        assert!(matches!(memory.step(at(0), BOTH, UNREAPED), Step::Wait(_)));
    }

    #[test]
    fn where_there_is_nothing_to_start_it_waits() {
        assert!(matches!(Memory::new(7).step(at(0), &[false, false], 0), Step::Wait(_)));
        assert!(matches!(Memory::new(7).step(at(0), &[], 0), Step::Wait(_)));
    }

    proptest! {
        /// Checks that, whatever happens, what is started can be started, and a wait ends in the future.
        #[test]
        fn steps_are_possible(news in prop::collection::vec((0_u8..8, 0_i64..20_000, any::<[bool; 3]>()), 1..200)) {
            let (mut memory, mut now, mut runs) = (Memory::new(7), 0, false);
            for (what, later, usable) in news {
                now += later;
                match what {
                    0 | 1 => memory.line(at(now), 100, true),
                    2 => memory.line(at(now), 100, false),
                    3 => memory.library_missing(),
                    4 => memory.line_too_long(),
                    5 if runs => { memory.ended(&End::Ended("exit status 1".into()), at(now), &usable); runs = false; }
                    _ => {}
                }
                match memory.step(at(now), &usable, 0) {
                    Step::Start(i) => { prop_assert!(!runs && usable[i]); memory.started(i, at(now), &usable); runs = true; }
                    Step::Kill(end) => { prop_assert!(runs); memory.ended(&end, at(now), &usable); runs = false; }
                    Step::Wait(until) => prop_assert!(until > at(now) && until.since(at(now)) <= Duration::from_secs(72)),
                }
            }
        }
    }
}
