//! The node: the asynchronous face of [`Host`].

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sandstone_api::{IdSuffix, SandboxId, VolumeId};
use sandstone_core::Entropy;
use sandstone_node_api::{
    AgentClient, NodeApi, NodeError, NodeEvent, Readiness, SandboxSpec, VolumeSpec, VolumeUsage,
};
use sandstone_protocol::message::{Configure, Request};
use sandstone_runtime::{Agent, Runtime, RuntimeConfig, Shim};
use sandstone_storage::{Pool, PoolConfig};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guest_trust::GuestTrust;
use crate::host::{BASE_IMAGE, Host, SandboxLimits, failed};
use crate::image::{ImageCache, recipe_hash};
use crate::record::Records;
use crate::warm::{Warm, WarmPool};

/// How long the agent may take from being executed to having prepared the interior.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(10);

/// Reports that may wait for the control plane. One per sandbox at most, so this is never full on
/// a host of ordinary size; a full queue delays the reporter, it loses nothing.
const EVENTS_MAX: usize = 1024;

/// How long the node's own tasks may take to end when it is shut down.
const TASKS_LIMIT: Duration = Duration::from_secs(3);

/// Longest time for which starting sandboxes come before the next warm one.
const WARM_PATIENCE: Duration = Duration::from_millis(100);

/// Pause after a warm sandbox could not be made.
const WARM_RETRY: Duration = Duration::from_secs(5);

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
    warm: WarmPool,
    /// How many sandboxes are being started.
    starting: watch::Sender<usize>,
    entropy: Arc<dyn Entropy>,
    agents: Mutex<HashMap<SandboxId, Arc<AgentClient>>>,
    /// Serialises starting and stopping of each sandbox.
    turns: Mutex<HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>>,
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
    pub fn start(config: NodeConfig, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let node = Arc::new(Self {
            warm: WarmPool::new(config.warm),
            starting: watch::Sender::new(0),
            config,
            phase: watch::Sender::new(Phase::Preparing("starting".to_owned())),
            entropy,
            agents: Mutex::default(),
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
                self.tasks.spawn(self.clone().keep_warm(host));
            }
            Err(error) => {
                let reason = chain(&error);
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
        let records = Records::open(&config.data_dir.join("sandboxes"))
            .map_err(|error| failed("opening the records", error))?;
        let host = Host {
            pool,
            runtime,
            records,
            base,
            sockets,
            limits: config.limits.clone(),
        };
        step("tidying up after an earlier server");
        host.sweep()?;
        Ok(host)
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

    async fn keep_warm(self: Arc<Self>, host: Arc<Host>) {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = self.warm.wanted() => {}
            }
            self.let_starts_pass().await;
            let scratch = self.scratch_name();
            let made = {
                let host = host.clone();
                blocking(move || host.prepare(scratch)).await
            };
            match made {
                Ok(warm) => self.warm.add(warm),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "no warm sandbox");
                    tokio::select! {
                        () = self.shutdown.cancelled() => break,
                        () = tokio::time::sleep(WARM_RETRY) => {}
                    }
                }
            }
        }
    }

    /// Waits while sandboxes are being started: they need the processors more than the next warm
    /// one does.
    async fn let_starts_pass(&self) {
        let mut starting = self.starting.subscribe();
        let quiet = starting.wait_for(|starting| *starting == 0);
        // The sender lives as long as `self`; a host that is always busy still gets warm ones.
        let _ = tokio::time::timeout(WARM_PATIENCE, quiet).await;
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

    async fn start_in_turn(&self, host: Arc<Host>, spec: &SandboxSpec) -> Result<(), NodeError> {
        let warm = self.warm.take();
        let scratch = self.scratch_name();
        {
            let (host, spec) = (host.clone(), spec.clone());
            blocking(move || {
                let warm: Warm = match warm {
                    Some(warm) => warm,
                    None => host.prepare(scratch)?,
                };
                host.start(&spec, warm)
            })
            .await?;
        }
        let begun = std::time::Instant::now();
        let configured = tokio::time::timeout(CONFIGURE_LIMIT, self.configure(&host, spec)).await;
        tracing::debug!(
            step = "interior prepared",
            took_us = begun.elapsed().as_micros()
        );
        match configured {
            Ok(Ok(())) => {}
            outcome => {
                lock(&self.agents).remove(&spec.id);
                let id = spec.id;
                if let Err(error) = blocking(move || host.stop(id)).await {
                    tracing::warn!(sandbox.id = %id, error = %chain(&error), "not gone yet");
                }
                return match outcome {
                    Ok(result) => result,
                    Err(_) => Err(NodeError::TimedOut {
                        step: "preparing the sandbox's interior",
                        limit_ms: CONFIGURE_LIMIT.as_millis() as u64,
                    }),
                };
            }
        }
        self.watch(&host, spec.id)
    }

    async fn configure(&self, host: &Host, spec: &SandboxSpec) -> Result<(), NodeError> {
        let agent = self.connect(host, spec.id).await?;
        let guest = &self.config.guest;
        let mut environment = guest.environment.clone();
        environment.extend(spec.environment.clone());
        let configure = Configure {
            user: "app".to_owned(),
            hostname: spec.id.suffix().to_owned(),
            working_directory: "/home/app".to_owned(),
            environment,
            files: guest.files.clone(),
            certificate_authorities: guest.certificate_authorities.clone(),
        };
        agent
            .call(Request::Configure(configure))
            .await
            .map_err(|error| failed(format!("preparing the interior of {}", spec.id), error))?;
        Ok(())
    }

    async fn connect(&self, host: &Host, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        let step = || format!("connecting to the agent of {id}");
        let stream = UnixStream::connect(host.socket(id))
            .await
            .map_err(|error| failed(step(), error))?;
        let agent = AgentClient::connect(stream)
            .await
            .map_err(|error| failed(step(), error))?;
        lock(&self.agents).insert(id, agent.clone());
        Ok(agent)
    }

    /// Reports when the sandbox's first process ends.
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps its descriptor, so this use is sound"
    )]
    fn watch(&self, host: &Host, id: SandboxId) -> Result<(), NodeError> {
        let pidfd = host
            .runtime
            .exited(id.suffix())
            .map_err(|error| failed(format!("watching {id}"), error))?;
        let pidfd: AsyncFd<OwnedFd> = AsyncFd::with_interest(pidfd, Interest::READABLE)
            .map_err(|error| failed(format!("watching {id}"), error))?;
        let events = self.events.clone();
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = pidfd.readable() => {
                    // Nobody listens any more when the server is going down.
                    let _ = events.send(NodeEvent::SandboxExited(id)).await;
                }
            }
        });
        Ok(())
    }
}

