//! What the parts of one connection share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandstone_api::SandboxId;
use sandstone_node_api::AgentClient;
use sandstone_protocol::message::{Answer, Request};
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use super::super::Edge;
use super::client::Client;
use super::echoes::Echoes;
use super::error::{CallError, RemoteError};
use super::file_tree;
use super::handles::Handles;
use super::memory::{Held, LargeRights};
use super::outbox::{Item, Outbox};
use super::processes::Processes;
use super::programs::Programs;
use super::rpc::{ANSWER_SHARES, unexpected};
use super::streams::{Download, Downloads};
use super::uploads::Uploads;
use crate::control::Principal;

/// One connection of a client to a sandbox.
pub(super) struct Session {
    pub(super) edge: Arc<Edge>,
    pub(super) who: Principal,
    pub(super) sandbox: SandboxId,
    pub(super) client: Client,
    pub(super) agent: Arc<AgentClient>,
    pub(super) outbox: Outbox,
    pub(super) uploads: Uploads,
    pub(super) downloads: Downloads,
    pub(super) echoes: Echoes,
    pub(super) processes: Processes,
    /// Shares of the answers that have not been sent.
    pub(super) answers: Arc<Semaphore>,
    pub(super) handles: Handles,
    /// What is known of the sandbox's processes on every connection to it.
    pub(super) programs: Arc<Programs>,
    /// How `fetch` speaks TLS, as the sandbox's programs would.
    pub(super) tls: OnceCell<Arc<rustls::ClientConfig>>,
    /// What large answers of this connection need.
    pub(super) large_rights: LargeRights,
    /// Permits for walks through trees.
    pub(super) walks: Arc<Semaphore>,
    aborts: Mutex<HashMap<u64, CancellationToken>>,
    /// Every open call is to be answered with an error now (trap 6).
    pub(super) closing: CancellationToken,
    /// The socket is closed.
    pub(super) ended: CancellationToken,
}

impl Session {
    pub(super) fn new(
        edge: Arc<Edge>,
        who: Principal,
        sandbox: SandboxId,
        client: Client,
        agent: Arc<AgentClient>,
        outbox: Outbox,
    ) -> Self {
        Self {
            programs: edge.programs.of(sandbox),
            tls: OnceCell::new(),
            edge,
            who,
            sandbox,
            client,
            agent,
            uploads: Uploads::new(outbox.clone()),
            outbox,
            downloads: Downloads::default(),
            echoes: Echoes::default(),
            processes: Processes::default(),
            answers: Arc::new(Semaphore::new(ANSWER_SHARES)),
            handles: Handles::default(),
            large_rights: LargeRights::default(),
            walks: Arc::new(Semaphore::new(file_tree::WALKS_MAX)),
            aborts: Mutex::default(),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Asks the agent. `operation` is what a refusal names, for example `readdir '/x'`.
    pub(super) async fn call(
        &self,
        request: Request,
        operation: &str,
    ) -> Result<Answer, CallError> {
        let answer = self.agent.call(request).await;
        answer.map_err(|error| RemoteError::from_agent(error, operation).into())
    }

    /// Asks the agent for something that has no value.
    pub(super) async fn done(&self, request: Request, operation: &str) -> Result<Value, CallError> {
        match self.call(request, operation).await? {
            Answer::Done => Ok(Value::Null),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a stream to the client.
    pub(super) fn open_download(&self) -> Download {
        self.downloads
            .open(&self.edge.stream_ids, self.outbox.clone())
    }

    /// Sends a message. When the socket is gone there is nobody to tell.
    pub(super) async fn send(&self, text: String) {
        let _ = self.outbox.send(Item::Text(text)).await;
    }

    /// Sends a message that has rights to be in memory.
    pub(super) async fn send_large(&self, text: String, held: Held) {
        let _ = self.outbox.send_large(Item::Text(text), held).await;
    }

    /// A call that carries `abort_id` begins.
    pub(super) fn begin_abortable(&self, abort_id: u64) -> CancellationToken {
        let token = CancellationToken::new();
        self.aborts().insert(abort_id, token.clone());
        token
    }

    /// It has ended.
    pub(super) fn end_abortable(&self, abort_id: u64) {
        self.aborts().remove(&abort_id);
    }

    /// The client aborts it. Unknown ids are those of calls that have ended.
    pub(super) fn abort(&self, abort_id: u64) {
        if let Some(token) = self.aborts().remove(&abort_id) {
            token.cancel();
        }
    }

    fn aborts(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
