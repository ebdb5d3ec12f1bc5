//! Faults of NVIDIA's GPUs.

use super::{
    Action::{Nothing, Quarantine, Restart},
    Detail::{Handled, Ignored, NeedsReset, Passing, Secondary},
    Fault, JOB,
    Lasts::{Moment, UntilStart},
    PULL, REBOOT, ROW,
    Scope::Switch,
    Sign::{Answer, EccUncorrected, Kernel, NoHandle, Recovery, RemapFailed, RemapPending, Repeated, Xid, XidWith},
    repeats::{
        APP_ERRORS,
        Counted::{Links, Programs, ProgramsInOnePart},
    },
};

const RESET: &str = "Reset it with `systemctl stop labd; nvidia-smi --gpu-reset -i <pci>; systemctl start labd` while nothing runs on it, \
                     or reboot the machine if that fails; then `labd gpu release <id>`.";
const RESET_FIRST: &str = "Reset it with `systemctl stop labd; nvidia-smi --gpu-reset -i <pci>; systemctl start labd` while nothing \
                           runs on it, \
                           then `labd gpu release <id>`; have the GPU at <pci> replaced by its vendor if it comes again.";
const COLD_RESET: &str = "Switch the machine off, wait a minute and switch it on, then `labd gpu release <id>`: a reset or a \
                          reboot is not enough; ask the vendor if it comes again.";
const REPLACE: &str = "Have the GPU at <pci> replaced by its vendor; `nvidia-smi -q -i <pci>` and `nvidia-bug-report.sh` give what it asks for.";

