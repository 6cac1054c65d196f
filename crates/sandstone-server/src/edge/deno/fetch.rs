//! HTTP requests from inside a sandbox.
//!
//! The client is the server, the connection is the sandbox's: the agent dials, so that what the
//! sandbox may reach is decided where it always is. A request for a Deno process goes to the unix
//! socket on which that process serves.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use sandstone_protocol::message::DialTarget;
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Url;

use super::client::Client;
use super::decode::Decoder;
use super::deno_processes::until_it_serves;
use super::error::{CallError, RemoteError};
use super::fetch_body::RequestBody;
use super::http_client::{Exchange, exchange};
use super::params::Params;
use super::rpc::Done;
use super::session::Session;
use super::streams::Download;
use super::uploads::Purpose;

/// Redirects that are followed: as many as browsers follow.
const REDIRECTS_MAX: usize = 20;

/// How long a request for a program waits for the program to serve.
const SERVE_LIMIT: Duration = Duration::from_secs(10);

/// What we call ourselves when the program says nothing.
const USER_AGENT: HeaderValue = HeaderValue::from_static("sandstone");

/// Headers about the connection, which is ours.
const CONNECTION_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A request as it goes out.
pub(super) struct Outgoing {
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
}

pub(super) async fn fetch(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let url = read_url(&params.text("url")?)?;
    let method = params
        .optional_text("method")?
        .unwrap_or_else(|| "GET".to_owned());
    let method = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|method| *method != Method::CONNECT && *method != Method::TRACE)
        .ok_or_else(|| refuse(format!("{method:?} is no method for fetch")))?;
    let headers = read_headers(params.values("headers")?)?;
    let follows = match params.optional_text("redirect")?.as_deref() {
        None | Some("follow") => true,
        Some("manual") => false,
        Some(other) => {
            let why = format!("redirect must be \"follow\" or \"manual\", not {other:?}");
            return Err(refuse(why));
        }
    };
    let program = match params.optional_u32("pid")? {
        None => None,
        Some(pid) => {
            let process = session.programs.deno(pid);
            let process = process.ok_or_else(RemoteError::process_gone)?;
            // The SDK's own example asks a program that has only just been started. When it does
            // not serve, the request itself says so.
            let serving = until_it_serves(session, &process);
            if let Ok(waited) = timeout(SERVE_LIMIT, serving).await {
                waited?;
            }
            Some(process.http_socket.clone())
        }
    };
    let body = match params.optional_number("bodyStreamId")? {
        None => None,
        Some(id) => {
            let upload = session.uploads.claim(id, Purpose::File);
            let upload = upload.ok_or_else(|| super::files::unknown_stream(id))?;
            Some(RequestBody::new(upload, follows))
        }
    };
    if body.is_some() && (method == Method::GET || method == Method::HEAD) {
        return Err(refuse(format!("a {method} request cannot have a body")));
    }
    let is_head = method == Method::HEAD;
    let request = Outgoing {
        url,
        method,
        headers,
    };
    let exchange = follow(session, request, body, program, follows).await?;
    Ok(answer(session, exchange, is_head))
}

fn refuse(why: impl Into<String>) -> CallError {
    RemoteError::new("TypeError", why).into()
}

fn read_url(text: &str) -> Result<Url, CallError> {
    let url = Url::parse(text).map_err(|error| refuse(format!("Invalid URL {text:?}: {error}")))?;
    check_url(&url)?;
    Ok(url)
}

