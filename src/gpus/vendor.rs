//! GPU vendors: a file for each with what is special about its GPUs. Simulated GPUs have none.

use std::path::Path;

use labd_gpu::{Device as Found, Vendor, pci};

use super::{amd, attach::EngineDevices, faults::Fault, nvidia, probe::Launch};
use crate::spec::Device;

/// Every vendor, in the order in which its GPUs are told of.
pub static ALL: [&VendorDef; 2] = [&nvidia::DEF, &amd::DEF];

/// Definition of a vendor: everything that is special about its GPUs.
#[derive(Debug)]
pub struct VendorDef {
    /// The vendor; its PCI id is in the crate `labd-gpu`.
    pub vendor: Vendor,
    /// Name of the vendor for people.
    pub name: &'static str,
    /// Kernel driver of its GPUs.
    pub driver: &'static str,
    /// Whether that driver computes on every GPU that it has.
    pub computes_on_all: bool,
    /// Whether that driver takes every GPU of the vendor, also one that only shows a picture: beside one that it has, one
    /// without a driver did not start.
    pub takes_all: bool,
    /// Ways to ask about its GPUs, best first; absent where it cannot be started now. The root of the file system, and
    /// a folder of labd's own.
    pub(super) sources: fn(&Path, &Path) -> Vec<Option<Launch>>,
    /// Devices that a container gets so that it has this GPU and no other. Fails in one line when that cannot be.
    pub(super) attach: fn(&Found, &EngineDevices) -> Result<Vec<Device>, String>,
    /// Whether a container with this device has a GPU of this vendor.
    pub owns: fn(&Device) -> bool,
    /// Device nodes, with wildcards, that can be opened in a container with this device; besides the nodes that it was
    /// given by name.
    pub nodes_inside: fn(&Device) -> &'static [&'static str],
    /// Whether the vendor's own tool lists a GPU with this id inside its container.
    pub lists_by_id: fn(&str) -> bool,
    /// Command that lists GPUs inside a worker.
    pub ask_worker: &'static [&'static str],
    /// Whether the exit code of a worker's process can be its runtime's report on the GPU.
    pub explains_exits: bool,
    /// Faults of its GPUs; what any vendor's GPU can have is apart.
    pub faults: &'static [Fault],
}

/// Definition of the vendor; `None` for simulated GPUs.
pub fn of(vendor: Vendor) -> Option<&'static VendorDef> {
    ALL.into_iter().find(|def| def.vendor == vendor)
}

/// Definition of the vendor whose GPUs alone have this fault; `None` where any can.
pub fn of_fault(fault: &Fault) -> Option<&'static VendorDef> {
    ALL.into_iter().find(|def| def.faults.contains(fault))
}

/// Number of GPUs of each vendor on the PCI bus, driver or not; vendors without any are left out.
pub fn on_bus(root: &Path) -> Vec<(&'static VendorDef, usize)> {
    let gpus = pci::gpus(root);
    let count = |def: &VendorDef| gpus.iter().filter(|(_, vendor)| *vendor == def.vendor).count();
    ALL.into_iter().map(|def| (def, count(def))).filter(|(_, n)| *n > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use labd_gpu::line::Source;

    use super::*;

    fn device(root: &Path, address: &str, vendor: &str, class: &str) {
        let dir = root.join("sys/bus/pci/devices").join(address);
        fs::create_dir_all(&dir).expect("a folder");
        for (name, text) in [("vendor", vendor), ("class", class)] {
            fs::write(dir.join(name), format!("{text}\n")).expect("a file");
        }
    }

    #[test]
    fn hardware_is_what_the_bus_shows() {
        let root = tempfile::tempdir().expect("a directory");
        let is = |vendor| on_bus(root.path()).iter().any(|(def, _)| def.vendor == vendor);
        assert!(!is(Vendor::Nvidia) && !is(Vendor::Amd));
        // A BMC's display, NVIDIA's sound on an HDMI port, an AMD host bridge: no GPUs of these vendors.
        device(root.path(), "0000:03:00.0", "0x1a03", "0x030000");
        device(root.path(), "0000:65:00.1", "0x10de", "0x040300");
        device(root.path(), "0000:00:00.0", "0x1022", "0x060000");
        device(root.path(), "0000:00:00.2", "0x1002", "0x060000");
        assert!(!is(Vendor::Nvidia) && !is(Vendor::Amd));
        device(root.path(), "0000:65:00.0", "0x10de", "0x030200");
        assert!(is(Vendor::Nvidia) && !is(Vendor::Amd));
        device(root.path(), "0000:c1:00.0", "0x1002", "0x120000");
        assert!(is(Vendor::Amd));
    }

    #[test]
    fn without_a_library_the_vendors_command_or_the_kernel_is_asked() {
        let root = tempfile::tempdir().expect("a directory");
        let words = |vendor| -> Vec<(Source, Vec<String>)> {
            let sources = of(vendor).map(|def| (def.sources)(root.path(), root.path()));
            sources.into_iter().flatten().flatten().map(|l| (l.source, l.args)).collect()
        };
        assert_eq!(words(Vendor::Amd), [(Source::Kernel, vec!["probe".into(), "kernel".into()])]);
        assert_eq!(words(Vendor::Nvidia).last(), Some(&(Source::NvidiaSmi, vec!["probe".into(), "nvidia-smi".into()])));
        assert_eq!(words(Vendor::Simulated), []);
    }

    #[test]
    fn what_a_container_gets_is_one_vendors() {
        let node = |path: &str| Device::Node { path: path.to_owned(), gid: 0 };
        let cdi = |name: &str| Device::Cdi { name: name.to_owned(), gids: Vec::new() };
        let owner = |device: &Device| {
            let all: Vec<Vendor> = ALL.into_iter().filter(|def| (def.owns)(device)).map(|def| def.vendor).collect();
            assert!(all.len() <= 1, "{device:?}");
            all.first().copied()
        };
        for device in [node("/dev/nvidia0"), cdi("nvidia.com/gpu=0"), Device::Nvidia { uuid: "GPU-a".into() }] {
            assert_eq!(owner(&device), Some(Vendor::Nvidia));
        }
        for device in [node("/dev/kfd"), node("/dev/dri/renderD128"), cdi("amd.com/gpu=0")] {
            assert_eq!(owner(&device), Some(Vendor::Amd));
        }
        assert_eq!(owner(&node("/dev/infiniband/uverbs0")), None);
    }
}
