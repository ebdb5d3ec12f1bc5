//! What the machine is: found out once at start, its loads again every few seconds.
//!
//! * [`facts`]: CPUs, NUMA, memory, limits. Never fails: what cannot be read has a careful default.
//! * [`address`]: the address shown in links.
//! * [`disk_guard`]: how full a file system may be. Pure.
//! * [`routes`]: which subnets the host already knows, so that the lab's does not overlap.
//! * [`gpu`]: the inventory.

pub mod address;
pub mod disk_guard;
pub mod gpu;
pub mod routes;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use sysinfo::{Disks, System};
use tokio::sync::watch;

use crate::snapshot::{DiskView, NodeView};

/// Between two looks at memory, load and disks.
const LOOK: Duration = Duration::from_secs(5);

/// What the plan needs to know of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// Logical CPUs, at least 1.
    pub cpus: u32,
    /// NUMA nodes, at least 1.
    pub numa_nodes: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// How many open files a container may be given: the host's own hard limit.
    pub nofile_limit: u64,
}

/// Looks at the machine.
pub fn facts() -> NodeFacts {
    NodeFacts {
        hostname: System::host_name().unwrap_or_else(|_| "localhost".to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        numa_nodes: numa_nodes(Path::new("/sys/devices/system/node")),
        memory_bytes: memory().0,
        nofile_limit: nofile_limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default()),
    }
}

/// Memory in bytes: all of it, and what can still be taken. Zero where it cannot be read.
fn memory() -> (u64, u64) {
    System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    })
}

fn numa_nodes(dir: &Path) -> u32 {
    let count = fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| {
        let name = e.file_name();
        name.to_str()
            .and_then(|n| n.strip_prefix("node"))
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    u32::try_from(count.count()).unwrap_or(1).max(1)
}

/// The hard limit on open files in the text of `/proc/self/limits`; 1 Mi when there is none.
fn nofile_limit(limits: &str) -> u64 {
    limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(1 << 20)
}

/// The machine as the snapshot shows it, refreshed every 5 s. `places` are paths whose file systems matter to the lab. The
/// task ends with the last receiver.
pub fn watch_node(facts: NodeFacts, address: String, places: Vec<PathBuf>) -> watch::Receiver<NodeView> {
    let (tell, view) = watch::channel(look(&facts, &address, &places));
    tokio::spawn(async move {
        while !tell.is_closed() {
            tokio::time::sleep(LOOK).await;
            let (facts, address, places) = (facts.clone(), address.clone(), places.clone());
            // A dead network file system can block for minutes.
            let Ok(view) = tokio::task::spawn_blocking(move || look(&facts, &address, &places)).await else { continue };
            tell.send_replace(view);
        }
    });
    view
}

fn look(facts: &NodeFacts, address: &str, places: &[PathBuf]) -> NodeView {
    NodeView {
        hostname: facts.hostname.clone(),
        address: address.to_owned(),
        cpus: facts.cpus,
        numa_nodes: facts.numa_nodes,
        memory_bytes: facts.memory_bytes,
        memory_available_bytes: memory().1,
        load_1m: System::load_average().map_or(0.0, |l| l.one),
        disks: disks(places),
    }
}

pub(crate) fn disks(places: &[PathBuf]) -> Vec<DiskView> {
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
        if !found.iter().any(|d| d.mount == mount) {
            found.push(DiskView { mount, total_bytes: disk.total_space(), available_bytes: disk.available_space() });
        }
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
    fn numa_nodes_are_counted_and_never_zero() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(numa_nodes(dir.path()), 1);
        for name in ["node0", "node1", "possible", "node"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        assert_eq!(numa_nodes(dir.path()), 2);
    }

    #[test]
    fn this_machine_has_something() {
        let facts = facts();
        assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20 && facts.nofile_limit > 0);
        assert!(!disks(&[PathBuf::from("/")]).is_empty() || cfg!(not(target_os = "linux")));
    }
}
