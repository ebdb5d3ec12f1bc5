//! Tests over texts as `nvidia-smi` prints them, by its manual and by reports of people: none was recorded for this,
//! since no machine with an NVIDIA GPU was at hand.

use super::*;

const H100: &str = "0, GPU-aa, 00000000:41:00.0, 570.124.06, NVIDIA H100 80GB HBM3, 81559, 1024, 97, 41, 312.55, 700.00, 1980, \
                    2619, 0x0000000000000004, 3, 0, [N/A], [N/A], [N/A], Disabled, None\n";
const V100: &str = "1, GPU-bb, 00000000:C1:00.0, 570.124.06, Tesla V100-SXM2-32GB, 32768, 0, 0, 35, 42.10, 300.00, 135, 877, \
                    0x0000000000000001, 0, 0, 2, 1, Yes, [N/A], [N/A]\n";
const LOST: &str = "Unable to determine the device handle for GPU 0000:c1:00.0: Unknown Error\n";

fn parse(text: &str) -> Found {
    Found::parse(&FIELDS, text).expect("it has GPUs")
}

fn nowhere() -> &'static Path {
    Path::new("/nonexistent")
}

fn told(known: &mut Known, text: &str, extra: &Extra) -> (Option<Vec<Device>>, Vec<Reading>) {
    let (mut inventory, mut readings) = (None, Vec::new());
    for line in known.lines(nowhere(), &Asked::All, parse(text), extra) {
        match line {
            Line::Inventory(devices) => inventory = Some(devices),
            Line::Readings(r) => readings.extend(r),
            other => panic!("{other:?}"),
        }
    }
    (inventory, readings)
}

fn errors(readings: &[Reading]) -> Vec<(&str, Option<&str>)> {
    readings.iter().map(|r| (r.id.as_str(), r.error.as_deref())).collect()
}

#[test]
fn a_row_is_a_gpu_and_what_it_does() {
    let found = parse(&format!("{H100}{V100}"));
    assert_eq!(found.driver.as_deref(), Some("570.124.06"));
    let (devices, readings) = told(&mut Known::default(), &format!("{H100}{V100}"), &Extra::default());
    let devices = devices.expect("they are new");
    assert_eq!((devices[0].id.as_str(), devices[0].name.as_str()), ("GPU-aa", "NVIDIA H100 80GB HBM3"));
    assert_eq!((devices[0].memory_bytes, devices[0].pci.as_deref()), (81559 << 20, Some("0000:41:00.0")));
    assert_eq!((devices[1].index, devices[1].pci.as_deref()), (1, Some("0000:c1:00.0")));
    let want = Reading {
        id: "GPU-aa".into(),
        utilisation_percent: Some(97.0),
        memory_used_bytes: Some(1 << 30),
        temperature_c: Some(41.0),
        power_w: Some(312.55),
        power_limit_w: Some(700.0),
        clock_mhz: Some(1980),
        memory_clock_mhz: Some(2619),
        throttled: vec![Throttle::PowerCap],
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(0),
        recovery_action: Some(0),
        ..Reading::default()
    };
    assert_eq!(readings[0], want);
    assert_eq!((readings[1].remapped_rows, readings[1].remap_pending, readings[1].throttled.len()), (Some(3), true, 0));
}

#[test]
fn what_it_does_not_say_is_absent() {
    let geforce = "0, GPU-aa, 00000000:01:00.0, 535.183.01, NVIDIA GeForce RTX 3090, 24576, [Not Supported], [N/A], 50, ERR!, \
                   [Unknown Error], [N/A], N/A, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n";
    let (_, readings) = told(&mut Known::default(), geforce, &Extra::default());
    assert_eq!(readings, [Reading { id: "GPU-aa".into(), temperature_c: Some(50.0), ..Reading::default() }]);
}

