//! Grafana with Ray's own dashboards, and Prometheus as their datasource.

use std::time::Duration;

use super::{
    ForJobs, GIB, LinkDef, LoginDef, MIB, Make, Memory, On, Optional, PortDef, RightsDef, ServiceDef, Silence,
    draft::{Draft, env, file, volume},
    ray_head::DASHBOARDS,
};
use crate::spec::{ImageName, Kind, Probe, Recreate, ServiceSpec};

const PORT: u16 = 3000;

/// Definition of the service Grafana.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind("grafana"),
    size_key: "grafana",
    host: 14,
    resolved: true,
    image: ImageName::Grafana,
    ports: &[PortDef { container: PORT, on: On::Published("grafana", |p| p.grafana) }],
    memory: Memory::Share(|usable| (usable / 1000 * 10).clamp(128 * MIB, GIB)),
    optional: Optional::ByDefaultOn,
    settings: Some(|s| s.grafana.clone()),
    for_jobs: ForJobs::Nothing,
    stops_last: false,
    recreate: Recreate::AtOnce,
    silence: Silence::Hung,
    // The image's user is not root.
    rights: RightsDef { capabilities: &[], pids: 2_048, read_only_root: false },
    foreign_rights: None,
    link: Some(LinkDef { rank: 4, name: "Grafana", port: PORT, path: "/" }),
    login: Some(LoginDef {
        rank: 4,
        name: "grafana",
        user: |_| Some("admin".to_owned()),
        secret: |s| &s.grafana_password,
        port: |p| p.grafana,
    }),
    make: Make::One(spec),
};

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let mut container = draft.container(&DEF);
    container.env = env([
        ("GF_SECURITY_ADMIN_PASSWORD", (&draft.inputs.secrets.grafana_password).into()),
        ("GF_ANALYTICS_REPORTING_ENABLED", "false".into()),
        ("GF_ANALYTICS_CHECK_FOR_UPDATES", "false".into()),
        ("GF_NEWS_NEWS_FEED_ENABLED", "false".into()),
        ("GF_PATHS_PROVISIONING", "/etc/labd/provisioning".into()),
    ]);
    container.files = vec![
        file("/etc/labd/provisioning/datasources/prometheus.yml", 0o644, DATASOURCE.into()),
        file("/etc/labd/provisioning/dashboards/ray.yml", 0o644, PROVIDER.into()),
    ];
    container.mounts = vec![
        volume(draft.volume("grafana"), "/var/lib/grafana", false),
        volume(draft.volume("dashboards"), DASHBOARDS, true),
    ];
    container.cpu_shares = 512;
    let probe = Probe::Http { port: PORT, path: "/api/health".into(), authorization: None };
    draft.service(&DEF, container, probe, Duration::from_mins(2))
}

/// Datasource called `Prometheus`, as Ray's dashboards look for it.
const DATASOURCE: &str = "apiVersion: 1
datasources:
  - name: Prometheus
    type: prometheus
    url: http://prometheus:9090/prometheus
    isDefault: true
    access: proxy
";

const PROVIDER: &str = "apiVersion: 1
providers:
  - name: Ray
    folder: Ray
    type: file
    updateIntervalSeconds: 30
    options:
      path: /dashboards
";
