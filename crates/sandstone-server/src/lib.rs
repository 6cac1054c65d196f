//! The server: the control plane, and the HTTP and WebSocket dialects that clients speak to it.
//!
//! [`control`] knows organisations, volumes and sandboxes and no dialect; [`edge`] knows the
//! dialects and decides nothing. Neither links storage or runtime: both are behind the node's
//! promises.

pub mod control;
pub mod edge;
