//! Documented calls of the hosted product that this server does not offer: an honest answer
//! instead of a missing route.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{any, post};
use sandstone_api::{ApiError, ErrorCode};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::reply::Reject;
use super::vscode;

/// Routes of which nothing is offered.
pub(super) fn routes() -> Router<Arc<Edge>> {
    let mut router = Router::new()
        .route("/api/v3/sandbox/{id}/expose/vscode", post(expose_vscode))
        .route("/api/v2/sandboxes/{id}/deploy", post(apps));
    for noun in ["apps", "revisions", "layers", "timelines"] {
        router = router
            .route(&format!("/api/v2/{noun}"), any(apps))
            .route(&format!("/api/v2/{noun}/{{*rest}}"), any(apps));
    }
    router
}

fn not_supported(what: &str) -> Reject {
    ApiError::new(
        ErrorCode::NotSupported,
        format!("this server does not offer {what}"),
    )
    .into()
}

async fn expose_vscode(State(edge): State<Arc<Edge>>, _: Caller) -> Reject {
    if edge.editor.is_some() {
        return not_supported("exposing an editor yet");
    }
    ApiError::new(ErrorCode::EditorNotConfigured, "this server has no editor")
        .with_hint(vscode::HINT)
        .into()
}

async fn apps(_: Caller) -> Reject {
    not_supported("apps, revisions, layers, timelines and deployment")
}
