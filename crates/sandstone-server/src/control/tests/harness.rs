//! A control plane in a temporary directory, and short ways to use it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use sandstone_api::{self as api, ApiError, ByteSize, ErrorCode, Region, SandboxId};
use sandstone_core::{
    Clock, Entropy, Labels, Lifetime, Memory, MountPath, StopReason, Timestamp, VolumeCapacity,
};
use sandstone_node_api::NodeApi;
use sandstone_store::{Sandbox, Store};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::node::FakeNode;
use crate::control::{
    ControlConfig, ControlPlane, NewSandbox, NewVolume, Principal, Source, Token, admit,
};

/// Nothing here takes long; whoever waits longer waits for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// Stands still unless it is moved.
#[derive(Debug)]
pub(super) struct HandClock(AtomicI64);

impl HandClock {
    pub(super) fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Different bytes every time, the same in every run.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Entropy for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::SeqCst);
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = if n < 13 {
                (number >> (5 * n) & 31) as u8
            } else {
                7
            };
        }
    }
}

pub(super) struct Harness {
    pub(super) control: Arc<ControlPlane>,
    pub(super) store: Store,
    pub(super) node: Arc<FakeNode>,
    pub(super) clock: Arc<HandClock>,
    entropy: Arc<Counter>,
    pub(super) who: Principal,
    pub(super) stranger: Principal,
    shutdown: DropGuard,
    directory: Arc<TempDir>,
}

pub(super) fn region(text: &str) -> Region {
    text.parse().unwrap()
}

pub(super) fn gigabytes(count: u64) -> VolumeCapacity {
    VolumeCapacity::new(ByteSize::new(count * 1_000_000_000)).unwrap()
}

fn config() -> ControlConfig {
    let mut config = ControlConfig::new(region("ord"), &[region("ams")]);
    config.bounds.sandboxes_max = 100;
    config.retry_every = Duration::from_millis(20);
    config.retry_max = Duration::from_millis(80);
    config.purge_every = Duration::from_millis(20);
    config.measure_every = Duration::from_millis(20);
    config.checks_every = Duration::from_millis(20);
    config
}

impl Harness {
    pub(super) async fn new() -> Self {
        Self::with(config()).await
    }

    pub(super) async fn configured(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let mut config = config();
        change(&mut config);
        Self::with(config).await
    }

