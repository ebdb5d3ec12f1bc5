//! Conversion between our values and the engine's: a [`ContainerSpec`] to a creation request, an inspection to
//! [`Observed`], and a row of a list to what it says of that. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Read as _},
    net::Ipv4Addr,
};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerStatsResponse,
    ContainerSummary, ContainerSummaryStateEnum, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings,
    HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig, NetworkingConfig, PortBinding, PortMap, PortSummaryTypeEnum, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::{explain, syscalls};
use crate::{
    engine::{
        LABEL_HARD, LABEL_LAB, LABEL_PARTS, LABEL_SERVICE, LABEL_SPEC, ListedContainer, Observed, ObservedContainer,
        RunState,
    },
    gpus::simulate::Counters,
    spec::{ContainerSpec, Device, EnvValue, FileSpec, MountSource},
    time::Timestamp,
};

/// Abilities of an engine that decide how a container is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Abilities {
    /// Whether it runs without root.
    pub(super) rootless: bool,
    /// Whether its kernel filters system calls: an engine on one that does not refuses every profile.
    pub(super) seccomp: bool,
}

/// Name of a service's container.
pub(super) fn name(lab: &str, service: &str) -> String {
    format!("{lab}-{service}")
}

/// Creation request for a service's container on the network called like the lab.
pub(super) fn body(lab: &str, service: &str, spec: &ContainerSpec, engine: Abilities) -> ContainerCreateBody {
    let labels = HashMap::from([
        (LABEL_LAB.to_owned(), lab.to_owned()),
        (LABEL_SERVICE.to_owned(), service.to_owned()),
        (LABEL_SPEC.to_owned(), spec.hash()),
        (LABEL_HARD.to_owned(), spec.hard_hash()),
        // Plain data with string keys always serialises.
        (LABEL_PARTS.to_owned(), serde_json::to_string(&spec.parts()).unwrap_or_default()),
    ]);
    let endpoint = EndpointSettings {
        ipam_config: Some(EndpointIpamConfig { ipv4_address: Some(spec.address.to_string()), ..Default::default() }),
        aliases: Some(vec![service.to_owned()]),
        ..Default::default()
    };
    ContainerCreateBody {
        hostname: Some(spec.hostname.clone()),
        user: spec.user.clone(),
        working_dir: spec.workdir.clone(),
        image: Some(spec.image.clone()),
        entrypoint: spec.entrypoint.clone(),
        cmd: Some(spec.command.clone()),
        env: Some(spec.env.iter().map(|(k, v)| format!("{k}={}", value(v))).collect()),
        exposed_ports: Some(spec.ports.iter().map(|p| format!("{}/tcp", p.container)).collect()),
        labels: Some(labels),
        stop_timeout: Some(i64::try_from(spec.stop_timeout.as_secs()).unwrap_or(i64::MAX)),
        host_config: Some(host_config(lab, spec, engine)),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(lab.to_owned(), endpoint)])),
        }),
        ..Default::default()
    }
}

fn host_config(lab: &str, spec: &ContainerSpec, engine: Abilities) -> HostConfig {
    let memory = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
    let nofile = i64::try_from(spec.nofile).unwrap_or(i64::MAX);
    let limit = |name: &str, n| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(n), hard: Some(n) };
    let mut ulimits = vec![limit("nofile", nofile)];
    // One without root may not raise it, and would refuse to start the container.
    if spec.unlimited_memlock && !engine.rootless {
        ulimits.push(limit("memlock", -1));
    }
    let (devices, requests, groups) = devices(&spec.devices);
    let mut security = vec!["no-new-privileges".to_owned()];
    if engine.seccomp {
        security.push(format!("seccomp={}", syscalls::profile()));
    }
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(spec.rights.capabilities.clone()),
        security_opt: Some(security),
        pids_limit: Some(spec.rights.pids.into()),
        readonly_rootfs: Some(spec.rights.read_only_root),
        memory: Some(memory),
        // The same as memory means no swap: a lab's node that swaps is slower than one that says what it lacks.
        memory_swap: Some(memory),
        cpu_shares: Some(i64::from(spec.cpu_shares)),
        shm_size: Some(i64::try_from(spec.shm_bytes).unwrap_or(i64::MAX)),
        init: Some(true),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "20m".to_owned()),
                ("max-file".to_owned(), "5".to_owned()),
            ])),
        }),
        ulimits: Some(ulimits),
        cpuset_cpus: spec.cpuset_cpus.clone(),
        cpuset_mems: spec.cpuset_mems.clone(),
        network_mode: Some(lab.to_owned()),
        port_bindings: Some(port_bindings(spec)),
        mounts: Some(spec.mounts.iter().map(|m| mount(lab, m)).collect()),
        extra_hosts: Some(spec.hosts.iter().map(|(name, ip)| format!("{name}:{ip}")).collect()),
        devices: Some(devices),
        device_requests: Some(requests),
        group_add: Some(groups),
        ..Default::default()
    }
}

