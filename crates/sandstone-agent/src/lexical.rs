//! Paths as texts: what the JavaScript package `@std/path` makes of them, without looking at any
//! file. Byte strings, because a name need not be UTF-8.

/// Takes out `.`, `..` and double slashes, and keeps a slash at the end.
pub(crate) fn normalize(path: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return b".".to_vec();
    }
    let is_absolute = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(last) if *last != b".." => {
                    parts.pop();
                }
                _ if is_absolute => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let mut normal = if is_absolute {
        b"/".to_vec()
    } else {
        Vec::new()
    };
    normal.extend(parts.join(&b'/'));
    if normal.is_empty() {
        normal.push(b'.');
    }
    if path.ends_with(b"/") && !normal.ends_with(b"/") {
        normal.push(b'/');
    }
    normal
}

/// `name` below `path`, normal.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = [path, name]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    normalize(&parts.join(&b'/'))
}

/// The last part of a path; `/` for the root.
pub(crate) fn basename(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/');
    let Some(end) = end else {
        return &path[..path.len().min(1)];
    };
    let path = &path[..=end];
    let start = path.iter().rposition(|byte| *byte == b'/');
    &path[start.map_or(0, |slash| slash + 1)..]
}

/// An absolute, normal path without a slash at the end. `directory` is absolute.
pub(crate) fn resolve(directory: &[u8], path: &[u8]) -> Vec<u8> {
    let mut resolved = if path.starts_with(b"/") {
        normalize(path)
    } else {
        join(directory, path)
    };
    if resolved.len() > 1 && resolved.ends_with(b"/") {
        resolved.pop();
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &[u8]) -> &str {
        std::str::from_utf8(path).unwrap()
    }

    #[test]
    fn paths_are_normalized() {
        for (path, normal) in [
            ("", "."),
            (".", "."),
            ("./", "./"),
            ("/", "/"),
            ("//", "/"),
            ("/..", "/"),
            ("a//b/./c/", "a/b/c/"),
            ("a/../..", ".."),
            ("../../a", "../../a"),
            ("/a/../../b", "/b"),
            ("a/..", "."),
        ] {
            assert_eq!(text(&normalize(path.as_bytes())), normal, "{path}");
        }
    }

    #[test]
    fn paths_are_joined_and_cut() {
        assert_eq!(join(b".", b"a"), b"a");
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"/a/", b""), b"/a/");
        assert_eq!(join(b"x/y", b".."), b"x");
        for (path, name) in [
            ("/", "/"),
            ("a", "a"),
            ("/a/b//", "b"),
            ("", ""),
            ("..", ".."),
        ] {
            assert_eq!(text(basename(path.as_bytes())), name, "{path}");
        }
        assert_eq!(resolve(b"/work", b"a/"), b"/work/a");
        assert_eq!(resolve(b"/work", b"/"), b"/");
        assert_eq!(resolve(b"/work", b""), b"/work");
        assert_eq!(resolve(b"/work", b"../../.."), b"/");
    }
}
