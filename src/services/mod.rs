//! The services of a lab: a file for each, with everything that labd knows of it. Pure.
//!
//! A new service is a file, a line in [`ALL`] and its settings: hosts, links, logins, memory, ports, limits and what its end
//! means for jobs are read from here, by whoever needs them.

mod draft;
pub mod front_door;
pub mod grafana;
pub mod jupyter;
pub mod minio;
pub mod prometheus;
mod ray;
pub mod ray_driver;
pub mod ray_head;
pub mod ray_worker;
pub mod tensorboard;

pub use draft::{Draft, Inputs, Place, Sizes};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    config::{Bytes, Config, Ports, Service, Services, Tls},
    credentials::{Credential, Secrets},
    door::Upstreams,
    gpus::Gpu,
    secret::Secret,
    snapshot::{Link, TlsView},
    spec::{ImageName, Kind, Recreate, Rights, SYSCALLS, ServiceSpec, worker_slot},
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Every service, in the order in which they are listed and started.
pub static ALL: [&ServiceDef; 9] = [
    &minio::DEF,
    &ray_head::DEF,
    &ray_driver::DEF,
    &ray_worker::DEF,
    &jupyter::DEF,
    &front_door::DEF,
    &prometheus::DEF,
    &grafana::DEF,
    &tensorboard::DEF,
];

/// Definition of a service: everything that labd knows of it before it is planned.
#[derive(Debug)]
pub struct ServiceDef {
    /// Kind: its name, and that of its settings. Workers have a number each after it.
    pub kind: Kind,
    /// Key in `sizes` of `labd plan --json`.
    pub size_key: &'static str,
    /// Number of its host in the lab's /24; that of the first one for workers.
    pub host: u8,
    /// Whether the other services resolve its name. One more such name changes every container.
    pub resolved: bool,
    /// Image that it runs in.
    pub image: ImageName,
    /// Its ports, in the order in which they are published.
    pub ports: &'static [PortDef],
    /// Memory it gets where `labd.toml` does not say.
    pub memory: Memory,
    /// Whether it can be switched off.
    pub optional: Optional,
    /// Function that reads its settings; absent when it has none.
    pub settings: Option<fn(&Services) -> Service>,
    /// Effect of its end on jobs.
    pub for_jobs: ForJobs,
    /// Whether it goes down after everything else: others need it until they have ended.
    pub stops_last: bool,
    /// Time at which it is recreated for changed settings.
    pub recreate: Recreate,
    /// Meaning of its silence.
    pub silence: Silence,
    /// Rights of its container.
    pub rights: RightsDef,
    /// Rights of its container in an image that labd did not build, where that needs more.
    pub foreign_rights: Option<RightsDef>,
    /// Link for people.
    pub link: Option<LinkDef>,
    /// Login for people.
    pub login: Option<LoginDef>,
    /// Function that plans it.
    pub make: Make,
}

/// Port of a service.
#[derive(Debug)]
pub struct PortDef {
    /// The port inside the container.
    pub container: u16,
    /// Place on the host at which it is reached.
    pub on: On,
}

/// Place on the host at which a port is reached.
#[derive(Debug)]
pub enum On {
    /// Port that `labd.toml` sets: the setting's name in `[ports]`, and its value.
    Published(&'static str, fn(&Ports) -> u16),
    /// Port that `labd.toml` sets and labd itself listens on. The container's own port is for labd's health check.
    ByLabd(&'static str, fn(&Ports) -> u16),
    /// Port on loopback, of the engine's choice: only labd needs it.
    Loopback,
}

impl PortDef {
    /// Setting of the port on the host, and its value; absent for a port that is only labd's.
    pub fn setting(&self, ports: &Ports) -> Option<(&'static str, u16)> {
        match self.on {
            On::Published(name, value) | On::ByLabd(name, value) => Some((name, value(ports))),
            On::Loopback => None,
        }
    }
}

/// Memory that a service gets.
#[derive(Debug)]
pub enum Memory {
    /// Share of what the host leaves, in bytes.
    Share(fn(u64) -> u64),
    /// Fixed amount.
    Fixed(Bytes),
    /// Rest: what the others leave, divided evenly.
    Rest,
}

/// Whether a service can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optional {
    /// Always there.
    Never,
    /// On, unless `labd.toml` switches it off.
    ByDefaultOn,
    /// Off and not listed, unless `labd.toml` switches it on.
    ByDefaultOff,
}

/// Effect of a service's end on jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForJobs {
    /// No effect.
    Nothing,
    /// Loss of the jobs that run on its node.
    OwnNode,
    /// Loss of any job: every job asks it all the time, wherever it runs.
    Shared,
}

/// Meaning of a running service's silence.
#[derive(Debug)]
pub enum Silence {
    /// Hang: it is killed.
    Hung,
    /// Spared, unless `labd.toml` says otherwise.
    Spared(fn(&Config) -> bool),
}

