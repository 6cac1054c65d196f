//! The sandbox's interior: its user, working directory, environment, and the files that the host
//! prepares.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use sandstone_protocol::message::{Configure, ENVIRONMENT_MAX_BYTES, Failure};

use crate::accounts::Account;
use crate::failure::{errno_of, failure, shown};
use crate::host_files;

/// `PATH` of processes when nobody says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where `update-ca-certificates` looks for local authorities.
const LOCAL_AUTHORITY: &str = "/usr/local/share/ca-certificates/sandstone-host.crt";

/// The bundle that programs read.
const AUTHORITY_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Largest bundle that is extended, bytes. Debian's is 0.2 MB.
const BUNDLE_MAX_BYTES: u64 = 16 << 20;

/// What processes and file operations start from.
#[derive(Debug, Clone)]
pub(crate) struct Interior {
    /// Whose processes and files they are.
    pub(crate) account: Account,
    /// Where relative paths begin.
    pub(crate) working_directory: PathBuf,
    /// Variables of every process.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Default for Interior {
    fn default() -> Self {
        let account = Account::root();
        Self {
            environment: default_environment(&account),
            account,
            working_directory: "/".into(),
        }
    }
}

impl Interior {
    /// Prepares the interior as the host describes it. Doing it again changes nothing more.
    ///
    /// # Errors
    /// The first step that failed; earlier ones stay done.
    pub(crate) fn prepare(request: &Configure) -> Result<Self, Failure> {
        let paths: Vec<&str> = request.files.iter().map(|file| &*file.path).collect();
        host_files::settle(&paths)
            .map_err(|error| failure(errno_of(&error), "put back files of an earlier host"))?;
        for file in &request.files {
            replace_file(Path::new(&file.path), file.mode, &file.content)?;
        }
        if !request.hostname.is_empty() {
            name_host(&request.hostname)?;
        }
        let authorities = request.certificate_authorities.as_deref();
        forget_authorities(authorities)
            .map_err(|error| failure(errno_of(&error), format_args!("{AUTHORITY_BUNDLE}")))?;
        if let Some(authorities) = authorities {
            replace_file(Path::new(LOCAL_AUTHORITY), 0o644, authorities.as_bytes())?;
            extend_bundle(Path::new(AUTHORITY_BUNDLE), authorities)
                .map_err(|error| failure(errno_of(&error), format_args!("{AUTHORITY_BUNDLE}")))?;
        }

        let account = Account::find(&request.user);
        let working_directory = Path::new("/").join(&request.working_directory);
        own_directory(&working_directory, &account)?;

        let mut interior = Self {
            environment: default_environment(&account),
            account,
            working_directory,
        };
        for (name, value) in &request.environment {
            interior.set_variable(name, value)?;
        }
        Ok(interior)
    }

    /// Sets a variable for later processes.
    ///
    /// # Errors
    /// `EINVAL` for what cannot be a variable, `E2BIG` when the environment is full.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let refuse = |errno| failure(errno, format_args!("set variable '{}'", shown(name)));
        if !is_variable(name, value) {
            return Err(refuse(Errno::INVAL));
        }
        let others: usize = self
            .environment
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if others + name.len() + value.len() > ENVIRONMENT_MAX_BYTES {
            return Err(refuse(Errno::TOOBIG));
        }
        self.environment.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// An absolute path for `path` as a client means it. An empty one names nothing.
    ///
    /// # Errors
    /// `ENOENT` for an empty path.
    pub(crate) fn absolute(&self, path: &str) -> Result<PathBuf, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        Ok(self.working_directory.join(path))
    }

    /// Where commands are looked up when the process has no `PATH` of its own.
    pub(crate) fn search_path(&self) -> &str {
        self.environment
            .get("PATH")
            .map_or(DEFAULT_PATH, String::as_str)
    }
}

/// Whether the kernel and every shell can tell name and value apart.
pub(crate) fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

fn default_environment(account: &Account) -> BTreeMap<String, String> {
    [
        ("HOME", account.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("PATH", DEFAULT_PATH),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn name_host(hostname: &str) -> Result<(), Failure> {
    match rustix::system::sethostname(hostname.as_bytes()) {
        // Without the privilege the runtime has set it already.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => {
            return Err(failure(
                errno,
                format_args!("host name '{}'", shown(hostname)),
            ));
        }
    }
    let name = format!("{hostname}\n");
    replace_file(Path::new("/etc/hostname"), 0o644, name.as_bytes())?;
    let hosts =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    replace_file(Path::new("/etc/hosts"), 0o644, hosts.as_bytes())
}

/// Puts a file where it belongs, whatever was there (a dangling link, for example), never half
/// written.
fn replace_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), Failure> {
    replace(path, mode, content)
        .map_err(|error| failure(errno_of(&error), format_args!("write {}", path.display())))
}

pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    if !path.is_absolute() {
        return Err(Errno::INVAL.into());
    }
    std::fs::create_dir_all(parent)?;
    let mut fresh_name = std::ffi::OsString::from(".sandstone-");
    fresh_name.push(name);
    let fresh = parent.join(fresh_name);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&fresh, flags, Mode::from_raw_mode(0o600))?);
    let written = file
        .write_all(content)
        .and_then(|()| {
            Ok(rustix::fs::fchmod(
                &file,
                Mode::from_raw_mode(mode & 0o7777),
            )?)
        })
        .and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

