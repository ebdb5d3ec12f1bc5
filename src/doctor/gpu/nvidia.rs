//! Checks of driver, device nodes and toolkit of NVIDIA's GPUs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use labd_gpu::pci;

use super::{COMMAND, KERNEL_LOG, OnDisk, count_of, first_line, module_version, names, read};
use crate::{
    doctor::{Check, Said, Scene, blocking, count, say},
    engine::docker::Setup,
    gpus::{Vendor, bus, vendor},
};

/// Driver, device nodes and toolkit of NVIDIA GPUs; nothing on a machine that has none.
pub(in crate::doctor) async fn nvidia(scene: &Scene) -> Vec<Check> {
    let gpus = count_of(scene, Vendor::Nvidia).await;
    if scene.simulated() > 0 || gpus == 0 {
        return Vec::new();
    }
    let root = scene.subject.root.clone();
    let kernel = scene.subject.root == Path::new("/");
    let place = root.clone();
    let (driver, computing, on_disk, smi, setup) = tokio::join!(
        blocking(move || NvidiaFiles::read(&root)),
        blocking(move || vendor::of(Vendor::Nvidia).map_or(0, |def| bus::computing(&pci::bus(&place), def))),
        async { if kernel { module_version("nvidia").await } else { None } },
        say("nvidia-smi", &["--list-gpus"], COMMAND),
        scene.setup(),
    );
    // A display that its driver does not run is not missed, unless there is nothing else.
    let gpus = computing.filter(|n| *n > 0).unwrap_or(gpus);
    let Some(files) = driver else {
        return vec![Check::fail("nvidia-driver", "the kernel's files do not answer", KERNEL_LOG)];
    };
    let mut checks = vec![judge_nvidia_driver(gpus, &files, on_disk.as_ref(), &smi)];
    if files.loaded.is_some() {
        checks.push(judge_nvidia_nodes(gpus, &files));
        checks.push(judge_toolkit(&files, setup.as_ref().ok(), scene.systemd()));
    }
    checks
}

/// Facts about NVIDIA's driver, from files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct NvidiaFiles {
    /// Version of the module that is loaded; empty when it is loaded and does not say.
    loaded: Option<String>,
    /// Version of the user's library.
    library: Option<String>,
    /// Whether nouveau has the GPUs.
    nouveau: bool,
    /// Whether the module is built by DKMS.
    dkms: bool,
    /// The running kernel.
    kernel: String,
    /// Names of nodes in `/dev` that begin with `nvidia`.
    nodes: BTreeSet<String>,
    /// Whether `nvidia-ctk` is installed.
    ctk: bool,
    /// CDI specifications that name NVIDIA GPUs: text by path.
    specs: BTreeMap<String, String>,
}

impl NvidiaFiles {
    fn read(root: &Path) -> Self {
        let loaded = root.join("sys/module/nvidia").is_dir() || root.join("proc/driver/nvidia/version").exists();
        let version = read(root, "sys/module/nvidia/version").or_else(|| {
            fs::read_to_string(root.join("proc/driver/nvidia/version")).ok().as_deref().and_then(version_in)
        });
        let mut specs = BTreeMap::new();
        for dir in ["etc/cdi", "var/run/cdi", "run/cdi"] {
            for file in fs::read_dir(root.join(dir)).into_iter().flatten().flatten() {
                let text = fs::read_to_string(file.path()).unwrap_or_default();
                if text.contains("nvidia.com/gpu") {
                    specs.insert(format!("/{dir}/{}", file.file_name().to_string_lossy()), text);
                }
            }
        }
        Self {
            loaded: loaded.then(|| version.unwrap_or_default()),
            library: library_version(root),
            nouveau: root.join("sys/module/nouveau").is_dir(),
            dkms: root.join("var/lib/dkms/nvidia").is_dir() || root.join("var/lib/dkms/nvidia-current").is_dir(),
            kernel: read(root, "proc/sys/kernel/osrelease").unwrap_or_else(|| "$(uname -r)".to_owned()),
            nodes: names(&root.join("dev")).filter(|n| n.starts_with("nvidia")).collect(),
            ctk: ["usr/bin/nvidia-ctk", "usr/local/bin/nvidia-ctk"].iter().any(|p| root.join(p).exists()),
            specs,
        }
    }
}

/// First version such as `550.54.15` in a line like `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...`.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.split_whitespace().map(|w| w.trim_end_matches(['.', ',']));
    let is_version = |w: &&str| {
        w.contains('.') && w.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    words.find(is_version).map(str::to_owned)
}

