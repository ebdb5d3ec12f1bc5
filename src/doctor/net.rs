//! Ports, the lab's subnet, and the places that images are made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::Url;

use super::{Check, Scene, blocking, within, without_fix};
use crate::{
    config::{self, Config},
    daemon::{self, Machine},
    engine::docker::{LabNetwork, Standing},
    node::{self, guard, routes},
    plan::spec::{ImageName, ImageSource, ImageSpec},
    snapshot::Snapshot,
    supervise,
    time::Timestamp,
};

/// How long a mirror or registry may take.
const REACH: Duration = Duration::from_secs(4);
/// `LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Who listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    port: u16,
    /// Its process, where this user may see it.
    process: Option<(u32, String)>,
}

/// A port that `labd.toml` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    setting: &'static str,
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

fn wanted(config: &Config) -> Vec<Wanted> {
    let (ports, services) = (&config.ports, &config.services);
    let mut all = vec![Wanted { setting: "lab.page", address: config.lab.page.ip(), port: config.lab.page.port() }];
    for (setting, port, on) in [
        ("ports.gcs", ports.gcs, true),
        ("ports.dashboard", ports.dashboard, true),
        ("ports.s3", ports.s3, services.minio.on()),
        ("ports.s3_console", ports.s3_console, services.minio.on()),
        ("ports.prometheus", ports.prometheus, services.prometheus.on()),
        ("ports.grafana", ports.grafana, services.grafana.on()),
        ("ports.jupyter", ports.jupyter, services.jupyter.on()),
    ] {
        // 0 is for the engine to choose.
        if on && port != 0 {
            all.push(Wanted { setting, address: config.network.publish, port });
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
            // The daemon answers, and its page is somewhere.
            None if daemon.is_some() && *setting == "lab.page" => ours += 1,
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

/// One line of `/proc/net/tcp` or `tcp6` that listens: address, port, inode.
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

/// Which process holds which socket, for those that this user may see.
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

/// Whether the lab's /24 is nobody else's.
pub(super) async fn subnet(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "subnet";
    let Ok((config, _)) = &scene.config else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let (Ok(engine), Ok(_)) = (&scene.engine, scene.setup().await) else {
        return vec![Check::skipped(NAME, "the engine was not reached")];
    };
    let asked = async { (engine.own_subnet().await, engine.networks().await) };
    let Some((Ok(own), Ok(networks))) = within(asked).await else {
        return vec![Check::skipped(NAME, "the engine does not say which networks it has")];
    };
    vec![judge_subnet(config.network.subnet.as_deref(), own.as_deref(), &networks, &routes::host())]
}

fn judge_subnet(set: Option<&str>, own: Option<&str>, networks: &[(String, String)], host: &[(u32, u32)]) -> Check {
    const NAME: &str = "subnet";
    const FIX: &str = "ip route\n# set another `network.subnet` in labd.toml, or none: labd finds a free one";
    let own = own.and_then(routes::parse_cidr);
    // The lab's own network is a route of the host, too.
    let host: Vec<(u32, u32)> = host.iter().copied().filter(|r| Some(*r) != own).collect();
    let mut taken = host.clone();
    taken.extend(networks.iter().filter_map(|(_, s)| routes::parse_cidr(s)));
    let Some(set) = set else {
        return match (own, routes::free_subnet(&taken)) {
            (Some((n, _)), _) if routes::overlaps(first_three(n), &host) => Check::warn(
                NAME,
                format!("{}/24, the lab's own, overlaps another route of this machine", Ipv4Addr::from(n)),
                FIX,
            ),
            (Some((n, _)), _) => Check::ok(NAME, format!("{}/24, the lab's own", Ipv4Addr::from(n))),
            (None, Some([a, b, c])) => Check::ok(NAME, format!("{a}.{b}.{c}.0/24 is free")),
            (None, None) => Check::fail(NAME, without_fix(routes::ALL_TAKEN), FIX),
        };
    };
    // Checked when labd.toml was read.
    let Ok(wanted) = config::parse_subnet(set) else {
        return Check::skipped(NAME, "labd.toml is wrong, see there");
    };
    for (name, subnet) in networks {
        if routes::parse_cidr(subnet).is_some_and(|s| routes::overlaps(wanted, &[s])) {
            let why = format!("{set} overlaps the engine's network {name} ({subnet})");
            return Check::fail(NAME, why, format!("docker network inspect {name}\n{FIX}"));
        }
    }
    if routes::overlaps(wanted, &host) {
        return Check::fail(NAME, format!("{set} overlaps a route of this machine"), FIX);
    }
    Check::ok(NAME, format!("{set} overlaps nothing"))
}

fn first_three(network: u32) -> [u8; 3] {
    let [a, b, c, _] = network.to_be_bytes();
    [a, b, c]
}

/// Whether a proxy gives out addresses of the range that labd takes its subnet from, in place of the real ones.
pub(super) async fn fake_ip(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "fake-ip";
    let Ok((config, _)) = &scene.config else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let hosts: BTreeSet<String> =
        places(config).iter().filter_map(|p| Url::parse(&p.url).ok()?.host_str().map(str::to_owned)).collect();
    let resolve = |host: String| async move {
        let found = within(tokio::net::lookup_host((host.clone(), 443))).await;
        let addresses: Vec<IpAddr> = found.and_then(Result::ok).into_iter().flatten().map(|a| a.ip()).collect();
        addresses.into_iter().map(move |a| (host.clone(), a)).collect::<Vec<_>>()
    };
    let own = async {
        match (&scene.engine, scene.setup().await) {
            (Ok(engine), Ok(_)) => within(engine.own_subnet()).await?.ok()?,
            _ => None,
        }
    };
    let (answers, own) = tokio::join!(futures_util::future::join_all(hosts.into_iter().map(resolve)), own);
    let subnet = config.network.subnet.clone().or(own).and_then(|text| config::parse_subnet(&text).ok());
    let subnet = subnet.or_else(|| routes::free_subnet(&routes::host()));
    let resolv = fs::read_to_string(scene.subject.root.join("etc/resolv.conf")).unwrap_or_default();
    vec![judge_fake_ip(subnet, &answers.concat(), &resolv)]
}

/// `answers` are names and what they resolve to, `resolv` is the text of `/etc/resolv.conf`.
fn judge_fake_ip(subnet: Option<[u8; 3]>, answers: &[(String, IpAddr)], resolv: &str) -> Check {
    const NAME: &str = "fake-ip";
    const FIX: &str = "labd down\n# set `network.subnet = \"10.213.7.0/24\"` in labd.toml, or another /24 that nobody here uses\nlabd up";
    let fake = |address: &IpAddr| matches!(address, IpAddr::V4(a) if routes::in_labs_range(*a));
    let servers = resolv.lines().filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    let servers = servers.map(|address| ("the name server".to_owned(), address));
    let mut found: Vec<(String, IpAddr)> = answers.iter().cloned().chain(servers).filter(|(_, a)| fake(a)).collect();
    let inside =
        |address: &IpAddr, [a, b, c]: [u8; 3]| matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [a, b, c]);
    // What is wrong already goes before what may become so.
    found.sort_by_key(|(_, address)| !subnet.is_some_and(|s| inside(address, s)));
    let Some((name, address)) = found.first() else {
        return if answers.is_empty() {
            Check::skipped(NAME, "no name could be resolved")
        } else {
            Check::ok(NAME, "names resolve to addresses outside of 198.18.0.0/15")
        };
    };
    let is = format!("{name} is {address}, which a proxy of this machine or network gives out (198.18.0.0/15)");
    match subnet {
        Some(s) if inside(address, s) => {
            Check::fail(NAME, format!("{is}, and the lab's network {} has that address, too", said_subnet(s)), FIX)
        }
        Some(s) if routes::in_labs_range(Ipv4Addr::new(s[0], s[1], s[2], 0)) => Check::warn(
            NAME,
            format!(
                "{is}: some day a name resolves into the lab's network {}, and a container answers",
                said_subnet(s)
            ),
            FIX,
        ),
        _ => Check::ok(NAME, format!("{is}; the lab's network is elsewhere")),
    }
}

fn said_subnet([a, b, c]: [u8; 3]) -> String {
    format!("{a}.{b}.{c}.0/24")
}

/// Whether this machine lets containers speak to it, as far as Prometheus tells.
pub(super) async fn host_firewall(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "host-firewall";
    let Some(snapshot) = scene.snapshot() else {
        return vec![Check::skipped(NAME, "the daemon does not say whether Prometheus reaches it")];
    };
    vec![judge_host_firewall(snapshot, scene.config().lab.page.port())]
}

fn judge_host_firewall(snapshot: &Snapshot, port: u16) -> Check {
    const NAME: &str = "host-firewall";
    match snapshot.notices.iter().find(|n| n.text.starts_with(supervise::METRICS_MISSING)) {
        None => Check::ok(NAME, "nothing is known to keep containers from this machine"),
        Some(notice) => {
            let prometheus = snapshot.services.iter().find(|s| s.name == "prometheus").map(|s| s.address.as_str());
            let from = prometheus.filter(|a| !a.is_empty()).map(|a| format!(" -s {a}")).unwrap_or_default();
            let fix = format!(
                "iptables -S INPUT\niptables -I INPUT{from} -p tcp --dport {port} -j ACCEPT\n# and the same in your firewall's own settings"
            );
            Check::warn(NAME, notice.text.clone(), fix)
        }
    }
}

/// Which known holes the store for checkpoints has.
pub(super) async fn store(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "store";
    let Ok((config, _)) = &scene.config else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    if let Some(s3) = &config.s3
        && !config.services.minio.on()
    {
        return vec![Check::skipped(NAME, format!("{} is not labd's to judge", s3.endpoint))];
    }
    vec![judge_store(config.images.minio.as_deref())]
}

/// Of a MinIO: what was found in it since, with the first of its releases that has no such hole, if there is one. Releases
/// are named by their time, so they compare as text.
const HOLES: [(&str, &str, Option<&str>); 3] = [
    ("CVE-2025-62506", "a restricted key makes itself an unrestricted one", Some("RELEASE.2025-10-15T17-29-55Z")),
    ("CVE-2026-40344", "archives are taken without the secret key", None),
    ("CVE-2026-41145", "uploads are taken without the secret key", None),
];

fn judge_store(image: Option<&str>) -> Check {
    const NAME: &str = "store";
    const FIX: &str =
        "# take `images.minio` out of labd.toml: labd builds one without them. Or name a maintained fork's image";
    let Some(image) = image else {
        return Check::ok(NAME, "labd's own MinIO refuses CVE-2025-62506, CVE-2026-40344 and CVE-2026-41145");
    };
    let (name, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"));
    let upstream = ["minio/minio", "docker.io/minio/minio", "quay.io/minio/minio"].contains(&name);
    if !upstream {
        let all: Vec<&str> = HOLES.iter().map(|(cve, _, _)| *cve).collect();
        let why = format!("labd does not know {image}: ask its maker about {}", all.join(", "));
        return Check::warn(NAME, why, "# labd builds a MinIO without them where `images.minio` is not set");
    }
    let open = |fixed: Option<&str>| fixed.is_none_or(|first| tag.starts_with("RELEASE.") && tag < first);
    let holes: Vec<String> =
        HOLES.iter().filter(|(_, _, fixed)| open(*fixed)).map(|(cve, what, _)| format!("{cve} ({what})")).collect();
    Check::fail(NAME, format!("{image} has {}", holes.join(", ")), FIX)
}

/// Whether other hosts are kept out of the lab's /24.
pub(super) async fn guarded(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "subnet-guard";
    let (Ok(engine), Ok(setup)) = (&scene.engine, scene.setup().await) else {
        return vec![Check::skipped(NAME, "the engine was not reached")];
    };
    if !guard::needed(&setup.version, setup.rootless) {
        return vec![Check::ok(
            NAME,
            format!("the engine ({}) keeps other hosts out of the lab's network", setup.version),
        )];
    }
    if !scene.root_user {
        return vec![Check::skipped(NAME, "the firewall's rules cannot be read (needs root)")];
    }
    let Some(Ok(Some(network))) = within(engine.lab_network()).await else {
        return vec![Check::skipped(NAME, "the lab's network is not there")];
    };
    vec![judge_guard(guard::listed().await.as_deref().map_err(String::as_str), &scene.config().lab.name, &network)]
}

fn judge_guard(listed: Result<&str, &str>, lab: &str, network: &LabNetwork) -> Check {
    const NAME: &str = "subnet-guard";
    let open = "a host with a route to it reaches every port of the lab, published or not";
    match listed {
        Ok(listed) if guard::stands(listed, lab, network) => {
            Check::ok(NAME, format!("a rule keeps other hosts out of {}", network.subnet))
        }
        Ok(_) => Check::warn(
            NAME,
            format!("no rule keeps other hosts out of {}: {open}", network.subnet),
            "systemctl restart labd    # it puts the rule up, and again when another program took it away",
        ),
        Err(why) => Check::warn(NAME, format!("{why}: {open}"), "apt-get install iptables\n# or an engine from 28 on"),
    }
}

/// What a mirror or registry answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    /// Its name.
    pub(super) host: String,
    /// Why it cannot be reached; absent when it can.
    pub(super) trouble: Option<String>,
    /// How far this machine's clock is ahead of its clock, where it says what time it is.
    pub(super) skew_seconds: Option<i64>,
}

/// Debian's mirror: what every build begins with.
pub(super) async fn ask_mirror(config: Config) -> Answer {
    ask(&places(&config)[0].url, &config).await
}

/// Something that images are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    what: &'static str,
    url: String,
    images: Vec<ImageName>,
}

/// From where the images of `labd.toml` come, Debian's mirror first.
fn places(config: &Config) -> Vec<Place> {
    let build = &config.images.build;
    let or = |set: &Option<String>, default: &str| set.clone().unwrap_or_else(|| default.to_owned());
    // The builds take the first of a list.
    let goproxy = or(&build.goproxy, "https://proxy.golang.org");
    let goproxy = goproxy.split([',', '|']).next().unwrap_or_default().to_owned();
    let all = vec![ImageName::Ray, ImageName::Minio, ImageName::Prometheus];
    let not_pulled = |names: Vec<ImageName>| -> Vec<ImageName> {
        names.into_iter().filter(|n| config.images.reference(*n).is_none()).collect()
    };
    let mut found = vec![
        Place {
            what: "Debian mirror",
            url: or(&build.debian_mirror, "http://deb.debian.org/debian"),
            images: not_pulled(all),
        },
        Place {
            what: "PyPI",
            url: or(&build.pip_index_url, "https://pypi.org/simple"),
            images: not_pulled(vec![ImageName::Ray]),
        },
        Place { what: "Go proxy", url: goproxy, images: not_pulled(vec![ImageName::Minio]) },
    ];
    for name in ImageName::ALL {
        let reference = match (config.images.reference(name), name) {
            (Some(reference), _) => reference,
            (None, ImageName::Grafana) => "grafana/grafana",
            (None, _) => continue,
        };
        let url = format!("https://{}/v2/", registry(reference));
        match found.iter_mut().find(|p| p.url == url) {
            Some(place) => place.images.push(name),
            None => found.push(Place { what: "image registry", url, images: vec![name] }),
        }
    }
    found
}

/// The host that an image reference names.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "registry-1.docker.io",
    }
}

