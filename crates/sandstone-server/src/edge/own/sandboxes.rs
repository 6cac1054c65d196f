//! Sandboxes: listing and ending them, and the names of their exposed servers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::{delete, get};
use axum::{Json, Router};
use sandstone_api::{ApiError, Exposure, Sandbox};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::deno;
use super::super::input::{Fields, Name, sandbox_id};
use super::super::kill::kill;
use super::super::query::Query;
use super::super::reply::{Reject, read_optional_object};
use super::List;

pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/sandboxes", get(list))
        .route("/v1/sandboxes/{sandbox}", delete(kill))
        .route(
            "/v1/sandboxes/{sandbox}/exposures",
            get(exposures).post(expose).delete(unexpose),
        )
}

/// Those that run or stopped lately; one part has them all.
async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
) -> Result<Json<List<Sandbox>>, Reject> {
    let items = edge.control.sandboxes(&who, &BTreeMap::new()).await?;
    Ok(Json(List {
        items,
        next_cursor: None,
    }))
}

async fn exposures(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<List<Exposure>>, Reject> {
    let items = edge.control.exposures(&who, sandbox_id(&name)?).await?;
    Ok(Json(List {
        items,
        next_cursor: None,
    }))
}

/// Issues a name that leads to the `port` or the process `pid` of the body.
async fn expose(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<Exposure>, Reject> {
    let id = sandbox_id(&name)?;
    let target = Fields::from(read_optional_object(body).await?).optional_exposure_target()?;
    let target = target
        .ok_or_else(|| ApiError::invalid_field("port", "missing", "a port between 1 and 65535"))?;
    let target = deno::resolve_target(&edge, &who, id, target).await?;
    Ok(Json(edge.control.expose(&who, id, Some(target)).await?))
}

/// Takes the name of the query's `domain` back.
async fn unexpose(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    uri: Uri,
) -> Result<StatusCode, Reject> {
    let id = sandbox_id(&name)?;
    let query = Query::of(&uri);
    let domain = query
        .get("domain")
        .ok_or_else(|| ApiError::invalid_field("domain", "missing", "the domain to take back"))?;
    edge.control.unexpose(&who, id, domain).await?;
    Ok(StatusCode::NO_CONTENT)
}
