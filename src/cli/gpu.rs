//! `labd gpu`, and the GPUs' table of `labd status`.

use std::io::{self, IsTerminal as _, Read as _};

use super::{
    args,
    client::Client,
    exit::{Exit, Failure},
    status::{Paint, clean, cut, hard_wrap, paint, table, wrap},
    text::{Out, Style},
};
use crate::{
    config::Bytes,
    gpus::{
        faults::{self, Fault},
        health,
        kmsg::{self, Explained, Is},
    },
    snapshot::{GpuState, GpuView, Snapshot},
    time::{Timestamp, human},
};

pub(super) async fn run(client: &Client<'_>, command: args::Gpu, out: &mut Out) -> Result<(), Failure> {
    match command {
        args::Gpu::List(args) => {
            let snapshot: Snapshot = client.json("/api/v1/snapshot").await?;
            if args.json {
                let value = serde_json::json!({ "gpus": snapshot.gpus, "sources": snapshot.gpu_sources });
                return out.json(&value);
            }
            if snapshot.gpus.is_empty() {
                return out.line("no GPU was found; `labd doctor` says what is missing");
            }
            let style = out.style();
            let mut text = render(&snapshot.gpus, Timestamp::now(), style);
            text.push_str(&details(&snapshot, style));
            out.text(&text)
        }
        args::Gpu::Release { gpu } => tell(client, &gpu, "release", out).await,
        args::Gpu::Drill { gpu, fault } => {
            if health::by_code(&fault).is_none() {
                let line = format!("no fault `{fault}`; `labd gpu faults` lists them");
                return Err(Failure::new(Exit::Failure, line));
            }
            tell(client, &gpu, &format!("drill/{fault}"), out).await
        }
        args::Gpu::Faults(args) if args.explain => {
            let text = if args.lines.is_empty() { pasted()? } else { args.lines.join("\n") };
            let explained = kmsg::explain(&text);
            if args.json {
                let lines = explained.iter().map(|e| format!("{}\n", explained_json(e)));
                return out.text(&lines.collect::<String>());
            }
            let style = out.style();
            out.text(&explained.iter().map(|e| render_explained(e, style)).collect::<String>())
        }
        args::Gpu::Faults(args) => {
            if args.json {
                return out.json(&faults_json());
            }
            let style = out.style();
            let mut text = String::new();
            for [code, signs, meaning, _, remedy] in faults::rows() {
                let action = health::by_code(&code).map_or("", |fault| fault.action.words());
                text.push_str(&paint(&code, Paint::Bold, style));
                text.push_str(&format!(": {action}\n"));
                for (word, said) in [("sign", &signs), ("means", &meaning), ("do", &remedy)] {
                    for (i, line) in wrap(said, style.width - 9).iter().enumerate() {
                        text.push_str(&format!("  {:<6} {line}\n", if i == 0 { word } else { "" }));
                    }
                }
            }
            out.text(&text)
        }
    }
}

fn faults_json() -> serde_json::Value {
    let row = |[code, signs, meaning, action, remedy]: [String; 5]| serde_json::json!({ "code": code, "signs": signs, "meaning": meaning, "action": action, "remedy": remedy });
    faults::rows().into_iter().map(row).collect()
}

/// Longest text that is explained: more than any kernel's log holds.
const PASTED: u64 = 64 << 20;

/// Lines of the standard input.
fn pasted() -> Result<String, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let line = "no lines to explain; give them as arguments, or as in `dmesg | labd gpu faults --explain`";
        return Err(Failure::new(Exit::Usage, line));
    }
    let mut bytes = Vec::new();
    stdin.lock().take(PASTED).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is left to a person. Which id the GPU has, only its machine knows.
fn remedy(explained: &Explained, fault: &Fault) -> String {
    fault.remedy_for(explained.gpu(), explained.gpu().map(|_| "ID"))
}

fn explained_json(explained: &Explained) -> serde_json::Value {
    let fault = explained.fault;
    serde_json::json!({
        "line": explained.line,
        "code": fault.map(|f| f.code),
        "meaning": fault.map(|f| f.meaning),
        "gpu": explained.gpu(),
        "instance": explained.instance,
        "device": explained.device,
        "action": fault.map(|f| f.action.as_str()),
        "remedy": fault.map(|f| remedy(explained, f)),
    })
}

