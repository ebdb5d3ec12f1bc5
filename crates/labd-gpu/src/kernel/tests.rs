//! Tests over the trees of real machines under `trees/`: a file or a link on each line, `path<TAB>text` with `\n` for a
//! line's end, or `path<TAB>-> target`; a directory is `path/`; `#` begins a comment.

use std::{fs, os::unix::fs as unix, path::PathBuf, sync::mpsc};

use tempfile::TempDir;

use super::*;

/// Readings of a first look.
fn readings(root: &Path, devices: &[Device]) -> Vec<Reading> {
    Reader::default().readings(root, devices)
}

/// Unpacks a tree into a directory of its own.
pub(super) fn tree(text: &str) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let (path, content) = line.split_once('\t').unwrap_or((line, ""));
        let at: PathBuf = root.path().join(path);
        fs::create_dir_all(at.parent().expect("below the root")).expect("a directory");
        if path.ends_with('/') {
            fs::create_dir_all(&at).expect("a directory");
        } else if let Some(target) = content.strip_prefix("-> ") {
            unix::symlink(target, &at).expect("a link");
        } else {
            fs::write(&at, content.replace("\\n", "\n")).expect("a file");
        }
    }
    root
}

fn mi100() -> TempDir {
    tree(include_str!("trees/mi100-bmc.tree"))
}

/// Line `id name index render-node` of each GPU, for tables.
fn told(devices: &[Device]) -> Vec<String> {
    devices
        .iter()
        .map(|d| {
            let nodes: Vec<&str> = d.nodes.iter().map(|n| n.path.as_str()).collect();
            format!("{} {} #{} {}", d.id, d.pci.as_deref().unwrap_or("-"), d.index, nodes.join("+"))
        })
        .collect()
}

fn only(devices: Vec<Device>) -> Device {
    assert_eq!(devices.len(), 1, "{devices:?}");
    devices.into_iter().next().expect("one")
}

#[test]
fn an_mi100_beside_a_bmc_gets_its_own_render_node_and_no_other() {
    use std::os::unix::fs::MetadataExt as _;

    let root = mi100();
    let gpu = only(inventory(root.path()));
    let gid = fs::metadata(root.path().join("dev/kfd")).expect("there").gid();
    let node = |path: &str| crate::DeviceNode { path: path.into(), gid };
    assert_eq!(
        gpu,
        Device {
            id: "0x1f2e3d4c5b6a7988".into(),
            vendor: Vendor::Amd,
            name: "AMD Instinct MI100".into(),
            index: 0,
            memory_bytes: 34_342_961_152,
            pci: Some("0000:c3:00.0".into()),
            parent: None,
            partition: None,
            instance: None,
            divided: false,
            numa_node: Some(1),
            cpu_list: Some("32-63,96-127".into()),
            nodes: vec![node("/dev/kfd"), node("/dev/dri/renderD129")],
        }
    );
}

#[test]
fn its_readings_are_those_of_the_drivers_files() {
    let root = mi100();
    let readings = readings(root.path(), &inventory(root.path()));
    let want = Reading {
        id: "0x1f2e3d4c5b6a7988".into(),
        utilisation_percent: Some(97.0),
        memory_used_bytes: Some(21_474_836_480),
        temperature_c: Some(54.0),
        power_w: Some(214.0),
        power_limit_w: Some(290.0),
        clock_mhz: Some(1502),
        memory_clock_mhz: Some(1200),
        // An error in the block `gfx` is none of the memory's.
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(0),
        // 99 sees the GPU and does not use it; 4712 has a queue and no memory.
        processes: vec![
            crate::Process { pid: 4711, memory_bytes: Some(21_474_836_480) },
            crate::Process { pid: 4712, memory_bytes: Some(0) },
        ],
        ..Reading::default()
    };
    assert_eq!(readings, [want]);
}

