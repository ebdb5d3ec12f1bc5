//! GPU check: whether the GPU is still there inside the container, which only a process inside can see.
//!
//! An engine's older ways to attach a GPU allow its device nodes behind systemd's back. The next `systemctl
//! daemon-reload` (each package that brings a unit does one) applies the rules that systemd knows again, and the nodes
//! cannot be opened any more: "Failed to initialize NVML: Unknown Error". Processes that have them open continue,
//! everything that begins from then on fails, and only a new container has its GPU again.
//!
//! What to ask and what an answer means are pure; [`watch`] asks.

use std::time::Duration;

use super::decide::{GONE_AFTER, GpuVisibility, missing};
use crate::{
    engine::{Engine, EngineError, Patience, Ran},
    gpus::vendor,
    spec::{ContainerSpec, Device},
    time::{Timestamp, human},
};

/// Interval between two checks. A check is a shell and, for NVIDIA, an `nvidia-smi -L`.
const EVERY: Duration = Duration::from_secs(15);
/// Longest time a check may take, from its first output on. A machine whose disk thrashes takes many seconds to start a
/// process in a container, in all containers at once: that is not a lost GPU, and says nothing about it.
const PATIENCE: Patience = Patience { begin: Some(Duration::from_mins(1)), run: Duration::from_secs(10) };

/// Script of the check: says that it has begun, opens each device node, then asks NVIDIA's own tool where there is one.
/// Exit code 3 means that the GPU is gone, with the reason as the last line; every other failure is the check's own.
///
/// A GPU that sleeps is left alone: opening its node, or asking NVIDIA's tool, would wake it at each check. The kernel's
/// files of the host say so inside a container too; where they do not, the check is made.
///
/// Arguments: the UUID that the tool must list, or an empty one, and the nodes; one with a wildcard may match none.
const LOOK: &str = r#"
echo looking
export LC_ALL=C
uuid=$1
shift
gone() { echo "$*"; exit 3; }
sys=$LABD_SYS_ROOT
# As `power` in labd's crate labd-gpu has it. Its argument: the device's folder.
sleeps() {
    read -r status <"$1/power/runtime_status" && case $status in suspended | suspending | resuming) ;; *) false ;; esac
} 2>/dev/null
for pattern do
    for node in $pattern; do
        case $pattern in *'*'*) [ -e "$node" ] || continue ;; esac
        case $node in
            */renderD*) sleeps "$sys/sys/class/drm/${node##*/}/device" && continue ;;
            */nvidia[0-9]*)
                # The driver says which address has this number.
                for about in "$sys"/proc/driver/nvidia/gpus/*/information; do
                    grep -qs "^Device Minor:[[:space:]]*${node##*/nvidia}\$" "$about" || continue
                    about=${about%/*}
                    sleeps "$sys/sys/bus/pci/devices/${about##*/}" && uuid= && continue 2
                done
                ;;
        esac
        said=$( { true <"$node"; } 2>&1 ) && continue
        # Somebody has it for himself: it is there.
        case $said in *busy*) continue ;; esac
        gone "$node: ${said##*: }"
    done
done
if [ -n "$uuid" ] && command -v nvidia-smi >/dev/null 2>&1; then
    said=$(nvidia-smi -L 2>&1)
    code=$?
    case $code in
        # The image has the tool, and the toolkit was not asked for its library.
        12 | 126 | 127) exit 0 ;;
        0) case $said in *"$uuid"*) ;; *) gone "nvidia-smi does not list $uuid" ;; esac ;;
        *) gone "nvidia-smi exited $code: $(echo "$said" | head -n 1)" ;;
    esac
fi
"#;

/// Exit code of [`LOOK`] for a GPU that is gone.
const GONE: i64 = 3;
/// Beginning of the reason, which a person reads first; the part in brackets is the usual cause.
const WORDS: &str = "the GPU is gone inside the container (was systemctl daemon-reload run?)";

/// Command of the check; `None` for a container that has no GPU.
pub fn command(spec: &ContainerSpec) -> Option<Vec<String>> {
    // By name first, then those that the vendor's specification brings along.
    let (mut nodes, mut patterns): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut lists_by_id = false;
    let id = match spec.env.get("LABD_GPU_UUID") {
        Some(crate::spec::EnvValue::Plain(id)) => id.as_str(),
        _ => "",
    };
    for device in &spec.devices {
        match device {
            // A network card that is gone is another trouble.
            Device::Node { path, .. } if path.starts_with("/dev/infiniband/") => continue,
            Device::Node { path, .. } => nodes.push(path),
            Device::Cdi { .. } | Device::Nvidia { .. } => {}
        }
        let Some(def) = vendor::ALL.into_iter().find(|def| (def.owns)(device)) else { continue };
        for node in (def.nodes_inside)(device) {
            if !patterns.contains(node) {
                patterns.push(node);
            }
        }
        lists_by_id |= (def.lists_by_id)(id);
    }
    nodes.extend(patterns);
    if nodes.is_empty() {
        return None;
    }
    let uuid = if lists_by_id { id } else { "" };
    let words = ["sh", "-c", LOOK, "labd-gpu-check", uuid].into_iter().chain(nodes);
    Some(words.map(str::to_owned).collect())
}

