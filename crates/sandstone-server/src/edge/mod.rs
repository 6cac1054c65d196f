//! The edge: HTTP and WebSocket for clients.
//!
//! ```text
//! request ─► trace id ─► route ─► Principal ─► dialect (deno/, own/) ─► ControlPlane
//!                                                  └─ WebSocket ─► AgentClient
//! ```
//!
//! A dialect is what one family of clients speaks; `deno` is that of the official SDKs, `own` that
//! of our command line. A handler parses into checked types, asks the [`ControlPlane`] for one
//! thing and translates the answer. Nothing below this module knows a dialect, and no decision
//! about volumes or sandboxes is taken here. What dialects share is in `input`, `kill` and `query`. To add
//! a dialect, add a module with a `routes()` next to `deno`.

mod auth;
mod deno;
mod input;
mod kill;
mod own;
mod query;
mod reply;
mod serve;
mod ssh;
#[cfg(any(test, feature = "stand-ins"))]
pub mod stand_ins;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use sandstone_api::{ApiError, ErrorCode, SandboxId};
use sandstone_core::{CONNECTIONS_MAX, CONNECTIONS_PER_SANDBOX_MAX, Clock, Entropy};
use sandstone_node_api::Readiness;

use crate::control::ControlPlane;
use crate::places::Places;
use crate::ssh::SshEndpoint;
use reply::Reject;
pub use serve::serve;

/// What the edge is handed.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where trace ids and stream ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// How long the client of a sandbox may take nothing of what is sent to it. Then its connection
    /// is given up.
    pub stall_limit: Duration,
    /// The editor's command line, with `{port}` and `{path}` in it; none, when there is no editor.
    pub editor: Option<String>,
    /// Where people enter sandboxes over SSH; nowhere when absent.
    pub ssh: Option<SshEndpoint>,
}

impl EdgeConfig {
    /// Default of [`EdgeConfig::stall_limit`]: a client that is stopped in a debugger for longer
    /// than that loses its connection when there is something to send.
    pub const STALL_LIMIT: Duration = Duration::from_secs(60);
}

/// What every handler shares.
struct Edge {
    control: Arc<ControlPlane>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    stream_ids: deno::StreamIds,
    stall_limit: Duration,
    editor: Option<String>,
    ssh: Option<SshEndpoint>,
    programs: deno::SandboxPrograms,
    huge_rights: deno::HugeRights,
    long_messages: deno::LongMessages,
    connections: Arc<Places<SandboxId>>,
}

/// All routes, over `control`.
pub fn router(control: Arc<ControlPlane>, config: EdgeConfig) -> Router {
    let edge = Arc::new(Edge {
        control,
        stream_ids: deno::StreamIds::new(config.entropy.as_ref()),
        programs: deno::SandboxPrograms::default(),
        huge_rights: deno::HugeRights::default(),
        long_messages: deno::LongMessages::default(),
        connections: Places::new(CONNECTIONS_MAX, CONNECTIONS_PER_SANDBOX_MAX),
        clock: config.clock,
        entropy: config.entropy,
        stall_limit: config.stall_limit,
        editor: config.editor,
        ssh: config.ssh,
    });
    Router::new()
        .route("/healthz", get(healthz))
        .merge(deno::routes())
        .merge(own::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(edge.clone(), trace::layer))
        .with_state(edge)
}

async fn healthz(State(edge): State<Arc<Edge>>) -> Response {
    match edge.control.readiness().await {
        Readiness::Ready => (StatusCode::OK, "ok").into_response(),
        Readiness::NotReady(reason) => {
            Reject::from(ApiError::new(ErrorCode::NotReady, reason)).into_response()
        }
    }
}

async fn no_such_route(uri: axum::http::Uri) -> Reject {
    ApiError::new(
        ErrorCode::RouteNotFound,
        format!("there is nothing at {}", uri.path()),
    )
    .into()
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Reject {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} does not take {method}", uri.path()),
    )
    .into()
}
