//! A server on a port of its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sandstone_api::{ImageId, Region, SandboxId, SnapshotId, VolumeId};
use sandstone_authority::Authority;
use sandstone_core::{Clock, Consistency, Entropy, NetworkPolicy, Timestamp, VolumeCapacity};
use sandstone_node_api::{
    AgentClient, Copied, Images, Measured, NodeApi, NodeError, NodeEvent, Readiness, Root,
    SandboxSpec, SnapshotSpec, Space, VolumeSource, VolumeSpec,
};
use sandstone_store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::agent::{self, FakeAgent, Place};
use super::client::{Answer, Socket, request};
use crate::control::{ControlConfig, ControlPlane, ExposedAt, Token, admit};
use crate::edge::{EdgeConfig, router, serve};
use crate::ingress::{CertificateSource, Ingress, Limits};
use crate::ssh::SshEndpoint;

pub const TOKEN: &str = "ddo_0123456789abcdef";
const BEARER: (&str, &str) = ("authorization", "Bearer ddo_0123456789abcdef");
/// What the Python SDK's WebSocket library calls itself.
pub const PYTHON: (&str, &str) = ("user-agent", "Python/3.11 websockets/17.4");

/// How copies turn out.
const COPIED: Copied = Copied {
    consistency: Consistency::FileSystem,
    stall_us: 1234,
};

pub const SPACE: Space = Space {
    total: 20 << 30,
    free: 15 << 30,
    low: 2 << 30,
    critical: 1 << 30,
};

pub const INGRESS_LIMITS: Limits = Limits {
    answer: Ingress::ANSWER_LIMIT,
    stall: EdgeConfig::STALL_LIMIT,
};

#[derive(Debug)]
pub struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Entropy for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::SeqCst);
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (number
                .checked_shr(5 * u32::try_from(n).unwrap())
                .unwrap_or(0)
                & 31) as u8;
        }
    }
}

/// Makes nothing on disk: it remembers the names of images, and its sandboxes are stand-in agents.
#[derive(Debug, Default)]
pub struct FakeNode {
    agents: Mutex<HashMap<SandboxId, (FakeAgent, Arc<AgentClient>)>>,
    pub images: Mutex<Images>,
    /// The roots of the sandboxes, in the order in which they were started.
    pub roots: Mutex<Vec<Root>>,
    /// What the content of a snapshot is summed up to.
    pub checksum: Mutex<String>,
    pub is_full: AtomicBool,
    pub is_unready: AtomicBool,
    /// How long a start takes, milliseconds.
    pub start_ms: AtomicU64,
    /// How long an end takes, milliseconds.
    pub stop_ms: AtomicU64,
    /// Processes that were killed because memory ran out.
    pub oom_kills: AtomicU64,
    place: Place,
}

impl FakeNode {
    pub fn running(&self) -> usize {
        self.agents.lock().unwrap().len()
    }

    /// The ids of the sandboxes that run, as clients know them.
    pub fn ids(&self) -> Vec<String> {
        let agents = self.agents.lock().unwrap();
        agents.keys().map(ToString::to_string).collect()
    }

    fn add(&self, image: ImageId) {
        let mut images = self.images.lock().unwrap();
        match image {
            ImageId::Volume(id) => images.volumes.push(id.suffix().to_owned()),
            ImageId::Snapshot(id) => images.snapshots.push(id.suffix().to_owned()),
        }
    }

    fn check_room(&self) -> Result<(), NodeError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(NodeError::PoolFull("no room".to_owned()));
        }
        Ok(())
    }

    /// Breaks the connection to every agent, without anybody asking for it.
    pub fn break_agents(&self) {
        for (agent, _) in self.agents.lock().unwrap().values() {
            agent.stop();
        }
    }
}

