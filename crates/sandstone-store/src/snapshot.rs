//! Snapshots: taking, finding, deleting, restoring. Looking after them is in [`crate::care`].

use sandstone_api::{IdSuffix, ImageId, Region, Slug, SnapshotId, VolumeId};
use sandstone_core::{Consistency, Health, ImageEvent, ImageState, Timestamp, Usage};
use sqlx::sqlite::SqliteRow;

use crate::error::Step;
use crate::image::{Image, ImagePosition, ImagesPage, Kind};
use crate::image_life::{self, Restore};
use crate::organisation::OrganisationId;
use crate::row::{Columns, signed};
use crate::store::commit;
use crate::volume::Volume;
use crate::{Store, StoreError, image, slug};

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub organisation: OrganisationId,
    /// Its name.
    pub slug: Slug,
    /// Where it is.
    pub region: Region,
    /// The volume it was taken of, and that one's slug at the time.
    pub volume: (VolumeId, Slug),
    /// Capacity of the volume at the time, bytes.
    pub capacity: u64,
    /// Whether a sandbox can have it as its root.
    pub is_bootable: bool,
    /// Where in its life it is.
    pub state: ImageState,
    /// What it occupies, as last measured; zero before that.
    pub usage: Usage,
    /// Pieces of its image, as last measured; zero before that.
    pub extents: u64,
    /// How its file system was left; known once it is made.
    pub consistency: Option<Consistency>,
    /// How long writers of the volume waited, microseconds.
    pub stall_us: u64,
    /// The checksum of its content, once it is recorded.
    pub checksum: Option<String>,
    /// Whether it has that content.
    pub health: Health,
    /// When its content was last compared with the checksum.
    pub checked_at: Option<Timestamp>,
    /// When it was last measured.
    pub measured_at: Option<Timestamp>,
    /// When its image was packed.
    pub packed_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was deleted, or could not be made.
    pub deleted_at: Option<Timestamp>,
    /// Why it could not be made.
    pub failure: Option<String>,
}

/// A snapshot to take.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// The random part of its id.
    pub suffix: IdSuffix,
    /// Whose it will be.
    pub organisation: OrganisationId,
    /// The volume, by id or slug.
    pub volume: String,
    /// Its name.
    pub slug: Slug,
}

/// What is known of a snapshot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotMade {
    /// How its file system was left.
    pub consistency: Consistency,
    /// How long writers of the volume waited, microseconds.
    pub stall_us: u64,
}

impl Store {
    /// Reserves the slug and records that a snapshot is being taken. The volume may be attached.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`]; [`StoreError::SlugTaken`]; [`StoreError::VolumeIsBusy`]
    /// when the volume is being enlarged.
    pub async fn begin_snapshot(
        &self,
        new: &NewSnapshot,
        now: Timestamp,
    ) -> Result<Snapshot, StoreError> {
        let mut transaction = self.begin().await?;
        let volume: Volume =
            image::visible(&mut transaction, new.organisation, &new.volume).await?;
        volume.check_not_growing()?;
        let id = SnapshotId::new(volume.region, new.suffix);
        slug::take(&mut transaction, new.organisation, &new.slug, id.into()).await?;
        sqlx::query(
            "INSERT INTO snapshots (id, organisation, slug, region, capacity, is_bootable, state, \
                 source, source_slug, family, allocated, flattened, extents, changed_at, \
                 stall_us, health, created_at) \
             SELECT $2, organisation, $3, region, capacity, is_bootable, $4, \
                 id, slug, family, 0, 0, 0, $5, 0, $6, $5 \
             FROM volumes WHERE id = $1",
        )
        .bind(volume.id.to_string())
        .bind(id.to_string())
        .bind(new.slug.as_str())
        .bind(ImageState::Creating.as_str())
        .bind(now.as_millis())
        .bind(Health::Unrecorded.as_str())
        .execute(&mut *transaction)
        .await
        .step("add a snapshot")?;
        let snapshot = image::by_id(&mut transaction, id.into()).await?;
        commit(transaction).await?;
        Ok(snapshot)
    }

    /// Records that a snapshot was taken, or why not; the latter frees the slug.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the snapshot is not being taken;
    /// [`StoreError::SnapshotNotFound`].
    pub async fn finish_snapshot(
        &self,
        id: SnapshotId,
        outcome: Result<SnapshotMade, String>,
        now: Timestamp,
    ) -> Result<Snapshot, StoreError> {
        let mut transaction = self.begin().await?;
        let failure = outcome.as_ref().err().map(String::as_str);
        image_life::finish(&mut transaction, id.into(), failure, now).await?;
        if let Ok(made) = outcome {
            sqlx::query("UPDATE snapshots SET consistency = $2, stall_us = $3 WHERE id = $1")
                .bind(id.to_string())
                .bind(made.consistency.as_str())
                .bind(signed(made.stall_us))
                .execute(&mut *transaction)
                .await
                .step("record a taken snapshot")?;
        }
        let snapshot = image::by_id(&mut transaction, id.into()).await?;
        commit(transaction).await?;
        Ok(snapshot)
    }

