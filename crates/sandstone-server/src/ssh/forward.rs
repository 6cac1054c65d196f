//! Local forwarding: a channel that is a connection to a server in the sandbox.

use std::time::Duration;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf};
use sandstone_node_api::AgentClient;
use sandstone_protocol::frame::DATA_MAX_BYTES;
use sandstone_protocol::message::DialTarget;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::inbox::InboxReader;

/// How long the sandbox may take to connect. Its own attempts end earlier, unless the agent lies.
const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// Connects, answers the client, and carries bytes both ways until both have ended. Cancel-safe:
/// dropping it ends the connection.
pub(super) async fn run(
    agent: &AgentClient,
    target: DialTarget,
    reply: ChannelOpenHandle,
    mut input: InboxReader,
    output: &ChannelWriteHalf<Msg>,
    handle: &Handle,
) {
    let Ok(Ok(socket)) = timeout(DIAL_LIMIT, agent.dial(target)).await else {
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    };
    reply.accept().await;
    let (mut read, mut write) = tokio::io::split(socket);
    let to_server = async {
        while let Some(bytes) = input.next().await {
            if write.write_all(&bytes).await.is_err() {
                // What still comes is dropped; the server's end closes the channel.
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let from_server = async {
        let mut buffer = vec![0; DATA_MAX_BYTES];
        loop {
            match read.read(&mut buffer).await {
                Ok(length @ 1..) => {
                    let bytes = bytes::Bytes::copy_from_slice(&buffer[..length]);
                    if output.data_bytes(bytes).await.is_err() {
                        return;
                    }
                }
                Ok(0) => break,
                Err(_) => return,
            }
        }
        let _ = output.eof().await;
    };
    tokio::join!(to_server, from_server);
    // When the client is gone, there is nobody to tell.
    let _ = handle.close(output.id()).await;
}
