//! Checks of the host's ports: whether those that the lab publishes are free.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use super::{Check, Scene, blocking};
use crate::{config::Config, engine::docker::Standing, services};

/// State `LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Listener on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    port: u16,
    /// Process of the listener, where this user may see it.
    process: Option<(u32, String)>,
}

/// Port that `labd.toml` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    setting: String,
    address: IpAddr,
    port: u16,
}

/// Whether each port of `labd.toml` is free, or the lab's own already.
pub(super) async fn ports(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "ports";
    if scene.config.is_err() {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    }
    let root = scene.subject.root.clone();
    let (listeners, standing) = tokio::join!(blocking(move || listeners(&root)), scene.standing());
    let Some(listeners) = listeners else {
        return vec![Check::fail(NAME, "the kernel's files do not answer", "ss -ltnp")];
    };
    let config = scene.config();
    let daemon = scene.snapshot().map(|s| s.labd.pid);
    judge_ports(&wanted(&config), &listeners, standing.unwrap_or_default(), &config.lab.name, daemon, scene.root_user)
}

pub(super) fn wanted(config: &Config) -> Vec<Wanted> {
    let mut all =
        vec![Wanted { setting: "lab.page".into(), address: config.lab.page.ip(), port: config.lab.page.port() }];
    if services::jupyter::DEF.is_enabled(config) && config.http.jupyter_port != 0 {
        let setting = "http.jupyter_port".into();
        all.push(Wanted { setting, address: config.lab.page.ip(), port: config.http.jupyter_port });
    }
    let on = services::ALL.iter().filter(|def| def.is_enabled(config));
    for (name, port) in on.flat_map(|def| def.ports).filter_map(|port| port.setting(&config.ports)) {
        // 0 is for the engine to choose.
        if port != 0 {
            all.push(Wanted { setting: format!("ports.{name}"), address: config.network.publish, port });
        }
    }
    all
}

fn judge_ports(
    wanted: &[Wanted],
    listeners: &[Listener],
    standing: &[Standing],
    lab: &str,
    daemon: Option<u32>,
    root_user: bool,
) -> Vec<Check> {
    const NAME: &str = "ports";
    let mut checks = Vec::new();
    let mut ours = 0;
    for Wanted { setting, address, port } in wanted {
        let meets = |other: IpAddr, p: u16| p == *port && overlap(*address, other);
        let fix = format!("ss -ltnp 'sport = :{port}'\n# stop it, or set another `{setting}` in labd.toml");
        // The engine listens for its containers, so it is asked first.
        if let Some(container) = standing.iter().find(|c| c.running && c.published.iter().any(|(ip, p)| meets(*ip, *p)))
        {
            if container.lab.as_deref() == Some(lab) {
                ours += 1;
            } else {
                let why = format!("port {port} (`{setting}`) is taken by the container {}", container.name);
                checks.push(Check::fail(NAME, why, fix));
            }
            continue;
        }
        let Some(listener) = listeners.iter().find(|l| meets(l.address, l.port)) else { continue };
        match &listener.process {
            Some((pid, _)) if Some(*pid) == daemon => ours += 1,
            Some((pid, name)) => {
                let why = format!("port {port} (`{setting}`) is taken by {name} (pid {pid})");
                checks.push(Check::fail(NAME, why, fix));
            }
            // The daemon answers, and what it listens at is somewhere.
            None if daemon.is_some() && ["lab.page", "http.jupyter_port"].contains(&setting.as_str()) => ours += 1,
            None => {
                let who =
                    if root_user { "another network namespace" } else { "another user (as root, doctor says whom)" };
                checks.push(Check::fail(NAME, format!("port {port} (`{setting}`) is taken by {who}"), fix));
            }
        }
    }
    if checks.is_empty() {
        let why = match (ours, wanted.len() - ours) {
            (0, free) => format!("all {free} are free"),
            (ours, 0) => format!("all {ours} are held by this lab"),
            (ours, free) => format!("{ours} held by this lab, {free} free"),
        };
        checks.push(Check::ok(NAME, why));
    }
    checks
}

/// Whether listening on both is impossible.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}

fn listeners(root: &Path) -> Vec<Listener> {
    let mut sockets = Vec::new();
    for file in ["proc/net/tcp", "proc/net/tcp6"] {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(socket));
    }
    let inodes = sockets.iter().map(|(_, _, inode)| inode.clone()).collect();
    let owners = owners(root, &inodes);
    sockets
        .into_iter()
        .map(|(address, port, inode)| Listener { address, port, process: owners.get(&inode).cloned() })
        .collect()
}