/// Version in the name of the file that `libnvidia-ml.so.1` leads to.
fn library_version(root: &Path) -> Option<String> {
    let dirs = ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"];
    dirs.iter()
        .flat_map(|dir| [root.join(dir), root.join(dir).join("nvidia/current")])
        .flat_map(|dir| names(&dir).collect::<Vec<_>>())
        .filter_map(|name| name.strip_prefix("libnvidia-ml.so.").map(str::to_owned))
        .find(|version| version.contains('.'))
}

fn judge_nvidia_driver(gpus: usize, files: &NvidiaFiles, on_disk: Option<&OnDisk>, smi: &Said) -> Check {
    const NAME: &str = "nvidia-driver";
    let kernel = &files.kernel;
    let Some(loaded) = &files.loaded else {
        if files.nouveau {
            return Check::fail(NAME, "nouveau has the GPUs: NVIDIA's driver cannot be loaded", NO_NOUVEAU);
        }
        return match on_disk {
            Some(OnDisk::Version(v)) => Check::fail(
                NAME,
                format!("driver {v} is installed and not loaded"),
                "modprobe nvidia\nmodprobe nvidia-uvm",
            ),
            _ if files.dkms => Check::fail(
                NAME,
                format!("no driver for the running kernel {kernel}, as after an upgrade of the kernel"),
                format!("apt-get install linux-headers-{kernel}\ndkms autoinstall -k {kernel}\nmodprobe nvidia"),
            ),
            _ => Check::fail(
                NAME,
                format!("no driver for the running kernel {kernel} is installed"),
                format!("apt-get install linux-headers-{kernel} nvidia-driver\nreboot"),
            ),
        };
    };
    if let Some(OnDisk::Version(installed)) = on_disk
        && !installed.is_empty()
        && installed != loaded
    {
        return Check::fail(
            NAME,
            format!("driver {loaded} is loaded and {installed} is installed: it was upgraded since the last start"),
            "reboot",
        );
    }
    if let Said::Ended { text, .. } = smi
        && text.contains("Driver/library version mismatch")
    {
        let library = version_in(text).or_else(|| files.library.clone()).unwrap_or_else(|| "another".to_owned());
        return mismatch(NAME, loaded, &library);
    }
    if let Some(library) = files.library.as_ref().filter(|l| !loaded.is_empty() && *l != loaded) {
        return mismatch(NAME, loaded, library);
    }
    match smi {
        Said::Hung => Check::fail(
            NAME,
            format!("nvidia-smi does not answer within {} s: the driver or a GPU hangs", COMMAND.as_secs()),
            format!("{KERNEL_LOG}\nnvidia-smi -pm 1    # where it is only slow: keeps the driver started\nreboot"),
        ),
        Said::Missing => Check::warn(
            NAME,
            format!("driver {loaded} is loaded; nvidia-smi is not installed"),
            "apt-get install nvidia-smi    # Ubuntu: nvidia-utils-NNN",
        ),
        Said::Ended { fine, text } => {
            let answers = text.lines().filter(|l| l.starts_with("GPU ")).count();
            if *fine && answers >= gpus {
                return Check::ok(NAME, format!("{loaded}, {} answer to nvidia-smi", count(answers, "GPU")));
            }
            let why = if answers > 0 {
                format!("{answers} of {} answer to nvidia-smi: the others are lost", count(gpus, "GPU"))
            } else {
                format!("nvidia-smi says: {}", first_line(text))
            };
            Check::fail(NAME, why, format!("{KERNEL_LOG}\nreboot"))
        }
    }
}

fn mismatch(name: &str, loaded: &str, library: &str) -> Check {
    Check::fail(
        name,
        format!("driver {loaded} is loaded and the library is {library}: nothing can use the GPUs until a restart"),
        "reboot",
    )
}

fn judge_nvidia_nodes(gpus: usize, files: &NvidiaFiles) -> Check {
    const NAME: &str = "nvidia-nodes";
    let of_gpus = files.nodes.iter().filter(|n| n["nvidia".len()..].bytes().all(|b| b.is_ascii_digit()) && n.len() > 6);
    let of_gpus = of_gpus.count();
    let mut missing: Vec<String> = ["nvidiactl", "nvidia-uvm"]
        .iter()
        .filter(|n| !files.nodes.contains(**n))
        .map(|n| format!("/dev/{n}"))
        .collect();
    if of_gpus < gpus {
        missing.push(format!("{} of {gpus} nodes /dev/nvidia0 and so on", gpus - of_gpus));
    }
    if missing.is_empty() {
        return Check::ok(NAME, format!("/dev/nvidiactl, /dev/nvidia-uvm and {}", count(of_gpus, "GPU's node")));
    }
    Check::fail(
        NAME,
        format!("missing: {}", missing.join(", ")),
        "modprobe nvidia-uvm\nnvidia-modprobe -u -c=0\nnvidia-smi --list-gpus",
    )
}

