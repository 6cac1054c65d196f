//! `sandstone snapshots`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sandstone_api::{Slug, SnapshotDetail};

use super::volumes::take_snapshot;
use super::{
    DELETION_COLUMNS, ListArguments, RestoreArguments, Session, archive, deleted_text, deletion,
    now, parsed,
};
use crate::client::{EXIT_CODES, Failure, Kind, ServerArguments, encoded};
use crate::output::{Table, age, instant, size};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SnapshotsArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(subcommand)]
    command: SnapshotsCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotsCommand {
    /// Takes a snapshot of a volume, in use or not, and prints its id.
    #[command(
        visible_alias = "new",
        after_help = "Example:
  sandstone snapshots create dataset dataset-monday"
    )]
    Create {
        /// Id or slug of the volume.
        volume: String,
        /// Slug of the snapshot.
        slug: Slug,
    },
    /// Lists the snapshots.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  sandstone snapshots list
  sandstone snapshots list --search monday --json
  sandstone snapshots list --deleted"
    )]
    List(ListArguments),
    /// Shows everything about a snapshot.
    #[command(after_help = "Example:
  sandstone snapshots get dataset-monday")]
    Get {
        /// Its id or slug.
        snapshot: String,
    },
    /// Deletes a snapshot. Volumes made from it stay; it can be restored for a while.
    #[command(
        visible_aliases = ["rm", "remove"],
        after_help = "Example:
  sandstone snapshots delete dataset-monday"
    )]
    Delete {
        /// Its id or slug.
        snapshot: String,
    },
    /// Brings a deleted snapshot back.
    #[command(after_help = "Examples:
  sandstone snapshots restore dataset-monday
  sandstone snapshots restore snp_ord_spmbe47dysccpy277ma6 --slug dataset-old")]
    Restore(RestoreArguments),
    /// Reads a whole snapshot and compares it with the checksum it was made with.
    #[command(after_help = "Ends with code 1 if the snapshot is damaged.

Example:
  sandstone snapshots verify dataset-monday")]
    Verify {
        /// Its id or slug.
        snapshot: String,
    },
    /// Writes all files of a snapshot into an archive.
    #[command(
        after_help = "The archive is a tar file in a zstd frame, with a checksum: `tar --zstd -xf` reads it.
`sandstone volumes import` makes a volume of it.

Examples:
  sandstone snapshots export dataset-monday monday.tar.zst
  sandstone snapshots export dataset-monday - | ssh backup 'cat > monday.tar.zst'"
    )]
    Export {
        /// Its id or slug.
        snapshot: String,
        /// Where to write; - is standard output.
        file: PathBuf,
    },
}

pub(crate) fn run(arguments: SnapshotsArguments) -> anyhow::Result<()> {
    let session = Session::new(&arguments.server)?;
    let client = &session.client;
    match arguments.command {
        SnapshotsCommand::Create { volume, slug } => take_snapshot(&session, &volume, &slug),
        SnapshotsCommand::List(list) => {
            let path = list.path("/v1/snapshots");
            session.show_list(&path, |snapshots: Vec<SnapshotDetail>| {
                let table = if list.deleted {
                    deleted_table(&snapshots)
                } else {
                    table(&snapshots)
                };
                table.to_string()
            })
        }
        SnapshotsCommand::Get { snapshot } => session
            .show(client.get(&path(&snapshot))?, |snapshot: SnapshotDetail| {
                properties(&snapshot).to_string()
            }),
        SnapshotsCommand::Delete { snapshot } => {
            let deleted = client.delete(&path(&snapshot))?;
            session.show(
                deleted,
                |SnapshotDetail {
                     snapshot, purge_at, ..
                 }| {
                    let purge_at = purge_at.as_deref();
                    deleted_text("snapshots", &snapshot.id, &snapshot.slug, purge_at)
                },
            )
        }
        SnapshotsCommand::Restore(restore) => {
            let path = format!("{}/restore", path(&restore.name));
            let restored = client.post(&path, &restore.body())?;
            session.show(restored, |SnapshotDetail { snapshot, .. }| {
                format!("Restored snapshot `{}` ({}).\n", snapshot.slug, snapshot.id)
            })
        }
        SnapshotsCommand::Verify { snapshot } => verify(&session, &snapshot),
        SnapshotsCommand::Export { snapshot, file } => {
            archive::export(&session, &format!("{}/archive", path(&snapshot)), &file)
        }
    }
}

fn path(snapshot: &str) -> String {
    format!("/v1/snapshots/{}", encoded(snapshot))
}

