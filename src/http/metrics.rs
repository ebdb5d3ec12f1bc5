//! `GET /metrics`: the snapshot for Prometheus, in its text format.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use axum::{
    extract::State as From,
    http::header,
    response::{IntoResponse, Response},
};

use super::State;
use crate::{
    incident::Cause,
    journal::{JournalHealth, RECOVERY_BOUNDS, Totals},
    snapshot::{EngineView, GpuState, JobStatus, Reading, ServiceState, Snapshot},
};

/// Job states of Ray, each a series of its own even at 0.
const JOB_STATES: [JobStatus; 5] =
    [JobStatus::Pending, JobStatus::Running, JobStatus::Stopped, JobStatus::Succeeded, JobStatus::Failed];

/// Metric of a GPU: name, help, and where a reading has it.
type GpuReading = (&'static str, &'static str, fn(&Reading) -> Option<f64>);

/// Metrics of a GPU; a value that its source does not report has no series.
const GPU_READINGS: [GpuReading; 9] = [
    ("labd_gpu_utilisation_percent", "How much of the last second something ran on a GPU.", |r| {
        r.utilisation_percent.map(f64::from)
    }),
    ("labd_gpu_memory_used_bytes", "Memory in use on a GPU.", |r| r.memory_used_bytes.map(|b| b as f64)),
    ("labd_gpu_temperature_celsius", "Temperature of a GPU.", |r| r.temperature_c.map(f64::from)),
    ("labd_gpu_power_watts", "Power a GPU draws.", |r| r.power_w.map(f64::from)),
    ("labd_gpu_power_limit_watts", "Power a GPU may draw.", |r| r.power_limit_w.map(f64::from)),
    ("labd_gpu_clock_mhz", "Clock of a GPU's compute units.", |r| r.clock_mhz.map(f64::from)),
    ("labd_gpu_ecc_corrected", "Corrected memory errors since the driver was loaded.", |r| {
        r.ecc_corrected.map(|n| n as f64)
    }),
    ("labd_gpu_ecc_uncorrected", "Uncorrected memory errors since the driver was loaded.", |r| {
        r.ecc_uncorrected.map(|n| n as f64)
    }),
    ("labd_gpu_remapped_rows", "Rows of memory replaced by spare ones.", |r| r.remapped_rows.map(f64::from)),
];

/// The metrics of this moment.
pub(super) async fn get(From(state): From<State>) -> Response {
    let recording = *state.journal.health().borrow() == JournalHealth::Recording;
    let snapshot = state.snapshot.borrow().clone();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, render(&snapshot, recording, &state.journal.incident_totals())).into_response()
}

