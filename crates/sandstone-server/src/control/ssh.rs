//! Who may enter a sandbox over SSH. A user name is the credential: it is random, it is told once
//! to whoever asks for it with a token, and it ends with the sandbox.

use std::fmt;
use std::sync::Arc;

use sandstone_api::{ApiError, SandboxId};
use sandstone_core::Entropy;
use sandstone_node_api::AgentClient;
use sandstone_store::StoreError;

use super::error;
use super::{ControlPlane, Principal};

/// RFC 4648's base 32 in small letters: five bits a character, and nothing that a shell or an SSH
/// client minds.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Characters of a user name: 130 bits.
const NAME_CHARS: usize = 26;

/// A user name that lets its bearer into one sandbox. It does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct SshUserName(String);

impl SshUserName {
    fn generate(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; NAME_CHARS];
        entropy.fill(&mut bytes);
        // 256 is a multiple of 32, so every character is equally likely.
        let chars = bytes.map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
        Self(chars.iter().collect())
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SshUserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshUserName(…)")
    }
}

/// What a user name opens.
#[derive(Debug, Clone)]
pub(crate) struct Entered {
    /// The sandbox.
    pub(crate) sandbox: SandboxId,
    /// A connection to its agent.
    pub(crate) agent: Arc<AgentClient>,
}

impl ControlPlane {
    /// Makes a user name that lets its bearer into the sandbox until that begins to stop.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND` unless it runs; `INVALID_REQUEST` when it has
    /// [`sandstone_store::SSH_USERS_MAX`] already.
    pub async fn add_ssh_user(
        &self,
        who: &Principal,
        id: SandboxId,
    ) -> Result<SshUserName, ApiError> {
        let name = SshUserName::generate(self.entropy.as_ref());
        let now = self.clock.now();
        let added = self
            .store
            .add_ssh_user(who.organisation, id, name.reveal(), now);
        let added = added.await;
        added.map_err(|error| error::of_store(&format!("sandbox {id}"), error))?;
        Ok(name)
    }

    /// The running sandbox that this user name opens, if any.
    ///
    /// # Errors
    /// `INTERNAL` when that cannot be said.
    pub(crate) async fn enter(&self, username: &str) -> Result<Option<Entered>, ApiError> {
        let of_store = |error: StoreError| error::of_store("the SSH user", error);
        let found = self.store.sandbox_of_ssh_user(username).await;
        let Some(sandbox) = found.map_err(of_store)? else {
            return Ok(None);
        };
        match self.node.agent(sandbox).await {
            Ok(agent) => Ok(Some(Entered { sandbox, agent })),
            Err(error) => {
                // It is ending at this moment, or its node cannot reach it.
                tracing::info!(%sandbox, %error, "a user came when its agent was out of reach");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;

    #[test]
    fn names_are_long_and_plain_and_secret() {
        for byte in [0, 31, 32, 255] {
            let name = SshUserName::generate(&Fixed(byte));
            assert_eq!(name.reveal().len(), NAME_CHARS);
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            assert!(name.reveal().chars().all(is_plain));
            assert_eq!(format!("{name:?}"), "SshUserName(…)");
        }
        assert_ne!(
            SshUserName::generate(&Fixed(0)),
            SshUserName::generate(&Fixed(31))
        );
    }
}