#[test]
fn a_gpu_that_sleeps_is_listed_as_before_and_nothing_of_it_is_read_that_would_wake_it() {
    let root = mi100();
    let awake = inventory(root.path());
    let power = root.path().join("sys/bus/pci/devices/0000:c3:00.0/power");
    fs::create_dir_all(&power).expect("a directory");
    let status = |text: &str| fs::write(power.join("runtime_status"), text).expect("a file");
    for asleep in ["suspended\n", "suspending\n"] {
        status(asleep);
        assert_eq!(inventory(root.path()), awake);
        let reading = readings(root.path(), &awake).remove(0);
        // KFD's own lists are no question to the GPU.
        let processes = reading.processes.clone();
        assert_eq!(processes.len(), 2);
        assert_eq!(reading, Reading { id: awake[0].id.clone(), asleep: true, processes, ..Reading::default() });
    }
    status("error\n");
    assert_eq!(inventory(root.path()), awake);
    let failed = Reading::of_failed(&awake[0].id, pci::POWER_FAILED);
    assert_eq!(readings(root.path(), &awake), [failed], "it does not sleep: nothing wakes it any more");
    status("active\n");
    let reading = readings(root.path(), &awake).remove(0);
    assert_eq!((reading.asleep, reading.ecc_uncorrected, reading.temperature_c), (false, Some(0), Some(54.0)));
}

#[test]
fn each_die_of_an_mi250_is_a_gpu() {
    let root = tree(include_str!("trees/mi250.tree"));
    let devices = inventory(root.path());
    assert_eq!(
        told(&devices),
        [
            "0x0123456789abcdef 0000:29:00.0 #0 /dev/kfd+/dev/dri/renderD129",
            "0xa1b2c3d4e5f60718 0000:2f:00.0 #1 /dev/kfd+/dev/dri/renderD128",
        ]
    );
    assert!(devices.iter().all(|d| d.parent.is_none() && d.name == "AMD Instinct MI250 (MCM) OAM AC MBA"));
    let power: Vec<_> = readings(root.path(), &devices).iter().map(|r| (r.power_w, r.power_limit_w)).collect();
    assert_eq!(power, [(None, None), (Some(301.0), Some(560.0))], "0 W is no answer");
}

#[test]
fn a_whole_mi300x_is_one_gpu() {
    let root = tree(include_str!("trees/mi300x-spx.tree"));
    let devices = inventory(root.path());
    assert_eq!(
        told(&devices),
        [
            "0xe3aa140f9a5f9e31 0000:05:00.0 #0 /dev/kfd+/dev/dri/renderD128",
            "0x2250f807caf2231a 0000:27:00.0 #1 /dev/kfd+/dev/dri/renderD136",
        ]
    );
    assert!(devices.iter().all(|d| d.partition.is_none() && d.parent.is_none() && d.memory_bytes == 206_141_652_992));
    let reading = &readings(root.path(), &devices)[0];
    assert_eq!((reading.temperature_c, reading.power_w), (Some(38.0), Some(137.0)));
}

#[test]
fn each_partition_of_an_mi300x_is_a_gpu_with_its_own_render_node() {
    let root = tree(include_str!("trees/mi300x-cpx.tree"));
    let devices = inventory(root.path());
    assert_eq!(
        told(&devices),
        [
            "0xe3aa140f9a5f9e31 0000:05:00.0 #0 /dev/kfd+/dev/dri/renderD128",
            "0xe3aa140f9a5f9e31.1 0000:05:00.0 #0 /dev/kfd+/dev/dri/renderD129",
            "0xe3aa140f9a5f9e31.2 0000:05:00.0 #0 /dev/kfd+/dev/dri/renderD130",
            "0x2250f807caf2231a 0000:27:00.0 #1 /dev/kfd+/dev/dri/renderD136",
            "0x2250f807caf2231a.1 0000:27:00.0 #1 /dev/kfd+/dev/dri/renderD137",
            "0x2250f807caf2231a.2 0000:27:00.0 #1 /dev/kfd+/dev/dri/renderD138",
        ]
    );
    for (i, device) in devices.iter().enumerate() {
        let parent = if i < 3 { "0xe3aa140f9a5f9e31" } else { "0x2250f807caf2231a" };
        assert_eq!((device.parent.as_deref(), device.partition.as_deref()), (Some(parent), Some("CPX")));
        assert_eq!(device.memory_bytes, if i % 3 == 2 { 25_753_026_560 } else { 25_769_803_776 });
        assert_eq!(device.numa_node, Some(u32::from(i >= 3)));
    }
    let second = &readings(root.path(), &devices)[1];
    assert_eq!(second.memory_used_bytes, Some(1 << 30));
    assert_eq!(second.processes, [crate::Process { pid: 1200, memory_bytes: Some(1 << 30) }]);
    assert_eq!((second.temperature_c, second.ecc_uncorrected), (Some(38.0), Some(0)));
    assert_eq!((second.power_w, second.utilisation_percent), (None, None), "the whole GPU's, not its own");
}