#[async_trait]
impl NodeApi for FakeNode {
    async fn readiness(&self) -> Readiness {
        if self.is_unready.load(Ordering::SeqCst) {
            Readiness::NotReady("the image is being made".to_owned())
        } else {
            Readiness::Ready
        }
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Option<Copied>, NodeError> {
        self.check_room()?;
        self.add(spec.id.into());
        let is_copy = matches!(spec.source, VolumeSource::Image(_));
        Ok(is_copy.then_some(COPIED))
    }

    async fn grow_volume(&self, _: VolumeId, _: VolumeCapacity) -> Result<(), NodeError> {
        self.check_room()
    }

    async fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<Copied, NodeError> {
        self.check_room()?;
        self.add(spec.id.into());
        Ok(COPIED)
    }

    async fn remove_image(&self, image: ImageId) -> Result<(), NodeError> {
        let mut images = self.images.lock().unwrap();
        images.volumes.retain(|name| name != image.suffix());
        images.snapshots.retain(|name| name != image.suffix());
        Ok(())
    }

    async fn measure(&self, _: ImageId) -> Result<Measured, NodeError> {
        Ok(Measured::default())
    }

    async fn checksum_snapshot(&self, _: SnapshotId) -> Result<String, NodeError> {
        Ok(self.checksum.lock().unwrap().clone())
    }

    async fn pack_snapshot(&self, _: SnapshotId) -> Result<Measured, NodeError> {
        Ok(Measured::default())
    }

    async fn images(&self) -> Result<Images, NodeError> {
        Ok(self.images.lock().unwrap().clone())
    }

    async fn space(&self) -> Result<Space, NodeError> {
        Ok(SPACE)
    }

    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError> {
        let millis = self.start_ms.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let started = agent::start(self.place, spec.environment.clone()).await;
        self.roots.lock().unwrap().push(spec.root);
        self.agents.lock().unwrap().insert(spec.id, started);
        Ok(())
    }

    async fn adopt_network(&self, _: SandboxId, _: &NetworkPolicy) -> Result<(), NodeError> {
        Ok(())
    }

    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError> {
        let millis = self.stop_ms.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.agents.lock().unwrap().remove(&id);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        Ok(self.agents.lock().unwrap().keys().copied().collect())
    }

    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        let agents = self.agents.lock().unwrap();
        let agent = agents.get(&id).map(|(_, client)| client.clone());
        agent.ok_or(NodeError::NoSuchSandbox(id))
    }

    async fn oom_kills(&self, _: SandboxId) -> Result<u64, NodeError> {
        Ok(self.oom_kills.load(Ordering::SeqCst))
    }

    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>> {
        None
    }

    async fn shut_down(&self) -> Result<(), NodeError> {
        Ok(())
    }
}

/// A running server.
#[derive(Debug)]
pub struct Harness {
    pub address: SocketAddr,
    /// Where exposed servers are.
    pub ingress_address: SocketAddr,
    /// Who certifies them.
    pub authority_certificate: CertificateDer<'static>,
    pub node: Arc<FakeNode>,
    pub clock: Arc<HandClock>,
    pub directory: TempDir,
    store: Store,
    _shutdown: DropGuard,
}

impl Harness {
    /// Its sandboxes run commands on this machine.
    pub async fn new() -> Self {
        Self::within(INGRESS_LIMITS).await
    }

    /// A server that waits so long for exposed servers and their clients.
    pub async fn within(limits: Limits) -> Self {
        Self::at(Place::Here, limits).await
    }

    /// Its sandboxes run nothing, and have no files: for clients that may ask for anything.
    pub async fn nowhere() -> Self {
        Self::at(Place::Nowhere, INGRESS_LIMITS).await
    }

