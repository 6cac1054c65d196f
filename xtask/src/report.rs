//! Counting what the test runners report.

/// Tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// The number right before a word, as in `3 passed`.
fn before(line: &str, word: &str) -> Option<u64> {
    let mut last = "";
    for token in line.split_whitespace() {
        if token.trim_end_matches([',', ';', '.']) == word {
            return last.parse().ok();
        }
        last = token;
    }
    None
}

/// Sums the closing lines of `cargo test`, pytest and Deno.
pub(crate) fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines() {
        // cargo: `test result: ok. 3 passed; 0 failed; ...`
        // Deno: `ok | 3 passed | 0 failed (1s)`; pytest: `==== 1 failed, 3 passed in 2.11s ====`
        let is_summary = line.starts_with("test result:")
            || line.starts_with("ok |")
            || line.starts_with("FAILED |")
            || (line.starts_with('=') && line.ends_with('=') && line.contains(" in "));
        if is_summary {
            counts.passed += before(line, "passed").unwrap_or(0);
            counts.failed += before(line, "failed").unwrap_or(0);
            counts.failed += before(line, "errors")
                .or(before(line, "error"))
                .unwrap_or(0);
        }
        // Node: `# pass 3` in TAP, `ℹ pass 3` for people.
        let mut words = line.split_whitespace();
        if matches!(words.next(), Some("#" | "ℹ")) {
            match (words.next(), words.next().and_then(|n| n.parse().ok())) {
                (Some("pass"), Some(number)) => counts.passed += u64::to_owned(&number),
                (Some("fail"), Some(number)) => counts.failed += u64::to_owned(&number),
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_every_runner() {
        for (text, passed, failed) in [
            (
                "test result: ok. 3 passed; 1 failed; 0 ignored; finished in 0.1s",
                3,
                1,
            ),
            ("ok | 12 passed | 0 failed (3s)", 12, 0),
            ("FAILED | 2 passed | 4 failed (3s)", 2, 4),
            ("===== 1 failed, 41 passed in 2.11s =====", 41, 1),
            ("===== 5 passed, 1 error in 2.11s =====", 5, 1),
            ("# tests 4\n# pass 3\n# fail 1", 3, 1),
            ("ℹ pass 7\nℹ fail 0", 7, 0),
            ("the test passed", 0, 0),
        ] {
            assert_eq!(count(text), Counts { passed, failed }, "{text}");
        }
    }
}