/// Rights of a container beyond its own files and processes. None gets more rights by running a set-id file
/// (`no-new-privileges`), none can make one, and none has raw sockets, device nodes or file capabilities.
#[derive(Debug, Clone, Copy)]
pub struct RightsDef {
    /// Capabilities of its root, without `CAP_`.
    pub capabilities: &'static [&'static str],
    /// Largest number of processes and threads.
    pub pids: u32,
    /// Whether its own file system is read-only.
    pub read_only_root: bool,
}

/// Capabilities for what people run: `apt` and `pip` as root, which give files away and become other users.
const PEOPLE: &[&str] = &["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"];
/// Capabilities for an image of somebody else's, which may prepare its data as root and then become another user.
const FOREIGN: &[&str] = &["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"];
/// Rights of containers that run people's code. A worker has dozens of processes, each with a thread per core for each
/// library that computes. The bound on processes is for what forks without end: half of what a small machine has in
/// all.
const CODE: RightsDef = RightsDef { capabilities: PEOPLE, pids: 16_384, read_only_root: false };

/// Link for people.
#[derive(Debug)]
pub struct LinkDef {
    /// Its place among the links, from 1.
    pub rank: u8,
    /// Name of what it leads to.
    pub name: &'static str,
    /// Container port.
    pub port: u16,
    /// Path.
    pub path: &'static str,
}

/// Login for people.
#[derive(Debug)]
pub struct LoginDef {
    /// Its place among the logins, from 1.
    pub rank: u8,
    /// Name of what it opens, as `labd credentials` calls it.
    pub name: &'static str,
    /// Path at which it is used.
    pub path: &'static str,
    /// User name, where there is one.
    pub user: fn(&Secrets) -> Option<String>,
    /// Password or token.
    pub secret: fn(&Secrets) -> &Secret,
    /// The port on the host.
    pub port: fn(&Ports) -> u16,
}

