//! Names under which servers in a sandbox can be reached. An SDK first asks for one over REST, then
//! binds it over its socket, and hands out `https://` and the domain (trap 14).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use sandstone_api::{ApiError, ErrorCode, SandboxId};
use sandstone_core::ExposureTarget;
use serde_json::{Value, json};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Fields, Name, WantedTarget, exposure_target, sandbox_id};
use super::super::reply::{Reject, read_optional_object};
use super::error::{CallError, RemoteError};
use super::params::Params;
use super::session::Session;
use crate::control::Principal;

/// Issues a name. Python says here already where it is to lead, JavaScript does not.
pub(super) async fn http(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<Value>, Reject> {
    let id = sandbox_id(&name)?;
    let target = Fields::from(read_optional_object(body).await?).optional_exposure_target()?;
    let target = match target {
        Some(target) => Some(resolve(&edge, &who, id, target).await?),
        None => None,
    };
    let exposure = edge.control.expose(&who, id, target).await?;
    Ok(Json(json!({ "domain": exposure.domain })))
}

/// Lets a name lead to a port, or to the HTTP server of a process.
pub(super) async fn bind(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let domain = params.text("domain")?;
    let port = params.optional_number("port")?;
    let pid = params.optional_number("pid")?;
    let Session {
        edge, who, sandbox, ..
    } = &**session;
    let target = exposure_target(port, pid).and_then(|target| {
        target.ok_or_else(|| ApiError::invalid_field("port", "missing", "a port or a pid"))
    });
    let target = target.map_err(|error| remote(&error))?;
    let target = resolve(edge, who, *sandbox, target).await;
    let target = target.map_err(|error| remote(&error))?;
    let bound = edge.control.bind(who, *sandbox, &domain, target).await;
    bound.map_err(|error| remote(&error))?;
    Ok(Value::Null)
}

/// Finds the HTTP server of a process. Only Deno programs that the SDK started have one that can
/// be found, and only their owner learns whether they have.
pub(in crate::edge) async fn resolve(
    edge: &Edge,
    who: &Principal,
    sandbox: SandboxId,
    target: WantedTarget,
) -> Result<ExposureTarget, ApiError> {
    match target {
        WantedTarget::Port(port) => Ok(ExposureTarget::Port(port)),
        WantedTarget::Process(pid) => {
            edge.control.agent(who, sandbox).await?;
            let socket = edge.programs.of(sandbox).http_socket(pid);
            let socket = socket.ok_or_else(|| {
                let message = format!("process {pid} of sandbox {sandbox} has no HTTP server");
                ApiError::new(ErrorCode::NotListening, message)
                    .with_hint("Only programs of `deno.run` have one; expose others by their port.")
            })?;
            Ok(ExposureTarget::Process { pid, socket })
        }
    }
}

/// What the API refuses, for a caller inside a socket.
fn remote(error: &ApiError) -> RemoteError {
    RemoteError::new("Error", &error.message).with_code(error.code.as_str())
}
