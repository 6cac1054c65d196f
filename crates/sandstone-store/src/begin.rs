//! Beginning sandboxes: a client's, and the control plane's own.

use std::collections::HashSet;

use sandstone_api::{IdSuffix, ImageId, Region, SandboxId, Slug, SnapshotId, VolumeId};
use sandstone_core::{
    ImageState, Labels, Lifetime, Memory, MountPath, NetworkPolicy, SandboxState, Timestamp,
};
use sqlx::SqliteConnection;

use crate::attachment::Place;
use crate::error::Step;
use crate::image::Kind;
use crate::organisation::OrganisationId;
use crate::row::signed;
use crate::sandbox::{CLIENT, MAINTENANCE, SESSION, UNTIL};
use crate::snapshot::Snapshot;
use crate::store::commit;
use crate::volume::{self, Volume};
use crate::{Store, StoreError, attachment, image, label, network};

/// A sandbox to begin.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// The random part of its id.
    pub suffix: IdSuffix,
    /// Whose it will be.
    pub organisation: OrganisationId,
    /// How many sandboxes the organisation may have at once, this one among them. One that starts
    /// or is being stopped counts: it has memory and a place on the host. Maintenance sandboxes do
    /// not.
    pub sandboxes_max: u32,
    /// Where it is to run; else where its root or its first volume is, else in `default_region`.
    pub region: Option<Region>,
    /// Where a sandbox runs that names neither region nor root nor volumes.
    pub default_region: Region,
    /// How long it is to live.
    pub lifetime: Lifetime,
    /// Memory limit.
    pub memory: Memory,
    /// Labels.
    pub labels: Labels,
    /// What its `/` is, by id or slug: a volume, used read-write, or a snapshot, whose changes end
    /// with the sandbox. Else the base image.
    pub root: Option<String>,
    /// Where to mount which volumes, by id or slug.
    pub volumes: Vec<(MountPath, String)>,
    /// What it may reach, and its secrets.
    pub network: NetworkPolicy,
}

/// A sandbox that was begun: its volumes are reserved for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunSandbox {
    /// Its id.
    pub id: SandboxId,
    /// What its `/` is.
    pub root: BegunRoot,
    /// Its other volumes, in the order in which they were named.
    pub mounts: Vec<(VolumeId, MountPath)>,
}

/// The root of a sandbox that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunRoot {
    /// The base image.
    Base,
    /// A snapshot. It is not purged before the sandbox has ended.
    Snapshot(SnapshotId),
    /// A volume, reserved for the sandbox.
    Volume(VolumeId),
}

impl Store {
    /// Records a sandbox as starting and reserves its volumes for it, all of them or none.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`], [`StoreError::RootNotFound`], [`StoreError::NotBootable`],
    /// [`StoreError::SnapshotDamaged`], [`StoreError::VolumeNamedTwice`],
    /// [`StoreError::RegionMismatch`], [`StoreError::VolumeIsMounted`];
    /// [`StoreError::VolumeIsBusy`] when a volume is being enlarged; when nothing else is wrong,
    /// [`StoreError::TooManySandboxes`].
    pub async fn begin_sandbox(
        &self,
        new: &NewSandbox,
        now: Timestamp,
    ) -> Result<BegunSandbox, StoreError> {
        let mut transaction = self.begin().await?;
        let images = find_images(&mut transaction, new).await?;
        let region = new
            .region
            .or_else(|| images.places.first().map(|place| place.region))
            .unwrap_or(new.default_region);
        if let Some(place) = images.places.iter().find(|place| place.region != region) {
            return Err(StoreError::RegionMismatch {
                slug: place.slug.clone(),
                region: place.region,
                wanted: region,
            });
        }
        check_room(&mut transaction, new.organisation, new.sandboxes_max).await?;
        let id = SandboxId::new(region, new.suffix);
        let row = Row {
            organisation: new.organisation,
            lifetime: new.lifetime,
            memory: new.memory,
            labels: &new.labels,
            purpose: CLIENT,
            snapshot: match images.root {
                BegunRoot::Snapshot(id) => Some(id),
                BegunRoot::Base | BegunRoot::Volume(_) => None,
            },
        };
        insert(&mut transaction, id, &row, now).await?;
        network::record(&mut transaction, id, &new.network).await?;
        if let BegunRoot::Volume(volume) = images.root {
            attachment::reserve(&mut transaction, volume, id, &Place::Root, now).await?;
        }
        for (volume, path) in &images.mounts {
            let place = Place::At(path.clone());
            attachment::reserve(&mut transaction, *volume, id, &place, now).await?;
        }
        commit(transaction).await?;
        Ok(BegunSandbox {
            id,
            root: images.root,
            mounts: images.mounts,
        })
    }

    /// Records a maintenance sandbox as starting: one with the base image as its root and one
    /// volume or snapshot at `path`, through which the control plane reads and writes it. It
    /// lives as long as its session, and no client sees it. A volume is reserved for it; it may
    /// also be one that an import is to fill. A snapshot may be damaged.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`], [`StoreError::SnapshotNotFound`],
    /// [`StoreError::VolumeIsMounted`], [`StoreError::VolumeIsBusy`].
    pub async fn begin_maintenance(
        &self,
        suffix: IdSuffix,
        organisation: OrganisationId,
        image: ImageId,
        memory: Memory,
        path: MountPath,
        now: Timestamp,
    ) -> Result<SandboxId, StoreError> {
        let mut transaction = self.begin().await?;
        let snapshot = match image {
            ImageId::Volume(_) => {
                let volume: Volume = image::by_id(&mut transaction, image).await?;
                // The attach token is refused to one that is created by anything but an import.
                let is_usable =
                    matches!(volume.state, ImageState::Available | ImageState::Creating);
                if volume.organisation != organisation || !is_usable {
                    return Err(Kind::Volume.not_found(image));
                }
                volume::check_free(&mut transaction, &volume).await?;
                None
            }
            ImageId::Snapshot(id) => {
                let name = image.to_string();
                image::visible::<Snapshot>(&mut transaction, organisation, &name).await?;
                Some(id)
            }
        };
        let region = match image {
            ImageId::Volume(id) => id.region(),
            ImageId::Snapshot(id) => id.region(),
        };
        let id = SandboxId::new(region, suffix);
        let row = Row {
            organisation,
            lifetime: Lifetime::Session,
            memory,
            labels: &Labels::default(),
            purpose: MAINTENANCE,
            snapshot,
        };
        insert(&mut transaction, id, &row, now).await?;
        if let ImageId::Volume(volume) = image {
            attachment::reserve(&mut transaction, volume, id, &Place::At(path), now).await?;
        }
        commit(transaction).await?;
        Ok(id)
    }
}

