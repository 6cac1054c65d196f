//! Requests through a connection that was taken apart.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper::header::{HOST, UPGRADE};
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandstone_core::{Secret, Target};
use tokio::io::copy_bidirectional;
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use super::substitute::{conceal, reveal};
use crate::first::named;
use crate::gate::Shared;
use crate::proxy::Slot;

/// Requests that one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 128;

/// Bound on what is read from one side of an HTTP/1 connection before the other takes it, and so on
/// a header.
const BUFFER_BYTES: usize = 64 << 10;

/// The same for one HTTP/2 request, and for all requests of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;

/// How long a client may take to send the header of a request that it has begun.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// What a connection counts against.
type Slots = (Slot, OwnedSemaphorePermit);

type Body = Either<Incoming, Full<Bytes>>;

/// One connection's two sides.
pub(super) struct Exchange {
    target: Target,
    port: u16,
    shared: Arc<Shared>,
    /// Set when a request asked for another protocol: then the end of HTTP is no end.
    upgrading: AtomicBool,
    _slots: Slots,
}

impl Exchange {
    pub(super) fn new(target: Target, port: u16, shared: Arc<Shared>, slots: Slots) -> Arc<Self> {
        Arc::new(Self {
            target,
            port,
            shared,
            upgrading: AtomicBool::new(false),
            _slots: slots,
        })
    }

    fn secrets(&self) -> Vec<&Secret> {
        let mut secrets: Vec<&Secret> = self
            .shared
            .policy
            .secrets_for(&self.target, self.port)
            .collect();
        // A value may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.value.reveal().len()));
        secrets
    }

    /// Makes a request ready for the host; gives the answer to one that must not go there.
    fn admit<B>(&self, request: &mut Request<B>) -> Option<Response<Body>> {
        // TRACE sends back what it is sent, values included (RFC 9110 section 9.3.8).
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Some(answer(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not forwarded",
            ));
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().map(|host| host.to_str().unwrap_or_default());
        let authority = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let is_ours = |text: &str| named(text).is_some_and(|named| named == self.target);
        let is_meant = hosts.next().is_none()
            && (host.is_some() || authority.is_some())
            && host.into_iter().chain(authority).all(is_ours);
        if !is_meant {
            let other = authority
                .or(host)
                .unwrap_or_default()
                .escape_default()
                .to_string();
            self.shared.refusals.connection(
                &self.target,
                self.port,
                format_args!("a request on it is for {other:?}"),
            );
            return Some(answer(
                StatusCode::MISDIRECTED_REQUEST,
                "this connection is for another host",
            ));
        }
        reveal(request, &self.secrets());
        None
    }

    fn failed(&self, error: &hyper::Error) -> Response<Body> {
        self.shared.refusals.failure(&self.target, self.port, error);
        answer(StatusCode::BAD_GATEWAY, "the host did not answer")
    }
}

fn answer(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(text)));
    *response.status_mut() = status;
    response
}

/// Runs hyper's own tasks as the gate's.
#[derive(Clone)]
struct Tasks(Arc<Shared>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, work: F) {
        self.0.spawn(async move {
            work.await;
        });
    }
}

/// Where requests go in, of either version.
trait Sender {
    /// Waits until a request may go in.
    async fn ready(&mut self) -> hyper::Result<()>;

    /// Sends a request and waits for the head of its response.
    async fn send(&mut self, request: Request<Incoming>) -> hyper::Result<Response<Incoming>>;
}

impl Sender for conn::http1::SendRequest<Incoming> {
    async fn ready(&mut self) -> hyper::Result<()> {
        self.ready().await
    }

    async fn send(&mut self, request: Request<Incoming>) -> hyper::Result<Response<Incoming>> {
        self.send_request(request).await
    }
}

impl Sender for conn::http2::SendRequest<Incoming> {
    async fn ready(&mut self) -> hyper::Result<()> {
        self.ready().await
    }

    async fn send(&mut self, request: Request<Incoming>) -> hyper::Result<Response<Incoming>> {
        self.send_request(request).await
    }
}