#[test]
fn graphics_of_a_cpu_beside_a_gpu_is_not_listed() {
    let root = tree(include_str!("trees/igpu-dgpu.tree"));
    let gpu = only(inventory(root.path()));
    assert_eq!(gpu.name, "AMD Radeon Pro W7900");
    assert_eq!(told(std::slice::from_ref(&gpu)), ["0x634d5b8f2e1a0c47 0000:03:00.0 #0 /dev/kfd+/dev/dri/renderD129"]);
    assert_eq!((gpu.numa_node, gpu.cpu_list.as_deref()), (None, Some("0-31")));
    // A kernel that measures its load of memory changes nothing: its target says what it is.
    fs::write(root.path().join("sys/bus/pci/devices/0000:4e:00.0/mem_busy_percent"), "0\n").expect("a file");
    assert_eq!(inventory(root.path()), [gpu]);
}

#[test]
fn an_unknown_kind_without_memory_of_its_own_counts_as_a_cpus() {
    let root =
        tree(&include_str!("trees/igpu-dgpu.tree").replace("gfx_target_version 100306", "gfx_target_version 130103"));
    assert_eq!(only(inventory(root.path())).name, "AMD Radeon Pro W7900");
}

#[test]
fn graphics_of_a_cpu_alone_is_the_labs_gpu_unless_another_vendor_has_one() {
    let root = tree(include_str!("trees/apu-alone.tree"));
    let gpu = only(inventory(root.path()));
    assert_eq!((gpu.id.as_str(), gpu.name.as_str()), ("0000:0a:00.0", "AMD GPU 0x15dd"));
    let nvidia = root.path().join("sys/bus/pci/devices/0000:41:00.0");
    fs::create_dir_all(&nvidia).expect("a directory");
    fs::write(nvidia.join("vendor"), "0x10de\n").expect("a file");
    fs::write(nvidia.join("class"), "0x030200\n").expect("a file");
    assert_eq!(inventory(root.path()), []);
}

#[test]
fn a_strix_halo_has_a_name_and_the_memory_that_it_computes_in() {
    let (kfd, pci) = ("sys/class/kfd/kfd/topology/nodes/1", "sys/bus/pci/devices/0000:c5:00.0");
    // 512 MiB are set apart, and 98 GiB are the driver's limit for computing.
    let text = format!(
        "dev/kfd\t\n{kfd}/gpu_id\t7777\n{kfd}/properties\tcpu_cores_count 0\\nsimd_count 80\\ngfx_target_version 110501\\n\
         device_id 5510\\nlocation_id 50432\\ndomain 0\\ndrm_render_minor 128\\n\n\
         {kfd}/mem_banks/0/properties\theap_type 1\\nsize_in_bytes 105226698752\\n\n\
         {pci}/vendor\t0x1002\n{pci}/device\t0x1586\n{pci}/class\t0x038000\n{pci}/mem_info_vram_total\t536870912\n\
         {pci}/mem_info_vram_used\t104857600\n{pci}/mem_info_gtt_used\t1073741824\n{pci}/gpu_busy_percent\t3\n"
    );
    let root = tree(&text);
    let gpu = only(inventory(root.path()));
    assert_eq!((gpu.name.as_str(), gpu.memory_bytes), ("AMD Radeon 8050S/8060S (Strix Halo)", 98 << 30));
    assert_eq!(readings(root.path(), &[gpu])[0].memory_used_bytes, Some(104_857_600 + (1 << 30)));
    // A kernel that computes in what is set apart.
    let root = tree(&text.replace("105226698752", "536870912"));
    let gpu = only(inventory(root.path()));
    assert_eq!(gpu.memory_bytes, 512 << 20);
    assert_eq!(readings(root.path(), &[gpu])[0].memory_used_bytes, Some(104_857_600));
}

