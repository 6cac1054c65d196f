//! Volumes and snapshots as archives, and archives as volumes.
//!
//! `tar` in a maintenance sandbox makes and unpacks the members; [`format`] adds and checks what is
//! around them, on a thread that may block. Every stage holds a few pieces at most, so the slowest
//! one sets the pace.
//!
//! ```text
//! export   tar ──► members ──► Packer ──► client          the end comes only after tar's good end
//! import   client ──► Unpacker ──► members ──► tar ──► close ──► finish_volume
//! ```
//!
//! An import's volume is `creating` until all of that went well, and given up otherwise.

mod format;
mod member;
#[cfg(test)]
mod tests;

use std::io::{self, BufWriter};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use sandstone_api::{self as api, ApiError, ByteSize, ErrorCode, ImageId, Region, Slug, VolumeId};
use sandstone_core::VolumeCapacity;
use sandstone_crash::Point;
use sandstone_node_api::{AgentClient, Chain};
use sandstone_store::NewSource;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::maintenance::{
    Download, Incoming, Input, Outgoing, Reader, Tool, ToolError, Upload, Writer, download,
    incomplete,
};
use super::{ControlPlane, Principal, error};

use format::{Manifest, Packer, Unpacker};
use member::ArchiveError;

/// Archives that are made and unpacked at once. Each keeps one of the threads that may block.
const ARCHIVES_AT_ONCE: usize = 16;

/// How long a client waits for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(60);

/// Makes the members. Access control lists are among the extended attributes, with numbers instead
/// of names. Times of access and status are left out: they change with every export.
const CREATE: [&str; 14] = [
    "/usr/bin/tar",
    "--create",
    "--file=-",
    "--format=posix",
    "--pax-option=delete=atime,delete=ctime",
    "--xattrs",
    "--xattrs-include=*",
    "--sparse",
    "--numeric-owner",
    "--one-file-system",
    "--sort=name",
    "--directory=/mnt/image",
    "--",
    ".",
];

/// Unpacks them. Directories get their times and modes when everything is in them.
const EXTRACT: [&str; 9] = [
    "/usr/bin/tar",
    "--extract",
    "--file=-",
    "--xattrs",
    "--xattrs-include=*",
    "--numeric-owner",
    "--same-owner",
    "--preserve-permissions",
    "--directory=/mnt/image",
];

/// How much an archive may unpack to, as a multiple of the capacity. Headers add to what ends up
/// on the volume, and nothing else should.
const EXPANSION_MAX: u64 = 4;

/// Bytes given to `tar` at once.
const OUTPUT_BYTES: usize = 64 << 10;

/// What `tar` says on a full file system.
const NO_ROOM: [&str; 2] = ["No space left on device", "Wrote only "];

/// An archive on its way to a client.
#[derive(Debug)]
pub struct Export {
    /// The name of what is in it.
    pub slug: Slug,
    /// The archive. If it breaks off, no import takes it.
    pub content: Download,
}

/// A volume that a client wants from an archive.
#[derive(Debug, Clone)]
pub struct NewImport {
    /// Its name.
    pub slug: Slug,
    /// Where it is to be; else in the default region.
    pub region: Option<Region>,
    /// Hard limit; else that of the exported volume.
    pub capacity: Option<VolumeCapacity>,
}

/// A turn for each archive that may be made or unpacked at a time.
pub(super) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ARCHIVES_AT_ONCE))
}

impl ControlPlane {
    /// Exports an unattached volume.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED`, and those of starting a sandbox. A failure later
    /// breaks the archive off.
    pub async fn export_volume(
        self: &Arc<Self>,
        who: &Principal,
        name: &str,
    ) -> Result<Export, ApiError> {
        let volume = self.store.volume(who.organisation, name).await;
        let volume = volume.map_err(|error| error::of_store("the volume", error))?;
        let manifest = Manifest {
            is_bootable: volume.is_bootable,
            capacity: volume.capacity,
        };
        let content = self.export(who, volume.id.into(), manifest).await?;
        Ok(Export {
            slug: volume.slug,
            content,
        })
    }

