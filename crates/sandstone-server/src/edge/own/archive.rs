//! Volumes and snapshots as archives.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, TryStreamExt};
use sandstone_api::{ApiError, ErrorCode, VolumeDetail};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name};
use super::super::query::Query;
use super::super::reply::Reject;
use crate::control::{Export, NewImport, Upload};

/// What an import is posted to, in the place of a volume's name. Nothing else is ever posted
/// there, so a volume of that name is as good as any other.
const IMPORT: &str = "import";

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/volumes/{volume}", post(import))
        .route("/v1/volumes/{volume}/archive", get(export_volume))
        .route("/v1/snapshots/{snapshot}/archive", get(export_snapshot))
}

async fn export_volume(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Response, Reject> {
    Ok(answer(edge.control.export_volume(&who, &name).await?))
}

async fn export_snapshot(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Response, Reject> {
    Ok(answer(edge.control.export_snapshot(&who, &name).await?))
}

/// The archive as a file. Its length is not known before its end: a client can tell by the end of
/// the chunks whether it is all there.
fn answer(export: Export) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/zstd"),
    );
    // A slug has nothing that would have to be escaped.
    let disposition = format!("attachment; filename=\"{}.tar.zst\"", export.slug);
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    let body = Body::from_stream(export.content.into_stream());
    (headers, body).into_response()
}

/// A volume of the archive in the body: `POST /v1/volumes/import?slug=S[&region=R][&capacity=C]`.
async fn import(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    uri: Uri,
    body: Body,
) -> Result<Json<VolumeDetail>, Reject> {
    if name != IMPORT {
        return Err(ApiError::new(
            ErrorCode::MethodNotAllowed,
            format!("{} does not take POST", uri.path()),
        )
        .into());
    }
    let fields = Fields::from(Query::of(&uri).into_object());
    let new = NewImport {
        slug: fields.slug()?,
        region: fields.optional_region(edge.control.regions())?,
        capacity: fields.optional_capacity()?,
    };
    let imported = edge.control.import_volume(&who, new, upload(body)).await?;
    Ok(Json(imported))
}

/// A body as the control plane takes it.
pub(super) fn upload(body: Body) -> Upload {
    body.into_data_stream().map_err(io::Error::other).boxed()
}