#[test]
fn a_lost_gpu_is_what_it_was_and_the_others_go_on() {
    let row = |cell: &str| format!("1, {cell}, 00000000:C1:00.0{}\n", format!(", {cell}").repeat(FIELDS.len() - 3));
    for (text, symbol) in [
        (format!("{H100}{}", row("[GPU is lost]")), "NVML_ERROR_GPU_IS_LOST"),
        (format!("{H100}{}", row("[GPU requires reset]")), "NVML_ERROR_RESET_REQUIRED"),
        (format!("{H100}{}", row("[Unknown Error]")), "NVML_ERROR_UNKNOWN"),
        (format!("{H100}{}", row("ERR!")), "NVML_ERROR_UNKNOWN"),
        (format!("{LOST}{H100}"), "NVML_ERROR_UNKNOWN"),
        (
            format!(
                "{H100}Unable to determine the device handle for GPU0000:C1:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
            ),
            "NVML_ERROR_GPU_IS_LOST",
        ),
        (
            format!("{H100}Unable to determine the device handle for GPU1: 0000:C1:00.0: Unknown Error\n"),
            "NVML_ERROR_UNKNOWN",
        ),
    ] {
        let mut known = Known::default();
        told(&mut known, &format!("{H100}{V100}"), &Extra::default());
        let (inventory, readings) = told(&mut known, &text, &Extra::default());
        assert_eq!((inventory, errors(&readings)), (None, vec![("GPU-aa", None), ("GPU-bb", Some(symbol))]), "{text}");
        let (inventory, readings) = told(&mut known, &format!("{H100}{V100}"), &Extra::default());
        assert_eq!((inventory, errors(&readings)), (None, vec![("GPU-aa", None), ("GPU-bb", None)]), "{text}");
    }
}

#[test]
fn when_it_speaks_of_a_lost_gpu_alone_the_others_are_still_there() {
    let mut known = Known::default();
    told(&mut known, &format!("{H100}{V100}"), &Extra::default());
    let (inventory, readings) = told(&mut known, LOST, &Extra::default());
    assert_eq!((inventory, errors(&readings)), (None, vec![("GPU-bb", Some("NVML_ERROR_UNKNOWN"))]));
    let (inventory, _) = told(&mut Known::default(), LOST, &Extra::default());
    assert_eq!(inventory.expect("it is new")[0].id, "0000:c1:00.0");
}

/// Machine with these NVIDIA GPUs on its bus.
fn bus(addresses: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for pci in addresses {
        let dir = root.path().join("sys/bus/pci/devices").join(pci);
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("vendor"), "0x10de\n").expect("a file");
        std::fs::write(dir.join("class"), "0x030200\n").expect("a file");
    }
    root
}

#[test]
fn a_gpu_without_an_address_is_the_one_that_is_left_over() {
    let lines = |root: &Path, text: &str| Known::default().lines(root, &Asked::All, parse(text), &Extra::default());
    let unopened = "Unable to determine the device handle for GPU1: Unknown Error\n";
    let both = bus(&["0000:41:00.0", "0000:c1:00.0"]);
    for (root, text, want) in [
        (both.path(), format!("{H100}{unopened}"), "0000:c1:00.0"),
        (both.path(), format!("{unopened}No devices were found\n"), "0000:c1:00.0"),
        // Whatever its number: there is no other.
        (both.path(), format!("{H100}{}", unopened.replace("GPU1", "GPU5")), "0000:c1:00.0"),
        // The bus does not say which of two: then the one in its place.
        (bus(&["0000:41:00.0", "0000:81:00.0", "0000:c1:00.0"]).path(), format!("{H100}{unopened}"), "0000:81:00.0"),
        (nowhere(), format!("{H100}{unopened}"), "nvidia-1"),
    ] {
        let told = lines(root, &text);
        let [Line::Inventory(devices), Line::Readings(readings)] = &told[..] else { panic!("{told:?}") };
        let lost = devices.last().expect("it is listed");
        assert_eq!((lost.id.as_str(), lost.index), (want, if text.contains("GPU5") { 5 } else { 1 }), "{text}");
        assert_eq!(errors(readings).last(), Some(&(want, Some("NVML_ERROR_UNKNOWN"))), "{text}");
    }
}

