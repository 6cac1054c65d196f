//! Volumes over REST.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use sandstone_api::{ApiError, Region, Volume};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name};
use super::super::query::Query;
use super::super::reply::{Reject, read_object};
use super::page;
use crate::control::{NewVolume, Page, Source};

pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    body: Body,
) -> Result<Json<Volume>, Reject> {
    let fields = read_object(body).await?.into();
    let new = new_volume(&fields, edge.control.regions())?;
    Ok(Json(edge.control.create_volume(&who, new).await?.volume))
}

pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<Volume>, Reject> {
    Ok(Json(edge.control.volume(&who, &name).await?.volume))
}

pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Reject> {
    let request = page::request(&Query::of(&uri))?;
    let Page { items, next_cursor } = edge.control.volumes(&who, request).await?;
    let items: Vec<Volume> = items.into_iter().map(|detail| detail.volume).collect();
    Ok(page::answer(&headers, &uri, &items, next_cursor))
}

pub(super) async fn delete(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<StatusCode, Reject> {
    edge.control.delete_volume(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks the body of a create. The SDKs' types demand a region and a capacity always.
fn new_volume(fields: &Fields, regions: &[Region]) -> Result<NewVolume, ApiError> {
    Ok(NewVolume {
        slug: fields.slug()?,
        region: Some(fields.region(regions)?),
        capacity: Some(fields.capacity()?),
        source: match fields.optional_text("from")? {
            Some(from) => Source::parse_from(from)?,
            None => Source::Empty,
        },
    })
}

#[cfg(test)]
mod tests {
    use sandstone_api::ErrorCode;
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: &Value) -> Result<NewVolume, ApiError> {
        let regions = ["ord".parse().unwrap(), "ams".parse().unwrap()];
        new_volume(&body.as_object().unwrap().clone().into(), &regions)
    }

    #[test]
    fn unknown_keys_are_skipped() {
        let body = json!({"slug": "data", "region": "ams", "capacity": "1GB", "token": "x"});
        let new = parse(&body).unwrap();
        assert_eq!(new.capacity.unwrap().bytes(), 1_000_000_000);
        assert_eq!(new.region.unwrap().as_str(), "ams");
        assert!(matches!(new.source, Source::Empty));
    }

    #[test]
    fn from_is_a_base_image_or_a_snapshot() {
        let from = |from: Value| {
            let body = json!({"slug": "d0", "region": "ord", "capacity": "1GB", "from": from});
            parse(&body).map(|new| new.source)
        };
        assert!(matches!(from(json!("builtin:debian-13")), Ok(Source::Base)));
        assert!(matches!(from(json!(null)), Ok(Source::Empty)));
        assert!(matches!(from(json!("tools")), Ok(Source::Snapshot(name)) if name == "tools"));
        for (bad, code) in [
            (json!("builtin:debian-12"), ErrorCode::UnknownBase),
            (json!(1), ErrorCode::InvalidRequest),
            (json!({"volume": "x"}), ErrorCode::InvalidRequest),
        ] {
            assert_eq!(from(bad).unwrap_err().code, code);
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let good = json!({"slug": "data", "region": "ord", "capacity": "1GB"});
        for field in ["slug", "region", "capacity"] {
            let mut body = good.clone();
            body[field] = Value::Null;
            let error = parse(&body).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(field), "{error}");
        }
    }
}
