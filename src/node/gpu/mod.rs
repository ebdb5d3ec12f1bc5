//! The GPU inventory: what there is, and how a container is given exactly one of them.

pub mod simulate;

use serde::{Deserialize, Serialize};

use crate::plan::spec::Device;

/// Who made a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Nobody: there is no such hardware.
    Simulated,
}

impl Vendor {
    /// The word in the snapshot and on the screen.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia",
            Self::Amd => "amd",
            Self::Simulated => "simulated",
        }
    }
}

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
