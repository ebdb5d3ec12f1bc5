//! GPUs: which are in the machine, whether their driver is the one that is installed, and how containers get them.
//!
//! Facts are files below a root directory and what the vendors' commands say; no vendor's library is loaded here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use super::{Check, QUESTION, Said, Scene, blocking, count, say};
use crate::engine::docker::Setup;

/// PCI vendor ids.
const NVIDIA: &str = "0x10de";
const AMD: &str = "0x1002";

/// Makes nouveau give way, for good.
const NO_NOUVEAU: &str = "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' \\\n  \
                          >/etc/modprobe.d/blacklist-nouveau.conf\nupdate-initramfs -u\nreboot";
/// Writes the list of NVIDIA GPUs for the engine.
const MAKE_CDI: &str = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml";
/// How long a vendor's command may take: without persistence mode the driver starts anew each time, a second or more per GPU.
const COMMAND: Duration = Duration::from_secs(8);
/// Last words of the kernel on a GPU.
const KERNEL_LOG: &str = "dmesg | grep -iE 'nvrm|xid|amdgpu' | tail -n 30";

/// How many GPUs of each vendor are on the PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct OnBus {
    nvidia: usize,
    amd: usize,
}

/// Display controllers (class 0x03) and processing accelerators (0x12). Audio functions of the same cards are neither.
fn on_bus(root: &Path) -> OnBus {
    let mut found = OnBus::default();
    for device in fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten() {
        let class = read(&device.path(), "class").unwrap_or_default();
        if !class.starts_with("0x03") && !class.starts_with("0x12") {
            continue;
        }
        match read(&device.path(), "vendor").as_deref() {
            Some(NVIDIA) => found.nvidia += 1,
            Some(AMD) => found.amd += 1,
            _ => {}
        }
    }
    found
}

async fn look(scene: &Scene) -> OnBus {
    let root = scene.subject.root.clone();
    blocking(move || on_bus(&root)).await.unwrap_or_default()
}

/// What there is.
pub(super) async fn present(scene: &Scene) -> Vec<Check> {
    vec![judge_present(scene.simulated(), look(scene).await)]
}

fn judge_present(simulated: u32, bus: OnBus) -> Check {
    const NAME: &str = "gpus";
    if simulated > 0 {
        let what = count(simulated as usize, "simulated GPU");
        return Check::skipped(NAME, format!("{what}: drivers, toolkit and device nodes are not looked at"));
    }
    let all: Vec<String> = [(bus.nvidia, "NVIDIA GPU"), (bus.amd, "AMD GPU")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| count(n, what))
        .collect();
    if all.is_empty() {
        return Check::warn(
            NAME,
            "no NVIDIA or AMD GPU on the PCI bus: no worker runs",
            "lspci -nn | grep -E '\\[03|\\[12'\nlabd up --simulate-gpus 2    # to see how it would be",
        );
    }
    Check::ok(NAME, format!("{} on the PCI bus", all.join(", ")))
}

/// Driver, device nodes and toolkit of NVIDIA GPUs; nothing on a machine that has none.
pub(super) async fn nvidia(scene: &Scene) -> Vec<Check> {
    let bus = look(scene).await;
    if scene.simulated() > 0 || bus.nvidia == 0 {
        return Vec::new();
    }
    let root = scene.subject.root.clone();
    let kernel = scene.subject.root == Path::new("/");
    let (driver, on_disk, smi, setup) = tokio::join!(
        blocking(move || NvidiaFiles::read(&root)),
        async { if kernel { module_version("nvidia").await } else { None } },
        say("nvidia-smi", &["--list-gpus"], COMMAND),
        scene.setup(),
    );
    let Some(files) = driver else {
        return vec![Check::fail("nvidia-driver", "the kernel's files do not answer", KERNEL_LOG)];
    };
    let mut checks = vec![judge_nvidia_driver(bus.nvidia, &files, on_disk.as_ref(), &smi)];
    if files.loaded.is_some() {
        checks.push(judge_nvidia_nodes(bus.nvidia, &files));
        checks.push(judge_toolkit(&files, setup.as_ref().ok(), scene.systemd()));
    }
    checks
}

