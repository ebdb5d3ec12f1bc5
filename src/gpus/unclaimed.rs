//! Faults that no GPU of the lab claims: of the node, of a switch between GPUs, of a GPU that no probe lists. Pure.
//!
//! Until the first look at the GPUs is over, a line waits for the GPU that it is about. After it, it is a notice of the node,
//! until its cause is gone: its GPU answers, or all do where it names none, or it has not come again for a while, or the
//! machine was started anew.

use std::time::Duration;

use super::kmsg::{self, KernelLine};
use crate::{
    gpus::faults::Action,
    snapshot::{Notice, Severity},
    time::Timestamp,
};

/// Time after its last line for which a fault is told. Nothing says when a switch or a driver is well again; a day, so
/// that whoever looks once a day sees it (chosen, not measured).
const TOLD_FOR: Duration = Duration::from_hours(24);
/// The same for what passes by itself, such as a program's work that hung (chosen, not measured).
const PASSING_FOR: Duration = Duration::from_hours(1);
/// Number of faults that are kept: 16 GPUs and 6 switches with some kinds each.
const KEPT: usize = 64;

/// Fault without a GPU that has it.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// First line that told of it.
    line: KernelLine,
    /// Time of the newest one.
    last: Timestamp,
    /// Whether all GPUs were looked at since the line came, or before: its GPU is one that no probe lists.
    observed: bool,
    /// Whether it was written down.
    recorded: bool,
    /// Whether a probe lists its GPU: then it is the GPU's as soon as that says how it is, and not the node's.
    listed: bool,
}

/// State of a GPU that the kernel said did not start; where it did not say which, of all that it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It answers: whatever kept it from starting is gone.
    Answers,
    /// It does not answer, and a GPU of the lab is it.
    Fails,
    /// A probe lists it, and has not said yet how it is.
    Listed,
    /// No probe lists it.
    Unlisted,
}

/// Faults that no GPU of the lab claims, oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Unclaimed(Vec<Entry>);

impl Unclaimed {
    /// Takes a line. `observed`: whether all GPUs were looked at; `recorded`: whether an earlier labd has written it down.
    pub(super) fn handle(&mut self, line: &KernelLine, observed: bool, recorded: bool) {
        // Two instances of one GPU have a fault each.
        let key = |l: &KernelLine| (l.fault.code, l.pci.clone(), kmsg::instance(&l.text));
        if let Some(known) = self.0.iter_mut().find(|e| key(&e.line) == key(line)) {
            known.last = known.last.max(line.at);
            return;
        }
        self.0.push(Entry { line: line.clone(), last: line.at, observed, recorded, listed: false });
        let excess = self.0.len().saturating_sub(KEPT);
        self.0.drain(..excess);
    }

    /// Takes out the lines that GPUs have that are known now (`has`), for them to be handled; each with whether it was
    /// written down. A line that only another instance of the GPU can have stays.
    pub(super) fn claim(&mut self, has: impl Fn(&KernelLine) -> bool) -> Vec<(KernelLine, bool)> {
        let claimed = self.0.extract_if(.., |e| !e.line.fault.keeps_from_starting() && has(&e.line));
        claimed.map(|e| (e.line, e.recorded)).collect()
    }

    /// Compares the lines about GPUs that did not start with how those are now (`start`). Takes out those of GPUs that
    /// fail, for them to be handled, and forgets those of GPUs that answer.
    pub(super) fn settle(&mut self, start: impl Fn(&KernelLine, Timestamp) -> Start) -> Vec<(KernelLine, bool)> {
        let mut failed = Vec::new();
        self.0.retain_mut(|e| {
            if !e.line.fault.keeps_from_starting() {
                return true;
            }
            let start = start(&e.line, e.last);
            e.listed = start == Start::Listed;
            if start == Start::Fails {
                failed.push((KernelLine { at: e.last, ..e.line.clone() }, e.recorded));
            }
            !matches!(start, Start::Answers | Start::Fails)
        });
        failed
    }

    /// Notes that all GPUs were looked at: whatever is left is of one that no probe lists.
    pub(super) fn observed(&mut self) {
        self.0.iter_mut().for_each(|e| e.observed = true);
    }

