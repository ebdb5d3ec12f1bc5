//! The one [`Snapshot`], made from what the loop knows. Pure.

use std::{net::Ipv4Addr, time::Duration};

use super::supervisor::Scrapes;
use crate::{
    checkpoints::{self, StoreView},
    config::Config,
    gpus::{self, Gpu, Inventory, Unit, Vendor},
    incident::Incident,
    jobs::LedgerView,
    journal::JournalHealth,
    node::disk_guard::{self, Levels},
    notify::TargetView,
    ray::RayView,
    services,
    snapshot::{
        DaemonView, EngineView, GpuProcess, GpuSource, GpuState, GpuView, InstallsView, Link, NodeView, Notice,
        RunView, SCHEMA, ServiceState, ServiceView, Severity, Snapshot,
    },
    spec::worker_name,
    time::{Timestamp, human},
    tls,
};

/// Beginning of the notice that Prometheus does not reach labd, by which `labd doctor` knows it.
pub const METRICS_MISSING: &str = "labd's own metrics are missing";
/// Time without a request of Prometheus, which asks every 10 s, after which that is a notice.
const UNSCRAPED: Duration = Duration::from_mins(2);
/// Time before the end of a given certificate from which on that is a notice: what renews it by itself has done so 30 days before.
const ENDS_SOON: Duration = Duration::from_hours(14 * 24);

/// Inputs of a snapshot.
pub(super) struct Known<'a> {
    pub(super) now: Timestamp,
    pub(super) daemon: &'a DaemonView,
    pub(super) node: NodeView,
    pub(super) engine: EngineView,
    pub(super) journal: JournalHealth,
    pub(super) ray: &'a RayView,
    pub(super) ledger: &'a LedgerView,
    pub(super) installs: &'a InstallsView,
    /// Targets that are told what happens.
    pub(super) notify: &'a [TargetView],
    /// Reason why the front door does not listen.
    pub(super) door: Option<&'a str>,
    /// Reason why the status page is not served.
    pub(super) page: Option<&'a str>,
    /// Reason why the page's second origin has no port of its own.
    pub(super) second: Option<&'a str>,
    /// Certificate of both.
    pub(super) tls: &'a tls::Served,
    /// Services whose container the engine says nothing of when it is asked.
    pub(super) unanswered: &'a [&'a str],
    pub(super) scrapes: Scrapes,
    pub(super) store: &'a StoreView,
    pub(super) disks: &'a Levels,
    pub(super) config: &'a Config,
    /// GPUs as planned with.
    pub(super) gpus: &'a [Gpu],
    /// State of the GPUs now.
    pub(super) inventory: &'a Inventory,
    pub(super) services: Vec<ServiceView>,
    /// Notices about memory that ran out lately.
    pub(super) shortages: Vec<Notice>,
    pub(super) incidents: Vec<Incident>,
    /// Service whose container has this id.
    pub(super) service_of: &'a dyn Fn(&str) -> Option<String>,
    /// Published host port of a service's container port.
    pub(super) port_of: &'a dyn Fn(&str, u16) -> Option<u16>,
}

