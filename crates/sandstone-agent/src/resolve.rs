//! Host names, looked up as `/etc/hosts` and `/etc/resolv.conf` of the sandbox say. A static binary
//! has no name service, and one loaded from the sandbox would be foreign code in the agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::accounts::read_regular;

/// Largest file of settings that is read, bytes.
const SETTINGS_MAX_BYTES: u64 = 1 << 20;

/// Servers that are asked: `MAXNS` of `resolv.conf(5)`.
const SERVERS_MAX: usize = 3;

/// Suffixes that are tried.
const SUFFIXES_MAX: usize = 6;

/// How long a server is waited for: `timeout` of `resolv.conf(5)`, shorter, because two rounds must
/// fit into the time for connecting.
const SERVER_LIMIT: Duration = Duration::from_secs(2);

/// Rounds over all servers: `attempts` of `resolv.conf(5)`.
const ROUNDS: usize = 2;

/// Addresses that are kept of an answer.
const ADDRESSES_MAX: usize = 16;

/// Largest answer that is read, bytes: a datagram of the size that we announce.
const ANSWER_MAX_BYTES: usize = 4096;

const DNS_PORT: u16 = 53;
const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// No such name: RFC 1035, 4.1.1.
const CODE_NO_NAME: u8 = 3;

/// The addresses of a name, or the address that it is; IPv4 first.
///
/// # Errors
/// `ENXIO` when there is no such name or no server knows; `EINVAL` for what is no name.
pub(crate) fn resolve(host: &str, deadline: Instant) -> Result<Vec<IpAddr>, Errno> {
    let literal = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(address) = literal.parse() {
        return Ok(vec![address]);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if encode_name(name).is_none() {
        return Err(Errno::INVAL);
    }
    let read = |path| {
        read_regular(Path::new(path), SETTINGS_MAX_BYTES)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    let known = from_hosts(&read("/etc/hosts"), name);
    if !known.is_empty() {
        return Ok(known);
    }
    // RFC 6761, 6.3: these names never leave the machine.
    if name.eq_ignore_ascii_case("localhost") || has_suffix(name, ".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let settings = Settings::parse(&read("/etc/resolv.conf"));
    for name in settings.candidates(name, host.ends_with('.')) {
        let addresses = settings.ask(&name, deadline);
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    Err(Errno::NXIO)
}

fn has_suffix(name: &str, suffix: &str) -> bool {
    name.len() > suffix.len()
        && name.is_char_boundary(name.len() - suffix.len())
        && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

/// The addresses that `hosts(5)` gives to a name.
fn from_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .take(ADDRESSES_MAX)
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

/// What `resolv.conf(5)` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    servers: Vec<IpAddr>,
    suffixes: Vec<String>,
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    settings.servers.extend(server);
                }
                // The last of these lines holds.
                Some("search" | "domain") => {
                    settings.suffixes = words.take(SUFFIXES_MAX).map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        settings.servers.truncate(SERVERS_MAX);
        if settings.servers.is_empty() {
            settings.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        settings
    }

    /// The full names that `name` may mean, in order: with a dot, first itself; without, last.
    fn candidates(&self, name: &str, is_full: bool) -> Vec<String> {
        let with_suffix = self
            .suffixes
            .iter()
            .map(|suffix| format!("{name}.{}", suffix.trim_matches('.')));
        let itself = std::iter::once(name.to_owned());
        if is_full {
            itself.collect()
        } else if name.contains('.') {
            itself.chain(with_suffix).collect()
        } else {
            with_suffix.chain(itself).collect()
        }
    }

    /// Asks the servers for a name's addresses. None when there is no such name or no answer.
    fn ask(&self, name: &str, deadline: Instant) -> Vec<IpAddr> {
        let Some(name) = encode_name(name) else {
            return Vec::new();
        };
        for _ in 0..ROUNDS {
            for server in &self.servers {
                let limit = deadline
                    .saturating_duration_since(Instant::now())
                    .min(SERVER_LIMIT);
                if limit.is_zero() {
                    return Vec::new();
                }
                if let Some(addresses) = ask_server(*server, &name, limit) {
                    return addresses;
                }
            }
        }
        Vec::new()
    }
}

/// Asks one server for both kinds of address. Nothing when it gives no usable answer.
fn ask_server(server: IpAddr, name: &[u8], limit: Duration) -> Option<Vec<IpAddr>> {
    let end = Instant::now() + limit;
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A fresh port for each question, and connected, so that only the server can answer.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(server, DNS_PORT)).ok()?;
    let local = socket.local_addr().ok()?.port();
    // The port is the kernel's choice and random; the ids only tell the two questions apart.
    let questions = [(local, TYPE_A), (local ^ 1, TYPE_AAAA)];
    for (id, kind) in questions {
        socket.send(&question(id, name, kind)).ok()?;
    }
    let mut answers: [Option<Vec<IpAddr>>; 2] = [None, None];
    let mut buffer = [0; ANSWER_MAX_BYTES];
    while answers.iter().any(Option::is_none) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left)).ok()?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for (slot, (id, kind)) in answers.iter_mut().zip(questions) {
            if let Some(answer) = read_answer(&buffer[..length], id, name, kind) {
                *slot = Some(answer);
            }
        }
    }
    // One kind is enough; without the other, the server may just not know it.
    if answers.iter().all(Option::is_none) {
        return None;
    }
    let mut addresses: Vec<IpAddr> = answers.into_iter().flatten().flatten().collect();
    addresses.truncate(ADDRESSES_MAX);
    Some(addresses)
}

