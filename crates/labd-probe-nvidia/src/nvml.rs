//! Calls of NVML. Any of them may hang in the kernel forever, which is why nothing but this process makes them.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
};

use labd_gpu::{
    Device, Reading,
    line::{Hello, Source},
    nvidia_driver::{self, Part},
    pci,
};
use nvml_wrapper::{
    Device as Handle, Nvml,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::device::SampleValue,
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id as field,
};

use crate::convert::{self, Answer, Answers, Rows};

/// Variable with the library's path, for tests and unusual machines; no other is then tried.
const PATH: &str = "LABD_NVML";

/// Paths of the library: as the system's loader finds it, then where it is without the loader knowing: in Debian's and
/// Red Hat's folders, WSL's, the GPU operator's driver container, and NixOS's.
const PATHS: [&str; 8] = [
    "libnvidia-ml.so.1",
    "libnvidia-ml.so",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// Loads and initialises the library. Each time from the beginning, since a driver may have been installed in between.
/// GPUs are counted here and not later, and none is touched yet.
pub(crate) fn open() -> Result<Nvml, NvmlError> {
    let paths: Vec<OsString> = env::var_os(PATH).map_or_else(|| PATHS.map(OsString::from).to_vec(), |path| vec![path]);
    let mut failed = None;
    for path in &paths {
        match Nvml::builder().lib_path(OsStr::new(path)).init() {
            // The first name's words say what is wrong; the others' that there is no such file.
            Err(e @ NvmlError::LibloadingError(_)) => failed = failed.or(Some(e)),
            opened => return opened,
        }
    }
    Err(failed.unwrap_or(NvmlError::LibraryNotFound))
}

/// Versions, as far as they can be had.
pub(crate) fn hello(nvml: &Nvml) -> Hello {
    Hello { source: Source::Nvml, driver: nvml.sys_driver_version().ok(), library: nvml.sys_nvml_version().ok() }
}

/// GPU of NVML's, as far as it answers.
pub(crate) struct Slot<'a> {
    pub(crate) index: u32,
    /// GPU, followed by its MIG devices; else why there is none. Absent for one that sleeps.
    pub(crate) found: Option<Answer<Found<'a>>>,
}

/// GPU that answers.
pub(crate) struct Found<'a> {
    pub(crate) id: String,
    handle: Handle<'a>,
    /// Whether MIG is switched on: without MIG devices, such a GPU computes nothing.
    divided: bool,
    partitions: Vec<(String, Handle<'a>)>,
}

/// GPUs by NVML's index. The first call starts each GPU, which takes seconds where nothing keeps them started: `between`
/// is called after each. Those that `sleeps` is true of, by index and number of GPUs, are not asked: it would wake them.
pub(crate) fn look<E>(
    nvml: &Nvml,
    sleeps: impl Fn(u32, u32) -> bool,
    mut between: impl FnMut() -> Result<(), E>,
) -> Result<Answer<Vec<Slot<'_>>>, E> {
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(e) => return Ok(Err(e)),
    };
    let mut slots = Vec::new();
    for index in 0..count {
        slots.push(Slot { index, found: (!sleeps(index, count)).then(|| find(nvml, index)) });
        between()?;
    }
    Ok(Ok(slots))
}

fn find(nvml: &Nvml, index: u32) -> Answer<Found<'_>> {
    let handle = nvml.device_by_index(index)?;
    let id = handle.uuid()?;
    // Not supported by GPUs without MIG.
    let divided = handle.mig_mode().is_ok_and(|mode| mode.current != 0);
    let most = if divided { handle.mig_device_count().unwrap_or(0) } else { 0 };
    let partitions = (0..most)
        .filter_map(|i| {
            // Indices of instances that do not exist are not found.
            let partition = handle.mig_device_by_index(i).ok()?;
            Some((partition.uuid().ok()?, partition))
        })
        .collect();
    Ok(Found { id, handle, divided, partitions })
}