/// Sends a request that was admitted, and takes the secrets out of its response.
///
/// # Errors
/// What the client is told instead.
async fn ask<S: Sender>(
    sender: &mut S,
    request: Request<Incoming>,
    exchange: &Exchange,
) -> Result<Response<Incoming>, Response<Body>> {
    let response = match sender.ready().await {
        Ok(()) => sender.send(request).await,
        Err(error) => Err(error),
    };
    let mut response = response.map_err(|error| exchange.failed(&error))?;
    conceal(&mut response, &exchange.secrets());
    Ok(response)
}

/// Forwards requests of HTTP/1.
pub(super) async fn serve_1<C, U>(client: C, upstream: U, exchange: Arc<Exchange>)
where
    C: Read + Write + Unpin + Send + 'static,
    U: Read + Write + Unpin + Send + 'static,
{
    let opened = conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .preserve_header_case(true)
        .handshake(upstream);
    let (sender, connection) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return drop(exchange.failed(&error)),
    };
    let sender = Arc::new(Mutex::new(sender));
    let service = service_fn(|request| {
        let (sender, exchange) = (sender.clone(), exchange.clone());
        async move { Ok::<_, Infallible>(forward_1(request, &sender, &exchange).await) }
    });
    let mut serving = pin!(
        server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .half_close(true)
            .preserve_header_case(true)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(client, service)
            .with_upgrades()
    );
    let mut connection = pin!(connection.with_upgrades());
    tokio::select! {
        // The client's or the server's end is no failure of ours.
        _ = serving.as_mut() => return,
        _ = connection.as_mut() => {}
    }
    if !exchange.upgrading.load(Ordering::Relaxed) {
        // The host closed an idle connection: so do we.
        serving.as_mut().graceful_shutdown();
    }
    let _ = serving.await;
}

async fn forward_1(
    mut request: Request<Incoming>,
    sender: &Mutex<conn::http1::SendRequest<Incoming>>,
    exchange: &Arc<Exchange>,
) -> Response<Body> {
    if let Some(refusal) = exchange.admit(&mut request) {
        return refusal;
    }
    let upgrade = request.headers().contains_key(UPGRADE).then(|| {
        exchange.upgrading.store(true, Ordering::Relaxed);
        hyper::upgrade::on(&mut request)
    });
    let answered = ask(&mut *sender.lock().await, request, exchange).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(failure) => return failure,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgrade
    {
        let upstream = hyper::upgrade::on(&mut response);
        let kept = exchange.clone();
        exchange.shared.spawn(tunnel(client, upstream, kept));
    }
    response.map(Either::Left)
}

/// Copies what follows an upgrade, a WebSocket for instance, as it is.
async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, exchange: Arc<Exchange>) {
    if let Ok((client, upstream)) = tokio::try_join!(client, upstream) {
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
    }
    drop(exchange);
}

/// Forwards requests of HTTP/2.
pub(super) async fn serve_2<C, U>(client: C, upstream: U, exchange: Arc<Exchange>)
where
    C: Read + Write + Unpin + Send + 'static,
    U: Read + Write + Unpin + Send + 'static,
{
    let tasks = Tasks(exchange.shared.clone());
    let opened = conn::http2::Builder::new(tasks.clone())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES)
        .handshake(upstream);
    let (sender, connection) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return drop(exchange.failed(&error)),
    };
    let service = service_fn(|request| {
        let (sender, exchange) = (sender.clone(), exchange.clone());
        async move { Ok::<_, Infallible>(forward_2(request, sender, &exchange).await) }
    });
    let mut serving = pin!(
        server::conn::http2::Builder::new(tasks)
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(BUFFER_BYTES)
            .serve_connection(client, service)
    );
    let mut connection = pin!(connection);
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = connection.as_mut() => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = serving.await;
}

async fn forward_2(
    mut request: Request<Incoming>,
    mut sender: conn::http2::SendRequest<Incoming>,
    exchange: &Arc<Exchange>,
) -> Response<Body> {
    if let Some(refusal) = exchange.admit(&mut request) {
        return refusal;
    }
    match ask(&mut sender, request, exchange).await {
        Ok(response) => response.map(Either::Left),
        Err(failure) => failure,
    }
}
