//! Output of `nvidia-smi`, for machines where it runs and the NVML probe does not. Pure: text in, lines of the protocol
//! out.
//!
//! Its tables are made for people, so only what it prints as CSV (`--query-...`) and as a list (`-L`, for MIG) is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    Device, Instance, Process, Reading, Throttle, Vendor,
    line::{LIBRARY_MISSING, Line, Trouble},
    nvidia_driver::{self, Part},
    pci::{self, Power},
};

/// Fields that are asked of each GPU: `--query-gpu=`, joined by commas. `nvidia-smi` refuses all of them when it does
/// not know one ([`unknown_field`]).
pub const FIELDS: [&str; 21] = [
    "index",
    "uuid",
    "pci.bus_id",
    "driver_version",
    "name",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "enforced.power.limit",
    "clocks.sm",
    "clocks.mem",
    "clocks_throttle_reasons.active",
    "ecc.errors.corrected.volatile.total",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.single_bit_ecc.count",
    "retired_pages.double_bit.count",
    "retired_pages.pending",
    "mig.mode.current",
    "gpu_recovery_action",
];

/// Argument that asks for all processes that compute: one line each, GPU, process, memory in MiB.
pub const PROCESSES: &str = "--query-compute-apps=gpu_uuid,pid,used_memory";
/// Arguments that ask for all processes by the instances they run in: the list above names the whole GPU for those on a
/// MIG device.
pub const INSTANCE_PROCESSES: [&str; 3] = ["-q", "-d", "PIDS"];
/// Argument that asks for remapped rows: one line per GPU, its UUID, rows after corrected and uncorrected errors,
/// whether some are pending, whether it failed.
pub const ROWS: &str = "--query-remapped-rows=gpu_uuid,remapped_rows.correctable,remapped_rows.uncorrectable,\
                        remapped_rows.pending,remapped_rows.failure";
/// Argument that sets the format of all of them.
pub const FORMAT: &str = "--format=csv,noheader,nounits";

/// Field that this `nvidia-smi` does not know, by its own words.
pub fn unknown_field(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("Field \"")?;
    let (field, rest) = rest.split_once('"')?;
    rest.starts_with(" is not a valid field").then_some(field)
}

/// Trouble in the output of an `nvidia-smi` that failed.
pub fn trouble(text: &str) -> Trouble {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("it said nothing");
    Trouble { code: symbol(text).unwrap_or("NVML_ERROR_UNKNOWN").to_owned(), text: format!("nvidia-smi: {line}") }
}

/// Symbol of NVML for `nvidia-smi`'s words, which are those of `nvmlErrorString`; special ones before general ones.
fn symbol(words: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 17] = [
        ("gpu is lost", "NVML_ERROR_GPU_IS_LOST"),
        ("requires reset", "NVML_ERROR_RESET_REQUIRED"),
        ("insufficiently powered", "NVML_ERROR_INSUFFICIENT_POWER"),
        ("interrupt", "NVML_ERROR_IRQ_ISSUE"),
        ("version mismatch", "NVML_ERROR_LIB_RM_VERSION_MISMATCH"),
        ("communicate with the nvidia driver", "NVML_ERROR_DRIVER_NOT_LOADED"),
        ("driver not loaded", "NVML_ERROR_DRIVER_NOT_LOADED"),
        ("libnvidia-ml.so", LIBRARY_MISSING),
        ("insufficient permissions", "NVML_ERROR_NO_PERMISSION"),
        ("blocked by the operating system", "NVML_ERROR_OPERATING_SYSTEM"),
        ("function not found", "NVML_ERROR_FUNCTION_NOT_FOUND"),
        ("gpu not found", "NVML_ERROR_GPU_NOT_FOUND"),
        ("inforom is corrupted", "NVML_ERROR_CORRUPTED_INFOROM"),
        ("command not found", LIBRARY_MISSING),
        ("not found", "NVML_ERROR_NOT_FOUND"),
        ("timeout", "NVML_ERROR_TIMEOUT"),
        ("unknown error", "NVML_ERROR_UNKNOWN"),
    ];
    let words = words.to_ascii_lowercase();
    WORDS.iter().find(|(some, _)| words.contains(some)).map(|(_, symbol)| *symbol)
}

