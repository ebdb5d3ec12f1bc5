//! Inputs and draft that every service is planned from. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::Serialize;

use super::{ALL, Make, On, PortDef, ServiceDef, Silence, minio, ray_worker};
use crate::{
    config::{Bytes, Config, HostMount},
    credentials::Secrets,
    gpus::Gpu,
    node::NodeFacts,
    secret::Secret,
    spec::{ContainerSpec, EnvValue, FileSpec, ImageName, Mount, MountSource, Port, Probe, ServiceSpec, worker_name},
};

/// Longest time a container of Ray may take to stop: Ray drains a busy worker for up to 30 s.
pub(super) const RAY_STOP: Duration = Duration::from_secs(40);

/// Longest time any other container may take to stop: it ends at once or not at all.
pub(super) const STOP: Duration = Duration::from_secs(15);

/// Inputs of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Configuration.
    pub config: Config,
    /// Facts about the machine.
    pub node: NodeFacts,
    /// GPUs; one worker each.
    pub gpus: Vec<Gpu>,
    /// Credentials.
    pub secrets: Secrets,
    /// First three numbers of the lab's /24.
    pub subnet: [u8; 3],
    /// Content of the extra CA bundle; empty without one.
    pub ca: Vec<u8>,
    /// Part of the requirements file that counts; empty without one.
    pub requirements: String,
}

/// Place where one worker runs; without any value it is anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The only CPUs it runs on, in the kernel's list notation.
    pub cpus: Option<String>,
    /// The only NUMA nodes its memory comes from.
    pub memory: Option<String>,
    /// Ray's logical CPUs: its part of those CPUs, at least 8.
    pub logical_cpus: Option<u32>,
}

/// Share of the machine that each service gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Memory left for the host, in bytes.
    pub host: Bytes,
    /// Hard memory limits, by [`ServiceDef::size_key`]; that of each worker, not of all.
    #[serde(flatten)]
    pub memory: BTreeMap<&'static str, Bytes>,
    /// Number of workers.
    pub workers: u32,
    /// Object store of the head, in bytes.
    pub head_object_store: Bytes,
    /// Object store of the driver node, in bytes.
    pub driver_object_store: Bytes,
    /// Object store of each worker, in bytes.
    pub worker_object_store: Bytes,
    /// Size of the `/dev/shm` that all workers share, in bytes: every object store, and room for NCCL's and PyTorch's
    /// own segments.
    pub shared_memory: Bytes,
    /// Ray's logical CPUs of the driver node.
    pub driver_cpus: u32,
    /// Ray's logical CPUs of each worker.
    pub worker_cpus: u32,
}

impl Sizes {
    /// Hard memory limit of a service; of one worker, not of all.
    pub fn of(&self, def: &ServiceDef) -> Bytes {
        self.memory.get(def.size_key).copied().unwrap_or(Bytes::new(0))
    }

    /// Memory limits of everything that runs, the host's part left out.
    pub fn total(&self) -> u64 {
        let all = ALL.iter().map(|def| (self.of(def).get(), matches!(def.make, Make::PerGpu(_))));
        all.map(|(bytes, per_gpu)| if per_gpu { bytes * u64::from(self.workers) } else { bytes }).sum()
    }
}

/// Draft of the plan: what every service's file draws from.
pub struct Draft<'a> {
    /// Inputs of the plan.
    pub inputs: &'a Inputs,
    /// Share of each service.
    pub sizes: &'a Sizes,
    /// Reference of each image.
    pub images: BTreeMap<ImageName, String>,
}

