//! Connections of the API's clients, and how long each may do nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::accept_into;

/// How long [`serve`] waits for requests that are being answered when it is told to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Connections at once that have not become WebSockets, which are counted on their own.
    /// Further ones wait to be accepted.
    connections: usize,
    /// How long a client may take for its first request's head.
    head: Duration,
    /// The same for each further one, and so how long a connection may be idle in between.
    keep_alive: Duration,
}

/// A head takes at most about 400 KiB, hyper's default. Clients that pool connections give them up
/// after 90 s at the latest (Deno, Go); a server that is sooner would break their next requests.
const LIMITS: Limits = Limits {
    connections: 1024,
    head: Duration::from_secs(30),
    keep_alive: Duration::from_secs(120),
};

/// Serves `router` over HTTP/1 on `listener` until `shutdown`, then waits a bounded time for the
/// requests being answered. WebSockets are not waited for: each ends when its sandbox does.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    serve_within(LIMITS, listener, router, shutdown).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept_into(&places, &listener, "client of the API") => accepted,
        };
        let Some((stream, _, place)) = accepted else {
            break;
        };
        let serving = connection(limits, stream, router.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _place = place;
            serving.await;
        });
    }
    drop(listener);
    tasks.close();
    if timeout(DRAIN_LIMIT, tasks.wait()).await.is_err() {
        tracing::warn!("gave up waiting for requests that are still being answered");
    }
}

/// Serves one connection until it ends or becomes a WebSocket.
async fn connection(
    limits: Limits,
    stream: TcpStream,
    router: Router,
    shutdown: CancellationToken,
) {
    let begun = CancellationToken::new();
    let routes = TowerToHyperService::new(router);
    let service = service_fn({
        let begun = begun.clone();
        move |request: Request<hyper::body::Incoming>| {
            begun.cancel();
            routes.call(request)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // It also runs while the connection is idle.
        .header_read_timeout(limits.keep_alive)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = silence(&begun, limits.head) => {
            tracing::debug!("a client of the API did not begin in time");
            Ok(())
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection of a client of the API broke");
    }
}

/// Returns when there is no request within `limit`.
async fn silence(begun: &CancellationToken, limit: Duration) {
    if timeout(limit, begun.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::sleep;
    use tokio_util::sync::DropGuard;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// A server that answers, and what ends it.
    async fn start(limits: Limits) -> (SocketAddr, DropGuard) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(serve_within(limits, listener, router, shutdown.clone()));
        (address, shutdown.drop_guard())
    }

    /// Asks once, and reads the answer.
    async fn ask(stream: &mut TcpStream) {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            answer.push(stream.read_u8().await.unwrap());
        }
    }

    /// Waits for the server to end the connection.
    async fn end(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
        end.await.expect("the connection stayed").unwrap();
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn who_does_not_ask_is_disconnected() {
        let (address, _server) = start(Limits {
            head: Duration::from_millis(100),
            keep_alive: Duration::from_secs(3600),
            ..LIMITS
        })
        .await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(&REQUEST[..20]).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        end(&mut silent).await;
        end(&mut slow).await;
        // Who has asked may think longer before it asks again.
        ask(&mut idle).await;
    }

    #[tokio::test]
    async fn idle_connections_end() {
        let (address, _server) = start(Limits {
            keep_alive: Duration::from_millis(300),
            ..LIMITS
        })
        .await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        end(&mut idle).await;
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let (address, _server) = start(Limits {
            connections: 2,
            ..LIMITS
        })
        .await;
        let held = TcpStream::connect(address).await.unwrap();
        let _other = TcpStream::connect(address).await.unwrap();
        let mut waiting = TcpStream::connect(address).await.unwrap();
        let refused = timeout(Duration::from_millis(300), ask(&mut waiting)).await;
        assert!(refused.is_err(), "a third one was served");
        drop(held);
        let mut answer = [0; 12];
        let read = timeout(Duration::from_secs(20), waiting.read_exact(&mut answer));
        read.await.expect("its turn never came").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (inside, mut asked) = tokio::sync::mpsc::channel(1);
        let slow = get(move || async move {
            inside.send(()).await.unwrap();
            sleep(Duration::from_millis(300)).await;
            "here"
        });
        let router = Router::new().route("/", slow);
        let serving = tokio::spawn(serve(listener, router, shutdown.clone()));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(REQUEST).await.unwrap();
        asked.recv().await.unwrap();
        shutdown.cancel();
        // What is being answered gets its answer, and all ends.
        let mut answer = Vec::new();
        busy.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"here"));
        end(&mut idle).await;
        timeout(DRAIN_LIMIT / 2, serving).await.unwrap().unwrap();
    }
}
