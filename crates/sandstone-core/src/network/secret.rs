//! Values that a sandbox uses without seeing them.

use std::fmt;

use super::HostPattern;

/// Most secrets of one sandbox: each is looked for in each request.
pub const SECRETS_MAX: usize = 64;

/// Most hosts of one secret.
pub const SECRET_HOSTS_MAX: usize = 64;

/// Longest value. Servers refuse headers of more than 8 to 16 KiB.
pub const SECRET_VALUE_MAX_BYTES: usize = 8 << 10;

/// Longest name of a variable that holds a placeholder.
const NAME_MAX_BYTES: usize = 256;

/// What all placeholders begin with; the hosted product's are the same.
const PLACEHOLDER_PREFIX: &str = "DENO_SECRET_PLACEHOLDER_";

/// Random bytes of a placeholder, written in hexadecimal.
const PLACEHOLDER_RANDOM_BYTES: usize = 16;

/// What a sandbox has instead of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Placeholder(String);

impl Placeholder {
    /// A placeholder with this random part.
    #[must_use]
    pub fn from_random(bytes: [u8; PLACEHOLDER_RANDOM_BYTES]) -> Self {
        use fmt::Write;
        let mut text = PLACEHOLDER_PREFIX.to_owned();
        for byte in bytes {
            // Writing to a text cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Reads one that was stored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(PLACEHOLDER_PREFIX)?;
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (hex.len() == 2 * PLACEHOLDER_RANDOM_BYTES && hex.bytes().all(digit))
            .then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(String);

impl SecretValue {
    /// The value, for the one who sends or stores it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The variable that holds the placeholder.
    pub name: String,
    /// The hosts that get the value; on port 443 unless they name another.
    pub hosts: Vec<HostPattern>,
    /// The value.
    pub value: SecretValue,
    /// What the sandbox has instead.
    pub placeholder: Placeholder,
}

/// Why something is not a secret. Never shows the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The name cannot be a variable's.
    #[error("a secret's name is that of a variable: letters, digits and _, at most 256")]
    Name,
    /// No hosts, or too many.
    #[error("a secret has 1 to 64 hosts")]
    Hosts,
    /// The value cannot be sent in a header.
    #[error("a secret's value has 1 to 8192 bytes and no control characters: it goes into headers")]
    Value,
}

impl Secret {
    /// Checks and puts together.
    ///
    /// # Errors
    /// [`SecretError`] says which rule is broken.
    pub fn new(
        name: &str,
        hosts: Vec<HostPattern>,
        value: String,
        placeholder: Placeholder,
    ) -> Result<Self, SecretError> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty()
            || name.len() > NAME_MAX_BYTES
            || !name.bytes().all(letter)
            || name.starts_with(|first: char| first.is_ascii_digit())
        {
            return Err(SecretError::Name);
        }
        if hosts.is_empty() || hosts.len() > SECRET_HOSTS_MAX {
            return Err(SecretError::Hosts);
        }
        // What RFC 9110 section 5.5 allows in a field's value, without the tab.
        if value.is_empty()
            || value.len() > SECRET_VALUE_MAX_BYTES
            || value.bytes().any(|byte| byte.is_ascii_control())
        {
            return Err(SecretError::Value);
        }
        Ok(Self {
            name: name.to_owned(),
            hosts,
            value: SecretValue(value),
            placeholder,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, hosts: &[&str], value: &str) -> Result<Secret, SecretError> {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let placeholder = Placeholder::from_random([0xab; 16]);
        Secret::new(name, hosts, value.to_owned(), placeholder)
    }

    #[test]
    fn a_secret_shows_its_placeholder_and_never_its_value() {
        let secret = new("API_KEY", &["a.com"], "hunter2").unwrap();
        let shown = format!("{secret:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("DENO_SECRET_PLACEHOLDER_abab"), "{shown}");
        assert_eq!(secret.value.reveal(), "hunter2");
        let text = secret.placeholder.as_str();
        assert_eq!(Placeholder::parse(text), Some(secret.placeholder.clone()));
        assert_eq!(Placeholder::parse(&text[1..]), None);
        assert_eq!(Placeholder::parse(&text.to_uppercase()), None);
    }

    #[test]
    fn what_cannot_be_one_is_refused() {
        for name in ["", "1A", "A=B", "A B", "A-B", "É"] {
            assert_eq!(new(name, &["a.com"], "x"), Err(SecretError::Name), "{name}");
        }
        assert_eq!(new("A", &[], "x"), Err(SecretError::Hosts));
        for value in ["", "a\nb", "a\0", "a\r", &"x".repeat(8193)] {
            assert_eq!(new("A", &["a.com"], value), Err(SecretError::Value));
        }
    }
}
