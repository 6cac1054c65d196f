//! Pages of a list, and the cursors between them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sandstone_api::ApiError;
use sandstone_core::Timestamp;
use sandstone_store::{ImagePosition, ImagesPage};

/// Items on a page when the client names no number.
const LIMIT_DEFAULT: u32 = 100;

/// Most items on a page.
const LIMIT_MAX: u32 = 1000;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Default)]
pub struct PageRequest {
    /// At most this many items; 100 by default.
    pub limit: Option<u32>,
    /// What [`Page::next_cursor`] said.
    pub cursor: Option<String>,
    /// Only items whose slug contains this.
    pub search: Option<String>,
    /// Instead of what exists, what was deleted and can be restored.
    pub deleted: bool,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins: opaque, URL-safe. `None` on the last page.
    pub next_cursor: Option<String>,
}

impl PageRequest {
    /// What to ask the store for: one item more than is shown tells whether there is a next page.
    pub(super) fn query(&self) -> Result<ImagesPage<'_>, ApiError> {
        Ok(ImagesPage {
            limit: self.checked_limit()? + 1,
            after: self.position()?,
            search: self.search.as_deref(),
            deleted: self.deleted,
        })
    }

    /// The page, of what the store has answered.
    pub(super) fn answer<R, T>(
        &self,
        mut rows: Vec<R>,
        position: impl Fn(&R) -> ImagePosition,
        show: impl Fn(&R) -> T,
    ) -> Result<Page<T>, ApiError> {
        let limit = usize::try_from(self.checked_limit()?).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more);
        Ok(Page {
            next_cursor: last.map(|row| encode(position(row))),
            items: rows.iter().map(show).collect(),
        })
    }

    /// Whether the cursor names a place, and the text of that place the same again; nothing when it
    /// names none. For the fuzz targets.
    #[cfg(feature = "stand-ins")]
    pub(crate) fn survives_text(&self) -> Option<bool> {
        let place = self.position().ok()??;
        Some(decode(&encode(place)) == Some(place))
    }

    fn checked_limit(&self) -> Result<u32, ApiError> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if (1..=LIMIT_MAX).contains(&limit) {
            Ok(limit)
        } else {
            Err(ApiError::invalid_field(
                "limit",
                limit,
                format_args!("a page has between 1 and {LIMIT_MAX} items"),
            ))
        }
    }

    /// The place that the cursor names.
    fn position(&self) -> Result<Option<ImagePosition>, ApiError> {
        self.cursor
            .as_deref()
            .map(|cursor| {
                decode(cursor).ok_or_else(|| {
                    ApiError::invalid_field("cursor", "unknown", "use the one from the last page")
                })
            })
            .transpose()
    }
}

/// The text that names a place.
fn encode(position: ImagePosition) -> String {
    URL_SAFE_NO_PAD.encode(format!(
        "{}.{}",
        position.created_at.as_millis(),
        position.id
    ))
}

fn decode(cursor: &str) -> Option<ImagePosition> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (created_at, id) = text.split_once('.')?;
    Some(ImagePosition {
        created_at: Timestamp::from_millis(created_at.parse().ok()?),
        id: id.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_text() {
        let request = |cursor: &str| PageRequest {
            cursor: Some(cursor.to_owned()),
            ..PageRequest::default()
        };
        for id in [
            "vol_ord_1at5nn58e77rtd11e3k3",
            "snp_ord_1at5nn58e77rtd11e3k3",
        ] {
            let position = ImagePosition {
                created_at: Timestamp::from_millis(1_700_000_000_123),
                id: id.parse().unwrap(),
            };
            let cursor = encode(position);
            assert!(
                cursor
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            );
            assert_eq!(request(&cursor).position().unwrap(), Some(position));
            assert!(request(&cursor[1..]).position().is_err());
        }
        for nonsense in ["", "!", "AAAA", "MS4"] {
            assert!(request(nonsense).position().is_err(), "{nonsense}");
        }
        assert_eq!(PageRequest::default().position().unwrap(), None);
    }

    #[test]
    fn limits_are_bounded() {
        for (limit, expected) in [
            (None, Some(100)),
            (Some(1), Some(1)),
            (Some(1000), Some(1000)),
            (Some(0), None),
            (Some(1001), None),
        ] {
            let request = PageRequest {
                limit,
                ..PageRequest::default()
            };
            assert_eq!(request.checked_limit().ok(), expected);
        }
    }
}