/// Meaning of the command's answer.
pub fn verdict(answer: &Result<Ran, EngineError>) -> GpuVisibility {
    match answer {
        Ok(Ran::Ended { code: 0, .. }) => GpuVisibility::There,
        Ok(Ran::Ended { code: GONE, output }) => {
            let last = output.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("a device cannot be opened");
            let last: String = last.chars().filter(|c| !c.is_control()).take(160).collect();
            GpuVisibility::Gone(format!("{WORDS}: {last}"))
        }
        Ok(Ran::Unfinished) => GpuVisibility::Gone(format!("{WORDS}: no answer within {}", human(PATIENCE.run))),
        // The engine is away, the container is paused or has just ended, the image has no shell, the look has not even
        // begun: nothing about the GPU.
        Ok(Ran::Ended { .. } | Ran::NotBegun) | Err(_) => GpuVisibility::Unknown,
    }
}

/// Checks at once and then every 15 s; returns when the GPU is gone, with the reason and when it was last seen: what began in
/// there since may have failed for that. Never returns for a container without a GPU.
pub async fn watch<E: Engine>(engine: &E, id: &str, spec: &ContainerSpec) -> (String, Timestamp) {
    let Some(command) = command(spec) else { return std::future::pending().await };
    let (mut misses, mut seen) = (0, Timestamp::now());
    loop {
        let asked = Timestamp::now();
        let inside = verdict(&engine.run(id, &command, PATIENCE).await);
        misses = missing(misses, &inside);
        match inside {
            GpuVisibility::Gone(reason) if misses >= GONE_AFTER => return (reason, seen),
            GpuVisibility::There => seen = asked,
            GpuVisibility::Gone(_) | GpuVisibility::Unknown => {}
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, process::Command};

    use super::*;
    use crate::plan::{self, tests::inputs};

    fn spec(id: &str, devices: Vec<Device>) -> ContainerSpec {
        let mut inputs = inputs("", 1, 32);
        id.clone_into(&mut inputs.gpus[0].id);
        inputs.gpus[0].devices = devices;
        let (plan, _) = plan::make(&inputs).expect("a plan");
        plan.service("ray-worker-0").expect("a worker").container.clone()
    }

    fn node(path: &str) -> Device {
        Device::Node { path: path.into(), gid: 0 }
    }

    #[test]
    fn what_is_checked_follows_from_what_was_attached() {
        let cdi = |name: &str| Device::Cdi { name: name.into(), gids: vec![] };
        for (id, devices, want) in [
            ("SIM-0", vec![], None),
            ("SIM-0", vec![node("/dev/infiniband/uverbs0")], None),
            ("GPU-1", vec![cdi("nvidia.com/gpu=GPU-1")], Some("GPU-1 /dev/nvidia[0-9]* /dev/nvidiactl*")),
            (
                "GPU-1",
                vec![Device::Nvidia { uuid: "GPU-1".into() }, node("/dev/nvidia3")],
                Some("GPU-1 /dev/nvidia3 /dev/nvidia[0-9]* /dev/nvidiactl*"),
            ),
            ("0xab", vec![cdi("amd.com/gpu=1")], Some(" /dev/kfd /dev/dri/renderD*")),
            ("0xab", vec![node("/dev/kfd"), node("/dev/dri/renderD129")], Some(" /dev/kfd /dev/dri/renderD129")),
        ] {
            let said = command(&spec(id, devices)).map(|argv| argv[4..].join(" "));
            assert_eq!(said.as_deref(), want);
        }
    }

    /// Runs the check on this machine, with these programs before all others.
    fn look(uuid: &str, nodes: &[&str], tools: &BTreeMap<&str, &str>) -> GpuVisibility {
        look_below(std::path::Path::new(""), uuid, nodes, tools)
    }

    /// Likewise; the kernel's files are below `root`.
    fn look_below(root: &std::path::Path, uuid: &str, nodes: &[&str], tools: &BTreeMap<&str, &str>) -> GpuVisibility {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        for (name, script) in tools {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
        }
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let done = Command::new("sh")
            .args(["-c", LOOK, "look", uuid])
            .args(nodes)
            .env("PATH", path)
            .env("LABD_SYS_ROOT", root)
            .output();
        let done = done.expect("a shell");
        let output = String::from_utf8_lossy(&done.stdout).into_owned();
        verdict(&Ok(Ran::Ended { code: done.status.code().unwrap_or(-1).into(), output }))
    }

    fn gone(inside: &GpuVisibility) -> &str {
        match inside {
            GpuVisibility::Gone(reason) => reason.strip_prefix(WORDS).expect("begins with what it is"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nodes_are_opened_and_the_tool_is_asked() {
        let none = BTreeMap::new();
        let smi = |script| BTreeMap::from([("nvidia-smi", script)]);
        let null = ["/dev/null"];
        assert_eq!(look("", &["/dev/null", "/dev/zer*", "/dev/nosuch[0-9]*"], &none), GpuVisibility::There);
        assert_eq!(gone(&look("", &["/dev/null", "/dev/nosuch"], &none)), ": /dev/nosuch: No such file");
        assert_eq!(look("GPU-1", &null, &none), GpuVisibility::There, "no tool");
        let lists = smi("echo 'GPU 0: H100 (UUID: GPU-1)'");
        assert_eq!(look("GPU-1", &null, &lists), GpuVisibility::There);
        assert_eq!(gone(&look("GPU-2", &null, &lists)), ": nvidia-smi does not list GPU-2");
        assert_eq!(look("", &null, &smi("exit 9")), GpuVisibility::There, "no UUID to ask for");
        assert_eq!(look("GPU-1", &null, &smi("exit 12")), GpuVisibility::There, "a tool without its library");
        let reloaded = smi("echo 'Failed to initialize NVML: Unknown Error'; exit 255");
        assert_eq!(
            gone(&look("GPU-1", &null, &reloaded)),
            ": nvidia-smi exited 255: Failed to initialize NVML: Unknown Error"
        );
    }

    #[test]
    fn a_gpu_that_sleeps_is_not_opened() {
        let root = tempfile::tempdir().expect("a directory");
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            fs::write(path, format!("{text}\n")).expect("a file");
        };
        let check = |uuid: &str, node: &str| {
            let tool = BTreeMap::from([("nvidia-smi", "exit 255")]);
            look_below(root.path(), uuid, &[node], &tool)
        };
        // Nodes that cannot be opened: an attempt shows.
        let (render, nvidia) = ("/dev/nosuch/renderD129", "/dev/nosuch/nvidia3");
        file("sys/class/drm/renderD128/device/power/runtime_status", "suspended");
        file("sys/class/drm/renderD129/device/power/runtime_status", "active");
        file("proc/driver/nvidia/gpus/0000:41:00.0/information", "Model: \t\t H100\nDevice Minor: \t 13");
        file("proc/driver/nvidia/gpus/0000:42:00.0/information", "Model: \t\t H100\nDevice Minor: \t 3");
        file("sys/bus/pci/devices/0000:41:00.0/power/runtime_status", "suspended");
        file("sys/bus/pci/devices/0000:42:00.0/power/runtime_status", "active");
        for (uuid, node) in [("", render), ("GPU-1", nvidia)] {
            assert!(matches!(check(uuid, node), GpuVisibility::Gone(_)), "{node} is awake");
        }
        // It could not be woken.
        file("sys/class/drm/renderD129/device/power/runtime_status", "error");
        file("sys/bus/pci/devices/0000:42:00.0/power/runtime_status", "error");
        for (uuid, node) in [("", render), ("GPU-1", nvidia)] {
            assert!(matches!(check(uuid, node), GpuVisibility::Gone(_)), "{node} does not sleep");
        }
        file("sys/class/drm/renderD129/device/power/runtime_status", "suspended");
        file("sys/bus/pci/devices/0000:42:00.0/power/runtime_status", "suspended");
        for (uuid, node) in [("", render), ("GPU-1", nvidia)] {
            assert_eq!(check(uuid, node), GpuVisibility::There, "{node} sleeps");
        }
    }

    #[test]
    fn only_what_speaks_of_the_gpu_counts() {
        let ended = |code, output: &str| Ok(Ran::Ended { code, output: output.into() });
        assert_eq!(verdict(&ended(0, "")), GpuVisibility::There);
        assert_eq!(verdict(&ended(3, "x\n/dev/a: y\u{1b}\n\n")), GpuVisibility::Gone(format!("{WORDS}: /dev/a: y")));
        assert_eq!(verdict(&Ok(Ran::Unfinished)), GpuVisibility::Gone(format!("{WORDS}: no answer within 10 s")));
        let slow = Ok(Ran::NotBegun);
        for other in [ended(127, "sh: not found"), ended(137, ""), Err(EngineError::Unreachable("x".into())), slow] {
            assert_eq!(verdict(&other), GpuVisibility::Unknown);
        }
    }

    #[test]
    fn a_look_says_at_once_that_it_has_begun() {
        let mut look = Command::new("sh")
            .args(["-c", LOOK, "look", "", "/dev/null"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut first = [0; 8];
        std::io::Read::read_exact(look.stdout.as_mut().expect("piped"), &mut first).expect("it says something");
        assert_eq!(&first, b"looking\n");
        assert!(look.wait().expect("it ends").success());
    }
}
