//! What an agent does that wants the host's memory.

use super::*;

/// Lets all other tasks run until none of them can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn ends(client: &Arc<AgentClient>) {
    tokio::time::timeout(Duration::from_secs(5), client.closed())
        .await
        .expect("the connection ends");
}

fn call(
    client: &Arc<AgentClient>,
    request: Request,
) -> tokio::task::JoinHandle<Result<Answer, AgentError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call(request).await })
}

fn refused(outcome: Result<Answer, AgentError>) -> Option<i32> {
    match outcome {
        Err(AgentError::Refused(failure)) => failure.errno,
        other => panic!("not refused: {other:?}"),
    }
}

fn large_request() -> Request {
    Request::EnvSet {
        name: "A".into(),
        value: "x".repeat(15 << 20),
    }
}

#[tokio::test]
async fn credit_beyond_the_window_closes() {
    let (client, mut peer) = Peer::start().await;
    let mut stream = client.outbound();
    stream.send(vec![1; 100].into()).await.unwrap();
    peer.receive().await;
    peer.send(FrameKind::Credit, stream.id(), &100_u32.to_le_bytes())
        .await;
    stream.send(vec![1; 100].into()).await.unwrap();
    peer.receive().await;
    assert!(!client.is_closed(), "that was a whole window again");
    peer.send(FrameKind::Credit, stream.id(), &101_u32.to_le_bytes())
        .await;
    ends(&client).await;
    assert!(matches!(
        stream.send(vec![1; 1].into()).await,
        Err(StreamError::Lost)
    ));
}

#[tokio::test]
async fn an_agent_that_grants_and_does_not_read_gets_no_more() {
    let (client, mut peer) = Peer::start().await;
    let mut stream = client.outbound();
    let id = stream.id();
    let writer = tokio::spawn(async move {
        loop {
            stream.send(vec![1; DATA_MAX_BYTES].into()).await.unwrap();
        }
    });
    // Granted as soon as it is queued, so the window alone bounds nothing.
    let mut granted = 0;
    while granted < 64 << 20 {
        settle().await;
        let spent = {
            let state = client.shared.lock();
            WINDOW_BYTES - state.outbound[&id].credit
        };
        if spent == 0 {
            break;
        }
        peer.send(FrameKind::Credit, id, &spent.to_le_bytes()).await;
        granted += spent;
    }
    assert!(granted < 16 << 20, "{granted} bytes were queued");
    // What is read makes room again.
    for _ in 0..400 {
        assert_eq!(peer.receive().await.0, FrameKind::Data);
        settle().await;
        let spent = {
            let state = client.shared.lock();
            WINDOW_BYTES - state.outbound[&id].credit
        };
        peer.send(FrameKind::Credit, id, &spent.to_le_bytes()).await;
    }
    writer.abort();
}

#[tokio::test]
async fn requests_that_nobody_takes_are_refused() {
    let (client, _peer) = Peer::start().await;
    let waiting: Vec<_> = (0..10).map(|_| call(&client, large_request())).collect();
    settle().await;
    let (over, under): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|call| call.is_finished());
    assert!((3..=6).contains(&under.len()), "{} wait", under.len());
    for call in over {
        assert_eq!(refused(call.await.unwrap()), Some(11));
    }
    // Those that are given up leave nothing, so there is room for others.
    for call in &under {
        call.abort();
    }
    settle().await;
    let known = client.shared.lock().calls.len();
    assert!(
        known <= 1,
        "{known} calls are kept, and one was sent in part"
    );
    for _ in 0..20 {
        let waiting = call(&client, large_request());
        settle().await;
        assert!(!waiting.is_finished());
        waiting.abort();
        settle().await;
    }
}

#[tokio::test]
async fn a_refused_request_ends_its_streams() {
    let (client, mut peer) = Peer::start().await;
    let mut source = client.outbound();
    let request = Request::WriteFile {
        path: "x".repeat(17 << 20),
        source: source.id(),
        options: message::WriteOptions::default(),
    };
    assert_eq!(refused(client.call(request).await), Some(7));
    let sending = source.send(vec![1; 1 << 20].into());
    let sent = tokio::time::timeout(Duration::from_secs(5), sending)
        .await
        .expect("the stream ends");
    assert!(matches!(sent, Err(StreamError::Reset(Some(failure))) if failure.errno == Some(7)));
    drop(source);
    let _open = call(&client, Request::EnvAll);
    assert_eq!(
        peer.receive().await.0,
        FrameKind::Request,
        "the agent never heard of the stream"
    );
}

#[tokio::test]
async fn a_closed_connection_holds_no_socket_though_the_agent_does_not_read() {
    let (client, peer) = Peer::start().await;
    let _waiting = call(&client, large_request());
    settle().await;
    client.shared.close("enough");
    settle().await;
    let mut peer = peer.0;
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), peer.read_to_end(&mut rest))
        .await
        .expect("the other end is closed")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_read_is_given_up() {
    let (client, mut peer) = Peer::start().await;
    let begin = tokio::time::Instant::now();
    let waiting = call(&client, large_request());
    // As long as it takes something it stays.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut some = vec![0; 1 << 16];
        peer.0.read_exact(&mut some).await.unwrap();
    }
    assert!(!client.is_closed());
    client.closed().await;
    assert_eq!(begin.elapsed().as_secs(), 250 + 60);
    assert!(matches!(waiting.await.unwrap(), Err(AgentError::Lost(_))));
}

