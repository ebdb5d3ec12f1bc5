//! From what is wanted and what the machine is to one [`ServiceSpec`] per service. Pure: no clock, no I/O, no globals.
//!
//! * [`spec`]: the values.
//! * [`placement`]: which CPUs and memory are a worker's own.
//! * [`sizes`]: memory, `/dev/shm`, object stores and logical CPUs that fit the machine together.
//! * [`ray`], [`door`], [`storage`], [`metrics`], [`jupyter`]: one file per kind of service.
//! * [`images`]: which image is had from where.
//! * [`rights`]: what each container may do.

pub mod door;
mod images;
mod jupyter;
mod metrics;
pub mod placement;
mod ray;
pub(crate) mod rights;
pub mod sizes;
pub mod spec;
mod storage;

#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::Serialize;

use crate::{
    config::{Bytes, Config, HostMount},
    minio::Keys,
    node::{NodeFacts, gpu::Gpu},
    secret::Secret,
    snapshot::Link,
    text::without_logins,
};
use sizes::Sizes;
use spec::{
    ContainerSpec, EnvValue, FileSpec, ImageName, Kind, Mount, MountSource, NetworkSpec, Plan, Port, ServiceSpec,
};

/// The longest a container may take to stop: Ray drains a busy worker for up to 30 s.
const RAY_STOP: Duration = Duration::from_secs(40);
/// Everything else ends at once or not at all.
const STOP: Duration = Duration::from_secs(15);

/// What containers and people log in with. Made once, kept in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Ray's token.
    pub ray_token: Secret,
    /// The access key that jobs and notebooks hold: a user of MinIO for one bucket, or another store's.
    pub s3_access_key: Secret,
    /// The secret key to it.
    pub s3_secret_key: Secret,
    /// MinIO's root, for labd alone.
    pub minio_root: Keys,
    /// JupyterLab's token.
    pub jupyter_token: Secret,
    /// Password of Grafana's user `admin`.
    pub grafana_password: Secret,
}

/// Everything a plan is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// What is wanted.
    pub config: Config,
    /// What the machine is.
    pub node: NodeFacts,
    /// Which GPUs there are; one worker each.
    pub gpus: Vec<Gpu>,
    /// Credentials.
    pub secrets: Secrets,
    /// The lab's /24.
    pub subnet: [u8; 3],
    /// Content of the extra CA bundle; empty without one.
    pub ca: Vec<u8>,
    /// What counts of the requirements file; empty without one.
    pub requirements: String,
}

/// Makes the plan. Fails in one line that names the setting to change, when sizes that were set do not fit the machine.
pub fn make(inputs: &Inputs) -> Result<(Plan, Sizes), String> {
    let workers = inputs.gpus.len();
    if inputs.gpus.iter().any(|gpu| gpu.slot >= MAX_WORKERS) {
        return Err(format!("{workers} GPUs are more than the {MAX_WORKERS} that the lab's /24 has addresses for"));
    }
    let sizes = sizes::compute(&inputs.config, &inputs.node, u32::try_from(workers).unwrap_or(0))?;
    let draft = Draft { inputs, sizes: &sizes };
    let places = placement::places(&inputs.gpus, &inputs.node, inputs.config.gpus.bind, sizes.worker.get());
    let mut services = vec![storage::minio(&draft), ray::head(&draft), ray::driver(&draft)];
    services.extend(inputs.gpus.iter().zip(&places).map(|(gpu, at)| ray::worker(&draft, gpu, at)));
    services.extend([
        jupyter::jupyter(&draft),
        door::front_door(&draft),
        metrics::prometheus(&draft),
        metrics::grafana(&draft),
    ]);
    let images = images::images(inputs)
        .into_iter()
        .filter(|image| services.iter().any(|s: &ServiceSpec| s.enabled && s.image == image.name))
        .collect();
    let [a, b, c] = inputs.subnet;
    let network = NetworkSpec {
        name: inputs.config.lab.name.clone(),
        subnet: format!("{a}.{b}.{c}.0/24"),
        gateway: Ipv4Addr::new(a, b, c, 1),
    };
    Ok((Plan { lab: inputs.config.lab.name.clone(), network, images, services }, sizes))
}

/// Addresses .20 to .219 are workers'.
const MAX_WORKERS: usize = 200;

/// Host numbers in the lab's /24. Fixed, since a Ray node that returns at its old address is noticed twice as fast.
mod host {
    pub(super) const HEAD: u8 = 10;
    pub(super) const DRIVER: u8 = 11;
    pub(super) const MINIO: u8 = 12;
    pub(super) const PROMETHEUS: u8 = 13;
    pub(super) const GRAFANA: u8 = 14;
    pub(super) const JUPYTER: u8 = 15;
    pub(super) const FRONT_DOOR: u8 = 16;
    pub(super) const FIRST_WORKER: u8 = 20;
}

