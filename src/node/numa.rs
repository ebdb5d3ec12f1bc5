//! NUMA nodes: which CPUs and how much memory each has, as the kernel reports it in `/sys/devices/system/node`.

use std::{collections::BTreeSet, fs, path::Path};

use serde::{Deserialize, Serialize};

/// NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Number, which need not follow on another's.
    pub id: u32,
    /// Online CPUs in the kernel's list notation; empty for one that is memory alone.
    pub cpus: String,
    /// Memory in bytes; 0 for one that has none.
    pub memory_bytes: u64,
}

/// NUMA nodes under `dir`, by number. What cannot be read is empty.
pub fn read(dir: &Path) -> Vec<NumaNode> {
    let mut nodes: Vec<NumaNode> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let text = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let cpus = list(&cpus(&text("cpulist")).unwrap_or_default());
            Some(NumaNode { id, cpus, memory_bytes: total(&text("meminfo")) })
        })
        .collect();
    nodes.sort_by_key(|n| n.id);
    nodes
}

/// Bytes in the line `Node 0 MemTotal:  16308908 kB`; 0 without one.
fn total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.split_once("MemTotal:"));
    let kib: Option<u64> = line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Number above that of any machine's CPUs: a list with it is not a list of CPUs.
const MOST: u32 = 1 << 16;

/// The CPUs of a list such as `0-31,64-95`; absent when the text is no such list.
pub fn cpus(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// CPUs in the kernel's list notation, shortest form.
pub fn list(cpus: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let one = |&(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, written) in [("0-3,8,9-11\n", "0-3,8-11"), ("5", "5"), ("", ""), ("1,0", "0-1")] {
            assert_eq!(list(&cpus(text).expect("a list")), written, "{text:?}");
        }
        for text in ["a", "3-1", "0-", "-", "0-99999999", "1 2"] {
            assert_eq!(cpus(text), None, "{text:?}");
        }
    }

    #[test]
    fn nodes_are_read_by_number() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()), []);
        for (name, cpus, memory) in [
            ("node10", "", "Node 10 MemTotal: 4 kB\n"),
            ("node2", "4-7\n", "Node 2 MemUsed: 1 kB\n"),
            ("possible", "0", ""),
        ] {
            let node = dir.path().join(name);
            fs::create_dir(&node).expect("a directory");
            fs::write(node.join("cpulist"), cpus).expect("a file");
            fs::write(node.join("meminfo"), memory).expect("a file");
        }
        let node = |id, cpus: &str, memory_bytes| NumaNode { id, cpus: cpus.into(), memory_bytes };
        assert_eq!(read(dir.path()), [node(2, "4-7", 0), node(10, "", 4096)]);
    }
}
