//! The pool on real loop devices and file systems. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where something is wrong")]

mod fixture;
mod layers;
mod life;
mod times;
mod volumes;
