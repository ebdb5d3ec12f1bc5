//! Faults of AMD's GPUs.

use super::{
    Action::{Nothing, Quarantine, Restart},
    Fault, JOB, PULL, REBOOT,
    Sign::{Answer, Exit, Kernel},
};

const REPLACE_AMD: &str =
    "Have the GPU at <pci> replaced by its vendor; `dmesg` and `amd-smi bad-pages` give what it asks for.";
const AWAIT: &str = "Nothing yet: the driver tries to heal it, and how that ends is told as a fault of its own.";

/// Rows of the table, special ones before general ones.
pub(in crate::gpus) const TABLE: &[Fault] = &[
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
    Fault {
        code: "exit-134",
        // The runtime prints it on the process's standard error; it is no line of the kernel.
        signs: &[Exit(134), Kernel("HW Exception by GPU node")],
        meaning: "a process of the worker aborted: AMD's runtime does that after a GPU hang (`HW Exception by GPU node`)",
        action: Restart,
        remedy: "Read the worker's log (`labd logs`) and `dmesg`; reboot the machine if it comes again on the same GPU.",
    },
];
