//! `exposeSsh`: JavaScript reads `hostname` and `username`, Python also `port`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Name, sandbox_id};
use super::super::reply::Reject;
use super::super::ssh::{self, SshAccess};

pub(super) async fn expose(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<SshAccess>, Reject> {
    Ok(ssh::expose(&edge, &who, sandbox_id(&name)?).await?)
}