fn judge_toolkit(files: &NvidiaFiles, setup: Option<&Setup>, systemd: bool) -> Check {
    const NAME: &str = "nvidia-toolkit";
    let restart = if systemd { "systemctl restart docker" } else { "kill $(pidof dockerd); dockerd &" };
    let install = format!(
        "apt-get install nvidia-container-toolkit\n{MAKE_CDI}\nnvidia-ctk runtime configure --runtime=docker\n{restart}"
    );
    let driver = files.loaded.as_deref().unwrap_or_default();
    // A specification names the libraries' files, and those carry the driver's version.
    if let Some((path, _)) = files.specs.iter().find(|(_, text)| !driver.is_empty() && stale(text, driver)) {
        return Check::fail(
            NAME,
            format!("{path} was made for another driver than {driver}"),
            format!("nvidia-ctk cdi generate --output={path}"),
        );
    }
    let known = files.specs.keys().next();
    let Some(setup) = setup else {
        return match known {
            Some(path) => Check::skipped(NAME, format!("{path} is there; the engine was not reached")),
            None if files.ctk => Check::warn(NAME, "no CDI specification; the engine was not reached", MAKE_CDI),
            None => Check::fail(NAME, "the container toolkit is not installed", install),
        };
    };
    let devices = setup.cdi_devices.iter().filter(|d| d.starts_with("nvidia.com/gpu=")).count();
    if devices > 0 {
        return Check::ok(NAME, format!("the engine knows {} by CDI", count(devices, "device")));
    }
    if !setup.cdi_dirs.is_empty() {
        return match known {
            // Before Docker 28.2 it does not say which devices it found.
            Some(path) => Check::ok(NAME, format!("CDI by {path}")),
            None if files.ctk => Check::fail(NAME, "the engine does CDI and no specification names the GPUs", MAKE_CDI),
            None => Check::fail(NAME, "the container toolkit is not installed", install),
        };
    }
    if setup.runtimes.iter().any(|r| r == "nvidia") {
        let fix = format!(
            "{}\n{MAKE_CDI}\nnvidia-ctk runtime configure --runtime=docker --cdi.enabled\n{restart}",
            "apt-get install nvidia-container-toolkit"
        );
        let how = if setup.cgroup_driver == "systemd" {
            "GPUs are attached in the old way, and each `systemctl daemon-reload` takes them from running containers"
        } else {
            "GPUs are attached in the old way; CDI is safer, and needs Docker 25 or newer"
        };
        return Check::warn(NAME, how, fix);
    }
    Check::fail(NAME, "the engine cannot attach NVIDIA GPUs: the container toolkit is missing", install)
}

/// Whether a CDI specification names libraries of another version than the driver's, and none of its own.
fn stale(spec: &str, driver: &str) -> bool {
    spec.contains("libnvidia-ml.so.") && !spec.contains(&format!("libnvidia-ml.so.{driver}"))
}

/// Command that disables nouveau for good.
const NO_NOUVEAU: &str = "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' \\\n  \
                          >/etc/modprobe.d/blacklist-nouveau.conf\nupdate-initramfs -u\nreboot";

