//! Common parts of Ray's nodes.

use std::{collections::BTreeMap, time::Duration};

use super::{
    draft::{Draft, env, file, volume, words},
    ray_head::{self, GCS_PORT},
};
use crate::{
    config::Bytes,
    gpus::Vendor,
    spec::{ContainerSpec, EnvValue, FileSpec, Mount},
};

pub(super) const METRICS_PORT: u16 = 8080;
/// Port at which each node's agent answers `/api/local_raylet_healthz`.
pub(super) const AGENT_PORT: u16 = 52365;
/// Port at which each node's agent that makes environments answers; on the driver node, the server for notebooks'
/// connections asks there, too. Like the next one below those from which Ray serves its workers and the kernel its
/// connections: a port that is taken costs the node a start.
pub(super) const ENVIRONMENTS_PORT: u16 = 9998;
/// Port at which each node's agent takes metrics.
const AGENT_METRICS_PORT: u16 = 9997;
pub(super) const JANITOR: &str = "/opt/labd/janitor.py";
const START_HOOK: &str = "/opt/labd/start/labd_start.py";
/// Longest time from container start to ALIVE: 2 s on an idle machine, 24 s once on a cold, crowded one; images with
/// torch on a network disk take longer.
pub(super) const START: Duration = Duration::from_mins(2);

/// Script that runs before `ray start`: puts old logs away and, on the head, sets aside a state that this Ray cannot or
/// must not read. What it starts besides outlives it: the watch over logs and, on the driver node, the server for
/// notebooks' connections.
pub(super) const BEFORE_START: &str = include_str!("../../images/run/start.sh");

pub(super) fn join(
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
            ("--address", format!("{}:{GCS_PORT}", draft.address(ray_head::DEF.host))),
            ("--node-ip-address", container.address.to_string()),
            ("--labels", labels.to_owned()),
            ("--num-cpus", cpus.to_string()),
            ("--num-gpus", gpus.to_string()),
            // With all ports of its agents known, a node joins without waiting for them.
            ("--dashboard-agent-grpc-port", AGENT_METRICS_PORT.to_string()),
            ("--runtime-env-agent-port", ENVIRONMENTS_PORT.to_string()),
        ],
        object_store,
    )
}

pub(super) fn start(flags: &[&str], values: &[(&str, String)], object_store: Bytes) -> Vec<String> {
    let mut command = words(&["sh", "-c", BEFORE_START, "sh", "ray", "start", "--block", "--disable-usage-stats"]);
    command.extend(flags.iter().map(|&f| f.to_owned()));
    command.extend(values.iter().map(|(k, v)| format!("{k}={v}")));
    command.push(format!("--object-store-memory={}", object_store.get()));
    command.push(format!("--metrics-export-port={METRICS_PORT}"));
    command.push(format!("--dashboard-agent-listen-port={AGENT_PORT}"));
    command
}

pub(super) fn node_env(draft: &Draft<'_>) -> BTreeMap<String, EnvValue> {
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
        ("RAY_API_SERVER_ADDRESS", super::front_door::job_address()),
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
        // So does a node that has joined before its agents answer, when it gets a worker with an environment to start.
        ("RAY_agent_manager_retry_interval_ms", "100".into()),
        // How long a job may be PENDING before Ray calls it failed, 15 min by default: waiting for a GPU that is in use is
        // no failure, nor are a course's packages on a slow line. A week, as there is no "forever".
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

/// Script that keeps logs of jobs and workers within bounds; start.sh runs it again and again.
pub(super) fn janitor() -> FileSpec {
    file(JANITOR, 0o644, include_str!("../../images/run/janitor.py").into())
}

/// What `ray start` asks before it starts anything.
pub(super) fn start_hook() -> FileSpec {
    file(START_HOOK, 0o644, include_str!("../../images/run/labd_start.py").into())
}

/// Environment that marks a lab where no GPU is real: what runs there may know that CUDA is not.
pub(super) fn simulated(draft: &Draft<'_>) -> BTreeMap<String, EnvValue> {
    let gpus = &draft.inputs.gpus;
    let all = !gpus.is_empty() && gpus.iter().all(|gpu| gpu.vendor == Vendor::Simulated);
    if all { env([("LABD_SIMULATED_GPUS", "1".into())]) } else { BTreeMap::new() }
}

/// Volume for packages of jobs, one for all nodes of this machine: what one installed another finds, after a restart
/// too.
pub(super) fn packages(draft: &Draft<'_>) -> Mount {
    volume(draft.volume("packages"), "/packages", false)
}

/// Environment with which a node ends at once. A node that gets SIGTERM trains on for up to 30 s, so that a run can
/// move to another. On the head and the driver node nothing can move, and Ray's own actors (Train's state, a job's
/// supervisor) keep them busy for all of the 30 s.
pub(super) fn end_at_once() -> BTreeMap<String, EnvValue> {
    env([("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0".into())])
}
