//! Attaching exactly one GPU to a container. Pure.
//!
//! | vendor | first choice | else |
//! |---|---|---|
//! | NVIDIA | the CDI device of that UUID, or the one whose nodes are this GPU's | a device request by UUID, with the GPU's nodes beside it |
//! | AMD | the CDI device whose render node is this GPU's | `/dev/kfd` and the render node, with their groups |
//!
//! A CDI name counts only when the engine has it, and only when nothing on this machine says that it is another GPU's:
//! indices are counted by whoever wrote the specification, and a specification may be older than the last boot.

use std::collections::{BTreeMap, BTreeSet};

use labd_gpu::{Device as Found, DeviceNode};

use super::vendor;
use crate::{gpus::cdi::CdiDevice, spec::Device};

/// Ways in which the engine can attach devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineDevices {
    /// Engine version, such as `28.2.2`.
    pub version: String,
    /// Directories in which it looks for CDI specifications; empty when CDI is off.
    pub cdi_dirs: Vec<String>,
    /// Qualified names of the CDI devices it knows. Engines before 28.2 do not list them: then those of the
    /// specifications.
    pub cdi_names: BTreeSet<String>,
    /// CDI devices of the specifications on this machine.
    pub cdi_devices: Vec<CdiDevice>,
    /// Names of its runtimes; the NVIDIA toolkit's is `nvidia`.
    pub runtimes: BTreeSet<String>,
}

impl EngineDevices {
    /// CDI devices of one kind that the engine knows, with their nodes where a specification says them, in order of their
    /// names. The one that stands for all of them is left out.
    pub(super) fn cdi(&self, kind: &str) -> BTreeMap<&str, Option<&BTreeSet<String>>> {
        let of_kind = |name: &&String| name.strip_prefix(kind).is_some_and(|n| n.starts_with('=') && n != "=all");
        let nodes = |name: &str| self.cdi_devices.iter().find(|d| d.name == name).map(|d| &d.nodes);
        self.cdi_names.iter().filter(of_kind).map(|name| (name.as_str(), nodes(name))).collect()
    }
}

/// Devices that a container gets so that it has this GPU and no other; none for a simulated one. Fails in one line when
/// the GPU cannot be attached alone.
pub fn container_devices(found: &Found, engine: &EngineDevices) -> Result<Vec<Device>, String> {
    if found.divided {
        return Err(format!("{} is divided into partitions, which are attached instead of it", found.id));
    }
    vendor::of(found.vendor).map_or_else(|| Ok(Vec::new()), |def| (def.attach)(found, engine))
}

pub(super) fn paths(nodes: &[DeviceNode]) -> impl Iterator<Item = &str> {
    nodes.iter().map(|n| n.path.as_str())
}

pub(super) fn only<'a>(paths: impl Iterator<Item = &'a str>, wanted: fn(&str) -> bool) -> BTreeSet<&'a str> {
    paths.filter(|p| wanted(p)).collect()
}

pub(super) fn groups(nodes: &[DeviceNode]) -> Vec<u32> {
    Vec::from_iter(nodes.iter().map(|n| n.gid).collect::<BTreeSet<_>>())
}

pub(super) fn nodes(nodes: &[DeviceNode]) -> impl Iterator<Item = Device> {
    nodes.iter().map(|n| Device::Node { path: n.path.clone(), gid: n.gid })
}

#[cfg(test)]
mod tests {
    use labd_gpu::Vendor;

    use super::*;
    use crate::gpus::cdi;

    fn found(vendor: Vendor, id: &str, index: u32, nodes: &[(&str, u32)]) -> Found {
        Found {
            id: id.into(),
            vendor,
            name: "GPU".into(),
            index,
            memory_bytes: 1,
            pci: None,
            parent: None,
            partition: None,
            instance: None,
            divided: false,
            numa_node: None,
            cpu_list: None,
            nodes: nodes.iter().map(|&(path, gid)| DeviceNode { path: path.into(), gid }).collect(),
        }
    }

