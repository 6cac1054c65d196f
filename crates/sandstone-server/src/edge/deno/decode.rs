//! Bodies that a server sent compressed although it was told not to: the clients cannot decode.

use std::io::{self, Write};

use axum::http::{HeaderMap, header};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// Undoes `gzip` or `deflate`.
pub(super) enum Decoder {
    Gzip(MultiGzDecoder<Vec<u8>>),
    /// `deflate` is the format of zlib, but some send it bare; the first byte tells.
    Undecided,
    Zlib(ZlibDecoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>),
}

impl Decoder {
    /// How much is to be decoded at once: what becomes of it is at most a thousand times as much.
    pub(super) const PIECE_BYTES: usize = 1 << 10;

    /// What the headers call for; nothing for a body that is to be passed on as it is.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        let encoding = encodings.next()?.to_str().ok()?.trim();
        if encodings.next().is_some() {
            return None;
        }
        match encoding.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip(MultiGzDecoder::new(Vec::new()))),
            "deflate" => Some(Self::Undecided),
            _ => None,
        }
    }

    /// Decodes at most [`Self::PIECE_BYTES`].
    pub(super) fn decode(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        const ZLIB_METHOD: u8 = 8;
        if let (Self::Undecided, Some(first)) = (&self, piece.first()) {
            *self = if first & 0xf == ZLIB_METHOD {
                Self::Zlib(ZlibDecoder::new(Vec::new()))
            } else {
                Self::Deflate(DeflateDecoder::new(Vec::new()))
            };
        }
        match self {
            Self::Gzip(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Zlib(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Undecided => Ok(Vec::new()),
        }
    }

    /// What is left at the end. Fails when something is missing.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zlib(decoder) => decoder.finish(),
            Self::Deflate(decoder) => decoder.finish(),
            Self::Undecided => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    fn decoder(encoding: &'static str) -> Option<Decoder> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
        Decoder::of(&headers)
    }

    fn decode(encoding: &'static str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut decoder = decoder(encoding).unwrap();
        let mut decoded = Vec::new();
        for piece in bytes.chunks(100) {
            decoded.extend(decoder.decode(piece)?);
        }
        decoded.extend(decoder.finish()?);
        Ok(decoded)
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let content: Vec<u8> = (0..100_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&content).unwrap();
        let gzip = gzip.finish().unwrap();
        assert!(decode("gzip", &gzip).unwrap() == content);
        assert!(
            decode("X-GZIP", &[gzip.clone(), gzip.clone()].concat())
                .unwrap()
                .len()
                == 800_000
        );
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&content).unwrap();
        assert!(decode("deflate", &zlib.finish().unwrap()).unwrap() == content);
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(&content).unwrap();
        assert!(decode("deflate", &bare.finish().unwrap()).unwrap() == content);
        assert!(decode("gzip", &gzip[..gzip.len() / 2]).is_err(), "cut off");
        assert!(decode("gzip", b"not gzip at all").is_err());
        assert!(decode("deflate", b"").unwrap().is_empty());
    }

    #[test]
    fn other_encodings_pass() {
        for encoding in ["br", "identity", "gzip, br", ""] {
            assert!(decoder(encoding).is_none(), "{encoding}");
        }
    }

    #[test]
    fn a_bomb_unfolds_in_small_parts() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        for _ in 0..64 {
            gzip.write_all(&vec![0; 1 << 20]).unwrap();
        }
        let bomb = gzip.finish().unwrap();
        let mut decoder = decoder("gzip").unwrap();
        for piece in bomb.chunks(Decoder::PIECE_BYTES) {
            assert!(decoder.decode(piece).unwrap().len() <= 2 << 20);
        }
    }
}
