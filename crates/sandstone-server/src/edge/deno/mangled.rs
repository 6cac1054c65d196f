//! Names that the Python SDK rewrote on the way.

use std::collections::BTreeMap;

/// Trap 11: Python turns `NODE_ENV` into `NODEEnv` on the way. A name that looks like that is set
/// in both spellings; which one was meant cannot be known.
pub(super) fn restore_names(environment: &mut BTreeMap<String, String>) {
    let restored: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| Some((original_name(name)?, value.clone())))
        .collect();
    for (name, value) in restored {
        environment.entry(name).or_insert(value);
    }
}

/// `NODE_ENV` for `NODEEnv`: capitals or digits, then words of one capital and small letters.
fn original_name(mangled: &str) -> Option<String> {
    let bytes = mangled.as_bytes();
    if !bytes.iter().all(u8::is_ascii_alphanumeric) || !bytes.first()?.is_ascii_uppercase() {
        return None;
    }
    let starts_word = |at: usize| {
        bytes[at].is_ascii_uppercase() && bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase)
    };
    let first = (1..bytes.len()).find(|at| starts_word(*at))?;
    let is_mangled = bytes[..first].iter().all(|byte| !byte.is_ascii_lowercase())
        && (first..bytes.len()).all(|at| !bytes[at].is_ascii_uppercase() || starts_word(at));
    if !is_mangled {
        return None;
    }
    let mut name = mangled[..first].to_owned();
    for c in mangled[first..].chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_11_names_that_python_mangled() {
        for (mangled, original) in [
            ("NODEEnv", Some("NODE_ENV")),
            ("MYVar", Some("MY_VAR")),
            ("DENODeployToken", Some("DENO_DEPLOY_TOKEN")),
            ("PATH", None),
            ("HOME1", None),
            ("lowerCase", None),
            ("Path", None),
            ("MY_VAR", None),
            ("X", None),
            ("", None),
            ("ÄÖ", None),
        ] {
            assert_eq!(original_name(mangled).as_deref(), original, "{mangled}");
        }
        let mut environment = BTreeMap::from([
            ("MYVar".to_owned(), "1".to_owned()),
            ("MY_VAR".to_owned(), "2".to_owned()),
        ]);
        restore_names(&mut environment);
        assert_eq!(environment["MY_VAR"], "2", "what was really given wins");
    }
}
