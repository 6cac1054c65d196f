//! Accepting connections of clients.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// How long to wait before accepting again after that failed, for instance for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The next connection. `what` names those who connect in the log. Cancel-safe.
pub(crate) async fn accept(listener: &TcpListener, what: &str) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Pieces are small and somebody waits for each: Nagle's algorithm would delay them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, peer);
            }
            Err(error) if is_of_client(&error) => {}
            Err(error) => {
                tracing::warn!(%error, what, "cannot accept a connection");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// The next connection, once one of `places` is free, and its place. None when `places` is closed.
/// Cancel-safe.
pub(crate) async fn accept_into(
    places: &Arc<Semaphore>,
    listener: &TcpListener,
    what: &str,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    let (stream, peer) = accept(listener, what).await;
    Some((stream, peer, place))
}

/// Whether only the one client is concerned, who has gone already.
fn is_of_client(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}
