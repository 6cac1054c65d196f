//! Archives in memory, ours and crafted ones.

use std::io::{self, Read, Write};

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::format::{Manifest, Packer, Unpacker};
use super::member::{ArchiveError, BLOCK_BYTES};

const MANIFEST: Manifest = Manifest {
    is_bootable: true,
    capacity: 1_000_000_000,
};

fn header(name: &str, kind: EntryType, size: usize, link: &str) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
    data
}

fn with_data(header: &Header, data: &[u8]) -> Vec<u8> {
    [header.as_bytes().to_vec(), padded(data)].concat()
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    with_data(&header(name, EntryType::Regular, data.len(), ""), data)
}

fn link(name: &str, kind: EntryType, target: &str) -> Vec<u8> {
    header(name, kind, 0, target).as_bytes().to_vec()
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().into_bytes(), rest].concat()
}

/// A pax header, to be followed by the member.
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let data: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    with_data(
        &header("PaxHeaders/x", EntryType::XHeader, data.len(), ""),
        &data,
    )
}

fn gnu_long(kind: EntryType, name: &str) -> Vec<u8> {
    let data = [name.as_bytes(), b"\0"].concat();
    with_data(&header("././@LongLink", kind, data.len(), ""), &data)
}

/// Members as `tar` ends them.
fn plain(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 20 * BLOCK_BYTES]].concat()
}

fn pack(plain: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut packer = Packer::begin(Vec::new(), &MANIFEST)?;
    packer.members(&mut &plain[..])?;
    Ok(packer.finish()?)
}

fn unpack(archive: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let unpacker = Unpacker::begin(archive)?;
    assert_eq!(unpacker.manifest(), MANIFEST);
    let mut output = Vec::new();
    unpacker.members(&mut output, 1 << 30)?;
    Ok(output)
}

/// What an import says to these members. An export takes all of them.
fn import(members: &[Vec<u8>]) -> Result<Vec<u8>, ArchiveError> {
    unpack(&pack(&plain(members)).unwrap())
}

fn refused(members: &[Vec<u8>]) -> String {
    match import(members) {
        Err(ArchiveError::Refused(why)) => why,
        other => panic!("{:?}", other.map(|output| output.len())),
    }
}

fn damaged(outcome: Result<Vec<u8>, ArchiveError>) -> String {
    match outcome {
        Err(ArchiveError::Damaged(why)) => why,
        other => panic!("{:?}", other.map(|output| output.len())),
    }
}

/// Everything that an ordinary tree has.
fn ordinary() -> Vec<Vec<u8>> {
    let sparse: [(&str, &[u8]); 6] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"./sparse"),
        ("GNU.sparse.realsize", b"10485760"),
        ("mtime", b"1795329279.017138606"),
        ("SCHILY.xattr.user.x", b"any\nbyte\0=\xff"),
    ];
    vec![
        link("./", EntryType::Directory, ""),
        file("./a", b"content"),
        file("./empty", b""),
        link("./sub/", EntryType::Directory, ""),
        link("./sub/hard", EntryType::Link, "./a"),
        link("./sub/absolute", EntryType::Symlink, "/etc/passwd"),
        link("./sub/upwards", EntryType::Symlink, "../../../etc/passwd"),
        link("./fifo", EntryType::Fifo, ""),
        pax(&sparse),
        file("./GNUSparseFile.7/sparse", &[7; 1500]),
        pax(&[("path", "./é/…".as_bytes())]),
        file("./short", b"1"),
        gnu_long(EntryType::GNULongName, &format!("./{}", "n".repeat(300))),
        gnu_long(EntryType::GNULongLink, &format!("./{}", "t".repeat(300))),
        link("./short", EntryType::Link, "./short"),
        file("./..name", b"not upwards"),
    ]
}

#[test]
fn ordinary_trees_survive() {
    let members = ordinary();
    let archive = pack(&plain(&members)).unwrap();
    let expected = [members.concat(), vec![0; 2 * BLOCK_BYTES]].concat();
    assert_eq!(unpack(&archive).unwrap(), expected);
    // Ordinary tools read it, and what we add is nothing to them.
    let plain = zstd::decode_all(&archive[..]).unwrap();
    let mut tar = tar::Archive::new(&plain[..]);
    let count = tar.entries().unwrap().filter(Result::is_ok).count();
    assert!(count >= members.len() - 4, "{count}");
}

#[test]
fn an_empty_tree_is_an_archive() {
    assert_eq!(import(&[]).unwrap(), [0; 2 * BLOCK_BYTES]);
}