/// Whether what images are made from can be reached, for those that the engine does not have.
pub(super) async fn packages(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "packages";
    let Ok((config, _)) = scene.config.clone() else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let (path, pretended) = (scene.subject.config.clone(), scene.simulated());
    let (asked, again) = (config.clone(), config.clone());
    let wish = blocking(move || {
        let simulate = (pretended > 0).then_some(pretended);
        let machine = Machine::without_gpus(node::facts(), simulate, [198, 18, 100]);
        daemon::wish(asked, &path, &machine, true).map(|w| w.plan.images).unwrap_or_default()
    });
    let images: Vec<ImageSpec> = wish.await.unwrap_or_default();
    let mut missing: Vec<ImageName> = Vec::new();
    for image in &images {
        let there = match (&scene.engine, scene.setup().await) {
            (Ok(engine), Ok(_)) => within(engine.has_image(&image.reference)).await,
            _ => None,
        };
        // An engine that cannot be asked will have to make them.
        if !matches!(there, Some(Ok(true))) {
            missing.push(image.name);
        }
    }
    if !images.is_empty() && missing.is_empty() {
        return vec![Check::ok(NAME, "every image is there: nothing has to be fetched")];
    }
    let places: Vec<Place> =
        places(&config).into_iter().filter(|p| p.images.iter().any(|i| missing.contains(i))).collect();
    let answers = places.into_iter().enumerate().map(|(i, place)| {
        let config = &again;
        async move {
            let answer = if i == 0 && place.what == "Debian mirror" {
                scene.mirror().await.clone()
            } else {
                ask(&place.url, config).await
            };
            (place, answer)
        }
    });
    let answers = futures_util::future::join_all(answers).await;
    let pulled = |name: ImageName| images.iter().any(|i| i.name == name && matches!(i.source, ImageSource::Pull));
    judge_packages(&answers, &missing, pulled)
}

