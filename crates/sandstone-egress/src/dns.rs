//! Queries of names, RFC 1035. Every answer is made here.
//!
//! A name that the policy knows has an IPv4 address that stands for it, and nothing else: no other
//! type of record is ever asked of anybody, so a query cannot carry anything out. Others do not
//! exist.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use sandstone_core::{HostName, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::gate::Shared;

/// Longest query that is read. One question has at most 271 bytes, and a few options follow.
const QUERY_MAX_BYTES: usize = 4096;

/// How long an answer may be kept, seconds.
const TTL: u32 = 60;

/// Most connections with queries at once, and how long one may be silent.
const STREAMS_MAX: usize = 32;
const STREAM_LIMIT: Duration = Duration::from_secs(10);

/// Pause after the kernel has no more descriptors or memory.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const HEADER_BYTES: usize = 12;

/// The answer codes in use, RFC 1035 section 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    NoError = 0,
    FormatError = 1,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// The types of records in use, RFC 1035 section 3.2.2.
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// What one query is about.
#[derive(Debug, PartialEq, Eq)]
struct Question<'a> {
    /// Labels with dots between; bytes beyond ASCII are replaced. Only for finding and showing.
    name: String,
    kind: u16,
    class: u16,
    /// As it was sent, to be sent back.
    bytes: &'a [u8],
}

pub(crate) async fn serve_datagrams(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = [0; QUERY_MAX_BYTES];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                if let Some(answer) = answer(&buffer[..length], &shared) {
                    // Full buffers of the sandbox are its own affair.
                    let _ = socket.try_send_to(&answer, from);
                }
            }
            // An answer that nobody took, reported on the next call.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

pub(crate) async fn serve_streams(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let answering = shared.clone();
        shared.spawn(async move {
            let _ = serve_stream(stream, &answering).await;
            drop(slot);
        });
    }
}

/// Each message is preceded by its length, RFC 1035 section 4.2.2.
async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = [0; QUERY_MAX_BYTES];
    loop {
        let length = usize::from(timeout(STREAM_LIMIT, stream.read_u16()).await??);
        let Some(query) = buffer.get_mut(..length) else {
            return Ok(());
        };
        timeout(STREAM_LIMIT, stream.read_exact(query)).await??;
        let Some(answer) = answer(query, shared) else {
            return Ok(());
        };
        let mut message = (answer.len() as u16).to_be_bytes().to_vec();
        message.extend(answer);
        timeout(STREAM_LIMIT, stream.write_all(&message)).await??;
    }
}

/// The answer to a message, if it is a query.
fn answer(query: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let header = query.get(..HEADER_BYTES)?;
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        return None;
    }
    if header[2] & 0x78 != 0 {
        return Some(reply(header, Code::NotImplemented, None, None));
    }
    let Some(question) = question(query) else {
        return Some(reply(header, Code::FormatError, None, None));
    };
    let (code, address) = decide(&question, shared);
    Some(reply(header, code, Some(&question), address))
}

fn decide(question: &Question<'_>, shared: &Shared) -> (Code, Option<Ipv4Addr>) {
    let shown = || question.name.escape_default();
    let Ok(name) = question.name.parse::<HostName>() else {
        shared.refusals.name(shown(), "no name of a host");
        return (Code::NoSuchName, None);
    };
    if !shared.policy.knows(&Target::Name(name.clone())) {
        shared.refusals.name(shown(), "not in allow_net");
        return (Code::NoSuchName, None);
    }
    let is_address = question.class == CLASS_IN && question.kind == TYPE_A;
    (
        Code::NoError,
        is_address.then(|| shared.names.address_of(&name)),
    )
}

/// The one question of a query.
fn question(query: &[u8]) -> Option<Question<'_>> {
    let count = u16::from_be_bytes([*query.get(4)?, *query.get(5)?]);
    if count != 1 {
        return None;
    }
    let rest = &query[HEADER_BYTES..];
    let mut name = String::new();
    let mut at = 0;
    loop {
        let length = usize::from(*rest.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Longer ones are pointers, which a question has no use for.
        if length > 63 || at > 255 {
            return None;
        }
        let label = rest.get(at..at + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label {
            // A dot within a label must not look like one between labels.
            name.push(match byte {
                b'.' => '\\',
                byte => char::from(*byte),
            });
        }
        at += length;
    }
    let kind = u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]);
    let class = u16::from_be_bytes([*rest.get(at + 2)?, *rest.get(at + 3)?]);
    Some(Question {
        name,
        kind,
        class,
        bytes: &rest[..at + 4],
    })
}

