//! What the operator asks of the storage pool.

use std::collections::{HashMap, HashSet};

use sandstone_api::{self as api, ApiError, IdSuffix, ImageId, SnapshotId, VolumeId};
use sandstone_core::ImageState;
use sandstone_node_api::Chain;

use super::error;
use super::{ControlPlane, Principal};

/// How what errors are about is called.
const POOL: &str = "the storage pool";

/// Where the pool and the store do not match.
#[derive(Debug, Default)]
pub(super) struct Mismatch {
    /// Images that no row has.
    pub(super) unknown: Vec<UnknownImage>,
    /// What can be used or restored and has no image.
    pub(super) missing: Vec<ImageId>,
}

/// An image that no volume and no snapshot has.
#[derive(Debug)]
pub(super) struct UnknownImage {
    is_volume: bool,
    name: String,
}

impl ControlPlane {
    /// How full the pool is, and what in it does not match the store. Nothing is changed.
    ///
    /// # Errors
    /// `NOT_READY`, `TIMED_OUT`, `INTERNAL`.
    pub async fn pool(&self, _who: &Principal) -> Result<api::Pool, ApiError> {
        let space = self.node.space().await;
        let space = space.map_err(|error| error::of_node(POOL, error))?;
        let found = self.mismatch().await?;
        Ok(api::Pool {
            total: space.total,
            free: space.free,
            low: space.low,
            critical: space.critical,
            unknown_images: found.unknown.iter().map(UnknownImage::shown).collect(),
            missing_images: found.missing.iter().map(ImageId::to_string).collect(),
        })
    }

    /// Removes the images of [`api::Pool::unknown_images`]; returns which. One that cannot be
    /// removed is logged and stays.
    ///
    /// # Errors
    /// `NOT_READY`, `TIMED_OUT`, `INTERNAL`.
    pub async fn remove_unknown_images(&self, _who: &Principal) -> Result<Vec<String>, ApiError> {
        let mut removed = Vec::new();
        for image in self.mismatch().await?.unknown {
            let name = image.shown();
            let Some(id) = image.id(self) else {
                tracing::warn!(image = %name, "not a name of ours: it stays");
                continue;
            };
            match self.node.remove_image(id).await {
                Ok(()) => {
                    tracing::warn!(image = %name, "removed an unknown image");
                    removed.push(name);
                }
                Err(error) => {
                    tracing::error!(image = %name, error = %Chain(&error), "it stays");
                }
            }
        }
        Ok(removed)
    }

    /// Compares the pool with the store.
    pub(super) async fn mismatch(&self) -> Result<Mismatch, ApiError> {
        // Rows are committed before their images are made, and images are removed before their
        // rows end. So what is in `before` and in `after` must have an image, and an image must
        // be in one of them.
        let before = self.known_images().await?;
        let images = self.node.images().await;
        let images = images.map_err(|error| error::of_node(POOL, error))?;
        let after = self.known_images().await?;
        let mut unknown = Vec::new();
        let mut present = HashSet::new();
        for (is_volume, names) in [(true, images.volumes), (false, images.snapshots)] {
            let known: HashSet<_> = before
                .keys()
                .chain(after.keys())
                .filter(|id| matches!(id, ImageId::Volume(_)) == is_volume)
                .map(ImageId::suffix)
                .collect();
            for name in names {
                if known.contains(name.as_str()) {
                    present.insert((is_volume, name));
                } else {
                    unknown.push(UnknownImage { is_volume, name });
                }
            }
        }
        let is_needed = |state: &ImageState| match state {
            ImageState::Available | ImageState::Deleted => true,
            ImageState::Creating
            | ImageState::Failed
            | ImageState::Purging
            | ImageState::Purged => false,
        };
        let mut missing: Vec<_> = before
            .iter()
            .filter(|(id, state)| {
                let is_volume = matches!(id, ImageId::Volume(_));
                is_needed(state)
                    && after.get(id).is_some_and(is_needed)
                    && !present.contains(&(is_volume, id.suffix().to_owned()))
            })
            .map(|(id, _)| *id)
            .collect();
        missing.sort_unstable();
        Ok(Mismatch { unknown, missing })
    }

    async fn known_images(&self) -> Result<HashMap<ImageId, ImageState>, ApiError> {
        let known = self.store.known_images().await;
        let known = known.map_err(|error| error::of_store(POOL, error))?;
        Ok(known.into_iter().collect())
    }
}

impl UnknownImage {
    pub(super) fn shown(&self) -> String {
        let kind = if self.is_volume { "volume" } else { "snapshot" };
        format!("{kind} {}", self.name)
    }

    /// An id that names the image to the node, which does not know regions. `None` when no id
    /// could: then something else has put it there.
    fn id(&self, control: &ControlPlane) -> Option<ImageId> {
        let suffix: IdSuffix = self.name.parse().ok()?;
        let region = control.config.default_region();
        Some(if self.is_volume {
            VolumeId::new(region, suffix).into()
        } else {
            SnapshotId::new(region, suffix).into()
        })
    }
}
