//! Walking trees and expanding globs.
//!
//! ```text
//! client               edge                       agent
//!   │ walk ───────────────► Walk{sink: s} ──────────►│
//!   │◄────── {streamId} ────│◄──────── Done ──────────│  the root is there
//!   │   (a little later)    │                         │  trap 4
//!   │◄─ start, enqueue … ───│◄──────── Data s ────────│  one entry in each message
//!   │◄──── end or error ────│◄─── End or Reset s ─────│
//! ```
//!
//! Python's SDK hands the answer itself to its user, so it gets the list instead of a stream.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use sandstone_node_api::{InboundStream, StreamError};
use sandstone_protocol::message::{
    self, Answer, FileKind, GlobOptions, Request, WALK_ENTRY_MAX_BYTES, WalkEntry, WalkOptions,
};
use serde_json::{Value, json};

use super::client::Client;
use super::error::{CallError, RemoteError};
use super::params::Params;
use super::rpc::{Done, unexpected};
use super::session::Session;
use super::streams::Download;

/// Bytes of a list's envelope.
const ENVELOPE_BYTES: usize = 1024;

/// Walks of one session that are under way at once; others wait.
pub(super) const WALKS_MAX: usize = 16;

pub(super) async fn walk(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let path = params.text("path")?;
    let options = walk_options(&mut options(params)?)?;
    let operation = format!("walk '{path}'");
    let request = |sink| Request::Walk {
        path,
        options,
        sink,
    };
    let entries = Entries::begin(session, request, operation).await?;
    answer(session, entries, walk_entry).await
}

pub(super) async fn expand_glob(
    session: &Arc<Session>,
    mut params: Params,
) -> Result<Done, CallError> {
    let glob = params.text("glob")?;
    let options = glob_options(&mut options(params)?)?;
    let operation = format!("expandglob '{glob}'");
    let request = |sink| Request::ExpandGlob {
        glob,
        options,
        sink,
    };
    let entries = Entries::begin(session, request, operation).await?;
    answer(session, entries, |entry| Value::String(entry.path)).await
}

/// JavaScript sends options among the parameters, Python apart.
fn options(mut params: Params) -> Result<Params, CallError> {
    if params.is_given("options") {
        params.nested("options")
    } else {
        Ok(params)
    }
}

fn walk_options(given: &mut Params) -> Result<WalkOptions, CallError> {
    let or = |value: Option<bool>, default| value.unwrap_or(default);
    let options = WalkOptions {
        max_depth: None,
        include_files: or(given.optional_bool("includeFiles")?, true),
        include_directories: or(given.optional_bool("includeDirs")?, true),
        include_symlinks: or(given.optional_bool("includeSymlinks")?, true),
        follow_symlinks: or(given.optional_bool("followSymlinks")?, false),
        canonicalize: or(given.optional_bool("canonicalize")?, true),
        extensions: given.optional_texts("exts")?,
        matches: given.optional_patterns("match")?,
        skip: given.optional_patterns("skip")?.unwrap_or_default(),
    };
    Ok(match given.optional_float("maxDepth")? {
        None => options,
        // A depth below zero leaves out the root itself.
        Some(depth) if depth < 0.0 => WalkOptions {
            max_depth: Some(0),
            include_directories: false,
            ..options
        },
        // Converting clamps what is too large.
        Some(depth) => WalkOptions {
            max_depth: Some(depth as u32),
            ..options
        },
    })
}

fn glob_options(given: &mut Params) -> Result<GlobOptions, CallError> {
    let or = |value: Option<bool>, default| value.unwrap_or(default);
    Ok(GlobOptions {
        root: given.optional_text("root")?,
        exclude: given.texts("exclude")?,
        include_directories: or(given.optional_bool("includeDirs")?, true),
        follow_symlinks: or(given.optional_bool("followSymlinks")?, false),
        canonicalize: or(given.optional_bool("canonicalize")?, true),
        extended: or(given.optional_bool("extended")?, true),
        globstar: or(given.optional_bool("globstar")?, true),
        case_insensitive: or(given.optional_bool("caseInsensitive")?, false),
    })
}

