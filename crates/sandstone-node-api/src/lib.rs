//! What the control plane asks of a node, and how both reach the agent in a sandbox.
//!
//! The server holds an `Arc<dyn NodeApi>`. On one machine that is the node itself; in a cluster it
//! is a client of one. Nothing here says how a node keeps its promises.

mod agent;
mod chain;
mod node;

pub use agent::{AgentClient, AgentError, AgentSocket, InboundStream, OutboundStream, StreamError};
pub use chain::Chain;
pub use node::{
    Copied, Images, Measured, Mount, NodeApi, NodeError, NodeEvent, Readiness, Root, SandboxSpec,
    SnapshotSpec, Space, VolumeSource, VolumeSpec,
};