    /// Engine with these specifications. `lists` are the devices that it reports itself, from 28.2 on.
    fn engine(files: &[(&str, &str)], lists: Option<&[&str]>) -> EngineDevices {
        let root = cdi::tests::root(files);
        let cdi_devices = cdi::read(root.path(), &cdi::tests::dirs());
        let names = cdi_devices.iter().map(|d| d.name.clone());
        let cdi_names = lists.map_or_else(|| names.collect(), |l| l.iter().map(|&n| n.to_owned()).collect());
        EngineDevices { cdi_dirs: cdi::tests::dirs(), cdi_names, cdi_devices, ..EngineDevices::default() }
    }

    fn said(found: &Found, engine: &EngineDevices) -> String {
        let word = |d: &Device| match d {
            Device::Cdi { name, gids } => format!("{name} {gids:?}"),
            Device::Nvidia { uuid } => uuid.clone(),
            Device::Node { path, gid } => format!("{path} [{gid}]"),
        };
        match container_devices(found, engine) {
            Ok(all) => all.iter().map(word).collect::<Vec<_>>().join(", "),
            Err(line) => line,
        }
    }

    #[test]
    fn an_nvidia_gpu_is_attached_by_its_own_name_or_its_own_nodes() {
        let none = engine(&[], None);
        let toolkit = engine(&[("etc/cdi/nvidia.yaml", cdi::tests::NVIDIA)], None);
        let ctl = ("/dev/nvidiactl", 0);
        let first = found(Vendor::Nvidia, "GPU-aaaa", 0, &[("/dev/nvidia0", 0), ctl]);
        let second = found(Vendor::Nvidia, "GPU-bbbb", 1, &[("/dev/nvidia1", 0), ctl]);
        assert_eq!(said(&first, &toolkit), "nvidia.com/gpu=GPU-aaaa [0]");
        assert_eq!(said(&second, &toolkit), "nvidia.com/gpu=1 [0]", "the file knows indices alone");
        assert_eq!(said(&first, &none), "GPU-aaaa, /dev/nvidia0 [0], /dev/nvidiactl [0]");
        // The library counts a lost GPU no more: index 0 is now what the file calls 1.
        let shifted = found(Vendor::Nvidia, "GPU-bbbb", 0, &[("/dev/nvidia1", 0)]);
        assert_eq!(said(&shifted, &toolkit), "nvidia.com/gpu=1 [0]");
        // The file is older than the last boot: its GPU-aaaa was node 0.
        let moved = found(Vendor::Nvidia, "GPU-aaaa", 1, &[("/dev/nvidia2", 0)]);
        assert_eq!(said(&moved, &toolkit), "GPU-aaaa, /dev/nvidia2 [0]");
        // Without nodes to compare, an index is nothing to go by.
        assert_eq!(said(&found(Vendor::Nvidia, "GPU-bbbb", 1, &[]), &toolkit), "GPU-bbbb");
        // The engine's own list goes before the files.
        let stale = engine(&[("etc/cdi/nvidia.yaml", cdi::tests::NVIDIA)], Some(&["nvidia.com/gpu=1"]));
        assert_eq!(said(&first, &stale), "GPU-aaaa, /dev/nvidia0 [0], /dev/nvidiactl [0]");
        let hidden = engine(&[], Some(&["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-aaaa", "nvidia.com/gpu=all"]));
        assert_eq!(said(&first, &hidden), "nvidia.com/gpu=GPU-aaaa [0]");
        assert!(said(&found(Vendor::Nvidia, "0000:41:00.0", 0, &[]), &none).contains("nvidia-smi -L"));
    }

    #[test]
    fn a_partition_is_attached_and_never_its_gpu() {
        let yaml = "kind: nvidia.com/gpu\ndevices:\n- name: '0:0'\n  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, \
                    {path: /dev/nvidia-caps/nvidia-cap12}]}\n- name: '0:1'\n  containerEdits: {deviceNodes: [{path: \
                    /dev/nvidia0}, {path: /dev/nvidia-caps/nvidia-cap21}]}\n";
        let engine = engine(&[("var/run/cdi/nvidia.yaml", yaml)], None);
        let nodes = [("/dev/nvidia0", 0), ("/dev/nvidia-caps/nvidia-cap21", 0)];
        let mut gpu = found(Vendor::Nvidia, "MIG-1", 0, &nodes);
        assert_eq!(said(&gpu, &engine), "nvidia.com/gpu=0:1 [0]");
        assert!(said(&gpu, &EngineDevices::default()).starts_with("MIG-1, /dev/nvidia0"));
        gpu.divided = true;
        assert!(container_devices(&gpu, &engine).is_err());
    }

