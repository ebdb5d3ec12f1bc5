//! The Ray cluster: head, driver node, one worker per GPU.

use std::{collections::BTreeMap, time::Duration};

use super::{Draft, RAY_STOP, env, host, placement::Place};
use crate::{
    config::Bytes,
    node::gpu::{Gpu, Vendor},
    plan::spec::{
        ContainerSpec, Device, EnvValue, FileSpec, ImageName, Kind, Mount, MountSource, Port, Probe, Requirement,
        ServiceSpec,
    },
};

pub(super) const GCS_PORT: u16 = 6379;
pub(super) const DASHBOARD_PORT: u16 = 8265;
const METRICS_PORT: u16 = 8080;
/// Where each node's agent answers `/api/local_raylet_healthz`.
const AGENT_PORT: u16 = 52365;
const JANITOR: &str = "/opt/labd/janitor.py";
const HEAD_HOOK: &str = "/opt/labd/head/labd_head.py";
const NVIDIA_SMI: &str = "/usr/local/bin/nvidia-smi";
/// Where the head writes Grafana's dashboards.
pub(super) const DASHBOARDS: &str = "/dashboards";

/// Where notebooks connect (`ray://ray-driver:10001`); open to the lab's network alone, and never without the token.
const CONNECTIONS_PORT: u16 = 10_001;
/// Where Ray's agent on the driver node makes environments, for the server of those connections.
const ENVIRONMENTS_PORT: u16 = 52_366;

/// From container start to ALIVE: 2 s on an idle machine, 24 s once on a cold, crowded one; images with torch on a
/// network disk take longer.
const START: Duration = Duration::from_mins(2);

/// Runs before `ray start`: puts old logs away and, on the head, sets aside a state that this Ray cannot or must not read.
/// What it starts besides outlives it: the watch over logs and, on the driver node, the server for notebooks' connections.
const BEFORE_START: &str = include_str!("../../images/run/start.sh");

pub(super) fn head(draft: &Draft<'_>) -> ServiceSpec {
    let (config, sizes) = (draft.config(), draft.sizes);
    let mut container = draft.container("ray-head", Kind::RayHead, ImageName::Ray, host::HEAD, sizes.head);
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
        // labd's page and Grafana show metrics; Ray's dashboard would look for a Grafana that visitors cannot reach.
        ("RAY_GRAFANA_HOST", "DISABLED".into()),
        ("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", DASHBOARDS.into()),
    ]));
    if config.ray.persist {
        // Case-sensitive, unlike Ray's other settings; alpha in Ray 2.60.
        container.env.extend(env([("RAY_gcs_storage", "rocksdb".into()), ("RAY_gcs_storage_path", "/gcs/db".into())]));
    }
    container.mounts =
        vec![volume(draft.volume("gcs"), "/gcs"), volume(draft.volume("dashboards"), DASHBOARDS), packages(draft)];
    container.files =
        vec![janitor(), super::file(HEAD_HOOK, 0o644, include_str!("../../images/run/labd_head.py").into())];
    // The dashboard is reached through labd's front door.
    container.ports = vec![draft.port(GCS_PORT, config.ports.gcs), loopback_port(DASHBOARD_PORT)];
    container.shm_bytes = sizes.head_object_store.get() + (64 << 20);
    // Everything waits for the head, which runs no user code: it must answer, and be back after a crash, while workers and
    // drivers keep every core busy.
    container.cpu_shares = 32_768;
    container.stop_timeout = RAY_STOP;
    ServiceSpec {
        name: "ray-head".into(),
        kind: Kind::RayHead,
        image: ImageName::Ray,
        enabled: true,
        requires: Vec::new(),
        // Open without the token, and answered from the GCS.
        probe: Probe::Http { port: DASHBOARD_PORT, path: "/api/gcs_healthz".into(), authorization: None },
        start_deadline: START,
        container,
    }
}

pub(super) fn driver(draft: &Draft<'_>) -> ServiceSpec {
    let sizes = draft.sizes;
    let mut container = draft.container("ray-driver", Kind::RayDriver, ImageName::Ray, host::DRIVER, sizes.driver);
    container.command = join(draft, &container, "labd.role=driver", sizes.driver_cpus, 0, sizes.driver_object_store);
    container.command.push(format!("--runtime-env-agent-port={ENVIRONMENTS_PORT}"));
    container.env = node_env(draft);
    container.env.extend(end_at_once());
    let connections = format!(
        "{}:{GCS_PORT} {} {CONNECTIONS_PORT} {ENVIRONMENTS_PORT}",
        draft.address(host::HEAD),
        container.address
    );
    container.env.extend(env([
        ("LABD_CONNECTIONS", connections.into()),
        // When memory runs out, a notebook's connection (1000) goes before a job's driver; 1000 is Ray's own choice for both.
        ("RAY_worker_oom_score_adjustment", "300".into()),
    ]));
    container.files = vec![janitor()];
    container.env.extend(simulated(draft));
    container.mounts = draft.host_mounts();
    container.mounts.push(packages(draft));
    container.shm_bytes = sizes.driver_object_store.get() + (64 << 20);
    container.cpu_shares = 2048;
    container.ports = vec![loopback_port(AGENT_PORT)];
    container.stop_timeout = RAY_STOP;
    ServiceSpec {
        name: "ray-driver".into(),
        kind: Kind::RayDriver,
        image: ImageName::Ray,
        enabled: true,
        requires: vec![Requirement::Gcs],
        probe: Probe::RayNode { agent_port: AGENT_PORT },
        start_deadline: START,
        container,
    }
}

