//! Accepting connections, so many at once, and their TLS handshakes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::{Certificates, REFRESH_EVERY};
use super::connection::{self, Guest};
use super::room::{CONNECTIONS_MAX, Room};
use crate::control::ControlPlane;

/// How long a client may take for its handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait when there are no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long requests that are being answered are waited for at the end. Their sandboxes have
/// ended by then.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    listener: TcpListener,
    certificates: Arc<Certificates>,
    control: Arc<ControlPlane>,
    answer_limit: Duration,
    shutdown: CancellationToken,
) -> Result<(), rustls::Error> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(certificates.clone())?));
    let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let room = Arc::new(Room::default());
    let tasks = TaskTracker::new();
    let mut refresh = interval(REFRESH_EVERY);
    loop {
        let (stream, peer, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = refresh.tick() => {
                let certificates = certificates.clone();
                tasks.spawn_blocking(move || certificates.refresh());
                continue;
            }
            accepted = accept(&listener, &all) => match accepted {
                Some(accepted) => accepted,
                None => break,
            },
        };
        let client = peer.ip();
        let Some(place) = room.connection_from(client) else {
            tracing::debug!(%client, "too many connections to exposed servers from one address");
            continue;
        };
        let acceptor = acceptor.clone();
        let guest = Guest {
            control: control.clone(),
            room: room.clone(),
            answer_limit,
            shutdown: shutdown.clone(),
        };
        tasks.spawn(async move {
            let _places = (permit, place);
            greet(stream, client, &acceptor, guest).await;
        });
    }
    tasks.close();
    if timeout(DRAIN_LIMIT, tasks.wait()).await.is_err() {
        tracing::warn!("gave up waiting for clients of exposed servers");
    }
    Ok(())
}

fn tls(certificates: Arc<Certificates>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![connection::HTTP_2.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The next connection, once there is room for it; none when there will be none. Cancel-safe.
async fn accept(
    listener: &TcpListener,
    all: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = all.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((stream, peer, permit)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to an exposed server");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn greet(stream: TcpStream, client: IpAddr, acceptor: &TlsAcceptor, guest: Guest) {
    // Whoever streams small pieces does not want them collected.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => connection::serve(stream, client, guest).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}
