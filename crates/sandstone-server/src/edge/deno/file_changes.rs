//! Changes to files by path.

use std::sync::Arc;

use sandstone_protocol::message::{Answer, FileChange, MakeTemporary, Request};
use serde_json::{Value, json};

use super::error::CallError;
use super::params::Params;
use super::rpc::unexpected;
use super::session::Session;

async fn change(session: &Session, change: FileChange, what: &str) -> Result<Value, CallError> {
    session.done(Request::Change(change), what).await
}

pub(super) async fn rename(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let (from, to) = (params.text("oldPath")?, params.text("newPath")?);
    let what = format!("rename '{from}' -> '{to}'");
    change(session, FileChange::Rename { from, to }, &what).await
}

pub(super) async fn copy(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let (from, to) = (params.text("fromPath")?, params.text("toPath")?);
    let what = format!("copy '{from}' -> '{to}'");
    change(session, FileChange::Copy { from, to }, &what).await
}

pub(super) async fn link(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let (target, path) = (params.text("target")?, params.text("path")?);
    let what = format!("link '{target}' -> '{path}'");
    change(session, FileChange::Link { target, path }, &what).await
}

/// The option `type` has a meaning on other systems only.
pub(super) async fn symlink(
    session: &Arc<Session>,
    mut params: Params,
) -> Result<Value, CallError> {
    let (target, path) = (params.text("target")?, params.text("path")?);
    let what = format!("symlink '{target}' -> '{path}'");
    change(session, FileChange::Symlink { target, path }, &what).await
}

pub(super) async fn truncate(
    session: &Arc<Session>,
    mut params: Params,
) -> Result<Value, CallError> {
    let path = params.text("name")?;
    let length = params.optional_number("length")?.unwrap_or(0);
    let what = format!("truncate '{path}'");
    change(session, FileChange::Truncate { path, length }, &what).await
}

pub(super) async fn chmod(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let (path, mode) = (params.text("path")?, params.u32("mode")?);
    let what = format!("chmod '{path}'");
    change(session, FileChange::SetMode { path, mode }, &what).await
}

pub(super) async fn chown(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let (uid, gid) = (params.optional_u32("uid")?, params.optional_u32("gid")?);
    let what = format!("chown '{path}'");
    change(session, FileChange::SetOwner { path, uid, gid }, &what).await
}

pub(super) async fn utime(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let (accessed, modified) = (params.time("atime")?, params.time("mtime")?);
    let what = format!("utime '{path}'");
    let wanted = FileChange::SetTimes {
        path,
        accessed,
        modified,
    };
    change(session, wanted, &what).await
}

pub(super) async fn read_link(
    session: &Arc<Session>,
    mut params: Params,
) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let what = format!("readlink '{path}'");
    told_path(session, Request::ReadLink { path }, &what).await
}

pub(super) async fn real_path(
    session: &Arc<Session>,
    mut params: Params,
) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let what = format!("realpath '{path}'");
    told_path(session, Request::RealPath { path }, &what).await
}

pub(super) async fn umask(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let mask = params.optional_u32("mask")?;
    match session.call(Request::Umask { mask }, "umask").await? {
        Answer::Umask(before) => Ok(json!(before)),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn make_temp_dir(
    session: &Arc<Session>,
    params: Params,
) -> Result<Value, CallError> {
    make_temporary(session, params, true, "maketempdir").await
}

pub(super) async fn make_temp_file(
    session: &Arc<Session>,
    params: Params,
) -> Result<Value, CallError> {
    make_temporary(session, params, false, "maketempfile").await
}

async fn make_temporary(
    session: &Session,
    mut params: Params,
    directory: bool,
    what: &str,
) -> Result<Value, CallError> {
    let mut options = params.nested("options")?;
    let parent = options.optional_text("dir")?;
    let mut seed = [0; 8];
    session.edge.entropy.fill(&mut seed);
    let what = format!("{what} '{}'", parent.as_deref().unwrap_or("/tmp"));
    let request = MakeTemporary {
        directory,
        parent,
        prefix: options.optional_text("prefix")?.unwrap_or_default(),
        suffix: options.optional_text("suffix")?.unwrap_or_default(),
        seed: u64::from_le_bytes(seed),
    };
    told_path(session, Request::MakeTemporary(request), &what).await
}

async fn told_path(session: &Session, request: Request, what: &str) -> Result<Value, CallError> {
    match session.call(request, what).await? {
        Answer::Path(path) => Ok(Value::String(path)),
        other => Err(unexpected(&other)),
    }
}