pub(super) fn snapshot(k: Known<'_>) -> Snapshot {
    let links = services::links(k.config, &k.node.address, k.tls.view.as_ref(), k.port_of);
    // What is planned with, and what is known and cannot be planned with yet.
    let unplanned = k.inventory.units.iter().map(|u| &u.gpu).filter(|g| k.gpus.iter().all(|p| p.id != g.id));
    let gpus = k
        .gpus
        .iter()
        .chain(unplanned)
        .map(|gpu| {
            let worker = worker_name(gpu.slot);
            let service = k.services.iter().find(|s| s.name == worker && s.container.is_some());
            let unit = k.inventory.units.iter().find(|unit| unit.gpu.id == gpu.id);
            GpuView {
                id: gpu.id.clone(),
                name: gpu.name.clone(),
                vendor: gpu.vendor.as_str().to_owned(),
                simulated: gpu.vendor == Vendor::Simulated,
                memory_bytes: gpu.memory_bytes,
                taken: service.and_then(|s| taken(&s.address, k.ray)),
                worker: service.is_some().then_some(worker),
                state: unit.map(|u| u.state).unwrap_or_default(),
                trouble: unit.and_then(|u| u.trouble.clone()),
                pci: gpu.pci.clone(),
                numa_node: gpu.numa_node,
                parent: gpu.parent.clone(),
                partition: gpu.partition.clone(),
                reading: unit.and_then(|u| u.reading.clone()),
                processes: unit.map(|u| processes(u, k.service_of)).unwrap_or_default(),
            }
        })
        .collect();
    let ray_jobs = k.ray.jobs.as_deref().map_or(&[][..], |jobs| &jobs.jobs);
    let runs = checkpoints::view::runs(&k.ray.runs, ray_jobs, k.store, k.now);
    let notices = notices(&k, &links, &runs);
    Snapshot {
        schema: SCHEMA,
        taken_at: k.now,
        labd: k.daemon.clone(),
        node: k.node,
        engine: k.engine,
        services: k.services,
        gpus,
        gpu_sources: k.inventory.sources.clone(),
        jobs: k.ledger.jobs.clone(),
        runs,
        resubmissions: k.ledger.resubmissions,
        installs: k.installs.installs.clone(),
        package_store_bytes: k.installs.store_bytes,
        demands: k.ray.demands.clone(),
        incidents: k.incidents,
        links,
        tls: k.tls.view.clone(),
        notices,
    }
}

/// Share of its GPU that the node at this address has given out.
fn taken(address: &str, ray: &RayView) -> Option<f64> {
    let address: Ipv4Addr = address.parse().ok()?;
    let node = ray.nodes.iter().find(|node| node.alive && node.address == address)?;
    node.gpu_taken()
}

fn processes(unit: &Unit, service_of: &dyn Fn(&str) -> Option<String>) -> Vec<GpuProcess> {
    let of = |p: &gpus::Process| GpuProcess {
        pid: p.pid,
        service: p.container.as_deref().and_then(service_of),
        memory_bytes: p.memory_bytes,
    };
    unit.processes.iter().map(of).collect()
}

/// Notice for the case that Prometheus runs and asks labd for nothing.
fn unscraped(scrapes: Scrapes, prometheus: Option<&ServiceView>, now: Timestamp) -> Option<String> {
    let address = scrapes.address?;
    let since = prometheus.filter(|s| s.state == ServiceState::Ready)?.since;
    let last = scrapes.last.map_or(since, |last| last.max(since));
    (now.since(last) >= UNSCRAPED).then(|| {
        format!(
            "{METRICS_MISSING}: Prometheus does not reach {address}; a firewall of this machine that drops \
             what containers send to it does that"
        )
    })
}

/// File system that the engine's volumes are on, MinIO's among them.
fn store_mount(node: &NodeView) -> Option<&str> {
    disk_guard::mount_of(&node.disks, &node.engine_data)
}

