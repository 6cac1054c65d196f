//! Reading a call's parameters. `null` means absent: Python sends it for options it was not given.

use std::collections::BTreeMap;

use base64::Engine;
use jiff::Timestamp;
use sandstone_protocol::message::{FileTime, Pattern};
use serde_json::{Map, Value, json};

use super::super::input::whole_number;
use super::config::BASE64;
use super::error::CallError;

/// Longest reason of a failed stream that is kept, bytes.
const REASON_MAX_BYTES: usize = 4 << 10;

/// One thing that is wrong with the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issue {
    /// What should be there.
    pub(super) expected: &'static str,
    /// Where. The Python SDK needs texts here, also for positions in lists.
    pub(super) path: Vec<String>,
    /// What is there.
    pub(super) received: &'static str,
}

impl Issue {
    /// The sentence that the validator of the SDKs would write.
    pub(super) fn message(&self) -> String {
        format!(
            "Invalid input: expected {}, received {}",
            self.expected, self.received
        )
    }

    /// In the validator's own form.
    pub(super) fn to_value(&self) -> Value {
        json!({
            "expected": self.expected,
            "code": "invalid_type",
            "path": self.path,
            "message": self.message(),
        })
    }
}

/// The parameters of one call, taken out one by one so that nothing large is copied.
#[derive(Debug, Default)]
pub(super) struct Params {
    values: Map<String, Value>,
    at: Vec<String>,
}

