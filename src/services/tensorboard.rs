//! TensorBoard, over what is logged in the workspace. Off unless `labd.toml` switches it on.

use std::time::Duration;

use super::{
    ForJobs, GIB, LinkDef, MIB, Make, Memory, On, Optional, PortDef, RightsDef, ServiceDef, Silence,
    draft::{Draft, env, words},
};
use crate::spec::{ImageName, Kind, Mount, MountSource, Probe, Recreate, ServiceSpec};

const PORT: u16 = 6006;

/// Definition of the service TensorBoard.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind("tensorboard"),
    size_key: "tensorboard",
    host: 17,
    // Nothing asks it, and a name more would change every container.
    resolved: false,
    image: ImageName::Ray,
    ports: &[PortDef { container: PORT, on: On::Published("tensorboard", |p| p.tensorboard) }],
    // It keeps what it has read of every run. Chosen, not measured.
    memory: Memory::Share(|usable| (usable / 1000 * 20).clamp(256 * MIB, 4 * GIB)),
    optional: Optional::ByDefaultOff,
    settings: Some(|s| s.tensorboard.clone()),
    for_jobs: ForJobs::Nothing,
    stops_last: false,
    recreate: Recreate::AtOnce,
    silence: Silence::Hung,
    // Event files belong to whoever wrote them.
    rights: RightsDef { capabilities: &["DAC_OVERRIDE"], pids: 1_024, read_only_root: true },
    foreign_rights: None,
    link: Some(LinkDef { rank: 6, name: "TensorBoard", port: PORT, path: "/" }),
    login: None,
    make: Make::One(spec),
};

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let mut container = draft.container(&DEF);
    container.command = words(&[
        "/opt/jupyter/bin/tensorboard",
        "--logdir=/workspace",
        "--host=0.0.0.0",
        "--port=6006",
        "--reload_interval=30",
        // The faster reader is a program of its own that ships for few platforms.
        "--load_fast=false",
    ]);
    // It writes a note about itself there, and ends where it cannot: its own file system is read-only.
    container.env = env([("TMPDIR", "/dev/shm".into())]);
    container.mounts = vec![Mount {
        source: MountSource::Host(draft.config().workspace().display().to_string()),
        target: "/workspace".into(),
        read_only: true,
    }];
    container.cpu_shares = 512;
    let probe = Probe::Http { port: PORT, path: "/data/environment".into(), authorization: None };
    draft.service(&DEF, container, probe, Duration::from_mins(2))
}

#[cfg(test)]
mod tests {
    use crate::plan::{make, tests::inputs};

    #[test]
    fn it_is_there_when_it_is_switched_on_and_changes_no_other_containers_specification_but_the_workers_memory() {
        let plan = |toml: &str| make(&inputs(toml, 1, 32)).expect("a plan").0;
        let (off, on) = (plan(""), plan("[services.tensorboard]\nenabled = true"));
        assert!(off.service("tensorboard").is_none(), "not even listed");
        for service in &off.services {
            let other = on.service(&service.name).expect("still there");
            let same = service.container.hash() == other.container.hash();
            assert_eq!(same, service.name != "ray-worker-0", "{}", service.name);
        }
        let container = &on.service("tensorboard").expect("planned").container;
        assert!(container.mounts.iter().all(|mount| mount.read_only) && container.rights.read_only_root);
        assert_eq!(container.ports[0].host, Some(6006));
    }
}