/// Result of one call with [`FIELDS`].
#[derive(Debug, Default)]
pub struct Found {
    /// Version of the driver.
    pub driver: Option<String>,
    rows: Vec<Row>,
    /// GPUs that it could not open.
    lost: Vec<Lost>,
}

/// GPU that it could not open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    index: Option<u32>,
    pci: Option<String>,
    symbol: String,
}

#[derive(Debug)]
struct Row {
    index: u32,
    uuid: Option<String>,
    pci: Option<String>,
    name: Option<String>,
    memory_bytes: u64,
    divided: bool,
    /// Reading, without an id yet.
    reading: Reading,
}

impl Found {
    /// Reads the output. `fields` are those that were asked for, in their order. Fails where it prints an error and no
    /// GPU.
    pub fn parse(fields: &[&str], text: &str) -> Result<Self, Trouble> {
        let mut found = Self::default();
        for line in text.lines() {
            if let Some(lost) = lost(line) {
                found.lost.push(lost);
                continue;
            }
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            if cells.len() == fields.len() {
                let row = Row::of(&|field| cells[fields.iter().position(|f| *f == field)?].into());
                found.driver = found.driver.or_else(|| {
                    let at = fields.iter().position(|f| *f == "driver_version")?;
                    said(cells[at])
                });
                found.rows.extend(row);
            }
        }
        if found.rows.is_empty() && found.lost.is_empty() && !text.contains("No devices were found") {
            return Err(trouble(text));
        }
        Ok(found)
    }

    /// Whether a GPU is divided, so that it must be asked for partitions (`-L`).
    pub fn divided(&self) -> bool {
        self.rows.iter().any(|row| row.divided)
    }

    /// Whether each GPU is divided, by UUID.
    fn modes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.rows.iter().filter_map(|row| Some((row.uuid.as_deref()?, row.divided)))
    }
}

/// GPU that could not be opened, out of a line such as `Unable to determine the device handle for GPU 0000:06:00.0:
/// Unknown Error`, with or without a blank after `GPU`; in newer versions with its index, `GPU0: 0000:06:00.0: ...`, or
/// with nothing else, `GPU0: Unknown Error`. `None` for a line that names no GPU.
fn lost(line: &str) -> Option<Lost> {
    let (_, rest) = line.split_once("Unable to determine the device handle for ")?;
    let words =
        || rest.split_whitespace().map(|w| w.trim_end_matches(':').trim_start_matches(['G', 'P', 'U', 'g', 'p', 'u']));
    let pci = words().find_map(pci::address);
    let index = rest.strip_prefix("GPU").and_then(|_| words().next()?.parse().ok());
    let symbol = symbol(rest).unwrap_or("NVML_ERROR_UNKNOWN").to_owned();
    (pci.is_some() || index.is_some()).then_some(Lost { index, pci, symbol })
}

/// Value of a cell, if it is not one of the ways to report none: `[N/A]`, `[Not Supported]`, `N/A`, `ERR!`, `[Unknown
/// Error]`.
fn said(cell: &str) -> Option<String> {
    let nothing = cell.is_empty() || cell.starts_with('[') || cell == "N/A" || cell == "ERR!";
    (!nothing).then(|| cell.to_owned())
}

fn number<T: std::str::FromStr>(cell: &str) -> Option<T> {
    said(cell)?.parse().ok()
}

/// Whether a cell says `Yes`.
fn yes(cell: &str) -> bool {
    cell.eq_ignore_ascii_case("yes")
}

fn mebibytes(cell: &str) -> Option<u64> {
    number::<u64>(cell).map(|n| n << 20)
}

