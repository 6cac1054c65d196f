//! Walking trees and expanding globs.

use std::sync::Arc;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::rpc::Done;
use super::session::Session;

pub(super) async fn walk(_session: &Arc<Session>, _params: Params) -> Result<Done, CallError> {
    Err(RemoteError::not_supported("walk").into())
}

pub(super) async fn expand_glob(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Done, CallError> {
    Err(RemoteError::not_supported("expandGlob").into())
}
