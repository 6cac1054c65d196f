//! Archives, between the server and a file or a pipe.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::http::Method;

use super::Session;
use crate::client::{Failure, Kind};
use crate::output::{Progress, note, size};

/// What is copied at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Writes what the server has at `path` to `file`, which has its name only when all is there; or
/// to standard output.
pub(super) fn export(session: &Session, path: &str, file: &Path) -> anyhow::Result<()> {
    if file == Path::new("-") {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            let failure = Failure::new(Kind::Usage, "an archive is not written to a terminal");
            return Err(failure.with_hint("name a file, or use a pipe").into());
        }
        let mut content = session.client.download(path)?.into_body().into_reader();
        copy(&mut content, &mut out, "exported").context("the archive is incomplete")?;
        return out.flush().context("the archive is incomplete");
    }
    // Before the server begins: a directory that is not there should not cost an export.
    let target = Target::create(file)?;
    let mut content = session.client.download(path)?.into_body().into_reader();
    let bytes = target.fill(&mut content, "exported")?;
    note(&format!("wrote {} ({})", file.display(), size(bytes)));
    Ok(())
}

/// Sends `file` or standard input to `path`; what the server made of it.
pub(super) fn import(session: &Session, path: &str, file: &Path) -> anyhow::Result<Value> {
    send(session, Method::POST, path, file, "imported")
}

/// Sends `file` or standard input.
pub(super) fn send(
    session: &Session,
    method: Method,
    path: &str,
    file: &Path,
    what: &'static str,
) -> anyhow::Result<Value> {
    let (source, length): (Box<dyn Read>, _) = if file == Path::new("-") {
        let input = io::stdin();
        if input.is_terminal() {
            let failure = Failure::new(Kind::Usage, "standard input is a terminal");
            return Err(failure.with_hint("name a file, or use a pipe").into());
        }
        (Box::new(input), None)
    } else {
        let opened = File::open(file).and_then(|open| Ok((open.metadata()?, open)));
        let (metadata, open) = opened.with_context(|| format!("cannot open {}", file.display()))?;
        if metadata.is_dir() {
            bail!("{} is a directory", file.display());
        }
        (Box::new(open), metadata.is_file().then_some(metadata.len()))
    };
    let mut source = Counted {
        source,
        progress: Progress::begin(what, length),
    };
    Ok(session.client.upload(method, path, length, &mut source)?)
}

/// A source whose progress is shown.
struct Counted {
    source: Box<dyn Read>,
    progress: Progress,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.progress.add(read);
        Ok(read)
    }
}

/// Copies all of it; how many bytes that were.
fn copy(from: &mut dyn Read, to: &mut dyn Write, what: &'static str) -> io::Result<u64> {
    let mut progress = Progress::begin(what, None);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let chunk = buffer.get(..read).unwrap_or_default();
        to.write_all(chunk)?;
        bytes += chunk.len() as u64;
        progress.add(read);
    }
}

/// A file that gets its name when it is whole, and goes away otherwise.
struct Target {
    temporary: PathBuf,
    path: PathBuf,
    file: File,
}

impl Target {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let name = path
            .file_name()
            .with_context(|| format!("{shown} names no file"))?;
        if path.is_dir() {
            bail!("{shown} is a directory");
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .with_context(|| format!("cannot write {}", temporary.display()))?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
            file,
        })
    }

    fn fill(mut self, content: &mut dyn Read, what: &'static str) -> anyhow::Result<u64> {
        let shown = self.path.display().to_string();
        let bytes = copy(content, &mut self.file, what)
            .with_context(|| format!("the archive is incomplete, and {shown} was not written"))?;
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .with_context(|| format!("cannot write {shown}"))?;
        Ok(bytes)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After the rename there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some bytes, and then an error.
    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("cut off"));
            }
            let bytes = self.0.min(buffer.len());
            self.0 -= bytes;
            Ok(bytes)
        }
    }

    #[test]
    fn a_file_is_whole_or_as_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar.zst");
        fs::write(&path, "old").unwrap();
        let target = Target::create(&path).unwrap();
        assert!(target.fill(&mut Broken(600_000), "exported").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let target = Target::create(&path).unwrap();
        assert_eq!(target.fill(&mut &b"new!"[..], "exported").unwrap(), 4);
        assert_eq!(fs::read(&path).unwrap(), b"new!");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn targets_that_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Target::create(directory.path()).is_err());
        assert!(Target::create(&directory.path().join("no/where")).is_err());
        assert!(Target::create(Path::new("/")).is_err());
    }
}