/// One pasted line for people: what it means, whose it is, and who does what about it.
fn render_explained(explained: &Explained, style: Style) -> String {
    let line = clean(&explained.line);
    let line = line.trim();
    let Some(fault) = explained.fault else {
        let unknown = if line.is_empty() { "an empty line" } else { line };
        return format!("{}\n", cut(&format!("unknown: {unknown}"), style.width));
    };
    let words = fault.action.words();
    let does = match (&explained.device, explained.is) {
        (Some(_), Is::Gpu) => words.to_owned(),
        (Some(port), Is::Port) => format!("{words}, each of the GPUs behind the port {port}"),
        (Some(device), Is::Other) if fault.is_of_any_device() => format!("nothing: PCI device {device} is no GPU"),
        (Some(device), Is::Other) => format!("a notice of the node, about PCI device {device}"),
        (None, _) if fault.is_of_any_device() => "nothing: the line names no PCI device".to_owned(),
        (None, _) => "a notice of the node: the line names no GPU".to_owned(),
    };
    let mut text = format!("{}: {does}\n", paint(fault.code, Paint::Bold, style));
    let gpu = match (explained.gpu(), explained.instance) {
        (Some(gpu), Some(instance)) => format!("{gpu}, MIG instance {instance}"),
        (gpu, _) => gpu.unwrap_or("-").to_owned(),
    };
    for (word, said) in [("line", line), ("gpu", &gpu), ("means", fault.meaning), ("do", &remedy(explained, fault))] {
        let width = style.width - 9;
        // What somebody pastes can have words of any length.
        let lines = wrap(said, width).into_iter().flat_map(|l| hard_wrap(&l, width));
        for (i, line) in lines.enumerate() {
            text.push_str(&format!("  {:<6} {line}\n", if i == 0 { word } else { "" }));
        }
    }
    text
}

async fn tell(client: &Client<'_>, gpu: &str, what: &str, out: &mut Out) -> Result<(), Failure> {
    let gpu = super::path_segment(gpu)?;
    let line = client.command(&format!("/api/v1/gpus/{gpu}/{what}")).await?;
    out.line(&line)
}

/// Table with one row per GPU, and below it what is wrong with it.
pub(super) fn render(gpus: &[GpuView], now: Timestamp, style: Style) -> String {
    let rows: Vec<Vec<String>> = gpus.iter().map(row).collect();
    let text = table(&["WORKER", "GPU", "NAME", "USE", "MEMORY", "TEMP", "POWER"], &rows);
    let mut lines = text.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for (gpu, line) in gpus.iter().zip(lines) {
        text.push_str(&format!("{line}\n"));
        let Some(trouble) = &gpu.trouble else { continue };
        let color = if gpu.state == GpuState::Ok { Paint::Yellow } else { Paint::Red };
        let state = if gpu.state == GpuState::Ok { String::new() } else { format!("{}: ", gpu.state.as_str()) };
        let said = format!(
            "{state}{} ({}, {} ago): {}",
            trouble.meaning,
            trouble.code,
            human(now.since(trouble.since)),
            trouble.remedy
        );
        for line in wrap(&clean(&said), style.width - 4) {
            text.push_str(&format!("    {}\n", paint(&line, color, style)));
        }
    }
    text
}

fn row(g: &GpuView) -> Vec<String> {
    let reading = g.reading.as_ref();
    let say = |value: Option<f32>, unit: &str| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.0} {unit}"));
    let total = Bytes::new(g.memory_bytes).to_string();
    let memory = match reading.and_then(|r| r.memory_used_bytes) {
        Some(used) => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            format!("{:.1}/{:.1} GiB", gib(used), gib(g.memory_bytes))
        }
        None => total,
    };
    vec![
        g.worker.clone().unwrap_or_else(|| "-".to_owned()),
        cut(&clean(&g.id), 12),
        cut(&clean(&g.name), 14),
        match reading {
            Some(r) if r.asleep => "asleep".to_owned(),
            _ => say(reading.and_then(|r| r.utilisation_percent), "%"),
        },
        memory,
        say(reading.and_then(|r| r.temperature_c), "°C"),
        say(reading.and_then(|r| r.power_w), "W"),
    ]
}

