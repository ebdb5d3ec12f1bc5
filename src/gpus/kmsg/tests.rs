//! Lines of real faults, as people posted them. Numbers are issues of the named repository; `ogkm` is
//! NVIDIA/open-gpu-kernel-modules, `rocm` is ROCm/legacy-rocm-build.

use std::{
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    sync::atomic::{AtomicI64, Ordering},
};

use super::*;

/// Real lines: where it was posted; the line; the row; the GPU.
const REAL: [(&str, &str, &str, Option<&str>); 52] = [
    (
        "gpud pull 46",
        "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 7, SM 0): Illegal Instruction Parameter",
        "xid-13",
        Some("0000:cb:00.0"),
    ),
    (
        "ogkm 1030",
        "NVRM: Xid (PCI:0000:2b:00): 31, pid=1942, name=llama-bench, channel 0x00000002, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC6 GPCCLIENT_T1_13 faulted @ 0x6f6f_320c2000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
        "xid-31",
        Some("0000:2b:00.0"),
    ),
    ("dxvk 1027", "NVRM: Xid (PCI:0000:01:00): 32, Channel ID 00000052 intr 02000000", "xid-32", Some("0000:01:00.0")),
    ("arch forum 283219", "NVRM: Xid (PCI:0000:01:00): 38, pid=1659,", "xid-44", Some("0000:01:00.0")),
    (
        "nvidia forum 47210",
        "NVRM: Xid (PCI:0000:01:00): 43, Ch 00000020, engmask 00000101",
        "xid-43",
        Some("0000:01:00.0"),
    ),
    (
        "ogkm 1150",
        "NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149",
        "xid-45",
        Some("0000:dc:00.0"),
    ),
    (
        "gpu-operator 1146",
        "NVRM: Xid (PCI:0000:8a:00): 48, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 4, subpartition 1",
        "xid-48",
        Some("0000:8a:00.0"),
    ),
    (
        "gpu-operator 1146",
        "NVRM: Xid (PCI:0000:07:00): 48, pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at physAddr 0x7fdf0de80 partition 5, subpartition 1",
        "xid-48",
        Some("0000:07:00.0"),
    ),
    (
        "ogkm 942",
        "NVRM: Xid (PCI:0000:01:00): 62, 322bff9a 0000b3b8 00000000 206a4b08 206a3cc8 206a3e36 206a2284 206a2ad6",
        "xid-62",
        Some("0000:01:00.0"),
    ),
    (
        "stas00/ml-engineering",
        "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.",
        "xid-63",
        Some("0000:10:1c.0"),
    ),
    (
        "nvidia forum 292539",
        "NVRM: Xid (PCI:0000:c1:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 1",
        "xid-74",
        Some("0000:c1:00.0"),
    ),
    (
        "nvidia forum 49452",
        "NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.",
        "xid-79",
        Some("0000:06:00.0"),
    ),
    (
        "ogkm 461",
        "NVRM: Xid (PCI:0004:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "xid-79",
        Some("0004:01:00.0"),
    ),
    ("gpud kmsg_test", "NVRM: GPU 0000:29:00.0: GPU has fallen off the bus.", "xid-79", Some("0000:29:00.0")),
    ("Bumblebee 554", "NVRM: GPU at 0000:01:00.0 has fallen off the bus.", "xid-79", Some("0000:01:00.0")),
    ("gpud kmsg_test", "NVRM: GPU 18:00.0: GPU has fallen off the bus.", "xid-79", Some("0000:18:00.0")),
    (
        "gpud pull 1174",
        "NVRM: Xid (PCI:0000:9b:00): 94, pid=1234, name=python3, Contained ECC error",
        "xid-94",
        Some("0000:9b:00.0"),
    ),
    (
        "abhik.ai",
        "NVRM: Xid (PCI:0000:01:00): 95, pid=7062, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
        "xid-95",
        Some("0000:01:00.0"),
    ),
    (
        "gpud pull 46",
        "NVRM: Xid (PCI:0000:cb:00): 109, pid=1797828, name=pt_main_thread, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x58005",
        "xid-109",
        Some("0000:cb:00.0"),
    ),
    (
        "ogkm 461",
        "NVRM: Xid (PCI:0004:01:00): 119, pid=430, name=nv_queue, Timeout waiting for RPC from GSP!",
        "xid-119",
        Some("0004:01:00.0"),
    ),
    (
        "ogkm 1045",
        "NVRM: Xid (PCI:0000:01:00): 119, pid=15041, name=zed-editor, Timeout after 45s of waiting for RPC response from GPU0 GSP!",
        "xid-119",
        Some("0000:01:00.0"),
    ),
    (
        "gpud pull 1160",
        "NVRM: Xid (PCI:0000:01:00): 144, SAW_MVB Nonfatal XC0 i0 Link 0 (0x00000001 0x00000008 0x00000000 0x00000000 0x00000000 0x00000000)",
        "nvlink-nonfatal",
        Some("0000:01:00.0"),
    ),
    (
        "TensorRT-LLM 4816",
        "NVRM: Xid (PCI:0000:5f:00): 145, RLW_REMAP Nonfatal XC0 i0 Link 02",
        "nvlink-nonfatal",
        Some("0000:5f:00.0"),
    ),
    (
        "gpud pull 1174",
        "NVRM: Xid (PCI:0019:01:00): 149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
        "nvlink-fatal",
        Some("0019:01:00.0"),
    ),
    (
        "gpud kmsg_test",
        "NVRM: Xid (PCI:0009:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
        "nvlink-fatal",
        Some("0009:01:00.0"),
    ),
    (
        "gpud kmsg_test",
        "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)",
        "xid-154",
        Some("0009:01:00.0"),
    ),
    (
        "gpud kmsg_test",
        "NVRM: Xid (PCI:0019:01:00): 154, GPU recovery action changed from 0x4 (Drain and Reset) to 0x1 (GPU Reset Required)",
        "xid-154",
        Some("0019:01:00.0"),
    ),
    (
        "ogkm 1151",
        "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        "xid-154-reboot",
        Some("0000:01:00.0"),
    ),
    ("nvidia's guide", "NVRM: Xid (0000:03:00): 14, Channel 00000001", "xid-ignored", Some("0000:03:00.0")),
    (
        "gpu-operator 1146",
        "NVRM: GPU 0000:0a:00.0: RmInitAdapter failed! (0x24:0x72:1568)",
        "nvidia-init-failed",
        Some("0000:0a:00.0"),
    ),
    (
        "gpu-operator 649",
        "NVRM: GPU 0000:04:01.0: rm_init_adapter failed, device minor number 0",
        "nvidia-init-failed",
        Some("0000:04:01.0"),
    ),
    ("Bumblebee 722", "NVRM: RmInitAdapter failed! (0x26:0xffff:1375)", "nvidia-init-failed", None),
    ("NVSentinel 155", "NVRM: The NVIDIA probe routine failed for 1 device(s).", "nvidia-probe-failed", None),
    ("negativo17 43", "NVRM: API mismatch: the client has the version 390.25, but", "nvidia-mismatch", None),
    (
        "rocm 4021",
        "amdgpu 0000:e6:00.0: {1}uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!",
        "amdgpu-athub",
        Some("0000:e6:00.0"),
    ),
    (
        "rocm 1886",
        "amdgpu 0000:e3:00.0: amdgpu: uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!",
        "amdgpu-athub",
        Some("0000:e3:00.0"),
    ),
    (
        "rocm 4021",
        "amdgpu 0000:1c:00.0: amdgpu: qcm fence wait loop timeout expired",
        "amdgpu-hang",
        Some("0000:1c:00.0"),
    ),
    ("rocm 4021", "amdgpu: Failed to evict process queues", "amdgpu-hang", None),
    ("rocm 4021", "amdgpu 0000:9e:00.0: amdgpu: GPU reset begin!", "amdgpu-hang", Some("0000:9e:00.0")),
    (
        "rocm 5724",
        "amdgpu 0000:c5:00.0: amdgpu: MES failed to respond to msg=REMOVE_QUEUE",
        "amdgpu-hang",
        Some("0000:c5:00.0"),
    ),
    ("rocm 5724", "amdgpu 0000:c5:00.0: amdgpu: GPU reset begin!. Source:  3", "amdgpu-hang", Some("0000:c5:00.0")),
    (
        "cosmic-epoch 3764",
        "amdgpu 0000:28:00.0: ring gfx_0.0.0 timeout, signaled seq=57638, emitted seq=57641",
        "amdgpu-hang",
        Some("0000:28:00.0"),
    ),
    (
        "cosmic-comp 2626",
        "[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring gfx_0.0.0 timeout, signaled seq=5000163, emitted seq=5000165",
        "amdgpu-hang",
        None,
    ),
    ("cosmic-comp 2626", "amdgpu 0000:08:00.0: amdgpu: GPU reset(2) succeeded!", "amdgpu-reset", Some("0000:08:00.0")),
    (
        "cosmic-comp 2626",
        "[drm:amdgpu_cs_ioctl [amdgpu]] *ERROR* Failed to initialize parser -125!",
        "amdgpu-reset",
        None,
    ),
    ("rocm 2804", "amdgpu 0000:0b:00.0: amdgpu: GPU reset(1) failed", "amdgpu-reset-failed", Some("0000:0b:00.0")),
    ("rocm 2804", "[drm:psp_hw_start [amdgpu]] *ERROR* PSP create ring failed!", "amdgpu-init-failed", None),
    ("rocm 2995", "[drm:psp_hw_init [amdgpu]] *ERROR* PSP firmware loading failed", "amdgpu-init-failed", None),
    (
        "rocm 1552",
        "amdgpu 0000:83:00.0: amdgpu: Fatal error during GPU init",
        "amdgpu-init-failed",
        Some("0000:83:00.0"),
    ),
    (
        "ROCm/amdgpu 150",
        "amdgpu 0000:88:00.0: amdgpu: [mmhub0] no-retry page fault (src_id:0 ring:24 vmid:8 pasid:32768, for process ipython3 pid 846049 thread ipython3 pid 846049)",
        "amdgpu-page-fault",
        Some("0000:88:00.0"),
    ),
    (
        "rocm 2205",
        "amdgpu 0000:c3:00.0: amdgpu: [gfxhub] page fault (src_id:0 ring:24 vmid:12 pasid:32773, for process rocm-bandwidth- pid 8285 thread rocm-bandwidth- pid 8285)",
        "amdgpu-page-fault",
        Some("0000:c3:00.0"),
    ),
    (
        "the driver's text, not seen posted",
        "amdgpu 0000:c3:00.0: amdgpu: device lost from bus!",
        "amdgpu-lost",
        Some("0000:c3:00.0"),
    ),
];

