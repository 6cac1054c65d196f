//! The policy of one sandbox.

use std::net::IpAddr;

use super::{HostPattern, Secret, Target};

/// Most entries of `allow_net`: each is compared for each connection.
pub const ALLOW_NET_MAX: usize = 256;

/// The port of a secret's host that names none: secrets are for HTTPS.
pub const SECRET_PORT: u16 = 443;

/// What a sandbox may reach, and the values it may use without seeing them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkPolicy {
    /// The only hosts that it may reach; without a list, all that are public.
    pub allow: Option<Vec<HostPattern>>,
    /// Its secrets.
    pub secrets: Vec<Secret>,
}

impl NetworkPolicy {
    /// Whether the sandbox has a network of its own, with no policy to keep.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_none() && self.secrets.is_empty()
    }

    /// Whether the sandbox may connect to this. A secret's hosts need to be allowed as well.
    #[must_use]
    pub fn allows(&self, target: &Target, port: u16) -> bool {
        match &self.allow {
            None => true,
            Some(allow) => allow.iter().any(|pattern| pattern.matches(target, port)),
        }
    }

    /// Whether the sandbox may connect to this on some port, so that it may look the name up.
    #[must_use]
    pub fn knows(&self, target: &Target) -> bool {
        match &self.allow {
            None => true,
            Some(allow) => allow.iter().any(|pattern| pattern.is_host(target)),
        }
    }

    /// Whether the list names this very address, on this port or all.
    #[must_use]
    pub fn names_address(&self, address: IpAddr, port: u16) -> bool {
        let target = Target::Address(address);
        self.allow
            .as_ref()
            .is_some_and(|allow| allow.iter().any(|pattern| pattern.matches(&target, port)))
    }

    /// The secrets that this host is given.
    pub fn secrets_for<'a>(
        &'a self,
        target: &'a Target,
        port: u16,
    ) -> impl Iterator<Item = &'a Secret> {
        self.secrets.iter().filter(move |secret| {
            secret
                .hosts
                .iter()
                .any(|host| host.matches_with_default(target, port, SECRET_PORT))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn name(text: &str) -> Target {
        Target::Name(text.parse().unwrap())
    }

    fn secret(hosts: &[&str]) -> Secret {
        Secret::new(
            "KEY",
            patterns(hosts),
            "value".to_owned(),
            super::super::Placeholder::from_random([7; 16]),
        )
        .unwrap()
    }

    #[test]
    fn without_a_list_everything_and_with_an_empty_one_nothing() {
        let open = NetworkPolicy::default();
        assert!(open.is_open() && open.allows(&name("a.com"), 1));
        let closed = NetworkPolicy {
            allow: Some(Vec::new()),
            ..open
        };
        assert!(!closed.is_open());
        assert!(!closed.allows(&name("a.com"), 443) && !closed.knows(&name("a.com")));
    }

    #[test]
    fn a_name_is_known_on_any_port_and_allowed_on_its_own() {
        let policy = NetworkPolicy {
            allow: Some(patterns(&["a.com:443", "10.0.0.1"])),
            secrets: Vec::new(),
        };
        assert!(policy.knows(&name("a.com")) && !policy.allows(&name("a.com"), 80));
        assert!(policy.names_address([10, 0, 0, 1].into(), 80));
        assert!(!policy.names_address([10, 0, 0, 2].into(), 80));
    }

    #[test]
    fn a_secret_is_for_its_hosts_on_their_port_and_widens_nothing() {
        let policy = NetworkPolicy {
            allow: Some(patterns(&["a.com"])),
            secrets: vec![secret(&["a.com", "*.b.com:8443"])],
        };
        let count = |target: &str, port| policy.secrets_for(&name(target), port).count();
        assert_eq!(count("a.com", 443), 1);
        assert_eq!(count("a.com", 8443), 0);
        assert_eq!(count("x.b.com", 8443), 1);
        assert_eq!(count("x.b.com", 443), 0);
        assert_eq!(count("b.com", 8443), 0);
        assert!(!policy.allows(&name("x.b.com"), 8443));
        assert!(!policy.is_open());
    }
}
