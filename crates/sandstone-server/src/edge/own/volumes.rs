//! Volumes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::routing::{get, post};
use axum::{Json, Router};
use sandstone_api::{ApiError, ErrorCode, Region, SnapshotDetail, VolumeDetail};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name};
use super::super::reply::{Reject, read_object, read_optional_object};
use super::{List, page_request};
use crate::control::{NewVolume, Source};

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/volumes", get(list).post(create))
        .route("/v1/volumes/{volume}", get(show).delete(delete))
        .route("/v1/volumes/{volume}/restore", post(restore))
        .route("/v1/volumes/{volume}/grow", post(grow))
        .route("/v1/volumes/{volume}/fork", post(fork))
        .route("/v1/volumes/{volume}/snapshot", post(snapshot))
}

async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
) -> Result<Json<List<VolumeDetail>>, Reject> {
    let page = edge.control.volumes(&who, page_request(&uri)?).await?;
    Ok(Json(page.into()))
}

async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    body: Body,
) -> Result<Json<VolumeDetail>, Reject> {
    let fields = read_object(body).await?.into();
    let new = new_volume(&fields, edge.control.regions())?;
    Ok(Json(edge.control.create_volume(&who, new).await?))
}

async fn show(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<VolumeDetail>, Reject> {
    Ok(Json(edge.control.volume(&who, &name).await?))
}

/// Answers the deleted volume, which says until when it can be restored.
async fn delete(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<VolumeDetail>, Reject> {
    Ok(Json(edge.control.delete_volume(&who, &name).await?))
}

async fn restore(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<VolumeDetail>, Reject> {
    let slug = Fields::from(read_optional_object(body).await?).optional_slug()?;
    Ok(Json(edge.control.restore_volume(&who, &name, slug).await?))
}

async fn grow(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<VolumeDetail>, Reject> {
    let capacity = Fields::from(read_object(body).await?).capacity()?;
    let grown = edge.control.grow_volume(&who, &name, capacity).await?;
    Ok(Json(grown))
}

/// A copy of the volume, attached or not.
async fn fork(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<VolumeDetail>, Reject> {
    let fields = Fields::from(read_object(body).await?);
    let new = NewVolume {
        slug: fields.slug()?,
        region: None,
        capacity: fields.optional_capacity()?,
        source: Source::Volume(name),
    };
    Ok(Json(edge.control.create_volume(&who, new).await?))
}

async fn snapshot(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<SnapshotDetail>, Reject> {
    let slug = Fields::from(read_object(body).await?).slug()?;
    let taken = edge.control.snapshot_volume(&who, &name, slug).await?;
    Ok(Json(taken))
}

/// Checks the body of a create. Region and capacity are the source's if they are not there.
fn new_volume(fields: &Fields, regions: &[Region]) -> Result<NewVolume, ApiError> {
    let from = fields.optional_text("from")?;
    let from_volume = fields.optional_text("from_volume")?;
    let source = match (from, from_volume) {
        (None, None) => Source::Empty,
        (Some(from), None) => Source::parse_from(from)?,
        (None, Some(volume)) => Source::Volume(volume.to_owned()),
        (Some(_), Some(_)) => {
            return Err(ApiError::new(
                ErrorCode::InvalidRequest,
                "`from` and `from_volume` are both there: a volume has one source",
            ));
        }
    };
    Ok(NewVolume {
        slug: fields.slug()?,
        region: fields.optional_region(regions)?,
        capacity: fields.optional_capacity()?,
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: &Value) -> Result<NewVolume, ApiError> {
        let regions = ["ord".parse().unwrap()];
        new_volume(&body.as_object().unwrap().clone().into(), &regions)
    }

    #[test]
    fn sources() {
        let new = parse(&json!({"slug": "d0", "from_volume": "data"})).unwrap();
        assert!(matches!(new.source, Source::Volume(name) if name == "data"));
        assert!(new.capacity.is_none() && new.region.is_none());
        let new = parse(&json!({"slug": "d0", "from": "tools"})).unwrap();
        assert!(matches!(new.source, Source::Snapshot(name) if name == "tools"));
        let new = parse(&json!({"slug": "d0", "capacity": "1GB"})).unwrap();
        assert!(matches!(new.source, Source::Empty));
        for bad in [
            json!({"slug": "d0", "from": "a", "from_volume": "b"}),
            json!({"slug": "d0", "from": 1}),
            json!({"slug": "d0", "from_volume": []}),
            json!({"from": "a"}),
        ] {
            let error = parse(&bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad}");
        }
    }
}
