//! Files by path.

use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use jiff::Timestamp;
use sandstone_node_api::{AgentError, OutboundStream, StreamError};
use sandstone_protocol::message::{Answer, FileKind, Metadata, Request, WriteOptions};
use serde::Serialize;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::config::BASE64;
use super::error::{CallError, RemoteError};
use super::memory::Held;
use super::params::Params;
use super::rpc::{Done, unexpected};
use super::session::Session;
use super::uploads::{Purpose, UploadError, UploadReader};

/// How long the agent may take to say why it gave a stream up.
const REASON_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn read(
    session: &Session,
    mut params: Params,
) -> Result<(Value, Held), CallError> {
    let path = params.text("path")?;
    let operation = format!("readfile '{path}'");
    let (bytes, large) = read_bytes(session, path, &operation).await?;
    Ok((Value::String(BASE64.encode(bytes)), large))
}

pub(super) async fn read_text(
    session: &Session,
    mut params: Params,
) -> Result<(Value, Held), CallError> {
    let path = params.text("path")?;
    let operation = format!("readfile '{path}'");
    let (bytes, large) = read_bytes(session, path, &operation).await?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((Value::String(text), large)),
        Err(_) => Err(RemoteError::new(
            "InvalidData",
            format!("stream did not contain valid UTF-8: {operation}"),
        )
        .into()),
    }
}

async fn read_bytes(
    session: &Session,
    path: String,
    operation: &str,
) -> Result<(Vec<u8>, Held), CallError> {
    let limit = session.client.read_max_bytes();
    let mut large = Held::default();
    let mut stream = session.agent.inbound();
    let mut answer = std::pin::pin!(session.agent.call(Request::ReadFile {
        path,
        sink: stream.id(),
    }));
    let mut answered = false;
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            outcome = &mut answer, if !answered => match outcome {
                // The end of the stream came before this answer.
                Ok(Answer::Done) => answered = true,
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => return Err(RemoteError::from_agent(error, operation).into()),
            },
            () = large.overdue() => {
                let why = format!("it does not come: {operation}");
                return Err(RemoteError::new("TimedOut", why).with_code("ETIMEDOUT").into());
            }
            chunk = stream.next() => match chunk {
                Some(Ok(chunk)) if bytes.len() + chunk.len() > limit => {
                    return Err(RemoteError::too_long(session.client.message_max_bytes()).into());
                }
                Some(Ok(chunk)) => {
                    // While it waits the agent can send no more than the stream's window.
                    large.admit(session, bytes.len() + chunk.len(), operation).await?;
                    bytes.extend_from_slice(&chunk);
                }
                None => break,
                Some(Err(StreamError::Reset(Some(failure)))) => {
                    return Err(RemoteError::from_failure(&failure, operation).into());
                }
                Some(Err(error)) => {
                    return Err(RemoteError::new("Error", format!("{error}: {operation}")).into());
                }
            },
        }
    }
    Ok((bytes, large))
}

pub(super) async fn write(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let content = params.optional_bytes("content")?.map(Bytes::from);
    write_content(session, params, content).await
}

pub(super) async fn write_text(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let content = params.optional_text("content")?.map(Bytes::from);
    write_content(session, params, content).await
}

/// Where a file's content comes from.
enum Content {
    Whole(Bytes),
    Stream(UploadReader),
}

/// Why the content did not get through.
enum FeedError {
    Source(UploadError),
    Sandbox(StreamError),
}

async fn write_content(
    session: &Session,
    mut params: Params,
    content: Option<Bytes>,
) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let mut given = params.nested("options")?;
    let defaults = WriteOptions::default();
    let options = WriteOptions {
        append: given.optional_bool("append")?.unwrap_or(defaults.append),
        create: given.optional_bool("create")?.unwrap_or(defaults.create),
        create_new: given
            .optional_bool("createNew")?
            .unwrap_or(defaults.create_new),
        mode: given.optional_u32("mode")?,
    };
    let content = match (content, params.optional_number("contentStreamId")?) {
        (Some(content), _) => Content::Whole(content),
        (None, Some(id)) => Content::Stream(
            session
                .uploads
                .claim(id, Purpose::File)
                .ok_or_else(|| unknown_stream(id))?,
        ),
        // Says that `content` is missing.
        (None, None) => Content::Whole(params.text("content")?.into()),
    };
    let operation = format!("writefile '{path}'");
    let sink = session.agent.outbound();
    let mut answer = std::pin::pin!(session.agent.call(Request::WriteFile {
        path,
        source: sink.id(),
        options,
    }));
    let outcome = tokio::select! {
        // The request goes out first: bytes for a stream that the agent does not know are lost.
        biased;
        outcome = &mut answer => outcome,
        fed = feed(content, sink) => match fed {
            Ok(()) => answer.await,
            Err(FeedError::Source(error)) => return Err(source_error(error, &operation).into()),
            Err(FeedError::Sandbox(StreamError::Reset(Some(failure)))) => {
                Err(AgentError::Refused(failure))
            }
            Err(FeedError::Sandbox(error)) => tokio::time::timeout(REASON_LIMIT, answer)
                .await
                .unwrap_or_else(|_| Err(AgentError::Lost(error.to_string()))),
        },
    };
    match outcome {
        Ok(Answer::Done) => Ok(Value::Null),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(RemoteError::from_agent(error, &operation).into()),
    }
}

