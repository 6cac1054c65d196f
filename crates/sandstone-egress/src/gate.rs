//! One sandbox's gate: the tasks at its doors, and what they share.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sandstone_core::NetworkPolicy;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::names::Names;
use crate::refusal::Refusals;
use crate::{Egress, dns, proxy};

/// Most connections of one sandbox at once.
const CONNECTIONS_MAX: usize = 1024;

/// Most of them that are taken apart for a secret: each has buffers of its own.
const INTERCEPTS_MAX: usize = 128;

/// Most names that are resolved at once for one sandbox.
const LOOKUPS_MAX: usize = 16;

/// How long the tasks of a closed gate may take to end. They are cancelled.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Sockets in a sandbox's network name space, to which its rules lead. Not blocking.
#[derive(Debug)]
pub struct Doors {
    /// Queries of names.
    pub queries: std::net::UdpSocket,
    /// Queries of names over TCP.
    pub query_streams: std::net::TcpListener,
    /// Connections, which know their original destination.
    pub streams: std::net::TcpListener,
}

/// Someone who stands at a sandbox's doors. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Gate {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Gate {
    pub(crate) fn open(
        egress: Arc<Egress>,
        sandbox: String,
        policy: NetworkPolicy,
        doors: Doors,
    ) -> io::Result<Self> {
        let queries = UdpSocket::from_std(doors.queries)?;
        let query_streams = TcpListener::from_std(doors.query_streams)?;
        let streams = TcpListener::from_std(doors.streams)?;
        let shared = Arc::new(Shared::new(egress, sandbox, policy));
        shared.spawn(dns::serve_datagrams(queries, shared.clone()));
        shared.spawn(dns::serve_streams(query_streams, shared.clone()));
        shared.spawn(proxy::serve(streams, shared.clone()));
        Ok(Self {
            stop: shared.stop.clone(),
            tasks: shared.tasks.clone(),
        })
    }

    /// Ends all its connections and tasks; returns when they are gone.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_LIMIT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.tasks.len(),
                "tasks of a sandbox's network do not end"
            );
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the tasks of one gate share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) egress: Arc<Egress>,
    pub(crate) policy: NetworkPolicy,
    pub(crate) names: Names,
    pub(crate) refusals: Refusals,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) intercepts: Arc<Semaphore>,
    pub(crate) lookups: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn new(egress: Arc<Egress>, sandbox: String, policy: NetworkPolicy) -> Self {
        Self {
            egress,
            policy,
            names: Names::default(),
            refusals: Refusals::new(sandbox),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            intercepts: Arc::new(Semaphore::new(INTERCEPTS_MAX)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Runs a task that ends with the gate.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sandstone_authority::Authority;
    use sandstone_core::{Clock, Timestamp};

    #[derive(Debug)]
    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(1_800_000_000_000)
        }
    }

    pub(crate) fn egress() -> Arc<Egress> {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path(), "egress", "test authority").unwrap();
        Egress::new(Arc::new(authority), Arc::new(Stopped), Vec::new())
    }

    pub(crate) fn shared(allow: &[&str]) -> Arc<Shared> {
        shared_with(NetworkPolicy {
            allow: Some(allow.iter().map(|text| text.parse().unwrap()).collect()),
            secrets: Vec::new(),
        })
    }

    pub(crate) fn shared_with(policy: NetworkPolicy) -> Arc<Shared> {
        Arc::new(Shared::new(egress(), "sbx".to_owned(), policy))
    }
}
