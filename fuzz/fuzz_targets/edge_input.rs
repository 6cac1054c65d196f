//! All that the edge reads of what a client wrote, from any bytes: they are a value or an error,
//! and a value that can be printed is read again as the same. The first byte chooses what it is.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use sandstone_api::{ByteSize, ImageId, Region, SandboxId, Slug, SnapshotId, VolumeId};
use sandstone_core::{ExposureName, HostName, HostPattern, MountPath};
use sandstone_server::control::Token;
use sandstone_server::edge::stand_ins::input;

/// The names of the parameters that calls have.
const KEYS: [&str; 12] = [
    "streamId", "data", "offset", "mtime", "args", "env", "options", "watch", "match", "error",
    "timeout", "path",
];

fuzz_target!(|data: &[u8]| {
    let Some((&what, data)) = data.split_first() else {
        return;
    };
    let regions: [Region; 2] = ["ord", "ams"].map(|region| region.parse().expect("a region"));
    let text = String::from_utf8_lossy(data);
    match what % 8 {
        0 => input::configuration(data, &regions),
        1 | 2 => input::configuration_text(data, &regions),
        3 | 4 => input::message(&text, &KEYS),
        5 => input::query(&text),
        _ => words(&text),
    }
});

/// Everything that is one word.
fn words(text: &str) {
    survives::<HostName>(text);
    survives::<HostPattern>(text);
    survives::<ImageId>(text);
    survives::<Region>(text);
    survives::<SandboxId>(text);
    survives::<Slug>(text);
    survives::<SnapshotId>(text);
    survives::<VolumeId>(text);
    if let Ok(size) = text.parse::<ByteSize>() {
        // It is shown for people, rounded.
        assert!(!size.to_string().is_empty());
        assert_eq!(size.bytes().to_string().parse(), Ok(size));
    }
    if let Ok(path) = MountPath::parse(text) {
        assert_eq!(MountPath::parse(path.as_str()).as_ref(), Ok(&path));
    }
    if let Ok(name) = text.parse::<ExposureName>() {
        assert_eq!(name.as_str().parse().as_ref(), Ok(&name));
        assert!(!format!("{name:?}").contains(name.as_str()));
    }
    if let Some(token) = Token::parse(text) {
        assert_eq!(token.reveal(), text);
    }
}

/// What is read of the text is read again of what it prints.
fn survives<T>(text: &str)
where
    T: FromStr<Err: Debug + Display> + Display + Debug + PartialEq,
{
    match text.parse::<T>() {
        Ok(value) => match value.to_string().parse::<T>() {
            Ok(again) => assert_eq!(again, value),
            Err(error) => panic!("{text:?} prints as {value}: {error}"),
        },
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
