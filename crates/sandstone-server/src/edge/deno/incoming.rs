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
    /// Its values take more than [`VALUES_MAX_BYTES`].
    TooComplex,
}

/// Memory that the values of one message may take beyond the length of its text, in bytes.
const VALUES_MAX_BYTES: usize = 64 << 20;

/// What an object takes: its first entries are in a node of a B-tree with room for eleven, 632
/// bytes, and the allocator's share.
const OBJECT_BYTES: usize = 650;

/// What an array takes: room for four values of 32 bytes.
const ARRAY_BYTES: usize = 130;

/// What one more value takes: 32 bytes in an array that may be half empty, or 56 in a node that may
/// be, and the smallest allocation for a text.
const VALUE_BYTES: usize = 128;

/// Longest id of a call that is a text. The SDKs send small numbers; an id is repeated in the
/// answer.
const ID_MAX_BYTES: usize = 256;

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: Value,
    pub(super) method: String,
    pub(super) params: Option<Value>,
    /// About how many bytes of memory it takes.
    pub(super) memory: usize,
}

/// Reads a message.
pub(super) fn parse(text: &str) -> Result<Incoming, Malformed> {
    if let Some(chunk) = Chunk::parse(text) {
        return Ok(chunk);
    }
    let values = values_bytes(text);
    if values > VALUES_MAX_BYTES {
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
        Some(id @ (Value::Number(_) | Value::String(_))) => Ok(Incoming::Call(Call {
            id,
            method,
            params,
            memory: text.len() + values,
        })),
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

/// About how many bytes the values in a text take, told without building any of them.
fn values_bytes(text: &str) -> usize {
    let (mut is_text, mut is_escaped, mut bytes) = (false, false, 0_usize);
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
                b'{' => bytes = bytes.saturating_add(OBJECT_BYTES),
                b'[' => bytes = bytes.saturating_add(ARRAY_BYTES),
                b',' => bytes = bytes.saturating_add(VALUE_BYTES),
                _ => {}
            }
        }
    }
    bytes
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
                    "0,".repeat(VALUES_MAX_BYTES / VALUE_BYTES + 1)
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
            ",[{".repeat(VALUES_MAX_BYTES / OBJECT_BYTES)
        );
        assert!(matches!(parse(&text), Ok(Incoming::Call(_))));
    }

    #[test]
    fn a_call_is_as_large_as_what_is_made_of_it() {
        let memory = |params: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"stat","params":{params}}}"#);
            match parse(&text) {
                Ok(Incoming::Call(call)) => call.memory,
                other => panic!("{other:?}"),
            }
        };
        let usual = memory(r#"{"path":"/etc/hosts","options":{"followSymlinks":true}}"#);
        assert!(usual < 3000, "{usual}");
        assert!(memory(&format!(r#"{{"a":"{}"}}"#, "[{,".repeat(1000))) < usual + 3000);
        assert!(memory(&format!(r#"{{"a":[{}0]}}"#, r#"{"":0},"#.repeat(500))) > 500 * 632);
        assert!(memory(&format!(r#"{{"a":[{}0]}}"#, "[0],".repeat(500))) > 500 * (128 + 32));
    }

    #[test]
    fn objects_count_for_what_they_take() {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":[{}0]}}"#,
            r#"{"":0},"#.repeat(VALUES_MAX_BYTES / OBJECT_BYTES)
        );
        assert_eq!(parse(&text).unwrap_err(), Malformed::TooComplex);
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
