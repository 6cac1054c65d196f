//! Volumes: making, finding, deleting, purging.

use sandstone_api::{Region, Slug, VolumeId};
use sandstone_core::{Denied, Timestamp, VolumeCapacity, VolumeEvent, VolumeState};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::attachment::{self, Attachment};
use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::{Columns, signed};
use crate::store::commit;
use crate::{Store, StoreError};

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
    /// Where in its life it is.
    pub state: VolumeState,
    /// What it occupies, as last measured; zero before that.
    pub usage: Usage,
    /// When it was last measured.
    pub measured_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was deleted, or could not be made.
    pub deleted_at: Option<Timestamp>,
}

/// What a volume occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes that only this volume occupies.
    pub allocated: u64,
    /// Bytes that a full copy would occupy.
    pub flattened: u64,
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
    /// Hard limit.
    pub capacity: VolumeCapacity,
}

/// A place in the list of volumes: after this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumePosition {
    /// When that volume was created.
    pub created_at: Timestamp,
    /// Its id, which decides between volumes of the same instant.
    pub id: VolumeId,
}

/// Which volumes to list.
#[derive(Debug, Clone, Copy)]
pub struct VolumesPage<'a> {
    /// At most this many.
    pub limit: u32,
    /// Only those after this place.
    pub after: Option<VolumePosition>,
    /// Only those whose slug contains this text, in any case.
    pub search: Option<&'a str>,
}

impl Store {
    /// Reserves the slug and records that the image is being made.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`].
    pub async fn begin_volume(
        &self,
        new: &NewVolume,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(
            "INSERT INTO volumes (id, organisation, slug, region, capacity, state, \
                 allocated, flattened, attach_token, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, 0, 0, 0, $7) \
             ON CONFLICT (organisation, slug) WHERE state IN ('creating', 'available') DO NOTHING \
             RETURNING *",
        )
        .bind(new.id.to_string())
        .bind(new.organisation.to_string())
        .bind(new.slug.as_str())
        .bind(new.id.region().to_string())
        .bind(signed(new.capacity.bytes()))
        .bind(VolumeState::Creating.as_str())
        .bind(now.as_millis())
        .fetch_optional(&mut *transaction)
        .await
        .step("add a volume")?
        .ok_or_else(|| StoreError::SlugTaken(new.slug.clone()))?;
        let volume = volume(&row)?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// Records that a volume's image was made or could not be made; the latter frees the slug.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the volume is not being made.
    pub async fn finish_volume(
        &self,
        id: VolumeId,
        made: bool,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        let event = if made {
            VolumeEvent::ImageMade
        } else {
            VolumeEvent::ImageFailed
        };
        let volume = by_id(&mut transaction, id).await?;
        let volume = transition(&mut transaction, volume, event, now).await?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// The organisation's visible volume with this id or slug. No slug has the shape of an id.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`].
    pub async fn volume(
        &self,
        organisation: OrganisationId,
        name: &str,
    ) -> Result<Volume, StoreError> {
        let mut connection = self.read().acquire().await.step("read a volume")?;
        visible(&mut connection, organisation, name).await
    }

    /// The organisation's visible volumes, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn list_volumes(
        &self,
        organisation: OrganisationId,
        page: VolumesPage<'_>,
    ) -> Result<Vec<Volume>, StoreError> {
        let search = page.search.unwrap_or_default();
        if search.len() > Slug::MAX_CHARS {
            // No slug contains it, and SQLite refuses patterns that are very long.
            return Ok(Vec::new());
        }
        let after = page.after.map(|at| (at.created_at, at.id.to_string()));
        // No volume is before this place.
        let (created_at, id) = after.unwrap_or((Timestamp::from_millis(i64::MIN), String::new()));
        sqlx::query(
            "SELECT * FROM volumes \
             WHERE organisation = $1 AND state = 'available' \
                 AND slug LIKE $2 ESCAPE '\\' AND (created_at, id) > ($3, $4) \
             ORDER BY created_at, id LIMIT $5",
        )
        .bind(organisation.to_string())
        .bind(contains(search))
        .bind(created_at.as_millis())
        .bind(id)
        .bind(i64::from(page.limit))
        .fetch_all(self.read())
        .await
        .step("list volumes")?
        .iter()
        .map(volume)
        .collect()
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
        let volume = visible(&mut transaction, organisation, name).await?;
        if let Some(holder) = attachment::holder(&mut transaction, volume.id).await? {
            return Err(volume.is_mounted(&holder));
        }
        let volume = transition(&mut transaction, volume, VolumeEvent::Delete, now).await?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// Deleted volumes whose images are to go: those deleted before `before`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn volumes_to_purge(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<VolumeId>, StoreError> {
        sqlx::query(
            "SELECT id FROM volumes WHERE state = 'deleted' AND deleted_at <= $1 \
             ORDER BY deleted_at LIMIT $2",
        )
        .bind(before.as_millis())
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await
        .step("list deleted volumes")?
        .iter()
        .map(|row| Columns(row).parsed("id"))
        .collect()
    }

    /// Records that a deleted volume's image is gone. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the volume is not deleted.
    pub async fn purge_volume(&self, id: VolumeId, now: Timestamp) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let volume = by_id(&mut transaction, id).await?;
        if volume.state != VolumeState::Purged {
            transition(&mut transaction, volume, VolumeEvent::ImageRemoved, now).await?;
            commit(transaction).await?;
        }
        Ok(())
    }

