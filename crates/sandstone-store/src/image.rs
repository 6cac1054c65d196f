//! What the queries for volumes and for snapshots share: finding one, and listing them.

use sandstone_api::{ImageId, Slug};
use sandstone_core::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::Columns;
use crate::{Store, StoreError};

/// Volumes or snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Volume,
    Snapshot,
}

impl Kind {
    pub(crate) const fn of(id: ImageId) -> Self {
        match id {
            ImageId::Volume(_) => Self::Volume,
            ImageId::Snapshot(_) => Self::Snapshot,
        }
    }

    pub(crate) const fn table(self) -> &'static str {
        match self {
            Self::Volume => "volumes",
            Self::Snapshot => "snapshots",
        }
    }

    pub(crate) fn not_found(self, name: impl ToString) -> StoreError {
        let name = name.to_string();
        match self {
            Self::Volume => StoreError::VolumeNotFound { name },
            Self::Snapshot => StoreError::SnapshotNotFound { name },
        }
    }
}

/// A volume or a snapshot, as the database has it.
pub(crate) trait Image: Sized {
    const KIND: Kind;

    /// Selects all of it; its row is called `i`, so that conditions can follow.
    const SELECT: &'static str;

    fn from_row(row: &SqliteRow) -> Result<Self, StoreError>;
}

/// A place in a list of volumes or snapshots: after this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePosition {
    /// When that one was created.
    pub created_at: Timestamp,
    /// Its id, which decides between those of the same instant.
    pub id: ImageId,
}

/// Which volumes or snapshots to list.
#[derive(Debug, Clone, Copy)]
pub struct ImagesPage<'a> {
    /// At most this many.
    pub limit: u32,
    /// Only those after this place.
    pub after: Option<ImagePosition>,
    /// Only those whose slug contains this text, in any case.
    pub search: Option<&'a str>,
    /// Those that were deleted and not purged yet, instead of the visible ones.
    pub deleted: bool,
}

impl Store {
    /// The organisation's images of one kind, the oldest first.
    pub(crate) async fn list<T: Image>(
        &self,
        organisation: OrganisationId,
        page: ImagesPage<'_>,
    ) -> Result<Vec<T>, StoreError> {
        let search = page.search.unwrap_or_default();
        if search.len() > Slug::MAX_CHARS {
            // No slug contains it, and SQLite refuses patterns that are very long.
            return Ok(Vec::new());
        }
        let after = page.after.map(|at| (at.created_at, at.id.to_string()));
        // Nothing is before this place.
        let (created_at, id) = after.unwrap_or((Timestamp::from_millis(i64::MIN), String::new()));
        // In the text, not bound, so that the index of the visible ones is used.
        let state = if page.deleted { "deleted" } else { "available" };
        let query = format!(
            "{} WHERE i.organisation = $1 AND i.state = '{state}' \
                 AND i.slug LIKE $2 ESCAPE '\\' AND (i.created_at, i.id) > ($3, $4) \
             ORDER BY i.created_at, i.id LIMIT $5",
            T::SELECT,
        );
        sqlx::query(AssertSqlSafe(query))
            .bind(organisation.to_string())
            .bind(contains(search))
            .bind(created_at.as_millis())
            .bind(id)
            .bind(i64::from(page.limit))
            .fetch_all(self.read())
            .await
            .step("list images")?
            .iter()
            .map(T::from_row)
            .collect()
    }
}

/// The organisation's visible image with this id or slug. No slug has the shape of an id.
pub(crate) async fn visible<T: Image>(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    name: &str,
) -> Result<T, StoreError> {
    let query = format!(
        "{} WHERE i.organisation = $1 AND i.state = 'available' AND i.id = coalesce( \
             (SELECT object FROM slugs WHERE organisation = $1 AND slug = $2), $2)",
        T::SELECT,
    );
    let row = sqlx::query(AssertSqlSafe(query))
        .bind(organisation.to_string())
        .bind(name)
        .fetch_optional(connection)
        .await
        .step("read an image")?
        .ok_or_else(|| T::KIND.not_found(name))?;
    T::from_row(&row)
}

/// The image with this id, in whatever state.
pub(crate) async fn by_id<T: Image>(
    connection: &mut SqliteConnection,
    id: ImageId,
) -> Result<T, StoreError> {
    let row = sqlx::query(AssertSqlSafe(format!("{} WHERE i.id = $1", T::SELECT)))
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .step("read an image")?
        .ok_or_else(|| T::KIND.not_found(id))?;
    T::from_row(&row)
}

/// The ids in a result's column `id`.
pub(crate) fn ids<T: std::str::FromStr>(rows: &[SqliteRow]) -> Result<Vec<T>, StoreError> {
    rows.iter().map(|row| Columns(row).parsed("id")).collect()
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