/// A name as the protocol writes it; nothing for what is no name. RFC 1035, 3.1.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n))?;
        if !label.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// A question with recursion, and room for large answers. RFC 1035, 4.1; RFC 6891, 6.1.2.
fn question(id: u16, name: &[u8], kind: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + name.len() + 15);
    let recursion_desired = 0x0100_u16;
    for word in [id, recursion_desired, 1, 0, 0, 1] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes.push(0);
    bytes.extend(TYPE_OPT.to_be_bytes());
    bytes.extend((ANSWER_MAX_BYTES as u16).to_be_bytes());
    bytes.extend([0; 6]);
    bytes
}

/// The addresses in an answer to this question, none when there is no such name. Nothing when it
/// is no answer, or the server could not say.
fn read_answer(bytes: &[u8], id: u16, name: &[u8], kind: u16) -> Option<Vec<IpAddr>> {
    let mut reader = Reader { bytes, at: 0 };
    let [its_id, flags, questions, answers] = [(); 4].map(|()| reader.word());
    reader.skip(4)?;
    let (flags, answers) = (flags?, answers?);
    let is_response = flags & 0x8000 != 0;
    if its_id? != id || !is_response || questions? != 1 {
        return None;
    }
    let asked = reader.take(name.len())?;
    if !asked.eq_ignore_ascii_case(name) || reader.word()? != kind || reader.word()? != CLASS_IN {
        return None;
    }
    match (flags & 0xf) as u8 {
        0 => {}
        CODE_NO_NAME => return Some(Vec::new()),
        _ => return None,
    }
    // Aliases come with the addresses of what they name, so every address counts.
    let mut addresses = Vec::new();
    for _ in 0..answers {
        let Some((its_kind, data)) = reader.record() else {
            break; // Cut off: what came before holds.
        };
        if its_kind != kind || addresses.len() >= ADDRESSES_MAX {
            continue;
        }
        if let Ok(octets) = <[u8; 4]>::try_from(data) {
            addresses.push(Ipv4Addr::from(octets).into());
        } else if let Ok(octets) = <[u8; 16]>::try_from(data) {
            addresses.push(Ipv6Addr::from(octets).into());
        }
    }
    Some(addresses)
}

struct Reader<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, length: usize) -> Option<&'bytes [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn word(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// One resource record: its kind and data.
    fn record(&mut self) -> Option<(u16, &'bytes [u8])> {
        loop {
            match self.take(1)?[0] {
                0 => break,
                // A pointer ends a name.
                length if length >= 0xc0 => {
                    self.skip(1)?;
                    break;
                }
                length => self.skip(usize::from(length))?,
            }
        }
        let kind = self.word()?;
        self.skip(6)?; // Class and time to live.
        let length = self.word()?;
        Some((kind, self.take(usize::from(length))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u16, name: &[u8], kind: u16, code: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let count = u16::try_from(records.len()).unwrap();
        for word in [id, 0x8180 | code, 1, count, 0, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        for (kind, data) in records {
            bytes.extend([0xc0, 12]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(encode_name("a.bc").unwrap(), b"\x01a\x02bc\0");
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "ü",
            &"a".repeat(64),
            &"a.".repeat(200),
        ] {
            assert_eq!(encode_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn hosts_are_found_by_any_name_in_any_case() {
        let hosts = "::1 Box\n127.0.0.1 localhost box # other\n#1.1.1.1 box\nbad box\n2.2.2.2\n";
        let found: Vec<String> = from_hosts(hosts, "bOX")
            .iter()
            .map(IpAddr::to_string)
            .collect();
        assert_eq!(found, ["127.0.0.1", "::1"]);
        assert!(from_hosts(hosts, "other").is_empty());
    }

    #[test]
    fn settings_are_read() {
        let text = "# x\nnameserver 1.1.1.1\nnameserver bad\nsearch a b\nsearch c. d\n\
                    nameserver ::1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n";
        let settings = Settings::parse(text);
        assert_eq!(settings.servers.len(), SERVERS_MAX);
        assert_eq!(settings.candidates("x", false), ["x.c", "x.d", "x"]);
        assert_eq!(settings.candidates("x.y", false), ["x.y", "x.y.c", "x.y.d"]);
        assert_eq!(settings.candidates("x", true), ["x"]);
        assert_eq!(
            Settings::parse("").servers,
            [IpAddr::from(Ipv4Addr::LOCALHOST)]
        );
    }

    #[test]
    fn answers_are_read() {
        let name = encode_name("a.test").unwrap();
        let alias = b"\x01b\x04test\0".as_slice();
        let records = [(5, alias), (TYPE_A, &[1, 2, 3, 4][..])];
        let good = answer(7, &name, TYPE_A, 0, &records);
        let address = IpAddr::from([1, 2, 3, 4]);
        assert_eq!(read_answer(&good, 7, &name, TYPE_A), Some(vec![address]));
        assert_eq!(read_answer(&good, 8, &name, TYPE_A), None, "another id");
        assert_eq!(
            read_answer(&good, 7, &name, TYPE_AAAA),
            None,
            "another kind"
        );
        let none = answer(7, &name, TYPE_A, u16::from(CODE_NO_NAME), &[]);
        assert_eq!(read_answer(&none, 7, &name, TYPE_A), Some(vec![]));
        let broken = answer(7, &name, TYPE_A, 2, &[]);
        assert_eq!(read_answer(&broken, 7, &name, TYPE_A), None);
        assert_eq!(
            read_answer(&question(7, &name, TYPE_A), 7, &name, TYPE_A),
            None
        );
        for length in 0..good.len() {
            let _ = read_answer(&good[..length], 7, &name, TYPE_A);
        }
    }
}