    /// Exports a snapshot, even a damaged one as far as it can be read.
    ///
    /// # Errors
    /// `SNAPSHOT_NOT_FOUND`, and those of starting a sandbox. A failure later breaks the archive
    /// off.
    pub async fn export_snapshot(
        self: &Arc<Self>,
        who: &Principal,
        name: &str,
    ) -> Result<Export, ApiError> {
        let snapshot = self.store.snapshot(who.organisation, name).await;
        let snapshot = snapshot.map_err(|error| error::of_store("the snapshot", error))?;
        let manifest = Manifest {
            is_bootable: snapshot.is_bootable,
            capacity: snapshot.capacity,
        };
        let content = self.export(who, snapshot.id.into(), manifest).await?;
        Ok(Export {
            slug: snapshot.slug,
            content,
        })
    }

    /// Makes a volume of an archive that an export has made; returns when it is on disk. Nobody
    /// sees it before.
    ///
    /// # Errors
    /// `ARCHIVE_DAMAGED`, `ARCHIVE_REFUSED`, `CAPACITY_BELOW_BASE` when it does not fit,
    /// `INVALID_REQUEST`, `SLUG_ALREADY_IN_USE`, `TIMED_OUT` when the client stalls, and those of
    /// making a volume and starting a sandbox. Nothing is left of the volume then.
    pub async fn import_volume(
        self: &Arc<Self>,
        who: &Principal,
        new: NewImport,
        content: Upload,
    ) -> Result<api::VolumeDetail, ApiError> {
        let content = Incoming::new(content);
        let region = new.region.unwrap_or(self.config.default_region());
        self.check_region(region)?;
        self.check_ready().await?;
        let turn = self.archive_turn().await?;
        let id = VolumeId::new(region, self.random_suffix());
        let object = format!("volume `{}`", new.slug);
        let work = self.clone().import(who.clone(), id, new, content);
        let imported = self.carry_out(&object, work).await;
        drop(turn);
        imported
    }

    /// Waits until one more archive may be worked on.
    async fn archive_turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let turn = timeout(TURN_LIMIT, self.archives.clone().acquire_owned()).await;
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(error::not_ready("too many archives are being worked on")),
        }
    }

    async fn export(
        self: &Arc<Self>,
        who: &Principal,
        image: ImageId,
        manifest: Manifest,
    ) -> Result<Download, ApiError> {
        let turn = self.archive_turn().await?;
        let maintenance = self.open_image(who, image).await?;
        let tar = Tool::start(maintenance.agent(), &CREATE, Input::None).await;
        let tar = tar.map_err(|error| failed(&image.to_string(), &error))?;
        let (outgoing, content) = download(maintenance.agent());
        self.tasks.spawn(format!("exporting {image}"), async move {
            let packed = pack(tar, manifest, outgoing).await;
            drop(turn);
            // The client may want the volume as soon as it has the last byte.
            let closed = maintenance.close().await;
            match (packed, closed) {
                (Ok(outgoing), Ok(())) => {
                    tracing::info!(%image, "exported");
                    // The client is told, or it is gone.
                    let _ = outgoing.finish().await;
                }
                (Err(error), _) => {
                    tracing::warn!(%image, error = %Chain(&error), "an export broke off");
                }
                (Ok(_), Err(error)) => tracing::warn!(%image, %error, "an export broke off"),
            }
        });
        Ok(content)
    }

    /// To be run as a task of its own.
    async fn import(
        self: Arc<Self>,
        who: Principal,
        id: VolumeId,
        new: NewImport,
        content: Incoming,
    ) -> Result<api::VolumeDetail, ApiError> {
        let object = format!("volume `{}`", new.slug);
        let input = Reader::new(content, Handle::current());
        let archive = blocking(move || Unpacker::begin(input)).await;
        let archive = archive.map_err(|error| refused(&object, error))?;
        let manifest = archive.manifest();
        let capacity = match new.capacity {
            Some(capacity) => capacity,
            None => VolumeCapacity::new(ByteSize::new(manifest.capacity))?,
        };
        let row = sandstone_store::NewVolume {
            id,
            organisation: who.organisation,
            slug: new.slug,
            capacity: Some(capacity),
            source: NewSource::Import {
                is_bootable: manifest.is_bootable,
            },
        };
        let made = self.make_volume(&row).await?;
        match self.fill(&who, id, capacity, archive).await {
            Ok(()) => {
                sandstone_crash::at(Point::ImportUnpacked);
                self.publish_volume(made).await
            }
            Err(error) => {
                self.give_up(id.into(), error.to_string()).await;
                Err(error)
            }
        }
    }

    /// Unpacks an archive into a volume; returns when that is on disk.
    async fn fill(
        self: &Arc<Self>,
        who: &Principal,
        id: VolumeId,
        capacity: VolumeCapacity,
        archive: Unpacker<Reader<Incoming>>,
    ) -> Result<(), ApiError> {
        let maintenance = self.open_image(who, id.into()).await?;
        let unpacked = unpack(maintenance.agent(), archive, capacity).await;
        // Whatever happened, it must have let go of the volume before that is given up.
        let closed = maintenance.close().await;
        unpacked.and(closed)
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(ArchiveError::Io(io::ErrorKind::ConnectionAborted.into())),
        },
    }
}