/// Lines around faults, and of ordinary days, that tell of no fault.
const QUIET: [&str; 15] = [
    "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.158.01  Release Build  (dvs-builder@U22-I3-B10-02-5)  Mon Jun  2 13:13:04 UTC 2025",
    "NVRM: GPU at PCI:0000:01:00: GPU-8a47641b-dff6-f09f-618c-c3eb58fb430d",
    "NVRM: GPU Board Serial Number: 0",
    "NVRM: Xid error: xyz, invalid data",
    "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link ACTIVE",
    "amdgpu 0000:33:00.0: amdgpu: MODE2 reset",
    "amdgpu 0000:c5:00.0: amdgpu: GPU reset succeeded, trying to resume",
    "amdgpu 0000:28:00.0: Starting gfx_0.0.0 ring reset",
    "amdgpu 0000:c2:00.0: [drm] device wedged, but recovered through reset",
    "amdgpu 0000:e3:00.0: amdgpu: MEM ECC is active.",
    "amdgpu 0000:0d:00.0: amdgpu: ring gfx_0.0.0 uses VM inv eng 0 on hub 0",
    "amdgpu 0000:2b:00.0: amdgpu: RAS: optional ras ta ucode is not available",
    "amdgpu 0000:0b:00.0: Using 44-bit DMA addresses",
    "pcieport 0000:00:01.1: AER: aer_layer=Data Link Layer, aer_agent=Receiver ID",
    "EXT4-fs (md127p3): re-mounted 0f3cd65a-338b-4574-bba3-ecef214e1917 r/w. Quota mode: none.",
];

