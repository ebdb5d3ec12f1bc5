//! Specification of each service in a plan: values only, no behaviour beyond the fingerprint that tells whether a
//! running container is still the wanted one.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    minio::Keys,
    secret::{Secret, hex},
};

/// Kind of a service: a word, so that a service brings its own. The constants are those that supervision itself asks
/// for; whatever else it must know of a service is in its [`ServiceSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Kind(pub &'static str);

impl Kind {
    /// Scheduler, GCS and dashboard. Runs no user code.
    pub const RAY_HEAD: Self = Self("ray-head");
    /// CPU-only Ray node on which job drivers run.
    pub const RAY_DRIVER: Self = Self("ray-driver");
    /// Ray node with exactly one GPU.
    pub const RAY_WORKER: Self = Self("ray-worker");
    /// S3 store for checkpoints.
    pub const MINIO: Self = Self("minio");

    /// Whether it is a Ray node other than the head, whose death the GCS is told at once.
    pub fn is_ray_node(self) -> bool {
        matches!(self, Self::RAY_DRIVER | Self::RAY_WORKER)
    }
}

/// Name of the worker in this slot.
pub fn worker_name(slot: usize) -> String {
    format!("ray-worker-{slot}")
}

/// The slot of the worker with this name; absent for every other name.
pub fn worker_slot(name: &str) -> Option<usize> {
    name.strip_prefix("ray-worker-")?.parse().ok()
}

/// Time at which a running container is recreated for settings that it could do without until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recreate {
    /// At once: nobody's work is in it.
    AtOnce,
    /// When nothing runs on its node, one worker at a time.
    NodeIdle,
    /// When no job is open, or after `lab.change_window`.
    NoJob,
    /// When it stops anyway, since nobody can tell what is being done in it; the text names that.
    NextStop(&'static str),
}

/// One of labd's four images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageName {
    /// Ray, Python and JupyterLab.
    Ray,
    /// MinIO, built from source.
    Minio,
    /// Prometheus from Debian.
    Prometheus,
    /// Grafana, pulled only.
    Grafana,
}

impl ImageName {
    /// Every image, in the order they are listed.
    pub const ALL: [Self; 4] = [Self::Ray, Self::Minio, Self::Prometheus, Self::Grafana];

    /// The word used on the command line, in `labd.toml` and for the folder under `images/`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ray => "ray",
            Self::Minio => "minio",
            Self::Prometheus => "prometheus",
            Self::Grafana => "grafana",
        }
    }
}

/// Image of a plan, and where it comes from. Pure: the reference is known before anything is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSpec {
    /// Name among labd's images.
    pub name: ImageName,
    /// Reference that containers use: `labd/ray:<inputs>` when built, else what `labd.toml` names.
    pub reference: String,
    /// Source of the image when the engine does not have it.
    pub source: ImageSource,
}

/// Source of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum ImageSource {
    /// Built from the embedded folder `images/<name>`.
    Build {
        /// Build arguments, without the base image and without proxies' credentials.
        args: BTreeMap<String, String>,
    },
    /// Pulled from a registry.
    Pull,
}

/// Specification of one service: its container, its requirements, and the probe that shows that it works.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceSpec {
    /// Unique name, such as `ray-worker-0`.
    pub name: String,
    /// Kind of the service.
    pub kind: Kind,
    /// Image that its container uses.
    pub image: ImageName,
    /// Whether it is enabled; one that `labd.toml` switches off has its container removed.
    pub enabled: bool,
    /// Requirements that must hold before it is started. They never stop a running one.
    pub requires: Vec<Requirement>,
    /// Contract that it must fulfil.
    pub probe: Probe,
    /// Longest time from container start to the first passing probe; after that it counts as hung and is killed.
    pub start_deadline: Duration,
    /// Time at which it is recreated for changed settings.
    #[serde(skip)]
    pub recreate: Recreate,
    /// Whether it is killed when it was ready and has not answered for long.
    #[serde(skip)]
    pub killed_when_silent: bool,
    /// Whether it goes down after everything else: others need it until they have ended.
    #[serde(skip)]
    pub stops_last: bool,
    /// Container. Only a change in here recreates it.
    pub container: ContainerSpec,
}

/// Requirement of a service before it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// Contract of the named service holds. MinIO's contract includes its bucket.
    Ready(String),
    /// The head's GCS answers: all a Ray node needs to join, seconds before the dashboard is up.
    Gcs,
}

