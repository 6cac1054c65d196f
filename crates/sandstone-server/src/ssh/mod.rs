//! SSH into sandboxes.
//!
//! ```text
//! client ──TCP──► admission ──► russh ──► Connection (one per client)
//!                                            │ user name ──► ControlPlane::enter
//!                                            ├ session channel ──► process ──┐
//!                                            └ direct-tcpip, … ──► forward ──┤
//!                                                         AgentClient ◄──────┘
//! ```
//!
//! The user name is the credential; there is nothing else to know about a sandbox. What is in a
//! sandbox runs in the sandbox: the shell, the commands, the SFTP server, and the connections of
//! local forwarding, which its network policy therefore governs. Remote forwarding, agent and X11
//! forwarding are refused: they would lend the sandbox something of the client's. A sandbox is not
//! kept alive by its guests; when it begins to stop, they are told why and disconnected.
//!
//! # What a stranger can do
//!
//! Anybody who reaches the port can open connections, exchange keys and try user names.
//!
//! * *Places*: 128 connections that have not said a good name, 32 of them from one address (an
//!   IPv6 host is its /64). One more is closed at once. Each has [`LOGIN_GRACE`] for all of it.
//! * *Memory*: a packet is at most 256 KiB, and packets are handled one at a time; russh refuses
//!   traffic other than the exchange's while keys are exchanged. There is no compression before
//!   authentication, so nothing can be inflated.
//! * *Processor*: only key exchanges that cost less than a millisecond are offered (X25519, with or
//!   without ML-KEM), not finite-field Diffie-Hellman, and not the client's choice of a group.
//! * *Guessing*: a name has 130 random bits. Each wrong one is answered after [`REJECTION_TIME`],
//!   whether it never existed, has ended, or could not be looked up; the look-up is by the name's
//!   hash and does the same work for each. After [`ATTEMPTS_MAX`] the connection ends.
//! * *Learning*: the server's version is not told, and nothing is said about any sandbox.
//!
//! # What a guest can do
//!
//! Who knows a name owns the sandbox, but neither the server nor other sandboxes.
//!
//! * 32 connections to one sandbox, 1024 in all; [`CHANNELS_MAX`] channels on each at a time, and
//!   [`CHANNELS_EVER_MAX`] in its life, because russh keeps about 3 KiB of each that the server
//!   closed first.
//! * To the sandbox: about 22 MiB per connection wait at most, see [`inbox`]. From it: one window
//!   of the agent's per stream (256 KiB), and what fits between it and the socket (about 1 MiB); a
//!   client that does not read makes the process wait, and its connection ends after
//!   [`STUCK_LIMIT`].
//! * Environment: 64 variables, 32 KiB ([`process::Setup`]). A command has the size of a packet.
//! * Whatever the sandbox answers is bytes for the client, an exit status, or an error that becomes
//!   a line of text. It cannot name a channel or a connection.
//!
//! What the sandbox's processes print reaches the client's terminal as it is: a guest trusts the
//! sandbox with that, as with any SSH server.

mod admission;
mod connection;
mod forward;
mod host_key;
mod inbox;
mod process;
mod signal;
mod transport;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::Algorithm;
use russh::server::{Config, run_stream};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::accept;
use crate::control::ControlPlane;
use admission::Admission;
use connection::{Connection, Guest};
pub use host_key::{HostKey, HostKeyError};
use transport::CuttableStream;

/// How long a client may take to be let in, as OpenSSH's server does by default in its strictest
/// recommendations.
const LOGIN_GRACE: Duration = Duration::from_secs(20);

/// When a wrong user name is answered, counted from when it came.
const REJECTION_TIME: Duration = Duration::from_secs(1);

/// Wrong attempts on one connection.
const ATTEMPTS_MAX: usize = 6;

/// Channels on one connection at a time.
const CHANNELS_MAX: usize = 32;

/// Channels on one connection, ever.
const CHANNELS_EVER_MAX: u32 = 4096;

/// How often a silent client is asked whether it is there.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);

/// How many of these questions it may leave unanswered.
const KEEPALIVE_MAX: usize = 3;

/// How long a client may read nothing while something waits for it, or say nothing at all.
const STUCK_LIMIT: Duration = Duration::from_secs(300);

/// How long a client may take to hang up after it was told to.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// Messages on their way from all channels of a connection to its socket, of at most 32 KiB each.
const OUTGOING_MESSAGES: usize = 16;

/// Where clients are told to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshEndpoint {
    /// Name or address.
    pub hostname: String,
    /// Port.
    pub port: u16,
}

