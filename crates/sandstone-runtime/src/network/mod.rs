//! A sandbox's network: a veth pair, and the host's rules for what passes it; or none of both,
//! and doors at which the server stands.

pub(crate) mod closed;
pub(crate) mod firewall;
pub(crate) mod link;
