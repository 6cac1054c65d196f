//! Frames and messages of both sides from any bytes: what decodes, encodes to what decodes again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sandstone_protocol::frame::{FrameKind, HEADER_BYTES, decode_header, encode_header};
use sandstone_protocol::message::{self, Failure, Hello, Reply, Request};

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok((kind, id, length)) = decode_header(header) else {
            return;
        };
        assert_eq!(&encode_header(kind, id, length), header);
        let payload = &after[..length.min(after.len())];
        match kind {
            FrameKind::Hello => drop(message::decode::<Hello>("hello", payload)),
            FrameKind::Request => {
                if let Ok(request) = message::decode::<Request>("request", payload) {
                    let again = message::encode(&request);
                    let again = message::decode::<Request>("request", &again);
                    assert!(again.is_ok(), "{request:?}");
                }
            }
            FrameKind::Reply => {
                if let Ok(reply) = message::decode::<Reply>("reply", payload) {
                    let again = message::encode(&reply);
                    assert!(
                        message::decode::<Reply>("reply", &again).is_ok(),
                        "{reply:?}"
                    );
                }
            }
            FrameKind::Reset => drop(message::decode::<Failure>("reset", payload)),
            FrameKind::Data | FrameKind::End | FrameKind::Credit => {}
        }
        rest = &after[payload.len()..];
    }
});