#[test]
fn gpus_are_near_different_cpus_and_an_old_kernels_render_nodes_come_from_the_address() {
    let root = tree(include_str!("trees/two-numa.tree"));
    let devices = inventory(root.path());
    assert_eq!(
        told(&devices),
        [
            "0x1901ead3a2ecd4a6 0000:41:00.0 #0 /dev/kfd+/dev/dri/renderD129",
            "0x51276ac12ce05db3 0000:c1:00.0 #1 /dev/kfd+/dev/dri/renderD128",
        ]
    );
    let near: Vec<_> = devices.iter().map(|d| (d.numa_node, d.cpu_list.as_deref())).collect();
    assert_eq!(near, [(Some(0), Some("0-31")), (Some(1), Some("32-63"))]);
}

#[test]
fn a_render_node_that_belongs_to_another_device_is_not_believed() {
    let root = tree(&include_str!("trees/mi100-bmc.tree").replace("drm_render_minor 129", "drm_render_minor 128"));
    assert_eq!(only(inventory(root.path())).nodes[1].path, "/dev/dri/renderD129");
}

#[test]
fn a_gpu_that_answers_rubbish_is_there_and_says_nothing() {
    let root = tree(include_str!("trees/garbage.tree"));
    let devices = inventory(root.path());
    assert_eq!(told(&devices), ["0000:63:00.0 0000:63:00.0 #0 /dev/kfd+/dev/dri/renderD128"]);
    assert_eq!(devices[0].memory_bytes, 17_163_091_968);
    let reading = &readings(root.path(), &devices)[0];
    // The one clock that it still tells is deep sleep's.
    let want = Reading { id: "0000:63:00.0".into(), clock_mhz: Some(19), ..Reading::default() };
    assert_eq!(*reading, want);
}

#[test]
fn nothing_is_no_gpu() {
    let root = tempfile::tempdir().expect("a directory");
    assert_eq!(inventory(root.path()), []);
    assert_eq!(readings(root.path(), &[]), []);
}

#[test]
fn a_gpu_that_went_away_says_so() {
    let root = mi100();
    let devices = inventory(root.path());
    fs::remove_dir_all(root.path().join("sys/devices/pci0000:c0")).expect("it was there");
    assert_eq!(readings(root.path(), &devices)[0].error.as_deref(), Some(GONE));
    fs::remove_dir_all(root.path().join("sys/class/kfd")).expect("it was there");
    assert_eq!(readings(root.path(), &devices)[0].error.as_deref(), Some(GONE));
}

/// Input that goes on until the sender is dropped.
struct Open(mpsc::Receiver<()>);

impl Read for Open {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(0)
    }
}

