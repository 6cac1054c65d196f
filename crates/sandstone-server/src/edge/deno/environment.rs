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
    match call(session, Request::EnvGet { name }, "envget").await? {
        Answer::Variable(value) => Ok(json!(value)),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn set(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let name = params.text("key")?;
    let value = params.text("value")?;
    check_variable(&name, &value).map_err(|why| RemoteError::new("TypeError", why))?;
    done(call(session, Request::EnvSet { name, value }, "envset").await?)
}

pub(super) async fn delete(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let name = params.text("key")?;
    done(call(session, Request::EnvDelete { name }, "envdelete").await?)
}

pub(super) async fn all(session: &Session) -> Result<Value, CallError> {
    match call(session, Request::EnvAll, "envtoobject").await? {
        Answer::Variables(variables) => Ok(json!(variables)),
        other => Err(unexpected(&other)),
    }
}

async fn call(session: &Session, request: Request, operation: &str) -> Result<Answer, CallError> {
    session
        .agent
        .call(request)
        .await
        .map_err(|error| RemoteError::from_agent(error, operation).into())
}

fn done(answer: Answer) -> Result<Value, CallError> {
    match answer {
        Answer::Done => Ok(Value::Null),
        other => Err(unexpected(&other)),
    }
}
