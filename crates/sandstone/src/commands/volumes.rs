//! `sandstone volumes`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sandstone_api::{ByteSize, Region, Slug, SnapshotDetail, VolumeDetail};

use super::files::{self, FileCommand};
use super::{
    DELETION_COLUMNS, ListArguments, RestoreArguments, Session, archive, deleted_text, deletion,
    fields, now, parsed,
};
use crate::client::{EXIT_CODES, ServerArguments, encoded};
use crate::output::{Table, age, instant, note, size};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct VolumesArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(subcommand)]
    command: VolumesCommand,
}

#[derive(Debug, Subcommand)]
enum VolumesCommand {
    /// Makes a volume and prints its id.
    #[command(
        visible_alias = "new",
        after_help = "Examples:
  sandstone volumes create dataset --capacity 10GB
  sandstone volumes create toolchain --capacity 4GB --from builtin:debian-13
  sandstone volumes create toolchain-2 --from my-snapshot --region ord"
    )]
    Create(CreateArguments),
    /// Lists the volumes.
    #[command(after_help = "Examples:
  sandstone volumes list
  sandstone volumes list --search data --json
  sandstone volumes list --deleted")]
    List(ListArguments),
    /// Shows everything about a volume.
    #[command(after_help = "Example:
  sandstone volumes get dataset")]
    Get {
        /// Its id or slug.
        volume: String,
    },
    /// Deletes a volume that no sandbox has. It can be restored for a while.
    #[command(
        visible_alias = "remove",
        after_help = "Example:
  sandstone volumes delete dataset"
    )]
    Delete {
        /// Its id or slug.
        volume: String,
    },
    /// Brings a deleted volume back with all its data.
    #[command(after_help = "Examples:
  sandstone volumes restore dataset
  sandstone volumes restore vol_ord_1at5nn58e77rtd11e3k3 --slug dataset-old")]
    Restore(RestoreArguments),
    /// Enlarges a volume that no sandbox has.
    #[command(after_help = "Example:
  sandstone volumes grow dataset 20GB")]
    Grow {
        /// Its id or slug.
        volume: String,
        /// Its new capacity: bytes, or with a unit such as GB or GiB.
        capacity: ByteSize,
    },
    /// Copies a volume, in use or not, and prints the id of the copy.
    #[command(after_help = "Examples:
  sandstone volumes fork dataset dataset-test
  sandstone volumes fork dataset dataset-large --capacity 20GB")]
    Fork {
        /// Id or slug of the volume to copy.
        volume: String,
        /// Slug of the copy.
        slug: Slug,
        /// Capacity of the copy, if it is to be larger.
        #[arg(long)]
        capacity: Option<ByteSize>,
    },
    /// Takes a snapshot of a volume, in use or not, and prints its id.
    #[command(after_help = "Example:
  sandstone volumes snapshot dataset dataset-monday")]
    Snapshot {
        /// Id or slug of the volume.
        volume: String,
        /// Slug of the snapshot.
        slug: Slug,
    },
    /// Writes all files of a volume that no sandbox has into an archive.
    #[command(
        after_help = "The archive is a tar file in a zstd frame, with a checksum: `tar --zstd -xf` reads it.

Examples:
  sandstone volumes export dataset dataset.tar.zst
  sandstone volumes export dataset - | ssh backup 'cat > dataset.tar.zst'"
    )]
    Export {
        /// Id or slug of the volume.
        volume: String,
        /// Where to write; - is standard output.
        file: PathBuf,
    },
    /// Makes a volume of an exported archive and prints its id.
    #[command(after_help = "Examples:
  sandstone volumes import dataset dataset.tar.zst
  ssh backup 'cat dataset.tar.zst' | sandstone volumes import dataset - --capacity 20GB")]
    Import {
        /// Slug of the new volume.
        slug: Slug,
        /// What to read; - is standard input.
        file: PathBuf,
        /// Where the volume is to be; the server's default region otherwise.
        #[arg(long)]
        region: Option<Region>,
        /// Its capacity; that of the exported volume otherwise.
        #[arg(long)]
        capacity: Option<ByteSize>,
    },
    #[command(flatten)]
    Files(FileCommand),
}

#[derive(Debug, Args)]
struct CreateArguments {
    /// Its name: 2 to 32 of a-z, 0-9 and -.
    slug: Slug,
    /// How much it holds at most: bytes, or with a unit such as GB or GiB. Needed unless it is
    /// made from a snapshot.
    #[arg(long)]
    capacity: Option<ByteSize>,
    /// Where it is to be; where its snapshot is, or the server's default region otherwise.
    #[arg(long)]
    region: Option<Region>,
    /// What it holds at first: builtin:debian-13, or a snapshot's id or slug.
    #[arg(long)]
    from: Option<String>,
}

