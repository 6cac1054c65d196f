//! Errors as the SDKs rebuild them: a class name, a message and a code, in `result.error`.

use sandstone_node_api::AgentError;
use sandstone_protocol::message::Failure;
use serde_json::{Value, json};

use super::params::Issue;

/// Longest message of an error. It may repeat a name that the client has sent.
const MESSAGE_MAX_BYTES: usize = 4096;

/// Why a call has no value.
#[derive(Debug)]
pub(super) enum CallError {
    /// The sandbox or the server says no.
    Remote(RemoteError),
    /// A program inside the sandbox threw something.
    Thrown(Box<Thrown>),
    /// The parameters are not what the method takes.
    InvalidParams(Vec<Issue>),
    /// There is no such method.
    UnknownMethod,
}

/// An error object. Users of the SDKs tell errors apart by `code`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteError {
    /// The class that the SDK makes, where it knows it.
    pub(super) class: &'static str,
    /// What happened.
    pub(super) message: String,
    /// The system's name of the error.
    pub(super) code: Option<&'static str>,
    /// `error.name`, for a `DOMException`.
    pub(super) name: Option<&'static str>,
}

/// An error that JavaScript code inside the sandbox threw. Nothing about it is to be trusted but its
/// size.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Thrown {
    /// The class that the SDK makes, where it knows it.
    pub(super) constructor_name: String,
    /// What happened.
    pub(super) message: String,
    /// `error.name`.
    pub(super) name: Option<String>,
    /// `error.stack`.
    pub(super) stack: Option<String>,
    /// `error.code`.
    pub(super) code: Option<String>,
}

impl Thrown {
    /// The object on the wire.
    pub(super) fn to_value(&self) -> Value {
        json!({
            "constructorName": self.constructor_name,
            "message": self.message,
            "code": self.code,
            "name": self.name,
            "stack": self.stack,
        })
    }
}

impl From<RemoteError> for CallError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

impl RemoteError {
    /// An error without a code.
    pub(super) fn new(class: &'static str, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            code: None,
            name: None,
        }
    }

    /// The same with a code.
    pub(super) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The process has exited or never was (trap 17): both SDKs know this one by class and code.
    pub(super) fn process_gone() -> Self {
        Self::new("TypeError", "the process has already exited").with_code("ENOENT")
    }

    /// The client aborted the call.
    pub(super) fn aborted() -> Self {
        Self {
            class: "DOMException",
            message: "The signal has been aborted".to_owned(),
            code: None,
            name: Some("AbortError"),
        }
    }

    /// The connection to the sandbox ends; `why` says so.
    pub(super) fn connection_closing(why: &str) -> Self {
        Self::new("ConnectionAborted", why).with_code("ECONNABORTED")
    }

    /// The answer does not fit into a message to this client (trap 7).
    pub(super) fn too_long(limit_bytes: usize) -> Self {
        Self::new(
            "RangeError",
            format!(
                "the answer is longer than the {limit_bytes} bytes that fit into one message to \
                 this client; read in smaller parts, for example with `head -c` or `split`"
            ),
        )
        .with_code("EMSGSIZE")
    }

    /// What an agent answered to `operation`, for example `readfile '/x'`.
    pub(super) fn from_agent(error: AgentError, operation: &str) -> Self {
        match error {
            AgentError::Refused(failure) => Self::from_failure(&failure, operation),
            AgentError::Lost(_) => {
                Self::connection_closing("the connection to the sandbox is lost")
            }
        }
    }

    /// A failure inside the sandbox, worded as Deno words it.
    pub(super) fn from_failure(failure: &Failure, operation: &str) -> Self {
        let Some(errno) = failure.errno else {
            return Self::new("Error", format!("{}: {operation}", failure.message));
        };
        let (class, code) = class_and_code(errno);
        let text = std::io::Error::from_raw_os_error(errno);
        Self {
            class,
            message: format!("{text}: {operation}"),
            code,
            name: None,
        }
    }

    /// The object on the wire.
    pub(super) fn to_value(&self) -> Value {
        let message = match self.message.len() {
            0..=MESSAGE_MAX_BYTES => self.message.clone(),
            _ => {
                let end = self.message.floor_char_boundary(MESSAGE_MAX_BYTES);
                format!("{}…", &self.message[..end])
            }
        };
        json!({
            "constructorName": self.class,
            "message": message,
            "code": self.code,
            "name": self.name,
            "stack": null,
        })
    }
}

