//! Reading an archive member by member, as raw bytes.
//!
//! The bytes go on to `tar`, so what is read here and what `tar` reads must be the same. Whatever
//! two readers of the format could understand differently is refused: our own archives have none
//! of it. `tar` runs in a sandbox of its own all the same; nothing here is the only wall.
//!
//! ```text
//! member = extended header?  header  data          each a multiple of 512 bytes
//!          (x, or L and K)
//! ```

use std::io::{self, Read};

use tar::Header;

/// Everything in an archive comes in blocks of so many bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// Largest extended header. A path has at most 4 KiB, and ext4 keeps at most 64 KiB of each of a
/// file's extended attributes.
const EXTENSION_MAX_BYTES: u64 = 1 << 20;

/// Largest member. Far above the largest volume, far below where sizes overflow.
const SIZE_MAX_BYTES: u64 = 1 << 44;

/// Longest part of a name that is repeated to a client.
const NAME_SHOWN_CHARS: usize = 100;

/// What the pax header says of sparse files, in the one form that `tar` writes today. Older forms
/// keep the real size of the data in other places.
const SPARSE_KEYS: [&[u8]; 4] = [
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.realsize",
];

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// It is not what was once written.
    #[error("{0}")]
    Damaged(String),
    /// It holds what is never unpacked.
    #[error("{0}")]
    Refused(String),
    /// It could not be read, or what was read not passed on.
    #[error(transparent)]
    Io(io::Error),
}

/// Streams of ours fail with neither of the two kinds that are said to be damage.
impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends in the middle"),
            // What zstd says of its input.
            io::ErrorKind::Other => Self::damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl ArchiveError {
    pub(super) fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged(why.into())
    }

    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }
}

/// What comes next in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A file, directory or the like. Its data follows.
    Member(Member),
    /// A global header.
    Global(Global),
    /// Two blocks of zeros: the end.
    End,
}

/// A member, without its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its header, and the extended ones before it.
    pub(super) raw: Vec<u8>,
    /// What it is.
    pub(super) kind: Kind,
    /// Every name that the headers give it. The last one counts.
    pub(super) names: Vec<Vec<u8>>,
    /// Every target that the headers give it, if it is a link. The last one counts.
    pub(super) targets: Vec<Vec<u8>>,
    /// Bytes of data that follow, padding included.
    pub(super) data_bytes: u64,
}

/// Kinds of member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Device,
    Directory,
    Fifo,
}

/// A global header with its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Global {
    /// All of it.
    pub(super) raw: Vec<u8>,
    /// What it says.
    records: Vec<Record>,
}

impl Global {
    /// The value of a key, if it is there once.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let mut found = self.records.iter().filter(|(k, _)| k == key.as_bytes());
        let value = found.next().filter(|_| found.next().is_none());
        value.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// Reads up to the next member's data.
///
/// # Errors
/// [`ArchiveError`].
pub(super) fn next(input: &mut impl Read) -> Result<Item, ArchiveError> {
    let mut before = Extensions::default();
    loop {
        let block = read_block(input)?;
        if block == [0; BLOCK_BYTES] {
            return match before.raw.is_empty() && read_block(input)? == [0; BLOCK_BYTES] {
                true => Ok(Item::End),
                false => Err(ArchiveError::damaged("it ends between two headers")),
            };
        }
        let header = checked(&block)?;
        let size = number(&header.as_old().size)
            .filter(|size| *size <= SIZE_MAX_BYTES)
            .ok_or_else(|| ArchiveError::damaged("the size of a member is not a number"))?;
        let is_first = before.raw.is_empty();
        before.raw.extend_from_slice(&block);
        match header.as_old().linkflag[0] {
            b'x' => {
                let data = before.read(input, size)?;
                set_once(&mut before.pax, records(&data)?)?;
            }
            b'L' => {
                let name = until_nul(&before.read(input, size)?);
                set_once(&mut before.long_name, name)?;
            }
            b'K' => {
                let target = until_nul(&before.read(input, size)?);
                set_once(&mut before.long_target, target)?;
            }
            b'g' if is_first => {
                let data = before.read(input, size)?;
                return Ok(Item::Global(Global {
                    records: records(&data)?,
                    raw: before.raw,
                }));
            }
            flag => return before.finish(header, flag, size).map(Item::Member),
        }
    }
}

/// What comes before a member's own header.
#[derive(Default)]
struct Extensions {
    /// All of it, and in the end the header too.
    raw: Vec<u8>,
    pax: Option<Vec<Record>>,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
}

impl Extensions {
    /// Reads the data of an extended header.
    fn read(&mut self, input: &mut impl Read, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_MAX_BYTES {
            return Err(ArchiveError::refused(format!(
                "an extended header has {size} bytes, more than {EXTENSION_MAX_BYTES}"
            )));
        }
        // Fits: it was compared just now.
        let size = size as usize;
        let begin = self.raw.len();
        self.raw
            .resize(begin + size.next_multiple_of(BLOCK_BYTES), 0);
        input.read_exact(&mut self.raw[begin..])?;
        Ok(self.raw[begin..begin + size].to_vec())
    }