/// Faults that an assembler finds in records, each as `code pci`.
fn told(records: &[&str]) -> Vec<String> {
    let mut assembler = Assembler::default();
    records
        .iter()
        .map(|text| Record::read(text).unwrap_or_else(|| panic!("no record: {text}")))
        .filter_map(|record| assembler.take(record))
        .map(|(fault, pci, _)| format!("{} {}", fault.code, pci.as_deref().unwrap_or("-")))
        .collect()
}

#[test]
fn lines_of_real_faults_map_to_their_rows() {
    for (source, line, code, pci) in REAL {
        let found = parse(line).map(|(fault, pci)| (fault.code, pci));
        assert_eq!(found, Some((code, pci.map(str::to_owned))), "{source}: {line}");
    }
    let rows: std::collections::BTreeSet<_> = REAL.iter().map(|(_, _, code, _)| code).collect();
    assert!(rows.len() >= 20, "{} different faults", rows.len());
}

/// Lines of `tests/data/kernel`, by file.
const POSTED: [(&str, &str); 3] = [
    ("nvidia", include_str!("../../../tests/data/kernel/nvidia.tsv")),
    ("amd", include_str!("../../../tests/data/kernel/amd.tsv")),
    ("posted", include_str!("../../../tests/data/kernel/posted.tsv")),
];