/// Details that do not fit into a row: whole ids, places, drivers, processes.
fn details(s: &Snapshot, style: Style) -> String {
    let mut text = String::new();
    for g in &s.gpus {
        let mut parts = vec![clean(&g.id), clean(&g.name)];
        parts.extend(g.pci.as_ref().map(|pci| format!("PCI {pci}")));
        parts.extend(g.numa_node.map(|n| format!("NUMA node {n}")));
        parts.extend(g.partition.as_ref().map(|p| format!("partition {}", clean(p))));
        parts.extend(g.taken.map(|share| match share {
            0.0 => "free".to_owned(),
            1.0 => "in use".to_owned(),
            _ => format!("{:.0} % of it in use", share * 100.0),
        }));
        if let Some(r) = &g.reading {
            if r.asleep {
                parts.push("asleep: not read, since that would wake it".to_owned());
            }
            parts.extend(r.clock_mhz.map(|c| format!("{c} MHz")));
            parts.extend(r.power_limit_w.map(|w| format!("at most {w:.0} W")));
            if !r.throttled.is_empty() {
                let why: Vec<String> = r.throttled.iter().map(|t| t.as_str().to_owned()).collect();
                parts.push(format!("slowed down: {}", why.join(", ")));
            }
            parts.extend(r.ecc_uncorrected.filter(|&n| n > 0).map(|n| format!("{n} uncorrected memory errors")));
        }
        text.push('\n');
        for line in wrap(&parts.join(" | "), style.width) {
            text.push_str(&format!("{line}\n"));
        }
        for p in &g.processes {
            let whose = p.service.clone().unwrap_or_else(|| "outside of the lab".to_owned());
            let memory = p.memory_bytes.map(|b| format!(", {}", Bytes::new(b))).unwrap_or_default();
            text.push_str(&format!("  process {} ({whose}{memory})\n", p.pid));
        }
    }
    for source in &s.gpu_sources {
        let version = |word: &str, v: &Option<String>| v.as_ref().map(|v| format!(", {word} {}", clean(v)));
        text.push_str(&format!(
            "\nreadings from {}{}{}\n",
            source.name,
            version("driver", &source.driver).unwrap_or_default(),
            version("library", &source.library).unwrap_or_default()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{GpuTrouble, Reading};

    /// Lines that a colleague sends: a fault with its GPU, one without, a switch, ordinary ones, and junk.
    const SENT: &str = "[12345.678901] NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', GPU has fallen off the bus.\n\
                        [drm:amdgpu_job_timedout [amdgpu]] *ERROR* GPU Recovery Failed: -62\n\
                        nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up\n\
                        usb 1-1: new high-speed USB device number 2 using xhci_hcd and so on and so on and so on\n\n\
                        NVRM: Xid (PCI:0000:05:00): 31, \u{1b}[31m\
                        012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

    #[test]
    fn pasted_lines_are_explained_within_eighty_columns_and_unknown_ones_say_so() {
        let explained = kmsg::explain(SENT);
        let style = Style { color: false, width: 80 };
        let text: String = explained.iter().map(|e| render_explained(e, style)).collect();
        for line in text.lines() {
            assert!(line.chars().count() <= 80 && !line.contains('\u{1b}'), "{line}");
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "xid-79: labd keeps it from work",
            "gpu 0000:05:00.0 means the GPU has fallen off the PCI bus",
            "then `labd gpu release ID`; if it happens again, pull the GPU at 0000:05:00.0",
            "amdgpu-reset-failed: a notice of the node: the line names no GPU",
            "nvswitch-fatal: a notice of the node, about PCI device 0000:a9:00.0",
            "unknown: usb 1-1: new high-speed",
            "unknown: an empty line",
        ] {
            assert!(words.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("<id>") && !text.contains("<pci>"), "{text}");
    }

    #[test]
    fn a_ports_line_is_of_the_gpus_behind_it_and_a_disks_of_none() {
        let style = Style { color: false, width: 200 };
        let text = |line: &str| render_explained(&kmsg::explain(line)[0], style);
        let port = text("pcieport 0000:00:01.1: pciehp: Slot(0): Link Down");
        assert!(
            port.starts_with("pcie-down: labd keeps it from work, each of the GPUs behind the port 0000:00:01.1\n"),
            "{port}"
        );
        assert!(port.contains("pull the GPU and check") && port.contains("gpu    -"), "{port}");
        let disk =
            text("nvme 0000:02:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer");
        assert!(disk.starts_with("pcie-nonfatal: nothing: PCI device 0000:02:00.0 is no GPU\n"), "{disk}");
        for text in [port, disk] {
            assert!(!text.contains("node") && !text.contains("GPU at 0000"), "{text}");
        }
    }

    #[test]
    fn a_line_about_an_instance_names_it() {
        let style = Style { color: false, width: 200 };
        let line = "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=4321, name=python3, Contained: SM (0x1). RST: No";
        for (line, told, number) in [
            (line.to_owned(), "  gpu    0000:3b:00.0, MIG instance 5\n", serde_json::json!(5)),
            (line.replace(" GPU-I:05", ""), "  gpu    0000:3b:00.0\n", serde_json::Value::Null),
            // Whatever a process calls itself.
            (
                line.replace(" GPU-I:05", "").replace("python3", "GPU-I:09"),
                "  gpu    0000:3b:00.0\n",
                serde_json::Value::Null,
            ),
        ] {
            let [explained] = &kmsg::explain(&line)[..] else { panic!("{line}") };
            let text = render_explained(explained, style);
            assert!(text.contains(told), "{text}");
            assert_eq!(explained_json(explained).get("instance"), Some(&number), "{line}");
        }
    }

    #[test]
    fn pasted_lines_are_objects_with_a_null_code_where_they_are_unknown() {
        let values: Vec<_> = kmsg::explain(SENT).iter().map(explained_json).collect();
        assert_eq!(values.len(), SENT.lines().count());
        let lost = &values[0];
        assert_eq!(
            (&lost["code"], &lost["gpu"], &lost["action"]),
            (&"xid-79".into(), &"0000:05:00.0".into(), &"quarantine".into())
        );
        assert!(values[1]["gpu"].is_null() && values[1]["code"] == "amdgpu-reset-failed");
        assert!(values[2]["gpu"].is_null() && values[2]["device"] == "0000:a9:00.0");
        for unknown in &values[3..5] {
            for field in ["code", "meaning", "gpu", "instance", "action", "remedy"] {
                assert!(unknown.get(field).is_some_and(serde_json::Value::is_null), "{field}");
            }
        }
    }

    #[test]
    fn a_quarantined_gpu_says_what_to_do_and_fits_eighty_columns() {
        let at = Timestamp::from_millis(1_000_000);
        let gpu = GpuView {
            id: "GPU-5f2c9a7e-1111-2222-3333-444455556666".into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            vendor: "nvidia".into(),
            simulated: false,
            memory_bytes: 80 << 30,
            worker: Some("ray-worker-10".into()),
            state: GpuState::Quarantined,
            trouble: Some(GpuTrouble {
                code: "xid-79".into(),
                meaning: "the GPU has fallen off the bus".into(),
                remedy: "reboot the node; when it comes back, reseat the card in slot 0000:41:00.0 and its power"
                    .into(),
                since: at,
            }),
            pci: Some("0000:41:00.0".into()),
            numa_node: Some(1),
            parent: None,
            partition: None,
            taken: None,
            reading: Some(Reading {
                utilisation_percent: Some(97.4),
                memory_used_bytes: Some(61 << 30),
                temperature_c: Some(54.0),
                power_w: Some(612.3),
                ..Reading::default()
            }),
            processes: Vec::new(),
        };
        let healthy = GpuView { state: GpuState::Ok, trouble: None, reading: None, ..gpu.clone() };
        let sleeping = GpuView { reading: Some(Reading { asleep: true, ..Reading::default() }), ..healthy.clone() };
        assert_eq!(row(&sleeping)[3..], ["asleep", "80.0 GiB", "-", "-"].map(str::to_owned));
        let now = at.plus(std::time::Duration::from_secs(200));
        let text = render(&[gpu, healthy], now, Style { color: false, width: 80 });
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in ["quarantined: the GPU", "xid-79", "reboot the node", "61.0/80.0 GiB", "97 %", "612 W", "54 °C"] {
            assert!(words.contains(part), "{part}\n{text}");
        }
    }
}
