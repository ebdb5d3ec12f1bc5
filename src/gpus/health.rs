//! Health of GPUs, from signs of faults: which is quarantined, whose worker must be restarted, what is only reported.
//! Pure.
//!
//! The meaning of each sign is in [`faults`]; here is only what follows from it, and for how long.

use std::{collections::BTreeMap, time::Duration};

use labd_gpu::{Reading, Throttle};
use serde::{Deserialize, Serialize};

use super::{
    Gpu,
    faults::{
        self, ALL_ONES, Action, Fault, Sign, look_up,
        repeats::{self, Repeats},
    },
};
use crate::{snapshot::GpuTrouble, time::Timestamp};

/// Answers about one GPU that say nothing but that it cannot be asked. After some of the driver's own troubles they pass;
/// where they do not they are the commonest look of a GPU that has fallen off the bus.
const NO_HANDLE: [&str; 3] = ["NVML_ERROR_UNKNOWN", "NVML_ERROR_NOT_FOUND", "NVML_ERROR_TIMEOUT"];
/// Time after which such an answer is a fault of the GPU. A reset by hand, or the start of a GPU, takes seconds; the probe
/// opens the library once more within it.
const NO_HANDLE_FOR: Duration = Duration::from_mins(1);
/// Longest time between two such answers that are one trouble. They come once a second, and after 5 s of silence a probe is
/// killed.
const NO_HANDLE_GAP: Duration = Duration::from_secs(15);

/// Time after the kernel's line about a fault in which the count of memory errors grows by that same one. Counts are read
/// each second, and by `nvidia-smi` on a busy machine some seconds later. Within this time a new worker has only begun.
const TOLD_BY_LINE: Duration = Duration::from_secs(15);

/// State of faults, by the GPU's id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FaultState {
    quarantined: BTreeMap<String, ActiveFault>,
    /// GPUs whose workers must have been started since that fault.
    restarts: BTreeMap<String, ActiveFault>,
    /// Time at which a person last lifted a quarantine: what was seen before is settled by that. The kernel's lines of
    /// this boot are read again by every labd.
    released: BTreeMap<String, Timestamp>,
    /// Faults in the newest readings. They end with the readings that say otherwise.
    #[serde(skip)]
    said: BTreeMap<String, ActiveFault>,
    /// Numbers of uncorrected memory errors in the readings before.
    #[serde(skip)]
    uncorrected: BTreeMap<String, u64>,
    /// First and newest of the answers in a row that are in [`NO_HANDLE`].
    #[serde(skip)]
    no_handle: BTreeMap<String, (Timestamp, Timestamp)>,
    /// Faults that mean more when they come again. The kernel's lines of this boot are counted again by every labd.
    #[serde(skip)]
    repeats: Repeats,
    /// Newest of such faults for which a GPU is not held. A person is told for [`repeats::WINDOW`].
    #[serde(skip)]
    repeated: BTreeMap<String, ActiveFault>,
}

/// What a release ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Quarantine.
    Quarantine,
    /// Notice of a fault that comes again and again and holds nothing.
    Notice(&'static Fault),
    /// Nothing: there was neither.
    Nothing,
}

/// Fault with its row of the table, and the time at which it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ActiveFault {
    code: String,
    since: Timestamp,
}

impl ActiveFault {
    fn fault(&self) -> Option<&'static Fault> {
        // A row that this labd does not know is from another one's journal.
        by_code(&self.code)
    }
}

/// Row with this name.
pub fn by_code(code: &str) -> Option<&'static Fault> {
    faults::all().find(|fault| fault.code == code)
}

impl FaultState {
    /// Records that a GPU had this fault. Returns whether that is news.
    pub fn fault(&mut self, id: &str, fault: &'static Fault, at: Timestamp) -> bool {
        if self.released.get(id).is_some_and(|&released| at <= released) {
            return false;
        }
        let mark = ActiveFault { code: fault.code.to_owned(), since: at };
        match fault.action {
            Action::Quarantine if self.quarantined.contains_key(id) => return false,
            Action::Quarantine => drop(self.quarantined.insert(id.to_owned(), mark)),
            Action::Restart if self.restarts.get(id).is_some_and(|known| known.since >= at) => return false,
            Action::Restart => drop(self.restarts.insert(id.to_owned(), mark)),
            Action::Nothing => {}
        }
        true
    }

