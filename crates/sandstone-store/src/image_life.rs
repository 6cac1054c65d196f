//! The life that volumes and snapshots share: made, deleted, restored, purged.

use sandstone_api::{ImageId, Slug};
use sandstone_core::{Denied, ImageEvent, ImageState, Timestamp};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::error::Step;
use crate::image::{Image, Kind, ids};
use crate::organisation::OrganisationId;
use crate::row::Columns;
use crate::store::commit;
use crate::{Store, StoreError, image, measure, slug};

/// What may be purged, given `$1`, the end of the youngest grace period that is over: its time
/// has come, and nobody needs its image. Somebody does while another image is copied from it, a
/// sandbox uses it, or it is being enlarged.
const DUE: &str = "\
    (state IN ('failed', 'purging') OR (state = 'deleted' AND deleted_at <= $1)) \
    AND id NOT IN ( \
        SELECT source FROM images WHERE state = 'creating' AND source IS NOT NULL \
        UNION ALL SELECT volume FROM attachments WHERE state <> 'detached' \
        UNION ALL SELECT snapshot FROM sandboxes \
            WHERE snapshot IS NOT NULL AND state <> 'stopped' \
        UNION ALL SELECT id FROM volumes WHERE growing_to IS NOT NULL)";

impl Store {
    /// Volumes and snapshots whose making was cut off. Only meaningful before new ones are begun.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn half_created(&self) -> Result<Vec<ImageId>, StoreError> {
        let rows =
            sqlx::query("SELECT id FROM images WHERE state = 'creating' ORDER BY created_at, id")
                .fetch_all(self.read())
                .await
                .step("list half-created images")?;
        ids(&rows)
    }

    /// Everything of which the pool may have an image.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn known_images(&self) -> Result<Vec<(ImageId, ImageState)>, StoreError> {
        sqlx::query("SELECT id, state FROM images WHERE state <> 'purged' ORDER BY created_at, id")
            .fetch_all(self.read())
            .await
            .step("list images")?
            .iter()
            .map(|row| {
                let row = Columns(row);
                Ok((
                    row.parsed("id")?,
                    row.one_of("state", ImageState::from_text)?,
                ))
            })
            .collect()
    }

    /// Images that are to go, at most `limit`: those deleted before `before`, those that could
    /// not be made, and those whose purge was cut off. Not those that are needed still: see
    /// [`Store::begin_purge`].
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn images_to_purge(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<ImageId>, StoreError> {
        let query = format!("SELECT id FROM images WHERE {DUE} ORDER BY deleted_at, id LIMIT $2");
        let rows = sqlx::query(AssertSqlSafe(query))
            .bind(before.as_millis())
            .bind(i64::from(limit))
            .fetch_all(self.read())
            .await
            .step("list images to purge")?;
        ids(&rows)
    }

    /// Records that an image is about to be removed: from now on it cannot be restored. Repeating
    /// it is how a purge that was cut off is taken up again.
    ///
    /// False, and nothing has changed, when it must stay: it was restored meanwhile or is not
    /// deleted long enough, another image is being copied from it, a sandbox uses it, or it is
    /// being enlarged.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn begin_purge(
        &self,
        id: ImageId,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let query = format!("SELECT id FROM images WHERE id = $2 AND {DUE}");
        let due = sqlx::query(AssertSqlSafe(query))
            .bind(before.as_millis())
            .bind(id.to_string())
            .fetch_optional(&mut *transaction)
            .await
            .step("read an image to purge")?;
        if due.is_none() {
            return Ok(false);
        }
        transition(&mut transaction, id, ImageEvent::BeginPurge, now).await?;
        commit(transaction).await?;
        Ok(true)
    }

    /// Records that an image is gone. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the purge was not begun; [`StoreError::VolumeNotFound`],
    /// [`StoreError::SnapshotNotFound`].
    pub async fn finish_purge(&self, id: ImageId, now: Timestamp) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        if life(&mut transaction, id).await?.state == ImageState::Purged {
            return Ok(());
        }
        transition(&mut transaction, id, ImageEvent::ImageRemoved, now).await?;
        measure::mark_relatives(&mut transaction, id, now).await?;
        commit(transaction).await
    }
}

/// Records that an image was made, or why not.
pub(crate) async fn finish(
    connection: &mut SqliteConnection,
    id: ImageId,
    failure: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(failure) = failure else {
        transition(connection, id, ImageEvent::ImageMade, now).await?;
        return measure::mark_relatives(connection, id, now).await;
    };
    transition(connection, id, ImageEvent::ImageFailed, now).await?;
    let table = Kind::of(id).table();
    sqlx::query(AssertSqlSafe(format!(
        "UPDATE {table} SET failure = $2 WHERE id = $1"
    )))
    .bind(id.to_string())
    .bind(failure)
    .execute(connection)
    .await
    .step("record why an image could not be made")?;
    Ok(())
}

