//! The instance's nft table.
//!
//! Interfaces are matched by name, so that one table serves all sandboxes and starting one
//! changes no rule:
//!
//! - to the host itself: nothing but the configured holes;
//! - to the internet: everything but private and special ranges, over IPv4 with masquerade;
//! - to a sandbox: answers only;
//! - source addresses must be the interface's own.
//!
//! What a sandbox may not reach is refused rather than dropped, so that programs fail at once
//! instead of waiting, for instance for a name server.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use crate::error::Step;
use crate::process;
use crate::{Error, RuntimeConfig};

/// Bound on one run of `nft`, which takes milliseconds.
const NFT_LIMIT: Duration = Duration::from_secs(10);

/// Ranges that lead to the host's own networks, or nowhere. The documentation ranges are not
/// among them: some clouds give them to machines.
const PRIVATE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Replaces the table in one transaction.
pub(crate) fn install(config: &RuntimeConfig) -> Result<(), Error> {
    nft(&rules(config))
}

/// Removes the table, if it exists.
pub(crate) fn remove(config: &RuntimeConfig) -> Result<(), Error> {
    nft(&format!("{}\n", reset(config)))
}

/// Adding first makes the deletion succeed in any case.
fn reset(config: &RuntimeConfig) -> String {
    let instance = &config.instance;
    format!("add table inet sandstone_{instance}\ndelete table inet sandstone_{instance}")
}

fn rules(config: &RuntimeConfig) -> String {
    let links = format!("\"{}*\"", config.link_prefix());
    let network = format!("{}/16", config.network);
    let private = PRIVATE.join(", ");
    let holes: Vec<(Ipv4Addr, u16)> = config
        .allow_private
        .iter()
        .filter_map(|(address, port)| match address {
            IpAddr::V4(address) => Some((*address, *port)),
            IpAddr::V6(_) => None,
        })
        .collect();
    let mut accept_holes = String::new();
    for (address, port) in holes {
        let _ = write!(
            accept_holes,
            "ip daddr {address} meta l4proto {{ tcp, udp }} th dport {port} accept\n    "
        );
    }
    format!(
        "{reset}
table inet sandstone_{instance} {{
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {links} meta nfproto != ipv4 drop
    iifname {links} ip saddr != {network} drop
    iifname {links} fib saddr . iif oif missing drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {links} jump to_host
  }}
  chain to_host {{
    {accept_holes}goto refuse
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {links} tcp flags syn tcp option maxseg size set rt mtu
    oifname {links} tcp flags syn tcp option maxseg size set rt mtu
    iifname {links} jump from_sandbox
    oifname {links} jump to_sandbox
  }}
  chain from_sandbox {{
    oifname {links} goto refuse
    {accept_holes}ip daddr {{ {private} }} goto refuse
    ip daddr {network} goto refuse
  }}
  chain to_sandbox {{
    ct state established,related accept
    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {links} oifname != {links} masquerade
  }}
}}
",
        reset = reset(config),
        instance = config.instance,
    )
}

/// Has `nft` read these rules, in the network name space of the calling thread.
pub(super) fn nft(rules: &str) -> Result<(), Error> {
    let output = process::run(
        Command::new("nft").args(["-f", "-"]),
        rules.as_bytes(),
        NFT_LIMIT,
    )
    .step(|| "run nft")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Firewall(message.trim().to_owned()));
    }
    Ok(())
}