fn port_bindings(spec: &ContainerSpec) -> PortMap {
    let mut map = PortMap::new();
    for port in &spec.ports {
        let binding = PortBinding {
            host_ip: Some(port.host_ip.clone()),
            // An empty port lets the engine choose.
            host_port: Some(port.host.map(|p| p.to_string()).unwrap_or_default()),
        };
        map.entry(format!("{}/tcp", port.container)).or_default().get_or_insert_default().push(binding);
    }
    map
}

fn mount(lab: &str, mount: &crate::spec::Mount) -> EngineMount {
    let (typ, source, volume_options) = match &mount.source {
        MountSource::Volume(name) => (
            MountType::VOLUME,
            name.clone(),
            // Only used when the volume is missing: the engine then makes it with our label.
            Some(MountVolumeOptions {
                labels: Some(HashMap::from([(LABEL_LAB.to_owned(), lab.to_owned())])),
                ..Default::default()
            }),
        ),
        // Unlike a "bind" in the command line's sense, a mount of this type refuses a missing directory.
        MountSource::Host(path) => (MountType::BIND, path.clone(), None),
        MountSource::Memory { name, bytes } => {
            let driver = MountVolumeOptionsDriverConfig {
                name: Some("local".to_owned()),
                options: Some(HashMap::from([
                    ("type".to_owned(), "tmpfs".to_owned()),
                    ("device".to_owned(), "tmpfs".to_owned()),
                    ("o".to_owned(), format!("size={bytes},mode=1777")),
                ])),
            };
            let options = MountVolumeOptions {
                labels: Some(HashMap::from([(LABEL_LAB.to_owned(), lab.to_owned())])),
                driver_config: Some(driver),
                ..Default::default()
            };
            (MountType::VOLUME, name.clone(), Some(options))
        }
    };
    EngineMount {
        target: Some(mount.target.clone()),
        source: Some(source),
        typ: Some(typ),
        read_only: Some(mount.read_only),
        volume_options,
        ..Default::default()
    }
}

fn devices(devices: &[Device]) -> (Vec<DeviceMapping>, Vec<DeviceRequest>, Vec<String>) {
    let (mut nodes, mut requests, mut groups) = (Vec::new(), Vec::new(), BTreeSet::new());
    for device in devices {
        match device {
            Device::Cdi { name, gids } => {
                requests.push(DeviceRequest {
                    driver: Some("cdi".to_owned()),
                    device_ids: Some(vec![name.clone()]),
                    ..Default::default()
                });
                groups.extend(gids);
            }
            // Named, unlike in `docker run --gpus`: an engine may know several drivers for GPUs.
            Device::Nvidia { uuid } => requests.push(DeviceRequest {
                driver: Some("nvidia".to_owned()),
                device_ids: Some(vec![uuid.clone()]),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..Default::default()
            }),
            Device::Node { path, gid } => {
                nodes.push(DeviceMapping {
                    path_on_host: Some(path.clone()),
                    path_in_container: Some(path.clone()),
                    cgroup_permissions: Some("rwm".to_owned()),
                });
                groups.insert(gid);
            }
        }
    }
    // Root's own group opens nothing: nodes that it owns are open to everybody or to root.
    (nodes, requests, groups.into_iter().filter(|gid| **gid != 0).map(u32::to_string).collect())
}