impl Row {
    fn of<'a>(cell: &impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let get = |field: &str| cell(field).unwrap_or_default();
        let sum = |a: &str, b: &str| Some(number::<u32>(get(a))?.saturating_add(number(get(b))?));
        let reading = Reading {
            utilisation_percent: number(get("utilization.gpu")),
            memory_used_bytes: mebibytes(get("memory.used")),
            temperature_c: number(get("temperature.gpu")),
            power_w: number(get("power.draw")),
            power_limit_w: number(get("enforced.power.limit")),
            clock_mhz: number(get("clocks.sm")),
            memory_clock_mhz: number(get("clocks.mem")),
            throttled: throttled(get("clocks_throttle_reasons.active")),
            ecc_corrected: number(get("ecc.errors.corrected.volatile.total")),
            ecc_uncorrected: number(get("ecc.errors.uncorrected.volatile.total")),
            remapped_rows: sum("retired_pages.single_bit_ecc.count", "retired_pages.double_bit.count"),
            remap_pending: yes(get("retired_pages.pending")),
            recovery_action: recovery(get("gpu_recovery_action")),
            ..Reading::default()
        };
        let error = FIELDS.iter().find_map(|field| broken(get(field))).or_else(|| {
            // One value that cannot be read is ordinary; neither memory nor temperature is not.
            let unknown = |cell: &str| cell == "ERR!" || cell.eq_ignore_ascii_case("[Unknown Error]");
            let blind = reading.memory_used_bytes.is_none() && reading.temperature_c.is_none();
            (blind && (unknown(get("memory.used")) || unknown(get("temperature.gpu")))).then_some("NVML_ERROR_UNKNOWN")
        });
        Some(Self {
            index: number(get("index"))?,
            uuid: said(get("uuid")),
            pci: pci::address(get("pci.bus_id")),
            name: said(get("name")),
            memory_bytes: mebibytes(get("memory.total")).unwrap_or(0),
            divided: get("mig.mode.current") == "Enabled",
            reading: error.map_or(reading, |symbol| Reading::of_failed("", symbol)),
        })
    }
}

/// Symbol of a cell that says that the GPU does not work.
fn broken(cell: &str) -> Option<&'static str> {
    let broken = ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_INSUFFICIENT_POWER"];
    symbol(cell).filter(|symbol| broken.contains(symbol))
}

/// Reasons in the bits of `nvmlClocksEventReasons` in `nvml.h`.
fn throttled(cell: &str) -> Vec<Throttle> {
    const SW_POWER_CAP: u64 = 0x4;
    const HW_SLOWDOWN: u64 = 0x8;
    const SW_THERMAL: u64 = 0x20;
    const HW_THERMAL: u64 = 0x40;
    const HW_POWER_BRAKE: u64 = 0x80;
    let bits = cell.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    // The hardware's slowdown is given in addition to its cause.
    let uncaused = bits & HW_SLOWDOWN != 0 && bits & (HW_THERMAL | HW_POWER_BRAKE) == 0;
    [
        (Throttle::Thermal, bits & (SW_THERMAL | HW_THERMAL) != 0),
        (Throttle::PowerCap, bits & SW_POWER_CAP != 0),
        (Throttle::PowerBrake, bits & HW_POWER_BRAKE != 0),
        (Throttle::Hardware, uncaused),
    ]
    .into_iter()
    .filter_map(|(reason, is)| is.then_some(reason))
    .collect()
}

/// MIG device of `nvidia-smi -L`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// UUID of its GPU.
    pub parent: String,
    /// UUID of its own.
    pub id: String,
    /// Profile, such as `1g.10gb`.
    pub profile: String,
}

impl Partition {
    /// Memory in bytes, as its profile names it, a little more than it is.
    fn memory_bytes(&self) -> u64 {
        let gigabytes = self.profile.split('.').find_map(|part| part.split_once("gb")?.0.parse::<u64>().ok());
        gigabytes.unwrap_or(0) << 30
    }
}

/// MIG devices in the output of `nvidia-smi -L`.
pub fn partitions(list: &str) -> Vec<Partition> {
    let mut parent = None;
    let mut all = Vec::new();
    for line in list.lines() {
        let uuid = line.split_once("(UUID: ").and_then(|(_, rest)| Some(rest.split_once(')')?.0.to_owned()));
        if line.starts_with("GPU ") {
            parent = uuid;
        } else if let (Some(parent), Some(id), Some(rest)) = (&parent, uuid, line.trim().strip_prefix("MIG ")) {
            let profile = rest.split_whitespace().next().unwrap_or("MIG").to_owned();
            all.push(Partition { parent: parent.clone(), id, profile });
        }
    }
    all
}

