//! GPUs that are not there, so that the whole appliance runs on any machine. Marked wherever a GPU is shown.

use super::{Gpu, Vendor};
use crate::node::numa::NumaNode;

/// `count` simulated GPUs, `SIM-0` and so on, on the machine's NUMA nodes that have CPUs in turn.
pub fn gpus(count: u32, numa: &[NumaNode]) -> Vec<Gpu> {
    let nodes: Vec<u32> = numa.iter().filter(|n| !n.cpus.is_empty()).map(|n| n.id).collect();
    (0..count)
        .map(|i| Gpu {
            id: format!("SIM-{i}"),
            vendor: Vendor::Simulated,
            name: "Simulated GPU".to_owned(),
            memory_bytes: 16 << 30,
            pci: None,
            parent: None,
            numa_node: (!nodes.is_empty()).then(|| nodes[i as usize % nodes.len()]),
            cpu_list: None,
            devices: Vec::new(),
        })
        .collect()
}
