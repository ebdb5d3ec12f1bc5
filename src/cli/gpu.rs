//! `labd gpu`, and the GPUs' table of `labd status`.

use super::{
    args,
    client::Client,
    exit::{Exit, Failure},
    status::{Paint, clean, cut, paint, table, wrap},
    text::{Out, Style},
};
use crate::{
    config::Bytes,
    gpus::{faults, health},
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
        say(reading.and_then(|r| r.utilisation_percent), "%"),
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
        if let Some(r) = &g.reading {
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