/// What every service's file draws from.
struct Draft<'a> {
    inputs: &'a Inputs,
    sizes: &'a Sizes,
}

impl Draft<'_> {
    fn config(&self) -> &Config {
        &self.inputs.config
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.inputs.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Name of a volume of this lab.
    fn volume(&self, what: &str) -> String {
        format!("{}-{what}", self.config().lab.name)
    }

    /// A port as `labd.toml` wants it published.
    fn port(&self, container: u16, host: u16) -> Port {
        let host_ip = self.config().network.publish.to_string();
        Port { container, host_ip, host: (host != 0).then_some(host) }
    }

    /// The services with a fixed name and address, for `/etc/hosts`: no container waits for DNS. Workers are not among
    /// them, so that one more GPU changes no other container.
    fn hosts(&self, but: &str) -> BTreeMap<String, Ipv4Addr> {
        [
            ("ray-head", host::HEAD),
            ("ray-driver", host::DRIVER),
            ("minio", host::MINIO),
            ("prometheus", host::PROMETHEUS),
            ("grafana", host::GRAFANA),
            ("jupyter", host::JUPYTER),
            (door::NAME, host::FRONT_DOOR),
        ]
        .into_iter()
        .filter(|(name, _)| *name != but)
        .map(|(name, n)| (name.to_owned(), self.address(n)))
        .collect()
    }

    /// A container with what all have in common.
    fn container(&self, name: &str, kind: Kind, image: ImageName, host: u8, memory: Bytes) -> ContainerSpec {
        ContainerSpec {
            image: images::reference(self.inputs, image),
            entrypoint: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
            mounts: Vec::new(),
            ports: Vec::new(),
            address: self.address(host),
            hostname: name.to_owned(),
            hosts: self.hosts(name),
            memory_bytes: memory.get(),
            shm_bytes: 64 << 20,
            cpu_shares: 1024,
            stop_timeout: STOP,
            nofile: self.inputs.node.nofile_limit.min(65_536),
            unlimited_memlock: false,
            cpuset_cpus: None,
            cpuset_mems: None,
            devices: Vec::new(),
            user: None,
            workdir: None,
            rights: rights::of(kind, self.config().images.reference(image).is_some()),
        }
    }

    /// Where checkpoints go, for everything that runs users' code.
    fn s3_env(&self) -> BTreeMap<String, EnvValue> {
        let (endpoint, region) = match &self.config().s3 {
            Some(s3) => (s3.endpoint.as_str().trim_end_matches('/').to_owned(), s3.region.clone()),
            None => (format!("http://minio:{}", storage::S3_PORT), storage::REGION.to_owned()),
        };
        BTreeMap::from([
            ("AWS_ENDPOINT_URL".to_owned(), endpoint.into()),
            ("AWS_DEFAULT_REGION".to_owned(), region.into()),
            ("AWS_ACCESS_KEY_ID".to_owned(), (&self.inputs.secrets.s3_access_key).into()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), (&self.inputs.secrets.s3_secret_key).into()),
        ])
    }

    /// Where packages and the world are reached from, as the images' builds reach them: for everything that runs people's
    /// code. The addresses may hold logins.
    fn outward_env(&self) -> BTreeMap<String, EnvValue> {
        let build = &self.config().images.build;
        let index = &build.pip_index_url;
        let secrets = [
            (&["PIP_INDEX_URL", "UV_DEFAULT_INDEX"], index),
            (&["http_proxy", "HTTP_PROXY"], &build.http_proxy),
            (&["https_proxy", "HTTPS_PROXY"], &build.https_proxy),
        ];
        let mut all = BTreeMap::new();
        for (names, value) in secrets {
            let Some(value) = value else { continue };
            all.extend(names.iter().map(|&name| (name.to_owned(), (&Secret::new(value)).into())));
        }
        // Without a proxy of labd's too: a job may bring its own.
        let around: EnvValue = self.no_proxy().into();
        all.extend(["no_proxy", "NO_PROXY"].map(|name| (name.to_owned(), around.clone())));
        all
    }

    /// Hosts that no proxy is asked for: what `labd.toml` names, and everything of the lab.
    ///
    /// Many programs know neither networks nor wildcards in this list, so workers are in it one by one; more of them than
    /// there are, so that one more GPU changes no other container.
    fn no_proxy(&self) -> String {
        let set = self.config().images.build.no_proxy.as_deref().unwrap_or_default();
        let workers = self.inputs.gpus.iter().map(|gpu| gpu.slot + 1).max().unwrap_or(0).next_multiple_of(16).max(16);
        let worker = |n: usize| {
            let host = host::FIRST_WORKER.saturating_add(u8::try_from(n).unwrap_or(u8::MAX));
            [format!("ray-worker-{n}"), self.address(host).to_string()]
        };
        let [a, b, c] = self.inputs.subnet;
        let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter();
        let named = self.hosts("").into_iter().flat_map(|(name, address)| [name, address.to_string()]);
        let all: Vec<String> = set
            .split(',')
            .map(|host| host.trim().to_owned())
            .filter(|host| !host.is_empty())
            .chain(own)
            .chain([format!("{a}.{b}.{c}.0/24")])
            .chain(named)
            .chain((0..workers.min(MAX_WORKERS)).flat_map(worker))
            .collect();
        all.join(",")
    }

    /// What `labd.toml` adds. The values may be tokens of people's own services.
    fn own_env(&self) -> BTreeMap<String, EnvValue> {
        self.config().ray.env.iter().map(|(name, value)| (name.clone(), (&Secret::new(value)).into())).collect()
    }

    /// Host directories for everything that runs people's code: a path means the same in a notebook, a driver and a worker.
    fn host_mounts(&self) -> Vec<Mount> {
        let mount = |m: &HostMount| Mount {
            source: MountSource::Host(m.source.display().to_string()),
            target: m.target.clone(),
            read_only: m.read_only,
        };
        self.config().mounts.iter().map(mount).collect()
    }

    /// How Ray's own programs find the token.
    fn ray_auth_env(&self) -> BTreeMap<String, EnvValue> {
        BTreeMap::from([
            ("RAY_AUTH_MODE".to_owned(), "token".into()),
            ("RAY_AUTH_TOKEN".to_owned(), (&self.inputs.secrets.ray_token).into()),
            ("RAY_USAGE_STATS_ENABLED".to_owned(), "0".into()),
        ])
    }
}

