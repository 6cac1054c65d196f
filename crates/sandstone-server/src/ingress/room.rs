//! How many connections and requests there may be: in all, from one address and to one sandbox.
//!
//! A connection belongs to the sandbox whose name its handshake gave; those that name no exposed
//! server share one share. A request belongs to the sandbox that it is for. An upgraded connection
//! is no connection any more, but a request until it ends.

use std::net::IpAddr;
use std::sync::Arc;

use sandstone_api::{ApiError, ErrorCode, SandboxId};

use crate::places::{Full, Place, Places, network};

/// Connections of clients at once; further ones wait to be accepted. Each costs at most a few
/// hundred KiB.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// The same to one sandbox: a quarter, so that one that is popular leaves room for others.
pub(super) const CONNECTIONS_OF_SANDBOX_MAX: usize = CONNECTIONS_MAX / 4;

/// The same from one address, or one IPv6 /64: a quarter of a sandbox's, so that one client leaves
/// room for others. It is also what all clients behind one translator of addresses have.
pub(super) const CONNECTIONS_OF_ADDRESS_MAX: usize = CONNECTIONS_OF_SANDBOX_MAX / 4;

/// Requests at once, of all clients to all sandboxes. Each takes up to about half a MiB of
/// buffers: two windows of the agent's connection and what is on its way in between.
const REQUESTS_MAX: usize = 1024;

/// The same to one sandbox.
pub(super) const REQUESTS_OF_SANDBOX_MAX: usize = REQUESTS_MAX / 4;

/// The same from one address, for the same reason as of connections.
pub(super) const REQUESTS_OF_ADDRESS_MAX: usize = REQUESTS_OF_SANDBOX_MAX / 4;

/// Counts what there is.
#[derive(Debug)]
pub(super) struct Room {
    from_address: Arc<Places<IpAddr>>,
    to_sandbox: Arc<Places<Option<SandboxId>>>,
    requests_from_address: Arc<Places<IpAddr>>,
    requests_to_sandbox: Arc<Places<SandboxId>>,
}

/// The room of one request, until it is dropped.
#[derive(Debug)]
pub(super) struct RequestPlace {
    _of_address: Place<IpAddr>,
    _of_sandbox: Place<SandboxId>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            from_address: Places::new(CONNECTIONS_MAX, CONNECTIONS_OF_ADDRESS_MAX),
            to_sandbox: Places::new(CONNECTIONS_MAX, CONNECTIONS_OF_SANDBOX_MAX),
            requests_from_address: Places::new(REQUESTS_MAX, REQUESTS_OF_ADDRESS_MAX),
            requests_to_sandbox: Places::new(REQUESTS_MAX, REQUESTS_OF_SANDBOX_MAX),
        }
    }
}

impl Room {
    /// A place for a connection from `client`; nothing when it has as many as it may have.
    pub(super) fn connection_from(&self, client: IpAddr) -> Option<Place<IpAddr>> {
        self.from_address.take(network(client)).ok()
    }

    /// A place for a connection whose handshake named this sandbox by `name`, or none. The answer
    /// goes to anybody, so it does not tell the sandbox's id.
    ///
    /// # Errors
    /// `EXPOSURE_BUSY`.
    pub(super) fn connection_to(
        &self,
        sandbox: Option<SandboxId>,
        name: Option<&str>,
    ) -> Result<Place<Option<SandboxId>>, ApiError> {
        self.to_sandbox.take(sandbox).map_err(|full| match full {
            Full::All => busy(format!(
                "{CONNECTIONS_MAX} connections to exposed servers are open"
            )),
            Full::One => busy(format!(
                "{CONNECTIONS_OF_SANDBOX_MAX} connections to {} are open, as many as there may be",
                match (sandbox, name) {
                    (Some(_), Some(name)) => format!("the sandbox that exposes `{name}`"),
                    _ => "no known name".to_owned(),
                }
            )),
        })
    }