/// Makes an archive of what `tar` makes, but for the last word to the client.
async fn pack(
    mut tar: Tool,
    manifest: Manifest,
    outgoing: Outgoing,
) -> Result<Outgoing, ArchiveError> {
    let runtime = Handle::current();
    let work = move || {
        let output = Writer::new(&outgoing, runtime.clone());
        let mut packer = Packer::begin(output, &manifest)?;
        let mut input = Reader::new(&mut tar, runtime.clone());
        packer.members(&mut input)?;
        // It fills its last record with zeros.
        io::copy(&mut input, &mut io::sink())?;
        runtime.block_on(tar.finish()).map_err(io::Error::from)?;
        packer.finish()?;
        Ok(outgoing)
    };
    blocking(work).await
}

/// Lets `tar` unpack the members of an archive.
async fn unpack(
    agent: &Arc<AgentClient>,
    archive: Unpacker<Reader<Incoming>>,
    capacity: VolumeCapacity,
) -> Result<(), ApiError> {
    let object = "the archive";
    let tar = Tool::start(agent, &EXTRACT, Input::Stream).await;
    let mut tar = tar.map_err(|error| failed(object, &error))?;
    let max_bytes = capacity.bytes().saturating_mul(EXPANSION_MAX);
    let runtime = Handle::current();
    let work = move || {
        let output = Writer::new(&mut tar, runtime);
        let mut output = BufWriter::with_capacity(OUTPUT_BYTES, output);
        let passed = archive.members(&mut output, max_bytes);
        // What is left in it is the beginning of something that was refused.
        let _ = output.into_parts();
        Ok((tar, passed))
    };
    let (tar, passed) = blocking(work)
        .await
        .map_err(|error| refused(object, error))?;
    let finished = tar.finish().await;
    if let Err(ToolError::Failed { complaints, .. }) = &finished
        && NO_ROOM.iter().any(|text| complaints.contains(text))
    {
        return Err(ApiError::new(
            ErrorCode::CapacityBelowBase,
            format!(
                "the archive does not fit into a volume of {}",
                ByteSize::new(capacity.bytes())
            ),
        )
        .with_hint("Import it with a larger `capacity`."));
    }
    passed.map_err(|error| refused(object, error))?;
    finished.map_err(|error| match &error {
        ToolError::Failed { complaints, .. } => {
            let last = complaints.trim_end().lines().last().unwrap_or_default();
            ApiError::new(
                ErrorCode::ArchiveRefused,
                format!(
                    "the archive cannot be unpacked: {}",
                    member::shown(last.as_bytes())
                ),
            )
        }
        _ => failed(object, &error),
    })
}

/// What a client hears of an archive that was not taken.
fn refused(object: &str, error: ArchiveError) -> ApiError {
    match error {
        ArchiveError::Damaged(why) => ApiError::new(
            ErrorCode::ArchiveDamaged,
            format!("the archive is damaged or incomplete: {why}"),
        )
        .with_hint("Export it again."),
        ArchiveError::Refused(why) => ApiError::new(
            ErrorCode::ArchiveRefused,
            format!("the archive is refused: {why}"),
        )
        .with_hint("An import takes what an export has made."),
        ArchiveError::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => failed(object, error),
            None => incomplete(&error),
        },
    }
}

/// A failure inside the sandbox that is not the client's. The details go to the log.
fn failed(object: &str, error: &ToolError) -> ApiError {
    tracing::error!(object, error = %Chain(error), "a tool failed");
    error::internal(object)
}
