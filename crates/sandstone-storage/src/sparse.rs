//! Large files with holes: read in order, without filling the host's page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

/// What is read at once, bytes. Part of the definition of checksums: it never changes.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// The smallest hole that a copy has, bytes. Smaller ones would only cost extents.
const HOLE_BYTES: usize = 64 << 10;

/// How much a copy writes before it waits for the disk, bytes.
const FLUSH_BYTES: u64 = 64 << 20;

/// Shows `visit` all blocks of `file` that are not holes as a whole, in order, with their index.
/// They are read from the disk. All but the last have [`BLOCK_BYTES`].
///
/// # Errors
/// The system's, `visit`'s; [`io::ErrorKind::Interrupted`] when `stop` becomes true.
pub(crate) fn visit(
    file: &File,
    stop: &AtomicBool,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut data = 0..0;
    // What is cached does not say what is on the disk.
    forget(file)?;
    for index in 0..blocks(length) {
        let start = index * BLOCK_BYTES as u64;
        if data.end <= start {
            let Some(next) = next_data(file, start)? else {
                break;
            };
            data = next;
        }
        let size = block_bytes(length, index);
        if data.start >= start + size as u64 {
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let block = &mut buffer[..size];
        file.read_exact_at(block, start)?;
        visit(index, block)?;
        fadvise(
            file,
            start,
            std::num::NonZeroU64::new(size as u64),
            Advice::DontNeed,
        )?;
    }
    Ok(())
}

/// How many blocks a file of `length` bytes has.
pub(crate) fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES as u64)
}

/// The size of block `index` of a file of `length` bytes.
pub(crate) fn block_bytes(length: u64, index: u64) -> usize {
    let left = length.saturating_sub(index * BLOCK_BYTES as u64);
    usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES))
}

/// Copies `from` to the empty file `to`, on disk at the end. Holes and zeros become holes of
/// [`HOLE_BYTES`] or more. Shows `seen` what [`visit`] would.
///
/// # Errors
/// The system's; [`io::ErrorKind::Interrupted`] when `stop` becomes true.
pub(crate) fn copy(
    from: &File,
    to: &File,
    stop: &AtomicBool,
    mut seen: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    let zeros = vec![0; HOLE_BYTES];
    to.set_len(from.metadata()?.len())?;
    let mut unflushed = 0;
    visit(from, stop, |index, block| {
        seen(index, block);
        let start = index * BLOCK_BYTES as u64;
        let mut offset = 0;
        // Neighbours that are not zero are written together.
        for run in block
            .chunks(HOLE_BYTES)
            .collect::<Vec<_>>()
            .chunk_by(|one, next| (**one == zeros[..one.len()]) == (**next == zeros[..next.len()]))
        {
            let bytes: usize = run.iter().map(|chunk| chunk.len()).sum();
            if *run[0] != zeros[..run[0].len()] {
                to.write_all_at(&block[offset..offset + bytes], start + offset as u64)?;
                unflushed += bytes as u64;
            }
            offset += bytes;
        }
        if unflushed >= FLUSH_BYTES {
            unflushed = 0;
            to.sync_data()?;
            forget(to)?;
        }
        Ok(())
    })?;
    to.sync_data()?;
    forget(to)
}

/// What a copy of `file` takes at most, bytes.
///
/// # Errors
/// The system's.
pub(crate) fn copy_bytes(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut bytes, mut end) = (0, 0);
    while let Some(data) = next_data(file, end)? {
        let start = (data.start - data.start % HOLE_BYTES as u64).max(end);
        end = data.end.next_multiple_of(HOLE_BYTES as u64);
        bytes += end - start;
        if end >= length {
            break;
        }
    }
    Ok(bytes)
}

/// The first range from `offset` on that is not a hole.
fn next_data(file: &File, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Drops what is cached of a file and on its disk.
fn forget(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn file_with(length: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file.sync_all().unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn only_blocks_with_data_are_visited() {
        let block = BLOCK_BYTES as u64;
        let file = file_with(
            5 * block + 100,
            &[
                (block + 5000, b"a"),
                (3 * block - 4096, &[1; 8192]),
                (5 * block + 99, b"z"),
            ],
        );
        let mut seen = Vec::new();
        visit(&file, &NEVER, |index, bytes| {
            seen.push((
                index,
                bytes.len(),
                bytes.iter().filter(|byte| **byte != 0).count(),
            ));
            Ok(())
        })
        .unwrap();
        let whole = BLOCK_BYTES;
        assert_eq!(
            seen,
            [
                (1, whole, 1),
                (2, whole, 4096),
                (3, whole, 4096),
                (5, 100, 1)
            ]
        );
        let stopped = visit(&file, &AtomicBool::new(true), |_, _| Ok(())).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
        visit(&file_with(0, &[]), &NEVER, |_, _| unreachable!()).unwrap();
        visit(&file_with(3 * block, &[]), &NEVER, |_, _| unreachable!()).unwrap();
    }

    #[test]
    fn a_copy_is_the_same_with_larger_holes() {
        let block = BLOCK_BYTES as u64;
        let source = file_with(
            4 * block + 10,
            &[
                (0, &[7; 300_000]),
                (block + 65536, &[0; 65536 * 2]),
                (block + 65536 * 4, b"b"),
                (2 * block - 1, b"cc"),
                (4 * block + 9, b"d"),
            ],
        );
        let copied = tempfile::tempfile_in("/var/tmp").unwrap();
        copy(&source, &copied, &NEVER, |_, _| {}).unwrap();
        assert!(content(&source) == content(&copied));
        // 5 chunks of the first block, 2 of the second, 1 of the third, 1 at the end.
        let taken = rustix::fs::fstat(&copied).unwrap().st_blocks * 512;
        let least = copy_bytes(&copied).unwrap();
        assert!(
            least <= 9 * 65536 && (taken as u64) <= least,
            "{taken} {least}"
        );
        let bound = copy_bytes(&source).unwrap();
        assert!((9 * 65536..=11 * 65536).contains(&bound), "{bound}");
    }
}
