//! Reading a call's parameters. `null` means absent: Python sends it for options it was not given.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::{Map, Value, json};

use super::super::input::whole_number;
use super::config::BASE64;
use super::error::CallError;

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
        text.unwrap_or_else(|| "no reason given".to_owned())
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
}
