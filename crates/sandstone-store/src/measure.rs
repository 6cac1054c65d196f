//! Sizes of images, and which of them are out of date.
//!
//! Relatives share extents, so what one does changes what another occupies alone: everything that
//! may do so marks the whole family.

use sandstone_api::{ImageId, SandboxId};
use sandstone_core::{Timestamp, Usage};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::error::Step;
use crate::image::{Kind, ids};
use crate::row::signed;
use crate::store::commit;
use crate::{Store, StoreError};

impl Store {
    /// The visible images whose recorded sizes may be wrong: never measured, or not since
    /// something happened to their family, or a sandbox is writing to a member of it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn images_to_measure(&self) -> Result<Vec<ImageId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM images \
             WHERE state = 'available' \
                 AND (measured_at IS NULL OR measured_at <= changed_at OR family IN ( \
                     SELECT v.family FROM volumes v JOIN attachments a ON a.volume = v.id \
                     WHERE a.state <> 'detached')) \
             ORDER BY created_at, id",
        )
        .fetch_all(self.read())
        .await
        .step("list images to measure")?;
        ids(&rows)
    }

    /// Records what an image occupies, `now` being when its measuring began. Nothing happens when
    /// it is not visible any more. The extents of volumes are not kept.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn record_measured(
        &self,
        id: ImageId,
        usage: Usage,
        extents: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let table = Kind::of(id).table();
        sqlx::query(AssertSqlSafe(format!(
            "UPDATE {table} SET allocated = $2, flattened = $3, measured_at = $4 \
             WHERE id = $1 AND state = 'available'"
        )))
        .bind(id.to_string())
        .bind(signed(usage.allocated))
        .bind(signed(usage.flattened))
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("record an image's sizes")?;
        sqlx::query("UPDATE snapshots SET extents = $2 WHERE id = $1 AND state = 'available'")
            .bind(id.to_string())
            .bind(signed(extents))
            .execute(&mut *transaction)
            .await
            .step("record a snapshot's extents")?;
        commit(transaction).await
    }
}

/// Marks the sizes of an image and of all its relatives as out of date.
pub(crate) async fn mark_relatives(
    connection: &mut SqliteConnection,
    id: ImageId,
    now: Timestamp,
) -> Result<(), StoreError> {
    mark(
        connection,
        "SELECT family FROM images WHERE id = $1",
        id,
        now,
    )
    .await
}

/// Marks the families of all volumes that a sandbox has, or had, attached.
pub(crate) async fn mark_volumes_of(
    connection: &mut SqliteConnection,
    sandbox: SandboxId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let families = "SELECT v.family FROM volumes v JOIN attachments a ON a.volume = v.id \
        WHERE a.sandbox = $1";
    mark(connection, families, sandbox, now).await
}

async fn mark(
    connection: &mut SqliteConnection,
    families: &'static str,
    id: impl ToString,
    now: Timestamp,
) -> Result<(), StoreError> {
    for kind in [Kind::Volume, Kind::Snapshot] {
        let table = kind.table();
        sqlx::query(AssertSqlSafe(format!(
            "UPDATE {table} SET changed_at = $2 WHERE family IN ({families}) AND changed_at < $2"
        )))
        .bind(id.to_string())
        .bind(now.as_millis())
        .execute(&mut *connection)
        .await
        .step("mark sizes as out of date")?;
    }
    Ok(())
}
