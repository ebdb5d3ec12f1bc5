//! A small stand-in for `labd_gpu::kernel`, with the two functions of it that are used here. To be deleted for it: nothing
//! else in this crate lists GPUs from the kernel's files, or reads values from them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use labd_gpu::{Device, DeviceNode, Reading, Vendor};

/// Every GPU (or partition of one) that can compute, by PCI address. `root` is `/`, or a folder that stands for it.
pub(crate) fn inventory(root: &Path) -> Vec<Device> {
    let mut found: Vec<(u64, Device)> =
        folders(&root.join("sys/class/kfd/kfd/topology/nodes")).iter().filter_map(|node| device(root, node)).collect();
    found.sort_by_key(|(place, _)| *place);
    let devices: Vec<Device> = found.into_iter().map(|(_, device)| device).collect();
    let gpus = devices.chunk_by(|a, b| a.pci == b.pci).enumerate();
    gpus.flat_map(|(index, gpu)| {
        gpu.iter().enumerate().map(move |(i, device)| Device {
            id: if i == 0 { device.id.clone() } else { format!("{}.{i}", device.id) },
            index: index as u32,
            parent: (gpu.len() > 1).then(|| gpu[0].id.clone()),
            ..device.clone()
        })
    })
    .collect()
}

/// Memory and power of `devices`, in their order. One that is gone says so in its `error`.
pub(crate) fn readings(root: &Path, devices: &[Device]) -> Vec<Reading> {
    devices
        .iter()
        .map(|device| {
            let mut reading = Reading { id: device.id.clone(), ..Reading::default() };
            let folder = folder(root, device.pci.as_deref().unwrap_or_default());
            if !folder.exists() {
                return Reading { error: Some("ENODEV".into()), ..reading };
            }
            if device.parent.is_some() {
                return reading;
            }
            reading.memory_used_bytes = number(&folder.join("mem_info_vram_used"));
            for sensors in folders(&folder.join("hwmon")) {
                let watts = |name: &str| number(&sensors.join(name)).map(|microwatts| microwatts as f32 / 1e6);
                reading.power_w = watts("power1_average").or_else(|| watts("power1_input"));
                reading.power_limit_w = watts("power1_cap");
            }
            reading
        })
        .collect()
}

/// The device of a node of the topology, with what orders it; none for a CPU.
fn device(root: &Path, node: &Path) -> Option<(u64, Device)> {
    let properties = read(&node.join("properties"));
    let get = |name: &str| properties.get(name).copied().unwrap_or(0);
    if get("simd_count") == 0 {
        return None;
    }
    // The partition's number is in the highest four bits.
    let (domain, place, partition) = (get("domain"), get("location_id") & 0xffff, get("location_id") >> 28);
    let pci = format!("{domain:04x}:{:02x}:{:02x}.{:x}", place >> 8, (place >> 3) & 0x1f, place & 7);
    let paths = ["/dev/kfd".to_owned(), format!("/dev/dri/renderD{}", get("drm_render_minor"))];
    let nodes = paths.into_iter().filter_map(|path| {
        let gid = fs::metadata(root.join(&path[1..])).ok()?.gid();
        Some(DeviceNode { path, gid })
    });
    let device = Device {
        id: if get("unique_id") == 0 { pci.clone() } else { format!("{:#018x}", get("unique_id")) },
        vendor: Vendor::Amd,
        name: "AMD GPU".into(),
        index: 0,
        memory_bytes: folders(&node.join("mem_banks"))
            .iter()
            .filter_map(|bank| read(&bank.join("properties")).get("size_in_bytes").copied())
            .sum(),
        pci: Some(pci),
        parent: None,
        partition: None,
        divided: false,
        numa_node: None,
        cpu_list: None,
        nodes: nodes.collect(),
    };
    Some((domain << 32 | place << 8 | partition, device))
}

fn folder(root: &Path, pci: &str) -> PathBuf {
    root.join("sys/bus/pci/devices").join(pci)
}

fn folders(of: &Path) -> Vec<PathBuf> {
    fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn read(file: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}
