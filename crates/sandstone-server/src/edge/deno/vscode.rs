//! The editor.

use std::sync::Arc;

use serde_json::Value;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::session::Session;

pub(super) async fn start(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("vscode").into())
}
