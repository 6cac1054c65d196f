//! Values in place of placeholders, and placeholders in place of values.
//!
//! Towards the host, the value stands in for its placeholder in the values of header fields, in
//! the user and password of `Authorization: Basic`, and in the path and query, there
//! percent-encoded. Bodies are sent as they are: their length is announced before they are known.
//!
//! On the way back, the placeholder stands in for the value in header fields, also where the value
//! is percent-encoded, as in a redirect to the same address.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use sandstone_core::Secret;

/// Puts the values into a request. Those that do not fit where they stand are left out.
pub(super) fn reveal<B>(request: &mut Request<B>, secrets: &[&Secret]) {
    reveal_in_headers(request.headers_mut(), secrets);
    if let Some(uri) = reveal_in_uri(request.uri(), secrets) {
        *request.uri_mut() = uri;
    }
}

/// Takes the values out of a response's header.
pub(super) fn conceal<B>(response: &mut Response<B>, secrets: &[&Secret]) {
    // The words beside the status could say anything.
    response
        .extensions_mut()
        .remove::<hyper::ext::ReasonPhrase>();
    for value in response.headers_mut().values_mut() {
        let mut bytes = value.as_bytes().to_vec();
        let mut changed = false;
        for secret in secrets {
            let (shown, hidden) = (secret.placeholder.as_str(), secret.value.reveal());
            for form in [hidden.to_owned(), percent_encoded(hidden), basic(hidden)] {
                changed |= replace(&mut bytes, form.as_bytes(), shown.as_bytes());
            }
        }
        if changed {
            // A placeholder can stand in any field.
            *value =
                HeaderValue::from_bytes(&bytes).unwrap_or_else(|_| HeaderValue::from_static(""));
        }
    }
}

fn reveal_in_headers(headers: &mut HeaderMap, secrets: &[&Secret]) {
    for (name, value) in headers.iter_mut() {
        let is_basic = is_authorization(name);
        let mut bytes = value.as_bytes().to_vec();
        let mut changed = false;
        for secret in secrets {
            let (shown, hidden) = (secret.placeholder.as_str(), secret.value.reveal());
            changed |= replace(&mut bytes, shown.as_bytes(), hidden.as_bytes());
        }
        if is_basic && let Some(revealed) = reveal_in_basic(value.as_bytes(), secrets) {
            bytes = revealed;
            changed = true;
        }
        if changed && let Ok(mut revealed) = HeaderValue::from_bytes(&bytes) {
            // Not to be shown, nor kept in HTTP/2's table.
            revealed.set_sensitive(true);
            *value = revealed;
        }
    }
}

fn is_authorization(name: &HeaderName) -> bool {
    name == AUTHORIZATION || name == PROXY_AUTHORIZATION
}

/// `Basic` and the user and password in Base64, RFC 7617.
fn reveal_in_basic(value: &[u8], secrets: &[&Secret]) -> Option<Vec<u8>> {
    let (scheme, credentials) = value.split_at_checked("Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let mut credentials = STANDARD.decode(credentials.trim_ascii()).ok()?;
    let mut changed = false;
    for secret in secrets {
        let (shown, hidden) = (secret.placeholder.as_str(), secret.value.reveal());
        changed |= replace(&mut credentials, shown.as_bytes(), hidden.as_bytes());
    }
    changed.then(|| format!("Basic {}", STANDARD.encode(credentials)).into_bytes())
}

fn reveal_in_uri(uri: &Uri, secrets: &[&Secret]) -> Option<Uri> {
    let mut bytes = uri.path_and_query()?.as_str().as_bytes().to_vec();
    let mut changed = false;
    for secret in secrets {
        let hidden = percent_encoded(secret.value.reveal());
        changed |= replace(
            &mut bytes,
            secret.placeholder.as_str().as_bytes(),
            hidden.as_bytes(),
        );
    }
    if !changed {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(bytes).ok()?);
    Uri::from_parts(parts).ok()
}

/// Everything but the unreserved characters of RFC 3986 section 2.3 as `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn basic(text: &str) -> String {
    STANDARD.encode(text)
}

