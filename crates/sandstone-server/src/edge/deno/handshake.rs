//! The two ways to get a socket: creating a sandbox and connecting to one.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use sandstone_api::{ApiError, ErrorCode, Region, SandboxId};
use sandstone_core::{CONNECTIONS_MAX, CONNECTIONS_PER_SANDBOX_MAX};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::Instrument;

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Name, sandbox_id};
use super::super::reply::Reject;
use super::client::Client;
use super::primary::Primary;
use super::{config, socket, wire};
use crate::control::Principal;
use crate::places::{Full, Place, Places};

/// Both SDKs read the id from here, JavaScript also when it connects.
const SANDBOX_ID_HEADER: &str = "x-deno-sandbox-id";

/// A request for a WebSocket that can be granted. axum checks it, but would not let go of the
/// connection underneath, which is needed to send a message in several frames.
pub(super) struct Upgrade {
    /// What the answer has to prove it has read.
    key: HeaderValue,
    connection: OnUpgrade,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Reject> {
        let refuse = |why: &str| {
            let message = format!("this is a WebSocket: {why}");
            Reject::from(ApiError::new(ErrorCode::InvalidRequest, message))
        };
        let connection = parts.extensions.get::<OnUpgrade>().cloned();
        let _checked = WebSocketUpgrade::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refuse(&rejection.body_text()))?;
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        match (key, connection) {
            (Some(key), Some(connection)) => Ok(Self { key, connection }),
            _ => Err(refuse("the connection cannot be upgraded")),
        }
    }
}

pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Reject>,
) -> Result<Response, Reject> {
    let upgrade = upgrade?;
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
    upgrade: Result<Upgrade, Reject>,
) -> Result<Response, Reject> {
    let id = sandbox_id(&name)?;
    let upgrade = upgrade?;
    accept(edge, &who, id, upgrade, &headers, None).await
}

/// Answers 101 and serves the socket from then on.
async fn accept(
    edge: Arc<Edge>,
    who: &Principal,
    id: SandboxId,
    upgrade: Upgrade,
    headers: &HeaderMap,
    primary: Option<Primary>,
) -> Result<Response, Reject> {
    let agent = edge.control.agent(who, id).await?;
    let place = place(&edge.connections, id)?;
    let client = Client::from_headers(headers);
    let span = tracing::info_span!("socket", sandbox.id = %id, ?client);
    let who = who.clone();
    let accepted = derive_accept_key(upgrade.key.as_bytes());
    let serving = async move {
        match upgrade.connection.await {
            Ok(connection) => {
                let socket = wire::socket(connection, &edge.long_messages).await;
                let primary = primary.map(Primary::established);
                socket::run(socket, edge, who, id, agent, client, primary).await;
            }
            Err(error) => tracing::debug!(%error, "gone before the handshake was answered"),
        }
        drop(place);
    };
    tokio::spawn(serving.instrument(span));
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accepted),
        (HeaderName::from_static(SANDBOX_ID_HEADER), id.to_string()),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
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
