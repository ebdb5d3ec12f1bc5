//! Which IPv4 ranges the host already reaches somewhere, and a /24 for the lab that none of them overlaps.

use std::fs;

/// First of the subnets tried when `labd.toml` names none. 198.18.0.0/15 (RFC 2544) is used by no lab or campus network,
/// unlike the private ranges.
const FIRST: u8 = 100;
/// Last of them.
const LAST: u8 = 249;

/// The host's routes but the default one, as (network, mask).
pub fn host() -> Vec<(u32, u32)> {
    parse(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// `/proc/net/route`: numbers are hexadecimal in the byte order of the machine.
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

/// The first /24 that overlaps none of `taken`.
pub fn free_subnet(taken: &[(u32, u32)]) -> Option<[u8; 3]> {
    (FIRST..=LAST).map(|n| [198, 18, n]).find(|&subnet| !overlaps(subnet, taken))
}

/// Whether a /24 overlaps one of `taken`.
pub fn overlaps([a, b, c]: [u8; 3], taken: &[(u32, u32)]) -> bool {
    let network = u32::from_be_bytes([a, b, c, 0]);
    taken.iter().any(|&(other, mask)| {
        let common = mask & 0xffff_ff00;
        network & common == other & common
    })
}

/// A subnet in CIDR notation as (network, mask). `None` for IPv6 and for anything unreadable.
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
        assert_eq!(free_subnet(&[parse_cidr("198.18.0.0/15").expect("a subnet")]), None);
        assert!(overlaps([198, 18, 7], &[parse_cidr("198.18.7.64/26").expect("a subnet")]), "a smaller one inside");
    }
}
