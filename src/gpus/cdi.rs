//! CDI specifications on this machine: which devices they name, and which device nodes come with each.
//!
//! Engines before 28.2 do not list the devices they know, and no engine says what comes with a name. A name alone says too
//! little: indices count in another order than the vendor's library where a GPU was lost, and a file may be older than the
//! last boot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Device that a specification names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiDevice {
    /// Qualified name, such as `nvidia.com/gpu=0`.
    pub name: String,
    /// Paths of its device nodes on the host, those that all devices of its file share included.
    pub nodes: BTreeSet<String>,
}

/// Part of a specification file.
#[derive(Deserialize)]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Named>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Deserialize, Default)]
struct Edits {
    #[serde(default, rename = "deviceNodes")]
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    path: String,
    #[serde(rename = "hostPath")]
    host_path: Option<String>,
}

impl Edits {
    fn paths(self) -> impl Iterator<Item = String> {
        self.nodes.into_iter().map(|n| n.host_path.filter(|p| !p.is_empty()).unwrap_or(n.path))
    }
}

/// Devices of all specifications in `dirs`, by name. `root` is where the engine's file system begins.
///
/// As engines do: a later directory goes before an earlier one, and a name that two files of one directory have is
/// nobody's. A file that is not a specification is left out: the engine says what is wrong with it when it is asked for
/// its devices.
pub fn read(root: &Path, dirs: &[String]) -> Vec<CdiDevice> {
    let mut all = BTreeMap::new();
    for dir in dirs {
        let mut here: BTreeMap<String, Option<CdiDevice>> = BTreeMap::new();
        for path in files(&root.join(dir.trim_start_matches('/'))) {
            for device in fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or_default() {
                here.entry(device.name.clone()).and_modify(|twice| *twice = None).or_insert(Some(device));
            }
        }
        all.extend(here);
    }
    all.into_values().flatten().collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p| p.extension().is_some_and(|e| e == "json" || e == "yaml")).collect()
}

/// Devices of one file, which is YAML; every JSON file is that, too.
fn parse(text: &str) -> Option<Vec<CdiDevice>> {
    let Spec { kind, devices, edits } = serde_saphyr::from_str(text).ok()?;
    let shared: BTreeSet<String> = edits.paths().collect();
    let device = |d: Named| CdiDevice {
        name: format!("{kind}={}", d.name),
        nodes: d.edits.paths().chain(shared.iter().cloned()).collect(),
    };
    Some(devices.into_iter().map(device).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Specification as `nvidia-ctk cdi generate` writes it, shortened.
    pub(crate) const NVIDIA: &str = r#"---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  - path: /dev/nvidia-uvm
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args: [nvidia-cdi-hook, create-symlinks, --link, "libcuda.so.1::/usr/lib/libcuda.so"]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
  name: "1"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-aaaa
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
  name: all
kind: nvidia.com/gpu
"#;

    /// Specification as `amd-ctk cdi generate` writes it: the first index is the second card's here.
    pub(crate) const AMD: &str = r#"{"cdiVersion": "0.6.0", "kind": "amd.com/gpu", "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [
            {"path": "/dev/kfd", "hostPath": "/dev/kfd"}, {"path": "/dev/dri/renderD130", "hostPath": "/dev/dri/renderD130"}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [
            {"path": "/dev/kfd"}, {"path": "/dev/dri/renderD0", "hostPath": "/dev/dri/renderD129"}]}},
        {"name": "all", "containerEdits": {"deviceNodes": [
            {"path": "/dev/kfd"}, {"path": "/dev/dri/renderD129"}, {"path": "/dev/dri/renderD130"}]}}],
        "containerEdits": {}}"#;

    /// Root of a machine with these specifications.
    pub(crate) fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        root
    }

    pub(crate) fn dirs() -> Vec<String> {
        vec!["/etc/cdi".into(), "/var/run/cdi".into()]
    }

    fn said(files: &[(&str, &str)]) -> Vec<String> {
        let root = root(files);
        let devices = read(root.path(), &dirs());
        devices.iter().map(|d| format!("{}: {}", d.name, Vec::from_iter(d.nodes.clone()).join(" "))).collect()
    }

    #[test]
    fn names_and_nodes_of_both_vendors() {
        assert_eq!(
            said(&[("etc/cdi/nvidia.yaml", NVIDIA), ("etc/cdi/amd.json", AMD)]),
            [
                "amd.com/gpu=0: /dev/dri/renderD130 /dev/kfd",
                "amd.com/gpu=1: /dev/dri/renderD129 /dev/kfd",
                "amd.com/gpu=all: /dev/dri/renderD129 /dev/dri/renderD130 /dev/kfd",
                "nvidia.com/gpu=0: /dev/nvidia-uvm /dev/nvidia0 /dev/nvidiactl",
                "nvidia.com/gpu=1: /dev/nvidia-uvm /dev/nvidia1 /dev/nvidiactl",
                "nvidia.com/gpu=GPU-aaaa: /dev/nvidia-uvm /dev/nvidia0 /dev/nvidiactl",
                "nvidia.com/gpu=all: /dev/nvidia-uvm /dev/nvidia0 /dev/nvidia1 /dev/nvidiactl",
            ]
        );
    }

    #[test]
    fn later_directories_win_and_a_name_given_twice_in_one_is_nobodys() {
        let spec = |node: &str| {
            format!("kind: a.b/c\ndevices: [{{name: x, containerEdits: {{deviceNodes: [{{path: {node}}}]}}}}]")
        };
        let (a, b) = (spec("/dev/a"), spec("/dev/b"));
        assert_eq!(said(&[("etc/cdi/1.yaml", &a), ("var/run/cdi/1.yaml", &b)]), ["a.b/c=x: /dev/b"]);
        assert!(said(&[("etc/cdi/1.yaml", &a), ("etc/cdi/2.json", &b)]).is_empty());
    }

    #[test]
    fn what_is_no_specification_is_left_out() {
        for text in ["", "{", "kind: 3\ndevices: no", "- a\n- b", "kind: a.b/c\ndevices: [{}]", "\u{0}"] {
            assert!(said(&[("etc/cdi/x.yaml", text)]).is_empty(), "{text:?}");
        }
        assert!(said(&[("etc/cdi/nvidia.yaml.bak", NVIDIA)]).is_empty());
    }
}
