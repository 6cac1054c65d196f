"""SSH into sandboxes, with OpenSSH's own clients: ssh, sftp and scp."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support import MIB, bash, wait_until

SECONDS = 60


class Door:
    """What `expose_ssh` has answered, and the clients that use it."""

    def __init__(self, access: dict, directory: Path):
        self.user, self.host, self.port = access["username"], access["hostname"], access["port"]
        self.target = f"{self.user}@{self.host}"
        self.directory = directory

    def options(self, *more: str) -> list[str]:
        """Of ssh, sftp and scp alike: nothing of the machine's own settings or keys."""
        options = {
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": self.directory / "known_hosts",
            "IdentityFile": "none",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "LogLevel": "INFO",
            "Port": self.port,
        }
        line = ["-F", "none"]
        for name, value in options.items():
            line += ["-o", f"{name}={value}"]
        return line + list(more)

    def ssh(self, *arguments: str) -> list[str]:
        """A command line of ssh; options come first in `arguments`, the target is among them."""
        return ["ssh", *self.options(), *arguments]

    def run(self, command: str, *options: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
        """A command in the sandbox."""
        line = self.ssh(*options, self.target, command)
        return subprocess.run(line, input=stdin, capture_output=True, timeout=SECONDS)

    def start(self, command: str, *options: str, **streams) -> subprocess.Popen:
        """The same, left running."""
        line = self.ssh(*options, self.target, command)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | streams
        return subprocess.Popen(line, stderr=subprocess.PIPE, **streams)

    def check(self, *line: str, stdin: bytes = b"") -> None:
        """A client that must succeed."""
        done = subprocess.run(line, input=stdin, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


@pytest.fixture(scope="module")
def sandbox(shared):
    with shared.sdk().sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def door(sandbox, tmp_path_factory) -> Door:
    return Door(sandbox.expose_ssh(), tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module", autouse=True)
def silent(door):
    """A connection that says nothing, opened while the other tests run."""
    with socket.create_connection((door.host, door.port), 30) as peer:
        yield peer, time.monotonic()


@contextlib.contextmanager
def ended(process: subprocess.Popen):
    """A client that is gone at the end, whatever happens."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_what_is_answered(shared, sdk, tmp_path):
    # The SDK accepts `ssh` and then never shows it; the call does.
    with sdk.sandbox.create(ssh=True) as sandbox:
        access = sandbox.expose_ssh()
        assert re.fullmatch(r"[a-z2-7]{26}", access["username"])
        assert isinstance(access["port"], int) and access["hostname"]
        second = sandbox.expose_ssh()
        assert second["username"] != access["username"]
        for one in (access, second):
            assert Door(one, tmp_path).run("id -un").stdout == b"app\n"
        own = shared.own("POST", f"/sandboxes/{sandbox.id}/ssh")
        assert own.keys() == access.keys()
        for _ in range(13):
            shared.own("POST", f"/sandboxes/{sandbox.id}/ssh")
        path = f"/sandboxes/{sandbox.id}/ssh"
        shared.refuses("POST", path, (429, "SSH_USER_LIMIT"), sandbox.id, "16")


def test_exec(door):
    done = door.run("echo out; echo err >&2; pwd; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n/home/app\n")
    assert done.stderr.splitlines()[-1] == b"err"
    assert door.run("true").returncode == 0
    assert door.run("no-such-program").returncode == 127
    # OpenSSH shows every signal as 255.
    assert door.run("kill -KILL $$").returncode == 255
    assert door.run("[ ! -t 0 ] && echo no terminal").stdout == b"no terminal\n"
    assert door.run("cat", stdin="größer\n".encode()).stdout == "größer\n".encode()


def test_environment(door):
    done = door.run("env", "-o", "SetEnv=LC_TEST=größer FOO=b_r")
    lines = done.stdout.decode().splitlines()
    assert {"LC_TEST=größer", "FOO=b_r", "HOME=/home/app", "USER=app"} <= set(lines)
    assert any(re.fullmatch(r"SSH_CONNECTION=\S+ \d+ \S+ \d+", line) for line in lines)
    # It is the session's own.
    assert "FOO=" not in door.run("env").stdout.decode()


def test_a_script_for_a_login_shell(door):
    line = door.ssh(door.target)
    script = b"shopt -q login_shell && echo login\nexit 5\n"
    done = subprocess.run(line, input=script, capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (5, b"login")


def test_twenty_megabytes_both_ways(door):
    data = noise(20 * MIB)
    done = door.run("tee copy | sha256sum >&2; cat copy; rm copy", stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data
    assert hashlib.sha256(data).hexdigest().encode() in done.stderr


def test_filters_do_not_block(door):
    # More input than fits into all windows, while the output is not read up to the end either.
    data = noise(20 * MIB)
    assert door.run("cat", stdin=data).stdout == data
    # As `zcat` does it: each piece of input becomes more output than a window has.
    script = "while b := i.read(65536): o.write(b * 6)"
    program = f'python3 -c "import sys; i, o = sys.stdin.buffer, sys.stdout.buffer\n{script}"'
    done = door.run(program, stdin=data[: 8 * MIB])
    assert len(done.stdout) == 48 * MIB, done.stderr


def test_input_that_nobody_reads_stops_nothing_else(door):
    control = door.directory / "control"
    master = ("-M", "-S", str(control))
    with ended(door.start("sleep 60", *master, stdin=subprocess.PIPE)) as stuck:
        wait_until("the master listens", control.exists)
        os.set_blocking(stuck.stdin.fileno(), False)
        sent, deadline = 0, time.monotonic() + 2
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                sent += os.write(stuck.stdin.fileno(), bytes(MIB))
            time.sleep(0.01)
        # The windows and buffers between here and there, and no more.
        assert MIB // 2 < sent < 16 * MIB
        beside = ("-S", str(control))
        started = time.monotonic()
        assert door.run("cat", *beside, stdin=b"alive").stdout == b"alive"
        done = door.run("head -c 5M /dev/zero", *beside)
        assert len(done.stdout) == 5 * MIB
        assert time.monotonic() - started < 10
    stuck.stdin.close()


def test_output_that_nobody_reads_waits(door, sandbox):
    with ended(door.start("cat /dev/zero & echo $! >reader; wait")) as idle:
        read_bytes = "awk '/^wchar/ {print $2}' /proc/$(cat reader)/io"

        def written() -> int:
            code, out, _ = bash(sandbox, read_bytes)
            return int(out) if code == 0 and out else 0

        wait_until("it prints", lambda: written() > MIB // 2)
        seen = wait_until("it stands still", lambda: (n := written()) == (time.sleep(0.5), written())[1] and n)
        assert seen < 32 * MIB
        assert idle.poll() is None
    wait_until("it has ended", lambda: bash(sandbox, "kill -0 $(cat reader)")[0] != 0)


class Terminal:
    """A terminal of ours with ssh in it."""

    def __init__(self, line: list[str], columns: int, rows: int):
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            line, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=dict(os.environ, TERM="xterm-256color"),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, seconds: float = 20) -> None:
        """Reads until the pattern has come."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self.master, 65536).decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)


def test_a_terminal(door, sandbox):
    terminal = Terminal(door.ssh(door.target), 101, 37)
    try:
        terminal.expect(r"\$ ")
        terminal.type("tty; stty size; echo \"<$TERM>\"; shopt login_shell\n")
        terminal.expect(r"/dev/pts/\d+")
        terminal.expect(r"37 101")
        terminal.expect(r"<xterm-256color>")
        terminal.expect(r"login_shell\s+on")
        terminal.resize(90, 20)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.type("until [ \"$(stty size)\" = '20 90' ]; do sleep .1; done; echo re\"\"sized\n")
        terminal.expect("resized")
        # The terminal's keys: what Ctrl+C interrupts is the command, not the session.
        terminal.type("sleep 100\n")
        terminal.expect(r"sleep 100")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.type("echo still \"\"here $?\n")
        terminal.expect(r"still here 130")
        # What is left behind in the terminal does not keep it open.
        terminal.type("sleep 1000 & exit 9\n")
        assert terminal.process.wait(20) == 9
    finally:
        terminal.close()
    bash(sandbox, "pkill -x sleep")


def test_a_client_that_goes_hangs_up(door, sandbox):
    script = "trap 'touch hung-up; exit' HUP; echo ready; while :; do sleep .1; done"
    with ended(door.start(script)) as client:
        assert client.stdout.readline() == b"ready\n"
        client.kill()
        wait_until("SIGHUP came", lambda: bash(sandbox, "ls hung-up")[0] == 0)


def test_sftp(door, sandbox, tmp_path):
    data = noise(5 * MIB)
    (tmp_path / "up load").write_bytes(data)
    batch = "\n".join(
        [
            "mkdir sftp", "cd sftp", f'put "{tmp_path}/up load" there', "chmod 640 there",
            "ln -s there link", "rename there moved", f'get moved "{tmp_path}/down"',
            "ls -l", "rm link", "pwd",
        ]
    )  # fmt: skip
    door.check("sftp", *door.options("-b", "-"), door.target, stdin=batch.encode())
    assert (tmp_path / "down").read_bytes() == data
    _, out, _ = bash(sandbox, "stat -c '%n %a %U' sftp/*")
    assert out == "sftp/moved 640 app\n"


@pytest.mark.parametrize("mode", ["-s", "-O"])
def test_scp(door, tmp_path, mode):
    tree = tmp_path / "tree"
    (tree / "sub dir").mkdir(parents=True)
    (tree / "sub dir" / "ünï").write_bytes(noise(MIB))
    (tree / "empty").touch()
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o755)
    remote = f"{door.target}:scp{mode}"
    door.check("scp", *door.options(mode, "-r", "-p", str(tree), remote))
    door.check("scp", *door.options(mode, "-r", "-p", remote, str(tmp_path / "back")))
    for path in tree.rglob("*"):
        back = tmp_path / "back" / path.relative_to(tree)
        assert back.stat().st_mode == path.stat().st_mode
        assert path.is_dir() or back.read_bytes() == path.read_bytes()


def greeting(peer: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return peer.recv(100)
    return b""


def test_strangers_have_few_places(door, silent):
    address = (door.host, door.port)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(40)]
        greetings = [greeting(peer) for peer in peers]
        assert set(greetings) == {b"SSH-2.0-sandstone\r\n", b""}
        assert greetings.count(b"") >= 8
        assert door.run("true").returncode == 255
    wait_until("there are places again", lambda: door.run("true").returncode == 0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


SERVERS = """
import http.server, socket, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[::-1])
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 7070), Handler)
threading.Thread(target=server.serve_forever).start()
echo = socket.socket(socket.AF_UNIX)
echo.bind("/tmp/echo.sock")
echo.listen()
print("ready", flush=True)
while True:
    peer, _ = echo.accept()
    data = b""
    while part := peer.recv(65536): data += part
    peer.sendall(b"<" + data + b">")
    peer.close()
"""


def test_local_forwarding(door, sandbox):
    servers = sandbox.spawn("python3", args=["-c", SERVERS], stdout="piped")
    wait_until("they listen", lambda: bash(sandbox, "test -S /tmp/echo.sock")[0] == 0)
    ports = [free_port() for _ in range(3)]
    forwards = ["localhost:7070", "/tmp/echo.sock", "localhost:1"]
    options = ["-N"]
    for port, target in zip(ports, forwards, strict=True):
        options += ["-L", f"127.0.0.1:{port}:{target}"]
    line = door.ssh(*options, door.target)
    with ended(subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)):

        def connect(port: int) -> socket.socket | None:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), 10)
            return None

        wait_until("ssh listens", lambda: connect(ports[0]))
        data = noise(3 * MIB)

        def post(_) -> bool:
            url = f"http://127.0.0.1:{ports[0]}/"
            return httpx.post(url, content=data, trust_env=False, timeout=30).content == data[::-1]

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(post, range(4)))
        # The end of one direction leaves the other open.
        with connect(ports[1]) as peer:
            peer.sendall(b"half")
            peer.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: peer.recv(100), b"")) == b"<half>"
        with connect(ports[2]) as peer:
            assert peer.recv(1) == b""
        assert post(0)
    bash(sandbox, f"kill -9 {servers.pid}")
    servers.wait()