fn env<const N: usize>(pairs: [(&str, EnvValue); N]) -> BTreeMap<String, EnvValue> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// Where jobs are submitted: at labd's front door, not at the head. An HTTP address: what `ray job submit` takes.
fn job_address() -> EnvValue {
    format!("http://{}:{}", door::NAME, ray::DASHBOARD_PORT).into()
}

fn file(path: &str, mode: u32, content: EnvValue) -> FileSpec {
    FileSpec { path: path.to_owned(), mode, owner: 0, content }
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|&w| w.to_owned()).collect()
}

/// What `labd plan` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanView {
    /// The machine.
    pub node: NodeFacts,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// What each service gets.
    pub sizes: Sizes,
    /// The services, secrets as fingerprints.
    pub plan: Plan,
}

impl PlanView {
    /// The plan as anybody may read it: no address shows a login, wherever in the plan it stands.
    pub fn to_json(&self) -> serde_json::Value {
        fn hide(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::String(text) => *text = without_logins(text),
                serde_json::Value::Array(all) => all.iter_mut().for_each(hide),
                serde_json::Value::Object(all) => all.values_mut().for_each(hide),
                _ => {}
            }
        }
        // Plain data with string keys always serialises.
        let mut json = serde_json::to_value(self).unwrap_or_default();
        hide(&mut json);
        json
    }
}

/// Where people go, given the ports as they are published. No credentials.
pub fn links(config: &Config, address: &str, port_of: impl Fn(&str, u16) -> Option<u16>) -> Vec<Link> {
    // What listens on loopback only is reached through a tunnel, under the name it has at the tunnel's other end.
    let host_of = |ip: std::net::IpAddr| match ip {
        ip if ip.is_loopback() => "localhost".to_owned(),
        ip if ip.is_unspecified() => address.to_owned(),
        ip => ip.to_string(),
    };
    let mut links = vec![Link {
        name: "status page".into(),
        url: format!("http://{}:{}/", host_of(config.lab.page.ip()), config.lab.page.port()),
    }];
    let host = host_of(config.network.publish);
    for (name, service, port, path) in [
        ("Ray dashboard", door::NAME, ray::DASHBOARD_PORT, "/"),
        ("JupyterLab", "jupyter", jupyter::PORT, "/lab"),
        ("MinIO console", "minio", storage::CONSOLE_PORT, "/"),
        ("Grafana", "grafana", metrics::GRAFANA_PORT, "/"),
        ("Prometheus", "prometheus", metrics::PROMETHEUS_PORT, "/"),
    ] {
        if let Some(port) = port_of(service, port) {
            links.push(Link { name: name.into(), url: format!("http://{host}:{port}{path}") });
        }
    }
    links
}

/// Ports inside the head's container through which labd speaks to Ray: the GCS and the dashboard.
pub const HEAD_PORTS: (u16, u16) = (ray::GCS_PORT, ray::DASHBOARD_PORT);
