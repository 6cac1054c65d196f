//! Volumes: making, finding, deleting, restoring. Enlarging them is in [`crate::grow`].

use sandstone_api::{ImageId, Region, SandboxId, Slug, SnapshotId, VolumeId};
use sandstone_core::{Denied, ImageEvent, ImageState, Timestamp, Usage, VolumeCapacity};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::attachment::{self, Attachment};
use crate::error::Step;
use crate::image::{Image, ImagePosition, ImagesPage, Kind};
use crate::image_life::{self, Restore};
use crate::organisation::OrganisationId;
use crate::row::{Columns, signed};
use crate::store::commit;
use crate::{Store, StoreError, image, slug, source};

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub organisation: OrganisationId,
    /// Its name.
    pub slug: Slug,
    /// Where it is.
    pub region: Region,
    /// Hard limit in bytes.
    pub capacity: u64,
    /// Whether a sandbox can have it as its root.
    pub is_bootable: bool,
    /// The snapshot it was made from, and that one's slug at the time.
    pub base_snapshot: Option<(SnapshotId, Slug)>,
    /// The capacity that it is being enlarged to, bytes.
    pub growing_to: Option<u64>,
    /// Where in its life it is.
    pub state: ImageState,
    /// What it occupies, as last measured; zero before that.
    pub usage: Usage,
    /// When it was last measured.
    pub measured_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was deleted, or could not be made.
    pub deleted_at: Option<Timestamp>,
    /// Why it could not be made.
    pub failure: Option<String>,
    /// The sandbox that holds it.
    pub sandbox: Option<SandboxId>,
}

/// A volume to make.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its id, which also says the region.
    pub id: VolumeId,
    /// Whose it will be.
    pub organisation: OrganisationId,
    /// Its name.
    pub slug: Slug,
    /// Hard limit; else that of the volume or snapshot it is made from.
    pub capacity: Option<VolumeCapacity>,
    /// What it is to hold at first.
    pub source: NewSource,
}

/// What a volume is to be made from, as its owner names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewSource {
    /// Nothing.
    Empty,
    /// The base image.
    Base,
    /// A snapshot, by id or slug.
    Snapshot(String),
    /// A volume, by id or slug; attached or not.
    Volume(String),
    /// An archive. A maintenance sandbox fills the volume before it is finished.
    Import {
        /// Whether it holds a system.
        is_bootable: bool,
    },
}

/// What a volume that was begun is to be made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nothing.
    Empty,
    /// The base image.
    Base,
    /// This snapshot or volume. It is not purged before the new volume is finished.
    Image(ImageId),
    /// An archive.
    Import,
}

impl Store {
    /// Reserves the slug and records that the image is being made.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`]; [`StoreError::VolumeNotFound`] or
    /// [`StoreError::SnapshotNotFound`] for the source, [`StoreError::RegionMismatch`] when it is
    /// elsewhere, [`StoreError::SnapshotDamaged`], [`StoreError::VolumeIsBusy`] while it is being
    /// enlarged; [`StoreError::CapacityMissing`]; [`StoreError::CapacityBelowSource`].
    pub async fn begin_volume(
        &self,
        new: &NewVolume,
        now: Timestamp,
    ) -> Result<(Volume, Origin), StoreError> {
        let mut transaction = self.begin().await?;
        let source = source::find(&mut transaction, new).await?;
        let id = ImageId::from(new.id);
        slug::take(&mut transaction, new.organisation, &new.slug, id).await?;
        let copied = source.copied.as_ref();
        sqlx::query(
            "INSERT INTO volumes (id, organisation, slug, region, capacity, is_bootable, state, \
                 origin, source, source_slug, family, allocated, flattened, attach_token, \
                 changed_at, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
                 coalesce((SELECT family FROM images WHERE id = $9), $1), 0, 0, 0, $11, $11)",
        )
        .bind(new.id.to_string())
        .bind(new.organisation.to_string())
        .bind(new.slug.as_str())
        .bind(new.id.region().to_string())
        .bind(signed(source.capacity))
        .bind(source.is_bootable)
        .bind(ImageState::Creating.as_str())
        .bind(source.origin.as_str())
        .bind(copied.map(|(id, _)| id.to_string()))
        .bind(copied.map(|(_, slug)| slug.as_str()))
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("add a volume")?;
        let volume = image::by_id(&mut transaction, id).await?;
        commit(transaction).await?;
        Ok((volume, source.origin))
    }

    /// Records that a volume's image was made, or why not; the latter frees the slug.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the volume is not being made; [`StoreError::VolumeNotFound`].
    pub async fn finish_volume(
        &self,
        id: VolumeId,
        outcome: Result<(), String>,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        let failure = outcome.as_ref().err().map(String::as_str);
        image_life::finish(&mut transaction, id.into(), failure, now).await?;
        let volume = image::by_id(&mut transaction, id.into()).await?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// The organisation's visible volume with this id or slug.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`].
    pub async fn volume(
        &self,
        organisation: OrganisationId,
        name: &str,
    ) -> Result<Volume, StoreError> {
        let mut connection = self.read().acquire().await.step("read a volume")?;
        image::visible(&mut connection, organisation, name).await
    }

    /// The organisation's visible or deleted volumes, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn list_volumes(
        &self,
        organisation: OrganisationId,
        page: ImagesPage<'_>,
    ) -> Result<Vec<Volume>, StoreError> {
        self.list(organisation, page).await
    }

    /// Hides the volume and frees its slug; the image stays until it is purged.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`]; [`StoreError::VolumeIsMounted`] when a sandbox holds it.
    pub async fn delete_volume(
        &self,
        organisation: OrganisationId,
        name: &str,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        let found: Volume = image::visible(&mut transaction, organisation, name).await?;
        check_not_held(&mut transaction, &found).await?;
        let id = ImageId::from(found.id);
        image_life::transition(&mut transaction, id, ImageEvent::Delete, now).await?;
        let volume = image::by_id(&mut transaction, id).await?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// Makes a volume that was deleted after `deleted_after` visible again, under its old slug or
    /// a new one. It is named by its id, or by its old slug: then it is the newest deleted one of
    /// that name. Nothing happens when the volume is visible.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`]; [`StoreError::NotRestorable`] when it is too late;
    /// [`StoreError::SlugTaken`].
    pub async fn restore_volume(
        &self,
        organisation: OrganisationId,
        name: &str,
        new_slug: Option<Slug>,
        deleted_after: Timestamp,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let wanted = Restore {
            organisation,
            name,
            new_slug: new_slug.as_ref(),
            deleted_after,
        };
        self.restore(wanted, now).await
    }
}

