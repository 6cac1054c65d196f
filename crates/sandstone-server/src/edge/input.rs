//! What clients send, as checked values. The dialects name their fields the same way, so the
//! checks are here once.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use sandstone_api::{ApiError, ByteSize, ErrorCode, Region, SandboxId, Slug};
use sandstone_core::VolumeCapacity;
use serde_json::{Map, Number, Value};

use super::Edge;
use super::reply::Reject;

/// What `capacity` may be.
const CAPACITY_FORMS: &str = "a number of bytes or a size such as \"1GB\"";

/// What `port` may be.
pub(super) const PORT_FORMS: &str = "a whole number between 1 and 65535";

/// The one variable part of a route's path, percent-decoded: the id or slug of something.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<Arc<Edge>> for Name {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Reject> {
        Path::<String>::from_request_parts(parts, edge)
            .await
            .map(|Path(name)| Self(name))
            .map_err(|_| {
                ApiError::new(ErrorCode::InvalidRequest, "the path is not valid UTF-8").into()
            })
    }
}

/// The fields of an object. `null` is the same as absent; unknown fields are skipped, because the
/// JavaScript SDK sends its own options along.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl From<Map<String, Value>> for Fields {
    fn from(object: Map<String, Value>) -> Self {
        Self(object)
    }
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text that may be absent.
    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::invalid_field(name, "not a text", "a text")),
        }
    }

    /// Where a name is to lead, `port` or `pid`; may be absent.
    pub(super) fn optional_exposure_target(&self) -> Result<Option<WantedTarget>, ApiError> {
        let number = |name, forms: &str| match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => whole_number(number)
                .map(Some)
                .ok_or_else(|| ApiError::invalid_field(name, number, forms)),
            Some(_) => Err(ApiError::invalid_field(name, "not a number", forms)),
        };
        exposure_target(
            number("port", PORT_FORMS)?,
            number("pid", "the id of a process")?,
        )
    }

    /// `slug`, which must be there.
    pub(super) fn slug(&self) -> Result<Slug, ApiError> {
        let slug = self.optional_slug()?;
        slug.ok_or_else(|| ApiError::invalid_field("slug", "missing", "a text"))
    }

    /// `slug`, if it is there.
    pub(super) fn optional_slug(&self) -> Result<Option<Slug>, ApiError> {
        let text = self.optional_text("slug")?;
        text.map(|text| {
            let slug = text.parse();
            slug.map_err(|why| ApiError::invalid_field("slug", quoted(text), why))
        })
        .transpose()
    }

    /// `region`, which must be there.
    pub(super) fn region(&self, known: &[Region]) -> Result<Region, ApiError> {
        let region = self.optional_region(known)?;
        region.ok_or_else(|| ApiError::invalid_field("region", "missing", "a text"))
    }

    /// `region`, if it is there: one of `known`.
    pub(super) fn optional_region(&self, known: &[Region]) -> Result<Option<Region>, ApiError> {
        let text = self.optional_text("region")?;
        text.map(|text| known_region(text, known)).transpose()
    }

    /// `capacity`, which must be there.
    pub(super) fn capacity(&self) -> Result<VolumeCapacity, ApiError> {
        let capacity = self.optional_capacity()?;
        capacity.ok_or_else(|| ApiError::invalid_field("capacity", "missing", CAPACITY_FORMS))
    }

    /// `capacity`, if it is there: within the bounds of a volume.
    pub(super) fn optional_capacity(&self) -> Result<Option<VolumeCapacity>, ApiError> {
        let size = match self.get("capacity") {
            None => return Ok(None),
            Some(Value::String(text)) => text
                .parse()
                .map_err(|why| ApiError::invalid_field("capacity", quoted(text), why))?,
            Some(Value::Number(number)) => {
                whole_number(number).map(ByteSize::new).ok_or_else(|| {
                    ApiError::invalid_field(
                        "capacity",
                        number,
                        "a whole number of bytes, not negative",
                    )
                })?
            }
            Some(_) => {
                let found = "neither a number nor a text";
                return Err(ApiError::invalid_field("capacity", found, CAPACITY_FORMS));
            }
        };
        VolumeCapacity::new(size).map(Some)
    }
}

/// A client's own text, as it is repeated to it.
fn quoted(text: &str) -> String {
    /// Enough to recognise it.
    const CHARS_MAX: usize = 100;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Parses a sandbox id; a text of another shape names no sandbox.
pub(super) fn sandbox_id(name: &str) -> Result<SandboxId, ApiError> {
    name.parse().map_err(|_| {
        ApiError::new(
            ErrorCode::SandboxNotFound,
            format!("there is no sandbox {name:?}"),
        )
    })
}

/// Where a client wants a name to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WantedTarget {
    Port(u16),
    /// The HTTP server of the process with this id.
    Process(u32),
}

