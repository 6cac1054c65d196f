//! User names that let people into a running sandbox over SSH. A name is its own password, so only
//! its hash is kept; all names go in the transaction in which the sandbox begins to stop.

use sandstone_api::SandboxId;
use sandstone_core::{SandboxState, Timestamp};
use sqlx::SqliteConnection;

use crate::error::Step;
use crate::organisation::{OrganisationId, TokenHash};
use crate::row::Columns;
use crate::sandbox::of_client;
use crate::store::commit;
use crate::{Store, StoreError};

/// Most user names of one sandbox.
pub const SSH_USERS_MAX: u32 = 16;

impl Store {
    /// Lets whoever knows `username` enter the sandbox for as long as it runs.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`] unless it runs; [`StoreError::TooManySshUsers`] when it has
    /// [`SSH_USERS_MAX`] already.
    pub async fn add_ssh_user(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
        username: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let sandbox = of_client(&mut transaction, organisation, id).await?;
        if sandbox.state != SandboxState::Running {
            return Err(StoreError::SandboxNotFound(id));
        }
        let row = sqlx::query("SELECT COUNT(*) AS users FROM ssh_users WHERE sandbox = $1")
            .bind(id.to_string())
            .fetch_one(&mut *transaction)
            .await
            .step("count SSH users")?;
        if Columns(&row).number("users")? >= i64::from(SSH_USERS_MAX) {
            return Err(StoreError::TooManySshUsers(id));
        }
        sqlx::query("INSERT INTO ssh_users (sha256, sandbox, created_at) VALUES ($1, $2, $3)")
            .bind(TokenHash::of(username).as_str())
            .bind(id.to_string())
            .bind(now.as_millis())
            .execute(&mut *transaction)
            .await
            .step("add an SSH user")?;
        commit(transaction).await
    }

    /// The running sandbox that `username` opens, if any. The work does not depend on whether
    /// there is one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn sandbox_of_ssh_user(
        &self,
        username: &str,
    ) -> Result<Option<SandboxId>, StoreError> {
        sqlx::query(
            "SELECT sandboxes.id AS id FROM ssh_users \
             JOIN sandboxes ON sandboxes.id = ssh_users.sandbox \
             WHERE ssh_users.sha256 = $1 AND sandboxes.state = $2",
        )
        .bind(TokenHash::of(username).as_str())
        .bind(SandboxState::Running.as_str())
        .fetch_optional(self.read())
        .await
        .step("read an SSH user")?
        .map(|row| Columns(&row).parsed("id"))
        .transpose()
    }
}

/// Lets nobody in any more: the sandbox begins to stop.
pub(crate) async fn forget(
    connection: &mut SqliteConnection,
    id: SandboxId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM ssh_users WHERE sandbox = $1")
        .bind(id.to_string())
        .execute(connection)
        .await
        .step("forget SSH users")?;
    Ok(())
}
