//! One connection of a client: HTTP/1.1 or HTTP/2, as the handshake agreed on.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sandstone_api::ApiError;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::pace::{Streams, while_taken};
use super::room::{REQUESTS_OF_ADDRESS_MAX, Room};
use super::{Limits, forward};
use crate::control::ControlPlane;

/// HTTP/2 as TLS names it (RFC 9113, section 3.2).
pub(super) const HTTP_2: &[u8] = b"h2";

/// Bytes of a request's head, and of what is buffered of a body on its way.
pub(super) const BUFFER_MAX_BYTES: usize = 64 << 10;

/// Headers of a message.
pub(super) const HEADERS_MAX: usize = 100;

/// How long a client may take to send a head, and to send the next one.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Requests at once on an HTTP/2 connection: half of what its address may have, so that a page with
/// many parts waits by itself instead of being refused some of them.
const STREAMS_MAX: u32 = REQUESTS_OF_ADDRESS_MAX as u32 / 2;

/// Window of an HTTP/2 connection, shared by its streams: what it makes us buffer.
const WINDOW_BYTES: u32 = 256 << 10;

/// How often an HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);

/// How long a connection may do nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection that is one too many stays: its client is to read why it is refused.
const REFUSED_LIMIT: Duration = Duration::from_secs(2);

/// What every connection gets.
pub(super) struct Guest {
    pub(super) control: Arc<ControlPlane>,
    pub(super) room: Arc<Room>,
    pub(super) limits: Limits,
    pub(super) shutdown: CancellationToken,
}

/// What the requests of one connection share.
pub(super) struct Shared {
    pub(super) control: Arc<ControlPlane>,
    pub(super) room: Arc<Room>,
    /// See [`Limits::answer`].
    pub(super) answer_limit: Duration,
    /// Why all requests are refused, if they are.
    pub(super) refusal: Option<ApiError>,
    /// Who asks.
    pub(super) client: IpAddr,
    /// The host name that the handshake named.
    pub(super) server_name: Option<String>,
    activity: Activity,
}

/// What goes on on a connection.
#[derive(Debug, Default)]
struct Activity {
    open: AtomicUsize,
    begun: AtomicU64,
}

/// A request that is being answered, until its answer's body has ended.
pub(super) struct Busy(Arc<Shared>);

impl Shared {
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.activity.open.fetch_add(1, Ordering::SeqCst);
        self.activity.begun.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    /// Returns when nothing has happened for a while, or all is refused and that was said.
    async fn idle(&self) {
        if self.refusal.is_some() {
            return tokio::time::sleep(REFUSED_LIMIT).await;
        }
        let mut before = None;
        loop {
            let now = self.activity.begun.load(Ordering::SeqCst);
            if self.activity.open.load(Ordering::SeqCst) == 0 && before == Some(now) {
                return;
            }
            before = Some(now);
            tokio::time::sleep(IDLE_LIMIT).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.activity.open.fetch_sub(1, Ordering::SeqCst);
        // The time without a request begins now.
        self.0.activity.begun.fetch_add(1, Ordering::SeqCst);
    }
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(stream: TlsStream<TcpStream>, client: IpAddr, guest: Guest) {
    let (_, session) = stream.get_ref();
    let is_http_2 = session.alpn_protocol() == Some(HTTP_2);
    let server_name = session.server_name().map(str::to_owned);
    let sandbox = match &server_name {
        Some(name) => guest.control.exposed(name).await.ok(),
        None => None,
    };
    let sandbox = sandbox.map(|exposed| exposed.sandbox());
    let name = server_name.as_deref();
    let (_place, refusal) = match guest.room.connection_to(sandbox, name) {
        Ok(place) => (Some(place), None),
        Err(error) => {
            tracing::debug!(%client, ?sandbox, %error, "a connection to an exposed server is refused");
            (None, Some(error))
        }
    };
    let shared = Arc::new(Shared {
        control: guest.control,
        room: guest.room,
        answer_limit: guest.limits.answer,
        refusal,
        client,
        server_name,
        activity: Activity::default(),
    });
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(forward::answer(&shared, request).await) }
        })
    };
    let stream = TokioIo::new(stream);
    let outcome = if is_http_2 {
        let connection = http2::Builder::new(Streams(guest.limits.stall))
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(BUFFER_MAX_BYTES as u32)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_send_buf_size(BUFFER_MAX_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = shared.idle() => Ok(()),
            () = guest.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_headers(HEADERS_MAX)
            .max_header_size(BUFFER_MAX_BYTES)
            .max_buf_size(BUFFER_MAX_BYTES)
            .serve_connection(stream, service)
            .with_upgrades();
        let serving = async {
            let mut connection = pin!(connection);
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = shared.idle() => Ok(()),
                () = guest.shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        while_taken(serving, guest.limits.stall)
            .await
            .unwrap_or_else(|| {
                tracing::debug!(%client, "a client of an exposed server did not take its answer");
                Ok(())
            })
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to an exposed server broke");
    }
}
