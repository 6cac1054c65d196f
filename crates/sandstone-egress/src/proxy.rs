//! Connections of a sandbox: refused, copied, or taken apart for a secret.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sandstone_core::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::dns::ACCEPT_RETRY;
use crate::first::{First, Said, named};
use crate::gate::Shared;
use crate::intercept;
use crate::outbound::{self, Failure};

/// Bytes that are read at once while a client's first bytes are looked at.
const CHUNK_BYTES: usize = 4096;

/// The right to one connection, of the sandbox's and of all.
#[derive(Debug)]
pub(crate) struct Slot {
    _mine: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Slot {
    pub(crate) fn of(mine: OwnedSemaphorePermit, all: OwnedSemaphorePermit) -> Self {
        Self {
            _mine: mine,
            _all: all,
        }
    }
}

pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let serving = shared.clone();
        let slot = shared.connections.clone().try_acquire_owned();
        let all = shared.egress.connections.clone().try_acquire_owned();
        let (Ok(mine), Ok(all)) = (slot, all) else {
            reset(&client);
            shared.refusals.connection("-", 0, "too many connections");
            continue;
        };
        let slot = Slot::of(mine, all);
        shared.spawn(Box::pin(handle(client, serving, slot)));
    }
}

async fn handle(client: TcpStream, shared: Arc<Shared>, slot: Slot) {
    // Not from the rules: somebody connected to the door itself.
    let Ok(original) = rustix::net::sockopt::ip_original_dst(&client) else {
        return reset(&client);
    };
    let port = original.port();
    let Some(target) = target(*original.ip(), &shared) else {
        shared
            .refusals
            .connection(original.ip(), port, "no address that was given for a name");
        return reset(&client);
    };
    if !shared.policy.allows(&target, port) {
        shared
            .refusals
            .connection(&target, port, "not in allow_net");
        return reset(&client);
    }
    let _ = client.set_nodelay(true);
    if shared.policy.secrets_for(&target, port).next().is_some() {
        return intercept::handle(client, target, port, shared, slot).await;
    }
    let Some(mut upstream) = connect(&target, port, &shared).await else {
        return reset(&client);
    };
    let mut client = client;
    if exchange(&mut client, &mut upstream, &target, port, &shared)
        .await
        .is_err()
    {
        reset(&client);
        reset(&upstream);
    }
    drop(slot);
}

/// Copies both ways until both have ended, or one is broken. The end of one direction leaves the
/// other open.
async fn exchange(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    target: &Target,
    port: u16,
    shared: &Shared,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_upstream, mut to_upstream) = upstream.split();
    let up = async {
        // Other addresses have no name that another could hide behind, and without a list there is
        // nothing to hide.
        if shared.policy.allow.is_some() && matches!(target, Target::Name(_)) {
            forward_first(&mut from_client, &mut to_upstream, target, port, shared).await?;
        }
        copy(&mut from_client, &mut to_upstream).await?;
        to_upstream.shutdown().await
    };
    let down = async {
        copy(&mut from_upstream, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}

/// Forwards the client's first bytes once they do not name a host that is not allowed.
async fn forward_first(
    from_client: &mut ReadHalf<'_>,
    to_upstream: &mut WriteHalf<'_>,
    target: &Target,
    port: u16,
    shared: &Shared,
) -> io::Result<()> {
    let mut first = First::default();
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let length = from_client.read(&mut chunk).await?;
        let said = match length {
            // What is here begins nothing that names a host.
            0 if first.is_empty() => return Ok(()),
            0 => Said::Malformed("cut short"),
            length => first.add(&chunk[..length]),
        };
        let refused = match said {
            Said::More => continue,
            Said::Nothing => None,
            Said::Host(host) => {
                let named = named(&host);
                let is_meant = host.is_empty()
                    || named.is_some_and(|named| {
                        named == *target || shared.policy.allows(&named, port)
                    });
                (!is_meant).then(|| format!("it is used for {}", host.escape_default()))
            }
            Said::Malformed(why) => Some(why.to_owned()),
        };
        if let Some(why) = refused {
            shared.refusals.connection(target, port, why);
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        return to_upstream.write_all(&first.into_bytes()).await;
    }
}

/// What the sandbox means by an address.
fn target(address: Ipv4Addr, shared: &Shared) -> Option<Target> {
    let [198, 18 | 19, ..] = address.octets() else {
        return Some(Target::Address(IpAddr::V4(address)));
    };
    shared.names.name_of(address).map(Target::Name)
}

/// Connects, and says in the log why not.
pub(crate) async fn connect(target: &Target, port: u16, shared: &Shared) -> Option<TcpStream> {
    match outbound::connect(target, port, shared).await {
        Ok(upstream) => {
            let _ = upstream.set_nodelay(true);
            Some(upstream)
        }
        Err(failure @ Failure::Address(_)) => {
            shared.refusals.connection(target, port, failure);
            None
        }
        Err(failure @ Failure::Unreachable(_)) => {
            shared.refusals.failure(target, port, failure);
            None
        }
    }
}

/// Ends a connection with a reset, so that the client fails at once.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
