//! How many connections there may be: of strangers in all and from one address, and of people who
//! were let in, for each sandbox and in all.

use std::net::IpAddr;
use std::sync::Arc;

use sandstone_api::SandboxId;

use crate::places::{Place, Places, network};

/// Connections that have not said yet who they are.
const STRANGERS_MAX: usize = 128;

/// The same from one address, so that one host cannot keep all others out.
const STRANGERS_OF_ADDRESS_MAX: usize = 32;

/// Connections to sandboxes.
const GUESTS_MAX: usize = 1024;

/// Connections to one sandbox.
const GUESTS_OF_SANDBOX_MAX: usize = 32;

/// Counts the connections there are.
#[derive(Debug)]
pub(super) struct Admission {
    strangers: Arc<Places<IpAddr>>,
    guests: Arc<Places<SandboxId>>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            strangers: Places::new(STRANGERS_MAX, STRANGERS_OF_ADDRESS_MAX),
            guests: Places::new(GUESTS_MAX, GUESTS_OF_SANDBOX_MAX),
        }
    }
}

impl Admission {
    /// A place for a connection from `address` that has not said who it is; nothing when there is
    /// none left.
    pub(super) fn stranger(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.strangers.take(network(address)).ok()
    }

    /// A place for a connection to the sandbox; nothing when there is none left.
    pub(super) fn guest(&self, sandbox: SandboxId) -> Option<Place<SandboxId>> {
        self.guests.take(sandbox).ok()
    }
}
