//! Hosts and patterns of hosts: `example.com`, `*.example.com:443`, `192.0.2.1`, `[2001:db8::1]:80`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest name without its final dot, RFC 1035 section 2.3.4.
const NAME_MAX_BYTES: usize = 253;

/// Longest label, RFC 1035 section 2.3.4.
const LABEL_MAX_BYTES: usize = 63;

/// A host name as it is compared: lower case, without a final dot. Not an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name below `parent`, at whatever depth.
    #[must_use]
    pub fn is_below(&self, parent: &Self) -> bool {
        self.0
            .strip_suffix(parent.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl FromStr for HostName {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return Err(PatternError::Name);
        }
        for label in name.split('.') {
            // Underscores are common in names of services, though not in those of hosts.
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if label.is_empty() || label.len() > LABEL_MAX_BYTES || !label.bytes().all(letter) {
                return Err(PatternError::Name);
            }
        }
        // Every program reads `127.1` and `0x7f.1` as an address. No top-level domain is a number.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
            return Err(PatternError::Address);
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a sandbox connects to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A host that it looked up.
    Name(HostName),
    /// An address that it had from elsewhere.
    Address(IpAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Hosts, and the port on which they are meant; without one, all.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Host {
    Name(HostName),
    /// All names below this one, not itself.
    Below(HostName),
    Address(IpAddr),
}

/// Why a text is not a pattern of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a host name.
    #[error(
        "a host is a name such as example.com or *.example.com, or an address such as 192.0.2.1, with or without a port; names beyond ASCII are written in punycode"
    )]
    Name,
    /// Neither a name nor an address.
    #[error(
        "an address has four decimal numbers, as in 192.0.2.1; there are no ranges, and no IPv6 yet"
    )]
    Address,
    /// Not a port.
    #[error("a port is a number from 1 to 65535")]
    Port,
}

impl HostPattern {
    /// The port, if it is only meant on one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether it is an IPv6 address. One that stands for an IPv4 address is that address.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        matches!(self.host, Host::Address(IpAddr::V6(_)))
    }

    /// Whether this is `target`, on whatever port.
    #[must_use]
    pub fn is_host(&self, target: &Target) -> bool {
        match (&self.host, target) {
            (Host::Name(mine), Target::Name(name)) => mine == name,
            (Host::Below(parent), Target::Name(name)) => name.is_below(parent),
            (Host::Address(mine), Target::Address(address)) => mine == address,
            (Host::Address(_), Target::Name(_))
            | (Host::Name(_) | Host::Below(_), Target::Address(_)) => false,
        }
    }

    /// Whether this is `target` on `port`.
    #[must_use]
    pub fn matches(&self, target: &Target, port: u16) -> bool {
        self.port.is_none_or(|mine| mine == port) && self.is_host(target)
    }

    /// As [`HostPattern::matches`], with the port that is meant when the pattern names none.
    #[must_use]
    pub fn matches_with_default(&self, target: &Target, port: u16, default: u16) -> bool {
        self.port.unwrap_or(default) == port && self.is_host(target)
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(PatternError::Address)?;
            let address: Ipv6Addr = address.parse().map_err(|_| PatternError::Address)?;
            let port = match rest {
                "" => None,
                rest => Some(port(rest.strip_prefix(':').ok_or(PatternError::Port)?)?),
            };
            // One address has one form: what is IPv4 is compared as IPv4.
            let address = match address.to_ipv4_mapped() {
                Some(mapped) => IpAddr::V4(mapped),
                None => IpAddr::V6(address),
            };
            return Ok(Self {
                host: Host::Address(address),
                port,
            });
        }
        let (host, port) = match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => return Err(PatternError::Address),
            Some((host, digits)) => (host, Some(port(digits)?)),
            None => (text, None),
        };
        let host = if let Ok(address) = host.parse::<Ipv4Addr>() {
            Host::Address(IpAddr::V4(address))
        } else if let Some(parent) = host.strip_prefix("*.") {
            Host::Below(parent.parse()?)
        } else {
            Host::Name(host.parse()?)
        };
        Ok(Self { host, port })
    }
}

