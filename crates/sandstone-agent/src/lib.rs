//! The agent: process 1 of every sandbox. It starts processes, reads and writes files, keeps the
//! environment, and reaps every orphan, as the host asks it to in the language of
//! [`sandstone_protocol`].
//!
//! ```text
//!  listener ──► Connection ──┬─► requests that never wait: answered by the reading thread
//!                 (thread)   ├─► files:    Workers (threads that act as the sandbox's user)
//!                            ├─► spawn:    one thread, which then pumps the process's streams
//!                            ├─► dial:     one thread, which then pumps both directions
//!                            └─► wait:     noted in Processes, answered when the reaper knows
//! ```
//!
//! Processes and environment belong to the agent and outlive connections; streams belong to a
//! connection and die with it. Blocking threads with small stacks, no async runtime: every sandbox
//! pays for this binary's memory.
//!
//! To add a request: a variant in the protocol, an arm in `connection::Connection::dispatch`, and
//! its work in `files` (acts as the user) and what it calls (`changes`, `handles`), `spawn` or
//! `interior`.

mod accounts;
mod agent;
mod changes;
mod connection;
mod dial;
mod expand;
mod failure;
mod files;
mod glob;
mod handles;
mod host_files;
mod interior;
mod lexical;
mod lock;
mod lock_waits;
mod processes;
mod pump;
mod remove;
mod resolve;
mod spawn;
mod stream;
mod sys;
mod table;
mod terminal;
mod transfer;
mod walk;
mod walks;
mod wire;
mod workers;

pub use agent::{RunError, run};
pub use sys::{InheritedDescriptors, inherited_descriptors};
