//! The pool on real loop devices and file systems. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where something is wrong")]

mod family;
mod fixture;
mod layers;
mod life;
mod packing;
mod snapshots;
mod times;
mod trees;
mod volumes;
mod writers;
