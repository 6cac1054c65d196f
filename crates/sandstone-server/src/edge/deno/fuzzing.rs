//! Everything of this dialect that reads what a client wrote, for any bytes whatever: the fuzz
//! target `edge_input` calls these. None may panic.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use base64::Engine;
use sandstone_api::Region;
use sandstone_core::{Entropy, SandboxBounds, Timestamp};
use serde_json::Value;

use super::super::query::Query;
use super::config::{self, BASE64};
use super::incoming::{self, Incoming};
use super::params::Params;
use super::{mangled, page, sandboxes};

/// The configuration of a new sandbox, as it is in the header.
///
/// # Panics
/// When what was read is not what it is said to be.
pub fn configuration(header: &[u8], regions: &[Region]) {
    let Ok(value) = HeaderValue::from_bytes(header) else {
        return;
    };
    let name = HeaderName::from_static("x-deno-sandbox-config");
    let headers = HeaderMap::from_iter([(name, value)]);
    let context = config::Context {
        now: Timestamp::from_millis(1_700_000_000_000),
        bounds: &SandboxBounds::default(),
        regions,
        host_region: None,
        entropy: &Sevens,
    };
    let Ok(new) = config::read(&headers, &context) else {
        return;
    };
    assert!(new.region.is_none_or(|region| regions.contains(&region)));
    for (path, _) in &new.volumes {
        assert!(path.as_str().starts_with('/'), "{path}");
    }
    for (name, value) in &new.environment {
        assert!(config::check_variable(name, value).is_ok());
    }
}

/// The same, before it is put into the header.
pub fn configuration_text(text: &[u8], regions: &[Region]) {
    configuration(BASE64.encode(text).as_bytes(), regions);
}

/// A message, and all that may be asked of its parameters under the names in `keys`.
pub fn message(text: &str, keys: &[&str]) {
    match incoming::parse(text) {
        Ok(Incoming::Call(call)) => params(call.params, keys),
        Ok(Incoming::Notification { params: given, .. }) => params(Some(given), keys),
        Ok(Incoming::Chunk { .. } | Incoming::Answer) | Err(_) => {}
    }
}

fn params(given: Option<Value>, keys: &[&str]) {
    for key in keys {
        let read = || Params::new(given.clone());
        let Ok(mut nested) = read() else { return };
        let _ = (read().map(|mut it| it.optional_number(key))).is_ok();
        let _ = (read().map(|mut it| it.optional_u32(key))).is_ok();
        let _ = (read().map(|mut it| it.optional_bytes(key))).is_ok();
        let _ = (read().map(|mut it| it.offset(key))).is_ok();
        let _ = (read().map(|mut it| it.time(key))).is_ok();
        let _ = (read().map(|mut it| it.texts(key))).is_ok();
        let _ = (read().map(|mut it| it.flag_or_texts(key))).is_ok();
        let _ = (read().map(|mut it| it.optional_patterns(key))).is_ok();
        let _ = (read().map(|mut it| it.optional_float(key))).is_ok();
        let _ = (read().map(|mut it| it.reason(key))).is_ok();
        if let Ok(Ok(mut map)) = read().map(|mut it| it.text_map(key)) {
            let given = map.len();
            mangled::restore_names(&mut map);
            assert!((given..=2 * given).contains(&map.len()));
        }
        if let Ok(mut inner) = nested.nested(key) {
            let _ = inner.optional_text(key).is_ok();
        }
    }
    if let Some(given) = &given {
        let _ = sandboxes::instant(Some(given)).is_ok();
    }
}

/// The query of a list.
///
/// # Panics
/// When a cursor is not what its text says.
pub fn query(text: &str) {
    let Ok(uri) = format!("/api/v2/volumes?{text}").parse::<Uri>() else {
        return;
    };
    let query = Query::of(&uri);
    let _ = sandboxes::wanted_labels(&query).is_ok();
    let _ = query.flag("deleted").is_ok();
    if let Ok(page) = page::request(&query) {
        assert_ne!(page.survives_text(), Some(false), "{page:?}");
        let next = page.cursor;
        let none: [(); 0] = [];
        let answer = page::answer(&HeaderMap::new(), &uri, &none, next.clone());
        let link = answer.headers().get("link");
        assert_eq!(link.is_some(), next.is_some());
    }
}

#[derive(Debug)]
struct Sevens;

impl Entropy for Sevens {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}
