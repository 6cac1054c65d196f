//! What the node and the agent inside a sandbox say to each other.
//!
//! One byte stream (a unix socket today, virtio-serial for a microVM), cut into [`frame`]s, which
//! carry [`message`]s and raw data. The protocol knows nothing of HTTP, of JSON or of any client.
//!
//! ```text
//! host                                   agent
//!   │  Hello{generation}          ──►      │   both sides say hello first
//!   │      ◄──          Hello{generation}  │
//!   │  Request id=7 Spawn{stdout: 8} ──►   │   the host chooses ids, never 0, never reused
//!   │      ◄──             Reply id=7 Ok   │   exactly one reply for a request
//!   │      ◄──            Data id=8 bytes  │   at most the granted window in flight
//!   │  Credit id=8 n              ──►      │   the reader grants more as it consumes
//!   │      ◄──                  End id=8   │
//! ```
//!
//! Rules:
//! - Each stream flows one way. A request names the streams it uses; both ends know the direction
//!   from the message. A stream starts with [`frame::WINDOW_BYTES`] of credit.
//! - `End` closes a stream from its writer's side, `Reset` from either side. After either,
//!   frames that cross on the wire are dropped silently.
//! - A request that fails gives up its streams: the agent resets each that has not ended, with the
//!   same failure, and then replies. A file operation whose stream the host resets fails with
//!   `ECANCELED`.
//! - `Spawned` comes before the first data of the process. Its streams are over when they end, not
//!   when the process exits.
//! - Configuration, environment and signals take effect in the order of their requests; everything
//!   else is concurrent. Too many requests or streams at once fail with `EAGAIN`.
//! - The host must always read: the agent may stop reading while it cannot send.
//! - The agent is not trusted: the host bounds every length and believes no path from it.
//! - Additions are new message variants or new optional fields. A change of meaning is a new
//!   generation; both sides use the smaller of the two they said, and refuse one below
//!   [`GENERATION_MIN`].

pub mod frame;
pub mod message;

/// The generation this build speaks.
pub const GENERATION: u32 = 1;

/// The oldest generation this build still understands.
pub const GENERATION_MIN: u32 = 1;
