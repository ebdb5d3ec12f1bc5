//! Faults that no GPU of the lab claims: of the node, of a switch between GPUs, of a GPU that no probe lists. Pure.
//!
//! Until the first look at the GPUs is over, a line waits for the GPU that it is about. After it, it is a notice of the node,
//! until its cause is gone: its GPU answers, or it has not come again for a while, or the machine was started anew.

use std::time::Duration;

use super::kmsg::KernelLine;
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
    looked: bool,
    /// Whether it was written down.
    recorded: bool,
}

/// Faults that no GPU of the lab claims, oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Unclaimed(Vec<Entry>);

impl Unclaimed {
    /// Takes a line. `looked`: whether all GPUs were looked at; `told`: whether an earlier labd has written it down.
    pub(super) fn hear(&mut self, line: &KernelLine, looked: bool, told: bool) {
        let same = |e: &&mut Entry| e.line.fault == line.fault && e.line.pci == line.pci;
        if let Some(known) = self.0.iter_mut().find(same) {
            known.last = known.last.max(line.at);
            return;
        }
        self.0.push(Entry { line: line.clone(), last: line.at, looked, recorded: told });
        let excess = self.0.len().saturating_sub(KEPT);
        self.0.drain(..excess);
    }

    /// Takes out the lines about GPUs that are known now (`is_known`, by address), for them to be handled. Left out is
    /// what the GPU has not any more.
    pub(super) fn claim(&mut self, is_known: impl Fn(&str) -> bool) -> Vec<KernelLine> {
        let claimed = self.0.extract_if(.., |e| e.line.pci.as_deref().is_some_and(&is_known));
        // It came while no probe listed the GPU, and the GPU answers: whatever kept it from starting is gone.
        claimed.filter(|e| !(e.looked && e.line.fault.keeps_from_starting())).map(|e| e.line).collect()
    }

    /// Notes that all GPUs were looked at: whatever is left is of one that no probe lists.
    pub(super) fn looked(&mut self) {
        self.0.iter_mut().for_each(|e| e.looked = true);
    }

    /// Forgets what has not come again for a while. A GPU that did not start is said once, at boot, and stays so until it
    /// answers or the machine is started anew. What waits for the first look is kept, however old: its GPU may claim it.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let long = |e: &Entry| if e.line.fault.passes() { PASSING_FOR } else { TOLD_FOR };
        let stays = |e: &Entry| e.line.pci.is_some() && e.line.fault.keeps_from_starting();
        self.0.retain(|e| !e.looked || stays(e) || now.since(e.last) <= long(e));
    }

    /// Lines that were not written down yet, each with its words: code and text.
    pub(super) fn unrecorded(&mut self) -> Vec<(&'static str, String)> {
        let new = self.0.iter_mut().filter(|e| !e.recorded);
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
        self.0.iter().map(|e| Notice { severity: severity(e), text: words(&e.line) }).collect()
    }
}

/// Fault of the node in words, which stay the same however often it comes.
fn words(line: &KernelLine) -> String {
    let (fault, pci) = (line.fault, line.pci.as_deref());
    let whose = pci.map(|pci| format!("PCI device {pci}: ")).unwrap_or_default();
    format!("{whose}{} ({}); {}", fault.meaning, fault.code, fault.remedy_for(pci, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::kmsg;

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
            unclaimed.hear(&line(FATAL, s), true, false);
            unclaimed.hear(&line(NOT_STARTED, s), true, false);
        }
        let notices = unclaimed.notices();
        let [switch, gpu] = &notices[..] else { panic!("{notices:?}") };
        assert!(switch.text.starts_with("PCI device 0000:a9:00.0: a switch between GPUs failed"), "{}", switch.text);
        assert!(gpu.text.contains("nvidia-init-failed") && gpu.text.contains("0000:0a:00.0"), "{}", gpu.text);
        assert!(gpu.severity == Severity::Error && notices.iter().all(|n| !n.text.contains('<')));
        assert_eq!(unclaimed.unrecorded().len(), 2);
        assert_eq!(unclaimed.unrecorded(), [], "written down once");
    }

    #[test]
    fn a_notice_goes_when_its_gpu_answers_or_it_does_not_come_again() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.hear(&line(NOT_STARTED, 0), true, false);
        unclaimed.hear(&line(FATAL, 0), true, false);
        unclaimed.hear(&line(HANG, 0), true, false);
        // Somebody installed another driver: the card answers.
        assert_eq!(unclaimed.claim(|pci| pci == "0000:0a:00.0"), []);
        assert_eq!(unclaimed.notices().len(), 2);
        unclaimed.expire(at(3601));
        assert_eq!(unclaimed.notices().len(), 1, "a hang passes");
        unclaimed.hear(&line(FATAL, 80_000), true, false);
        unclaimed.expire(at(90_000));
        assert_eq!(unclaimed.notices().len(), 1, "it came again");
        unclaimed.expire(at(170_000));
        assert_eq!(unclaimed.notices(), []);
    }

    #[test]
    fn a_gpu_that_did_not_start_is_told_however_long_ago_the_machine_was_started() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.hear(&line(NOT_STARTED, 0), false, true);
        unclaimed.expire(at(30 * 24 * 3600));
        assert_eq!(unclaimed.notices().len(), 1, "labd was started, or started again, a month after the machine");
        assert_eq!(unclaimed.claim(|pci| pci == "0000:0a:00.0").len(), 1);
        assert_eq!(unclaimed.notices(), []);
    }

    #[test]
    fn lines_from_before_the_first_look_are_those_of_their_gpu() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.hear(&line(NOT_STARTED, 0), false, false);
        unclaimed.hear(&line(LOST, 0), true, false);
        let claimed = unclaimed.claim(|pci| pci == "0000:0a:00.0");
        let codes: Vec<&str> = claimed.iter().map(|line| line.fault.code).collect();
        assert_eq!(codes, ["nvidia-init-failed", "xid-79"], "what keeps no GPU from starting is its own at any time");
        assert_eq!(unclaimed.notices(), []);
        // The look is over, nobody listed it, and later it answers.
        unclaimed.hear(&line(NOT_STARTED, 0), false, false);
        unclaimed.looked();
        assert_eq!(unclaimed.claim(|_| true), []);
    }

    #[test]
    fn an_old_line_waits_for_its_gpu_until_all_were_looked_at() {
        let mut unclaimed = Unclaimed::default();
        unclaimed.hear(&line(LOST, 0), false, false);
        unclaimed.expire(at(30 * 3600));
        assert_eq!(unclaimed.claim(|pci| pci == "0000:0a:00.0").len(), 1, "labd was started 30 hours later");
        unclaimed.hear(&line(LOST, 0), false, false);
        unclaimed.looked();
        unclaimed.expire(at(30 * 3600));
        assert_eq!(unclaimed.claim(|_| true), []);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut unclaimed = Unclaimed::default();
        for bus in 0..=255 {
            unclaimed.hear(
                &line(&format!("NVRM: Xid (PCI:0000:{bus:02x}:00): 79, GPU has fallen off the bus."), 0),
                true,
                false,
            );
        }
        assert_eq!(unclaimed.notices().len(), KEPT);
    }
}