fn walk_entry(entry: WalkEntry) -> Value {
    json!({
        "path": entry.path,
        "name": entry.name,
        "isFile": entry.kind == FileKind::File,
        "isDirectory": entry.kind == FileKind::Directory,
        "isSymlink": entry.kind == FileKind::Symlink,
    })
}

async fn answer(
    session: &Arc<Session>,
    entries: Entries,
    in_list: fn(WalkEntry) -> Value,
) -> Result<Done, CallError> {
    if session.client == Client::Python {
        return Ok(Done::new(list(session, entries, in_list).await?));
    }
    let download = session.open_download();
    let answer = json!({"streamId": download.id});
    Ok(Done::new(answer).then(move |session| {
        let session = session.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = session.ended.cancelled() => {}
                // Dropping the entries ends the walk.
                () = download.cancelled.cancelled() => {}
                () = send(&session, &download, entries) => {}
            }
            session.downloads.forget(download.id);
        });
    }))
}

/// Collects what fits into one message (trap 7).
async fn list(
    session: &Session,
    mut entries: Entries,
    in_list: fn(WalkEntry) -> Value,
) -> Result<Value, CallError> {
    let limit = session.client.message_max_bytes();
    let mut bytes = ENVELOPE_BYTES;
    let mut list = Vec::new();
    while let Some(entry) = entries.next().await? {
        let entry = in_list(entry);
        bytes += entry.to_string().len() + 1;
        if bytes > limit {
            return Err(RemoteError::new(
                "RangeError",
                format!(
                    "more entries than the {limit} bytes hold that fit into one message to this \
                     client; ask for parts of the tree: {}",
                    entries.operation
                ),
            )
            .with_code("EMSGSIZE")
            .into());
        }
        list.push(entry);
    }
    Ok(Value::Array(list))
}

/// Sends entries until their end. When the socket is gone nobody waits for them.
async fn send(session: &Session, download: &Download, mut entries: Entries) {
    // Traps 2 and 4.
    session.until_picked_up().await;
    if download.start().await.is_err() {
        return;
    }
    loop {
        let sent = match entries.next().await {
            Ok(Some(entry)) => {
                let text = walk_entry(entry).to_string();
                download.enqueue_whole(text.as_bytes()).await
            }
            Ok(None) => {
                let _ = download.end().await;
                return;
            }
            Err(error) => {
                let _ = download.error(&error).await;
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// What a walk finds, as it comes from the agent.
struct Entries {
    stream: InboundStream,
    buffer: BytesMut,
    operation: String,
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Entries {
    async fn begin(
        session: &Session,
        request: impl FnOnce(u32) -> Request,
        operation: String,
    ) -> Result<Self, CallError> {
        let permit = session.walks.clone().acquire_owned().await.ok();
        let stream = session.agent.inbound();
        match session.call(request(stream.id()), &operation).await? {
            Answer::Done => Ok(Self {
                stream,
                buffer: BytesMut::new(),
                operation,
                _permit: permit,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// The next one; nothing at the end.
    async fn next(&mut self) -> Result<Option<WalkEntry>, RemoteError> {
        loop {
            if let Some(entry) = self.take()? {
                return Ok(Some(entry));
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.nonsense()),
                Some(Err(StreamError::Reset(Some(failure)))) => {
                    return Err(RemoteError::from_failure(&failure, &self.operation));
                }
                Some(Err(error)) => {
                    let message = format!("{error}: {}", self.operation);
                    return Err(RemoteError::new("Error", message));
                }
            }
        }
    }

    /// The next one of those that are here.
    fn take(&mut self) -> Result<Option<WalkEntry>, RemoteError> {
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > WALK_ENTRY_MAX_BYTES {
            return Err(self.nonsense());
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let bytes = self.buffer.split_to(length);
        message::decode("walk entry", &bytes)
            .map(Some)
            .map_err(|_| self.nonsense())
    }

    fn nonsense(&self) -> RemoteError {
        RemoteError::new(
            "Error",
            format!("the sandbox sent no sense: {}", self.operation),
        )
    }
}
