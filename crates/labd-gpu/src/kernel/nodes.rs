//! AMD's GPUs as the kernel's compute driver (KFD) lists them, each joined with its PCI device.
//!
//! KFD has one topology node per GPU, and one per partition of a GPU that is divided (MI300X in CPX or DPX mode): those have
//! one unique id and one PCI device, and are told apart by the function number in `location_id`, by `drm_render_minor` and
//! by `gpu_id`. A board without compute, such as a BMC's, has a render node and no topology node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::names;
use crate::{Device, DeviceNode, Vendor, files, pci};

/// Graphics targets that exist only as part of a CPU, as `gfx_target_version` has them (10000 × major + 100 × minor +
/// stepping): those marked "APU" in LLVM's table of AMDGPU processors. gfx942 is not among them: an MI300A is integrated,
/// and made for nothing but compute.
const INTEGRATED: [u64; 15] = [
    70_000,  // gfx700  Kaveri
    80_001,  // gfx801  Carrizo
    80_100,  // gfx810  Stoney
    90_002,  // gfx902  Raven
    90_009,  // gfx909  Raven 2
    90_012,  // gfx90c  Renoir, Cezanne
    100_103, // gfx1013 Cyan Skillfish
    100_303, // gfx1033 Van Gogh
    100_305, // gfx1035 Rembrandt
    100_306, // gfx1036 Raphael, Granite Ridge
    110_003, // gfx1103 Phoenix
    110_500, // gfx1150 Strix Point
    110_501, // gfx1151 Strix Halo
    110_502, // gfx1152 Krackan Point
    110_503, // gfx1153
];

/// KFD's kinds of memory banks (`heap_type`) that are a GPU's own: frame buffer, visible to the CPU or not. 0 is the
/// system's.
const OWN_MEMORY: [u64; 2] = [1, 2];

/// GPU or partition, with what its readings need.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Device as labd is told of it.
    pub(super) device: Device,
    /// Number that KFD gives it, as in the files of `/sys/class/kfd/kfd/proc`.
    pub(super) gpu_id: u64,
    /// Directory in the topology.
    pub(super) topology: PathBuf,
    /// Whether it is part of a CPU.
    pub(super) integrated: bool,
}

/// Topology node of KFD.
struct Topology {
    dir: PathBuf,
    properties: BTreeMap<String, u64>,
    gpu_id: u64,
    /// PCI address such as `0000:05:00.0`, without the function that marks a partition.
    pci: String,
    /// Function of the PCI address.
    function: u64,
}

impl Topology {
    fn read(root: &Path, dir: PathBuf) -> Option<Self> {
        let properties = files::numbers(&dir.join("properties"));
        let get = |name: &str| properties.get(name).copied().unwrap_or(0);
        // A node without SIMDs is a CPU's.
        if get("simd_count") == 0 {
            return None;
        }
        // As in PCI's own requester id: bus, 5 bits of device, 3 bits of function.
        let location = get("location_id");
        let (domain, function) = (get("domain"), location & 7);
        let place = format!("{domain:04x}:{:02x}:{:02x}", location >> 8 & 0xff, location >> 3 & 0x1f);
        let own = format!("{place}.{function}");
        let pci = if pci::directory(root, &own).exists() { own } else { format!("{place}.0") };
        let gpu_id = files::number(&dir.join("gpu_id")).unwrap_or(0);
        Some(Self { dir, properties, gpu_id, pci, function })
    }

    fn get(&self, name: &str) -> u64 {
        self.properties.get(name).copied().unwrap_or(0)
    }

    /// Memory of its own, in bytes.
    fn memory(&self) -> u64 {
        entries(&self.dir.join("mem_banks"))
            .iter()
            .map(|bank| files::numbers(&bank.join("properties")))
            .filter(|bank| bank.get("heap_type").is_some_and(|kind| OWN_MEMORY.contains(kind)))
            .filter_map(|bank| bank.get("size_in_bytes").copied())
            .sum()
    }

    /// Whether it is part of a CPU. Kernels up to 5.x give such a GPU one node together with the CPU; later ones give it
    /// its own, with a `cpu_cores_count` of 0 and up to most of the machine's memory in a bank that looks like a discrete
    /// GPU's: then its graphics target says so, or that the kernel measures no load of memory of its own
    /// (`mem_busy_percent` exists for discrete GPUs only).
    fn integrated(&self, device: &Path) -> bool {
        let target = self.get("gfx_target_version");
        let unknown_kind = target >= 100_000 && self.get("unique_id") == 0;
        self.get("cpu_cores_count") > 0
            || INTEGRATED.contains(&target)
            || (unknown_kind && device.join("gpu_busy_percent").exists() && !device.join("mem_busy_percent").exists())
    }
}

