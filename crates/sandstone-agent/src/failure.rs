//! Failures as the host sees them: an error number, and a sentence in the style of Deno.

use std::io;

use rustix::io::Errno;
use sandstone_protocol::message::Failure;

/// Longest part of a path or name that a message repeats, bytes.
const SHOWN_MAX_BYTES: usize = 1024;

/// `text`, cut where it would make a message unreadable.
pub(crate) fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN_MAX_BYTES)]
}

/// The system's sentence for `errno`, as in `No such file or directory (os error 2)`.
pub(crate) fn sentence(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

/// A file operation that failed: `No such file or directory (os error 2): readfile '/x'`.
pub(crate) fn file_failure(errno: Errno, operation: &str, path: &str) -> Failure {
    Failure {
        errno: Some(errno.raw_os_error()),
        message: format!("{}: {operation} '{}'", sentence(errno), shown(path)),
    }
}

/// One with two paths: `No such file or directory (os error 2): rename '/a' -> '/b'`.
pub(crate) fn two_path_failure(errno: Errno, operation: &str, from: &str, to: &str) -> Failure {
    Failure {
        errno: Some(errno.raw_os_error()),
        message: format!(
            "{}: {operation} '{}' -> '{}'",
            sentence(errno),
            shown(from),
            shown(to)
        ),
    }
}

/// Anything else that failed: `<what>: No such process (os error 3)`.
pub(crate) fn failure(errno: Errno, what: impl std::fmt::Display) -> Failure {
    Failure {
        errno: Some(errno.raw_os_error()),
        message: format!("{what}: {}", sentence(errno)),
    }
}

/// The error number of a standard library error; `EIO` where it has none.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_like_denos() {
        let failure = file_failure(Errno::NOENT, "readfile", "/x");
        assert_eq!(
            failure.message,
            "No such file or directory (os error 2): readfile '/x'"
        );
        assert_eq!(failure.errno, Some(2));
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"é".repeat(4000)).len(), 1024);
        assert_eq!(shown(&format!("a{}", "é".repeat(4000))).len(), 1023);
    }
}