pub(super) fn worker(draft: &Draft<'_>, gpu: &Gpu, place: &Place) -> ServiceSpec {
    let (config, sizes) = (draft.config(), draft.sizes);
    let name = format!("ray-worker-{}", gpu.slot);
    let host = host::FIRST_WORKER.saturating_add(u8::try_from(gpu.slot).unwrap_or(u8::MAX));
    let mut container = draft.container(&name, Kind::RayWorker, ImageName::Ray, host, sizes.worker);
    let labels = format!("labd.role=worker,labd.gpu={}", gpu.id);
    let cpus = config.ray.cpus_per_worker.or(place.logical_cpus).unwrap_or(sizes.worker_cpus);
    container.command = join(draft, &container, &labels, cpus, 1, sizes.worker_object_store);
    container.env = node_env(draft);
    // The only word about the GPU inside. No `*_VISIBLE_DEVICES`: what is handed in is all there is, and Ray refuses to
    // start with `ROCR_VISIBLE_DEVICES`.
    container.env.insert("LABD_GPU_UUID".to_owned(), gpu.id.clone().into());
    container.env.extend(simulated(draft));
    container.files = vec![janitor()];
    if gpu.vendor == Vendor::Simulated {
        // What scripts and people ask first; the real one comes with its GPU.
        container.files.push(super::file(NVIDIA_SMI, 0o755, include_str!("../../images/run/nvidia-smi.sh").into()));
    }
    container.devices.clone_from(&gpu.devices);
    // Collective libraries find other machines through these.
    let infiniband = draft.inputs.node.infiniband.iter();
    container.devices.extend(infiniband.map(|node| Device::Node { path: node.path.clone(), gid: node.gid }));
    container.unlimited_memlock = draft.inputs.node.unlimited_memlock;
    container.cpuset_cpus.clone_from(&place.cpus);
    container.cpuset_mems.clone_from(&place.memory);
    container.mounts = draft.host_mounts();
    container.mounts.push(packages(draft));
    // With a `/dev/shm` of its own each, NCCL would fall back to sockets between workers.
    let bytes = sizes.shared_memory.get();
    let shm = draft.volume(&format!("shm-{}m", bytes >> 20));
    container.mounts.push(Mount {
        source: MountSource::Memory { name: shm, bytes },
        target: "/dev/shm".into(),
        read_only: false,
    });
    container.ports = vec![loopback_port(AGENT_PORT)];
    container.stop_timeout = RAY_STOP;
    let mut requires = vec![Requirement::Gcs];
    if config.services.minio.on() {
        // A worker that is ALIVE gets work, and work without its checkpoint store fails.
        requires.push(Requirement::Ready("minio".into()));
    }
    ServiceSpec {
        name,
        kind: Kind::RayWorker,
        image: ImageName::Ray,
        enabled: true,
        requires,
        probe: Probe::RayNode { agent_port: AGENT_PORT },
        start_deadline: START,
        container,
    }
}

fn join(
    draft: &Draft<'_>,
    container: &ContainerSpec,
    labels: &str,
    cpus: u32,
    gpus: u32,
    object_store: Bytes,
) -> Vec<String> {
    start(
        &[],
        &[
            ("--address", format!("{}:{GCS_PORT}", draft.address(host::HEAD))),
            ("--node-ip-address", container.address.to_string()),
            ("--labels", labels.to_owned()),
            ("--num-cpus", cpus.to_string()),
            ("--num-gpus", gpus.to_string()),
        ],
        object_store,
    )
}

fn start(flags: &[&str], values: &[(&str, String)], object_store: Bytes) -> Vec<String> {
    let mut command =
        super::words(&["sh", "-c", BEFORE_START, "sh", "ray", "start", "--block", "--disable-usage-stats"]);
    command.extend(flags.iter().map(|&f| f.to_owned()));
    command.extend(values.iter().map(|(k, v)| format!("{k}={v}")));
    command.push(format!("--object-store-memory={}", object_store.get()));
    command.push(format!("--metrics-export-port={METRICS_PORT}"));
    command.push(format!("--dashboard-agent-listen-port={AGENT_PORT}"));
    command
}