async fn feed(content: Content, mut sink: OutboundStream) -> Result<(), FeedError> {
    match content {
        Content::Whole(bytes) => sink.send(bytes).await.map_err(FeedError::Sandbox)?,
        Content::Stream(mut reader) => {
            while let Some(chunk) = reader.next().await {
                let chunk = chunk.map_err(FeedError::Source)?;
                sink.send(chunk).await.map_err(FeedError::Sandbox)?;
            }
        }
    }
    sink.finish().await.map_err(FeedError::Sandbox)
}

fn source_error(error: UploadError, operation: &str) -> RemoteError {
    match error {
        UploadError::Client(why) => RemoteError::new(
            "Error",
            format!("the content's stream failed: {why}: {operation}"),
        ),
        UploadError::Overflow => RemoteError::new(
            "Error",
            format!("the content came faster than the sandbox could write it: {operation}"),
        )
        .with_code("ENOBUFS"),
        UploadError::Closed => RemoteError::connection_closing("the connection has ended"),
    }
}

/// A call names a stream that the client did not begin.
pub(super) fn unknown_stream(id: u64) -> RemoteError {
    RemoteError::new(
        "BadResource",
        format!("there is no stream {id}, or it is in use"),
    )
    .with_code("EBADF")
}

/// An entry of a directory as the clients know it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    name: &'a str,
    is_file: bool,
    is_directory: bool,
    is_symlink: bool,
}

/// What the text of an [`Entry`] takes beside its name, bytes.
const ENTRY_TEXT_BYTES: usize = 80;

pub(super) async fn read_dir(session: &Session, mut params: Params) -> Result<Done, CallError> {
    let path = params.text("path")?;
    let operation = format!("readdir '{path}'");
    let entries = match session.call(Request::ReadDir { path }, &operation).await? {
        Answer::Entries(entries) => entries,
        other => return Err(unexpected(&other)),
    };
    let bytes = entries.iter().map(|entry| entry.name.len()).sum::<usize>()
        + ENTRY_TEXT_BYTES * entries.len();
    let mut held = Held::default();
    held.admit(session, bytes, &operation).await?;
    let write = move || {
        let entries = entries.iter().map(|entry| Entry {
            name: &entry.name,
            is_file: entry.kind == FileKind::File,
            is_directory: entry.kind == FileKind::Directory,
            is_symlink: entry.kind == FileKind::Symlink,
        });
        to_raw_value(&entries.collect::<Vec<_>>()).ok()
    };
    let text = match held.is_large() {
        true => spawn_blocking(write).await.ok().flatten(),
        false => write(),
    };
    match text {
        Some(text) => Ok(Done::json(text, held)),
        None => Err(RemoteError::new("Error", format!("cannot tell it: {operation}")).into()),
    }
}

pub(super) async fn make_dir(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let mut options = params.nested("options")?;
    let operation = format!("mkdir '{path}'");
    let request = Request::MakeDir {
        path,
        recursive: options.optional_bool("recursive")?.unwrap_or(false),
        mode: options.optional_u32("mode")?,
    };
    session.done(request, &operation).await
}

pub(super) async fn remove(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let recursive = params
        .nested("options")?
        .optional_bool("recursive")?
        .unwrap_or(false);
    let operation = format!("remove '{path}'");
    let request = Request::Remove { path, recursive };
    session.done(request, &operation).await
}

pub(super) async fn stat(
    session: &Session,
    mut params: Params,
    follow: bool,
) -> Result<Value, CallError> {
    let path = params.text("path")?;
    let operation = format!("{} '{path}'", if follow { "stat" } else { "lstat" });
    let request = Request::Stat { path, follow };
    match session.call(request, &operation).await? {
        Answer::Metadata(metadata) => Ok(file_info(&metadata)),
        other => Err(unexpected(&other)),
    }
}

/// A `Deno.FileInfo`: JavaScript demands every key, and dates that are not null.
pub(super) fn file_info(file: &Metadata) -> Value {
    json!({
        "isFile": file.kind == FileKind::File,
        "isDirectory": file.kind == FileKind::Directory,
        "isSymlink": file.kind == FileKind::Symlink,
        "isBlockDevice": file.kind == FileKind::BlockDevice,
        "isCharDevice": file.kind == FileKind::CharDevice,
        "isFifo": file.kind == FileKind::Fifo,
        "isSocket": file.kind == FileKind::Socket,
        "size": file.size,
        "mode": file.mode,
        "uid": file.uid,
        "gid": file.gid,
        "nlink": file.nlink,
        "ino": file.inode,
        "dev": file.device,
        "rdev": file.rdev,
        "blksize": file.block_size,
        "blocks": file.blocks,
        "atime": date(file.accessed_ms),
        "mtime": date(file.modified_ms),
        "ctime": date(file.changed_ms),
        "birthtime": date(file.created_ms.unwrap_or(file.changed_ms)),
    })
}

/// As JavaScript's `toISOString` writes it. A time that no calendar holds, which the agent could
/// make up, becomes the epoch.
fn date(millis: i64) -> String {
    Timestamp::from_millisecond(millis)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_javascript() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(date(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(date(i64::MAX), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn file_info_has_every_key_and_no_null() {
        let info = file_info(&Metadata {
            kind: FileKind::Directory,
            size: 4096,
            mode: 0o40_755,
            uid: 1000,
            gid: 1000,
            nlink: 2,
            inode: u64::MAX,
            device: 1,
            rdev: 0,
            block_size: 4096,
            blocks: 8,
            accessed_ms: 1,
            modified_ms: 2,
            changed_ms: 3,
            created_ms: None,
        });
        let object = info.as_object().unwrap();
        assert_eq!(object.len(), 21);
        assert!(object.values().all(|value| !value.is_null()));
        assert_eq!(object["birthtime"], object["ctime"]);
        assert_eq!(object["isDirectory"], true);
    }
}
