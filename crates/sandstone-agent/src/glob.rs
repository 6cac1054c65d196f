//! Globs, with the meaning that the JavaScript package `@std/path` gives them: a glob becomes a
//! regular expression.

use sandstone_protocol::message::{GlobOptions, Pattern};

/// Any characters of one name.
const WILDCARD: &str = "[^/]*";

/// Any number of whole directories.
const DIRECTORIES: &str = "(?:[^/]*(?:/|$)+)*";

/// Characters that mean something in a regular expression outside of brackets.
const SPECIAL: &str = "!$()*+.=?[\\^{|";

/// Characters that mean something inside of brackets.
const SPECIAL_IN_RANGE: &str = "-\\]";

/// Characters that a backslash takes the meaning of a glob from.
const META: &str = "*?{}[]()|+@!";

/// The regular expression for a glob.
pub(crate) fn to_pattern(glob: &str, options: &GlobOptions) -> Pattern {
    let flags = if options.case_insensitive { "i" } else { "" };
    let source = if glob.is_empty() {
        "(?!)".to_owned()
    } else {
        let trimmed = glob.trim_end_matches('/');
        // The root itself keeps its slash.
        let glob = if trimmed.is_empty() { "/" } else { trimmed };
        format!("^{}$", expression(glob, options))
    };
    Pattern {
        source,
        flags: flags.to_owned(),
    }
}

fn expression(glob: &str, options: &GlobOptions) -> String {
    let characters: Vec<char> = glob.chars().collect();
    let mut expression = String::new();
    let mut start = 0;
    while start < characters.len() {
        let segment = Segment::read(&characters, start, options);
        expression.push_str(&segment.expression);
        if !segment.ends_with_slash {
            let is_last = segment.end == characters.len();
            expression.push_str(if is_last { "/*" } else { "/+" });
        }
        start = segment.end;
        while characters.get(start) == Some(&'/') {
            start += 1;
        }
    }
    expression
}

/// What stands between slashes, groups kept whole.
struct Segment {
    expression: String,
    /// The position after it.
    end: usize,
    /// The expression matches the slash after it, too.
    ends_with_slash: bool,
}

/// A group that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Braces,
    /// `+(…)` and so on, by its first character.
    Extended(char),
}

impl Segment {
    fn read(glob: &[char], start: usize, options: &GlobOptions) -> Self {
        let at = |position: usize| glob.get(position).copied();
        let mut text = String::new();
        let mut groups: Vec<Group> = Vec::new();
        let (mut in_range, mut in_escape, mut ends_with_slash) = (false, false, false);
        let mut position = start;
        while let Some(character) = at(position) {
            if character == '/' && groups.is_empty() {
                break;
            }
            let next = at(position + 1);
            let is_in_group = matches!(groups.last(), Some(Group::Extended(_)));
            let opens = options.extended && next == Some('(');
            match character {
                _ if in_escape => {
                    in_escape = false;
                    let special = if in_range { SPECIAL_IN_RANGE } else { SPECIAL };
                    push_escaped(&mut text, character, special);
                }
                '\\' => in_escape = true,
                '[' if !in_range => {
                    in_range = true;
                    text.push('[');
                    if next == Some('!') {
                        text.push('^');
                        position += 1;
                    } else if next == Some('^') {
                        text.push_str("\\^");
                        position += 1;
                    }
                }
                '[' if next == Some(':') => match class_at(glob, position + 2) {
                    Some((class, end)) => {
                        text.push_str(class);
                        position = end;
                    }
                    None => text.push('['),
                },
                ']' if in_range => {
                    in_range = false;
                    text.push(']');
                }
                _ if in_range => text.push(character),
                ')' if is_in_group => {
                    text.push(')');
                    match groups.pop() {
                        Some(Group::Extended('!')) => text.push_str(WILDCARD),
                        Some(Group::Extended('@')) | None => {}
                        Some(Group::Extended(quantifier)) => text.push(quantifier),
                        Some(Group::Braces) => {}
                    }
                }
                '|' if is_in_group => text.push('|'),
                '+' | '@' | '?' | '!' | '*' if opens => {
                    groups.push(Group::Extended(character));
                    text.push_str(if character == '!' { "(?!" } else { "(?:" });
                    position += 1;
                }
                '?' => text.push('.'),
                '{' => {
                    groups.push(Group::Braces);
                    text.push_str("(?:");
                }
                '}' if groups.last() == Some(&Group::Braces) => {
                    groups.pop();
                    text.push(')');
                }
                ',' if groups.last() == Some(&Group::Braces) => text.push('|'),
                '*' => {
                    let before = position.checked_sub(1).and_then(at);
                    let first = position;
                    while at(position + 1) == Some('*') {
                        position += 1;
                    }
                    let is_edge = |character: Option<char>| matches!(character, None | Some('/'));
                    let is_pair = position - first == 1;
                    if options.globstar && is_pair && is_edge(before) && is_edge(at(position + 1)) {
                        text.push_str(DIRECTORIES);
                        ends_with_slash = true;
                    } else {
                        text.push_str(WILDCARD);
                    }
                }
                _ => push_escaped(&mut text, character, SPECIAL),
            }
            position += 1;
        }
        if !groups.is_empty() || in_range || in_escape {
            // What does not add up stands for itself.
            text.clear();
            ends_with_slash = false;
            for character in &glob[start..position] {
                push_escaped(&mut text, *character, SPECIAL);
            }
        }
        Self {
            expression: text,
            end: position,
            ends_with_slash,
        }
    }
}