#[test]
fn every_posted_line_has_its_row_its_gpu_and_its_action() {
    let mut wrong = Vec::new();
    for (file, lines) in POSTED {
        for line in lines.lines().filter(|l| !l.starts_with('#')) {
            let cells: Vec<&str> = line.split('\t').collect();
            let [source, text, row, gpu, action] = cells[..] else { panic!("{file}: {line}") };
            let [explained] = &explain(text)[..] else { panic!("{file}: {line}") };
            let fault = explained.fault;
            let is = [fault.map(|f| f.code), explained.gpu(), fault.map(|f| f.action.as_str())]
                .map(|cell| cell.unwrap_or("-"));
            if is != [row, gpu, action] {
                wrong.push(format!("{file}\t{source}\t{text}\t{}", is.join("\t")));
            }
        }
    }
    assert!(wrong.is_empty(), "they are:\n{}", wrong.join("\n"));
}

#[test]
fn records_of_a_whole_log_have_their_rows_and_gpus() {
    let explained = explain(include_str!("../../../tests/data/kernel/records.txt"));
    let told: Vec<String> = explained
        .iter()
        .filter_map(|e| {
            let fault = e.fault?;
            Some(format!("{} {} {}", fault.code, e.gpu().unwrap_or("-"), fault.action.as_str()))
        })
        .collect();
    assert_eq!(told, RECORDS);
}

/// What the records tell of, in their order.
const RECORDS: [&str; 12] = [
    "nvlink-fatal 0009:01:00.0 quarantine",
    "xid-154 0009:01:00.0 quarantine",
    "xid-79 0000:01:00.0 quarantine",
    "nvidia-unsupported 0000:01:00.0 nothing",
    "nvswitch-fatal - nothing",
    "amdgpu-hang 0000:c3:00.0 nothing",
    "amdgpu-hang - nothing",
    "amdgpu-reset-failed - quarantine",
    "amdgpu-hang 0000:19:00.0 nothing",
    "xid-79 0000:05:00.0 quarantine",
    "xid-79 0000:05:00.0 quarantine",
    "amdgpu-reset - restart",
];

#[test]
fn a_line_names_the_instance_that_it_is_about() {
    for (text, want) in [
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No", Some(5)),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:13 GPU-CI:02): 13, pid=4321, name=python3, Graphics SM Exception", Some(13)),
        ("NVRM: Xid (PCI:0000:3b:00): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No", None),
        // A process may call itself what it likes.
        ("NVRM: Xid (PCI:0000:3b:00): 94, pid=4321, name=GPU-I:05, Contained: SM (0x1). RST: No", None),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:): 94", None),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:99999999999): 94", None),
    ] {
        assert_eq!(instance(text), want, "{text}");
    }
    let line = "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=4321, name=python3, Contained: SM (0x1)";
    assert_eq!(parse(line).map(|(fault, pci)| (fault.code, pci)), Some(("xid-94", Some("0000:3b:00.0".to_owned()))));
}

#[test]
fn ordinary_lines_tell_of_no_fault() {
    for line in QUIET {
        assert_eq!(parse(line).map(|(fault, _)| fault.code), None, "{line}");
    }
}

