//! Which SDK is at the other end.

use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;

/// The two official SDKs, as far as they must be treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// `@deno/sandbox` on Node.js or Deno, and every client that we do not know.
    JavaScript,
    /// `deno-sandbox`.
    Python,
}

impl Client {
    /// Tells by the handshake: the Python SDK's library names itself, JavaScript's says nothing.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let is_python = headers
            .get(USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .is_some_and(|agent| agent.contains("websockets/"));
        if is_python {
            Self::Python
        } else {
            Self::JavaScript
        }
    }

    /// Longest message it takes (trap 7). JavaScript's library stops at 100 MiB.
    pub(super) const fn message_max_bytes(self) -> usize {
        match self {
            Self::JavaScript => 100 << 20,
            Self::Python => 1 << 20,
        }
    }

    /// Largest file that fits into one answer as base64, with room for the envelope.
    pub(super) const fn read_max_bytes(self) -> usize {
        (self.message_max_bytes() - 1024) / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(agent: Option<&'static str>) -> Client {
        let mut headers = HeaderMap::new();
        if let Some(agent) = agent {
            headers.insert(USER_AGENT, agent.parse().unwrap());
        }
        Client::from_headers(&headers)
    }

    #[test]
    fn the_handshake_tells() {
        assert_eq!(client(Some("Python/3.11 websockets/17.4")), Client::Python);
        assert_eq!(client(None), Client::JavaScript);
        assert_eq!(client(Some("Deno/2.9.6")), Client::JavaScript);
    }

    #[test]
    fn trap_7_a_whole_file_fits_in_a_message() {
        for client in [Client::JavaScript, Client::Python] {
            let encoded = client.read_max_bytes().div_ceil(3) * 4;
            assert!(encoded + 256 < client.message_max_bytes());
        }
    }
}
