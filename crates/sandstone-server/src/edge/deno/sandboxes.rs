//! Sandboxes over REST. Creating and connecting is in [`super::handshake`].

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use sandstone_api::{ApiError, Sandbox};
use sandstone_core::Timestamp;
use serde_json::{Value, json};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Name, sandbox_id, whole_number};
use super::super::query::Query;
use super::super::reply::{Reject, read_object};
use super::labels;

pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    uri: Uri,
) -> Result<Json<Vec<Sandbox>>, Reject> {
    let labels = wanted_labels(&Query::of(&uri))?;
    Ok(Json(edge.control.sandboxes(&who, &labels).await?))
}

pub(super) async fn extend(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
    body: Body,
) -> Result<Json<Value>, Reject> {
    let id = sandbox_id(&name)?;
    let body = read_object(body).await?;
    let until = instant(body.get("stop_at_ms"))?;
    let granted = edge.control.extend(&who, id, until).await?;
    Ok(Json(json!({ "stop_at_ms": granted.as_millis() })))
}

/// Parses milliseconds since the Unix epoch.
pub(super) fn instant(value: Option<&Value>) -> Result<Timestamp, ApiError> {
    let bounds = "milliseconds since 1970";
    match value {
        Some(Value::Number(number)) => whole_number(number)
            .or_else(|| number.as_f64().map(|value| value.max(0.0) as u64))
            .and_then(|millis| i64::try_from(millis).ok())
            .map(Timestamp::from_millis)
            .ok_or_else(|| ApiError::invalid_field("stop_at_ms", number, bounds)),
        None | Some(Value::Null) => Err(ApiError::invalid_field("stop_at_ms", "missing", bounds)),
        Some(_) => Err(ApiError::invalid_field(
            "stop_at_ms",
            "not a number",
            bounds,
        )),
    }
}

/// The labels to filter by: JavaScript sends `labels[key]=value`, Python the `repr` of a `dict`.
pub(super) fn wanted_labels(query: &Query) -> Result<BTreeMap<String, String>, ApiError> {
    let mut wanted = BTreeMap::new();
    for (key, value) in query.iter() {
        if key == "labels" {
            let parsed = labels::parse_python_dict(value).ok_or_else(|| {
                ApiError::invalid_field(
                    "labels",
                    format_args!("{value:?}"),
                    "write labels[key]=value, or a Python dict of texts",
                )
            })?;
            wanted.extend(parsed);
        } else if let Some(label) = key
            .strip_prefix("labels[")
            .and_then(|rest| rest.strip_suffix(']'))
        {
            wanted.insert(label.to_owned(), value.to_owned());
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_labels() {
        let wanted = |text: &str| wanted_labels(&Query::of(&text.parse().unwrap()));
        let expected = BTreeMap::from([
            ("a".to_owned(), "b".to_owned()),
            ("c".to_owned(), "d e".to_owned()),
        ]);
        assert_eq!(
            wanted("/x?labels%5Ba%5D=b&labels%5Bc%5D=d+e").unwrap(),
            expected
        );
        assert_eq!(
            wanted("/x?labels=%7B%27a%27%3A+%27b%27%2C+%27c%27%3A+%27d+e%27%7D").unwrap(),
            expected
        );
        assert_eq!(wanted("/x?limit=3").unwrap(), BTreeMap::new());
        assert!(wanted("/x?labels=nonsense").is_err());
    }

    #[test]
    fn instants() {
        assert_eq!(instant(Some(&json!(5))).unwrap().as_millis(), 5);
        assert_eq!(instant(Some(&json!(5.5))).unwrap().as_millis(), 5);
        assert_eq!(instant(Some(&json!(-5))).unwrap().as_millis(), 0);
        for value in [json!(null), json!("5"), json!(u64::MAX)] {
            assert!(instant(Some(&value)).is_err(), "{value}");
        }
    }
}
