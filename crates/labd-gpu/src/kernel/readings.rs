//! Present readings of AMD's GPUs, from the files of the driver and of its sensors. A value without a file is absent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::nodes::{Node, entries};
use crate::{
    Process, Reading, files,
    pci::{self, Power},
};

/// Value of [`Reading::error`] for a GPU whose PCI device is gone: the kernel's own word for it.
pub const GONE: &str = "ENODEV";

/// Reading of one GPU. A partition reports only what is its own, or what concerns it whatever the cause: the chip's
/// temperature and memory errors, but not the power and the load of the whole GPU.
///
/// Of a GPU that sleeps nothing is read that its driver would have to ask it for. That would wake it each second; and on
/// some (gfx1201) the counters of errors are rubbish then, which the driver adds up and prints as uncorrectable errors.
pub(super) fn reading(root: &Path, node: &Node) -> Reading {
    let device = &node.device;
    let dir = pci::directory(root, device.pci.as_deref().unwrap_or_default());
    if !dir.exists() {
        return gone(&device.id);
    }
    let power = device.pci.as_deref().map_or(Power::On, |pci| pci::power(root, pci));
    if power == Power::Failed {
        // Its driver would try to wake it for each file.
        return Reading::of_failed(&device.id, pci::POWER_FAILED);
    }
    let asleep = power == Power::Asleep;
    // KFD keeps its processes in memory.
    let processes = processes(root, node.gpu_id);
    let mut reading = Reading { id: device.id.clone(), asleep, processes, ..Reading::default() };
    if asleep {
        return reading;
    }
    reading.temperature_c = temperature(&dir);
    (reading.ecc_corrected, reading.ecc_uncorrected) = memory_errors(&dir);
    if device.parent.is_some() {
        reading.memory_used_bytes = files::number(&node.topology.join("mem_banks/0/used_memory"));
        return reading;
    }
    reading.utilisation_percent = files::number(&dir.join("gpu_busy_percent")).filter(|p| *p <= 100).map(|p| p as f32);
    reading.memory_used_bytes = memory_used(&dir, node);
    reading.power_w = ["power1_average", "power1_input"].iter().find_map(|file| watts(&dir, file));
    reading.power_limit_w = watts(&dir, "power1_cap");
    reading.clock_mhz = clock(&dir.join("pp_dpm_sclk"));
    reading.memory_clock_mhz = clock(&dir.join("pp_dpm_mclk"));
    reading
}

/// Memory in use. What a CPU's graphics computes in is the machine's (GTT) where that is what it has.
fn memory_used(device: &Path, node: &Node) -> Option<u64> {
    let own = files::number(&device.join("mem_info_vram_used"))?;
    let set_apart = files::number(&device.join("mem_info_vram_total")).unwrap_or(u64::MAX);
    let shared = node.integrated && node.device.memory_bytes > set_apart;
    let gtt = if shared { files::number(&device.join("mem_info_gtt_used")) } else { None };
    Some(own.saturating_add(gtt.unwrap_or(0)))
}

/// Reading of a GPU that the kernel no longer has.
pub(super) fn gone(id: &str) -> Reading {
    Reading::of_failed(id, GONE)
}

/// Temperature at the edge of the chip, as `rocm-smi` shows it; at its hottest place where there is no such sensor
/// (MI300).
fn temperature(device: &Path) -> Option<f32> {
    let sensors = thermometers(device);
    ["edge", "junction"].iter().find_map(|wanted| {
        let (_, file) = sensors.iter().find(|(label, _)| label == wanted)?;
        Some(thousandths(file)? as f32 / 1e3)
    })
}

/// Distance below its limit, in thousandths of a degree, from which on a place is at it: it is kept there by slowing down.
const NEAR: u64 = 5_000;

/// Whether this place of the chip is as hot as the driver lets it be (`temp*_crit`).
pub(super) fn at_limit(device: &Path, wanted: &str) -> bool {
    thermometers(device).iter().any(|(label, file)| {
        let limit = file.to_str().and_then(|name| name.strip_suffix("_input")).map(|stem| format!("{stem}_crit"));
        let limit = limit.and_then(|name| thousandths(Path::new(&name)));
        label == wanted && thousandths(file).zip(limit).is_some_and(|(now, limit)| now + NEAR >= limit)
    })
}

/// Files with its temperatures, each with the place that it is of.
fn thermometers(device: &Path) -> Vec<(String, PathBuf)> {
    sensors(device)
        .iter()
        .flat_map(|dir| entries(dir))
        .filter_map(|file| {
            let stem = file.file_name()?.to_str()?.strip_suffix("_input")?.strip_prefix("temp")?.to_owned();
            let label = files::text(&file.with_file_name(format!("temp{stem}_label")));
            // Kernels before 5.3 have one sensor, without a label.
            Some((label.unwrap_or_else(|| "edge".to_owned()), file))
        })
        .collect()
}

/// Temperature in a file, in thousandths of a degree. A sensor of a GPU that does not answer says 0 or all ones.
fn thousandths(file: &Path) -> Option<u64> {
    files::number(file).filter(|t| (1_000..200_000).contains(t))
}

/// Watts in a file in millionths. 0 is not an answer: the second die of an MI250 leaves it to the first.
fn watts(device: &Path, file: &str) -> Option<f32> {
    sensors(device)
        .iter()
        .find_map(|dir| files::number(&dir.join(file)))
        .filter(|power| (1..100_000_000_000).contains(power))
        .map(|power| power as f32 / 1e6)
}

/// Directories with its sensors: one.
fn sensors(device: &Path) -> Vec<PathBuf> {
    entries(&device.join("hwmon"))
}

/// Clock in MHz out of a list of levels such as `1: 1502Mhz *`, where the star marks the level in use.
fn clock(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    let level = text.lines().find(|line| line.trim_end().ends_with('*'))?;
    let value = level.split_once(':')?.1.trim().trim_end_matches('*').trim_end().to_ascii_lowercase();
    value.strip_suffix("mhz")?.trim().parse().ok()
}

/// Numbers of errors of its memory (`umc`) that were corrected and that were not. Its other blocks have files of their own:
/// of their errors the kernel's lines tell, and the memory is well. Absent for GPUs without error correction.
fn memory_errors(device: &Path) -> (Option<u64>, Option<u64>) {
    let counts = files::numbers(&device.join("ras/umc_err_count"));
    (counts.get("ce").copied(), counts.get("ue").copied())
}

/// Processes that hold memory or a queue on it. KFD lists a process for every GPU that it can see; only these use it.
fn processes(root: &Path, gpu_id: u64) -> Vec<Process> {
    entries(&root.join("sys/class/kfd/kfd/proc"))
        .iter()
        .filter_map(|dir| {
            let pid = dir.file_name()?.to_str()?.parse().ok()?;
            let memory = files::number(&dir.join(format!("vram_{gpu_id}")));
            let queues = || entries(&dir.join("queues"));
            let uses = memory.is_some_and(|m| m > 0)
                || queues().iter().any(|queue| files::number(&queue.join("gpuid")) == Some(gpu_id));
            uses.then_some(Process { pid, memory_bytes: memory })
        })
        .collect()
}
