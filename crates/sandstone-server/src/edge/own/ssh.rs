//! Entering sandboxes over SSH.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use sandstone_api::{ApiError, ErrorCode};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::Name;
use super::super::reply::Reject;
use super::super::ssh::{self, SshAccess};

/// The routes.
pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new().route("/v1/sandboxes/{id}/ssh", post(expose))
}

async fn expose(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<SshAccess>, Reject> {
    let id = name.parse().map_err(|_| {
        ApiError::new(
            ErrorCode::SandboxNotFound,
            format!("there is no sandbox {name:?}"),
        )
    })?;
    Ok(ssh::expose(&edge, &who, id).await?)
}
