//! From what the loop knows to the one [`Snapshot`]. Pure.

use crate::{
    checkpoints::{self, StoreView},
    config::Config,
    incident::Incident,
    jobs::LedgerView,
    journal::JournalHealth,
    node::{
        disk_guard::{self, Levels},
        gpu::{Gpu, Vendor},
    },
    plan,
    ray::RayView,
    snapshot::{
        DaemonView, EngineView, GpuView, Link, NodeView, Notice, RunView, SCHEMA, ServiceState, ServiceView, Severity,
        Snapshot,
    },
    time::Timestamp,
};

/// Where the engine keeps volumes.
const ENGINE_STORE: &str = "/var/lib/docker";

/// What a snapshot is made of.
pub(super) struct Known<'a> {
    pub(super) now: Timestamp,
    pub(super) daemon: &'a DaemonView,
    pub(super) node: NodeView,
    pub(super) engine: EngineView,
    pub(super) journal: JournalHealth,
    pub(super) ray: &'a RayView,
    pub(super) ledger: &'a LedgerView,
    /// Why the front door does not listen.
    pub(super) door: Option<&'a str>,
    pub(super) store: &'a StoreView,
    pub(super) disks: &'a Levels,
    pub(super) config: &'a Config,
    pub(super) gpus: &'a [Gpu],
    pub(super) services: Vec<ServiceView>,
    pub(super) incidents: Vec<Incident>,
    /// Published host port of a service's container port.
    pub(super) port_of: &'a dyn Fn(&str, u16) -> Option<u16>,
}

pub(super) fn snapshot(k: Known<'_>) -> Snapshot {
    let links = plan::links(k.config, &k.node.address, k.port_of);
    let gpus = k
        .gpus
        .iter()
        .enumerate()
        .map(|(i, gpu)| {
            let worker = format!("ray-worker-{i}");
            let there = k.services.iter().any(|s| s.name == worker && s.container.is_some());
            GpuView {
                id: gpu.id.clone(),
                name: gpu.name.clone(),
                vendor: gpu.vendor.word().to_owned(),
                simulated: gpu.vendor == Vendor::Simulated,
                memory_bytes: gpu.memory_bytes,
                worker: there.then_some(worker),
            }
        })
        .collect();
    let runs = checkpoints::view::runs(&k.ray.runs, k.store, k.now);
    let notices = notices(&k, &links, &runs);
    Snapshot {
        schema: SCHEMA,
        taken_at: k.now,
        labd: k.daemon.clone(),
        node: k.node,
        engine: k.engine,
        services: k.services,
        gpus,
        jobs: k.ledger.jobs.clone(),
        runs,
        resubmissions: k.ledger.resubmissions,
        demands: k.ray.demands.clone(),
        incidents: k.incidents,
        links,
        notices,
    }
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
    if let Some(trouble) = &k.ledger.trouble {
        say(Severity::Warning, trouble.clone());
    }
    if let JournalHealth::NotRecording { reason, .. } = &k.journal {
        say(Severity::Warning, format!("history is not recorded: {reason}"));
    }
    if let Some(reason) = &k.store.trouble
        && k.ray.runs.iter().any(|run| run.status.is_active())
    {
        say(Severity::Warning, format!("checkpoints are not looked at: {reason}"));
    }
    if !k.config.ray.persist {
        say(Severity::Warning, "a crash of the Ray head loses all jobs: `ray.persist` is off in labd.toml".to_owned());
    }
    if k.gpus.is_empty() {
        say(
            Severity::Warning,
            "no GPU was found: no worker runs; `gpus.simulate = 2` in labd.toml shows how it would be".to_owned(),
        );
    }
    if k.gpus.iter().any(|g| g.vendor == Vendor::Simulated) {
        say(Severity::Info, "the GPUs are simulated: nothing here computes on a real one".to_owned());
    }
    if k.config.network.publish.is_loopback() {
        let ports = links.iter().filter_map(|l| url::Url::parse(&l.url).ok()?.port());
        let tunnels: Vec<String> = ports.take(3).map(|p| format!("-L {p}:localhost:{p}")).collect();
        let address = &k.node.address;
        say(
            Severity::Info,
            format!("the links open on this machine only; from yours: ssh {} {address}", tunnels.join(" ")),
        );
    }
    let disks = &k.node.disks;
    let users = disk_guard::Users {
        store: disk_guard::mount_of(disks, ENGINE_STORE).filter(|_| k.config.s3.is_none()),
        runs,
        bucket_bytes: k.store.total_bytes,
    };
    notices.extend(disk_guard::notices(k.disks, disks, users));
    notices.sort_by_key(|n| std::cmp::Reverse(n.severity));
    notices
}
