//! Status: the snapshot as text. Pure: the same snapshot, time and style give the same lines.

use super::text::Style;
pub(super) use crate::text::clean;
use crate::{
    config::Bytes,
    front_door::installs::in_words,
    snapshot::{
        EngineView, InstallPhase, InstallView, JobStatus, JobView, RunStatus, RunView, ServiceState, ServiceView,
        Severity, Snapshot,
    },
    time::{Timestamp, human},
};

/// Number of jobs shown; `--json` has all of them.
const JOBS: usize = 8;
/// Width of an id beside the rest of its line: Ray's own have 26 characters.
const ID: usize = 28;
/// Number of runs shown; `--json` has all of them.
const RUNS: usize = 8;
/// Number of lines a service's reason may take; `--json` and `labd events` have all of it.
const REASON_LINES: usize = 3;

/// Status as text.
pub(super) fn render(s: &Snapshot, now: Timestamp, style: Style) -> String {
    let mut text = head(s, style);
    for notice in &s.notices {
        let (word, color) = match notice.severity {
            Severity::Error => ("error", Paint::Red),
            Severity::Warning => ("warning", Paint::Yellow),
            Severity::Info => ("note", Paint::Dim),
        };
        let lines = wrap(&clean(&notice.text), style.width - 9);
        for (i, line) in lines.iter().enumerate() {
            let lead = if i == 0 { format!("{word}:") } else { String::new() };
            text.push_str(&paint(&format!("{lead:<9}"), color, style));
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push('\n');
    text.push_str(&services(&s.services, now, style));
    if !s.gpus.is_empty() {
        text.push('\n');
        text.push_str(&super::gpu::render(&s.gpus, now, style));
    }
    text.push_str(&jobs(&s.jobs, now, style));
    text.push_str(&installs(&s.installs, s.package_store_bytes, now, style));
    text.push_str(&runs(&s.runs, now, style));
    for d in &s.demands {
        let requests = if d.count == 1 { "1 request".to_owned() } else { format!("{} requests", d.count) };
        let asks = cut(&clean(&d.asks_for), 40);
        let line = if !d.lab_has.is_empty() {
            format!("{requests} for {asks} at once can never be met; the lab has {}", clean(&d.lab_has))
        } else if d.infeasible {
            format!("{requests} for {asks} can never be met; the largest node has {}", clean(&d.node_has))
        } else {
            format!("{requests} for {asks} waiting; all such resources are in use")
        };
        text.push('\n');
        for (i, line) in wrap(&line, style.width - 9).iter().enumerate() {
            let lead = if i == 0 { "pending:" } else { "" };
            text.push_str(&paint(&format!("{lead:<9}"), Paint::Yellow, style));
            text.push_str(line);
            text.push('\n');
        }
    }
    if !s.links.is_empty() {
        text.push('\n');
        for link in &s.links {
            text.push_str(&format!("{:<15}{}\n", link.name, link.url));
        }
    }
    text
}

fn head(s: &Snapshot, style: Style) -> String {
    let n = &s.node;
    let engine = match &s.engine {
        EngineView::Connecting => "engine: connecting".to_owned(),
        EngineView::Reachable { version, .. } => format!("engine {version}"),
        EngineView::Unreachable { .. } => "engine: not reachable".to_owned(),
    };
    let used = n.memory_bytes.saturating_sub(n.memory_available_bytes);
    let mut second = format!(
        "{} CPUs, load {:.1} | memory {} of {}",
        n.cpus,
        n.load_1m,
        Bytes::new(used),
        Bytes::new(n.memory_bytes)
    );
    if let Some(disk) = n.disks.iter().min_by_key(|d| d.available_bytes) {
        second.push_str(&format!(" | {} free on {}", Bytes::new(disk.available_bytes), clean(&disk.mount)));
    }
    let first = format!(
        "{} on {} ({}) | labd {} | {engine}",
        s.labd.lab,
        clean(&n.hostname),
        clean(&n.address),
        s.labd.version
    );
    format!("{}\n{}\n", paint(&cut(&first, style.width), Paint::Bold, style), cut(&second, style.width))
}

/// Table of the services.
pub(super) fn services(services: &[ServiceView], now: Timestamp, style: Style) -> String {
    let name_width = services.iter().map(|s| s.name.len()).max().unwrap_or(7).max(7);
    let fixed = name_width + 2 + 11 + 2 + 9 + 2 + 8 + 2;
    let room = style.width.saturating_sub(fixed).max(20);
    let mut text =
        format!("{:<name_width$}  {:<11}  {:<9}  {:>8}  LAST REASON\n", "SERVICE", "STATE", "SINCE", "RESTARTS");
    for s in services {
        let state = paint(&format!("{:<11}", s.state.as_str()), state_paint(s), style);
        let mut reason =
            s.progress.clone().filter(|_| s.state == ServiceState::Preparing).unwrap_or_else(|| s.last_reason.clone());
        if let Some(at) = s.next_try {
            reason = format!("again in {}: {reason}", human(at.since(now)));
        }
        let mut lines = wrap(&clean(&reason), room);
        if lines.len() > REASON_LINES {
            let rest = lines.split_off(REASON_LINES - 1).join(" ");
            lines.push(rest);
        }
        let lines: Vec<String> = lines.iter().map(|l| cut(l, room)).collect();
        let first = lines.first().map_or("", String::as_str);
        text.push_str(&format!(
            "{:<name_width$}  {state}  {:<9}  {:>8}  {first}\n",
            s.name,
            age(now, s.since),
            s.restarts,
        ));
        for line in lines.iter().skip(1) {
            text.push_str(&format!("{:<fixed$}{line}\n", ""));
        }
    }
    text
}

fn jobs(jobs: &[JobView], now: Timestamp, style: Style) -> String {
    if jobs.is_empty() {
        return String::new();
    }
    // An id is never cut: it is copied into commands. One that is longer than Ray's has lines of its own.
    let lengths = jobs.iter().take(JOBS).map(|j| clean(&j.submission_id).chars().count());
    let id_width = lengths.filter(|n| *n <= ID).max().unwrap_or(3).max(3);
    let fixed = id_width + 2 + 9 + 2 + 12 + 2 + 9 + 2;
    let room = style.width.saturating_sub(fixed).max(14);
    let mut text = format!("\n{:<id_width$}  {:<9}  {:<12}  {:<9}  ENTRYPOINT\n", "JOB", "STATUS", "RUN", "SINCE");
    for job in jobs.iter().take(JOBS) {
        let status = paint(&format!("{:<9}", job.status.as_str()), job_paint(job), style);
        let id = id_cell(&job.submission_id, id_width, style, &mut text);
        let since = job.ended_at.or(job.submitted_at).map_or_else(|| "-".to_owned(), |at| age(now, at));
        text.push_str(&format!(
            "{id:<id_width$}  {status}  {:<12}  {since:<9}  {}\n",
            cut(&clean(job.run.as_deref().unwrap_or("-")), 12),
            cut(&clean(&job.entrypoint), room)
        ));
        let on = (!job.workers.is_empty()).then(|| format!("on {}", job.workers.join(", ")));
        // The ledger's word; Ray's own would be pages.
        let message = Some(&job.message).filter(|message| job.attempt.is_some() && !message.is_empty());
        let note = job.note.as_ref().filter(|_| !job.status.is_final());
        for what in [on.as_ref(), message, job.waits_for.as_ref(), note].into_iter().flatten() {
            for line in wrap(&clean(what), style.width - 4) {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    if jobs.len() > JOBS {
        text.push_str(&format!("... and {} more: labd jobs\n", jobs.len() - JOBS));
    }
    text
}

/// Lines about packages that nodes install for jobs.
fn installs(installs: &[InstallView], store_bytes: Option<u64>, now: Timestamp, style: Style) -> String {
    let mut text = String::new();
    for (n, install) in installs.iter().enumerate() {
        let color = if install.phase == InstallPhase::Failed { Paint::Red } else { Paint::Cyan };
        let mut line = clean(&in_words(install, now));
        if let Some(bytes) = store_bytes.filter(|_| n + 1 == installs.len()) {
            line.push_str(&format!("; packages kept: {}", Bytes::new(bytes)));
        }
        text.push_str(if n == 0 { "\n" } else { "" });
        for (i, line) in wrap(&line, style.width - 9).iter().enumerate() {
            let lead = if i == 0 { "install:" } else { "" };
            text.push_str(&format!("{}{line}\n", paint(&format!("{lead:<9}"), color, style)));
        }
    }
    text
}

/// Colour of a job's status.
pub(super) const fn job_paint(job: &JobView) -> Paint {
    match job.status {
        JobStatus::Succeeded => Paint::Green,
        // What labd runs again is no bad news.
        JobStatus::Failed if job.resubmitted_as.is_some() => Paint::Dim,
        JobStatus::Failed => Paint::Red,
        JobStatus::Running | JobStatus::Pending => Paint::Cyan,
        JobStatus::Stopped => Paint::Dim,
    }
}

fn runs(runs: &[RunView], now: Timestamp, style: Style) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let name_width = runs.iter().take(RUNS).map(|r| r.name.chars().count()).max().unwrap_or(3).clamp(3, 14);
    // The end of a checkpoint's name is where it differs from others.
    let room = style.width.saturating_sub(name_width + 2 + 12 + 2 + 2 + 9 + 2 + 9 + 2 + 9).clamp(10, 37);
    let mut text = format!(
        "\n{:<name_width$}  {:<12}  {:<room$}  {:<9}  {:<9}  {:<9}",
        "RUN", "STATUS", "CHECKPOINT", "AGE", "SIZE", "USED"
    );
    text.truncate(text.trim_end().len());
    text.push('\n');
    for run in runs.iter().take(RUNS) {
        let color = match run.status {
            Some(RunStatus::Finished) => Paint::Green,
            Some(RunStatus::Errored) => Paint::Red,
            Some(status) if status.is_active() => Paint::Cyan,
            _ => Paint::Dim,
        };
        let status = paint(&format!("{:<12}", run.status.map_or("-", RunStatus::as_str)), color, style);
        let used = if run.looked_at.is_some() { Bytes::new(run.used_bytes).to_string() } else { "-".to_owned() };
        let checkpoint = run.checkpoint.as_ref();
        let name = checkpoint.map_or_else(|| "-".to_owned(), |c| cut_front(&clean(&c.name), room));
        let line = format!(
            "{:<name_width$}  {status}  {name:<room$}  {:<9}  {:<9}  {used}",
            cut(&clean(&run.name), name_width),
            checkpoint.map_or_else(|| "-".to_owned(), |c| age(now, c.at)),
            checkpoint.map_or_else(|| "-".to_owned(), |c| Bytes::new(c.bytes).to_string()),
        );
        text.push_str(&line);
        text.push('\n');
        for line in run.note.iter().flat_map(|note| wrap(&clean(note), style.width - 2)) {
            text.push_str(&format!("  {}\n", paint(&line, Paint::Yellow, style)));
        }
    }
    if runs.len() > RUNS {
        text.push_str(&format!("... and {} more: labd status --json\n", runs.len() - RUNS));
    }
    text
}

/// Table whose columns are as wide as what is in them.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0).max(head[i].len());
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let line: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", line.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

const fn state_paint(service: &ServiceView) -> Paint {
    match service.state {
        ServiceState::Ready => Paint::Green,
        ServiceState::Preparing | ServiceState::Waiting | ServiceState::Starting | ServiceState::Stopping => {
            Paint::Cyan
        }
        ServiceState::Unhealthy | ServiceState::Backoff => Paint::Yellow,
        ServiceState::CrashLoop | ServiceState::Blocked => Paint::Red,
        ServiceState::Unavailable if !service.optional => Paint::Red,
        ServiceState::Off | ServiceState::Held | ServiceState::Unavailable => Paint::Dim,
    }
}

pub(super) fn paint(text: &str, paint: Paint, style: Style) -> String {
    if !style.color {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Bold => 1,
        Paint::Dim => 2,
        Paint::Red => 31,
        Paint::Green => 32,
        Paint::Yellow => 33,
        Paint::Cyan => 36,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Age such as `3 min`, in one unit: the table has nine columns for it.
pub(super) fn age(now: Timestamp, at: Timestamp) -> String {
    let s = now.since(at).as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min", s / 60),
        3_600..86_400 => format!("{} h {} m", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// Id for a column of `width` characters. One that is longer has lines of its own, written here, and leaves it empty.
pub(super) fn id_cell(id: &str, width: usize, style: Style, text: &mut String) -> String {
    let id = clean(id);
    if id.chars().count() <= width {
        return id;
    }
    for line in hard_wrap(&id, style.width) {
        text.push_str(&line);
        text.push('\n');
    }
    String::new()
}

/// Lines of at most `width` characters, cut between any two of them: what must stay whole has no better place.
pub(super) fn hard_wrap(text: &str, width: usize) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    let lines: Vec<String> = all.chunks(width.max(1)).map(|line| line.iter().collect()).collect();
    if lines.is_empty() { vec![String::new()] } else { lines }
}

/// First characters of a text, at most `width`.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Last characters of a text, at most `width`.
fn cut_front(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    ['…'].into_iter().chain(text.chars().skip(length - width.saturating_sub(1))).collect()
}

pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |l| l.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{CheckpointView, DaemonView, DemandView, GpuState, GpuView, Link, NodeView, Notice, SCHEMA};

    fn snapshot() -> Snapshot {
        let at = Timestamp::from_millis(1_000_000);
        let service = |name: &str, state, reason: &str| ServiceView {
            name: name.into(),
            state,
            since: at,
            restarts: 3,
            last_reason: reason.into(),
            progress: None,
            next_try: (state == ServiceState::Backoff).then(|| at.plus(std::time::Duration::from_secs(12))),
            container: None,
            image: String::new(),
            address: String::new(),
            optional: false,
        };
        Snapshot {
            schema: SCHEMA,
            taken_at: at,
            labd: DaemonView { version: "0.1.0".into(), lab: "labd".into(), pid: 1, started_at: at, config: None },
            node: NodeView {
                hostname: "gpu1".into(),
                address: "192.0.2.7".into(),
                cpus: 64,
                numa_nodes: 2,
                memory_bytes: 256 << 30,
                memory_available_bytes: 200 << 30,
                load_1m: 3.25,
                engine_data: "/var/lib/docker".into(),
                disks: vec![],
            },
            engine: EngineView::Reachable { version: "28.2.2".into(), api: "1.50".into() },
            services: vec![
                service("ray-head", ServiceState::Ready, "ready 3.9 s after its start"),
                service("ray-worker-10", ServiceState::Backoff, &"container exited 137 (SIGKILL) ".repeat(9)),
            ],
            gpus: vec![GpuView {
                id: "SIM-0".into(),
                name: "Simulated GPU".into(),
                vendor: "simulated".into(),
                simulated: true,
                memory_bytes: 16 << 30,
                worker: Some("ray-worker-0".into()),
                state: GpuState::Ok,
                trouble: None,
                pci: None,
                numa_node: None,
                parent: None,
                partition: None,
                taken: None,
                reading: None,
                processes: Vec::new(),
            }],
            gpu_sources: Vec::new(),
            jobs: vec![JobView {
                submission_id: "raysubmit_AbCdEfGhIjKlMnOpQr".into(),
                status: JobStatus::Running,
                run: Some("food11".into()),
                entrypoint: "python \x1b[2Jtrain.py --epochs 100 --and many --more arguments".into(),
                submitted_at: Some(at),
                ended_at: None,
                message: String::new(),
                outcome: None,
                attempt: Some(1),
                resubmission_of: None,
                resubmitted_as: None,
                waits_for: Some("waits for 2 GPU, 8 CPU, which no node has: the largest has 1 GPU, 8 CPU".into()),
                workers: vec!["ray-worker-0".into()],
                note: None,
                user: None,
            }],
            runs: vec![
                RunView {
                    name: "food11".into(),
                    submission_id: None,
                    status: Some(RunStatus::Restarting),
                    started_at: Some(at),
                    attempts: 2,
                    checkpoint: Some(CheckpointView {
                        name: "checkpoint_2026-11-24_03-41-12.123456".into(),
                        at,
                        bytes: 350 << 20,
                    }),
                    checkpoints: 2,
                    used_bytes: 700 << 20,
                    looked_at: Some(at),
                    note: Some("has saved no checkpoint in 3 min: after a failure it would begin again ".repeat(2)),
                },
                RunView {
                    name: "an/old/run\x1b[2J/with a very long name".into(),
                    submission_id: None,
                    status: None,
                    started_at: None,
                    attempts: 0,
                    checkpoint: None,
                    checkpoints: 0,
                    used_bytes: 0,
                    looked_at: None,
                    note: None,
                },
            ],
            incidents: vec![],
            resubmissions: 0,
            installs: [InstallPhase::Installing, InstallPhase::Failed]
                .map(|phase| InstallView {
                    node: "ray-worker-0".into(),
                    job: "food11".into(),
                    phase,
                    since: at,
                    ended_at: (phase == InstallPhase::Failed).then_some(at),
                    bytes: 386 << 20,
                    packages: 37,
                    reason: (phase == InstallPhase::Failed).then(|| "no such package".into()),
                })
                .into(),
            package_store_bytes: Some(6 << 30),
            demands: vec![DemandView {
                asks_for: "4 GPU, 8 CPU".into(),
                count: 1,
                infeasible: true,
                node_has: "1 GPU, 8 CPU".into(),
                lab_has: String::new(),
            }],
            links: vec![Link { name: "status page".into(), url: "http://localhost:8600/".into() }],
            tls: None,
            notices: vec![Notice { severity: Severity::Warning, text: "a long warning ".repeat(12) }],
        }
    }

    #[test]
    fn it_fits_eighty_columns_and_says_what_matters() {
        let now = Timestamp::from_millis(1_000_000 + 125_000);
        let text = render(&snapshot(), now, Style { color: false, width: 80 });
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for part in [
            "labd on gpu1 (192.0.2.7)",
            "ray-head       ready        2 min             3  ready 3.9 s",
            "backoff",
            "SIM-0",
            "raysubmit_AbCdEfGhIjKlMnOpQr  RUNNING",
            "    on ray-worker-0",
            "    waits for 2 GPU, 8 CPU",
            "food11",
            "food11          RESTARTING    …_03-41-12.123456  2 min      350 MiB    700 MiB",
            "after a failure it would begin again",
            "install: food11: installing 37 packages on ray-worker-0 for 2 min 5 s, 386 MiB",
            "37 packages could not be installed on ray-worker-0, after 0 ms:",
            "no such package; packages kept: 6.0 GiB",
            "can never be met; the largest",
            "http://localhost:8600/",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains('\x1b'), "no colours, and none from a job");
        assert!(render(&snapshot(), now, Style { color: true, width: 80 }).contains("\x1b[32mready"));
    }

    #[test]
    fn an_id_of_any_length_is_shown_whole() {
        let mut snapshot = snapshot();
        snapshot.jobs[0].submission_id = format!("{}end", "0123456789".repeat(12));
        let text = render(&snapshot, Timestamp::from_millis(1_000_000), Style { color: false, width: 80 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let whole = format!("{}\n{}end\n", "0123456789".repeat(8), "0123456789".repeat(4));
        assert!(text.contains(&whole), "{text}");
    }
}
