//! The fault table: a sign, what it means, what labd does about it, and what is left to a person. The one place where that
//! is decided. Pure.
//!
//! What NVIDIA's numbers mean and ask for is from its Xid catalog (docs.nvidia.com/deploy/xid-errors, `RESTART_APP`,
//! `RESET_GPU` and so on), memory errors from its guide to GPU memory error management; what the kernel says of AMD's GPUs
//! is from the texts of the amdgpu driver, and from lines in public issues (the tests of [`super::kmsg`] name them).
//! Three rules make rows of them:
//!
//! * What a program did wrong does nothing to its GPU: the job fails by itself, and the ledger judges it.
//! * What the driver healed costs the processes on the GPU their contexts: the worker is restarted.
//! * What needs a reset, a reboot or a hand takes the GPU out of service. labd never resets a GPU: a reset can take others
//!   on the same links along, and what is on them.

pub(super) mod amd;
mod common;
pub(super) mod nvidia;

use std::fmt;

use labd_gpu::Throttle;

use super::vendor;

/// Action that labd takes about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// None beyond reporting the fault.
    Nothing,
    /// Recreates the GPU's worker.
    Restart,
    /// Drains the GPU's worker and holds it until `labd gpu release`.
    Quarantine,
}

impl Action {
    /// Word for the action on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Restart => "restart",
            Self::Quarantine => "quarantine",
        }
    }
}

impl Action {
    /// Action as part of a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "labd continues",
            Self::Restart => "labd restarts its worker",
            Self::Quarantine => "labd keeps it from work",
        }
    }
}

/// Row of the fault table.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the fault, such as `xid-79`, in the journal and on the page.
    pub code: &'static str,
    /// Signs by which the fault shows itself.
    pub signs: &'static [Sign<'static>],
    /// Meaning, in one line.
    pub meaning: &'static str,
    /// Action that labd takes.
    pub action: Action,
    /// Remedy for a person, in one sentence with the exact command or deed. `<pci>` and `<id>` stand for the GPU's:
    /// [`Fault::remedy_for`] puts them in.
    pub remedy: &'static str,
}

impl Fault {
    /// Remedy for this very GPU.
    pub fn remedy_for(&self, pci: Option<&str>, id: Option<&str>) -> String {
        self.remedy.replace("<pci>", pci.unwrap_or("its PCI address")).replace("<id>", id.unwrap_or("<id>"))
    }
}

/// Sign of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign<'a> {
    /// Line of the kernel. In a row: what must be in it, `*` standing for anything in between.
    Kernel(&'a str),
    /// Xid, a number of NVIDIA's driver, out of a kernel's line or an event of its library.
    Xid(u32),
    /// Answer to a probe in place of readings or of an inventory: the library's own symbol, or a probe's code.
    Answer(&'a str),
    /// Exit code of a worker's container or of a process in it.
    Exit(i64),
    /// Clock that is lower than it could be.
    Throttled(Throttle),
    /// Growth of the number of memory errors that were not corrected.
    EccUncorrected,
    /// Rows of memory that wait for the next reset to be replaced.
    RemapPending,
    /// Spare rows of memory that are used up.
    RemapFailed,
    /// Absence of a GPU that was there.
    Missing,
    /// Hang of the source of its readings: a call into the driver does not return.
    Hang,
    /// Answer that says nothing but that the GPU cannot be asked, for so long that nothing passing explains it.
    NoHandle,
    /// GPU that is there on the host, and that its worker's container cannot use.
    LostInContainer,
}

impl fmt::Display for Sign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(line) => write!(f, "`{line}`"),
            Self::Xid(number) => write!(f, "Xid {number}"),
            Self::Answer(symbol) => f.write_str(symbol),
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Throttled(Throttle::Thermal) => f.write_str("too hot"),
            Self::Throttled(Throttle::PowerCap) => f.write_str("at its power limit"),
            Self::Throttled(Throttle::PowerBrake) => f.write_str("power brake"),
            Self::Throttled(Throttle::Hardware) => f.write_str("slowed by hardware"),
            Self::EccUncorrected => f.write_str("uncorrected memory errors grow"),
            Self::RemapPending => f.write_str("row remapping pending"),
            Self::RemapFailed => f.write_str("row remapping failed"),
            Self::Missing => f.write_str("missing"),
            Self::Hang => f.write_str("no answer"),
            Self::NoHandle => f.write_str("no handle for a minute"),
            Self::LostInContainer => f.write_str("lost in its container"),
        }
    }
}

use Sign::{Kernel, Xid};

const JOB: &str = "Nothing for the GPU: the job's own log (`ray job logs`) says where the program went wrong.";
const REBOOT: &str = "Reboot the machine (`labd down && reboot`), then `labd gpu release <id>`.";
const PULL: &str = "Switch the machine off and on again, then `labd gpu release <id>`; if it happens again, pull the GPU at <pci> and \
                    check its seat and its power cables.";

/// All rows. The first one that fits a line of the kernel is the answer.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    vendor::ALL.into_iter().map(|def| def.faults).chain([common::TABLE]).flatten()
}

/// Fault table as text, for people: code, signs, meaning, what labd does, what a person must do.
pub fn rows() -> Vec<[String; 5]> {
    all()
        .map(|fault| {
            let signs: Vec<String> = fault.signs.iter().map(ToString::to_string).collect();
            let signs = if signs.is_empty() { "any other Xid".to_owned() } else { signs.join(", ") };
            let word = fault.action.as_str();
            [fault.code.into(), signs, fault.meaning.into(), word.into(), fault.remedy.into()]
        })
        .collect()
}

/// Code of the row for numbers that have none.
const OTHER_XID: &str = "xid-other";

