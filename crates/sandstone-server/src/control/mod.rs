//! The control plane: requests of authenticated clients become intents of the store and promises
//! of the node, in that order.
//!
//! * The store says what should be before the node is asked, and what is after it has answered.
//!   Between the two anything may die: [`ControlPlane::recover`] and the reconcilers in
//!   [`ControlPlane::run`] bring every object to an end from whatever state they find.
//! * Work that was begun is carried out even when the client goes away: it runs in its own task,
//!   and the request only waits for it.
//! * A sandbox is started and stopped by one task at a time (module `live`); everyone who wants it
//!   stopped meanwhile waits for that task and gets its answer.
//!
//! ```text
//! start     begin_sandbox ──► node.start_sandbox ──► sandbox_started ──► the client has an id
//!                                    │ failed
//! stop      begin_stop ──► announce ─┴► node.stop_sandbox ──► sandbox_released ──► measure
//!
//! create,   begin_volume ───► node.create_volume ───► finish_volume ────► measure
//! fork                             │ failed
//!                                  └► finish_volume (failed) ──► purge
//! snapshot  begin_snapshot ─► node.create_snapshot ─► finish_snapshot ──► measure
//!                                  │ failed                         later └► record its checksum
//!                                  └► finish_snapshot (failed) ──► purge
//! grow      begin_grow ─────► node.grow_volume ─────► finish_grow
//! delete    delete_volume (its data stays; restore_volume until the grace period is over)
//! purge     begin_purge ────► node.remove_image ────► finish_purge
//! ```
//!
//! A volume and a snapshot are each an *image* to the node. No image depends on another: forks and
//! snapshots share blocks with their source, and any of them may go first.

mod archive;
mod config;
mod error;
mod exposure;
mod files;
mod image;
mod live;
mod maintenance;
mod making;
mod page;
mod pool;
mod reconcile;
mod recover;
mod sandbox;
mod show;
mod snapshot;
mod ssh;
mod stop;
mod tasks;
#[cfg(test)]
mod tests;
mod token;
mod volume;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandstone_api::{ApiError, ErrorCode, IdSuffix, Region};
use sandstone_core::{Clock, Entropy, SandboxBounds};
use sandstone_node_api::{NodeApi, Readiness};
use sandstone_store::{OrganisationId, Store, StoreError, TokenHash};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub use archive::{Export, NewImport};
pub use config::ControlConfig;
pub use exposure::{Exposed, ExposedAt};
pub use files::Content;
pub use maintenance::{Download, Upload};
pub use page::{Page, PageRequest};
pub use sandbox::NewSandbox;
pub(crate) use ssh::Entered;
pub use ssh::SshUserName;
pub use token::{Token, admit};
pub use volume::{NewVolume, Source};

use live::LiveMap;
use making::MakingSet;
use tasks::Tasks;

/// Longest token that is looked at. Ours have 44 characters.
const TOKEN_MAX_BYTES: usize = 512;

/// Everything that the API's dialects can ask for. Used as `Arc<ControlPlane>`.
pub struct ControlPlane {
    store: Store,
    node: Arc<dyn NodeApi>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    config: ControlConfig,
    live: LiveMap,
    making: MakingSet,
    /// Held by the one who enlarges a volume.
    growing: tokio::sync::Mutex<()>,
    /// Held by the one who reads a whole snapshot.
    reading: tokio::sync::Mutex<()>,
    /// Turns of those who make or unpack archives.
    archives: Arc<tokio::sync::Semaphore>,
    /// Work that outlives the requests that asked for it.
    tasks: Tasks,
    /// Woken when a sandbox with a deadline has started.
    deadlines: Notify,
    /// Woken whenever a sandbox was released, or a volume was enlarged or copied.
    released: Notify,
    /// Woken when a snapshot was taken.
    new_snapshots: Notify,
    /// Set when the last server's work was taken up: nothing new is begun before, or it would look
    /// like something the last server left.
    recovered: AtomicBool,
    /// Set when the server shuts down: nothing new is begun.
    draining: AtomicBool,
}