/// Outputs that people posted: which GPU is lost, by index, address and symbol.
#[test]
fn every_form_in_which_a_gpu_cannot_be_opened_is_read() {
    let unable = "Unable to determine the device handle for ";
    let (unknown, power) = ("NVML_ERROR_UNKNOWN", "NVML_ERROR_INSUFFICIENT_POWER");
    for (text, index, pci, symbol) in [
        ("GPU0: Unknown Error\nNo devices were found", Some(0), None, unknown),
        ("GPU2: Unknown Error", Some(2), None, unknown),
        ("GPU 0000:01:00.0: Not Found", None, Some("0000:01:00.0"), "NVML_ERROR_NOT_FOUND"),
        (
            "GPU 0000:02:00.0: GPU is lost.  Reboot the system to recover this GPU",
            None,
            Some("0000:02:00.0"),
            "NVML_ERROR_GPU_IS_LOST",
        ),
        ("GPU0000:65:00.0: Unknown Error", None, Some("0000:65:00.0"), unknown),
        ("GPU1: 0000:44:00.0: Unknown Error", Some(1), Some("0000:44:00.0"), unknown),
        (
            "GPU 0000:04:00.0: Unable to communicate with GPU because it is insufficiently powered.\nThis may be because \
             not all required external power cables are\nattached, or the attached cables are not seated properly.",
            None,
            Some("0000:04:00.0"),
            power,
        ),
        (
            "GPU 0000:05:00.0: GPU access blocked by the operating system",
            None,
            Some("0000:05:00.0"),
            "NVML_ERROR_OPERATING_SYSTEM",
        ),
    ] {
        let found = parse(&format!("{unable}{text}\n"));
        let want = Lost { index, pci: pci.map(str::to_owned), symbol: symbol.to_owned() };
        assert_eq!((found.lost, found.rows.len()), (vec![want], 0), "{text}");
    }
    assert_eq!(lost(&format!("{unable}the device")), None);
    // One of eight, asked for less.
    let fields = ["index", "pci.bus_id", "name"];
    let row = |i: u32| format!("{i}, 00000000:0{}:00.0, RTX 3080", i + 1);
    let rows = (0..8).filter(|i| *i != 3).map(row).collect::<Vec<_>>().join("\n");
    let found = Found::parse(&fields, &format!("{unable}GPU3: 0000:04:00.0: Unknown Error\n{rows}")).expect("GPUs");
    assert_eq!((found.rows.len(), found.lost[0].index), (7, Some(3)));
}

#[test]
fn a_gpu_that_sleeps_is_not_asked_and_stays_what_it_was() {
    let (first, second, third) = ("0000:41:00.0", "0000:c1:00.0", "0000:e1:00.0");
    let root = bus(&[first, second]);
    let devices = root.path().join("sys/bus/pci/devices");
    let status = |pci: &str, text: &str| {
        std::fs::create_dir_all(devices.join(pci).join("power")).expect("a folder");
        std::fs::write(devices.join(pci).join("power/runtime_status"), text).expect("a file");
    };
    status(first, "suspended");
    let mut known = Known::default();
    assert_eq!(known.to_ask(root.path()), Asked::All, "nothing is known yet");
    let both = Found::parse(&FIELDS, &format!("{H100}{V100}")).expect("it has GPUs");
    assert!(
        matches!(&known.lines(root.path(), &Asked::All, both, &Extra::default())[0], Line::Inventory(d) if d.len() == 2)
    );
    let asked = known.to_ask(root.path());
    assert_eq!(asked, Asked::Only(second.into()));
    let lines = known.lines(root.path(), &asked, parse(V100), &Extra::default());
    let [Line::Readings(readings)] = &lines[..] else { panic!("it is still there: {lines:?}") };
    assert_eq!(readings[0], Reading::of_sleeping("GPU-aa"));
    assert_eq!((readings[1].id.as_str(), readings[1].temperature_c), ("GPU-bb", Some(35.0)));
    // A third one comes: it is known only once all are asked, once.
    let new = bus(&[third]);
    std::fs::rename(new.path().join("sys/bus/pci/devices").join(third), devices.join(third)).expect("a folder");
    assert_eq!(known.to_ask(root.path()), Asked::All);
    assert_eq!(known.to_ask(root.path()), asked);
    status(second, "suspended");
    let asked = known.to_ask(root.path());
    assert_eq!(asked, Asked::Only(String::new()));
    let lines = known.lines(root.path(), &asked, Found::default(), &Extra::default());
    let [Line::Readings(readings)] = &lines[..] else { panic!("they are still there: {lines:?}") };
    assert!(readings.len() == 2 && readings.iter().all(|r| r.asleep));
    // One that could not be woken does not sleep.
    status(first, "error");
    let asked = known.to_ask(root.path());
    let lines = known.lines(root.path(), &asked, Found::default(), &Extra::default());
    let [Line::Readings(readings)] = &lines[..] else { panic!("they are still there: {lines:?}") };
    assert_eq!(errors(readings), [("GPU-aa", Some(pci::POWER_FAILED)), ("GPU-bb", None)]);
    status(first, "active");
    status(second, "active");
    assert_eq!(known.to_ask(root.path()), Asked::All);
}

