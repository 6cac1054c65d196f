//! Slugs: one namespace for the volumes and snapshots of an organisation.

use sandstone_api::{ImageId, Slug};
use sqlx::SqliteConnection;

use crate::StoreError;
use crate::error::Step;
use crate::organisation::OrganisationId;

/// Takes a slug for an image.
pub(crate) async fn take(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    slug: &Slug,
    image: ImageId,
) -> Result<(), StoreError> {
    let taken = sqlx::query(
        "INSERT INTO slugs (organisation, slug, object) VALUES ($1, $2, $3) \
         ON CONFLICT (organisation, slug) DO NOTHING",
    )
    .bind(organisation.to_string())
    .bind(slug.as_str())
    .bind(image.to_string())
    .execute(connection)
    .await
    .step("take a slug")?;
    if taken.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::SlugTaken(slug.clone()))
    }
}

/// Frees the slug that an image holds.
pub(crate) async fn free(
    connection: &mut SqliteConnection,
    image: ImageId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM slugs WHERE object = $1")
        .bind(image.to_string())
        .execute(connection)
        .await
        .step("free a slug")?;
    Ok(())
}
