//! The edge over a real control plane, a real database and a node whose agents run commands on
//! this machine. The SDKs' behaviour on the wire is played by [`client`].

mod agent;
mod client;
mod exposure_limits;
mod exposures;
mod files;
mod handles;
mod harness;
mod open_files;
mod own;
mod processes;
mod rest;
mod snapshots;
mod sockets;
mod ssh;
