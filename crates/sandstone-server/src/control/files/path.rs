//! Paths of files on a volume, as clients write them.

use std::fmt;

use sandstone_api::ApiError;

use super::super::error::shortened;

/// Longest path, bytes: what the kernel takes, less the NUL byte.
const PATH_MAX_BYTES: usize = 4095;

/// An absolute path without empty, `.` and `..` components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePath(String);

impl FilePath {
    /// Checks and normalises: empty components and `.` are dropped.
    ///
    /// # Errors
    /// 400 naming `path` and what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let refuse = |why| {
            let value = format!("{:?}", shortened(text));
            Err(ApiError::invalid_field("path", value, why))
        };
        if text.len() > PATH_MAX_BYTES {
            return refuse("a path has at most 4095 bytes");
        }
        if text.contains('\0') {
            return refuse("a path has no NUL byte");
        }
        if !text.starts_with('/') {
            return refuse("a path begins with /, the top of the volume");
        }
        let components: Vec<&str> = text
            .split('/')
            .filter(|component| !matches!(*component, "" | "."))
            .collect();
        if components.contains(&"..") {
            return refuse("a path has no .. components");
        }
        Ok(Self(format!("/{}", components.join("/"))))
    }

    /// The same, unless it is the top of the volume.
    ///
    /// # Errors
    /// 400.
    pub(super) fn below_root(self) -> Result<Self, ApiError> {
        match self.0.as_str() {
            "/" => Err(ApiError::invalid_field(
                "path",
                "/",
                "the top of the volume can only be listed",
            )),
            _ => Ok(self),
        }
    }

    /// The path.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised() {
        for (text, path) in [
            ("/", "/"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("//a/./b//", "/a/b"),
            ("/a b/…/..c", "/a b/…/..c"),
        ] {
            assert_eq!(FilePath::parse(text).unwrap().as_str(), path);
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        let long = format!("/{}", "x".repeat(4095));
        for text in ["", "a", "./a", "/..", "/a/../b", "/a\0b", &long] {
            let error = FilePath::parse(text).unwrap_err();
            assert!(error.message.contains("path"), "{error}");
            assert!(error.message.len() < 500);
        }
        assert!(FilePath::parse("/.").unwrap().below_root().is_err());
        assert!(FilePath::parse("/a").unwrap().below_root().is_ok());
    }
}
