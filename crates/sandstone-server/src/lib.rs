//! The server: the control plane, the HTTP and WebSocket dialects that clients speak to it, and the
//! SSH server that lets people into sandboxes.
//!
//! [`control`] knows organisations, volumes and sandboxes and no dialect; [`edge`] knows the
//! dialects and decides nothing, and so does [`ssh`]. None links storage or runtime: both are behind the node's
//! promises.

pub mod control;
pub mod edge;
pub mod ssh;