    /// Forgets what has not come again for a while. What the driver says once, when it starts a GPU, stays until that GPU
    /// answers or the machine is started anew. What waits for the first look is kept, however old: its GPU may claim
    /// it.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let long = |e: &Entry| if e.line.fault.passes() { PASSING_FOR } else { TOLD_FOR };
        self.0.retain(|e| !e.observed || e.line.fault.keeps_from_starting() || now.since(e.last) <= long(e));
    }

    /// Lines that were not written down yet, each with its words: code and text.
    pub(super) fn unrecorded(&mut self) -> Vec<(&'static str, String)> {
        let new = self.0.iter_mut().filter(|e| !e.recorded && !e.listed);
        new.map(|e| {
            e.recorded = true;
            (e.line.fault.code, words(&e.line))
        })
        .collect()
    }

    /// Notices of the node.
    pub(super) fn notices(&self) -> Vec<Notice> {
        let severity = |e: &Entry| match e.line.fault.action {
            Action::Quarantine => Severity::Error,
            Action::Restart | Action::Nothing => Severity::Warning,
        };
        let told = self.0.iter().filter(|e| !e.listed);
        told.map(|e| Notice { severity: severity(e), text: words(&e.line) }).collect()
    }
}

/// Fault of the node in words, which stay the same however often it comes.
fn words(line: &KernelLine) -> String {
    let (fault, pci) = (line.fault, line.pci.as_deref());
    let whose = pci.map(|pci| format!("PCI device {pci}: ")).unwrap_or_default();
    format!("{whose}{} ({}): {}", fault.meaning, fault.code, fault.remedy_for(pci, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::health::by_code;

    const FATAL: &str = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up";
    const NOT_STARTED: &str = "NVRM: GPU 0000:0a:00.0: RmInitAdapter failed! (0x24:0x72:1568)";
    const LOST: &str = "NVRM: Xid (PCI:0000:0a:00): 79, GPU has fallen off the bus.";
    const HANG: &str = "[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring sdma0 timeout, signaled seq=12, emitted seq=14";

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn line(text: &str, s: i64) -> KernelLine {
        let (fault, pci) = kmsg::parse(text).expect("a fault");
        KernelLine { at: at(s), fault, pci, text: text.to_owned() }
    }

    #[test]
    fn a_switch_and_a_gpu_that_nobody_lists_are_notices_without_a_gpu_to_release() {
        let mut unclaimed = Unclaimed::default();
        for s in 0..3 {
            unclaimed.handle(&line(FATAL, s), true, false);
            unclaimed.handle(&line(NOT_STARTED, s), true, false);
        }
        let notices = unclaimed.notices();
        let [switch, gpu] = &notices[..] else { panic!("{notices:?}") };
        assert!(switch.text.starts_with("PCI device 0000:a9:00.0: a switch between GPUs failed"), "{}", switch.text);
        assert!(gpu.text.contains("nvidia-init-failed") && gpu.text.contains("0000:0a:00.0"), "{}", gpu.text);
        assert!(gpu.severity == Severity::Error && notices.iter().all(|n| !n.text.contains('<')));
        assert_eq!(unclaimed.unrecorded().len(), 2);
        assert_eq!(unclaimed.unrecorded(), [], "written down once");
    }

    /// Whether a line is about the GPU at 0000:0a:00.0.
    fn of_gpu(line: &KernelLine) -> bool {
        line.pci.as_deref() == Some("0000:0a:00.0")
    }

    fn codes(lines: &[(KernelLine, bool)]) -> Vec<&'static str> {
        lines.iter().map(|(line, _)| line.fault.code).collect()
    }

    #[test]
    fn a_notice_goes_when_its_gpu_answers_or_it_does_not_come_again() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.handle(&line(NOT_STARTED, 0), true, false);
        unclaimed.handle(&line(FATAL, 0), true, false);
        unclaimed.handle(&line(HANG, 0), true, false);
        // Somebody installed another driver: the card answers.
        assert_eq!(unclaimed.settle(|_, _| Start::Answers), []);
        assert_eq!(unclaimed.notices().len(), 2);
        unclaimed.expire(at(3601));
        assert_eq!(unclaimed.notices().len(), 1, "a hang passes");
        unclaimed.handle(&line(FATAL, 80_000), true, false);
        unclaimed.expire(at(90_000));
        assert_eq!(unclaimed.notices().len(), 1, "it came again");
        unclaimed.expire(at(170_000));
        assert_eq!(unclaimed.notices(), []);
    }

    #[test]
    fn a_gpu_that_did_not_start_is_told_however_long_ago_the_machine_was_started() {
        let nameless = "NVRM: RmInitAdapter failed! (0x26:0xffff:1375)";
        let no_atomics = "kfd kfd: amdgpu: skipped device 1002:7300, PCI rejects atomics 730<0";
        for text in [NOT_STARTED, nameless, no_atomics] {
            let mut unclaimed = Unclaimed::default();
            unclaimed.handle(&line(text, 0), true, true);
            unclaimed.expire(at(30 * 24 * 3600));
            assert_eq!(unclaimed.notices().len(), 1, "{text}: labd was started again a month after the machine");
        }
        // A GPU can do without some files, and then nothing ends it.
        let mut unclaimed = Unclaimed::default();
        unclaimed.handle(
            &KernelLine { fault: by_code("amdgpu-firmware").expect("a row"), ..line(NOT_STARTED, 0) },
            true,
            false,
        );
        unclaimed.expire(at(30 * 24 * 3600));
        assert_eq!(unclaimed.notices(), []);
    }

    #[test]
    fn a_line_about_a_gpu_that_did_not_start_is_that_gpus_only_while_it_does_not_answer() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.handle(&line(NOT_STARTED, 0), false, false);
        unclaimed.handle(&line(LOST, 0), false, false);
        assert_eq!(codes(&unclaimed.claim(of_gpu)), ["xid-79"]);
        unclaimed.observed();
        for (start, told) in [(Start::Unlisted, 1), (Start::Listed, 0)] {
            assert_eq!(unclaimed.settle(|_, _| start), []);
            assert_eq!((unclaimed.notices().len(), unclaimed.unrecorded().len()), (told, told), "{start:?}");
        }
        let failed = unclaimed.settle(|_, _| Start::Fails);
        assert_eq!((codes(&failed), failed[0].1), (vec!["nvidia-init-failed"], true), "written down already");
        assert_eq!(unclaimed.notices(), []);
    }

    #[test]
    fn each_instance_of_a_gpu_has_its_own_line_and_what_nobody_claims_is_written_down_once() {
        let of = |instance: u32| {
            line(
                &format!("NVRM: Xid (PCI:0000:0a:00 GPU-I:{instance:02}): 94, pid=1, name=a, Contained: SM. RST: No"),
                0,
            )
        };
        let mut unclaimed = Unclaimed::default();
        unclaimed.handle(&of(5), false, false);
        unclaimed.handle(&of(9), false, false);
        unclaimed.observed();
        assert_eq!(unclaimed.unrecorded().len(), 2);
        // The GPU has a worker for one of them; each change of the workers asks again.
        for claimed in [1, 0, 0] {
            assert_eq!(unclaimed.claim(|l| l.text.contains("GPU-I:09")).len(), claimed);
            assert_eq!((unclaimed.notices().len(), unclaimed.unrecorded()), (1, Vec::new()));
        }
    }

    #[test]
    fn an_old_line_waits_for_its_gpu_until_all_were_looked_at() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.handle(&line(LOST, 0), false, false);
        unclaimed.expire(at(30 * 3600));
        assert_eq!(unclaimed.claim(of_gpu).len(), 1, "labd was started 30 hours later");
        unclaimed.handle(&line(LOST, 0), false, false);
        unclaimed.observed();
        unclaimed.expire(at(30 * 3600));
        assert_eq!(unclaimed.claim(|_| true), []);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut unclaimed = Unclaimed::default();
        for bus in 0..=255 {
            unclaimed.handle(
                &line(&format!("NVRM: Xid (PCI:0000:{bus:02x}:00): 79, GPU has fallen off the bus."), 0),
                true,
                false,
            );
        }
        assert_eq!(unclaimed.notices().len(), KEPT);
    }
}
