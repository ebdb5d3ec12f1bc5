//! The fault table: a sign, what it means, what labd does about it, and what is left to a person. The one place where that
//! is decided. Pure.
//!
//! What NVIDIA's numbers mean and ask for is from its Xid catalog (`Xid-Catalog.xlsx` of 2025-10, and
//! docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, read on 2026-11-29), numbers that are newer from `nverror.h`
//! of its open kernel modules 595.45.04 (2026-03-05), memory errors from its guide to GPU memory error management. What the
//! kernel says of AMD's GPUs is from the texts of the amdgpu driver, from the list of errors that AMD's own node-scraper looks
//! for (`dmesg_analyzer.py`, 2026-08), and from lines in public issues (`tests/data/kernel` and the tests of [`super::kmsg`]
//! name them).
//! Three rules make rows of them:
//!
//! * What a program did wrong does nothing to its GPU: the job fails by itself, and the ledger judges it.
//! * What the driver healed costs the processes on the GPU their contexts: the worker is restarted.
//! * What needs a reset, a reboot or a hand takes the GPU out of service. labd never resets a GPU: a reset can take others
//!   on the same links along, and what is on them.
//!
//! [`lines`]: what must be read of a line beyond a pattern. [`repeats`]: faults that mean more when they come again.

pub(super) mod amd;
mod common;
mod lines;
pub(super) mod nvidia;
pub mod repeats;

use std::fmt;

use labd_gpu::Throttle;
pub(super) use lines::{ALL_ONES, is_needed_firmware};
use repeats::Counted;

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
    /// Whose the address is that a line of it names.
    pub scope: Scope,
    /// Time for which it is told where nothing says that it is over.
    pub lasts: Lasts,
    /// Sign that it is instead where a file of the GPU's firmware is missing: the card is not broken then.
    pub without_firmware: Option<Sign<'static>>,
    /// Way in which it is counted, where it means more when it comes again.
    pub counted: Option<Counted>,
}

/// What most rows have in common.
const ROW: Fault = Fault {
    code: "",
    signs: &[],
    meaning: "",
    action: Action::Nothing,
    remedy: "",
    scope: Scope::Gpu,
    lasts: Lasts::Unknown,
    without_firmware: None,
    counted: None,
};

/// Thing that a fault is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// GPU.
    Gpu,
    /// Switch between GPUs, with an address of its own.
    Switch,
    /// Any device on the PCI bus: a GPU, the port that GPUs are behind, or one that has nothing to do with GPUs.
    PciDevice,
}

/// How long a fault lasts by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Nothing is left of it a moment later: a program failed, or how it goes on is told as another fault.
    Moment,
    /// Until the GPU answers: it kept the driver from starting the GPU.
    UntilStart,
    /// Nobody knows.
    Unknown,
}

impl Fault {
    /// Remedy for this very GPU. What is not known of it is left out: then nothing can be released either.
    pub fn remedy_for(&self, pci: Option<&str>, id: Option<&str>) -> String {
        let text = match id {
            Some(id) => self.remedy.replace("<id>", id),
            None => RELEASES.iter().fold(self.remedy.to_owned(), |text, release| text.replace(release, "")),
        };
        match pci {
            Some(pci) => text.replace("<pci>", pci),
            None => text.replace(" at <pci>", "").replace("<pci>", "ADDRESS"),
        }
    }

    /// Whether a GPU that answers cannot have it any more: it kept the driver from starting the GPU.
    pub fn keeps_from_starting(&self) -> bool {
        self.lasts == Lasts::UntilStart
    }

    /// Whether nothing is left of it a moment later.
    pub fn passes(&self) -> bool {
        self.lasts == Lasts::Moment
    }

    /// Whether any device of the machine can have it, not a GPU alone.
    pub fn is_of_any_device(&self) -> bool {
        self.scope == Scope::PciDevice
    }
}

