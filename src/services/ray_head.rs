//! Ray's head: scheduler, GCS and dashboard. Runs no user code.

use super::{
    CODE, ForJobs, GIB, Make, Memory, On, Optional, PortDef, ServiceDef, Silence,
    draft::{Draft, RAY_STOP, env, volume},
    front_door, prometheus,
    ray::{START, end_at_once, janitor, node_env, packages, start, start_hook},
};
use crate::spec::{ImageName, Kind, Probe, Recreate, ServiceSpec};

/// Port of the GCS.
pub const GCS_PORT: u16 = 6379;

/// Port of the dashboard and the job API.
pub const DASHBOARD_PORT: u16 = 8265;

/// Directory in which the head writes Grafana's dashboards.
pub const DASHBOARDS: &str = "/dashboards";

/// Definition of the head.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind::RAY_HEAD,
    size_key: "head",
    host: 10,
    resolved: true,
    image: ImageName::Ray,
    ports: &[
        PortDef { container: GCS_PORT, on: On::Published("gcs", |p| p.gcs) },
        // The dashboard is reached through labd's front door.
        PortDef { container: DASHBOARD_PORT, on: On::Loopback },
    ],
    // It runs no user code, and holds a few uploads of 100 MiB and, as text, as JSON and as bytes, the log that a person asks for.
    // Idle: 0.8 GiB, measured with Ray 2.60.
    memory: Memory::Share(|usable| {
        let part = |permille: u64, ceiling: u64| (usable / 1000 * permille).min(ceiling);
        part(120, 4 * GIB).max(part(80, 16 * GIB)).max((usable / 6).clamp(GIB, 3 * GIB / 2))
    }),
    optional: Optional::Never,
    settings: Some(|s| s.ray_head.clone()),
    for_jobs: ForJobs::Shared,
    stops_last: true,
    recreate: Recreate::NoJob,
    silence: Silence::Hung,
    rights: CODE,
    foreign_rights: None,
    link: None,
    login: None,
    make: Make::One(spec),
};

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let (config, sizes) = (draft.config(), draft.sizes);
    let mut container = draft.container(&DEF);
    container.command = start(
        &["--head", "--dashboard-host=0.0.0.0", "--num-cpus=0", "--num-gpus=0"],
        &[
            ("--node-ip-address", container.address.to_string()),
            ("--port", GCS_PORT.to_string()),
            ("--dashboard-port", DASHBOARD_PORT.to_string()),
        ],
        sizes.head_object_store,
    );
    container.env = node_env(draft);
    container.env.extend(end_at_once());
    container.env.extend(env([
        ("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", DASHBOARDS.into()),
        // Where Ray's dashboard asks whether there is a Grafana: labd says so, and its page shows the panels at this path, by
        // Grafana's hand or its own.
        ("RAY_GRAFANA_HOST", front_door::grafana_address()),
        ("RAY_GRAFANA_IFRAME_HOST", "/grafana".into()),
        ("RAY_PROMETHEUS_HOST", prometheus::address()),
    ]));
    if config.ray.persist {
        // Case-sensitive, unlike Ray's other settings; alpha in Ray 2.60.
        container.env.extend(env([("RAY_gcs_storage", "rocksdb".into()), ("RAY_gcs_storage_path", "/gcs/db".into())]));
    }
    container.mounts = vec![
        volume(draft.volume("gcs"), "/gcs", false),
        volume(draft.volume("dashboards"), DASHBOARDS, false),
        packages(draft),
    ];
    container.files = vec![janitor(), start_hook()];
    container.shm_bytes = sizes.head_object_store.get() + (64 << 20);
    // Everything waits for the head, which runs no user code: it must answer, and be back after a crash, while workers and
    // drivers keep every core busy.
    container.cpu_shares = 32_768;
    container.stop_timeout = RAY_STOP;
    // Open without the token, and answered from the GCS.
    let probe = Probe::Http { port: DASHBOARD_PORT, path: "/api/gcs_healthz".into(), authorization: None };
    draft.service(&DEF, container, probe, START)
}