#[test]
fn partitions_are_listed_beside_a_gpu_that_sleeps_only_where_they_changed() {
    let root = tempfile::tempdir().expect("a directory");
    let instance = |name: &str| {
        let dir = root.path().join("proc/driver/nvidia/capabilities/gpu0/mig").join(name);
        std::fs::create_dir_all(dir).expect("a folder");
    };
    let (divided, whole) = (parse(&H100.replace("Disabled", "Enabled")), parse(H100));
    let asked = Asked::Only("0000:41:00.0".into());
    let mut known = Known::default();
    let mut lists = |asked: &Asked, found: &Found| {
        let lists = known.lists(root.path(), asked, found);
        if lists {
            known.listed(root.path(), found);
        }
        lists
    };
    assert!(!lists(&Asked::All, &whole) && !lists(&asked, &whole), "there are none");
    assert_eq!([(); 3].map(|()| lists(&asked, &divided)), [true, false, false], "somebody has divided it");
    instance("gi1/ci0");
    assert_eq!([(); 2].map(|()| lists(&asked, &divided)), [true, false], "and has made an instance");
    assert_eq!([(); 2].map(|()| lists(&Asked::All, &divided)), [true; 2], "none sleeps");
    assert!(!lists(&asked, &divided), "it sleeps again");
}

#[test]
fn a_gpu_that_is_gone_has_a_last_word() {
    let mut known = Known::default();
    told(&mut known, &format!("{H100}{V100}"), &Extra::default());
    let (inventory, readings) = told(&mut known, H100, &Extra::default());
    assert_eq!(inventory.expect("it changed").len(), 1);
    assert_eq!(errors(&readings), [("GPU-bb", Some("NVML_ERROR_NOT_FOUND")), ("GPU-aa", None)]);
}

#[test]
fn no_gpu_is_no_error() {
    let (inventory, readings) = told(&mut Known::default(), "No devices were found\n", &Extra::default());
    assert_eq!((inventory, readings), (Some(Vec::new()), Vec::new()));
}

#[test]
fn what_it_complains_of_has_nvmls_symbol() {
    for (text, code) in [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.124\n",
            "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
        ),
        ("Failed to initialize NVML: Unknown Error\n", "NVML_ERROR_UNKNOWN"),
        ("Failed to initialize NVML: Insufficient Permissions\n", "NVML_ERROR_NO_PERMISSION"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA \
             driver is installed and running.\n",
            "NVML_ERROR_DRIVER_NOT_LOADED",
        ),
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure…\n", LIBRARY_MISSING),
        ("Failed to initialize NVML: GPU access blocked by the operating system\n", "NVML_ERROR_OPERATING_SYSTEM"),
        ("Failed to initialize NVML: Function Not Found\n", "NVML_ERROR_FUNCTION_NOT_FOUND"),
        ("Failed to initialize NVML: Driver Not Loaded\n", "NVML_ERROR_DRIVER_NOT_LOADED"),
        ("bash: nvidia-smi: command not found\n", LIBRARY_MISSING),
        ("Segmentation fault\n", "NVML_ERROR_UNKNOWN"),
        ("", "NVML_ERROR_UNKNOWN"),
    ] {
        let trouble = Found::parse(&FIELDS, text).expect_err("it has no GPUs");
        assert_eq!(trouble.code, code, "{text}");
        assert!(trouble.text.starts_with("nvidia-smi: ") && !trouble.text.contains('\n'), "{}", trouble.text);
    }
}

