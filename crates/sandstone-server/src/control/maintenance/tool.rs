//! Programs of the base image, run as root in a maintenance sandbox.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandstone_node_api::{AgentClient, AgentError, InboundStream, OutboundStream, StreamError};
use sandstone_protocol::message::{Answer, Request, Spawn};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How much of the last of what a tool says on standard error is kept.
const COMPLAINTS_MAX_BYTES: usize = 4 << 10;

/// How long a tool may go without taking or giving anything, and how long it may take to end. It
/// works on one local file system, so only a host in trouble needs so long.
const STALL_LIMIT: Duration = Duration::from_secs(300);

/// Whether a tool is given standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum Input {
    None,
    Stream,
}

/// A tool that runs.
#[derive(Debug)]
pub(in crate::control) struct Tool {
    agent: Arc<AgentClient>,
    pid: u32,
    stdin: Option<OutboundStream>,
    stdout: InboundStream,
    complaints: JoinHandle<String>,
}

/// A tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub(in crate::control) enum ToolError {
    /// It said so.
    #[error("it ended with {status}: {complaints}")]
    Failed {
        /// Its exit code or signal.
        status: String,
        /// The last of what it wrote to standard error.
        complaints: String,
    },
    /// It did nothing for too long.
    #[error("it did nothing for {STALL_LIMIT:?}")]
    Stalled,
    /// The sandbox could not run it, or is gone.
    #[error("running it")]
    Agent(#[from] AgentError),
    /// The sandbox is gone.
    #[error("its streams broke off")]
    Stream(#[from] StreamError),
}

impl From<ToolError> for io::Error {
    fn from(error: ToolError) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, error)
    }
}

impl Tool {
    /// Starts `command`, its absolute path first, as root.
    ///
    /// # Errors
    /// [`ToolError`].
    pub(in crate::control) async fn start(
        agent: &Arc<AgentClient>,
        command: &[&str],
        input: Input,
    ) -> Result<Self, ToolError> {
        let stdin = (input == Input::Stream).then(|| agent.outbound());
        let stdout = agent.inbound();
        let stderr = agent.inbound();
        let spawn = Spawn {
            command: "/usr/bin/sudo".to_owned(),
            args: ["--non-interactive", "--"]
                .iter()
                .chain(command)
                .map(|word| (*word).to_owned())
                .collect(),
            working_directory: Some("/".to_owned()),
            stdin: stdin.as_ref().map(OutboundStream::id),
            stdout: Some(stdout.id()),
            stderr: Some(stderr.id()),
            ..Spawn::default()
        };
        let started = timeout(STALL_LIMIT, agent.call(Request::Spawn(spawn))).await;
        let pid = match started.map_err(|_| ToolError::Stalled)?? {
            Answer::Spawned { pid } => pid,
            other => return Err(unexpected(&other)),
        };
        Ok(Self {
            agent: agent.clone(),
            pid,
            stdin,
            stdout,
            complaints: tokio::spawn(collect(stderr)),
        })
    }

    /// The next bytes of its standard output, `None` at the end.
    ///
    /// # Errors
    /// [`ToolError`].
    pub(in crate::control) async fn read(&mut self) -> Result<Option<Bytes>, ToolError> {
        let next = timeout(STALL_LIMIT, self.stdout.next()).await;
        Ok(next.map_err(|_| ToolError::Stalled)?.transpose()?)
    }

    /// Gives bytes to its standard input.
    ///
    /// # Errors
    /// [`ToolError`], also when it does not want more: it says why when it is waited for.
    pub(in crate::control) async fn write(&mut self, bytes: Bytes) -> Result<(), ToolError> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        let sent = timeout(STALL_LIMIT, stdin.send(bytes)).await;
        Ok(sent.map_err(|_| ToolError::Stalled)??)
    }

    /// Waits until it has ended, and says whether it did its work. Standard output that was not
    /// read is dropped.
    ///
    /// # Errors
    /// [`ToolError`].
    pub(in crate::control) async fn finish(mut self) -> Result<(), ToolError> {
        if let Some(stdin) = self.stdin.take() {
            // It may have closed it already.
            let _ = stdin.finish().await;
        }
        drop(self.stdout);
        let ended = timeout(STALL_LIMIT, async {
            let status = self.agent.call(Request::Wait { pid: self.pid }).await?;
            // Fails only if it panicked.
            Ok::<_, AgentError>((status, self.complaints.await.unwrap_or_default()))
        });
        let (status, complaints) = ended.await.map_err(|_| ToolError::Stalled)??;
        match status {
            Answer::Exited(status) if status.code == Some(0) => Ok(()),
            Answer::Exited(status) => Err(ToolError::Failed {
                status: match (status.code, status.signal) {
                    (Some(code), _) => format!("code {code}"),
                    (None, signal) => format!("signal {}", signal.unwrap_or_default()),
                },
                complaints,
            }),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> ToolError {
    AgentError::Lost(format!("the agent answered {answer:?}")).into()
}

/// The last of what comes out of a stream.
async fn collect(mut stream: InboundStream) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        bytes.extend_from_slice(&chunk);
        let excess = bytes.len().saturating_sub(COMPLAINTS_MAX_BYTES);
        bytes.drain(..excess);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
