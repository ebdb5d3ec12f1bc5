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

use std::fmt;

use labd_gpu::Throttle;

/// What labd does about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Tells it, and goes on.
    Nothing,
    /// Recreates the GPU's worker.
    Restart,
    /// Drains the GPU's worker and holds it until `labd gpu release`.
    Quarantine,
}

impl Action {
    /// The word on the screen.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Restart => "restart",
            Self::Quarantine => "quarantine",
        }
    }
}

impl Action {
    /// What labd does, as part of a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "labd goes on",
            Self::Restart => "labd starts its worker anew",
            Self::Quarantine => "labd keeps it from work",
        }
    }
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name, such as `xid-79`, in the journal and on the page.
    pub code: &'static str,
    /// How it shows itself.
    pub signs: &'static [Sign<'static>],
    /// What it means, in one line.
    pub meaning: &'static str,
    /// What labd does.
    pub action: Action,
    /// What a person must do, in one sentence with the exact command or deed. `<pci>` and `<id>` stand for the GPU's:
    /// [`Fault::remedy_for`] puts them in.
    pub remedy: &'static str,
}

impl Fault {
    /// What a person must do about this very GPU.
    pub fn remedy_for(&self, pci: Option<&str>, id: Option<&str>) -> String {
        self.remedy.replace("<pci>", pci.unwrap_or("its PCI address")).replace("<id>", id.unwrap_or("<id>"))
    }
}

/// How a fault shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign<'a> {
    /// A line of the kernel. In a row: what must be in it, `*` standing for anything in between.
    Kernel(&'a str),
    /// A number of NVIDIA's driver, out of a kernel's line or an event of its library.
    Xid(u32),
    /// What a probe was answered in place of readings or of an inventory: the library's own symbol, or a probe's code.
    Answer(&'a str),
    /// The exit code of a worker's container or of a process in it.
    Exit(i64),
    /// It runs slower than it could.
    Throttled(Throttle),
    /// More memory errors that were not corrected than before.
    EccUncorrected,
    /// Rows of memory wait for the next reset to be replaced.
    RemapPending,
    /// No spare rows of memory are left.
    RemapFailed,
    /// It was there and is not any more.
    Missing,
    /// The source of its readings does not answer at all: a call into the driver does not return.
    Hang,
    /// It is there on the host, and its worker's container cannot use it.
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
            Self::LostInContainer => f.write_str("lost in its container"),
        }
    }
}

use Action::{Nothing, Quarantine, Restart};
use Sign::{
    Answer, EccUncorrected, Exit, Hang, Kernel, LostInContainer, Missing, RemapFailed, RemapPending, Throttled, Xid,
};

const JOB: &str = "Nothing for the GPU: the job's own log (`ray job logs`) says where the program went wrong.";
const RESET: &str = "Reset it with `systemctl stop labd; nvidia-smi --gpu-reset -i <pci>; systemctl start labd` while nothing runs on it, \
                     or reboot the machine if that fails; then `labd gpu release <id>`.";
const REBOOT: &str = "Reboot the machine (`labd down && reboot`), then `labd gpu release <id>`.";
const PULL: &str = "Switch the machine off and on again, then `labd gpu release <id>`; if it happens again, pull the GPU at <pci> and \
                    check its seat and its power cables.";
const REPLACE: &str = "Have the GPU at <pci> replaced by its vendor; `nvidia-smi -q -i <pci>` and `nvidia-bug-report.sh` give what it asks for.";
const REPLACE_AMD: &str =
    "Have the GPU at <pci> replaced by its vendor; `dmesg` and `amd-smi bad-pages` give what it asks for.";
const AWAIT: &str = "Nothing yet: the driver tries to heal it, and how that ends is told as a fault of its own.";

/// Number of rows.
const ROWS: usize = 67;

