//! Frames: how the byte stream is cut.
//!
//! ```text
//!  0        4    5        9                    9 + n
//!  ├────────┼────┼────────┼────────────────────┤
//!  │ length │kind│   id   │ payload (n bytes)  │   integers are little-endian
//!  └────────┴────┴────────┴────────────────────┘
//!    length = 5 + n, so a router can skip a frame without knowing its kind
//! ```

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 9;

/// Largest payload. Directory listings are the largest replies: about 100,000 entries fit.
pub const PAYLOAD_MAX_BYTES: usize = 16 << 20;

/// Largest payload of a frame that is neither a request nor a reply: what a data frame holds, and
/// far more than a hello or a failure needs.
pub const SMALL_PAYLOAD_MAX_BYTES: usize = 64 << 10;

/// Largest payload of a [`FrameKind::Data`] frame.
pub const DATA_MAX_BYTES: usize = SMALL_PAYLOAD_MAX_BYTES;

/// Credit of a fresh stream. Four full data frames keep both ends busy; a stalled reader costs
/// this much memory and no more.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of each side; id 0; payload [`crate::message::Hello`].
    Hello = 1,
    /// Host to agent; payload [`crate::message::Request`].
    Request = 2,
    /// Agent to host, with the request's id; payload [`crate::message::Reply`].
    Reply = 3,
    /// Raw bytes of a stream, never empty, at most [`DATA_MAX_BYTES`].
    Data = 4,
    /// The writer is done. No payload.
    End = 5,
    /// The reader grants more; payload `u32` bytes, little-endian.
    Credit = 6,
    /// The stream is given up; payload [`crate::message::Failure`] or empty.
    Reset = 7,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Credit,
            7 => Self::Reset,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// The request or stream it belongs to.
    pub id: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

/// The bytes are not frames. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is impossible.
    #[error("frame length {0} is out of bounds")]
    Length(u32),
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
}

impl Frame {
    /// A frame without payload.
    #[must_use]
    pub fn empty(kind: FrameKind, id: u32) -> Self {
        Self {
            kind,
            id,
            payload: Vec::new(),
        }
    }

    /// A grant of `bytes` more.
    #[must_use]
    pub fn credit(id: u32, bytes: u32) -> Self {
        Self {
            kind: FrameKind::Credit,
            id,
            payload: bytes.to_le_bytes().to_vec(),
        }
    }

    /// The grant in a [`FrameKind::Credit`] frame.
    #[must_use]
    pub fn credit_bytes(&self) -> Option<u32> {
        (self.kind == FrameKind::Credit)
            .then(|| {
                self.payload
                    .as_slice()
                    .try_into()
                    .map(u32::from_le_bytes)
                    .ok()
            })
            .flatten()
    }

    /// The frame as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        bytes.extend_from_slice(&encode_header(self.kind, self.id, self.payload.len()));
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// The nine bytes before a payload of `payload_len` bytes, for writers that have the payload
/// elsewhere.
#[must_use]
pub fn encode_header(kind: FrameKind, id: u32, payload_len: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(payload_len <= PAYLOAD_MAX_BYTES);
    let length = u32::try_from(payload_len + 5).unwrap_or(u32::MAX);
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4] = kind as u8;
    header[5..].copy_from_slice(&id.to_le_bytes());
    header
}

/// Kind, id and payload length of the frame that starts with `header`.
///
/// # Errors
/// [`FrameError`] when these bytes cannot start a frame.
pub fn decode_header(header: &[u8; HEADER_BYTES]) -> Result<(FrameKind, u32, usize), FrameError> {
    let [l0, l1, l2, l3, kind, i0, i1, i2, i3] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let payload = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(5))
        .filter(|payload| *payload <= PAYLOAD_MAX_BYTES)
        .ok_or(FrameError::Length(length))?;
    let kind = FrameKind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
    let is_possible = match kind {
        FrameKind::Request | FrameKind::Reply => true,
        FrameKind::Data => (1..=DATA_MAX_BYTES).contains(&payload),
        FrameKind::Hello | FrameKind::End | FrameKind::Credit | FrameKind::Reset => {
            payload <= SMALL_PAYLOAD_MAX_BYTES
        }
    };
    if !is_possible {
        return Err(FrameError::Length(length));
    }
    Ok((kind, u32::from_le_bytes([i0, i1, i2, i3]), payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let frame = Frame {
            kind: FrameKind::Data,
            id: 0x0102_0304,
            payload: b"hi".to_vec(),
        };
        assert_eq!(frame.encode(), [7, 0, 0, 0, 4, 4, 3, 2, 1, b'h', b'i']);
        assert_eq!(
            Frame::credit(9, 258).encode(),
            [9, 0, 0, 0, 6, 9, 0, 0, 0, 2, 1, 0, 0]
        );
        assert_eq!(Frame::credit(9, 258).credit_bytes(), Some(258));
    }

    #[test]
    fn bad_headers_are_refused() {
        let header = |length: u32, kind: u8| {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4] = kind;
            bytes
        };
        assert_eq!(decode_header(&header(4, 1)), Err(FrameError::Length(4)));
        assert_eq!(
            decode_header(&header(u32::MAX, 1)),
            Err(FrameError::Length(u32::MAX))
        );
        assert_eq!(decode_header(&header(5, 0)), Err(FrameError::Kind(0)));
        assert_eq!(
            decode_header(&header(5, 4)),
            Err(FrameError::Length(5)),
            "empty data"
        );
        for kind in [1, 4, 5, 6, 7] {
            assert!(decode_header(&header(5 + (64 << 10), kind)).is_ok());
            assert!(
                decode_header(&header(5 + (64 << 10) + 1, kind)).is_err(),
                "kind {kind} too long"
            );
        }
        for kind in [2, 3] {
            assert!(decode_header(&header(5 + (16 << 20), kind)).is_ok());
            assert!(decode_header(&header(5 + (16 << 20) + 1, kind)).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_header_decodes_or_errs(bytes: [u8; HEADER_BYTES]) {
            if let Ok((kind, id, payload)) = decode_header(&bytes) {
                prop_assert_eq!(encode_header(kind, id, payload), bytes);
            }
        }
    }
}
