//! Why a sandbox could not be made, found or removed.

use std::io;
use std::time::Duration;

/// A failed operation of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings, or the description of a sandbox, cannot work.
    #[error("{0}")]
    Config(String),
    /// The host does not offer what the runtime needs.
    #[error("this host cannot run containers: {0}")]
    Host(String),
    /// The system refused something on the server's side.
    #[error("cannot {step}")]
    Io {
        /// What was tried, with the object's name.
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A step inside the shim or the new sandbox failed.
    #[error("sandbox setup failed: {step}")]
    Setup {
        /// What was tried.
        step: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The shim, or the sandbox it had prepared, ended too early.
    #[error("the sandbox ended while {0}")]
    Ended(&'static str),
    /// Something did not happen in time.
    #[error("{step} took longer than {limit:?}")]
    Timeout {
        /// What was waited for.
        step: String,
        /// How long.
        limit: Duration,
    },
    /// The firewall rules were refused.
    #[error("nft refused the rules: {0}")]
    Firewall(String),
    /// Every slot of the host is taken.
    #[error("all sandbox slots of this host are in use")]
    SlotsExhausted,
    /// A sandbox of that name exists.
    #[error("sandbox {0} already exists")]
    NameInUse(String),
    /// No sandbox of that name exists.
    #[error("there is no sandbox {0}")]
    Unknown(String),
}

impl Error {
    pub(crate) fn io(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            step: step.into(),
            source: source.into(),
        }
    }
}

/// Names the step that an error of the system belongs to.
pub(crate) trait Step<T> {
    /// For the server's side. The name is made only when needed.
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|source| Error::io(step(), source))
    }
}
