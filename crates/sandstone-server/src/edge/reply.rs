//! Errors as HTTP answers, and the reading of bodies.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sandstone_api::{ApiError, ErrorBody, ErrorCode};
use serde_json::{Map, Value};

/// Largest JSON body. The SDKs send a handful of short fields.
const BODY_MAX_BYTES: usize = 64 << 10;

/// How long a client may take to send a body.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// An error on its way to the client as `{code, message, hint?}`.
#[derive(Debug)]
pub(super) struct Reject(ApiError);

impl From<ApiError> for Reject {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        let ApiError {
            code,
            message,
            hint,
        } = self.0;
        let status =
            StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody {
            code: code.as_str().to_owned(),
            message,
            hint,
        };
        let mut response = (status, Json(body)).into_response();
        if code == ErrorCode::InvalidToken {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Reads a body that must be a JSON object. Its content is never logged: the SDKs put the API
/// token into some bodies.
///
/// # Errors
/// 400 when it is too long, too slow or not a JSON object.
pub(super) async fn read_object(body: Body) -> Result<Map<String, Value>, ApiError> {
    parse_object(&read_bytes(body).await?)
}

/// The same, for calls whose fields are all optional: no body at all is an empty object.
///
/// # Errors
/// As [`read_object`].
pub(super) async fn read_optional_object(body: Body) -> Result<Map<String, Value>, ApiError> {
    let bytes = read_bytes(body).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    parse_object(&bytes)
}

async fn read_bytes(body: Body) -> Result<Bytes, ApiError> {
    tokio::time::timeout(BODY_LIMIT, to_bytes(body, BODY_MAX_BYTES))
        .await
        .map_err(|_| invalid(format!("the body did not come within {BODY_LIMIT:?}")))?
        .map_err(|_| {
            invalid(format!(
                "the body is incomplete or longer than {BODY_MAX_BYTES} bytes"
            ))
        })
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(invalid("the body is not a JSON object".to_owned())),
        Err(error) => Err(invalid(format!(
            "the body is not JSON (line {}, column {})",
            error.line(),
            error.column()
        ))),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_once_with_its_status() {
        let table = include_str!("../../../../docs/errors.md");
        let rows: Vec<&str> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        for code in ErrorCode::ALL {
            let start = format!("| `{code}` | {} | ", code.status());
            let found = rows.iter().filter(|row| row.starts_with(&start)).count();
            assert_eq!(found, 1, "docs/errors.md: {start}");
        }
        assert_eq!(rows.len(), ErrorCode::ALL.len());
    }
}
