//! Pages of a list: query parameters in, `Link` header out (trap 12).

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sandstone_api::{ApiError, ErrorCode};

use crate::control::PageRequest;

/// Everything but unreserved characters is escaped, so `,` and `;` never break the header.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The query's parameters, decoded, in order.
pub(super) fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |text: &str| {
        percent_decode_str(&text.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// The page that the query asks for.
///
/// # Errors
/// 400 when `limit` is not a number.
pub(super) fn request(query: &[(String, String)]) -> Result<PageRequest, ApiError> {
    let last = |name: &str| {
        query
            .iter()
            .rev()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    };
    let limit = last("limit")
        .map(|text| {
            text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| {
                ApiError::invalid_field("limit", format_args!("{text:?}"), "a number above 0")
            })
        })
        .transpose()?;
    let cursor = match last("cursor") {
        Some(text) if text.starts_with('/') || text.contains("://") => {
            Some(cursor_of_url(text).ok_or_else(|| {
                ApiError::new(
                    ErrorCode::InvalidRequest,
                    "`cursor` is a URL without a cursor",
                )
            })?)
        }
        other => other.map(str::to_owned),
    };
    Ok(PageRequest {
        limit,
        cursor,
        search: last("search").map(str::to_owned),
    })
}

/// The `cursor` parameter of the URL that Python sends as its cursor.
fn cursor_of_url(url: &str) -> Option<String> {
    let start = url.find("://").map_or(0, |colon| colon + 3);
    let path = url[start..].find('/').map(|slash| &url[start + slash..])?;
    let uri: Uri = path.parse().ok()?;
    query(&uri)
        .into_iter()
        .rev()
        .find(|(key, _)| key == "cursor")
        .map(|(_, value)| value)
        .filter(|value| !value.is_empty())
}

/// The `Link` header that announces the page at `cursor` of the list at `uri`.
pub(super) fn link(headers: &HeaderMap, uri: &Uri, cursor: &str) -> Option<HeaderValue> {
    let mut url = format!("{}{}?cursor=", origin(headers), uri.path());
    url.extend(utf8_percent_encode(cursor, QUERY_VALUE));
    for (key, value) in query(uri) {
        if key != "cursor" {
            url.push('&');
            url.extend(utf8_percent_encode(&key, QUERY_VALUE));
            url.push('=');
            url.extend(utf8_percent_encode(&value, QUERY_VALUE));
        }
    }
    HeaderValue::from_str(&format!("<{url}>; rel=\"next\"")).ok()
}

/// Scheme and authority as the client sees them, through a proxy that says so.
fn origin(headers: &HeaderMap) -> String {
    let first = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.split(',').next().unwrap_or_default().trim())
    };
    let is_authority = |text: &&str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
    };
    let scheme = first("x-forwarded-proto")
        .filter(|scheme| matches!(*scheme, "http" | "https"))
        .unwrap_or("http");
    let host = first("x-forwarded-host")
        .filter(is_authority)
        .or_else(|| first(header::HOST.as_str()).filter(is_authority))
        .unwrap_or("localhost");
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query_text: &str) -> PageRequest {
        let uri: Uri = format!("/api/v2/volumes?{query_text}").parse().unwrap();
        request(&query(&uri)).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn plain_parameters() {
        let page = page("limit=2&cursor=abc&search=a+b%2Fc");
        assert_eq!(page.limit, Some(2));
        assert_eq!(page.cursor.as_deref(), Some("abc"));
        assert_eq!(page.search.as_deref(), Some("a b/c"));
    }

    #[test]
    fn trap_12_python_sends_the_whole_url_and_the_last_cursor_counts() {
        let url = "http%3A%2F%2Fhost%3A80%2Fapi%2Fv2%2Fvolumes%3Fcursor%3Dx%252By%26limit%3D2";
        assert_eq!(
            page(&format!("limit=2&cursor={url}")).cursor.as_deref(),
            Some("x+y")
        );
        assert_eq!(
            page(&format!("cursor=1&cursor={url}&limit=2"))
                .cursor
                .as_deref(),
            Some("x+y")
        );
        assert_eq!(
            page("cursor=%2Fapi%2Fv2%2Fvolumes%3Fcursor%3D7")
                .cursor
                .as_deref(),
            Some("7")
        );
        let uri: Uri = "/api/v2/volumes?cursor=http%3A%2F%2Fh%2Fx".parse().unwrap();
        assert!(request(&query(&uri)).is_err());
    }

    #[test]
    fn bad_limits_are_refused() {
        for text in ["limit=x", "limit=0", "limit=-1"] {
            let uri: Uri = format!("/x?{text}").parse().unwrap();
            assert!(request(&query(&uri)).is_err(), "{text}");
        }
        assert_eq!(page("limit=").limit, None);
    }

    #[test]
    fn trap_12_the_next_url_is_absolute_and_escaped() {
        let uri: Uri = "/api/v2/volumes?limit=2&cursor=old&search=a,b;c"
            .parse()
            .unwrap();
        let value = link(&headers(&[("host", "ord.localhost:8080")]), &uri, "n,e;w").unwrap();
        assert_eq!(
            value.to_str().unwrap(),
            "<http://ord.localhost:8080/api/v2/volumes?cursor=n%2Ce%3Bw&limit=2&search=a%2Cb%3Bc>; rel=\"next\""
        );
    }

    #[test]
    fn a_proxy_may_name_the_origin() {
        let all = headers(&[
            ("host", "inner:1"),
            ("x-forwarded-host", "box.example, x"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(origin(&all), "https://box.example");
        let bad = headers(&[("host", "inner:1"), ("x-forwarded-host", "a;b")]);
        assert_eq!(origin(&bad), "http://inner:1");
        assert_eq!(origin(&HeaderMap::new()), "http://localhost");
    }
}
