//! Accepting connections, so many at once, and their TLS handshakes.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Limits;
use super::certificates::{Certificates, REFRESH_EVERY};
use super::connection::{self, Guest};
use super::room::{CONNECTIONS_MAX, Room};
use crate::accept::accept_into;
use crate::control::ControlPlane;

/// How long a client may take for its handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may say nothing before it is asked whether it is there, how often, and how many
/// of these questions it may leave unanswered: a phone that sleeps for two minutes is not cut.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_MAX: u32 = 4;

/// How long requests that are being answered are waited for at the end. Their sandboxes have
/// ended by then.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    listener: TcpListener,
    certificates: Arc<Certificates>,
    control: Arc<ControlPlane>,
    limits: Limits,
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
            accepted = accept_into(&all, &listener, "client of exposed servers") => match accepted {
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
            limits,
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

async fn greet(stream: TcpStream, client: IpAddr, acceptor: &TlsAcceptor, guest: Guest) {
    // The kernel has an upgraded connection to itself, so it is it that has to notice.
    if let Err(error) = notice_the_gone(&stream, guest.limits.stall) {
        tracing::debug!(%error, "cannot have a client watched");
        return;
    }
    match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => connection::serve(stream, client, guest).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Has the kernel end a connection whose client does not answer, see tcp(7), or takes nothing for
/// three times `stall`. One that is merely silent stays.
fn notice_the_gone(stream: &TcpStream, stall: Duration) -> io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_MAX)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let millis = u32::try_from(3 * stall.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_that_have_gone_are_noticed_within_minutes() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        notice_the_gone(&stream, Duration::from_secs(60)).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let questions = sockopt::tcp_keepcnt(&stream).unwrap();
        let silent = sockopt::tcp_keepidle(&stream).unwrap()
            + sockopt::tcp_keepintvl(&stream).unwrap() * questions;
        assert_eq!(silent, Duration::from_secs(180));
        // With a shorter one the first question that is lost would end the connection.
        let unanswered = u128::from(sockopt::tcp_user_timeout(&stream).unwrap());
        assert_eq!(unanswered, silent.as_millis());
    }
}