/// Sign of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign<'a> {
    /// Line of the kernel. In a row: what must be in it, `*` standing for anything in between.
    Kernel(&'a str),
    /// Xid, a number of NVIDIA's driver, out of a kernel's line or an event of its library.
    Xid(u32),
    /// Xid with what its line says besides, where that decides.
    XidWith(u32, Detail),
    /// AMD's GPU that does not start for want of a file of its firmware.
    NoFirmware,
    /// Recovery action that NVIDIA's driver changed to (Xid 154), by its number in `NV2080_CTRL_GPU_RECOVERY_ACTION`: that of
    /// NVML's `nvmlDeviceGpuRecoveryAction_t`.
    Recovery(u32),
    /// Errors that amdgpu counted in a part of the GPU.
    Ras(Detail),
    /// Coming again of a fault, in the words of [`repeats`].
    Repeated(&'static str),
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

/// Detail of a line that decides what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Error that the vendor says to ignore.
    Ignored,
    /// Error that follows from another one, which is told by itself.
    Secondary,
    /// Error that means the hardware only when it comes again.
    Passing,
    /// Error that the hardware handled.
    Handled,
    /// Error after which the GPU must be reset.
    NeedsReset,
    /// Errors of the GPU's memory that could not be corrected.
    Memory,
    /// Errors of another block of the GPU that could not be corrected.
    Block,
    /// Errors that could not be corrected, in data that nothing has used yet.
    Deferred,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignored => "to be ignored",
            Self::Secondary => "after another error",
            Self::Passing => "once on a link",
            Self::Handled => "not fatal",
            Self::NeedsReset => "with a reset",
            Self::Memory => "uncorrectable errors in its memory",
            Self::Block => "uncorrectable errors in another block",
            Self::Deferred => "deferred errors",
        })
    }
}

impl fmt::Display for Sign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(line) => write!(f, "`{line}`"),
            Self::Xid(number) => write!(f, "Xid {number}"),
            Self::XidWith(number, detail) => write!(f, "Xid {number} ({detail})"),
            Self::NoFirmware => f.write_str("its firmware is missing and it does not start"),
            Self::Recovery(action) => write!(f, "Xid 154 to 0x{action:x}"),
            Self::Ras(detail) => write!(f, "{detail}"),
            Self::Repeated(words) => f.write_str(words),
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

use Sign::{Kernel, Xid, XidWith};

const AWAIT: &str = "Nothing yet: the driver tries to heal it, and how that ends is told as a fault of its own.";
const JOB: &str = "Nothing for the GPU: the job's own log (`ray job logs`) says where the program went wrong.";
const REBOOT: &str = "Reboot the machine (`labd down && reboot`), then `labd gpu release <id>`.";
const PULL: &str = "Switch the machine off and on again, then `labd gpu release <id>`; if it happens again, pull the GPU at <pci> and \
                    check its seat and its power cables.";
/// Ways in which a remedy says how a quarantine ends.
const RELEASES: [&str; 4] = [
    ", then `labd gpu release <id>`",
    "; then `labd gpu release <id>`",
    "; `labd gpu release <id>` if the GPU is in quarantine",
    "; `labd gpu release <id>` if it passes",
];

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
            match lines::read(line) {
                lines::Read::Sign(sign) => return look_up(sign),
                lines::Read::NoFault => return None,
                lines::Read::Other => {}
            }
            let fits = |s: &Sign<'_>| matches!(s, Kernel(pattern) if is_in(pattern, line));
            all().find(|f| f.signs.iter().any(fits))
        }
        XidWith(number, _) => row(sign).or_else(|| look_up(Xid(number))),
        Sign::Recovery(_) => row(sign).or_else(|| look_up(Xid(154))),
        Xid(_) => row(sign).or_else(|| all().find(|f| f.code == OTHER_XID)),
        other => row(other),
    }
}

