//! What is asked about files: changes by path, open files, walks through trees.

use serde::{Deserialize, Serialize};

use super::FileKind;

/// An open file's id, chosen by the host, never reused on a connection.
pub type HandleId = u32;

/// Most bytes that one [`HandleOperation::Read`] or [`HandleOperation::Write`] moves. Large enough
/// that requests cost little beside their bytes, small enough that both sides can hold many.
pub const HANDLE_BYTES_MAX: usize = 512 << 10;

/// Most bytes of one encoded [`WalkEntry`], its length aside: a path has up to 4096, which
/// triple where they are not UTF-8, and a name 255.
pub const WALK_ENTRY_MAX_BYTES: usize = 16 << 10;

/// A change of the tree. Paths are absolute, or relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileChange {
    /// Moves a file or directory, replacing what is there as `rename(2)` does.
    Rename {
        /// From where.
        from: String,
        /// To where.
        to: String,
    },
    /// Copies a regular file's content and permissions over another, or to a new one.
    Copy {
        /// The source.
        from: String,
        /// The copy.
        to: String,
    },
    /// Makes a hard link.
    Link {
        /// The file that is there.
        target: String,
        /// Its new name.
        path: String,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What it says, verbatim.
        target: String,
        /// The link.
        path: String,
    },
    /// Cuts a file off, or extends it with zeros.
    Truncate {
        /// The file.
        path: String,
        /// Its new size in bytes.
        length: u64,
    },
    /// Changes permissions. Follows links.
    SetMode {
        /// The file.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Changes the owner. Follows links.
    SetOwner {
        /// The file.
        path: String,
        /// The new owner; unchanged when absent.
        uid: Option<u32>,
        /// The new group; unchanged when absent.
        gid: Option<u32>,
    },
    /// Changes the times. Follows links.
    SetTimes {
        /// The file.
        path: String,
        /// Last access.
        accessed: FileTime,
        /// Last change of content.
        modified: FileTime,
    },
}

/// A file's time: seconds since the Unix epoch, and nanoseconds below 10^9 after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTime {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// A file or directory with a name that nobody else has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeTemporary {
    /// A directory instead of a file.
    pub directory: bool,
    /// Where; `/tmp` when absent.
    pub parent: Option<String>,
    /// Begin of the name, before eight hexadecimal digits.
    pub prefix: String,
    /// End of the name, after them.
    pub suffix: String,
    /// What the digits are made from. Names need not be secret: nothing existing is opened.
    pub seed: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the options of open(2), any of which may be given"
)]
pub struct OpenOptions {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// For writing at the end only.
    pub append: bool,
    /// Empty it first.
    pub truncate: bool,
    /// Make it when it is missing.
    pub create: bool,
    /// Make it, and fail when it exists.
    pub create_new: bool,
    /// Permission bits of a new file, before the umask; 0666 when absent.
    pub mode: Option<u32>,
}

/// What is done with an open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandleOperation {
    /// Reads from its position. Reply: `Bytes`, no more than asked for, none at the end.
    Read {
        /// At most so many bytes, and [`HANDLE_BYTES_MAX`].
        length: u32,
    },
    /// Writes at its position, or at the end. Reply: `Written`.
    Write {
        /// At most [`HANDLE_BYTES_MAX`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Moves its position. Reply: `Position`.
    Seek {
        /// Bytes from there.
        offset: i64,
        /// From where.
        origin: SeekOrigin,
    },
    /// Describes it. Reply: `Metadata`.
    Stat,
    /// Brings it to disk. Reply: `Done`.
    Sync {
        /// The content, but not times and the like.
        data_only: bool,
    },
    /// Cuts it off or extends it. Reply: `Done`.
    Truncate {
        /// New size in bytes.
        length: u64,
    },
    /// Locks it as `flock(2)` does, waiting as long as it takes. Reply: `Done`; `ECANCELED` when
    /// the handle is closed or unlocked meanwhile.
    Lock {
        /// Against everybody, not only against exclusive locks.
        exclusive: bool,
    },
    /// Gives the lock up, or the wait for it. Reply: `Done`.
    Unlock,
    /// Changes its times. Reply: `Done`.
    SetTimes {
        /// Last access.
        accessed: FileTime,
        /// Last change of content.
        modified: FileTime,
    },
}

/// Where an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekOrigin {
    /// The file's begin.
    Start,
    /// Its position.
    Current,
    /// Its end.
    End,
}

/// An ECMAScript regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    /// Between the slashes.
    pub source: String,
    /// After them.
    pub flags: String,
}

/// What a walk visits and tells, as in the function `walk` of the JavaScript package `@std/fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent options of the same names in the package"
)]
pub struct WalkOptions {
    /// Levels below the root; no limit when absent.
    pub max_depth: Option<u32>,
    /// Tell files.
    pub include_files: bool,
    /// Tell directories, the root among them.
    pub include_directories: bool,
    /// Tell symbolic links that are not followed.
    pub include_symlinks: bool,
    /// Follow symbolic links.
    pub follow_symlinks: bool,
    /// Tell a followed link right below the root by its target's path.
    pub canonicalize: bool,
    /// Tell only paths that end with one of these, if given.
    pub extensions: Option<Vec<String>>,
    /// Tell only paths that one of these matches, if given.
    pub matches: Option<Vec<Pattern>>,
    /// Neither tell nor enter paths that one of these matches.
    pub skip: Vec<Pattern>,
}

impl Default for WalkOptions {
    fn default() -> Self {
        Self {
            max_depth: None,
            include_files: true,
            include_directories: true,
            include_symlinks: true,
            follow_symlinks: false,
            canonicalize: true,
            extensions: None,
            matches: None,
            skip: Vec::new(),
        }
    }
}

/// How a glob is expanded, as in the function `expandGlob` of the JavaScript package `@std/fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent options of the same names in the package"
)]
pub struct GlobOptions {
    /// Where a relative glob begins; the working directory when absent.
    pub root: Option<String>,
    /// Globs whose matches are neither told nor entered.
    pub exclude: Vec<String>,
    /// Tell directories.
    pub include_directories: bool,
    /// Follow symbolic links.
    pub follow_symlinks: bool,
    /// Tell followed links by their target's path.
    pub canonicalize: bool,
    /// `+(a|b)` and the like have a meaning.
    pub extended: bool,
    /// `**` stands for any number of directories.
    pub globstar: bool,
    /// Upper and lower case are the same.
    pub case_insensitive: bool,
}

impl Default for GlobOptions {
    fn default() -> Self {
        Self {
            root: None,
            exclude: Vec::new(),
            include_directories: true,
            follow_symlinks: false,
            canonicalize: true,
            extended: true,
            globstar: true,
            case_insensitive: false,
        }
    }
}

/// What a walk finds. In the stream each comes as its length in four bytes, little-endian, and
/// then its encoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkEntry {
    /// Its path, as the walk came to it. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// The last part of its path, or of the link's that led to it.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
}