/// What a kernel module on the disk says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OnDisk {
    /// It is there for the running kernel.
    Version(String),
    /// It is not, for the running kernel.
    Missing,
}

/// `None` when it cannot be told.
async fn module_version(module: &str) -> Option<OnDisk> {
    match say("modinfo", &["-F", "version", module], QUESTION).await {
        // Debian's kernel has an amdgpu without a version.
        Said::Ended { fine: true, text } => Some(OnDisk::Version(text.trim().to_owned())),
        Said::Ended { fine: false, text } if text.contains("not found") => Some(OnDisk::Missing),
        _ => None,
    }
}

/// What files say of NVIDIA's driver.
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
    /// CDI specifications that name NVIDIA GPUs: path -> text.
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

/// The first version such as `550.54.15` in a line like `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...`.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.split_whitespace().map(|w| w.trim_end_matches(['.', ',']));
    let is_version = |w: &&str| {
        w.contains('.') && w.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    words.find(is_version).map(str::to_owned)
}

/// The version in the name of the file that `libnvidia-ml.so.1` leads to.
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
            "GPUs are handed in the old way, and each `systemctl daemon-reload` takes them from running containers"
        } else {
            "GPUs are handed in the old way; CDI is safer, and needs Docker 25 or newer"
        };
        return Check::warn(NAME, how, fix);
    }
    Check::fail(NAME, "the engine cannot hand in NVIDIA GPUs: the container toolkit is missing", install)
}

/// Whether a CDI specification names libraries of another version than the driver's, and none of its own.
fn stale(spec: &str, driver: &str) -> bool {
    spec.contains("libnvidia-ml.so.") && !spec.contains(&format!("libnvidia-ml.so.{driver}"))
}

/// Driver and device nodes of AMD GPUs; nothing on a machine that has none.
pub(super) async fn amd(scene: &Scene) -> Vec<Check> {
    let bus = look(scene).await;
    if scene.simulated() > 0 || bus.amd == 0 {
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

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: String,
    gid: u32,
    /// Permission bits.
    mode: u32,
}

/// What files say of AMD's driver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AmdFiles {
    /// Version of the module that is loaded; empty for the kernel's own, which has none.
    loaded: Option<String>,
    /// The running kernel.
    kernel: String,
    kfd: Option<Node>,
    render: Vec<Node>,
    /// Group id -> name.
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

/// What a worker was asked.
const ASK_NVIDIA: [&str; 2] = ["nvidia-smi", "--list-gpus"];
/// `rocm-smi` reads the host's files and shows every GPU there is; what a container may use are its nodes.
const ASK_AMD: [&str; 3] = [
    "sh",
    "-c",
    "test -e /dev/kfd && ls /dev/dri | sed -n 's/^renderD/GPU renderD/p'; \
     if command -v rocm-smi >/dev/null; then rocm-smi >/dev/null; fi",
];

/// What is seen from inside each worker: one GPU, another one in each.
pub(super) async fn in_workers(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "worker-gpus";
    if scene.simulated() > 0 {
        return vec![Check::skipped(NAME, "simulated GPUs: there is nothing to be seen in the workers")];
    }
    let (Ok(engine), Some(standing)) = (&scene.engine, scene.standing().await) else {
        return vec![Check::skipped(NAME, "the engine was not reached")];
    };
    let workers = standing.iter().filter(|c| c.running && c.lab.as_deref() == Some(engine.lab()));
    let mut workers: Vec<String> =
        workers.filter_map(|c| c.service.clone()).filter(|s| s.starts_with("ray-worker-")).collect();
    workers.sort();
    if workers.is_empty() {
        return vec![Check::skipped(NAME, "no worker runs")];
    }
    let ask: &[&str] = if look(scene).await.nvidia > 0 { &ASK_NVIDIA } else { &ASK_AMD };
    let seen = workers.into_iter().map(|worker| async move {
        let said = match engine.exec(&worker, ask, COMMAND).await {
            Ok((code, text)) => Ok((code == 0, text)),
            Err(e) => Err(e.to_string()),
        };
        (worker, said)
    });
    judge_workers(&futures_util::future::join_all(seen).await)
}

type Seen = Result<(bool, String), String>;

fn judge_workers(workers: &[(String, Seen)]) -> Vec<Check> {
    const NAME: &str = "worker-gpus";
    let mut checks = Vec::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (worker, seen) in workers {
        let again = format!("labd restart {worker}");
        let (fine, text) = match seen {
            Ok(said) => said,
            Err(why) => {
                checks.push(Check::fail(NAME, format!("{worker}: {why}"), format!("{KERNEL_LOG}\n{again}")));
                continue;
            }
        };
        if text.contains("Failed to initialize NVML: Unknown Error") {
            let why = format!("{worker} lost its GPU, as a `systemctl daemon-reload` on the host does it");
            checks.push(Check::fail(NAME, why, again));
            continue;
        }
        let gpus = gpus_in(text);
        match gpus.as_slice() {
            [] => {
                let why = format!("{worker} sees no GPU: {}", first_line(text));
                checks.push(Check::fail(NAME, why, format!("labd logs {worker} -n 30\n{again}")));
            }
            _ if !fine => checks.push(Check::fail(NAME, format!("{worker}: {}", first_line(text)), again)),
            [one] => {
                if let Some(other) = owners.insert(one.clone(), worker.as_str()) {
                    checks.push(Check::fail(NAME, format!("{worker} and {other} see the same GPU, {one}"), again));
                }
            }
            many => {
                checks.push(Check::fail(NAME, format!("{worker} sees {} GPUs and must see one", many.len()), again));
            }
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, format!("each of {} sees one GPU of its own", count(workers.len(), "worker"))));
    }
    checks
}