fn judge_packages(
    answers: &[(Place, Answer)],
    missing: &[ImageName],
    pulled: impl Fn(ImageName) -> bool,
) -> Vec<Check> {
    const NAME: &str = "packages";
    let words = |names: &[ImageName]| names.iter().map(|n| n.word()).collect::<Vec<_>>().join(", ");
    let mut checks = Vec::new();
    for (place, answer) in answers {
        let Some(trouble) = &answer.trouble else { continue };
        let needed: Vec<ImageName> = place.images.iter().copied().filter(|i| missing.contains(i)).collect();
        if needed.is_empty() {
            continue;
        }
        let why = format!("{} {}: {trouble}; not to be had: {}", place.what, answer.host, words(&needed));
        let setting = match place.what {
            "Debian mirror" => "images.build.debian_mirror",
            "PyPI" => "images.build.pip_index_url",
            "Go proxy" => "images.build.goproxy",
            _ => "images.NAME",
        };
        let fix =
            format!("curl -sSI -m 5 {}\n# or set `{setting}` or `images.build.https_proxy` in labd.toml", place.url);
        // The rest of the lab runs without its graphs.
        let optional = needed.iter().all(|i| *i == ImageName::Grafana && pulled(*i));
        checks.push(if optional { Check::warn(NAME, why, fix) } else { Check::fail(NAME, why, fix) });
    }
    if checks.is_empty() {
        let hosts: Vec<&str> = answers.iter().map(|(_, a)| a.host.as_str()).collect();
        let what = if missing.is_empty() { String::new() } else { format!(" for {}", words(missing)) };
        checks.push(Check::ok(NAME, format!("reached{what}: {}", hosts.join(", "))));
    }
    checks
}

