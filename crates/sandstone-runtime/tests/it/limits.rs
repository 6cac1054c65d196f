//! Memory, processes, processor.

use std::time::Instant;

use crate::support::Host;

#[test]
fn memory_is_limited_and_the_agent_survives() {
    let host = Host::new();
    let mut spec = host.spec("one");
    spec.memory_bytes = 64 << 20;
    host.start_spec(spec);
    let (code, _) = host.script(
        "one",
        0,
        "head -c 300m /dev/zero | tail -c 300m | wc -c; exit ${PIPESTATUS[1]}",
    );
    assert_ne!(code, 0);
    assert_eq!(host.root("one", "echo alive"), "alive");
    // Files in memory count too, and leave some for processes.
    let (code, _) = host.script("one", 0, "head -c 300m /dev/zero > /dev/shm/x");
    assert_ne!(code, 0);
    let (code, _) = host.script("one", 0, "head -c 300m /dev/zero > /run/x");
    assert_ne!(code, 0);
    assert_eq!(host.root("one", "rm /dev/shm/x; echo alive"), "alive");
}

#[test]
fn processes_are_limited() {
    let host = Host::new();
    let mut spec = host.spec("one");
    spec.pids_max = 32;
    host.start_spec(spec);
    let (code, output) = host.script(
        "one",
        0,
        "python3 -c '
import os, signal
children = []
try:
    for _ in range(100):
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except BlockingIOError:
    pass
print(len(children))
for child in children:
    os.kill(child, signal.SIGKILL)'",
    );
    let children: u32 = output.trim().parse().unwrap();
    assert!(code == 0 && (20..32).contains(&children), "{output}");
    assert_eq!(host.root("one", "echo alive"), "alive");
    // A fork bomb dies with the sandbox.
    let bomb = host.socket("one");
    let mut stream = std::os::unix::net::UnixStream::connect(bomb).unwrap();
    std::io::Write::write_all(&mut stream, b"0\nf() { f | f & }; f; sleep 100").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    host.runtime().kill("one").unwrap();
    host.assert_clean();
}

#[test]
fn the_processor_is_limited() {
    let host = Host::new();
    let mut spec = host.spec("one");
    spec.cpu_millis = 200;
    host.start_spec(spec);
    let begin = Instant::now();
    let used = host.root("one", "timeout 1 bash -c 'while :; do :; done' ; awk '/^cpu /{}; END{}' /proc/stat; times | tail -1");
    let elapsed = begin.elapsed();
    let seconds: f64 = used
        .split_whitespace()
        .next()
        .and_then(|user| user.trim_end_matches('s').split_once('m'))
        .map(|(minutes, seconds)| {
            minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
        })
        .unwrap();
    assert!(
        seconds < 0.5 * elapsed.as_secs_f64(),
        "{seconds} s in {elapsed:?}"
    );
}
