//! The two ways to get a socket: creating a sandbox and connecting to one.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use sandstone_api::{ApiError, ErrorCode, Region, SandboxId};
use sandstone_core::{CONNECTIONS_MAX, CONNECTIONS_PER_SANDBOX_MAX};
use tracing::Instrument;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Name, sandbox_id};
use super::super::reply::Reject;
use super::client::Client;
use super::primary::Primary;
use super::{config, socket};
use crate::control::Principal;
use crate::places::{Full, Place, Places};

/// Both SDKs read the id from here, JavaScript also when it connects.
const SANDBOX_ID_HEADER: &str = "x-deno-sandbox-id";

/// Longest message. The SDKs put a whole file, as base64, into one.
const MESSAGE_MAX_BYTES: usize = 256 << 20;

/// Read buffer of a socket. Idle sockets are many, so it is smaller than the library's.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// Most bytes that wait in a socket's own buffer: one message of the longest kind, and more. Past
/// them the library refuses to write; it answers pings into this buffer although nobody reads.
const WRITE_BUFFER_MAX_BYTES: usize = 128 << 20;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Reject> {
    let upgrade = checked(upgrade)?;
    if edge.connections.are_all_taken() {
        return Err(server_is_full().into());
    }
    let new = config::read(
        &headers,
        &config::Context {
            now: edge.clock.now(),
            bounds: edge.control.bounds(),
            regions: edge.control.regions(),
            host_region: host_region(&headers, edge.control.regions()),
            entropy: edge.entropy.as_ref(),
        },
    )?;
    let id = edge.control.create_sandbox(&who, new).await?;
    let primary = Primary::new(edge.control.clone(), who.clone(), id);
    accept(edge, &who, id, upgrade, &headers, Some(primary)).await
}

pub(super) async fn connect(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Reject> {
    let id = sandbox_id(&name)?;
    let upgrade = checked(upgrade)?;
    accept(edge, &who, id, upgrade, &headers, None).await
}

/// Answers 101 and serves the socket from then on.
async fn accept(
    edge: Arc<Edge>,
    who: &Principal,
    id: SandboxId,
    upgrade: WebSocketUpgrade,
    headers: &HeaderMap,
    primary: Option<Primary>,
) -> Result<Response, Reject> {
    let agent = edge.control.agent(who, id).await?;
    let place = place(&edge.connections, id)?;
    let client = Client::from_headers(headers);
    let span = tracing::info_span!("socket", sandbox.id = %id, ?client);
    let who = who.clone();
    let mut response = upgrade
        .max_message_size(MESSAGE_MAX_BYTES)
        .max_frame_size(MESSAGE_MAX_BYTES)
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_MAX_BYTES)
        .on_upgrade(move |socket| {
            async move {
                let primary = primary.map(Primary::established);
                socket::run(socket, edge, who, id, agent, client, primary).await;
                drop(place);
            }
            .instrument(span)
        });
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(SANDBOX_ID_HEADER, value);
    }
    Ok(response)
}

/// A place for one more connection to the sandbox.
///
/// # Errors
/// `CONNECTION_LIMIT`, naming who has too many.
fn place(
    connections: &Arc<Places<SandboxId>>,
    id: SandboxId,
) -> Result<Place<SandboxId>, ApiError> {
    connections.take(id).map_err(|full| match full {
        Full::All => server_is_full(),
        Full::One => {
            let message = format!(
                "sandbox {id} has {CONNECTIONS_PER_SANDBOX_MAX} connections, as many as it may have"
            );
            ApiError::new(ErrorCode::ConnectionLimit, message).with_hint(
                "Close one first: a client needs one connection to a sandbox, however many calls \
                 it makes.",
            )
        }
    })
}

fn server_is_full() -> ApiError {
    let message = format!(
        "this server has {CONNECTIONS_MAX} connections to sandboxes, as many as it may have"
    );
    ApiError::new(ErrorCode::ConnectionLimit, message)
        .with_hint("Close connections that are not needed, or try again in a moment.")
}

fn checked(upgrade: Upgrade) -> Result<WebSocketUpgrade, ApiError> {
    upgrade.map_err(|rejection| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("this is a WebSocket: {}", rejection.body_text()),
        )
    })
}

/// The region whose name is the first label of the host name, as in `ord.sandboxes.example`.
fn host_region(headers: &HeaderMap, regions: &[Region]) -> Option<Region> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let region: Region = host.split(['.', ':']).next()?.parse().ok()?;
    regions.contains(&region).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_who_has_too_many() {
        let first: SandboxId = "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap();
        let other: SandboxId = "sbx_ord_2at5nn58e77rtd11e3k3".parse().unwrap();
        let connections = Places::new(2, 1);
        let _first = place(&connections, first).unwrap();
        let of_one = place(&connections, first).unwrap_err();
        assert!(of_one.message.contains(&first.to_string()), "{of_one}");
        let _other = place(&connections, other).unwrap();
        let of_all = place(&connections, other).unwrap_err();
        assert!(of_all.message.contains("this server has 4096"), "{of_all}");
        for error in [of_one, of_all] {
            assert_eq!(error.code, ErrorCode::ConnectionLimit);
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn the_first_label_names_a_region() {
        let regions = ["ord".parse().unwrap(), "ams".parse().unwrap()];
        let region = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            host_region(&headers, &regions).map(|region| region.to_string())
        };
        assert_eq!(region("ams.localhost:8080").as_deref(), Some("ams"));
        assert_eq!(region("ord").as_deref(), Some("ord"));
        assert_eq!(region("fra.localhost"), None);
        assert_eq!(region("localhost:8080"), None);
        assert_eq!(region("127.0.0.1"), None);
    }
}
