//! Calls on open files. The table of them, and their order, are in [`super::handles`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine;
use sandstone_protocol::message::{
    Answer, FileKind, HANDLE_BYTES_MAX, HandleOperation, OpenOptions, Request, SeekOrigin,
};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::client::Client;
use super::config::BASE64;
use super::error::{CallError, RemoteError};
use super::files::file_info;
use super::handles::{self, OpenFile, Turn};
use super::memory::Held;
use super::params::Params;
use super::rpc::unexpected;
use super::session::Session;

/// Most bytes of one read or write that may wait for ever, and so takes no room from others. A
/// pipe holds no more.
const BLOCKING_BYTES_MAX: usize = 64 << 10;

pub(super) async fn open(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let options = if params.is_given("options") {
        let mut given = params.nested("options")?;
        let mut flag = |key| Ok::<_, CallError>(given.optional_bool(key)?.unwrap_or(false));
        let options = OpenOptions {
            read: flag("read")?,
            write: flag("write")?,
            append: flag("append")?,
            truncate: flag("truncate")?,
            create: flag("create")?,
            create_new: flag("createNew")?,
            mode: given.optional_u32("mode")?,
        };
        check(options)?;
        options
    } else {
        OpenOptions {
            read: true,
            ..OpenOptions::default()
        }
    };
    open_file(session, path, options).await
}

pub(super) async fn create(session: &Arc<Session>, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let options = OpenOptions {
        read: true,
        write: true,
        truncate: true,
        create: true,
        ..OpenOptions::default()
    };
    open_file(session, path, options).await
}

/// Refuses what Deno refuses.
fn check(options: OpenOptions) -> Result<(), RemoteError> {
    let writes = options.write || options.append;
    let wrong = if !options.read && !writes {
        "at least one of 'read', 'write' and 'append' must be true"
    } else if options.truncate && !options.write {
        "'truncate' needs 'write'"
    } else if options.truncate && options.append {
        "'truncate' and 'append' exclude each other"
    } else if (options.create || options.create_new) && !writes {
        "'create' and 'createNew' need 'write' or 'append'"
    } else {
        return Ok(());
    };
    Err(RemoteError::new("TypeError", wrong).with_code("EINVAL"))
}

async fn open_file(
    session: &Session,
    path: String,
    options: OpenOptions,
) -> Result<Value, CallError> {
    let opening = session.handles.open(&session.agent, &path)?;
    let operation = format!("open '{path}'");
    let request = Request::Open {
        handle: opening.file.handle,
        path,
        options,
    };
    match session.call(request, &operation).await? {
        Answer::Opened { kind } => {
            let blocks = !matches!(kind, FileKind::File | FileKind::Directory);
            Ok(json!({"fileHandleId": opening.done(blocks)}))
        }
        other => Err(unexpected(&other)),
    }
}

/// The turn of a call, when it has come. Without one the client named no open file.
async fn turn(turn: Option<Turn>) -> Result<Turn, CallError> {
    let turn = turn.ok_or_else(not_open)?;
    turn.come().await?;
    Ok(turn)
}

fn not_open() -> RemoteError {
    RemoteError::new(
        "BadResource",
        "Bad file descriptor (os error 9): the file is not open",
    )
    .with_code("EBADF")
}

/// Asks the agent, and gives up when the client closes a file that makes the agent wait.
async fn operate(
    session: &Session,
    file: &OpenFile,
    name: &str,
    operation: HandleOperation,
) -> Result<Answer, CallError> {
    let waits =
        file.blocks.load(Ordering::Relaxed) || matches!(operation, HandleOperation::Lock { .. });
    let closed = async {
        if waits {
            file.closing.cancelled().await;
        } else {
            std::future::pending().await
        }
    };
    let request = Request::Handle {
        handle: file.handle,
        operation,
    };
    let operation = format!("{name} '{}'", file.path);
    tokio::select! {
        biased;
        answer = session.call(request, &operation) => answer,
        () = closed => Err(not_open().into()),
    }
}

async fn operate_done(
    session: &Session,
    file: &OpenFile,
    name: &str,
    operation: HandleOperation,
) -> Result<Value, CallError> {
    match operate(session, file, name, operation).await? {
        Answer::Done => Ok(Value::Null),
        other => Err(unexpected(&other)),
    }
}

/// How many of `wanted` bytes go at once, and the room that they take.
async fn room(
    session: &Session,
    file: &OpenFile,
    wanted: usize,
) -> (u32, Option<OwnedSemaphorePermit>) {
    let is_blocking = file.blocks.load(Ordering::Relaxed);
    let most = if is_blocking {
        BLOCKING_BYTES_MAX
    } else {
        HANDLE_BYTES_MAX
    };
    let bytes = u32::try_from(wanted.min(most)).unwrap_or(u32::MAX);
    if is_blocking {
        return (bytes, None);
    }
    let room = session.handles.room.clone().acquire_many_owned(bytes).await;
    (bytes, room.ok())
}

