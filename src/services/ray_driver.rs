//! The CPU-only Ray node on which jobs' drivers run, and which notebooks connect to.

use super::{
    CODE, ForJobs, GIB, Make, Memory, On, Optional, PortDef, ServiceDef, Silence,
    draft::{Draft, RAY_STOP, env},
    ray::{
        AGENT_PORT, ENVIRONMENTS_PORT, START, end_at_once, janitor, join, node_env, packages, simulated, start_hook,
    },
    ray_head::GCS_PORT,
};
use crate::spec::{EnvValue, ImageName, Kind, Probe, Recreate, Requirement, ServiceSpec};

/// Port at which notebooks connect (`ray://ray-driver:10001`); open to the lab's network alone, and never without the
/// token.
const CONNECTIONS_PORT: u16 = 10_001;

/// Definition of the driver node.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind::RAY_DRIVER,
    size_key: "driver",
    host: 11,
    resolved: true,
    image: ImageName::Ray,
    ports: &[PortDef { container: AGENT_PORT, on: On::Loopback }],
    // A job of a course takes 1.1 GB there (its script 0.47, Train's controller 0.37, two processes that wait 0.12 each), a notebook
    // that is connected 0.2.
    memory: Memory::Share(|usable| {
        let part = |permille: u64, ceiling: u64| (usable / 1000 * permille).min(ceiling);
        part(250, 32 * GIB).max(part(120, 64 * GIB)).max(GIB)
    }),
    optional: Optional::Never,
    settings: Some(|s| s.ray_driver.clone()),
    for_jobs: ForJobs::OwnNode,
    stops_last: false,
    recreate: Recreate::NoJob,
    silence: Silence::Hung,
    rights: CODE,
    foreign_rights: None,
    link: None,
    login: None,
    make: Make::One(spec),
};

/// Address to which a notebook's first `ray.init()` leads: not to the head, which must outlive what people write.
pub(super) fn connections_address() -> EnvValue {
    format!("ray://ray-driver:{CONNECTIONS_PORT}").into()
}

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let sizes = draft.sizes;
    let mut container = draft.container(&DEF);
    container.command = join(draft, &container, "labd.role=driver", sizes.driver_cpus, 0, sizes.driver_object_store);
    container.env = node_env(draft);
    container.env.extend(end_at_once());
    let connections = format!(
        "{}:{GCS_PORT} {} {CONNECTIONS_PORT} {ENVIRONMENTS_PORT}",
        draft.address(super::ray_head::DEF.host),
        container.address
    );
    container.env.extend(env([
        ("LABD_CONNECTIONS", connections.into()),
        // When memory runs out, a notebook's connection (1000) goes before a job's driver; 1000 is Ray's own choice for both.
        ("RAY_worker_oom_score_adjustment", "300".into()),
    ]));
    container.files = vec![janitor(), start_hook()];
    container.env.extend(simulated(draft));
    container.mounts = draft.host_mounts();
    container.mounts.push(packages(draft));
    container.shm_bytes = sizes.driver_object_store.get() + (64 << 20);
    container.cpu_shares = 2048;
    container.stop_timeout = RAY_STOP;
    let probe = Probe::RayNode { agent_port: AGENT_PORT };
    ServiceSpec { requires: vec![Requirement::Gcs], ..draft.service(&DEF, container, probe, START) }
}