/// Proof that a request was authenticated, and as whom.
#[derive(Debug, Clone)]
pub struct Principal {
    organisation: OrganisationId,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// A control plane over a store and a node. Call [`ControlPlane::recover`] before it serves
    /// anyone, and [`ControlPlane::run`] while it does.
    #[must_use]
    pub fn new(
        store: Store,
        node: Arc<dyn NodeApi>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        config: ControlConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            node,
            clock,
            entropy,
            config,
            live: LiveMap::default(),
            making: MakingSet::default(),
            growing: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            archives: archive::turns(),
            tasks: Tasks::default(),
            deadlines: Notify::new(),
            released: Notify::new(),
            new_snapshots: Notify::new(),
            recovered: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// The regions that volumes and sandboxes can be in; the first is the default.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        self.config.regions()
    }

    /// What clients may ask of a sandbox.
    #[must_use]
    pub fn bounds(&self) -> &SandboxBounds {
        &self.config.bounds
    }

    /// Whether sandboxes can be created now.
    pub async fn readiness(&self) -> Readiness {
        if self.is_draining() {
            return Readiness::NotReady("the server is shutting down".to_owned());
        }
        match self.node.readiness().await {
            Readiness::Ready if !self.recovered.load(Ordering::SeqCst) => {
                Readiness::NotReady("taking up the work of the last server".to_owned())
            }
            readiness => readiness,
        }
    }

    /// Whom a token speaks for.
    ///
    /// # Errors
    /// `INVALID_TOKEN`.
    pub async fn authenticate(&self, token: &str) -> Result<Principal, ApiError> {
        let organisation = if token.len() <= TOKEN_MAX_BYTES {
            self.store
                .organisation_of_token(&TokenHash::of(token))
                .await
                .map_err(|error| error::of_store("the token", error))?
        } else {
            None
        };
        organisation
            .map(|organisation| Principal { organisation })
            .ok_or_else(|| {
                ApiError::new(ErrorCode::InvalidToken, "the token is unknown")
                    .with_hint("Use the token that the server printed or was given at its start.")
            })
    }

    /// Refuses new work before recovery and during shutdown.
    async fn check_ready(&self) -> Result<(), ApiError> {
        match self.readiness().await {
            Readiness::Ready => Ok(()),
            Readiness::NotReady(reason) => Err(error::not_ready(&reason)),
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn random_suffix(&self) -> IdSuffix {
        let mut bytes = [0; sandstone_api::ID_RANDOM_CHARS];
        self.entropy.fill(&mut bytes);
        IdSuffix::from_random(bytes)
    }

    /// Refuses a region that this server does not have.
    fn check_region(&self, region: Region) -> Result<(), ApiError> {
        if self.regions().contains(&region) {
            return Ok(());
        }
        let known: Vec<_> = self.regions().iter().map(Region::as_str).collect();
        Err(ApiError::invalid_field(
            "region",
            region,
            format_args!("this server has {}", known.join(", ")),
        ))
    }

    /// Runs `work` to its end even if the caller goes away, and waits for it. What `work` returns
    /// is dropped when nobody waits any more.
    async fn carry_out<T>(
        &self,
        object: &str,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
    {
        match self.tasks.spawn(object, work).await {
            Ok(result) => result,
            Err(failure) => {
                tracing::error!(object, %failure, "a task ended early");
                Err(error::internal(object))
            }
        }
    }

    /// Tries again whenever a sandbox has stopped or a volume became free, as long as the only
    /// obstacle is a sandbox that is being stopped already, or a volume that is being enlarged or
    /// copied. A client that ends a sandbox by hanging up and at once wants another, or its volume,
    /// cannot know that the volume is still on its way to the disk.
    async fn once_released<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let limit = Instant::now() + self.config.release_wait;
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            // From here on no release is missed.
            released.as_mut().enable();
            let result = attempt().await;
            let is_worth_waiting = matches!(
                result,
                Err(StoreError::VolumeIsMounted {
                    releasing: true,
                    ..
                } | StoreError::TooManySandboxes {
                    releasing: true,
                    ..
                } | StoreError::VolumeIsBusy { .. })
            );
            if !is_worth_waiting || timeout_at(limit, released).await.is_err() {
                return result;
            }
        }
    }
}
