//! Checks of GPUs: which are in the machine, whether their driver is the one that is installed, and how containers get
//! them.
//!
//! Facts are files below a root directory and what the vendors' commands say; no vendor's library is loaded here.

mod amd;
mod nvidia;
mod workers;

use std::{fs, path::Path, time::Duration};

pub(super) use self::{amd::amd, nvidia::nvidia, workers::in_workers};
use super::{Check, QUESTION, Said, Scene, blocking, count, say};
use crate::gpus::{
    Vendor,
    vendor::{self, VendorDef},
};

/// Longest time for a vendor's command: without persistence mode the driver starts again each time, a second or more
/// per GPU.
const COMMAND: Duration = Duration::from_secs(8);
/// Command that shows the kernel's last messages about GPUs.
const KERNEL_LOG: &str = "dmesg | grep -iE 'nvrm|xid|amdgpu' | tail -n 30";

/// GPUs on the PCI bus by vendor.
type OnBus = Vec<(&'static VendorDef, usize)>;

async fn look(scene: &Scene) -> OnBus {
    let root = scene.subject.root.clone();
    blocking(move || vendor::on_bus(&root)).await.unwrap_or_default()
}

/// Number of this vendor's GPUs on the bus.
async fn count_of(scene: &Scene, vendor: Vendor) -> usize {
    look(scene).await.iter().find(|(def, _)| def.vendor == vendor).map_or(0, |(_, n)| *n)
}

/// Checks which GPUs there are.
pub(super) async fn present(scene: &Scene) -> Vec<Check> {
    vec![judge_present(scene.simulated(), &look(scene).await)]
}

fn judge_present(simulated: u32, bus: &OnBus) -> Check {
    const NAME: &str = "gpus";
    if simulated > 0 {
        let what = count(simulated as usize, "simulated GPU");
        return Check::skipped(NAME, format!("{what}: drivers, toolkit and device nodes are not checked"));
    }
    let all: Vec<String> = bus.iter().map(|(def, n)| count(*n, def.name)).collect();
    if all.is_empty() {
        return Check::warn(
            NAME,
            format!("no {} on the PCI bus: no worker runs", vendor::ALL.map(|def| def.name).join(", no ")),
            "lspci -nn | grep -E '\\[03|\\[12'\nlabd up --simulate-gpus 2    # to try labd without one",
        );
    }
    Check::ok(NAME, format!("{} on the PCI bus", all.join(", ")))
}

/// Kernel module on the disk, for the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OnDisk {
    /// Version of the module.
    Version(String),
    /// Missing module.
    Missing,
}

/// Module on the disk; `None` when it cannot be told.
async fn module_version(module: &str) -> Option<OnDisk> {
    match say("modinfo", &["-F", "version", module], QUESTION).await {
        // Debian's kernel has an amdgpu without a version.
        Said::Ended { fine: true, text } => Some(OnDisk::Version(text.trim().to_owned())),
        Said::Ended { fine: false, text } if text.contains("not found") => Some(OnDisk::Missing),
        _ => None,
    }
}
fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("nothing").to_owned()
}

fn read(root: &Path, path: &str) -> Option<String> {
    let text = fs::read_to_string(root.join(path)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// Files of a machine.
    pub(super) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(super) fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().expect("a directory"));
            for (path, text) in files {
                tree.add(path, text);
            }
            tree
        }

        pub(super) fn add(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }

        pub(super) fn root(&self) -> &Path {
            self.0.path()
        }
    }

    /// Files of a machine with two GPUs under driver 550.54.15, as it should be.
    pub(super) fn healthy() -> Tree {
        Tree::new(&[
            ("sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n"),
            ("sys/bus/pci/devices/0000:17:00.1/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.1/class", "0x040300\n"),
            ("sys/bus/pci/devices/0000:65:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:65:00.0/class", "0x030200\n"),
            ("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1a03\n"),
            ("sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n"),
            ("sys/module/nvidia/version", "550.54.15\n"),
            ("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", ""),
            ("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15", ""),
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("dev/nvidia0", ""),
            ("dev/nvidia1", ""),
            ("dev/nvidiactl", ""),
            ("dev/nvidia-uvm", ""),
            ("usr/bin/nvidia-ctk", ""),
            (
                "etc/cdi/nvidia.yaml",
                "kind: nvidia.com/gpu\n- hostPath: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15\n",
            ),
        ])
    }

    #[test]
    fn sound_and_bmcs_are_no_gpus() {
        let words = |bus: OnBus| bus.into_iter().map(|(def, n)| (def.vendor, n)).collect::<Vec<_>>();
        assert_eq!(words(vendor::on_bus(healthy().root())), [(Vendor::Nvidia, 2)]);
        let amd = Tree::new(&[
            ("sys/bus/pci/devices/0000:c1:00.0/vendor", "0x1002\n"),
            ("sys/bus/pci/devices/0000:c1:00.0/class", "0x120000\n"),
        ]);
        assert_eq!(words(vendor::on_bus(amd.root())), [(Vendor::Amd, 1)]);
        let [nvidia, amd] = vendor::ALL;
        assert_eq!(judge_present(0, &Vec::new()).verdict, Verdict::Warn);
        assert_eq!(judge_present(0, &Vec::new()).why, "no NVIDIA GPU, no AMD GPU on the PCI bus: no worker runs");
        assert_eq!(judge_present(2, &vec![(nvidia, 2)]).verdict, Verdict::Skipped);
        assert_eq!(judge_present(0, &vec![(nvidia, 2), (amd, 1)]).why, "2 NVIDIA GPUs, 1 AMD GPU on the PCI bus");
    }
}