#[test]
fn a_record_is_read_with_the_lines_that_say_more() {
    let record = Record::read(
        "3,1187,155044078590,-,caller=T4711;amdgpu 0000:c3:00.0: amdgpu: GPU reset(1) failed\n SUBSYSTEM=pci\n DEVICE=+pci:0000:c3:00.0\n",
    );
    let want = Record {
        usec: 155_044_078_590,
        continues: false,
        caller: Some("T4711".into()),
        text: "amdgpu 0000:c3:00.0: amdgpu: GPU reset(1) failed".into(),
        device: Some("0000:c3:00.0".into()),
    };
    assert_eq!(record, Some(want));
}

#[test]
fn strange_records_are_none() {
    for text in ["", "\n", "text", "6,1,2;", "6,x,2,-;text", "6,1,2", ",,,;", " DEVICE=+pci:0000:c3:00.0"] {
        assert_eq!(Record::read(text), None, "{text:?}");
    }
    assert_eq!(
        Record::read("6,1,2,-,unknown=1,caller=C0;a \\x e2 \\xe2\\x82\\xac \\x").map(|r| r.text).as_deref(),
        Some("a \\x e2 € \\x")
    );
}

#[test]
fn what_a_process_writes_there_does_not_count() {
    // Facility 1, user: `echo "NVRM: Xid ..." >/dev/kmsg`.
    assert_eq!(Record::read("12,9,1,-;NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus."), None);
}

#[test]
fn a_message_of_several_lines_in_one_record_names_its_gpu() {
    // NVSentinel 155, as /dev/kmsg gives it.
    assert_eq!(
        told(&[
            "3,1,1843308145,-;NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this system has\\x0aNVRM: fallen off the bus and is not responding to commands."
        ]),
        ["xid-79 0000:b3:00.0"]
    );
    // Frogging-Family/nvidia-all 394.
    assert_eq!(
        told(&[
            "3,1,9424670,-;NVRM: API mismatch: the client 'kwin_wayland' (pid 1005)\\x0aNVRM: has the version 595.84, but this kernel module has\\x0aNVRM: the version 595.80.  Please make sure that this\\x0aNVRM: kernel module and all NVIDIA driver components\\x0aNVRM: have the same version."
        ]),
        ["nvidia-mismatch -"]
    );
}

#[test]
fn a_message_in_several_records_names_its_gpu_whoever_prints_in_between() {
    // gpud pull 1209.
    assert_eq!(
        told(&[
            "4,1,1,-;NVRM: The NVIDIA GPU 0000:18:00.0",
            "6,2,2,-;mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link INIT",
            "4,3,3,-;NVRM: (PCI ID: 10de:2901) installed in this system has",
            "6,4,4,-;workqueue: ib_cache_event_task [ib_core] hogged CPU for >10000us 4 times",
            "4,5,5,-;NVRM: fallen off the bus and is not responding to commands.",
        ]),
        ["xid-79 0000:18:00.0"]
    );
}

#[test]
fn a_legacy_gpu_is_the_one_of_the_first_line() {
    assert_eq!(
        told(&[
            "4,1,1,-;NVRM: The NVIDIA GPU 0000:02:00.0 (PCI ID: 10de:1140)",
            "4,2,2,-;NVRM: installed in this system is",
            "4,3,3,-;NVRM:  supported through the NVIDIA 390.xx Legacy drivers. Please",
            "4,4,4,-;NVRM:  visit http://www.nvidia.com/object/unix.html for more",
            "4,5,5,-;NVRM:  information.  The 430.14 NVIDIA driver will ignore",
            "4,6,6,-;NVRM:  this GPU.  Continuing probe...",
        ]),
        ["nvidia-unsupported 0000:02:00.0"]
    );
}