/// Replaces all occurrences; whether there were any.
fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) -> bool {
    if from.is_empty() || bytes.len() < from.len() {
        return false;
    }
    let mut replaced = Vec::new();
    let mut rest = bytes.as_slice();
    let mut found = false;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        found = true;
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    if found {
        replaced.extend_from_slice(rest);
        *bytes = replaced;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandstone_core::Placeholder;

    fn secret(number: u8, value: &str) -> Secret {
        let hosts = vec!["a.com".parse().unwrap()];
        let placeholder = Placeholder::from_random([number; 16]);
        Secret::new("KEY", hosts, value.to_owned(), placeholder).unwrap()
    }

    #[test]
    fn values_go_into_headers_and_the_target() {
        let (one, two) = (secret(1, "s3cret/+ &"), secret(2, "other"));
        let (p1, p2) = (one.placeholder.as_str(), two.placeholder.as_str());
        let basic = STANDARD.encode(format!("user:{p2}"));
        let mut request = Request::builder()
            .uri(format!("/path/{p2}?key={p1}&key={p1}"))
            .header("authorization", format!("Bearer {p1}"))
            .header("proxy-authorization", format!("basic {basic}"))
            .header("x-two", format!("{p1}-{p2}"))
            .header("x-none", "DENO_SECRET_PLACEHOLDER_")
            .body(())
            .unwrap();
        reveal(&mut request, &[&one, &two]);
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        let encoded = "s3cret%2F%2B%20%26";
        assert_eq!(
            request.uri(),
            format!("/path/other?key={encoded}&key={encoded}").as_str()
        );
        assert_eq!(header("authorization"), "Bearer s3cret/+ &");
        let credentials = header("proxy-authorization")
            .strip_prefix("Basic ")
            .unwrap();
        assert_eq!(STANDARD.decode(credentials).unwrap(), b"user:other");
        assert_eq!(header("x-two"), "s3cret/+ &-other");
        assert_eq!(header("x-none"), "DENO_SECRET_PLACEHOLDER_");
        assert!(request.headers()["authorization"].is_sensitive());
    }

    #[test]
    fn an_absolute_target_keeps_its_host() {
        let one = secret(1, "v");
        let mut request = Request::builder()
            .uri(format!("https://a.com/?k={}", one.placeholder.as_str()))
            .body(())
            .unwrap();
        reveal(&mut request, &[&one]);
        assert_eq!(request.uri(), "https://a.com/?k=v");
    }

    #[test]
    fn values_that_come_back_are_taken_out() {
        let one = secret(1, "s3cret/+");
        let placeholder = one.placeholder.as_str();
        let mut response = Response::builder()
            .header("x-echo", "Bearer s3cret/+, s3cret/+")
            .header("location", "https://a.com/?k=s3cret%2F%2B")
            .header("x-same", "value")
            .body(())
            .unwrap();
        conceal(&mut response, &[&one]);
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(
            header("x-echo"),
            format!("Bearer {placeholder}, {placeholder}")
        );
        assert_eq!(
            header("location"),
            format!("https://a.com/?k={placeholder}")
        );
        assert_eq!(header("x-same"), "value");
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same(prefix in "[a-z ]{0,9}", suffix in "[a-z]{0,9}", value in "[A-Z0-9/+=]{8,40}") {
            let one = secret(9, &value);
            let text = format!("{prefix}{}{suffix}", one.placeholder.as_str());
            let mut request = Request::builder().header("x", &text).body(()).unwrap();
            reveal(&mut request, &[&one]);
            let sent = request.headers()["x"].clone();
            prop_assert_eq!(sent.to_str().unwrap(), format!("{prefix}{value}{suffix}"));
            let mut response = Response::builder().header("x", sent).body(()).unwrap();
            conceal(&mut response, &[&one]);
            prop_assert_eq!(response.headers()["x"].to_str().unwrap(), text);
        }
    }
}
