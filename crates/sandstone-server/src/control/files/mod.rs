//! What clients do with the files of a volume that no sandbox has.

mod path;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sandstone_api::{ApiError, DirectoryEntry, ErrorCode};
use sandstone_node_api::Chain;
use serde::Deserialize;

use super::error;
use super::maintenance::{
    Download, Incoming, Input, Maintenance, Outgoing, Tool, ToolError, Upload, download, incomplete,
};
use super::{ControlPlane, Principal};

use path::FilePath;

/// The program that works on the files. All of it, so that it fits the server it is started by.
const PROGRAM: &str = include_str!("files.py");

/// Longest first line of a `read`: 100,000 entries with names of 250 bytes.
const FIRST_LINE_MAX_BYTES: usize = 32 << 20;

/// Bytes of content that are passed on at once.
const PIECE_MAX_BYTES: usize = 64 << 10;

/// What is at a path.
#[derive(Debug)]
pub enum Content {
    /// A directory, with what is in it, by name.
    Directory(Vec<DirectoryEntry>),
    /// A regular file's content.
    File(Download),
}

/// The first line of a `read`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Directory(Vec<DirectoryEntry>),
    File,
}

impl ControlPlane {
    /// Reads a file, or lists a directory, of an unattached volume. Symbolic links are followed
    /// as if the volume were the root.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED`, `FILE_NOT_FOUND`, and those of
    /// starting a sandbox. A failure later breaks the content off.
    pub async fn read_path(
        self: &Arc<Self>,
        who: &Principal,
        volume: &str,
        path: &str,
    ) -> Result<Content, ApiError> {
        let path = FilePath::parse(path)?;
        let maintenance = self.open_volume(who, volume).await?;
        let mut tool = start(&maintenance, "read", &path, Input::None).await?;
        let Some((found, rest)) = begin_read(&mut tool, &path).await? else {
            // It ended before it said anything, and says why.
            self.end(maintenance, &path, tool.finish().await).await?;
            return Err(error::internal(path.as_str()));
        };
        match found {
            Found::Directory(entries) => {
                self.end(maintenance, &path, tool.finish().await).await?;
                Ok(Content::Directory(entries))
            }
            Found::File => {
                let (outgoing, content) = download(maintenance.agent());
                let name = format!("reading {path} of a volume");
                self.tasks.spawn(name, async move {
                    let sent = send_file(tool, rest, &outgoing).await;
                    // The client may want the volume as soon as it has the last byte.
                    let closed = maintenance.close().await;
                    match (sent, closed) {
                        (Ok(()), Ok(())) => {
                            // The client is told, or it is gone.
                            let _ = outgoing.finish().await;
                        }
                        (Err(error), _) => {
                            tracing::info!(error = %Chain(&error), "reading a file broke off");
                        }
                        (Ok(()), Err(error)) => {
                            tracing::warn!(%error, "reading a file broke off");
                        }
                    }
                });
                Ok(Content::File(content))
            }
        }
    }

    /// Writes a file of an unattached volume, whole or not at all, and makes its parents. Returns
    /// when it is on disk. A file that was there keeps owner and mode; what is new belongs to
    /// whom the directory above it belongs.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED`, `FILE_NOT_FOUND` when a parent
    /// is a file, `TIMED_OUT` when the client stalls, and those of starting a sandbox.
    pub async fn write_file(
        self: &Arc<Self>,
        who: &Principal,
        volume: &str,
        path: &str,
        content: Upload,
    ) -> Result<(), ApiError> {
        let mut content = Incoming::new(content);
        let path = FilePath::parse(path)?.below_root()?;
        let maintenance = self.open_volume(who, volume).await?;
        let mut tool = start(&maintenance, "write", &path, Input::Stream).await?;
        loop {
            match content.next().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    if write_piece(&mut tool, piece).await.is_err() {
                        // It says why when it is waited for.
                        break;
                    }
                }
                Ok(None) => {
                    let _ = tool.write(Bytes::from_static(&[0; 4])).await;
                    break;
                }
                Err(error) => return Err(incomplete(&error)),
            }
        }
        self.end(maintenance, &path, tool.finish().await).await
    }

    /// Removes a file, a link, or a directory with everything in it, of an unattached volume.
    /// Returns when that is on disk.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED`, `FILE_NOT_FOUND`, and those of
    /// starting a sandbox.
    pub async fn remove_file(
        self: &Arc<Self>,
        who: &Principal,
        volume: &str,
        path: &str,
    ) -> Result<(), ApiError> {
        let path = FilePath::parse(path)?.below_root()?;
        let maintenance = self.open_volume(who, volume).await?;
        let tool = start(&maintenance, "remove", &path, Input::None).await?;
        self.end(maintenance, &path, tool.finish().await).await
    }

    async fn open_volume(
        self: &Arc<Self>,
        who: &Principal,
        name: &str,
    ) -> Result<Maintenance, ApiError> {
        let volume = self.store.volume(who.organisation, name).await;
        let volume = volume.map_err(|error| error::of_store("the volume", error))?;
        self.open_image(who, volume.id.into()).await
    }

    /// Ends a sandbox, and says how what it did to `path` went.
    async fn end(
        &self,
        maintenance: Maintenance,
        path: &FilePath,
        outcome: Result<(), ToolError>,
    ) -> Result<(), ApiError> {
        let closed = maintenance.close().await;
        outcome.map_err(|error| explain(path, error))?;
        closed
    }
}

