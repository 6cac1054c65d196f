//! Exposed servers: their names, and the way in with a real TLS client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::harness::Harness;

pub(super) type Tls = TlsStream<TcpStream>;

/// The harness's clock says 2023, and so do its certificates.
#[derive(Debug)]
struct Then;

impl rustls::time_provider::TimeProvider for Then {
    fn current_time(&self) -> Option<UnixTime> {
        let then = Duration::from_secs(1_700_000_000);
        Some(UnixTime::since_unix_epoch(then))
    }
}

impl Harness {
    /// A TLS connection for this host name.
    pub(super) async fn tls(&self, domain: &str, protocols: &[&[u8]]) -> Tls {
        let stream = TcpStream::connect(self.ingress_address).await.unwrap();
        self.tls_over(stream, domain, protocols).await
    }

    /// The same over a connection that there is.
    pub(super) async fn tls_over(
        &self,
        stream: TcpStream,
        domain: &str,
        protocols: &[&[u8]],
    ) -> Tls {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let root: CertificateDer<'static> = self.authority_certificate.clone();
        roots.add(root).unwrap();
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(Then))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let host = domain.split(':').next().unwrap().to_owned();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(host).unwrap(), stream)
            .await
            .unwrap()
    }

    async fn http1<B>(&self, domain: &str) -> http1::SendRequest<B>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = self.tls(domain, &[b"http/1.1"]).await;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// The answer to one request without a body.
    pub(super) async fn fetch(&self, domain: &str, path: &str) -> Response<Incoming> {
        let mut sender = self.http1::<Empty<Bytes>>(domain).await;
        let request = Request::get(path).header("host", domain);
        let answered = sender.send_request(request.body(Empty::new()).unwrap());
        tokio::time::timeout(Duration::from_secs(20), answered)
            .await
            .unwrap()
            .unwrap()
    }

    /// Expects an error of our own.
    pub(super) async fn failing(&self, domain: &str, (status, code): (u16, &str)) {
        let answer = self.fetch(domain, "/").await;
        assert_eq!(answer.status(), status);
        let body: Value = serde_json::from_slice(&bytes(answer).await).unwrap();
        assert_eq!(body["code"], code, "{body}");
        assert!(body["message"].is_string());
    }

    /// A name for a server, issued and bound through our own API.
    pub(super) async fn expose(&self, sandbox: &str, server: SocketAddr) -> String {
        let path = format!("/v1/sandboxes/{sandbox}/exposures");
        let body = json!({"port": server.port()});
        let exposure = self.done("POST", &path, Some(body)).await;
        exposure["domain"].as_str().unwrap().to_owned()
    }
}

pub(super) async fn bytes(answer: Response<Incoming>) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

/// A server that reads one head from each connection and then does `then` with the connection and
/// the head.
pub(super) async fn server<F>(
    then: impl Fn(TcpStream, String) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            tokio::spawn(then(stream, String::from_utf8(head).unwrap()));
        }
    });
    address
}