    /// Room for a request from `client` to a sandbox by `name`, which the refusal tells instead of
    /// its id.
    ///
    /// # Errors
    /// `EXPOSURE_BUSY`.
    pub(super) fn request(
        &self,
        client: IpAddr,
        sandbox: SandboxId,
        name: &str,
    ) -> Result<RequestPlace, ApiError> {
        let all = || {
            busy(format!(
                "{REQUESTS_MAX} requests to exposed servers are being answered"
            ))
        };
        let of_address = self.requests_from_address.take(network(client));
        let of_sandbox = self.requests_to_sandbox.take(sandbox);
        match (of_address, of_sandbox) {
            (Ok(of_address), Ok(of_sandbox)) => Ok(RequestPlace {
                _of_address: of_address,
                _of_sandbox: of_sandbox,
            }),
            (Err(Full::All), _) | (_, Err(Full::All)) => Err(all()),
            (Err(Full::One), _) => Err(busy(format!(
                "{REQUESTS_OF_ADDRESS_MAX} requests from {client} are being answered, as many as \
                 there may be from one address"
            ))),
            (_, Err(Full::One)) => Err(busy(format!(
                "{REQUESTS_OF_SANDBOX_MAX} requests to the sandbox that exposes `{name}` are \
                 being answered, as many as there may be"
            ))),
        }
    }
}

fn busy(message: String) -> ApiError {
    ApiError::new(ErrorCode::ExposureBusy, message)
        .with_hint("Try again in a moment, and close connections that are not needed.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "name.sandbox.localhost";

    fn sandbox(letter: char) -> SandboxId {
        format!("sbx_ord_{letter}at5nn58e77rtd11e3k3")
            .parse()
            .unwrap()
    }

    fn client(host: usize) -> IpAddr {
        format!("192.0.2.{host}").parse().unwrap()
    }

    #[test]
    fn one_sandbox_and_one_address_leave_room_for_others() {
        let room = Room::default();
        let (first, other) = (sandbox('1'), sandbox('2'));
        // Many addresses, one sandbox.
        let held: Vec<_> = (0..)
            .map_while(|n| room.request(client(n % 8), first, NAME).ok())
            .collect();
        assert_eq!(held.len(), REQUESTS_OF_SANDBOX_MAX);
        let error = room.request(client(9), first, NAME).unwrap_err();
        assert_eq!(error.code, ErrorCode::ExposureBusy);
        assert!(error.message.contains(NAME), "{error}");
        assert!(!error.message.contains(&first.to_string()), "{error}");
        assert!(room.request(client(1), other, NAME).is_ok());
        drop(held);
        // One address, many sandboxes.
        let many: Vec<_> = ('a'..='h').map(sandbox).collect();
        let held: Vec<_> = (0..)
            .map_while(|n| room.request(client(1), many[n % 8], NAME).ok())
            .collect();
        assert_eq!(held.len(), REQUESTS_OF_ADDRESS_MAX);
        let error = room.request(client(1), other, NAME).unwrap_err();
        assert!(error.message.contains("192.0.2.1"), "{error}");
        assert!(room.request(client(2), many[0], NAME).is_ok());
        drop(held);
        // What was refused took nothing.
        for sandbox in many {
            assert!(room.request(client(1), sandbox, NAME).is_ok());
        }
    }

    #[test]
    fn all_requests_together_are_bounded() {
        let room = Room::default();
        let many: Vec<_> = ('a'..='h').map(sandbox).collect();
        let held: Vec<_> = (0..)
            .map_while(|n| room.request(client(n % 32), many[n % 8], NAME).ok())
            .collect();
        assert_eq!(held.len(), REQUESTS_MAX);
        let error = room.request(client(9), sandbox('9'), NAME).unwrap_err();
        assert!(error.message.starts_with("1024 requests"), "{error}");
    }

    #[test]
    fn made_up_names_share_one_share() {
        let room = Room::default();
        let held: Vec<_> = (0..)
            .map_while(|_| room.connection_to(None, None).ok())
            .collect();
        assert_eq!(held.len(), CONNECTIONS_OF_SANDBOX_MAX);
        assert!(room.connection_to(Some(sandbox('1')), Some(NAME)).is_ok());
    }
}