/// Processes by the UUID of their GPU, in the output for [`PROCESSES`].
pub fn processes(text: &str) -> BTreeMap<String, Vec<Process>> {
    let mut all: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if let [gpu, pid, memory] = cells[..]
            && let Ok(pid) = pid.parse()
        {
            all.entry(gpu.to_owned()).or_default().push(Process { pid, memory_bytes: mebibytes(memory) });
        }
    }
    all
}

/// Process on a MIG device, with its GPU's address and its instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceProcess {
    pci: String,
    instance: Instance,
    process: Process,
}

/// Processes on MIG devices, in the output for [`INSTANCE_PROCESSES`].
pub fn instance_processes(text: &str) -> Vec<InstanceProcess> {
    let mut all: Vec<InstanceProcess> = Vec::new();
    let (mut pci, mut gpu, mut compute) = (None, None, None);
    for line in text.lines() {
        if let Some(address) = line.strip_prefix("GPU ") {
            (pci, gpu, compute) = (pci::address(address), None, None);
            continue;
        }
        let Some((name, value)) = line.split_once(" : ") else { continue };
        match name.trim().to_ascii_lowercase().as_str() {
            "gpu instance id" => (gpu, compute) = (number(value.trim()), None),
            "compute instance id" => compute = number(value.trim()),
            "process id" => {
                if let (Some(pci), Some(gpu), Some(compute), Ok(pid)) = (&pci, gpu, compute, value.trim().parse()) {
                    let process = Process { pid, memory_bytes: None };
                    all.push(InstanceProcess { pci: pci.clone(), instance: Instance { gpu, compute }, process });
                }
            }
            "used gpu memory" => {
                // Of the process before; one that is on no instance was left out.
                if let (Some(last), Some(_)) = (all.last_mut(), gpu) {
                    last.process.memory_bytes = value.trim().strip_suffix(" MiB").and_then(mebibytes);
                }
            }
            _ => {}
        }
    }
    all
}

/// What a GPU needs before it can be used again, in NVML's numbers. Only newer drivers know.
fn recovery(cell: &str) -> Option<u32> {
    const WORDS: [(&str, u32); 11] = [
        ("none", 0),
        ("reset", 1),
        ("gpu reset", 1),
        ("reboot", 2),
        ("node reboot", 2),
        ("drain p2p", 3),
        ("drain and reset", 4),
        ("drain p2p and reset", 4),
        ("recover imex domain", 5),
        ("bus reset", 6),
        ("system reboot", 7),
    ];
    let word = cell.to_ascii_lowercase();
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, number)| *number)
}

/// Remapped rows of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Number of remapped rows.
    pub count: u32,
    /// Whether some wait for the next reset.
    pub pending: bool,
    /// Whether there were not enough spare ones.
    pub failed: bool,
}

/// Remapped rows by the UUID of their GPU, in the output for [`ROWS`]. GPUs before Ampere have none.
pub fn rows(text: &str) -> BTreeMap<String, Rows> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let [gpu, corrected, uncorrected, pending, failure] = cells[..] else { return None };
        let set = |cell: &str| yes(cell) || number::<u32>(cell).is_some_and(|n| n > 0);
        let count = number::<u32>(corrected)?.saturating_add(number(uncorrected)?);
        Some((gpu.to_owned(), Rows { count, pending: set(pending), failed: set(failure) }))
    };
    text.lines().filter_map(row).collect()
}

/// Further answers of a round; empty where they were not asked for, or failed.
#[derive(Debug, Default)]
pub struct Extra {
    /// Result of [`partitions`].
    pub partitions: Vec<Partition>,
    /// Result of [`processes`].
    pub processes: BTreeMap<String, Vec<Process>>,
    /// Result of [`instance_processes`].
    pub instance_processes: Vec<InstanceProcess>,
    /// Result of [`rows`].
    pub rows: BTreeMap<String, Rows>,
}

/// Devices as they were last told.
#[derive(Debug, Default)]
pub struct Known {
    devices: Option<Vec<Device>>,
    /// Addresses of NVIDIA's GPUs that were on the bus when all of them were asked.
    bus: BTreeSet<String>,
    /// Which GPUs were in MIG mode, by UUID, and which instances there were, when partitions were listed last.
    listed: (BTreeMap<String, bool>, BTreeSet<(u32, Instance)>),
}

