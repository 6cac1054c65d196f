//! A sandbox's network: a veth pair, and the host's rules for what passes it.

pub(crate) mod firewall;
pub(crate) mod link;