pub(crate) fn run(arguments: VolumesArguments) -> anyhow::Result<()> {
    let session = Session::new(&arguments.server)?;
    let client = &session.client;
    match arguments.command {
        VolumesCommand::Create(new) => {
            let body = fields([
                ("slug", Some(new.slug.as_str().into())),
                ("capacity", new.capacity.map(|size| size.bytes().into())),
                ("region", new.region.map(|region| region.as_str().into())),
                ("from", new.from.map(Into::into)),
            ]);
            session.show(client.post("/v1/volumes", &body)?, made)
        }
        VolumesCommand::List(list) => list_volumes(&session, &list),
        VolumesCommand::Get { volume } => session
            .show(client.get(&path(&volume))?, |volume: VolumeDetail| {
                properties(&volume).to_string()
            }),
        VolumesCommand::Delete { volume } => {
            let deleted = client.delete(&path(&volume))?;
            session.show(
                deleted,
                |VolumeDetail {
                     volume, purge_at, ..
                 }| {
                    deleted_text("volumes", &volume.id, &volume.slug, purge_at.as_deref())
                },
            )
        }
        VolumesCommand::Restore(restore) => {
            let path = format!("{}/restore", path(&restore.name));
            let restored = client.post(&path, &restore.body())?;
            session.show(restored, |VolumeDetail { volume, .. }| {
                format!("Restored volume `{}` ({}).\n", volume.slug, volume.id)
            })
        }
        VolumesCommand::Grow { volume, capacity } => {
            let body = fields([("capacity", Some(capacity.bytes().into()))]);
            let grown = client.post(&format!("{}/grow", path(&volume)), &body)?;
            session.show(grown, |VolumeDetail { volume, .. }| {
                let capacity = ByteSize::new(volume.capacity);
                format!("Volume `{}` now holds {capacity}.\n", volume.slug)
            })
        }
        VolumesCommand::Fork {
            volume,
            slug,
            capacity,
        } => {
            let body = fields([
                ("slug", Some(slug.as_str().into())),
                ("capacity", capacity.map(|size| size.bytes().into())),
            ]);
            session.show(
                client.post(&format!("{}/fork", path(&volume)), &body)?,
                made,
            )
        }
        VolumesCommand::Snapshot { volume, slug } => take_snapshot(&session, &volume, &slug),
        VolumesCommand::Export { volume, file } => {
            archive::export(&session, &format!("{}/archive", path(&volume)), &file)
        }
        VolumesCommand::Import {
            slug,
            file,
            region,
            capacity,
        } => {
            let mut path = format!("/v1/volumes/import?slug={slug}");
            if let Some(region) = region {
                path.push_str(&format!("&region={region}"));
            }
            if let Some(capacity) = capacity {
                path.push_str(&format!("&capacity={}", capacity.bytes()));
            }
            session.show(archive::import(&session, &path, &file)?, made)
        }
        // Without a volume there are no files to list, so the volumes are meant.
        VolumesCommand::Files(FileCommand::Ls { volume: None, .. }) => {
            list_volumes(&session, &ListArguments::default())
        }
        VolumesCommand::Files(command) => files::run(&session, command),
    }
}

/// The path of a volume.
pub(super) fn path(volume: &str) -> String {
    format!("/v1/volumes/{}", encoded(volume))
}

/// Takes a snapshot. `sandstone snapshots create` does the same.
pub(super) fn take_snapshot(session: &Session, volume: &str, slug: &Slug) -> anyhow::Result<()> {
    let body = fields([("slug", Some(slug.as_str().into()))]);
    let path = format!("{}/snapshot", path(volume));
    let taken = session.client.post(&path, &body)?;
    let detail: SnapshotDetail = parsed(taken.clone())?;
    session.show(taken, |SnapshotDetail { snapshot, .. }| {
        format!("{}\n", snapshot.id)
    })?;
    let waited = match detail.write_stall_us {
        0 => String::new(),
        us => format!(", its writers waited {}.{:03} ms", us / 1000, us % 1000),
    };
    note(&format!(
        "took snapshot `{slug}` of `{}`{waited}",
        detail.snapshot.volume.slug
    ));
    Ok(())
}

fn made(VolumeDetail { volume, .. }: VolumeDetail) -> String {
    note(&format!(
        "made volume `{}` in {}, {}",
        volume.slug,
        volume.region,
        ByteSize::new(volume.capacity)
    ));
    format!("{}\n", volume.id)
}

