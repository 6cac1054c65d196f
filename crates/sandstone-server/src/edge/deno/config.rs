//! The `x-deno-sandbox-config` header: what a new sandbox should be (trap 13).
//!
//! Base64 of a JSON object. The two SDKs write different objects; this is the union. A setting
//! that restricts a sandbox and that we cannot honour is refused, never skipped.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sandstone_api::{ApiError, ErrorCode, Region};
use sandstone_core::{
    Entropy, Labels, Lifetime, MountPath, SandboxBounds, Timestamp, VOLUMES_PER_SANDBOX_MAX,
    check_mounts,
};
use serde_json::{Map, Value};

use super::super::input::{PORT_FORMS, known_region, whole_number};
use super::{network, sandboxes};
use crate::control::NewSandbox;

/// The header's name.
const CONFIG_HEADER: &str = "x-deno-sandbox-config";

/// How far a client's clock may be ahead: it computes the end of the sandbox by its own clock.
const CLOCK_SKEW_MS: i64 = 30 * 1000;

/// Base64 as clients write it, with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the configuration is checked against.
pub(super) struct Context<'a> {
    pub(super) now: Timestamp,
    pub(super) bounds: &'a SandboxBounds,
    pub(super) regions: &'a [Region],
    /// The region of the host name that the client used.
    pub(super) host_region: Option<Region>,
    /// For the placeholders of secrets.
    pub(super) entropy: &'a dyn Entropy,
}

/// Reads the header.
///
/// # Errors
/// 400 naming the field, the value and the bounds.
pub(super) fn read(headers: &HeaderMap, context: &Context<'_>) -> Result<NewSandbox, ApiError> {
    let invalid = |what: &str| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("the header {CONFIG_HEADER} {what}"),
        )
    };
    let header = headers
        .get(CONFIG_HEADER)
        .ok_or_else(|| invalid("is missing"))?;
    let bytes = BASE64
        .decode(header.as_bytes().trim_ascii())
        .map_err(|_| invalid("is not base64"))?;
    // JavaScript's `btoa` writes Latin-1, Python writes ASCII.
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| error.into_bytes().into_iter().map(char::from).collect());
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => parse(&object, context),
        _ => Err(invalid("does not hold a JSON object")),
    }
}

fn parse(config: &Map<String, Value>, context: &Context<'_>) -> Result<NewSandbox, ApiError> {
    // A null means the same as an absent key.
    let field = |name: &str| config.get(name).filter(|value| !value.is_null());
    let region = match field("region") {
        Some(_) if context.host_region.is_some() => context.host_region,
        Some(Value::String(text)) => Some(known_region(text, context.regions)?),
        Some(_) => return Err(ApiError::invalid_field("region", "not a text", "a text")),
        None => context.host_region,
    };
    let memory = match field("memory_mb") {
        None => None,
        Some(Value::Number(number)) => Some(whole_number(number).ok_or_else(|| {
            ApiError::invalid_field("memory_mb", number, "a whole number of MiB")
        })?),
        Some(_) => {
            return Err(ApiError::invalid_field(
                "memory_mb",
                "not a number",
                "a whole number of MiB",
            ));
        }
    };
    let environment = texts("env", field("env"))?;
    for (name, value) in &environment {
        check_variable(name, value)
            .map_err(|why| ApiError::invalid_field("env", format_args!("{name:?}"), why))?;
    }
    Ok(NewSandbox {
        region,
        lifetime: lifetime(field("stop_at_ms"), field("timeout"), context)?,
        memory: context.bounds.memory(memory)?,
        labels: Labels::new(texts("labels", field("labels"))?)?,
        root: root(field("root"))?,
        volumes: volumes(field("volumes"))?,
        environment,
        network: network::policy(field("allow_net"), field("secrets"), context.entropy)?,
        port: port(field("port"))?,
    })
}

/// `stop_at_ms` (JavaScript) or `timeout` (Python); neither means: as long as the session.
fn lifetime(
    stop_at: Option<&Value>,
    timeout: Option<&Value>,
    context: &Context<'_>,
) -> Result<Lifetime, ApiError> {
    let now = context.now;
    if stop_at.is_some() {
        let until = sandboxes::instant(stop_at)?;
        let left_ms = until.as_millis().saturating_sub(now.as_millis());
        let granted_ms = context
            .bounds
            .lifetime_ms("stop_at_ms", left_ms, CLOCK_SKEW_MS)?;
        return Ok(Lifetime::Until(now.plus_millis(granted_ms)));
    }
    let text = match timeout {
        None => return Ok(Lifetime::Session),
        Some(Value::String(text)) if text == "session" => return Ok(Lifetime::Session),
        Some(Value::String(text)) => text,
        Some(_) => {
            return Err(ApiError::invalid_field(
                "timeout",
                "not a text",
                "write \"session\", \"30s\" or \"5m\"",
            ));
        }
    };
    let millis = text
        .strip_suffix('s')
        .map(|number| (number, 1000))
        .or_else(|| text.strip_suffix('m').map(|number| (number, 60_000)))
        .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|(number, unit)| number.parse::<i64>().ok()?.checked_mul(unit))
        .ok_or_else(|| {
            ApiError::invalid_field(
                "timeout",
                format_args!("{text:?}"),
                "write \"session\", \"30s\" or \"5m\"",
            )
        })?;
    let millis = context.bounds.lifetime_ms("timeout", millis, 0)?;
    Ok(Lifetime::Until(now.plus_millis(millis)))
}

