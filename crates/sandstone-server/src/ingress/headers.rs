//! What of a head is passed on. RFC 9110, section 7.6.1: some headers are about one connection
//! only. A head that could be read in two ways is refused, not repaired.

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, Uri, Version};

/// About one connection; never passed on. `Connection` may name more.
const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What only we may say: a client's own word would be believed.
const OURS: [HeaderName; 6] = [
    FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Why a head is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    #[error("the request names no host, more than one, or one that is malformed")]
    Host,
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Length,
    #[error("this method is for proxies that lead anywhere; this one leads to one server")]
    Connect,
}

/// The one host that a request names, with its port if it names that.
pub(super) fn host(parts: &Parts, server_name: Option<&str>) -> Result<Authority, BadHead> {
    let mut named = parts.headers.get_all(HOST).iter();
    let header = match (named.next(), named.next()) {
        (header, None) => header
            .map(|header| Authority::try_from(header.as_bytes()).map_err(|_| BadHead::Host))
            .transpose()?,
        (_, Some(_)) => return Err(BadHead::Host),
    };
    let host = match (parts.uri.authority(), header) {
        (Some(target), Some(header)) if *target != header => return Err(BadHead::Host),
        (Some(target), _) => target.clone(),
        (None, Some(header)) => header,
        // HTTP/1.0 need not say.
        (None, None) if parts.version == Version::HTTP_10 => server_name
            .and_then(|name| name.parse().ok())
            .ok_or(BadHead::Host)?,
        (None, None) => return Err(BadHead::Host),
    };
    // User information in front of a host can mislead whoever reads it.
    if host.as_str().contains('@') {
        return Err(BadHead::Host);
    }
    Ok(host)
}

/// Makes a client's head into the one that the server in the sandbox gets. `upgrade` is what the
/// connection is to become, if the client asks for that.
pub(super) fn to_sandbox(
    parts: &mut Parts,
    host: &Authority,
    client: IpAddr,
    upgrade: Option<&HeaderValue>,
) -> Result<(), BadHead> {
    if parts.method == Method::CONNECT {
        return Err(BadHead::Connect);
    }
    let headers = &mut parts.headers;
    if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadHead::Length);
    }
    let takes_trailers = headers.get_all(TE).iter().any(|value| {
        let mut codings = value.to_str().unwrap_or_default().split(',');
        codings.any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    });
    remove_hop_by_hop(headers);
    headers.remove(TE);
    // It has been answered by then: the body is read from here on.
    headers.remove(EXPECT);
    for name in OURS {
        headers.remove(name);
    }
    let host = HeaderValue::from_str(host.as_str()).map_err(|_| BadHead::Host)?;
    headers.insert(HOST, host.clone());
    headers.insert(X_FORWARDED_HOST, host);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(X_FORWARDED_FOR, client);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if takes_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    Ok(())
}

/// Makes the head of a server in a sandbox into the one that the client gets. `upgraded` is
/// whether the connection becomes something else now.
pub(super) fn to_client(headers: &mut HeaderMap, upgraded: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgraded);
    remove_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// What an HTTP/1.1 client wants its connection to become.
pub(super) fn wanted_upgrade(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    names_in(&parts.headers, CONNECTION)
        .any(|name| name.eq_ignore_ascii_case("upgrade"))
        .then(|| parts.headers.get(UPGRADE).cloned())?
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = names_in(headers, CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // What says whose request this is, or how long, is not the client's to take away.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in HOP_BY_HOP.into_iter().chain(named) {
        headers.remove(name);
    }
}

/// The parts of a header that is a list.
fn names_in(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn passed_on(headers: &[(&str, &str)]) -> Parts {
        let mut parts = parts("/a?b", headers);
        let upgrade = wanted_upgrade(&parts);
        let host = Authority::from_static("x.localhost:8443");
        to_sandbox(&mut parts, &host, CLIENT, upgrade.as_ref()).unwrap();
        parts
    }

    #[test]
    fn a_request_names_one_host() {
        let of = |uri, headers: &[_]| host(&parts(uri, headers), Some("sni.localhost"));
        assert_eq!(of("/", &[("host", "a.b:1")]).unwrap(), "a.b:1");
        assert_eq!(of("https://a.b/", &[]).unwrap(), "a.b");
        assert_eq!(of("https://A.b/", &[("host", "a.B")]).unwrap(), "a.b");
        for (uri, headers) in [
            ("/", &[][..]),
            ("/", &[("host", "a"), ("host", "a")]),
            ("/", &[("host", "a b")]),
            ("/", &[("host", "a/b")]),
            ("/", &[("host", "")]),
            ("/", &[("host", "u@a")]),
            ("https://a/", &[("host", "b")]),
            ("https://a:1/", &[("host", "a")]),
        ] {
            assert_eq!(of(uri, headers), Err(BadHead::Host), "{uri} {headers:?}");
        }
        let mut old = parts("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(host(&old, Some("sni.localhost")).unwrap(), "sni.localhost");
        assert!(host(&old, None).is_err());
    }

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let passed = passed_on(&[
            ("connection", "keep-alive, X-Private"),
            ("connection", "host, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("te", "deflate"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("accept", "text/html"),
            ("cookie", "a=b"),
        ]);
        let mut names: Vec<_> = passed.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "cookie",
                "host",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto"
            ]
        );
        assert_eq!(passed.uri, "/a?b");
        assert_eq!(passed.headers["host"], "x.localhost:8443");
    }

    #[test]
    fn who_asks_is_our_word_alone() {
        let passed = passed_on(&[
            ("x-forwarded-for", "8.8.8.8"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=8.8.8.8"),
            ("x-real-ip", "8.8.8.8"),
        ]);
        let all = |name| passed.headers.get_all(name).iter().count();
        assert_eq!(passed.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(passed.headers["x-forwarded-proto"], "https");
        assert_eq!(
            (all("x-forwarded-for"), all("forwarded"), all("x-real-ip")),
            (1, 0, 0)
        );
    }

    #[test]
    fn upgrades_and_trailers_are_asked_for_again() {
        let passed = passed_on(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(passed.headers["connection"], "upgrade");
        assert_eq!(passed.headers["upgrade"], "websocket");
        let passed = passed_on(&[("te", "trailers, deflate;q=0.5")]);
        assert_eq!(passed.headers["te"], "trailers");
        let mut answer = HeaderMap::new();
        answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
        answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let mut refused = answer.clone();
        to_client(&mut answer, true);
        assert_eq!(answer.len(), 2);
        to_client(&mut refused, false);
        assert!(refused.is_empty());
    }

    #[test]
    fn two_lengths_are_refused() {
        let mut parts = parts(
            "/",
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
        );
        let host = Authority::from_static("a");
        let bad = to_sandbox(&mut parts, &host, CLIENT, None);
        assert_eq!(bad, Err(BadHead::Length));
        parts.method = Method::CONNECT;
        let bad = to_sandbox(&mut parts, &host, CLIENT, None);
        assert_eq!(bad, Err(BadHead::Connect));
    }
}
