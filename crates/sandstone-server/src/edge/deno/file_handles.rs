//! Open files.

use std::sync::Arc;

use serde_json::Value;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::session::Session;

pub(super) async fn open(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("open").into())
}

pub(super) async fn create(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("create").into())
}

pub(super) async fn close(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileClose").into())
}

pub(super) async fn read(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileRead").into())
}

pub(super) async fn write(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileWrite").into())
}

pub(super) async fn seek(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileSeek").into())
}

pub(super) async fn stat(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileStat").into())
}

pub(super) async fn sync(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileSync").into())
}

pub(super) async fn sync_data(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileSyncData").into())
}

pub(super) async fn truncate(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileTruncate").into())
}

pub(super) async fn lock(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileLock").into())
}

pub(super) async fn unlock(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileUnlock").into())
}

pub(super) async fn utime(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("fileUtime").into())
}
