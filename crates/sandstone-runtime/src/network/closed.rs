//! A network without a way out: a name space that has nothing but `lo`.
//!
//! Every address is routed to `lo`, and the name space's own rules lead the sandbox's queries of
//! names and its connections to three sockets, which the server opens inside. The server decides
//! what it looks up and connects to for them. The rules only lead there: if the sandbox could change
//! them, which it has no right to, there would still be no other way out.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{firewall, link};
use crate::Error;
use crate::error::Step;

/// Where a sandbox with a closed network comes out. The sockets are in its network name space,
/// and stay there.
#[derive(Debug)]
pub struct Doors {
    /// Queries of names, whichever server they are meant for.
    pub queries: UdpSocket,
    /// The same over TCP.
    pub query_streams: TcpListener,
    /// All other connections over IPv4 that do not go to the sandbox's own 127.0.0.0/8. What each
    /// one is meant for is its original destination, `SO_ORIGINAL_DST`.
    pub streams: TcpListener,
}

/// Closes the network name space `namespace`, or changes its doors.
pub(crate) fn close(namespace: BorrowedFd<'_>) -> Result<Doors, Error> {
    thread::scope(|scope| {
        // A thread of its own, because it never comes back from the name space.
        let thread = thread::Builder::new()
            .name("closed-network".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .step(|| "enter a network name space")?;
                close_here()
            })
            .step(|| "start a thread")?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::io("close a network", io::Error::other("a panic"))))
    })
}

fn close_here() -> Result<Doors, Error> {
    // Ports that are free now: the sandbox may have taken those of a server that died.
    let open = |step: &str, error| Error::io(format!("open a socket for {step}"), error);
    let any = (Ipv4Addr::LOCALHOST, 0);
    let doors = Doors {
        queries: UdpSocket::bind(any).map_err(|error| open("queries", error))?,
        query_streams: TcpListener::bind(any).map_err(|error| open("queries", error))?,
        streams: TcpListener::bind(any).map_err(|error| open("connections", error))?,
    };
    for result in [
        doors.queries.set_nonblocking(true),
        doors.query_streams.set_nonblocking(true),
        doors.streams.set_nonblocking(true),
    ] {
        result.step(|| "change a socket's mode")?;
    }
    let ports = Ports {
        queries: doors.queries.local_addr(),
        query_streams: doors.query_streams.local_addr(),
        streams: doors.streams.local_addr(),
    };
    firewall::nft(&ports.rules().step(|| "read a socket's port")?)?;
    // Last: before, nothing had a route.
    link::route_everything_to_lo().step(|| "add the route to lo")?;
    Ok(doors)
}

struct Ports {
    queries: io::Result<std::net::SocketAddr>,
    query_streams: io::Result<std::net::SocketAddr>,
    streams: io::Result<std::net::SocketAddr>,
}

impl Ports {
    /// One transaction, which replaces the rules of an earlier server.
    fn rules(self) -> io::Result<String> {
        Ok(format!(
            "add table inet sandstone
delete table inet sandstone
table inet sandstone {{
  chain lead {{
    type nat hook output priority -100; policy accept;
    meta nfproto != ipv4 accept
    ip daddr 127.0.0.0/8 accept
    udp dport 53 redirect to :{}
    tcp dport 53 redirect to :{}
    meta l4proto tcp redirect to :{}
  }}
  chain refuse {{
    type filter hook output priority 0; policy drop;
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    ct state established accept
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
}}
",
            self.queries?.port(),
            self.query_streams?.port(),
            self.streams?.port(),
        ))
    }
}
