//! A trace id for every request: in the answer, and on every log line that the request causes.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::Edge;

/// The SDKs show its value in their errors.
const TRACE_HEADER: &str = "x-deno-trace-id";

/// Gives the request a trace id and a span. Neither headers nor bodies are logged.
pub(super) async fn layer(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let mut random = [0; 16];
    edge.entropy.fill(&mut random);
    let trace_id = random
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
    let span = tracing::info_span!(
        "request",
        trace.id = %trace_id,
        method = %request.method(),
        path = request.uri().path(),
    );
    let mut response = async {
        let response = next.run(request).await;
        tracing::debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await;
    if let Ok(value) = HeaderValue::from_str(&trace_id) {
        response.headers_mut().insert(TRACE_HEADER, value);
    }
    response
}