impl Store {
    /// Makes a deleted image of one kind visible again, and reads it.
    pub(crate) async fn restore<T: Image>(
        &self,
        wanted: Restore<'_>,
        now: Timestamp,
    ) -> Result<T, StoreError> {
        let mut transaction = self.begin().await?;
        let id = restore::<T>(&mut transaction, wanted, now).await?;
        let image = image::by_id(&mut transaction, id).await?;
        commit(transaction).await?;
        Ok(image)
    }
}

/// What a client wants back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restore<'a> {
    pub(crate) organisation: OrganisationId,
    /// Its id, or the slug it had: then it is the newest deleted one of that name.
    pub(crate) name: &'a str,
    pub(crate) new_slug: Option<&'a Slug>,
    /// It must have been deleted after this.
    pub(crate) deleted_after: Timestamp,
}

/// Makes a deleted image visible again. Nothing happens to one that is visible.
async fn restore<T: Image>(
    connection: &mut SqliteConnection,
    wanted: Restore<'_>,
    now: Timestamp,
) -> Result<ImageId, StoreError> {
    let table = T::KIND.table();
    // No slug has the shape of an id.
    let is_id = wanted.name.parse::<ImageId>().is_ok();
    let named_by = if is_id { "id" } else { "slug" };
    // First what can be restored, then what need not be, then what is too late.
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT id, slug, CASE \
             WHEN state = 'deleted' AND deleted_at > $3 THEN 0 WHEN state = 'available' THEN 1 \
             ELSE 2 END AS rank \
         FROM {table} \
         WHERE organisation = $1 AND {named_by} = $2 \
             AND state IN ('available', 'deleted', 'purging', 'purged') AND failure IS NULL \
         ORDER BY rank, deleted_at DESC, id DESC LIMIT 1"
    )))
    .bind(wanted.organisation.to_string())
    .bind(wanted.name)
    .bind(wanted.deleted_after.as_millis())
    .fetch_optional(&mut *connection)
    .await
    .step("read a deleted image")?
    .ok_or_else(|| T::KIND.not_found(wanted.name))?;
    let row = Columns(&row);
    let id: ImageId = row.parsed("id")?;
    let has_slug: Slug = row.parsed("slug")?;
    let other_slug = wanted.new_slug.filter(|slug| **slug != has_slug);
    match (row.number("rank")?, other_slug) {
        (0, other_slug) => {
            if let Some(slug) = other_slug {
                sqlx::query(AssertSqlSafe(format!(
                    "UPDATE {table} SET slug = $2 WHERE id = $1 AND state = 'deleted'"
                )))
                .bind(id.to_string())
                .bind(slug.as_str())
                .execute(&mut *connection)
                .await
                .step("rename a deleted image")?;
            }
            transition(connection, id, ImageEvent::Restore, now).await?;
            Ok(id)
        }
        (1, None) => Ok(id),
        // Nothing of this name is deleted.
        (1, Some(_)) => Err(T::KIND.not_found(wanted.name)),
        _ => Err(StoreError::NotRestorable {
            name: wanted.name.to_owned(),
        }),
    }
}

/// Applies `event` to an image; takes or frees its slug with it.
pub(crate) async fn transition(
    connection: &mut SqliteConnection,
    id: ImageId,
    event: ImageEvent,
    now: Timestamp,
) -> Result<(), StoreError> {
    let denied = |reason| StoreError::denied(id, reason);
    let life = life(connection, id).await?;
    let next = life.state.next(event).map_err(denied)?;
    match (life.state.holds_slug(), next.holds_slug()) {
        (true, false) => slug::free(connection, id).await?,
        (false, true) => slug::take(connection, life.organisation, &life.slug, id).await?,
        (true, true) | (false, false) => {}
    }
    let deleted_at = match next {
        ImageState::Creating | ImageState::Available => None,
        ImageState::Deleted | ImageState::Failed | ImageState::Purging | ImageState::Purged => {
            Some(life.deleted_at.unwrap_or(now))
        }
    };
    let table = Kind::of(id).table();
    let changed = sqlx::query(AssertSqlSafe(format!(
        "UPDATE {table} SET state = $3, deleted_at = $4 WHERE id = $1 AND state = $2"
    )))
    .bind(id.to_string())
    .bind(life.state.as_str())
    .bind(next.as_str())
    .bind(deleted_at.map(Timestamp::as_millis))
    .execute(connection)
    .await
    .step("change an image's state")?;
    if changed.rows_affected() == 1 {
        Ok(())
    } else {
        Err(denied(Denied::WrongState))
    }
}

/// What a transition depends on.
struct Life {
    organisation: OrganisationId,
    slug: Slug,
    state: ImageState,
    deleted_at: Option<Timestamp>,
}

async fn life(connection: &mut SqliteConnection, id: ImageId) -> Result<Life, StoreError> {
    let row = sqlx::query("SELECT organisation, slug, state, deleted_at FROM images WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .step("read an image's state")?
        .ok_or_else(|| Kind::of(id).not_found(id))?;
    let row = Columns(&row);
    Ok(Life {
        organisation: row.parsed("organisation")?,
        slug: row.parsed("slug")?,
        state: row.one_of("state", ImageState::from_text)?,
        deleted_at: row.optional_time("deleted_at")?,
    })
}
