//! The host's end of the agent protocol against an agent that sends any bytes whatever, after a
//! proper hello or instead of one. Calls and streams are open meanwhile; none may outlive the
//! connection.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sandstone_node_api::AgentClient;
use sandstone_protocol::GENERATION;
use sandstone_protocol::frame::{Frame, FrameKind};
use sandstone_protocol::message::{self, Hello, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Ends by itself: the agent's side is closed at the end.
const LIMIT: Duration = Duration::from_secs(5);

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async { timeout(LIMIT, talk(data)).await });
    assert!(outcome.is_ok(), "it did not end");
});

async fn talk(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let (host, agent) = tokio::io::duplex(1 << 16);
    let mut bytes = Vec::new();
    if first & 1 == 0 {
        let payload = message::encode(&Hello {
            generation: GENERATION,
        });
        let hello = Frame {
            kind: FrameKind::Hello,
            id: 0,
            payload,
        };
        bytes.extend(hello.encode());
    }
    bytes.extend_from_slice(data);
    let (mut read, mut write) = tokio::io::split(agent);
    let agent = async {
        let send = async {
            let _ = write.write_all(&bytes).await;
            let _ = write.shutdown().await;
        };
        // What the host sends is taken, and means nothing.
        let mut sink = vec![0; 1 << 12];
        let take = async { while read.read(&mut sink).await.is_ok_and(|length| length > 0) {} };
        tokio::join!(send, take);
    };
    let host = async {
        let Ok(client) = AgentClient::connect(host).await else {
            return;
        };
        let mut inbound = client.inbound();
        let mut outbound = client.outbound();
        let path = String::from("/x");
        let calls = async {
            let _ = tokio::join!(
                client.call(Request::ReadDir { path: path.clone() }),
                client.call(Request::Wait { pid: 7 }),
                client.call(Request::Stat { path, follow: true }),
            );
        };
        let read = async { while let Some(Ok(_)) = inbound.next().await {} };
        let write = async { while outbound.send(vec![7; 1 << 15].into()).await.is_ok() {} };
        tokio::join!(calls, read, write, client.closed());
    };
    tokio::join!(agent, host);
}
