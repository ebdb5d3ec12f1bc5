//! Checks of driver and device nodes of AMD's GPUs.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{KERNEL_LOG, OnDisk, count_of, module_version, names, read};
use crate::{
    doctor::{Check, Scene, blocking, count},
    gpus::Vendor,
};

/// Driver and device nodes of AMD GPUs; nothing on a machine that has none.
pub(in crate::doctor) async fn amd(scene: &Scene) -> Vec<Check> {
    if scene.simulated() > 0 || count_of(scene, Vendor::Amd).await == 0 {
        return Vec::new();
    }
    let root = scene.subject.root.clone();
    let kernel = scene.subject.root == Path::new("/");
    let (files, on_disk) = tokio::join!(blocking(move || AmdFiles::read(&root)), async {
        if kernel { module_version("amdgpu").await } else { None }
    });
    let Some(files) = files else {
        return vec![Check::fail("amd-driver", "the kernel's files do not answer", KERNEL_LOG)];
    };
    let driver = judge_amd_driver(&files, on_disk.as_ref());
    if files.loaded.is_none() {
        return vec![driver];
    }
    vec![driver, judge_amd_nodes(&files)]
}

/// Device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: String,
    gid: u32,
    /// Permission bits.
    mode: u32,
}

/// Facts about AMD's driver, from files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AmdFiles {
    /// Version of the module that is loaded; empty for the kernel's own, which has none.
    loaded: Option<String>,
    /// The running kernel.
    kernel: String,
    kfd: Option<Node>,
    render: Vec<Node>,
    /// Names of groups by id.
    groups: BTreeMap<u32, String>,
}

impl AmdFiles {
    fn read(root: &Path) -> Self {
        let loaded = root.join("sys/module/amdgpu").is_dir();
        let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        let mut render: Vec<Node> = names(&root.join("dev/dri"))
            .filter(|n| n.starts_with("renderD"))
            .filter_map(|n| node(root, &format!("dev/dri/{n}")))
            .collect();
        render.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            loaded: loaded.then(|| read(root, "sys/module/amdgpu/version").unwrap_or_default()),
            kernel: read(root, "proc/sys/kernel/osrelease").unwrap_or_else(|| "$(uname -r)".to_owned()),
            kfd: node(root, "dev/kfd"),
            render,
            groups: groups
                .lines()
                .filter_map(|l| {
                    let mut fields = l.split(':');
                    let name = fields.next()?.to_owned();
                    Some((fields.nth(1)?.parse().ok()?, name))
                })
                .collect(),
        }
    }
}

fn node(root: &Path, path: &str) -> Option<Node> {
    let found = fs::metadata(root.join(path)).ok()?;
    Some(Node { path: format!("/{path}"), gid: found.gid(), mode: found.mode() & 0o777 })
}

fn judge_amd_driver(files: &AmdFiles, on_disk: Option<&OnDisk>) -> Check {
    const NAME: &str = "amd-driver";
    let kernel = &files.kernel;
    let Some(loaded) = &files.loaded else {
        return match on_disk {
            Some(OnDisk::Missing) => Check::fail(
                NAME,
                format!("no amdgpu for the running kernel {kernel}, as after an upgrade of the kernel"),
                format!(
                    "apt-get install linux-modules-extra-{kernel} || dkms autoinstall -k {kernel}\nmodprobe amdgpu"
                ),
            ),
            _ => Check::fail(NAME, "amdgpu is not loaded", "modprobe amdgpu\ngrep -r amdgpu /etc/modprobe.d"),
        };
    };
    if let Some(OnDisk::Version(installed)) = on_disk
        && !installed.is_empty()
        && !loaded.is_empty()
        && installed != loaded
    {
        return Check::fail(
            NAME,
            format!("amdgpu {loaded} is loaded and {installed} is installed: it was upgraded since the last start"),
            "reboot",
        );
    }
    let version = if loaded.is_empty() { format!("of the kernel {kernel}") } else { loaded.clone() };
    Check::ok(NAME, format!("amdgpu {version} is loaded"))
}