/// Listening socket in a line of `/proc/net/tcp` or `tcp6`: address, port, inode.
fn socket(line: &str) -> Option<(IpAddr, u16, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    // Words of 32 bits in the byte order of the machine.
    let words: Vec<u8> = (0..address.len() / 8)
        .filter_map(|i| u32::from_str_radix(address.get(i * 8..i * 8 + 8)?, 16).ok())
        .flat_map(u32::to_ne_bytes)
        .collect();
    let address = match words.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
        16 => {
            let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?);
            // `::` takes IPv4's connections, too.
            v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?, (*fields.get(9)?).to_owned()))
}

/// Processes by the socket that they hold, for those that this user may see.
fn owners(root: &Path, inodes: &BTreeSet<String>) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root.join("proc")).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']'));
            if let Some(inode) = inode.filter(|i| inodes.contains(*i)) {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
                found.entry(inode.to_owned()).or_insert((pid, name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::doctor::Verdict;

    const LOOP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn config(text: &str) -> Config {
        Config::parse(Path::new("labd.toml"), text).expect("right")
    }

    fn container(name: &str, lab: Option<&str>, address: IpAddr, port: u16) -> Standing {
        Standing {
            name: name.to_owned(),
            lab: lab.map(str::to_owned),
            service: None,
            running: true,
            published: vec![(address, port)],
        }
    }

    #[test]
    fn who_has_a_port_is_named() {
        let wanted = wanted(&config("[services.grafana]\nenabled = false\n[ports]\ngcs = 0\n"));
        assert_eq!(wanted.len(), 7, "none for what is off or chosen by the engine");
        let judge = |listeners: &[Listener], standing: &[Standing], daemon| {
            let found = judge_ports(&wanted, listeners, standing, "labd", daemon, false);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].verdict, found[0].why.clone())
        };
        let on = |port, address, process: Option<(u32, &str)>| Listener {
            address,
            port,
            process: process.map(|(pid, name)| (pid, name.to_owned())),
        };
        assert_eq!(judge(&[], &[], None), (Verdict::Ok, "all 7 are free".into()));
        assert_eq!(judge(&[on(9000, "127.0.0.2".parse().expect("an address"), None)], &[], None).0, Verdict::Ok);
        assert_eq!(
            judge(&[on(9000, ANY, Some((7, "nginx")))], &[], None),
            (Verdict::Fail, "port 9000 (`ports.s3`) is taken by nginx (pid 7)".into())
        );
        assert!(judge(&[on(9000, LOOP, None)], &[], None).1.contains("another user"));
        let page = on(8600, LOOP, Some((12, "labd")));
        assert_eq!(judge(std::slice::from_ref(&page), &[], Some(12)).1, "1 held by this lab, 6 free");
        assert!(judge(&[page], &[], None).1.contains("taken by labd (pid 12)"), "another lab's");
        let proxy = on(8888, LOOP, Some((9, "docker-proxy")));
        let ours = container("labd-jupyter", Some("labd"), LOOP, 8888);
        assert_eq!(judge(std::slice::from_ref(&proxy), &[ours], None).0, Verdict::Ok);
        let other = container("x-jupyter", Some("x"), ANY, 8888);
        assert_eq!(
            judge(&[proxy], &[other], None).1,
            "port 8888 (`ports.jupyter`) is taken by the container x-jupyter"
        );
    }

    #[test]
    fn listeners_are_read_with_their_process() {
        let root = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            fs::write(path, text).expect("written");
        };
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        put("proc/net/tcp", &format!("{head}   0: 0100007F:2328 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n"));
        put(
            "proc/net/tcp6",
            &format!(
                "{head}   0: 00000000000000000000000000000000:0BB8 0:0 0A 0:0 00:0 0 0 0 4712 1\n   \
                 1: 0000000000000000FFFF00000100007F:0050 0:0 0A 0:0 00:0 0 0 0 4713 1\n   \
                 2: 00000000000000000000000000000000:0051 0:0 01 0:0 00:0 0 0 0 4714 1\n"
            ),
        );
        put("proc/31/comm", "nginx\n");
        fs::create_dir_all(root.path().join("proc/31/fd")).expect("made");
        std::os::unix::fs::symlink("socket:[4711]", root.path().join("proc/31/fd/5")).expect("linked");
        let found = listeners(root.path());
        assert_eq!(found[0], Listener { address: LOOP, port: 9000, process: Some((31, "nginx".into())) });
        assert_eq!(found[1], Listener { address: Ipv6Addr::UNSPECIFIED.into(), port: 3000, process: None });
        assert_eq!((found[2].address, found[2].port, found.len()), (LOOP, 80, 3));
    }
}
