//! Snapshots over REST.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use sandstone_api::Snapshot;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name};
use super::super::query::Query;
use super::super::reply::{Reject, read_object};
use super::page;
use crate::control::Page;

/// Takes a snapshot of the volume that the path names.
pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(volume): Name,
    body: Body,
) -> Result<Json<Snapshot>, Reject> {
    let slug = Fields::from(read_object(body).await?).slug()?;
    let taken = edge.control.snapshot_volume(&who, &volume, slug).await?;
    Ok(Json(taken.snapshot))
}

pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<Snapshot>, Reject> {
    Ok(Json(edge.control.snapshot(&who, &name).await?.snapshot))
}

pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Reject> {
    let request = page::request(&Query::of(&uri))?;
    let Page { items, next_cursor } = edge.control.snapshots(&who, request).await?;
    let items: Vec<Snapshot> = items.into_iter().map(|detail| detail.snapshot).collect();
    Ok(page::answer(&headers, &uri, &items, next_cursor))
}

pub(super) async fn delete(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<StatusCode, Reject> {
    edge.control.delete_snapshot(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