#[test]
fn mixed_messages_of_two_gpus_name_both() {
    let mixed = [
        "4,1,1,-;NVRM: The NVIDIA GPU 0000:18:00.0",
        "4,2,2,-;NVRM: The NVIDIA GPU 0000:29:00.0",
        "4,3,3,-;NVRM: (PCI ID: 10de:2901) installed in this system has",
        "4,4,4,-;NVRM: (PCI ID: 10de:2901) installed in this system has",
        "4,5,5,-;NVRM: fallen off the bus and is not responding to commands.",
        "4,6,6,-;NVRM: fallen off the bus and is not responding to commands.",
    ];
    assert_eq!(told(&mixed), ["xid-79 0000:18:00.0", "xid-79 0000:29:00.0"]);
    // Where the kernel says who prints, each line finds its own, in any order.
    let callers = [
        "4,1,1,-,caller=T1;NVRM: The NVIDIA GPU 0000:18:00.0",
        "4,2,2,-,caller=T2;NVRM: The NVIDIA GPU 0000:29:00.0",
        "4,3,3,-,caller=T2;NVRM: (PCI ID: 10de:2901) installed in this system has",
        "4,4,4,-,caller=T2;NVRM: fallen off the bus and is not responding to commands.",
        "4,5,5,-,caller=T1;NVRM: (PCI ID: 10de:2901) installed in this system",
        "4,6,6,-,caller=T1;NVRM: installed in this system is not supported by the 570.158.01 driver.",
    ];
    assert_eq!(told(&callers), ["xid-79 0000:29:00.0", "nvidia-unsupported 0000:18:00.0"]);
}

#[test]
fn mixed_lines_of_two_gpus_each_name_their_own() {
    // nvidia forum 49452: three GPUs in one moment; rocm 4021.
    assert_eq!(
        told(&[
            "4,1,155044078590,-;NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.",
            "4,2,155044078590,-;NVRM: Xid (PCI:0000:07:00): 79, GPU has fallen off the bus.",
            "3,3,1,-;amdgpu 0000:9e:00.0: amdgpu: GPU reset begin!",
            "3,4,2,-;amdgpu 0000:1c:00.0: amdgpu: GPU reset(1) failed",
            "3,5,2,-;amdgpu 0000:9e:00.0: amdgpu: GPU reset(1) succeeded!",
        ]),
        [
            "xid-79 0000:06:00.0",
            "xid-79 0000:07:00.0",
            "amdgpu-hang 0000:9e:00.0",
            "amdgpu-reset-failed 0000:1c:00.0",
            "amdgpu-reset 0000:9e:00.0",
        ]
    );
}

#[test]
fn a_line_that_is_cut_goes_on_and_is_told_once() {
    // Since Linux 4.9: `c` goes on.
    assert_eq!(
        told(&["4,1,1,-;NVRM: Xid (PCI:0000:06:00)", "4,2,2,c;: 79, GPU has ", "4,3,3,c;fallen off the bus."]),
        ["xid-79 0000:06:00.0"]
    );
    // Before: `c` began, `+` went on.
    assert_eq!(
        told(&["4,1,1,c;amdgpu 0000:0b:00.0: amdgpu: GPU re", "4,2,2,+;set(1) failed"]),
        ["amdgpu-reset-failed 0000:0b:00.0"]
    );
    // Somebody else in between, where the kernel says who.
    assert_eq!(
        told(&[
            "4,1,1,-,caller=T1;NVRM: Xid (PCI:0000:06:00): ",
            "6,2,2,-,caller=C3;usb 1-1: new device",
            "4,3,3,c,caller=T1;62, 322bff9a"
        ]),
        ["xid-62 0000:06:00.0"]
    );
}

#[test]
fn a_last_line_without_a_first_concerns_the_node() {
    assert_eq!(told(&["4,1,1,-;NVRM: fallen off the bus and is not responding to commands."]), ["xid-79 -"]);
    // A message that concerns no GPU is not taken for the end of another.
    assert_eq!(
        told(&[
            "4,1,1,-;NVRM: The NVIDIA GPU 0000:18:00.0",
            "4,2,2,-;NVRM: API mismatch: the client has the version 390.25, but"
        ]),
        ["nvidia-mismatch -"]
    );
}

#[test]
fn the_device_of_a_record_names_a_gpu_that_its_text_does_not() {
    assert_eq!(
        told(&[
            "3,1,1,-;[drm:psp_hw_start [amdgpu]] *ERROR* PSP create ring failed!\n SUBSYSTEM=pci\n DEVICE=+pci:0000:c7:00.0\n"
        ]),
        ["amdgpu-init-failed 0000:c7:00.0"]
    );
}