#[test]
fn what_leaves_the_tree_is_refused() {
    let member = file("./a", b"x");
    for name in ["/a", "../a", "a/../../b", "a/..", ".."] {
        for members in [
            vec![file(name, b"x")],
            vec![pax(&[("path", name.as_bytes())]), member.clone()],
            // The one that counts is good.
            vec![
                pax(&[("path", name.as_bytes()), ("path", b"./a")]),
                member.clone(),
            ],
            vec![pax(&[("GNU.sparse.name", name.as_bytes())]), member.clone()],
            vec![gnu_long(EntryType::GNULongName, name), member.clone()],
            vec![member.clone(), link("./l", EntryType::Link, name)],
            vec![
                pax(&[("linkpath", name.as_bytes())]),
                link("./l", EntryType::Link, "./a"),
            ],
            vec![
                gnu_long(EntryType::GNULongLink, name),
                link("./l", EntryType::Link, "./a"),
            ],
        ] {
            let why = refused(&members);
            assert!(why.contains("inside the archive"), "{name}: {why}");
        }
    }
    let mut split = header("a", EntryType::Regular, 0, "");
    split.as_ustar_mut().unwrap().prefix[..2].copy_from_slice(b"..");
    split.set_cksum();
    refused(&[split.as_bytes().to_vec()]);
}

#[test]
fn empty_names_and_nul_bytes_are_refused() {
    refused(&[file("", b"x")]);
    refused(&[pax(&[("path", b"")]), file("./a", b"")]);
    let crafted = [pax(&[("path", b"./a\0/../b")]), file("./a", b"")];
    assert!(matches!(
        pack(&plain(&crafted)),
        Err(ArchiveError::Refused(_))
    ));
}

