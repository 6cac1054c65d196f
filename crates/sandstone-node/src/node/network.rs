//! Networks with a policy: who stands at a sandbox's doors, and what it is told of them.

use std::sync::Arc;

use sandstone_api::SandboxId;
use sandstone_core::NetworkPolicy;
use sandstone_egress::Gate;
use sandstone_node_api::NodeError;
use sandstone_runtime::Doors;

use super::{Node, blocking, lock};
use crate::guest_trust::GuestTrust;
use crate::host::{Host, failed};

impl Node {
    /// Stands at the doors of a sandbox.
    pub(super) fn open_gate(
        &self,
        host: &Host,
        id: SandboxId,
        policy: &NetworkPolicy,
        doors: Doors,
    ) -> Result<(), NodeError> {
        let doors = sandstone_egress::Doors {
            queries: doors.queries,
            query_streams: doors.query_streams,
            streams: doors.streams,
        };
        let gate = host
            .egress
            .open(id.to_string(), policy.clone(), doors)
            .map_err(|error| failed(format!("serving the network of {id}"), error))?;
        lock(&self.gates).insert(id, gate);
        Ok(())
    }

    /// Ends every connection that was made for a sandbox.
    pub(super) async fn close_gate(&self, id: SandboxId) {
        let gate = lock(&self.gates).remove(&id);
        if let Some(gate) = gate {
            gate.close().await;
        }
    }

    /// As [`Node::close_gate`], for all.
    pub(super) async fn close_gates(&self) {
        let gates: Vec<Gate> = lock(&self.gates).drain().map(|(_, gate)| gate).collect();
        for gate in gates {
            gate.close().await;
        }
    }

    /// Serves the network of a sandbox of an earlier server. The caller has its turn.
    pub(super) async fn adopt_gate(
        &self,
        host: Arc<Host>,
        id: SandboxId,
        policy: &NetworkPolicy,
    ) -> Result<(), NodeError> {
        if policy.is_open() || lock(&self.gates).contains_key(&id) {
            return Ok(());
        }
        let runtime = host.clone();
        let doors = blocking(move || {
            runtime
                .runtime
                .reopen_doors(id.suffix())
                .map_err(|error| failed(format!("reopening the network of {id}"), error))
        })
        .await?;
        self.open_gate(&host, id, policy, doors)
    }

    /// What a sandbox is given of the host, under its policy.
    pub(super) fn guest(&self, host: &Host, policy: &NetworkPolicy) -> GuestTrust {
        let guest = self.config.guest.clone();
        if policy.is_open() {
            return guest;
        }
        let authority = (!policy.secrets.is_empty()).then(|| host.egress.authority());
        guest.behind_gate(
            sandstone_egress::NAME_SERVER,
            authority.map(|authority| authority.certificate_pem()),
        )
    }
}
