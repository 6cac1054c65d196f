//! The archive around the members: what we add when we pack, and demand when we unpack.
//!
//! ```text
//! zstd frame ┬ global header    SANDSTONE.format, .bootable, .capacity
//!            ├ members          as `tar` inside the sandbox wrote them
//!            ├ global header    SANDSTONE.sha256 of everything above
//!            ├ the first member once more: some readers want a member after each global header
//!            └ two blocks of zeros
//! ```

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use zstd::stream::{read, write};

use super::member::{self, ArchiveError, BLOCK_BYTES, Global, Item, Kind, Member};

/// The format that is written, and the only one that is read.
const FORMAT: &str = "1";

const FORMAT_KEY: &str = "SANDSTONE.format";
const BOOTABLE_KEY: &str = "SANDSTONE.bootable";
const CAPACITY_KEY: &str = "SANDSTONE.capacity";
const CHECKSUM_KEY: &str = "SANDSTONE.sha256";

/// Level 3 is zstd's own default: faster than most disks, and little is won above.
const LEVEL: i32 = 3;

/// Largest window that an archive may need, as a power of two: 8 MiB, which every decoder must
/// support (RFC 8878). Ours need 2 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// Bytes copied at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Most zeros after the end: `tar` fills up to 20 blocks.
const END_MAX_BYTES: u64 = 20 * BLOCK_BYTES as u64;

/// Device nodes that are left out of one archive at most; their hard links must be left out too,
/// so their names are kept. Nobody has more than a few.
const DEVICES_MAX: usize = 10_000;

/// What an archive says about the volume in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Whether the tree is a system that a sandbox can have as its root.
    pub(super) is_bootable: bool,
    /// Capacity of the volume, bytes.
    pub(super) capacity: u64,
}

impl Manifest {
    fn write(&self) -> io::Result<Vec<u8>> {
        let bootable = if self.is_bootable { "1" } else { "0" };
        global(&[
            (FORMAT_KEY, FORMAT),
            (BOOTABLE_KEY, bootable),
            (CAPACITY_KEY, &self.capacity.to_string()),
        ])
    }

    fn read(header: &Global) -> Result<Self, ArchiveError> {
        match header.value(FORMAT_KEY) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(ArchiveError::refused(format!(
                    "it is of format {}, and this server knows format {FORMAT}",
                    member::shown(other.as_bytes())
                )));
            }
            None => return Err(not_ours()),
        }
        let is_bootable = match header.value(BOOTABLE_KEY) {
            Some("0") => Some(false),
            Some("1") => Some(true),
            _ => None,
        };
        let capacity = header
            .value(CAPACITY_KEY)
            .and_then(|text| text.parse().ok());
        is_bootable
            .zip(capacity)
            .map(|(is_bootable, capacity)| Self {
                is_bootable,
                capacity,
            })
            .ok_or_else(|| ArchiveError::damaged("its first header is malformed"))
    }
}

fn not_ours() -> ArchiveError {
    ArchiveError::refused("it was not made by an export")
}

