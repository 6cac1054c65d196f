//! What a sandbox may reach, and which values it may use without seeing them.

mod pattern;
mod policy;
mod secret;

pub use pattern::{HostName, HostPattern, PatternError, Target};
pub use policy::{ALLOW_NET_MAX, NetworkPolicy, SECRET_PORT};
pub use secret::{
    Placeholder, SECRET_HOSTS_MAX, SECRET_VALUE_MAX_BYTES, SECRETS_MAX, Secret, SecretError,
    SecretValue,
};
