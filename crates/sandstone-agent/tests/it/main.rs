//! The real binary as process 1 of real namespaces, driven over its socket.
//!
//! Needs root (namespaces, mounts, a second user) and fails without it. Everything happens in a
//! mount, pid and host name namespace that ends with the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod connections;
mod dial;
mod files;
mod handles;
mod harness;
mod interior;
mod processes;
mod streams;
mod terminals;
mod walks;