/// What all connections share.
#[derive(Debug)]
struct Server {
    control: Arc<ControlPlane>,
    admission: Admission,
    russh: Arc<Config>,
}

/// Lets clients that come to `listener` into sandboxes until `stop`, then ends their connections
/// and returns.
pub async fn serve(
    listener: TcpListener,
    control: Arc<ControlPlane>,
    key: HostKey,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        control,
        admission: Admission::default(),
        russh: Arc::new(config(&key)),
    });
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, "SSH client") => accepted,
            () = stop.cancelled() => break,
        };
        connections.spawn(server.clone().connection(stream, peer, stop.clone()));
    }
    drop(listener);
    connections.close();
    // Each connection hears of the stop by itself and is bounded.
    if timeout(2 * GOODBYE_LIMIT, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("gave up waiting for SSH connections to end");
    }
}

fn config(key: &HostKey) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-sandstone")),
        // What is left to try after a wrong name: it makes no difference, but there must be one.
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION_TIME,
        // OpenSSH's first attempt is "none", which is how a good name enters: no exception for it.
        auth_rejection_time_initial: None,
        keys: vec![key.private()],
        window_size: inbox::WINDOW,
        channel_buffer_size: 1,
        event_buffer_size: OUTGOING_MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(&[
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::EXTENSION_SUPPORT_AS_SERVER,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
            ]),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            cipher: Cow::Borrowed(&[
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_GCM,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            mac: Cow::Borrowed(&[
                mac::HMAC_SHA256_ETM,
                mac::HMAC_SHA512_ETM,
                mac::HMAC_SHA256,
                mac::HMAC_SHA512,
            ]),
            // `zlib@openssh.com` begins after authentication; plain `zlib` would before.
            compression: Cow::Borrowed(&[compression::NONE, compression::ZLIB_LEGACY]),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: Some(STUCK_LIMIT),
        keepalive_interval: Some(KEEPALIVE_EVERY),
        keepalive_max: KEEPALIVE_MAX,
        ..Config::default()
    }
}

impl Server {
    /// One connection from its first byte to its last.
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        stop: CancellationToken,
    ) {
        let Some(place) = self.admission.stranger(peer.ip()) else {
            tracing::debug!(%peer, "too many SSH connections that are not logged in");
            return;
        };
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => return tracing::debug!(%error, "an SSH client has gone already"),
        };
        let cut = CancellationToken::new();
        // However this function ends, russh's task does too.
        let _cut_at_last = cut.clone().drop_guard();
        let stream = CuttableStream::new(stream, &cut);
        let (let_in, entered) = oneshot::channel();
        let connection = Connection::new(self.clone(), peer, local, let_in);
        let russh = self.russh.clone();
        let serving = async move {
            let outcome = match run_stream(russh, stream, connection).await {
                Ok(session) => session.await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::debug!(%peer, %error, "an SSH connection ended");
            }
        };
        tokio::pin!(serving);

        let login = async { timeout(LOGIN_GRACE, entered).await.ok()?.ok() };
        let guest = tokio::select! {
            () = &mut serving => return,
            () = stop.cancelled() => return,
            guest = login => guest,
        };
        drop(place);
        let Some(guest) = guest else {
            tracing::debug!(%peer, "an SSH client was not let in in time");
            return;
        };
        self.host(guest, peer, serving, stop).await;
    }

    /// One connection from when it was let in.
    async fn host(
        &self,
        guest: Guest,
        peer: SocketAddr,
        mut serving: std::pin::Pin<&mut impl Future<Output = ()>>,
        stop: CancellationToken,
    ) {
        let Guest { sandbox, handle } = guest;
        let place = self.admission.guest(sandbox);
        let goodbye = if place.is_none() {
            Some((
                Disconnect::TooManyConnections,
                format!("sandbox {sandbox} has as many SSH connections as it may have"),
            ))
        } else {
            tracing::info!(%sandbox, %peer, "an SSH client was let in");
            tokio::select! {
                () = &mut serving => None,
                reason = self.control.stopped(sandbox) => Some((
                    Disconnect::ByApplication,
                    format!("sandbox {sandbox} has ended: {}", reason.as_str()),
                )),
                () = stop.cancelled() => Some((
                    Disconnect::ByApplication,
                    "the server is shutting down".to_owned(),
                )),
            }
        };
        if let Some((reason, text)) = goodbye {
            let goodbye = async {
                // When it is gone already, there is nobody to tell.
                let _ = handle.disconnect(reason, text, String::new()).await;
                serving.await;
            };
            let _ = timeout(GOODBYE_LIMIT, goodbye).await;
        }
    }
}
