//! The image `builtin:debian-13`: built once per machine from Debian's packages and three packages
//! of the npm registry, then kept as a raw ext4 image that every server of the machine shares.
//!
//! ```text
//! the host's package sources ─► mmdebstrap ─► directory ─► mke2fs -d ─► debian-13-<hash>.img
//! npm pack (Deno, Node.js, npm) ──► customize.sh, seal.sh ──┘
//! ```
//!
//! What goes in is said by the files in `recipe/`; the hash in the name covers them, so a changed
//! recipe is a new image beside the old one. No mirror is named: the builder uses the host's own,
//! and the image gets the ordinary list that Debian's `apt` package brings along.

mod build;
pub(crate) mod mirrors;
mod recipe;
mod runner;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(crate) use recipe::recipe_hash;

/// Longest a build may take, including the wait for another server that builds the same image.
pub(crate) const BUILD_MAX: Duration = Duration::from_secs(15 * 60);

/// How often the lock of another builder is tried.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// How often a long step says that it is still running.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the cache or of the build could not be used.
    #[error("building the image: {step} {}: {source}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program is not installed, or could not be started.
    #[error(
        "building the image: {step}: cannot run {program} (Debian package {package}): {source}"
    )]
    Program {
        /// The step that needs it.
        step: &'static str,
        /// The program.
        program: String,
        /// The package that brings it.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The keys that Debian signs its packages with are not on this host.
    #[error(
        "building the image: {} is missing; install the package debian-archive-keyring",
        path.display()
    )]
    Keyring {
        /// Where they should be.
        path: PathBuf,
    },
    /// A program ended with an error.
    #[error("building the image: {step} failed ({status}); its last lines:\n{tail}")]
    Step {
        /// The step.
        step: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        tail: String,
    },
    /// The time for the whole build is over.
    #[error("building the image: {step} did not end within {} s of the whole build", BUILD_MAX.as_secs())]
    TimedOut {
        /// The step that was running.
        step: &'static str,
    },
    /// A package of the npm registry is not the one the recipe names.
    #[error("building the image: {package} has SHA-512 {found}, the recipe says {expected}")]
    Digest {
        /// Name and version.
        package: String,
        /// What the recipe says.
        expected: String,
        /// What was fetched.
        found: String,
    },
}

impl ImageError {
    /// For `map_err`: an I/O error with its step and path.
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            step,
            path: path.to_owned(),
            source,
        }
    }
}

/// The images of this machine, in one directory that all its servers share.
#[derive(Debug, Clone)]
pub struct ImageCache {
    dir: PathBuf,
}

impl ImageCache {
    /// Where images are kept unless configured otherwise.
    pub const DEFAULT_DIR: &'static str = "/var/cache/sandstone/images";

    /// A cache in `dir`, which need not exist yet. Builds need about 2 GB there for a while.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where the image of the current recipe is or will be.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(format!("debian-13-{}.img", recipe_hash()))
    }

    /// The image of the current recipe, if it has been built.
    #[must_use]
    pub fn path_if_built(&self) -> Option<PathBuf> {
        let path = self.path();
        // The name appears by a rename of the complete image, so existing is enough.
        path.is_file().then_some(path)
    }

    /// The image of the current recipe, built now if it is not there. Needs root, and the network
    /// as the host's apt and npm are configured to use it. One builder works per machine; others
    /// wait for it.
    ///
    /// `progress` is told the name of every phase, and at least every ten seconds that a long one
    /// is still running.
    ///
    /// # Errors
    /// [`ImageError`] names the step and holds the end of the failed program's output. At most
    /// 15 minutes pass. Nothing half-made is left under the image's name.
    pub fn build(&self, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, ImageError> {
        if let Some(path) = self.path_if_built() {
            return Ok(path);
        }
        let deadline = Instant::now() + BUILD_MAX;
        std::fs::create_dir_all(&self.dir).map_err(ImageError::io("create", &self.dir))?;
        let _lock = self.lock(deadline, progress)?;
        if let Some(path) = self.path_if_built() {
            return Ok(path);
        }
        build::build(&self.dir, &self.path(), deadline, progress)
    }

    /// Waits for the lock that a builder holds; it is free again when the file is closed.
    fn lock(&self, deadline: Instant, progress: &mut dyn FnMut(&str)) -> Result<File, ImageError> {
        const STEP: &str = "lock";
        let path = self.dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(ImageError::io(STEP, &path))?;
        let mut told: Option<Instant> = None;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(ImageError::io(STEP, &path)(error.into())),
            }
            if Instant::now() >= deadline {
                return Err(ImageError::TimedOut { step: STEP });
            }
            if told.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
                progress("another server of this machine is building the image");
                told = Some(Instant::now());
            }
            thread::sleep(LOCK_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_builder_waits_and_takes_what_the_first_built() {
        let directory = tempfile::tempdir().expect("directory");
        let cache = ImageCache::new(directory.path().join("images"));
        assert_eq!(cache.path_if_built(), None);
        std::fs::create_dir(directory.path().join("images")).expect("cache");
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = cache.lock(deadline, &mut |_| {}).expect("lock");
        let (told, waits) = std::sync::mpsc::channel();
        let second = {
            let cache = cache.clone();
            thread::spawn(move || {
                cache.build(&mut |text| told.send(text.to_owned()).expect("told"))
            })
        };
        let text = waits
            .recv_timeout(Duration::from_secs(30))
            .expect("progress");
        assert!(text.contains("another server"), "{text}");
        std::fs::write(cache.path(), b"image").expect("image");
        drop(first);
        assert_eq!(second.join().expect("thread").expect("built"), cache.path());
        assert_eq!(waits.try_iter().count(), 0, "nothing was built");
    }

    #[test]
    fn a_wait_for_another_builder_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let cache = ImageCache::new(directory.path().to_owned());
        let _first = cache
            .lock(Instant::now() + Duration::from_secs(60), &mut |_| {})
            .expect("lock");
        let second = cache.lock(Instant::now() + Duration::from_millis(300), &mut |_| {});
        assert!(matches!(second, Err(ImageError::TimedOut { step: "lock" })));
    }
}
