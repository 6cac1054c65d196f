//! Connecting to servers inside the sandbox, and from it to others, as the sandbox's user.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use sandstone_protocol::message::{Answer, DialTarget, Failure};

use crate::connection::Connection;
use crate::failure::{errno_of, failure, shown};
use crate::interior::Interior;
use crate::lock::lock;
use crate::pump::{Kind, Pump};
use crate::resolve::resolve;
use crate::stream::{Inlet, Outlet};
use crate::sys::assume_identity;

/// Longest time to resolve a name and connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A dial request with its streams.
#[derive(Debug)]
pub(crate) struct DialJob {
    /// The request.
    pub(crate) id: u32,
    /// Where to.
    pub(crate) target: DialTarget,
    /// Bytes for the server.
    pub(crate) source: Arc<Inlet>,
    /// Bytes from it.
    pub(crate) sink: Arc<Outlet>,
}

/// Connects and answers, then moves the bytes until both directions end. The thread is the
/// sandbox's user from then on, and must not be used again.
pub(crate) fn perform(connection: &Arc<Connection>, job: DialJob) {
    let interior = lock(&connection.agent.interior).clone();
    let mut pump = Pump::new(Arc::clone(connection));
    let connected = assume_identity(&interior.account.identity)
        .and_then(|()| connect_to(&interior, &job.target))
        .and_then(|socket| {
            let socket = Arc::new(socket);
            pump.add_input(Arc::clone(&socket), Kind::Socket, Arc::clone(&job.source))?;
            pump.add_output(socket, Kind::Socket, Arc::clone(&job.sink));
            Ok(())
        });
    match connected {
        Ok(()) => {
            // Of a host that is gone, the streams are reset, which closes the connection.
            let _ = connection.reply(job.id, Ok(Answer::Done));
            pump.run();
        }
        Err(errno) => {
            let streams = [job.source.id, job.sink.id];
            let _ = connection.fail(job.id, &streams, describe(errno, &job.target));
        }
    }
}

fn connect_to(interior: &Interior, target: &DialTarget) -> Result<OwnedFd, Errno> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    match target {
        DialTarget::Port(port) => {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            connect_any(&loopback, *port, deadline)
        }
        DialTarget::Host(host, port) => connect_any(&resolve(host, deadline)?, *port, deadline),
        DialTarget::Unix(path) => {
            let path = interior.absolute(path)?;
            let address = SocketAddrUnix::new(path)?;
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Connecting waits for room in the server's queue, no longer than this.
            set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_LIMIT))?;
            match connect(&socket, &address) {
                Ok(()) => Ok(socket),
                Err(Errno::AGAIN) => Err(Errno::TIMEDOUT),
                Err(errno) => Err(errno),
            }
        }
    }
}

/// The first address that answers, each with its share of the time that is left. The error is that
/// of the first address: the others are alternatives.
fn connect_any(addresses: &[IpAddr], port: u16, deadline: Instant) -> Result<OwnedFd, Errno> {
    let mut verdict = None;
    for (left, address) in (1..=addresses.len()).rev().zip(addresses) {
        let share = deadline.saturating_duration_since(Instant::now())
            / u32::try_from(left).unwrap_or(u32::MAX);
        if share.is_zero() {
            verdict.get_or_insert(Errno::TIMEDOUT);
            break;
        }
        match TcpStream::connect_timeout(&SocketAddr::new(*address, port), share) {
            Ok(stream) => {
                // The host sends what is complete; waiting for more would only be slow.
                let _ = stream.set_nodelay(true);
                return Ok(stream.into());
            }
            Err(error) => {
                verdict.get_or_insert(errno_of_connect(&error));
            }
        }
    }
    Err(verdict.unwrap_or(Errno::HOSTUNREACH))
}

/// The standard library's own timeout has no number.
fn errno_of_connect(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::TimedOut => Errno::TIMEDOUT,
        _ => errno_of(error),
    }
}

fn describe(errno: Errno, target: &DialTarget) -> Failure {
    match target {
        DialTarget::Port(port) => failure(errno, format_args!("connect to port {port}")),
        DialTarget::Host(host, port) => {
            let host = shown(host);
            // No such name: the system has no number of its own for that.
            if errno == Errno::NXIO {
                return Failure {
                    errno: Some(errno.raw_os_error()),
                    message: format!("connect to {host}:{port}: the name cannot be resolved"),
                };
            }
            failure(errno, format_args!("connect to {host}:{port}"))
        }
        DialTarget::Unix(path) => failure(errno, format_args!("connect to '{}'", shown(path))),
    }
}