async fn start(
    maintenance: &Maintenance,
    verb: &str,
    path: &FilePath,
    input: Input,
) -> Result<Tool, ApiError> {
    let python = ["/usr/bin/python3", "-I", "-S", "-X", "utf8", "-c"];
    let command = [&python[..], &[PROGRAM, verb, path.as_str()]].concat();
    let tool = Tool::start(maintenance.agent(), &command, input).await;
    tool.map_err(|error| explain(path, error))
}

/// The first line, and what of the content came with it; nothing when there is no line.
async fn begin_read(tool: &mut Tool, path: &FilePath) -> Result<Option<(Found, Bytes)>, ApiError> {
    let mut line = BytesMut::new();
    loop {
        let searched = line.len();
        match tool.read().await.map_err(|error| explain(path, error))? {
            Some(piece) => line.extend_from_slice(&piece),
            None => return Ok(None),
        }
        if let Some(end) = line[searched..].iter().position(|byte| *byte == b'\n') {
            let first = line.split_to(searched + end + 1);
            return match serde_json::from_slice(&first) {
                Ok(found) => Ok(Some((found, line.freeze()))),
                Err(_) => Err(error::internal(path.as_str())),
            };
        }
        if line.len() > FIRST_LINE_MAX_BYTES {
            let refusal = refusal(path, "EOVERFLOW");
            return Err(refusal.unwrap_or_else(|| error::internal(path.as_str())));
        }
    }
}

async fn send_file(mut tool: Tool, rest: Bytes, to: &Outgoing) -> io::Result<()> {
    if !rest.is_empty() {
        to.send(rest).await?;
    }
    while let Some(piece) = tool.read().await? {
        to.send(piece).await?;
    }
    Ok(tool.finish().await?)
}

/// Passes a piece of a file on, after its length.
async fn write_piece(tool: &mut Tool, mut piece: Bytes) -> Result<(), ToolError> {
    while !piece.is_empty() {
        let part = piece.split_to(piece.len().min(PIECE_MAX_BYTES));
        // Fits, by the line above.
        let length = (part.len() as u32).to_be_bytes();
        tool.write(Bytes::copy_from_slice(&length)).await?;
        tool.write(part).await?;
    }
    Ok(())
}

/// What a client hears of a failure inside. The details of an unexpected one go to the log.
fn explain(path: &FilePath, error: ToolError) -> ApiError {
    if let ToolError::Failed { complaints, .. } = &error
        && let Some(name) = complaints
            .lines()
            .find_map(|line| line.strip_prefix("error "))
        && let Some(refusal) = refusal(path, name)
    {
        return refusal;
    }
    tracing::error!(error = %Chain(&error), "a file operation failed");
    match error {
        ToolError::Stalled => ApiError::new(
            ErrorCode::TimedOut,
            format!(
                "handling `{}` took too long",
                error::shortened(path.as_str())
            ),
        ),
        ToolError::Failed { .. } | ToolError::Agent(_) | ToolError::Stream(_) => {
            error::internal(path.as_str())
        }
    }
}

/// What a client hears of an error of the system that is not ours.
fn refusal(path: &FilePath, name: &str) -> Option<ApiError> {
    let shown = error::shortened(path.as_str());
    let (code, message) = match name {
        "ENOENT" => (ErrorCode::FileNotFound, format!("there is no `{shown}`")),
        "ENOTDIR" => (
            ErrorCode::FileNotFound,
            format!("a part of `{shown}` is not a directory"),
        ),
        "EISDIR" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` is a directory"),
        ),
        "EINVAL" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` is neither a regular file nor a directory"),
        ),
        "ELOOP" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` leads through too many symbolic links"),
        ),
        "ENAMETOOLONG" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` has a part of more than 255 bytes"),
        ),
        "EPERM" | "EACCES" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` is protected against changes"),
        ),
        "ENOSPC" => (
            ErrorCode::InvalidRequest,
            format!("the volume has no room for `{shown}`"),
        ),
        "EOVERFLOW" => (
            ErrorCode::InvalidRequest,
            format!("`{shown}` has more entries than can be listed"),
        ),
        _ => return None,
    };
    Some(ApiError::new(code, message))
}
