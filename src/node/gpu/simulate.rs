//! GPUs that are not there, so that the whole appliance runs on any machine. Marked wherever a GPU is shown.

use super::{Gpu, Vendor};

/// `count` simulated GPUs, `SIM-0` and so on, on NUMA node 0.
pub fn gpus(count: u32) -> Vec<Gpu> {
    (0..count)
        .map(|i| Gpu {
            id: format!("SIM-{i}"),
            vendor: Vendor::Simulated,
            name: "Simulated GPU".to_owned(),
            memory_bytes: 16 << 30,
            pci: None,
            parent: None,
            numa_node: None,
            cpu_list: None,
            devices: Vec::new(),
        })
        .collect()
}
