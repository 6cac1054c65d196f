//! Deno programs and REPLs.

use std::sync::Arc;

use serde_json::Value;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::rpc::Done;
use super::session::Session;

pub(super) async fn run(_session: &Arc<Session>, _params: Params) -> Result<Done, CallError> {
    Err(RemoteError::not_supported("spawnDeno").into())
}

pub(super) async fn http_wait(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("denoHttpWait").into())
}

pub(super) async fn repl(_session: &Arc<Session>, _params: Params) -> Result<Done, CallError> {
    Err(RemoteError::not_supported("spawnDenoRepl").into())
}

pub(super) async fn repl_eval(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("denoReplEval").into())
}

pub(super) async fn repl_call(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("denoReplCall").into())
}

pub(super) async fn repl_close(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("denoReplClose").into())
}
