//! NVIDIA's kernel driver as the host shows it, whether or not its library answers. Pure over a root path, `/` on a real
//! machine.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{Device, DeviceNode, Instance, Vendor, files, pci};

/// Device nodes that all GPUs share. A MIG device needs two more, see [`partitions`].
const SHARED_NODES: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// Version of the driver that runs; `None` when none does.
pub fn version(root: &Path) -> Option<String> {
    files::text(&root.join("sys/module/nvidia/version"))
}

/// Number in the name of a GPU's device node. Not its index: that depends on the order of PCI addresses.
pub fn minor(root: &Path, pci: &str) -> Option<u32> {
    let text = files::text(&root.join("proc/driver/nvidia/gpus").join(pci).join("information"))?;
    text.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse().ok())
}

/// MIG device as a library or a command lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// UUID, `MIG-` and so on.
    pub id: String,
    /// Profile, such as `1g.10gb`, or `1c.2g.20gb` for a share of a GPU instance.
    pub profile: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Its instance, where the source says so.
    pub instance: Option<Instance>,
}

/// MIG devices of a GPU, in the order in which NVML counts them. Each has its GPU's node, the shared ones, and the two in
/// `/dev/nvidia-caps` that open its GPU instance and its compute instance.
///
/// Neither `nvml-wrapper` nor `nvidia-smi -L` reports which instance a MIG device is. UUIDs of drivers before R470 name it
/// (`MIG-GPU-<uuid>/<GPU instance>/<compute instance>`). Else it follows from the order: NVML counts MIG devices in the
/// order of their instances' numbers, of which the driver's capabilities have the list. Where the two do not fit together,
/// as while an instance is made, it is what it was `before`, as long as the driver has that; else it is not known.
pub fn partitions(root: &Path, gpu: &Device, minor: Option<u32>, parts: &[Part], before: &[Device]) -> Vec<Device> {
    let capabilities = minor.map(|minor| capabilities(root, minor)).unwrap_or_default();
    let told: Vec<Option<Instance>> =
        parts.iter().map(|part| part.instance.or_else(|| instance_in(&part.id))).collect();
    let in_order = in_order(parts, &told, &capabilities);
    let known = |id: &str| {
        let instance = before.iter().find(|d| d.id == id)?.instance?;
        let there = capabilities.iter().any(|c| c.instance == instance) && !told.contains(&Some(instance));
        there.then_some(instance)
    };
    let of = |(i, part): (usize, &Part)| told[i].or_else(|| in_order.get(i).copied()).or_else(|| known(&part.id));
    let instances: Vec<Option<Instance>> = parts.iter().enumerate().map(of).collect();
    parts
        .iter()
        .zip(instances)
        .map(|(part, instance)| {
            let own = instance.and_then(|instance| capabilities.iter().find(|c| c.instance == instance));
            let own = own.into_iter().flat_map(|c| c.nodes.clone()).filter_map(|path| node(root, path));
            Device {
                id: part.id.clone(),
                memory_bytes: part.memory_bytes,
                parent: Some(gpu.id.clone()),
                partition: Some(part.profile.clone()),
                instance,
                divided: false,
                nodes: gpu.nodes.iter().cloned().chain(own).collect(),
                ..gpu.clone()
            }
        })
        .collect()
}

/// Instance that an old UUID names.
fn instance_in(id: &str) -> Option<Instance> {
    let mut words = id.strip_prefix("MIG-GPU-")?.split('/').skip(1);
    let (gpu, compute) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(Instance { gpu, compute })
}

/// Instances of MIG devices by their order, or none: where there are as many of both, what is told of some agrees, and a
/// profile of a whole GPU instance is alone in one.
fn in_order(parts: &[Part], told: &[Option<Instance>], capabilities: &[Capability]) -> Vec<Instance> {
    let instances: Vec<Instance> = capabilities.iter().map(|c| c.instance).collect();
    let alone = |instance: &Instance| instances.iter().filter(|other| other.gpu == instance.gpu).count() == 1;
    let fits = |((part, told), instance): ((&Part, &Option<Instance>), &Instance)| {
        let shares = part.profile.split_once('c').is_some_and(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()));
        told.is_none_or(|told| told == *instance) && (shares || alone(instance))
    };
    let all = instances.len() == parts.len() && parts.iter().zip(told).zip(&instances).all(fits);
    if all { instances } else { Vec::new() }
}

/// Compute instance that the driver has, with the nodes that open it.
#[derive(Debug)]
struct Capability {
    instance: Instance,
    nodes: Vec<String>,
}

