//! Starting sandboxes, reaching their agents, and noticing their ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandstone_api::SandboxId;
use sandstone_node_api::{AgentClient, Chain, NodeError, NodeEvent, Root, SandboxSpec};
use sandstone_protocol::message::{Configure, Request};
use sandstone_runtime::Doors;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::{Node, blocking, lock};
use crate::host::{Host, failed};
use crate::warm::WarmPool;

/// How long the agent may take from being executed to having prepared the interior.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(10);

impl Node {
    /// Starts a sandbox. The caller has its turn.
    pub(super) async fn start_in_turn(
        &self,
        host: Arc<Host>,
        spec: &SandboxSpec,
    ) -> Result<(), NodeError> {
        let doors = {
            let (host, spec, warm) = (host.clone(), spec.clone(), self.warm.clone());
            let scratch_name = self.scratch_name();
            blocking(move || execute(&host, &spec, &warm, scratch_name)).await?
        };
        let begun = Instant::now();
        let configured =
            tokio::time::timeout(CONFIGURE_LIMIT, self.configure(&host, spec, doors)).await;
        tracing::debug!(
            step = "interior prepared",
            took_us = begun.elapsed().as_micros()
        );
        match configured {
            Ok(Ok(())) => {}
            outcome => {
                lock(&self.agents).remove(&spec.id);
                self.close_gate(spec.id).await;
                let id = spec.id;
                if let Err(error) = blocking(move || host.stop(id)).await {
                    tracing::warn!(sandbox.id = %id, error = %Chain(&error), "not gone yet");
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

    async fn configure(
        &self,
        host: &Host,
        spec: &SandboxSpec,
        doors: Option<Doors>,
    ) -> Result<(), NodeError> {
        if let Some(doors) = doors {
            self.open_gate(host, spec.id, &spec.network, doors)?;
        }
        let agent = self.connect(host, spec.id).await?;
        let guest = self.guest(host, &spec.network);
        let mut environment = guest.environment;
        environment.extend(spec.environment.clone());
        let configure = Configure {
            user: "app".to_owned(),
            hostname: spec.id.suffix().to_owned(),
            working_directory: "/home/app".to_owned(),
            environment,
            files: guest.files,
            certificate_authorities: guest.certificate_authorities,
        };
        agent
            .call(Request::Configure(configure))
            .await
            .map_err(|error| failed(format!("preparing the interior of {}", spec.id), error))?;
        Ok(())
    }

    /// A connection to a sandbox's agent; a new one when there is none that works.
    pub(super) async fn agent_of(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        let known = || {
            let agent = lock(&self.agents).get(&id).cloned();
            agent.filter(|agent| !agent.is_closed())
        };
        if let Some(agent) = known() {
            return Ok(agent);
        }
        let host = self.host()?;
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        if let Some(agent) = known() {
            return Ok(agent);
        }
        if host.records.read(id).ok().flatten().is_none() {
            return Err(NodeError::NoSuchSandbox(id));
        }
        // One that an earlier server started is not watched yet.
        self.watch(&host, id)?;
        self.connect(&host, id).await
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

    /// Reports when the sandbox's first process ends, once.
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps its descriptor, so this use is sound"
    )]
    fn watch(&self, host: &Host, id: SandboxId) -> Result<(), NodeError> {
        let mut watched = lock(&self.watched);
        if watched.contains(&id) {
            return Ok(());
        }
        let pidfd = host
            .runtime
            .exited(id.suffix())
            .map_err(|error| failed(format!("watching {id}"), error))?;
        let pidfd: AsyncFd<OwnedFd> = AsyncFd::with_interest(pidfd, Interest::READABLE)
            .map_err(|error| failed(format!("watching {id}"), error))?;
        watched.insert(id);
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

/// Brings a sandbox to the point where its agent runs, from a warm one if there is one.
fn execute(
    host: &Host,
    spec: &SandboxSpec,
    warm: &WarmPool,
    scratch_name: String,
) -> Result<Option<Doors>, NodeError> {
    host.admit_sandbox()?;
    let (prepared, spare) = match warm.take() {
        Some(warm) => (warm.prepared, Some(warm.scratch)),
        None => (host.prepare()?, None),
    };
    let scratch = match (spec.root, spare) {
        (Root::Base | Root::Snapshot(_), Some(scratch)) => Some(scratch),
        (Root::Base | Root::Snapshot(_), None) => match host.make_scratch(scratch_name) {
            Ok(scratch) => Some(scratch),
            Err(error) => {
                host.warn_of(host.discard(prepared));
                return Err(error);
            }
        },
        (Root::Volume(_), Some(spare)) => {
            // The next warm sandbox is made with it.
            if let Some(surplus) = warm.keep(spare) {
                host.warn_of(host.discard_scratch(surplus));
            }
            None
        }
        (Root::Volume(_), None) => None,
    };
    host.start(spec, prepared, scratch)
}
