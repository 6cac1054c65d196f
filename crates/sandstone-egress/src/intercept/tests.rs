//! Requests through both versions of HTTP, between a client and a host of the test's own.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandstone_core::{NetworkPolicy, Placeholder, Secret, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Semaphore;

use super::http::{Exchange, serve_1, serve_2};
use crate::gate::tests::shared_with;
use crate::proxy::Slot;

const VALUE: &str = "the-value";

fn placeholder() -> Placeholder {
    Placeholder::from_random([3; 16])
}

fn exchange() -> Arc<Exchange> {
    let hosts = vec!["a.test".parse().unwrap()];
    let secret = Secret::new("KEY", hosts, VALUE.to_owned(), placeholder()).unwrap();
    let shared = shared_with(NetworkPolicy {
        allow: None,
        secrets: vec![secret],
    });
    let all = Arc::new(Semaphore::new(3));
    let mut slots = (0..3).map(|_| all.clone().try_acquire_owned().unwrap());
    let slot = Slot::of(slots.next().unwrap(), slots.next().unwrap());
    let target = Target::Name("a.test".parse().unwrap());
    Exchange::new(target, 443, shared, (slot, slots.next().unwrap()))
}

/// The host: answers with what it was sent, in the header and in the body.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let seen = request.headers()["x-key"].clone();
    let target = request.uri().path_and_query().unwrap().to_string();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let text = format!("{target} {} {}", seen.to_str().unwrap(), body.len());
    let response = Response::builder().header("x-seen", seen);
    Ok(response.body(Full::from(text)).unwrap())
}

fn request(version_2: bool, host: &str) -> Request<Full<Bytes>> {
    let shown = placeholder();
    let path = format!("/p?k={}", shown.as_str());
    let builder = match version_2 {
        true => Request::post(format!("https://{host}{path}")),
        false => Request::post(path).header("host", host),
    };
    let body = Full::from(vec![b'x'; 300_000]);
    builder.header("x-key", shown.as_str()).body(body).unwrap()
}

async fn check(response: Response<Incoming>) {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-seen"], placeholder().as_str());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("/p?k={VALUE} {VALUE} 300000"));
}

fn pipes() -> (DuplexStream, DuplexStream, DuplexStream, DuplexStream) {
    let (client, inner) = duplex(4096);
    let (outer, host) = duplex(4096);
    (client, inner, outer, host)
}

#[tokio::test]
async fn requests_of_http_1() {
    let (client, inner, outer, host) = pipes();
    tokio::spawn(serve_1(
        TokioIo::new(inner),
        TokioIo::new(outer),
        exchange(),
    ));
    tokio::spawn(
        server::conn::http1::Builder::new().serve_connection(TokioIo::new(host), service_fn(echo)),
    );
    let opened = client::conn::http1::handshake(TokioIo::new(client)).await;
    let (mut sender, connection) = opened.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        check(sender.send_request(request(false, "a.test")).await.unwrap()).await;
        sender.ready().await.unwrap();
    }
    let other = sender.send_request(request(false, "b.test")).await.unwrap();
    assert_eq!(other.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn requests_of_http_2() {
    let (client, inner, outer, host) = pipes();
    tokio::spawn(serve_2(
        TokioIo::new(inner),
        TokioIo::new(outer),
        exchange(),
    ));
    tokio::spawn(
        server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(host), service_fn(echo)),
    );
    let opened = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await;
    let (mut sender, connection) = opened.unwrap();
    tokio::spawn(connection);
    let mut second = sender.clone();
    let both = tokio::try_join!(
        sender.send_request(request(true, "a.test")),
        second.send_request(request(true, "a.test:443")),
    );
    let (one, two) = both.unwrap();
    tokio::join!(check(one), check(two));
    let other = sender.send_request(request(true, "b.test")).await.unwrap();
    assert_eq!(other.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn what_shows_the_request_is_refused() {
    let (client, inner, outer, host) = pipes();
    tokio::spawn(serve_1(
        TokioIo::new(inner),
        TokioIo::new(outer),
        exchange(),
    ));
    let opened = client::conn::http1::handshake(TokioIo::new(client)).await;
    let (mut sender, connection) = opened.unwrap();
    tokio::spawn(connection);
    let trace = Request::builder().method("TRACE").header("host", "a.test");
    let trace = trace.body(Empty::<Bytes>::new()).unwrap();
    let refused = sender.send_request(trace).await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    drop(host);
}

#[tokio::test]
async fn what_follows_an_upgrade_passes_as_it_is() {
    let (mut client, inner, outer, mut host) = pipes();
    tokio::spawn(serve_1(
        TokioIo::new(inner),
        TokioIo::new(outer),
        exchange(),
    ));
    let shown = placeholder();
    let asked = format!(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: {}\r\n\r\n",
        shown.as_str()
    );
    client.write_all(asked.as_bytes()).await.unwrap();
    let heard = read_header(&mut host).await;
    assert!(heard.contains(&format!(": {VALUE}")), "{heard}");
    let accepted =
        "HTTP/1.1 101 Yes the-value\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    host.write_all(accepted.as_bytes()).await.unwrap();
    let answer = read_header(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.1 101") && !answer.contains(VALUE),
        "{answer}"
    );
    for from_client in [true, false] {
        let (sender, receiver) = match from_client {
            true => (&mut client, &mut host),
            false => (&mut host, &mut client),
        };
        sender.write_all(shown.as_str().as_bytes()).await.unwrap();
        let mut passed = vec![0; shown.as_str().len()];
        receiver.read_exact(&mut passed).await.unwrap();
        assert_eq!(passed, shown.as_str().as_bytes());
    }
}

async fn read_header(stream: &mut DuplexStream) -> String {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        header.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(header).unwrap()
}