fn row(sign: Sign<'_>) -> Option<&'static Fault> {
    all().find(|f| f.signs.contains(&sign))
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
    fn what_is_written_of_the_table_counts_its_rows() {
        let count = format!("{} faults", all().count());
        let changelog = include_str!("../../../CHANGELOG.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(changelog.contains(&format!("; {count}, quarantine")), "CHANGELOG.md: {count}");
        assert!(include_str!("../../../docs/gpus.md").contains(&format!("# {count}:")), "docs/gpus.md: {count}");
    }

    #[test]
    fn how_long_a_fault_is_told_and_whose_it_is_fits_the_rest_of_its_row() {
        for fault in all() {
            let code = fault.code;
            let awaited = fault.action == Nothing && [JOB, AWAIT].contains(&fault.remedy);
            assert!(!awaited || fault.passes(), "{code}: nothing is left of it, and it is told for a day");
            assert!(!fault.passes() || fault.action == Nothing, "{code}: labd acts on what passes");
            assert!(fault.scope != Scope::Switch || !fault.remedy.contains('<'), "{code}: a switch has no GPU's id");
            assert!(fault.without_firmware.is_none_or(|sign| look_up(sign).is_some()), "{code}");
            assert_eq!(fault.is_of_any_device(), code.starts_with("pcie-"), "{code}");
        }
        for (line, keeps) in [
            ("NVRM: GPU 0000:0a:00.0: RmInitAdapter failed! (0x24:0x72:1568)", true),
            ("amdgpu 0000:03:00.0: amdgpu: Fatal error during GPU init", true),
            ("kfd kfd: amdgpu: skipped device 1002:7300, PCI rejects atomics 730<0", true),
            // The driver does without most files; where it does not, the failed start is a fault of its own.
            ("amdgpu 0000:c5:00.0: Direct firmware load for amdgpu/isp_4_1_0.bin failed with error -2", false),
        ] {
            let fault = look_up(Kernel(line)).expect("a row");
            assert_eq!((fault.keeps_from_starting(), fault.passes()), (keeps, !keeps), "{line}");
        }
    }

    #[test]
    fn the_table_can_be_shown() {
        let rows = rows();
        let row = rows.iter().find(|row| row[0] == "xid-79").expect("a row");
        assert_eq!((row[1].as_str(), row[3].as_str()), ("Xid 79, `NVRM:*fallen off the bus`", "quarantine"));
        let row = rows.iter().find(|row| row[0] == "nvlink-ignored").expect("a row");
        assert_eq!(row[1], "Xid 74 (to be ignored), Xid 149 (to be ignored)");
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

    #[test]
    fn a_remedy_without_a_gpu_releases_none_and_is_a_sentence_all_the_same() {
        for fault in all() {
            let text = fault.remedy_for(None, None);
            assert!(!text.contains('<') && !text.contains("labd gpu release"), "{}: {text}", fault.code);
            assert!(
                !text.contains("  ") && !text.contains(" .") && text.ends_with(['.', '/']),
                "{}: {text}",
                fault.code
            );
        }
        let fault = look_up(Kernel("NVRM: RmInitAdapter failed! (0x26:0xffff:1375)")).expect("a row");
        let text = fault.remedy_for(None, None);
        assert_eq!(
            text,
            "Switch the machine off and on again; if it happens again, pull the GPU and check its seat and its power cables."
        );
    }

    /// Xids of which the catalog says something else than labd does, each with the reason.
    const OTHERWISE: [(u32, &str); 7] = [
        (45, "follows from another one; where not, it is NVIDIA's fabric manager that is to be restarted"),
        (78, "virtual GPUs are not labd's"),
        (94, "a worker's processes on the GPU lost their contexts"),
        (151, "labd cannot tell the host of a virtual machine"),
        (159, "CUDA always uses unified memory, so it needs a reset"),
        (13, "counted"),
        (31, "counted"),
    ];

    #[test]
    fn the_table_follows_nvidias_catalog() {
        let catalog = include_str!("../../../tests/data/xid-catalog.tsv");
        let mut rows = 0;
        for line in catalog.lines().filter(|l| !l.starts_with('#')) {
            let cells: Vec<&str> = line.split('\t').collect();
            let [number, name, immediate] = cells[..] else { panic!("{line}") };
            let number: u32 = number.parse().expect("a number");
            let fault = look_up(Xid(number)).expect("a row");
            rows += 1;
            if OTHERWISE.iter().any(|(other, _)| *other == number) {
                continue;
            }
            let want: &[Action] = match immediate {
                "RESET_GPU" | "RESTART_BM" | "CHECK_MECHANICALS" => &[Quarantine],
                // What a program does costs it its job; what the catalog has nothing for is for a person.
                "IGNORE" | "RESTART_APP" | "CONTACT_SUPPORT" => &[Nothing],
                // By more than the number, or without a word in the catalog.
                _ => &[Nothing, Quarantine],
            };
            // What this catalog has as unused and a driver of 2026 writes.
            let newer = number == 1;
            assert!(want.contains(&fault.action) || newer, "Xid {number} ({name}): {immediate}, {:?}", fault.action);
            let unused = immediate == "CONTACT_SUPPORT" && ![1, 61, 142].contains(&number);
            assert_eq!(fault.code == OTHER_XID, unused, "Xid {number} ({name}): {immediate}, {}", fault.code);
        }
        assert_eq!(rows, 172);
    }

    #[test]
    fn numbers_that_are_newer_than_the_catalog_have_rows() {
        for (number, code, action) in [
            (173, "xid-167", Quarantine),
            (174, "xid-45", Nothing),
            (175, "xid-175", Quarantine),
            (176, "xid-141", Nothing),
            (177, "xid-63", Nothing),
        ] {
            assert_eq!(look_up(Xid(number)).map(|f| (f.code, f.action)), Some((code, action)), "{number}");
        }
    }
}
