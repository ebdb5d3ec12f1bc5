//! The GPU inventory: which GPUs there are, and how a container is given exactly one of them.
//!
//! * [`manager`]: the task that owns it; [`handle`]: how the rest of labd asks it.
//! * [`vendor`]: what each vendor's definition says; the definitions are in `nvidia` and `amd`.
//! * [`probe`]: the processes that ask a vendor's library or command.
//! * [`bus`]: GPUs that are on the PCI bus and do not answer. Pure. `bus_reads`: what is read of the bus for that.
//! * [`slots`]: which worker has which GPU. Pure.
//! * [`faults`]: the fault table: sign, meaning, what labd does, what a person must do. Pure.
//! * [`health`]: which GPU is quarantined for a fault, and whose worker is restarted. Pure.
//! * [`kmsg`]: the kernel's lines about GPUs, as they come.
//! * `unclaimed`: those that no GPU of the lab claims. Pure.
//! * [`cdi`]: which devices CDI specifications name, and what comes with them.
//! * [`attach`]: how a container is given exactly one GPU. Pure.
//! * [`simulate`]: simulated GPUs, for machines without any.

mod amd;
pub mod attach;
pub mod bus;
mod bus_reads;
pub mod cdi;
pub mod faults;
pub mod handle;
pub mod health;
pub mod kmsg;
pub mod manager;
mod nvidia;
pub mod probe;
pub mod simulate;
pub mod slots;
mod unclaimed;
pub mod vendor;

use labd_gpu::Reading;
pub use labd_gpu::Vendor;
use serde::{Deserialize, Serialize};

use crate::{
    snapshot::{GpuSource, GpuState, GpuTrouble, Notice},
    spec::{Device, worker_slot},
    time::Timestamp,
};

/// One GPU, or one partition of it that is handed out like a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Number of its worker. A GPU keeps it for as long as the lab knows it.
    pub slot: usize,
    /// Stable identifier: the vendor's UUID, or `SIM-0` and so on.
    pub id: String,
    /// Vendor.
    pub vendor: Vendor,
    /// Product name.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// PCI address such as `0000:41:00.0`; absent for simulated ones.
    pub pci: Option<String>,
    /// The GPU this is a partition of, by id.
    pub parent: Option<String>,
    /// Kind of partition, such as `1g.10gb`.
    pub partition: Option<String>,
    /// NUMA node it is attached to, when the machine says so.
    pub numa_node: Option<u32>,
    /// CPUs near it in the kernel's list notation, such as `0-31,64-95`.
    pub cpu_list: Option<String>,
    /// Devices that a container gets for it; none for simulated ones.
    pub devices: Vec<Device>,
}

impl Gpu {
    /// GPU that a probe found, together with the devices that a container gets for it.
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

/// Inventory: everything known of the GPUs now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Every GPU that has a worker, by the worker's number.
    pub units: Vec<Unit>,
    /// Sources of the readings.
    pub sources: Vec<GpuSource>,
    /// Notices about the node's GPUs as a whole.
    pub notices: Vec<Notice>,
    /// Whether everything was looked at that can be: until then what is known is from before.
    pub settled: bool,
}

/// One GPU as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// GPU itself.
    pub gpu: Gpu,
    /// State: whether it can be used.
    pub state: GpuState,
    /// Reason why it cannot be used.
    pub trouble: Option<GpuTrouble>,
    /// Time since which its worker must have been started, and why: the state that older processes have on it is void.
    pub restart: Option<(Timestamp, String)>,
    /// Readings of it now.
    pub reading: Option<Reading>,
    /// Processes on it.
    pub processes: Vec<Process>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// Id of the container it runs in; absent outside of any.
    pub container: Option<String>,
    /// GPU memory it holds, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Unit {
    /// Unit that is healthy, as far as is known.
    pub fn new(gpu: Gpu) -> Self {
        Self { gpu, state: GpuState::Ok, trouble: None, restart: None, reading: None, processes: Vec::new() }
    }
}

impl Inventory {
    /// GPUs from which the plan is made.
    pub fn gpus(&self) -> Vec<Gpu> {
        self.units.iter().map(|unit| unit.gpu.clone()).collect()
    }

    /// Unit of a worker.
    pub fn of_worker(&self, name: &str) -> Option<&Unit> {
        let slot = worker_slot(name)?;
        self.units.iter().find(|unit| unit.gpu.slot == slot)
    }
}
