//! Connecting to a host that the policy allows.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use sandstone_core::Target;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::address::{self, Reach};
use crate::gate::Shared;

/// Bound on finding and reaching a host.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Bound on one address, when there are others.
const ADDRESS_LIMIT: Duration = Duration::from_secs(4);

/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Failure {
    /// None of its addresses may be connected to; one of them.
    Address(IpAddr),
    /// It cannot be found or reached.
    Unreachable(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address} is not public"),
            Self::Unreachable(error) => error.fmt(f),
        }
    }
}

/// Connects to a host. Its name is resolved here, and only the addresses that were checked are
/// connected to.
pub(crate) async fn connect(
    target: &Target,
    port: u16,
    shared: &Shared,
) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    let addresses = match target {
        Target::Address(address) => vec![*address],
        Target::Name(name) => timeout_at(deadline, resolve(name.as_str(), shared))
            .await
            .map_err(io::Error::from)
            .flatten()
            .map_err(Failure::Unreachable)?,
    };
    let mut failure = None;
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        if !may_connect(address, port, shared) {
            failure.get_or_insert(Failure::Address(address));
            continue;
        }
        let limit = deadline.min(Instant::now() + ADDRESS_LIMIT);
        let connected = TcpStream::connect(SocketAddr::new(address, port));
        match timeout_at(limit, connected).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = Some(Failure::Unreachable(error)),
            Err(late) => failure = Some(Failure::Unreachable(late.into())),
        }
    }
    let none = || Failure::Unreachable(io::Error::other("it has no address"));
    Err(failure.unwrap_or_else(none))
}

fn may_connect(address: IpAddr, port: u16, shared: &Shared) -> bool {
    // One address has one form, or a rule about one would not hold for the other.
    let address = address.to_canonical();
    let named = || {
        shared.policy.names_address(address, port) || shared.egress.holes.contains(&(address, port))
    };
    match address::reach(address) {
        Reach::Public => !address::is_own(address) || named(),
        Reach::Named => named(),
        Reach::Never => false,
    }
}

/// The addresses of a name, by the host's own resolver. It has no time limit of its own and needs
/// a thread, so few run at once.
async fn resolve(name: &str, shared: &Shared) -> io::Result<Vec<IpAddr>> {
    let ended = |_| io::Error::other("the server is shutting down");
    let mine = shared
        .lookups
        .clone()
        .acquire_owned()
        .await
        .map_err(ended)?;
    let all = shared
        .egress
        .lookups
        .clone()
        .acquire_owned()
        .await
        .map_err(ended)?;
    let name = name.to_owned();
    let lookup = tokio::task::spawn_blocking(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs();
        // Held to the end even if nobody waits any more: these bound the threads.
        drop((mine, all));
        addresses
    });
    let addresses = lookup.await.map_err(io::Error::other)??;
    Ok(addresses.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::tests::shared;

    #[tokio::test]
    async fn private_addresses_need_to_be_named_and_some_are_never_reached() {
        let shared = shared(&["example.com", "10.0.0.1:80", "127.0.0.1", "169.254.169.254"]);
        let may = |text: &str, port| may_connect(text.parse().unwrap(), port, &shared);
        assert!(may("203.0.113.1", 443));
        assert!(may("10.0.0.1", 80) && may("::ffff:10.0.0.1", 80));
        assert!(!may("10.0.0.1", 81) && !may("10.0.0.2", 80));
        assert!(!may("127.0.0.1", 80) && !may("::ffff:127.0.0.1", 80));
        assert!(!may("169.254.169.254", 80) && !may("::1", 80));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_host_is_refused() {
        let shared = shared(&["localhost"]);
        let target = Target::Name("localhost".parse().unwrap());
        let refused = connect(&target, 9, &shared).await.unwrap_err();
        assert!(matches!(refused, Failure::Address(_)), "{refused}");
    }
}
