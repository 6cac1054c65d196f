//! Documented calls of the hosted product that this server does not offer: an honest answer
//! instead of a missing route.

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, post};
use sandstone_api::{ApiError, ErrorCode};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::reply::Reject;

/// Routes of which nothing is offered.
pub(super) fn routes() -> Router<Arc<Edge>> {
    let mut router = Router::new().route("/api/v2/sandboxes/{id}/deploy", post(apps));
    for noun in ["apps", "revisions", "layers", "timelines"] {
        router = router
            .route(&format!("/api/v2/{noun}"), any(apps))
            .route(&format!("/api/v2/{noun}/{{*rest}}"), any(apps));
    }
    router
}

async fn apps(_: Caller) -> Reject {
    let what = "apps, revisions, layers, timelines and deployment";
    let message = format!("this server does not offer {what}");
    ApiError::new(ErrorCode::NotSupported, message).into()
}
