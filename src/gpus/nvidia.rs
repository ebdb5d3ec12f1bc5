//! NVIDIA's GPUs: everything that is special about them.

use std::{collections::BTreeSet, path::Path};

use labd_gpu::{Device as Found, Vendor, line::Source};

use super::{
    attach::{EngineDevices, groups, nodes, only, paths},
    faults,
    probe::{Launch, embedded, labd, launch},
    vendor::VendorDef,
};
use crate::spec::Device;

/// Definition of the vendor NVIDIA.
pub(super) static DEF: VendorDef = VendorDef {
    vendor: Vendor::Nvidia,
    name: "NVIDIA GPU",
    driver: "nvidia",
    computes_on_all: true,
    // It leaves out what is too old for it.
    takes_all: false,
    sources,
    attach,
    owns: |device| match device {
        Device::Node { path, .. } => path.starts_with("/dev/nvidia"),
        Device::Cdi { name, .. } => name.starts_with("nvidia.com/"),
        Device::Nvidia { .. } => true,
    },
    // What the toolkit puts in besides is its own business.
    nodes_inside: |_| &["/dev/nvidia[0-9]*", "/dev/nvidiactl*"],
    lists_by_id: |id| id.starts_with("GPU-") || id.starts_with("MIG-"),
    ask_worker: &["nvidia-smi", "--list-gpus"],
    explains_exits: false,
    faults: faults::nvidia::TABLE,
};

/// Executable `labd-probe-nvidia`, built for a glibc of its own; empty in a build without probes.
const NVIDIA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/labd-probe-nvidia"));

fn sources(_: &Path, _: &Path) -> Vec<Option<Launch>> {
    vec![
        embedded("labd-probe-nvidia", NVIDIA).map(|program| launch(Source::Nvml, program)),
        Some(labd(Source::NvidiaSmi, "nvidia-smi")),
    ]
}

fn attach(found: &Found, engine: &EngineDevices) -> Result<Vec<Device>, String> {
    const KIND: &str = "nvidia.com/gpu";
    let partition = found.id.starts_with("MIG-");
    let own = only(paths(&found.nodes), is_one_nvidia);
    let known = engine.cdi(KIND);
    let same = |nodes: &BTreeSet<String>| only(nodes.iter().map(String::as_str), is_one_nvidia) == own;
    let by_uuid = format!("{KIND}={}", found.id);
    let uuid = known.get_key_value(by_uuid.as_str());
    // Its own name is believed unless the nodes that come with it are another GPU's. Of a partition only its GPU's node is
    // compared: which capabilities open it may not be known here.
    let agree = |nodes: &BTreeSet<String>| {
        let gpus = |paths: BTreeSet<&str>| {
            paths.into_iter().filter(|p| !is_capability(p)).map(str::to_owned).collect::<Vec<_>>()
        };
        same(nodes) || (partition && gpus(only(nodes.iter().map(String::as_str), is_one_nvidia)) == gpus(own.clone()))
    };
    let uuid = uuid.filter(|(_, nodes)| own.is_empty() || nodes.is_none_or(agree)).map(|(name, _)| *name);
    // A partition without capabilities of its own would have its whole GPU's nodes.
    let tells = if partition { own.iter().any(|p| is_capability(p)) } else { !own.is_empty() };
    let by_nodes = || known.iter().find(|(_, nodes)| tells && nodes.is_some_and(same)).map(|(name, _)| *name);
    if let Some(name) = uuid.or_else(by_nodes) {
        return Ok(vec![Device::Cdi { name: name.to_owned(), gids: groups(&found.nodes) }]);
    }
    if !["GPU-", "MIG-"].iter().any(|prefix| found.id.starts_with(prefix)) {
        return Err(format!(
            "{} has no UUID to attach it by; see `nvidia-smi -L`, and `nvidia-smi -q` for what is wrong with it",
            found.id
        ));
    }
    let mut all = vec![Device::Nvidia { uuid: found.id.clone() }];
    // The toolkit allows the nodes behind the engine's back, and `systemctl daemon-reload` forgets that. What the engine
    // itself attaches is remembered: NVIDIA's own remedy.
    all.extend(nodes(&found.nodes));
    Ok(all)
}

/// Whether a node opens one instance of MIG.
fn is_capability(path: &str) -> bool {
    path.starts_with("/dev/nvidia-caps/")
}

/// Whether a node belongs to one NVIDIA GPU or one partition: `/dev/nvidiactl` and the like are everybody's.
fn is_one_nvidia(path: &str) -> bool {
    let number = path.strip_prefix("/dev/nvidia");
    is_capability(path) || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
