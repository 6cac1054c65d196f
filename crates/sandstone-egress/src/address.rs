//! Which addresses a name may lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Who may connect to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Everybody.
    Public,
    /// Those whose policy names the very address: a private network.
    Named,
    /// Nobody: it leads to the host itself, to what a cloud tells its machines, or nowhere.
    Never,
}

/// Ranges of which each address has to be named.
const PRIVATE: [(Ipv4Addr, u32); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// Ranges that nobody reaches: this network, loopback, link-local with the cloud's metadata,
/// protocol assignments, 6to4 relays, benchmarks (our own addresses for names), multicast and
/// reserved with broadcast. From the IANA registry of special-purpose addresses; the
/// documentation ranges are not among them, because some clouds give them to machines.
const NEVER: [(Ipv4Addr, u32); 8] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Amazon's metadata over IPv6, in the middle of a private range.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Who may connect to `address`, as far as its number tells.
pub(crate) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    let within = |(network, bits): &(Ipv4Addr, u32)| {
        (u32::from(address) ^ u32::from(*network)) >> (32 - bits) == 0
    };
    if NEVER.iter().any(within) {
        Reach::Never
    } else if PRIVATE.iter().any(within) {
        Reach::Named
    } else {
        Reach::Public
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4-mapped, RFC 4291, and NAT64, RFC 6052: as the address within.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        // 6to4, RFC 3056, likewise.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, which hides an address, RFC 4380.
        [0x2001, 0, ..] => Reach::Never,
        _ if address == METADATA => Reach::Never,
        // Unique local, RFC 4193.
        [first, ..] if first & 0xfe00 == 0xfc00 => Reach::Named,
        // Global unicast, RFC 4291 section 2.4.
        [first, ..] if first & 0xe000 == 0x2000 => Reach::Public,
        _ => Reach::Never,
    }
}

/// Whether `address` is one of the host's own. The kernel prefers a host's own address as the
/// source of what is sent to it. Nothing is sent.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    });
    // Without a route there is no connection either.
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().unwrap())
    }

    #[test]
    fn special_addresses() {
        for public in [
            "1.1.1.1",
            "203.0.113.5",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1111",
        ] {
            assert_eq!(of(public), Reach::Public, "{public}");
        }
        for named in [
            "10.1.2.3",
            "100.64.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "fd12::1",
        ] {
            assert_eq!(of(named), Reach::Named, "{named}");
        }
        for never in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "198.18.1.0",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "2001::1",
            "::127.0.0.1",
            "fec0::1",
            "64:ff9b:1::1",
        ] {
            assert_eq!(of(never), Reach::Never, "{never}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("203.0.113.254".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn an_address_within_another_is_judged_as_itself(address in any::<u32>()) {
            let address = Ipv4Addr::from(address);
            let [a, b, c, d] = address.octets();
            let mapped = address.to_ipv6_mapped();
            prop_assert_eq!(reach(mapped.into()), reach(address.into()));
            let nat64 = format!("64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}");
            prop_assert_eq!(of(&nat64), reach(address.into()));
            let six_to_four = format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1");
            prop_assert_eq!(of(&six_to_four), reach(address.into()));
        }
    }
}
