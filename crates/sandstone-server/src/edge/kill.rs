//! Ending a sandbox: every dialect asks for it by the same name and is answered with the same nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use sandstone_core::StopReason;

use super::Edge;
use super::auth::Caller;
use super::input::{Name, sandbox_id};
use super::reply::Reject;

/// Ends a sandbox and waits until it is over.
pub(super) async fn kill(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<StatusCode, Reject> {
    let id = sandbox_id(&name)?;
    edge.control
        .stop_sandbox(&who, id, StopReason::Killed)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
