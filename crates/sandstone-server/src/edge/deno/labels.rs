//! The text of a Python `dict` of texts: what the Python SDK sends as a label filter.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Parses `{'a': 'b', "c": 'it\'s'}`; `None` when the text is anything else.
pub(super) fn parse_python_dict(text: &str) -> Option<BTreeMap<String, String>> {
    let mut chars = text.trim().chars().peekable();
    let mut dict = BTreeMap::new();
    expect(&mut chars, '{')?;
    loop {
        skip_spaces(&mut chars);
        if chars.peek() == Some(&'}') {
            break;
        }
        let key = string(&mut chars)?;
        skip_spaces(&mut chars);
        expect(&mut chars, ':')?;
        skip_spaces(&mut chars);
        dict.insert(key, string(&mut chars)?);
        skip_spaces(&mut chars);
        match chars.peek() {
            Some(',') => expect(&mut chars, ',')?,
            Some('}') => {}
            _ => return None,
        }
    }
    expect(&mut chars, '}')?;
    chars.next().is_none().then_some(dict)
}

fn skip_spaces(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

fn expect(chars: &mut Peekable<Chars<'_>>, wanted: char) -> Option<()> {
    chars.next_if_eq(&wanted).map(|_| ())
}

fn string(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let quote = chars.next_if(|c| matches!(c, '\'' | '"'))?;
    let mut text = String::new();
    loop {
        match chars.next()? {
            c if c == quote => return Some(text),
            '\\' => text.push(escape(chars)?),
            c => text.push(c),
        }
    }
}

/// The character that an escape stands for; `repr` writes no others.
fn escape(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    let digits = match chars.next()? {
        c @ ('\\' | '\'' | '"') => return Some(c),
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repr_writes() {
        let parsed = parse_python_dict(r#"{'a': 'b', 'it"s': "it's", 'n': 'x\ny\x00\u00e9\\'}"#);
        let expected = BTreeMap::from([
            ("a".to_owned(), "b".to_owned()),
            ("it\"s".to_owned(), "it's".to_owned()),
            ("n".to_owned(), "x\ny\0é\\".to_owned()),
        ]);
        assert_eq!(parsed, Some(expected));
        assert_eq!(parse_python_dict("{}"), Some(BTreeMap::new()));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "{",
            "x",
            "{'a': 1}",
            "{'a' 'b'}",
            "{'a': 'b'",
            "{'a': 'b'} x",
            "{'a': 'b' 'c': 'd'}",
            r"{'a': '\q'}",
            r"{'a': '\ud800'}",
            r"{'a': '\U99999999'}",
        ] {
            assert_eq!(parse_python_dict(text), None, "{text}");
        }
    }
}
