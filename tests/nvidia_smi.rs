//! `labd probe nvidia-smi` with commands that play `nvidia-smi`.

#[path = "../crates/labd-probe-nvidia/tests/harness/mod.rs"]
mod harness;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, sync::mpsc};

use labd_gpu::line::{Hello, LIBRARY_MISSING, Line, Source};
use tempfile::TempDir;

use self::harness::{Probe, errors, ids};

const ROW: &str = "0, GPU-aa, 00000000:41:00.0, 570.124.06, NVIDIA H100, 81559, 1024, 97, 41, 312, 700, 1980, 2619, 0x4, 3, 0, \
                   [N/A], [N/A], [N/A], Disabled, Reboot";
const DIVIDED: &str = "1, GPU-bb, 00000000:42:00.0, 570.124.06, NVIDIA H100, 81559, 0, [N/A], 35, 90, 700, 345, 2619, 0x1, 0, 0, \
                       [N/A], [N/A], [N/A], Enabled, [N/A]";

struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn command(&self) -> PathBuf {
        self.dir.path().join("nvidia-smi")
    }

    /// Sets what `nvidia-smi` does from now on: the body of a shell's `case` over its first argument.
    fn plays(&self, cases: &str) {
        let new = self.dir.path().join("new");
        let text = format!("#!/bin/sh\necho \"$*\" >>{}/calls\ncase $1 in\n{cases}\nesac\n", self.dir.path().display());
        fs::write(&new, text).expect("a file");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it is ours");
        fs::rename(new, self.command()).expect("it is ours");
    }

    fn start(&self) -> Probe {
        self.start_with(|command| command.env("LABD_NVIDIA_SMI", self.command()))
    }

    fn start_with(&self, change: impl FnOnce(&mut Command) -> &mut Command) -> Probe {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labd"));
        command.args(["probe", "nvidia-smi"]).env("LABD_SYS_ROOT", self.dir.path());
        Probe::start(change(&mut command))
    }
}

fn gpus(rows: &[&str]) -> String {
    format!("--query-gpu=*) printf '%s\\n' '{}';;", rows.join("' '"))
}

