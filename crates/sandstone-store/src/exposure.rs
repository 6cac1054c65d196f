//! Names under which servers in sandboxes can be reached. They live as long as their sandbox runs.

use sandstone_api::SandboxId;
use sandstone_core::{
    EXPOSURES_PER_SANDBOX_MAX, ExposureName, ExposureTarget, SandboxState, Timestamp,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::error::Step;
use crate::organisation::OrganisationId;
use crate::row::{Columns, unreadable};
use crate::sandbox::of_client;
use crate::store::commit;
use crate::{Store, StoreError};

/// A name of a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The name.
    pub name: ExposureName,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// Where it leads; nowhere until it is bound.
    pub target: Option<ExposureTarget>,
    /// When it was issued.
    pub created_at: Timestamp,
}

impl Store {
    /// Issues a name for a running sandbox.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`] unless it runs; [`StoreError::TooManyExposures`] when it
    /// has [`EXPOSURES_PER_SANDBOX_MAX`] already.
    pub async fn add_exposure(
        &self,
        organisation: OrganisationId,
        exposure: &Exposure,
    ) -> Result<(), StoreError> {
        let id = exposure.sandbox;
        let mut transaction = self.begin().await?;
        check_runs(&mut transaction, organisation, id).await?;
        let row = sqlx::query("SELECT COUNT(*) AS count FROM exposures WHERE sandbox = $1")
            .bind(id.to_string())
            .fetch_one(&mut *transaction)
            .await
            .step("count exposures")?;
        if Columns(&row).unsigned("count")? >= EXPOSURES_PER_SANDBOX_MAX as u64 {
            return Err(StoreError::TooManyExposures(id));
        }
        let (port, pid, socket) = columns(exposure.target.as_ref());
        sqlx::query(
            "INSERT INTO exposures (name, sandbox, port, pid, socket, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(exposure.name.as_str())
        .bind(id.to_string())
        .bind(port)
        .bind(pid)
        .bind(socket)
        .bind(exposure.created_at.as_millis())
        .execute(&mut *transaction)
        .await
        .step("add an exposure")?;
        commit(transaction).await
    }

    /// Lets a name of a running sandbox lead to `target`, wherever it led before.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`] unless it runs; [`StoreError::ExposureNotFound`] when the
    /// name was not issued for it.
    pub async fn bind_exposure(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
        name: &ExposureName,
        target: &ExposureTarget,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        check_runs(&mut transaction, organisation, id).await?;
        let (port, pid, socket) = columns(Some(target));
        let bound = sqlx::query(
            "UPDATE exposures SET port = $3, pid = $4, socket = $5 WHERE name = $1 AND sandbox = $2",
        )
        .bind(name.as_str())
        .bind(id.to_string())
        .bind(port)
        .bind(pid)
        .bind(socket)
        .execute(&mut *transaction)
        .await
        .step("bind an exposure")?;
        if bound.rows_affected() != 1 {
            return Err(StoreError::ExposureNotFound(id));
        }
        commit(transaction).await
    }

    /// Takes a name of a running sandbox back.
    ///
    /// # Errors
    /// As [`Store::bind_exposure`].
    pub async fn remove_exposure(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
        name: &ExposureName,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        check_runs(&mut transaction, organisation, id).await?;
        let removed = sqlx::query("DELETE FROM exposures WHERE name = $1 AND sandbox = $2")
            .bind(name.as_str())
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await
            .step("remove an exposure")?;
        if removed.rows_affected() != 1 {
            return Err(StoreError::ExposureNotFound(id));
        }
        commit(transaction).await
    }

    /// Whose this name is, while that sandbox runs. Whoever knows a name may ask.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn exposure(&self, name: &ExposureName) -> Result<Option<Exposure>, StoreError> {
        sqlx::query(
            "SELECT exposures.* FROM exposures JOIN sandboxes ON sandboxes.id = exposures.sandbox \
             WHERE exposures.name = $1 AND sandboxes.state = $2",
        )
        .bind(name.as_str())
        .bind(SandboxState::Running.as_str())
        .fetch_optional(self.read())
        .await
        .step("find an exposure")?
        .as_ref()
        .map(exposure)
        .transpose()
    }

    /// The names of a sandbox, the oldest first; none unless it runs.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`] when the organisation has no such sandbox.
    pub async fn exposures(
        &self,
        organisation: OrganisationId,
        id: SandboxId,
    ) -> Result<Vec<Exposure>, StoreError> {
        let mut connection = self.read().acquire().await.step("list exposures")?;
        of_client(&mut connection, organisation, id).await?;
        sqlx::query("SELECT * FROM exposures WHERE sandbox = $1 ORDER BY created_at, name")
            .bind(id.to_string())
            .fetch_all(&mut *connection)
            .await
            .step("list exposures")?
            .iter()
            .map(exposure)
            .collect()
    }
}

/// Takes all names of a sandbox back: it begins to stop.
pub(crate) async fn remove_all(
    connection: &mut SqliteConnection,
    id: SandboxId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM exposures WHERE sandbox = $1")
        .bind(id.to_string())
        .execute(connection)
        .await
        .step("remove exposures")?;
    Ok(())
}

async fn check_runs(
    connection: &mut SqliteConnection,
    organisation: OrganisationId,
    id: SandboxId,
) -> Result<(), StoreError> {
    match of_client(connection, organisation, id).await?.state {
        SandboxState::Running => Ok(()),
        SandboxState::Starting | SandboxState::Stopping | SandboxState::Stopped => {
            Err(StoreError::SandboxNotFound(id))
        }
    }
}

/// Port, pid and socket: the first, or the two others.
fn columns(target: Option<&ExposureTarget>) -> (Option<u16>, Option<u32>, Option<&str>) {
    match target {
        None => (None, None, None),
        Some(ExposureTarget::Port(port)) => (Some(*port), None, None),
        Some(ExposureTarget::Process { pid, socket }) => (None, Some(*pid), Some(socket)),
    }
}

fn exposure(row: &SqliteRow) -> Result<Exposure, StoreError> {
    let row = Columns(row);
    let pid = row.optional_unsigned("pid")?;
    let socket = row.optional_text("socket")?;
    let target = match (row.optional_unsigned("port")?, pid, socket) {
        (None, None, None) => None,
        (Some(port), None, None) => {
            let port = u16::try_from(port).map_err(|_| unreadable("port", port))?;
            Some(ExposureTarget::Port(port))
        }
        (None, Some(pid), Some(socket)) => {
            let pid = u32::try_from(pid).map_err(|_| unreadable("pid", pid))?;
            Some(ExposureTarget::Process { pid, socket })
        }
        (_, pid, _) => return Err(unreadable("pid", pid.unwrap_or(0))),
    };
    Ok(Exposure {
        name: row.parsed("name")?,
        sandbox: row.parsed("sandbox")?,
        target,
        created_at: row.time("created_at")?,
    })
}
