//! The GPU inventory: what there is, and how a container is given exactly one of them.
//!
//! * [`handing`]: how a container is given exactly one. Pure.
//! * [`cdi`]: which devices CDI specifications name, and what comes with them.
//! * [`simulate`]: GPUs that are not there.

pub mod cdi;
pub mod handing;
pub mod simulate;

pub use labd_gpu::Vendor;
use serde::Serialize;

use crate::plan::spec::Device;

/// One GPU, or one partition of it that is handed out like a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Stable identifier: the vendor's UUID, or `SIM-0` and so on.
    pub id: String,
    /// Who made it.
    pub vendor: Vendor,
    /// Product name.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// PCI address such as `0000:41:00.0`; absent for simulated ones.
    pub pci: Option<String>,
    /// The GPU this is a partition of (MIG), by id.
    pub parent: Option<String>,
    /// NUMA node it is attached to, when the machine says so.
    pub numa_node: Option<u32>,
    /// CPUs near it in the kernel's list notation, such as `0-31,64-95`.
    pub cpu_list: Option<String>,
    /// What a container is handed; empty for simulated ones.
    pub devices: Vec<Device>,
}

impl Gpu {
    /// What a probe found, together with what a container is handed of it.
    pub fn of(found: &labd_gpu::Device, devices: Vec<Device>) -> Self {
        Self {
            id: found.id.clone(),
            vendor: found.vendor,
            name: found.name.clone(),
            memory_bytes: found.memory_bytes,
            pci: found.pci.clone(),
            parent: found.parent.clone(),
            numa_node: found.numa_node,
            cpu_list: found.cpu_list.clone(),
            devices,
        }
    }
}
