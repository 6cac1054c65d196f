//! Expanding globs, as the function `expandGlob` of the JavaScript package `@std/fs` does: segment
//! by segment, sorted and without doubles after each.

use std::collections::HashMap;
use std::path::Path;

use rustix::io::Errno;
use sandstone_protocol::message::{Failure, FileKind, GlobOptions, WalkOptions};

use crate::failure::file_failure;
use crate::glob::{is_glob, to_pattern, unescape};
use crate::lexical;
use crate::walk::{Filter, Found, Matcher, Step, Walk, found, text};

/// Most bytes of what matches so far: it has to be sorted, so it is kept.
const MATCHES_MAX_BYTES: usize = 64 << 20;

/// What a match takes beside its path and name.
const MATCH_OVERHEAD_BYTES: usize = 128;

/// An expansion that can be begun.
pub(crate) struct Expansion<'a> {
    options: &'a GlobOptions,
    directory: &'a Path,
    filter: Filter,
    begin: Option<Found>,
    segments: Vec<Segment>,
    only_directories: bool,
}

enum Segment {
    Above,
    Directories,
    Names(Matcher),
}

impl<'a> Expansion<'a> {
    /// Finds the part of the glob that has no meaning. `directory` is the working directory.
    ///
    /// # Errors
    /// The system's about that part, unless it is missing; `EINVAL` for what is no glob.
    pub(crate) fn new(
        glob: &str,
        options: &'a GlobOptions,
        directory: &'a Path,
    ) -> Result<Self, Failure> {
        let named = |errno| file_failure(errno, "expandglob", glob);
        if glob.contains('\0') {
            return Err(named(Errno::INVAL));
        }
        let here = directory.as_os_str().as_encoded_bytes();
        let is_absolute = glob.starts_with('/');
        let root = match &options.root {
            Some(root) if is_absolute => root.clone().into_bytes(),
            Some(root) => lexical::resolve(here, root.as_bytes()),
            None if is_absolute => b"/".to_vec(),
            None => lexical::resolve(here, b""),
        };
        let exclude: Vec<_> = options
            .exclude
            .iter()
            .map(|glob| {
                let path = lexical::resolve(&root, glob.as_bytes());
                to_pattern(&text(&path), options)
            })
            .collect();
        let filter = Filter::skipping(Matcher::all(&exclude)?);

        let mut segments = glob.trim_matches('/').split('/').filter({
            let is_empty = glob.trim_matches('/').is_empty();
            move |segment| is_empty || !segment.is_empty()
        });
        let mut fixed = if is_absolute { b"/".to_vec() } else { root };
        let mut rest = Vec::new();
        for segment in segments.by_ref() {
            if is_glob(segment) {
                rest.push(segment);
                break;
            }
            fixed = lexical::join(&fixed, unescape(segment).as_bytes());
        }
        rest.extend(segments);
        let begin = match found(directory, &fixed) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(named(errno)),
        };
        let segments = rest
            .into_iter()
            .map(|segment| match segment {
                ".." => Ok(Segment::Above),
                "**" => Ok(Segment::Directories),
                names => Matcher::new(&to_pattern(names, options)).map(Segment::Names),
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self {
            options,
            directory,
            filter,
            begin,
            segments,
            only_directories: glob.ends_with('/'),
        })
    }

    /// Finds everything, unless `is_wanted` says that nobody waits for it.
    ///
    /// # Errors
    /// The system's; `EOVERFLOW` for too many matches, `ECANCELED` when nobody waits.
    pub(crate) fn run(&self, is_wanted: &dyn Fn() -> bool) -> Result<Vec<Found>, Errno> {
        let mut matches: Vec<Found> = self.begin.iter().cloned().collect();
        for segment in &self.segments {
            let mut next = Matches::default();
            for one in &matches {
                self.advance(one, segment, &mut next, is_wanted)?;
            }
            matches = next.sorted();
        }
        let is_directory = |found: &Found| found.kind == FileKind::Directory;
        matches.retain(|found| {
            (!self.only_directories || is_directory(found))
                && (self.options.include_directories || !is_directory(found))
        });
        Ok(matches)
    }

    fn advance(
        &self,
        from: &Found,
        segment: &Segment,
        next: &mut Matches,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(), Errno> {
        if from.kind != FileKind::Directory {
            return Ok(());
        }
        let is_deep = match segment {
            Segment::Above => {
                let above = lexical::join(&from.path, b"..");
                if !self.filter.skips(&above) {
                    next.add(found(self.directory, &above)?)?;
                }
                return Ok(());
            }
            Segment::Directories => self.options.globstar,
            Segment::Names(_) => false,
        };
        let options = WalkOptions {
            max_depth: (!is_deep).then_some(1),
            follow_symlinks: self.options.follow_symlinks,
            canonicalize: match segment {
                Segment::Directories => self.options.canonicalize,
                _ => true,
            },
            ..WalkOptions::default()
        };
        let directory = self.directory.to_path_buf();
        let mut walk = Walk::new(&from.path, directory, &options, &self.filter)?;
        loop {
            if !is_wanted() {
                return Err(Errno::CANCELED);
            }
            match walk.step()? {
                Step::Found(found) => {
                    let is_match = match segment {
                        Segment::Names(names) => {
                            found.path != from.path && names.matches(&text(&found.name))
                        }
                        _ => true,
                    };
                    if is_match {
                        next.add(found)?;
                    }
                }
                Step::Busy => {}
                Step::End => return Ok(()),
            }
        }
    }
}

#[derive(Default)]
struct Matches {
    by_path: HashMap<Vec<u8>, Found>,
    bytes: usize,
}

impl Matches {
    fn add(&mut self, found: Found) -> Result<(), Errno> {
        self.bytes += 2 * found.path.len() + found.name.len() + MATCH_OVERHEAD_BYTES;
        if self.bytes > MATCHES_MAX_BYTES {
            return Err(Errno::OVERFLOW);
        }
        self.by_path.insert(found.path.clone(), found);
        Ok(())
    }

    /// As JavaScript sorts texts: by their UTF-16 units.
    fn sorted(self) -> Vec<Found> {
        let mut all: Vec<Found> = self.by_path.into_values().collect();
        all.sort_by(|a, b| {
            let (a, b) = (text(&a.path), text(&b.path));
            a.encode_utf16().cmp(b.encode_utf16())
        });
        all
    }
}
