//! A real server over stand-ins: a real control plane, a real database, and a node whose sandboxes
//! are agents that run commands on this machine, or nowhere at all. What the SDKs do on the wire
//! is played by [`client`]. For the tests of the edge and for the fuzz targets.
#![expect(
    clippy::unwrap_used,
    reason = "this is a part of tests, though it is compiled without them too"
)]

mod agent;
pub mod client;
pub mod harness;
mod nowhere;
mod open_files;

#[cfg(feature = "stand-ins")]
pub use super::deno::fuzzing as input;
