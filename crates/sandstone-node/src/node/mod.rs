//! The node: the asynchronous face of [`Host`].

mod api;
mod network;
mod sandbox;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandstone_api::{IdSuffix, SandboxId};
use sandstone_authority::Authority;
use sandstone_core::{Clock, Entropy};
use sandstone_egress::{Egress, Gate};
use sandstone_node_api::{AgentClient, Chain, NodeApi, NodeError, NodeEvent, Readiness};
use sandstone_runtime::{Agent, Runtime, RuntimeConfig, Shim};
use sandstone_storage::{Pool, PoolConfig};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guest_trust::GuestTrust;
use crate::host::{BASE_IMAGE, Host, SandboxLimits, Writers, failed};
use crate::image::{ImageCache, recipe_hash};
use crate::record::Records;
use crate::warm::WarmPool;

/// Reports that may wait for the control plane. One per sandbox at most, so this is never full on
/// a host of ordinary size; a full queue delays the reporter, it loses nothing.
const EVENTS_MAX: usize = 1024;

/// What a node needs to know.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where everything that lasts is kept.
    pub data_dir: PathBuf,
    /// Where sockets and slots are kept; gone after a reboot.
    pub run_dir: PathBuf,
    /// Where built base images are kept, for all servers of this host.
    pub image_cache: PathBuf,
    /// Eight lower-case hexadecimal digits that tell this data directory from others on the host.
    pub instance: String,
    /// Bytes of the pool, when it has to be a file.
    pub pool_bytes: u64,
    /// Limits of every sandbox.
    pub limits: SandboxLimits,
    /// Sandboxes kept ready in advance.
    pub warm: usize,
    /// What sandboxes are given of the host.
    pub guest: GuestTrust,
    /// The command that runs a shim.
    pub shim: Shim,
    /// The /16 that sandboxes have their addresses in.
    pub network: std::net::Ipv4Addr,
}

/// A node of one host.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    phase: watch::Sender<Phase>,
    warm: Arc<WarmPool>,
    /// How many sandboxes are being started.
    starting: watch::Sender<usize>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    agents: Mutex<HashMap<SandboxId, Arc<AgentClient>>>,
    /// The sandboxes whose ends are reported.
    watched: Mutex<HashSet<SandboxId>>,
    /// Who stands at the doors of sandboxes whose network has a policy.
    gates: Mutex<HashMap<SandboxId, Gate>>,
    /// Serialises starting and stopping of each sandbox.
    turns: Mutex<HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>>,
    /// Held by what reads or writes a whole image.
    long_work: Arc<tokio::sync::Mutex<()>>,
    events: mpsc::Sender<NodeEvent>,
    events_out: Mutex<Option<mpsc::Receiver<NodeEvent>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing(String),
    Ready(Arc<Host>),
    Failed(String),
    ShutDown,
}