/// An object of texts, or nothing.
fn texts(name: &str, value: Option<&Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(value) = value else {
        return Ok(BTreeMap::new());
    };
    let wrong = |what: String| ApiError::invalid_field(name, what, "an object of texts");
    value
        .as_object()
        .ok_or_else(|| wrong("not an object".to_owned()))?
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            _ => Err(wrong(format!("not a text at {key:?}"))),
        })
        .collect()
}

/// The port of a server that is to be exposed from the start. Python alone sends it;
/// JavaScript exposes the port when it is connected.
fn port(value: Option<&Value>) -> Result<Option<u16>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    value
        .as_number()
        .and_then(whole_number)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .map(Some)
        .ok_or_else(|| ApiError::invalid_field("port", value, PORT_FORMS))
}

/// `{volume}`, which names a volume or a snapshot, as both SDKs send it; or the bare name.
fn root(value: Option<&Value>) -> Result<Option<String>, ApiError> {
    let name = match value {
        None => return Ok(None),
        Some(Value::Object(object)) => object.get("volume").and_then(Value::as_str),
        Some(other) => other.as_str(),
    };
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
        ApiError::invalid_field(
            "root",
            "malformed",
            "{volume}, with the id or slug of a volume or a snapshot",
        )
    })?;
    Ok(Some(name.to_owned()))
}

