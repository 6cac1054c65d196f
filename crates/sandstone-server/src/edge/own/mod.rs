//! Our own HTTP API, under `/v1`: what the command line speaks, and whoever wants more than the
//! official SDKs show.
//!
//! Bodies are JSON objects in snake case. A list answers `{items, next_cursor}`. Sizes are bytes,
//! times RFC 3339. A volume or snapshot is named by its id or its slug.

mod archive;
mod files;
mod pool;
mod sandboxes;
mod snapshots;
mod ssh;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use sandstone_api::ApiError;
use serde::Serialize;

use super::Edge;
use super::query::Query;
use crate::control::{Page, PageRequest};

/// All routes of this API.
pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .merge(volumes::routes())
        .merge(snapshots::routes())
        .merge(archive::routes())
        .merge(files::routes())
        .merge(pool::routes())
        .merge(ssh::routes())
        .merge(sandboxes::routes())
}

/// A part of a list.
#[derive(Debug, Serialize)]
struct List<T> {
    items: Vec<T>,
    /// What to send as `cursor` for the next part; null on the last.
    next_cursor: Option<String>,
}

impl<T> From<Page<T>> for List<T> {
    fn from(page: Page<T>) -> Self {
        Self {
            items: page.items,
            next_cursor: page.next_cursor,
        }
    }
}

/// The part of a list that the query asks for: `limit`, `cursor`, `search`, `deleted`.
fn page_request(uri: &Uri) -> Result<PageRequest, ApiError> {
    let query = Query::of(uri);
    Ok(PageRequest {
        deleted: query.flag("deleted")?,
        ..query.page()?
    })
}