fn node_env(draft: &Draft<'_>) -> BTreeMap<String, EnvValue> {
    let mut all = draft.ray_auth_env();
    all.extend(draft.s3_env());
    all.extend(draft.outward_env());
    all.extend(draft.own_env());
    let settings = &draft.inputs.config.ray;
    // Only where a person says so: the bound that fits the disk is computed where the packages are kept, so that another
    // disk is not another container.
    if let Some(limit) = settings.packages_limit {
        all.insert("LABD_PACKAGES_LIMIT_BYTES".to_owned(), limit.get().to_string().into());
    }
    if !settings.warm_starts {
        all.insert("LABD_WARM".to_owned(), "0".into());
    }
    all.extend(env([
        // A job that submits jobs finds the front door, too: this goes before what Ray would find out by itself.
        ("RAY_API_SERVER_ADDRESS", super::job_address()),
        // How long the kernel keeps a connection whose other end does not answer (TCP_USER_TIMEOUT, set by gRPC on the
        // answering side). With Ray's 20 s, a network that was cut for 13 to 20 s left half-open connections: the one side
        // had given up without a word, the other asked again only after 5 min, and a training run stood still for so long.
        ("RAY_grpc_keepalive_timeout_ms", "120000".into()),
        // How long a node or a worker process does without the GCS before it ends itself; 60 s by default. On a busy machine,
        // or while a person looks after the head, it is away for longer, and what trains has no need of it.
        ("RAY_gcs_rpc_server_reconnect_timeout_s", "600".into()),
        // A raylet that asks its own object store too early asks again after 1 s; the store is there within milliseconds. As
        // patient as Ray in all: 10 s.
        ("RAY_raylet_client_connect_timeout_milliseconds", "50".into()),
        ("RAY_raylet_client_num_connect_attempts", "200".into()),
        // How long a job may be PENDING before Ray calls it failed, 15 min by default: waiting for a GPU that is in use is
        // no failure, nor are a course's packages on a slow line. A week, as there is no "for ever".
        ("RAY_JOB_START_TIMEOUT_SECONDS", "604800".into()),
        // How often Train looks at its workers and collects reports; 2 s by default, which made short epochs twice as long.
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25".into()),
        ("RAY_TRAIN_ENABLE_STATE_TRACKING", "1".into()),
        // What a script prints reaches its job's log as it is, and at once.
        ("RAY_TRAIN_ENABLE_PRINT_PATCH", "0".into()),
        ("RAY_DEDUP_LOGS", "0".into()),
        // Each node keeps the files of jobs that ended, in its container: Ray's 10 GB of each kind are too much for a disk
        // that all nodes share. 2 GB are twenty of the largest upload that Ray takes, and another fetch costs a second.
        ("RAY_RUNTIME_ENV_WORKING_DIR_CACHE_SIZE_GB", "2".into()),
        ("RAY_RUNTIME_ENV_PY_MODULES_CACHE_SIZE_GB", "2".into()),
    ]));
    all
}

/// Keeps logs of jobs and workers within bounds; start.sh runs it again and again.
fn janitor() -> FileSpec {
    super::file(JANITOR, 0o644, include_str!("../../images/run/janitor.py").into())
}

/// Where a notebook's first `ray.init()` leads: not to the head, which must outlive what people write.
pub(super) fn connections_address() -> EnvValue {
    format!("ray://ray-driver:{CONNECTIONS_PORT}").into()
}

/// A mark where no GPU is real: what runs there may know that CUDA is not.
fn simulated(draft: &Draft<'_>) -> BTreeMap<String, EnvValue> {
    let gpus = &draft.inputs.gpus;
    let all = !gpus.is_empty() && gpus.iter().all(|gpu| gpu.vendor == Vendor::Simulated);
    if all { env([("LABD_SIMULATED_GPUS", "1".into())]) } else { BTreeMap::new() }
}

/// Packages of jobs, one place for all nodes of this machine: what one installed another finds, after a restart too.
fn packages(draft: &Draft<'_>) -> Mount {
    volume(draft.volume("packages"), "/packages")
}

/// A node that gets SIGTERM trains on for up to 30 s, so that a run can move to another. On the head and the driver node
/// nothing can move, and Ray's own actors (Train's state, a job's supervisor) keep them busy for all of the 30 s.
fn end_at_once() -> BTreeMap<String, EnvValue> {
    env([("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0".into())])
}

/// Published on loopback whatever `labd.toml` says, on a port of the engine's choice: only labd itself needs it.
pub(super) fn loopback_port(container: u16) -> Port {
    Port { container, host_ip: "127.0.0.1".into(), host: None }
}

fn volume(name: String, target: &str) -> Mount {
    Mount { source: MountSource::Volume(name), target: target.to_owned(), read_only: false }
}
