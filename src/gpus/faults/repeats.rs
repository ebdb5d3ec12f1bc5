//! Faults that mean more when they come again on one GPU. Pure.
//!
//! What NVIDIA's catalog says of Xid 13 and 31 (`WORKFLOW_XID_13`, `WORKFLOW_XID_31`) and of some bits of 74
//! (`WORKFLOW_NVLINK_ERR`): once, a program did something wrong, or an error passed; again in the same place, it is likely the
//! hardware; on several GPUs, it is the program.

use std::{collections::BTreeSet, time::Duration};

use super::{Fault, Sign, look_up};
use crate::time::Timestamp;

/// Time within which repetitions are counted. A day, as NVIDIA's own NVSentinel counts Xid 13, 31 and 74
/// (`docs/designs/014-workflow-XID-13-and-31.md` there).
pub const WINDOW: Duration = Duration::from_hours(24);
/// Number of programs that must fail on a GPU before that is told. NVSentinel asks for a diagnosis after two; a program
/// with a mistake that Ray or a student starts again fails three or four times (chosen, not measured).
const PROGRAMS: usize = 5;
/// Number of passing errors of one link after which it is broken: the catalog says "more than 2 times on the same link".
const LINK_ERRORS: usize = 3;
/// Longest time between two lines of one failure where they do not name the process; NVSentinel's bursts end after as
/// long.
const BURST: Duration = Duration::from_secs(15);
/// Number of failures that are remembered, of all GPUs together: some days of a busy lab.
const REMEMBERED: usize = 256;

/// Words for programs that fail on one GPU alone.
pub const APP_ERRORS: &str = "Xid 13 (in one place) or 31 of 5 programs within a day, on one GPU alone";

/// Way in which a row of the table is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// By program, wherever on the GPU it failed.
    Programs,
    /// By program, where all failed in one part of the GPU.
    ProgramsInOnePart,
    /// By link between GPUs.
    Links,
}

impl Counted {
    /// Place in the GPU that a line names.
    fn place(self, text: &str) -> Option<String> {
        match self {
            Self::Programs => None,
            Self::ProgramsInOnePart => processor(text),
            Self::Links => link(text),
        }
    }

    /// Whether it is of programs: then all lines of one are one failure, and where other GPUs have it too it is the program.
    fn of_programs(self) -> bool {
        self != Self::Links
    }

    /// Number of times that mean something else, and what it is then.
    const fn means(self) -> (usize, Sign<'static>) {
        match self {
            Self::Programs | Self::ProgramsInOnePart => (PROGRAMS, Sign::Repeated(APP_ERRORS)),
            Self::Links => (LINK_ERRORS, Sign::Xid(74)),
        }
    }
}

/// Part of the GPU (GPC and TPC) in a line such as `Graphics SM Warp Exception on (GPC 9, TPC 1, SM 1): ...`. Which of the
/// TPC's processors it was does not matter, by the catalog.
fn processor(text: &str) -> Option<String> {
    let (_, rest) = text.rsplit_once("(GPC ")?;
    let (place, _) = rest.split_once(", SM")?;
    Some(place.to_owned())
}

/// Number of the link in a line such as `NVLink: fatal error detected on link 14(0x10000, ...)`.
fn link(text: &str) -> Option<String> {
    let (_, rest) = text.rsplit_once("on link ")?;
    Some(rest.chars().take_while(char::is_ascii_digit).collect())
}

