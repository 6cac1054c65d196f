//! Pages of a list: query parameters in, `Link` header out (trap 12).

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sandstone_api::{ApiError, ErrorCode};
use serde::Serialize;

use super::super::query::Query;
use crate::control::PageRequest;

/// Everything but unreserved characters is escaped, so `,` and `;` never break the header.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The page that the query asks for.
///
/// # Errors
/// 400 when `limit` is not a number, or `cursor` is a URL without a cursor.
pub(super) fn request(query: &Query) -> Result<PageRequest, ApiError> {
    let mut page = query.page()?;
    if let Some(text) = &page.cursor
        && (text.starts_with('/') || text.contains("://"))
    {
        page.cursor = Some(cursor_of_url(text).ok_or_else(|| {
            ApiError::new(
                ErrorCode::InvalidRequest,
                "`cursor` is a URL without a cursor",
            )
        })?);
    }
    Ok(page)
}

/// A page as both SDKs read it: the bare items, and where the next page is in the `Link` header.
pub(super) fn answer<T: Serialize>(
    headers: &HeaderMap,
    uri: &Uri,
    items: &[T],
    next_cursor: Option<String>,
) -> Response {
    let mut response = Json(items).into_response();
    if let Some(link) = next_cursor.and_then(|cursor| link(headers, uri, &cursor)) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// The `cursor` parameter of the URL that Python sends as its cursor.
fn cursor_of_url(url: &str) -> Option<String> {
    let start = url.find("://").map_or(0, |colon| colon + 3);
    let path = url[start..].find('/').map(|slash| &url[start + slash..])?;
    let uri: Uri = path.parse().ok()?;
    Query::of(&uri).get("cursor").map(str::to_owned)
}

/// The `Link` header that announces the page at `cursor` of the list at `uri`.
fn link(headers: &HeaderMap, uri: &Uri, cursor: &str) -> Option<HeaderValue> {
    let mut url = format!("{}{}?cursor=", origin(headers), uri.path());
    url.extend(utf8_percent_encode(cursor, QUERY_VALUE));
    for (key, value) in Query::of(uri).iter() {
        if key != "cursor" {
            url.push('&');
            url.extend(utf8_percent_encode(key, QUERY_VALUE));
            url.push('=');
            url.extend(utf8_percent_encode(value, QUERY_VALUE));
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
        request(&Query::of(&uri)).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
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
        assert!(request(&Query::of(&uri)).is_err());
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
