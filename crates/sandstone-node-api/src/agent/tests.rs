use super::incoming::{read_header, read_payload};
use super::*;
use sandstone_protocol::GENERATION;
use sandstone_protocol::frame::{DATA_MAX_BYTES, FrameKind};
use sandstone_protocol::message::{Hello, REPLY_MAX_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

mod hostile;

/// The agent's side of a connection, driven by hand.
struct Peer(DuplexStream);

async fn read_frame(stream: &mut DuplexStream) -> (FrameKind, u32, Bytes) {
    let (kind, id, length) = read_header(stream).await.unwrap();
    (kind, id, read_payload(stream, length).await.unwrap())
}

impl Peer {
    async fn start() -> (Arc<AgentClient>, Self) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut peer = Self(theirs);
        let client = tokio::spawn(AgentClient::connect(ours));
        assert_eq!(peer.receive().await.0, FrameKind::Hello);
        peer.send(
            FrameKind::Hello,
            0,
            &message::encode(&Hello {
                generation: GENERATION,
            }),
        )
        .await;
        (client.await.unwrap().unwrap(), peer)
    }

    async fn receive(&mut self) -> (FrameKind, u32, Bytes) {
        tokio::time::timeout(Duration::from_secs(5), read_frame(&mut self.0))
            .await
            .unwrap()
    }

    async fn send(&mut self, kind: FrameKind, id: u32, payload: &[u8]) {
        let frame = Frame {
            kind,
            id,
            payload: payload.to_vec(),
        };
        self.0.write_all(&frame.encode()).await.unwrap();
    }

    async fn reply(&mut self, id: u32, reply: &Reply) {
        self.send(FrameKind::Reply, id, &message::encode(reply))
            .await;
    }
}

#[tokio::test]
async fn answers_find_their_calls_in_any_order() {
    let (client, mut peer) = Peer::start().await;
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.call(Request::EnvGet { name: "A".into() }).await }
    });
    let (_, first_id, _) = peer.receive().await;
    let second = tokio::spawn({
        let client = client.clone();
        async move { client.call(Request::EnvAll).await }
    });
    let (_, second_id, _) = peer.receive().await;
    let failure = Failure {
        errno: Some(2),
        message: "no".into(),
    };
    peer.reply(second_id, &Err(failure)).await;
    peer.reply(first_id, &Ok(Answer::Variable(Some("x".into()))))
        .await;
    assert!(matches!(second.await.unwrap(), Err(AgentError::Refused(f)) if f.errno == Some(2)));
    assert_eq!(
        first.await.unwrap().unwrap(),
        Answer::Variable(Some("x".into()))
    );
}

#[tokio::test]
async fn a_lost_connection_fails_calls_and_streams() {
    let (client, peer) = Peer::start().await;
    let mut inbound = client.inbound();
    let mut outbound = client.outbound();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call(Request::EnvAll).await }
    });
    drop(peer);
    assert!(matches!(inbound.next().await, Some(Err(StreamError::Lost))));
    assert!(inbound.next().await.is_none());
    assert!(matches!(call.await.unwrap(), Err(AgentError::Lost(_))));
    client.closed().await;
    assert!(outbound.send(Bytes::from_static(b"x")).await.is_err());
    assert!(matches!(
        client.call(Request::EnvAll).await,
        Err(AgentError::Lost(_))
    ));
}

#[tokio::test]
async fn reading_grants_credit_and_a_flood_beyond_it_closes() {
    let (client, mut peer) = Peer::start().await;
    let mut stream = client.inbound();
    let chunk = vec![7; DATA_MAX_BYTES];
    for _ in 0..4 {
        peer.send(FrameKind::Data, stream.id(), &chunk).await;
    }
    assert_eq!(stream.next().await.unwrap().unwrap().len(), DATA_MAX_BYTES);
    let (kind, id, payload) = peer.receive().await;
    assert_eq!((kind, id), (FrameKind::Credit, stream.id()));
    assert_eq!(payload.as_ref(), (DATA_MAX_BYTES as u32).to_le_bytes());
    peer.send(FrameKind::Data, stream.id(), &chunk).await;
    peer.send(FrameKind::Data, stream.id(), b"one byte too many")
        .await;
    client.closed().await;
    for _ in 0..4 {
        assert!(
            stream.next().await.unwrap().is_ok(),
            "what came within the credit is kept"
        );
    }
    assert!(matches!(stream.next().await, Some(Err(StreamError::Lost))));
}

