//! Maintenance sandboxes: how the server reads and writes what is on a volume or snapshot.
//!
//! A tree that a tenant made is only ever walked inside a sandbox. The server starts an ordinary
//! one from the base image with the volume or snapshot at [`IMAGE_PATH`], runs a tool of the base
//! image in it, and ends it again. Nothing of the tenant runs there.
//!
//! ```text
//! begin_maintenance ──► node.start_sandbox ──► tools ──► close ──► volume on disk and free
//!                                                  │ dropped
//!                                                  └───► the same, in the background
//! ```

mod blocking;
mod tool;
mod transfer;

use std::fmt;
use std::sync::Arc;

use sandstone_api::{ApiError, ImageId};
use sandstone_core::{Memory, MountPath, NetworkPolicy, StopReason};
use sandstone_node_api::{AgentClient, Mount, Root, SandboxSpec};
use sandstone_store::OrganisationId;

use super::error;
use super::sandbox::Unclaimed;
use super::{ControlPlane, Principal};

pub(super) use blocking::{Reader, Writer};
pub(super) use tool::{Input, Tool, ToolError};
pub use transfer::{Download, Upload};
pub(super) use transfer::{Incoming, Outgoing, download, incomplete};

/// Where the volume or snapshot is. The programs that run in these sandboxes know it too.
const IMAGE_PATH: &str = "/mnt/image";

/// A running maintenance sandbox. Dropped, it is ended in the background.
pub(super) struct Maintenance {
    control: Arc<ControlPlane>,
    sandbox: Unclaimed,
    agent: Arc<AgentClient>,
}

impl fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maintenance")
            .field("id", &self.sandbox.id())
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// Starts a sandbox that has `image` at [`IMAGE_PATH`]: a volume read-write, a snapshot
    /// read-only. Waits a little for a volume whose sandbox is being stopped.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `SNAPSHOT_NOT_FOUND`, `VOLUME_IS_MOUNTED` naming the sandbox,
    /// `NOT_READY`, `POOL_FULL`, `TIMED_OUT`, `INTERNAL`. Nothing is left of the sandbox then.
    pub(super) async fn open_image(
        self: &Arc<Self>,
        who: &Principal,
        image: ImageId,
    ) -> Result<Maintenance, ApiError> {
        let work = self.clone().start_maintenance(who.organisation, image);
        self.carry_out(&image.to_string(), work).await
    }

    async fn start_maintenance(
        self: Arc<Self>,
        organisation: OrganisationId,
        image: ImageId,
    ) -> Result<Maintenance, ApiError> {
        let object = image.to_string();
        let path = MountPath::parse(IMAGE_PATH).map_err(|_| error::internal(&object))?;
        let memory = Memory::MAINTENANCE;
        let suffix = self.random_suffix();
        let begin = || async {
            let (path, now) = (path.clone(), self.clock.now());
            let begun = self.store.begin_maintenance(
                suffix,
                organisation,
                image,
                memory,
                path.clone(),
                now,
            );
            Ok(SandboxSpec {
                id: begun.await?,
                memory,
                root: Root::Base,
                mounts: vec![Mount { image, path }],
                environment: [].into(),
                network: NetworkPolicy::default(),
            })
        };
        let sandbox = self.start(suffix, begin).await?;
        let agent = self.node.agent(sandbox.id()).await;
        Ok(Maintenance {
            agent: agent.map_err(|error| error::of_node(&object, error))?,
            control: self,
            sandbox,
        })
    }
}

impl Maintenance {
    /// The connection to its agent.
    pub(super) fn agent(&self) -> &Arc<AgentClient> {
        &self.agent
    }

    /// Ends it; returns when what was written is on disk and the volume is free.
    ///
    /// # Errors
    /// `TIMED_OUT`, `INTERNAL` when it is not yet. It is tried again then.
    pub(super) async fn close(self) -> Result<(), ApiError> {
        let id = self.sandbox.claim();
        let stop = self.control.clone().stop(id, StopReason::SessionEnded);
        self.control.carry_out(&format!("sandbox {id}"), stop).await
    }
}