fn notices(k: &Known<'_>, links: &[Link], runs: &[RunView]) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |severity, text: String| notices.push(Notice { severity, text });
    if let EngineView::Unreachable { reason, .. } = &k.engine {
        say(Severity::Error, reason.clone());
    }
    for service in &k.services {
        if matches!(service.state, ServiceState::Blocked | ServiceState::CrashLoop) {
            say(Severity::Error, format!("{}: {}", service.name, service.last_reason));
        }
    }
    if let Some(reason) = k.door {
        say(Severity::Error, format!("jobs cannot be submitted: {reason}"));
    }
    if let Some(reason) = k.page {
        say(Severity::Warning, format!("the status page is not served: {reason}"));
    }
    for text in of_tls(k.tls, k.now).into_iter().chain(tls::open_without(k.config)) {
        say(Severity::Warning, text);
    }
    for target in k.notify {
        if let Some(why) = &target.trouble {
            let name = &target.name;
            let text =
                format!("notifications to `{name}` are not delivered: {why}; `labd notify test {name}` tries it");
            say(Severity::Warning, text);
        }
    }
    if let Some(reason) = k.second {
        say(
            Severity::Warning,
            format!("JupyterLab opens from the page only where that is visited as `localhost`: {reason}"),
        );
    }
    if !k.unanswered.is_empty() {
        let names = k.unanswered.join(", ");
        say(
            Severity::Warning,
            format!(
                "the container engine does not say what {names} does: its last known state is shown; see \
                 `journalctl -u docker`"
            ),
        );
    }
    if let Some(text) =
        unscraped(k.scrapes, k.services.iter().find(|s| s.name == services::prometheus::DEF.name()), k.now)
    {
        say(Severity::Warning, text);
    }
    if let Some(trouble) = &k.ledger.trouble {
        say(Severity::Warning, trouble.clone());
    }
    for notice in &k.ledger.notices {
        say(Severity::Warning, notice.clone());
    }
    if let JournalHealth::NotRecording { reason, .. } = &k.journal {
        say(Severity::Warning, format!("history is not recorded: {reason}"));
    }
    if let Some(reason) = &k.store.trouble
        && k.ray.runs.iter().any(|run| run.status.is_active())
    {
        say(Severity::Warning, format!("checkpoints are not listed: {reason}"));
    }
    if !k.config.ray.persist {
        say(Severity::Warning, "a crash of the Ray head loses all jobs: `ray.persist` is off in labd.toml".to_owned());
    }
    if k.gpus.is_empty() {
        say(
            Severity::Warning,
            "no GPU was found: no worker runs; `gpus.simulate = 2` in labd.toml shows labd without one".to_owned(),
        );
    }
    for unit in &k.inventory.units {
        if let Some(trouble) = &unit.trouble {
            let (id, worker) = (&unit.gpu.id, unit.gpu.slot);
            let text = format!("GPU {id} (ray-worker-{worker}): {}; {}", trouble.meaning, trouble.remedy);
            say(if unit.state == GpuState::Ok { Severity::Warning } else { Severity::Error }, text);
        }
    }
    for source in &k.inventory.sources {
        if let Some(text) = of_source(source) {
            say(Severity::Warning, text);
        }
    }
    for notice in &k.inventory.notices {
        say(notice.severity, notice.text.clone());
    }
    if k.gpus.iter().any(|g| g.vendor == Vendor::Simulated) {
        say(Severity::Info, "the GPUs are simulated: nothing here computes on a real one".to_owned());
    }
    if k.config.network.publish.is_loopback() {
        // The page is the first link, and leads to what is behind the others.
        let forward = links.iter().find_map(|l| url::Url::parse(&l.url).ok()?.port());
        let forward = forward.map_or_else(String::new, |p| format!("-L {p}:localhost:{p} "));
        let address = &k.node.address;
        say(
            Severity::Info,
            format!(
                "the links open on this machine only; from yours: ssh {forward}{address}, and the page leads to the rest"
            ),
        );
    }
    let disks = &k.node.disks;
    let users = disk_guard::Users {
        store: store_mount(&k.node).filter(|_| k.config.s3.is_none()),
        runs,
        bucket_bytes: k.store.total_bytes,
    };
    notices.extend(disk_guard::notices(k.disks, disks, users));
    notices.extend(k.shortages.iter().cloned());
    notices.sort_by_key(|n| std::cmp::Reverse(n.severity));
    notices
}

