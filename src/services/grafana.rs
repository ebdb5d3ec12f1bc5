//! Grafana with Ray's own dashboards and labd's, and Prometheus as their datasource.

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
    link: Some(LinkDef { rank: 4, name: "Grafana", port: PORT, path: "/grafana/" }),
    login: Some(LoginDef {
        rank: 4,
        name: "grafana",
        path: "/grafana/",
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
        // Behind the page's login at this path, and on its own port: it is told its place, and the door passes it on. Ray's
        // dashboard embeds its panels.
        ("GF_SERVER_ROOT_URL", "%(protocol)s://%(domain)s:%(http_port)s/grafana/".into()),
        ("GF_SERVER_SERVE_FROM_SUB_PATH", "true".into()),
        ("GF_SECURITY_ALLOW_EMBEDDING", "true".into()),
    ]);
    container.files = vec![
        file("/etc/labd/provisioning/datasources/prometheus.yml", 0o644, DATASOURCE.into()),
        file("/etc/labd/provisioning/dashboards/labd.yml", 0o644, PROVIDERS.into()),
        file("/etc/labd/dashboards/labd.json", 0o644, LABD.into()),
    ];
    container.mounts = vec![
        volume(draft.volume("grafana"), "/var/lib/grafana", false),
        volume(draft.volume("dashboards"), DASHBOARDS, true),
    ];
    container.cpu_shares = 512;
    let probe = Probe::Http { port: PORT, path: "/grafana/api/health".into(), authorization: None };
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

/// labd's own dashboard, of what its `/metrics` tells. The page draws it, too.
pub const LABD: &str = include_str!("labd_dashboard.json");

const PROVIDERS: &str = "apiVersion: 1
providers:
  - name: labd
    folder: labd
    type: file
    updateIntervalSeconds: 3600
    options:
      path: /etc/labd/dashboards
  - name: Ray
    folder: Ray
    type: file
    updateIntervalSeconds: 30
    options:
      path: /dashboards
";
