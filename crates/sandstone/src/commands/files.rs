//! Files of a volume that no sandbox has: `sandstone volumes ls|cat|put|rm`.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use sandstone_api::DirectoryEntry;
use serde::Deserialize;
use ureq::http::{Method, header};
use ureq::{Body, http::Response};

use super::{Session, archive, parsed, volumes};
use crate::client::{Failure, Kind, encoded};
use crate::output::{self, Table, note, size};

/// Longest listing that is read.
const LISTING_MAX_BYTES: u64 = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum FileCommand {
    /// Lists files of a volume that no sandbox has. Without VOLUME it lists the volumes.
    #[command(after_help = "Examples:
  sandstone volumes ls dataset
  sandstone volumes ls dataset /models")]
    Ls {
        /// Id or slug of the volume.
        volume: Option<String>,
        /// A directory on the volume.
        #[arg(default_value = "/")]
        path: String,
    },
    /// Prints a file of a volume that no sandbox has.
    #[command(after_help = "Example:
  sandstone volumes cat dataset /hello.txt")]
    Cat {
        /// Id or slug of the volume.
        volume: String,
        /// A file on the volume.
        path: String,
    },
    /// Writes a file to a volume that no sandbox has, with the directories above it.
    #[command(after_help = "Examples:
  sandstone volumes put dataset model.bin /models/model.bin
  date | sandstone volumes put dataset - /date.txt")]
    Put {
        /// Id or slug of the volume.
        volume: String,
        /// What to read; - is standard input.
        file: PathBuf,
        /// The file on the volume. What is there is replaced.
        path: String,
    },
    /// Removes a file, or a directory with everything in it, from a volume that no sandbox has.
    #[command(after_help = "`sandstone volumes delete` deletes a whole volume.

Example:
  sandstone volumes rm dataset /models/old")]
    Rm {
        /// Id or slug of the volume.
        volume: String,
        /// A file or directory on the volume.
        path: String,
    },
}

/// What the server says of a directory.
#[derive(Debug, Deserialize)]
struct Listing {
    entries: Vec<DirectoryEntry>,
}

pub(super) fn run(session: &Session, command: FileCommand) -> anyhow::Result<()> {
    match command {
        FileCommand::Ls { volume, path } => {
            let volume = volume.unwrap_or_default();
            list(session, &url(&volume, &path), &path)
        }
        FileCommand::Cat { volume, path } => cat(session, &url(&volume, &path), &path),
        FileCommand::Put { volume, file, path } => {
            let url = url(&volume, &path);
            archive::send(session, Method::PUT, &url, &file, "sent")?;
            note(&format!("wrote {path} on `{volume}`"));
            Ok(())
        }
        FileCommand::Rm { volume, path } => {
            session.client.delete(&url(&volume, &path))?;
            note(&format!("removed {path} from `{volume}`"));
            Ok(())
        }
    }
}

fn url(volume: &str, path: &str) -> String {
    format!("{}/files?path={}", volumes::path(volume), encoded(path))
}

/// Whether the answer is about a directory: a file comes as bytes.
fn is_listing(answer: &Response<Body>) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

fn list(session: &Session, url: &str, path: &str) -> anyhow::Result<()> {
    let answer = session.client.download(url)?;
    if !is_listing(&answer) {
        let failure = Failure::new(Kind::Generic, format!("{path} is a file"));
        return Err(failure
            .with_hint("`sandstone volumes cat` prints it")
            .into());
    }
    let mut text = String::new();
    let mut body = answer.into_body().into_reader().take(LISTING_MAX_BYTES);
    body.read_to_string(&mut text)
        .context("the server's answer is incomplete")?;
    let listing = serde_json::from_str(&text).context("the server's answer is not JSON")?;
    if session.json {
        return Ok(output::print_json(&listing)?);
    }
    let Listing { entries } = parsed(listing)?;
    let mut table = Table::new(&["KIND", "SIZE", "NAME"]);
    for entry in entries {
        let bytes = match entry.kind.as_str() {
            "file" => size(entry.size),
            _ => "-".to_owned(),
        };
        table.push([entry.kind, bytes, entry.name]);
    }
    Ok(output::print(&table.to_string())?)
}

fn cat(session: &Session, url: &str, path: &str) -> anyhow::Result<()> {
    let answer = session.client.download(url)?;
    if is_listing(&answer) {
        let failure = Failure::new(Kind::Generic, format!("{path} is a directory"));
        return Err(failure.with_hint("`sandstone volumes ls` lists it").into());
    }
    let mut out = io::stdout().lock();
    let copied = io::copy(&mut answer.into_body().into_reader(), &mut out);
    match copied.and_then(|_| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.with_context(|| format!("{path} is incomplete")),
    }
}