/// Probe by which labd knows that a service works. Ports are container ports, reached through what is published on
/// loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "probe", rename_all = "kebab-case")]
pub enum Probe {
    /// A GET answered with 200.
    Http {
        /// Container port.
        port: u16,
        /// Path and query, without credentials.
        path: String,
        /// Scheme and secret, sent as `Authorization: <scheme> <secret>`.
        authorization: Option<(String, Secret)>,
    },
    /// MinIO is ready, and its bucket is open to the user of jobs; what is missing of both is made.
    Minio {
        /// Container port of the S3 API.
        port: u16,
        /// Bucket that must exist.
        bucket: String,
        /// Region name used in signatures.
        region: String,
        /// Keys that jobs and notebooks hold.
        user: Keys,
        /// Keys with which labd makes the bucket and the user.
        root: Keys,
    },
    /// The node at the container's address is ALIVE in the GCS since this start, and its raylet answers.
    RayNode {
        /// Container port of the node's agent.
        agent_port: u16,
    },
}

/// Container as it is asked of the engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContainerSpec {
    /// Image reference.
    pub image: String,
    /// Replaces the image's entrypoint when given.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, EnvValue>,
    /// Files put into the container before it starts.
    pub files: Vec<FileSpec>,
    /// Volumes and host directories.
    pub mounts: Vec<Mount>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Fixed address on the lab's network.
    pub address: Ipv4Addr,
    /// Host name inside.
    pub hostname: String,
    /// Other services' names, resolved without DNS: `name -> address`.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// Hard memory limit in bytes.
    pub memory_bytes: u64,
    /// Size of `/dev/shm` in bytes; counts towards the memory limit when used.
    pub shm_bytes: u64,
    /// Relative weight when CPUs are scarce (cgroup `cpu.shares`; the engine's default is 1024).
    pub cpu_shares: u32,
    /// Longest time that a graceful stop may take before it becomes a kill.
    pub stop_timeout: Duration,
    /// Limit on open files, soft and hard.
    pub nofile: u64,
    // What only GPU workers have is not written for the others: their fingerprints stay what they were.
    /// Whether it may lock as much memory as it likes: RDMA and pinned transfers do.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unlimited_memlock: bool,
    /// The only CPUs it may run on, in the kernel's list notation such as `0-31,64-95`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// The only NUMA nodes it may have memory of, in the same notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Devices attached to it: the GPU's, and InfiniBand's. Empty for simulated GPUs and for services without one.
    pub devices: Vec<Device>,
    /// User inside, `uid:gid`; absent for the image's own.
    pub user: Option<String>,
    /// Working directory; absent for the image's own.
    pub workdir: Option<String>,
    /// Rights beyond its own files and processes.
    pub rights: Rights,
}

/// Version of the system calls that containers may make; another one recreates them.
pub const SYSCALLS: u32 = 1;

/// Rights of a container beyond its own files and processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rights {
    /// Capabilities of its root, without `CAP_`; all others are dropped.
    pub capabilities: Vec<String>,
    /// Largest number of processes and threads at once.
    pub pids: u32,
    /// Whether its own file system is read-only; what is mounted is apart from that.
    pub read_only_root: bool,
    /// Version of the system calls it may make.
    pub syscalls: u32,
}

/// Device attached to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Device {
    /// A CDI name such as `nvidia.com/gpu=GPU-…`.
    Cdi {
        /// The qualified name.
        name: String,
        /// Numeric groups that own its device nodes on the host: no CDI specification says them.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        gids: Vec<u32>,
    },
    /// NVIDIA GPU by UUID, through the engine's device requests.
    Nvidia {
        /// The UUID.
        uuid: String,
    },
    /// A plain device node.
    Node {
        /// Path on the host and inside.
        path: String,
        /// Numeric group that owns it on the host.
        gid: u32,
    },
}

/// A value in a container's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum EnvValue {
    /// Shown as it is.
    Plain(String),
    /// Shown as a fingerprint.
    Secret(Secret),
}

impl From<&str> for EnvValue {
    fn from(value: &str) -> Self {
        Self::Plain(value.to_owned())
    }
}

impl From<String> for EnvValue {
    fn from(value: String) -> Self {
        Self::Plain(value)
    }
}

impl From<&Secret> for EnvValue {
    fn from(value: &Secret) -> Self {
        Self::Secret(value.clone())
    }
}

/// A file put into a container between creation and start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSpec {
    /// Absolute path inside.
    pub path: String,
    /// Permission bits, such as `0o600`.
    pub mode: u32,
    /// Numeric owner and group inside.
    pub owner: u32,
    /// Content; a secret is shown as a fingerprint.
    pub content: EnvValue,
}

/// A volume or host directory in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Source of the mount.
    pub source: MountSource,
    /// Absolute path inside.
    pub target: String,
    /// Whether the container may write.
    pub read_only: bool,
}

/// Source of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// A named volume of the engine, created when missing and never removed by labd's supervision.
    Volume(String),
    /// A directory of the host, which must exist.
    Host(String),
    /// A volume in memory, shared by all containers that name it. It holds nothing once none of them runs.
    Memory {
        /// Name of the volume; the size is part of it, since an existing volume keeps the size it was made with.
        name: String,
        /// Size in bytes.
        bytes: u64,
    },
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Port inside the container.
    pub container: u16,
    /// Address of the host it is published on.
    pub host_ip: String,
    /// Port of the host; absent lets the engine choose a free one.
    pub host: Option<u16>,
}