    fn finish(self, header: &Header, flag: u8, size: u64) -> Result<Member, ArchiveError> {
        let mut names = vec![header.path_bytes().into_owned()];
        let mut targets = vec![until_nul(&header.as_old().linkname)];
        names.extend(self.long_name);
        targets.extend(self.long_target);
        let mut data_bytes = size;
        let mut is_sparse = false;
        for (key, value) in self.pax.unwrap_or_default() {
            match key.as_slice() {
                b"path" => names.push(value),
                b"linkpath" => targets.push(value),
                b"size" => {
                    data_bytes = decimal(&value)
                        .filter(|size| *size <= SIZE_MAX_BYTES)
                        .ok_or_else(|| {
                            ArchiveError::damaged("the size of a member is not a number")
                        })?
                }
                key if SPARSE_KEYS.contains(&key) => {
                    is_sparse = true;
                    if key == b"GNU.sparse.name" {
                        names.push(value);
                    }
                }
                key if key.starts_with(b"GNU.") => {
                    return Err(ArchiveError::refused(format!(
                        "a member has the header `{}`, which is not supported",
                        shown(key)
                    )));
                }
                _ => {}
            }
        }
        let name = names.last().map(|name| shown(name)).unwrap_or_default();
        let refuse = |why: &str| Err(ArchiveError::refused(format!("`{name}` {why}")));
        let kind = match flag {
            b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return refuse("is of a kind that is not supported"),
        };
        // Some readers take a file whose name ends like this for a directory, and then its data
        // for members; and so with data where none is expected.
        let is_ambiguous = match kind {
            Kind::File => names.iter().any(|name| name.ends_with(b"/")),
            _ => size > 0 || data_bytes > 0 || is_sparse,
        };
        if is_ambiguous {
            return refuse("is a file and something else at once");
        }
        if !matches!(kind, Kind::HardLink | Kind::Symlink) {
            targets.clear();
        }
        if names.iter().chain(&targets).any(|name| name.contains(&0)) {
            return refuse("has a name with a NUL byte");
        }
        Ok(Member {
            raw: self.raw,
            kind,
            names,
            targets,
            data_bytes: data_bytes.next_multiple_of(BLOCK_BYTES as u64),
        })
    }
}

fn set_once<T>(place: &mut Option<T>, value: T) -> Result<(), ArchiveError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ArchiveError::refused(
            "a member has two extended headers of one kind",
        )),
    }
}

fn read_block(input: &mut impl Read) -> Result<[u8; BLOCK_BYTES], ArchiveError> {
    let mut block = [0; BLOCK_BYTES];
    input.read_exact(&mut block)?;
    Ok(block)
}

/// The block as a header, if its checksum matches and it is of a form that has link names,
/// owners by name and long numbers.
fn checked(block: &[u8; BLOCK_BYTES]) -> Result<&Header, ArchiveError> {
    let header = Header::from_byte_slice(block);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let field = &header.as_old().cksum;
    // The field itself counts as blanks.
    let own: u64 = field.iter().map(|byte| u64::from(*byte)).sum();
    let blanks = u64::from(b' ') * field.len() as u64;
    if number(field) != Some(sum - own + blanks) {
        return Err(ArchiveError::damaged(
            "the checksum of a header does not match",
        ));
    }
    if header.as_ustar().is_none() && header.as_gnu().is_none() {
        return Err(ArchiveError::refused("it is of an old format"));
    }
    Ok(header)
}

/// A number in a header's field: octal digits between blanks, or binary with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
        let low = low.try_into().ok().map(u64::from_be_bytes)?;
        return high.iter().all(|byte| *byte == 0).then_some(low);
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '));
    let (digits, after) = text.split_at(end.unwrap_or(text.len()));
    if digits.is_empty() || !after.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// A key and its value.
type Record = (Vec<u8>, Vec<u8>);

/// The records of a pax header: `<length> <key>=<value>\n`, where the length counts all of it.
/// Values may hold any byte.
fn records(mut data: &[u8]) -> Result<Vec<Record>, ArchiveError> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let (record, rest) =
            record(data).ok_or_else(|| ArchiveError::damaged("an extended header is malformed"))?;
        records.push(record);
        data = rest;
    }
    Ok(records)
}

fn record(data: &[u8]) -> Option<(Record, &[u8])> {
    let blank = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank])?).ok()?;
    let (whole, rest) = data.split_at_checked(length)?;
    let pair = whole.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    Some(((key.to_vec(), value.to_vec()), rest))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes[..end.unwrap_or(bytes.len())].to_vec()
}

/// A name out of an archive, for people.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .take(NAME_SHOWN_CHARS)
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
}