#[tokio::test]
async fn writing_waits_for_credit() {
    let (client, mut peer) = Peer::start().await;
    let mut stream = client.outbound();
    let id = stream.id();
    let total = WINDOW_BYTES as usize + 10;
    let writer = tokio::spawn(async move {
        stream.send(vec![1; total].into()).await.unwrap();
        stream.finish().await.unwrap();
    });
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        let (kind, _, payload) = peer.receive().await;
        assert_eq!(kind, FrameKind::Data);
        received += payload.len();
    }
    assert_eq!(received, WINDOW_BYTES as usize);
    let silence = tokio::time::timeout(Duration::from_millis(50), read_frame(&mut peer.0)).await;
    assert!(silence.is_err(), "nothing is sent without credit");
    peer.send(FrameKind::Credit, id, &100u32.to_le_bytes())
        .await;
    assert_eq!(peer.receive().await.2.len(), 10);
    assert_eq!(peer.receive().await.0, FrameKind::End);
    writer.await.unwrap();
}

#[tokio::test]
async fn dropped_streams_are_reset_and_late_data_is_ignored() {
    let (client, mut peer) = Peer::start().await;
    let inbound = client.inbound();
    let id = inbound.id();
    drop(inbound);
    assert_eq!(peer.receive().await.0, FrameKind::Reset);
    peer.send(FrameKind::Data, id, b"late").await;
    peer.send(FrameKind::End, id, b"").await;
    let outbound = client.outbound();
    drop(outbound);
    assert_eq!(peer.receive().await.0, FrameKind::Reset);
    assert!(!client.is_closed());
}

#[tokio::test]
async fn one_byte_frames_are_joined() {
    let (client, mut peer) = Peer::start().await;
    let mut stream = client.inbound();
    for _ in 0..1000 {
        peer.send(FrameKind::Data, stream.id(), b"x").await;
    }
    peer.send(FrameKind::End, stream.id(), b"").await;
    let mut total = 0;
    let mut chunks = 0;
    while let Some(chunk) = stream.next().await {
        total += chunk.unwrap().len();
        chunks += 1;
    }
    assert_eq!(total, 1000);
    assert!(chunks <= 1000);
}

#[tokio::test]
async fn nonsense_closes_the_connection() {
    let (client, mut peer) = Peer::start().await;
    peer.send(FrameKind::Request, 1, b"").await;
    client.closed().await;
    let (client, mut peer) = Peer::start().await;
    peer.0.write_all(&[255; 9]).await.unwrap();
    client.closed().await;
}

/// A dialled socket with the agent's ids of its directions: source and sink.
async fn dialled(client: &Arc<AgentClient>, peer: &mut Peer) -> (AgentSocket, u32, u32) {
    let dialling = tokio::spawn({
        let client = client.clone();
        async move { client.dial(message::DialTarget::Port(80)).await }
    });
    let (kind, id, payload) = peer.receive().await;
    assert_eq!(kind, FrameKind::Request);
    let Request::Dial { source, sink, .. } = message::decode("request", &payload).unwrap() else {
        panic!("not a dial");
    };
    peer.reply(id, &Ok(Answer::Done)).await;
    (dialling.await.unwrap().unwrap(), source, sink)
}

#[tokio::test]
async fn a_sockets_directions_end_on_their_own() {
    let (client, mut peer) = Peer::start().await;
    let (mut socket, source, sink) = dialled(&client, &mut peer).await;
    socket.write_all(b"to").await.unwrap();
    socket.shutdown().await.unwrap();
    let (kind, id, payload) = peer.receive().await;
    assert_eq!(
        (kind, id, &payload[..]),
        (FrameKind::Data, source, &b"to"[..])
    );
    let (kind, id, _) = peer.receive().await;
    assert_eq!((kind, id), (FrameKind::End, source));

    peer.send(FrameKind::Data, sink, b"from").await;
    peer.send(FrameKind::End, sink, b"").await;
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"from");
}

#[tokio::test]
async fn a_dropped_socket_is_reset_both_ways() {
    let (client, mut peer) = Peer::start().await;
    let (socket, source, sink) = dialled(&client, &mut peer).await;
    drop(socket);
    let mut reset = [peer.receive().await, peer.receive().await].map(|(kind, id, _)| {
        assert_eq!(kind, FrameKind::Reset);
        id
    });
    reset.sort_unstable();
    let mut both = [source, sink];
    both.sort_unstable();
    assert_eq!(reset, both);
}

#[tokio::test]
async fn a_refused_dial_is_an_error() {
    let (client, mut peer) = Peer::start().await;
    let dialling = tokio::spawn({
        let client = client.clone();
        async move { client.dial(message::DialTarget::Port(80)).await }
    });
    let (_, id, _) = peer.receive().await;
    let failure = Failure {
        errno: Some(111),
        message: "refused".into(),
    };
    peer.reply(id, &Err(failure)).await;
    let refused = dialling.await.unwrap().unwrap_err();
    assert!(matches!(refused, AgentError::Refused(failure) if failure.errno == Some(111)));
}
