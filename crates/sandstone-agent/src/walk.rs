//! Walking through a tree, as the function `walk` of the JavaScript package `@std/fs` does.
//!
//! One difference: that one never comes back from a link that leads to a directory above itself;
//! this one fails with `ELOOP`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use regress::Regex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, statat};
use rustix::io::Errno;
use sandstone_protocol::message::{Failure, FileKind, Pattern, WalkOptions};

use crate::changes::resolve;
use crate::failure::{failure, shown};
use crate::files::{OPEN_FLAGS, file_kind};
use crate::lexical;

/// Entries that are looked at before the caller hears that the walk still goes on.
const STEP_ENTRIES: u32 = 256;

/// Most bytes of all patterns of a walk.
const PATTERNS_MAX_BYTES: usize = 64 << 10;

/// Directories that are open at once, each with its descriptor. Paths end before that unless links
/// shorten them.
const LEVELS_MAX: usize = 4096;

/// What a walk finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// As the walk came to it.
    pub(crate) path: Vec<u8>,
    /// The last part of the path, or the name of the link that led to it.
    pub(crate) name: Vec<u8>,
    /// What it is.
    pub(crate) kind: FileKind,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Step {
    /// Something.
    Found(Found),
    /// Nothing yet.
    Busy,
    /// Nothing any more.
    End,
}

/// Which paths are told and entered.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    extensions: Option<Vec<Vec<u8>>>,
    matches: Option<Vec<Matcher>>,
    skip: Vec<Matcher>,
}

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Matcher {
    regex: Regex,
    /// Only at the begin: the flag `y`.
    sticky: bool,
}

impl Matcher {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// `EINVAL` for one that is none.
    pub(crate) fn new(pattern: &Pattern) -> Result<Self, Failure> {
        let Pattern { source, flags } = pattern;
        if source.len() > PATTERNS_MAX_BYTES {
            return Err(failure(Errno::TOOBIG, "a pattern"));
        }
        match Regex::with_flags(source, flags.as_str()) {
            Ok(regex) => Ok(Self {
                regex,
                sticky: flags.contains('y'),
            }),
            Err(error) => Err(failure(
                Errno::INVAL,
                format_args!("/{}/: {error}", shown(source)),
            )),
        }
    }

    /// Compiles all of them.
    ///
    /// # Errors
    /// `EINVAL` for one that is none, `E2BIG` when they are too long together.
    pub(crate) fn all(patterns: &[Pattern]) -> Result<Vec<Self>, Failure> {
        let bytes: usize = patterns.iter().map(|pattern| pattern.source.len()).sum();
        if bytes > PATTERNS_MAX_BYTES {
            return Err(failure(Errno::TOOBIG, "the patterns"));
        }
        patterns.iter().map(Self::new).collect()
    }

    /// Whether it matches somewhere in `text`.
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self.regex.find(text) {
            Some(found) => !self.sticky || found.start() == 0,
            None => false,
        }
    }
}

impl Filter {
    /// The filter of a walk.
    ///
    /// # Errors
    /// As [`Matcher::all`].
    pub(crate) fn new(options: &WalkOptions) -> Result<Self, Failure> {
        let extensions = options.extensions.as_ref().map(|extensions| {
            let dotted = |extension: &String| match extension.strip_prefix('.') {
                Some(_) => extension.clone().into_bytes(),
                None => format!(".{extension}").into_bytes(),
            };
            extensions.iter().map(dotted).collect()
        });
        let matches = options.matches.as_deref();
        Ok(Self {
            extensions,
            matches: matches.map(Matcher::all).transpose()?,
            skip: Matcher::all(&options.skip)?,
        })
    }

    /// One that only skips.
    pub(crate) fn skipping(skip: Vec<Matcher>) -> Self {
        Self {
            skip,
            ..Self::default()
        }
    }

    /// Whether a path is told.
    fn tells(&self, path: &[u8]) -> bool {
        let ends = |extension: &Vec<u8>| path.ends_with(extension);
        if let Some(extensions) = &self.extensions
            && !extensions.iter().any(ends)
        {
            return false;
        }
        let text = text(path);
        if let Some(matches) = &self.matches
            && !matches.iter().any(|matcher| matcher.matches(&text))
        {
            return false;
        }
        !self.skips(path)
    }

    /// Whether a path is neither told nor entered.
    pub(crate) fn skips(&self, path: &[u8]) -> bool {
        let text = text(path);
        self.skip.iter().any(|matcher| matcher.matches(&text))
    }
}

/// A path for people and patterns.
pub(crate) fn text(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

/// A walk under way.
pub(crate) struct Walk<'a> {
    options: &'a WalkOptions,
    filter: &'a Filter,
    /// Where relative paths begin.
    directory: PathBuf,
    levels: Vec<Level>,
    ready: VecDeque<Found>,
    /// Why it cannot go on, once what is ready has been told.
    failed: Option<Errno>,
}

struct Level {
    path: Vec<u8>,
    directory: Dir,
    /// Device and inode.
    identity: (u64, u64),
    /// Levels that may come below.
    depth: Option<u32>,
    canonicalize: bool,
}