pub(super) async fn close(
    session: &Arc<Session>,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    // Also when the client does not wait for it: the session does not know the file any more.
    let closing = Closing(session, Some(queued.ok_or_else(not_open)?));
    let Some(turn) = &closing.1 else {
        return Err(not_open().into());
    };
    turn.come().await?;
    let request = Request::Close {
        handles: vec![turn.file.handle],
    };
    let operation = format!("close '{}'", turn.file.path);
    let outcome = session.done(request, &operation).await;
    closing.done();
    outcome
}

/// A file that is to be closed, whatever becomes of the call.
struct Closing<'a>(&'a Session, Option<Turn>);

impl Closing<'_> {
    fn done(mut self) {
        self.1 = None;
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if let Some(turn) = &self.1 {
            handles::tell(&self.0.agent, vec![turn.file.handle]);
        }
    }
}

pub(super) async fn read(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<(Value, Held), CallError> {
    let wanted = usize::try_from(params.number("length")?).unwrap_or(usize::MAX);
    let turn = turn(queued).await?;
    let (length, room) = room(session, &turn.file, wanted).await;
    let operation = HandleOperation::Read { length };
    match operate(session, &turn.file, "read", operation).await? {
        Answer::Bytes(bytes) if bytes.len() <= length as usize => {
            // JavaScript would read for ever without null at the end; Python cannot take it.
            let is_end = bytes.is_empty() && wanted > 0;
            let data = if is_end && session.client == Client::JavaScript {
                Value::Null
            } else {
                Value::String(BASE64.encode(bytes))
            };
            Ok((json!({ "data": data }), room.into()))
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn write(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let data = params.bytes("data")?;
    let turn = turn(queued).await?;
    // All of it, though less would be allowed: few programs look at the result.
    let mut written = 0;
    while written < data.len() {
        let rest = &data[written..];
        let (length, _room) = room(session, &turn.file, rest.len()).await;
        let operation = HandleOperation::Write {
            bytes: rest[..length as usize].to_vec(),
        };
        match operate(session, &turn.file, "write", operation).await {
            Ok(Answer::Written { bytes }) if (1..=length).contains(&bytes) => {
                written += bytes as usize;
                if bytes < length {
                    break;
                }
            }
            Ok(other) => return Err(unexpected(&other)),
            // The next write tells the error of one that got on before it.
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(json!({"bytesWritten": written}))
}

pub(super) async fn seek(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let offset = params.offset("offset")?;
    let origin = match params.number("whence")? {
        0 => SeekOrigin::Start,
        1 => SeekOrigin::Current,
        2 => SeekOrigin::End,
        _ => return Err(params.wrong("whence", "0, 1 or 2", "another number")),
    };
    let turn = turn(queued).await?;
    let operation = HandleOperation::Seek { offset, origin };
    match operate(session, &turn.file, "seek", operation).await? {
        Answer::Position(position) => Ok(json!({ "position": position })),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn stat(session: &Arc<Session>, queued: Option<Turn>) -> Result<Value, CallError> {
    let turn = turn(queued).await?;
    match operate(session, &turn.file, "stat", HandleOperation::Stat).await? {
        Answer::Metadata(metadata) => Ok(file_info(&metadata)),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn sync(
    session: &Arc<Session>,
    queued: Option<Turn>,
    data_only: bool,
) -> Result<Value, CallError> {
    let turn = turn(queued).await?;
    let operation = HandleOperation::Sync { data_only };
    operate_done(session, &turn.file, "sync", operation).await
}

/// JavaScript calls the length `len`, Python `size`.
pub(super) async fn truncate(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let length = match params.optional_number("len")? {
        Some(length) => length,
        None => params.optional_number("size")?.unwrap_or(0),
    };
    let turn = turn(queued).await?;
    let operation = HandleOperation::Truncate { length };
    operate_done(session, &turn.file, "truncate", operation).await
}

pub(super) async fn lock(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let exclusive = params.optional_bool("exclusive")?.unwrap_or(false);
    drop(params);
    let turn = turn(queued).await?;
    let mut wait = LockWait {
        session,
        file: &turn.file,
        is_over: false,
    };
    let operation = HandleOperation::Lock { exclusive };
    let outcome = operate_done(session, &turn.file, "lock", operation).await;
    // Closing the file ends the wait in the agent, too.
    wait.is_over = true;
    outcome
}

/// A lock that is asked for: given up if the call is aborted.
struct LockWait<'a> {
    session: &'a Session,
    file: &'a OpenFile,
    is_over: bool,
}

impl Drop for LockWait<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let request = Request::Handle {
                handle: self.file.handle,
                operation: HandleOperation::Unlock,
            };
            handles::detach(&self.session.agent, request);
        }
    }
}

pub(super) async fn unlock(
    session: &Arc<Session>,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let turn = turn(queued).await?;
    operate_done(session, &turn.file, "unlock", HandleOperation::Unlock).await
}

pub(super) async fn utime(
    session: &Arc<Session>,
    mut params: Params,
    queued: Option<Turn>,
) -> Result<Value, CallError> {
    let (accessed, modified) = (params.time("atime")?, params.time("mtime")?);
    let turn = turn(queued).await?;
    let operation = HandleOperation::SetTimes { accessed, modified };
    operate_done(session, &turn.file, "utime", operation).await
}
