//! Prometheus, which scrapes Ray, labd and itself, and Grafana with Ray's own dashboards.

use std::time::Duration;

use super::{Draft, env, file, host, ray::DASHBOARDS, words};
use crate::plan::spec::{ImageName, Kind, Mount, MountSource, Probe, ServiceSpec};

pub(super) const PROMETHEUS_PORT: u16 = 9090;
pub(super) const GRAFANA_PORT: u16 = 3000;

pub(super) fn prometheus(draft: &Draft<'_>) -> ServiceSpec {
    let config = draft.config();
    let mut container = draft.container(
        "prometheus",
        Kind::Prometheus,
        ImageName::Prometheus,
        host::PROMETHEUS,
        draft.sizes.prometheus,
    );
    // As root, whatever the image says: the token's file is readable by its owner alone.
    container.user = Some("0:0".into());
    container.command = words(&[
        "--config.file=/etc/labd/prometheus.yml",
        "--storage.tsdb.path=/prometheus",
        "--storage.tsdb.retention.time=15d",
        "--storage.tsdb.retention.size=10GB",
        // No other site's page may read what it answers: Grafana asks it from its own server.
        "--web.cors.origin=none",
    ]);
    // labd listens on the lab's network, on the port of its page.
    let labd = format!("{}:{}", draft.address(1), config.lab.page.port());
    container.files = vec![
        file("/etc/labd/prometheus.yml", 0o644, configuration(&labd).into()),
        file("/etc/labd/ray-token", 0o600, (&draft.inputs.secrets.ray_token).into()),
    ];
    container.mounts = vec![volume(draft.volume("prometheus"), "/prometheus", false)];
    container.ports = vec![draft.port(PROMETHEUS_PORT, config.ports.prometheus)];
    container.cpu_shares = 512;
    ServiceSpec {
        name: "prometheus".into(),
        kind: Kind::Prometheus,
        image: ImageName::Prometheus,
        enabled: config.services.prometheus.on(),
        requires: Vec::new(),
        probe: Probe::Http { port: PROMETHEUS_PORT, path: "/-/ready".into(), authorization: None },
        // It replays its log first, which can be large after a crash.
        start_deadline: Duration::from_mins(5),
        container,
    }
}

fn configuration(labd: &str) -> String {
    format!(
        "global:
  scrape_interval: 10s
  evaluation_interval: 10s
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
    static_configs:
      - targets: ['localhost:9090']
"
    )
}

pub(super) fn grafana(draft: &Draft<'_>) -> ServiceSpec {
    let config = draft.config();
    let mut container =
        draft.container("grafana", Kind::Grafana, ImageName::Grafana, host::GRAFANA, draft.sizes.grafana);
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
    container.ports = vec![draft.port(GRAFANA_PORT, config.ports.grafana)];
    container.cpu_shares = 512;
    ServiceSpec {
        name: "grafana".into(),
        kind: Kind::Grafana,
        image: ImageName::Grafana,
        enabled: config.services.grafana.on(),
        requires: Vec::new(),
        probe: Probe::Http { port: GRAFANA_PORT, path: "/api/health".into(), authorization: None },
        start_deadline: Duration::from_mins(2),
        container,
    }
}

/// Ray's dashboards look for a datasource called `Prometheus`.
const DATASOURCE: &str = "apiVersion: 1
datasources:
  - name: Prometheus
    type: prometheus
    url: http://prometheus:9090
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

fn volume(name: String, target: &str, read_only: bool) -> Mount {
    Mount { source: MountSource::Volume(name), target: target.to_owned(), read_only }
}
