//! Changes to files by path.

use std::sync::Arc;

use serde_json::Value;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::session::Session;

pub(super) async fn rename(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("rename").into())
}

pub(super) async fn copy(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("copyFile").into())
}

pub(super) async fn link(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("link").into())
}

pub(super) async fn symlink(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("symlink").into())
}

pub(super) async fn read_link(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("readLink").into())
}

pub(super) async fn real_path(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("realPath").into())
}

pub(super) async fn truncate(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("truncate").into())
}

pub(super) async fn chmod(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("chmod").into())
}

pub(super) async fn chown(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("chown").into())
}

pub(super) async fn utime(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("utime").into())
}

pub(super) async fn umask(_session: &Arc<Session>, _params: Params) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("umask").into())
}

pub(super) async fn make_temp_dir(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("makeTempDir").into())
}

pub(super) async fn make_temp_file(
    _session: &Arc<Session>,
    _params: Params,
) -> Result<Value, CallError> {
    Err(RemoteError::not_supported("makeTempFile").into())
}