impl Volume {
    /// Where it is in the list of volumes.
    #[must_use]
    pub fn position(&self) -> ImagePosition {
        ImagePosition {
            created_at: self.created_at,
            id: self.id.into(),
        }
    }

    pub(crate) fn is_busy(&self) -> StoreError {
        StoreError::VolumeIsBusy {
            volume: self.id,
            slug: self.slug.clone(),
        }
    }

    pub(crate) fn check_not_growing(&self) -> Result<(), StoreError> {
        match self.growing_to {
            None => Ok(()),
            Some(_) => Err(self.is_busy()),
        }
    }

    fn is_mounted(&self, holder: &Attachment) -> StoreError {
        StoreError::VolumeIsMounted {
            volume: self.id,
            slug: self.slug.clone(),
            sandbox: holder.sandbox,
            releasing: holder.is_releasing(),
        }
    }
}

/// Refuses a volume that a sandbox holds.
async fn check_not_held(
    connection: &mut SqliteConnection,
    volume: &Volume,
) -> Result<(), StoreError> {
    match attachment::holder(connection, volume.id).await? {
        None => Ok(()),
        Some(holder) => Err(volume.is_mounted(&holder)),
    }
}

/// Refuses a volume that a sandbox holds or that is being enlarged.
pub(crate) async fn check_free(
    connection: &mut SqliteConnection,
    volume: &Volume,
) -> Result<(), StoreError> {
    check_not_held(connection, volume).await?;
    volume.check_not_growing()
}

/// Takes the next attach token of a volume that can be attached: a visible one, or one that an
/// import is to fill.
pub(crate) async fn next_attach_token(
    connection: &mut SqliteConnection,
    id: VolumeId,
) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "UPDATE volumes SET attach_token = attach_token + 1 \
         WHERE id = $1 AND (state = 'available' OR (state = 'creating' AND origin = 'import')) \
         RETURNING attach_token",
    )
    .bind(id.to_string())
    .fetch_optional(connection)
    .await
    .step("take an attach token")?
    .ok_or_else(|| StoreError::denied(id, Denied::WrongState))?;
    Columns(&row).number("attach_token")
}

impl Image for Volume {
    const KIND: Kind = Kind::Volume;
    const SELECT: &'static str = "SELECT i.*, a.sandbox AS holder FROM volumes i \
        LEFT JOIN attachments a ON a.volume = i.id AND a.state <> 'detached'";

    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let row = Columns(row);
        let base_snapshot = match row.optional("source")? {
            Some(ImageId::Snapshot(id)) => Some((id, row.parsed("source_slug")?)),
            Some(ImageId::Volume(_)) | None => None,
        };
        Ok(Self {
            id: row.parsed("id")?,
            organisation: row.parsed("organisation")?,
            slug: row.parsed("slug")?,
            region: row.parsed("region")?,
            capacity: row.unsigned("capacity")?,
            is_bootable: row.flag("is_bootable")?,
            base_snapshot,
            growing_to: row.optional_unsigned("growing_to")?,
            state: row.one_of("state", ImageState::from_text)?,
            usage: row.usage()?,
            measured_at: row.optional_time("measured_at")?,
            created_at: row.time("created_at")?,
            deleted_at: row.optional_time("deleted_at")?,
            failure: row.optional_text("failure")?,
            sandbox: row.optional("holder")?,
        })
    }
}