/// What a person must know of the page's certificate.
fn of_tls(served: &tls::Served, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let old = served.view.as_ref().map(|view| view.expires_at);
    if let Some(why) = &served.trouble {
        lines.push(match old {
            None => format!("the status page is not served: its certificate: {why}"),
            Some(until) => format!("the page's certificate: {why}; the one that is served is valid until {until}"),
        });
    }
    lines.extend(served.advice.iter().map(|why| format!("the page's certificate: {why}")));
    // labd renews its own in time.
    if let Some(view) = served.view.as_ref().filter(|view| !view.self_signed) {
        let left = view.expires_at.since(now);
        if left.is_zero() {
            lines.push(format!("the page's certificate expired at {}: renew it, browsers refuse it", view.expires_at));
        } else if left < ENDS_SOON {
            lines.push(format!("the page's certificate expires in {}: renew it", human(left)));
        }
    }
    lines
}

/// What a person must know of a source of GPU readings: that it is silent, or what it complains of.
fn of_source(source: &GpuSource) -> Option<String> {
    match (source.stale_since, source.trouble.as_deref()) {
        (Some(since), why) => {
            let why = why.map(|t| format!(": {t}")).unwrap_or_default();
            Some(format!("GPU readings stale since {since} ({}){why}", source.name))
        }
        (None, Some(trouble)) => Some(format!("GPU readings ({}): {trouble}", source.name)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::DiskView;

    #[test]
    fn a_source_in_trouble_is_told_also_where_its_readings_are_fresh() {
        let source = |stale: bool, trouble: Option<&str>| GpuSource {
            name: "the kernel's files".into(),
            driver: None,
            library: None,
            stale_since: stale.then(|| Timestamp::from_millis(0)),
            trouble: trouble.map(str::to_owned),
        };
        let not_loaded = "the kernel does not run the GPU; load its driver with `modprobe amdgpu`";
        assert_eq!(of_source(&source(false, None)), None);
        let told = of_source(&source(false, Some(not_loaded)));
        assert_eq!(told, Some(format!("GPU readings (the kernel's files): {not_loaded}")));
        assert!(of_source(&source(true, None)).is_some_and(|t| t.starts_with("GPU readings stale since 1970")));
        assert!(of_source(&source(true, Some(not_loaded))).is_some_and(|t| t.ends_with(not_loaded)));
    }

    #[test]
    fn the_store_is_on_the_file_system_that_the_engine_names() {
        let disk = |mount: &str| DiskView { mount: mount.into(), total_bytes: 1, available_bytes: 1, device: None };
        let mut node = NodeView { disks: vec![disk("/"), disk("/data")], ..crate::http::testing::a_snapshot().node };
        assert_eq!(store_mount(&node), Some("/"));
        node.engine_data = "/data/docker".into();
        assert_eq!(store_mount(&node), Some("/data"));
    }

    #[test]
    fn a_prometheus_that_asks_labd_for_nothing_is_told_after_two_minutes() {
        let at = |s: i64| Timestamp::from_millis(s * 1_000);
        let prometheus = |state| ServiceView {
            name: "prometheus".into(),
            state,
            since: at(100),
            restarts: 0,
            last_reason: String::new(),
            progress: None,
            next_try: None,
            container: None,
            image: String::new(),
            address: String::new(),
            optional: false,
        };
        let ready = prometheus(ServiceState::Ready);
        let asked = |last: Option<i64>| Scrapes { address: "198.18.64.1:7400".parse().ok(), last: last.map(at) };
        assert_eq!(unscraped(asked(None), Some(&ready), at(219)), None, "it has just begun");
        let told = unscraped(asked(None), Some(&ready), at(220)).expect("told");
        assert!(told.contains("198.18.64.1:7400") && told.contains("firewall"), "{told}");
        assert_eq!(unscraped(asked(Some(215)), Some(&ready), at(220)), None);
        assert!(unscraped(asked(Some(215)), Some(&ready), at(335)).is_some(), "no more");
        assert_eq!(unscraped(asked(None), Some(&prometheus(ServiceState::Starting)), at(900)), None);
        assert_eq!(unscraped(Scrapes::default(), Some(&ready), at(900)), None, "not told from other requests");
    }
}