/// Asks a place as the builds would, through the proxy of `labd.toml`. labd speaks no TLS: of an https place it is seen
/// whether somebody is there, not what it says.
async fn ask(url: &str, config: &Config) -> Answer {
    let Ok(url) = Url::parse(url) else {
        return Answer { host: url.to_owned(), trouble: Some("is no URL".to_owned()), skew_seconds: None };
    };
    let host = url.host_str().unwrap_or_default().to_owned();
    match tokio::time::timeout(REACH, reach(&url, config)).await {
        Ok(Ok(skew_seconds)) => Answer { host, trouble: None, skew_seconds },
        Ok(Err(trouble)) => Answer { host, trouble: Some(trouble), skew_seconds: None },
        Err(_) => {
            let trouble = format!("no answer within {} s", REACH.as_secs());
            Answer { host, trouble: Some(trouble), skew_seconds: None }
        }
    }
}

/// Fails with why it cannot be reached; else how far our clock is ahead of its clock, where it says so.
async fn reach(url: &Url, config: &Config) -> Result<Option<i64>, String> {
    let build = &config.images.build;
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
    let tls = url.scheme() == "https";
    let proxy = if tls { &build.https_proxy } else { &build.http_proxy };
    let direct = build.no_proxy.iter().flat_map(|list| list.split(',')).any(|n| {
        let n = n.trim().trim_start_matches('.');
        !n.is_empty() && (host == n || host.ends_with(&format!(".{n}")))
    });
    let proxy = proxy.as_deref().filter(|_| !direct).and_then(|p| Url::parse(p).ok());
    let target = match &proxy {
        Some(p) => (p.host_str().unwrap_or_default().to_owned(), p.port_or_known_default().unwrap_or(3128)),
        None => (host.to_owned(), port),
    };
    let by = if proxy.is_some() { format!("proxy {}: ", target.0) } else { String::new() };
    let mut stream =
        TcpStream::connect((target.0.as_str(), target.1)).await.map_err(|e| format!("{by}{}", said(&e)))?;
    let request = match (&proxy, tls) {
        (None, true) => return Ok(None),
        (Some(_), true) => format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"),
        (Some(_), false) => format!("HEAD {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        (None, false) => format!("HEAD {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", url.path()),
    };
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("{by}{}", said(&e)))?;
    let mut head = Vec::new();
    let mut piece = [0; 2048];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 1 << 16 {
        match stream.read(&mut piece).await.map_err(|e| format!("{by}{}", said(&e)))? {
            0 => break,
            n => head.extend_from_slice(&piece[..n]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status: u16 =
        head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| format!("{by}speaks no HTTP"))?;
    // Whatever else a place says of its front page, it is there; a proxy that refuses or cannot reach it is not.
    if (proxy.is_some() && tls && status != 200) || matches!(status, 407 | 502..=504) {
        return Err(format!("{by}answers {status}"));
    }
    Ok(if tls { None } else { skew(&head, Timestamp::now()) })
}

/// How far `now` is ahead of the `Date` in the head of an answer, in seconds.
fn skew(head: &str, now: Timestamp) -> Option<i64> {
    let date = head.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case("date")))?.1;
    let date = jiff::fmt::rfc2822::parse(date.trim()).ok()?;
    Some(now.as_millis() / 1000 - date.timestamp().as_second())
}

fn said(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ if error.to_string().contains("lookup address") => "its name cannot be resolved".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

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
    fn the_holes_of_a_store_are_told() {
        assert_eq!(judge_store(None).verdict, Verdict::Ok);
        let old = judge_store(Some("quay.io/minio/minio:RELEASE.2025-04-22T22-12-26Z"));
        assert_eq!(old.verdict, Verdict::Fail);
        assert!(["62506", "40344", "41145"].iter().all(|cve| old.why.contains(cve)), "{}", old.why);
        let last = judge_store(Some("minio/minio:RELEASE.2025-10-15T17-29-55Z"));
        assert!(last.why.contains("40344") && !last.why.contains("62506"), "{}", last.why);
        assert_eq!(judge_store(Some("registry.lab:5000/fork")).verdict, Verdict::Warn);
    }

    #[test]
    fn a_subnet_that_others_can_reach_is_told() {
        let network = LabNetwork { subnet: "198.18.100.0/24".into(), bridge: "br-1".into() };
        let rule = "-A PREROUTING -d 198.18.100.0/24 ! -i br-1 -m comment --comment \"labd:lab\" -j DROP\n";
        assert_eq!(judge_guard(Ok(rule), "lab", &network).verdict, Verdict::Ok);
        assert_eq!(judge_guard(Ok("-P PREROUTING ACCEPT\n"), "lab", &network).verdict, Verdict::Warn);
        let missing = judge_guard(Err("there is no iptables on this machine"), "lab", &network);
        assert!(missing.why.starts_with("there is no iptables") && missing.fix.is_some(), "{missing:?}");
    }

    #[test]
    fn who_has_a_port_is_named() {
        let wanted = wanted(&config("[services.grafana]\nenabled = false\n[ports]\ngcs = 0\n"));
        assert_eq!(wanted.len(), 6, "none for what is off or chosen by the engine");
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
        assert_eq!(judge(&[], &[], None), (Verdict::Ok, "all 6 are free".into()));
        assert_eq!(judge(&[on(9000, "127.0.0.2".parse().expect("an address"), None)], &[], None).0, Verdict::Ok);
        assert_eq!(
            judge(&[on(9000, ANY, Some((7, "nginx")))], &[], None),
            (Verdict::Fail, "port 9000 (`ports.s3`) is taken by nginx (pid 7)".into())
        );
        assert!(judge(&[on(9000, LOOP, None)], &[], None).1.contains("another user"));
        let page = on(8600, LOOP, Some((12, "labd")));
        assert_eq!(judge(std::slice::from_ref(&page), &[], Some(12)).1, "1 held by this lab, 5 free");
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

    #[test]
    fn a_subnet_is_nobody_elses() {
        let route = |s: &str| routes::parse_cidr(s).expect("a subnet");
        let own = [route("198.18.7.0/24")];
        let judge =
            |set, own, host: &[(u32, u32)], networks: &[(String, String)]| judge_subnet(set, own, networks, host);
        let seven = Some("198.18.7.0/24");
        assert_eq!(judge(seven, seven, &own, &[]).verdict, Verdict::Ok, "the lab's own route");
        assert_eq!(judge(seven, None, &own, &[]).verdict, Verdict::Fail);
        assert_eq!(judge(seven, None, &[route("198.18.0.0/16")], &[]).verdict, Verdict::Fail);
        let other = [("other".to_owned(), "198.18.7.0/25".to_owned())];
        assert!(judge(seven, None, &[], &other).why.contains("the engine's network other"));
        assert_eq!(judge(None, None, &[], &[]).why, "198.18.100.0/24 is free");
        assert_eq!(judge(None, seven, &own, &[]).why, "198.18.7.0/24, the lab's own");
        assert_eq!(judge(None, None, &[route("198.18.0.0/15")], &[]).verdict, Verdict::Fail);
        let wide = [own[0], route("198.18.0.0/16")];
        assert_eq!(judge(None, seven, &wide, &[]).verdict, Verdict::Warn, "a route that came after the lab");
    }

    #[test]
    fn addresses_that_a_proxy_makes_up_are_kept_out_of_the_lab() {
        let judge = |subnet: [u8; 3], address: &str, resolv: &str| {
            judge_fake_ip(Some(subnet), &[("pypi.org".into(), address.parse().expect("an address"))], resolv)
        };
        let lab = [198, 18, 100];
        assert_eq!(judge(lab, "151.101.0.223", "nameserver 192.0.2.1\n").verdict, Verdict::Ok);
        assert_eq!(judge(lab, "2a04:4e42::223", "").verdict, Verdict::Ok);
        let among = judge(lab, "198.18.0.9", "");
        assert_eq!(among.verdict, Verdict::Warn);
        assert!(among.why.contains("pypi.org is 198.18.0.9") && among.why.contains("198.18.100.0/24"), "{}", among.why);
        assert!(among.fix.is_some_and(|f| f.contains("network.subnet")));
        assert_eq!(judge(lab, "198.18.100.11", "nameserver 198.18.0.2\n").verdict, Verdict::Fail, "a container's own");
        assert_eq!(judge(lab, "151.101.0.223", "nameserver 198.18.0.2\n").verdict, Verdict::Warn);
        assert_eq!(judge([10, 213, 7], "198.18.0.9", "").verdict, Verdict::Ok);
        assert_eq!(judge_fake_ip(Some(lab), &[], "").verdict, Verdict::Skipped);
    }

    #[test]
    fn a_firewall_between_containers_and_this_machine_is_named() {
        let mut snapshot = crate::http::testing::a_snapshot();
        snapshot.notices.clear();
        assert_eq!(judge_host_firewall(&snapshot, 8600).verdict, Verdict::Ok);
        let text = format!("{}: Prometheus does not reach 198.18.100.1:8600", supervise::METRICS_MISSING);
        snapshot.notices.push(crate::snapshot::Notice { severity: crate::snapshot::Severity::Warning, text });
        let check = judge_host_firewall(&snapshot, 8600);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.fix.is_some_and(|f| f.contains("--dport 8600 -j ACCEPT")));
    }

    #[test]
    fn only_what_the_configuration_would_use_is_asked() {
        let hosts = |text: &str| -> Vec<String> {
            places(&config(text)).into_iter().filter(|p| !p.images.is_empty()).map(|p| p.url).collect()
        };
        assert_eq!(
            hosts(""),
            [
                "http://deb.debian.org/debian",
                "https://pypi.org/simple",
                "https://proxy.golang.org",
                "https://registry-1.docker.io/v2/"
            ]
        );
        let text = "[images]\nray = \"rayproject/ray:2.60.0\"\nminio = \"quay.io/minio/minio:x\"\n[images.build]\n\
                    debian_mirror = \"http://mirror.example/debian\"\n";
        let registries = ["https://registry-1.docker.io/v2/", "https://quay.io/v2/"];
        assert_eq!(hosts(text), ["http://mirror.example/debian", registries[0], registries[1]]);
        assert_eq!(registry("localhost:5000/x"), "localhost:5000");
    }

    #[test]
    fn what_cannot_be_had_says_how_much_it_matters() {
        let places = places(&config(""));
        let answers: Vec<(Place, Answer)> = places
            .into_iter()
            .map(|p| {
                let away = p.what == "image registry";
                (p, Answer { host: "h".into(), trouble: away.then(|| "connection refused".into()), skew_seconds: None })
            })
            .collect();
        let all = [ImageName::Ray, ImageName::Grafana];
        let found = judge_packages(&answers, &all, |n| n == ImageName::Grafana);
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Warn), "{found:?}");
        assert!(found[0].why.ends_with("not to be had: grafana"), "{}", found[0].why);
        let none: Vec<(Place, Answer)> =
            answers.into_iter().map(|(p, a)| (p, Answer { trouble: Some("no".into()), ..a })).collect();
        assert!(judge_packages(&none, &all, |_| false).iter().all(|c| c.verdict == Verdict::Fail));
    }

    #[tokio::test]
    async fn a_mirror_says_what_time_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                let _ = peer.read(&mut [0; 512]).await;
                let _ = peer.write_all(b"HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2020 02:00:00 GMT\r\n\r\n").await;
            }
        });
        let answer = ask(&format!("http://127.0.0.1:{port}/debian"), &Config::default()).await;
        assert_eq!(answer.trouble, None);
        assert!(answer.skew_seconds.is_some_and(|s| s > 3600 * 24 * 365), "{answer:?}");
        // The same by way of a proxy, which is not one.
        let text = format!("[images.build]\nhttps_proxy = \"http://127.0.0.1:{port}\"\n");
        assert_eq!(ask("https://mirror.invalid/", &config(&text)).await.trouble, None);
        let text = "[images.build]\nhttps_proxy = \"http://127.0.0.1:1\"\n";
        let refused = ask("https://mirror.invalid/", &config(text)).await;
        assert_eq!(refused.trouble.as_deref(), Some("proxy 127.0.0.1: connection refused"));
        assert_eq!(skew("HTTP/1.1 200 OK\r\nDate: rubbish\r\n", Timestamp::now()), None);
    }
}
