//! Volumes over REST.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use sandstone_api::{ApiError, ByteSize, ErrorCode, Region, Slug, Volume};
use sandstone_core::VolumeCapacity;
use serde_json::{Map, Value};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::reply::{Reject, read_object};
use super::{Name, known_region, page};
use crate::control::NewVolume;

pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    body: Body,
) -> Result<Json<Volume>, Reject> {
    let new = new_volume(&read_object(body).await?, edge.control.regions())?;
    Ok(Json(edge.control.create_volume(&who, new).await?))
}

pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<Volume>, Reject> {
    Ok(Json(edge.control.volume(&who, &name).await?))
}

pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Reject> {
    let request = page::request(&page::query(&uri))?;
    let volumes = edge.control.volumes(&who, request).await?;
    let mut response = Json(volumes.items).into_response();
    if let Some(link) = volumes
        .next_cursor
        .and_then(|cursor| page::link(&headers, &uri, &cursor))
    {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

pub(super) async fn delete(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<StatusCode, Reject> {
    edge.control.delete_volume(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks the body of a create. Unknown keys are skipped: the JavaScript SDK may send its own
/// options along.
fn new_volume(body: &Map<String, Value>, regions: &[Region]) -> Result<NewVolume, ApiError> {
    let text = |field: &str| match body.get(field) {
        Some(Value::String(text)) => Ok(text.as_str()),
        None | Some(Value::Null) => Err(ApiError::invalid_field(field, "missing", "a text")),
        Some(_) => Err(ApiError::invalid_field(field, "not a text", "a text")),
    };
    let slug = text("slug")?;
    let slug: Slug = slug
        .parse()
        .map_err(|why| ApiError::invalid_field("slug", format_args!("{slug:?}"), why))?;
    let region = known_region(text("region")?, regions)?;
    let size = match body.get("capacity") {
        Some(Value::String(text)) => text
            .parse()
            .map_err(|why| ApiError::invalid_field("capacity", format_args!("{text:?}"), why))?,
        Some(Value::Number(number)) => {
            whole_number(number).map(ByteSize::new).ok_or_else(|| {
                ApiError::invalid_field("capacity", number, "a whole number of bytes, not negative")
            })?
        }
        None | Some(Value::Null) => {
            return Err(ApiError::invalid_field(
                "capacity",
                "missing",
                "a number of bytes or a size such as \"1GB\"",
            ));
        }
        Some(_) => {
            return Err(ApiError::invalid_field(
                "capacity",
                "neither a number nor a text",
                "a number of bytes or a size such as \"1GB\"",
            ));
        }
    };
    let capacity = VolumeCapacity::new(size)?;
    if body.get("from").is_some_and(|from| !from.is_null()) {
        return Err(ApiError::new(
            ErrorCode::NotSupported,
            "`from`: volumes cannot be made from images or snapshots yet",
        )
        .with_hint("leave `from` out to get an empty volume"));
    }
    Ok(NewVolume {
        slug,
        region,
        capacity,
    })
}

/// A number that is whole and not negative, however it was written.
pub(super) fn whole_number(number: &serde_json::Number) -> Option<u64> {
    /// The largest number up to which every whole number has an exact double.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    number.as_u64().or_else(|| {
        let value = number.as_f64()?;
        let is_whole = value.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&value);
        // In range, so the conversion is exact.
        is_whole.then_some(value as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: &Value) -> Result<NewVolume, ApiError> {
        let regions = ["ord".parse().unwrap(), "ams".parse().unwrap()];
        new_volume(body.as_object().unwrap(), &regions)
    }

    #[test]
    fn capacity_is_a_number_or_a_text_and_unknown_keys_are_skipped() {
        let body = json!({"slug": "data", "region": "ams", "capacity": "1GB", "token": "x"});
        let new = parse(&body).unwrap();
        assert_eq!(new.capacity.bytes(), 1_000_000_000);
        assert_eq!(new.region.as_str(), "ams");
        let body = json!({"slug": "data", "region": "ord", "capacity": 500_000_000.0});
        assert_eq!(parse(&body).unwrap().capacity.bytes(), 500_000_000);
    }

    #[test]
    fn every_bad_field_is_named() {
        let good = json!({"slug": "data", "region": "ord", "capacity": "1GB"});
        for (field, value) in [
            ("slug", json!("-x")),
            ("slug", json!(1)),
            ("slug", json!(null)),
            ("region", json!("fra")),
            ("region", json!(null)),
            ("capacity", json!("1PB")),
            ("capacity", json!(-1)),
            ("capacity", json!(0.5)),
            ("capacity", json!(1)),
            ("capacity", json!([])),
            ("capacity", json!(null)),
        ] {
            let mut body = good.clone();
            body[field] = value;
            let error = parse(&body).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(field), "{error}");
        }
    }

    #[test]
    fn an_unknown_region_names_the_known_ones() {
        let error = parse(&json!({"slug": "data", "region": "fra", "capacity": 1})).unwrap_err();
        assert!(error.message.contains("ord, ams"), "{error}");
    }

    #[test]
    fn from_is_not_offered() {
        let body =
            json!({"slug": "d0", "region": "ord", "capacity": "1GB", "from": "builtin:debian-13"});
        assert_eq!(parse(&body).unwrap_err().code, ErrorCode::NotSupported);
    }
}