fn push_escaped(text: &mut String, character: char, special: &str) {
    if special.contains(character) {
        text.push('\\');
    }
    text.push(character);
}

/// The class whose name begins at `start`, after `[:`, and the position of its last bracket.
/// Unknown names stand for nothing.
fn class_at(glob: &[char], start: usize) -> Option<(&'static str, usize)> {
    let length = glob.get(start..)?.iter().position(|it| *it == ':')?;
    let end = start + length;
    if glob.get(end + 1) != Some(&']') {
        return None;
    }
    let name: String = glob[start..end].iter().collect();
    let class = match name.as_str() {
        "alnum" => "\\dA-Za-z",
        "alpha" => "A-Za-z",
        "ascii" => "\\x00-\\x7F",
        "blank" => "\\t ",
        "cntrl" => "\\x00-\\x1F\\x7F",
        "digit" => "\\d",
        "graph" => "\\x21-\\x7E",
        "lower" => "a-z",
        "print" => "\\x20-\\x7E",
        "punct" => "!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_\u{2018}{|}~",
        "space" => "\\s",
        "upper" => "A-Z",
        "word" => "\\w",
        "xdigit" => "\\dA-Fa-f",
        _ => "",
    };
    Some((class, end + 1))
}

/// Whether a segment has a meaning as a glob, or only names something.
pub(crate) fn is_glob(segment: &str) -> bool {
    let mut rest = segment;
    let mut is_start = true;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let is_meta = match first {
            '\\' => {
                let Some(escaped) = after.chars().next() else {
                    return false;
                };
                rest = &after[escaped.len_utf8()..];
                // What a bracket without meaning opens has none either.
                let closer = match escaped {
                    '{' => Some('}'),
                    '(' => Some(')'),
                    '[' => Some(']'),
                    _ => None,
                };
                if let Some(end) = closer.and_then(|closer| rest.find(closer)) {
                    rest = &rest[end + 1..];
                }
                is_start = true;
                continue;
            }
            '*' | '?' => true,
            '!' => is_start,
            '[' => is_enclosed(after, &['[', '\\', ']'], ']'),
            '{' => is_enclosed(after, &['{', '\\', '}'], '}'),
            '(' => is_alternative(after),
            '@' => after
                .strip_prefix('(')
                .is_some_and(|inside| is_enclosed(inside, &[')'], ')')),
            _ => false,
        };
        if is_meta {
            return true;
        }
        rest = after;
        is_start = false;
    }
    false
}

/// Whether `inside` begins with at least one character that is none of `forbidden`, and then
/// `closer`.
fn is_enclosed(inside: &str, forbidden: &[char], closer: char) -> bool {
    inside
        .find(forbidden)
        .is_some_and(|end| end > 0 && inside[end..].starts_with(closer))
}

