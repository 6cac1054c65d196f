//! What of exposed servers is bounded: names, connections, requests, and the wait for an answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandstone_core::EXPOSURES_PER_SANDBOX_MAX;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::exposures::{HELLO, Tls, bytes, fixed, server};
use super::harness::{Harness, INGRESS_LIMITS, eventually};
use crate::ingress::Limits;

/// A sandbox's share, of connections as of requests: a quarter of 1024.
const SHARE: usize = 256;

/// An address's share: a quarter of a sandbox's.
const ADDRESS_SHARE: usize = SHARE / 4;

impl Harness {
    /// A connection to the way in, from a loopback address of its own.
    async fn from(&self, host: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, host], 0).into()).unwrap();
        socket.connect(self.ingress_address).await.unwrap()
    }

    async fn tls_from(&self, host: u8, domain: &str, protocol: &[u8]) -> Tls {
        let stream = self.from(host).await;
        self.tls_over(stream, domain, &[protocol]).await
    }

    /// The answer to one request from this address.
    async fn fetch_from(&self, host: u8, domain: &str) -> Response<Incoming> {
        let stream = self.tls_from(host, domain, b"http/1.1").await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header("host", domain);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(request).await.unwrap()
    }

    async fn works_from(&self, host: u8, domain: &str) {
        let answer = self.fetch_from(host, domain).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(bytes(answer).await, "hello");
    }

    /// Expects to be refused; the message. What came before may not have been counted yet.
    async fn busy_from(&self, host: u8, domain: &str) -> String {
        let mut answer = self.fetch_from(host, domain).await;
        for _ in 0..100 {
            if answer.status() != 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = self.fetch_from(host, domain).await;
        }
        assert_eq!(answer.status(), 503);
        let body: Value = serde_json::from_slice(&bytes(answer).await).unwrap();
        assert_eq!(body["code"], "EXPOSURE_BUSY", "{body}");
        assert!(body["hint"].is_string());
        body["message"].as_str().unwrap().to_owned()
    }
}

/// A domain without its port.
fn name(domain: &str) -> &str {
    domain.split(':').next().unwrap()
}

#[tokio::test]
async fn the_names_of_one_sandbox_are_bounded() {
    let harness = Harness::new().await;
    let (_socket, id) = harness.session().await;
    let deno = format!("/api/v3/sandbox/{id}/expose/http");
    let own = format!("/v1/sandboxes/{id}/exposures");
    for _ in 0..EXPOSURES_PER_SANDBOX_MAX {
        harness.done("POST", &deno, Some(json!({}))).await;
    }
    for path in [&deno, &own] {
        let limit = (429, "EXPOSURE_LIMIT");
        let refused = harness
            .refused("POST", path, Some(json!({"port": 80})), limit)
            .await;
        assert!(refused["message"].as_str().unwrap().contains(&id));
        assert!(refused["hint"].is_string());
    }
}

#[tokio::test]
async fn one_address_does_not_have_all_connections() {
    let harness = Harness::new().await;
    let (_socket, id) = harness.session().await;
    let domain = harness.expose(&id, fixed(HELLO).await).await;
    // They never begin their handshakes.
    let mut held = Vec::new();
    for _ in 0..ADDRESS_SHARE {
        held.push(harness.from(2).await);
    }
    let mut refused = harness.from(2).await;
    let mut nothing = Vec::new();
    let end = refused.read_to_end(&mut nothing);
    let end = tokio::time::timeout(Duration::from_secs(5), end).await;
    assert!(end.is_ok(), "it was let in");
    assert!(nothing.is_empty());
    harness.works_from(3, &domain).await;
    drop(held);
}

#[tokio::test]
async fn one_sandbox_does_not_have_all_connections() {
    let harness = Harness::new().await;
    let (_first, first) = harness.session().await;
    let (_other, other) = harness.session().await;
    let server = fixed(HELLO).await;
    let domain = harness.expose(&first, server).await;
    // All names of a sandbox share its share.
    let second = harness.expose(&first, server).await;
    let neighbour = harness.expose(&other, server).await;
    let mut held = Vec::new();
    for n in 0..SHARE {
        let host = 10 + u8::try_from(n / ADDRESS_SHARE).unwrap();
        let domain = if n % 2 == 0 { &domain } else { &second };
        held.push(harness.tls_from(host, domain, b"h2").await);
    }
    let message = harness.busy_from(4, &domain).await;
    assert!(
        message.contains(name(&domain)) && message.contains("256"),
        "{message}"
    );
    assert!(!message.contains(&first), "{message}");
    harness.works_from(4, &neighbour).await;
    // Over HTTP/2 it is said as well, and the connection does not stay.
    let stream = harness.tls_from(4, &second, b"h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let ended = tokio::spawn(connection);
    let request = Request::get(format!("https://{second}/"));
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 503);
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(ended.is_ok(), "the connection stayed");
    drop(held);
}