impl<'a> Walk<'a> {
    /// Begins at `root`, relative to `directory`. `options` say what `filter` does not.
    ///
    /// # Errors
    /// The system's about the root.
    pub(crate) fn new(
        root: &[u8],
        directory: PathBuf,
        options: &'a WalkOptions,
        filter: &'a Filter,
    ) -> Result<Self, Errno> {
        let mut walk = Self {
            options,
            filter,
            directory,
            levels: Vec::new(),
            ready: VecDeque::new(),
            failed: None,
        };
        walk.enter(
            root.to_vec(),
            options.max_depth,
            options.canonicalize,
            false,
        );
        match walk.failed {
            Some(errno) => Err(errno),
            None => Ok(walk),
        }
    }

    fn real(&self, path: &[u8]) -> PathBuf {
        self.directory.join(OsStr::from_bytes(path))
    }

    /// Tells a directory, and opens it unless the walk ends here.
    fn enter(&mut self, path: Vec<u8>, depth: Option<u32>, canonicalize: bool, by_link: bool) {
        if let Err(errno) = self.try_enter(path, depth, canonicalize, by_link) {
            self.failed = Some(errno);
        }
    }

    fn try_enter(
        &mut self,
        path: Vec<u8>,
        depth: Option<u32>,
        canonicalize: bool,
        by_link: bool,
    ) -> Result<(), Errno> {
        if self.options.include_directories && self.filter.tells(&path) {
            self.ready.push_back(found(&self.directory, &path)?);
        }
        if depth == Some(0) || self.filter.skips(&path) {
            return Ok(());
        }
        if self.levels.len() >= LEVELS_MAX {
            return Err(Errno::MFILE);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OPEN_FLAGS;
        let fd = rustix::fs::open(self.real(&path), flags, Mode::empty())?;
        let status = fstat(&fd)?;
        let identity = (status.st_dev, status.st_ino);
        if by_link && self.levels.iter().any(|level| level.identity == identity) {
            return Err(Errno::LOOP);
        }
        self.levels.push(Level {
            path,
            directory: Dir::new(fd)?,
            identity,
            depth,
            canonicalize,
        });
        Ok(())
    }

    /// Goes on a little.
    ///
    /// # Errors
    /// The system's; the walk is over then.
    pub(crate) fn step(&mut self) -> Result<Step, Errno> {
        for _ in 0..STEP_ENTRIES {
            if let Some(found) = self.ready.pop_front() {
                return Ok(Step::Found(found));
            }
            if let Some(errno) = self.failed {
                return Err(errno);
            }
            let Some(level) = self.levels.last_mut() else {
                return Ok(Step::End);
            };
            let Some(entry) = level.directory.read() else {
                self.levels.pop();
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let fd = level.directory.fd()?;
                    let status = match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(status) => status,
                        Err(Errno::NOENT) => continue,
                        Err(errno) => return Err(errno),
                    };
                    FileType::from_raw_mode(status.st_mode)
                }
                kind => kind,
            };
            let name = name.to_bytes().to_vec();
            let path = lexical::join(&level.path, &name);
            let depth = level.depth.map(|depth| depth.saturating_sub(1));
            let canonicalize = level.canonicalize;
            if let Some(found) = self.visit(path, name, kind, depth, canonicalize)? {
                return Ok(Step::Found(found));
            }
        }
        Ok(Step::Busy)
    }

    fn visit(
        &mut self,
        path: Vec<u8>,
        name: Vec<u8>,
        kind: FileType,
        depth: Option<u32>,
        canonicalize: bool,
    ) -> Result<Option<Found>, Errno> {
        let tell = |path: Vec<u8>, wanted: bool| {
            (wanted && self.filter.tells(&path)).then(|| Found {
                path,
                name,
                kind: file_kind(kind),
            })
        };
        match kind {
            FileType::Symlink if !self.options.follow_symlinks => {
                Ok(tell(path, self.options.include_symlinks))
            }
            FileType::Symlink => {
                let real = resolve(&self.real(&path))?;
                let status = statat(CWD, &real, AtFlags::SYMLINK_NOFOLLOW)?;
                let path = if canonicalize {
                    real.into_os_string().into_vec()
                } else {
                    path
                };
                if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
                    // Only the links right below the root may keep their own paths.
                    self.enter(path, depth, true, true);
                    Ok(None)
                } else {
                    Ok(tell(path, self.options.include_files))
                }
            }
            FileType::Directory => {
                self.enter(path, depth, true, false);
                Ok(None)
            }
            _ => Ok(tell(path, self.options.include_files)),
        }
    }
}

/// What a path leads to.
///
/// # Errors
/// The system's.
pub(crate) fn found(directory: &std::path::Path, path: &[u8]) -> Result<Found, Errno> {
    let path = lexical::normalize(path);
    let real = directory.join(OsStr::from_bytes(&path));
    let status = statat(CWD, &real, AtFlags::empty())?;
    Ok(Found {
        name: lexical::basename(&path).to_vec(),
        path,
        kind: file_kind(FileType::from_raw_mode(status.st_mode)),
    })
}