#[async_trait]
impl NodeApi for Node {
    async fn readiness(&self) -> Readiness {
        match self.host() {
            Ok(_) => Readiness::Ready,
            Err(NodeError::NotReady(reason)) => Readiness::NotReady(reason),
            Err(error) => Readiness::NotReady(error.to_string()),
        }
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), NodeError> {
        let (host, spec) = (self.host()?, spec.clone());
        blocking(move || host.create_volume(&spec)).await
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), NodeError> {
        let host = self.host()?;
        blocking(move || host.remove_volume(id)).await
    }

    async fn measure_volume(&self, id: VolumeId) -> Result<VolumeUsage, NodeError> {
        let host = self.host()?;
        blocking(move || host.measure_volume(id)).await
    }

    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError> {
        let host = self.host()?;
        let turn = self.turn(spec.id);
        let _turn = turn.lock().await;
        self.starting.send_modify(|starting| *starting += 1);
        let started = self.start_in_turn(host, spec).await;
        self.starting.send_modify(|starting| *starting -= 1);
        started
    }

    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError> {
        let host = self.host()?;
        let turn = self.turn(id);
        let guard = turn.lock().await;
        lock(&self.agents).remove(&id);
        let stopped = blocking(move || host.stop(id)).await;
        drop(guard);
        if stopped.is_ok() {
            lock(&self.turns).remove(&id);
        }
        stopped
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        let host = self.host()?;
        blocking(move || host.sandboxes()).await
    }

    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        let known = lock(&self.agents).get(&id).cloned();
        if let Some(agent) = known
            && !agent.is_closed()
        {
            return Ok(agent);
        }
        let host = self.host()?;
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let again = lock(&self.agents).get(&id).cloned();
        match again {
            Some(agent) if !agent.is_closed() => return Ok(agent),
            Some(_) => {}
            // Unknown here: it was started before this server, so it is not watched yet either.
            None => {
                if host.records.read(id).ok().flatten().is_none() {
                    return Err(NodeError::NoSuchSandbox(id));
                }
                self.watch(&host, id)?;
            }
        }
        self.connect(&host, id).await
    }

    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>> {
        lock(&self.events_out).take()
    }

    async fn shut_down(&self) -> Result<(), NodeError> {
        self.shutdown.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(TASKS_LIMIT, self.tasks.wait()).await;
        if ended.is_err() && matches!(&*self.phase.borrow(), Phase::Preparing(_)) {
            // A base image is being built. Its processes end with ours.
            return Ok(());
        }
        let Phase::Ready(host) = self.phase.send_replace(Phase::ShutDown) else {
            return Ok(());
        };
        lock(&self.agents).clear();
        let warm = self.warm.drain();
        blocking(move || {
            for warm in warm {
                host.discard(warm)?;
            }
            if host.sandboxes()?.is_empty() {
                host.runtime
                    .close()
                    .map_err(|error| failed("closing the runtime", error))?;
                host.pool
                    .close()
                    .map_err(|error| failed("closing the pool", error))?;
                let _ = std::fs::remove_dir(&host.sockets);
            }
            Ok(())
        })
        .await
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

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
