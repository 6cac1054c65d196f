//! Signals by the names that SSH uses for them (RFC 4254, section 6.10).

use russh::Sig;

/// The RFC's thirteen names with Linux's numbers (signal(7)).
const NAMES: [(&str, i32); 13] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("KILL", 9),
    ("PIPE", 13),
    ("QUIT", 3),
    ("SEGV", 11),
    ("TERM", 15),
    ("USR1", 10),
    ("USR2", 12),
];

/// The number of a signal that a client sends, if it has one.
pub(super) fn number(signal: &Sig) -> Option<i32> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    };
    NAMES
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| number)
}

/// How a client is told which signal ended a process. The RFC leaves room for names of one's own
/// with an `@`.
pub(super) fn named(number: i32) -> Sig {
    match number {
        6 => Sig::ABRT,
        14 => Sig::ALRM,
        8 => Sig::FPE,
        1 => Sig::HUP,
        4 => Sig::ILL,
        2 => Sig::INT,
        9 => Sig::KILL,
        13 => Sig::PIPE,
        3 => Sig::QUIT,
        11 => Sig::SEGV,
        15 => Sig::TERM,
        10 => Sig::USR1,
        12 => Sig::Custom("USR2".to_owned()),
        other => Sig::Custom(format!("{other}@sandstone")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_fit_together() {
        for (name, expected) in NAMES {
            assert_eq!(number(&named(expected)), Some(expected), "{name}");
            assert_eq!(number(&Sig::Custom(name.to_owned())), Some(expected));
        }
        assert_eq!(number(&Sig::Custom("WINCH".to_owned())), None);
        assert_eq!(number(&Sig::Custom(String::new())), None);
        assert_eq!(number(&named(31)), None);
    }
}
