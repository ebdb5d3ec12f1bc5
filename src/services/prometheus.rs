//! Prometheus, which scrapes Ray, labd and itself.

use std::time::Duration;

use super::{
    FOREIGN, ForJobs, GIB, LinkDef, MIB, Make, Memory, On, Optional, PortDef, RightsDef, ServiceDef, Silence,
    draft::{Draft, file, volume, words},
};
use crate::spec::{EnvValue, ImageName, Kind, Probe, Recreate, ServiceSpec};

/// Port of Prometheus.
pub const PORT: u16 = 9090;

/// Definition of the service Prometheus.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind("prometheus"),
    size_key: "prometheus",
    host: 13,
    resolved: true,
    image: ImageName::Prometheus,
    ports: &[PortDef { container: PORT, on: On::Published("prometheus", |p| p.prometheus) }],
    memory: Memory::Share(|usable| (usable / 1000 * 25).clamp(192 * MIB, 4 * GIB)),
    optional: Optional::ByDefaultOn,
    settings: Some(|s| s.prometheus.clone()),
    for_jobs: ForJobs::Nothing,
    stops_last: false,
    recreate: Recreate::AtOnce,
    silence: Silence::Hung,
    // Its volume belongs to the image's own user, its token to root. Files are put into it, so it is no read-only one.
    rights: RightsDef { capabilities: &["DAC_OVERRIDE"], pids: 2_048, read_only_root: false },
    foreign_rights: Some(RightsDef { capabilities: FOREIGN, pids: 2_048, read_only_root: false }),
    link: Some(LinkDef { rank: 5, name: "Prometheus", port: PORT, path: "/prometheus/" }),
    login: None,
    make: Make::One(spec),
};

/// Address of its API in the lab's network.
pub(super) fn address() -> EnvValue {
    format!("http://{}:{PORT}/prometheus", DEF.name()).into()
}

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let config = draft.config();
    let mut container = draft.container(&DEF);
    // As root, whatever the image says: the token's file is readable by its owner alone.
    container.user = Some("0:0".into());
    container.command = words(&[
        "--config.file=/etc/labd/prometheus.yml",
        "--storage.tsdb.path=/prometheus",
        "--storage.tsdb.retention.time=15d",
        "--storage.tsdb.retention.size=10GB",
        // No other site's page may read what it answers: Grafana asks it from its own server.
        "--web.cors.origin=none",
        // Its own page and the door's are the same then.
        "--web.external-url=/prometheus/",
    ]);
    // labd listens on the lab's network, on the port of its page.
    let labd = format!("{}:{}", draft.address(1), config.lab.page.port());
    container.files = vec![
        file("/etc/labd/prometheus.yml", 0o644, configuration(&labd).into()),
        file("/etc/labd/alerts.yml", 0o644, ALERTS.into()),
        file("/etc/labd/ray-token", 0o600, (&draft.inputs.secrets.ray_token).into()),
    ];
    container.mounts = vec![volume(draft.volume("prometheus"), "/prometheus", false)];
    container.cpu_shares = 512;
    let probe = Probe::Http { port: PORT, path: "/prometheus/-/ready".into(), authorization: None };
    // It replays its log first, which can be large after a crash.
    draft.service(&DEF, container, probe, Duration::from_mins(5))
}

/// Rules for what a person should be called for; Prometheus shows them, and an Alertmanager of yours can be told of them.
const ALERTS: &str = include_str!("alerts.yml");

fn configuration(labd: &str) -> String {
    format!(
        "global:
  scrape_interval: 10s
  evaluation_interval: 10s
rule_files:
  - /etc/labd/alerts.yml
scrape_configs:
  - job_name: ray
    authorization:
      credentials_file: /etc/labd/ray-token
    http_sd_configs:
      - url: http://ray-head:8265/api/prometheus/sd
        refresh_interval: 10s
        authorization:
          credentials_file: /etc/labd/ray-token
  - job_name: labd
    static_configs:
      - targets: ['{labd}']
  - job_name: prometheus
    metrics_path: /prometheus/metrics
    static_configs:
      - targets: ['localhost:9090']
"
    )
}