/// A server that always answers this, and ends the connection.
pub(super) async fn fixed(answer: &'static str) -> SocketAddr {
    server(move |mut stream, _| async move {
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

pub(super) const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn trap_14_a_name_is_issued_bound_and_gone_with_its_sandbox() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.session().await;
    let path = format!("/api/v3/sandbox/{id}/expose/http");
    let issued = harness.done("POST", &path, Some(json!({}))).await;
    let domain = issued["domain"].as_str().unwrap().to_owned();
    let port = harness.ingress_address.port();
    assert!(domain.ends_with(&format!(".sandbox.localhost:{port}")));
    harness.failing(&domain, (404, "DOMAIN_NOT_FOUND")).await;

    let server = fixed(HELLO).await;
    let bind = json!({"domain": domain, "port": server.port()});
    assert_eq!(socket.call("exposeHttp", bind.clone()).await, Value::Null);
    let answer = harness.fetch(&domain, "/").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(bytes(answer).await, "hello");

    // Another sandbox cannot have the name, and neither can nonsense be bound.
    let (mut other, other_id) = harness.session().await;
    let stolen = other.call_error("exposeHttp", bind).await;
    assert_eq!(stolen["code"], "DOMAIN_NOT_FOUND", "{stolen}");
    assert!(stolen["message"].as_str().unwrap().contains(&other_id));
    for bad in [
        json!({"domain": domain}),
        json!({"domain": domain, "port": 0}),
        json!({"domain": domain, "port": 80, "pid": 7}),
    ] {
        let error = socket.call_error("exposeHttp", bad.clone()).await;
        assert_eq!(error["code"], "INVALID_REQUEST", "{bad}");
    }
    socket.close().await;
    harness.wait_for_running(1).await;
    harness.failing(&domain, (404, "DOMAIN_NOT_FOUND")).await;
    other.close().await;
}

#[tokio::test]
async fn our_own_api_lists_and_takes_back() {
    let harness = Harness::new().await;
    // Python names the port when it creates the sandbox.
    let server = fixed(HELLO).await;
    let config = json!({"memory_mb": 1280, "port": server.port()});
    let (socket, id) = harness.create(&config, &[]).await;
    let path = format!("/v1/sandboxes/{id}/exposures");
    let first = harness.done("GET", &path, None).await;
    assert_eq!(first["items"][0]["port"], server.port());
    let domain = first["items"][0]["domain"].as_str().unwrap().to_owned();
    assert_eq!(bytes(harness.fetch(&domain, "/").await).await, "hello");
    let second = harness.expose(&id, server).await;
    assert_ne!(second, domain);
    let listed = harness.done("GET", "/v1/sandboxes", None).await;
    assert_eq!(listed["items"][0]["id"], json!(id));

    let query = format!("{path}?domain={domain}");
    assert_eq!(harness.rest("DELETE", &query, None).await.status, 204);
    let gone = (404, "DOMAIN_NOT_FOUND");
    harness.refused("DELETE", &query, None, gone).await;
    harness.failing(&domain, gone).await;
    assert_eq!(bytes(harness.fetch(&second, "/").await).await, "hello");
    let invalid = (400, "INVALID_REQUEST");
    for body in [json!({}), json!({"port": 65_536}), json!({"port": "80"})] {
        harness.refused("POST", &path, Some(body), invalid).await;
    }
    harness.refused("DELETE", &path, None, invalid).await;
    let sandbox = format!("/v1/sandboxes/{id}");
    assert_eq!(harness.rest("DELETE", &sandbox, None).await.status, 204);
    let stopped = harness.done("GET", &path, None).await;
    assert_eq!(stopped["items"], json!([]));
    harness
        .refused(
            "POST",
            &path,
            Some(json!({"port": 80})),
            (404, "SANDBOX_NOT_FOUND"),
        )
        .await;
    socket.close().await;
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.session().await;
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let domain = harness.expose(&id, gone.local_addr().unwrap()).await;
    drop(gone);
    harness.failing(&domain, (502, "NOT_LISTENING")).await;
    for answer in [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let domain = harness.expose(&id, fixed(answer).await).await;
        harness.failing(&domain, (502, "NOT_LISTENING")).await;
    }
    let bind = json!({"domain": domain, "pid": 4_000_000});
    let error = socket.call_error("exposeHttp", bind).await;
    assert_eq!(error["code"], "NOT_LISTENING", "{error}");
    // What runs in a sandbox is told to its owner only.
    let missing = "sbx_ord_0at5nn58e77rtd11e3k3";
    for path in [
        format!("/api/v3/sandbox/{missing}/expose/http"),
        format!("/v1/sandboxes/{missing}/exposures"),
    ] {
        let answer = harness.rest("POST", &path, Some(json!({"pid": 1}))).await;
        assert_eq!(answer.status, 404, "{path} {}", answer.body);
        assert_eq!(answer.json()["code"], "SANDBOX_NOT_FOUND");
    }
    let unknown = format!("{}.sandbox.localhost", "a".repeat(24));
    harness.failing(&unknown, (404, "DOMAIN_NOT_FOUND")).await;
    socket.close().await;
}

#[tokio::test]
async fn heads_are_passed_on_without_what_is_about_the_connection() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let server = server(|mut stream, head| async move {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nx-kept: 1\r\n\
             content-length: {}\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let mut sender = harness.http1::<Empty<Bytes>>(&domain).await;
    // One connection of the client serves many requests.
    for path in ["/a?b=c", "/%2e%2e//x"] {
        let request = Request::get(path)
            .header("host", &domain)
            .header("x-forwarded-for", "8.8.8.8")
            .header("x-kept", "1");
        let request = request.body(Empty::new()).unwrap();
        sender.ready().await.unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert!(answer.headers().contains_key("x-kept"));
        assert!(!answer.headers().contains_key("x-hop"));
        let head = String::from_utf8(bytes(answer).await.to_vec()).unwrap();
        assert!(
            head.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
            "{head}"
        );
        for line in [
            format!("host: {domain}\r\n"),
            format!("x-forwarded-host: {domain}\r\n"),
            "x-forwarded-for: 127.0.0.1\r\n".to_owned(),
            "x-forwarded-proto: https\r\n".to_owned(),
            "x-kept: 1\r\n".to_owned(),
        ] {
            assert!(head.contains(&line), "{line:?} in {head}");
        }
    }
    socket.close().await;
}

#[tokio::test]
async fn pieces_come_through_before_the_end_and_without_a_length() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let (go, gone) = tokio::sync::watch::channel(false);
    // An old server: its body ends with the connection.
    let server = server(move |mut stream, _| {
        let mut gone = gone.clone();
        async move {
            let head = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            gone.wait_for(|gone| *gone).await.unwrap();
            stream.write_all(b"data: 2\n\n").await.unwrap();
        }
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let mut body = harness.fetch(&domain, "/").await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: 1\n\n");
    go.send_replace(true);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "data: 2\n\n");
    socket.close().await;
}

#[tokio::test]
async fn bodies_go_up_as_streams_over_both_versions() {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 64;
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    // Says how many bytes came, in a chunked answer with a trailer.
    let server = server(|stream, head| async move {
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        let (read, mut write) = stream.into_split();
        let mut read = tokio::io::BufReader::new(read);
        let mut total = 0;
        loop {
            use tokio::io::AsyncBufReadExt;
            let mut line = String::new();
            read.read_line(&mut line).await.unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            read.read_exact(&mut chunk).await.unwrap();
            total += length;
            if length == 0 {
                break;
            }
        }
        let total = total.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
             {:x}\r\n{total}\r\n0\r\nx-sum: 7\r\n\r\n",
            total.len()
        );
        write.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let chunks = || {
        let chunk = Bytes::from(vec![7; CHUNK]);
        let chunks = futures_util::stream::iter((0..CHUNKS).map(move |_| chunk.clone()));
        StreamBody::new(chunks.map(|chunk| Ok::<_, std::io::Error>(Frame::data(chunk))))
    };
    let expected = (CHUNK * CHUNKS).to_string();

    let mut sender = harness.http1(&domain).await;
    let request = Request::post("/").header("host", &domain);
    let answer = sender.send_request(request.body(chunks()).unwrap()).await;
    assert_eq!(bytes(answer.unwrap()).await, expected);

    let stream = harness.tls(&domain, &[b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let executor = TokioExecutor::new();
    let (sender, connection) = http2::handshake(executor, TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    // Many at once on one connection.
    let requests = (0..4).map(|_| {
        let mut sender = sender.clone();
        let request = Request::post(format!("https://{domain}/")).header("te", "trailers");
        let request = request.body(chunks()).unwrap();
        async move {
            let answer = sender.send_request(request).await.unwrap();
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-sum"], "7");
            body.to_bytes()
        }
    });
    for body in futures_util::future::join_all(requests).await {
        assert_eq!(body, expected);
    }
    socket.close().await;
}

#[tokio::test]
async fn a_connection_can_become_something_else_and_ends_with_the_sandbox() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let server = server(|mut stream, head| async move {
        assert!(head.contains("upgrade: echo\r\n"), "{head}");
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let mut sender = harness.http1::<Empty<Bytes>>(&domain).await;
    let request = Request::get("/")
        .header("host", &domain)
        .header("connection", "Upgrade")
        .header("upgrade", "echo");
    let answer = sender
        .send_request(request.body(Empty::new()).unwrap())
        .await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["upgrade"], "echo");
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    for word in ["first", "other"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    socket.close().await;
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    let end = tokio::time::timeout(Duration::from_secs(10), end).await;
    assert!(end.is_ok(), "it outlived its sandbox");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_waited_for() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let server = server(move |mut stream, _| {
        let sent = counter.clone();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let chunk = vec![7; 64 << 10];
            while stream.write_all(&chunk).await.is_ok() {
                sent.fetch_add(chunk.len(), std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let answer = harness.fetch(&domain, "/").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let first = sent.load(std::sync::atomic::Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = sent.load(std::sync::atomic::Ordering::SeqCst);
    // What the kernel's buffers take, and ours: it stands still then.
    assert!(second < 64 << 20, "{second}");
    assert!(second - first < 1 << 20, "{first} {second}");
    drop(answer);
    socket.close().await;
}

/// The status of the answer to raw bytes, and whether the connection ends then.
async fn raw(harness: &Harness, domain: &str, request: &str) -> String {
    let mut stream = harness.tls(domain, &[b"http/1.1"]).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // It ends without a farewell sometimes.
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn heads_that_can_be_read_in_two_ways_are_refused() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let domain = harness.expose(&id, fixed(HELLO).await).await;
    let many: String = (0..150).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "a".repeat(70 << 10));
    for (headers, status) in [
        ("host: a\r\nhost: b\r\n".to_owned(), "400"),
        (format!("host: {domain}\r\nhost: {domain}\r\n"), "400"),
        (String::new(), "400"),
        (
            format!("host: {domain}\r\ncontent-length: 1\r\ncontent-length: 2\r\n"),
            "400",
        ),
        (format!("host: {domain}\r\ntransfer-encoding: x\r\n"), "400"),
        (format!("host : {domain}\r\n"), "400"),
        (format!("host: {domain}\r\n{many}"), "431"),
        (format!("host: {domain}\r\n{long}"), "431"),
    ] {
        let request = format!("POST / HTTP/1.1\r\n{headers}\r\n");
        let line = raw(&harness, &domain, &request).await;
        assert!(line.contains(status), "{line:?} for {:.200}", headers);
    }
    let request = format!("CONNECT {domain} HTTP/1.1\r\nhost: {domain}\r\n\r\n");
    assert!(raw(&harness, &domain, &request).await.contains("400"));
    // The two lengths: the second is what counts, and the first is not passed on.
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {domain}\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\
         connection: close\r\n\r\n0\r\n\r\n"
    );
    assert!(raw(&harness, &domain, &request).await.contains("200"));
    socket.close().await;
}

#[tokio::test]
async fn a_client_that_dawdles_is_let_go() {
    let harness = Harness::new().await;
    let begun = std::time::Instant::now();
    let line = raw(&harness, "a.sandbox.localhost", "GET / HTTP/1.1\r\nhost: ").await;
    assert!(line.is_empty() || line.contains("408"), "{line}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    let mut stream = TcpStream::connect(harness.ingress_address).await.unwrap();
    let mut nothing = Vec::new();
    let end = stream.read_to_end(&mut nothing);
    let ended = tokio::time::timeout(Duration::from_secs(15), end).await;
    assert!(ended.is_ok(), "the handshake had no limit");
}

#[tokio::test]
async fn small_bodies_have_a_length() {
    let harness = Harness::new().await;
    let (socket, id) = harness.session().await;
    let server = server(|mut stream, head| async move {
        assert!(head.contains("content-length: 2\r\n"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"ab");
        stream.write_all(HELLO.as_bytes()).await.unwrap();
    })
    .await;
    let domain = harness.expose(&id, server).await;
    let mut sender = harness.http1(&domain).await;
    let request = Request::post("/").header("host", &domain);
    let request = request.body(Full::new(Bytes::from_static(b"ab"))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "5");
    assert_eq!(bytes(answer).await, "hello");
    socket.close().await;
}