#[tokio::test]
async fn a_reply_that_is_too_long_for_its_request_is_not_even_read() {
    for (request, most) in [
        (Request::Umask { mask: None }, REPLY_MAX_BYTES),
        (Request::EnvAll, PAYLOAD_MAX_BYTES),
    ] {
        let (client, mut peer) = Peer::start().await;
        let waiting = call(&client, request);
        let (_, id, _) = peer.receive().await;
        let header =
            |length: usize| sandstone_protocol::frame::encode_header(FrameKind::Reply, id, length);
        peer.0.write_all(&header(most)).await.unwrap();
        settle().await;
        assert!(!client.is_closed(), "{most}");
        drop((client, peer, waiting));
    }
    let (client, mut peer) = Peer::start().await;
    let waiting = call(&client, Request::Umask { mask: None });
    let (_, id, _) = peer.receive().await;
    let header =
        sandstone_protocol::frame::encode_header(FrameKind::Reply, id, REPLY_MAX_BYTES + 1);
    peer.0.write_all(&header).await.unwrap();
    ends(&client).await;
    assert!(matches!(waiting.await.unwrap(), Err(AgentError::Lost(_))));
}

#[tokio::test]
async fn a_large_reply_is_decoded_and_a_malformed_one_closes() {
    let (client, mut peer) = Peer::start().await;
    let waiting = call(&client, Request::EnvAll);
    let (_, id, _) = peer.receive().await;
    let variables = Answer::Variables([("A".to_owned(), "x".repeat(3 << 20))].into());
    peer.reply(id, &Ok(variables.clone())).await;
    assert_eq!(waiting.await.unwrap().unwrap(), variables);
    for length in [3, 3 << 20] {
        let (client, mut peer) = Peer::start().await;
        let waiting = call(&client, Request::EnvAll);
        let (_, id, _) = peer.receive().await;
        peer.send(FrameKind::Reply, id, &vec![255; length]).await;
        assert!(matches!(waiting.await.unwrap(), Err(AgentError::Lost(_))));
        ends(&client).await;
    }
}

#[tokio::test]
async fn a_reply_to_nothing_closes_and_one_to_an_abandoned_call_does_not() {
    let (client, mut peer) = Peer::start().await;
    let waiting = call(&client, Request::EnvAll);
    let (_, id, _) = peer.receive().await;
    waiting.abort();
    settle().await;
    // Nobody looks at it.
    peer.send(FrameKind::Reply, id, b"\xff").await;
    let next = call(&client, Request::Umask { mask: None });
    let (_, next_id, _) = peer.receive().await;
    peer.reply(next_id, &Ok(Answer::Umask(18))).await;
    assert_eq!(next.await.unwrap().unwrap(), Answer::Umask(18));
    assert!(client.shared.lock().calls.is_empty());
    peer.reply(id, &Ok(Answer::Done)).await;
    ends(&client).await;

    let (client, mut peer) = Peer::start().await;
    peer.reply(client.fresh_id(), &Ok(Answer::Done)).await;
    ends(&client).await;
}

#[tokio::test]
async fn a_reply_before_its_request_closes() {
    let (client, mut peer) = Peer::start().await;
    let first = call(&client, large_request());
    settle().await;
    let second = call(&client, Request::EnvAll);
    settle().await;
    peer.reply(2, &Ok(Answer::Done)).await;
    ends(&client).await;
    assert!(matches!(first.await.unwrap(), Err(AgentError::Lost(_))));
    assert!(matches!(second.await.unwrap(), Err(AgentError::Lost(_))));
}

#[tokio::test]
async fn streams_have_a_number() {
    let (client, mut peer) = Peer::start().await;
    let mut open: Vec<_> = (0..OPEN_STREAMS_MAX).map(|_| client.inbound()).collect();
    let mut sink = client.inbound();
    let mut source = client.outbound();
    let request = |sink: &InboundStream| Request::ReadFile {
        path: "/x".into(),
        sink: sink.id(),
    };
    let asked = call(&client, request(&sink));
    settle().await;
    assert!(asked.is_finished(), "it was sent");
    assert_eq!(refused(asked.await.unwrap()), Some(11));
    let first = sink.next().await.unwrap().unwrap_err();
    assert!(matches!(first, StreamError::Reset(Some(failure)) if failure.errno == Some(11)));
    assert!(sink.next().await.is_none());
    let sent = source.send(vec![1; 1].into()).await.unwrap_err();
    assert!(matches!(sent, StreamError::Reset(Some(failure)) if failure.errno == Some(11)));
    drop((sink, source));
    open.pop();
    assert_eq!(peer.receive().await.0, FrameKind::Reset);
    let sink = client.inbound();
    let _waiting = call(&client, request(&sink));
    assert_eq!(peer.receive().await.0, FrameKind::Request);
    assert!(!client.is_closed());
}