/// A global header with these records.
fn global(records: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let data: String = records
        .iter()
        .map(|(key, value)| record(key, value))
        .collect();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XGlobalHeader);
    header.set_path("pax_global_header")?;
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut raw = header.as_bytes().to_vec();
    raw.extend_from_slice(data.as_bytes());
    raw.resize(raw.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(raw)
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    // The length counts its own digits.
    let mut length = rest.len();
    loop {
        let total = length.to_string().len() + rest.len();
        if total == length {
            return format!("{length}{rest}");
        }
        length = total;
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes an archive.
pub(super) struct Packer<W: Write> {
    output: write::Encoder<'static, W>,
    hash: Sha256,
    devices: HashSet<Vec<u8>>,
    first: First,
}

/// The first member, if it is a directory: the root of the tree.
#[derive(Default)]
struct First(Option<Vec<u8>>);

impl First {
    fn see(&mut self, member: &Member) {
        if self.0.is_none() {
            let is_directory = member.kind == Kind::Directory;
            self.0 = Some(if is_directory {
                member.raw.clone()
            } else {
                Vec::new()
            });
        }
    }

    fn raw(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<W: Write> Packer<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// Those of `output`.
    pub(super) fn begin(output: W, manifest: &Manifest) -> io::Result<Self> {
        let mut output = write::Encoder::new(output, LEVEL)?;
        output.include_checksum(true)?;
        let mut packer = Self {
            output,
            hash: Sha256::new(),
            devices: HashSet::new(),
            first: First::default(),
        };
        packer.add(&manifest.write()?)?;
        Ok(packer)
    }

    /// Takes over the members of a plain archive. Device nodes, which no import would take, are
    /// left out.
    ///
    /// # Errors
    /// Those of both streams, and what is wrong with `input`.
    pub(super) fn members(&mut self, input: &mut impl Read) -> Result<(), ArchiveError> {
        loop {
            let member = match member::next(input)? {
                Item::Member(member) => member,
                Item::Global(_) => return Err(not_ours()),
                Item::End => return Ok(()),
            };
            self.first.see(&member);
            if self.leaves_out(&member)? {
                copy(input, member.data_bytes, |_| Ok(()))?;
            } else {
                self.add(&member.raw)?;
                copy(input, member.data_bytes, |chunk| Ok(self.add(chunk)?))?;
            }
        }
    }

    /// Ends the archive: without this it is none.
    ///
    /// # Errors
    /// Those of the output.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let checksum = hex(&self.hash.finalize_reset());
        self.output
            .write_all(&global(&[(CHECKSUM_KEY, &checksum)])?)?;
        self.output.write_all(self.first.raw())?;
        self.output.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.output.finish()
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.output.write_all(bytes)
    }

    fn leaves_out(&mut self, member: &Member) -> Result<bool, ArchiveError> {
        match member.kind {
            Kind::Device if self.devices.len() < DEVICES_MAX => {
                self.devices.extend(member.names.last().cloned());
                Ok(true)
            }
            Kind::Device => Err(ArchiveError::refused("it has too many device nodes")),
            Kind::HardLink => {
                let target = member.targets.last();
                Ok(target.is_some_and(|target| self.devices.contains(target)))
            }
            Kind::File | Kind::Symlink | Kind::Directory | Kind::Fifo => Ok(false),
        }
    }
}

/// Takes an archive apart. Nothing that comes out of it may be relied on before
/// [`Unpacker::members`] has returned.
pub(super) struct Unpacker<R: Read> {
    input: read::Decoder<'static, BufReader<R>>,
    hash: Sha256,
    manifest: Manifest,
    first: First,
}

impl<R: Read> Unpacker<R> {
    /// Reads the beginning of an archive.
    ///
    /// # Errors
    /// Those of `input`, and what is wrong with the archive.
    pub(super) fn begin(input: R) -> Result<Self, ArchiveError> {
        let mut input = read::Decoder::new(input)?.single_frame();
        input.window_log_max(WINDOW_LOG_MAX)?;
        let Item::Global(first) = member::next(&mut input)? else {
            return Err(not_ours());
        };
        Ok(Self {
            input,
            manifest: Manifest::read(&first)?,
            hash: Sha256::new_with_prefix(&first.raw),
            first: First::default(),
        })
    }

    /// What the archive says about its volume.
    pub(super) fn manifest(&self) -> Manifest {
        self.manifest
    }

    /// Passes the members to `output` as a plain archive, of which the end comes only when
    /// everything was there and as it was written.
    ///
    /// # Errors
    /// Those of both streams, and what is wrong with the archive, which `max_bytes` bounds when
    /// it is unpacked.
    pub(super) fn members(
        mut self,
        output: &mut impl Write,
        max_bytes: u64,
    ) -> Result<(), ArchiveError> {
        self.pass(output, max_bytes)?;
        let mut rest = self.input.finish();
        if !rest.fill_buf()?.is_empty() {
            return Err(ArchiveError::damaged("something follows after its end"));
        }
        output.write_all(&[0; 2 * BLOCK_BYTES])?;
        Ok(output.flush()?)
    }

    fn pass(&mut self, output: &mut impl Write, max_bytes: u64) -> Result<(), ArchiveError> {
        let mut left = max_bytes;
        loop {
            let member = match member::next(&mut self.input)? {
                Item::Member(member) => member,
                Item::Global(last) => return self.end(&last),
                Item::End => return Err(ArchiveError::damaged("it has no checksum at its end")),
            };
            check(&member)?;
            self.first.see(&member);
            left = left
                .checked_sub(member.raw.len() as u64 + member.data_bytes)
                .ok_or_else(|| {
                    ArchiveError::refused(format!("it unpacks to more than {max_bytes} bytes"))
                })?;
            self.hash.update(&member.raw);
            output.write_all(&member.raw)?;
            let hash = &mut self.hash;
            copy(&mut self.input, member.data_bytes, |chunk| {
                hash.update(chunk);
                Ok(output.write_all(chunk)?)
            })?;
        }
    }

    fn end(&mut self, last: &Global) -> Result<(), ArchiveError> {
        let checksum = last.value(CHECKSUM_KEY);
        let checksum =
            checksum.ok_or_else(|| ArchiveError::refused("it has a second global header"))?;
        if checksum != hex(&self.hash.finalize_reset()) {
            return Err(ArchiveError::damaged("its checksum does not match"));
        }
        if !self.first.raw().is_empty() {
            match member::next(&mut self.input)? {
                Item::Member(again) if again.raw == self.first.raw() => {}
                _ => return Err(ArchiveError::damaged("its first member is not repeated")),
            }
        }
        if member::next(&mut self.input)? != Item::End {
            return Err(ArchiveError::damaged("members follow after its checksum"));
        }
        // One byte more shows whether there are too many.
        let mut zeros = Vec::new();
        let length = (&mut self.input)
            .take(END_MAX_BYTES + 1)
            .read_to_end(&mut zeros)?;
        if length as u64 > END_MAX_BYTES || zeros.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::damaged("something follows after its end"));
        }
        Ok(())
    }
}

