//! Looking after snapshots: their checksums, and how many pieces they are in.

use sandstone_api::SnapshotId;
use sandstone_core::{Health, Timestamp};

use crate::error::Step;
use crate::image::ids;
use crate::store::commit;
use crate::{Store, StoreError, measure};

impl Store {
    /// Snapshots without a checksum, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn snapshots_to_record(&self, limit: u32) -> Result<Vec<SnapshotId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM snapshots WHERE state = 'available' AND checksum IS NULL \
             ORDER BY created_at, id LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await
        .step("list snapshots to record")?;
        ids(&rows)
    }

    /// Records a snapshot's checksum. The first one stays. Nothing happens when it is not visible
    /// any more.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn record_checksum(
        &self,
        id: SnapshotId,
        checksum: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE snapshots SET checksum = $2, health = $3, checked_at = $4 \
             WHERE id = $1 AND state = 'available' AND checksum IS NULL",
        )
        .bind(id.to_string())
        .bind(checksum)
        .bind(Health::Intact.as_str())
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("record a checksum")?;
        commit(transaction).await
    }

    /// Snapshots that were last compared with their checksums before `before`, the longest ago
    /// first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn snapshots_to_check(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<SnapshotId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM snapshots \
             WHERE state = 'available' AND checksum IS NOT NULL AND checked_at <= $1 \
             ORDER BY checked_at, id LIMIT $2",
        )
        .bind(before.as_millis())
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await
        .step("list snapshots to check")?;
        ids(&rows)
    }

    /// Records whether a snapshot still has the content of its checksum. Nothing happens when it
    /// has no checksum, or is not visible any more.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn record_check(
        &self,
        id: SnapshotId,
        intact: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let health = if intact {
            Health::Intact
        } else {
            Health::Damaged
        };
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE snapshots SET health = $2, checked_at = $3 \
             WHERE id = $1 AND state = 'available' AND checksum IS NOT NULL",
        )
        .bind(id.to_string())
        .bind(health.as_str())
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("record a check")?;
        commit(transaction).await
    }

    /// Snapshots that are in many small pieces, at most `limit`: more than 2000, and more than
    /// 2000 for each GB that they hold. Forking takes about a microsecond for each piece, so
    /// fewer are not worth the copying. Each snapshot is packed once: its content does not
    /// change, so packing again would not help.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn snapshots_to_pack(&self, limit: u32) -> Result<Vec<SnapshotId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM snapshots \
             WHERE state = 'available' AND packed_at IS NULL \
                 AND extents > 2000 AND extents * 500000 > flattened \
             ORDER BY extents DESC, id LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await
        .step("list snapshots to pack")?;
        ids(&rows)
    }

    /// Records that a snapshot was packed. It shares nothing with its relatives then.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn record_packed(&self, id: SnapshotId, now: Timestamp) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE snapshots SET packed_at = $2 WHERE id = $1 AND state = 'available'")
            .bind(id.to_string())
            .bind(now.as_millis())
            .execute(&mut *transaction)
            .await
            .step("record a packed snapshot")?;
        measure::mark_relatives(&mut transaction, id.into(), now).await?;
        commit(transaction).await
    }
}
