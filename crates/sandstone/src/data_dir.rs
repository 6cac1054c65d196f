//! The data directory: whose it is, and what is written at its first use.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use sandstone_authority::write_whole;
use sandstone_core::Entropy;
use sandstone_server::control::Token;

/// Where the organisation's token is, in the data directory.
const TOKEN_FILE: &str = "admin-token";

/// A data directory that this process alone uses.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Eight hexadecimal digits that tell this directory from others on the host.
    instance: String,
    /// Locked for as long as this value lives.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, making and initialising it if needed.
    pub(crate) fn open(path: &Path, entropy: &dyn Entropy) -> anyhow::Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the data directory {shown}"))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot open {shown}"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))
            .with_context(|| format!("cannot protect {shown}"))?;
        let lock = lock(&path)?;
        let instance = instance(&path, entropy)?;
        Ok(Self {
            path,
            instance,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The organisation's token: read, or made and written at the first start.
    pub(crate) fn admin_token(&self, entropy: &dyn Entropy) -> anyhow::Result<Token> {
        if let Some(token) = Self::read_token(&self.path)? {
            return Ok(token);
        }
        let path = self.path.join(TOKEN_FILE);
        let token = Token::generate(entropy);
        write_new(&path, &format!("{}\n", token.reveal()), 0o600)?;
        tracing::info!(path = %path.display(), "wrote a new organisation token");
        Ok(token)
    }

    /// The token of the data directory at `path`, if there is one. Takes no lock: a server may use
    /// the directory.
    pub(crate) fn read_token(path: &Path) -> anyhow::Result<Option<Token>> {
        let path = path.join(TOKEN_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Token::parse(text.trim())
                .map(Some)
                .with_context(|| format!("{} holds no token (ddo_…)", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(format!("cannot read {}", path.display())),
        }
    }

    /// The content of a file of ours, if it is there.
    pub(crate) fn read(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(format!("cannot read {}", path.display())),
        }
    }

    /// Writes a file of ours, whole or not at all, durably.
    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        write_new(&self.path.join(name), text, mode)
    }

    /// Removes a file of ours, if it is there.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the address that the server listens on, for scripts that asked for any port.
    pub(crate) fn write_listen_address(&self, address: &str) -> anyhow::Result<()> {
        write_new(
            &self.path.join("listen-address"),
            &format!("{address}\n"),
            0o644,
        )
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join("lock");
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .with_context(|| format!("cannot open {}", lock_path.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // The holder's pid is a help for people; the lock itself is what counts.
        let _ = lock.read_to_string(&mut holder);
        bail!(
            "another sandstone server (pid {}) uses the data directory {}; stop it first, or give --data-dir another directory",
            holder.trim(),
            path.display()
        );
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

fn instance(path: &Path, entropy: &dyn Entropy) -> anyhow::Result<String> {
    let file = path.join("instance");
    match fs::read_to_string(&file) {
        Ok(text) => {
            let text = text.trim().to_owned();
            if text.len() != 8
                || !text
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            {
                bail!(
                    "{} is damaged: it should hold eight hexadecimal digits",
                    file.display()
                );
            }
            Ok(text)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = hexadecimal::<4>(entropy);
            write_new(&file, &text, 0o644)?;
            Ok(text)
        }
        Err(error) => Err(error).context(format!("cannot read {}", file.display())),
    }
}

fn hexadecimal<const BYTES: usize>(entropy: &dyn Entropy) -> String {
    let mut bytes = [0; BYTES];
    entropy.fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file whole or not at all, durably.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    write_whole(path, text, mode).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::SystemEntropy;

    #[test]
    fn first_use_initialises_and_later_use_keeps() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let data = DataDir::open(&path, &SystemEntropy).unwrap();
        let instance = data.instance().to_owned();
        let token = data.admin_token(&SystemEntropy).unwrap();
        assert!(token.reveal().starts_with("ddo_"));
        let mode = fs::metadata(path.join("admin-token"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(data);
        let data = DataDir::open(&path, &SystemEntropy).unwrap();
        assert_eq!(data.instance(), instance);
        assert_eq!(data.admin_token(&SystemEntropy).unwrap(), token);
    }

    #[test]
    fn a_token_is_read_without_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let read = || DataDir::read_token(directory.path());
        assert_eq!(read().unwrap(), None);
        let data = DataDir::open(directory.path(), &SystemEntropy).unwrap();
        let token = data.admin_token(&SystemEntropy).unwrap();
        assert_eq!(read().unwrap(), Some(token));
        fs::write(directory.path().join(TOKEN_FILE), "nonsense").unwrap();
        assert!(read().is_err());
    }

    #[test]
    fn a_second_user_is_refused_and_told_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let _first = DataDir::open(directory.path(), &SystemEntropy).unwrap();
        let error = DataDir::open(directory.path(), &SystemEntropy)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }
}
