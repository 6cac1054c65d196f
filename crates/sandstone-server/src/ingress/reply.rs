//! Bodies of answers, and answers of our own in place of those of a server in a sandbox.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use sandstone_api::{ApiError, ErrorBody};

use super::connection::Busy;
use super::pace::Pace;

/// The body of an answer: passed on, or ours.
pub(super) struct Body {
    content: Either<Incoming, Full<Bytes>>,
    /// Its connection is not idle before it has ended.
    _busy: Option<Busy>,
    pace: Arc<Pace>,
}

impl Body {
    pub(super) fn passed_on(body: Incoming, busy: Busy) -> Self {
        Self {
            content: Either::Left(body),
            _busy: Some(busy),
            pace: Pace::current(),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.pace.taken();
        let polled = Pin::new(&mut self.content).poll_frame(context);
        if polled.is_ready() {
            self.pace.given();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.pace.taken();
    }
}

/// An error, in the words of the API.
pub(super) fn error(error: ApiError) -> Response<Body> {
    let status =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = ErrorBody {
        code: error.code.as_str().to_owned(),
        message: error.message,
        hint: error.hint,
    };
    let text = serde_json::to_string(&body).unwrap_or_default();
    let mut response = Response::new(Body {
        content: Either::Right(Full::from(text)),
        _busy: None,
        pace: Pace::current(),
    });
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