/// GPUs that a round asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// All of them.
    All,
    /// Those at these PCI addresses, separated by commas as `--id` wants them; the others sleep, and a question would wake
    /// them, or cannot be woken. Empty where all are so.
    Only(String),
}

impl Known {
    /// GPUs that the next round asks. All, where one came that was not asked yet.
    pub fn to_ask(&mut self, root: &Path) -> Asked {
        let bus = on_bus(root);
        let addresses: BTreeSet<&str> = self.devices.iter().flatten().filter_map(|d| d.pci.as_deref()).collect();
        let (on, off): (Vec<&str>, Vec<&str>) =
            addresses.into_iter().partition(|pci| pci::power(root, pci) == Power::On);
        if off.is_empty() || self.bus != bus {
            self.bus = bus;
            return Asked::All;
        }
        Asked::Only(on.join(","))
    }

    /// Whether a round lists partitions (`-L`). That opens every GPU, and would wake those that sleep: beside one it is
    /// done only where MIG mode or the instances have changed.
    pub fn lists(&self, root: &Path, asked: &Asked, found: &Found) -> bool {
        let (modes, instances) = &self.listed;
        let changed = || {
            let mut modes =
                found.modes().filter(|(uuid, divided)| modes.get(*uuid).copied().unwrap_or(false) != *divided);
            modes.next().is_some() || *instances != nvidia_driver::instances(root)
        };
        found.divided() && (*asked == Asked::All || changed())
    }

    /// Notes that partitions were listed.
    pub fn listed(&mut self, root: &Path, found: &Found) {
        self.listed.0.extend(found.modes().map(|(uuid, divided)| (uuid.to_owned(), divided)));
        self.listed.1 = nvidia_driver::instances(root);
    }

    /// Lines that a round is told with, for the GPUs that were asked. One that does not answer, or sleeps, is what it was
    /// before.
    pub fn lines(&mut self, root: &Path, asked: &Asked, found: Found, extra: &Extra) -> Vec<Line> {
        let before = self.devices.clone().unwrap_or_default();
        let sleeps = |d: &&Device| match asked {
            Asked::All => false,
            Asked::Only(pcis) => d.pci.as_deref().is_some_and(|pci| pcis.split(',').all(|asked| asked != pci)),
        };
        // Older ones print nothing else when they cannot open one GPU: then the rest is as it was.
        let silent = found.rows.is_empty() && !found.lost.is_empty();
        let kept = |d: &&Device| silent || sleeps(d);
        let mut devices: Vec<Device> = before.iter().filter(kept).cloned().collect();
        let unread = |d: &Device| match d.pci.as_deref().map(|pci| pci::power(root, pci)) {
            Some(Power::Failed) => Reading::of_failed(&d.id, pci::POWER_FAILED),
            _ => Reading::of_sleeping(&d.id),
        };
        let mut readings: Vec<Reading> = before.iter().filter(sleeps).map(unread).collect();
        for row in found.rows {
            let new = row.devices(root, &before, &extra.partitions);
            for device in &new {
                readings.push(reading(device, &row.reading, extra));
            }
            devices.extend(new);
        }
        for Lost { index, pci, symbol } in found.lost {
            let there = |d: &&Device| match &pci {
                Some(pci) => d.pci.as_ref() == Some(pci),
                None => Some(d.index) == index && !devices.iter().any(|new| !silent && new.id == d.id),
            };
            let mut lost: Vec<Device> = before.iter().filter(there).cloned().collect();
            if lost.is_empty() {
                let next = devices.iter().map(|d| d.index.saturating_add(1)).max().unwrap_or(0);
                let pci = pci.or_else(|| left_over(root, index, &devices));
                lost.push(nvidia_driver::unseen(root, index.unwrap_or(next), pci));
            }
            readings.extend(lost.iter().map(|d| Reading::of_failed(&d.id, &symbol)));
            devices.extend(lost.into_iter().filter(|d| !silent || !before.contains(d)));
        }
        devices.sort_by_key(|d| d.index);

        let mut lines = Vec::new();
        let gone: Vec<Reading> = before
            .iter()
            .filter(|d| !devices.iter().any(|new| new.id == d.id))
            .map(|d| Reading::of_failed(&d.id, "NVML_ERROR_NOT_FOUND"))
            .collect();
        if !gone.is_empty() {
            lines.push(Line::Readings(gone));
        }
        if self.devices.as_ref() != Some(&devices) {
            lines.push(Line::Inventory(devices.clone()));
        }
        self.devices = Some(devices);
        lines.push(Line::Readings(readings));
        lines
    }
}

