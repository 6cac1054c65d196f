//! Clients of exposed servers that do not take what is sent to them.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::exposures::{HELLO, bytes, fixed, server};
use super::harness::{Harness, INGRESS_LIMITS};
use crate::ingress::Limits;

const STALL: Duration = Duration::from_millis(500);

/// How long the server may take to notice.
const NOTICED: Duration = Duration::from_secs(30);

const UPGRADED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

impl Harness {
    async fn impatient() -> Self {
        Self::within(Limits {
            stall: STALL,
            ..INGRESS_LIMITS
        })
        .await
    }

    /// Exposes a server that begins like this and goes on for ever; what hears when it has lost its
    /// client.
    async fn expose_endless(
        &self,
        sandbox: &str,
        head: &'static str,
    ) -> (String, mpsc::Receiver<()>) {
        let (gone, lost) = mpsc::channel(1);
        let endless = server(move |mut stream, _| {
            let gone = gone.clone();
            async move {
                let mut piece = head.as_bytes();
                while stream.write_all(piece).await.is_ok() {
                    piece = &[b'x'; 4096];
                }
                gone.send(()).await.unwrap();
            }
        })
        .await;
        (self.expose(sandbox, endless).await, lost)
    }

    async fn http2(&self, domain: &str) -> http2::SendRequest<Empty<Bytes>> {
        let stream = self.tls(domain, &[b"h2"]).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn get(sender: &mut http2::SendRequest<Empty<Bytes>>, domain: &str) -> Incoming {
    let request = Request::get(format!("https://{domain}/"));
    let request = request.body(Empty::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body()
}

async fn hears(lost: &mut mpsc::Receiver<()>) {
    let lost = timeout(NOTICED, lost.recv()).await;
    lost.expect("the client was not given up").unwrap();
}

const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\n";

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let harness = Harness::impatient().await;
    let (_socket, id) = harness.session().await;
    let (domain, mut lost) = harness.expose_endless(&id, ENDLESS).await;
    let mut stream = harness.tls(&domain, &[b"http/1.1"]).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {domain}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    hears(&mut lost).await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_reset_and_the_others_go_on() {
    let harness = Harness::impatient().await;
    let (_socket, id) = harness.session().await;
    let (domain, mut lost) = harness.expose_endless(&id, ENDLESS).await;
    let mut sender = harness.http2(&domain).await;
    let mut unread = get(&mut sender, &domain).await;
    let mut slow = get(&mut sender, &domain).await;
    let reading = tokio::spawn(async move {
        loop {
            slow.frame().await.unwrap().unwrap();
            sleep(STALL / 50).await;
        }
    });
    hears(&mut lost).await;
    sleep(2 * STALL).await;
    assert!(!reading.is_finished(), "one that reads was given up");
    assert!(lost.try_recv().is_err(), "one that reads was given up");
    let end = timeout(NOTICED, async {
        loop {
            match unread.frame().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("a piece of an answer passed for all of it"),
            }
        }
    });
    end.await.expect("the stream stayed");
    // The connection has stayed.
    drop(get(&mut sender, &domain).await);
    reading.abort();
}

#[tokio::test]
async fn an_answer_that_pauses_and_a_silent_tunnel_are_left_alone() {
    let harness = Harness::impatient().await;
    let (_socket, id) = harness.session().await;
    let pausing = server(|mut stream, _| async move {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx";
        stream.write_all(head.as_bytes()).await.unwrap();
        sleep(4 * STALL).await;
        stream.write_all(b"x").await.unwrap();
    })
    .await;
    let pausing = harness.expose(&id, pausing).await;
    let echo = server(|mut stream, _| async move {
        stream.write_all(UPGRADED.as_bytes()).await.unwrap();
        let byte = stream.read_u8().await.unwrap();
        stream.write_all(&[byte]).await.unwrap();
    })
    .await;
    let echo = harness.expose(&id, echo).await;
    let mut tunnel = harness.tunnel(&echo).await;
    let mut sender = harness.http2(&pausing).await;
    let over_2 = get(&mut sender, &pausing).await;
    let over_1 = harness.fetch(&pausing, "/").await;
    assert_eq!(bytes(over_1).await, "xx");
    assert_eq!(over_2.collect().await.unwrap().to_bytes(), "xx");
    tunnel.write_all(b"y").await.unwrap();
    assert_eq!(tunnel.read_u8().await.unwrap(), b'y');
}

#[tokio::test]
async fn a_tunnel_that_is_not_read_is_given_up() {
    let harness = Harness::impatient().await;
    let (_socket, id) = harness.session().await;
    let (domain, mut lost) = harness.expose_endless(&id, UPGRADED).await;
    let tunnel = harness.tunnel(&domain).await;
    hears(&mut lost).await;
    drop(tunnel);
    let hello = harness.expose(&id, fixed(HELLO).await).await;
    assert_eq!(bytes(harness.fetch(&hello, "/").await).await, "hello");
}

impl Harness {
    /// A connection that has been upgraded.
    async fn tunnel(&self, domain: &str) -> super::exposures::Tls {
        let mut stream = self.tls(domain, &[b"http/1.1"]).await;
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {domain}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        stream
    }
}