#[test]
fn no_storm_of_messages_without_an_end_fills_the_memory() {
    let mut assembler = Assembler::default();
    for i in 0..10_000 {
        let text = format!("4,{i},{i},-,caller=T{i};NVRM: The NVIDIA GPU 0000:18:00.0");
        assert_eq!(assembler.take(Record::read(&text).expect("a record")), None);
    }
    assert!(assembler.open.len() <= OPEN && assembler.last.len() <= OPEN);
}

/// Clock of these tests; each reading is a second later.
static CLOCK: AtomicI64 = AtomicI64::new(0);

fn later() -> Timestamp {
    Timestamp::from_millis(CLOCK.fetch_add(1_000, Ordering::Relaxed))
}

#[tokio::test]
async fn lost_records_are_no_end_and_lines_of_this_boot_have_their_time() {
    CLOCK.store(1_795_492_800_000, Ordering::Relaxed);
    let bytes = |text: &str| Ok(text.as_bytes().to_vec());
    let source = Source::Script(VecDeque::from([
        bytes("4,1,3600000000,-;NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.\n SUBSYSTEM=pci\n"),
        Err(io::ErrorKind::BrokenPipe.into()),
        bytes("6,99,3600000001,-;usb 1-1: new device\n"),
        // After the start: the wall clock's time.
        bytes("4,100,7200000001,-;NVRM: Xid (PCI:0000:07:00): 95, pid=7062, Uncontained\n"),
        Err(io::Error::other("gone")),
    ]));
    let (tell, mut lines) = mpsc::channel(1);
    let pumped = tokio::spawn(pump(source, Clock { now: later, up: Duration::from_hours(2) }, tell));
    let first = lines.recv().await.expect("a line");
    assert_eq!((first.fault.code, first.pci.as_deref()), ("xid-79", Some("0000:06:00.0")));
    assert_eq!(first.at, Timestamp::from_millis(1_795_492_800_000 - 3_600_000), "an hour after boot, two hours ago");
    let second = lines.recv().await.expect("a line");
    assert_eq!((second.fault.code, second.at), ("xid-95", Timestamp::from_millis(1_795_492_801_000)));
    assert_eq!(lines.recv().await, None, "an error that is not one of a record ends it");
    pumped.await.expect("no panic");
}

#[tokio::test]
async fn the_task_ends_with_its_receiver_while_it_waits() {
    let (kernel, ours) = UnixDatagram::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    let source = Source::Device(pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(ours)).expect("in a runtime"));
    let (tell, mut lines) = mpsc::channel(1);
    let pumped = tokio::spawn(pump(source, Clock { now: Timestamp::now, up: Duration::ZERO }, tell));
    // Several records wait at once; each read gives one.
    for n in 0..5 {
        kernel
            .send(format!("4,{n},1,-;NVRM: Xid (PCI:0000:0{n}:00): 79, GPU has fallen off the bus.\n").as_bytes())
            .expect("sent");
    }
    for n in 0..5 {
        assert_eq!(lines.recv().await.and_then(|l| l.pci), Some(format!("0000:0{n}:00.0")));
    }
    drop(lines);
    tokio::time::timeout(Duration::from_secs(10), pumped).await.expect("it ends").expect("no panic");
    drop(kernel);
}

#[tokio::test]
async fn a_plain_file_is_followed_as_it_grows() {
    use std::io::Write as _;

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kmsg");
    let mut kernel = File::create(&path).expect("a file");
    let mut lines = follow(&path).expect("readable");
    kernel.write_all(b"4,1,1,-;NVRM: Xid (PCI:0000:06:00): 79, GPU has").expect("written");
    kernel
        .write_all(b" fallen off the bus.\n6,2,2,-;usb\n4,3,3,-;amdgpu 0000:0b:00.0: amdgpu: GPU reset(1) failed\n")
        .expect("written");
    for want in ["0000:06:00.0", "0000:0b:00.0"] {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.recv()).await.expect("in time").expect("a line");
        assert_eq!(line.pci.as_deref(), Some(want));
    }
}

#[tokio::test]
async fn no_kernel_log_is_said_once_and_no_failure_of_labd() {
    let error = follow(Path::new("/nonexistent/kmsg")).expect_err("nothing there").to_string();
    assert!(error.contains("/nonexistent/kmsg") && error.ends_with("run labd as root"), "{error}");
}
