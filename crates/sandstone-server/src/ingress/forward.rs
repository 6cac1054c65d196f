//! One request: to the server in the sandbox, and its answer back. Both bodies flow as streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use sandstone_api::{ApiError, ErrorCode};
use sandstone_node_api::AgentSocket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use super::connection::{BUFFER_MAX_BYTES, HEADERS_MAX, Shared};
use super::headers::{self, BadHead};
use super::reply::{self, Body};
use super::room::RequestPlace;
use super::watched::Watched;
use crate::control::Exposed;

/// Buffer for each direction of a connection that has become something else.
const TUNNEL_BUFFER_BYTES: usize = 16 << 10;

/// Why there is no answer to pass on.
enum Refusal {
    /// The request is not to be passed on. Its connection ends: what follows on it may not be
    /// what it seems.
    Bad(BadHead),
    /// There is nobody to pass it on to.
    Failed(ApiError),
}

impl From<BadHead> for Refusal {
    fn from(bad: BadHead) -> Self {
        Self::Bad(bad)
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// Answers a request of a client.
pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    if let Some(refusal) = &shared.refusal {
        return last(refusal.clone());
    }
    let busy = shared.busy();
    match forward(shared, request).await {
        Ok(response) => response.map(|body| Body::passed_on(body, busy)),
        Err(Refusal::Failed(error)) => reply::error(error),
        Err(Refusal::Bad(bad)) => last(ApiError::new(ErrorCode::InvalidRequest, bad.to_string())),
    }
}

/// An error after which the connection ends.
fn last(error: ApiError) -> Response<Body> {
    let mut response = reply::error(error);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

async fn forward(
    shared: &Shared,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, Refusal> {
    let on_client = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let host = headers::host(&parts, shared.server_name.as_deref())?;
    let upgrade = headers::wanted_upgrade(&parts);
    headers::to_sandbox(&mut parts, &host, shared.client, upgrade.as_ref())?;

    let exposed = shared.control.exposed(host.as_str()).await?;
    let place = shared
        .room
        .request(shared.client, exposed.sandbox(), exposed.host())?;
    let socket = shared.control.dial_exposed(&exposed).await?;
    let upstream = TokioIo::new(Upstream {
        socket,
        _place: place,
    });
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_header_size(BUFFER_MAX_BYTES)
        .max_buf_size(BUFFER_MAX_BYTES)
        .handshake(upstream)
        .await
        .map_err(|error| no_answer(&error))?;
    // It ends when the answer's body has ended or nobody wants it any more.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a server in a sandbox broke");
        }
    });
    let (body, progress) = Watched::new(body);
    let answered = tokio::select! {
        answered = sender.send_request(Request::from_parts(parts, body)) => answered,
        () = progress.stalled(shared.answer_limit) => {
            return Err(too_slow(&exposed, shared.answer_limit).into());
        }
    };
    let mut response = answered.map_err(|error| no_answer(&error))?;
    let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if is_upgraded {
        if upgrade.is_none() {
            return Err(broken("switched protocols without being asked to").into());
        }
        let on_server = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel(on_client, on_server));
    }
    headers::to_client(response.headers_mut(), is_upgraded);
    // An older server ends its body with the connection; towards the client it gets an end mark.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// Passes bytes on both ways until both directions have ended.
async fn tunnel(on_client: OnUpgrade, on_server: OnUpgrade) {
    let (Ok(client), Ok(server)) = tokio::join!(on_client, on_server) else {
        return;
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let size = TUNNEL_BUFFER_BYTES;
    // How it ends is for the two to know.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, size, size).await;
}

fn no_answer(error: &hyper::Error) -> ApiError {
    tracing::debug!(%error, "a server in a sandbox gave no answer");
    broken("ended the connection without an answer, or gave one that is not HTTP")
}

fn too_slow(exposed: &Exposed, limit: Duration) -> ApiError {
    let (what, host, sandbox) = (exposed.what(), exposed.host(), exposed.sandbox());
    tracing::debug!(%sandbox, what, "an exposed server did not begin its answer in time");
    let seconds = limit.as_secs_f64();
    let message = format!("{what} behind `{host}` did not begin an answer within {seconds} s");
    ApiError::new(ErrorCode::TimedOut, message).with_hint(
        "It accepted the connection: look at what it is doing. A long answer may be sent in \
         pieces; the limit is for the first one.",
    )
}

fn broken(what: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotListening,
        format!("the server in the sandbox {what}"),
    )
    .with_hint("Look at its output.")
}

/// A connection to a server in a sandbox, and the room it takes.
struct Upstream {
    socket: AgentSocket,
    _place: RequestPlace,
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