/// Whether `inside` goes on as `a|b)`.
fn is_alternative(inside: &str) -> bool {
    let Some(bar) = inside.find(['(', '|']) else {
        return false;
    };
    bar > 0 && inside[bar..].starts_with('|') && is_enclosed(&inside[bar + 1..], &['\\', ')'], ')')
}

/// A segment without the backslashes that only kept characters from having a meaning.
pub(crate) fn unescape(segment: &str) -> String {
    let mut plain = String::with_capacity(segment.len());
    let mut characters = segment.chars().peekable();
    while let Some(character) = characters.next() {
        match characters.peek() {
            Some(next) if character == '\\' && META.contains(*next) => {
                plain.push(*next);
                characters.next();
            }
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use regress::Regex;

    fn matches(glob: &str, path: &str, options: &GlobOptions) -> bool {
        let Pattern { source, flags } = to_pattern(glob, options);
        let regex = Regex::with_flags(&source, flags.as_str()).unwrap();
        regex.find(path).is_some()
    }

    #[test]
    fn globs_match() {
        let options = GlobOptions::default();
        for (glob, yes, no) in [
            (
                "*.rs",
                &["a.rs", ".rs", "a.b.rs"][..],
                &["a.rsx", "d/a.rs"][..],
            ),
            ("a?c", &["abc", "a.c"], &["ac", "abbc"]),
            ("[ab].x", &["a.x", "b.x"], &["c.x", "ab.x"]),
            ("[!a-c]", &["d", "-"], &["a", "b"]),
            ("[[:digit:]_]", &["5", "_"], &["x"]),
            (
                "{one,two}.x",
                &["one.x", "two.x"],
                &["three.x", "{one,two}.x"],
            ),
            ("+(ab|c)", &["ab", "abc", "cc"], &["", "abd"]),
            ("?(a)b", &["ab", "b"], &["aab"]),
            ("*(a)b", &["aab", "b"], &["cb"]),
            ("@(a|b)", &["a", "b"], &["ab"]),
            ("!(a)", &["b"], &["a", "ab"]),
            (
                "/top/**/x",
                &["/top/x", "/top/a/x", "/top/a/b/x"],
                &["/top/ax"],
            ),
            ("/top/**", &["/top/", "/top/a/b"], &["/to/a"]),
            ("a/b/", &["a/b", "a//b/"], &["a/bc"]),
            ("\\*", &["*"], &["a"]),
            ("(a", &["(a"], &["a"]),
            ("[a", &["[a"], &["a"]),
            ("a.b", &["a.b"], &["axb"]),
            ("a**b", &["axyb"], &["a/b"]),
        ] {
            for path in yes {
                assert!(matches(glob, path, &options), "{glob} {path}");
            }
            for path in no {
                assert!(!matches(glob, path, &options), "{glob} {path}");
            }
        }
        assert!(!matches("", "", &options));
        let options = GlobOptions {
            extended: false,
            globstar: false,
            case_insensitive: true,
            ..options
        };
        assert!(matches("A.RS", "a.rs", &options));
        assert!(!matches("a/**/b", "a/x/y/b", &options));
        assert!(matches("+(a)", "+(a)", &options));
    }

    #[test]
    fn globs_are_told_from_names() {
        for glob in [
            "*", "a?", "!a", "[a]", "{a,b}", "(a|b)", "+(a|b)", "@(a)", "x**",
        ] {
            assert!(is_glob(glob), "{glob}");
        }
        for name in [
            "", "a", "a!", "[]", "{}", "(a)", "+(a)", "\\*", "\\{a}", "a.b", "\\[a]",
        ] {
            assert!(!is_glob(name), "{name}");
        }
        assert_eq!(unescape("a\\*\\b\\[c\\]"), "a*\\b[c]");
    }

    #[test]
    fn no_glob_makes_an_expression_that_does_not_parse() {
        for glob in [
            "[z-a",
            "\\",
            "a\\",
            "{",
            "((((",
            "[[:none:]",
            "!(",
            "[[:alpha:]]",
            "[[:punct:][:space:]]",
        ] {
            let Pattern { source, flags } = to_pattern(glob, &GlobOptions::default());
            assert!(
                Regex::with_flags(&source, flags.as_str()).is_ok(),
                "{glob}: {source}"
            );
        }
    }
}
