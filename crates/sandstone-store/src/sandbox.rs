//! Sandboxes: beginning, finding, extending. Ending them is in [`crate::stop`].

use std::collections::{BTreeMap, HashSet};

use futures_util::TryStreamExt;
use sandstone_api::{IdSuffix, Region, SandboxId, VolumeId};
use sandstone_core::{
    AttachmentEvent, Denied, Labels, Lifetime, Memory, MountPath, SandboxEvent, SandboxState,
    StopReason, Timestamp,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::{Columns, signed, unreadable};
use crate::store::{WriteTransaction, commit};
use crate::volume::Volume;
use crate::{Store, StoreError, attachment, label, volume};

/// Most sandboxes in one answer: the API has no pages for them.
pub const SANDBOXES_LISTED_MAX: usize = 1000;

const SESSION: &str = "session";
const UNTIL: &str = "until";

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub organisation: OrganisationId,
    /// Where it runs.
    pub region: Region,
    /// Where in its life it is.
    pub state: SandboxState,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Memory limit in bytes.
    pub memory: u64,
    /// As given at creation.
    pub labels: BTreeMap<String, String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When everything of it was gone.
    pub stopped_at: Option<Timestamp>,
    /// Why it ended; set when it begins to stop.
    pub stop_reason: Option<StopReason>,
}

/// A sandbox to begin.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// The random part of its id.
    pub suffix: IdSuffix,
    /// Whose it will be.
    pub organisation: OrganisationId,
    /// Where it is to run; else where its first volume is, else in `default_region`.
    pub region: Option<Region>,
    /// Where a sandbox runs that names neither region nor volumes.
    pub default_region: Region,
    /// How long it is to live.
    pub lifetime: Lifetime,
    /// Memory limit.
    pub memory: Memory,
    /// Labels.
    pub labels: Labels,
    /// Where to mount which volumes, by id or slug.
    pub volumes: Vec<(MountPath, String)>,
}

/// A sandbox that was begun: its volumes are reserved for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunSandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its volumes, in the order in which they were named.
    pub mounts: Vec<(VolumeId, MountPath)>,
}

impl Store {
    /// Records a sandbox as starting and reserves its volumes for it, all of them or none.
    ///
    /// # Errors
    /// [`StoreError::VolumeNotFound`], [`StoreError::VolumeNamedTwice`],
    /// [`StoreError::RegionMismatch`], [`StoreError::VolumeIsMounted`].
    pub async fn begin_sandbox(
        &self,
        new: &NewSandbox,
        now: Timestamp,
    ) -> Result<BegunSandbox, StoreError> {
        let mut transaction = self.begin().await?;
        let volumes = free_volumes(&mut transaction, new).await?;
        let region = new
            .region
            .or_else(|| volumes.first().map(|(volume, _)| volume.region))
            .unwrap_or(new.default_region);
        if let Some((volume, _)) = volumes.iter().find(|(volume, _)| volume.region != region) {
            return Err(StoreError::RegionMismatch {
                slug: volume.slug.clone(),
                volume_region: volume.region,
                sandbox_region: region,
            });
        }
        let id = SandboxId::new(region, new.suffix);
        insert(&mut transaction, id, new, now).await?;
        let mut mounts = Vec::with_capacity(volumes.len());
        for (volume, path) in volumes {
            attachment::reserve(&mut transaction, volume.id, id, &path, now).await?;
            mounts.push((volume.id, path));
        }
        commit(transaction).await?;
        Ok(BegunSandbox { id, mounts })
    }

