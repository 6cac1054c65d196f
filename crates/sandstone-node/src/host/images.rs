//! Images of volumes and snapshots.

use sandstone_api::{ImageId, SnapshotId, VolumeId};
use sandstone_core::{Consistency, Usage, VolumeCapacity};
use sandstone_node_api::{
    Copied, Images, Measured, NodeError, SnapshotSpec, VolumeSource, VolumeSpec,
};
use sandstone_storage::{ImageKind, ImageName};

use super::{Host, of_image, of_pool};

/// What making or growing an image writes at most, bytes: a journal of 64 MiB and tables.
const NEW_IMAGE_BYTES: u64 = 96 << 20;

impl Host {
    pub(crate) fn create_volume(&self, spec: &VolumeSpec) -> Result<Option<Copied>, NodeError> {
        const STEP: &str = "making the image of";
        self.admit(NEW_IMAGE_BYTES)?;
        let (name, capacity) = (spec.id.suffix(), spec.capacity.bytes());
        match spec.source {
            VolumeSource::Empty => self.pool.create_volume(name, capacity).map(|()| None),
            VolumeSource::Base => self
                .pool
                .create_volume_from_base(name, capacity, &self.base)
                .map(|()| None),
            VolumeSource::Image(source) => {
                let copied = self.pool.fork(name, capacity, image_name(&source));
                return match copied {
                    Ok(copied) => Ok(Some(copied_as(copied))),
                    // Whichever of the two it is about.
                    Err(error) => Err(of_image(STEP, source, error)),
                };
            }
        }
        .map_err(|error| of_image(STEP, spec.id.into(), error))
    }

    pub(crate) fn grow_volume(
        &self,
        id: VolumeId,
        capacity: VolumeCapacity,
    ) -> Result<(), NodeError> {
        self.admit(NEW_IMAGE_BYTES)?;
        self.pool
            .grow_volume(id.suffix(), capacity.bytes())
            .map_err(|error| of_image("growing", id.into(), error))
    }

    pub(crate) fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<Copied, NodeError> {
        self.admit(NEW_IMAGE_BYTES)?;
        self.pool
            .create_snapshot(spec.id.suffix(), spec.volume.suffix())
            .map(copied_as)
            .map_err(|error| of_image("taking a snapshot of", spec.volume.into(), error))
    }

    pub(crate) fn remove_image(&self, image: ImageId) -> Result<(), NodeError> {
        self.pool
            .remove_image(image_name(&image))
            .map_err(|error| of_image("removing the image of", image, error))
    }

    pub(crate) fn measure(&self, image: ImageId) -> Result<Measured, NodeError> {
        self.pool
            .measure(image_name(&image))
            .map(measured_as)
            .map_err(|error| of_image("measuring", image, error))
    }

    pub(crate) fn checksum_snapshot(&self, id: SnapshotId) -> Result<String, NodeError> {
        self.pool
            .checksum_snapshot(id.suffix())
            .map_err(|error| of_image("reading", id.into(), error))
    }

    pub(crate) fn pack_snapshot(&self, id: SnapshotId) -> Result<Measured, NodeError> {
        // A full copy is there beside the old image until it takes its place.
        let size = self.measure(id.into())?.usage.flattened;
        self.admit(size)?;
        self.pool
            .pack_snapshot(id.suffix())
            .map(measured_as)
            .map_err(|error| of_image("packing", id.into(), error))
    }

    pub(crate) fn images(&self) -> Result<Images, NodeError> {
        let list = |kind| {
            let images = self.pool.images(kind);
            images.map_err(|error| of_pool("listing the images", error))
        };
        Ok(Images {
            volumes: list(ImageKind::Volume)?,
            snapshots: list(ImageKind::Snapshot)?,
        })
    }
}

fn image_name(image: &ImageId) -> ImageName<'_> {
    ImageName {
        kind: match image {
            ImageId::Volume(_) => ImageKind::Volume,
            ImageId::Snapshot(_) => ImageKind::Snapshot,
        },
        name: image.suffix(),
    }
}

fn copied_as(copied: sandstone_storage::Copied) -> Copied {
    Copied {
        consistency: match copied.frozen_or_idle {
            true => Consistency::FileSystem,
            false => Consistency::Crash,
        },
        stall_us: u64::try_from(copied.stall.as_micros()).unwrap_or(u64::MAX),
    }
}

fn measured_as(measured: sandstone_storage::Measured) -> Measured {
    Measured {
        usage: Usage {
            allocated: measured.allocated,
            flattened: measured.flattened,
        },
        extents: measured.extents,
    }
}
