//! The edge over the stand-ins: what the SDKs do on the wire, and what comes back.

mod exposure_limits;
mod exposure_stalls;
mod exposures;
mod files;
mod handles;
mod own;
mod processes;
mod rest;
mod snapshots;
mod sockets;
mod ssh;

use super::stand_ins::{client, harness};