fn verify(session: &Session, name: &str) -> anyhow::Result<()> {
    let path = format!("{}/verify", path(name));
    let verified = session.client.post(&path, &serde_json::json!({}))?;
    let detail: SnapshotDetail = parsed(verified.clone())?;
    session.show(verified, |detail: SnapshotDetail| {
        format!(
            "Snapshot `{}` is {}: {}\n",
            detail.snapshot.slug,
            detail.health,
            detail.checksum.as_deref().unwrap_or("no checksum yet")
        )
    })?;
    if detail.health == "damaged" {
        let message = format!("the content of snapshot `{name}` has changed on the disk");
        let failure = Failure::new(Kind::Generic, message)
            .with_hint("use another snapshot, and check the host's disk");
        return Err(failure.into());
    }
    Ok(())
}

fn table(snapshots: &[SnapshotDetail]) -> Table {
    let now = now();
    listed(snapshots, ["HEALTH", "AGE"], |detail| {
        [detail.health.clone(), age(now, &detail.created_at)]
    })
}

fn deleted_table(snapshots: &[SnapshotDetail]) -> Table {
    let now = now();
    listed(snapshots, DELETION_COLUMNS, |detail| {
        deletion(
            now,
            detail.deleted_at.as_deref(),
            detail.purge_at.as_deref(),
        )
    })
}

/// What every list shows, and two columns more.
fn listed(
    snapshots: &[SnapshotDetail],
    more: [&str; 2],
    cells: impl Fn(&SnapshotDetail) -> [String; 2],
) -> Table {
    let [one, other] = more;
    let mut table = Table::new(&[
        "ID",
        "SLUG",
        "REGION",
        "ALLOCATED",
        "FLATTENED",
        "BOOTABLE",
        "VOLUME",
        one,
        other,
    ]);
    for detail in snapshots {
        let snapshot = &detail.snapshot;
        let [one, other] = cells(detail);
        table.push([
            snapshot.id.clone(),
            snapshot.slug.clone(),
            snapshot.region.clone(),
            size(snapshot.allocated_size),
            size(snapshot.flattened_size),
            bootable(detail),
            snapshot.volume.slug.clone(),
            one,
            other,
        ]);
    }
    table
}

/// As the hosted product's command line writes it.
fn bootable(detail: &SnapshotDetail) -> String {
    let text = if detail.snapshot.is_bootable {
        "TRUE"
    } else {
        "FALSE"
    };
    text.to_owned()
}

fn properties(detail: &SnapshotDetail) -> Table {
    let snapshot = &detail.snapshot;
    let now = now();
    let when = |at: &str| format!("{} ({} ago)", instant(at), age(now, at));
    let mut properties = vec![
        ("ID", snapshot.id.clone()),
        ("SLUG", snapshot.slug.clone()),
        ("REGION", snapshot.region.clone()),
        ("STATE", detail.state.clone()),
        (
            "VOLUME",
            format!("{} ({})", snapshot.volume.slug, snapshot.volume.id),
        ),
        ("BOOTABLE", bootable(detail)),
        ("CAPACITY", size(detail.capacity)),
        ("ALLOCATED", size(snapshot.allocated_size)),
        ("FLATTENED", size(snapshot.flattened_size)),
        ("EXTENTS", detail.extents.to_string()),
        ("CONSISTENCY", detail.consistency.clone()),
        (
            "WRITERS WAITED",
            format!(
                "{}.{:03} ms",
                detail.write_stall_us / 1000,
                detail.write_stall_us % 1000
            ),
        ),
        ("HEALTH", detail.health.clone()),
        (
            "CHECKSUM",
            detail.checksum.clone().unwrap_or_else(|| "-".to_owned()),
        ),
    ];
    if let Some(at) = &detail.checked_at {
        properties.push(("CHECKED", when(at)));
    }
    properties.push(("CREATED", when(&detail.created_at)));
    Table::of_properties(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandstone_api::{ObjectRef, Snapshot};

    #[test]
    fn the_list() {
        let detail = SnapshotDetail {
            snapshot: Snapshot {
                id: "snp_ord_x".to_owned(),
                slug: "tools".to_owned(),
                region: "ord".to_owned(),
                allocated_size: 0,
                flattened_size: 227_593_421,
                is_bootable: true,
                volume: ObjectRef {
                    id: "vol_ord_y".to_owned(),
                    slug: "data".to_owned(),
                },
            },
            state: "available".to_owned(),
            capacity: 1_000_000_000,
            consistency: "filesystem".to_owned(),
            write_stall_us: 1234,
            extents: 7,
            checksum: None,
            health: "unrecorded".to_owned(),
            checked_at: None,
            created_at: "9999-01-01T00:00:00Z".to_owned(),
            deleted_at: None,
            purge_at: None,
        };
        assert_eq!(
            table(std::slice::from_ref(&detail)).to_string(),
            "\
ID          SLUG    REGION   ALLOCATED   FLATTENED    BOOTABLE   VOLUME   HEALTH       AGE
snp_ord_x   tools   ord      0 Bytes     217.05 MiB   TRUE       data     unrecorded   0s
"
        );
        let text = properties(&detail).to_string();
        assert!(text.contains("WRITERS WAITED   1.234 ms\n"), "{text}");
    }
}