impl Params {
    /// The parameters in a request.
    pub(super) fn new(params: Option<Value>) -> Result<Self, CallError> {
        match params {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(values)) => Ok(Self {
                values,
                at: Vec::new(),
            }),
            Some(other) => Err(CallError::InvalidParams(vec![Issue {
                expected: "object",
                path: Vec::new(),
                received: kind(&other),
            }])),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).filter(|value| !value.is_null())
    }

    fn issue(&self, key: &str, expected: &'static str, received: &'static str) -> CallError {
        let mut path = self.at.clone();
        path.push(key.to_owned());
        CallError::InvalidParams(vec![Issue {
            expected,
            path,
            received,
        }])
    }

    fn optional<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Option<T>, CallError> {
        self.take(key)
            .map(|value| convert(value).map_err(|value| self.issue(key, expected, kind(&value))))
            .transpose()
    }

    /// A text that must be there.
    pub(super) fn text(&mut self, key: &str) -> Result<String, CallError> {
        self.optional_text(key)?
            .ok_or_else(|| self.issue(key, "string", "undefined"))
    }

    pub(super) fn optional_text(&mut self, key: &str) -> Result<Option<String>, CallError> {
        self.optional(key, "string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    pub(super) fn optional_bool(&mut self, key: &str) -> Result<Option<bool>, CallError> {
        self.optional(key, "boolean", |value| value.as_bool().ok_or(value))
    }

    /// A whole number, not negative.
    pub(super) fn optional_number(&mut self, key: &str) -> Result<Option<u64>, CallError> {
        self.optional(key, "number", |value| match &value {
            Value::Number(number) => whole_number(number).ok_or(value),
            _ => Err(value),
        })
    }

    /// The same, of 32 bits.
    pub(super) fn optional_u32(&mut self, key: &str) -> Result<Option<u32>, CallError> {
        self.optional_number(key)?
            .map(|number| {
                u32::try_from(number).map_err(|_| self.issue(key, "number", "a larger number"))
            })
            .transpose()
    }

    /// A whole number that must be there.
    pub(super) fn u32(&mut self, key: &str) -> Result<u32, CallError> {
        self.optional_u32(key)?
            .ok_or_else(|| self.issue(key, "number", "undefined"))
    }

    /// A whole number that must be there.
    pub(super) fn number(&mut self, key: &str) -> Result<u64, CallError> {
        self.optional_number(key)?
            .ok_or_else(|| self.issue(key, "number", "undefined"))
    }

    /// Base64, decoded.
    pub(super) fn optional_bytes(&mut self, key: &str) -> Result<Option<Vec<u8>>, CallError> {
        self.optional(key, "string", |value| match value.as_str() {
            Some(text) => BASE64
                .decode(text)
                .map_err(|_| Value::String(String::new())),
            None => Err(value),
        })
    }

    /// Base64 that must be there, decoded.
    pub(super) fn bytes(&mut self, key: &str) -> Result<Vec<u8>, CallError> {
        self.optional_bytes(key)?
            .ok_or_else(|| self.issue(key, "string", "undefined"))
    }

    /// A whole number that may be negative. JavaScript sends its `BigInt`s as texts.
    pub(super) fn offset(&mut self, key: &str) -> Result<i64, CallError> {
        let number = self.optional(key, "number", |value| {
            let number = match &value {
                Value::String(text) => text.parse().ok(),
                Value::Number(number) => number.as_i64().or_else(|| {
                    let magnitude = serde_json::Number::from_f64(number.as_f64()?.abs())?;
                    let magnitude = i64::try_from(whole_number(&magnitude)?).ok()?;
                    Some(if number.as_f64()? < 0.0 {
                        -magnitude
                    } else {
                        magnitude
                    })
                }),
                _ => None,
            };
            number.ok_or(value)
        })?;
        number.ok_or_else(|| self.issue(key, "number", "undefined"))
    }

    /// A time: an ISO 8601 text, or seconds since the Unix epoch.
    pub(super) fn time(&mut self, key: &str) -> Result<FileTime, CallError> {
        let time = self.optional(key, "date", |value| {
            let time = match &value {
                Value::String(text) => time_of_text(text),
                Value::Number(number) => time_of_number(number),
                _ => None,
            };
            time.ok_or(value)
        })?;
        time.ok_or_else(|| self.issue(key, "date", "undefined"))
    }

    /// Whether a parameter is there.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// The refusal of a parameter that was taken already.
    pub(super) fn wrong(
        &self,
        key: &str,
        expected: &'static str,
        received: &'static str,
    ) -> CallError {
        self.issue(key, expected, received)
    }

    /// A list of texts; empty when absent.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, CallError> {
        let list = self.optional(key, "array", |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(other),
        })?;
        list.unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(position, value)| match value {
                Value::String(text) => Ok(text),
                other => Err(self.nested_issue(key, position.to_string(), kind(&other))),
            })
            .collect()
    }

    /// A list of anything; empty when absent.
    pub(super) fn values(&mut self, key: &str) -> Result<Vec<Value>, CallError> {
        let list = self.optional(key, "array", |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(other),
        })?;
        Ok(list.unwrap_or_default())
    }

    /// A switch that can also be a list of texts: nothing when it is off, else the list.
    pub(super) fn flag_or_texts(&mut self, key: &str) -> Result<Option<Vec<String>>, CallError> {
        if let Some(Value::Bool(flag)) = self.values.get(key) {
            return Ok(flag.then(Vec::new));
        }
        self.optional_texts(key)
    }

    /// A list of texts, if given.
    pub(super) fn optional_texts(&mut self, key: &str) -> Result<Option<Vec<String>>, CallError> {
        if self.is_given(key) {
            self.texts(key).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A list of regular expressions, if given: JavaScript sends `{source, flags}`.
    pub(super) fn optional_patterns(
        &mut self,
        key: &str,
    ) -> Result<Option<Vec<Pattern>>, CallError> {
        let list = self.optional(key, "array", |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(other),
        })?;
        let pattern = |value: &Value| {
            let flags = value.get("flags").and_then(Value::as_str);
            Some(Pattern {
                source: value.get("source")?.as_str()?.to_owned(),
                flags: flags.unwrap_or_default().to_owned(),
            })
        };
        list.map(|list| {
            list.iter()
                .map(|value| pattern(value).ok_or_else(|| self.issue(key, "RegExp", kind(value))))
                .collect()
        })
        .transpose()
    }

    /// Any number.
    pub(super) fn optional_float(&mut self, key: &str) -> Result<Option<f64>, CallError> {
        self.optional(key, "number", |value| value.as_f64().ok_or(value))
    }

    /// An object of texts; empty when absent.
    pub(super) fn text_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, CallError> {
        let object = self.optional(key, "object", |value| match value {
            Value::Object(object) => Ok(object),
            other => Err(other),
        })?;
        object
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok((name, text)),
                other => Err(self.nested_issue(key, name, kind(&other))),
            })
            .collect()
    }

    /// A nested object; empty when absent.
    pub(super) fn nested(&mut self, key: &str) -> Result<Self, CallError> {
        let object = self.optional(key, "object", |value| match value {
            Value::Object(object) => Ok(object),
            other => Err(other),
        })?;
        let mut at = self.at.clone();
        at.push(key.to_owned());
        Ok(Self {
            values: object.unwrap_or_default(),
            at,
        })
    }

    /// Why a stream failed: JavaScript sends an error object, Python a text, or nothing.
    pub(super) fn reason(&mut self, key: &str) -> String {
        let text = match self.take(key) {
            Some(Value::String(text)) => Some(text),
            Some(Value::Object(mut error)) => match error.remove("message") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        };
        let mut text = text.unwrap_or_else(|| "no reason given".to_owned());
        // It is kept until the stream is used, which may never be.
        text.truncate(text.floor_char_boundary(REASON_MAX_BYTES));
        text.shrink_to_fit();
        text
    }

    fn nested_issue(&self, key: &str, inner: String, received: &'static str) -> CallError {
        let mut path = self.at.clone();
        path.extend([key.to_owned(), inner]);
        CallError::InvalidParams(vec![Issue {
            expected: "string",
            path,
            received,
        }])
    }
}

/// With or without a zone; without one it is UTC, as everything in a sandbox.
fn time_of_text(text: &str) -> Option<FileTime> {
    let time: Timestamp = text.parse().ok().or_else(|| {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })?;
    let nanoseconds = time.as_nanosecond();
    Some(FileTime {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).ok()?,
        nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).ok()?,
    })
}