/// Digits only: `u16::from_str` would take a sign.
fn port(digits: &str) -> Result<u16, PatternError> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PatternError::Port);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(PatternError::Port),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => name.fmt(f)?,
            Host::Below(parent) => write!(f, "*.{parent}")?,
            Host::Address(IpAddr::V4(address)) => address.fmt(f)?,
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    fn target(text: &str) -> Target {
        match text.parse::<IpAddr>() {
            Ok(address) => Target::Address(address),
            Err(_) => Target::Name(text.parse().unwrap()),
        }
    }

    #[test]
    fn a_name_is_itself_on_any_port_or_on_its_own() {
        let any = pattern("Example.COM.");
        assert_eq!(any.to_string(), "example.com");
        assert!(any.matches(&target("example.com"), 1));
        assert!(any.matches(&target("EXAMPLE.com."), 443));
        let one = pattern("example.com:443");
        assert!(one.matches(&target("example.com"), 443));
        assert!(!one.matches(&target("example.com"), 80));
        for other in [
            "www.example.com",
            "example.com.evil.org",
            "notexample.com",
            "com",
        ] {
            assert!(!any.matches(&target(other), 443), "{other}");
        }
    }

    #[test]
    fn a_wildcard_is_what_lies_below() {
        let below = pattern("*.example.com:80");
        for name in ["a.example.com", "a.b.EXAMPLE.com"] {
            assert!(below.matches(&target(name), 80), "{name}");
            assert!(!below.matches(&target(name), 81), "{name}");
        }
        for name in [
            "example.com",
            "xexample.com",
            "example.com.a",
            "a.example.org",
        ] {
            assert!(!below.matches(&target(name), 80), "{name}");
        }
    }

    #[test]
    fn addresses_are_only_themselves() {
        assert!(pattern("192.0.2.1:80").matches(&target("192.0.2.1"), 80));
        assert!(!pattern("192.0.2.1").matches(&target("192.0.2.2"), 80));
        assert!(pattern("[2001:DB8::1]:80").matches(&target("2001:db8::1"), 80));
        assert!(!pattern("[2001:db8::1]").matches(&target("192.0.2.1"), 80));
        assert!(pattern("[2001:db8::1]").is_ipv6());
        assert!(!pattern("[::ffff:192.0.2.1]").is_ipv6());
        assert!(pattern("[::ffff:192.0.2.1]").matches(&target("192.0.2.1"), 80));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, why) in [
            ("", PatternError::Name),
            ("*", PatternError::Name),
            ("*.", PatternError::Name),
            ("*.*.com", PatternError::Name),
            ("a*.com", PatternError::Name),
            ("*example.com", PatternError::Name),
            ("a..b", PatternError::Name),
            (".a", PatternError::Name),
            ("a b", PatternError::Name),
            ("a/b", PatternError::Name),
            ("http://a.com", PatternError::Port),
            ("bücher.example", PatternError::Name),
            ("*.192.0.2.1", PatternError::Address),
            ("10.0.0.0/8", PatternError::Name),
            ("127.1", PatternError::Address),
            ("2130706433", PatternError::Address),
            ("0x7f.0x1", PatternError::Address),
            ("0X7F.0X1", PatternError::Address),
            ("256.1.1.1", PatternError::Address),
            ("2001:db8::1", PatternError::Address),
            ("[2001:db8::1", PatternError::Address),
            ("[192.0.2.1]", PatternError::Address),
            ("[::1]80", PatternError::Port),
            ("a.com:", PatternError::Port),
            ("a.com:0", PatternError::Port),
            ("a.com:65536", PatternError::Port),
            ("a.com:+1", PatternError::Port),
            ("a.com:*", PatternError::Port),
        ] {
            let refused = text.parse::<HostPattern>();
            assert!(refused.is_err(), "{text}: {refused:?}");
            if text != "10.0.0.0/8" && text != "http://a.com" {
                assert_eq!(refused.unwrap_err(), why, "{text}");
            }
        }
        assert!("a".repeat(64).parse::<HostPattern>().is_err());
        assert!("a.".repeat(127).parse::<HostPattern>().is_ok());
        assert!(
            format!("{}b", "a.".repeat(127))
                .parse::<HostPattern>()
                .is_err()
        );
    }

    fn name() -> impl Strategy<Value = String> {
        proptest::collection::vec("[a-z][a-z0-9-]{0,8}", 1..5).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            if let Ok(pattern) = text.parse::<HostPattern>() {
                // What is shown means the same.
                prop_assert_eq!(pattern.to_string().parse::<HostPattern>(), Ok(pattern));
            }
        }

        #[test]
        fn a_wildcard_never_leaves_its_domain(parent in name(), other in name(), port in 1..u16::MAX) {
            let pattern = pattern(&format!("*.{parent}"));
            let matched = pattern.matches(&target(&other), port);
            prop_assert_eq!(matched, other.ends_with(&format!(".{parent}")));
            let below = target(&format!("{other}.{parent}"));
            prop_assert!(pattern.matches(&below, port));
            prop_assert!(!pattern.matches(&target(&parent), port));
        }

        #[test]
        fn case_and_a_final_dot_do_not_matter(name in name(), port in 1..u16::MAX) {
            let pattern = pattern(&format!("{}.:{port}", name.to_uppercase()));
            prop_assert!(pattern.matches(&target(&name), port));
            prop_assert!(!pattern.matches(&target(&name), port + 1));
        }

        #[test]
        fn addresses_have_one_form(address in any::<u32>(), port in 1..=u16::MAX) {
            let address = Ipv4Addr::from(address);
            let pattern = pattern(&format!("{address}:{port}"));
            prop_assert!(pattern.matches(&Target::Address(address.into()), port));
            prop_assert_eq!(pattern.to_string(), format!("{address}:{port}"));
        }
    }
}
