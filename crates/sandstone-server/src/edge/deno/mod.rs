//! The dialect of the official Deno Sandbox SDKs: JavaScript `@deno/sandbox` and Python
//! `deno-sandbox`. Everything that is odd about them is handled here and nowhere else.
//!
//! REST calls are ordinary. Everything inside a sandbox goes over one WebSocket per client object:
//! JSON-RPC 2.0 in text frames, plus notifications that carry byte streams in both directions.
//! The creating connection is the *primary* one; a session sandbox dies with it.
//!
//! # The traps
//!
//! The SDKs hang or crash on input that looks harmless. The code names the trap it avoids.
//!
//! 1. The JavaScript SDK keeps all streams of a process in one table keyed by number: two servers
//!    or connections that both use stream 1000 mix their output. Ids start at a random base.
//! 2. `stream.end` for a stream that the client has cancelled kills a JavaScript process. The two may
//!    meet on the way; `echoes` says how that is kept rare, and why it cannot be ruled out.
//! 3. `stream.enqueue` without bytes breaks the stream, and its end then kills the process.
//! 4. Python drops stream messages that come before it knows the stream, and JavaScript cannot
//!    cancel a stream whose `start` came too early. Process output waits for `processWait`, which
//!    both SDKs send as soon as they are ready; other streams wait for a round trip.
//! 5. A JSON-RPC `error` makes JavaScript hang with common versions of its validator. Errors go
//!    into `result.error`; only an unknown method, and for Python invalid parameters, are
//!    protocol errors.
//! 6. Python hangs for ever on calls that are open when the server closes the socket. They are
//!    answered first.
//! 7. Python refuses messages above 1 MiB, and the call hangs. Longer answers become errors.
//! 8. Python fails all open calls on a text frame that is not JSON. Only JavaScript gets `pong`.
//! 9. Python waits 10 seconds for the handshake and for any REST call. Nothing here adds waits.
//! 10. Request id 0, stream id 0 and abort id 0 are valid: JavaScript starts there.
//! 11. Python rewrites dictionary keys, also the names of environment variables in a spawn:
//!     `NODE_ENV` arrives as `NODEEnv`. Such a name is set in both spellings.
//! 12. Python's page cursor is the whole URL of the `Link` header; JavaScript wants that URL
//!     absolute and without `,` or `;`.
//! 13. The two SDKs describe a new sandbox differently (`stop_at_ms` or `timeout`, volumes as a
//!     list or as an object). The union is accepted.
//! 14. Both SDKs insist on `https://` for exposed servers. The domain that we give them may have a
//!     port.
//! 15. A JavaScript program may exit as soon as `processWait` is answered: output and its end go
//!     out before that.
//! 16. `stream.cancel` for standard input kills a JavaScript process that pipes into it. Late
//!     input is dropped silently.
//! 17. "The process is gone" must be `TypeError` with code `ENOENT`, and nothing else may be.

mod client;
mod config;
mod decode;
mod deno_processes;
mod echoes;
mod environment;
mod error;
mod expose;
mod fetch;
mod fetch_body;
mod file_changes;
mod file_handles;
mod file_tree;
mod files;
#[cfg(feature = "stand-ins")]
pub mod fuzzing;
mod handles;
mod handshake;
mod http_client;
mod incoming;
mod intake;
mod labels;
mod mangled;
mod memory;
mod network;
mod outbox;
mod page;
mod params;
mod primary;
mod processes;
mod programs;
mod pumps;
mod repl;
mod rpc;
mod sandboxes;
mod session;
mod signals;
mod snapshots;
mod socket;
mod ssh;
mod streams;
mod unsupported;
mod uploads;
mod volumes;
mod vscode;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{delete, get, post};

use super::Edge;
use super::kill::kill;
pub(super) use expose::resolve as resolve_target;
pub(super) use intake::LongMessages;
pub(super) use memory::HugeRights;
pub(super) use programs::SandboxPrograms;
pub(super) use streams::StreamIds;

/// All routes of this dialect.
pub(super) fn routes() -> Router<Arc<Edge>> {
    let sockets = Router::new()
        .route("/api/v3/sandboxes/create", get(handshake::create))
        .route("/api/v3/sandbox/{id}/connect", get(handshake::connect))
        .layer(map_response(close_unless_upgraded));
    Router::new()
        .route("/api/v2/volumes", get(volumes::list).post(volumes::create))
        .route(
            "/api/v2/volumes/{volume}",
            get(volumes::get).delete(volumes::delete),
        )
        .route("/api/v2/volumes/{volume}/snapshot", post(snapshots::create))
        .route("/api/v2/snapshots", get(snapshots::list))
        .route(
            "/api/v2/snapshots/{snapshot}",
            get(snapshots::get).delete(snapshots::delete),
        )
        .route("/api/v2/sandboxes", get(sandboxes::list))
        .route("/api/v3/sandboxes", get(sandboxes::list))
        // JavaScript kills by the singular route, Python by the plural one.
        .route(
            "/api/v3/sandbox/{id}",
            delete(kill).patch(sandboxes::extend),
        )
        .route("/api/v3/sandboxes/{id}", delete(kill))
        .route("/api/v3/sandbox/{id}/expose/ssh", post(ssh::expose))
        .route("/api/v3/sandbox/{id}/expose/http", post(expose::http))
        .route("/api/v3/sandbox/{id}/expose/vscode", post(vscode::expose))
        .merge(unsupported::routes())
        .merge(sockets)
}

/// A refused handshake ends its connection: the clients use a fresh one for every attempt.
async fn close_unless_upgraded(mut response: Response) -> Response {
    use axum::http::{HeaderValue, StatusCode, header};
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