#[test]
fn a_field_that_it_does_not_know_can_be_left_out() {
    let text = "Field \"mig.mode.current\" is not a valid field to query.\n\n";
    assert_eq!(unknown_field(text), Some("mig.mode.current"));
    assert_eq!(unknown_field(H100), None);
    let fields: Vec<&str> = FIELDS.into_iter().filter(|f| *f != "mig.mode.current").collect();
    let found = Found::parse(&fields, &H100.replace(", Disabled", "")).expect("it has a GPU");
    assert!(!found.divided() && found.rows.len() == 1);
}

#[test]
fn mig_devices_are_in_the_list() {
    let list = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n  MIG 3g.20gb     Device  0: (UUID: MIG-1)\n  \
                MIG 1g.5gb+me Device 1: (UUID: MIG-GPU-aa/1/0)\nGPU 1: Tesla V100 (UUID: GPU-bb)\n";
    let partitions = partitions(list);
    let text = H100.replace("Disabled", "Enabled");
    assert!(parse(&text).divided());
    let processes = processes("MIG-1, 4242, 512\nGPU-bb, 77, [N/A]\nNo running processes found\n");
    let extra = Extra { partitions, processes, ..Extra::default() };
    let (devices, readings) = told(&mut Known::default(), &format!("{text}{V100}"), &extra);
    let devices = devices.expect("they are new");
    let seen: Vec<_> = devices.iter().map(|d| (d.id.as_str(), d.partition.as_deref(), d.divided)).collect();
    let (first, second) = (Some("3g.20gb"), Some("1g.5gb+me"));
    assert_eq!(
        seen,
        [("GPU-aa", None, true), ("MIG-1", first, false), ("MIG-GPU-aa/1/0", second, false), ("GPU-bb", None, false)]
    );
    assert_eq!(
        (devices[1].parent.as_deref(), devices[1].memory_bytes, devices[2].memory_bytes),
        (Some("GPU-aa"), 20 << 30, 5 << 30)
    );
    assert_eq!(readings[1].processes, [Process { pid: 4242, memory_bytes: Some(512 << 20) }]);
    assert_eq!(readings[3].processes, [Process { pid: 77, memory_bytes: None }]);
    assert_eq!(readings[1].temperature_c, None);
}

/// Lines as `nvidia-smi -q -d PIDS` prints them, by NVIDIA's manual and posted output.
const PIDS: &str = "
==============NVSMI LOG==============

Timestamp                                 : Fri Nov 20 10:00:00 2026
Driver Version                            : 590.48.01
CUDA Version                              : 13.1

Attached GPUs                             : 2
GPU 00000000:41:00.0
    Processes
        GPU instance ID                   : 9
        Compute instance ID               : 0
        Process ID                        : 4242
            Type                          : C
            Name                          : python3
            Used GPU Memory               : 512 MiB
        GPU instance ID                   : 1
        Compute instance ID               : 0
        Process ID                        : 4343
            Type                          : C
            Name                          : strange : name
            Used GPU Memory               : Not available in WDDM driver model

GPU 00000000:C1:00.0
    Processes
        GPU instance ID                   : N/A
        Compute instance ID               : N/A
        Process ID                        : 77
            Type                          : C
            Name                          : python3
            Used GPU Memory               : 100 MiB
";