/// Function that plans a service.
#[derive(Debug)]
pub enum Make {
    /// One service for the lab.
    One(fn(&Draft<'_>) -> ServiceSpec),
    /// One service for each GPU.
    PerGpu(fn(&Draft<'_>, &Gpu, &Place) -> ServiceSpec),
}

impl ServiceDef {
    /// Name of the service; workers have a number each after it.
    pub const fn name(&self) -> &'static str {
        self.kind.0
    }

    /// Settings of the service in `labd.toml`.
    pub fn settings(&self, config: &Config) -> Service {
        self.settings.map(|of| of(&config.services)).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_enabled(&self, config: &Config) -> bool {
        match self.optional {
            Optional::Never => true,
            Optional::ByDefaultOn => self.settings(config).enabled.unwrap_or(true),
            Optional::ByDefaultOff => self.settings(config).enabled.unwrap_or(false),
        }
    }

    /// Whether it is listed at all.
    pub fn is_planned(&self, config: &Config) -> bool {
        self.optional != Optional::ByDefaultOff || self.is_enabled(config)
    }

    /// Rights of its container. `foreign` is whether labd did not build its image.
    fn rights(&self, foreign: bool) -> Rights {
        let rights = self.foreign_rights.filter(|_| foreign).unwrap_or(self.rights);
        Rights {
            capabilities: rights.capabilities.iter().map(|&c| c.to_owned()).collect(),
            pids: rights.pids,
            read_only_root: rights.read_only_root,
            syscalls: SYSCALLS,
        }
    }
}

/// The service with this name: also a worker that no plan knows any more.
pub fn of(name: &str) -> Option<&'static ServiceDef> {
    let kind = if worker_slot(name).is_some() { Kind::RAY_WORKER.0 } else { name };
    ALL.into_iter().find(|def| def.name() == kind)
}

/// Effect on jobs of the end of the service with this name.
pub fn for_jobs(name: &str) -> ForJobs {
    of(name).map_or(ForJobs::Nothing, |def| def.for_jobs)
}

/// Setting of a service's memory limit; absent where there is none.
pub fn memory_setting(name: &str) -> Option<String> {
    let def = of(name)?;
    def.settings.map(|_| format!("services.{}.memory", def.name()))
}

/// Host of links to what listens at an address. What listens on loopback only is reached through a tunnel, under the name it has
/// at the tunnel's other end.
fn link_host(ip: IpAddr, address: &str) -> String {
    let host = match ip {
        ip if ip.is_loopback() => "localhost".to_owned(),
        ip if ip.is_unspecified() => address.to_owned(),
        ip => ip.to_string(),
    };
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host }
}

/// Address of the page for people's browsers.
pub fn page_url(config: &Config, address: &str, tls: Option<&TlsView>) -> String {
    let page = config.lab.page;
    let scheme = if config.http.tls == Tls::Off { "http" } else { "https" };
    let host = tls.and_then(|tls| tls.host.clone()).unwrap_or_else(|| link_host(page.ip(), address));
    format!("{scheme}://{host}:{}/", page.port())
}

/// Links for people, given the ports as they are published. No credentials.
pub fn links(
    config: &Config,
    address: &str,
    tls: Option<&TlsView>,
    port_of: impl Fn(&str, u16) -> Option<u16>,
) -> Vec<Link> {
    let mut links = vec![Link { name: "status page".into(), url: page_url(config, address, tls) }];
    let host = link_host(config.network.publish, address);
    let mut defs: Vec<_> = ALL.iter().filter_map(|def| Some((def, def.link.as_ref()?))).collect();
    defs.sort_by_key(|(_, link)| link.rank);
    for (def, link) in defs {
        if let Some(port) = port_of(def.name(), link.port) {
            links.push(Link { name: link.name.into(), url: format!("http://{host}:{port}{}", link.path) });
        }
    }
    links
}

/// Addresses at which labd itself reaches what people look at, given the ports as they are published, and the dashboard's. This
/// machine is asked under the address that they are published on.
pub fn upstreams(
    config: &Config,
    dashboard: Option<SocketAddr>,
    port_of: impl Fn(&str, u16) -> Option<u16>,
) -> Upstreams {
    let ip = match config.network.publish {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let of = |def: &ServiceDef| {
        let port = port_of(def.name(), def.link.as_ref()?.port)?;
        Some(SocketAddr::new(ip, port))
    };
    Upstreams {
        ray: dashboard,
        prometheus: of(&prometheus::DEF),
        minio_console: of(&minio::DEF),
        grafana: of(&grafana::DEF),
        jupyter: of(&jupyter::DEF),
    }
}

/// Logins for people, of the services that run.
pub fn logins(config: &Config, secrets: &Secrets) -> Vec<Credential> {
    let host = match config.network.publish {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        ip => ip.to_string(),
    };
    let mut defs: Vec<_> = ALL.iter().filter_map(|def| Some((def, def.login.as_ref()?))).collect();
    defs.retain(|(def, _)| def.is_enabled(config));
    defs.sort_by_key(|(_, login)| login.rank);
    let credential = |login: &LoginDef| Credential {
        name: login.name.to_owned(),
        user: (login.user)(secrets),
        secret: (login.secret)(secrets).clone(),
        url: format!("http://{host}:{}{}", (login.port)(&config.ports), login.path),
    };
    defs.into_iter().map(|(_, login)| credential(login)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all_differ<T: Ord>(values: impl Iterator<Item = T>) -> bool {
        let values: Vec<T> = values.collect();
        let count = values.len();
        values.into_iter().collect::<BTreeSet<T>>().len() == count
    }

    #[test]
    fn no_two_services_share_what_tells_them_apart() {
        assert!(all_differ(ALL.iter().map(|def| def.name())) && all_differ(ALL.iter().map(|def| def.size_key)));
        assert!(all_differ(ALL.iter().map(|def| def.host)) && ALL.iter().all(|def| (2..=20).contains(&def.host)));
        assert!(all_differ(ALL.iter().filter_map(|def| def.link.as_ref()).map(|link| link.rank)));
        assert!(all_differ(ALL.iter().filter_map(|def| def.login.as_ref()).map(|login| login.rank)));
        for def in ALL {
            assert_eq!(of(def.name()).map(|found| found.kind), Some(def.kind));
        }
        assert_eq!(of("ray-worker-12").map(|def| def.kind), Some(Kind::RAY_WORKER), "whatever the plan knows");
        assert!(of("ray-worker-x").is_none() && of("").is_none());
    }

    #[test]
    fn every_setting_of_a_service_is_one_of_a_service_here() {
        let config = Config::default();
        let settings: BTreeSet<_> = config.services.each().into_iter().map(|(name, _)| name).collect();
        let ours = ALL.iter().filter(|def| def.settings.is_some()).map(|def| def.name());
        assert_eq!(ours.collect::<BTreeSet<_>>(), settings);
        let ports: BTreeSet<_> = config.ports.each().into_iter().collect();
        let ours = ALL.iter().flat_map(|def| def.ports).filter_map(|port| port.setting(&config.ports));
        assert_eq!(ours.collect::<BTreeSet<_>>(), ports);
    }

    #[test]
    fn a_limit_is_set_under_the_services_name_and_a_workers_under_that_of_all() {
        let setting = |name: &str| memory_setting(name);
        assert_eq!(setting("ray-worker-3").as_deref(), Some("services.ray-worker.memory"));
        assert_eq!(setting("minio").as_deref(), Some("services.minio.memory"));
        assert_eq!(setting("front-door"), None);
    }

    #[test]
    fn what_a_job_dies_of_is_known_by_name() {
        use ForJobs as F;
        let all = ["ray-worker-7", "ray-driver", "ray-head", "minio", "jupyter", "grafana", "x"].map(for_jobs);
        assert_eq!(all, [F::OwnNode, F::OwnNode, F::Shared, F::Shared, F::Nothing, F::Nothing, F::Nothing]);
    }
}