    /// Records what a volume occupies. Nothing happens when it has been deleted meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn record_usage(
        &self,
        id: VolumeId,
        usage: Usage,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE volumes SET allocated = $2, flattened = $3, measured_at = $4 \
             WHERE id = $1 AND state = 'available'",
        )
        .bind(id.to_string())
        .bind(signed(usage.allocated))
        .bind(signed(usage.flattened))
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("record a volume's usage")?;
        commit(transaction).await
    }

    /// Volumes whose making was cut off. Only meaningful before new ones are begun.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn half_created_volumes(&self) -> Result<Vec<VolumeId>, StoreError> {
        sqlx::query("SELECT id FROM volumes WHERE state = 'creating' ORDER BY created_at, id")
            .fetch_all(self.read())
            .await
            .step("list half-created volumes")?
            .iter()
            .map(|row| Columns(row).parsed("id"))
            .collect()
    }
}

impl Volume {
    /// Where it is in the list of volumes.
    #[must_use]
    pub fn position(&self) -> VolumePosition {
        VolumePosition {
            created_at: self.created_at,
            id: self.id,
        }
    }

    pub(crate) fn is_mounted(&self, holder: &Attachment) -> StoreError {
        StoreError::VolumeIsMounted {
            volume: self.id,
            slug: self.slug.clone(),
            sandbox: holder.sandbox,
            releasing: holder.is_releasing(),
        }
    }
}

/// The organisation's visible volume with this id or slug.
pub(crate) async fn visible(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    name: &str,
) -> Result<Volume, StoreError> {
    let row = sqlx::query(
        "SELECT * FROM volumes \
         WHERE organisation = $1 AND state = 'available' AND (id = $2 OR slug = $2)",
    )
    .bind(organisation.to_string())
    .bind(name)
    .fetch_optional(connection)
    .await
    .step("read a volume")?
    .ok_or_else(|| StoreError::VolumeNotFound {
        name: name.to_owned(),
    })?;
    volume(&row)
}

/// Takes the next attach token of a volume.
pub(crate) async fn next_attach_token(
    connection: &mut SqliteConnection,
    id: VolumeId,
) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "UPDATE volumes SET attach_token = attach_token + 1 \
         WHERE id = $1 AND state = 'available' RETURNING attach_token",
    )
    .bind(id.to_string())
    .fetch_optional(connection)
    .await
    .step("take an attach token")?
    .ok_or_else(|| StoreError::denied(id, Denied::WrongState))?;
    Columns(&row).number("attach_token")
}

async fn by_id(connection: &mut SqliteConnection, id: VolumeId) -> Result<Volume, StoreError> {
    let row = sqlx::query("SELECT * FROM volumes WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .step("read a volume")?
        .ok_or_else(|| StoreError::VolumeNotFound {
            name: id.to_string(),
        })?;
    volume(&row)
}

async fn transition(
    connection: &mut SqliteConnection,
    volume: Volume,
    event: VolumeEvent,
    now: Timestamp,
) -> Result<Volume, StoreError> {
    let next = volume
        .state
        .next(event)
        .map_err(|reason| StoreError::denied(volume.id, reason))?;
    let deleted_at = match next {
        VolumeState::Creating | VolumeState::Available => None,
        VolumeState::Deleted | VolumeState::Purged => Some(volume.deleted_at.unwrap_or(now)),
    };
    let changed =
        sqlx::query("UPDATE volumes SET state = $3, deleted_at = $4 WHERE id = $1 AND state = $2")
            .bind(volume.id.to_string())
            .bind(volume.state.as_str())
            .bind(next.as_str())
            .bind(deleted_at.map(Timestamp::as_millis))
            .execute(connection)
            .await
            .step("change a volume's state")?;
    if changed.rows_affected() != 1 {
        return Err(StoreError::denied(volume.id, Denied::WrongState));
    }
    Ok(Volume {
        state: next,
        deleted_at,
        ..volume
    })
}

fn volume(row: &SqliteRow) -> Result<Volume, StoreError> {
    let row = Columns(row);
    Ok(Volume {
        id: row.parsed("id")?,
        organisation: row.parsed("organisation")?,
        slug: row.parsed("slug")?,
        region: row.parsed("region")?,
        capacity: row.unsigned("capacity")?,
        state: row.one_of("state", VolumeState::from_text)?,
        usage: Usage {
            allocated: row.unsigned("allocated")?,
            flattened: row.unsigned("flattened")?,
        },
        measured_at: row.optional_time("measured_at")?,
        created_at: row.time("created_at")?,
        deleted_at: row.optional_time("deleted_at")?,
    })
}

/// A pattern for `LIKE … ESCAPE '\'` that matches slugs containing `text`. Slugs are lower case.
fn contains(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
