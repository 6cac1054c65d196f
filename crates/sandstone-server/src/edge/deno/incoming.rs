//! Messages of a client, read and bounded before anything is made of them.

use base64::Engine;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::config::BASE64;

/// A message of the client.
#[derive(Debug)]
pub(super) enum Incoming {
    /// It wants an answer.
    Call(Call),
    /// Bytes of one of its streams.
    Chunk { stream: u64, bytes: Bytes },
    /// It wants no answer.
    Notification { method: String, params: Value },
    /// An answer to a call that we never make. Ignored.
    Answer,
}

/// Why a text is not a message. The connection is closed with a code for each.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Not JSON at all.
    NotJson,
    /// JSON, but not JSON-RPC.
    NotRpc,
    /// More than [`VALUES_MAX`] values.
    TooComplex,
}

/// Values in one message. Each takes up to a hundred bytes of memory, and as few as two of a
/// message that may have 256 MiB.
const VALUES_MAX: usize = 500_000;

/// A message that is shorter cannot have [`VALUES_MAX`] values.
const COMPLEX_MIN_BYTES: usize = VALUES_MAX;

/// Longest id of a call that is a text. The SDKs send small numbers; an id is repeated in the
/// answer.
const ID_MAX_BYTES: usize = 256;

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: Value,
    pub(super) method: String,
    pub(super) params: Option<Value>,
}

/// Reads a message.
pub(super) fn parse(text: &str) -> Result<Incoming, Malformed> {
    if let Some(chunk) = Chunk::parse(text) {
        return Ok(chunk);
    }
    if text.len() >= COMPLEX_MIN_BYTES && !has_few_values(text) {
        return Err(Malformed::TooComplex);
    }
    let mut message = match serde_json::from_str(text) {
        Ok(Value::Object(message)) => message,
        Ok(_) => return Err(Malformed::NotRpc),
        Err(_) => return Err(Malformed::NotJson),
    };
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(Malformed::NotRpc);
    }
    // Trap 10: 0 is an id. Only an absent or null id makes a notification.
    let id = message.remove("id").filter(|id| !id.is_null());
    let method = match message.remove("method") {
        Some(Value::String(method)) => method,
        None if message.contains_key("result") || message.contains_key("error") => {
            return Ok(Incoming::Answer);
        }
        _ => return Err(Malformed::NotRpc),
    };
    let params = message.remove("params");
    match id {
        None => Ok(Incoming::Notification {
            method,
            params: params.unwrap_or_default(),
        }),
        Some(Value::String(id)) if id.len() > ID_MAX_BYTES => Err(Malformed::NotRpc),
        Some(id @ (Value::Number(_) | Value::String(_))) => {
            Ok(Incoming::Call(Call { id, method, params }))
        }
        Some(_) => Err(Malformed::NotRpc),
    }
}

/// Bytes of a stream, the message that comes most: read without a copy of its text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chunk<'a> {
    jsonrpc: &'a str,
    method: &'a str,
    #[serde(borrow)]
    params: ChunkParams<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ChunkParams<'a> {
    stream_id: u64,
    data: &'a str,
}

impl Chunk<'_> {
    /// Nothing for any other message, and for one that is not written as the SDKs write it.
    fn parse(text: &str) -> Option<Incoming> {
        const METHOD: &str = "$sandbox.stream.enqueue";
        // JavaScript puts the method first, Python may put it last. A prefix is cut at a byte,
        // which may be inside a character.
        let (head, tail) = (text.as_bytes(), text.len().saturating_sub(96));
        let has_method = |bytes: &[u8]| {
            bytes
                .windows(METHOD.len())
                .any(|window| window == METHOD.as_bytes())
        };
        if !has_method(&head[..head.len().min(96)]) && !has_method(&head[tail..]) {
            return None;
        }
        let chunk: Chunk<'_> = serde_json::from_str(text).ok()?;
        if chunk.jsonrpc != "2.0" || chunk.method != METHOD {
            return None;
        }
        let bytes = BASE64.decode(chunk.params.data).ok()?;
        Some(Incoming::Chunk {
            stream: chunk.params.stream_id,
            bytes: bytes.into(),
        })
    }
}