fn value(value: &EnvValue) -> &str {
    match value {
        EnvValue::Plain(text) => text,
        EnvValue::Secret(secret) => secret.expose(),
    }
}

/// Files of a service as a tar to be unpacked at `/`. In memory only, since files carry secrets.
///
/// Directories are left out on purpose: the engine makes missing ones with mode 0755 and root as owner, whereas an entry
/// for an existing one would change its mode and owner (think of `/tmp`).
pub(super) fn files_tar(files: &[FileSpec], now: Timestamp) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let content = value(&file.content).as_bytes();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(file.mode);
        header.set_uid(file.owner.into());
        header.set_gid(file.owner.into());
        header.set_mtime(u64::try_from(now.as_millis() / 1000).unwrap_or(0));
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, file.path.trim_start_matches('/'), content)?;
    }
    tar.into_inner()
}

/// Observation of what is there under a service's container name.
pub(super) fn seen(lab: &str, service: &str, c: ContainerInspectResponse) -> Observed {
    let id = c.id.unwrap_or_default();
    let labels = c.config.and_then(|c| c.labels).unwrap_or_default();
    let is = |key: &str, want: &str| labels.get(key).is_some_and(|v| v == want);
    if !is(LABEL_LAB, lab) || !is(LABEL_SERVICE, service) {
        return Observed::Foreign { id };
    }
    let network = c.network_settings.unwrap_or_default();
    let state = c.state.unwrap_or_default();
    let run = run_state(&state);
    Observed::Ours(ObservedContainer {
        id,
        spec_hash: labels.get(LABEL_SPEC).cloned().unwrap_or_default(),
        hard_hash: labels.get(LABEL_HARD).cloned().unwrap_or_default(),
        // One that has never ended says the year 1.
        last_end: Some(time(state.finished_at.as_ref()))
            .filter(|at| *at > Timestamp::default() && matches!(run, RunState::Running { .. })),
        run,
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 0),
        ports: published(network.ports.unwrap_or_default()),
        address: address(network.networks, lab),
    })
}

/// Container in the engine's list; absent where it is of no service.
pub(super) fn listed(lab: &str, c: ContainerSummary) -> Option<ListedContainer> {
    use ContainerSummaryStateEnum as Status;
    let service = c.labels?.remove(LABEL_SERVICE)?;
    let mut ports = BTreeMap::new();
    for port in c.ports.unwrap_or_default().into_iter().filter(|port| port.typ == Some(PortSummaryTypeEnum::TCP)) {
        if let Some(public) = port.public_port.filter(|p| *p != 0) {
            ports.entry(port.private_port).or_insert(public);
        }
    }
    Some(ListedContainer {
        named: c.names.unwrap_or_default().contains(&format!("/{}", name(lab, &service))),
        service,
        id: c.id.unwrap_or_default(),
        state: match c.state.unwrap_or(Status::EMPTY) {
            // As an inspection's, below.
            Status::RESTARTING | Status::STOPPING => Status::RUNNING,
            state => state,
        }
        .to_string(),
        ports,
        address: address(c.network_settings.and_then(|n| n.networks), lab),
    })
}

/// Its address on the lab's network.
fn address(networks: Option<HashMap<String, EndpointSettings>>, lab: &str) -> Option<Ipv4Addr> {
    networks?.remove(lab)?.ip_address?.parse().ok()
}

fn time(text: Option<&String>) -> Timestamp {
    text.and_then(|text| Timestamp::parse(text)).unwrap_or_default()
}

fn run_state(state: &ContainerState) -> RunState {
    use ContainerStateStatusEnum as Status;
    match state.status.unwrap_or(Status::EMPTY) {
        // `restarting` cannot happen to a container of ours, which have no restart policy, unless somebody changed it.
        Status::RUNNING | Status::RESTARTING | Status::STOPPING => {
            RunState::Running { started_at: time(state.started_at.as_ref()) }
        }
        Status::PAUSED => RunState::Paused,
        Status::EXITED => RunState::Exited {
            code: state.exit_code.unwrap_or(-1),
            oom: state.oom_killed.unwrap_or(false),
            finished_at: time(state.finished_at.as_ref()),
            error: state
                .error
                .as_deref()
                .filter(|e| !e.is_empty())
                .map(|e| explain::known(e).unwrap_or_else(|| explain::shortened(e)))
                .unwrap_or_default(),
        },
        Status::REMOVING => RunState::Removing,
        Status::DEAD => RunState::Dead,
        Status::CREATED | Status::EMPTY => RunState::Created,
    }
}

