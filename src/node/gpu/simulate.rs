//! GPUs that are not there, so that the whole appliance runs on any machine. Marked wherever a GPU is shown.

use labd_gpu::Reading;

use super::{Gpu, Vendor};
use crate::{node::numa::NumaNode, time::Timestamp};

/// `count` simulated GPUs, `SIM-0` and so on, on the machine's NUMA nodes that have CPUs in turn.
pub fn gpus(count: u32, numa: &[NumaNode]) -> Vec<Gpu> {
    let nodes: Vec<u32> = numa.iter().filter(|n| !n.cpus.is_empty()).map(|n| n.id).collect();
    (0..count)
        .map(|i| Gpu {
            slot: i as usize,
            id: format!("SIM-{i}"),
            vendor: Vendor::Simulated,
            name: "Simulated GPU".to_owned(),
            memory_bytes: 16 << 30,
            pci: None,
            parent: None,
            partition: None,
            numa_node: (!nodes.is_empty()).then(|| nodes[i as usize % nodes.len()]),
            cpu_list: None,
            devices: Vec::new(),
        })
        .collect()
}

/// What a simulated GPU seems to do: a slow wave, so that whatever shows readings shows them move. Nothing is measured.
pub fn reading(gpu: &Gpu, now: Timestamp) -> Reading {
    // A minute up and down; each GPU some seconds after the one before.
    let second = (now.as_millis() / 1000 + 7 * i64::try_from(gpu.slot).unwrap_or(0)).rem_euclid(60);
    let wave = (30 - (second - 30).abs()) as f32 / 30.0;
    Reading {
        id: gpu.id.clone(),
        utilisation_percent: Some((wave * 100.0).round()),
        memory_used_bytes: Some((wave * 8.0) as u64 * (gpu.memory_bytes / 16)),
        temperature_c: Some((30.0 + 30.0 * wave).round()),
        power_w: Some((60.0 + 240.0 * wave).round()),
        power_limit_w: Some(300.0),
        ..Reading::default()
    }
}