fn judge_amd_nodes(files: &AmdFiles) -> Check {
    const NAME: &str = "amd-nodes";
    let Some(kfd) = &files.kfd else {
        return Check::fail(
            NAME,
            "/dev/kfd is missing: no compute on any AMD GPU",
            format!("modprobe amdgpu\n{KERNEL_LOG}"),
        );
    };
    if files.render.is_empty() {
        return Check::fail(NAME, "no /dev/dri/renderD*: the driver started no GPU", KERNEL_LOG);
    }
    let make_group = "groupadd --system --force render\necho 'KERNEL==\"kfd\", GROUP=\"render\", MODE=\"0660\"' \
                      \\\n  >/etc/udev/rules.d/70-kfd.rules\nudevadm control --reload\nudevadm trigger";
    for node in files.render.iter().chain([kfd]) {
        // Open to everyone, as some distributions have it: the group does not matter.
        if node.mode & 0o006 == 0o006 {
            continue;
        }
        if node.gid == 0 || node.mode & 0o060 != 0o060 {
            let why =
                format!("{} belongs to no group that may use it (gid {}, mode {:o})", node.path, node.gid, node.mode);
            return Check::fail(NAME, why, make_group);
        }
        if !files.groups.contains_key(&node.gid) {
            let why = format!("{} belongs to group {}, which has no name on this machine", node.path, node.gid);
            return Check::warn(NAME, why, format!("groupadd --system --gid {} render", node.gid));
        }
    }
    let group = files.groups.get(&kfd.gid).map_or("no", String::as_str);
    let nodes = count(files.render.len(), "render node");
    Check::ok(NAME, format!("/dev/kfd and {nodes}, group {group} (gid {})", kfd.gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Verdict, gpu::tests::Tree};

    #[test]
    fn amd_nodes_must_belong_to_a_group() {
        let tree = Tree::new(&[
            ("sys/module/amdgpu/version", "6.7.0\n"),
            ("dev/dri/renderD128", ""),
            ("dev/dri/card0", ""),
            ("etc/group", "root:x:0:\nrender:x:109:\n"),
        ]);
        assert!(judge_amd_nodes(&AmdFiles::read(tree.root())).why.starts_with("/dev/kfd is missing"));
        tree.add("dev/kfd", "");
        let own = |gid, mode| {
            let mut files = AmdFiles::read(tree.root());
            for node in files.render.iter_mut().chain(files.kfd.as_mut()) {
                (node.gid, node.mode) = (gid, mode);
            }
            judge_amd_nodes(&files)
        };
        let good = own(109, 0o660);
        assert_eq!(
            (good.verdict, good.why.as_str()),
            (Verdict::Ok, "/dev/kfd and 1 render node, group render (gid 109)")
        );
        assert_eq!(own(0, 0o660).verdict, Verdict::Fail, "no render group");
        assert_eq!(own(109, 0o600).verdict, Verdict::Fail, "the group may not");
        assert_eq!(own(0, 0o666).verdict, Verdict::Ok, "everybody may");
        let nameless = own(992, 0o660);
        assert_eq!(nameless.fix.as_deref(), Some("groupadd --system --gid 992 render"));
        fs::remove_dir_all(tree.root().join("dev/dri")).expect("removed");
        assert!(judge_amd_nodes(&AmdFiles::read(tree.root())).why.contains("renderD"));
    }

    #[test]
    fn amdgpu_must_be_there_for_the_running_kernel() {
        let tree = Tree::new(&[("proc/sys/kernel/osrelease", "6.8.0-40-generic\n")]);
        let fix =
            |on_disk: &OnDisk| judge_amd_driver(&AmdFiles::read(tree.root()), Some(on_disk)).fix.unwrap_or_default();
        assert!(fix(&OnDisk::Missing).contains("linux-modules-extra-6.8.0-40-generic"));
        assert!(fix(&OnDisk::Version(String::new())).starts_with("modprobe amdgpu"));
        tree.add("sys/module/amdgpu/version", "6.7.0\n");
        assert_eq!(fix(&OnDisk::Version("6.8.5".into())), "reboot");
        assert_eq!(
            judge_amd_driver(&AmdFiles::read(tree.root()), Some(&OnDisk::Version("6.7.0".into()))).verdict,
            Verdict::Ok
        );
        assert_eq!(judge_amd_driver(&AmdFiles::read(tree.root()), None).verdict, Verdict::Ok);
    }
}
