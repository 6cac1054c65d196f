//! Errors as HTTP answers, and the reading of bodies.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
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
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let bytes = tokio::time::timeout(BODY_LIMIT, to_bytes(body, BODY_MAX_BYTES))
        .await
        .map_err(|_| invalid(format!("the body did not come within {BODY_LIMIT:?}")))?
        .map_err(|_| {
            invalid(format!(
                "the body is incomplete or longer than {BODY_MAX_BYTES} bytes"
            ))
        })?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(invalid("the body is not a JSON object".to_owned())),
        Err(error) => Err(invalid(format!(
            "the body is not JSON (line {}, column {})",
            error.line(),
            error.column()
        ))),
    }
}