    /// The organisation's visible snapshot with this id or slug.
    ///
    /// # Errors
    /// [`StoreError::SnapshotNotFound`].
    pub async fn snapshot(
        &self,
        organisation: OrganisationId,
        name: &str,
    ) -> Result<Snapshot, StoreError> {
        let mut connection = self.read().acquire().await.step("read a snapshot")?;
        image::visible(&mut connection, organisation, name).await
    }

    /// The snapshot with this id, whoever owns it, in whatever state. For the control plane's own
    /// work; a request of a client goes through [`Store::snapshot`].
    ///
    /// # Errors
    /// [`StoreError::SnapshotNotFound`].
    pub async fn any_snapshot(&self, id: SnapshotId) -> Result<Snapshot, StoreError> {
        let mut connection = self.read().acquire().await.step("read a snapshot")?;
        image::by_id(&mut connection, id.into()).await
    }

    /// The organisation's visible or deleted snapshots, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn list_snapshots(
        &self,
        organisation: OrganisationId,
        page: ImagesPage<'_>,
    ) -> Result<Vec<Snapshot>, StoreError> {
        self.list(organisation, page).await
    }

    /// Hides the snapshot and frees its slug; the image stays until it is purged. What was forked
    /// from it or runs from it goes on.
    ///
    /// # Errors
    /// [`StoreError::SnapshotNotFound`].
    pub async fn delete_snapshot(
        &self,
        organisation: OrganisationId,
        name: &str,
        now: Timestamp,
    ) -> Result<Snapshot, StoreError> {
        let mut transaction = self.begin().await?;
        let found: Snapshot = image::visible(&mut transaction, organisation, name).await?;
        let id = ImageId::from(found.id);
        image_life::transition(&mut transaction, id, ImageEvent::Delete, now).await?;
        let snapshot = image::by_id(&mut transaction, id).await?;
        commit(transaction).await?;
        Ok(snapshot)
    }

    /// Makes a deleted snapshot visible again, as [`Store::restore_volume`] does.
    ///
    /// # Errors
    /// [`StoreError::SnapshotNotFound`]; [`StoreError::NotRestorable`]; [`StoreError::SlugTaken`].
    pub async fn restore_snapshot(
        &self,
        organisation: OrganisationId,
        name: &str,
        new_slug: Option<Slug>,
        deleted_after: Timestamp,
        now: Timestamp,
    ) -> Result<Snapshot, StoreError> {
        let wanted = Restore {
            organisation,
            name,
            new_slug: new_slug.as_ref(),
            deleted_after,
        };
        self.restore(wanted, now).await
    }
}

impl Snapshot {
    /// Where it is in the list of snapshots.
    #[must_use]
    pub fn position(&self) -> ImagePosition {
        ImagePosition {
            created_at: self.created_at,
            id: self.id.into(),
        }
    }

    /// Refuses one whose content has changed: nothing new is to come of it.
    pub(crate) fn check_not_damaged(&self) -> Result<(), StoreError> {
        match self.health {
            Health::Unrecorded | Health::Intact => Ok(()),
            Health::Damaged => Err(StoreError::SnapshotDamaged {
                slug: self.slug.clone(),
                id: self.id,
            }),
        }
    }
}

impl Image for Snapshot {
    const KIND: Kind = Kind::Snapshot;
    const SELECT: &'static str = "SELECT i.* FROM snapshots i";

    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let row = Columns(row);
        Ok(Self {
            id: row.parsed("id")?,
            organisation: row.parsed("organisation")?,
            slug: row.parsed("slug")?,
            region: row.parsed("region")?,
            volume: (row.parsed("source")?, row.parsed("source_slug")?),
            capacity: row.unsigned("capacity")?,
            is_bootable: row.flag("is_bootable")?,
            state: row.one_of("state", ImageState::from_text)?,
            usage: row.usage()?,
            extents: row.unsigned("extents")?,
            consistency: row.optional_one_of("consistency", Consistency::from_text)?,
            stall_us: row.unsigned("stall_us")?,
            checksum: row.optional_text("checksum")?,
            health: row.one_of("health", Health::from_text)?,
            checked_at: row.optional_time("checked_at")?,
            measured_at: row.optional_time("measured_at")?,
            packed_at: row.optional_time("packed_at")?,
            created_at: row.time("created_at")?,
            deleted_at: row.optional_time("deleted_at")?,
            failure: row.optional_text("failure")?,
        })
    }
}