/// Address of a GPU of which only the index is known: the only one on the bus that none of `devices` has; else the one in
/// its place on the bus, in the order of which GPUs are counted.
fn left_over(root: &Path, index: Option<u32>, devices: &[Device]) -> Option<String> {
    let bus = on_bus(root);
    let left: Vec<&String> = bus.iter().filter(|pci| devices.iter().all(|d| d.pci.as_ref() != Some(pci))).collect();
    match left[..] {
        [only] => Some(only.clone()),
        _ => bus.iter().nth(usize::try_from(index?).ok()?).filter(|pci| left.contains(pci)).cloned(),
    }
}

/// Addresses of NVIDIA's GPUs on the bus.
fn on_bus(root: &Path) -> BTreeSet<String> {
    pci::gpus(root).into_iter().filter(|(_, vendor)| *vendor == Vendor::Nvidia).map(|(pci, _)| pci).collect()
}

impl Row {
    /// GPU, followed by its partitions.
    fn devices(&self, root: &Path, before: &[Device], partitions: &[Partition]) -> Vec<Device> {
        let (Some(uuid), Some(name)) = (&self.uuid, &self.name) else {
            let same = |d: &&Device| if self.pci.is_some() { d.pci == self.pci } else { d.index == self.index };
            let known: Vec<Device> = before.iter().filter(same).cloned().collect();
            let unseen = || vec![nvidia_driver::unseen(root, self.index, self.pci.clone())];
            return if known.is_empty() { unseen() } else { known };
        };
        let minor = self.pci.as_deref().and_then(|pci| nvidia_driver::minor(root, pci));
        let gpu = Device {
            id: uuid.clone(),
            name: name.clone(),
            memory_bytes: self.memory_bytes,
            divided: self.divided,
            nodes: nvidia_driver::nodes(root, minor),
            ..nvidia_driver::unseen(root, self.index, self.pci.clone())
        };
        let own = partitions.iter().filter(|p| self.divided && p.parent == *uuid);
        let own: Vec<Part> = own
            .map(|p| Part {
                id: p.id.clone(),
                profile: p.profile.clone(),
                memory_bytes: p.memory_bytes(),
                instance: None,
            })
            .collect();
        let own = nvidia_driver::partitions(root, &gpu, minor, &own, before);
        std::iter::once(gpu).chain(own).collect()
    }
}

/// Reading of a device of a row: a partition has only processes of its own.
fn reading(device: &Device, of_row: &Reading, extra: &Extra) -> Reading {
    if let Some(symbol) = &of_row.error {
        return Reading::of_failed(&device.id, symbol);
    }
    let mut reading = if device.parent.is_some() { Reading::default() } else { of_row.clone() };
    reading.id.clone_from(&device.id);
    reading.processes = extra.processes.get(&device.id).cloned().unwrap_or_default();
    let of_instance = |p: &&InstanceProcess| device.pci.as_ref() == Some(&p.pci) && device.instance == Some(p.instance);
    for InstanceProcess { process, .. } in extra.instance_processes.iter().filter(of_instance) {
        // Some versions name the MIG device in the list of all processes, too.
        match reading.processes.iter_mut().find(|p| p.pid == process.pid) {
            Some(known) => known.memory_bytes = known.memory_bytes.max(process.memory_bytes),
            None => reading.processes.push(process.clone()),
        }
    }
    if let Some(rows) = extra.rows.get(&device.id) {
        reading.remapped_rows = Some(rows.count);
        reading.remap_pending = rows.pending;
        reading.remap_failed = rows.failed;
    }
    reading
}

#[cfg(test)]
mod tests;