fn check_url(url: &Url) -> Result<(), CallError> {
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(refuse(format!(
            "URL scheme {scheme:?} is not supported: http and https are"
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(
            "a URL with credentials is not fetched: use a header",
        ));
    }
    Ok(())
}

/// Names and values in order; a name may come several times.
fn read_headers(list: Vec<Value>) -> Result<HeaderMap, CallError> {
    let mut headers = HeaderMap::new();
    for pair in list {
        let pair = pair.as_array().map(Vec::as_slice);
        let Some([Value::String(name), Value::String(value)]) = pair else {
            return Err(refuse("headers must be a list of pairs of texts"));
        };
        let bad = || refuse(format!("{name:?} is no header, or its value is none"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        // A header is bytes; the clients write them as the first 256 characters.
        let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(c).ok()).collect();
        let value = bytes.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        if headers.try_append(key, value.ok_or_else(bad)?).is_err() {
            return Err(refuse("there are too many headers"));
        }
    }
    for name in &CONNECTION_HEADERS {
        headers.remove(name);
    }
    let mut default = |name, value| {
        headers.entry(name).or_insert(value);
    };
    default(header::ACCEPT, HeaderValue::from_static("*/*"));
    default(header::USER_AGENT, USER_AGENT);
    // The clients cannot decode anything.
    default(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    Ok(headers)
}

/// Sends the request, and follows redirects as browsers do.
async fn follow(
    session: &Session,
    mut request: Outgoing,
    mut body: Option<RequestBody>,
    program: Option<String>,
    follows: bool,
) -> Result<Exchange, CallError> {
    let origin = request.url.origin();
    for _ in 0..=REDIRECTS_MAX {
        // What a program refers to elsewhere is elsewhere.
        let target = match &program {
            Some(socket) if request.url.origin() == origin => DialTarget::Unix(socket.clone()),
            _ => {
                let host = request.url.host_str().unwrap_or_default().to_owned();
                let port = request.url.port_or_known_default().unwrap_or(80);
                DialTarget::Host(host, port)
            }
        };
        let is_tls = request.url.scheme() == "https" && !matches!(target, DialTarget::Unix(_));
        let sent = body.as_ref().map(RequestBody::to_send);
        let exchange = exchange(session, &request, target, is_tls, sent).await?;
        let status = exchange.head.status;
        let Some(location) = redirection(&exchange).filter(|_| follows) else {
            return Ok(exchange);
        };
        let next = request
            .url
            .join(&location)
            .map_err(|error| refuse(format!("redirected to {location:?}: {error}")))?;
        check_url(&next)?;
        let becomes_get = match status {
            StatusCode::SEE_OTHER => request.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => request.method == Method::POST,
            _ => false,
        };
        if becomes_get {
            request.method = Method::GET;
            body = None;
            for name in [
                header::CONTENT_ENCODING,
                header::CONTENT_LANGUAGE,
                header::CONTENT_LENGTH,
                header::CONTENT_LOCATION,
                header::CONTENT_TYPE,
            ] {
                request.headers.remove(name);
            }
        } else if body.as_ref().is_some_and(|body| !body.can_repeat()) {
            return Err(refuse(format!(
                "redirected with status {status}, but the body cannot be sent again: send at most \
                 1 MiB, or use redirect: \"manual\""
            )));
        }
        if next.origin() != request.url.origin() {
            for name in [
                header::AUTHORIZATION,
                header::PROXY_AUTHORIZATION,
                header::COOKIE,
                header::HOST,
            ] {
                request.headers.remove(name);
            }
        }
        request.url = next;
    }
    Err(refuse(format!(
        "redirected more than {REDIRECTS_MAX} times"
    )))
}

/// Where an answer sends the client.
fn redirection(exchange: &Exchange) -> Option<String> {
    let is_redirect = matches!(exchange.head.status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = exchange.head.headers.get(header::LOCATION)?;
    is_redirect.then(|| String::from_utf8_lossy(location.as_bytes()).into_owned())
}

/// Words the answer; the body follows as a stream.
fn answer(session: &Arc<Session>, mut exchange: Exchange, is_head: bool) -> Done {
    let status = exchange.head.status;
    let is_empty = is_head
        || matches!(status.as_u16(), 204 | 205 | 304)
        || hyper::body::Body::is_end_stream(&exchange.body);
    let decoder = if is_empty {
        None
    } else {
        let decoder = Decoder::of(&exchange.head.headers);
        if decoder.is_some() {
            exchange.head.headers.remove(header::CONTENT_ENCODING);
            exchange.head.headers.remove(header::CONTENT_LENGTH);
        }
        decoder
    };
    let reason = match exchange.head.extensions.get::<ReasonPhrase>() {
        Some(reason) => latin1(reason.as_bytes()),
        None => status.canonical_reason().unwrap_or_default().to_owned(),
    };
    let headers: Vec<[String; 2]> = exchange
        .head
        .headers
        .iter()
        .map(|(name, value)| [name.as_str().to_owned(), latin1(value.as_bytes())])
        .collect();
    // Python never reads a body, and never cancels one.
    let download =
        (!is_empty && session.client == Client::JavaScript).then(|| session.open_download());
    let value = json!({
        "status": status.as_u16(),
        "statusText": reason,
        "headers": headers,
        "bodyStreamId": download.as_ref().map(|download| download.id),
    });
    let done = Done::new(value);
    match download {
        None => done,
        Some(download) => done.then(|session| {
            tokio::spawn(send_body(session.clone(), exchange, decoder, download));
        }),
    }
}

/// Bytes as the first 256 characters: what the clients take headers to be.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

async fn send_body(
    session: Arc<Session>,
    exchange: Exchange,
    decoder: Option<Decoder>,
    download: Download,
) {
    let cancelled = download.cancelled.clone();
    let ended = session.ended.clone();
    let id = download.id;
    tokio::select! {
        biased;
        () = cancelled.cancelled() => {}
        () = ended.cancelled() => {}
        () = async {
            // Traps 2 and 4.
            session.until_picked_up().await;
            copy_body(exchange, decoder, &download).await;
        } => {}
    }
    session.downloads.forget(id);
}

async fn copy_body(mut exchange: Exchange, mut decoder: Option<Decoder>, download: &Download) {
    if download.start().await.is_err() {
        return;
    }
    let fail = |why: String| RemoteError::new("TypeError", why);
    let failure = loop {
        let chunk = match exchange.body.frame().await {
            None => match decoder.map_or(Ok(Vec::new()), Decoder::finish) {
                Ok(rest) => {
                    if download.enqueue(&rest).await.is_ok() {
                        let _ = download.end().await;
                    }
                    return;
                }
                Err(error) => break fail(format!("cannot decode the body: {error}")),
            },
            Some(Err(error)) => {
                break fail(format!("error reading a body from connection: {error}"));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => chunk,
                Err(_) => continue, // Trailers have no place in a fetch response.
            },
        };
        let Some(decoder) = &mut decoder else {
            if download.enqueue(&chunk).await.is_err() {
                return;
            }
            continue;
        };
        for piece in chunk.chunks(Decoder::PIECE_BYTES) {
            match decoder.decode(piece) {
                Ok(decoded) => {
                    if download.enqueue(&decoded).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = download
                        .error(&fail(format!("cannot decode the body: {error}")))
                        .await;
                    return;
                }
            }
        }
    };
    let _ = download.error(&failure).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_not_fetched() {
        for url in [
            "",
            "/x",
            "ftp://x/",
            "file:///etc/passwd",
            "data:,x",
            "http://u:p@x/",
            "http://",
        ] {
            assert!(read_url(url).is_err(), "{url}");
        }
        assert!(read_url("HTTP://Example.test:80/ü?ä").is_ok());
    }

    #[test]
    fn headers_keep_their_order_and_defaults_give_way() {
        let pairs = [
            ["x-a", "1"],
            ["X-A", "2"],
            ["connection", "upgrade"],
            ["user-agent", "\u{e9}"],
        ];
        let headers = read_headers(pairs.map(|pair| json!(pair)).into()).unwrap();
        let values: Vec<_> = headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(headers.get("connection").is_none());
        assert_eq!(headers["user-agent"].as_bytes(), b"\xe9");
        assert_eq!(headers["accept-encoding"], "identity");
        for bad in [
            json!(["a b", "x"]),
            json!(["a", "x\ny"]),
            json!(["a", "\u{100}"]),
            json!("a"),
            json!(["a"]),
        ] {
            assert!(read_headers(vec![bad.clone()]).is_err(), "{bad}");
        }
    }
}
