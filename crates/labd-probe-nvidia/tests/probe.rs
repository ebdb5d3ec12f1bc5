//! Tests of the real probe against a stand-in for NVIDIA's library (`nvml.c`), which is compiled here.

mod harness;

use std::{
    fmt::Write as _,
    fs,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
};

use labd_gpu::{
    Instance, Process, Reading, Throttle,
    line::{Hello, LIBRARY_MISSING, Line, Source},
};
use tempfile::TempDir;

use self::harness::{Probe, errors, ids};

const GIB: u64 = 1 << 30;

/// Machine: the script of the library, and a folder that stands for `/`.
struct Machine {
    dir: TempDir,
    library: PathBuf,
}

impl Machine {
    fn new() -> Self {
        Self::with_library(&[])
    }

    /// Machine whose library is compiled with `defines`, which rename symbols.
    fn with_library(defines: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (library, source) = (dir.path().join("libnvidia-ml.so.1"), "tests/nvml.c");
        let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
        cc.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-Wall", "-D_GNU_SOURCE", "-shared", "-fPIC"]).args(defines);
        let compiled = cc.arg("-o").arg(&library).arg(source).status().expect("a C compiler");
        assert!(compiled.success());
        Self { dir, library }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// Adds a GPU as the kernel shows it.
    fn plug_in(&self, pci: &str, numa: &str, cpus: &str) {
        for (name, text) in [("vendor", "0x10de"), ("class", "0x030200"), ("numa_node", numa), ("local_cpulist", cpus)]
        {
            self.file(&format!("sys/bus/pci/devices/{pci}/{name}"), &format!("{text}\n"));
        }
    }

    fn unplug(&self, pci: &str) {
        fs::remove_dir_all(self.root().join("sys/bus/pci/devices").join(pci)).expect("it was plugged in");
    }

    /// Sets how the library behaves from now on. The first line of a key counts.
    fn script(&self, text: &str) {
        let (path, new) = (self.dir.path().join("script"), self.dir.path().join("script.new"));
        fs::write(&new, text).and_then(|()| fs::rename(new, path)).expect("a file");
    }

    fn start(&self) -> Probe {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labd-probe-nvidia"));
        command.env("LABD_NVML", &self.library).env("FAKE_NVML", self.dir.path().join("script"));
        Probe::start(command.env("LABD_SYS_ROOT", self.root()))
    }
}

/// Script of this many H100s, `GPU-0` and so on.
fn gpus(count: u32) -> String {
    let mut text = format!("driver=570.124.06\nlibrary=12.570.124.06\ncount={count}\n");
    for i in 0..count {
        let _ = write!(
            text,
            "{i}.uuid=GPU-{i}\n{i}.name=NVIDIA H100 80GB HBM3\n{i}.pci=00000000:{:02X}:00.0\n{i}.minor={i}\n\
             {i}.memory={}\n{i}.used={}\n{i}.temperature={}\n{i}.utilisation=97\n",
            0x41 + i,
            80 * GIB,
            u64::from(i) * GIB,
            40 + i
        );
    }
    text
}

#[test]
fn one_gpu_and_everything_about_it() {
    let machine = Machine::new();
    machine.plug_in("0000:41:00.0", "1", "32-63,96-127");
    for node in ["nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
        machine.file(&format!("dev/{node}"), "");
    }
    machine.script(&format!(
        "{}0.power=312500\n0.limit=700000\n0.clock.1=1980\n0.clock.2=2619\n0.throttle=0x24\n0.ecc.0=3\n0.ecc.1=1\n\
         0.field.142=1\n0.field.143=2\n0.field.144=1\n0.field.145=1\n0.field.230=1\n0.compute=4242:1073741824,77\n0.graphics=900:4096\n",
        gpus(1)
    ));
    let probe = machine.start();
    assert_eq!(probe.line(), Line::Hello(Hello { source: Source::Nvml, driver: None, library: None }));
    let hello =
        Hello { driver: Some("570.124.06".into()), library: Some("12.570.124.06".into()), source: Source::Nvml };
    assert_eq!(probe.line(), Line::Hello(hello));

    let devices = probe.inventory();
    let [gpu] = devices.as_slice() else { panic!("{devices:?}") };
    assert_eq!((gpu.id.as_str(), gpu.name.as_str(), gpu.memory_bytes), ("GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB));
    assert_eq!(gpu.pci.as_deref(), Some("0000:41:00.0"));
    assert_eq!((gpu.numa_node, gpu.cpu_list.as_deref(), gpu.divided), (Some(1), Some("32-63,96-127"), false));
    let nodes: Vec<&str> = gpu.nodes.iter().map(|n| n.path.as_str()).collect();
    assert_eq!(nodes, ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]);

    let want = Reading {
        id: "GPU-0".into(),
        asleep: false,
        utilisation_percent: Some(97.0),
        memory_used_bytes: Some(0),
        temperature_c: Some(40.0),
        power_w: Some(312.5),
        power_limit_w: Some(700.0),
        clock_mhz: Some(1980),
        memory_clock_mhz: Some(2619),
        throttled: vec![Throttle::Thermal, Throttle::PowerCap],
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(1),
        remapped_rows: Some(3),
        remap_pending: true,
        remap_failed: true,
        recovery_action: Some(1),
        processes: vec![
            Process { pid: 4242, memory_bytes: Some(GIB) },
            Process { pid: 77, memory_bytes: None },
            Process { pid: 900, memory_bytes: Some(4096) },
        ],
        error: None,
    };
    assert_eq!(probe.readings(|_| true), [want]);
}

#[test]
fn two_gpus_of_different_memory_and_an_unknown_numa_node() {
    let machine = Machine::new();
    machine.plug_in("0000:41:00.0", "-1", "0-7");
    machine.script(&format!("1.name=NVIDIA A30\n1.memory={}\n1.pci=00000001:C1:00.0\n{}", 24 * GIB, gpus(2)));
    let probe = machine.start();
    let devices = probe.inventory();
    let seen: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.memory_bytes, d.index)).collect();
    assert_eq!(seen, [("NVIDIA H100 80GB HBM3", 80 * GIB, 0), ("NVIDIA A30", 24 * GIB, 1)]);
    assert_eq!(devices[1].pci.as_deref(), Some("0001:c1:00.0"));
    assert_eq!((devices[0].numa_node, devices[1].numa_node), (None, None));
    assert!(devices.iter().all(|d| d.nodes.is_empty()), "no device node exists");
}

