//! The server: the control plane, the HTTP and WebSocket dialects that clients speak to it, the SSH
//! server that lets people into sandboxes, and the way in to the servers that run in them.
//!
//! [`control`] knows organisations, volumes and sandboxes and no dialect; [`edge`] knows the
//! dialects and decides nothing, and so do [`ssh`] and [`ingress`]. None links storage or runtime:
//! both are behind the node's promises.

mod accept;
pub mod control;
pub mod edge;
#[cfg(test)]
mod fixed;
pub mod ingress;
mod places;
pub mod ssh;