/// Writer that passes each line to the test, and waits until it has been read: so the test decides what happens between
/// two.
struct Lines(mpsc::SyncSender<Line>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = Line::parse(std::str::from_utf8(bytes).expect("UTF-8")).expect("a line");
        self.0.send(line).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_probe_tells_what_there_is_until_nobody_reads() {
    let root = mi100();
    let (open, input) = mpsc::channel();
    let (tell, lines) = mpsc::sync_channel(0);
    let path = root.path().to_owned();
    let probe = thread::spawn(move || run_until(&path, Open(input), &mut Lines(tell), Duration::from_millis(1)));
    let next = || lines.recv_timeout(Duration::from_secs(10)).expect("a line");
    let hello = Hello { source: Source::Kernel, driver: Some("6.8.5".into()), library: None };
    assert_eq!(next(), Line::Hello(hello));
    let Line::Inventory(first) = next() else { panic!("no inventory") };
    assert_eq!(first.len(), 1);
    let Line::Readings(readings) = next() else { panic!("no readings") };
    assert_eq!(readings[0].temperature_c, Some(54.0));
    fs::remove_dir_all(root.path().join("sys/class/kfd")).expect("it was there");
    // What was read before that is still on its way.
    let says_lost = |line: &Line| matches!(line, Line::Readings(all) if all.iter().any(|r| r.error.is_some()));
    let lost = std::iter::repeat_with(next).take(100).find(says_lost);
    assert!(matches!(lost, Some(Line::Readings(r)) if r[0].error.as_deref() == Some(GONE)));
    assert_eq!(next(), Line::Inventory(Vec::new()));
    for _ in 0..2 {
        assert_eq!(next(), Line::Readings(Vec::new()), "still alive, for the watchdog");
        assert!(matches!(next(), Line::Trouble(t) if t.code == NO_DRIVER), "the last word of each round");
    }
    drop(lines);
    let ended = probe.join().expect("no panic");
    assert_eq!(ended.expect_err("nobody reads").kind(), io::ErrorKind::BrokenPipe);
    drop(open);
}

#[test]
fn a_rocm_that_is_too_old_is_named_beside_the_driver_and_any_other_one_is_not() {
    for (path, text, library) in [
        ("opt/rocm-5.7.1/lib/librocm_smi64.so.5.0", "", Some("ROCm 5.7.1 (not asked: older than 6.0)")),
        ("usr/lib64/librocm_smi64.so.1.0", "", Some("ROCm SMI (not asked: older than 6.0)")),
        ("usr/lib64/librocm_smi64.so.1.0", "\0rsmi_dev_revision_get\0", None),
        ("opt/rocm-6.0.2/lib/librocm_smi64.so.6.0", "", None),
    ] {
        let root = mi100();
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().expect("it is in a folder")).expect("a folder");
        fs::write(file, text).expect("a file");
        let mut out = Vec::new();
        run_until(root.path(), io::empty(), &mut out, Duration::from_hours(1)).expect("memory");
        let text = String::from_utf8(out).expect("UTF-8");
        let lines: Vec<_> = text.lines().map(|l| Line::parse(l).expect("a line")).collect();
        let [Line::Hello(hello), Line::Inventory(gpus), Line::Readings(_)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((hello.source, hello.library.as_deref(), gpus.len()), (Source::Kernel, library, 1), "{path}");
        assert_eq!(hello.driver.as_deref(), Some("6.8.5"));
    }
}

#[test]
fn a_driver_is_missed_for_a_gpu_that_the_lab_would_use_and_for_no_other() {
    let root = tree(include_str!("trees/apu-alone.tree"));
    let at = |path: &str| root.path().join("sys/bus/pci/devices").join(path);
    let file = |path: &str, text: &str| {
        fs::create_dir_all(at(path).parent().expect("it is in a folder")).expect("a folder");
        fs::write(at(path), text).expect("a file");
    };
    assert!(lacks_driver(root.path()), "graphics of a CPU alone is the lab's GPU");
    unix::symlink("../../drivers/amdgpu", at("0000:0a:00.0/driver")).expect("a link");
    assert!(!lacks_driver(root.path()));
    fs::remove_file(at("0000:0a:00.0/driver")).expect("it was there");
    file("0000:41:00.0/vendor", "0x10de\n");
    file("0000:41:00.0/class", "0x030200\n");
    assert!(!lacks_driver(root.path()), "beside an NVIDIA GPU it is not");
    file("0000:0a:00.0/class", "0x038000\n");
    file("0000:0a:00.2/class", "0x108000\n");
    assert!(!lacks_driver(root.path()), "nor where it has no screen");
    file("0000:c3:00.0/vendor", "0x1002\n");
    file("0000:c3:00.0/class", "0x120000\n");
    assert!(lacks_driver(root.path()), "an Instinct is");
}

#[test]
fn the_probe_ends_with_its_input() {
    let root = mi100();
    let mut out = Vec::new();
    run_until(root.path(), io::empty(), &mut out, Duration::from_hours(1)).expect("memory");
    let lines: Vec<_> =
        String::from_utf8(out).expect("UTF-8").lines().map(|l| Line::parse(l).expect("a line")).collect();
    assert!(matches!(&lines[..], [Line::Hello(_), Line::Inventory(_), Line::Readings(_)]), "{lines:?}");
}