/// What is handed out like a GPU in the output of `nvidia-smi --list-gpus`: partitions in place of the GPU they are on.
fn gpus_in(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let uuid = line.split_once("UUID: ").and_then(|(_, rest)| rest.split([')', ' ']).next());
        uuid.or_else(|| line.strip_prefix("GPU ")).unwrap_or(line).trim().to_owned()
    };
    let of = |start: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|l| l.starts_with(start)).map(name).collect()
    };
    let partitions = of("MIG ");
    if partitions.is_empty() { of("GPU ") } else { partitions }
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("nothing").to_owned()
}

fn read(root: &Path, path: &str) -> Option<String> {
    let text = fs::read_to_string(root.join(path)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// A machine's files.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().expect("a directory"));
            for (path, text) in files {
                tree.add(path, text);
            }
            tree
        }

        fn add(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }

        fn nvidia(&self) -> NvidiaFiles {
            NvidiaFiles::read(self.0.path())
        }

        fn amd(&self) -> AmdFiles {
            AmdFiles::read(self.0.path())
        }
    }

    /// Two GPUs under driver 550.54.15, as it should be.
    fn healthy() -> Tree {
        Tree::new(&[
            ("sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n"),
            ("sys/bus/pci/devices/0000:17:00.1/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.1/class", "0x040300\n"),
            ("sys/bus/pci/devices/0000:65:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:65:00.0/class", "0x030200\n"),
            ("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1a03\n"),
            ("sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n"),
            ("sys/module/nvidia/version", "550.54.15\n"),
            ("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", ""),
            ("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15", ""),
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("dev/nvidia0", ""),
            ("dev/nvidia1", ""),
            ("dev/nvidiactl", ""),
            ("dev/nvidia-uvm", ""),
            ("usr/bin/nvidia-ctk", ""),
            (
                "etc/cdi/nvidia.yaml",
                "kind: nvidia.com/gpu\n- hostPath: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15\n",
            ),
        ])
    }

    const TWO: &str = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n";

    fn said(fine: bool, text: &str) -> Said {
        Said::Ended { fine, text: text.to_owned() }
    }

    fn driver(tree: &Tree, on_disk: Option<&str>, smi: &Said) -> Check {
        let on_disk = on_disk.map(|v| OnDisk::Version(v.to_owned()));
        judge_nvidia_driver(2, &tree.nvidia(), on_disk.as_ref(), smi)
    }

    #[test]
    fn the_bus_is_read_and_sound_and_bmcs_are_no_gpus() {
        assert_eq!(on_bus(healthy().0.path()), OnBus { nvidia: 2, amd: 0 });
        let amd = Tree::new(&[
            ("sys/bus/pci/devices/0000:c1:00.0/vendor", "0x1002\n"),
            ("sys/bus/pci/devices/0000:c1:00.0/class", "0x120000\n"),
        ]);
        assert_eq!(on_bus(amd.0.path()), OnBus { nvidia: 0, amd: 1 });
        assert_eq!(judge_present(0, OnBus::default()).verdict, Verdict::Warn);
        assert_eq!(judge_present(2, OnBus { nvidia: 2, amd: 0 }).verdict, Verdict::Skipped);
        assert_eq!(judge_present(0, OnBus { nvidia: 2, amd: 1 }).why, "2 NVIDIA GPUs, 1 AMD GPU on the PCI bus");
    }

    #[test]
    fn a_healthy_nvidia_machine_is_left_in_peace() {
        let tree = healthy();
        let check = driver(&tree, Some("550.54.15"), &said(true, TWO));
        assert_eq!((check.verdict, check.why.as_str()), (Verdict::Ok, "550.54.15, 2 GPUs answer to nvidia-smi"));
        assert_eq!(judge_nvidia_nodes(2, &tree.nvidia()).verdict, Verdict::Ok);
        let setup = Setup { cdi_devices: vec!["nvidia.com/gpu=0".into()], ..Setup::default() };
        assert_eq!(judge_toolkit(&tree.nvidia(), Some(&setup), true).verdict, Verdict::Ok);
        let setup = Setup { cdi_dirs: vec!["/etc/cdi".into()], ..Setup::default() };
        assert_eq!(judge_toolkit(&tree.nvidia(), Some(&setup), true).why, "CDI by /etc/cdi/nvidia.yaml");
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
        fs::remove_file(tree.0.path().join("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15")).expect("removed");
        tree.add("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15", "");
        let check = driver(&tree, None, &Said::Missing);
        assert!(check.why.contains("the library is 570.86.15"), "{}", check.why);
        assert_eq!(check.fix.as_deref(), Some("reboot"));
    }

    #[test]
    fn a_driver_that_is_not_loaded_has_a_reason() {
        let tree = healthy();
        fs::remove_dir_all(tree.0.path().join("sys/module/nvidia")).expect("removed");
        let fix = |on_disk: Option<&OnDisk>| {
            let c = judge_nvidia_driver(2, &tree.nvidia(), on_disk, &Said::Missing);
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
            fs::remove_file(tree.0.path().join("dev").join(node)).expect("removed");
        }
        let check = judge_nvidia_nodes(2, &tree.nvidia());
        assert_eq!(check.why, "missing: /dev/nvidia-uvm, 1 of 2 nodes /dev/nvidia0 and so on");
        assert!(check.fix.is_some_and(|f| f.contains("nvidia-modprobe -u -c=0")));
    }

    #[test]
    fn containers_must_be_able_to_get_a_gpu() {
        let tree = healthy();
        let cdi = Setup { cdi_dirs: vec!["/etc/cdi".into()], ..Setup::default() };
        tree.add("sys/module/nvidia/version", "570.86.15");
        let check = judge_toolkit(&tree.nvidia(), Some(&cdi), true);
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.fix.as_deref(), Some("nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"));
        fs::remove_dir_all(tree.0.path().join("etc/cdi")).expect("removed");
        assert_eq!(judge_toolkit(&tree.nvidia(), Some(&cdi), true).fix.as_deref(), Some(MAKE_CDI));
        let old = |cgroup_driver: &str| Setup {
            runtimes: vec!["nvidia".into(), "runc".into()],
            cgroup_driver: cgroup_driver.into(),
            ..Setup::default()
        };
        let check = judge_toolkit(&tree.nvidia(), Some(&old("systemd")), true);
        assert_eq!((check.verdict, check.why.contains("daemon-reload")), (Verdict::Warn, true));
        assert!(!judge_toolkit(&tree.nvidia(), Some(&old("cgroupfs")), true).why.contains("daemon-reload"));
        fs::remove_file(tree.0.path().join("usr/bin/nvidia-ctk")).expect("removed");
        for setup in [None, Some(&cdi), Some(&Setup::default())] {
            let check = judge_toolkit(&tree.nvidia(), setup, true);
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.fix.is_some_and(|f| f.starts_with("apt-get install nvidia-container-toolkit\n")));
        }
    }

    #[test]
    fn amd_nodes_must_belong_to_a_group() {
        let tree = Tree::new(&[
            ("sys/module/amdgpu/version", "6.7.0\n"),
            ("dev/dri/renderD128", ""),
            ("dev/dri/card0", ""),
            ("etc/group", "root:x:0:\nrender:x:109:\n"),
        ]);
        assert!(judge_amd_nodes(&tree.amd()).why.starts_with("/dev/kfd is missing"));
        tree.add("dev/kfd", "");
        let own = |gid, mode| {
            let mut files = tree.amd();
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
        fs::remove_dir_all(tree.0.path().join("dev/dri")).expect("removed");
        assert!(judge_amd_nodes(&tree.amd()).why.contains("renderD"));
    }

    #[test]
    fn amdgpu_must_be_there_for_the_running_kernel() {
        let tree = Tree::new(&[("proc/sys/kernel/osrelease", "6.8.0-40-generic\n")]);
        let fix = |on_disk: &OnDisk| judge_amd_driver(&tree.amd(), Some(on_disk)).fix.unwrap_or_default();
        assert!(fix(&OnDisk::Missing).contains("linux-modules-extra-6.8.0-40-generic"));
        assert!(fix(&OnDisk::Version(String::new())).starts_with("modprobe amdgpu"));
        tree.add("sys/module/amdgpu/version", "6.7.0\n");
        assert_eq!(fix(&OnDisk::Version("6.8.5".into())), "reboot");
        assert_eq!(judge_amd_driver(&tree.amd(), Some(&OnDisk::Version("6.7.0".into()))).verdict, Verdict::Ok);
        assert_eq!(judge_amd_driver(&tree.amd(), None).verdict, Verdict::Ok);
    }

    #[test]
    fn each_worker_sees_one_gpu_of_its_own() {
        let worker = |i: usize, seen: Seen| (format!("ray-worker-{i}"), seen);
        let line = |uuid: &str| Ok((true, format!("GPU 0: NVIDIA A100 (UUID: {uuid})\n")));
        let why = |workers: &[(String, Seen)]| {
            let found = judge_workers(workers);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].verdict, found[0].why.clone())
        };
        let good = why(&[worker(0, line("GPU-aa")), worker(1, line("GPU-bb"))]);
        assert_eq!(good, (Verdict::Ok, "each of 2 workers sees one GPU of its own".into()));
        let same = why(&[worker(0, line("GPU-aa")), worker(1, line("GPU-aa"))]);
        assert_eq!(same, (Verdict::Fail, "ray-worker-1 and ray-worker-0 see the same GPU, GPU-aa".into()));
        let lost = why(&[worker(0, Ok((false, "Failed to initialize NVML: Unknown Error\n".into())))]);
        assert!(lost.1.contains("lost its GPU"), "{lost:?}");
        assert!(why(&[worker(0, Ok((true, TWO.into())))]).1.contains("sees 2 GPUs"));
        assert!(
            why(&[worker(0, Err("`nvidia-smi` in x did not finish within 6 s".into()))]).1.contains("did not finish")
        );
        assert!(why(&[worker(0, Ok((false, "sh: nvidia-smi: not found\n".into())))]).1.contains("not found"));
        let mig = "GPU 0: NVIDIA A100 (UUID: GPU-aa)\n  MIG 1g.5gb Device 0: (UUID: MIG-cc)\n";
        assert_eq!(gpus_in(mig), ["MIG-cc"]);
        assert_eq!(gpus_in("GPU renderD129\n"), ["renderD129"]);
    }
}
