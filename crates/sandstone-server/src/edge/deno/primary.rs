//! What a sandbox's life has to do with the connection that created it.

use std::sync::Arc;

use sandstone_api::SandboxId;
use sandstone_core::StopReason;

use crate::control::{ControlPlane, Principal};

/// The connection that created a sandbox. When it goes, in whatever way, a session sandbox ends;
/// when it never came up, nobody has the sandbox's id and any sandbox ends.
pub(super) struct Primary {
    control: Arc<ControlPlane>,
    who: Principal,
    id: SandboxId,
    is_established: bool,
}

impl Primary {
    pub(super) fn new(control: Arc<ControlPlane>, who: Principal, id: SandboxId) -> Self {
        Self {
            control,
            who,
            id,
            is_established: false,
        }
    }

    /// The socket came up.
    pub(super) fn established(mut self) -> Self {
        self.is_established = true;
        self
    }

    /// Ends a session sandbox now and waits until its volumes are free. Going out of scope does
    /// the same without waiting.
    pub(super) async fn end(&self) {
        self.control.end_session(self.id).await;
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // The server is ending; it stops its sandboxes by itself.
            return;
        };
        let control = self.control.clone();
        let (who, id, is_established) = (self.who.clone(), self.id, self.is_established);
        runtime.spawn(async move {
            if is_established {
                control.end_session(id).await;
            } else if let Err(error) = control
                .stop_sandbox(&who, id, StopReason::SessionEnded)
                .await
            {
                tracing::warn!(sandbox.id = %id, %error, "cannot stop a sandbox whose client has gone");
            }
        });
    }
}