#[test]
fn a_process_on_a_partition_is_told_by_its_instance() {
    let root = tempfile::tempdir().expect("a directory");
    let file = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    file("proc/driver/nvidia/gpus/0000:41:00.0/information", "Device Minor: 0\n");
    for instance in ["gi1/ci0", "gi9/ci0"] {
        file(&format!("proc/driver/nvidia/capabilities/gpu0/mig/{instance}/access"), "DeviceFileMinor: 12\n");
    }
    let list = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\n  MIG 3g.40gb Device 0: (UUID: MIG-1)\n  MIG 1g.10gb Device 1: (UUID: MIG-2)\n";
    let extra = Extra {
        partitions: partitions(list),
        // Of one process it names the MIG device, of the other the whole GPU.
        processes: processes("MIG-2, 4242, [N/A]\nGPU-aa, 4343, [N/A]\nGPU-bb, 77, 100\n"),
        instance_processes: instance_processes(PIDS),
        ..Extra::default()
    };
    let found = parse(&format!("{}{V100}", H100.replace("Disabled", "Enabled")));
    let lines = Known::default().lines(root.path(), &Asked::All, found, &extra);
    let Some(Line::Readings(readings)) = lines.last() else { panic!("{lines:?}") };
    let of = |id: &str| &readings.iter().find(|r| r.id == id).expect("it has one").processes;
    assert_eq!(*of("MIG-1"), [Process { pid: 4343, memory_bytes: None }]);
    assert_eq!(*of("MIG-2"), [Process { pid: 4242, memory_bytes: Some(512 << 20) }]);
    assert_eq!(*of("GPU-bb"), [Process { pid: 77, memory_bytes: Some(100 << 20) }]);
}

#[test]
fn what_a_gpu_needs_has_nvmls_number() {
    for (word, number) in [
        ("None", Some(0)),
        ("Reset", Some(1)),
        ("Reboot", Some(2)),
        ("Drain and Reset", Some(4)),
        ("[N/A]", None),
        ("of a later driver", None),
    ] {
        let text = H100.replace("Disabled, None", &format!("Disabled, {word}"));
        let (_, readings) = told(&mut Known::default(), &text, &Extra::default());
        assert_eq!((readings[0].recovery_action, readings[0].error.as_deref()), (number, None), "{word}");
    }
}

#[test]
fn remapped_rows_are_a_list_of_their_own() {
    let rows = rows("GPU-aa, 1, 2, 1, 0\nGPU-bb, [N/A], [N/A], [N/A], [N/A]\nGPU-cc, 0, 0, No, Yes\n");
    assert_eq!(rows.get("GPU-aa"), Some(&Rows { count: 3, pending: true, failed: false }));
    assert_eq!(
        (rows.get("GPU-bb"), rows.get("GPU-cc")),
        (None, Some(&Rows { count: 0, pending: false, failed: true }))
    );
    let (_, readings) = told(&mut Known::default(), H100, &Extra { rows, ..Extra::default() });
    assert_eq!((readings[0].remapped_rows, readings[0].remap_pending), (Some(3), true));
}

#[test]
fn its_nodes_and_place_are_the_drivers_and_the_kernels() {
    let root = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    write("proc/driver/nvidia/gpus/0000:41:00.0/information", "Model: \t\t NVIDIA H100\nDevice Minor: \t 3\n");
    write("sys/bus/pci/devices/0000:41:00.0/numa_node", "1\n");
    write("dev/nvidia3", "");
    write("dev/nvidiactl", "");
    let lines = Known::default().lines(root.path(), &Asked::All, parse(H100), &Extra::default());
    let Some(Line::Inventory(devices)) = lines.first() else { panic!("{lines:?}") };
    let nodes: Vec<&str> = devices[0].nodes.iter().map(|n| n.path.as_str()).collect();
    assert_eq!((nodes, devices[0].numa_node), (vec!["/dev/nvidia3", "/dev/nvidiactl"], Some(1)));
}

#[test]
fn a_strange_text_is_no_panic() {
    for text in
        ["\0", ",,,,", &",".repeat(19), "Unable to determine the device handle for ", "GPU 0 (UUID: ", "  MIG (UUID: )"]
    {
        let _ = Found::parse(&FIELDS, text);
        let _ = (partitions(text), processes(text), rows(text), unknown_field(text));
        let _ = (instance_processes(text), recovery(text));
    }
}