fn time_of_number(number: &serde_json::Number) -> Option<FileTime> {
    /// Beyond the times of any file system, and exact as a double.
    const SECONDS_MAX: f64 = 1e12;
    if let Some(seconds) = number.as_i64() {
        return Some(FileTime {
            seconds,
            nanoseconds: 0,
        });
    }
    let value = number.as_f64().filter(|value| value.abs() <= SECONDS_MAX)?;
    // To the microsecond, which is what a double of today's time holds.
    let microseconds = (value * 1e6).round() as i64;
    Some(FileTime {
        seconds: microseconds.div_euclid(1_000_000),
        nanoseconds: u32::try_from(microseconds.rem_euclid(1_000_000) * 1000).ok()?,
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(value: Value) -> Params {
        Params::new(Some(value)).unwrap()
    }

    fn issue<T: std::fmt::Debug>(result: Result<T, CallError>) -> Issue {
        match result.unwrap_err() {
            CallError::InvalidParams(mut issues) => issues.remove(0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn null_is_absent() {
        let mut given = params(json!({"mode": null, "recursive": null, "options": null}));
        assert_eq!(given.optional_u32("mode").unwrap(), None);
        assert_eq!(given.optional_bool("recursive").unwrap(), None);
        assert_eq!(
            given.nested("options").unwrap().optional_text("x").unwrap(),
            None
        );
        assert!(Params::new(Some(Value::Null)).is_ok());
        assert!(Params::new(None).is_ok());
    }

    #[test]
    fn trap_10_zero_is_a_number() {
        assert_eq!(
            params(json!({"streamId": 0}))
                .optional_number("streamId")
                .unwrap(),
            Some(0)
        );
    }

    #[test]
    fn issues_say_where_and_what() {
        let missing = issue(params(json!({})).text("path"));
        assert_eq!(missing.path, ["path"]);
        assert_eq!(
            missing.message(),
            "Invalid input: expected string, received undefined"
        );
        let nested = issue(
            params(json!({"options": {"recursive": 1}}))
                .nested("options")
                .unwrap()
                .optional_bool("recursive"),
        );
        assert_eq!(nested.path, ["options", "recursive"]);
        assert_eq!(
            issue(params(json!({"args": ["a", 1]})).texts("args")).path,
            ["args", "1"]
        );
        assert_eq!(
            issue(params(json!({"env": {"A": 1}})).text_map("env")).path,
            ["env", "A"]
        );
        assert_eq!(
            issue(params(json!({"pid": -1})).u32("pid")).received,
            "number"
        );
        assert!(Params::new(Some(json!([]))).is_err());
    }

    #[test]
    fn times_in_every_form() {
        for (given, seconds, nanoseconds) in [
            (
                json!("2023-11-14T22:13:20.123Z"),
                1_700_000_000,
                123_000_000,
            ),
            (json!("2023-11-14T22:13:20+00:00"), 1_700_000_000, 0),
            (json!("2023-11-14T22:13:20"), 1_700_000_000, 0),
            (json!("1969-12-31T23:59:59.500Z"), -1, 500_000_000),
            (json!(1_700_000_000), 1_700_000_000, 0),
            (json!(1_700_000_000.25), 1_700_000_000, 250_000_000),
            (json!(-0.5), -1, 500_000_000),
        ] {
            let time = params(json!({"mtime": given})).time("mtime").unwrap();
            assert_eq!((time.seconds, time.nanoseconds), (seconds, nanoseconds));
        }
        for wrong in [json!("yesterday"), json!(1e300), json!(true), json!(null)] {
            assert_eq!(
                issue(params(json!({"mtime": wrong})).time("mtime")).expected,
                "date"
            );
        }
    }

    #[test]
    fn offsets_may_be_negative_and_texts() {
        for (given, offset) in [
            (json!(-4), -4),
            (json!("-9223372036854775808"), i64::MIN),
            (json!(5.0), 5),
            (json!(-5.0), -5),
        ] {
            assert_eq!(
                params(json!({"offset": given})).offset("offset").unwrap(),
                offset
            );
        }
        for wrong in [
            json!("x"),
            json!(1.5),
            json!(null),
            json!("9223372036854775808"),
        ] {
            issue(params(json!({"offset": wrong})).offset("offset"));
        }
    }

    #[test]
    fn reasons_in_every_form() {
        for (error, text) in [
            (json!("broke"), "broke"),
            (
                json!({"message": "broke", "constructorName": "Error"}),
                "broke",
            ),
            (json!({}), "no reason given"),
            (json!(null), "no reason given"),
            (json!(1), "no reason given"),
        ] {
            assert_eq!(params(json!({ "error": error })).reason("error"), text);
        }
    }

    #[test]
    fn base64_may_lack_padding() {
        let mut given = params(json!({"content": "aGk", "bad": "%"}));
        assert_eq!(given.optional_bytes("content").unwrap().unwrap(), b"hi");
        assert!(given.optional_bytes("bad").is_err());
    }

    #[test]
    fn a_long_reason_is_cut() {
        for long in [
            json!({"error": "é".repeat(100_000)}),
            json!({"error": {"message": "é".repeat(100_000)}}),
        ] {
            let reason = Params::new(Some(long)).unwrap().reason("error");
            assert_eq!(reason.len(), REASON_MAX_BYTES);
            assert!(reason.capacity() < 2 * REASON_MAX_BYTES);
        }
    }
}
