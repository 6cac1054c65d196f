//! `allow_net` and `secrets`: what a new sandbox may reach.

use sandstone_api::{ApiError, ErrorCode};
use sandstone_core::{
    ALLOW_NET_MAX, Entropy, HostPattern, NetworkPolicy, Placeholder, SECRET_HOSTS_MAX, SECRETS_MAX,
    Secret,
};
use serde_json::Value;

/// Longest entry that is repeated to the client. The longest that is valid has 261 characters.
const ENTRY_SHOWN_CHARS: usize = 280;

/// Reads both fields; each secret gets a placeholder.
///
/// # Errors
/// 400 naming the field and the entry. A secret's value is never repeated.
pub(super) fn policy(
    allow_net: Option<&Value>,
    secrets: Option<&Value>,
    entropy: &dyn Entropy,
) -> Result<NetworkPolicy, ApiError> {
    let allow = allow_net
        .map(|list| patterns("allow_net", list, ALLOW_NET_MAX))
        .transpose()?;
    let secrets = match secrets {
        None => Vec::new(),
        Some(Value::Object(object)) if object.len() <= SECRETS_MAX => object
            .iter()
            .map(|(name, value)| secret(name, value, entropy))
            .collect::<Result<_, _>>()?,
        Some(Value::Object(object)) => {
            return Err(ApiError::invalid_field(
                "secrets",
                format_args!("{} entries", object.len()),
                format_args!("a sandbox has at most {SECRETS_MAX}"),
            ));
        }
        Some(_) => {
            return Err(ApiError::invalid_field(
                "secrets",
                "not an object",
                "an object from name to {hosts, value}",
            ));
        }
    };
    Ok(NetworkPolicy { allow, secrets })
}

fn secret(name: &str, value: &Value, entropy: &dyn Entropy) -> Result<Secret, ApiError> {
    let field = format!("secrets.{}", shortened(name));
    let (Some(hosts), Some(value)) = (
        value.get("hosts"),
        value.get("value").and_then(Value::as_str),
    ) else {
        return Err(ApiError::invalid_field(
            &field,
            "incomplete",
            "{hosts, value}, a list of texts and a text",
        ));
    };
    let hosts = patterns(&format!("{field}.hosts"), hosts, SECRET_HOSTS_MAX)?;
    let mut random = [0; 16];
    entropy.fill(&mut random);
    Secret::new(
        name,
        hosts,
        value.to_owned(),
        Placeholder::from_random(random),
    )
    .map_err(|why| ApiError::invalid_field(&field, "malformed", why))
}

fn patterns(field: &str, list: &Value, most: usize) -> Result<Vec<HostPattern>, ApiError> {
    let Some(list) = list.as_array() else {
        return Err(ApiError::invalid_field(
            field,
            "not a list",
            "a list of hosts, such as [\"example.com\", \"*.example.org:443\"]",
        ));
    };
    if list.len() > most {
        return Err(ApiError::invalid_field(
            field,
            format_args!("{} entries", list.len()),
            format_args!("at most {most} hosts"),
        ));
    }
    list.iter()
        .map(|entry| {
            let text = entry
                .as_str()
                .ok_or_else(|| ApiError::invalid_field(field, "not a text", "a host is a text"))?;
            let pattern: HostPattern = text.parse().map_err(|why| {
                ApiError::invalid_field(field, format_args!("{:?}", shortened(text)), why)
            })?;
            if pattern.is_ipv6() {
                let message = format!("`{field}` names {pattern}, and sandboxes have no IPv6 yet");
                return Err(ApiError::new(ErrorCode::NotSupported, message).with_hint(
                    "Name the host instead: the server connects to names over IPv6, too, if it \
                     has it.",
                ));
            }
            Ok(pattern)
        })
        .collect()
}

fn shortened(text: &str) -> &str {
    match text.char_indices().nth(ENTRY_SHOWN_CHARS) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;
    use serde_json::json;

    fn read(allow_net: Option<Value>, secrets: Option<Value>) -> Result<NetworkPolicy, ApiError> {
        policy(allow_net.as_ref(), secrets.as_ref(), &Fixed(7))
    }

    #[test]
    fn absent_is_open_and_empty_is_nothing() {
        assert!(read(None, None).unwrap().is_open());
        assert!(read(None, Some(json!({}))).unwrap().is_open());
        assert_eq!(read(Some(json!([])), None).unwrap().allow, Some(Vec::new()));
    }

    #[test]
    fn both_are_read() {
        let policy = read(
            Some(json!(["Example.com", "*.example.org:443"])),
            Some(json!({"KEY": {"hosts": ["api.example.com"], "value": "v"}})),
        )
        .unwrap();
        assert_eq!(policy.allow.unwrap()[0].to_string(), "example.com");
        let secret = &policy.secrets[0];
        assert_eq!((secret.name.as_str(), secret.value.reveal()), ("KEY", "v"));
        let placeholder = format!("DENO_SECRET_PLACEHOLDER_{}", "07".repeat(16));
        assert_eq!(secret.placeholder.as_str(), placeholder);
    }

    #[test]
    fn an_ipv6_address_is_refused_because_nothing_would_reach_it() {
        let lists = [
            (Some(json!(["a.com", "[2001:db8::1]:443"])), None),
            (
                None,
                Some(json!({"KEY": {"hosts": ["[2001:db8::1]:443"], "value": "hidden"}})),
            ),
        ];
        for (allow, secrets) in lists {
            let error = read(allow, secrets).unwrap_err();
            assert_eq!(error.code, ErrorCode::NotSupported);
            assert!(error.message.contains("[2001:db8::1]:443"), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
            assert!(error.hint.is_some());
        }
        // This is an IPv4 address.
        assert!(read(Some(json!(["[::ffff:192.0.2.1]"])), None).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_shown() {
        for (allow, secrets, named) in [
            (json!("example.com"), json!({}), "allow_net"),
            (json!([1]), json!({}), "allow_net"),
            (json!(["10.0.0.0/8"]), json!({}), "10.0.0.0/8"),
            (json!(vec!["a.com"; 257]), json!({}), "256"),
            (json!([]), json!(["KEY"]), "secrets"),
            (json!([]), json!({"KEY": "hidden"}), "KEY"),
            (json!([]), json!({"KEY": {"hosts": ["a.com"]}}), "KEY"),
            (
                json!([]),
                json!({"KEY": {"hosts": [], "value": "hidden"}}),
                "KEY",
            ),
            (
                json!([]),
                json!({"KEY": {"hosts": ["a b"], "value": "hidden"}}),
                "a b",
            ),
            (
                json!([]),
                json!({"K=Y": {"hosts": ["a.b"], "value": "hidden"}}),
                "K=Y",
            ),
            (
                json!([]),
                json!({"KEY": {"hosts": ["a.b"], "value": "hidden\n"}}),
                "KEY",
            ),
        ] {
            let error = read(Some(allow), Some(secrets)).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(named), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
        }
    }
}
