//! The front door's end in the lab's network: a relay to labd's socket. A container of its own, since a firewall may
//! drop what containers send to their host, and a rootless engine's host is not on their network at all.

use std::time::Duration;

use super::{
    ForJobs, LinkDef, LoginDef, Make, Memory, On, Optional, PortDef, RightsDef, ServiceDef, Silence,
    draft::{Draft, words},
    ray_head::DASHBOARD_PORT,
};
use crate::{
    config::Bytes,
    spec::{EnvValue, ImageName, Kind, Mount, MountSource, Probe, Recreate, ServiceSpec},
};

/// Name of labd's socket in the folder that the relay sees.
pub const SOCKET: &str = "jobs.sock";

/// Path below which the front door answers for Grafana.
pub const GRAFANA: &str = "/labd/grafana";

/// The front door's relay. labd itself listens on the port that people know.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind("front-door"),
    size_key: "front_door",
    host: 16,
    resolved: true,
    image: ImageName::Ray,
    ports: &[PortDef { container: DASHBOARD_PORT, on: On::ByLabd("dashboard", |p| p.dashboard) }],
    // One Python process, and 64 KiB for each direction of a connection. Chosen, not measured in a container.
    memory: Memory::Fixed(Bytes::new(96 << 20)),
    optional: Optional::Never,
    settings: None,
    for_jobs: ForJobs::Nothing,
    stops_last: false,
    recreate: Recreate::AtOnce,
    silence: Silence::Hung,
    rights: RightsDef { capabilities: &[], pids: 64, read_only_root: true },
    foreign_rights: None,
    link: Some(LinkDef { rank: 1, name: "Ray dashboard", port: DASHBOARD_PORT, path: "/" }),
    login: Some(LoginDef {
        rank: 1,
        name: "ray",
        path: "/",
        user: |_| None,
        secret: |s| &s.ray_token,
        port: |p| p.dashboard,
    }),
    make: Make::One(spec),
};

/// Address at which jobs are submitted: labd's front door, not the head. An HTTP address: what `ray job submit` takes.
pub(super) fn job_address() -> EnvValue {
    format!("http://{}:{}", DEF.name(), DASHBOARD_PORT).into()
}

/// Address at which the head asks whether there is a Grafana.
pub(super) fn grafana_address() -> EnvValue {
    format!("http://{}:{}{GRAFANA}", DEF.name(), DASHBOARD_PORT).into()
}

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let config = draft.config();
    let mut container = draft.container(&DEF);
    // Python looks at nothing else: no site-packages, no environment. The program is not a file, as no file can be put into
    // a container whose own file system is read-only.
    container.command = words(&["python3", "-I", "-S", "-c", include_str!("../../images/run/relay.py")]);
    container.command.push(format!("{DASHBOARD_PORT}=/run/labd/{SOCKET}"));
    container.mounts = vec![Mount {
        source: MountSource::Host(config.door_dir().display().to_string()),
        target: "/run/labd".into(),
        read_only: true,
    }];
    // The whole way: host, relay, socket, labd.
    let probe = Probe::Http { port: DASHBOARD_PORT, path: "/labd/healthz".into(), authorization: None };
    draft.service(&DEF, container, probe, Duration::from_mins(1))
}
