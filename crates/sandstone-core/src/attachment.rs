//! The life of an attachment: one volume held by one sandbox.
//!
//! ```text
//!  reserve (in the transaction that creates the sandbox)
//!     │
//!     ▼          mounted              sandbox ends          flushed, unmounted, verified
//! Attaching ──────────────► Attached ─────────────► Detaching ─────────────► Detached
//!     │                                                 ▲
//!     └───────────────── sandbox ends ──────────────────┘
//! ```
//!
//! An attachment that is not detached is the volume's one lease. Each new one carries a token
//! larger than every earlier token of that volume, and every change names the token, so a stale
//! holder changes nothing.

use crate::Denied;

/// The states an attachment can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttachmentState {
    /// Reserved; the mount is being made.
    Attaching,
    /// Mounted in the sandbox.
    Attached,
    /// The sandbox is going away; data may still be on its way to the disk.
    Detaching,
    /// On disk and free. Terminal: the next attachment is a new one.
    Detached,
}

/// What can happen to an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttachmentEvent {
    /// The sandbox runs with the volume mounted.
    Mounted,
    /// The sandbox is being stopped, or never started.
    BeginDetach,
    /// Unmounted, flushed, the device gone: verified by the node.
    Released,
}

impl AttachmentState {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::Attaching,
        Self::Attached,
        Self::Detaching,
        Self::Detached,
    ];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Denied`] when `event` cannot happen now; nothing changes.
    pub const fn next(self, event: AttachmentEvent) -> Result<Self, Denied> {
        match (self, event) {
            (Self::Attaching, AttachmentEvent::Mounted) => Ok(Self::Attached),
            // Beginning twice is how a crashed server takes up its work again.
            (Self::Attaching | Self::Attached | Self::Detaching, AttachmentEvent::BeginDetach) => {
                Ok(Self::Detaching)
            }
            (Self::Detaching, AttachmentEvent::Released) => Ok(Self::Detached),
            (Self::Attached | Self::Detaching | Self::Detached, AttachmentEvent::Mounted)
            | (Self::Detached, AttachmentEvent::BeginDetach)
            | (Self::Attaching | Self::Attached | Self::Detached, AttachmentEvent::Released) => {
                Err(Denied::WrongState)
            }
        }
    }

    /// Whether the volume is taken.
    #[must_use]
    pub const fn holds_volume(self) -> bool {
        !matches!(self, Self::Detached)
    }

    /// The text stored in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
            Self::Detached => "detached",
        }
    }

    /// The state with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use AttachmentEvent::{BeginDetach, Mounted, Released};
        use AttachmentState::{Attached, Attaching, Detached, Detaching};
        let allowed = [
            (Attaching, Mounted, Attached),
            (Attaching, BeginDetach, Detaching),
            (Attached, BeginDetach, Detaching),
            (Detaching, BeginDetach, Detaching),
            (Detaching, Released, Detached),
        ];
        for state in AttachmentState::ALL {
            for event in [Mounted, BeginDetach, Released] {
                let expected = allowed
                    .iter()
                    .find(|(from, on, _)| (*from, *on) == (state, event))
                    .map(|(_, _, to)| *to)
                    .ok_or(Denied::WrongState);
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
            assert_eq!(AttachmentState::from_text(state.as_str()), Some(state));
        }
    }

    #[test]
    fn a_volume_is_free_only_when_detached() {
        for state in AttachmentState::ALL {
            assert_eq!(state.holds_volume(), state != AttachmentState::Detached);
        }
    }
}
