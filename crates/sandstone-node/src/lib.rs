//! One host: it makes volumes and runs sandboxes, as the control plane tells it through
//! [`NodeApi`](sandstone_node_api::NodeApi).
//!
//! The node puts together what it does not know how to do itself: `sandstone-storage` makes and
//! mounts images, `sandstone-runtime` isolates, the agent acts inside. Its own business is the
//! order of steps, and finding its sandboxes again after a restart:
//!
//! ```text
//! start: record written → images mounted → record says which volumes were attached ─┐
//!        warm sandbox (or a new one) ────────────────────────────────────────────────┴→ runtime
//!        starts the agent → configured → answers
//! stop:  runtime kills → volumes released, flushed → scratch removed → record removed
//! ```
//!
//! The record comes first and goes last, so whatever a crash leaves is named by a record, and
//! [`stop_sandbox`](sandstone_node_api::NodeApi::stop_sandbox) finishes it.
//!
//! The node also watches the pool's room: when there is little, nothing new begins, and before
//! there is none, writers wait.

mod agent_binary;
mod guest_trust;
mod host;
mod image;
mod node;
mod record;
mod warm;

pub use guest_trust::{
    AptSettings, GuestTrust, GuestTrustError, HostSettings, public_name_servers,
};
pub use host::SandboxLimits;
pub use image::{ImageCache, ImageError};
pub use node::{Node, NodeConfig};
pub use sandstone_runtime::{Shim, shim_main};