/// Where a name is to lead: to a port or to a process, which one call names at most one of.
pub(super) fn exposure_target(
    port: Option<u64>,
    pid: Option<u64>,
) -> Result<Option<WantedTarget>, ApiError> {
    match (port, pid) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(ApiError::invalid_field(
            "pid",
            "given beside `port`",
            "name one of the two",
        )),
        (Some(port), None) => u16::try_from(port)
            .ok()
            .filter(|port| *port > 0)
            .map(|port| Some(WantedTarget::Port(port)))
            .ok_or_else(|| ApiError::invalid_field("port", port, PORT_FORMS)),
        (None, Some(pid)) => u32::try_from(pid)
            .map(|pid| Some(WantedTarget::Process(pid)))
            .map_err(|_| ApiError::invalid_field("pid", pid, "the id of a process")),
    }
}

/// Parses a region and checks that this server has it.
pub(super) fn known_region(text: &str, known: &[Region]) -> Result<Region, ApiError> {
    text.parse()
        .ok()
        .filter(|region| known.contains(region))
        .ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(Region::as_str).collect();
            ApiError::invalid_field(
                "region",
                quoted(text),
                format_args!("this server has {}", names.join(", ")),
            )
        })
}

/// A number that is whole and not negative, however it was written.
pub(super) fn whole_number(number: &Number) -> Option<u64> {
    /// The largest number up to which every whole number has an exact double.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    number.as_u64().or_else(|| {
        let value = number.as_f64()?;
        let is_whole = value.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&value);
        // In range, so the conversion is exact.
        is_whole.then_some(value as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(body: &Value) -> Fields {
        body.as_object().unwrap().clone().into()
    }

    #[test]
    fn capacity_is_a_number_or_a_text() {
        let capacity = |value: Value| fields(&json!({ "capacity": value })).optional_capacity();
        for (value, bytes) in [
            (json!("1GB"), 1_000_000_000),
            (json!("500000000"), 500_000_000),
            (json!(500_000_000), 500_000_000),
            (json!(500_000_000.0), 500_000_000),
        ] {
            assert_eq!(capacity(value).unwrap().unwrap().bytes(), bytes);
        }
        assert_eq!(capacity(json!(null)).unwrap(), None);
        assert_eq!(fields(&json!({})).optional_capacity().unwrap(), None);
        for bad in ["1PB", "", "-1"] {
            assert!(capacity(json!(bad)).is_err(), "{bad}");
        }
        for bad in [json!(-1), json!(0.5), json!(1), json!([]), json!(true)] {
            assert!(capacity(bad.clone()).is_err(), "{bad}");
        }
        assert!(fields(&json!({})).capacity().is_err());
    }

    #[test]
    fn a_name_leads_to_a_port_or_a_process() {
        let target = |body: Value| fields(&body).optional_exposure_target();
        let (port, pid) = (WantedTarget::Port(8000), WantedTarget::Process(70_000));
        assert_eq!(
            target(json!({"port": 8000, "pid": null})).unwrap(),
            Some(port)
        );
        assert_eq!(target(json!({"pid": 70_000})).unwrap(), Some(pid));
        assert_eq!(target(json!({})).unwrap(), None);
        for bad in [
            json!({"port": 0}),
            json!({"port": 65_536}),
            json!({"port": -1}),
            json!({"port": "80"}),
            json!({"pid": 1.5}),
            json!({"pid": u64::MAX}),
            json!({"port": 80, "pid": 7}),
        ] {
            assert!(target(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_long_text_is_not_repeated_in_full() {
        let body = fields(&json!({"slug": "é".repeat(50_000)}));
        assert!(body.slug().unwrap_err().message.len() < 500);
    }

    #[test]
    fn every_bad_field_is_named() {
        let regions = ["ord".parse().unwrap(), "ams".parse().unwrap()];
        for bad in [json!("-x"), json!(1), json!(null)] {
            let error = fields(&json!({ "slug": bad })).slug().unwrap_err();
            assert!(error.message.contains("slug"), "{error}");
        }
        assert_eq!(
            fields(&json!({"slug": null})).optional_slug().unwrap(),
            None
        );
        for bad in [json!("fra"), json!("ORD"), json!(1)] {
            let body = fields(&json!({ "region": bad }));
            let error = body.optional_region(&regions).unwrap_err();
            assert!(error.message.contains("region"), "{error}");
        }
        let error = fields(&json!({"region": "fra"})).region(&regions);
        assert!(error.unwrap_err().message.contains("ord, ams"));
        assert!(fields(&json!({})).region(&regions).is_err());
    }
}