    async fn with(config: ControlConfig) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let node = FakeNode::new();
        let clock = Arc::new(HandClock(AtomicI64::new(1_700_000_000_000)));
        let entropy = Arc::new(Counter::default());
        let harness = Self::open(directory, node, clock, entropy, config).await;
        harness.control.recover().await.unwrap();
        harness
    }

    async fn open(
        directory: Arc<TempDir>,
        node: Arc<FakeNode>,
        clock: Arc<HandClock>,
        entropy: Arc<Counter>,
        config: ControlConfig,
    ) -> Self {
        let store = Store::open(&directory.path().join("state.db"))
            .await
            .unwrap();
        let mut principals = Vec::new();
        let api: Arc<dyn NodeApi> = node.clone();
        let control = ControlPlane::new(store.clone(), api, clock.clone(), entropy.clone(), config);
        for name in ["ours", "theirs"] {
            let token = Token::parse(&format!("ddo_0123456789abcdef-{name}")).unwrap();
            let slug = name.parse().unwrap();
            for _ in 0..2 {
                admit(&store, &*clock, &*entropy, &slug, &token)
                    .await
                    .unwrap();
            }
            principals.push(control.authenticate(token.reveal()).await.unwrap());
        }
        let stranger = principals.pop().unwrap();
        Self {
            control,
            store,
            node,
            clock,
            entropy,
            who: principals.pop().unwrap(),
            stranger,
            shutdown: CancellationToken::new().drop_guard(),
            directory,
        }
    }

    /// The server dies, and another one starts over the same files and the same node. It has not
    /// recovered yet.
    pub(super) async fn crash(self) -> Self {
        drop(self.shutdown);
        Self::open(
            self.directory,
            self.node,
            self.clock,
            self.entropy,
            config(),
        )
        .await
    }

    /// Starts the jobs.
    pub(super) fn run(&self) {
        tokio::spawn(self.control.clone().run(self.shutdown.token().clone()));
    }

    pub(super) fn new_volume(slug: &str) -> NewVolume {
        NewVolume {
            slug: slug.parse().unwrap(),
            region: Some(region("ord")),
            capacity: Some(gigabytes(1)),
            source: Source::Empty,
        }
    }

    /// A volume like its source.
    pub(super) fn new_fork(slug: &str, source: Source) -> NewVolume {
        NewVolume {
            region: None,
            capacity: None,
            source,
            ..Self::new_volume(slug)
        }
    }

    pub(super) async fn make(&self, new: NewVolume) -> Result<api::VolumeDetail, ApiError> {
        self.control.create_volume(&self.who, new).await
    }

    pub(super) async fn volume(&self, slug: &str) -> api::Volume {
        self.make(Self::new_volume(slug)).await.unwrap().volume
    }

    /// One that a sandbox can have as its root.
    pub(super) async fn bootable(&self, slug: &str) -> api::Volume {
        let new = NewVolume {
            source: Source::Base,
            ..Self::new_volume(slug)
        };
        self.make(new).await.unwrap().volume
    }

    pub(super) async fn snapshot(&self, volume: &str, slug: &str) -> api::SnapshotDetail {
        let slug = slug.parse().unwrap();
        let taken = self.control.snapshot_volume(&self.who, volume, slug).await;
        taken.unwrap()
    }

    /// Makes a volume in a task that can be aborted.
    pub(super) fn making(&self, new: NewVolume) -> JoinHandle<Result<api::VolumeDetail, ApiError>> {
        let (control, who) = (self.control.clone(), self.who.clone());
        tokio::spawn(async move { control.create_volume(&who, new).await })
    }

    /// Takes a snapshot in a task that can be aborted.
    pub(super) fn taking(
        &self,
        volume: &str,
        slug: &str,
    ) -> JoinHandle<Result<api::SnapshotDetail, ApiError>> {
        let (control, who) = (self.control.clone(), self.who.clone());
        let (volume, slug) = (volume.to_owned(), slug.parse().unwrap());
        tokio::spawn(async move { control.snapshot_volume(&who, &volume, slug).await })
    }

    /// Enlarges a volume in a task that can be aborted.
    pub(super) fn growing(
        &self,
        volume: &str,
        capacity: VolumeCapacity,
    ) -> JoinHandle<Result<api::VolumeDetail, ApiError>> {
        let (control, who) = (self.control.clone(), self.who.clone());
        let volume = volume.to_owned();
        tokio::spawn(async move { control.grow_volume(&who, &volume, capacity).await })
    }

    pub(super) fn new_sandbox(volumes: &[&str]) -> NewSandbox {
        NewSandbox {
            region: None,
            lifetime: Lifetime::Session,
            memory: Memory::default(),
            labels: Labels::default(),
            root: None,
            volumes: volumes
                .iter()
                .enumerate()
                .map(|(n, name)| {
                    let path = MountPath::parse(&format!("/volume-{n}")).unwrap();
                    (path, (*name).to_owned())
                })
                .collect(),
            environment: BTreeMap::new(),
            network: sandstone_core::NetworkPolicy::default(),
            port: None,
        }
    }

    /// One that lives for `millis`.
    pub(super) fn timed_sandbox(&self, volumes: &[&str], millis: i64) -> NewSandbox {
        NewSandbox {
            lifetime: Lifetime::Until(self.clock.now().plus_millis(millis)),
            ..Self::new_sandbox(volumes)
        }
    }

    pub(super) async fn create(&self, new: NewSandbox) -> Result<SandboxId, ApiError> {
        self.control.create_sandbox(&self.who, new).await
    }

    pub(super) async fn sandbox(&self, volumes: &[&str]) -> SandboxId {
        self.create(Self::new_sandbox(volumes)).await.unwrap()
    }

    /// Creates a sandbox in a task that can be aborted.
    pub(super) fn creating(&self, new: NewSandbox) -> JoinHandle<Result<SandboxId, ApiError>> {
        let (control, who) = (self.control.clone(), self.who.clone());
        tokio::spawn(async move { control.create_sandbox(&who, new).await })
    }

    /// Stops a sandbox in a task that can be aborted.
    pub(super) fn stopping(
        &self,
        id: SandboxId,
        reason: StopReason,
    ) -> JoinHandle<Result<(), ApiError>> {
        let (control, who) = (self.control.clone(), self.who.clone());
        tokio::spawn(async move { control.stop_sandbox(&who, id, reason).await })
    }

    pub(super) async fn row(&self, id: SandboxId) -> Sandbox {
        self.store.any_sandbox(id).await.unwrap()
    }

    /// Waits until the node has been called this often.
    pub(super) async fn called(&self, call: &str, times: usize) {
        eventually(call, async || self.node.count(call) >= times).await;
    }

    /// Waits until the sandbox has stopped, and says why.
    pub(super) async fn ended(&self, id: SandboxId) -> StopReason {
        eventually("the sandbox to stop", async || {
            self.row(id).await.stopped_at.is_some()
        })
        .await;
        self.row(id).await.stop_reason.unwrap()
    }

    /// Nothing is left anywhere, and nobody broke a rule.
    pub(super) async fn assert_idle(&self) {
        let unfinished = self.store.unfinished_sandboxes().await.unwrap();
        assert!(unfinished.is_empty(), "{unfinished:?}");
        assert!(self.node.state().sandboxes.is_empty());
        self.node.assert_sound();
        eventually("watchers to go", async || self.control.live.len() == 0).await;
    }
}

pub(super) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    assert!(waited.is_ok(), "waited in vain for {what}");
}

/// Waits, but not for ever.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

#[track_caller]
pub(super) fn assert_code<T>(result: Result<T, ApiError>, code: ErrorCode) -> ApiError {
    match result {
        Ok(_) => panic!("{code} was expected"),
        Err(error) => {
            assert_eq!(error.code, code, "{error}");
            error
        }
    }
}