    /// Counts a line of the kernel about a GPU, or a partition of the GPU `card`, that had this fault. Returns the fault
    /// that it is by having come so often, where that is news.
    pub fn again(
        &mut self,
        id: &str,
        card: &str,
        fault: &'static Fault,
        text: &str,
        at: Timestamp,
    ) -> Option<&'static Fault> {
        if self.released.get(id).is_some_and(|&released| at <= released) {
            return None;
        }
        let fault = self.repeats.count(id, card, fault, text, at)?;
        if fault.action != Action::Nothing {
            return self.fault(id, fault, at).then_some(fault);
        }
        let mark = ActiveFault { code: fault.code.to_owned(), since: at };
        self.repeated.insert(id.to_owned(), mark).is_none().then_some(fault)
    }

    /// Takes new readings of a GPU. Returns the fault that they newly tell of.
    pub fn reading(&mut self, r: &Reading, at: Timestamp) -> Option<&'static Fault> {
        if r.asleep {
            // It says nothing, neither that it is ill nor that it is well again.
            return None;
        }
        self.repeated.retain(|_, mark| at.since(mark.since) <= repeats::WINDOW);
        let before = match r.ecc_uncorrected {
            Some(count) => self.uncorrected.insert(r.id.clone(), count),
            None => None,
        };
        // Where the worker is recreated for the line already, it is not once more for the count.
        let told = self.restarts.get(&r.id).is_some_and(|mark| at.since(mark.since) <= TOLD_BY_LINE);
        let grown = !told && before.zip(r.ecc_uncorrected).is_some_and(|(before, now)| has_errors(before, now));
        let fault = if self.has_no_handle(r, at) {
            look_up(Sign::NoHandle)
        } else {
            // What is not answered at all says more than what the driver needs.
            let needs = r.error.is_none().then(|| r.recovery_action.and_then(needed)).flatten();
            needs.or_else(|| sign_of(r, grown).and_then(look_up))
        };
        let Some(fault) = fault else {
            self.said.remove(&r.id);
            return None;
        };
        if self.said.get(&r.id).is_some_and(|mark| mark.code == fault.code) {
            return None;
        }
        self.said.insert(r.id.clone(), ActiveFault { code: fault.code.to_owned(), since: at });
        self.fault(&r.id, fault, at).then_some(fault)
    }

    /// Whether the GPU could not be asked for as long as [`NO_HANDLE_FOR`].
    fn has_no_handle(&mut self, r: &Reading, at: Timestamp) -> bool {
        if !r.error.as_deref().is_some_and(|symbol| NO_HANDLE.contains(&symbol)) {
            self.no_handle.remove(&r.id);
            return false;
        }
        let in_a_row = |&(_, newest): &(Timestamp, Timestamp)| at >= newest && at.since(newest) <= NO_HANDLE_GAP;
        let first = self.no_handle.get(&r.id).filter(|known| in_a_row(known)).map_or(at, |&(first, _)| first);
        self.no_handle.insert(r.id.clone(), (first, at));
        at.since(first) >= NO_HANDLE_FOR
    }

    /// Settles what a GPU had, on a person's word: what was seen before does not count any more. Returns what that ended.
    pub fn release(&mut self, id: &str, now: Timestamp) -> Released {
        // Said again from now on, it counts again.
        self.said.remove(id);
        self.no_handle.remove(id);
        self.repeats.forget(id);
        let repeated = self.repeated.remove(id).and_then(|mark| mark.fault());
        let released = match (self.quarantined.remove(id), repeated) {
            (Some(_), _) => Released::Quarantine,
            (None, Some(fault)) => Released::Notice(fault),
            (None, None) => return Released::Nothing,
        };
        self.released.insert(id.to_owned(), now);
        released
    }

    /// Reason why a GPU is quarantined.
    pub fn quarantine(&self, gpu: &Gpu) -> Option<GpuTrouble> {
        in_words(self.quarantined.get(&gpu.id)?, gpu)
    }

    /// Fault of a GPU that works all the same: in its newest readings, or one that comes again and again.
    pub fn warning(&self, gpu: &Gpu) -> Option<GpuTrouble> {
        in_words(self.said.get(&gpu.id).or_else(|| self.repeated.get(&gpu.id))?, gpu)
    }

    /// Time since which a GPU's worker must have been started, and why.
    pub fn restart(&self, id: &str) -> Option<(Timestamp, String)> {
        let mark = self.restarts.get(id)?;
        Some((mark.since, format!("its GPU had {}: {}", mark.code, mark.fault()?.meaning)))
    }
}

