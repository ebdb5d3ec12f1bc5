//! Faults of AMD's GPUs.

use super::{
    AWAIT,
    Action::{Nothing, Quarantine, Restart},
    Detail::{Block, Deferred, Memory},
    Fault, JOB,
    Lasts::{Moment, UntilStart},
    PULL, REBOOT, ROW,
    Sign::{Answer, Exit, Kernel, NoFirmware, Ras},
};

const REPLACE_AMD: &str =
    "Have the GPU at <pci> replaced by its vendor; `dmesg` and `amd-smi bad-pages` give what it asks for.";

/// Rows of the table, special ones before general ones.
pub(in crate::gpus) const TABLE: &[Fault] = &[
    Fault {
        code: "amdgpu-not-loaded",
        signs: &[Answer(labd_gpu::kernel::NO_DRIVER)],
        meaning: "AMD's driver is not loaded, or did not start any GPU",
        action: Nothing,
        remedy: "Load it with `modprobe amdgpu`; if there is still no GPU, read `dmesg | grep amdgpu`.",
        ..ROW
    },
    Fault {
        code: "amdgpu-lost",
        signs: &[
            Kernel("amdgpu*device lost from bus"),
            Kernel("amdgpu*PCI error: detected callback*state(3)"),
            Answer(labd_gpu::kernel::GONE),
        ],
        meaning: "the GPU has fallen off the PCI bus: it does not answer any more",
        action: Quarantine,
        remedy: PULL,
        ..ROW
    },
    // States of a PCI connection are those of `pci_channel_io_normal` (1), `..._frozen` (2) and `..._perm_failure` (3).
    Fault {
        code: "amdgpu-pci-reset",
        signs: &[Kernel("amdgpu*PCI error: detected callback*state(2)")],
        meaning: "the GPU's PCI connection had an error and is started again: what was on the GPU is gone",
        action: Restart,
        remedy: "Nothing, unless it comes again: then check the seat and the power cables of the GPU at <pci>.",
        ..ROW
    },
    Fault {
        code: "amdgpu-pci-error",
        signs: &[Kernel("amdgpu*PCI error: detected callback")],
        meaning: "the GPU's PCI connection had an error, and works",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then check the seat and the power cables of the GPU at <pci>.",
        ..ROW
    },
    Fault {
        code: "amdgpu-overheat",
        signs: &[
            Kernel("amdgpu*over temperature range"),
            Kernel("amdgpu*Critical Temperature Fault"),
            Kernel("amdgpu*shutdown due to GPU SW CTF"),
            Kernel("amdgpu*shutdown due to GPU HW CTF"),
        ],
        meaning: "the GPU is so hot that it, or the machine, is switched off",
        action: Quarantine,
        remedy: "Check fans, air flow and the dust on the GPU at <pci>, then `labd gpu release <id>`.",
        ..ROW
    },
    Fault {
        code: "amdgpu-throttled",
        signs: &[Kernel("amdgpu*WARN: GPU is throttled")],
        meaning: "the GPU is too hot or gets too little power: it runs slower than it could",
        action: Nothing,
        remedy: "Check fans, air flow and the machine's power supplies (`ipmitool sensor`).",
        ..ROW
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
        ..ROW
    },
    Fault {
        code: "amdgpu-bad-pages",
        signs: &[
            Kernel("amdgpu*bad page*reach*threshold"),
            Kernel("amdgpu*exceed*bad page*threshold"),
            Kernel("amdgpu*RAS records:* exceed threshold"),
            Kernel("amdgpu*GPU will not be initialized"),
            Kernel("amdgpu*GPU is in BAD status"),
            Kernel("amdgpu*GPU in bad status"),
        ],
        meaning: "too much of the GPU's memory is bad",
        action: Quarantine,
        remedy: REPLACE_AMD,
        ..ROW
    },
    Fault {
        code: "amdgpu-ras",
        signs: &[Ras(Memory), Kernel("amdgpu*oison is consumed"), Kernel("amdgpu*oison consumption")],
        meaning: "memory of the GPU had an error that could not be corrected: what used it was stopped",
        action: Restart,
        remedy: "Nothing now; have the GPU at <pci> replaced if it comes again.",
        ..ROW
    },
    Fault {
        code: "amdgpu-ras-block",
        // Texts without a count are from before the driver said which block.
        signs: &[Ras(Block), Kernel("amdgpu*ncorrectable hardware error"), Kernel("amdgpu*sram_ecc")],
        meaning: "a part of the GPU had an error that could not be corrected: what used it was stopped",
        action: Restart,
        remedy: "Nothing now; have the GPU at <pci> replaced if it comes again.",
        ..ROW
    },
    Fault {
        code: "amdgpu-ras-deferred",
        signs: &[Ras(Deferred), Kernel("amdgpu*oison is created")],
        meaning: "memory of the GPU had an error that could not be corrected, in data that nothing has used yet",
        action: Nothing,
        remedy: AWAIT,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "amdgpu-firmware",
        signs: &[Kernel("Direct firmware load for amdgpu/*failed"), Kernel("firmware: failed to load amdgpu/")],
        meaning: "a file of the GPU's firmware is not on the machine: the driver does without, or does not start the GPU",
        action: Nothing,
        remedy: "Nothing where the GPU works; else install its firmware (`firmware-amd-graphics` or `linux-firmware`), then \
                 reboot the machine.",
        // A failed start is a fault of its own; files that the driver does without are missing at every boot.
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "amdgpu-no-firmware",
        signs: &[NoFirmware],
        meaning: "the driver does not start the GPU, because a file of its firmware is not on the machine",
        action: Nothing,
        remedy: "Install its firmware (`firmware-amd-graphics` or `linux-firmware`), then reboot the machine.",
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "amdgpu-no-atomics",
        signs: &[Kernel("amdgpu: skipped device*PCI rejects atomics")],
        meaning: "ROCm cannot use a GPU: its slot does not do PCIe atomics",
        action: Nothing,
        remedy: "Put it into a slot that the processor drives itself, without a switch or a chipset in between.",
        lasts: UntilStart,
        ..ROW
    },
    Fault {
        code: "amdgpu-xgmi",
        signs: &[
            Kernel("amdgpu*XGMI:*ailure"),
            Kernel("amdgpu*XGMI:*ailed"),
            Kernel("amdgpu*XGMI:*can not match hive"),
        ],
        meaning: "the GPU's link to other GPUs (XGMI) could not be set up",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "amdgpu-init-failed",
        signs: &[
            Kernel("amdgpu*early_init of IP block*failed"),
            Kernel("amdgpu*sw_init of IP block"),
            Kernel("amdgpu*hw_init of IP block"),
            Kernel("amdgpu*late_init of IP block*failed"),
            Kernel("amdgpu*amdgpu_device_ip_*init failed"),
            // Until Linux 6.8, and since then.
            Kernel("amdgpu: probe of*failed with error"),
            Kernel("amdgpu*probe with driver amdgpu failed with error"),
            Kernel("amdgpu*Fatal error during GPU init"),
            Kernel("amdgpu*GPU init failed"),
            Kernel("amdgpu*PSP load * failed"),
            Kernel("amdgpu*PSP create ring failed"),
            Kernel("amdgpu*PSP firmware loading failed"),
        ],
        meaning: "the driver cannot start the GPU",
        action: Quarantine,
        remedy: PULL,
        lasts: UntilStart,
        without_firmware: Some(NoFirmware),
        ..ROW
    },
    Fault {
        code: "amdgpu-resume-failed",
        signs: &[Kernel("amdgpu*resume of IP block*failed"), Kernel("amdgpu*ip_resume failed")],
        meaning: "the driver could not start the GPU again after it slept or was reset",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "amdgpu-recovery-disabled",
        signs: &[Kernel("amdgpu*GPU recovery disabled"), Kernel("[drm] GPU recovery disabled")],
        meaning: "the GPU hangs, and the driver is told not to reset it (`amdgpu.gpu_recovery=0`)",
        action: Quarantine,
        remedy: "Take `gpu_recovery=0` out of the kernel's command line and `/etc/modprobe.d`, reboot the machine, then `labd gpu \
                 release <id>`.",
        ..ROW
    },
    Fault {
        code: "amdgpu-smu-hang",
        signs: &[Kernel("amdgpu*SMU is in hanged state")],
        meaning: "the GPU's own controller of power and clocks (SMU) does not answer any more",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "amdgpu-reset-failed",
        signs: &[
            Kernel("amdgpu*ode1 reset failed"),
            Kernel("amdgpu*ode2 reset failed"),
            Kernel("amdgpu*GPU reset(*) failed"),
            Kernel("amdgpu*GPU reset end with ret = -"),
            Kernel("amdgpu*ASIC reset failed"),
            Kernel("amdgpu*GPU Recovery Failed"),
            Kernel("amdgpu*device wedged, needs recovery"),
        ],
        meaning: "the GPU hung and the driver could not reset it",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "amdgpu-reset",
        signs: &[Kernel("amdgpu*GPU reset(*) succeeded"), Kernel("amdgpu*Failed to initialize parser -125")],
        meaning: "the GPU hung and the driver reset it: what was on it is gone",
        action: Restart,
        remedy: "Nothing, unless it comes again: then reboot the machine, and look for newer firmware.",
        ..ROW
    },
    Fault {
        code: "amdgpu-soft-recovered",
        signs: &[Kernel("amdgpu*but soft recovered"), Kernel("amdgpu*Ring * reset succeeded")],
        meaning: "a program's work hung and was stopped; the GPU goes on",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "amdgpu-hang",
        signs: &[
            Kernel("amdgpu*GPU reset begin"),
            Kernel("amdgpu*ring * timeout"),
            // Before a reset, during one and after one: how that ends is told.
            Kernel("amdgpu*ring * test failed"),
            Kernel("amdgpu*IB test failed on"),
            Kernel("amdgpu*ib ring test failed"),
            Kernel("amdgpu*Ring * reset failed"),
            // The scheduler in the GPU (MES). Until Linux 6.8, `MES failed to response msg=3`.
            Kernel("amdgpu*MES failed to respon"),
            Kernel("amdgpu*MES(*) failed to respon"),
            Kernel("amdgpu*MES might be in unrecoverable state"),
            Kernel("amdgpu*MES ring buffer is full"),
            Kernel("amdgpu*failed to add hardware queue"),
            Kernel("amdgpu*failed to remove hardware queue"),
            Kernel("amdgpu*failed to suspend gangs from MES"),
            Kernel("amdgpu*failed to resume gangs from MES"),
            Kernel("amdgpu*failed to unmap legacy queue"),
            Kernel("amdgpu*IP block:* is hung"),
            Kernel("amdgpu*suspend of IP block*failed"),
            // The controller of power and clocks (SMU). All ones are the answer of a GPU that is gone, or asleep.
            Kernel("amdgpu*SMU: I'm not done with your previous command"),
            Kernel("amdgpu*SMU: No response"),
            Kernel("amdgpu*SMU: response:0xFFFFFFFF for"),
            // Of KFD, which began its lines with nothing, `kfd: ` or `amdgpu: `, and names the GPU since Linux 6.10.
            Kernel("qcm fence wait loop timeout"),
            Kernel("cp might be in an unrecoverable state due to an unsuccessful queues preemption"),
            Kernel("amdgpu*Queue preemption failed"),
            Kernel("amdgpu*Failed to evict"),
            Kernel("Failed to evict process queue"),
            Kernel("amdgpu*Failed to restore queue"),
            Kernel("amdgpu*Failed to quiesce KFD"),
        ],
        meaning: "a program's work hangs on the GPU, or the GPU does",
        action: Nothing,
        remedy: AWAIT,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "amdgpu-page-fault",
        signs: &[Kernel("amdgpu*hub*page fault"), Kernel("amdgpu*GPU fault detected")],
        meaning: "a program read or wrote memory that is not its own (page fault)",
        action: Nothing,
        remedy: JOB,
        lasts: Moment,
        ..ROW
    },
    Fault {
        code: "exit-134",
        // The runtime prints it on the process's standard error; it is no line of the kernel.
        signs: &[Exit(134), Kernel("HW Exception by GPU node")],
        meaning: "a process of the worker aborted: AMD's runtime does that after a GPU hang (`HW Exception by GPU node`)",
        action: Restart,
        remedy: "Read the worker's log (`labd logs`) and `dmesg`; reboot the machine if it comes again on the same GPU.",
        ..ROW
    },
];