/// A list of `{volume, path}` (JavaScript) or an object from path to volume (Python).
fn volumes(value: Option<&Value>) -> Result<Vec<(MountPath, String)>, ApiError> {
    let wrong = || {
        ApiError::invalid_field(
            "volumes",
            "malformed",
            "a list of {volume, path}, or an object from path to volume",
        )
    };
    let mounts = match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                Ok((
                    text("path").ok_or_else(wrong)?,
                    text("volume").ok_or_else(wrong)?,
                ))
            })
            .collect::<Result<_, _>>()?,
        Some(Value::Object(object)) => object
            .iter()
            .map(|(path, volume)| {
                let volume = volume.as_str().ok_or_else(wrong)?;
                Ok((path.clone(), volume.to_owned()))
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    if mounts.len() > VOLUMES_PER_SANDBOX_MAX {
        return Err(ApiError::invalid_field(
            "volumes",
            format_args!("{} entries", mounts.len()),
            format_args!("a sandbox mounts at most {VOLUMES_PER_SANDBOX_MAX}"),
        ));
    }
    check_mounts(mounts)
}

/// Whether the system can hold this variable; if not, why.
pub(super) fn check_variable(name: &str, value: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.contains(['=', '\0']) {
        Err("a variable's name is not empty and has no = and no NUL")
    } else if value.contains('\0') {
        Err("a variable's value has no NUL")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;
    use sandstone_core::{LIFETIME_MAX_MS, Memory};
    use serde_json::json;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn read_raw(header: &[u8]) -> Result<NewSandbox, ApiError> {
        let regions = ["ord".parse().unwrap(), "ams".parse().unwrap()];
        let mut headers = HeaderMap::new();
        headers.insert(
            CONFIG_HEADER,
            axum::http::HeaderValue::from_bytes(header).unwrap(),
        );
        read(
            &headers,
            &Context {
                now: NOW,
                bounds: &SandboxBounds::default(),
                regions: &regions,
                host_region: None,
                entropy: &Fixed(0),
            },
        )
    }

    fn read_json(config: &Value) -> Result<NewSandbox, ApiError> {
        read_raw(BASE64.encode(config.to_string()).as_bytes())
    }

    #[test]
    fn trap_13_what_javascript_sends() {
        let new = read_json(&json!({
            "stop_at_ms": NOW.as_millis() + 60_000,
            "memory_mb": 2048,
            "labels": {"a": "b"},
            "volumes": [{"volume": "data", "path": "/data"}],
        }))
        .unwrap();
        assert_eq!(new.lifetime, Lifetime::Until(NOW.plus_millis(60_000)));
        assert_eq!(new.memory.bytes(), 2048 << 20);
        assert_eq!(new.labels.as_map()["a"], "b");
        assert_eq!(new.volumes.len(), 1);
        assert_eq!(new.volumes[0].0.as_str(), "/data");
        assert_eq!(new.volumes[0].1, "data");
        assert_eq!(new.region, None);
    }

    #[test]
    fn trap_13_what_python_sends() {
        let new = read_json(&json!({
            "memory_mb": 1280, "debug": false, "region": "ams", "timeout": "5m",
            "env": {"NODE_ENV": "test"}, "volumes": {"/data": "data", "/a": "b"},
            "port": 8000,
        }))
        .unwrap();
        assert_eq!(new.lifetime, Lifetime::Until(NOW.plus_millis(300_000)));
        assert_eq!(new.environment["NODE_ENV"], "test");
        assert_eq!(new.port, Some(8000));
        assert_eq!(new.region.unwrap().as_str(), "ams");
        assert_eq!(new.volumes.len(), 2);
    }

    #[test]
    fn a_root_is_an_object_or_a_name() {
        for root in [json!({"volume": "tools"}), json!("tools")] {
            let new = read_json(&json!({ "root": root })).unwrap();
            assert_eq!(new.root.as_deref(), Some("tools"));
        }
        assert_eq!(read_json(&json!({"root": null})).unwrap().root, None);
    }

    #[test]
    fn the_shortest_configuration_is_a_session() {
        let new = read_json(&json!({"timeout": null, "ssh": false, "secrets": {}})).unwrap();
        assert_eq!(new.lifetime, Lifetime::Session);
        assert_eq!(new.memory, Memory::default());
        let new = read_json(&json!({"timeout": "session"})).unwrap();
        assert_eq!(new.lifetime, Lifetime::Session);
    }

    #[test]
    fn base64_without_padding_and_latin_1() {
        let unpadded = BASE64.encode(r#"{"labels":{"k":"é!"}}"#);
        let new = read_raw(unpadded.trim_end_matches('=').as_bytes()).unwrap();
        assert_eq!(new.labels.as_map()["k"], "é!");
        let latin = BASE64.encode(b"{\"labels\":{\"k\":\"caf\xe9\"}}");
        assert_eq!(
            read_raw(latin.as_bytes()).unwrap().labels.as_map()["k"],
            "café"
        );
    }

    #[test]
    fn bad_values_name_their_field() {
        let now = NOW.as_millis();
        for (name, value) in [
            ("stop_at_ms", json!(now)),
            ("stop_at_ms", json!(now - 1)),
            ("stop_at_ms", json!("soon")),
            ("timeout", json!("0s")),
            ("timeout", json!("1h")),
            ("timeout", json!("-1s")),
            ("timeout", json!("s")),
            ("timeout", json!("99999999999999999999m")),
            ("timeout", json!(30)),
            ("memory_mb", json!(1280.5)),
            ("memory_mb", json!("1GB")),
            ("labels", json!({"a": 1})),
            ("labels", json!([])),
            ("env", json!({"A=B": "x"})),
            ("env", json!({"": "x"})),
            ("env", json!({"A": "x\0"})),
            ("region", json!("fra")),
            ("region", json!(1)),
            ("port", json!(0)),
            ("port", json!(65_536)),
            ("port", json!("8000")),
            ("root", json!("")),
            ("root", json!(7)),
            ("root", json!([])),
            ("root", json!({})),
            ("root", json!({"volume": 1})),
            ("root", json!({"volume": ""})),
            ("root", json!({"volume": null})),
            ("volumes", json!("data")),
            ("volumes", json!([{"path": "/data"}])),
            ("volumes", json!({"/data": 1})),
            ("volumes", json!({"data": "x"})),
            (
                "volumes",
                (0..=VOLUMES_PER_SANDBOX_MAX)
                    .map(|n| json!({"path": format!("/data/{n}"), "volume": "x"}))
                    .collect(),
            ),
        ] {
            let error = read_json(&json!({ name: value.clone() })).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{name} {value}");
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn what_the_server_does_not_allow_has_a_code_of_its_own() {
        let too_late = NOW.as_millis() + LIFETIME_MAX_MS + CLOCK_SKEW_MS + 1;
        for (name, value, code) in [
            ("stop_at_ms", json!(too_late), ErrorCode::LifetimeTooLong),
            ("stop_at_ms", json!(i64::MAX), ErrorCode::LifetimeTooLong),
            ("timeout", json!("31m"), ErrorCode::LifetimeTooLong),
            ("timeout", json!("1801s"), ErrorCode::LifetimeTooLong),
            ("memory_mb", json!(100), ErrorCode::MemoryOutOfRange),
            ("memory_mb", json!(4097), ErrorCode::MemoryOutOfRange),
        ] {
            let error = read_json(&json!({ name: value })).unwrap_err();
            assert_eq!(error.code, code, "{name}");
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn a_client_clock_may_be_a_little_ahead() {
        let new = read_json(&json!({"stop_at_ms": NOW.as_millis() + LIFETIME_MAX_MS + 5000}));
        assert_eq!(
            new.unwrap().lifetime,
            Lifetime::Until(NOW.plus_millis(LIFETIME_MAX_MS))
        );
    }

    #[test]
    fn broken_headers_are_refused() {
        for header in [&b"%%%"[..], b"", b"bnVsbA==", b"WzFd"] {
            assert_eq!(
                read_raw(header).unwrap_err().code,
                ErrorCode::InvalidRequest
            );
        }
    }
}