fn render(s: &Snapshot, recording: bool, incidents: &BTreeMap<(String, Cause), Totals>) -> String {
    let mut out = Text::default();
    out.family("labd_build_info", "gauge", "Version of labd; always 1.");
    out.sample("labd_build_info", &[("version", &s.labd.version)], 1);
    out.family("labd_start_time_seconds", "gauge", "When labd started, in seconds since the Unix epoch.");
    out.sample("labd_start_time_seconds", &[], s.labd.started_at.as_millis() as f64 / 1e3);
    out.family("labd_journal_recording", "gauge", "1 while history reaches the disk.");
    out.sample("labd_journal_recording", &[], u8::from(recording));
    out.family("labd_engine_reachable", "gauge", "1 while the container engine answers.");
    out.sample("labd_engine_reachable", &[], u8::from(matches!(s.engine, EngineView::Reachable { .. })));

    out.family("labd_service_state", "gauge", "1 for the state a service is in, 0 for every other.");
    for service in &s.services {
        for state in ServiceState::ALL {
            let labels = [("service", service.name.as_str()), ("state", state.as_str())];
            out.sample("labd_service_state", &labels, u8::from(service.state == state));
        }
    }
    out.family("labd_service_restarts_total", "counter", "How often labd started a service again after a failure.");
    for service in &s.services {
        out.sample("labd_service_restarts_total", &[("service", &service.name)], service.restarts);
    }

    let help = "How often a service died or hung, by cause; `asked`: it was ended by hand or for new settings.";
    out.family("labd_incidents_total", "counter", help);
    for service in &s.services {
        for cause in Cause::ALL {
            let total = incidents.get(&(service.name.clone(), cause)).copied().unwrap_or_default();
            let labels = [("service", service.name.as_str()), ("cause", cause.as_str())];
            out.sample("labd_incidents_total", &labels, total.incidents);
        }
    }
    out.family("labd_recovery_seconds", "histogram", "From a service's death to its being ready again.");
    for service in &s.services {
        let mut total = Totals::default();
        for ((name, cause), of) in incidents {
            if *name == service.name && *cause != Cause::Asked && cause.ends() {
                total.add(of);
            }
        }
        let labels = [("service", service.name.as_str())];
        let bounds = RECOVERY_BOUNDS.iter().map(u64::to_string).zip(total.within);
        for (bound, count) in bounds.chain([("+Inf".to_owned(), total.recovered)]) {
            out.sample("labd_recovery_seconds_bucket", &[labels[0], ("le", &bound)], count);
        }
        out.sample("labd_recovery_seconds_sum", &labels, total.recovery.as_secs_f64());
        out.sample("labd_recovery_seconds_count", &labels, total.recovered);
    }

    out.family("labd_gpu_info", "gauge", "One series per GPU; always 1. `simulated` is true without such hardware.");
    for gpu in &s.gpus {
        let labels = [
            ("id", gpu.id.as_str()),
            ("name", &gpu.name),
            ("vendor", &gpu.vendor),
            ("simulated", if gpu.simulated { "true" } else { "false" }),
            ("worker", gpu.worker.as_deref().unwrap_or("")),
        ];
        out.sample("labd_gpu_info", &labels, 1);
    }
    out.family("labd_gpu_memory_bytes", "gauge", "Memory of a GPU.");
    for gpu in &s.gpus {
        out.sample("labd_gpu_memory_bytes", &[("id", &gpu.id)], gpu.memory_bytes);
    }

    out.family("labd_gpu_state", "gauge", "1 for the state a GPU is in, 0 for the others.");
    for gpu in &s.gpus {
        for state in GpuState::ALL {
            let labels = [("id", gpu.id.as_str()), ("state", state.as_str())];
            out.sample("labd_gpu_state", &labels, u8::from(gpu.state == state));
        }
    }
    for (name, help, value) in GPU_READINGS {
        out.family(name, "gauge", help);
        for gpu in &s.gpus {
            if let Some(value) = gpu.reading.as_ref().and_then(value) {
                out.sample(name, &[("id", &gpu.id)], value);
            }
        }
    }

    let n = &s.node;
    out.single("labd_node_cpus", "Logical CPUs.", n.cpus);
    out.single("labd_node_numa_nodes", "NUMA nodes.", n.numa_nodes);
    out.single("labd_node_memory_bytes", "Physical memory.", n.memory_bytes);
    out.single("labd_node_memory_available_bytes", "Memory that can still be taken.", n.memory_available_bytes);
    out.single("labd_node_load1", "One-minute load average.", n.load_1m);
    out.family("labd_node_disk_bytes", "gauge", "Size of a file system that matters to the lab.");
    for disk in &n.disks {
        out.sample("labd_node_disk_bytes", &[("mount", &disk.mount)], disk.total_bytes);
    }
    out.family("labd_node_disk_available_bytes", "gauge", "Free for use on such a file system.");
    for disk in &n.disks {
        out.sample("labd_node_disk_available_bytes", &[("mount", &disk.mount)], disk.available_bytes);
    }

    out.family("labd_jobs", "gauge", "Jobs by Ray's status, among the 50 newest.");
    for status in JOB_STATES {
        let count = s.jobs.iter().filter(|j| j.status == status).count();
        out.sample("labd_jobs", &[("status", status.as_str())], count);
    }
    out.family("labd_run_checkpoint_timestamp_seconds", "gauge", "When a run's newest checkpoint was written.");
    for run in &s.runs {
        if let Some(checkpoint) = &run.checkpoint {
            let at = checkpoint.at.as_millis() as f64 / 1e3;
            out.sample("labd_run_checkpoint_timestamp_seconds", &[("run", &run.name)], at);
        }
    }
    out.family("labd_run_checkpoints", "gauge", "Checkpoints kept of a run, among the 50 newest runs.");
    for run in s.runs.iter().filter(|run| run.looked_at.is_some()) {
        out.sample("labd_run_checkpoints", &[("run", &run.name)], run.checkpoints);
    }
    out.family("labd_run_checkpoints_bytes", "gauge", "What the S3 store keeps of a run.");
    for run in s.runs.iter().filter(|run| run.looked_at.is_some()) {
        out.sample("labd_run_checkpoints_bytes", &[("run", &run.name)], run.used_bytes);
    }
    out.family("labd_jobs_resubmitted_total", "counter", "Lost jobs that labd submitted again.");
    out.sample("labd_jobs_resubmitted_total", &[], s.resubmissions);
    out.family("labd_demands_waiting", "gauge", "Requests for resources that Ray cannot meet now.");
    for infeasible in [false, true] {
        let count: u64 = s.demands.iter().filter(|d| d.infeasible == infeasible).map(|d| d.count).sum();
        out.sample("labd_demands_waiting", &[("infeasible", if infeasible { "true" } else { "false" })], count);
    }
    out.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn single(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        http::{
            public_router, scrape_router,
            testing::{Lab, ask, status_and_text},
        },
        incident::{Incident, Order},
        time::Timestamp,
    };

    #[tokio::test]
    async fn the_snapshot_is_told_in_prometheus_words() {
        let lab = Lab::new();
        let died_at = Timestamp::from_millis(1_795_492_872_123);
        lab.state.journal.keep_incident(Incident {
            service: "ray-head".into(),
            cause: Cause::Exit,
            why: "container exited 137 (SIGKILL)".into(),
            died_at,
            noticed_at: died_at,
            running_at: Some(died_at),
            ready_at: Some(died_at.plus(Duration::from_millis(4_500))),
            training: Vec::new(),
            order: Order::default(),
        });
        for router in [public_router(lab.state.clone()), scrape_router(lab.state.clone())] {
            let answer = ask(router, "GET", "/metrics").await;
            assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
            let text = status_and_text(answer).await.1;
            for line in [
                "labd_service_state{service=\"ray-head\",state=\"ready\"} 1",
                "labd_service_state{service=\"ray-head\",state=\"backoff\"} 0",
                "labd_service_restarts_total{service=\"ray-head\"} 3",
                "labd_gpu_info{id=\"SIM-0\",name=\"a \\\"fine\\\" GPU\",vendor=\"simulated\",simulated=\"true\",\
                 worker=\"ray-worker-0\"} 1",
                "labd_incidents_total{service=\"ray-head\",cause=\"exit\"} 1",
                "labd_incidents_total{service=\"ray-head\",cause=\"hang\"} 0",
                "labd_recovery_seconds_bucket{service=\"ray-head\",le=\"3\"} 0",
                "labd_recovery_seconds_bucket{service=\"ray-head\",le=\"5\"} 1",
                "labd_recovery_seconds_bucket{service=\"ray-head\",le=\"+Inf\"} 1",
                "labd_recovery_seconds_sum{service=\"ray-head\"} 4.5",
                "labd_recovery_seconds_count{service=\"ray-head\"} 1",
                "labd_jobs{status=\"RUNNING\"} 1",
                "labd_jobs{status=\"FAILED\"} 0",
                "labd_run_checkpoint_timestamp_seconds{run=\"food11\"} 1795492872.123",
                "labd_run_checkpoints_bytes{run=\"food11\"} 734003200",
                "labd_journal_recording 1",
                "labd_node_cpus 8",
            ] {
                assert!(text.lines().any(|l| l == line), "missing: {line}\n{text}");
            }
        }
    }

    #[test]
    fn what_dashboards_ask_for_stays_as_it_was_released() {
        let snapshot = serde_json::from_str(include_str!("../../tests/data/golden/snapshot.json")).expect("a snapshot");
        let mut totals = Totals { incidents: 2, ..Totals::default() };
        totals.add_recovery(Duration::from_millis(4_500));
        let incidents = Cause::ALL.map(|cause| (("minio".to_owned(), cause), totals)).into();
        let text = render(&snapshot, true, &incidents);
        // What it says to people may be said better; names, labels and values are what machines read.
        let said: Vec<&str> = text.lines().filter(|l| !l.starts_with("# HELP")).collect();
        let golden: Vec<&str> = include_str!("../../tests/data/golden/metrics.txt").lines().collect();
        for (now, released) in said.iter().zip(&golden) {
            assert_eq!(now, released);
        }
        assert_eq!(said.len(), golden.len());
    }

    #[tokio::test]
    async fn every_line_is_well_formed_and_every_family_announced_once() {
        let lab = Lab::new();
        let text = render(&lab.snapshot.borrow(), false, &BTreeMap::new());
        let mut announced = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(announced.insert(rest.split(' ').next().expect("a name")), "twice: {line}");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                let family =
                    ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
                assert!(announced.contains(family), "not announced: {line}");
                assert!(line.rsplit_once(' ').expect("a value").1.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(text.contains("labd_journal_recording 0\n"));
    }
}