/// Command that writes the list of NVIDIA GPUs for the engine.
const MAKE_CDI: &str = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::doctor::{
        Verdict,
        gpu::tests::{Tree, healthy},
    };

    pub(in crate::doctor::gpu) const TWO: &str =
        "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n";

    #[test]
    fn a_healthy_nvidia_machine_is_left_in_peace() {
        let tree = healthy();
        let check = driver(&tree, Some("550.54.15"), &said(true, TWO));
        assert_eq!((check.verdict, check.why.as_str()), (Verdict::Ok, "550.54.15, 2 GPUs answer to nvidia-smi"));
        assert_eq!(judge_nvidia_nodes(2, &NvidiaFiles::read(tree.root())).verdict, Verdict::Ok);
        let setup = Setup { cdi_devices: vec!["nvidia.com/gpu=0".into()], ..Setup::default() };
        assert_eq!(judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&setup), true).verdict, Verdict::Ok);
        let setup = Setup { cdi_dirs: vec!["/etc/cdi".into()], ..Setup::default() };
        assert_eq!(
            judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&setup), true).why,
            "CDI by /etc/cdi/nvidia.yaml"
        );
    }

    #[test]
    fn a_driver_that_was_upgraded_under_a_running_kernel_needs_a_reboot() {
        let tree = healthy();
        let check = driver(&tree, Some("570.86.15"), &said(true, TWO));
        assert_eq!((check.verdict, check.fix.as_deref()), (Verdict::Fail, Some("reboot")));
        assert!(check.why.contains("550.54.15 is loaded and 570.86.15 is installed"), "{}", check.why);
        // As the vendor's command says it.
        let words = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.86\n";
        let check = driver(&tree, None, &said(false, words));
        assert!(check.why.contains("550.54.15 is loaded and the library is 570.86"), "{}", check.why);
        // Without the command, by the library's file.
        fs::remove_file(tree.root().join("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15")).expect("removed");
        tree.add("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15", "");
        let check = driver(&tree, None, &Said::Missing);
        assert!(check.why.contains("the library is 570.86.15"), "{}", check.why);
        assert_eq!(check.fix.as_deref(), Some("reboot"));
    }

    #[test]
    fn a_driver_that_is_not_loaded_has_a_reason() {
        let tree = healthy();
        fs::remove_dir_all(tree.root().join("sys/module/nvidia")).expect("removed");
        let fix = |on_disk: Option<&OnDisk>| {
            let c = judge_nvidia_driver(2, &NvidiaFiles::read(tree.root()), on_disk, &Said::Missing);
            assert_eq!(c.verdict, Verdict::Fail);
            c.fix.unwrap_or_default()
        };
        assert!(fix(Some(&OnDisk::Version("550.54.15".into()))).starts_with("modprobe nvidia"));
        assert!(fix(Some(&OnDisk::Missing)).starts_with("apt-get install linux-headers-6.1.0-13-amd64 nvidia-driver"));
        tree.add("var/lib/dkms/nvidia/550.54.15/x", "");
        assert!(fix(Some(&OnDisk::Missing)).contains("dkms autoinstall -k 6.1.0-13-amd64"));
        tree.add("sys/module/nouveau/refcnt", "1");
        assert!(fix(Some(&OnDisk::Missing)).contains("blacklist nouveau"));
    }

    #[test]
    fn a_gpu_that_is_lost_or_hangs_is_named() {
        let tree = healthy();
        assert!(driver(&tree, None, &Said::Hung).why.contains("hangs"));
        let check = driver(&tree, None, &said(true, "GPU 0: NVIDIA H100 (UUID: GPU-aa)\n"));
        assert_eq!((check.verdict, check.why.starts_with("1 of 2 GPUs")), (Verdict::Fail, true), "{}", check.why);
        let check = driver(&tree, None, &said(false, "No devices were found\n"));
        assert_eq!(check.why, "nvidia-smi says: No devices were found");
        let version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n";
        assert_eq!(version_in(version).as_deref(), Some("535.104.05"));
    }

    #[test]
    fn missing_nodes_are_named_with_what_makes_them() {
        let tree = healthy();
        for node in ["nvidia-uvm", "nvidia1"] {
            fs::remove_file(tree.root().join("dev").join(node)).expect("removed");
        }
        let check = judge_nvidia_nodes(2, &NvidiaFiles::read(tree.root()));
        assert_eq!(check.why, "missing: /dev/nvidia-uvm, 1 of 2 nodes /dev/nvidia0 and so on");
        assert!(check.fix.is_some_and(|f| f.contains("nvidia-modprobe -u -c=0")));
    }

    #[test]
    fn containers_must_be_able_to_get_a_gpu() {
        let tree = healthy();
        let cdi = Setup { cdi_dirs: vec!["/etc/cdi".into()], ..Setup::default() };
        tree.add("sys/module/nvidia/version", "570.86.15");
        let check = judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&cdi), true);
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.fix.as_deref(), Some("nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"));
        fs::remove_dir_all(tree.root().join("etc/cdi")).expect("removed");
        assert_eq!(judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&cdi), true).fix.as_deref(), Some(MAKE_CDI));
        let old = |cgroup_driver: &str| Setup {
            runtimes: vec!["nvidia".into(), "runc".into()],
            cgroup_driver: cgroup_driver.into(),
            ..Setup::default()
        };
        let check = judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&old("systemd")), true);
        assert_eq!((check.verdict, check.why.contains("daemon-reload")), (Verdict::Warn, true));
        assert!(
            !judge_toolkit(&NvidiaFiles::read(tree.root()), Some(&old("cgroupfs")), true).why.contains("daemon-reload")
        );
        fs::remove_file(tree.root().join("usr/bin/nvidia-ctk")).expect("removed");
        for setup in [None, Some(&cdi), Some(&Setup::default())] {
            let check = judge_toolkit(&NvidiaFiles::read(tree.root()), setup, true);
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.fix.is_some_and(|f| f.starts_with("apt-get install nvidia-container-toolkit\n")));
        }
    }

    fn driver(tree: &Tree, on_disk: Option<&str>, smi: &Said) -> Check {
        let on_disk = on_disk.map(|v| OnDisk::Version(v.to_owned()));
        judge_nvidia_driver(2, &NvidiaFiles::read(tree.root()), on_disk.as_ref(), smi)
    }

    fn said(fine: bool, text: &str) -> Said {
        Said::Ended { fine, text: text.to_owned() }
    }
}