impl Found<'_> {
    /// Ids of it and its partitions.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.partitions.iter().map(|(id, _)| id.as_str()))
    }

    /// Whether it is divided into partitions.
    pub(crate) const fn divided(&self) -> bool {
        self.divided
    }

    /// Device, followed by its partitions, of which `before` is what was known. Fails where it does not answer any more.
    pub(crate) fn devices(&self, index: u32, root: &Path, before: &[Device]) -> Answer<Vec<Device>> {
        let pci = convert::optional(self.handle.pci_info())?.and_then(|info| pci::address(&info.bus_id));
        let minor = convert::optional(self.handle.minor_number())?;
        let gpu = Device {
            id: self.id.clone(),
            name: self.handle.name()?,
            memory_bytes: memory(&self.handle)?,
            divided: self.divided,
            nodes: nvidia_driver::nodes(root, minor),
            ..nvidia_driver::unseen(root, index, pci)
        };
        let mut parts = Vec::new();
        for (id, handle) in &self.partitions {
            parts.push(Part {
                id: id.clone(),
                profile: convert::profile(&handle.name()?),
                memory_bytes: memory(handle)?,
                instance: handle.running_compute_processes().ok().and_then(|all| convert::instance(&all)),
            });
        }
        let parts = nvidia_driver::partitions(root, &gpu, minor, &parts, before);
        Ok(std::iter::once(gpu).chain(parts).collect())
    }

    /// Reading, followed by those of its partitions. NVML answers for a partition what is its own: memory and
    /// processes.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let partitions = self.partitions.iter().map(|(id, handle)| (id, handle));
        let all = std::iter::once((&self.id, &self.handle)).chain(partitions);
        all.map(|(id, handle)| convert::reading(id, ask(handle))).collect()
    }
}

/// Memory in bytes; 0 where the memory is the machine's own (as in DGX Spark).
fn memory(handle: &Handle<'_>) -> Answer<u64> {
    Ok(convert::optional(handle.memory_info())?.map_or(0, |m| m.total))
}

fn ask(handle: &Handle<'_>) -> Answers {
    Answers {
        utilisation: handle.utilization_rates().map(|u| u.gpu),
        memory: handle.memory_info().map(|m| m.used),
        temperature: handle.temperature(TemperatureSensor::Gpu),
        power: handle.power_usage(),
        power_limit: handle.enforced_power_limit(),
        clock: handle.clock_info(Clock::SM),
        memory_clock: handle.clock_info(Clock::Memory),
        throttled: handle.current_throttle_reasons(),
        ecc_corrected: handle.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile),
        ecc_uncorrected: handle.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
        rows: rows(handle),
        compute: handle.running_compute_processes(),
        graphics: handle.running_graphics_processes(),
    }
}

fn rows(handle: &Handle<'_>) -> Answer<Rows> {
    const FIELDS: [u32; 8] = [
        field::NVML_FI_DEV_REMAPPED_COR,
        field::NVML_FI_DEV_REMAPPED_UNC,
        field::NVML_FI_DEV_REMAPPED_PENDING,
        field::NVML_FI_DEV_REMAPPED_FAILURE,
        field::NVML_FI_DEV_RETIRED_SBE,
        field::NVML_FI_DEV_RETIRED_DBE,
        field::NVML_FI_DEV_RETIRED_PENDING,
        field::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
    ];
    let samples = handle.field_values_for(&FIELDS.map(FieldId))?;
    let mut values = samples.into_iter().map(|sample| match sample.ok()?.value.ok()? {
        SampleValue::U32(n) => Some(u64::from(n)),
        SampleValue::U64(n) => Some(n),
        SampleValue::I64(n) => u64::try_from(n).ok(),
        SampleValue::F64(_) => None,
    });
    let mut next = || values.next().flatten();
    let (remapped, pending, failed) = ([next(), next()], next(), next());
    Ok(Rows { remapped, failed, retired: [next(), next()], pending: [pending, next()], recovery: next() })
}
