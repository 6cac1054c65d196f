//! The sandbox's environment variables.

use sandstone_protocol::message::{Answer, Request};
use serde_json::{Value, json};

use super::config::check_variable;
use super::error::{CallError, RemoteError};
use super::params::Params;
use super::rpc::unexpected;
use super::session::Session;

pub(super) async fn get(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let name = params.text("key")?;
    let request = Request::EnvGet { name };
    match session.call(request, "envget").await? {
        Answer::Variable(value) => Ok(json!(value)),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn set(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let name = params.text("key")?;
    let value = params.text("value")?;
    check_variable(&name, &value).map_err(|why| RemoteError::new("TypeError", why))?;
    let request = Request::EnvSet { name, value };
    session.done(request, "envset").await
}

pub(super) async fn delete(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let name = params.text("key")?;
    let request = Request::EnvDelete { name };
    session.done(request, "envdelete").await
}

pub(super) async fn all(session: &Session) -> Result<Value, CallError> {
    match session.call(Request::EnvAll, "envtoobject").await? {
        Answer::Variables(variables) => Ok(json!(variables)),
        other => Err(unexpected(&other)),
    }
}
