//! HTTP requests from inside a sandbox.

use std::sync::Arc;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::rpc::Done;
use super::session::Session;

pub(super) async fn fetch(_session: &Arc<Session>, _params: Params) -> Result<Done, CallError> {
    Err(RemoteError::not_supported("fetch").into())
}
