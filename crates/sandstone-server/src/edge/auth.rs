//! Who asks: `Authorization: Bearer <token>`.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use sandstone_api::{ApiError, ErrorCode};

use super::Edge;
use super::reply::Reject;
use crate::control::Principal;

/// The authenticated caller. A handler that takes one runs only for callers with a good token.
pub(super) struct Caller(pub(super) Principal);

impl FromRequestParts<Arc<Edge>> for Caller {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Reject> {
        let token = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(bearer)
            .ok_or_else(|| {
                ApiError::new(ErrorCode::InvalidToken, "the request carries no token")
                    .with_hint("send `Authorization: Bearer <token>`; the SDKs take the token from DENO_DEPLOY_TOKEN")
            })?;
        Ok(Self(edge.control.authenticate(token).await?))
    }
}

/// The token of a header value; the scheme is case-insensitive.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn only_bearer_tokens() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        for value in ["", "abc", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(bearer(value), None, "{value}");
        }
    }
}