/// Whether a text has no more values than [`VALUES_MAX`], counted without building any of them.
fn has_few_values(text: &str) -> bool {
    let (mut is_text, mut is_escaped, mut values) = (false, false, 0);
    for byte in text.bytes() {
        if is_text {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => is_text = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => is_text = true,
                b',' | b'[' | b'{' => values += 1,
                _ => {}
            }
        }
    }
    values <= VALUES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_10_id_zero_is_a_call() {
        let text = r#"{"jsonrpc":"2.0","id":0,"method":"stat","params":{}}"#;
        assert!(matches!(parse(text), Ok(Incoming::Call(_))));
        let text = r#"{"jsonrpc":"2.0","method":"$sandbox.stream.end"}"#;
        assert!(matches!(parse(text), Ok(Incoming::Notification { .. })));
        let text = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        assert!(matches!(parse(text), Ok(Incoming::Answer)));
    }

    #[test]
    fn what_is_not_a_message() {
        for (text, why) in [
            ("", Malformed::NotJson),
            ("{", Malformed::NotJson),
            ("ping", Malformed::NotJson),
            ("1", Malformed::NotRpc),
            ("[]", Malformed::NotRpc),
            ("{}", Malformed::NotRpc),
            (
                r#"{"jsonrpc":"1.0","id":1,"method":"stat"}"#,
                Malformed::NotRpc,
            ),
            (r#"{"jsonrpc":"2.0","id":1}"#, Malformed::NotRpc),
            (
                &format!(
                    r#"{{"jsonrpc":"2.0","id":"{}","method":"x"}}"#,
                    "i".repeat(300)
                ),
                Malformed::NotRpc,
            ),
            (&"[".repeat(1000), Malformed::NotJson),
            (
                r#"{"jsonrpc":"2.0","id":1e999,"method":"x"}"#,
                Malformed::NotJson,
            ),
            (
                &format!(
                    r#"{{"jsonrpc":"2.0","a":[{}0]}}"#,
                    "0,".repeat(VALUES_MAX + 1)
                ),
                Malformed::TooComplex,
            ),
            (
                r#"{"jsonrpc":"2.0","id":{},"method":"stat"}"#,
                Malformed::NotRpc,
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn long_texts_are_not_complex() {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"a":"{}","b":"\\"}}}}"#,
            ",[{".repeat(VALUES_MAX)
        );
        assert!(matches!(parse(&text), Ok(Incoming::Call(_))));
    }

    #[test]
    fn chunks_of_both_sdks_are_read_without_a_detour() {
        for text in [
            r#"{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue","params":{"streamId":0,"data":"aGk="}}"#,
            r#"{"method":"$sandbox.stream.enqueue","params":{"streamId":0,"data":"aGk"},"jsonrpc":"2.0"}"#,
        ] {
            let Ok(Incoming::Chunk { stream: 0, bytes }) = parse(text) else {
                panic!("{text}");
            };
            assert_eq!(bytes, "hi");
        }
        // What is written otherwise goes the long way.
        for text in [
            r#"{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue","params":{"streamId":0.0,"data":"aGk"}}"#,
            r#"{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue","params":{"streamId":0,"data":"a\u0047k"}}"#,
            r#"{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue","params":{"streamId":0,"data":"%"}}"#,
            r#"{"jsonrpc":"2.0","method":"$sandbox.stream.enqueue"}"#,
        ] {
            assert!(
                matches!(parse(text), Ok(Incoming::Notification { .. })),
                "{text}"
            );
        }
        let call =
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":"$sandbox.stream.enqueue"}}"#;
        assert!(matches!(parse(call), Ok(Incoming::Call(_))));
    }
}
