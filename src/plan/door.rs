//! The front door's end in the lab's network: a relay to labd's socket. A container of its own, since a firewall may drop
//! what containers send to their host, and a rootless engine's host is not on their network at all.

use std::time::Duration;

use super::{Draft, STOP, host, ray::DASHBOARD_PORT};
use crate::{
    config::Bytes,
    plan::spec::{ImageName, Kind, Mount, MountSource, Probe, ServiceSpec},
};

/// The service's name, and its name for other containers.
pub const NAME: &str = "front-door";
/// Name of labd's socket in the folder that the relay sees.
pub const SOCKET: &str = "jobs.sock";
/// One Python process, and 64 KiB for each direction of a connection. Chosen, not measured in a container.
pub(super) const MEMORY: Bytes = Bytes::new(96 << 20);

pub(super) fn front_door(draft: &Draft<'_>) -> ServiceSpec {
    let config = draft.config();
    let mut container = draft.container(NAME, Kind::FrontDoor, ImageName::Ray, host::FRONT_DOOR, MEMORY);
    // Python looks at nothing else: no site-packages, no environment. The program is not a file, as no file can be put into
    // a container whose own file system is read-only.
    container.command = super::words(&["python3", "-I", "-S", "-c", include_str!("../../images/run/relay.py")]);
    container.command.push(format!("{DASHBOARD_PORT}=/run/labd/{SOCKET}"));
    container.mounts = vec![Mount {
        source: MountSource::Host(config.door_dir().display().to_string()),
        target: "/run/labd".into(),
        read_only: true,
    }];
    container.ports = vec![super::ray::loopback_port(DASHBOARD_PORT)];
    container.stop_timeout = STOP;
    ServiceSpec {
        name: NAME.into(),
        kind: Kind::FrontDoor,
        image: ImageName::Ray,
        enabled: true,
        requires: Vec::new(),
        // The whole way: host, relay, socket, labd.
        probe: Probe::Http { port: DASHBOARD_PORT, path: "/labd/healthz".into(), authorization: None },
        start_deadline: Duration::from_mins(1),
        container,
    }
}