/// Process that a line names: `pid=1234`, but not `pid='<unknown>'`.
fn process(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("pid=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Failure that one or more lines told of.
#[derive(Debug, Clone, PartialEq)]
struct Failure {
    /// GPU or partition, by id.
    gpu: String,
    /// GPU that it is a partition of, else itself.
    card: String,
    code: &'static str,
    pid: Option<u32>,
    /// Places that its lines named. A program that is wrong is so in many places at once.
    places: BTreeSet<String>,
    last: Timestamp,
}

/// Failures of the last day that are counted, of all GPUs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Repeats(Vec<Failure>);

impl Repeats {
    /// Counts a line about a GPU or a partition of the GPU `card`. Returns the fault that it is by having come so often.
    pub fn count(
        &mut self,
        gpu: &str,
        card: &str,
        fault: &'static Fault,
        text: &str,
        at: Timestamp,
    ) -> Option<&'static Fault> {
        let counted = fault.counted?;
        self.0.retain(|f| at.since(f.last) <= WINDOW);
        let pid = process(text);
        let same = |f: &Failure| {
            f.gpu == gpu && f.code == fault.code && f.pid == pid && (pid.is_some() || at.since(f.last) <= BURST)
        };
        // A link's errors are each one of their own: one program meets several.
        let known = if counted.of_programs() { self.0.iter().rposition(same) } else { None };
        let mut failure = known.map_or_else(
            || Failure {
                gpu: gpu.to_owned(),
                card: card.to_owned(),
                code: fault.code,
                pid,
                places: BTreeSet::new(),
                last: at,
            },
            |known| self.0.remove(known),
        );
        failure.places.extend(counted.place(text));
        failure.last = failure.last.max(at);
        self.0.push(failure.clone());
        let excess = self.0.len().saturating_sub(REMEMBERED);
        self.0.drain(..excess);

        let alike = || self.0.iter().filter(|f| f.code == fault.code);
        // A line that names no instance counts for each partition: that is no other GPU.
        if failure.places.len() > 1 || (counted.of_programs() && alike().any(|f| f.card != card)) {
            return None;
        }
        let times = alike().filter(|f| f.gpu == gpu && f.places == failure.places).count();
        let (enough, means) = counted.means();
        if times >= enough { look_up(means) } else { None }
    }

    /// Forgets what a GPU had: somebody looked at it.
    pub fn forget(&mut self, gpu: &str) {
        self.0.retain(|f| f.gpu != gpu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::faults::all;

    const HOUR: i64 = 3_600;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn line(text: &str) -> (&'static Fault, String) {
        let text = format!("NVRM: Xid (PCI:0000:c1:00): {text}");
        (look_up(Sign::Kernel(&text)).expect("a fault"), text)
    }

    fn page_fault(pid: u32) -> (&'static Fault, String) {
        line(&format!("31, pid={pid}, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"))
    }

    /// Codes that lines about one GPU come to, each at its second.
    fn counted(repeats: &mut Repeats, gpu: &str, lines: &[(i64, (&'static Fault, String))]) -> Vec<&'static str> {
        let one = |(s, (fault, text)): &(i64, (&'static Fault, String))| repeats.count(gpu, gpu, fault, text, at(*s));
        lines.iter().map(one).map(|fault| fault.map_or("-", |f| f.code)).collect()
    }

    #[test]
    fn programs_that_fail_on_one_gpu_alone_are_told() {
        let lines: Vec<_> = (0..6).map(|i| (i64::from(i) * HOUR, page_fault(i))).collect();
        let want = ["-", "-", "-", "-", "app-errors", "app-errors"];
        assert_eq!(counted(&mut Repeats::default(), "GPU-1", &lines), want);
        assert_eq!(want.iter().filter(|code| **code == "-").count() + 1, PROGRAMS);
        assert!(APP_ERRORS.contains(&format!(" {PROGRAMS} programs")));
        // Somebody looked at it.
        let mut repeats = Repeats::default();
        counted(&mut repeats, "GPU-1", &lines);
        repeats.forget("GPU-1");
        assert_eq!(counted(&mut repeats, "GPU-1", &[(7 * HOUR, page_fault(7))]), ["-"]);
    }

    #[test]
    fn what_another_gpu_has_too_is_the_program() {
        let mut repeats = Repeats::default();
        assert_eq!(counted(&mut repeats, "GPU-2", &[(0, page_fault(99))]), ["-"]);
        let lines: Vec<_> = (0..9).map(|i| (i64::from(i), page_fault(i))).collect();
        assert!(counted(&mut repeats, "GPU-1", &lines).iter().all(|code| *code == "-"));
    }

    #[test]
    fn programs_on_a_divided_gpu_are_told_for_each_partition_that_may_have_them() {
        let mut repeats = Repeats::default();
        let mut told = Vec::new();
        for pid in 0..5 {
            // The line names no instance.
            let (fault, text) = page_fault(pid);
            for part in ["MIG-1", "MIG-2"] {
                told.extend(
                    repeats.count(part, "GPU-1", fault, &text, at(i64::from(pid) * HOUR)).map(|f| (part, f.code)),
                );
            }
        }
        assert_eq!(told, [("MIG-1", "app-errors"), ("MIG-2", "app-errors")]);
        let (fault, text) = page_fault(9);
        assert_eq!(repeats.count("MIG-3", "GPU-2", fault, &text, at(5 * HOUR)), None);
        let (fault, text) = page_fault(10);
        assert_eq!(repeats.count("MIG-1", "GPU-1", fault, &text, at(5 * HOUR)), None, "another GPU has it too");
    }

    #[test]
    fn one_program_and_one_burst_count_once_and_only_for_a_day() {
        let one: Vec<_> = (0..9).map(|i| (i * HOUR, page_fault(1))).collect();
        assert!(counted(&mut Repeats::default(), "GPU-1", &one).iter().all(|code| *code == "-"), "one program");
        let unnamed = |s: i64| (s, line("31, Ch 00000013, engmask 00000101, intr 10000000"));
        let burst: Vec<_> = (0..30).map(unnamed).collect();
        assert!(counted(&mut Repeats::default(), "GPU-1", &burst).iter().all(|code| *code == "-"), "one burst");
        let bursts: Vec<_> = (0..5).map(|i| unnamed(i * 60)).collect();
        assert_eq!(counted(&mut Repeats::default(), "GPU-1", &bursts).last(), Some(&"app-errors"));
        let rare: Vec<_> = (0..9).map(|i| (i64::from(i) * 7 * HOUR, page_fault(i))).collect();
        assert!(counted(&mut Repeats::default(), "GPU-1", &rare).iter().all(|code| *code == "-"), "rare");
    }

    #[test]
    fn exceptions_count_where_they_come_from_one_part_of_the_gpu() {
        let exception = |pid: u32, tpc: u32| {
            line(&format!("13, pid={pid}, name=python3, Graphics SM Warp Exception on (GPC 9, TPC {tpc}, SM 1): Out"))
        };
        let same: Vec<_> = (0..5).map(|i| (i64::from(i) * HOUR, exception(i, 1))).collect();
        assert_eq!(counted(&mut Repeats::default(), "GPU-1", &same).last(), Some(&"app-errors"));
        let others: Vec<_> = (0..9).map(|i| (i64::from(i) * HOUR, exception(i, i))).collect();
        assert!(counted(&mut Repeats::default(), "GPU-1", &others).iter().all(|code| *code == "-"));
        // A program that is wrong everywhere, at each of its starts.
        let all: Vec<_> =
            (0..9).flat_map(|i| (0..3).map(move |tpc| (i64::from(i) * HOUR, exception(i, tpc)))).collect();
        let codes = counted(&mut Repeats::default(), "GPU-1", &all);
        assert!(codes.iter().all(|code| *code == "-"), "{codes:?}");
    }

    #[test]
    fn passing_errors_of_one_link_mean_that_it_is_broken() {
        let error = |link: u32| {
            line(&format!(
                "74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link {link}(0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
            ))
        };
        let lines = [(0, error(1)), (1, error(2)), (2, error(1)), (3, error(1))];
        assert_eq!(counted(&mut Repeats::default(), "GPU-1", &lines), ["-", "-", "-", "xid-74"]);
        // The other end of the link says the same.
        let mut repeats = Repeats::default();
        counted(&mut repeats, "GPU-2", &lines);
        assert_eq!(counted(&mut repeats, "GPU-1", &lines).last(), Some(&"xid-74"));
    }

    #[test]
    fn a_row_that_is_counted_means_another_one_in_the_end() {
        let counted: Vec<_> = all().filter_map(|fault| Some((fault.code, fault.counted?))).collect();
        let rows =
            [("nvlink-passing", Counted::Links), ("xid-13", Counted::ProgramsInOnePart), ("xid-31", Counted::Programs)];
        assert_eq!(counted, rows);
        for (code, counted) in rows {
            assert!(
                look_up(counted.means().1).is_some_and(|fault| fault.code != code && fault.counted.is_none()),
                "{code}"
            );
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut repeats = Repeats::default();
        for i in 0..10_000 {
            let (fault, text) = page_fault(i);
            let gpu = format!("GPU-{}", i % 16);
            repeats.count(&gpu, &gpu, fault, &text, at(i64::from(i)));
        }
        assert_eq!(repeats.0.len(), REMEMBERED);
    }
}
