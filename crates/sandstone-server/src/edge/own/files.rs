//! Files of volumes that no sandbox has: `/v1/volumes/{volume}/files?path=/a/b`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use sandstone_api::{ApiError, DirectoryEntry};
use serde::Serialize;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::Name;
use super::super::query::Query;
use super::super::reply::Reject;
use super::archive::upload;
use crate::control::Content;

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new().route(
        "/v1/volumes/{volume}/files",
        get(read).put(write).delete(remove),
    )
}

/// What is in a directory.
#[derive(Debug, Serialize)]
struct Listing {
    entries: Vec<DirectoryEntry>,
}

/// A directory as a JSON object, a file as its bytes. The file's length is not announced: a client
/// can tell by the end of the chunks whether it is all there, and the volume is free by then.
async fn read(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    uri: Uri,
) -> Result<Response, Reject> {
    let content = edge.control.read_path(&who, &name, &path(&uri)?).await?;
    Ok(match content {
        Content::Directory(entries) => Json(Listing { entries }).into_response(),
        Content::File(content) => {
            let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
            (headers, Body::from_stream(content.into_stream())).into_response()
        }
    })
}

async fn write(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Reject> {
    let path = path(&uri)?;
    let written = edge.control.write_file(&who, &name, &path, upload(body));
    written.await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    uri: Uri,
) -> Result<StatusCode, Reject> {
    edge.control.remove_file(&who, &name, &path(&uri)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The path in the query, as it was sent.
fn path(uri: &Uri) -> Result<String, ApiError> {
    let path = Query::of(uri).get("path").map(str::to_owned);
    path.ok_or_else(|| ApiError::invalid_field("path", "missing", "an absolute path"))
}