/// Every row. The first one that fits a line of the kernel is the answer, so what is special comes before what is general.
pub const TABLE: [Fault; ROWS] = [
    // NVIDIA: lines of the kernel that say more than their number, or have none.
    Fault {
        code: "xid-154-none",
        signs: &[Kernel("NVRM: Xid (*): 154, *to 0x0 (None)")],
        meaning: "the driver needs no recovery of the GPU any more",
        action: Nothing,
        remedy: "Nothing; `labd gpu release <id>` if the GPU is in quarantine.",
    },
    Fault {
        code: "xid-154-reboot",
        signs: &[Kernel("NVRM: Xid (*): 154, *to 0x2 (Node Reboot Required)")],
        meaning: "the driver says that only a reboot recovers the GPU",
        action: Quarantine,
        remedy: REBOOT,
    },
    Fault {
        code: "xid-154-drain",
        signs: &[Kernel("NVRM: Xid (*): 154, *to 0x3 (Drain P2P)")],
        meaning: "the driver wants traffic between GPUs to end before it recovers",
        action: Restart,
        remedy: "Nothing, unless it comes again: then reboot the machine.",
    },
    Fault {
        code: "nvlink-nonfatal",
        signs: &[
            Kernel("NVRM: Xid (*): 144, * Nonfatal "),
            Kernel("NVRM: Xid (*): 145, * Nonfatal "),
            Kernel("NVRM: Xid (*): 146, * Nonfatal "),
            Kernel("NVRM: Xid (*): 147, * Nonfatal "),
            Kernel("NVRM: Xid (*): 148, * Nonfatal "),
            Kernel("NVRM: Xid (*): 149, * Nonfatal "),
            Kernel("NVRM: Xid (*): 150, * Nonfatal "),
        ],
        meaning: "an error on an NVLink that the hardware handled",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then check the links with `nvidia-smi nvlink -e`.",
    },
    Fault {
        code: "xid-79",
        signs: &[Xid(79), Kernel("NVRM:*fallen off the bus")],
        meaning: "the GPU has fallen off the PCI bus: it does not answer any more",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "nvidia-init-failed",
        signs: &[Kernel("NVRM:*RmInitAdapter failed"), Kernel("NVRM:*rm_init_adapter failed")],
        meaning: "the driver cannot start the GPU",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "nvidia-unsupported",
        signs: &[
            Kernel("NVRM:*installed in this system*not supported"),
            Kernel("NVRM:*requires use of the NVIDIA open kernel modules"),
        ],
        meaning: "the installed driver does not support the GPU",
        action: Nothing,
        remedy: "Install the driver that the lines before it in `dmesg` ask for, then reboot.",
    },
    Fault {
        code: "nvidia-probe-failed",
        signs: &[Kernel("NVRM:*probe routine failed")],
        meaning: "the driver was loaded and left out a GPU; the lines before say which and why",
        action: Nothing,
        remedy: "Read `dmesg | grep NVRM`.",
    },
    Fault {
        code: "nvidia-mismatch",
        signs: &[Kernel("NVRM: API mismatch"), Answer("NVML_ERROR_LIB_RM_VERSION_MISMATCH")],
        meaning: "the driver's libraries were upgraded while the old kernel module runs: what starts now gets no GPU",
        action: Nothing,
        remedy: "Reboot the machine (`labd down && reboot`).",
    },
    Fault {
        code: "nvidia-reset",
        signs: &[Kernel("NVRM:*GPU has been reset")],
        meaning: "somebody reset the GPU: what was on it is gone",
        action: Restart,
        remedy: "Nothing.",
    },
    Fault {
        code: "nvswitch-fatal",
        signs: &[Kernel("SXid (*Fatal")],
        meaning: "a switch between GPUs failed: jobs that use its links hang or fail",
        action: Nothing,
        remedy: "Stop the jobs, then `systemctl restart nvidia-fabricmanager`; reboot the machine if that fails.",
    },
    // NVIDIA: what programs do.
    Fault {
        code: "xid-13",
        signs: &[Xid(13)],
        meaning: "a program's kernel broke a rule, such as an access out of bounds",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-31",
        signs: &[Xid(31)],
        meaning: "a program read or wrote memory that is not its own (page fault)",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-32",
        signs: &[Xid(11), Xid(25), Xid(32), Xid(80)],
        meaning: "a program sent the GPU a broken stream of commands",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-43",
        signs: &[Xid(8), Xid(43)],
        meaning: "a program's work was stopped after its own error; the GPU is well",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-44",
        signs: &[Xid(37), Xid(38), Xid(44), Xid(66), Xid(67)],
        meaning: "the driver's firmware complained of an access, and went on",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then install a newer driver.",
    },
    Fault {
        code: "xid-45",
        signs: &[Xid(45)],
        meaning: "a program's work was removed, because it ended or after the error before this one",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-69",
        signs: &[Xid(69)],
        meaning: "a program used a command that the GPU does not have",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-68",
        signs: &[
            Xid(60),
            Xid(68),
            Xid(82),
            Xid(83),
            Xid(84),
            Xid(86),
            Xid(88),
            Xid(89),
            Xid(96),
            Xid(97),
            Xid(98),
            Xid(99),
            Xid(100),
            Xid(101),
            Xid(102),
            Xid(103),
            Xid(104),
            Xid(105),
            Xid(139),
            Xid(142),
        ],
        meaning: "a program's video or picture could not be decoded",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-39",
        signs: &[
            Xid(39),
            Xid(40),
            Xid(41),
            Xid(70),
            Xid(71),
            Xid(72),
            Xid(75),
            Xid(76),
            Xid(77),
            Xid(85),
            Xid(126),
            Xid(127),
            Xid(128),
            Xid(129),
            Xid(130),
            Xid(131),
            Xid(132),
            Xid(133),
            Xid(134),
            Xid(135),
        ],
        meaning: "a copy to or from the GPU failed: the program that asked for it was stopped",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-137",
        signs: &[Xid(108), Xid(137)],
        meaning: "a program used memory of another GPU that it may not use, over NVLink",
        action: Nothing,
        remedy: JOB,
    },
    Fault {
        code: "xid-141",
        signs: &[Xid(121), Xid(141)],
        meaning: "an error that the hardware handled",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then ask the vendor.",
    },
    // NVIDIA: memory.
    Fault {
        code: "xid-48",
        signs: &[Xid(48), Xid(171), Xid(172)],
        meaning: "memory of the GPU had an error that could not be corrected: results may be wrong",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-63",
        signs: &[Xid(63), Xid(160)],
        meaning: "a bad row or page of memory was found and will be replaced by a spare one at the next reset",
        action: Nothing,
        remedy: "Reboot the machine when the lab is quiet: until then the bad memory is only avoided.",
    },
    Fault {
        code: "xid-64",
        signs: &[Xid(64), Xid(157), Xid(161), RemapFailed],
        meaning: "bad memory could not be replaced: the spare rows are used up",
        action: Quarantine,
        remedy: REPLACE,
    },
    Fault {
        code: "xid-92",
        signs: &[Xid(92)],
        meaning: "many memory errors that were corrected: the memory wears out",
        action: Nothing,
        remedy: "Watch `nvidia-smi -q -d ECC -i <pci>`; have the GPU replaced if errors follow that cannot be corrected.",
    },
    Fault {
        code: "xid-93",
        signs: &[Xid(93), Answer("NVML_ERROR_CORRUPTED_INFOROM")],
        meaning: "the GPU's own record of its errors is worn out or damaged",
        action: Nothing,
        remedy: "Ask the vendor; the GPU works on.",
    },
    Fault {
        code: "xid-94",
        signs: &[Xid(94)],
        meaning: "a memory error hit one program, which was stopped; the GPU is well",
        action: Restart,
        remedy: "Nothing now; reboot the machine when the lab is quiet, so that the bad memory is replaced.",
    },
    Fault {
        code: "xid-95",
        signs: &[Xid(95)],
        meaning: "a memory error could not be kept to one program: nothing on the GPU can be trusted",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-140",
        signs: &[Xid(140)],
        meaning: "a memory error was not caught in time: results may be wrong",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-156",
        signs: &[Xid(156), Xid(168)],
        meaning: "bad memory will be taken out of use at the next reset",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "ecc-uncorrected",
        signs: &[EccUncorrected],
        meaning: "memory of the GPU had an error that could not be corrected",
        action: Restart,
        remedy: "Nothing now; have the GPU at <pci> replaced if the count goes on growing.",
    },
    Fault {
        code: "remap-pending",
        signs: &[RemapPending],
        meaning: "bad memory waits to be replaced by a spare row at the next reset",
        action: Nothing,
        remedy: "Reboot the machine when the lab is quiet.",
    },
    // NVIDIA: the GPU itself, its links, its firmware.
    Fault {
        code: "xid-46",
        signs: &[Xid(46), Xid(158)],
        meaning: "the GPU stopped working",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-54",
        signs: &[Xid(54), Answer("NVML_ERROR_INSUFFICIENT_POWER")],
        meaning: "the GPU's power cables are not connected",
        action: Quarantine,
        remedy: "Switch the machine off, connect the power cables of the GPU at <pci>, then `labd gpu release <id>`.",
    },
    Fault {
        code: "xid-62",
        signs: &[Xid(61), Xid(62), Xid(169)],
        meaning: "a controller inside the GPU halted",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-74",
        signs: &[Xid(74)],
        meaning: "an NVLink failed",
        action: Quarantine,
        remedy: "Reboot the machine, then `labd gpu release <id>`; if it happens again, check the bridge or the seat of the GPU at <pci>.",
    },
    Fault {
        code: "xid-109",
        signs: &[Xid(109)],
        meaning: "the GPU could not switch between programs in time",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-110",
        signs: &[Xid(110)],
        meaning: "a security check inside the GPU failed",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-119",
        signs: &[Xid(119), Xid(120)],
        meaning: "the GPU's own processor (GSP) does not answer",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-136",
        signs: &[Xid(136)],
        meaning: "an NVLink could not be trained",
        action: Quarantine,
        remedy: RESET,
    },
    Fault { code: "xid-143", signs: &[Xid(143)], meaning: "the GPU did not start", action: Quarantine, remedy: PULL },
    Fault {
        code: "nvlink-fatal",
        signs: &[Xid(144), Xid(145), Xid(146), Xid(147), Xid(148), Xid(149), Xid(150), Xid(155)],
        meaning: "an NVLink of the GPU failed",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "xid-151",
        signs: &[Xid(151), Xid(167)],
        meaning: "the GPU's connection to the machine broke down",
        action: Quarantine,
        remedy: REBOOT,
    },
    Fault {
        code: "xid-154",
        signs: &[Xid(154)],
        meaning: "the driver says that the GPU needs a reset",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: OTHER_XID,
        signs: &[],
        meaning: "the driver reported something that is not in this table",
        action: Nothing,
        remedy: "Look the number up in NVIDIA's Xid catalog, https://docs.nvidia.com/deploy/xid-errors/.",
    },
    // NVIDIA: what its library answers. A GPU's own answer first.
    Fault {
        code: "nvml-gpu-lost",
        signs: &[Answer("NVML_ERROR_GPU_IS_LOST")],
        meaning: "the GPU has fallen off the PCI bus or cannot be reached",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "nvml-reset-required",
        signs: &[
            Answer("NVML_ERROR_RESET_REQUIRED"),
            Answer("NVML_ERROR_GPU_NOT_FOUND"),
            Answer("NVML_ERROR_IRQ_ISSUE"),
        ],
        meaning: "the GPU cannot be used before it is reset",
        action: Quarantine,
        remedy: RESET,
    },
    Fault {
        code: "nvml-unknown",
        signs: &[Answer("NVML_ERROR_UNKNOWN"), Answer("NVML_ERROR_TIMEOUT")],
        meaning: "the driver does not say what is wrong",
        action: Nothing,
        remedy: "Run `nvidia-smi -i <pci>` and `dmesg | grep NVRM`; reboot the machine if it stays so.",
    },
    Fault {
        code: "nvml-permission",
        signs: &[Answer("NVML_ERROR_NO_PERMISSION"), Answer("NVML_ERROR_OPERATING_SYSTEM")],
        meaning: "labd may not ask the driver",
        action: Nothing,
        remedy: "Run labd as root, as its unit does (`systemctl cat labd`).",
    },
    Fault {
        code: "nvml-driver-not-loaded",
        signs: &[Answer("NVML_ERROR_DRIVER_NOT_LOADED")],
        meaning: "NVIDIA's driver is not loaded",
        action: Nothing,
        remedy: "Load it with `modprobe nvidia`; if that fails, install the driver for the running kernel.",
    },
    Fault {
        code: "library-missing",
        signs: &[Answer(labd_gpu::line::LIBRARY_MISSING), Answer("NVML_ERROR_LIBRARY_NOT_FOUND")],
        meaning: "the vendor's library is not installed: something else is asked in its place",
        action: Nothing,
        remedy: "Install the driver's library (`libnvidia-ml1` or `rocm-smi-lib`) if the GPU shows no readings.",
    },
    // AMD.
    Fault {
        code: "amdgpu-not-loaded",
        signs: &[Answer(labd_gpu::kernel::NO_DRIVER)],
        meaning: "AMD's driver is not loaded, or did not start any GPU",
        action: Nothing,
        remedy: "Load it with `modprobe amdgpu`; if there is still no GPU, read `dmesg | grep amdgpu`.",
    },
    Fault {
        code: "amdgpu-lost",
        signs: &[Kernel("amdgpu*device lost from bus"), Answer(labd_gpu::kernel::GONE)],
        meaning: "the GPU has fallen off the PCI bus: it does not answer any more",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "amdgpu-athub",
        signs: &[
            Kernel("amdgpu*ncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT)"),
            Kernel("amdgpu*ERREVENT_ATHUB_INTERRUPT"),
        ],
        meaning: "the GPU had an error that could not be corrected, and stopped",
        action: Quarantine,
        remedy: REBOOT,
    },
    Fault {
        code: "amdgpu-bad-pages",
        signs: &[
            Kernel("amdgpu*bad page*reach*threshold"),
            Kernel("amdgpu*exceed*bad page*threshold"),
            Kernel("amdgpu*GPU will not be initialized"),
        ],
        meaning: "too much of the GPU's memory is bad",
        action: Quarantine,
        remedy: REPLACE_AMD,
    },
    Fault {
        code: "amdgpu-ras",
        signs: &[Kernel("amdgpu*ncorrectable hardware error"), Kernel("amdgpu*poison consumption")],
        meaning: "memory of the GPU had an error that could not be corrected: what used it was stopped",
        action: Restart,
        remedy: "Nothing now; have the GPU at <pci> replaced if it comes again.",
    },
    Fault {
        code: "amdgpu-init-failed",
        signs: &[
            Kernel("amdgpu*Fatal error during GPU init"),
            Kernel("amdgpu*GPU init failed"),
            Kernel("amdgpu*PSP load * failed"),
            Kernel("amdgpu*PSP create ring failed"),
            Kernel("amdgpu*PSP firmware loading failed"),
        ],
        meaning: "the driver cannot start the GPU",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "amdgpu-reset-failed",
        signs: &[
            Kernel("amdgpu*GPU reset(*) failed"),
            Kernel("amdgpu*GPU reset end with ret = -"),
            Kernel("amdgpu*ASIC reset failed"),
            Kernel("amdgpu*GPU Recovery Failed"),
        ],
        meaning: "the GPU hung and the driver could not reset it",
        action: Quarantine,
        remedy: REBOOT,
    },
    Fault {
        code: "amdgpu-reset",
        signs: &[Kernel("amdgpu*GPU reset(*) succeeded"), Kernel("amdgpu*Failed to initialize parser -125")],
        meaning: "the GPU hung and the driver reset it: what was on it is gone",
        action: Restart,
        remedy: "Nothing, unless it comes again: then reboot the machine, and look for newer firmware.",
    },
    Fault {
        code: "amdgpu-hang",
        signs: &[
            Kernel("amdgpu*GPU reset begin"),
            Kernel("amdgpu*ring * timeout"),
            Kernel("amdgpu*MES failed to respond"),
            Kernel("amdgpu*qcm fence wait loop timeout"),
            Kernel("amdgpu*Failed to evict"),
        ],
        meaning: "a program's work hangs on the GPU",
        action: Nothing,
        remedy: AWAIT,
    },
    Fault {
        code: "amdgpu-page-fault",
        signs: &[Kernel("amdgpu*hub*page fault")],
        meaning: "a program read or wrote memory that is not its own (page fault)",
        action: Nothing,
        remedy: JOB,
    },
    // Any vendor: what labd sees by itself.
    Fault {
        code: "exit-134",
        // The runtime prints it on the process's standard error; it is no line of the kernel.
        signs: &[Exit(134), Kernel("HW Exception by GPU node")],
        meaning: "a process of the worker aborted: AMD's runtime does that after a GPU hang (`HW Exception by GPU node`)",
        action: Restart,
        remedy: "Read the worker's log (`labd logs`) and `dmesg`; reboot the machine if it comes again on the same GPU.",
    },
    Fault {
        code: "lost-in-container",
        signs: &[LostInContainer],
        meaning: "the GPU was taken away from its worker's container, as `systemctl daemon-reload` does to those started the old way",
        action: Restart,
        remedy: "Nothing; with CDI (`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`) it does not happen.",
    },
    Fault {
        code: "missing",
        signs: &[Missing],
        meaning: "the GPU was there and is not any more",
        action: Quarantine,
        remedy: PULL,
    },
    Fault {
        code: "throttled",
        signs: &[Throttled(Throttle::Thermal), Throttled(Throttle::PowerBrake), Throttled(Throttle::Hardware)],
        meaning: "the GPU is too hot or gets too little power: it runs slower than it could",
        action: Nothing,
        remedy: "Check fans, air flow and the machine's power supplies (`ipmitool sensor`).",
    },
    Fault {
        code: "hang",
        signs: &[Hang],
        meaning: "a call into the GPU's driver does not return: readings are stale, workers go on",
        action: Nothing,
        remedy: "Look for processes in state D (`ps -eo pid,stat,comm | grep ' D'`); reboot the machine if it stays so.",
    },
];

