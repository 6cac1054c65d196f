//! Labels as the database keeps them: a JSON object of texts.

use std::collections::BTreeMap;

use crate::StoreError;
use crate::row::unreadable;

pub(crate) fn encode(labels: &BTreeMap<String, String>) -> String {
    let object = labels
        .iter()
        .map(|(key, value)| (key.clone(), serde_json::Value::from(value.as_str())))
        .collect();
    serde_json::Value::Object(object).to_string()
}

pub(crate) fn decode(text: &str) -> Result<BTreeMap<String, String>, StoreError> {
    serde_json::from_str(text).map_err(|_| unreadable("labels", text))
}