/// Fault of a GPU of which NVIDIA's driver says that it needs this (`nvmlDeviceGpuRecoveryAction_t`). It is that of the
/// kernel's line about the same change (Xid 154), which labd may have missed, and has the same number there. To drain traffic
/// between GPUs (3) is a thing of the moment, for which the line is enough; the domain of IMEX (5) is no GPU's.
fn needed(action: u32) -> Option<&'static Fault> {
    matches!(action, 1 | 2 | 4 | 6 | 7).then(|| look_up(Sign::Recovery(action))).flatten()
}

/// Whether a count of memory errors grew by errors.
const fn has_errors(before: u64, now: u64) -> bool {
    now > before && !(now - before).is_multiple_of(ALL_ONES)
}

/// Gravest sign in readings. A GPU under load at its power limit is healthy.
fn sign_of(r: &Reading, grown: bool) -> Option<Sign<'_>> {
    let slow = [Throttle::PowerBrake, Throttle::Thermal, Throttle::Hardware];
    let slow = slow.into_iter().find(|why| r.throttled.contains(why)).map(Sign::Throttled);
    let answer = r.error.as_deref().map(Sign::Answer);
    let memory =
        [(grown, Sign::EccUncorrected), (r.remap_failed, Sign::RemapFailed), (r.remap_pending, Sign::RemapPending)];
    answer.or_else(|| memory.into_iter().find(|(is, _)| *is).map(|(_, sign)| sign)).or(slow)
}

/// Fault in words for a person, about this very GPU.
pub fn trouble(fault: &Fault, gpu: &Gpu, since: Timestamp) -> GpuTrouble {
    GpuTrouble {
        code: fault.code.to_owned(),
        meaning: fault.meaning.to_owned(),
        remedy: fault.remedy_for(gpu.pci.as_deref(), Some(&gpu.id)),
        since,
    }
}