/// Refuses one sandbox more than the organisation may have. Transactions that write follow one
/// another, so two cannot both be the last.
async fn check_room(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    limit: u32,
) -> Result<(), StoreError> {
    let (all, stopping): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE state = $1) FROM sandboxes \
         WHERE organisation = $2 AND purpose = $3 AND state <> 'stopped'",
    )
    .bind(SandboxState::Stopping.as_str())
    .bind(organisation.to_string())
    .bind(CLIENT)
    .fetch_one(connection)
    .await
    .step("count sandboxes")?;
    if all < i64::from(limit) {
        return Ok(());
    }
    Err(StoreError::TooManySandboxes {
        limit,
        releasing: stopping > 0,
    })
}

/// The images of a new sandbox.
struct Images {
    root: BegunRoot,
    mounts: Vec<(VolumeId, MountPath)>,
    /// Where they are, the root first.
    places: Vec<ImagePlace>,
}

struct ImagePlace {
    slug: Slug,
    region: Region,
}

/// The images that the request names: its volumes each once and free.
async fn find_images(
    connection: &mut SqliteConnection,
    new: &NewSandbox,
) -> Result<Images, StoreError> {
    let mut found = Images {
        root: BegunRoot::Base,
        mounts: Vec::with_capacity(new.volumes.len()),
        places: Vec::with_capacity(new.volumes.len() + 1),
    };
    let mut seen = HashSet::new();
    if let Some(name) = &new.root {
        let (root, place) = find_root(connection, new.organisation, name).await?;
        if let BegunRoot::Volume(id) = root {
            seen.insert(id);
        }
        found.root = root;
        found.places.push(place);
    }
    for (path, name) in &new.volumes {
        let volume: Volume = image::visible(connection, new.organisation, name).await?;
        if !seen.insert(volume.id) {
            return Err(StoreError::VolumeNamedTwice { slug: volume.slug });
        }
        volume::check_free(connection, &volume).await?;
        found.mounts.push((volume.id, path.clone()));
        found.places.push(ImagePlace {
            slug: volume.slug,
            region: volume.region,
        });
    }
    Ok(found)
}

async fn find_root(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    name: &str,
) -> Result<(BegunRoot, ImagePlace), StoreError> {
    match image::visible::<Volume>(connection, organisation, name).await {
        Err(StoreError::VolumeNotFound { .. }) => {}
        Err(error) => return Err(error),
        Ok(volume) => {
            check_bootable(volume.is_bootable, &volume.slug, volume.id.into())?;
            volume::check_free(connection, &volume).await?;
            let place = ImagePlace {
                slug: volume.slug,
                region: volume.region,
            };
            return Ok((BegunRoot::Volume(volume.id), place));
        }
    }
    let snapshot = image::visible::<Snapshot>(connection, organisation, name);
    let snapshot = snapshot.await.map_err(|error| match error {
        StoreError::SnapshotNotFound { name } => StoreError::RootNotFound { name },
        error => error,
    })?;
    check_bootable(snapshot.is_bootable, &snapshot.slug, snapshot.id.into())?;
    snapshot.check_not_damaged()?;
    let place = ImagePlace {
        slug: snapshot.slug,
        region: snapshot.region,
    };
    Ok((BegunRoot::Snapshot(snapshot.id), place))
}

fn check_bootable(is_bootable: bool, slug: &Slug, id: ImageId) -> Result<(), StoreError> {
    if is_bootable {
        Ok(())
    } else {
        Err(StoreError::NotBootable {
            name: slug.clone(),
            id,
        })
    }
}

/// What a new sandbox's row says beside its id.
struct Row<'a> {
    organisation: OrganisationId,
    lifetime: Lifetime,
    memory: Memory,
    labels: &'a Labels,
    purpose: &'static str,
    snapshot: Option<SnapshotId>,
}

async fn insert(
    connection: &mut SqliteConnection,
    id: SandboxId,
    row: &Row<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (lifetime, stop_at) = match row.lifetime {
        Lifetime::Session => (SESSION, None),
        Lifetime::Until(stop_at) => (UNTIL, Some(stop_at.as_millis())),
    };
    sqlx::query(
        "INSERT INTO sandboxes (id, organisation, region, state, lifetime, stop_at, memory, \
             labels, purpose, snapshot, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(id.to_string())
    .bind(row.organisation.to_string())
    .bind(id.region().to_string())
    .bind(SandboxState::Starting.as_str())
    .bind(lifetime)
    .bind(stop_at)
    .bind(signed(row.memory.bytes()))
    .bind(label::encode(row.labels.as_map()))
    .bind(row.purpose)
    .bind(row.snapshot.map(|id| id.to_string()))
    .bind(now.as_millis())
    .execute(connection)
    .await
    .step("add a sandbox")?;
    Ok(())
}
