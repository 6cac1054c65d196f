//! What the first bytes of a client say about the host it means.
//!
//! One server can serve many names. A connection to a name that is allowed must not be used for
//! another that is not, as far as the client says so in the clear: in the server name of TLS
//! (RFC 6066), or the `Host` of an HTTP/1 request (RFC 9110). Nobody waits for these bytes: a
//! server that speaks first is heard meanwhile.

use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::server::Acceptor;
use sandstone_core::Target;

/// Longest beginning that is looked at. Servers refuse longer headers and hellos.
pub(crate) const FIRST_MAX_BYTES: usize = 32 << 10;

/// Methods that a request may begin with; the last begins HTTP/2, which says nothing readable.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
];

/// First byte of a TLS handshake record, RFC 8446 section 5.1.
const TLS_HANDSHAKE: u8 = 0x16;

/// What was found out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Not enough yet.
    More,
    /// It names no host.
    Nothing,
    /// It names this host, as it is written.
    Host(String),
    /// It looks like a protocol that names its host, but is malformed.
    Malformed(&'static str),
}

/// Looks at a connection's first bytes as they come.
#[derive(Default)]
pub(crate) struct First {
    tls: Option<Acceptor>,
    bytes: Vec<u8>,
}

impl First {
    /// Takes more bytes.
    pub(crate) fn add(&mut self, more: &[u8]) -> Said {
        self.bytes.extend_from_slice(more);
        let said = match self.bytes.first() {
            None => Said::More,
            Some(&TLS_HANDSHAKE) => self.tls(more),
            Some(_) => http(&self.bytes),
        };
        match said {
            Said::More if self.bytes.len() > FIRST_MAX_BYTES => Said::Malformed("too long"),
            said => said,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All bytes so far.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn tls(&mut self, more: &[u8]) -> Said {
        const BAD: Said = Said::Malformed("no TLS client hello");
        let acceptor = self.tls.get_or_insert_default();
        let mut more = Cursor::new(more);
        while more.position() < more.get_ref().len() as u64 {
            if acceptor.read_tls(&mut more).is_err() {
                return BAD;
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return match accepted.client_hello().server_name() {
                        Some(name) => Said::Host(name.to_owned()),
                        None => Said::Nothing,
                    };
                }
                Err(_) => return BAD,
            }
        }
        Said::More
    }
}

fn http(bytes: &[u8]) -> Said {
    let could_be = |method: &&[u8]| bytes.starts_with(method) || method.starts_with(bytes);
    if !METHODS.iter().any(could_be) {
        return Said::Nothing;
    }
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let Some(request) = lines.next().filter(|line| line.ends_with(b"\n")) else {
        return Said::More;
    };
    let request = request.trim_ascii_end();
    let mut words = request.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    if !words
        .next()
        .is_some_and(|version| version.starts_with(b"HTTP/"))
    {
        // Some other protocol of words.
        return Said::Nothing;
    }
    let mut host: Option<Vec<u8>> = match method {
        Some(b"CONNECT") => Some(target.to_vec()),
        _ => authority(target).map(<[u8]>::to_vec),
    };
    for line in lines {
        if !line.ends_with(b"\n") {
            return Said::More;
        }
        let line = line.trim_ascii_end();
        if line.is_empty() {
            return match host.map(String::from_utf8) {
                None => Said::Nothing,
                Some(Ok(host)) => Said::Host(host),
                Some(Err(_)) => Said::Malformed("a host that is no text"),
            };
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        if line[..colon].trim_ascii().eq_ignore_ascii_case(b"host") {
            let named = line[colon + 1..].trim_ascii().to_vec();
            if host
                .as_ref()
                .is_some_and(|host| !host.eq_ignore_ascii_case(&named))
            {
                return Said::Malformed("two different hosts");
            }
            host = Some(named);
        }
    }
    Said::More
}

/// The host that a client's text means, whatever its port.
pub(crate) fn named(host: &str) -> Option<Target> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, _) = rest.split_once(']')?;
        let address: IpAddr = address.parse::<Ipv6Addr>().ok()?.into();
        return Some(Target::Address(address.to_canonical()));
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    match name.parse::<Ipv4Addr>() {
        Ok(address) => Some(Target::Address(address.into())),
        Err(_) => name.parse().ok().map(Target::Name),
    }
}

/// The host of an absolute target, `http://host/path`.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let target = std::str::from_utf8(target).ok()?;
    let (_, rest) = target.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(&rest.as_bytes()[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(bytes: &[u8]) -> Said {
        First::default().add(bytes)
    }

    /// A client hello for this name.
    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_of_tls() {
        assert_eq!(
            look(&hello("a.example.com")),
            Said::Host("a.example.com".into())
        );
        assert_eq!(look(&hello("192.0.2.1")), Said::Nothing);
        let bytes = hello("a.example.com");
        assert_eq!(look(&bytes[..20]), Said::More);
        let mut first = First::default();
        let mut said = Said::More;
        for byte in &bytes {
            assert_eq!(said, Said::More);
            said = first.add(&[*byte]);
        }
        assert_eq!(said, Said::Host("a.example.com".into()));
        assert_eq!(first.into_bytes(), bytes);
        assert!(matches!(
            look(b"\x16\x03\x01\x00\x05hello"),
            Said::Malformed(_)
        ));
    }

    #[test]
    fn the_host_of_a_request() {
        let host = |text: &str| Said::Host(text.to_owned());
        assert_eq!(
            look(b"GET / HTTP/1.1\r\nHost: a.com:80\r\n\r\n"),
            host("a.com:80")
        );
        assert_eq!(look(b"GET / HTTP/1.1\nhOST :a.com\n\n"), host("a.com"));
        assert_eq!(look(b"GET http://b.com/x HTTP/1.1\r\n\r\n"), host("b.com"));
        assert_eq!(
            look(b"CONNECT c.com:443 HTTP/1.1\r\n\r\n"),
            host("c.com:443")
        );
        assert_eq!(look(b"GET / HTTP/1.0\r\n\r\n"), Said::Nothing);
        for two in [
            &b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..],
            b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(matches!(look(two), Said::Malformed(_)));
        }
    }

    #[test]
    fn other_protocols_are_let_through_at_once_and_requests_waited_for() {
        for other in [
            &b"SSH-2.0-x\r\n"[..],
            b"EHLO a\r\n",
            b"\0\0\0\x08",
            b"PUT 1 2\r\n",
            b"PRI * HTTP/2.0\r\n",
        ] {
            assert_eq!(look(other), Said::Nothing);
        }
        for part in [
            &b"G"[..],
            b"GET / HT",
            b"GET / HTTP/1.1\r\nHost: a",
            b"GET / HTTP/1.1\r\nHost: a\r\n",
        ] {
            assert_eq!(look(part), Said::More);
        }
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        long.resize(FIRST_MAX_BYTES + 1, b'x');
        assert!(matches!(look(&long), Said::Malformed(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0_usize..2000) {
            let mut first = First::default();
            let cut = cut.min(bytes.len());
            let said = first.add(&bytes[..cut]);
            if said == Said::More {
                first.add(&bytes[cut..]);
            }
        }

        #[test]
        fn where_a_request_is_cut_does_not_matter(cut in 0_usize..60) {
            let request = b"POST /path HTTP/1.1\r\nAccept: x\r\nHost: a.example.com\r\n\r\nbody";
            let mut first = First::default();
            let said = match first.add(&request[..cut]) {
                Said::More => first.add(&request[cut..]),
                said => said,
            };
            prop_assert_eq!(said, Said::Host("a.example.com".to_owned()));
        }
    }
}
