//! The machine: its facts are found out once at start, its loads again every few seconds.
//!
//! * [`facts`]: CPUs, NUMA, memory, limits. Never fails: what cannot be read has a careful default.
//! * [`numa`]: which CPUs and how much memory each NUMA node has.
//! * [`address`]: the address shown in links.
//! * [`disk_guard`]: how full a file system may be. Pure.
//! * [`routes`]: which subnets the host already knows, so that the lab's does not overlap.

pub mod address;
pub mod disk_guard;
pub mod numa;
pub mod routes;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use labd_gpu::DeviceNode;
use numa::NumaNode;
use serde::{Deserialize, Serialize};
use sysinfo::{Disks, System};
use tokio::sync::watch;

use crate::snapshot::{DiskView, NodeView};

/// Time between two readings of memory, load and disks.
const LOOK: Duration = Duration::from_secs(5);

/// Facts about the machine that the plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// Logical CPUs, at least 1.
    pub cpus: u32,
    /// NUMA nodes, at least 1.
    pub numa_nodes: u32,
    /// NUMA nodes, by number; empty where the kernel does not report them.
    pub numa: Vec<NumaNode>,
    /// InfiniBand's device nodes that programs use, by path; empty without such a card.
    pub infiniband: Vec<DeviceNode>,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Largest number of open files that a container may be given: the host's own hard limit.
    pub nofile_limit: u64,
    /// Whether a container may be given unlimited locked memory: limits can be raised here, or there is none.
    pub unlimited_memlock: bool,
}

/// Variable, for tests alone, that names a directory in whose `sys` and `dev` hardware is looked for, so that a machine
/// without GPUs and with one NUMA node can play one with several. Probes inherit it.
const SYS_ROOT: &str = "LABD_SYS_ROOT";

/// Directory in which hardware is looked for: `/`, but in tests.
pub fn root() -> PathBuf {
    std::env::var_os(SYS_ROOT).map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// Facts about this machine.
pub fn facts() -> NodeFacts {
    facts_under(&root())
}

/// Facts about this machine, with NUMA nodes and device nodes as they are under `root`.
fn facts_under(root: &Path) -> NodeFacts {
    let numa = numa::read(&root.join("sys/devices/system/node"));
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let limits = text("/proc/self/limits");
    NodeFacts {
        hostname: System::host_name().unwrap_or_else(|_| "localhost".to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        numa_nodes: u32::try_from(numa.len()).unwrap_or(1).max(1),
        numa,
        infiniband: infiniband(root),
        memory_bytes: memory().0,
        nofile_limit: nofile_limit(&limits),
        unlimited_memlock: unlimited_memlock(&limits, &text("/proc/self/status")),
    }
}

/// Whether the texts of `/proc/self/limits` and `/proc/self/status` allow unlimited locked memory. The engine's own rights
/// are what counts; labd has the same, unless one of the two is in a sandbox.
fn unlimited_memlock(limits: &str, status: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let field = |text: &'_ str, name| text.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()));
    let hard = field(limits, "Max locked memory").and_then(|l| l.split_whitespace().nth(1).map(str::to_owned));
    let capabilities = field(status, "CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    hard.as_deref() == Some("unlimited") || capabilities & CAP_SYS_RESOURCE != 0
}

/// Device nodes that RDMA programs open, `uverbsN` of each card and the connection manager; not what manages the fabric
/// (`issm`, `umad`).
fn infiniband(root: &Path) -> Vec<DeviceNode> {
    const DIR: &str = "dev/infiniband";
    let entries = fs::read_dir(root.join(DIR)).into_iter().flatten().flatten();
    let mut nodes: Vec<DeviceNode> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("uverbs").unwrap_or_default();
            let used = name == "rdma_cm" || !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let gid = entry.metadata().ok()?.gid();
            used.then(|| DeviceNode { path: format!("/{DIR}/{name}"), gid })
        })
        .collect();
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    nodes
}

/// Memory in bytes: all of it, and what can still be taken. Zero where it cannot be read.
fn memory() -> (u64, u64) {
    System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    })
}

/// Hard limit on open files in the text of `/proc/self/limits`; 1 Mi when there is none.
fn nofile_limit(limits: &str) -> u64 {
    limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(1 << 20)
}