    #[test]
    fn a_partition_is_attached_by_cdi_by_the_toolkit_and_by_its_capabilities() {
        let yaml = |name: &str, nodes: &str| {
            let nodes: Vec<String> = nodes.split(' ').map(|n| format!("{{path: /dev/{n}}}")).collect();
            format!("- name: '{name}'\n  containerEdits: {{deviceNodes: [{}]}}\n", nodes.join(", "))
        };
        let cap = |n: u32| format!("nvidia0 nvidia-caps/nvidia-cap{n} nvidia-caps/nvidia-cap{}", n + 1);
        let file = |devices: &[String]| format!("kind: nvidia.com/gpu\ndevices:\n{}", devices.concat());
        let by_id = file(&[yaml("MIG-1", &cap(12)), yaml("MIG-2", &cap(21))]);
        let by_index = file(&[yaml("0", "nvidia0"), yaml("0:0", &cap(12)), yaml("0:1", &cap(21))]);
        let with = |text: &str| engine(&[("var/run/cdi/nvidia.yaml", text)], None);
        let caps = ["/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"];
        let known = found(Vendor::Nvidia, "MIG-2", 0, &[("/dev/nvidia0", 0), (caps[0], 0), (caps[1], 0)]);
        let unknown = found(Vendor::Nvidia, "MIG-2", 0, &[("/dev/nvidia0", 0)]);
        assert_eq!(said(&known, &with(&by_id)), "nvidia.com/gpu=MIG-2 [0]");
        assert_eq!(said(&unknown, &with(&by_id)), "nvidia.com/gpu=MIG-2 [0]", "its own name says enough");
        assert_eq!(said(&known, &with(&by_index)), "nvidia.com/gpu=0:1 [0]");
        assert_eq!(said(&unknown, &with(&by_index)), "MIG-2, /dev/nvidia0 [0]", "and never its whole GPU");
        let none = EngineDevices::default();
        assert_eq!(said(&known, &none), format!("MIG-2, /dev/nvidia0 [0], {} [0], {} [0]", caps[0], caps[1]));
        let moved = found(Vendor::Nvidia, "MIG-2", 0, &[("/dev/nvidia1", 0), (caps[0], 0)]);
        assert!(said(&moved, &with(&by_id)).starts_with("MIG-2, /dev/nvidia1"), "the file is older than the last boot");
    }

    #[test]
    fn an_amd_gpu_is_told_by_its_render_node() {
        let toolkit = engine(&[("etc/cdi/amd.json", cdi::tests::AMD)], None);
        let none = EngineDevices::default();
        let gpu = |render| found(Vendor::Amd, "0xabc", 0, &[("/dev/kfd", 109), (render, 110)]);
        // The index is another GPU's.
        assert_eq!(said(&gpu("/dev/dri/renderD129"), &toolkit), "amd.com/gpu=1 [109, 110]");
        assert_eq!(said(&gpu("/dev/dri/renderD130"), &toolkit), "amd.com/gpu=0 [109, 110]");
        let nodes = "/dev/kfd [109], /dev/dri/renderD131 [110]";
        assert_eq!(said(&gpu("/dev/dri/renderD131"), &toolkit), nodes);
        assert_eq!(said(&gpu("/dev/dri/renderD131"), &none), nodes);
        assert!(said(&found(Vendor::Amd, "x", 0, &[("/dev/kfd", 109)]), &none).contains("no render node"));
        assert!(said(&found(Vendor::Amd, "x", 0, &[("/dev/dri/renderD129", 109)]), &none).contains("no /dev/kfd"));
        assert_eq!(said(&found(Vendor::Simulated, "SIM-0", 0, &[]), &toolkit), "");
    }
}