/// Rows of the table, special ones before general ones.
pub(in crate::gpus) const TABLE: &[Fault] = &[
    // Numbers of which the line says more.
    Fault {
        code: "xid-154-none",
        signs: &[Recovery(0)],
        meaning: "the driver needs no recovery of the GPU any more",
        action: Nothing,
        remedy: "Nothing; `labd gpu release <id>` if the GPU is in quarantine.",
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-154-reboot",
        // 7 is one of the whole system, since NVML 615: driver 610 says `OS Reboot` for 2.
        signs: &[Recovery(2), Recovery(7)],
        meaning: "the driver says that only a reboot recovers the GPU",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "xid-154-drain",
        signs: &[Recovery(3)],
        meaning: "the driver wants traffic between GPUs to end before it recovers",
        action: Restart,
        remedy: "Nothing, unless it comes again: then reboot the machine.",
        ..ROW
    },
    Fault {
        code: "xid-154-imex",
        signs: &[Recovery(5)],
        meaning: "the memory that machines share over NVLink (their IMEX domain) must be recovered; the GPU itself is well",
        action: Nothing,
        remedy: "Restart IMEX on every machine of the domain (`systemctl restart nvidia-imex`).",
        ..ROW
    },
    Fault {
        code: "nvlink-ignored",
        signs: &[XidWith(74, Ignored), XidWith(149, Ignored)],
        meaning: "an error on an NVLink of a kind that NVIDIA says to ignore",
        action: Nothing,
        remedy: "Nothing.",
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "nvlink-secondary",
        signs: &[XidWith(74, Secondary)],
        meaning: "an error on an NVLink that follows from another one, at this GPU or at the link's other end",
        action: Nothing,
        remedy: "Look for the other fault (`labd events`); ask the vendor if there is none.",
        ..ROW
    },
    Fault {
        code: "nvlink-passing",
        signs: &[XidWith(74, Passing)],
        meaning: "an error on an NVLink that passes, unless it comes again on the same link",
        action: Restart,
        remedy: "Nothing now: if it comes again, labd takes the GPU out of service.",
        counted: Some(Links),
        ..ROW
    },
    Fault {
        code: "nvlink-nonfatal",
        signs: &[
            XidWith(144, Handled),
            XidWith(145, Handled),
            XidWith(146, Handled),
            XidWith(147, Handled),
            XidWith(148, Handled),
            XidWith(149, Handled),
            XidWith(150, Handled),
        ],
        meaning: "an error on an NVLink that is not fatal: at most the program that used it failed",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then check the links with `nvidia-smi nvlink -e`.",
        ..ROW
    },
    // Lines of the kernel that have no number, or not always.
    Fault {
        code: "xid-79",
        signs: &[Xid(79), Kernel("NVRM:*fallen off the bus")],
        meaning: "the GPU has fallen off the PCI bus: it does not answer any more",
        action: Quarantine,
        remedy: PULL,
        ..ROW
    },
    Fault {
        code: "nvidia-init-failed",
        // Until driver 304 or so, `rm_init_adapter(0) failed`.
        signs: &[Kernel("NVRM:*RmInitAdapter failed"), Kernel("NVRM:*rm_init_adapter*failed")],
        meaning: "the driver cannot start the GPU",
        action: Quarantine,
        remedy: PULL,
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "nvidia-unsupported",
        signs: &[
            Kernel("NVRM:*installed in this*system*not supported"),
            Kernel("NVRM:*supported through the NVIDIA*egacy driver"),
            Kernel("NVRM:*ignoring the legacy GPU"),
            Kernel("NVRM:*requires use of the NVIDIA open kernel modules"),
        ],
        meaning: "the installed driver does not support the GPU",
        action: Nothing,
        remedy: "Install the driver that the lines before it in `dmesg` ask for, then reboot.",
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "nvidia-other-driver",
        signs: &[Kernel("NVRM: GPU *is already bound to")],
        meaning: "another driver has the GPU, such as `nouveau` or a virtual machine's",
        action: Nothing,
        remedy: "Keep that driver from being loaded (`echo blacklist nouveau >/etc/modprobe.d/nouveau.conf; update-initramfs -u`), \
                 then reboot the machine.",
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "nvidia-no-room",
        // The first line names no GPU, the one after it does.
        signs: &[
            Kernel("NVRM:*PCI I/O region assigned to your NVIDIA device is invalid"),
            Kernel("NVRM: BAR* is *M @ 0x*(PCI:"),
        ],
        meaning: "the machine gave the GPU no room for its memory on the PCI bus (a BAR), so the driver cannot start it",
        action: Nothing,
        remedy: "Switch `Above 4G Decoding` on in the machine's setup (BIOS), or give the virtual machine a larger PCI window; \
                 where that does not help, boot with `pci=realloc`.",
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "nvidia-probe-failed",
        signs: &[
            Kernel("NVRM:*probe routine failed"),
            Kernel("NVRM:*probe routine was not called"),
            Kernel("NVRM: None of the NVIDIA devices were initialized"),
            Kernel("NVRM: No NVIDIA devices probed"),
            Kernel("NVRM: No NVIDIA GPU found"),
            Kernel("NVRM: No NVIDIA graphics adapter found"),
            // Until Linux 6.8, and since then.
            Kernel("nvidia: probe of * failed with error"),
            Kernel("nvidia *: probe with driver nvidia failed with error"),
        ],
        meaning: "the driver was loaded and left out a GPU; the lines before say which and why",
        action: Nothing,
        remedy: "Read `dmesg | grep NVRM`.",
        ..ROW
    },
    Fault {
        code: "nvidia-mismatch",
        signs: &[Kernel("NVRM: API mismatch"), Answer("NVML_ERROR_LIB_RM_VERSION_MISMATCH")],
        meaning: "the driver's libraries were upgraded while the old kernel module runs: what starts now gets no GPU",
        action: Nothing,
        remedy: "Reboot the machine (`labd down && reboot`).",
        ..ROW
    },
    Fault {
        code: "nvidia-reset",
        signs: &[Kernel("NVRM:*GPU has been reset")],
        meaning: "somebody reset the GPU: what was on it is gone",
        action: Restart,
        remedy: "Nothing.",
        ..ROW
    },
    Fault {
        code: "nvidia-uvm-fatal",
        // Of the driver for unified memory, which all GPUs share.
        signs: &[Kernel("NVRM:*uvm encountered global fatal error")],
        meaning: "the memory that CUDA shares between GPUs and processor failed: no program can use any GPU before a reboot",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "nvswitch-fatal",
        signs: &[Kernel("SXid (*): *, Fatal")],
        meaning: "a switch between GPUs failed: jobs that use its links hang or fail",
        action: Nothing,
        remedy: "Stop the jobs, then `systemctl restart nvidia-fabricmanager`; reboot the machine if that fails.",
        scope: Switch,
        ..ROW
    },
    Fault {
        code: "nvswitch-nonfatal",
        signs: &[Kernel("SXid (*): *, Non-fatal"), Kernel("SXid (*): *, Non-Fatal"), Kernel("SXid (*): *, Nonfatal")],
        meaning: "an error in a switch between GPUs that it handled",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then check the links with `nvidia-smi nvlink -e`.",
        scope: Switch,
        ..ROW
    },
    // What programs do.
    Fault {
        code: "xid-13",
        signs: &[Xid(13)],
        meaning: "a program's kernel broke a rule, such as an access out of bounds",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        counted: Some(ProgramsInOnePart),
        ..ROW
    },
    Fault {
        code: "app-errors",
        signs: &[Repeated(APP_ERRORS)],
        meaning: "programs fail on this GPU again and again, and on no other one: it may be the GPU, or one person's program",
        // No quarantine: whoever writes a wrong program could take a GPU from the others with it.
        action: Nothing,
        remedy: "Start the program on another GPU: where it fails too, it is the program. If it does not, stop labd and run NVIDIA's \
                 diagnosis (`systemctl stop labd; dcgmi diag -r 3; systemctl start labd`), and have the GPU at <pci> replaced if \
                 it fails.",
        ..ROW
    },
    Fault {
        code: "xid-31",
        signs: &[Xid(31)],
        meaning: "a program read or wrote memory that is not its own (page fault)",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        counted: Some(Programs),
        ..ROW
    },
    Fault {
        code: "xid-32",
        signs: &[Xid(11), Xid(25), Xid(32), Xid(80)],
        meaning: "a program sent the GPU a broken stream of commands",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-43",
        signs: &[Xid(8), Xid(43)],
        meaning: "a program's work was stopped after its own error; the GPU is well",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-44",
        signs: &[Xid(37), Xid(38), Xid(44), Xid(66), Xid(67)],
        meaning: "the driver's firmware complained of an access, and went on",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then install a newer driver.",
        ..ROW
    },
    Fault {
        code: "xid-45",
        // 174 is the same without an error of its own (`KILL_PROCESS_SILENT`).
        signs: &[Xid(45), Xid(174)],
        meaning: "a program's work was removed, because it ended or after the error before this one",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-69",
        signs: &[Xid(69)],
        meaning: "a program used a command that the GPU does not have",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
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
        lasts: Moment,
        ..ROW
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
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-137",
        signs: &[Xid(108), Xid(137)],
        meaning: "a program used memory of another GPU that it may not use, over NVLink",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "xid-141",
        signs: &[Xid(121), Xid(141), Xid(176)],
        meaning: "an error that the hardware handled",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then ask the vendor.",
        ..ROW
    },
    // Memory.
    Fault {
        code: "xid-48",
        signs: &[Xid(48), Xid(171), Xid(172)],
        meaning: "memory of the GPU had an error that could not be corrected: results may be wrong",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-63",
        signs: &[Xid(63), Xid(160), Xid(177)],
        meaning: "a bad row or page of memory was found and will be replaced by a spare one at the next reset",
        action: Nothing,
        remedy: "Reboot the machine when the lab is quiet: until then the bad memory is only avoided.",
        ..ROW
    },
    Fault {
        code: "xid-64",
        signs: &[Xid(64)],
        meaning: "bad memory could not be replaced by a spare row",
        action: Quarantine,
        remedy: RESET_FIRST,
        ..ROW
    },
    Fault {
        code: "remap-failed",
        signs: &[RemapFailed],
        meaning: "bad memory could not be replaced: the spare rows are used up",
        action: Quarantine,
        remedy: REPLACE,
        ..ROW
    },
    Fault {
        code: "xid-157",
        signs: &[Xid(157), Xid(161)],
        meaning: "bad memory cannot be taken out of use any more: the GPU works on, and the same error may come again",
        action: Nothing,
        remedy: "Ask the vendor.",
        ..ROW
    },
    Fault {
        code: "xid-92",
        signs: &[Xid(92)],
        meaning: "many memory errors that were corrected: the memory wears out",
        action: Nothing,
        remedy: "Watch `nvidia-smi -q -d ECC -i <pci>`; have the GPU replaced if errors follow that cannot be corrected.",
        ..ROW
    },
    Fault {
        code: "xid-93",
        signs: &[Xid(93), Answer("NVML_ERROR_CORRUPTED_INFOROM")],
        meaning: "the GPU's own record of its errors is worn out or damaged",
        action: Nothing,
        remedy: "Ask the vendor; the GPU works on.",
        ..ROW
    },
    Fault {
        code: "xid-94",
        signs: &[Xid(94)],
        meaning: "a memory error hit one program, which was stopped; the GPU is well",
        action: Restart,
        remedy: "Nothing now; reboot the machine when the lab is quiet, so that the bad memory is replaced.",
        ..ROW
    },
    Fault {
        code: "xid-94-reset",
        signs: &[XidWith(94, NeedsReset)],
        meaning: "a memory error hit one program, and the GPU must be reset before it is used again",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-95",
        signs: &[Xid(95)],
        meaning: "a memory error could not be kept to one program: nothing on the GPU can be trusted",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-140",
        signs: &[Xid(140)],
        meaning: "a memory error was not caught in time: results may be wrong",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-156",
        signs: &[Xid(156)],
        meaning: "bad memory will be taken out of use at the next reset",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-168",
        signs: &[Xid(168)],
        meaning: "the GPU has less memory than it should: the driver keeps clear of a bad part, for want of error correction",
        action: Nothing,
        remedy: "Switch error correction on (`nvidia-smi -i <pci> -e 1`), then reboot the machine.",
        ..ROW
    },
    Fault {
        code: "xid-175",
        signs: &[Xid(175)],
        meaning: "the GPU's memory does not answer its own processor (GSP)",
        action: Quarantine,
        remedy: RESET_FIRST,
        ..ROW
    },
    Fault {
        code: "ecc-uncorrected",
        signs: &[EccUncorrected],
        meaning: "memory of the GPU had an error that could not be corrected",
        action: Restart,
        remedy: "Nothing now; have the GPU at <pci> replaced if the count goes on growing.",
        ..ROW
    },
    Fault {
        code: "remap-pending",
        signs: &[RemapPending],
        meaning: "bad memory waits to be replaced by a spare row at the next reset",
        action: Nothing,
        remedy: "Reboot the machine when the lab is quiet.",
        ..ROW
    },
    // The GPU itself, its links, its firmware.
    Fault {
        code: "xid-46",
        signs: &[Xid(46), Xid(158)],
        meaning: "the GPU stopped working",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-54",
        signs: &[
            Xid(54),
            Answer("NVML_ERROR_INSUFFICIENT_POWER"),
            Kernel("NVRM:*does not have the necessary power cables connected"),
        ],
        meaning: "the GPU's power cables are not connected",
        action: Quarantine,
        remedy: "Switch the machine off, connect the power cables of the GPU at <pci>, then `labd gpu release <id>`.",
        ..ROW
    },
    Fault {
        code: "xid-61",
        // The catalog has it as unused; the driver's own text calls it not fatal.
        signs: &[Xid(61)],
        meaning: "a controller inside the GPU stopped at a breakpoint, and went on",
        action: Nothing,
        remedy: "Nothing, unless the GPU is slow or hangs after it: then reboot the machine.",
        ..ROW
    },
    Fault {
        code: "xid-62",
        signs: &[Xid(62), Xid(169)],
        meaning: "a controller inside the GPU halted",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-74",
        signs: &[Xid(74)],
        meaning: "an NVLink failed",
        action: Quarantine,
        remedy: "Reboot the machine, then `labd gpu release <id>`; if it happens again, check the bridge or the seat of the GPU at <pci>.",
        ..ROW
    },
    Fault {
        code: "xid-109",
        signs: &[Xid(109)],
        meaning: "the GPU could not switch between programs in time",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-110",
        signs: &[Xid(110)],
        meaning: "a security check inside the GPU failed",
        action: Quarantine,
        remedy: COLD_RESET,
        ..ROW
    },
    Fault {
        code: "xid-119",
        // 1 had another meaning until it was unused; driver 595 writes it when the GSP crashes.
        signs: &[Xid(1), Xid(119), Xid(120)],
        meaning: "the GPU's own processor (GSP) crashed or does not answer",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-136",
        signs: &[Xid(136)],
        meaning: "an NVLink could not be trained",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-143",
        signs: &[Xid(143)],
        meaning: "the GPU did not start",
        action: Quarantine,
        remedy: RESET_FIRST,
        ..ROW
    },
    Fault {
        code: "nvlink-fatal",
        signs: &[Xid(144), Xid(145), Xid(146), Xid(147), Xid(148), Xid(149), Xid(150), Xid(155)],
        meaning: "an NVLink of the GPU failed",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-151",
        signs: &[Xid(151)],
        meaning: "the keys with which a virtual machine and the GPU talk (confidential computing) could not be changed",
        action: Quarantine,
        remedy: "Restart the virtual machine that has the GPU, then `labd gpu release <id>`.",
        ..ROW
    },
    Fault {
        code: "xid-159",
        signs: &[Xid(159)],
        meaning: "the connection between GPU and processor had an error, under the unified memory that CUDA always uses",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-162",
        signs: &[Xid(162), Xid(163)],
        meaning: "the smoothing of the GPU's power was switched off or on again, as it is when it gets too warm",
        action: Nothing,
        remedy: "Nothing; check fans and air flow if it comes often.",
        ..ROW
    },
    Fault {
        code: "xid-164",
        signs: &[Xid(164), Xid(165)],
        meaning: "the circuit that smooths the GPU's power is at the end of its life; the GPU works on",
        action: Nothing,
        remedy: "Nothing, unless the power supplies of the machine need the smoothing: then have the GPU at <pci> replaced.",
        ..ROW
    },
    Fault {
        code: "xid-166",
        signs: &[Xid(166), Xid(170)],
        meaning: "an NVLink was used before it was encrypted (confidential computing)",
        action: Nothing,
        remedy: "Look at what starts first in the virtual machine: links are set up by `nvidia-fabricmanager`.",
        ..ROW
    },
    Fault {
        code: "xid-167",
        signs: &[Xid(167), Xid(173)],
        meaning: "the GPU's connection to the machine broke down",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "xid-154",
        // 4 after a drain, which the quarantine is; 6 is one of the bus, since NVML 615. Also what is not known.
        signs: &[Recovery(1), Recovery(4), Recovery(6), Xid(154)],
        meaning: "the driver says that the GPU needs a reset",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "xid-78",
        signs: &[Xid(78)],
        meaning: "a virtual GPU (vGPU) did not start",
        action: Nothing,
        remedy: "Install the guest driver that fits the host's.",
        ..ROW
    },
    Fault {
        code: "xid-ignored",
        signs: &[Xid(14), Xid(106), Xid(107), Xid(152), Xid(153)],
        meaning: "a message of a kind that NVIDIA says to ignore, such as a test",
        action: Nothing,
        remedy: "Nothing.",
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: super::OTHER_XID,
        signs: &[],
        meaning: "the driver reported something that is not in this table",
        action: Nothing,
        remedy: "Look the number up in NVIDIA's Xid catalog, https://docs.nvidia.com/deploy/xid-errors/.",
        ..ROW
    },
    // What its library answers. A GPU's own answer first.
    Fault {
        code: "nvml-gpu-lost",
        signs: &[Answer("NVML_ERROR_GPU_IS_LOST"), Kernel("NVRM:*[NV_ERR_GPU_IS_LOST]")],
        meaning: "the GPU has fallen off the PCI bus or cannot be reached",
        action: Quarantine,
        remedy: PULL,
        ..ROW
    },
    Fault {
        code: "nvml-reset-required",
        signs: &[
            Answer("NVML_ERROR_RESET_REQUIRED"),
            Answer("NVML_ERROR_GPU_NOT_FOUND"),
            Answer("NVML_ERROR_IRQ_ISSUE"),
            Kernel("NVRM:*[NV_ERR_RESET_REQUIRED]"),
        ],
        meaning: "the GPU cannot be used before it is reset",
        action: Quarantine,
        remedy: RESET,
        ..ROW
    },
    Fault {
        code: "nvml-unknown",
        signs: &[Answer("NVML_ERROR_UNKNOWN"), Answer("NVML_ERROR_TIMEOUT")],
        meaning: "the driver does not say what is wrong",
        action: Nothing,
        remedy: "Run `nvidia-smi -i <pci>` and `dmesg | grep NVRM`; reboot the machine if it stays so.",
        ..ROW
    },
    Fault {
        code: "nvml-no-handle",
        signs: &[NoHandle],
        meaning: "the driver cannot open the GPU any more, and does not say why: most often it has fallen off the PCI bus",
        action: Quarantine,
        remedy: PULL,
        ..ROW
    },
    Fault {
        code: "nvml-permission",
        signs: &[Answer("NVML_ERROR_NO_PERMISSION")],
        meaning: "labd may not ask the driver",
        action: Nothing,
        remedy: "Run labd as root, as its unit does (`systemctl cat labd`).",
        ..ROW
    },
    Fault {
        code: "nvml-blocked",
        signs: &[Answer("NVML_ERROR_OPERATING_SYSTEM")],
        meaning: "the operating system keeps the driver's library from the GPU, as rules for devices (cgroup) and virtual machines do",
        action: Nothing,
        remedy: "Look for `DeviceAllow` and `PrivateDevices` in `systemctl cat labd`; in a virtual machine or WSL, check which \
                 devices the host passes through.",
        ..ROW
    },
    Fault {
        code: "nvml-function",
        signs: &[Answer("NVML_ERROR_FUNCTION_NOT_FOUND")],
        meaning: "the driver's library lacks what it is asked for: it is older than the driver or its tools",
        action: Nothing,
        remedy: "Install library, tools and driver of one version (`dpkg -l | grep -i nvidia`), then reboot the machine.",
        ..ROW
    },
    Fault {
        code: "nvml-driver-not-loaded",
        signs: &[Answer("NVML_ERROR_DRIVER_NOT_LOADED")],
        meaning: "NVIDIA's driver is not loaded",
        action: Nothing,
        remedy: "Load it with `modprobe nvidia`; if that fails, install the driver for the running kernel.",
        ..ROW
    },
];