fn in_words(mark: &ActiveFault, gpu: &Gpu) -> Option<GpuTrouble> {
    Some(trouble(mark.fault()?, gpu, mark.since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::simulate;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1000)
    }

    fn fault(code: &str) -> &'static Fault {
        by_code(code).expect("a row")
    }

    #[test]
    fn a_quarantine_lasts_until_a_person_lifts_it_and_old_signs_do_not_bring_it_back() {
        let gpu = &simulate::gpus(1, &[])[0];
        let mut state = FaultState::default();
        assert!(state.fault("SIM-0", fault("xid-79"), at(10)));
        assert!(!state.fault("SIM-0", fault("xid-79"), at(11)), "known already");
        let told: FaultState = serde_json::from_str(&serde_json::to_string(&state).expect("plain")).expect("read back");
        assert_eq!(told.quarantine(gpu).map(|t| (t.code, t.since)), Some(("xid-79".into(), at(10))));
        assert_eq!(state.release("SIM-0", at(20)), Released::Quarantine);
        assert_eq!(state.release("SIM-0", at(20)), Released::Nothing);
        assert!(!state.fault("SIM-0", fault("xid-79"), at(11)), "the same line, read again by a new labd");
        assert_eq!(state.quarantine(gpu), None);
        assert!(state.fault("SIM-0", fault("xid-79"), at(21)), "it has it again");
    }

    #[test]
    fn what_a_program_did_wrong_does_nothing_to_its_gpu() {
        let mut state = FaultState::default();
        assert!(state.fault("SIM-0", look_up(Sign::Xid(31)).expect("a row"), at(1)));
        assert_eq!((state.quarantine(&simulate::gpus(1, &[])[0]), state.restart("SIM-0")), (None, None));
    }

    #[test]
    fn programs_that_fail_on_one_gpu_again_and_again_are_told_for_a_day_and_hold_nothing() {
        let gpu = &simulate::gpus(1, &[])[0];
        let mut state = FaultState::default();
        let fails = |state: &mut FaultState, hour: i64| {
            let text = format!("NVRM: Xid (PCI:0000:c1:00): 31, pid={hour}, name=python3, Ch 00000008");
            let fault = look_up(Sign::Kernel(&text)).expect("a row");
            state.again("SIM-0", "SIM-0", fault, &text, at(hour * 3600)).map(|f| f.code)
        };
        let told = |state: &mut FaultState, hour: i64| {
            state.reading(&Reading { id: "SIM-0".into(), ..Reading::default() }, at(hour * 3600));
            state.warning(gpu).map(|t| t.code)
        };
        for hour in 0..4 {
            assert_eq!((fails(&mut state, hour), told(&mut state, hour)), (None, None));
        }
        assert_eq!(fails(&mut state, 4), Some("app-errors"));
        assert_eq!(fails(&mut state, 5), None, "known already");
        assert_eq!((state.quarantine(gpu), told(&mut state, 29).as_deref()), (None, Some("app-errors")));
        assert_eq!(told(&mut state, 30), None, "not since yesterday");
        // Somebody looked at it and dismissed it: the next labd reads the same lines.
        for hour in 40..45 {
            fails(&mut state, hour);
        }
        let dismissed = state.release("SIM-0", at(45 * 3600));
        assert!(matches!(dismissed, Released::Notice(f) if f.code == "app-errors"), "{dismissed:?}");
        let mut next: FaultState =
            serde_json::from_str(&serde_json::to_string(&state).expect("plain")).expect("read back");
        for hour in 40..46 {
            assert_eq!((fails(&mut next, hour), told(&mut next, hour)), (None, None), "{hour}");
        }
    }

    #[test]
    fn a_link_whose_errors_come_again_quarantines_its_gpu_until_a_person_has_looked() {
        let gpu = &simulate::gpus(1, &[])[0];
        let mut state = FaultState::default();
        let fails = |state: &mut FaultState, second: i64| {
            let text = "NVRM: Xid (PCI:0000:c1:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link \
                        1(0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)";
            let fault = look_up(Sign::Kernel(text)).expect("a row");
            state.again("SIM-0", "SIM-0", fault, text, at(second)).map(|f| f.code)
        };
        assert_eq!([0, 1, 2, 3].map(|s| fails(&mut state, s)), [None, None, Some("xid-74"), None]);
        assert_eq!(state.quarantine(gpu).map(|t| t.code), Some("xid-74".to_owned()));
        assert_eq!(state.release("SIM-0", at(10)), Released::Quarantine);
        // The kernel's lines from before, read again by a new labd, and one that came after.
        assert_eq!([0, 1, 2, 3, 11].map(|s| fails(&mut state, s)), [None; 5]);
        assert_eq!(state.quarantine(gpu), None);
    }

    #[test]
    fn a_healed_fault_restarts_the_worker_once() {
        let mut state = FaultState::default();
        let healed = faults::all().find(|f| f.action == Action::Restart).expect("a row");
        assert!(state.fault("SIM-0", healed, at(5)) && !state.fault("SIM-0", healed, at(5)));
        assert_eq!(state.restart("SIM-0").map(|(since, _)| since), Some(at(5)));
    }

    #[test]
    fn a_gpu_that_cannot_be_asked_for_a_minute_is_quarantined_alone() {
        let (gpu, other) = (&simulate::gpus(2, &[])[0], &simulate::gpus(2, &[])[1]);
        let reading = |gpu: &Gpu, error: Option<&str>| Reading {
            id: gpu.id.clone(),
            error: error.map(str::to_owned),
            ..Reading::default()
        };
        for symbol in ["NVML_ERROR_UNKNOWN", "NVML_ERROR_NOT_FOUND"] {
            let mut state = FaultState::default();
            let mut tell = |gpu: &Gpu, error, s| state.reading(&reading(gpu, error), at(s)).map(|f| f.code);
            // Once more, after a minute in which it answered, and after one without any answer at all.
            for second in (0..50).chain(51..110) {
                assert_ne!(tell(gpu, Some(symbol), second), Some("nvml-no-handle"), "{symbol}: {second}");
                tell(other, None, second);
                if second == 49 {
                    tell(gpu, None, 50);
                }
            }
            for second in 1000..1060 {
                assert_ne!(tell(gpu, Some(symbol), second), Some("nvml-no-handle"), "{symbol}: {second}");
            }
            assert_eq!(tell(gpu, Some(symbol), 1060), Some("nvml-no-handle"));
            assert_eq!(tell(gpu, Some(symbol), 1061), None, "told");
            assert_eq!(state.quarantine(gpu).map(|t| t.code), Some("nvml-no-handle".to_owned()));
            assert_eq!(state.quarantine(other), None);
            // Whoever releases it has a minute to see it work.
            assert_eq!(state.release("SIM-0", at(1070)), Released::Quarantine);
            for second in 1071..1131 {
                state.reading(&reading(gpu, Some(symbol)), at(second));
                assert_eq!(state.quarantine(gpu), None);
            }
            state.reading(&reading(gpu, Some(symbol)), at(1131));
            assert!(state.quarantine(gpu).is_some());
        }
        let mut state = FaultState::default();
        for second in 0..200 {
            state.reading(&reading(gpu, Some("NVML_ERROR_OPERATING_SYSTEM")), at(second));
        }
        assert_eq!(state.quarantine(gpu), None, "that is not the GPU's fault");
    }

    #[test]
    fn a_gpu_that_needs_a_reset_or_a_reboot_is_quarantined_by_what_the_driver_says() {
        let gpu = &simulate::gpus(1, &[])[0];
        for (action, want) in [
            (0, None),
            (1, Some("xid-154")),
            (2, Some("xid-154-reboot")),
            (3, None),
            (4, Some("xid-154")),
            (5, None),
            (6, Some("xid-154")),
            (7, Some("xid-154-reboot")),
            (4711, None),
        ] {
            let mut state = FaultState::default();
            let needs = Reading { id: "SIM-0".into(), recovery_action: Some(action), ..Reading::default() };
            assert_eq!(state.reading(&needs, at(1)).map(|f| f.code), want, "{action}");
            assert_eq!(state.quarantine(gpu).map(|t| t.code).as_deref(), want, "{action}");
            assert_eq!(state.reading(&needs, at(2)), None, "told");
            assert!(state.restart("SIM-0").is_none());
        }
    }

    #[test]
    fn a_count_that_jumps_by_all_ones_tells_of_no_error() {
        let mut state = FaultState::default();
        let mut grows =
            |count| state.reading(&Reading { ecc_uncorrected: Some(count), ..Reading::default() }, at(1)).is_some();
        assert!(!grows(3), "from before");
        assert!(!grows(3 + 1_048_560) && !grows(3 + 1_048_560 + 65_535), "a GPU that slept was read");
        assert!(grows(4 + 1_048_560 + 65_535), "one more");
    }

    #[test]
    fn a_memory_error_that_the_kernel_told_of_restarts_its_worker_once() {
        let mut state = FaultState::default();
        let count = |state: &mut FaultState, count, s| {
            let reading = Reading { id: "SIM-0".into(), ecc_uncorrected: Some(count), ..Reading::default() };
            state.reading(&reading, at(s)).map(|f| f.code)
        };
        assert_eq!(count(&mut state, 3, 9), None);
        assert!(state.fault("SIM-0", fault("xid-94"), at(10)));
        assert_eq!((count(&mut state, 4, 12), state.restart("SIM-0").map(|(since, _)| since)), (None, Some(at(10))));
        assert_eq!(count(&mut state, 4, 13), None);
        assert_eq!(count(&mut state, 5, 60), Some("ecc-uncorrected"), "another one");
    }

    #[test]
    fn a_gpu_that_sleeps_says_nothing() {
        let gpu = &simulate::gpus(1, &[])[0];
        let mut state = FaultState::default();
        let pending = Reading { id: "SIM-0".into(), remap_pending: true, ..Reading::default() };
        assert!(state.reading(&pending, at(1)).is_some());
        assert_eq!(state.reading(&Reading::of_sleeping("SIM-0"), at(2)), None);
        assert_eq!(state.reading(&pending, at(3)), None, "the same still");
        assert_eq!(state.warning(gpu).map(|t| t.since), Some(at(1)));
    }

    #[test]
    fn readings_count_when_they_change_and_end_when_they_say_otherwise() {
        let gpu = &simulate::gpus(1, &[])[0];
        let mut state = FaultState::default();
        let reading = |ecc, throttled: &[Throttle], error: Option<&str>| Reading {
            id: "SIM-0".into(),
            ecc_uncorrected: Some(ecc),
            throttled: throttled.to_vec(),
            error: error.map(str::to_owned),
            ..Reading::default()
        };
        assert_eq!(state.reading(&reading(3, &[], None), at(1)), None, "from before labd looked");
        assert_eq!(state.reading(&reading(3, &[Throttle::PowerCap], None), at(2)), None, "ordinary under load");
        assert!(state.reading(&reading(3, &[Throttle::Thermal], None), at(3)).is_some());
        assert_eq!(state.reading(&reading(3, &[Throttle::Thermal], None), at(4)), None, "said");
        assert_eq!(state.warning(gpu).map(|t| t.since), Some(at(3)));
        assert_eq!(state.reading(&reading(3, &[], None), at(5)), None);
        assert_eq!(state.warning(gpu), None);
        assert!(state.reading(&reading(4, &[], None), at(6)).is_some_and(|f| f.signs.contains(&Sign::EccUncorrected)));
        let lost = state.reading(&reading(4, &[], Some("NVML_ERROR_GPU_IS_LOST")), at(7));
        assert!(lost.is_some_and(|f| f.action == Action::Quarantine));
    }
}
