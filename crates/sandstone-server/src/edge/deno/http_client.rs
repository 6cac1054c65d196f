//! One HTTP exchange over a connection that the agent makes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request as HttpRequest, Uri, header, response};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sandstone_node_api::AgentError;
use sandstone_protocol::message::{Answer, DialTarget, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::error::{CallError, RemoteError};
use super::fetch::Outgoing;
use super::fetch_body::Body;
use super::session::Session;

/// Longest time to connect, TLS included. The agent itself gives up after as long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Headers in an answer.
const HEADERS_MAX: usize = 256;

/// Longest head of an answer, bytes. What the largest servers allow themselves.
const HEAD_MAX_BYTES: usize = 256 << 10;

/// Where the sandbox's programs find the authorities that they trust.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Longest such file that is read, bytes. Debian's has 0.2 MB.
const AUTHORITIES_MAX_BYTES: usize = 4 << 20;

/// An answer whose body is still to be read.
pub(super) struct Exchange {
    pub(super) head: response::Parts,
    pub(super) body: Incoming,
    /// The connection ends with this.
    _connection: AbortOnDropHandle<()>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects to `target`, sends the request and waits for the head of the answer.
pub(super) async fn exchange(
    session: &Session,
    request: &Outgoing,
    target: DialTarget,
    is_tls: bool,
    body: Option<Body>,
) -> Result<Exchange, CallError> {
    let url = request.url.as_str();
    let connecting = connect(session, request, target, is_tls);
    let stream = match timeout(CONNECT_LIMIT, connecting).await {
        Ok(stream) => stream?,
        Err(_) => {
            let why = format!("cannot connect within {} s", CONNECT_LIMIT.as_secs());
            return Err(failure(url, &why).with_code("ETIMEDOUT").into());
        }
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX_BYTES)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| failure(url, &chain(&error)))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its error is the exchange's as well.
        let _ = connection.await;
    }));
    let answer = sender
        .send_request(message(request, body)?)
        .await
        .map_err(|error| failure(url, &chain(&error)))?;
    let (head, body) = answer.into_parts();
    if head.status.is_informational() {
        let why = format!("the server answered with status {}", head.status);
        return Err(failure(url, &why).into());
    }
    Ok(Exchange {
        head,
        body,
        _connection: connection,
    })
}

fn message(request: &Outgoing, body: Option<Body>) -> Result<HttpRequest<Body>, CallError> {
    let url = &request.url;
    let place = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let place: Uri = place
        .parse()
        .map_err(|error| failure(url.as_str(), &format!("{error}")))?;
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let has_body = body.is_some();
    let body = body.unwrap_or_else(|| {
        Empty::<Bytes>::new()
            .map_err(|never| match never {})
            .boxed_unsync()
    });
    let mut message = HttpRequest::builder()
        .method(request.method.clone())
        .uri(place)
        .body(body)
        .map_err(|error| failure(url.as_str(), &format!("{error}")))?;
    *message.headers_mut() = request.headers.clone();
    if !has_body {
        message.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if !message.headers().contains_key(header::HOST) {
        let host = host
            .parse()
            .map_err(|_| failure(url.as_str(), "the host is none"))?;
        message.headers_mut().insert(header::HOST, host);
    }
    Ok(message)
}

async fn connect(
    session: &Session,
    request: &Outgoing,
    target: DialTarget,
    is_tls: bool,
) -> Result<Box<dyn Stream>, CallError> {
    let url = request.url.as_str();
    let is_program = matches!(target, DialTarget::Unix(_));
    let socket = match session.agent.dial(target).await {
        Ok(socket) => socket,
        Err(error) => return Err(unreachable(url, error, is_program).into()),
    };
    if !is_tls {
        return Ok(Box::new(socket));
    }
    let tls = session
        .tls
        .get_or_try_init(|| trust_of(session))
        .await
        .map_err(|why| failure(url, &why))?;
    let host = request.url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(|_| failure(url, "the host is no name"))?;
    let connector = tokio_rustls::TlsConnector::from(tls.clone());
    let stream = connector
        .connect(name, socket)
        .await
        .map_err(|error| failure(url, &format!("TLS: {}", chain(&error))))?;
    Ok(Box::new(stream))
}

/// Trap 17: a server that cannot be reached is never told by the code of a process that is gone.
fn unreachable(url: &str, error: AgentError, is_program: bool) -> RemoteError {
    const ENOENT: i32 = 2;
    const ENXIO: i32 = 6;
    match error {
        AgentError::Refused(refused) => match refused.errno {
            Some(ENXIO) => {
                failure(url, "the name cannot be resolved in the sandbox").with_code("ENOTFOUND")
            }
            Some(ENOENT) if is_program => failure(
                url,
                "the program does not serve HTTP yet: wait for `httpReady`",
            )
            .with_code("ECONNREFUSED"),
            _ => {
                let told = RemoteError::from_failure(&refused, "connect");
                RemoteError {
                    class: "TypeError",
                    code: told.code.filter(|code| *code != "ENOENT"),
                    ..failure(url, &told.message)
                }
            }
        },
        lost @ AgentError::Lost(_) => RemoteError::from_agent(lost, "fetch"),
    }
}

/// As Deno's `fetch` says it.
fn failure(url: &str, why: &str) -> RemoteError {
    RemoteError::new(
        "TypeError",
        format!("error sending request for url ({url}): {why}"),
    )
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// TLS that trusts whom the sandbox's programs trust.
async fn trust_of(session: &Session) -> Result<Arc<ClientConfig>, String> {
    let bundle = read_authorities(session).await?;
    let certificates = CertificateDer::pem_slice_iter(&bundle).filter_map(Result::ok);
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(format!("{AUTHORITIES} of the sandbox has no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn read_authorities(session: &Session) -> Result<Vec<u8>, String> {
    let mut stream = session.agent.inbound();
    let request = Request::ReadFile {
        path: AUTHORITIES.to_owned(),
        sink: stream.id(),
    };
    // Dropping the stream ends the request.
    let reading = async move {
        let mut bytes = Vec::new();
        while let Some(Ok(chunk)) = stream.next().await {
            if bytes.len() + chunk.len() > AUTHORITIES_MAX_BYTES {
                return None;
            }
            bytes.extend_from_slice(&chunk);
        }
        Some(bytes)
    };
    let tell = |why: String| format!("cannot read {AUTHORITIES} of the sandbox: {why}");
    let (bytes, answer) = tokio::join!(reading, session.agent.call(request));
    let bytes = bytes.ok_or_else(|| tell(format!("longer than {AUTHORITIES_MAX_BYTES} bytes")))?;
    match answer {
        Ok(Answer::Done) => Ok(bytes),
        Ok(_) => Err(tell("the agent gave another answer".to_owned())),
        Err(error) => Err(tell(error.to_string())),
    }
}
