//! What a sandbox can reach. The internet is a network name space of the test's own.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::{Host, run};

/// A machine behind the host: one address that is public, one that is private. It answers TCP
/// connections with `hello` on two ports.
struct Outside {
    link: String,
    public: Ipv4Addr,
    private: Ipv4Addr,
    host_public: Ipv4Addr,
    port: u16,
    other_port: u16,
    udp: UdpSocket,
    /// Ends the thread that keeps the name space.
    _stop: mpsc::Sender<()>,
    /// There is one internet at a time.
    _only: MutexGuard<'static, ()>,
}

static ONLY: Mutex<()> = Mutex::new(());

impl Outside {
    fn new() -> Self {
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let id = std::process::id();
        // A /30 of the range for documentation, and one that is private.
        let third = u8::try_from(id % 60).unwrap() * 4;
        let host_public = Ipv4Addr::new(203, 0, 113, third + 1);
        let public = Ipv4Addr::new(203, 0, 113, third + 2);
        let host_private = Ipv4Addr::new(10, 208, 77, third + 1);
        let private = Ipv4Addr::new(10, 208, 77, third + 2);
        let link = format!("out{id}");
        let (stop, stopped) = mpsc::channel::<()>();
        let (send, receive) = mpsc::channel();
        let inner_link = link.clone();
        thread::spawn(move || {
            new_network();
            let tid = rustix::thread::gettid().to_string();
            send.send(Err(tid)).unwrap();
            stopped.recv().unwrap();
            for arguments in [
                format!("link set {inner_link}i up"),
                format!("address add {public}/30 dev {inner_link}i"),
                format!("address add {private}/30 dev {inner_link}i"),
            ] {
                ip(&arguments);
            }
            let listeners = [(); 2].map(|()| TcpListener::bind("0.0.0.0:0").unwrap());
            let ports = listeners
                .each_ref()
                .map(|listener| listener.local_addr().unwrap().port());
            for listener in listeners {
                thread::spawn(move || greet(&listener));
            }
            let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
            send.send(Ok((ports, udp))).unwrap();
            let _ = stopped.recv();
        });
        let Err(tid) = receive.recv().unwrap() else {
            panic!("no name space")
        };
        ip(&format!(
            "link add {link} type veth peer name {link}i netns {tid}"
        ));
        ip(&format!("address add {host_public}/30 dev {link}"));
        ip(&format!("address add {host_private}/30 dev {link}"));
        ip(&format!("link set {link} up"));
        stop.send(()).unwrap();
        let Ok((ports, udp)) = receive.recv().unwrap() else {
            panic!("no listeners")
        };
        Self {
            link,
            public,
            private,
            host_public,
            port: ports[0],
            other_port: ports[1],
            udp,
            _stop: stop,
            _only: only,
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.link));
    }
}

#[expect(unsafe_code, reason = "system call without a safe wrapper")]
fn new_network() {
    // SAFETY: changes the network name space of this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

fn greet(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let _ = stream.write_all(b"hello");
    }
}

fn reaches(host: &Host, name: &str, address: impl std::fmt::Display, port: u16) -> bool {
    let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}; cat <&3'");
    let (code, output) = host.script(name, 1000, &script);
    code == 0 && output == "hello"
}

#[test]
fn the_internet_is_open_and_everything_else_closed() {
    let outside = Outside::new();
    let hole = (outside.private.into(), outside.port);
    let host_listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let host_port = host_listener.local_addr().unwrap().port();
    let open_listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let open_port = open_listener.local_addr().unwrap().port();
    thread::spawn(move || greet(&host_listener));
    thread::spawn(move || greet(&open_listener));
    let host = Host::with_holes(vec![hole, (outside.host_public.into(), open_port)]);
    let running = host.start("one");
    let other = host.start("two");
    let gateway =
        |slot: u16| Ipv4Addr::from(u32::from(host.config.network) + u32::from(slot) * 4 + 1);
    let address =
        |slot: u16| Ipv4Addr::from(u32::from(host.config.network) + u32::from(slot) * 4 + 2);

    assert!(reaches(&host, "one", outside.public, outside.port));
    assert!(reaches(&host, "two", outside.public, outside.other_port));
    assert!(reaches(&host, "one", outside.private, outside.port), "hole");
    assert!(
        reaches(&host, "one", outside.host_public, open_port),
        "hole of the host"
    );
    assert!(
        !reaches(&host, "one", outside.private, outside.other_port),
        "private"
    );
    assert!(
        !reaches(&host, "one", "127.0.0.1", host_port),
        "host loopback"
    );
    assert!(
        !reaches(&host, "one", outside.host_public, host_port),
        "host address"
    );
    assert!(
        !reaches(&host, "one", gateway(running.slot), host_port),
        "gateway"
    );
    assert!(
        !reaches(&host, "one", gateway(other.slot), host_port),
        "other gateway"
    );

    // One sandbox does not reach another, and the host's processes do not by accident either.
    host.root(
        "two",
        "(setsid bash -c 'while :; do python3 -m http.server 8080 --bind 0.0.0.0; done' &>/dev/null &); \
         for i in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null && exit; sleep 0.1; done; exit 1",
    );
    let (code, _) = host.script(
        "one",
        0,
        &format!(
            "timeout 2 bash -c 'exec 3<>/dev/tcp/{}/8080'",
            address(other.slot)
        ),
    );
    assert_ne!(code, 0, "another sandbox");
    let target = SocketAddr::from((address(other.slot), 8080));
    assert!(std::net::TcpStream::connect_timeout(&target, Duration::from_secs(1)).is_err());
}

#[test]
fn source_addresses_cannot_be_forged_and_ipv6_is_off() {
    let outside = Outside::new();
    let host = Host::new();
    host.start("one");
    let port = outside.udp.local_addr().unwrap().port();
    outside
        .udp
        .set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    let send = |source: &str| {
        let script = format!(
            "python3 - <<'END'
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
udp = struct.pack('!HHHH', 4444, {port}, 12, 0) + b'mark'
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton('{source}'), socket.inet_aton('{public}'))
s.sendto(ip + udp, ('{public}', 0))
END",
            public = outside.public
        );
        let (code, output) = host.script("one", 0, &script);
        assert_eq!(code, 0, "{output}");
        let mut bytes = [0; 16];
        outside.udp.recv(&mut bytes).is_ok()
    };
    let own = host
        .root("one", "ip -4 -o address show dev eth0")
        .split_whitespace()
        .nth(3)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert!(send(&own), "its own address works");
    assert!(!send("10.211.255.2"), "an address of another slot");
    assert!(!send("198.51.100.7"), "an address of the internet");
    assert_eq!(
        host.root("one", "cat /proc/net/if_inet6 | grep -v ' lo$' | wc -l"),
        "0"
    );
    let (code, _) = host.script("one", 0, "python3 -c 'import socket; socket.socket(40, 1)'");
    assert_ne!(code, 0, "vsock");
    let (code, _) = host.script("one", 0, "python3 -c 'import socket; socket.socket(17, 3)'");
    assert_ne!(code, 0, "packet sockets");
}

#[test]
fn the_firewall_belongs_to_the_instance() {
    let mut host = Host::new();
    let table = format!("sandstone_{}", host.config.instance);
    let tables = || run(Command::new("nft").args(["list", "tables"]));
    assert!(tables().contains(&table));
    host.reopen();
    assert_eq!(tables().matches(&table).count(), 1);
    host.runtime().close().unwrap();
    assert!(!tables().contains(&table));
    host.runtime().close().unwrap();
}