/// Row of a sign. `None` for lines of the kernel that tell of no fault, and for any other sign without a row.
pub fn look_up(sign: Sign<'_>) -> Option<&'static Fault> {
    match sign {
        Kernel(line) => {
            let fits = |s: &Sign<'_>| matches!(s, Kernel(pattern) if is_in(pattern, line));
            all().find(|f| f.signs.iter().any(fits)).or_else(|| look_up(Xid(xid(line)?)))
        }
        other => row(other).or_else(|| matches!(other, Xid(_)).then(|| all().find(|f| f.code == OTHER_XID))?),
    }
}

fn row(sign: Sign<'_>) -> Option<&'static Fault> {
    all().find(|f| f.signs.contains(&sign))
}

/// Xid in a line such as `NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.`.
fn xid(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("NVRM: Xid (")?;
    let (_, number) = rest.split_once("): ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether the parts of `pattern` between its stars are in `line`, one after the other.
fn is_in(pattern: &str, line: &str) -> bool {
    let mut rest = Some(line);
    for part in pattern.split('*') {
        rest = rest.and_then(|r| r.split_once(part)).map(|(_, after)| after);
    }
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        Action::{Nothing, Quarantine, Restart},
        Sign::{Answer, EccUncorrected, Exit, Hang, LostInContainer, Missing, RemapFailed, RemapPending, Throttled},
        *,
    };

    fn code(sign: Sign<'_>) -> &'static str {
        look_up(sign).map_or("-", |f| f.code)
    }

    #[test]
    fn no_sign_and_no_code_has_two_rows() {
        let mut codes = BTreeSet::new();
        let mut signs = BTreeSet::new();
        for fault in all() {
            assert!(codes.insert(fault.code), "{} twice", fault.code);
            for sign in fault.signs {
                assert!(signs.insert(format!("{sign:?}")), "{sign:?} twice");
            }
        }
    }

    #[test]
    fn rows_are_whole_and_can_be_printed() {
        for fault in all() {
            assert!(!fault.signs.is_empty() || fault.code == OTHER_XID, "{}", fault.code);
            assert!(!fault.meaning.ends_with('.') && fault.remedy.ends_with(['.', '/']), "{}", fault.code);
            assert!(!fault.meaning.contains('\n') && !fault.remedy.contains("  "), "{}", fault.code);
            let lifts = ["labd gpu release", "replaced"].iter().any(|way| fault.remedy.contains(way));
            assert!(fault.action != Quarantine || lifts, "{}: nothing says how a quarantine ends", fault.code);
        }
    }

    #[test]
    fn the_table_can_be_shown() {
        let rows = rows();
        let row = rows.iter().find(|row| row[0] == "xid-79").expect("a row");
        assert_eq!((row[1].as_str(), row[3].as_str()), ("Xid 79, `NVRM:*fallen off the bus`", "quarantine"));
        assert!(rows.iter().flatten().all(|cell| !cell.is_empty()));
    }

    #[test]
    fn a_pattern_means_its_parts_in_order() {
        assert!(is_in("GPU reset(*) failed", "amdgpu: GPU reset(1) failed"));
        assert!(!is_in("GPU reset(*) failed", "amdgpu: failed GPU reset(1)"));
        assert!(is_in("b", "abc") && !is_in("d", "abc") && !is_in("ab*bc", "abc"));
    }

    #[test]
    fn what_a_program_did_does_nothing_to_the_gpu() {
        for number in [13, 31, 43, 45, 69] {
            assert_eq!(look_up(Xid(number)).map(|f| f.action), Some(Nothing), "{number}");
        }
    }

    #[test]
    fn what_needs_a_hand_is_quarantined() {
        for number in [48, 62, 64, 74, 79, 95, 109, 119, 120, 136, 140, 143, 145, 154] {
            assert_eq!(look_up(Xid(number)).map(|f| f.action), Some(Quarantine), "{number}");
        }
        for sign in [Answer("NVML_ERROR_GPU_IS_LOST"), Answer("ENODEV"), RemapFailed, Missing] {
            assert_eq!(look_up(sign).map(|f| f.action), Some(Quarantine), "{sign:?}");
        }
    }

    #[test]
    fn a_gpu_that_goes_on_keeps_its_worker_or_gets_a_new_one() {
        for sign in [Xid(94), EccUncorrected, Exit(134), LostInContainer] {
            assert_eq!(look_up(sign).map(|f| f.action), Some(Restart), "{sign:?}");
        }
        for sign in
            [RemapPending, Hang, Throttled(Throttle::Thermal), Answer("NVML_ERROR_LIB_RM_VERSION_MISMATCH"), Xid(63)]
        {
            assert_eq!(look_up(sign).map(|f| f.action), Some(Nothing), "{sign:?}");
        }
    }

    #[test]
    fn what_is_no_fault_has_no_row_and_an_unknown_number_has_one() {
        assert_eq!(look_up(Throttled(Throttle::PowerCap)), None);
        assert_eq!(look_up(Exit(0)), None);
        assert_eq!(look_up(Exit(137)), None);
        assert_eq!(look_up(Kernel("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64")), None);
        assert_eq!(code(Xid(4711)), "xid-other");
    }

    #[test]
    fn a_remedy_names_the_very_gpu() {
        let fault = look_up(Xid(95)).expect("a row");
        let text = fault.remedy_for(Some("0000:06:00.0"), Some("GPU-1"));
        assert!(
            text.contains("nvidia-smi --gpu-reset -i 0000:06:00.0") && text.contains("labd gpu release GPU-1"),
            "{text}"
        );
        assert!(!text.contains('<'), "{text}");
    }
}