/// Compute instances of the GPU `/dev/nvidia<minor>`, in the order of their numbers.
fn capabilities(root: &Path, minor: u32) -> Vec<Capability> {
    let mig = root.join(format!("proc/driver/nvidia/capabilities/gpu{minor}/mig"));
    let mut all: Vec<Capability> = Vec::new();
    for (gpu, dir) in numbered(&mig, "gi") {
        for (compute, own) in numbered(&dir, "ci") {
            let nodes = [&dir, &own].into_iter().filter_map(|dir| capability_node(&dir.join("access"))).collect();
            all.push(Capability { instance: Instance { gpu, compute }, nodes });
        }
    }
    all.sort_by_key(|c| c.instance);
    all
}

/// Instances of all GPUs, each with its GPU's [`minor`]. Nothing is asked: the files are the driver's own.
pub fn instances(root: &Path) -> BTreeSet<(u32, Instance)> {
    let gpus = numbered(&root.join("proc/driver/nvidia/capabilities"), "gpu");
    gpus.into_iter().flat_map(|(gpu, _)| capabilities(root, gpu).into_iter().map(move |c| (gpu, c.instance))).collect()
}

/// Folders whose names are `prefix` and a number.
fn numbered(dir: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()?, path));
    entries.filter_map(|entry| number(entry.path())).collect()
}

/// Device node that a capability's file names by its number.
fn capability_node(access: &Path) -> Option<String> {
    let text = files::text(access)?;
    let number: u32 = text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())?;
    Some(format!("/dev/nvidia-caps/nvidia-cap{number}"))
}

/// Device node with its group, if it exists.
fn node(root: &Path, path: String) -> Option<DeviceNode> {
    let gid = fs::metadata(root.join(path.trim_start_matches('/'))).ok()?.gid();
    Some(DeviceNode { path, gid })
}

/// The device nodes that a container needs for the GPU `/dev/nvidia<minor>`, as far as they exist.
pub fn nodes(root: &Path, minor: Option<u32>) -> Vec<DeviceNode> {
    let own = minor.map(|minor| format!("/dev/nvidia{minor}"));
    own.into_iter().chain(SHARED_NODES.map(str::to_owned)).filter_map(|path| node(root, path)).collect()
}