/// The Deno class and the symbolic name of a Linux error number.
fn class_and_code(errno: i32) -> (&'static str, Option<&'static str>) {
    let (class, code) = match errno {
        1 => ("PermissionDenied", "EPERM"),
        2 => ("NotFound", "ENOENT"),
        3 => ("NotFound", "ESRCH"),
        4 => ("Interrupted", "EINTR"),
        5 => ("Error", "EIO"),
        6 => ("Error", "ENXIO"),
        7 => ("Error", "E2BIG"),
        8 => ("Error", "ENOEXEC"),
        9 => ("BadResource", "EBADF"),
        11 => ("WouldBlock", "EAGAIN"),
        12 => ("Error", "ENOMEM"),
        13 => ("PermissionDenied", "EACCES"),
        16 => ("Busy", "EBUSY"),
        17 => ("AlreadyExists", "EEXIST"),
        18 => ("Error", "EXDEV"),
        19 => ("Error", "ENODEV"),
        20 => ("NotADirectory", "ENOTDIR"),
        21 => ("IsADirectory", "EISDIR"),
        22 => ("Error", "EINVAL"),
        23 => ("Error", "ENFILE"),
        24 => ("Error", "EMFILE"),
        25 => ("Error", "ENOTTY"),
        26 => ("Busy", "ETXTBSY"),
        27 => ("Error", "EFBIG"),
        28 => ("Error", "ENOSPC"),
        29 => ("Error", "ESPIPE"),
        30 => ("Error", "EROFS"),
        31 => ("Error", "EMLINK"),
        32 => ("BrokenPipe", "EPIPE"),
        36 => ("Error", "ENAMETOOLONG"),
        34 => ("Error", "ERANGE"),
        35 => ("Error", "EDEADLK"),
        37 => ("Error", "ENOLCK"),
        38 => ("NotSupported", "ENOSYS"),
        39 => ("Error", "ENOTEMPTY"),
        40 => ("FilesystemLoop", "ELOOP"),
        61 => ("Error", "ENODATA"),
        75 => ("Error", "EOVERFLOW"),
        84 => ("InvalidData", "EILSEQ"),
        95 => ("NotSupported", "ENOTSUP"),
        98 => ("AddrInUse", "EADDRINUSE"),
        99 => ("AddrNotAvailable", "EADDRNOTAVAIL"),
        100 => ("Error", "ENETDOWN"),
        101 => ("Error", "ENETUNREACH"),
        103 => ("ConnectionAborted", "ECONNABORTED"),
        104 => ("ConnectionReset", "ECONNRESET"),
        107 => ("NotConnected", "ENOTCONN"),
        110 => ("TimedOut", "ETIMEDOUT"),
        111 => ("ConnectionRefused", "ECONNREFUSED"),
        113 => ("Error", "EHOSTUNREACH"),
        122 => ("Error", "EDQUOT"),
        125 => ("Interrupted", "ECANCELED"),
        _ => return ("Error", None),
    };
    (class, Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: Option<i32>) -> Failure {
        Failure {
            errno,
            message: "cannot open".to_owned(),
        }
    }

    #[test]
    fn errno_becomes_a_deno_error() {
        let error = RemoteError::from_failure(&failure(Some(2)), "readfile '/x'");
        assert_eq!(error.class, "NotFound");
        assert_eq!(error.code, Some("ENOENT"));
        assert_eq!(
            error.message,
            "No such file or directory (os error 2): readfile '/x'"
        );
        let error = RemoteError::from_failure(&failure(None), "stat '/x'");
        assert_eq!(error.message, "cannot open: stat '/x'");
    }

    #[test]
    fn a_long_name_is_not_repeated_in_full() {
        let error = RemoteError::from_failure(&failure(Some(36)), &"ü".repeat(100_000));
        let message = error.to_value()["message"].as_str().unwrap().to_owned();
        assert!(message.len() < 5000);
        assert!(message.starts_with("File name too long"));
    }

    #[test]
    fn trap_17_a_missing_file_is_not_a_missing_process() {
        for errno in 1..200 {
            let error = RemoteError::from_failure(&failure(Some(errno)), "x");
            assert_ne!(error.class, "TypeError");
        }
        let gone = RemoteError::process_gone().to_value();
        assert_eq!(gone["constructorName"], "TypeError");
        assert_eq!(gone["code"], "ENOENT");
    }
}
