//! The runtime against a real kernel. Needs root, `nft`, `ip`, `mkfs.ext4` and `losetup`.
//!
//! The sandboxes' base image is the host's own root directory, mounted read-only.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod closed;
mod isolation;
mod lifecycle;
mod limits;
mod network;
mod support;
