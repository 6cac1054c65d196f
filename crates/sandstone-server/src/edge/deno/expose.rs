//! Names under which servers in a sandbox can be reached.

use std::sync::Arc;

use serde_json::Value;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::session::Session;

pub(super) async fn bind(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("exposeHttp").into())
}