impl Node {
    /// Starts a node. It prepares itself in the background; [`NodeApi::readiness`] tells how far
    /// it is.
    #[must_use]
    pub fn start(
        config: NodeConfig,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Arc<Self> {
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let node = Arc::new(Self {
            warm: Arc::new(WarmPool::new(config.warm)),
            starting: watch::Sender::new(0),
            config,
            phase: watch::Sender::new(Phase::Preparing("starting".to_owned())),
            clock,
            entropy,
            agents: Mutex::default(),
            gates: Mutex::default(),
            watched: Mutex::default(),
            long_work: Arc::default(),
            turns: Mutex::default(),
            events,
            events_out: Mutex::new(Some(events_out)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        node.tasks.spawn(node.clone().prepare());
        node
    }

    /// Waits until the node is ready or cannot become so.
    pub async fn prepared(&self) -> Readiness {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase
            .wait_for(|phase| !matches!(phase, Phase::Preparing(_)))
            .await;
        self.readiness().await
    }

    async fn prepare(self: Arc<Self>) {
        let opened = {
            let node = self.clone();
            blocking(move || node.open_host()).await
        };
        match opened {
            Ok(host) => {
                let host = Arc::new(host);
                self.phase.send_replace(Phase::Ready(host.clone()));
                tracing::info!(pool = ?host.pool.backing(), "node ready");
                self.tasks.spawn(self.clone().guard_space(host.clone()));
                self.tasks.spawn(self.clone().drop_idle_trees(host.clone()));
                self.tasks.spawn(self.clone().keep_warm(host));
            }
            Err(error) => {
                let reason = Chain(&error).to_string();
                tracing::error!(%reason, "the node cannot start");
                self.phase.send_replace(Phase::Failed(reason));
            }
        }
    }

    fn open_host(&self) -> Result<Host, NodeError> {
        let config = &self.config;
        let step = |step: &str| {
            tracing::info!("{step}");
            self.phase.send_replace(Phase::Preparing(step.to_owned()));
        };
        step("opening the pool");
        let pool = self.open_pool()?;
        let base = format!("{BASE_IMAGE}-{}", recipe_hash());
        let pool = if pool.has_base(&base) {
            pool
        } else {
            // Closed meanwhile: a server that is told to stop now leaves nothing mounted.
            pool.close()
                .map_err(|error| failed("closing the pool", error))?;
            let cache = ImageCache::new(config.image_cache.clone());
            step("building the base image builtin:debian-13, which takes about two minutes");
            let image = cache
                .build(&mut |line| {
                    tracing::info!("base image: {line}");
                    self.phase
                        .send_replace(Phase::Preparing(format!("base image: {line}")));
                })
                .map_err(|error| failed("building the base image", error))?;
            step("installing the base image");
            let pool = self.open_pool()?;
            pool.install_base(&base, &image)
                .map_err(|error| failed("installing the base image", error))?;
            pool
        };

        step("opening the runtime");
        let agent = crate::agent_binary::install(&config.data_dir.join("agent"))
            .map_err(|error| failed("writing the agent", error))?;
        let sockets = config.run_dir.join(&config.instance);
        std::fs::create_dir_all(&sockets)
            .map_err(|error| failed(format!("making {}", sockets.display()), error))?;
        let runtime = Runtime::open(RuntimeConfig {
            instance: config.instance.clone(),
            slots_dir: config.run_dir.join("slots"),
            network: config.network,
            uid_base: RuntimeConfig::UID_BASE,
            shim: config.shim.clone(),
            agent: Agent { executable: agent },
            allow_private: config.guest.reachable.clone(),
        })
        .map_err(|error| failed("opening the runtime", error))?;
        let egress = self.open_egress()?;
        let records = Records::open(&config.data_dir.join("sandboxes"))
            .map_err(|error| failed("opening the records", error))?;
        let host = Host {
            pool,
            runtime,
            records,
            egress,
            base,
            sockets,
            limits: config.limits.clone(),
            writers: Writers::default(),
        };
        step("tidying up after an earlier server");
        host.sweep()?;
        Ok(host)
    }

    /// What makes connections for sandboxes whose network has a policy.
    fn open_egress(&self) -> Result<Arc<Egress>, NodeError> {
        let directory = self.config.data_dir.join("authority");
        std::fs::create_dir_all(&directory)
            .map_err(|error| failed(format!("making {}", directory.display()), error))?;
        let name = format!("Sandstone egress {}", self.config.instance);
        let authority = Authority::open(&directory, "egress", &name)
            .map_err(|error| failed("opening the authority for sandboxes' secrets", error))?;
        Ok(Egress::new(
            Arc::new(authority),
            self.clock.clone(),
            self.config.guest.reachable.clone(),
        ))
    }

    fn open_pool(&self) -> Result<Pool, NodeError> {
        let pool = Pool::open(PoolConfig {
            dir: self.config.data_dir.join("pool"),
            file_bytes: self.config.pool_bytes,
        })
        .map_err(|error| failed("opening the pool", error))?;
        pool.sweep_temporaries()
            .map_err(|error| failed("tidying the pool", error))?;
        Ok(pool)
    }

    fn scratch_name(&self) -> String {
        let mut bytes = [0; 20];
        self.entropy.fill(&mut bytes);
        IdSuffix::from_random(bytes).as_str().to_owned()
    }

    fn host(&self) -> Result<Arc<Host>, NodeError> {
        match &*self.phase.borrow() {
            Phase::Ready(host) => Ok(host.clone()),
            Phase::Preparing(step) => Err(NodeError::NotReady(step.clone())),
            Phase::Failed(reason) => Err(NodeError::NotReady(reason.clone())),
            Phase::ShutDown => Err(NodeError::NotReady("the node was shut down".to_owned())),
        }
    }

    /// The lock that serialises what is done to one sandbox.
    fn turn(&self, id: SandboxId) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.turns).entry(id).or_default().clone()
    }
}

/// Runs `work` where it may wait for the kernel.
async fn blocking<T, F>(work: F) -> Result<T, NodeError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, NodeError> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(failed("running a blocking step", error)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