#[test]
fn devices_are_left_out_of_exports_and_refused_by_imports() {
    let device = link("./null", EntryType::Char, "");
    let members = [
        device.clone(),
        link("./also", EntryType::Link, "./null"),
        link("./disk", EntryType::Block, ""),
        file("./a", b"x"),
    ];
    let kept = [members[3].clone(), vec![0; 2 * BLOCK_BYTES]].concat();
    assert_eq!(import(&members).unwrap(), kept);
    // One that somebody put in.
    let why = match unpack(&sealed(&[device])) {
        Err(ArchiveError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("device"), "{why}");
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    let member = file("./a", b"x");
    let with_size = |kind, name| with_data(&header(name, kind, 600, "./a"), &[7; 600]);
    for members in [
        vec![file("./a/", b"x")],
        vec![pax(&[("path", b"./a/")]), member.clone()],
        vec![with_size(EntryType::Directory, "./d")],
        vec![with_size(EntryType::Symlink, "./s")],
        vec![with_size(EntryType::Link, "./l")],
        vec![
            pax(&[("size", b"1")]),
            link("./d", EntryType::Directory, ""),
        ],
        vec![
            pax(&[("path", b"./b")]),
            pax(&[("size", b"1")]),
            member.clone(),
        ],
        vec![
            gnu_long(EntryType::GNULongName, "./b"),
            gnu_long(EntryType::GNULongName, "./c"),
            member.clone(),
        ],
        vec![with_size(EntryType::GNUSparse, "./s")],
        vec![with_size(EntryType::new(b'D'), "./d")],
        vec![with_size(EntryType::new(b'V'), "./v")],
        vec![with_size(EntryType::new(b'M'), "./m")],
        vec![with_field(156, b"\0")],
        vec![pax(&[("GNU.sparse.map", b"0,1")]), member.clone()],
        vec![pax(&[("GNU.dumpdir", b"Ra")]), member.clone()],
        vec![
            pax(&[("comment", b"x")]),
            with_data(&header("g", EntryType::XGlobalHeader, 0, ""), b""),
            member.clone(),
        ],
    ] {
        let outcome = unpack(&sealed(&members)).map(|output| output.len());
        assert!(
            matches!(outcome, Err(ArchiveError::Refused(_))),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_pax_size_counts() {
    let members = [
        pax(&[("size", b"1500")]),
        with_data(&header("./a", EntryType::Regular, 0, ""), &[7; 1500]),
        file("./b", b"x"),
    ];
    assert!(import(&members).is_ok());
}

#[test]
fn malformed_headers_are_damage() {
    for crafted in [
        // A size that is no number, one that is too large, and a negative one.
        with_field(124, b"0000000009z\0"),
        with_field(124, b"\x80\0\0\0\x7f\0\0\0\0\0\0\0"),
        with_field(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        [pax_data(b"9999 path=a\n"), file("./a", b"")].concat(),
        [pax_data(b"4 a=\n"), file("./a", b"")].concat(),
        [pax_data(b"9 noequal\n"), file("./a", b"")].concat(),
        [pax_data(b"0 a=b\n"), file("./a", b"")].concat(),
        [pax_data(b"-6 a=b\n"), file("./a", b"")].concat(),
        [pax(&[("size", b"-1")]), file("./a", b"")].concat(),
        [pax(&[("size", b"99999999999999999999")]), file("./a", b"")].concat(),
    ] {
        damaged(unpack(&sealed(&[crafted])));
    }
    // An extended header without a member.
    damaged(pack(&plain(&[pax(&[("path", b"./a")])])));
    let mut wrong = header("./a", EntryType::Regular, 0, "");
    wrong.as_old_mut().name[0] ^= 1;
    damaged(unpack(&sealed(&[wrong.as_bytes().to_vec()])));
}

#[test]
fn old_formats_and_huge_extended_headers_are_refused() {
    let mut old = Header::new_old();
    old.as_old_mut().name[..3].copy_from_slice(b"./a");
    old.set_size(0);
    old.set_entry_type(EntryType::Regular);
    old.set_cksum();
    for crafted in [
        old.as_bytes().to_vec(),
        header("x", EntryType::XHeader, 2 << 20, "")
            .as_bytes()
            .to_vec(),
        header("x", EntryType::GNULongName, 2 << 20, "")
            .as_bytes()
            .to_vec(),
    ] {
        let outcome = unpack(&sealed(&[crafted]));
        assert!(matches!(outcome, Err(ArchiveError::Refused(_))));
    }
}

fn pax_data(data: &[u8]) -> Vec<u8> {
    with_data(&header("x", EntryType::XHeader, data.len(), ""), data)
}

fn with_field(at: usize, value: &[u8]) -> Vec<u8> {
    let mut header = header("./a", EntryType::Regular, 0, "");
    header.as_mut_bytes()[at..at + value.len()].copy_from_slice(value);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An archive with a good checksum around any bytes, as a forger would make it.
fn sealed(members: &[Vec<u8>]) -> Vec<u8> {
    let empty = zstd::decode_all(&pack(&plain(&[])).unwrap()[..]).unwrap();
    let first = &empty[..2 * BLOCK_BYTES];
    forged(&[first.to_vec(), members.concat()].concat())
}

/// A frame of these bytes and a good checksum of them.
fn forged(body: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let checksum: String = Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let data = record("SANDSTONE.sha256", checksum.as_bytes());
    let last = with_data(
        &header("g", EntryType::XGlobalHeader, data.len(), ""),
        &data,
    );
    frame(&[body.to_vec(), last, vec![0; 2 * BLOCK_BYTES]].concat())
}

fn frame(plain: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_forger_gets_through_with_what_is_harmless() {
    assert!(unpack(&sealed(&[file("./a", b"x")])).is_ok());
}

#[test]
fn foreign_archives_are_refused() {
    let foreign = [
        frame(&plain(&[file("./a", b"x")])),
        frame(&plain(&[])),
        forged(&[record_header(&[("comment", "git")]), file("./a", b"x")].concat()),
        forged(&record_header(&[("SANDSTONE.format", "2")])),
    ];
    for archive in foreign {
        let outcome = Unpacker::begin(&archive[..]).map(|_| ());
        assert!(
            matches!(outcome, Err(ArchiveError::Refused(_))),
            "{outcome:?}"
        );
    }
    for archive in [
        forged(&record_header(&[("SANDSTONE.format", "1")])),
        forged(&record_header(&[
            ("SANDSTONE.format", "1"),
            ("SANDSTONE.bootable", "2"),
            ("SANDSTONE.capacity", "1"),
        ])),
        Vec::new(),
        b"PK\x03\x04 something else entirely".to_vec(),
        vec![0; 4096],
    ] {
        let outcome = Unpacker::begin(&archive[..]).map(|_| ());
        assert!(
            matches!(outcome, Err(ArchiveError::Damaged(_))),
            "{outcome:?}"
        );
    }
}

fn record_header(records: &[(&str, &str)]) -> Vec<u8> {
    let data: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value.as_bytes()))
        .collect();
    with_data(
        &header("g", EntryType::XGlobalHeader, data.len(), ""),
        &data,
    )
}

#[test]
fn whatever_is_missing_is_noticed() {
    let archive = pack(&plain(&ordinary())).unwrap();
    for length in 0..archive.len() {
        damaged(unpack_unchecked(&archive[..length]));
    }
    // The same below the compression, at every block, and in the middle of one.
    let plain = zstd::decode_all(&archive[..]).unwrap();
    for length in (0..plain.len()).step_by(BLOCK_BYTES / 2) {
        damaged(unpack_unchecked(&frame(&plain[..length])));
    }
    // Without the checksum, but with an end.
    let members = plain.len() - 4 * BLOCK_BYTES - ordinary()[0].len();
    let end = [&plain[..members], &[0; 2 * BLOCK_BYTES]].concat();
    assert!(damaged(unpack(&frame(&end))).contains("checksum"));
}

#[test]
fn whatever_is_added_is_noticed() {
    let archive = pack(&plain(&ordinary())).unwrap();
    let plain = zstd::decode_all(&archive[..]).unwrap();
    damaged(unpack(&[archive.clone(), vec![0]].concat()));
    damaged(unpack(&[archive.clone(), archive.clone()].concat()));
    damaged(unpack(&[archive, frame(b"")].concat()));
    damaged(unpack(&frame(&[&plain[..], &[1]].concat())));
    damaged(unpack(&frame(&[plain.clone(), vec![0; 1 << 20]].concat())));
    // Zeros up to a record of `tar` are fine.
    assert!(unpack(&frame(&[plain.clone(), vec![0; 18 * BLOCK_BYTES]].concat())).is_ok());
    // A member behind the checksum.
    let end = plain.len() - 2 * BLOCK_BYTES;
    let more = [&plain[..end], &file("./z", b"x"), &plain[end..]].concat();
    damaged(unpack(&frame(&more)));
    // Another member than the first in its place.
    let first = ordinary()[0].len();
    let other = link("./elsewhere/", EntryType::Directory, "");
    assert_eq!(first, other.len());
    let other = [&plain[..end - first], &other, &plain[end..]].concat();
    damaged(unpack(&frame(&other)));
}

#[test]
fn a_bomb_is_refused() {
    let archive = pack(&plain(&[file("./zeros", &vec![0; 32 << 20])])).unwrap();
    assert!(archive.len() < 64 << 10);
    let mut output = Vec::new();
    let unpacker = Unpacker::begin(&archive[..]).unwrap();
    let outcome = unpacker.members(&mut output, 1 << 20);
    assert!(matches!(outcome, Err(ArchiveError::Refused(_))));
    assert!(output.is_empty());
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&vec![7; 20 << 20]).unwrap();
    damaged(unpack_unchecked(&encoder.finish().unwrap()));
}

#[test]
fn errors_of_the_streams_are_not_damage() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let outcome = Unpacker::begin(Broken).map(|_| ());
    assert!(matches!(outcome, Err(ArchiveError::Io(_))), "{outcome:?}");
    let archive = pack(&plain(&ordinary())).unwrap();
    let cut = io::Cursor::new(&archive[..archive.len() / 2]).chain(Broken);
    let outcome = Unpacker::begin(cut).and_then(|it| it.members(&mut io::sink(), 1 << 30));
    assert!(matches!(outcome, Err(ArchiveError::Io(_))), "{outcome:?}");
    let unpacker = Unpacker::begin(&archive[..]).unwrap();
    let outcome = unpacker.members(&mut Broken, 1 << 30);
    assert!(matches!(outcome, Err(ArchiveError::Io(_))), "{outcome:?}");
}

/// As [`unpack`], where the manifest may be damaged too.
fn unpack_unchecked(archive: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut output = Vec::new();
    Unpacker::begin(archive)?.members(&mut output, 1 << 30)?;
    Ok(output)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_corruption_is_taken(at in any::<prop::sample::Index>(), bits in 1_u8..) {
        let mut archive = pack(&plain(&ordinary())).unwrap();
        let whole = unpack(&archive).unwrap();
        let at = at.index(archive.len());
        archive[at] ^= bits;
        // A frame has a few bits that mean nothing.
        if let Ok(output) = unpack_unchecked(&archive) {
            prop_assert!(output == whole, "byte {at}");
        }
    }

    #[test]
    fn no_corruption_below_the_compression_is_taken(
        at in any::<prop::sample::Index>(),
        bits in 1_u8..,
    ) {
        let archive = pack(&plain(&ordinary())).unwrap();
        let whole = unpack(&archive).unwrap();
        let mut plain = zstd::decode_all(&archive[..]).unwrap();
        let at = at.index(plain.len());
        plain[at] ^= bits;
        // What fills up the last header's block means nothing.
        if let Ok(output) = unpack_unchecked(&frame(&plain)) {
            prop_assert!(output == whole, "byte {at}");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(members in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = unpack_unchecked(&members);
        let _ = unpack_unchecked(&sealed(&[padded(&members)]));
        let _ = pack(&members);
    }
}
