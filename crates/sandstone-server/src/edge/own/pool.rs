//! The storage pool.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use sandstone_api::Pool;
use serde::Serialize;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::reply::Reject;

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/pool", get(show))
        .route("/v1/pool/clean", post(clean))
}

/// What was removed.
#[derive(Debug, Serialize)]
struct Cleaned {
    removed: Vec<String>,
}

async fn show(State(edge): State<Arc<Edge>>, Caller(who): Caller) -> Result<Json<Pool>, Reject> {
    Ok(Json(edge.control.pool(&who).await?))
}

/// Removes the images that no volume and no snapshot has.
async fn clean(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
) -> Result<Json<Cleaned>, Reject> {
    let removed = edge.control.remove_unknown_images(&who).await?;
    Ok(Json(Cleaned { removed }))
}
