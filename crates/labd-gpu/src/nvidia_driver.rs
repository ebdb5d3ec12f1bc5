//! NVIDIA's kernel driver as the host shows it, whether or not its library answers. Pure over a root path, `/` on a real
//! machine.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use crate::{Device, DeviceNode, Vendor, files, pci};

/// Device nodes that all GPUs share. MIG devices need two more each, `/dev/nvidia-caps/nvidia-capN`, whose numbers are
/// under `/proc/driver/nvidia/capabilities` by ids of instances that neither `nvml-wrapper` nor `nvidia-smi -L` report:
/// a MIG device must be attached by CDI or NVIDIA's toolkit, plain nodes are not enough.
const SHARED_NODES: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// Version of the driver that runs; `None` when none does.
pub fn version(root: &Path) -> Option<String> {
    files::text(&root.join("sys/module/nvidia/version"))
}

/// Number in the name of a GPU's device node. Not its index: that depends on the order of PCI addresses.
pub fn minor(root: &Path, pci: &str) -> Option<u32> {
    let text = files::text(&root.join("proc/driver/nvidia/gpus").join(pci).join("information"))?;
    text.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse().ok())
}

/// The device nodes that a container needs for the GPU `/dev/nvidia<minor>`, as far as they exist.
pub fn nodes(root: &Path, minor: Option<u32>) -> Vec<DeviceNode> {
    let own = minor.map(|minor| format!("/dev/nvidia{minor}"));
    own.into_iter()
        .chain(SHARED_NODES.map(str::to_owned))
        .filter_map(|path| {
            let gid = fs::metadata(root.join(path.trim_start_matches('/'))).ok()?.gid();
            Some(DeviceNode { path, gid })
        })
        .collect()
}

/// GPU of which only the PCI address is known: the driver has it, and it does not answer. The address is its id, since
/// it is what a person needs to find it.
pub fn unseen(root: &Path, index: u32, pci: Option<String>) -> Device {
    let (numa_node, cpu_list) = pci.as_deref().map_or((None, None), |pci| pci::locality(root, pci));
    Device {
        id: pci.clone().unwrap_or_else(|| format!("nvidia-{index}")),
        vendor: Vendor::Nvidia,
        name: "NVIDIA GPU".to_owned(),
        index,
        memory_bytes: 0,
        pci,
        parent: None,
        partition: None,
        divided: false,
        numa_node,
        cpu_list,
        nodes: Vec::new(),
    }
}