    /// Records that the sandbox runs with its volumes mounted.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when it is to stop already.
    pub async fn sandbox_started(&self, id: SandboxId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let state = by_id(&mut transaction, id).await?.state;
        let next = state
            .next(SandboxEvent::Started)
            .map_err(|reason| StoreError::denied(id, reason))?;
        let changed = sqlx::query("UPDATE sandboxes SET state = $3 WHERE id = $1 AND state = $2")
            .bind(id.to_string())
            .bind(state.as_str())
            .bind(next.as_str())
            .execute(&mut *transaction)
            .await
            .step("record a started sandbox")?;
        if changed.rows_affected() != 1 {
            return Err(StoreError::denied(id, Denied::WrongState));
        }
        attachment::transition_all(&mut transaction, id, AttachmentEvent::Mounted).await?;
        commit(transaction).await
    }

    /// The organisation's sandbox with this id, in whatever state.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`].
    pub async fn sandbox(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
    ) -> Result<Sandbox, StoreError> {
        let sandbox = self.any_sandbox(id).await?;
        if sandbox.organisation == organisation {
            Ok(sandbox)
        } else {
            Err(StoreError::SandboxNotFound(id))
        }
    }

    /// The sandbox with this id, whoever owns it. For the control plane's own work; a request of
    /// a client goes through [`Store::sandbox`].
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`].
    pub async fn any_sandbox(&self, id: SandboxId) -> Result<Sandbox, StoreError> {
        let mut connection = self.read().acquire().await.step("read a sandbox")?;
        by_id(&mut connection, id).await
    }

    /// The organisation's sandboxes that run or are being stopped, and those that stopped after
    /// `stopped_after`; the newest first, at most [`SANDBOXES_LISTED_MAX`]. One that is starting
    /// or never started is not among them: no client has heard of it. Only those that have all of
    /// `labels`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn list_sandboxes(
        &self,
        organisation: OrganisationId,
        labels: &BTreeMap<String, String>,
        stopped_after: Timestamp,
    ) -> Result<Vec<Sandbox>, StoreError> {
        let mut rows = sqlx::query(
            "SELECT * FROM sandboxes \
             WHERE organisation = $1 AND state <> 'starting' \
                 AND (stopped_at IS NULL OR stopped_at > $2) \
                 AND (stop_reason IS NULL OR stop_reason <> $3) \
             ORDER BY created_at DESC, id DESC",
        )
        .bind(organisation.to_string())
        .bind(stopped_after.as_millis())
        .bind(StopReason::StartFailed.as_str())
        .fetch(self.read());
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await.step("list sandboxes")? {
            let sandbox = sandbox(&row)?;
            let has = |(key, value)| sandbox.labels.get(key) == Some(value);
            if labels.iter().all(has) {
                found.push(sandbox);
                if found.len() == SANDBOXES_LISTED_MAX {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Every sandbox that is not stopped, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn unfinished_sandboxes(&self) -> Result<Vec<Sandbox>, StoreError> {
        sqlx::query("SELECT * FROM sandboxes WHERE state <> 'stopped' ORDER BY created_at, id")
            .fetch_all(self.read())
            .await
            .step("list unfinished sandboxes")?
            .iter()
            .map(sandbox)
            .collect()
    }

    /// The running sandboxes whose time is over.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn due_sandboxes(&self, now: Timestamp) -> Result<Vec<SandboxId>, StoreError> {
        sqlx::query(
            "SELECT id FROM sandboxes WHERE state = 'running' AND stop_at <= $1 ORDER BY stop_at",
        )
        .bind(now.as_millis())
        .fetch_all(self.read())
        .await
        .step("list due sandboxes")?
        .iter()
        .map(|row| Columns(row).parsed("id"))
        .collect()
    }

    /// When the next running sandbox's time is over.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn next_deadline(&self) -> Result<Option<Timestamp>, StoreError> {
        let row = sqlx::query("SELECT MIN(stop_at) AS next FROM sandboxes WHERE state = 'running'")
            .fetch_one(self.read())
            .await
            .step("read the next deadline")?;
        Columns(&row).optional_time("next")
    }

    /// Lets a running sandbox live until `until`, or as long as it would anyway if that is longer;
    /// returns which. A sandbox that lives as long as its session keeps doing so, and `until` is
    /// returned.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`] unless it runs.
    pub async fn extend(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
        until: Timestamp,
    ) -> Result<Timestamp, StoreError> {
        let mut transaction = self.begin().await?;
        let sandbox = by_id(&mut transaction, id).await?;
        if sandbox.organisation != organisation || sandbox.state != SandboxState::Running {
            return Err(StoreError::SandboxNotFound(id));
        }
        let Lifetime::Until(current) = sandbox.lifetime else {
            return Ok(until);
        };
        let granted = current.max(until);
        sqlx::query("UPDATE sandboxes SET stop_at = $3 WHERE id = $1 AND state = $2")
            .bind(id.to_string())
            .bind(sandbox.state.as_str())
            .bind(granted.as_millis())
            .execute(&mut *transaction)
            .await
            .step("extend a sandbox")?;
        commit(transaction).await?;
        Ok(granted)
    }
}

