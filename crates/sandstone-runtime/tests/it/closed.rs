//! A network without a way out: everything comes to the doors, or nowhere.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use sandstone_runtime::Doors;

use crate::support::{Host, wait_for};

/// Asks the sandbox to connect, and tells what it meant.
fn connection(host: &Host, doors: &Doors, address: &str, port: u16) -> Option<SocketAddrV4> {
    let script = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port}; cat <&3'");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| host.script("a", 1000, &script));
        let accepted = wait_for(Duration::from_secs(5), || doors.streams.accept().ok());
        let (mut stream, _) = accepted?;
        let meant = rustix::net::sockopt::ip_original_dst(&stream).unwrap();
        stream.write_all(b"hello").unwrap();
        drop(stream);
        assert_eq!(asked.join().unwrap(), (0, "hello".to_owned()));
        Some(meant)
    })
}

/// Sends a datagram from inside; what comes back, or how it failed.
fn datagram(host: &Host, address: &str, port: u16) -> String {
    let script = format!(
        "python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
try:
    s.connect((\"{address}\", {port}))
    s.send(b\"query\")
    print(s.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
'"
    );
    host.root("a", &script)
}

fn echo_once(socket: &UdpSocket) {
    let mut buffer = [0; 100];
    let received = wait_for(Duration::from_secs(5), || {
        socket.recv_from(&mut buffer).ok()
    });
    let (length, from) = received.unwrap();
    assert_eq!(&buffer[..length], b"query");
    socket.send_to(b"answer", from).unwrap();
}

fn check_doors(host: &Host, doors: &Doors) {
    for address in ["203.0.113.77", "198.18.1.0", "10.0.0.1", "169.254.169.254"] {
        let meant = connection(host, doors, address, 443).unwrap();
        let expected = SocketAddrV4::new(address.parse().unwrap(), 443);
        assert_eq!(meant, expected);
    }
    for server in ["8.8.8.8", "198.18.0.1"] {
        std::thread::scope(|scope| {
            scope.spawn(|| echo_once(&doors.queries));
            assert_eq!(datagram(host, server, 53), "answer");
        });
    }
}

#[test]
fn a_closed_network_comes_out_at_its_doors_only() {
    let mut host = Host::new();
    let prepared = host.prepare();
    let doors = host.runtime().close_network(&prepared).unwrap();
    host.runtime().start(prepared, host.spec("a")).unwrap();
    assert!(!host.traces().iter().any(|trace| trace.starts_with("link")));
    assert_eq!(host.root("a", "ls /sys/class/net"), "lo");
    check_doors(&host, &doors);

    // Queries over TCP have a door of their own.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let accepted = wait_for(Duration::from_secs(5), || doors.query_streams.accept().ok());
            let (mut stream, _) = accepted.unwrap();
            stream.set_nonblocking(false).unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        });
        let ask = "exec 3<>/dev/tcp/9.9.9.9/53; printf q >&3; head -c1 <&3";
        assert_eq!(host.root("a", &format!("bash -c '{ask}'")), "q");
    });

    // Everything else is refused at once; its own loopback is its own.
    for (address, port) in [
        ("203.0.113.77", 123),
        ("203.0.113.77", 443),
        ("10.0.0.1", 161),
    ] {
        let refused = datagram(&host, address, port);
        assert!(
            refused.ends_with("Error") && refused != "TimeoutError",
            "{refused}"
        );
    }
    let own = "import socket; l = socket.create_server((\"127.0.0.1\", 0)); \
        socket.create_connection(l.getsockname(), 2); print(\"own\")";
    assert_eq!(host.root("a", &format!("python3 -c '{own}'")), "own");
    for change in [
        "nft flush ruleset",
        "nft add table inet x",
        "ip link add x type dummy",
        "ip route flush table local",
        "ip link set lo down",
    ] {
        let (code, output) = host.script("a", 0, change);
        assert_ne!(code, 0, "{change}: {output}");
    }
    check_doors(&host, &doors);

    // A server that died: nobody answers until the next one stands there, also when somebody
    // inside has taken the old port.
    let port = doors.streams.local_addr().unwrap().port();
    drop(doors);
    let refused = "timeout 5 bash -c 'exec 3<>/dev/tcp/203.0.113.77/443'";
    assert_ne!(host.script("a", 1000, refused).0, 0);
    let squat = format!(
        "python3 -c 'import socket, time; l = socket.create_server((\"127.0.0.1\", {port})); \
         time.sleep(100)' >/dev/null 2>&1 &"
    );
    host.root("a", &squat);
    host.reopen();
    let doors = host.runtime().reopen_doors("a").unwrap();
    check_doors(&host, &doors);

    host.runtime().kill("a").unwrap();
    assert!(host.runtime().reopen_doors("a").is_err());
}

#[test]
fn a_prepared_sandbox_that_was_closed_can_be_discarded() {
    let host = Host::new();
    let prepared = host.prepare();
    let doors = host.runtime().close_network(&prepared).unwrap();
    assert_eq!(
        doors.streams.local_addr().unwrap().ip(),
        Ipv4Addr::LOCALHOST
    );
    host.runtime().discard(prepared).unwrap();
    host.assert_clean();
}