fn published(ports: PortMap) -> BTreeMap<u16, u16> {
    ports
        .into_iter()
        .filter_map(|(container, bindings)| {
            let container = container.strip_suffix("/tcp")?.parse().ok()?;
            let host = bindings?.into_iter().find_map(|b| b.host_port?.parse::<u16>().ok().filter(|p| *p != 0))?;
            Some((container, host))
        })
        .collect()
}

/// Counters of what a container used so far; absent where it does not run.
pub(super) fn counters(stats: &ContainerStatsResponse) -> Option<Counters> {
    let cpu = stats.cpu_stats.as_ref()?;
    let memory = stats.memory_stats.as_ref()?;
    let of = |name: &str| {
        let all = memory.stats.as_ref();
        // The engine of a host with cgroup v1 says both a container's own and its children's: the total is meant.
        all.and_then(|all| all.get(&format!("total_{name}")).or_else(|| all.get(name))).copied().unwrap_or(0)
    };
    Some(Counters {
        at: Timestamp::parse(stats.read.as_ref()?)?,
        cpu_ns: cpu.cpu_usage.as_ref()?.total_usage?,
        // Page cache can be given back at any time: it is nobody's need.
        memory_bytes: memory.usage?.saturating_sub(of("inactive_file")).saturating_sub(of("active_file")),
        cpus: cpu.online_cpus.unwrap_or(1),
    })
}