/// View of the machine for the snapshot, refreshed every 5 s. `places` are paths whose file systems matter to the lab,
/// beside that of the engine's data, which is where the engine says. The task ends with the last receiver.
pub fn watch_node(
    facts: NodeFacts,
    address: String,
    places: Vec<PathBuf>,
    engine_data: watch::Receiver<PathBuf>,
) -> watch::Receiver<NodeView> {
    let ask = move || {
        let engine_data = engine_data.borrow().clone();
        let (facts, address, places) = (facts.clone(), address.clone(), places.clone());
        move |disks: fn(&[PathBuf]) -> Vec<DiskView>| {
            let disks = disks(&[places, vec![engine_data.clone()]].concat());
            look(&facts, &address, &engine_data, disks)
        }
    };
    let first = {
        let (look, (tell, hear)) = (ask(), std::sync::mpsc::channel());
        // The daemon does not wait for a dead network file system with its start.
        std::thread::spawn(move || drop(tell.send(look(disks))));
        hear.recv_timeout(LOOK).ok()
    };
    let (tell, view) = watch::channel(first.unwrap_or_else(|| ask()(|_| Vec::new())));
    tokio::spawn(async move {
        while !tell.is_closed() {
            tokio::time::sleep(LOOK).await;
            let look = ask();
            // A dead network file system can block for minutes.
            let Ok(view) = tokio::task::spawn_blocking(move || look(disks)).await else { continue };
            tell.send_replace(view);
        }
    });
    view
}

fn look(facts: &NodeFacts, address: &str, engine_data: &Path, disks: Vec<DiskView>) -> NodeView {
    NodeView {
        hostname: facts.hostname.clone(),
        address: address.to_owned(),
        cpus: facts.cpus,
        numa_nodes: facts.numa_nodes,
        memory_bytes: facts.memory_bytes,
        memory_available_bytes: memory().1,
        load_1m: System::load_average().map_or(0.0, |l| l.one),
        engine_data: engine_data.display().to_string(),
        disks,
    }
}

pub(crate) fn disks(places: &[PathBuf]) -> Vec<DiskView> {
    if places.is_empty() {
        return Vec::new();
    }
    let Ok(disks) = Disks::new_with_refreshed_list() else { return Vec::new() };
    let mut found: Vec<DiskView> = Vec::new();
    for place in places {
        // The longest mount point above the place is the one it is on.
        let on = disks
            .iter()
            .filter(|d| place.starts_with(d.mount_point()))
            .max_by_key(|d| d.mount_point().as_os_str().len());
        let Some(disk) = on else { continue };
        let mount = disk.mount_point().display().to_string();
        if found.iter().any(|d| d.mount == mount) {
            continue;
        }
        let device = fs::metadata(disk.mount_point()).ok().map(|mount| mount.dev());
        let (total_bytes, available_bytes) = (disk.total_space(), disk.available_space());
        found.push(DiskView { mount, total_bytes, available_bytes, device });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_have_a_default() {
        let text =
            "Limit   Soft  Hard  Units\nMax open files            1024                 20000                files\n";
        assert_eq!(nofile_limit(text), 20_000);
        assert_eq!(nofile_limit(""), 1 << 20);
        assert_eq!(nofile_limit("Max open files  unlimited unlimited files"), 1 << 20);
    }

    #[test]
    fn locked_memory_is_unlimited_where_that_is_so_or_can_be_made_so() {
        let (limited, free) =
            ("Max locked memory  8388608  8388608  bytes\n", "Max locked memory  0  unlimited  bytes\n");
        let (root, boxed) = ("Name:\tlabd\nCapEff:\t000001ffffffffff\n", "CapEff:\t00000000feffffff\n");
        assert!(unlimited_memlock(limited, root) && unlimited_memlock(free, boxed));
        assert!(!unlimited_memlock(limited, boxed) && !unlimited_memlock("", ""));
    }

    #[test]
    fn numa_nodes_are_counted_and_never_zero() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(facts_under(root.path()).numa_nodes, 1);
        for name in ["node0", "node1", "power", "node"] {
            fs::create_dir_all(root.path().join("sys/devices/system/node").join(name)).expect("a directory");
        }
        assert_eq!(facts_under(root.path()).numa_nodes, 2);
    }

    #[test]
    fn of_infiniband_only_what_programs_open_is_taken() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(facts_under(root.path()).infiniband, []);
        let dir = root.path().join("dev/infiniband");
        fs::create_dir_all(dir.join("by-ibdev")).expect("a directory");
        for name in ["uverbs1", "uverbs0", "uverbs", "rdma_cm", "umad0", "issm0"] {
            fs::write(dir.join(name), "").expect("a file");
        }
        let paths: Vec<String> = facts_under(root.path()).infiniband.into_iter().map(|n| n.path).collect();
        assert_eq!(paths, ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0", "/dev/infiniband/uverbs1"]);
    }

    #[test]
    fn this_machine_has_something() {
        let facts = facts();
        assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20 && facts.nofile_limit > 0);
        assert!(!disks(&[PathBuf::from("/")]).is_empty() || cfg!(not(target_os = "linux")));
    }
}