/// GPU of which only the PCI address is known: the driver has it, and it does not answer. The address is its id, since
/// it is what a person needs to find it.
pub fn unseen(root: &Path, index: u32, pci: Option<String>) -> Device {
    let (numa_node, cpu_list) = pci.as_deref().map_or((None, None), |pci| pci::locality(root, pci));
    Device {
        id: pci.clone().unwrap_or_else(|| format!("nvidia-{index}")),
        vendor: Vendor::Nvidia,
        name: "NVIDIA GPU".to_owned(),
        index,
        memory_bytes: 0,
        pci,
        parent: None,
        partition: None,
        instance: None,
        divided: false,
        numa_node,
        cpu_list,
        nodes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// Machine whose `/dev/nvidia3` has these instances; capability files as the driver writes them.
    fn machine(instances: &[(u32, u32)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let mig = "proc/driver/nvidia/capabilities/gpu3/mig";
        let capability = |path: &str, number: u32| {
            let text = format!("DeviceFileMinor: {number}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
            file(root.path(), path, &text);
            file(root.path(), &format!("dev/nvidia-caps/nvidia-cap{number}"), "");
        };
        for (gpu, compute) in instances {
            capability(&format!("{mig}/gi{gpu}/access"), 10 * gpu);
            capability(&format!("{mig}/gi{gpu}/ci{compute}/access"), 10 * gpu + compute + 1);
        }
        for node in ["nvidia3", "nvidiactl"] {
            file(root.path(), &format!("dev/{node}"), "");
        }
        root
    }

    /// Id and profile of a partition, and its instance where the source says that.
    type Listed<'a> = (&'a str, &'a str, Option<(u32, u32)>);

    fn devices(root: &Path, parts: &[Listed<'_>], before: &[Device]) -> Vec<Device> {
        let instance = |(gpu, compute)| Instance { gpu, compute };
        let part = |&(id, profile, told): &Listed<'_>| Part {
            id: id.to_owned(),
            profile: profile.to_owned(),
            memory_bytes: 1,
            instance: told.map(instance),
        };
        let parts: Vec<Part> = parts.iter().map(part).collect();
        let gpu = Device { id: "GPU-a".into(), divided: true, nodes: nodes(root, Some(3)), ..unseen(root, 0, None) };
        partitions(root, &gpu, Some(3), &parts, before)
    }

    /// Instance and own nodes of each partition.
    fn told(root: &Path, parts: &[Listed<'_>]) -> Vec<String> {
        told_after(root, parts, &[])
    }

    fn told_after(root: &Path, parts: &[Listed<'_>], before: &[Device]) -> Vec<String> {
        let word = |d: &Device| {
            assert_eq!((d.parent.as_deref(), d.divided), (Some("GPU-a"), false));
            let paths: Vec<&str> = d.nodes.iter().map(|n| n.path.trim_start_matches("/dev/")).collect();
            let instance = d.instance.map_or_else(|| "-".to_owned(), |i| format!("{}/{}", i.gpu, i.compute));
            format!("{instance} {}", paths.join(" ").replace("nvidia-caps/nvidia-", ""))
        };
        devices(root, parts, before).iter().map(word).collect()
    }

    #[test]
    fn a_list_that_is_short_for_a_moment_takes_no_instance_from_the_others() {
        let root = machine(&[(1, 0), (9, 0), (13, 0)]);
        let [first, third] = ["1/0 nvidia3 nvidiactl cap10 cap11", "13/0 nvidia3 nvidiactl cap130 cap131"];
        let whole = [("a", "1g.18gb", None), ("b", "1g.18gb", None), ("c", "1g.18gb", None)];
        let before = devices(root.path(), &whole, &[]);
        let after = |parts: &[Listed<'_>]| told_after(root.path(), parts, &before);
        // The second one's UUID could not be read.
        assert_eq!(after(&[whole[0], whole[2]]), [first, third]);
        // The driver makes a fourth one, which is not listed yet, and lists one whose folder is not there yet.
        for instance in ["gi11", "gi11/ci0"] {
            file(
                root.path(),
                &format!("proc/driver/nvidia/capabilities/gpu3/mig/{instance}/access"),
                "DeviceFileMinor: 0\n",
            );
        }
        assert_eq!(after(&whole)[2], third);
        assert_eq!(after(&[whole[0], ("d", "1g.18gb", None)]), [first, "- nvidia3 nvidiactl"]);
        // It was made anew as another.
        std::fs::remove_dir_all(root.path().join("proc/driver/nvidia/capabilities/gpu3/mig/gi13"))
            .expect("it was there");
        assert_eq!(after(&[whole[0], whole[2]]), [first, "- nvidia3 nvidiactl"]);
    }

    #[test]
    fn a_partition_has_its_instance_and_the_nodes_that_open_it() {
        let root = machine(&[(13, 0), (1, 1), (1, 0), (9, 0)]);
        let [first, second, third, fourth] = [
            "1/0 nvidia3 nvidiactl cap10 cap11",
            "1/1 nvidia3 nvidiactl cap10 cap12",
            "9/0 nvidia3 nvidiactl cap90 cap91",
            "13/0 nvidia3 nvidiactl cap130 cap131",
        ];
        let parts =
            [("a", "1c.3g.71gb", None), ("b", "2c.3g.71gb", None), ("c", "1g.18gb", None), ("d", "1g.18gb+me", None)];
        assert_eq!(told(root.path(), &parts), [first, second, third, fourth]);
        // What the source itself says goes before the order, and where both disagree only that is known.
        let said = parts.map(|(id, profile, _)| (id, profile, (id == "d").then_some((13, 0))));
        assert_eq!(told(root.path(), &said), [first, second, third, fourth]);
        let other = parts.map(|(id, profile, _)| (id, profile, (id == "c").then_some((13, 0))));
        let none = "- nvidia3 nvidiactl";
        assert_eq!(told(root.path(), &other), [none, none, fourth, none]);
        assert_eq!(told(root.path(), &[("MIG-GPU-a/9/0", "1g.18gb", None)]), [third], "an old driver's UUID");
    }

    #[test]
    fn an_order_that_does_not_fit_says_nothing() {
        let root = machine(&[(1, 0), (1, 1), (9, 0)]);
        let none = "- nvidia3 nvidiactl";
        for parts in [
            &[("a", "1g.18gb", None)][..],
            // One of a whole GPU instance where there are two of a shared one.
            &[("a", "3g.71gb", None), ("b", "1c.3g.71gb", None), ("c", "1g.18gb", None)],
        ] {
            assert_eq!(told(root.path(), parts), vec![none; parts.len()]);
        }
        assert_eq!(told(tempfile::tempdir().expect("a directory").path(), &[("a", "1g.18gb", None)]), ["- "]);
    }
}
