//! Who may enter over SSH, for every dialect: both name the same three fields.

use axum::Json;
use sandstone_api::{ApiError, ErrorCode, SandboxId};
use serde::Serialize;

use super::Edge;
use crate::control::Principal;

/// How to enter a sandbox: `ssh -p PORT USERNAME@HOSTNAME`. The user name is the credential.
#[derive(Debug, Serialize)]
pub(super) struct SshAccess {
    hostname: String,
    username: String,
    port: u16,
}

/// Makes a user name for the sandbox.
///
/// # Errors
/// `NOT_SUPPORTED` when this server has no SSH listener; those of
/// [`crate::control::ControlPlane::add_ssh_user`].
pub(super) async fn expose(
    edge: &Edge,
    who: &Principal,
    id: SandboxId,
) -> Result<Json<SshAccess>, ApiError> {
    let endpoint = edge.ssh.as_ref().ok_or_else(|| {
        ApiError::new(ErrorCode::NotSupported, "this server does not offer SSH")
            .with_hint("Its operator can turn it on with `sandstone serve --ssh-listen`.")
    })?;
    let username = edge.control.add_ssh_user(who, id).await?;
    Ok(Json(SshAccess {
        hostname: endpoint.hostname.clone(),
        username: username.reveal().to_owned(),
        port: endpoint.port,
    }))
}
