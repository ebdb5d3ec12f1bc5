//! The Ray nodes with exactly one GPU each.

use super::{
    CODE, ForJobs, Make, Memory, On, Optional, PortDef, ServiceDef, Silence,
    draft::{Draft, Place, RAY_STOP, file},
    ray::{AGENT_PORT, START, janitor, join, node_env, packages, simulated, start_hook},
};
use crate::{
    gpus::{Gpu, Vendor},
    spec::{Device, ImageName, Kind, Mount, MountSource, Probe, Recreate, Requirement, ServiceSpec, worker_name},
};

/// Largest number of workers that the lab's /24 has addresses for: .20 to .219.
pub const MOST: usize = 200;
const NVIDIA_SMI: &str = "/usr/local/bin/nvidia-smi";

/// Definition of the workers.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind::RAY_WORKER,
    size_key: "worker",
    host: 20,
    // One more GPU changes no other container.
    resolved: false,
    image: ImageName::Ray,
    ports: &[PortDef { container: AGENT_PORT, on: On::Loopback }],
    memory: Memory::Rest,
    optional: Optional::Never,
    settings: Some(|s| s.ray_worker.clone()),
    for_jobs: ForJobs::OwnNode,
    stops_last: false,
    recreate: Recreate::NodeIdle,
    silence: Silence::Hung,
    rights: CODE,
    foreign_rights: None,
    link: None,
    login: None,
    make: Make::PerGpu(spec),
};

/// Host number of a worker in the lab's /24. Fixed, since a Ray node that returns at its old address is noticed twice
/// as fast.
pub(super) fn host(slot: usize) -> u8 {
    DEF.host.saturating_add(u8::try_from(slot).unwrap_or(u8::MAX))
}

fn spec(draft: &Draft<'_>, gpu: &Gpu, place: &Place) -> ServiceSpec {
    let (config, sizes) = (draft.config(), draft.sizes);
    let mut container = draft.container_at(&DEF, &worker_name(gpu.slot), host(gpu.slot));
    let labels = format!("labd.role=worker,labd.gpu={}", gpu.id);
    let cpus = config.ray.cpus_per_worker.or(place.logical_cpus).unwrap_or(sizes.worker_cpus);
    container.command = join(draft, &container, &labels, cpus, 1, sizes.worker_object_store);
    container.env = node_env(draft);
    // The only word about the GPU inside. No `*_VISIBLE_DEVICES`: what is attached is all there is, and Ray refuses to
    // start with `ROCR_VISIBLE_DEVICES`.
    container.env.insert("LABD_GPU_UUID".to_owned(), gpu.id.clone().into());
    container.env.extend(simulated(draft));
    container.files = vec![janitor(), start_hook()];
    if gpu.vendor == Vendor::Simulated {
        // What scripts and people ask first; the real one comes with its GPU.
        container.files.push(file(NVIDIA_SMI, 0o755, include_str!("../../images/run/nvidia-smi.sh").into()));
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
    container.stop_timeout = RAY_STOP;
    let mut requires = vec![Requirement::Gcs];
    if super::minio::DEF.is_enabled(config) {
        // A worker that is ALIVE gets work, and work without its checkpoint store fails.
        requires.push(Requirement::Ready(super::minio::DEF.name().into()));
    }
    let probe = Probe::RayNode { agent_port: AGENT_PORT };
    ServiceSpec { requires, ..draft.service(&DEF, container, probe, START) }
}
