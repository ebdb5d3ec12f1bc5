//! IPv4 ranges that the host already reaches somewhere, and a /24 for the lab that none of them overlaps.

use std::fs;

/// Message for when no subnet is free: what is wrong, and what would be right.
pub const ALL_TAKEN: &str = "every /24 of 198.18.0.0/15 is in use on this machine; set `network.subnet` in labd.toml to one \
                             that is free, such as \"10.213.7.0/24\"";

/// Routes of the host but the default one, as (network, mask).
pub fn host() -> Vec<(u32, u32)> {
    parse(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Routes in `/proc/net/route`: numbers are hexadecimal in the byte order of the machine.
fn parse(text: &str) -> Vec<(u32, u32)> {
    let number = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::from_be);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (network, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
            (mask != 0).then_some((network, mask))
        })
        .collect()
}

/// Subnets that are tried when `labd.toml` names none, in this order: every /24 of 198.18.0.0/15 (RFC 2544), which no
/// lab or campus network uses, unlike the private ranges. The beginning comes last: proxies that answer for others
/// (Clash, mihomo) give out addresses from there.
fn candidates() -> impl Iterator<Item = [u8; 3]> {
    let of = |second: u8| move |third: u8| [198, second, third];
    (100..=249).map(of(18)).chain((0..=255).map(of(19))).chain((0..=99).chain(250..=255).map(of(18)))
}

/// Whether an address is in the range that [`free_subnet`] takes from.
pub fn in_labs_range(address: std::net::Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 18 | 19, ..])
}

/// The first /24 that overlaps none of `taken`.
pub fn free_subnet(taken: &[(u32, u32)]) -> Option<[u8; 3]> {
    candidates().find(|&subnet| !overlaps(subnet, taken))
}

/// Whether a /24 overlaps one of `taken`.
pub fn overlaps([a, b, c]: [u8; 3], taken: &[(u32, u32)]) -> bool {
    let network = u32::from_be_bytes([a, b, c, 0]);
    taken.iter().any(|&(other, mask)| {
        let common = mask & 0xffff_ff00;
        network & common == other & common
    })
}

/// Network and mask of a subnet in CIDR notation. `None` for IPv6 and for anything unreadable.
pub fn parse_cidr(text: &str) -> Option<(u32, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|b| (1..=32).contains(b))?;
    let mask = u32::MAX << (32 - bits);
    Some((u32::from(address) & mask, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_and_avoided() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    br-1\t006412C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let routes = parse(text);
        assert_eq!(routes, [parse_cidr("198.18.100.0/24").expect("a subnet")]);
        assert_eq!(free_subnet(&routes), Some([198, 18, 101]));
        assert_eq!(free_subnet(&[]), Some([198, 18, 100]));
        let free =
            |taken: &[&str]| free_subnet(&taken.iter().map(|s| parse_cidr(s).expect("a subnet")).collect::<Vec<_>>());
        assert_eq!(free(&["198.18.0.0/16"]), Some([198, 19, 0]), "the other half");
        assert_eq!(free(&["198.18.128.0/17", "198.18.64.0/18", "198.19.0.0/16"]), Some([198, 18, 0]), "the rest");
        assert_eq!(free(&["198.18.0.0/15"]), None);
        let all: std::collections::BTreeSet<[u8; 3]> = candidates().collect();
        assert_eq!((all.len(), candidates().count()), (512, 512), "each once");
        assert!(overlaps([198, 18, 7], &[parse_cidr("198.18.7.64/26").expect("a subnet")]), "a smaller one inside");
    }
}
