//! Sandboxes: started, finding, extending. Beginning them is in [`crate::begin`], ending them in
//! [`crate::stop`].

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use sandstone_api::{Region, SandboxId};
use sandstone_core::{
    AttachmentEvent, Denied, Lifetime, SandboxEvent, SandboxState, StopReason, Timestamp,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::{Columns, unreadable};
use crate::store::commit;
use crate::{Store, StoreError, attachment, label};

/// Most sandboxes in one answer: the API has no pages for them.
pub const SANDBOXES_LISTED_MAX: usize = 1000;

pub(crate) const SESSION: &str = "session";
pub(crate) const UNTIL: &str = "until";

/// Whose sandbox it is: a client's, or the control plane's own.
pub(crate) const CLIENT: &str = "client";
pub(crate) const MAINTENANCE: &str = "maintenance";

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

impl Store {
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

    /// The organisation's sandbox with this id, in whatever state; none for maintenance.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`].
    pub async fn sandbox(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
    ) -> Result<Sandbox, StoreError> {
        let mut connection = self.read().acquire().await.step("read a sandbox")?;
        of_client(&mut connection, organisation, id).await
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
    /// `labels`, and none for maintenance.
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
             WHERE organisation = $1 AND purpose = $4 AND state <> 'starting' \
                 AND (stopped_at IS NULL OR stopped_at > $2) \
                 AND (stop_reason IS NULL OR stop_reason <> $3) \
             ORDER BY created_at DESC, id DESC",
        )
        .bind(organisation.to_string())
        .bind(stopped_after.as_millis())
        .bind(StopReason::StartFailed.as_str())
        .bind(CLIENT)
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
        let sandbox = of_client(&mut transaction, organisation, id).await?;
        if sandbox.state != SandboxState::Running {
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

/// The sandbox with this id that a client of the organisation has begun.
pub(crate) async fn of_client(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    id: SandboxId,
) -> Result<Sandbox, StoreError> {
    let row =
        sqlx::query("SELECT * FROM sandboxes WHERE id = $1 AND organisation = $2 AND purpose = $3")
            .bind(id.to_string())
            .bind(organisation.to_string())
            .bind(CLIENT)
            .fetch_optional(connection)
            .await
            .step("read a sandbox")?
            .ok_or(StoreError::SandboxNotFound(id))?;
    sandbox(&row)
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
        stop_reason: row.optional_one_of("stop_reason", StopReason::from_text)?,
    })
}