impl Draft<'_> {
    pub(super) fn config(&self) -> &Config {
        &self.inputs.config
    }

    pub(super) fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.inputs.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Name of a volume of this lab.
    pub(super) fn volume(&self, what: &str) -> String {
        format!("{}-{what}", self.config().lab.name)
    }

    /// Ports of a service as `labd.toml` wants them published. One that labd serves itself is published on loopback,
    /// for labd's own health check.
    pub(super) fn ports(&self, def: &ServiceDef) -> Vec<Port> {
        let port = |p: &PortDef| match p.on {
            On::Published(_, setting) => {
                let host = setting(&self.config().ports);
                let host_ip = self.config().network.publish.to_string();
                Port { container: p.container, host_ip, host: (host != 0).then_some(host) }
            }
            On::ByLabd(..) | On::Loopback => Port { container: p.container, host_ip: "127.0.0.1".into(), host: None },
        };
        def.ports.iter().map(port).collect()
    }

    /// Service with common values for everything that is not given.
    pub(super) fn service(
        &self,
        def: &ServiceDef,
        container: ContainerSpec,
        probe: Probe,
        start_deadline: Duration,
    ) -> ServiceSpec {
        ServiceSpec {
            name: container.hostname.clone(),
            kind: def.kind,
            image: def.image,
            enabled: def.is_enabled(self.config()),
            requires: Vec::new(),
            probe,
            start_deadline,
            recreate: def.recreate,
            killed_when_silent: match def.silence {
                Silence::Hung => true,
                Silence::Spared(is_killed) => is_killed(self.config()),
            },
            stops_last: def.stops_last,
            container,
        }
    }

    /// Names and addresses of the services that have fixed ones, for `/etc/hosts`: no container waits for DNS. Workers
    /// are not among them, so that one more GPU changes no other container.
    pub(super) fn hosts(&self, but: &str) -> BTreeMap<String, Ipv4Addr> {
        let named = ALL.iter().filter(|def| def.resolved && def.name() != but);
        named.map(|def| (def.name().to_owned(), self.address(def.host))).collect()
    }

    /// Container of a service, with what all have in common.
    pub(super) fn container(&self, def: &ServiceDef) -> ContainerSpec {
        self.container_at(def, def.name(), def.host)
    }

    /// Container of one of several services of a kind.
    pub(super) fn container_at(&self, def: &ServiceDef, name: &str, host: u8) -> ContainerSpec {
        let foreign = self.config().images.reference(def.image).is_some();
        ContainerSpec {
            image: self.images.get(&def.image).cloned().unwrap_or_default(),
            entrypoint: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
            mounts: Vec::new(),
            ports: self.ports(def),
            address: self.address(host),
            hostname: name.to_owned(),
            hosts: self.hosts(name),
            memory_bytes: self.sizes.of(def).get(),
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
            rights: def.rights(foreign),
        }
    }

    /// Environment that says where checkpoints go, for everything that runs users' code.
    pub(super) fn s3_env(&self) -> BTreeMap<String, EnvValue> {
        let (endpoint, region) = match &self.config().s3 {
            Some(s3) => (s3.endpoint.as_str().trim_end_matches('/').to_owned(), s3.region.clone()),
            None => (format!("http://minio:{}", minio::S3_PORT), minio::REGION.to_owned()),
        };
        BTreeMap::from([
            ("AWS_ENDPOINT_URL".to_owned(), endpoint.into()),
            ("AWS_DEFAULT_REGION".to_owned(), region.into()),
            ("AWS_ACCESS_KEY_ID".to_owned(), (&self.inputs.secrets.s3_access_key).into()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), (&self.inputs.secrets.s3_secret_key).into()),
        ])
    }

    /// Environment that says where packages and the world are reached from, as the images' builds reach them: for
    /// everything that runs people's code. The addresses may hold logins.
    pub(super) fn outward_env(&self) -> BTreeMap<String, EnvValue> {
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
    pub(super) fn no_proxy(&self) -> String {
        let set = self.config().images.build.no_proxy.as_deref().unwrap_or_default();
        let workers = self.inputs.gpus.iter().map(|gpu| gpu.slot + 1).max().unwrap_or(0).next_multiple_of(16).max(16);
        let worker = |n: usize| [worker_name(n), self.address(ray_worker::host(n)).to_string()];
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
            .chain((0..workers.min(ray_worker::MOST)).flat_map(worker))
            .collect();
        all.join(",")
    }

    /// Environment that `labd.toml` adds. The values may be tokens of people's own services.
    pub(super) fn own_env(&self) -> BTreeMap<String, EnvValue> {
        self.config().ray.env.iter().map(|(name, value)| (name.clone(), (&Secret::new(value)).into())).collect()
    }

    /// Host directories for everything that runs people's code: a path means the same in a notebook, a driver and a worker.
    pub(super) fn host_mounts(&self) -> Vec<Mount> {
        let mount = |m: &HostMount| Mount {
            source: MountSource::Host(m.source.display().to_string()),
            target: m.target.clone(),
            read_only: m.read_only,
        };
        self.config().mounts.iter().map(mount).collect()
    }

    /// Environment by which Ray's own programs find the token.
    pub(super) fn ray_auth_env(&self) -> BTreeMap<String, EnvValue> {
        BTreeMap::from([
            ("RAY_AUTH_MODE".to_owned(), "token".into()),
            ("RAY_AUTH_TOKEN".to_owned(), (&self.inputs.secrets.ray_token).into()),
            ("RAY_USAGE_STATS_ENABLED".to_owned(), "0".into()),
        ])
    }
}

pub(super) fn env<const N: usize>(pairs: [(&str, EnvValue); N]) -> BTreeMap<String, EnvValue> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

pub(super) fn file(path: &str, mode: u32, content: EnvValue) -> FileSpec {
    FileSpec { path: path.to_owned(), mode, owner: 0, content }
}

pub(super) fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|&w| w.to_owned()).collect()
}

pub(super) fn volume(name: String, target: &str, read_only: bool) -> Mount {
    Mount { source: MountSource::Volume(name), target: target.to_owned(), read_only }
}
