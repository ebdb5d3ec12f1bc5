//! What the plan says of each service: values only, no behaviour beyond the fingerprint that tells whether a running
//! container is still what is wanted.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    minio::Keys,
    secret::{Secret, hex},
};

/// Which part of the lab a service is. The kind decides how it is probed and restarted, never its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Scheduler, GCS and dashboard. Runs no user code.
    RayHead,
    /// CPU-only Ray node on which job drivers run.
    RayDriver,
    /// Ray node with exactly one GPU.
    RayWorker,
    /// S3 store for checkpoints.
    Minio,
    /// Metrics store.
    Prometheus,
    /// Metrics dashboards.
    Grafana,
    /// JupyterLab, without a GPU.
    Jupyter,
    /// The front door's end in the lab's network.
    FrontDoor,
}

impl Kind {
    /// Whether it is a Ray node other than the head, whose death the GCS is told at once.
    pub const fn is_ray_node(self) -> bool {
        matches!(self, Self::RayDriver | Self::RayWorker)
    }
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
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ray => "ray",
            Self::Minio => "minio",
            Self::Prometheus => "prometheus",
            Self::Grafana => "grafana",
        }
    }
}

/// Where an image comes from. Pure: the reference is known before anything is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSpec {
    /// Which of labd's images.
    pub name: ImageName,
    /// The reference containers use: `labd/ray:<inputs>` when built, else what `labd.toml` names.
    pub reference: String,
    /// How it is had when the engine does not have it.
    pub source: ImageSource,
}

/// How an image is had.
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

/// One service: what its container is, what it waits for, and how one knows that it works.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceSpec {
    /// Unique name, such as `ray-worker-0`.
    pub name: String,
    /// Which part of the lab it is.
    pub kind: Kind,
    /// Which image its container uses.
    pub image: ImageName,
    /// False when `labd.toml` switches it off; its container is then removed.
    pub enabled: bool,
    /// What must hold before it is started. Never stops a running one.
    pub requires: Vec<Requirement>,
    /// Its contract.
    pub probe: Probe,
    /// Longest time from container start to the first passing probe; after that it counts as hung and is killed.
    pub start_deadline: Duration,
    /// The container. Only a change in here recreates it.
    pub container: ContainerSpec,
}

/// What a service waits for before it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// The named service fulfils its contract. MinIO's contract includes its bucket.
    Ready(String),
    /// The head's GCS answers: all a Ray node needs to join, seconds before the dashboard is up.
    Gcs,
}

/// How labd knows that a service works. Ports are container ports, reached through what is published on loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "probe", rename_all = "kebab-case")]
pub enum Probe {
    /// A GET answered with 200.
    Http {
        /// Container port.
        port: u16,
        /// Path and query, without credentials.
        path: String,
        /// Sent as `Authorization: <scheme> <secret>`.
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
        /// What jobs and notebooks hold.
        user: Keys,
        /// What makes the bucket and the user.
        root: Keys,
    },
    /// The node at the container's address is ALIVE in the GCS since this start, and its raylet answers.
    RayNode {
        /// Container port of the node's agent.
        agent_port: u16,
    },
}

/// A container, as it is handed to the engine.
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
    /// How long a graceful stop may take before it becomes a kill.
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
    /// Devices handed in: the GPU's, and InfiniBand's. Empty for simulated GPUs and for services without one.
    pub devices: Vec<Device>,
    /// User inside, `uid:gid`; absent for the image's own.
    pub user: Option<String>,
    /// Working directory; absent for the image's own.
    pub workdir: Option<String>,
    /// What it may do beyond its own files and processes.
    pub rights: Rights,
}

/// What a container may do beyond its own files and processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rights {
    /// The capabilities of its root, without `CAP_`; all others are dropped.
    pub capabilities: Vec<String>,
    /// Most processes and threads at once.
    pub pids: u32,
    /// Whether its own file system is read-only; what is mounted is apart from that.
    pub read_only_root: bool,
    /// Version of the system calls it may make.
    pub syscalls: u32,
}

/// A device handed to a container.
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
    /// An NVIDIA GPU by UUID, through the engine's device requests.
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
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path inside.
    pub target: String,
    /// Whether the container may write.
    pub read_only: bool,
}

/// What is mounted.
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

/// Everything that is wanted, from one configuration on one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The lab's name; containers are called `<lab>-<service>`.
    pub lab: String,
    /// The lab's network, named after the lab.
    pub network: NetworkSpec,
    /// The images that enabled services need.
    pub images: Vec<ImageSpec>,
    /// Every service, switched-off ones included, in the order they are listed.
    pub services: Vec<ServiceSpec>,
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
        self.services.iter().find(|s| s.name == name)
    }

    /// Name of a service's container.
    pub fn container_name(&self, service: &str) -> String {
        format!("{}-{service}", self.lab)
    }
}

/// How a container differs from what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It works as it is: what changed can wait until nothing runs on it.
    Soft,
    /// It does not work any more: another address, port, credential or GPU.
    Hard,
}

/// Whether a container is no use any more once this part of it has changed; the name is one of [`ContainerSpec::parts`].
pub fn is_hard(part: &str) -> bool {
    // Not the lab's own settings, some of which are secret as well: a proxy's login may wait.
    const CREDENTIALS: [&str; 8] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "GF_SECURITY_ADMIN_PASSWORD",
        "JUPYTER_TOKEN",
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
    /// What it consists of, each part with a fingerprint of its own: `memory_bytes`, `env RAY_AUTH_TOKEN`, `file /etc/x`,
    /// `mount /mnt`, `infiniband`. What is empty is left out, so that a part which a newer labd knows is a change only where
    /// it is used.
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

    /// Fingerprint of what a container cannot work with once it is another: what differs in this is recreated at once.
    pub fn hard_hash(&self) -> String {
        let parts: BTreeMap<String, String> = self.parts().into_iter().filter(|(name, _)| is_hard(name)).collect();
        let json = serde_json::to_vec(&parts).unwrap_or_default();
        hex(&Sha256::digest(&json))[..16].to_owned()
    }

    /// Fingerprint of everything the engine is told: a running container with the same one is what is wanted.
    ///
    /// 16 hex digits of SHA-256 over the canonical JSON; secrets enter by their own fingerprints.
    pub fn hash(&self) -> String {
        // Serialising plain structs with string keys cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(&json))[..16].to_owned()
    }
}
