//! Checks of the lab's subnet: whether it is nobody else's, whether its containers reach this machine, and who else
//! reaches them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
};

use url::Url;

use super::{Check, Scene, mirrors::places, within, without_fix};
use crate::{
    config,
    engine::{docker::LabNetwork, guard},
    node::routes,
    services,
    snapshot::Snapshot,
    supervise,
};

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

/// Judges the answers. `answers` are names and what they resolve to, `resolv` is the text of `/etc/resolv.conf`.
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
            let prometheus = snapshot
                .services
                .iter()
                .find(|s| s.name == services::prometheus::DEF.name())
                .map(|s| s.address.as_str());
            let from = prometheus.filter(|a| !a.is_empty()).map(|a| format!(" -s {a}")).unwrap_or_default();
            let fix = format!(
                "iptables -S INPUT\niptables -I INPUT{from} -p tcp --dport {port} -j ACCEPT\n# and the same in your firewall's own settings"
            );
            Check::warn(NAME, notice.text.clone(), fix)
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

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
}