#[test]
fn it_tells_gpus_partitions_processes_and_rows() {
    let machine = Machine::new();
    for (file, text) in [
        ("proc/driver/nvidia/gpus/0000:42:00.0/information", "Device Minor: 1\n"),
        ("proc/driver/nvidia/capabilities/gpu1/mig/gi3/ci0/access", "DeviceFileMinor: 31\n"),
    ] {
        let path = machine.dir.path().join(file);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    machine.plays(&format!(
        "{}\n-L) printf '%s\\n' 'GPU 0: NVIDIA H100 (UUID: GPU-aa)' 'GPU 1: NVIDIA H100 (UUID: GPU-bb)' \
         '  MIG 1g.10gb     Device  0: (UUID: MIG-1)';;\n--query-compute-apps=*) echo 'MIG-1, 4242, 512';;\n\
         -q) printf '%s\\n' 'GPU 00000000:42:00.0' \
         '    GPU instance ID : 3' '    Compute instance ID : 0' '    Process ID : 4343';;\n--query-remapped-rows=*) echo 'GPU-aa, 1, 0, 1, 0';;",
        gpus(&[ROW, DIVIDED])
    ));
    let mut probe = machine.start();
    assert_eq!(probe.line(), Line::Hello(Hello { source: Source::NvidiaSmi, driver: None, library: None }));
    let version = |line| if let Line::Hello(hello) = line { hello.driver } else { None };
    assert_eq!(probe.until(version), "570.124.06");
    assert_eq!(ids(&probe.inventory()), ["GPU-aa", "GPU-bb", "MIG-1"]);
    let readings = probe.readings(|_| true);
    assert_eq!((readings[0].temperature_c, readings[0].remap_pending), (Some(41.0), true));
    assert_eq!(readings[2].processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [4242, 4343]);
    assert_eq!((readings[0].recovery_action, readings[1].recovery_action), (Some(2), None));

    // Somebody reset it by hand, and its quarantine is lifted right after.
    machine.plays(&gpus(&[&ROW.replace("Reboot", "None"), DIVIDED]));
    let after = (0..3).map(|_| probe.readings(|_| true)[0].recovery_action).collect::<Vec<_>>();
    assert_eq!(after.last(), Some(&Some(0)), "{after:?}");

    // A list that cannot be had does not make a partition disappear.
    machine.plays(&gpus(&[ROW, DIVIDED]));
    let next = probe.readings(|r| r.iter().all(|r| r.processes.is_empty()));
    assert_eq!(errors(&next), [("GPU-aa", None), ("GPU-bb", None), ("MIG-1", None)]);
    drop(probe.input.take());
    assert_eq!(probe.ends().code(), Some(0));
}

#[test]
fn a_gpu_that_sleeps_is_not_asked_and_none_is_where_all_sleep() {
    let machine = Machine::new();
    let status = |pci: &str, text: &str| {
        let dir = machine.dir.path().join("sys/bus/pci/devices").join(pci);
        fs::create_dir_all(dir.join("power")).expect("a folder");
        for (file, text) in [("vendor", "0x10de"), ("class", "0x030200"), ("power/runtime_status", text)] {
            fs::write(dir.join(file), text).expect("a file");
        }
    };
    status("0000:41:00.0", "active");
    status("0000:42:00.0", "active");
    let other = ROW.replace("0, GPU-aa, 00000000:41", "1, GPU-bb, 00000000:42");
    machine.plays(&gpus(&[ROW, &other]));
    let probe = machine.start();
    probe.readings(|r| r.len() == 2);
    machine.plays(&format!("--query-gpu=*) case \"$*\" in *--id=0000:41:00.0) echo '{ROW}';; *) exit 1;; esac;;"));
    status("0000:42:00.0", "suspended");
    let readings = probe.readings(|r| r.len() == 2 && r.iter().any(|r| r.asleep));
    let seen: Vec<_> = readings.iter().map(|r| (r.id.as_str(), r.asleep, r.temperature_c)).collect();
    assert_eq!(seen, [("GPU-bb", true, None), ("GPU-aa", false, Some(41.0))]);
    status("0000:41:00.0", "suspended");
    probe.readings(|r| r.iter().all(|r| r.asleep));
    let calls = || fs::read_to_string(machine.dir.path().join("calls")).expect("it was called").lines().count();
    let before = calls();
    for _ in 0..3 {
        probe.readings(|r| r.len() == 2 && r.iter().all(|r| r.asleep));
    }
    assert_eq!(calls(), before);
    assert_eq!(probe.readings(|_| true).len(), 2);
}

#[test]
fn one_that_hangs_is_killed_and_told_of_and_asked_again() {
    let machine = Machine::new();
    machine.plays(&gpus(&[ROW]));
    let probe = machine.start();
    probe.readings(|r| r.len() == 1);
    machine.plays("*) exec sleep 1000;;");
    let trouble = probe.trouble();
    assert_eq!(trouble.code, "nvidia-smi-hangs");
    assert!(trouble.text.contains("dmesg"), "{}", trouble.text);
    machine.plays(&gpus(&[ROW]));
    probe.readings(|r| errors(r) == [("GPU-aa", None)]);
}

#[test]
fn a_first_answer_may_take_long_and_there_is_one_at_a_time() {
    let machine = Machine::new();
    machine.plays("*) exec sleep 1000;;");
    let mut probe = machine.start();
    // More than a hang may take later.
    for _ in 0..6 {
        assert!(matches!(probe.line(), Line::Hello(_)));
    }
    let calls = fs::read_to_string(machine.dir.path().join("calls")).expect("it was called");
    assert_eq!(calls.lines().count(), 1, "{calls}");
    drop(probe.input.take());
    assert_eq!(probe.ends().code(), Some(0));
}

#[test]
fn what_is_wrong_is_told_until_it_heals() {
    let machine = Machine::new();
    machine.plays("*) echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18;;");
    let probe = machine.start();
    for _ in 0..3 {
        assert_eq!(probe.trouble().code, "NVML_ERROR_LIB_RM_VERSION_MISMATCH");
    }
    machine.plays("--query-gpu=*) echo 'No devices were found'; exit 6;;");
    assert_eq!(ids(&probe.inventory()), Vec::<&str>::new());
    machine.plays(&gpus(&[ROW, "Unable to determine the device handle for GPU 0000:42:00.0: Unknown Error"]));
    let readings = probe.readings(|r| r.len() == 2);
    assert_eq!(errors(&readings), [("GPU-aa", None), ("0000:42:00.0", Some("NVML_ERROR_UNKNOWN"))]);
}

#[test]
fn an_older_one_is_not_asked_for_what_it_does_not_know() {
    let machine = Machine::new();
    machine.plays(
        "*gpu_recovery_action*) echo 'Field \"gpu_recovery_action\" is not a valid field to query.'; exit 2;;\n\
         *mig.mode.current*) echo 'Field \"mig.mode.current\" is not a valid field to query.'; exit 2;;\n\
         *enforced.power.limit*) echo 'Field \"enforced.power.limit\" is not a valid field to query.' >&2; exit 2;;\n\
         --query-gpu=*) echo '0, GPU-aa, 00000000:41:00.0, 450.80, Tesla V100, 32768, 0, 0, 35, 42, 135, 877, 0x1, 0, 0, 0, 0, No';;",
    );
    let probe = machine.start();
    assert_eq!(ids(&probe.inventory()), ["GPU-aa"]);
    assert_eq!(probe.readings(|_| true)[0].power_w, Some(42.0));
}

#[test]
fn without_it_the_probe_says_so_and_ends() {
    let machine = Machine::new();
    let mut probe = machine.start_with(|command| command.env_remove("LABD_NVIDIA_SMI").env("PATH", machine.dir.path()));
    assert_eq!(probe.trouble().code, LIBRARY_MISSING);
    assert_eq!(probe.ends().code(), Some(0));
    machine.plays(&gpus(&[ROW]));
    // `printf` is the shell's own.
    let probe = machine.start_with(|command| command.env_remove("LABD_NVIDIA_SMI").env("PATH", machine.dir.path()));
    assert_eq!(ids(&probe.inventory()), ["GPU-aa"]);
}

#[test]
fn it_ends_when_nobody_reads() {
    let machine = Machine::new();
    machine.plays(&gpus(&[ROW]));
    let mut probe = machine.start();
    probe.readings(|r| r.len() == 1);
    drop(std::mem::replace(&mut probe.lines, mpsc::channel().1));
    probe.ends();
}
