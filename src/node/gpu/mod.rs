//! The GPU inventory: what there is, and how a container is given exactly one of them.
//!
//! * [`keeper`]: the task that keeps it.
//! * [`slots`]: which worker has which GPU. Pure.
//! * [`faults`]: the fault table: sign, meaning, what labd does, what a person must do. Pure.
//! * [`judge`]: what follows from them. Pure.
//! * [`kmsg`]: the kernel's lines about GPUs, as they come.
//! * [`cdi`]: which devices CDI specifications name, and what comes with them.
//! * [`handing`]: how a container is given exactly one GPU. Pure.
//! * [`simulate`]: GPUs that are not there.

pub mod cdi;
pub mod faults;
pub mod handing;
pub mod judge;
pub mod keeper;
pub mod kmsg;
pub mod simulate;
pub mod slots;

use labd_gpu::Reading;
pub use labd_gpu::Vendor;
use serde::{Deserialize, Serialize};

use crate::{
    plan::spec::Device,
    snapshot::{GpuSource, GpuState, GpuTrouble, Notice},
    time::Timestamp,
};

/// One GPU, or one partition of it that is handed out like a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Number of its worker. A GPU keeps it for as long as the lab knows it.
    pub slot: usize,
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
    /// The GPU this is a partition of, by id.
    pub parent: Option<String>,
    /// What kind of partition it is, such as `1g.10gb`.
    pub partition: Option<String>,
    /// NUMA node it is attached to, when the machine says so.
    pub numa_node: Option<u32>,
    /// CPUs near it in the kernel's list notation, such as `0-31,64-95`.
    pub cpu_list: Option<String>,
    /// What a container is handed; empty for simulated ones.
    pub devices: Vec<Device>,
}

impl Gpu {
    /// What a probe found, together with what a container is handed of it.
    pub fn of(slot: usize, found: &labd_gpu::Device, devices: Vec<Device>) -> Self {
        Self {
            slot,
            id: found.id.clone(),
            vendor: found.vendor,
            name: found.name.clone(),
            memory_bytes: found.memory_bytes,
            pci: found.pci.clone(),
            parent: found.parent.clone(),
            partition: found.partition.clone(),
            numa_node: found.numa_node,
            cpu_list: found.cpu_list.clone(),
            devices,
        }
    }
}

/// Everything known of the GPUs now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Every GPU that has a worker, by the worker's number.
    pub units: Vec<Unit>,
    /// Where the readings come from.
    pub sources: Vec<GpuSource>,
    /// What a person should know of the node's GPUs as a whole.
    pub notices: Vec<Notice>,
    /// Whether everything was looked at that can be: until then what is known is from before.
    pub settled: bool,
}

/// One GPU as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// What it is.
    pub gpu: Gpu,
    /// Whether it can be worked with.
    pub state: GpuState,
    /// Why it cannot.
    pub trouble: Option<GpuTrouble>,
    /// When its worker must have been started anew, and why: what the worker's processes have of it is void.
    pub restart: Option<(Timestamp, String)>,
    /// What it does.
    pub reading: Option<Reading>,
    /// Processes on it.
    pub processes: Vec<Process>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: u32,
    /// Id of the container it runs in; absent outside of any.
    pub container: Option<String>,
    /// GPU memory it holds, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Unit {
    /// One that is in order, as far as is known.
    pub fn new(gpu: Gpu) -> Self {
        Self { gpu, state: GpuState::Ok, trouble: None, restart: None, reading: None, processes: Vec::new() }
    }
}

impl Inventory {
    /// What the plan is made from.
    pub fn gpus(&self) -> Vec<Gpu> {
        self.units.iter().map(|unit| unit.gpu.clone()).collect()
    }

    /// The GPU of a worker.
    pub fn of_worker(&self, name: &str) -> Option<&Unit> {
        let slot: usize = name.strip_prefix("ray-worker-")?.parse().ok()?;
        self.units.iter().find(|unit| unit.gpu.slot == slot)
    }
}