/// The table as text, for people: code, signs, meaning, what labd does, what a person must do.
pub fn rows() -> Vec<[String; 5]> {
    TABLE
        .iter()
        .map(|fault| {
            let signs: Vec<String> = fault.signs.iter().map(ToString::to_string).collect();
            let signs = if signs.is_empty() { "any other Xid".to_owned() } else { signs.join(", ") };
            let word = fault.action.word();
            [fault.code.into(), signs, fault.meaning.into(), word.into(), fault.remedy.into()]
        })
        .collect()
}

/// The row for numbers that have none.
const OTHER_XID: &str = "xid-other";

/// The row of a sign. `None` for lines of the kernel that tell of no fault, and for whatever else has no row.
pub fn look_up(sign: Sign<'_>) -> Option<&'static Fault> {
    match sign {
        Kernel(line) => {
            let fits = |s: &Sign<'_>| matches!(s, Kernel(pattern) if is_in(pattern, line));
            TABLE.iter().find(|f| f.signs.iter().any(fits)).or_else(|| look_up(Xid(xid(line)?)))
        }
        other => row(other).or_else(|| matches!(other, Xid(_)).then(|| TABLE.iter().find(|f| f.code == OTHER_XID))?),
    }
}

fn row(sign: Sign<'_>) -> Option<&'static Fault> {
    TABLE.iter().find(|f| f.signs.contains(&sign))
}

/// The number in a line such as `NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.`.
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

    use super::*;

    fn code(sign: Sign<'_>) -> &'static str {
        look_up(sign).map_or("-", |f| f.code)
    }

    #[test]
    fn no_sign_and_no_code_has_two_rows() {
        let mut codes = BTreeSet::new();
        let mut signs = BTreeSet::new();
        for fault in &TABLE {
            assert!(codes.insert(fault.code), "{} twice", fault.code);
            for sign in fault.signs {
                assert!(signs.insert(format!("{sign:?}")), "{sign:?} twice");
            }
        }
    }

    #[test]
    fn rows_are_whole_and_can_be_printed() {
        for fault in &TABLE {
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
