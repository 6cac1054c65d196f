//! What a sandbox with a network policy can reach: the connections that the node makes for it.
//!
//! The sandbox has no way out but three sockets that the node opened in its network name space
//! ([`Doors`]). Here is who stands at them:
//!
//! - Queries of names: a name that the policy knows has an address of the sandbox's own, out of
//!   198.18.0.0/15; others do not exist. No query leaves the host, so none carries anything out.
//! - Connections: the address that the sandbox meant is a name again, or an address that it wrote
//!   itself. If the policy allows it on that port, the name is resolved on the host, the address
//!   is checked (a public name must not lead to a private one), and bytes are copied.
//! - To hosts that are given a secret, TLS ends here, and the request goes on with the secret's
//!   value in place of its placeholder.
//!
//! The sandbox is not trusted: everything it can cause is bounded for itself and for all of them.

mod address;
mod dns;
mod first;
mod gate;
mod intercept;
mod names;
mod outbound;
mod proxy;
mod refusal;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use sandstone_authority::Authority;
use sandstone_core::{Clock, NetworkPolicy};
use tokio::sync::Semaphore;

pub use gate::{Doors, Gate};

/// The name server of sandboxes behind a gate. Any address would do, since the doors take every
/// query; this one stands for no name.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Most names that are resolved at once for all sandboxes. Each takes a thread.
const LOOKUPS_MAX: usize = 64;

/// Bounds of how many connections all sandboxes have together; each takes two descriptors.
const CONNECTIONS_MIN: u64 = 256;
const CONNECTIONS_MAX: u64 = 32 << 10;

/// What all gates of a node share.
pub struct Egress {
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    /// Private addresses and ports that the operator lets sandboxes reach.
    holes: Vec<(IpAddr, u16)>,
    certificates: intercept::Certificates,
    /// How hosts that are given secrets are verified. Made when the first one is.
    tls: OnceLock<Arc<ClientConfig>>,
    lookups: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

impl Egress {
    /// Sandboxes with secrets are to trust `authority`. `holes` are private addresses and ports
    /// that names may lead to.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
        holes: Vec<(IpAddr, u16)>,
    ) -> Arc<Self> {
        // A quarter of the descriptors: two each, and half for everything else.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = (files.unwrap_or(u64::MAX) / 4).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        Arc::new(Self {
            authority,
            clock,
            holes,
            certificates: intercept::Certificates::default(),
            tls: OnceLock::new(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            connections: Arc::new(Semaphore::new(most as usize)),
        })
    }

    /// The authority that sandboxes with secrets are to trust.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Stands at a sandbox's doors until the gate is closed or dropped. `sandbox` names it in the
    /// log. To be called in a tokio runtime.
    ///
    /// # Errors
    /// When the sockets cannot be used.
    pub fn open(
        self: &Arc<Self>,
        sandbox: String,
        policy: NetworkPolicy,
        doors: Doors,
    ) -> std::io::Result<Gate> {
        Gate::open(self.clone(), sandbox, policy, doors)
    }
}