fn reply(
    header: &[u8],
    code: Code,
    question: Option<&Question<'_>>,
    address: Option<Ipv4Addr>,
) -> Vec<u8> {
    let mut reply = Vec::with_capacity(HEADER_BYTES + 300);
    reply.extend(&header[..2]);
    // An answer, of the same kind of query; recursion as desired.
    reply.push(0x80 | (header[2] & 0x79));
    // Recursion is available.
    reply.push(0x80 | code as u8);
    for present in [question.is_some(), address.is_some(), false, false] {
        reply.extend(u16::from(present).to_be_bytes());
    }
    if let Some(question) = question {
        reply.extend(question.bytes);
    }
    if let Some(address) = address {
        // The name of the question, which begins after the header.
        reply.extend([0xc0, HEADER_BYTES as u8]);
        reply.extend(TYPE_A.to_be_bytes());
        reply.extend(CLASS_IN.to_be_bytes());
        reply.extend(TTL.to_be_bytes());
        reply.extend(4_u16.to_be_bytes());
        reply.extend(address.octets());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::tests::shared;
    use proptest::prelude::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend(CLASS_IN.to_be_bytes());
        query
    }

    fn code(answer: &[u8]) -> u8 {
        answer[3] & 0xf
    }

    #[tokio::test]
    async fn a_known_name_has_one_address_and_nothing_else() {
        let shared = shared(&["*.example.com:443", "10.0.0.1"]);
        let first = answer(&query("Api.Example.com", 1), &shared).unwrap();
        assert_eq!(first[..4], [0xab, 0xcd, 0x81, 0x80]);
        assert_eq!(first[4..8], [0, 1, 0, 1]);
        assert_eq!(first[first.len() - 4..], [198, 18, 1, 0]);
        // AAAA, TXT, MX, HTTPS, ANY, NULL.
        for kind in [28, 16, 15, 65, 255, 10] {
            let other = answer(&query("data.in.labels.example.com", kind), &shared).unwrap();
            assert_eq!(
                (code(&other), &other[4..8]),
                (0, &[0, 1, 0, 0][..]),
                "{kind}"
            );
        }
    }

    #[tokio::test]
    async fn other_names_do_not_exist() {
        let shared = shared(&["*.example.com:443", "10.0.0.1"]);
        for name in [
            "example.com",
            "evil.org",
            "a.example.com.evil.org",
            "10.0.0.1",
            "",
            "b c.example.com",
        ] {
            for kind in [1, 16] {
                let answer = answer(&query(name, kind), &shared).unwrap();
                assert_eq!((code(&answer), &answer[6..8]), (3, &[0, 0][..]), "{name}");
            }
        }
        // A dot within a label.
        let mut tricky = query("x", 1);
        tricky.splice(12..15, [13].into_iter().chain(*b"a.example.com").chain([0]));
        let answer = answer(&tricky, &shared).unwrap();
        assert_eq!(code(&answer), 3);
    }

    #[tokio::test]
    async fn what_is_no_query_is_refused_or_ignored() {
        let shared = shared(&["*.example.com"]);
        let good = query("a.example.com", 1);
        assert!(answer(&good[..11], &shared).is_none());
        let mut is_answer = good.clone();
        is_answer[2] |= 0x80;
        assert!(answer(&is_answer, &shared).is_none());
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(code(&answer(&update, &shared).unwrap()), 4);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&answer(&two, &shared).unwrap()), 1);
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        assert_eq!(code(&answer(&pointer, &shared).unwrap()), 1);
        assert_eq!(code(&answer(&good[..20], &shared).unwrap()), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(question) = (bytes.len() >= HEADER_BYTES).then(|| question(&bytes)).flatten() {
                prop_assert!(question.name.chars().count() < 512);
            }
        }
    }
}
