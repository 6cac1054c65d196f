//! What a sandbox may reach, and its secrets. The secrets' values are here only as long as the
//! sandbox may run: a server that is started again needs them.

use sandstone_api::SandboxId;
use sandstone_core::{HostPattern, NetworkPolicy, Placeholder, Secret};
use sqlx::SqliteConnection;

use crate::error::Step;
use crate::row::{Columns, unreadable};
use crate::{Store, StoreError};

impl Store {
    /// The network policy of a sandbox that is not stopping yet.
    ///
    /// # Errors
    /// [`StoreError::SandboxNotFound`].
    pub async fn network_policy(&self, id: SandboxId) -> Result<NetworkPolicy, StoreError> {
        let mut connection = self.read().acquire().await.step("read a network policy")?;
        let row = sqlx::query("SELECT allow_net FROM sandboxes WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&mut *connection)
            .await
            .step("read a network policy")?
            .ok_or(StoreError::SandboxNotFound(id))?;
        let allow = Columns(&row)
            .optional_text("allow_net")?
            .map(|text| patterns("allow_net", &text))
            .transpose()?;
        let rows = sqlx::query(
            "SELECT name, placeholder, value, hosts FROM secrets WHERE sandbox = $1 ORDER BY name",
        )
        .bind(id.to_string())
        .fetch_all(&mut *connection)
        .await
        .step("read secrets")?;
        let secrets = rows.iter().map(|row| {
            let row = Columns(row);
            let name = row.text("name")?;
            let placeholder = row.one_of("placeholder", Placeholder::parse)?;
            let hosts = patterns("hosts", &row.text("hosts")?)?;
            // The name, not the value: this is shown.
            Secret::new(&name, hosts, row.text("value")?, placeholder)
                .map_err(|_| unreadable("secrets", name))
        });
        Ok(NetworkPolicy {
            allow,
            secrets: secrets.collect::<Result<_, _>>()?,
        })
    }
}

/// Records the policy of a sandbox that was just inserted.
pub(crate) async fn record(
    connection: &mut SqliteConnection,
    id: SandboxId,
    policy: &NetworkPolicy,
) -> Result<(), StoreError> {
    if let Some(allow) = &policy.allow {
        sqlx::query("UPDATE sandboxes SET allow_net = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(encode(allow))
            .execute(&mut *connection)
            .await
            .step("record a network policy")?;
    }
    for secret in &policy.secrets {
        sqlx::query(
            "INSERT INTO secrets (sandbox, name, placeholder, value, hosts) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.to_string())
        .bind(&secret.name)
        .bind(secret.placeholder.as_str())
        .bind(secret.value.reveal())
        .bind(encode(&secret.hosts))
        .execute(&mut *connection)
        .await
        .step("record a secret")?;
    }
    Ok(())
}

/// Removes the secrets of a sandbox that is to end: nothing is sent for it any more.
pub(crate) async fn forget_secrets(
    connection: &mut SqliteConnection,
    id: SandboxId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM secrets WHERE sandbox = $1")
        .bind(id.to_string())
        .execute(connection)
        .await
        .step("forget secrets")?;
    Ok(())
}

fn encode(patterns: &[HostPattern]) -> String {
    let texts: Vec<String> = patterns.iter().map(ToString::to_string).collect();
    serde_json::Value::from(texts).to_string()
}

fn patterns(column: &'static str, text: &str) -> Result<Vec<HostPattern>, StoreError> {
    let texts: Vec<String> = serde_json::from_str(text).map_err(|_| unreadable(column, text))?;
    texts
        .iter()
        .map(|pattern| pattern.parse().map_err(|_| unreadable(column, pattern)))
        .collect()
}