/// Takes an earlier host's authorities out of the bundle, unless they are this one's, too.
fn forget_authorities(current: Option<&str>) -> io::Result<()> {
    let earlier = match std::fs::read_to_string(LOCAL_AUTHORITY) {
        Ok(earlier) => earlier,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if current == Some(&earlier) {
        return Ok(());
    }
    match std::fs::read_to_string(AUTHORITY_BUNDLE) {
        Ok(bundle) if !earlier.trim().is_empty() && bundle.contains(earlier.trim()) => {
            let rest = bundle.replace(&format!("{}\n", earlier.trim()), "");
            replace(Path::new(AUTHORITY_BUNDLE), 0o644, rest.as_bytes())?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::fs::remove_file(LOCAL_AUTHORITY)
}

/// Appends to the bundle what it does not contain yet.
fn extend_bundle(path: &Path, authorities: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Not blocking, because an image could have put a pipe here.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
    let status = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    let mut present = Vec::new();
    (&file)
        .take(BUNDLE_MAX_BYTES + 1)
        .read_to_end(&mut present)?;
    if present.len() as u64 > BUNDLE_MAX_BYTES {
        return Err(Errno::FBIG.into());
    }
    let wanted = authorities.trim();
    if wanted.is_empty() || String::from_utf8_lossy(&present).contains(wanted) {
        return Ok(());
    }
    let separator = if present.is_empty() || present.ends_with(b"\n") {
        ""
    } else {
        "\n"
    };
    file.seek(SeekFrom::End(0))?;
    file.write_all(format!("{separator}{wanted}\n").as_bytes())
}

/// Makes sure that the working directory exists; a new one belongs to the user.
fn own_directory(path: &Path, account: &Account) -> Result<(), Failure> {
    let make = || -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(path)?;
        let (uid, gid) = (account.identity.uid, account.identity.gid);
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    };
    make().map_err(|error| {
        failure(
            errno_of(&error),
            format_args!("working directory {}", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_bundle_is_extended_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("certs/bundle.crt");
        extend_bundle(&path, "first\n").unwrap();
        std::fs::write(&path, "image's own, no newline").unwrap();
        for _ in 0..2 {
            extend_bundle(&path, "-----BEGIN-----\nours\n-----END-----\n").unwrap();
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                "image's own, no newline\n-----BEGIN-----\nours\n-----END-----\n"
            );
        }
    }

    #[test]
    fn a_link_is_replaced_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let path = directory.path().join("deep/resolv.conf");
        std::fs::write(&target, "untouched").unwrap();
        std::fs::create_dir(directory.path().join("deep")).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        for content in ["one", "two"] {
            replace(&path, 0o640, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o640
        );
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
        assert!(replace(Path::new("relative"), 0o644, b"").is_err());
        assert!(replace(Path::new("/"), 0o644, b"").is_err());
    }

    #[test]
    fn variables_are_checked_and_bounded() {
        let mut interior = Interior::default();
        interior.set_variable("A", "1").unwrap();
        interior.set_variable("A", "a=b").unwrap();
        assert_eq!(interior.environment["A"], "a=b");
        for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
            let refused = interior.set_variable(name, value).unwrap_err();
            assert_eq!(refused.errno, Some(Errno::INVAL.raw_os_error()));
        }
        let big = "x".repeat(ENVIRONMENT_MAX_BYTES);
        let refused = interior.set_variable("B", &big).unwrap_err();
        assert_eq!(refused.errno, Some(Errno::TOOBIG.raw_os_error()));
    }

    #[test]
    fn paths_start_at_the_working_directory() {
        let interior = Interior {
            working_directory: "/work".into(),
            ..Interior::default()
        };
        assert_eq!(interior.absolute("a/b").unwrap(), Path::new("/work/a/b"));
        assert_eq!(interior.absolute("/x").unwrap(), Path::new("/x"));
        assert_eq!(interior.absolute(""), Err(Errno::NOENT));
    }
}