/// Plan: everything that is wanted, from one configuration on one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The lab's name; containers are called `<lab>-<service>`.
    pub lab: String,
    /// The lab's network, named after the lab.
    pub network: NetworkSpec,
    /// The images that enabled services need.
    pub images: Vec<ImageSpec>,
    /// Every service, switched-off ones included, in the order they are listed.
    pub services: Vec<Arc<ServiceSpec>>,
}

/// The lab's own bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkSpec {
    /// Name of the network.
    pub name: String,
    /// Subnet in CIDR notation, a /24.
    pub subnet: String,
    /// The host's address on it.
    pub gateway: Ipv4Addr,
}

impl Plan {
    /// The service called `name`.
    pub fn service(&self, name: &str) -> Option<&ServiceSpec> {
        self.services.iter().find(|s| s.name == name).map(Arc::as_ref)
    }

    /// Name of a service's container.
    pub fn container_name(&self, service: &str) -> String {
        format!("{}-{service}", self.lab)
    }
}

/// Difference between a container and the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It works as it is: the change can wait until nothing runs on it.
    Soft,
    /// It does not work any more: another address, port, credential or GPU.
    Hard,
}

/// Whether a container has to be recreated at once when this part of it has changed; the name is one of
/// [`ContainerSpec::parts`].
pub fn is_hard(part: &str) -> bool {
    // Not the lab's own settings, some of which are secret as well: a proxy's login may wait.
    const CREDENTIALS: [&str; 9] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "GF_SECURITY_ADMIN_PASSWORD",
        "JUPYTER_TOKEN",
        "LABD_JUPYTER_DOOR",
        "MINIO_ROOT_PASSWORD",
        "MINIO_ROOT_USER",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
    ];
    match part.split_once(' ') {
        None => matches!(part, "address" | "ports" | "devices"),
        Some(("env", name)) => name == "LABD_GPU_UUID" || CREDENTIALS.contains(&name),
        Some(("file", path)) => path == "/etc/labd/ray-token",
        Some(_) => false,
    }
}

impl ContainerSpec {
    /// Name of the volume in memory that it shares with others; absent where it has none.
    pub fn shared_memory(&self) -> Option<&str> {
        self.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Memory { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }

    /// Parts that it consists of, each with a fingerprint of its own: `memory_bytes`, `env RAY_AUTH_TOKEN`, `file
    /// /etc/x`, `mount /mnt`, `infiniband`. Empty ones are left out, so that a part which a newer labd knows is a
    /// change only where it is used.
    pub fn parts(&self) -> BTreeMap<String, String> {
        use serde_json::Value;
        let mut all: BTreeMap<String, Value> = BTreeMap::new();
        // Serialising plain structs with string keys cannot fail.
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return BTreeMap::new() };
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("env", Value::Object(env)) => all.extend(env.into_iter().map(|(k, v)| (format!("env {k}"), v))),
                ("files" | "mounts", Value::Array(items)) => {
                    let (word, key) = if name == "files" { ("file", "path") } else { ("mount", "target") };
                    all.extend(
                        items.into_iter().map(|v| (format!("{word} {}", v[key].as_str().unwrap_or_default()), v)),
                    );
                }
                ("devices", Value::Array(devices)) => {
                    // A network card's nodes may come after the machine's start, and what runs goes on without them.
                    let of_network =
                        |v: &Value| v["path"].as_str().is_some_and(|path| path.starts_with("/dev/infiniband/"));
                    let (network, gpu): (Vec<Value>, Vec<Value>) = devices.into_iter().partition(of_network);
                    all.insert("devices".to_owned(), Value::Array(gpu));
                    all.insert("infiniband".to_owned(), Value::Array(network));
                }
                (_, value) => {
                    all.insert(name, value);
                }
            }
        }
        let empty = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
        };
        let print = |v: &Value| hex(&Sha256::digest(v.to_string()))[..8].to_owned();
        all.iter().filter(|(_, v)| !empty(v)).map(|(name, v)| (name.clone(), print(v))).collect()
    }

    /// Fingerprint of the parts with which, once they change, a container does not work any more: it is then recreated
    /// at once.
    pub fn hard_hash(&self) -> String {
        let parts: BTreeMap<String, String> = self.parts().into_iter().filter(|(name, _)| is_hard(name)).collect();
        let json = serde_json::to_vec(&parts).unwrap_or_default();
        hex(&Sha256::digest(&json))[..16].to_owned()
    }

    /// Fingerprint of everything the engine is told: a running container with the same one is the wanted one.
    ///
    /// 16 hex digits of SHA-256 over the canonical JSON; secrets enter by their own fingerprints.
    pub fn hash(&self) -> String {
        // Serialising plain structs with string keys cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(&json))[..16].to_owned()
    }
}
