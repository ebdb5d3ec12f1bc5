//! Faults of any vendor's GPU, as labd sees them by itself.

use labd_gpu::Throttle;

use super::{
    Action::{Nothing, Quarantine, Restart},
    Fault, PULL, REBOOT, ROW,
    Scope::PciDevice,
    Sign::{Answer, Hang, Kernel, LostInContainer, Missing, Throttled},
};

/// Rows of the table, special ones before general ones.
pub(super) const TABLE: &[Fault] = &[
    Fault {
        code: "lost-in-container",
        signs: &[LostInContainer],
        meaning: "the GPU was taken away from its worker's container, as `systemctl daemon-reload` does to those started the old way",
        action: Restart,
        remedy: "Nothing; with CDI (`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`) it does not happen.",
        ..ROW
    },
    Fault {
        code: "missing",
        signs: &[Missing],
        meaning: "the GPU was there and is not any more",
        action: Quarantine,
        remedy: PULL,
        ..ROW
    },
    // What the kernel says of PCI devices, by their driver or by the port that they are at. Errors that were corrected are
    // ordinary, and told of nowhere.
    Fault {
        code: "pcie-nonfatal",
        signs: &[Kernel("AER: *Uncorrect*(Non-Fatal)"), Kernel("PCIe Bus Error: severity=Uncorrect*(Non-Fatal)")],
        meaning: "the GPU's PCI connection had an error that could not be corrected, and works",
        action: Nothing,
        remedy: "Nothing, unless it comes often: then check the seat and the power cables of the GPU at <pci>.",
        scope: PciDevice,
        ..ROW
    },
    Fault {
        code: "pcie-fatal",
        signs: &[Kernel("AER: *Uncorrect*(Fatal)"), Kernel("PCIe Bus Error: severity=Uncorrect*(Fatal)")],
        meaning: "the GPU's PCI connection had a fatal error",
        action: Quarantine,
        remedy: PULL,
        scope: PciDevice,
        ..ROW
    },
    Fault {
        code: "pcie-down",
        signs: &[
            Kernel("pciehp: Slot(*): Link Down"),
            Kernel("pciehp: Slot(*): Card not present"),
            // Until Linux 4.19, with a driver of its own: `pciehp 0000:00:01.1:pcie004: Slot(0): Link Down`.
            Kernel("pciehp *: Slot(*): Link Down"),
            Kernel("pciehp *: Slot(*): Card not present"),
            Kernel("DPC: containment event"),
        ],
        meaning: "the GPU's PCI connection is down: the machine has cut it off",
        action: Quarantine,
        remedy: PULL,
        scope: PciDevice,
        ..ROW
    },
    Fault {
        code: "power-failed",
        signs: &[Answer(labd_gpu::pci::POWER_FAILED)],
        meaning: "the kernel failed to put the GPU to sleep or to wake it: nothing can open it any more",
        action: Quarantine,
        remedy: REBOOT,
        ..ROW
    },
    Fault {
        code: "throttled",
        signs: &[Throttled(Throttle::Thermal), Throttled(Throttle::PowerBrake), Throttled(Throttle::Hardware)],
        meaning: "the GPU is too hot or gets too little power: it runs slower than it could",
        action: Nothing,
        remedy: "Check fans, air flow and the machine's power supplies (`ipmitool sensor`).",
        ..ROW
    },
    Fault {
        code: "hang",
        signs: &[Hang],
        meaning: "a call into the GPU's driver does not return: readings are stale, workers go on",
        action: Nothing,
        remedy: "Look for processes in state D (`ps -eo pid,stat,comm | grep ' D'`); reboot the machine if it stays so.",
        ..ROW
    },
    Fault {
        code: "library-missing",
        signs: &[Answer(labd_gpu::line::LIBRARY_MISSING), Answer("NVML_ERROR_LIBRARY_NOT_FOUND")],
        meaning: "the vendor's library is not installed: something else is asked in its place",
        action: Nothing,
        remedy: "Install the driver's library (`libnvidia-ml1` or `rocm-smi-lib`) if the GPU shows no readings.",
        ..ROW
    },
];