fn list_volumes(session: &Session, list: &ListArguments) -> anyhow::Result<()> {
    let path = list.path("/v1/volumes");
    session.show_list(&path, |volumes: Vec<VolumeDetail>| {
        let table = if list.deleted {
            deleted_table(&volumes)
        } else {
            table(&volumes)
        };
        table.to_string()
    })
}

fn table(volumes: &[VolumeDetail]) -> Table {
    listed(volumes, ["STATE", "ATTACHED"], |detail| {
        let sandbox = detail.sandbox.clone();
        [
            detail.state.clone(),
            sandbox.unwrap_or_else(|| "-".to_owned()),
        ]
    })
}

fn deleted_table(volumes: &[VolumeDetail]) -> Table {
    let now = now();
    listed(volumes, DELETION_COLUMNS, |detail| {
        deletion(
            now,
            detail.deleted_at.as_deref(),
            detail.purge_at.as_deref(),
        )
    })
}

/// What every list shows, and two columns more.
fn listed(
    volumes: &[VolumeDetail],
    more: [&str; 2],
    cells: impl Fn(&VolumeDetail) -> [String; 2],
) -> Table {
    let [one, other] = more;
    let mut table = Table::new(&[
        "ID", "SLUG", "REGION", "USED", "CAPACITY", "BASE", one, other,
    ]);
    for detail in volumes {
        let volume = &detail.volume;
        let [one, other] = cells(detail);
        table.push([
            volume.id.clone(),
            volume.slug.clone(),
            volume.region.clone(),
            size(volume.estimated_flattened_size),
            size(volume.capacity),
            base(detail),
            one,
            other,
        ]);
    }
    table
}

fn base(detail: &VolumeDetail) -> String {
    match &detail.volume.base_snapshot {
        Some(snapshot) => snapshot.slug.clone(),
        None => "-".to_owned(),
    }
}

fn properties(detail: &VolumeDetail) -> Table {
    let volume = &detail.volume;
    let now = now();
    let when = |at: &str| format!("{} ({} ago)", instant(at), age(now, at));
    let mut properties = vec![
        ("ID", volume.id.clone()),
        ("SLUG", volume.slug.clone()),
        ("REGION", volume.region.clone()),
        ("STATE", detail.state.clone()),
        ("CAPACITY", size(volume.capacity)),
        ("USED", size(volume.estimated_flattened_size)),
        ("ALLOCATED", size(volume.estimated_allocated_size)),
        ("BOOTABLE", volume.is_bootable.to_string()),
        ("BASE", base(detail)),
        (
            "ATTACHED",
            detail.sandbox.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("CREATED", when(&detail.created_at)),
    ];
    if let Some(at) = &detail.measured_at {
        properties.push(("MEASURED", when(at)));
    }
    Table::of_properties(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandstone_api::{ObjectRef, Volume};

    fn volume(slug: &str) -> VolumeDetail {
        VolumeDetail {
            volume: Volume {
                id: format!("vol_ord_{slug}"),
                slug: slug.to_owned(),
                region: "ord".to_owned(),
                capacity: 10 << 30,
                estimated_allocated_size: 4096,
                estimated_flattened_size: 227_593_421,
                is_bootable: false,
                base_snapshot: None,
            },
            state: "available".to_owned(),
            sandbox: None,
            created_at: "2026-11-22T06:30:00Z".to_owned(),
            measured_at: None,
            deleted_at: None,
            purge_at: None,
            write_stall_us: None,
        }
    }

    #[test]
    fn the_list() {
        let mut forked = volume("fork");
        forked.volume.base_snapshot = Some(ObjectRef {
            id: "snp_ord_x".to_owned(),
            slug: "tools".to_owned(),
        });
        forked.sandbox = Some("sbx_ord_y".to_owned());
        assert_eq!(
            table(&[volume("data"), forked]).to_string(),
            "\
ID             SLUG   REGION   USED         CAPACITY   BASE    STATE       ATTACHED
vol_ord_data   data   ord      217.05 MiB   10 GiB     -       available   -
vol_ord_fork   fork   ord      217.05 MiB   10 GiB     tools   available   sbx_ord_y
"
        );
    }

    #[test]
    fn deleted_ones_say_how_long_they_are_there() {
        let mut deleted = volume("data");
        deleted.purge_at = Some("9999-01-01T00:00:00Z".to_owned());
        deleted.deleted_at = Some("2000-01-01T00:00:00Z".to_owned());
        let text = deleted_table(&[deleted]).to_string();
        assert!(text.contains("LEFT"), "{text}");
        assert!(text.contains("d ") && text.contains(" ago"), "{text}");
    }
}
