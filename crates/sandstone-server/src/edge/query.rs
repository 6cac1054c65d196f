//! The part of a URL after the question mark.

use axum::http::Uri;
use percent_encoding::percent_decode_str;
use sandstone_api::ApiError;
use serde_json::{Map, Value};

use crate::control::PageRequest;

/// The parameters, decoded, in order. A name may come more than once; the last one counts.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// The parameters of `uri`.
    pub(super) fn of(uri: &Uri) -> Self {
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned()
        };
        let pairs = uri.query().unwrap_or_default().split('&');
        Self(
            pairs
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// All parameters.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// A parameter. An empty one is the same as none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter().rev();
        let found = pairs.find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// A parameter that is `true` or `false`, which is what it is when it is absent.
    ///
    /// # Errors
    /// 400 for anything else.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(ApiError::invalid_field(
                name,
                format_args!("{other:?}"),
                "true or false",
            )),
        }
    }

    /// The page of a list that is asked for: `limit`, `cursor`, `search`.
    ///
    /// # Errors
    /// 400 when `limit` is not a number above 0.
    pub(super) fn page(&self) -> Result<PageRequest, ApiError> {
        let limit = self.get("limit").map(|text| {
            text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| {
                ApiError::invalid_field("limit", format_args!("{text:?}"), "a number above 0")
            })
        });
        Ok(PageRequest {
            limit: limit.transpose()?,
            cursor: self.get("cursor").map(str::to_owned),
            search: self.get("search").map(str::to_owned),
            deleted: false,
        })
    }

    /// The parameters as the fields of an object, for calls whose body is something else.
    pub(super) fn into_object(self) -> Map<String, Value> {
        let pairs = self.0.into_iter();
        pairs
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key, Value::String(value)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap())
    }

    #[test]
    fn the_last_one_that_is_not_empty_counts() {
        let query = query("a=1&a=b+c%2Fd&a=&&b");
        assert_eq!(query.get("a"), Some("b c/d"));
        assert_eq!(query.get("b"), None);
        assert_eq!(query.iter().count(), 4);
    }

    #[test]
    fn pages() {
        let page = query("limit=2&cursor=abc&search=a+b").page().unwrap();
        assert_eq!(page.limit, Some(2));
        assert_eq!(page.cursor.as_deref(), Some("abc"));
        assert_eq!(page.search.as_deref(), Some("a b"));
        assert_eq!(query("limit=").page().unwrap().limit, None);
        for text in ["limit=x", "limit=0", "limit=-1"] {
            assert!(query(text).page().is_err(), "{text}");
        }
    }

    #[test]
    fn as_an_object() {
        let object = query("slug=x&slug=data&region=").into_object();
        assert_eq!(object["slug"], "data");
        assert!(!object.contains_key("region"));
    }

    #[test]
    fn flags() {
        assert!(query("deleted=true").flag("deleted").unwrap());
        assert!(!query("deleted=false").flag("deleted").unwrap());
        assert!(!query("").flag("deleted").unwrap());
        assert!(query("deleted=yes").flag("deleted").is_err());
    }
}
