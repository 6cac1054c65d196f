//! Where a volume may be mounted inside a sandbox.

use std::fmt;

use sandstone_api::ApiError;

/// Longest mount path, well below the kernel's `PATH_MAX` of 4096.
const MOUNT_PATH_MAX_BYTES: usize = 1024;

/// Directories that the system lives in: nothing may be mounted on or below them.
const SYSTEM_TREES: [&str; 13] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run",
    "/sbin", "/sys", "/usr",
];

/// Directories that must keep their own content; mounting below them is fine.
const SYSTEM_ROOTS: [&str; 5] = ["/", "/home", "/root", "/tmp", "/var"];

/// A checked mount path: absolute, normal, and not in the system's way.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountPath(String);

/// Why a text is not a mount path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MountPathError {
    /// Not absolute.
    #[error("a mount path starts with /")]
    Relative,
    /// `..` or `.` as a component.
    #[error("a mount path has no . or .. components")]
    Dots,
    /// Longer than the limit, or with a NUL byte.
    #[error("a mount path has at most 1024 bytes and no NUL byte")]
    Malformed,
    /// The root directory.
    #[error("use `root` to choose the root file system")]
    Root,
    /// A system directory, or below one.
    #[error("this is a directory of the system")]
    System,
}

impl MountPath {
    /// Checks and normalises: repeated and trailing slashes are dropped.
    ///
    /// # Errors
    /// [`MountPathError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, MountPathError> {
        if text.len() > MOUNT_PATH_MAX_BYTES || text.contains('\0') {
            return Err(MountPathError::Malformed);
        }
        if !text.starts_with('/') {
            return Err(MountPathError::Relative);
        }
        let components: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        if components.iter().any(|part| matches!(*part, "." | "..")) {
            return Err(MountPathError::Dots);
        }
        if components.is_empty() {
            return Err(MountPathError::Root);
        }
        let path = format!("/{}", components.join("/"));
        let is_on_or_below = |tree: &str| {
            path.strip_prefix(tree)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if SYSTEM_ROOTS.contains(&path.as_str()) || SYSTEM_TREES.into_iter().any(is_on_or_below) {
            return Err(MountPathError::System);
        }
        Ok(Self(path))
    }

    /// The path, absolute and normal.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses the mount paths of one sandbox and sorts them so that a parent is mounted before what
/// lies below it.
///
/// # Errors
/// 400 naming the path, when one is bad or given twice.
pub fn check_mounts<T>(mounts: Vec<(String, T)>) -> Result<Vec<(MountPath, T)>, ApiError> {
    let mut checked = Vec::with_capacity(mounts.len());
    for (text, value) in mounts {
        let path = MountPath::parse(&text).map_err(|why| {
            ApiError::invalid_field("volumes", format_args!("mounted at {text:?}"), why)
        })?;
        checked.push((path, value));
    }
    checked.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(pair) = checked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid_field(
            "volumes",
            format_args!("mounted twice at {}", pair[0].0),
            "each mount path takes one volume",
        ));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths() {
        for (text, path) in [
            ("/data/dataset", "/data/dataset"),
            ("//data//x/", "/data/x"),
            ("/home/app/work", "/home/app/work"),
            ("/var/lib/postgresql", "/var/lib/postgresql"),
            ("/usrlocal", "/usrlocal"),
            ("/mnt", "/mnt"),
        ] {
            assert_eq!(MountPath::parse(text).unwrap().as_str(), path);
        }
    }

    #[test]
    fn refused_paths() {
        for (text, why) in [
            ("", MountPathError::Relative),
            ("data", MountPathError::Relative),
            ("/", MountPathError::Root),
            ("//", MountPathError::Root),
            ("/data/../etc", MountPathError::Dots),
            ("/./data", MountPathError::Dots),
            ("/etc", MountPathError::System),
            ("/proc/1", MountPathError::System),
            ("/usr/local/share", MountPathError::System),
            ("/home", MountPathError::System),
            ("/a\0b", MountPathError::Malformed),
        ] {
            assert_eq!(MountPath::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn mounts_are_sorted_and_distinct() {
        let sorted =
            check_mounts(vec![("/b/c".into(), 1), ("/a".into(), 2), ("/b".into(), 3)]).unwrap();
        let paths: Vec<_> = sorted.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/a", "/b", "/b/c"]);
        assert!(check_mounts(vec![("/a".into(), 1), ("/a/".into(), 2)]).is_err());
    }
}