#[test]
fn eight_gpus_and_each_has_its_own_readings() {
    let machine = Machine::new();
    machine.script(&gpus(8));
    let probe = machine.start();
    let devices = probe.inventory();
    assert_eq!(ids(&devices), (0..8).map(|i| format!("GPU-{i}")).collect::<Vec<_>>());
    let readings = probe.readings(|_| true);
    let seen: Vec<_> = readings.iter().map(|r| (r.memory_used_bytes, r.temperature_c)).collect();
    assert_eq!(seen, (0..8_u8).map(|i| (Some(u64::from(i) * GIB), Some(f32::from(40 + i)))).collect::<Vec<_>>());
}

#[test]
fn mig_devices_belong_to_their_gpu_and_change_with_it() {
    let machine = Machine::new();
    let mig = |place: u32, id: &str, kind: &str, gib: u64| {
        let (name, bytes) = (format!("NVIDIA H100 80GB HBM3 MIG {kind}"), gib * GIB);
        format!("1.mig.{place}.uuid={id}\n1.mig.{place}.name={name}\n1.mig.{place}.memory={bytes}\n")
    };
    let two = format!("{}1.mig=7\n{}", gpus(2), mig(0, "MIG-a", "1g.10gb", 10) + &mig(3, "MIG-b", "3g.40gb", 40));
    for (capability, minor) in [("gi1", 12), ("gi1/ci0", 13), ("gi9", 84), ("gi9/ci0", 85)] {
        let access = format!("proc/driver/nvidia/capabilities/gpu1/mig/{capability}/access");
        machine.file(&access, &format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\n"));
        machine.file(&format!("dev/nvidia-caps/nvidia-cap{minor}"), "");
    }
    machine.script(&format!("{two}1.mig.3.used={GIB}\n1.mig.3.compute=4242:4096\n"));
    let probe = machine.start();
    let devices = probe.inventory();
    assert_eq!(ids(&devices), ["GPU-0", "GPU-1", "MIG-a", "MIG-b"]);
    assert_eq!(devices.iter().map(|d| d.divided).collect::<Vec<_>>(), [false, true, false, false]);
    let b = &devices[3];
    assert_eq!((b.parent.as_deref(), b.partition.as_deref()), (Some("GPU-1"), Some("3g.40gb")));
    assert_eq!((b.memory_bytes, b.index, b.pci.as_deref()), (40 * GIB, 1, Some("0000:42:00.0")));
    // Places are in the order of the instances.
    let seen: Vec<_> = devices[2..].iter().map(|d| (d.instance, d.nodes.last().map(|n| n.path.as_str()))).collect();
    let instance = |gpu| Some(Instance { gpu, compute: 0 });
    let nodes = [Some("/dev/nvidia-caps/nvidia-cap13"), Some("/dev/nvidia-caps/nvidia-cap85")];
    assert_eq!(seen, [(instance(1), nodes[0]), (instance(9), nodes[1])]);
    let readings = probe.readings(|_| true);
    let b = readings.iter().find(|r| r.id == "MIG-b").expect("it has one");
    assert_eq!((b.memory_used_bytes, b.temperature_c, b.error.as_deref()), (Some(GIB), None, None));
    assert_eq!(b.processes, [Process { pid: 4242, memory_bytes: Some(4096) }]);

    machine.script(&format!("{}1.mig=7\n{}", gpus(2), mig(0, "MIG-a", "1g.10gb", 10)));
    let gone = probe.readings(|r| r.iter().any(|r| r.id == "MIG-b" && r.error.is_some()));
    assert_eq!(errors(&gone), [("MIG-b", Some("NVML_ERROR_NOT_FOUND"))]);
    assert_eq!(ids(&probe.inventory()), ["GPU-0", "GPU-1", "MIG-a"]);
}

#[test]
fn a_lost_gpu_stays_listed_with_its_error_and_the_others_go_on() {
    let machine = Machine::new();
    machine.script(&gpus(3));
    let probe = machine.start();
    assert_eq!(probe.inventory().len(), 3);
    let mut inventories = 0;
    for (code, symbol) in [
        ("15", "NVML_ERROR_GPU_IS_LOST"),
        ("16", "NVML_ERROR_RESET_REQUIRED"),
        ("999", "NVML_ERROR_UNKNOWN"),
        ("28", "NVML_ERROR_GPU_NOT_FOUND"),
    ] {
        machine.script(&format!("1={code}\n{}", gpus(3)));
        probe.until(|line| {
            inventories += u32::from(matches!(line, Line::Inventory(_)));
            let Line::Readings(readings) = line else { return None };
            let want = [("GPU-0", None), ("GPU-1", Some(symbol)), ("GPU-2", None)];
            let there = errors(&readings) == want;
            (there && readings[0].temperature_c == Some(40.0) && readings[1].temperature_c.is_none()).then_some(())
        });
    }
    // A single call that says so is enough.
    machine.script(&format!("2.nvmlDeviceGetPowerUsage=15\n{}", gpus(3)));
    let want = [("GPU-0", None), ("GPU-1", None), ("GPU-2", Some("NVML_ERROR_GPU_IS_LOST"))];
    probe.readings(|r| errors(r) == want);
    machine.script(&gpus(3));
    probe.readings(|r| errors(r) == [("GPU-0", None), ("GPU-1", None), ("GPU-2", None)]);
    assert_eq!(inventories, 0, "nothing changed about which GPUs there are");
}

#[test]
fn a_gpu_that_never_answered_is_known_by_the_address_that_is_left_over() {
    let machine = Machine::new();
    machine.plug_in("0000:41:00.0", "0", "0-7");
    machine.plug_in("0000:42:00.0", "1", "8-15");
    machine.script(&format!("1=999\n{}", gpus(2)));
    let probe = machine.start();
    let devices = probe.inventory();
    assert_eq!(ids(&devices), ["GPU-0", "0000:42:00.0"]);
    assert_eq!((devices[1].index, devices[1].numa_node), (1, Some(1)));
    let readings = probe.readings(|_| true);
    assert_eq!(errors(&readings), [("GPU-0", None), ("0000:42:00.0", Some("NVML_ERROR_UNKNOWN"))]);
    machine.script(&gpus(2));
    assert_eq!(ids(&probe.inventory()), ["GPU-0", "GPU-1"]);
}

#[test]
fn a_gpu_that_disappears_is_gone_and_one_that_comes_late_is_seen() {
    let machine = Machine::new();
    machine.plug_in("0000:41:00.0", "0", "0-7");
    machine.script(&gpus(1));
    let probe = machine.start();
    assert_eq!(ids(&probe.inventory()), ["GPU-0"]);
    // The library counts when it is opened. It is opened again when the bus changes.
    machine.script(&gpus(2).replace("570.124.06", "580.95.05"));
    machine.plug_in("0000:42:00.0", "0", "0-7");
    let new = |hello: Hello| (hello.driver.as_deref() == Some("580.95.05")).then_some(());
    probe.until(|line| if let Line::Hello(hello) = line { new(hello) } else { None });
    assert_eq!(ids(&probe.inventory()), ["GPU-0", "GPU-1"]);
    machine.script(&gpus(1));
    machine.unplug("0000:42:00.0");
    let gone = probe.readings(|r| r.iter().any(|r| r.error.as_deref() == Some("NVML_ERROR_NOT_FOUND")));
    assert_eq!(errors(&gone), [("GPU-1", Some("NVML_ERROR_NOT_FOUND"))]);
    assert_eq!(ids(&probe.inventory()), ["GPU-0"]);
}

#[test]
fn a_gpu_that_sleeps_is_not_asked_and_the_others_are() {
    let machine = Machine::new();
    let status = |pci: &str, text: &str| {
        machine.file(&format!("sys/bus/pci/devices/{pci}/power/runtime_status"), &format!("{text}\n"));
    };
    for pci in ["0000:41:00.0", "0000:42:00.0"] {
        machine.plug_in(pci, "0", "0-7");
        status(pci, "active");
    }
    machine.script(&gpus(2));
    let probe = machine.start();
    assert_eq!(ids(&probe.inventory()), ["GPU-0", "GPU-1"]);
    let asleep = |r: &[Reading]| r.iter().map(|r| r.asleep).collect::<Vec<_>>();
    probe.readings(|r| asleep(r) == [false, false]);
    status("0000:42:00.0", "suspended");
    probe.readings(|r| asleep(r) == [false, true]);
    // Any question about it ends the probe now.
    machine.script(&format!("1=abort\n{}", gpus(2)));
    for _ in 0..3 {
        let readings = probe.readings(|_| true);
        assert_eq!((readings.len(), readings[0].temperature_c), (2, Some(40.0)));
        assert_eq!(readings[1], Reading::of_sleeping("GPU-1"));
    }
    status("0000:41:00.0", "suspended");
    probe.readings(|r| asleep(r) == [true, true]);
    // Nor is the library opened again, as after 3 s without any GPU.
    machine.script(&format!("nvmlInit_v2=abort\n0=abort\n1=abort\n{}", gpus(2)));
    for _ in 0..5 {
        probe.until(|line| match line {
            Line::Readings(r) => (asleep(&r) == [true, true]).then_some(()),
            // Which shows that it lives, on a machine that is slow.
            Line::Hello(_) => None,
            other => panic!("{other:?}"),
        });
    }
    // One that could not be woken is not asked either, and does not sleep.
    status("0000:41:00.0", "error");
    let failed = probe.readings(|r| asleep(r) == [false, true]);
    assert_eq!(errors(&failed), [("GPU-0", Some("runtime-status-error")), ("GPU-1", None)]);
    status("0000:41:00.0", "suspended");
    machine.script(&gpus(2));
    status("0000:42:00.0", "active");
    let awake = probe.readings(|r| asleep(r) == [true, false]);
    assert_eq!(awake[1].temperature_c, Some(41.0));
}

#[test]
fn values_that_a_gpu_does_not_have_are_absent() {
    let machine =
        Machine::with_library(&["-DnvmlDeviceGetGraphicsRunningProcesses_v3=older", "-DnvmlDeviceGetMigMode=old"]);
    machine.script("count=1\n0.uuid=GPU-0\n0.name=NVIDIA GB10\n0.temperature=50\n0.nvmlDeviceGetPowerUsage=999\n");
    let probe = machine.start();
    let devices = probe.inventory();
    assert_eq!((devices[0].memory_bytes, devices[0].pci.as_deref(), devices[0].divided), (0, None, false));
    let want = Reading { id: "GPU-0".into(), temperature_c: Some(50.0), ..Reading::default() };
    assert_eq!(probe.readings(|_| true), [want]);
}

#[test]
fn a_call_that_never_returns_makes_the_probe_silent_and_it_can_be_killed() {
    let machine = Machine::new();
    machine.script(&gpus(2));
    let mut probe = machine.start();
    probe.readings(|r| r.len() == 2);
    machine.script(&format!("1.nvmlDeviceGetTemperature=hang\n{}", gpus(2)));
    probe.falls_silent();
    probe.child.kill().expect("it runs");
    assert_eq!(probe.ends().signal(), Some(9));
}

#[test]
fn a_call_that_never_returns_does_not_keep_the_probe_alive_after_labd() {
    let machine = Machine::new();
    machine.script(&format!("nvmlInit_v2=hang\n{}", gpus(1)));
    let mut probe = machine.start();
    assert!(matches!(probe.line(), Line::Hello(_)));
    drop(probe.input.take());
    assert_eq!(probe.ends().signal(), Some(6));
}

#[test]
fn a_library_that_crashes_takes_the_probe_along() {
    let machine = Machine::new();
    machine.script(&gpus(1));
    let mut probe = machine.start();
    probe.readings(|r| r.len() == 1);
    machine.script(&format!("0.nvmlDeviceGetUtilizationRates=abort\n{}", gpus(1)));
    assert_eq!(probe.ends().signal(), Some(6));
}

#[test]
fn a_driver_of_another_version_is_told_each_second_and_may_heal() {
    let machine = Machine::new();
    machine.file("sys/module/nvidia/version", "565.57.01\n");
    machine.script(&format!("nvmlInit_v2=18\n{}", gpus(1)));
    let probe = machine.start();
    let driver = Some("565.57.01".to_owned());
    assert_eq!(probe.line(), Line::Hello(Hello { source: Source::Nvml, driver, library: None }));
    // More often than it tries again.
    for _ in 0..5 {
        let trouble = probe.trouble();
        assert_eq!(trouble.code, "NVML_ERROR_LIB_RM_VERSION_MISMATCH");
        assert!(trouble.text.contains("reboot"), "{}", trouble.text);
    }
    machine.script(&gpus(1));
    assert_eq!(ids(&probe.inventory()), ["GPU-0"]);
    // The library goes wrong as a whole, and comes back.
    machine.script(&format!("nvmlDeviceGetCount_v2=1\n{}", gpus(1)));
    assert_eq!(probe.trouble().code, "NVML_ERROR_UNINITIALIZED");
    machine.script(&gpus(1));
    probe.readings(|r| errors(r) == [("GPU-0", None)]);
}

#[test]
fn a_driver_that_is_not_loaded_yet_is_waited_for() {
    let machine = Machine::new();
    machine.script(&format!("nvmlInit_v2=9\n{}", gpus(1)));
    let probe = machine.start();
    assert_eq!(probe.trouble().code, "NVML_ERROR_DRIVER_NOT_LOADED");
    machine.script(&format!("count=0\n{}", gpus(1)));
    assert_eq!(ids(&probe.inventory()), Vec::<&str>::new());
    machine.script(&gpus(1));
    assert_eq!(ids(&probe.inventory()), ["GPU-0"]);
}

#[test]
fn without_a_library_it_says_so_and_ends() {
    let machine = Machine::new();
    fs::remove_file(&machine.library).expect("it is there");
    for broken in [false, true] {
        if broken {
            symlink("/etc/hostname", &machine.library).expect("a link");
        }
        let mut probe = machine.start();
        let trouble = probe.trouble();
        assert_eq!(trouble.code, LIBRARY_MISSING);
        assert!(trouble.text.contains("libnvidia-ml.so.1"), "{}", trouble.text);
        assert_eq!(probe.ends().code(), Some(1));
    }
}

#[test]
fn the_library_is_found_where_the_loader_looks() {
    let machine = Machine::new();
    machine.script(&gpus(1));
    let mut command = Command::new(env!("CARGO_BIN_EXE_labd-probe-nvidia"));
    command.env("LD_LIBRARY_PATH", machine.dir.path()).env("FAKE_NVML", machine.dir.path().join("script"));
    let probe = Probe::start(command.env_remove("LABD_NVML").env("LABD_SYS_ROOT", Path::new("/nonexistent")));
    assert_eq!(ids(&probe.inventory()), ["GPU-0"]);
}

#[test]
fn it_ends_when_its_input_does() {
    let machine = Machine::new();
    machine.script(&gpus(1));
    let mut probe = machine.start();
    probe.readings(|r| r.len() == 1);
    drop(probe.input.take());
    assert_eq!(probe.ends().code(), Some(0));
}

#[test]
fn it_ends_when_nobody_reads() {
    let machine = Machine::new();
    machine.script(&gpus(1));
    let mut probe = machine.start();
    probe.readings(|r| r.len() == 1);
    // The thread that reads ends with its next line, and closes the pipe.
    drop(std::mem::replace(&mut probe.lines, mpsc::channel().1));
    assert_eq!(probe.ends().code(), Some(1));
}