/// Whether a member may be unpacked.
fn check(member: &Member) -> Result<(), ArchiveError> {
    let shown = |name: &[u8]| member::shown(name);
    if let Some(name) = member.names.iter().find(|name| !is_inside(name)) {
        return Err(ArchiveError::refused(format!(
            "`{}` is not a path inside the archive",
            shown(name)
        )));
    }
    let name = member
        .names
        .last()
        .map(|name| shown(name))
        .unwrap_or_default();
    match member.kind {
        Kind::Device => Err(ArchiveError::refused(format!("`{name}` is a device node"))),
        Kind::HardLink => match member.targets.iter().find(|target| !is_inside(target)) {
            Some(target) => Err(ArchiveError::refused(format!(
                "`{name}` is a hard link to `{}`, which is not inside the archive",
                shown(target)
            ))),
            None => Ok(()),
        },
        // A symbolic link may point anywhere: it is followed by nobody but the volume's users.
        Kind::File | Kind::Symlink | Kind::Directory | Kind::Fifo => Ok(()),
    }
}

fn is_inside(name: &[u8]) -> bool {
    let mut components = name.split(|byte| *byte == b'/');
    !name.is_empty() && !name.starts_with(b"/") && components.all(|component| component != b"..")
}

/// Copies exactly `length` bytes.
fn copy(
    input: &mut impl Read,
    mut length: u64,
    mut to: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; length.min(CHUNK_BYTES as u64) as usize];
    while length > 0 {
        let chunk = buffer
            .len()
            .min(usize::try_from(length).unwrap_or(usize::MAX));
        let chunk = &mut buffer[..chunk];
        input.read_exact(chunk)?;
        to(chunk)?;
        length -= chunk.len() as u64;
    }
    Ok(())
}
