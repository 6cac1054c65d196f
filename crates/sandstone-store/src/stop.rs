//! Ending sandboxes: the reason first, the release last, the record later forgotten.

use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::{AttachmentEvent, Denied, SandboxEvent, SandboxState, StopReason, Timestamp};
use sqlx::SqliteConnection;

use crate::error::Step;
use crate::sandbox::{Sandbox, by_id};
use crate::store::commit;
use crate::{Store, StoreError, attachment, exposure, measure, network, ssh_user};

/// A sandbox that is to end, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopBegun {
    /// Why it ends: the reason of whoever asked first.
    pub reason: StopReason,
    /// Whether it has ended: everything was released. Nothing was changed then.
    pub already_stopped: bool,
    /// The volumes it still holds, its root among them.
    pub volumes: Vec<VolumeId>,
}

impl Store {
    /// Records that the sandbox is to end. The first reason stays; repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`].
    pub async fn begin_stop(
        &self,
        id: SandboxId,
        reason: StopReason,
    ) -> Result<StopBegun, StoreError> {
        let mut transaction = self.begin().await?;
        let sandbox = by_id(&mut transaction, id).await?;
        let reason = sandbox.stop_reason.unwrap_or(reason);
        if sandbox.state == SandboxState::Stopped {
            return Ok(StopBegun {
                reason,
                already_stopped: true,
                volumes: Vec::new(),
            });
        }
        let next = Change {
            stop_reason: reason,
            stopped_at: None,
        };
        transition(&mut transaction, &sandbox, SandboxEvent::Stop, next).await?;
        network::forget_secrets(&mut transaction, id).await?;
        exposure::remove_all(&mut transaction, id).await?;
        let volumes =
            attachment::transition_all(&mut transaction, id, AttachmentEvent::BeginDetach).await?;
        ssh_user::forget(&mut transaction, id).await?;
        commit(transaction).await?;
        Ok(StopBegun {
            reason,
            already_stopped: false,
            volumes,
        })
    }

    /// Records that nothing of the sandbox is left on its node: its volumes are on disk and free.
    /// Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the stop was not begun.
    pub async fn sandbox_released(&self, id: SandboxId, now: Timestamp) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let sandbox = by_id(&mut transaction, id).await?;
        if sandbox.state == SandboxState::Stopped {
            return Ok(());
        }
        let stop_reason = sandbox
            .stop_reason
            .ok_or_else(|| StoreError::denied(id, Denied::WrongState))?;
        let next = Change {
            stop_reason,
            stopped_at: Some(now),
        };
        transition(&mut transaction, &sandbox, SandboxEvent::Released, next).await?;
        attachment::transition_all(&mut transaction, id, AttachmentEvent::Released).await?;
        measure::mark_volumes_of(&mut transaction, id, now).await?;
        commit(transaction).await
    }

    /// Forgets sandboxes that stopped before `before`, with their attachments; at most `limit`,
    /// returns how many. The attach tokens of their volumes stay.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn forget_stopped(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "DELETE FROM attachments WHERE sandbox IN \
                 (SELECT id FROM sandboxes WHERE state = 'stopped' AND stopped_at <= $1 \
                  ORDER BY stopped_at, id LIMIT $2)",
        )
        .bind(before.as_millis())
        .bind(i64::from(limit))
        .execute(&mut *transaction)
        .await
        .step("forget attachments")?;
        let forgotten = sqlx::query(
            "DELETE FROM sandboxes WHERE id IN \
                 (SELECT id FROM sandboxes WHERE state = 'stopped' AND stopped_at <= $1 \
                  ORDER BY stopped_at, id LIMIT $2)",
        )
        .bind(before.as_millis())
        .bind(i64::from(limit))
        .execute(&mut *transaction)
        .await
        .step("forget sandboxes")?;
        commit(transaction).await?;
        Ok(forgotten.rows_affected())
    }
}

struct Change {
    stop_reason: StopReason,
    stopped_at: Option<Timestamp>,
}

async fn transition(
    connection: &mut SqliteConnection,
    sandbox: &Sandbox,
    event: SandboxEvent,
    change: Change,
) -> Result<(), StoreError> {
    let next = sandbox
        .state
        .next(event)
        .map_err(|reason| StoreError::denied(sandbox.id, reason))?;
    let changed = sqlx::query(
        "UPDATE sandboxes SET state = $3, stop_reason = $4, stopped_at = $5 \
         WHERE id = $1 AND state = $2",
    )
    .bind(sandbox.id.to_string())
    .bind(sandbox.state.as_str())
    .bind(next.as_str())
    .bind(change.stop_reason.as_str())
    .bind(change.stopped_at.map(Timestamp::as_millis))
    .execute(connection)
    .await
    .step("change a sandbox's state")?;
    if changed.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::denied(sandbox.id, Denied::WrongState))
    }
}
