//! Attachments: which sandbox holds which volume, under which token.

use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::{AttachmentEvent, AttachmentState, Denied, MountPath, Timestamp};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::StoreError;
use crate::error::Step;
use crate::row::Columns;
use crate::volume::next_attach_token;

/// One volume held, or once held, by one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) volume: VolumeId,
    /// Larger than the token of every earlier attachment of the volume.
    pub(crate) token: i64,
    pub(crate) sandbox: SandboxId,
    pub(crate) state: AttachmentState,
}

/// What a volume is in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The root file system.
    Root,
    /// Mounted below it.
    At(MountPath),
}

impl Place {
    /// The text in the database. No [`MountPath`] is `/`.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Root => "/",
            Self::At(path) => path.as_str(),
        }
    }
}

impl Attachment {
    /// Whether the volume will be free soon without anyone asking.
    pub(crate) fn is_releasing(&self) -> bool {
        self.state == AttachmentState::Detaching
    }
}

/// Reserves a free volume for a sandbox.
pub(crate) async fn reserve(
    connection: &mut SqliteConnection,
    volume: VolumeId,
    sandbox: SandboxId,
    place: &Place,
    now: Timestamp,
) -> Result<(), StoreError> {
    let token = next_attach_token(connection, volume).await?;
    sqlx::query(
        "INSERT INTO attachments (volume, token, sandbox, path, state, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(volume.to_string())
    .bind(token)
    .bind(sandbox.to_string())
    .bind(place.as_str())
    .bind(AttachmentState::Attaching.as_str())
    .bind(now.as_millis())
    .execute(connection)
    .await
    .step("reserve a volume")?;
    Ok(())
}

/// The attachment that holds the volume, if any.
pub(crate) async fn holder(
    connection: &mut SqliteConnection,
    volume: VolumeId,
) -> Result<Option<Attachment>, StoreError> {
    sqlx::query("SELECT * FROM attachments WHERE volume = $1 AND state <> 'detached'")
        .bind(volume.to_string())
        .fetch_optional(connection)
        .await
        .step("read a volume's holder")?
        .map(|row| attachment(&row))
        .transpose()
}

/// The attachments of a sandbox that hold their volumes.
pub(crate) async fn held_by(
    connection: &mut SqliteConnection,
    sandbox: SandboxId,
) -> Result<Vec<Attachment>, StoreError> {
    sqlx::query(
        "SELECT * FROM attachments WHERE sandbox = $1 AND state <> 'detached' ORDER BY path",
    )
    .bind(sandbox.to_string())
    .fetch_all(connection)
    .await
    .step("read a sandbox's attachments")?
    .iter()
    .map(attachment)
    .collect()
}

/// Applies `event` to every attachment with which the sandbox holds a volume.
pub(crate) async fn transition_all(
    connection: &mut SqliteConnection,
    sandbox: SandboxId,
    event: AttachmentEvent,
) -> Result<Vec<VolumeId>, StoreError> {
    let held = held_by(connection, sandbox).await?;
    for attachment in &held {
        let denied = |reason| StoreError::denied(attachment.volume, reason);
        let next = attachment.state.next(event).map_err(denied)?;
        let changed = sqlx::query(
            "UPDATE attachments SET state = $4 WHERE volume = $1 AND token = $2 AND state = $3",
        )
        .bind(attachment.volume.to_string())
        .bind(attachment.token)
        .bind(attachment.state.as_str())
        .bind(next.as_str())
        .execute(&mut *connection)
        .await
        .step("change an attachment's state")?;
        if changed.rows_affected() != 1 {
            return Err(denied(Denied::WrongState));
        }
    }
    Ok(held.into_iter().map(|held| held.volume).collect())
}

fn attachment(row: &SqliteRow) -> Result<Attachment, StoreError> {
    let row = Columns(row);
    Ok(Attachment {
        volume: row.parsed("volume")?,
        token: row.number("token")?,
        sandbox: row.parsed("sandbox")?,
        state: row.one_of("state", AttachmentState::from_text)?,
    })
}
