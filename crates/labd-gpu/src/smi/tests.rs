//! Tests over texts as `nvidia-smi` prints them, by its manual and by reports of people: none was recorded for this,
//! since no machine with an NVIDIA GPU was at hand.

use super::*;

const H100: &str = "0, GPU-aa, 00000000:41:00.0, 570.124.06, NVIDIA H100 80GB HBM3, 81559, 1024, 97, 41, 312.55, 700.00, 1980, \
                    2619, 0x0000000000000004, 3, 0, [N/A], [N/A], [N/A], Disabled\n";
const V100: &str = "1, GPU-bb, 00000000:C1:00.0, 570.124.06, Tesla V100-SXM2-32GB, 32768, 0, 0, 35, 42.10, 300.00, 135, 877, \
                    0x0000000000000001, 0, 0, 2, 1, Yes, [N/A]\n";
const LOST: &str = "Unable to determine the device handle for GPU 0000:c1:00.0: Unknown Error\n";

fn parse(text: &str) -> Found {
    Found::parse(&FIELDS, text).expect("it has GPUs")
}

fn nowhere() -> &'static Path {
    Path::new("/nonexistent")
}

fn told(known: &mut Known, text: &str, extra: &Extra) -> (Option<Vec<Device>>, Vec<Reading>) {
    let (mut inventory, mut readings) = (None, Vec::new());
    for line in known.lines(nowhere(), parse(text), extra) {
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
        ..Reading::default()
    };
    assert_eq!(readings[0], want);
    assert_eq!((readings[1].remapped_rows, readings[1].remap_pending, readings[1].throttled.len()), (Some(3), true, 0));
}

#[test]
fn what_it_does_not_say_is_absent() {
    let geforce = "0, GPU-aa, 00000000:01:00.0, 535.183.01, NVIDIA GeForce RTX 3090, 24576, [Not Supported], [N/A], 50, ERR!, \
                   [Unknown Error], [N/A], N/A, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n";
    let (_, readings) = told(&mut Known::default(), geforce, &Extra::default());
    assert_eq!(readings, [Reading { id: "GPU-aa".into(), temperature_c: Some(50.0), ..Reading::default() }]);
}

#[test]
fn a_lost_gpu_is_what_it_was_and_the_others_go_on() {
    let row = |cell: &str| format!("1, {cell}, 00000000:C1:00.0{}\n", format!(", {cell}").repeat(17));
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
    let lines = Known::default().lines(root.path(), parse(H100), &Extra::default());
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
    }
}