/// Content of the one file in an archive that the engine made of it.
pub(super) fn only_file(archive: &[u8]) -> Option<Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut entry = archive.entries().ok()?.next()?.ok()?;
    let mut content = Vec::new();
    entry.header().entry_type().is_file().then_some(())?;
    entry.read_to_end(&mut content).ok()?;
    // One that broke off is none.
    (content.len() as u64 == entry.size()).then_some(content)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        secret::Secret,
        spec::{Mount, Port, Rights},
    };

    fn spec() -> ContainerSpec {
        ContainerSpec {
            image: "labd/ray:1".into(),
            entrypoint: None,
            command: vec!["sleep".into(), "9".into()],
            env: BTreeMap::from([
                ("A".to_owned(), EnvValue::from("1")),
                ("T".to_owned(), EnvValue::Secret(Secret::new("s3cret"))),
            ]),
            files: vec![FileSpec { path: "/etc/x/y".into(), mode: 0o600, owner: 7, content: "z".into() }],
            mounts: vec![
                Mount { source: MountSource::Volume("v".into()), target: "/v".into(), read_only: false },
                Mount { source: MountSource::Host("/data".into()), target: "/mnt".into(), read_only: true },
            ],
            ports: vec![
                Port { container: 80, host_ip: "127.0.0.1".into(), host: Some(9000) },
                Port { container: 81, host_ip: "127.0.0.1".into(), host: None },
            ],
            address: Ipv4Addr::new(198, 18, 253, 9),
            hostname: "h".into(),
            hosts: BTreeMap::from([("ray-head".to_owned(), Ipv4Addr::new(198, 18, 253, 2))]),
            memory_bytes: 1 << 30,
            shm_bytes: 1 << 20,
            cpu_shares: 1024,
            stop_timeout: Duration::from_secs(40),
            nofile: 65_536,
            unlimited_memlock: false,
            cpuset_cpus: None,
            cpuset_mems: None,
            devices: vec![
                Device::Cdi { name: "nvidia.com/gpu=G".into(), gids: vec![0, 44] },
                Device::Nvidia { uuid: "GPU-1".into() },
                Device::Node { path: "/dev/kfd".into(), gid: 109 },
                Device::Node { path: "/dev/dri/renderD128".into(), gid: 109 },
            ],
            user: None,
            workdir: None,
            rights: Rights { capabilities: vec!["KILL".into()], pids: 64, read_only_root: true, syscalls: 1 },
        }
    }

    const ROOT: Abilities = Abilities { rootless: false, seccomp: true };

    #[test]
    fn the_request_says_what_the_spec_says() {
        let b = body("lab", "s", &spec(), ROOT);
        let h = b.host_config.clone().expect("always there");
        assert_eq!((h.memory, h.memory_swap, h.init), (Some(1 << 30), Some(1 << 30), Some(true)));
        assert_eq!(h.restart_policy.and_then(|p| p.name), Some(RestartPolicyNameEnum::NO));
        assert_eq!(h.group_add, Some(vec!["44".to_owned(), "109".to_owned()]));
        assert_eq!(h.devices.map(|d| d.len()), Some(2));
        let requests = h.device_requests.expect("two");
        assert_eq!(requests[0].driver.as_deref(), Some("cdi"));
        assert_eq!(requests[1].capabilities, Some(vec![vec!["gpu".to_owned()]]));
        let ports = h.port_bindings.expect("two");
        assert_eq!(ports["81/tcp"].as_ref().and_then(|b| b[0].host_port.clone()), Some(String::new()));
        let mounts = h.mounts.expect("two");
        assert_eq!((mounts[0].typ, mounts[1].typ), (Some(MountType::VOLUME), Some(MountType::BIND)));
        assert_eq!(b.stop_timeout, Some(40));
        assert!(b.env.expect("two").contains(&"T=s3cret".to_owned()));
        let labels = b.labels.expect("three");
        assert_eq!(labels[LABEL_SPEC], spec().hash());
    }

    #[test]
    fn a_container_has_the_rights_of_its_spec_and_no_others() {
        let h = host_config("lab", &spec(), ROOT);
        assert_eq!((h.cap_drop, h.cap_add), (Some(vec!["ALL".to_owned()]), Some(vec!["KILL".to_owned()])));
        assert_eq!((h.pids_limit, h.readonly_rootfs), (Some(64), Some(true)));
        let security = h.security_opt.expect("two");
        assert_eq!((security[0].as_str(), security[1].starts_with("seccomp={")), ("no-new-privileges", true));
        let without = host_config("lab", &spec(), Abilities { seccomp: false, ..ROOT });
        assert_eq!(without.security_opt.map(|s| s.len()), Some(1), "an engine without refuses to make the container");
    }

    /// Compares with what the docker command line sends for the same, less what is only in theirs.
    #[test]
    fn devices_and_places_are_asked_for_as_the_docker_command_does() {
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("testdata/docker-28.2-create.json")).expect("JSON");
        let ours = |devices: Vec<Device>| {
            let (cpus, mems) = (Some("0-31,64-95".to_owned()), Some("0".to_owned()));
            let spec =
                ContainerSpec { devices, unlimited_memlock: true, cpuset_cpus: cpus, cpuset_mems: mems, ..spec() };
            serde_json::to_value(body("lab", "s", &spec, ROOT).host_config).expect("serialises")
        };
        let node = |path: &str| Device::Node { path: path.into(), gid: 109 };
        for (name, devices, keys) in [
            (
                "gpus",
                vec![Device::Nvidia { uuid: "GPU-1b2e".into() }],
                &["DeviceRequests", "Devices", "GroupAdd"] as &[_],
            ),
            (
                "cdi",
                vec![Device::Cdi { name: "nvidia.com/gpu=GPU-1b2e".into(), gids: vec![] }],
                &["DeviceRequests", "Devices", "GroupAdd"],
            ),
            ("amd", vec![node("/dev/kfd"), node("/dev/dri/renderD129")], &["DeviceRequests", "Devices", "GroupAdd"]),
            ("place", vec![], &["Devices", "CpusetCpus", "CpusetMems", "Ulimits"]),
        ] {
            let (mut ours, theirs) = (ours(devices), &recorded["requests"][name]["HostConfig"]);
            if name == "gpus" {
                assert_eq!(ours["DeviceRequests"][0]["Driver"], "nvidia");
                ours["DeviceRequests"][0]["Driver"] = "".into();
            }
            for key in keys {
                assert_eq!(bare(&ours[key]), bare(&theirs[key]), "{name}: {key}");
            }
            assert_eq!(bare(&ours["Privileged"]), serde_json::Value::Null, "{name}");
        }
        let rootless = host_config(
            "lab",
            &ContainerSpec { unlimited_memlock: true, ..spec() },
            Abilities { rootless: true, ..ROOT },
        );
        assert_eq!(rootless.ulimits.map(|u| u.len()), Some(1));
    }

    /// Value without fields that say nothing: the command line writes every field.
    fn bare(value: &serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        let value = match value {
            Value::Array(all) => {
                let mut all: Vec<Value> = all.iter().map(bare).collect();
                all.sort_by_key(Value::to_string);
                Value::Array(all)
            }
            Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), bare(v))).filter(|(_, v)| !v.is_null()).collect(),
            other => other.clone(),
        };
        let empty = value == serde_json::json!([]) || value == serde_json::json!({});
        let nothing = empty || value == 0 || value == "" || value == false;
        if nothing { Value::Null } else { value }
    }

    #[test]
    fn files_carry_mode_and_owner_and_no_directories() {
        let bytes = files_tar(&spec().files, Timestamp::from_millis(5_000)).expect("memory");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries: Vec<_> = archive.entries().expect("a tar").map(|e| e.expect("an entry")).collect();
        assert_eq!(entries.len(), 1);
        let header = entries[0].header();
        assert_eq!(header.path().expect("a path").to_str(), Some("etc/x/y"));
        assert_eq!((header.mode().ok(), header.uid().ok(), header.gid().ok()), (Some(0o600), Some(7), Some(7)));
    }

    #[test]
    fn of_an_archive_the_only_file_is_taken_and_a_directory_is_none() {
        let file = files_tar(&spec().files[..1], Timestamp::from_millis(0)).expect("memory");
        assert_eq!(only_file(&file).as_deref(), Some(value(&spec().files[0].content).as_bytes()));
        let mut directory = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        directory.append_data(&mut header, "etc/", io::empty()).expect("memory");
        for none in [directory.into_inner().expect("memory"), file[..512].to_vec(), Vec::new(), vec![7; 2_000]] {
            assert_eq!(only_file(&none), None);
        }
    }

    #[test]
    fn only_our_labels_make_a_container_ours() {
        let inspect = |lab: &str| -> ContainerInspectResponse {
            serde_json::from_value(serde_json::json!({
                "Id": "abc",
                "Config": {"Labels": {LABEL_LAB: lab, LABEL_SERVICE: "s", LABEL_SPEC: "h"}},
                "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": true,
                          "StartedAt": "2026-01-01T00:00:00Z", "FinishedAt": "2026-01-01T00:00:01.5Z", "Error": ""},
                "NetworkSettings": {
                    "Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}], "81/tcp": null},
                    "Networks": {"lab": {"IPAddress": "198.18.253.9"}}},
            }))
            .expect("an inspection")
        };
        assert_eq!(seen("lab", "s", inspect("other")), Observed::Foreign { id: "abc".into() });
        let Observed::Ours(ours) = seen("lab", "s", inspect("lab")) else { panic!("not ours") };
        assert_eq!(ours.ports, BTreeMap::from([(80, 32_768)]));
        assert_eq!(ours.address, Some(Ipv4Addr::new(198, 18, 253, 9)));
        let end = Timestamp::parse("2026-01-01T00:00:01.5Z");
        assert!(
            matches!(ours.run, RunState::Exited { code: 137, oom: true, finished_at, .. } if Some(finished_at) == end)
        );
        assert_eq!(ours.last_end, None, "it does not run");
        for (finished_at, last_end) in [("2026-01-01T00:00:01.5Z", end), ("0001-01-01T00:00:00Z", None)] {
            let mut again = inspect("lab");
            let state = again.state.as_mut().expect("a state");
            state.status = Some(ContainerStateStatusEnum::RUNNING);
            state.finished_at = Some(finished_at.to_owned());
            let Observed::Ours(again) = seen("lab", "s", again) else { panic!("not ours") };
            assert_eq!(again.last_end, last_end);
        }
    }

    #[test]
    fn a_list_confirms_what_an_inspection_said_and_nothing_else() {
        let labels = format!(r#"{{"{LABEL_LAB}": "lab", "{LABEL_SERVICE}": "minio"}}"#);
        let inspected = format!(
            r#"{{"Id": "c1", "Config": {{"Labels": {labels}}}, "State": {{"Status": "running", "StartedAt": "2026-11-27T10:00:00Z"}},
                "NetworkSettings": {{"Networks": {{"lab": {{"IPAddress": "198.18.1.2"}}}},
                  "Ports": {{"9000/tcp": [{{"HostIp": "127.0.0.1", "HostPort": "80"}}, {{"HostIp": "::1", "HostPort": "81"}}], "9001/tcp": null}}}}}}"#
        );
        let Observed::Ours(seen) = seen("lab", "minio", serde_json::from_str(&inspected).expect("an inspection"))
        else {
            panic!("it is the lab's")
        };
        let ports = r#"{"PrivatePort": 9001, "Type": "tcp"}, {"PrivatePort": 9000, "PublicPort": 9, "Type": "udp"},
            {"IP": "127.0.0.1", "PrivatePort": 9000, "PublicPort": 80, "Type": "tcp"},
            {"IP": "::1", "PrivatePort": 9000, "PublicPort": 81, "Type": "tcp"}"#;
        let row = format!(
            r#"{{"Id": "c1", "Names": ["/lab-minio"], "Labels": {labels}, "State": "running", "Ports": [{ports}],
                "NetworkSettings": {{"Networks": {{"lab": {{"IPAddress": "198.18.1.2"}}}}}}}}"#
        );
        let of = |row: &str| listed("lab", serde_json::from_str(row).expect("a row"));
        let is_still = |from: &str, to: &str| of(&row.replace(from, to)).is_some_and(|listed| listed.is_still(&seen));
        assert!(is_still("", "") && is_still("running", "restarting"), "as an inspection has it");
        for (from, to) in
            [("c1", "c2"), ("/lab-minio", "/moved"), ("running", "exited"), ("80", "82"), (".2\"", ".3\"")]
        {
            assert!(!is_still(from, to), "{from} is {to}");
        }
        assert_eq!(of(r#"{"Id": "c1", "State": "running"}"#), None, "of no service");
    }

    #[test]
    fn a_container_that_could_not_be_removed_is_told_from_one_that_is_being_removed() {
        let of = |status: &str| {
            run_state(&serde_json::from_value(serde_json::json!({ "Status": status })).expect("a state"))
        };
        assert_eq!((of("dead"), of("removing")), (RunState::Dead, RunState::Removing));
    }

    #[test]
    fn what_a_container_uses_is_its_cpu_time_and_its_memory_without_page_cache() {
        // Docker 20.10 on cgroup v1, shortened.
        let of = |text: &str| counters(&serde_json::from_str(text).expect("a model"));
        let v1 = r#"{"read": "2026-11-27T06:26:51.806685662Z", "preread": "0001-01-01T00:00:00Z",
            "cpu_stats": {"cpu_usage": {"total_usage": 41325638}, "online_cpus": 2},
            "memory_stats": {"usage": 487424, "limit": 67108864, "stats": {"active_file": 1, "inactive_file": 2,
                "total_active_file": 45056, "total_inactive_file": 122880}}}"#;
        let at = Timestamp::parse("2026-11-27T06:26:51.806Z").expect("a time");
        assert_eq!(of(v1), Some(Counters { at, cpu_ns: 41_325_638, memory_bytes: 319_488, cpus: 2 }));
        let v2 = r#"{"read": "2026-11-27T06:26:51.806Z", "cpu_stats": {"cpu_usage": {"total_usage": 7}, "online_cpus": 64},
            "memory_stats": {"usage": 1000, "stats": {"active_file": 100, "inactive_file": 200, "anon": 700}}}"#;
        assert_eq!(of(v2), Some(Counters { at, cpu_ns: 7, memory_bytes: 700, cpus: 64 }));
        let ended = r#"{"read": "0001-01-01T00:00:00Z", "cpu_stats": {"cpu_usage": {"total_usage": 0}},
            "memory_stats": {}}"#;
        assert_eq!(of(ended), None);
    }
}
