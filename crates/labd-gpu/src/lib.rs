//! Shared parts of labd and its GPU probes. Small on purpose: the probes are executables of their own, since a vendor's
//! library can hang in the kernel or take its process along, and a static program cannot load one at all.
//!
//! * [`mod@line`]: the lines that a probe prints, one JSON value each.
//! * [`kernel`]: AMD's GPUs as the kernel's own files have them, where ROCm is not on the host.
//! * [`rocm`]: ROCm's library on the host.
//! * [`pci`]: addresses, and where a device is attached.
//! * [`smi`]: the output of `nvidia-smi`, where NVIDIA's library cannot be asked.
//! * [`nvidia_driver`]: NVIDIA's kernel driver as the host shows it.

mod files;
pub mod kernel;
pub mod line;
pub mod nvidia_driver;
pub mod pci;
pub mod rocm;
pub mod smi;

use serde::{Deserialize, Serialize};

/// Vendor of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Simulated: there is no such hardware.
    Simulated,
}

impl Vendor {
    /// Word for the vendor in the snapshot and on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia",
            Self::Amd => "amd",
            Self::Simulated => "simulated",
        }
    }
}

/// GPU, or one partition of it that a container can be given like a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Stable identifier: `GPU-<uuid>`, `MIG-<uuid>`, AMD's unique id as `0x` and 16 hexadecimal digits (with `.1`, `.2`
    /// and so on after it for the further partitions of one GPU), or the PCI address where there is no better one.
    pub id: String,
    /// Vendor.
    pub vendor: Vendor,
    /// Product name.
    pub name: String,
    /// Number in its vendor's own order, from 0; partitions have their GPU's.
    pub index: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// PCI address such as `0000:41:00.0`, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// Id of the GPU that this is a partition of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Kind of the partition, such as `1g.10gb` (MIG) or `CPX`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Instance of MIG that the partition is, in the driver's numbers; absent where they cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// Whether it is divided into partitions: containers are given those, and not the GPU itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub divided: bool,
    /// NUMA node it is attached to, when the machine says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// CPUs near it in the kernel's list notation, such as `0-31,64-95`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_list: Option<String>,
    /// Device nodes that a container needs to use it, and no other GPU's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<DeviceNode>,
}

/// Instance of MIG: part of a GPU's memory and units, in which one or more compute instances share the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// Number of the GPU instance, as in `GPU-I:05` of the kernel's lines.
    pub gpu: u32,
    /// Number of the compute instance in it, as in `GPU-CI:00`.
    pub compute: u32,
}

/// Device node of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Path, such as `/dev/dri/renderD129`.
    pub path: String,
    /// Numeric group that owns it: its name differs per host, and may be missing in an image.
    pub gid: u32,
}

/// Present reading of one GPU. A value that the source does not report is absent.
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// Id of the GPU ([`Device::id`]).
    pub id: String,
    /// Whether it sleeps (the kernel's runtime power management): nothing else is read then, since that would wake it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asleep: bool,
    /// Share of the last second in which something ran on it, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<f32>,
    /// Memory in use, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Temperature of the chip in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f32>,
    /// Power drawn, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f32>,
    /// Limit on the power drawn, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_w: Option<f32>,
    /// Clock of its compute units in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// Clock of its memory in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Reasons why it runs slower than it could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttled: Vec<Throttle>,
    /// Number of memory errors that were corrected, since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_corrected: Option<u64>,
    /// Number of memory errors that were not corrected, since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// Number of rows of memory (or pages) that were replaced by spare ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remapped_rows: Option<u32>,
    /// Whether rows wait to be remapped, which happens at the GPU's next reset.
    pub remap_pending: bool,
    /// Whether rows could not be remapped: the spare ones are used up.
    pub remap_failed: bool,
    /// What NVIDIA's driver says it needs before it can be used again, in NVML's numbers (`nvmlDeviceGpuRecoveryAction_t`):
    /// 0 is nothing, 1 a reset, 2 a reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_action: Option<u32>,
    /// Processes on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// Error of the vendor's library instead of readings, as its own symbol, such as `NVML_ERROR_GPU_IS_LOST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reading {
    /// Reading of a GPU that sleeps.
    pub fn of_sleeping(id: &str) -> Self {
        Self { id: id.to_owned(), asleep: true, ..Self::default() }
    }

    /// Reading of a GPU that cannot be read: it has only this symbol of an error.
    pub fn of_failed(id: &str, symbol: &str) -> Self {
        Self { id: id.to_owned(), error: Some(symbol.to_owned()), ..Self::default() }
    }
}

/// A process on a GPU.
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// GPU memory it holds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// Reason why a GPU runs slower than it could.
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Throttle {
    /// Heat.
    Thermal,
    /// Power limit that it reached: ordinary under load.
    PowerCap,
    /// Power supply that asks for less (external power brake).
    PowerBrake,
    /// Hardware that slows it down, and does not say more.
    Hardware,
}

impl Throttle {
    /// Word for the reason on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thermal => "too hot",
            Self::PowerCap => "power limit",
            Self::PowerBrake => "power brake",
            Self::Hardware => "hardware",
        }
    }
}