#[tokio::test]
async fn neither_one_address_nor_one_sandbox_has_all_requests() {
    let harness = Harness::new().await;
    let (_first, first) = harness.session().await;
    let (_other, other) = harness.session().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let silent = server(move |stream, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            std::future::pending::<()>().await;
            drop(stream);
        }
    })
    .await;
    let slow = harness.expose(&first, silent).await;
    let quick = harness.expose(&first, fixed(HELLO).await).await;
    let neighbour = harness.expose(&other, fixed(HELLO).await).await;
    let mut waiting = Vec::new();
    // Each connection has as many streams as the server takes at once.
    const STREAMS: usize = ADDRESS_SHARE / 2;
    for n in 0..SHARE / STREAMS {
        let host = 2 + u8::try_from(n / 2).unwrap();
        let stream = harness.tls_from(host, &slow, b"h2").await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            let request = Request::get(format!("https://{slow}/"));
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            waiting.push(tokio::spawn(
                async move { sender.send_request(request).await },
            ));
        }
    }
    eventually(|| asked.load(Ordering::SeqCst) == SHARE).await;
    let message = harness.busy_from(2, &neighbour).await;
    assert!(message.contains("127.0.0.2"), "{message}");
    let message = harness.busy_from(9, &quick).await;
    assert!(message.contains(&quick), "{message}");
    assert!(!message.contains(&first), "{message}");
    harness.works_from(9, &neighbour).await;
    for request in &waiting {
        request.abort();
    }
    // What has ended leaves its place.
    for attempt in 0.. {
        if harness.fetch_from(2, &quick).await.status() == 200 {
            break;
        }
        assert!(attempt < 100, "the places were not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let harness = Harness::within(Limits {
        answer: Duration::from_millis(300),
        ..INGRESS_LIMITS
    })
    .await;
    let (_socket, id) = harness.session().await;
    let (gone, mut left) = tokio::sync::mpsc::channel(1);
    let silent = server(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            gone.send(()).await.unwrap();
        }
    })
    .await;
    let domain = harness.expose(&id, silent).await;
    let answer = harness.fetch_from(2, &domain).await;
    assert_eq!(answer.status(), 504);
    let body: Value = serde_json::from_slice(&bytes(answer).await).unwrap();
    assert_eq!(body["code"], "TIMED_OUT");
    let message = body["message"].as_str().unwrap();
    let port = format!("port {}", silent.port());
    assert!(
        message.contains(&domain) && message.contains(&port),
        "{message}"
    );
    assert!(!message.contains(&id), "{message}");
    assert!(message.contains("0.3 s"), "{message}");
    assert!(
        body["hint"].as_str().unwrap().contains("accepted"),
        "{body}"
    );
    let left = tokio::time::timeout(Duration::from_secs(5), left.recv()).await;
    assert!(left.is_ok(), "the server's connection stayed");
    // One that answers still does.
    let domain = harness.expose(&id, fixed(HELLO).await).await;
    harness.works_from(2, &domain).await;
}

#[tokio::test]
async fn a_long_request_and_a_long_answer_are_waited_for() {
    let limit = Duration::from_secs(1);
    let harness = Harness::within(Limits {
        answer: limit,
        ..INGRESS_LIMITS
    })
    .await;
    let (_socket, id) = harness.session().await;
    // Each way takes longer than the limit, and moves.
    const PIECES: u32 = 8;
    let server = server(move |mut stream, _| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"0\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..PIECES {
            tokio::time::sleep(limit / 4).await;
            stream.write_all(b"1\r\nx\r\n").await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let stream = harness.tls_from(2, &domain, b"http/1.1").await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let pieces = futures_util::stream::iter(0..PIECES).then(move |_| async move {
        tokio::time::sleep(limit / 4).await;
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"y")))
    });
    let request = Request::post("/").header("host", &domain);
    let request = request.body(StreamBody::new(Box::pin(pieces))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(bytes(answer).await, "x".repeat(PIECES as usize));
}