def test_what_is_refused(door):
    done = door.run("true", "-R", "0:localhost:1", "-o", "ExitOnForwardFailure=yes")
    assert done.returncode == 255
    assert b"remote port forwarding failed" in done.stderr
    done = door.run("true", "-R", "/tmp/r.sock:localhost:1", "-o", "ExitOnForwardFailure=yes")
    assert done.returncode == 255
    # Without that option a client goes on.
    assert door.run("echo on", "-R", "0:localhost:1").stdout == b"on\n"
    assert door.run("echo [$SSH_AUTH_SOCK$DISPLAY]", "-A", "-X").stdout == b"[]\n"
    line = door.ssh("-s", door.target, "netconf")
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    assert done.returncode != 0 and b"subsystem request failed" in done.stderr


def test_wrong_names(door, sdk):
    with sdk.sandbox.create() as other:
        gone = other.expose_ssh()["username"]
        other.kill()

    def knock(user: str) -> float:
        started = time.monotonic()
        line = door.ssh(f"{user}@{door.host}", "true")
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
        assert done.returncode == 255
        assert b"Permission denied (publickey)" in done.stderr
        return time.monotonic() - started

    names = ["root", "app", door.user[:-1], door.user.upper(), gone, "a" * 200]
    with ThreadPoolExecutor(len(names)) as pool:
        times = list(pool.map(knock, names))
    assert min(times) > 1


def test_the_end_of_a_sandbox_ends_its_sessions(sdk, tmp_path):
    for options, end in [({}, lambda one: one.kill()), ({"timeout": "4s"}, lambda one: None)]:
        with sdk.sandbox.create(**options) as sandbox:
            door = Door(sandbox.expose_ssh(), tmp_path)
            with ended(door.start("echo ready; sleep 1000")) as client:
                assert client.stdout.readline() == b"ready\n"
                end(sandbox)
                _, said = client.communicate(timeout=15)
                assert client.returncode == 255
                assert f"sandbox {sandbox.id} has ended".encode() in said
            assert b"Permission denied" in door.run("true").stderr


def test_ten_sessions_at_once(door):
    data = noise(2 * MIB)

    def session(number: int) -> bool:
        done = door.run(f"cat; exit {number}", stdin=data)
        return done.returncode == number and done.stdout == data

    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(session, range(10)))


def test_strangers_have_little_time(silent):
    peer, opened = silent
    while greeting(peer):
        pass
    assert time.monotonic() - opened > 15
