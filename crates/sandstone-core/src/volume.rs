//! The life of a volume.
//!
//! ```text
//!            image made            delete, not attached       grace over, image gone
//! Creating ─────────────► Available ──────────────────► Deleted ──────────────────► Purged
//!    │                                                     ▲
//!    └──────────── image could not be made ────────────────┘
//! ```
//!
//! A volume that is being created is invisible. Deleting frees the slug at once; the image stays
//! until the grace period is over. Whether a volume is attached is the business of
//! [`crate::AttachmentState`]: a delete is only tried when there is no attachment.

/// The states a volume can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeState {
    /// Its image is being made. Invisible, holds its slug.
    Creating,
    /// It can be attached.
    Available,
    /// Hidden, its slug is free; the image waits for the end of the grace period.
    Deleted,
    /// The image is gone. Terminal.
    Purged,
}

/// What can happen to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeEvent {
    /// Its image exists and is on disk.
    ImageMade,
    /// Its image could not be made, or the server died while making it.
    ImageFailed,
    /// Its owner deleted it.
    Delete,
    /// Its grace period is over and its image is gone.
    ImageRemoved,
}

/// Why a transition is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// The object is not in a state in which this can happen.
    #[error("this cannot happen in the present state")]
    WrongState,
}

impl VolumeState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Creating, Self::Available, Self::Deleted, Self::Purged];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Denied`] when `event` cannot happen now; nothing changes.
    pub const fn next(self, event: VolumeEvent) -> Result<Self, Denied> {
        match (self, event) {
            (Self::Creating, VolumeEvent::ImageMade) => Ok(Self::Available),
            (Self::Creating, VolumeEvent::ImageFailed) | (Self::Available, VolumeEvent::Delete) => {
                Ok(Self::Deleted)
            }
            (Self::Deleted, VolumeEvent::ImageRemoved) => Ok(Self::Purged),
            (
                Self::Creating | Self::Available | Self::Deleted | Self::Purged,
                VolumeEvent::ImageMade
                | VolumeEvent::ImageFailed
                | VolumeEvent::Delete
                | VolumeEvent::ImageRemoved,
            ) => Err(Denied::WrongState),
        }
    }

    /// Whether the API shows the volume and its slug is taken by it.
    #[must_use]
    pub const fn is_visible(self) -> bool {
        matches!(self, Self::Available)
    }

    /// The text stored in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::Deleted => "deleted",
            Self::Purged => "purged",
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

    const EVENTS: [VolumeEvent; 4] = [
        VolumeEvent::ImageMade,
        VolumeEvent::ImageFailed,
        VolumeEvent::Delete,
        VolumeEvent::ImageRemoved,
    ];

    #[test]
    fn the_whole_table() {
        use VolumeState::{Available, Creating, Deleted, Purged};
        let allowed = [
            (Creating, VolumeEvent::ImageMade, Available),
            (Creating, VolumeEvent::ImageFailed, Deleted),
            (Available, VolumeEvent::Delete, Deleted),
            (Deleted, VolumeEvent::ImageRemoved, Purged),
        ];
        for state in VolumeState::ALL {
            for event in EVENTS {
                let expected = allowed
                    .iter()
                    .find(|(from, on, _)| (*from, *on) == (state, event))
                    .map(|(_, _, to)| *to)
                    .ok_or(Denied::WrongState);
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn text_round_trip() {
        for state in VolumeState::ALL {
            assert_eq!(VolumeState::from_text(state.as_str()), Some(state));
        }
        assert_eq!(VolumeState::from_text("?"), None);
    }
}
