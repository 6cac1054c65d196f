//! How a sandbox is isolated and started: Linux containers on direct system calls.
//!
//! A sandbox gets its own user, pid, mount, ipc, uts, network and cgroup name spaces, a range of
//! 65,536 user ids that no other sandbox has, a system call filter, fifteen capabilities, limits,
//! and one program as PID 1. This crate knows nothing of volumes, images or what that program
//! does: it takes mounts as file descriptors, and hands the program a listening socket.
//!
//! ```text
//!  server (many threads)        shim (one thread, host root)      child (PID 1, sandbox root)
//!    │ spawn, Prepare + cgroups ──► drop every host mount            │
//!    │                              clone3 ─────────────────────────►│
//!    │                              maps, cgroup, veth   ── go ──►   │ /proc /sys /dev /run, eth0
//!    │ ◄── Parked{pid}              ◄───────────── parked ────────   │
//!    ┆   (warm pool: waits here, holds no host file system)          ┆
//!    │ Start + mounts, agent ─────► idmap layers, overlay ─ start ─► │ root, volumes, pivot,
//!    │                              ◄──────────── (exec) ─────────   │ caps, seccomp, exec agent
//!    │ ◄── Started                  exit                             │
//!    │ ◄───────────────────────── one byte: ready ────────────────── │
//! ```
//!
//! Everything made outside the sandbox is named by the runtime's instance and the sandbox's slot:
//! cgroup `sandstone/<instance>/<slot>`, interface `sd<instance><slot in base 36>`, nft table
//! `sandstone_<instance>`, and the slot file, which is written first and removed last. So a new
//! server finds whatever a dead one left, and never touches what belongs to another instance.

mod cgroup;
mod config;
mod control;
mod error;
mod network;
mod process;
mod runtime;
mod seccomp;
mod shim;
mod slot;
mod sys;

pub use config::{Agent, RuntimeConfig, Shim};
pub use error::Error;
pub use network::closed::Doors;
pub use runtime::{MountSpec, Prepared, RootTree, Running, Runtime, StartSpec};
pub use shim::shim_main;
