//! Pins: facts that labd found out about the machine once and holds on to, kept in the data directory: containers are
//! compared with the plan that follows from them, so that a fact which drifts changes none of them.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{config::Bytes, files, node::NodeFacts};

/// File in the data directory.
const FILE: &str = "machine.json";

/// Facts that are held on to. A field that an older labd did not know is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pins {
    /// The lab's /24.
    pub subnet: Option<[u8; 3]>,
    /// Facts about the machine that the lab was planned for, until `labd.toml` is read again.
    pub machine: Option<NodeFacts>,
}

/// Changes of the machine since the lab was planned for it, in one line; absent where nothing that a plan is made from
/// differs.
pub fn drift(planned: &NodeFacts, now: &NodeFacts) -> Option<String> {
    let mut parts = Vec::new();
    let mut differs = |what: &str, then: String, now: String| {
        if then != now {
            parts.push(format!("{what} {now} (was {then})"));
        }
    };
    differs("CPUs", planned.cpus.to_string(), now.cpus.to_string());
    differs("memory", Bytes::new(planned.memory_bytes).to_string(), Bytes::new(now.memory_bytes).to_string());
    differs("NUMA nodes", planned.numa_nodes.to_string(), now.numa_nodes.to_string());
    differs("InfiniBand nodes", planned.infiniband.len().to_string(), now.infiniband.len().to_string());
    differs("limit of open files", planned.nofile_limit.to_string(), now.nofile_limit.to_string());
    differs("unlimited locked memory", planned.unlimited_memlock.to_string(), now.unlimited_memlock.to_string());
    (!parts.is_empty()).then(|| format!("{}; `labd reload` plans with that", parts.join(", ")))
}

/// Reads the pins. A file that cannot be read is nothing to fail for: everything in it can be found out again.
pub fn load(dir: &Path) -> Pins {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!("{} cannot be understood and is recreated: {error}", path.display());
            Pins::default()
        }),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!("cannot read {}: {error}", path.display());
            }
            Pins::default()
        }
    }
}

/// Writes the pins: whole or not at all, and only when something changed. Not durable on a full disk, which is said and
/// is no reason to end.
pub fn save(dir: &Path, pins: &Pins) {
    if load(dir) == *pins {
        return;
    }
    if let Err(error) = write(dir, pins) {
        tracing::warn!("cannot write {}: {error}", dir.join(FILE).display());
    }
}

fn write(dir: &Path, pins: &Pins) -> io::Result<()> {
    files::write_private(&dir.join(FILE), &serde_json::to_vec_pretty(pins)?)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::inputs;

    #[test]
    fn what_is_kept_is_found_again_and_what_is_damaged_is_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()), Pins::default());
        let pins = Pins { subnet: Some([198, 18, 101]), machine: Some(inputs("", 1, 32).node) };
        save(dir.path(), &pins);
        assert_eq!(load(dir.path()), pins);
        fs::write(dir.path().join(FILE), "{\"subnet\": [198").expect("writable");
        assert_eq!(load(dir.path()), Pins::default());
        save(Path::new("/proc/nosuch"), &pins);
    }

    #[test]
    fn a_machine_that_has_become_another_is_said_and_one_byte_of_memory_is_not() {
        let planned = inputs("", 1, 32).node;
        assert_eq!(drift(&planned, &NodeFacts { memory_bytes: planned.memory_bytes + 1, ..planned.clone() }), None);
        let now = NodeFacts { cpus: 8, memory_bytes: 64 << 30, ..planned.clone() };
        let line = "CPUs 8 (was 16), memory 64.0 GiB (was 32.0 GiB); `labd reload` plans with that";
        assert_eq!(drift(&planned, &now).as_deref(), Some(line));
    }
}