    async fn at(place: Place, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db"))
            .await
            .unwrap();
        let node = Arc::new(FakeNode {
            place,
            ..FakeNode::default()
        });
        let clock = Arc::new(HandClock(AtomicI64::new(1_700_000_000_000)));
        let entropy = Arc::new(Counter::default());
        let region = |text: &str| text.parse::<Region>().unwrap();
        let ingress_listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let ingress_address = ingress_listener.local_addr().unwrap();
        let mut config = ControlConfig::new(region("ord"), &[region("ams")]);
        config.exposed_at = Some(ExposedAt {
            base_domain: "sandbox.localhost".to_owned(),
            port: ingress_address.port(),
        });
        let control = ControlPlane::new(
            store.clone(),
            node.clone(),
            clock.clone(),
            entropy.clone(),
            config,
        );
        control.recover().await.unwrap();
        let token = Token::parse(TOKEN).unwrap();
        admit(&store, &*clock, &*entropy, &"ours".parse().unwrap(), &token)
            .await
            .unwrap();
        let config = EdgeConfig {
            stall_limit: EdgeConfig::STALL_LIMIT,
            editor: None,
            clock: clock.clone(),
            entropy,
            ssh: Some(SshEndpoint {
                hostname: "ssh.example.com".to_owned(),
                port: 2222,
            }),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let authority = Authority::open(directory.path(), "expose-ca", "test").unwrap();
        let authority_certificate = authority.certificate_der().clone();
        let source = CertificateSource::Authority {
            authority: Box::new(authority),
            base_domain: "sandbox.localhost".to_owned(),
            clock: clock.clone(),
        };
        let ingress = Ingress::new(source, limits);
        let ingress = ingress
            .unwrap()
            .serve(ingress_listener, control.clone(), shutdown.clone());
        tokio::spawn(ingress);
        tokio::spawn(serve(listener, router(control, config), shutdown.clone()));
        Self {
            address,
            ingress_address,
            authority_certificate,
            node,
            clock,
            directory,
            store,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// A path in a directory that goes away with the server.
    pub fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    pub async fn rest(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        request(self.address, method, path, &[BEARER], body).await
    }

    pub async fn volume(&self, slug: &str) -> Value {
        let body = json!({"slug": slug, "region": "ord", "capacity": "1GB"});
        let answer = self.rest("POST", "/api/v2/volumes", Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Calls, and expects it to be done.
    pub async fn done(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.rest(method, path, body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.json()
    }

    /// Calls, and expects to be refused.
    pub async fn refused(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        (status, code): (u16, &str),
    ) -> Value {
        let answer = self.rest(method, path, body).await;
        let json = answer.json();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert_eq!(json["code"], code, "{method} {path}");
        assert!(!json["message"].as_str().unwrap().is_empty());
        json
    }

    /// Tries to create a sandbox.
    pub async fn try_create(
        &self,
        config: &Value,
        headers: &[(&str, &str)],
    ) -> Result<(Socket, Answer), Answer> {
        let config = STANDARD.encode(config.to_string());
        let mut all = vec![BEARER, ("x-deno-sandbox-config", &config)];
        all.extend(headers);
        Socket::open(self.address, "/api/v3/sandboxes/create", &all).await
    }

    /// Creates a sandbox; the primary socket and the id.
    pub async fn create(&self, config: &Value, headers: &[(&str, &str)]) -> (Socket, String) {
        let (socket, answer) = self.try_create(config, headers).await.unwrap();
        let id = answer.header("x-deno-sandbox-id").unwrap().to_owned();
        (socket, id)
    }

    /// A session sandbox as JavaScript asks for it.
    pub async fn session(&self) -> (Socket, String) {
        self.create(&json!({"memory_mb": 1280, "volumes": []}), &[])
            .await
    }

    /// A session sandbox as Python asks for it.
    pub async fn python(&self) -> Socket {
        self.create(&json!({"memory_mb": 1280, "debug": false}), &[PYTHON])
            .await
            .0
    }

    pub async fn connect(&self, id: &str) -> Result<(Socket, Answer), Answer> {
        let path = format!("/api/v3/sandbox/{id}/connect");
        Socket::open(self.address, &path, &[BEARER]).await
    }

    /// Forgets the sandboxes that have stopped, as a server does after a while.
    pub async fn forget_stopped(&self) {
        let forgotten = self.store.forget_stopped(self.clock.now(), u32::MAX).await;
        forgotten.unwrap();
    }

    /// Waits until so many sandboxes run.
    pub async fn wait_for_running(&self, count: usize) {
        eventually(|| self.node.running() == count).await;
    }
}

/// Waits until it is so.
pub async fn eventually(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never was so");
}
