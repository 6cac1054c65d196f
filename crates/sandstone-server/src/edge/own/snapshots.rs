//! Snapshots.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::routing::{get, post};
use axum::{Json, Router};
use sandstone_api::SnapshotDetail;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name};
use super::super::reply::{Reject, read_optional_object};
use super::{List, page_request};

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/snapshots", get(list))
        .route("/v1/snapshots/{snapshot}", get(show).delete(delete))
        .route("/v1/snapshots/{snapshot}/restore", post(restore))
        .route("/v1/snapshots/{snapshot}/verify", post(verify))
}

async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
) -> Result<Json<List<SnapshotDetail>>, Reject> {
    let page = edge.control.snapshots(&who, page_request(&uri)?).await?;
    Ok(Json(page.into()))
}

async fn show(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<SnapshotDetail>, Reject> {
    Ok(Json(edge.control.snapshot(&who, &name).await?))
}

/// Answers the deleted snapshot, which says until when it can be restored.
async fn delete(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<SnapshotDetail>, Reject> {
    Ok(Json(edge.control.delete_snapshot(&who, &name).await?))
}

async fn restore(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<SnapshotDetail>, Reject> {
    let slug = Fields::from(read_optional_object(body).await?).optional_slug()?;
    let restored = edge.control.restore_snapshot(&who, &name, slug).await?;
    Ok(Json(restored))
}

/// Reads all of the snapshot and compares it with its checksum; the answer's `health` says what
/// was found.
async fn verify(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<SnapshotDetail>, Reject> {
    Ok(Json(edge.control.verify_snapshot(&who, &name).await?))
}