/// The volumes that the request names, each once and held by nobody.
async fn free_volumes(
    transaction: &mut WriteTransaction,
    new: &NewSandbox,
) -> Result<Vec<(Volume, MountPath)>, StoreError> {
    let mut seen = HashSet::new();
    let mut found = Vec::with_capacity(new.volumes.len());
    for (path, name) in &new.volumes {
        let volume = volume::visible(transaction, new.organisation, name).await?;
        if !seen.insert(volume.id) {
            return Err(StoreError::VolumeNamedTwice { slug: volume.slug });
        }
        if let Some(holder) = attachment::holder(transaction, volume.id).await? {
            return Err(volume.is_mounted(&holder));
        }
        found.push((volume, path.clone()));
    }
    Ok(found)
}

async fn insert(
    connection: &mut SqliteConnection,
    id: SandboxId,
    new: &NewSandbox,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (lifetime, stop_at) = match new.lifetime {
        Lifetime::Session => (SESSION, None),
        Lifetime::Until(stop_at) => (UNTIL, Some(stop_at.as_millis())),
    };
    sqlx::query(
        "INSERT INTO sandboxes (id, organisation, region, state, lifetime, stop_at, memory, \
             labels, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(id.to_string())
    .bind(new.organisation.to_string())
    .bind(id.region().to_string())
    .bind(SandboxState::Starting.as_str())
    .bind(lifetime)
    .bind(stop_at)
    .bind(signed(new.memory.bytes()))
    .bind(label::encode(new.labels.as_map()))
    .bind(now.as_millis())
    .execute(connection)
    .await
    .step("add a sandbox")?;
    Ok(())
}

pub(crate) async fn by_id(
    connection: &mut SqliteConnection,
    id: SandboxId,
) -> Result<Sandbox, StoreError> {
    let row = sqlx::query("SELECT * FROM sandboxes WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .step("read a sandbox")?
        .ok_or(StoreError::SandboxNotFound(id))?;
    sandbox(&row)
}

fn sandbox(row: &SqliteRow) -> Result<Sandbox, StoreError> {
    let row = Columns(row);
    let lifetime = row.text("lifetime")?;
    let lifetime = match (lifetime.as_str(), row.optional_time("stop_at")?) {
        (SESSION, None) => Lifetime::Session,
        (UNTIL, Some(stop_at)) => Lifetime::Until(stop_at),
        _ => return Err(unreadable("lifetime", lifetime)),
    };
    let stop_reason = match row.optional_text("stop_reason")? {
        None => None,
        Some(text) => {
            Some(StopReason::from_text(&text).ok_or_else(|| unreadable("stop_reason", text))?)
        }
    };
    Ok(Sandbox {
        id: row.parsed("id")?,
        organisation: row.parsed("organisation")?,
        region: row.parsed("region")?,
        state: row.one_of("state", SandboxState::from_text)?,
        lifetime,
        memory: row.unsigned("memory")?,
        labels: label::decode(&row.text("labels")?)?,
        created_at: row.time("created_at")?,
        stopped_at: row.optional_time("stopped_at")?,
        stop_reason,
    })
}