/// GPUs that containers can be given, by PCI address and partition.
///
/// An integrated GPU is left out where there is a discrete one, of any vendor: work for the lab's GPUs must not land on the
/// CPU's. Where there is nothing else, it is the lab's GPU. Numbers ([`Device::index`]) count all of AMD's, as `rocm-smi`
/// does.
pub(super) fn nodes(root: &Path) -> Vec<Node> {
    let mut found: Vec<Topology> = entries(&root.join("sys/class/kfd/kfd/topology/nodes"))
        .into_iter()
        .filter_map(|dir| Topology::read(root, dir))
        .collect();
    found.sort_by(|a, b| (&a.pci, a.function).cmp(&(&b.pci, b.function)));
    let mut nodes: Vec<Node> = Vec::new();
    let mut taken = BTreeSet::new();
    for (index, gpu) in found.chunk_by(|a, b| a.pci == b.pci).enumerate() {
        nodes.extend(of_one_gpu(root, gpu, u32::try_from(index).unwrap_or(u32::MAX), &mut taken));
    }
    let other_vendor = pci::gpus(root).iter().any(|(_, vendor)| *vendor != Vendor::Amd);
    if other_vendor || nodes.iter().any(|n| !n.integrated) {
        nodes.retain(|n| !n.integrated);
    }
    nodes
}

/// Nodes of one PCI device: one, or its partitions. `taken` are the ids of the GPUs before.
fn of_one_gpu(root: &Path, gpu: &[Topology], index: u32, taken: &mut BTreeSet<String>) -> Vec<Node> {
    let Some(first) = gpu.first() else { return Vec::new() };
    let dir = pci::directory(root, &first.pci);
    // Two boards with one unique id were seen with unreleased firmware: the address tells them apart.
    let base = unique_id(first, &dir).filter(|id| !taken.contains(id)).unwrap_or_else(|| first.pci.clone());
    taken.insert(base.clone());
    let (numa_node, cpu_list) = pci::locality(root, &first.pci);
    let device_id = u32::try_from(files::number(&dir.join("device")).unwrap_or_else(|| first.get("device_id")));
    let name = files::text(&dir.join("product_name")).unwrap_or_else(|| names::name(device_id.unwrap_or(0)));
    let partitions = gpu.len() > 1;
    // The driver asks the GPU for it, which wakes one that sleeps; what is divided never sleeps.
    let mode = if partitions { files::text(&dir.join("current_compute_partition")) } else { None };
    gpu.iter()
        .enumerate()
        .map(|(i, node)| {
            let integrated = node.integrated(&dir);
            let whole_memory = files::number(&dir.join("mem_info_vram_total")).filter(|_| !partitions);
            // Since Linux 6.10 a CPU's graphics computes in the machine's memory where little was set apart for it, as on
            // Strix Halo: then KFD's bank is that, and the driver's number the little.
            let whole_memory = whole_memory.map(|own| if integrated { own.max(node.memory()) } else { own });
            let device = Device {
                id: if i == 0 { base.clone() } else { format!("{base}.{i}") },
                vendor: Vendor::Amd,
                name: name.clone(),
                index,
                memory_bytes: whole_memory.unwrap_or_else(|| node.memory()),
                pci: Some(first.pci.clone()),
                parent: partitions.then(|| base.clone()),
                partition: mode.clone(),
                instance: None,
                divided: false,
                numa_node,
                cpu_list: cpu_list.clone(),
                nodes: device_nodes(root, node),
            };
            Node { device, gpu_id: node.gpu_id, topology: node.dir.clone(), integrated }
        })
        .collect()
}

/// Unique id, `0x` and 16 digits; `None` for a GPU that has none (0).
fn unique_id(node: &Topology, dir: &Path) -> Option<String> {
    let in_device = || u64::from_str_radix(&files::text(&dir.join("unique_id"))?, 16).ok();
    let id = Some(node.get("unique_id")).filter(|id| *id != 0).or_else(in_device).filter(|id| *id != 0)?;
    Some(format!("{id:#018x}"))
}

/// Device nodes that a container needs to use it: the compute driver's, which all share, and its own render node. A
/// node that does not exist is left out.
fn device_nodes(root: &Path, node: &Topology) -> Vec<DeviceNode> {
    let render = render_node(root, node).map(|minor| format!("/dev/dri/renderD{minor}"));
    ["/dev/kfd".to_owned()]
        .into_iter()
        .chain(render)
        .filter_map(|path| {
            let gid = fs::metadata(root.join(path.trim_start_matches('/'))).ok()?.gid();
            Some(DeviceNode { path, gid })
        })
        .collect()
}

/// Number of its render node, as KFD reports it, unless that node belongs to another PCI device; else (old kernels
/// report nothing) that of the one below its PCI device.
fn render_node(root: &Path, node: &Topology) -> Option<u64> {
    let said = node.get("drm_render_minor");
    if said > 0 {
        let owner = fs::canonicalize(root.join(format!("sys/class/drm/renderD{said}/device")));
        let owner = owner.ok().and_then(|dir| pci::address(&dir.file_name()?.to_string_lossy()));
        // Partitions after the first are below the platform device `amdgpu_xcp`, which has no address.
        if owner.is_none_or(|owner| owner == node.pci) {
            return Some(said);
        }
    }
    entries(&pci::directory(root, &node.pci).join("drm"))
        .iter()
        .find_map(|dir| dir.file_name()?.to_str()?.strip_prefix("renderD")?.parse().ok())
}

/// Entries of a directory, in the order of their numbers where they are called by numbers.
pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.sort_by_key(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        (name.parse::<u64>().unwrap_or(u64::MAX), name)
    });
    all
}
