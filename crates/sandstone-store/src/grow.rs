//! Enlarging volumes: the intent first, the new capacity when the node is done.

use sandstone_api::{ByteSize, VolumeId};
use sandstone_core::{Timestamp, VolumeCapacity};

use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::{Columns, signed};
use crate::store::commit;
use crate::volume::{self, Volume};
use crate::{Store, StoreError, image, measure};

impl Store {
    /// Records that a volume is to be enlarged: `growing_to` is set in what is returned. It is
    /// not when the volume has this capacity already. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`]; [`StoreError::VolumeIsMounted`];
    /// [`StoreError::CapacityBelowSource`] for less than it has; [`StoreError::VolumeIsBusy`] when
    /// it is being copied, or is being enlarged to another capacity.
    pub async fn begin_grow(
        &self,
        organisation: OrganisationId,
        name: &str,
        capacity: VolumeCapacity,
        now: Timestamp,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        let found: Volume = image::visible(&mut transaction, organisation, name).await?;
        if capacity.bytes() < found.capacity {
            return Err(StoreError::CapacityBelowSource {
                asked: ByteSize::new(capacity.bytes()),
                least: ByteSize::new(found.capacity),
                source_name: found.slug.to_string(),
            });
        }
        if found.growing_to == Some(capacity.bytes())
            || (found.growing_to.is_none() && found.capacity == capacity.bytes())
        {
            return Ok(found);
        }
        volume::check_free(&mut transaction, &found).await?;
        let copied = sqlx::query("SELECT id FROM images WHERE state = 'creating' AND source = $1")
            .bind(found.id.to_string())
            .fetch_optional(&mut *transaction)
            .await
            .step("read a volume's copies")?;
        if copied.is_some() {
            return Err(found.is_busy());
        }
        sqlx::query("UPDATE volumes SET growing_to = $2 WHERE id = $1 AND growing_to IS NULL")
            .bind(found.id.to_string())
            .bind(signed(capacity.bytes()))
            .execute(&mut *transaction)
            .await
            .step("begin to enlarge a volume")?;
        // Enlarging writes a little; the next measurement comes after it.
        measure::mark_relatives(&mut transaction, found.id.into(), now).await?;
        commit(transaction).await?;
        Ok(Volume {
            growing_to: Some(capacity.bytes()),
            ..found
        })
    }

    /// Records that a volume was enlarged, or could not be. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`].
    pub async fn finish_grow(
        &self,
        id: VolumeId,
        result: Result<(), ()>,
    ) -> Result<Volume, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE volumes SET capacity = CASE WHEN $2 THEN growing_to ELSE capacity END, \
                 growing_to = NULL \
             WHERE id = $1 AND growing_to IS NOT NULL",
        )
        .bind(id.to_string())
        .bind(result.is_ok())
        .execute(&mut *transaction)
        .await
        .step("record an enlarged volume")?;
        let volume = image::by_id(&mut transaction, id.into()).await?;
        commit(transaction).await?;
        Ok(volume)
    }

    /// Volumes whose enlarging was begun and not finished, and the capacities they are to have.
    /// A deleted one may be among them: until this is finished, it is not purged.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn growing_volumes(&self) -> Result<Vec<(VolumeId, u64)>, StoreError> {
        sqlx::query("SELECT id, growing_to FROM volumes WHERE growing_to IS NOT NULL ORDER BY id")
            .fetch_all(self.read())
            .await
            .step("list growing volumes")?
            .iter()
            .map(|row| {
                let row = Columns(row);
                Ok((row.parsed("id")?, row.unsigned("growing_to")?))
            })
            .collect()
    }
}
