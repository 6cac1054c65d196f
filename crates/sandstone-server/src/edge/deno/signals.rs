//! Signals by name, numbered as Linux does.

use std::borrow::Cow;

/// First real-time signal as the C library counts them.
const REALTIME_MIN: i32 = 34;
/// Last real-time signal.
const REALTIME_MAX: i32 = 64;

const NAMES: [(&str, i32); 31] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGSTKFLT", 16),
    ("SIGCHLD", 17),
    ("SIGCONT", 18),
    ("SIGSTOP", 19),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
    ("SIGSYS", 31),
];

/// The number of a signal; `None` for one that Linux does not have.
pub(super) fn number(name: &str) -> Option<i32> {
    let name = match name {
        "SIGIOT" => "SIGABRT",
        "SIGPOLL" => "SIGIO",
        "SIGUNUSED" => "SIGSYS",
        other => other,
    };
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// The name of the signal that ended a process.
pub(super) fn name(number: i32) -> Cow<'static, str> {
    if let Some((name, _)) = NAMES.iter().find(|(_, known)| *known == number) {
        Cow::Borrowed(name)
    } else if (REALTIME_MIN..=REALTIME_MAX).contains(&number) {
        Cow::Owned(format!("SIGRTMIN+{}", number - REALTIME_MIN))
    } else {
        Cow::Owned(format!("SIG{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(number("SIGTERM"), Some(15));
        assert_eq!(number("SIGPOLL"), Some(29));
        assert_eq!(number("SIGBREAK"), None);
        assert_eq!(number("TERM"), None);
        assert_eq!(name(9), "SIGKILL");
        assert_eq!(name(36), "SIGRTMIN+2");
        for (text, value) in NAMES {
            assert_eq!(number(text), Some(value));
            assert_eq!(name(value), text);
        }
    }
}
