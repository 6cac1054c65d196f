//! The life of a volume or a snapshot. Both are images in a pool, and live the same way.
//!
//! ```text
//!            image made             delete                grace over         image gone
//! Creating ─────────────► Available ───────► Deleted ───────────────► Purging ─────────► Purged
//!    │                        ▲                 │                        ▲
//!    │                        └──── restore ────┘                        │
//!    └── image could not be made ──► Failed ──────── at once ────────────┘
//! ```
//!
//! What is being created is invisible and holds its slug. Deleting hides the object and frees its
//! slug at once; until the grace period is over its owner can restore it. From `Purging` on there
//! is no way back: its image may be half gone. A failed object keeps its reason, and never held
//! anybody's data.
//!
//! Whether a volume is attached is the business of [`crate::AttachmentState`]: a volume is only
//! deleted when there is no attachment. Snapshots are deleted at any time; what runs from one goes
//! on, and its image goes when the last of those has ended.

use crate::Denied;

/// The states a volume or a snapshot can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageState {
    /// Its image is being made. Invisible, holds its slug.
    Creating,
    /// It can be used.
    Available,
    /// Hidden, its slug is free; it can be restored.
    Deleted,
    /// It could not be made, and its slug is free.
    Failed,
    /// Its image is being removed.
    Purging,
    /// The image is gone. Terminal.
    Purged,
}

/// What can happen to a volume or a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageEvent {
    /// Its image exists and is on disk.
    ImageMade,
    /// Its image could not be made, or the server died while making it.
    ImageFailed,
    /// Its owner deleted it.
    Delete,
    /// Its owner wants it back.
    Restore,
    /// Its grace period is over.
    BeginPurge,
    /// Its image is gone.
    ImageRemoved,
}

impl ImageState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Creating,
        Self::Available,
        Self::Deleted,
        Self::Failed,
        Self::Purging,
        Self::Purged,
    ];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Denied`] when `event` cannot happen now; nothing changes.
    pub const fn next(self, event: ImageEvent) -> Result<Self, Denied> {
        match (self, event) {
            (Self::Creating, ImageEvent::ImageMade) | (Self::Deleted, ImageEvent::Restore) => {
                Ok(Self::Available)
            }
            (Self::Creating, ImageEvent::ImageFailed) => Ok(Self::Failed),
            (Self::Available, ImageEvent::Delete) => Ok(Self::Deleted),
            // Beginning twice is how a crashed server takes up its work again.
            (Self::Deleted | Self::Failed | Self::Purging, ImageEvent::BeginPurge) => {
                Ok(Self::Purging)
            }
            (Self::Purging, ImageEvent::ImageRemoved) => Ok(Self::Purged),
            (
                Self::Creating
                | Self::Available
                | Self::Deleted
                | Self::Failed
                | Self::Purging
                | Self::Purged,
                ImageEvent::ImageMade
                | ImageEvent::ImageFailed
                | ImageEvent::Delete
                | ImageEvent::Restore
                | ImageEvent::BeginPurge
                | ImageEvent::ImageRemoved,
            ) => Err(Denied::WrongState),
        }
    }

    /// Whether the API shows the object.
    #[must_use]
    pub const fn is_visible(self) -> bool {
        matches!(self, Self::Available)
    }

    /// Whether the object's slug is taken by it.
    #[must_use]
    pub const fn holds_slug(self) -> bool {
        matches!(self, Self::Creating | Self::Available)
    }

    /// Whether the pool may hold an image of the object.
    #[must_use]
    pub const fn may_have_image(self) -> bool {
        !matches!(self, Self::Purged)
    }

    /// The text stored in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
            Self::Purging => "purging",
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

    const EVENTS: [ImageEvent; 6] = [
        ImageEvent::ImageMade,
        ImageEvent::ImageFailed,
        ImageEvent::Delete,
        ImageEvent::Restore,
        ImageEvent::BeginPurge,
        ImageEvent::ImageRemoved,
    ];

    #[test]
    fn the_whole_table() {
        use ImageState::{Available, Creating, Deleted, Failed, Purged, Purging};
        let allowed = [
            (Creating, ImageEvent::ImageMade, Available),
            (Creating, ImageEvent::ImageFailed, Failed),
            (Available, ImageEvent::Delete, Deleted),
            (Deleted, ImageEvent::Restore, Available),
            (Deleted, ImageEvent::BeginPurge, Purging),
            (Failed, ImageEvent::BeginPurge, Purging),
            (Purging, ImageEvent::BeginPurge, Purging),
            (Purging, ImageEvent::ImageRemoved, Purged),
        ];
        for state in ImageState::ALL {
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
    fn from_every_state_there_is_a_way_to_the_end() {
        for start in ImageState::ALL {
            let mut reached = vec![start];
            let mut at = 0;
            while let Some(state) = reached.get(at).copied() {
                at += 1;
                for next in EVENTS.iter().filter_map(|event| state.next(*event).ok()) {
                    if !reached.contains(&next) {
                        reached.push(next);
                    }
                }
            }
            assert!(reached.contains(&ImageState::Purged), "{start:?}");
        }
    }

    #[test]
    fn text_round_trip() {
        for state in ImageState::ALL {
            assert_eq!(ImageState::from_text(state.as_str()), Some(state));
        }
        assert_eq!(ImageState::from_text("?"), None);
    }
}
