"""Clients that send what no SDK would: each gets a clear answer or loses its own connection, the
server's memory stays bounded, and a neighbour's sandbox does not notice."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time

import pytest
from conftest import server_of_its_own
from support import MIB, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

# More than the server has before, at any moment of a test. One connection may have 256 MiB of
# content under way, and as much again while a message of that size is taken apart.
EXTRA_MAX = 700 * MIB
TEXT, PING, CONTINUATION = 1, 9, 0


@pytest.fixture(scope="module")
def victim():
    """A server that gives up soon on a client that does not read."""
    with server_of_its_own("--stall-limit", "2s") as server:
        yield server.start()


@pytest.fixture(scope="module")
def neighbour(victim):
    with victim.sdk().sandbox.create() as sandbox:
        sandbox.fs.write_text_file("/tmp/there", "yes")
        yield sandbox


@pytest.fixture
def unmoved(victim, neighbour):
    """Nothing that the test does is felt by the neighbour or makes the server grow without end."""
    before = resident(victim)
    peak, slowest, ended = [before], [0.0], threading.Event()

    def watch():
        while not ended.wait(0.1):
            start = time.monotonic()
            assert neighbour.fs.read_text_file("/tmp/there") == "yes"
            slowest[0] = max(slowest[0], time.monotonic() - start)
            peak[0] = max(peak[0], resident(victim))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    ended.set()
    watcher.join(20)
    assert not watcher.is_alive()
    assert slowest[0] < 5, f"the neighbour waited {slowest[0]:.1f} s"
    assert peak[0] - before < EXTRA_MAX, f"{before >> 20} MiB became {peak[0] >> 20} MiB"
    assert victim.process.poll() is None
    assert "panicked" not in victim.log.read_text(errors="replace")


def resident(server) -> int:
    """Bytes of memory that the server has."""
    with open(f"/proc/{server.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def attacker(server, javascript: bool = False):
    """A sandbox of the attacker's own, and its raw connection."""
    status, error, websocket = server.create_raw({"timeout": "2m"})
    assert status == 101, error
    sandbox_id = websocket.response.headers["x-deno-sandbox-id"]
    if javascript:
        websocket.close()
        websocket = connected(server, sandbox_id, javascript=True)
    try:
        websocket.sandbox_id = sandbox_id
        yield websocket
    finally:
        with contextlib.suppress(OSError):
            websocket.socket.shutdown(socket.SHUT_RDWR)
        server.end(sandbox_id)


def connected(server, sandbox_id: str, javascript: bool = False):
    """One more connection to a sandbox; without a user agent it is taken for JavaScript's."""
    return connect(
        server.url.replace("http", "ws") + f"/api/v3/sandbox/{sandbox_id}/connect",
        additional_headers={"Authorization": f"Bearer {server.token}"},
        max_size=None, proxy=None, legacy=True,
        **({"user_agent_header": None} if javascript else {}),
    )  # fmt: skip


def call(websocket, method: str, params=None, number=1) -> dict:
    """A call, and the answer to it."""
    send(websocket, method, params, number)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        message = json.loads(websocket.recv(timeout=20))
        if message.get("id") == number:
            return message
    raise AssertionError(f"no answer to {method}")


def send(websocket, method: str, params=None, number=None) -> None:
    message = {"jsonrpc": "2.0", "method": method, "params": params or {}}
    if number is not None:
        message["id"] = number
    websocket.send(json.dumps(message))


def is_alive(websocket) -> bool:
    answer = call(websocket, "readTextFile", {"path": "/etc/hostname"}, number=990)
    return bool(answer["result"]["ok"])


def closed_with(websocket, seconds: float = 15.0) -> int:
    """Reads until the server ends the connection; returns the code."""
    deadline = time.monotonic() + seconds
    try:
        while True:
            websocket.recv(timeout=deadline - time.monotonic())
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """A frame as a client sends it, with a mask of zeroes."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + bytes(4) + payload
    if len(payload) < 1 << 16:
        return head + b"\xfe" + struct.pack(">H", len(payload)) + bytes(4) + payload
    return head + b"\xff" + struct.pack(">Q", len(payload)) + bytes(4) + payload


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 4000),
        ("", 4000),
        ("pin", 4000),
        ("[" * 100_000, 4000),
        ('{"a":' * 100_000, 4000),
        ('{"jsonrpc":"2.0","id":1e999,"method":"stat"}', 4000),
        ('{"jsonrpc":"2.0","id":1,"method":"\ud800"}', 4000),
        ("1", 4001),
        ("[]", 4001),
        ("{}", 4001),
        ('[{"jsonrpc":"2.0","id":1,"method":"stat"}]', 4001),
        ('{"jsonrpc":"1.0","id":1,"method":"stat"}', 4001),
        ('{"jsonrpc":"2.0","id":{},"method":"stat"}', 4001),
        ('{"jsonrpc":"2.0","id":1,"method":7}', 4001),
        ('{"jsonrpc":"2.0","id":"' + "x" * 1000 + '","method":"stat"}', 4001),
        ('{"jsonrpc":"2.0","id":1,"method":"stat","params":[' + "0," * 600_000 + "0]}", 1009),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_message_ends_its_connection(victim, unmoved, text, code):
    with attacker(victim) as websocket:
        if "\ud800" in text:
            # Half of a character, as an escape it would be valid JSON in other parsers.
            text = text.replace("\ud800", "\\ud800")
        websocket.send(text)
        assert closed_with(websocket) == code


def test_bytes_that_are_no_text(victim, unmoved):
    for raw, codes in [
        (frame(TEXT, b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}'), {1002, 1007}),
        (frame(2, b"\xff\xfe\x00"), {4000}),
        (frame(3, b"reserved"), {1002}),
        (frame(CONTINUATION, b"of nothing"), {1002}),
        (frame(PING, b"x" * 126), {1002}),
        # Longer than any message may be; the length alone decides.
        (b"\x81\xff" + struct.pack(">Q", 1 << 40) + bytes(4), {1009}),
        (b"\x81\xff" + struct.pack(">Q", 300 * MIB) + bytes(4), {1009}),
    ]:
        with attacker(victim) as websocket:
            websocket.socket.sendall(raw)
            assert closed_with(websocket) in codes, raw[:20]


PARAMS = [
    {}, {"path": 7}, {"path": None}, {"path": ["x"]}, {"path": {"a": 1}},
    {"path": "/\x00"}, {"path": "/" + "x" * 5000}, {"path": "/" + "x" * (17 * MIB)}, {"path": ""},
    {"pid": -1}, {"pid": 1e300}, {"pid": 2**63}, {"pid": "1"}, {"pid": 0}, {"pid": 1},
    {"command": "a\x00b", "stdout": "null", "stderr": "null"},
    {"command": "true", "args": [1]}, {"command": "true", "args": "x"},
    {"command": "true", "args": ["x" * (20 * MIB)]},
    {"command": "true", "env": {"A=B": "x"}}, {"command": "true", "env": {"A": "\x00"}},
    {"command": "true", "stdinStreamId": 99}, {"command": "true", "stdinStreamId": -1},
    {"command": "true", "cwd": "\x00"},
    {"path": "/tmp/x", "contentStreamId": 12345}, {"path": "/tmp/x", "content": "%%%"},
    {"path": "/tmp/x", "content": 5}, {"fileHandleId": 77}, {"fileHandleId": -1},
    {"fileHandleId": 1, "length": 1e18}, {"abortId": -5}, {"abortId": 999},
    {"key": "A\x00", "value": "x"}, {"key": "", "value": "x"}, {"key": 1},
    {"options": 3, "path": "/tmp/x"}, {"path": "/tmp/x", "mode": -1}, {"path": "/tmp", "mode": 2**40},
    {"url": "file:///etc/passwd", "method": "GET", "headers": []},
    {"domain": "example.com", "port": 99999}, {"streamId": 5},
]  # fmt: skip
METHODS = [
    "stat", "readFile", "readTextFile", "writeFile", "writeTextFile", "readDir", "mkdir", "remove",
    "rename", "chmod", "truncate", "open", "fileRead", "fileClose", "spawn", "processWait",
    "processKill", "envSet", "envGet", "abort", "fetch", "exposeHttp", "vscode", "walk",
    "denoReplEval", "nosuchmethod", "", "constructor", "__proto__", "$sandbox.stream.start",
]  # fmt: skip


def test_wrong_parameters_have_answers(victim, unmoved):
    """Every method with every wrong set: one answer each, and the connection goes on."""
    with attacker(victim) as websocket:
        number = 1000
        for method in METHODS:
            asked = {}
            for params in PARAMS:
                # A long name once is enough, and process 1 never ends.
                is_long = len(json.dumps(params)) > MIB and method not in ("stat", "spawn")
                if is_long or (method == "processWait" and params.get("pid") == 1):
                    continue
                number += 1
                asked[number] = str(params)[:100]
                send(websocket, method, params, number)
            while asked:
                text = websocket.recv(timeout=20)
                answer = json.loads(text)
                if "id" in answer:
                    asked.pop(answer["id"])
                    assert "result" in answer or "error" in answer, answer
                    assert len(text) < 2 * MIB
        assert is_alive(websocket)


def test_ids_of_every_kind(victim, unmoved):
    with attacker(victim) as websocket:
        for number in [0, -1, 2**53, -(2**63), 1.5, "text", "", "0"]:
            answer = call(websocket, "envGet", {"key": "HOME"}, number)
            assert answer["result"]["ok"] == "/home/app"
        # Two calls of one id: two answers.
        send(websocket, "envGet", {"key": "HOME"}, 7)
        send(websocket, "envGet", {"key": "HOME"}, 7)
        assert [json.loads(websocket.recv(timeout=10))["id"] for _ in range(2)] == [7, 7]
        # Without an id nothing is called.
        websocket.send('{"jsonrpc":"2.0","method":"mkdir","params":{"path":"/tmp/silent"}}')
        answer = call(websocket, "stat", {"path": "/tmp/silent"}, 8)
        assert answer["result"]["error"]["code"] == "ENOENT"


def test_streams_that_are_nobodys(victim, neighbour, unmoved):
    with attacker(victim) as websocket:
        for method in ["start", "enqueue", "end", "error", "cancel"]:
            for params in [
                {}, {"streamId": 404, "data": "aGk="}, {"streamId": -1}, {"streamId": "x"},
                {"streamId": 2**64, "data": ""}, {"streamId": None, "data": 5}, [1],
                {"streamId": 404, "data": "not base64 %"}, {"streamId": 404, "error": {"message": 5}},
            ]:  # fmt: skip
                send(websocket, f"$sandbox.stream.{method}", params)
        # The ids of streams that the server sends are not the ids of those that it takes.
        child = call(websocket, "spawn", {"command": "cat", "stdout": "piped", "stderr": "null"}, 1)
        ids = child["result"]["ok"]
        for params in [{"streamId": ids["stdoutStreamId"], "data": "aGk="}]:
            send(websocket, "$sandbox.stream.enqueue", params)
            send(websocket, "$sandbox.stream.end", params)
        # Those of another connection are not ours: the neighbour's output arrives whole.
        theirs = neighbour.spawn("bash", args=["-c", "sleep 0.3; echo whole"], stdout="piped")
        for stream_id in range(ids["stdoutStreamId"] - 5, ids["stdoutStreamId"] + 20):
            if stream_id != ids["stdoutStreamId"]:
                send(websocket, "$sandbox.stream.cancel", {"streamId": stream_id, "reason": None})
                send(websocket, "$sandbox.stream.end", {"streamId": stream_id})
        assert theirs.stdout.read(-1) == b"whole\n"
        assert theirs.wait()["success"]
        # A stream is used once.
        send(websocket, "$sandbox.stream.start", {"streamId": 405})
        send(websocket, "$sandbox.stream.enqueue", {"streamId": 405, "data": "aGk="})
        send(websocket, "$sandbox.stream.end", {"streamId": 405})
        first = call(websocket, "writeFile", {"path": "/tmp/a", "contentStreamId": 405}, 2)
        assert first["result"] == {"ok": None}
        second = call(websocket, "writeFile", {"path": "/tmp/b", "contentStreamId": 405}, 3)
        assert second["result"]["error"]["code"] == "EBADF"
        assert is_alive(websocket)


def test_ten_thousand_open_calls(victim, unmoved):
    with attacker(victim) as websocket:
        child = call(websocket, "spawn", {"command": "sleep", "args": ["60"], "stdout": "null",
                                          "stderr": "null"}, 1)  # fmt: skip
        pid = child["result"]["ok"]["pid"]
        for number in range(10_100):
            send(websocket, "processWait", {"pid": pid}, 100_000 + number)
        refused = json.loads(websocket.recv(timeout=30))
        assert refused["result"]["error"]["code"] == "EAGAIN"
        for _ in range(99):
            websocket.recv(timeout=10)
        # The call that ends them all is one too many; another connection can make it.
        with connected(victim, websocket.sandbox_id) as other:
            assert call(other, "processKill", {"pid": pid, "signal": "SIGKILL"})["result"] == {"ok": None}
        answers = {json.loads(websocket.recv(timeout=30))["id"] for _ in range(10_000)}
        assert len(answers) == 10_000
        assert is_alive(websocket)


def flood(websocket, data: bytes, seconds: float = 10.0) -> int:
    """Sends the same bytes again and again, until the other side ends the connection or takes
    no more for a second; returns how many it took."""
    raw = websocket.socket
    raw.settimeout(1)
    sent, deadline = 0, time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            sent += raw.send(data)
    return sent


def ends(server, websocket, seconds: float) -> None:
    """The server gives the connection up: its own socket is gone."""
    try:
        port = websocket.socket.getsockname()[1]
    except OSError:
        return  # the library has seen its end

    def is_gone():
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        server_port = int(server.url.rsplit(":", 1)[1])
        for row in rows:
            ports = int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16)
            if ports == (server_port, port) and row[3] == "01":
                return False
        return True

    wait_until("the server has given the connection up", is_gone, seconds)


class Deaf:
    """A connection whose client reads nothing: a socket of its own, after the handshake."""

    def __init__(self, server, sandbox_id: str):
        host, port = server.url.removeprefix("http://").rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), 10)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /api/v3/sandbox/{sandbox_id}/connect HTTP/1.1\r\nHost: {host}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 101"), head

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def call(self, method: str, params: dict, number: int) -> bytes:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        return frame(TEXT, json.dumps(message).encode())


def test_a_client_that_never_reads_files(victim, unmoved):
    with attacker(victim) as owner:
        made = call(owner, "spawn", {"command": "bash", "args": ["-c",
            "head -c 60000 /dev/urandom > /tmp/small; "
            "mkdir /tmp/many; cd /tmp/many; seq 20000 | xargs touch"],
            "stdout": "null", "stderr": "null"})  # fmt: skip
        call(owner, "processWait", {"pid": made["result"]["ok"]["pid"]}, 2)
        for path, method, count in [
            ("/tmp/small", "readFile", 20_000),
            ("/tmp/many", "readDir", 20),
        ]:
            with Deaf(victim, owner.sandbox_id) as deaf:
                flood(deaf, b"".join(deaf.call(method, {"path": path}, n) for n in range(count)), 1)
                ends(victim, deaf, 30)
        assert is_alive(owner)


def test_a_client_that_never_reads_output(victim, unmoved):
    with attacker(victim) as owner, Deaf(victim, owner.sandbox_id) as deaf:
        deaf.socket.sendall(
            b"".join(
                deaf.call("spawn", {"command": "yes", "stdout": "piped", "stderr": "null"}, n)
                for n in range(50)
            )
        )
        ends(victim, deaf, 30)
        assert is_alive(owner)


def test_a_client_that_only_pings(victim, unmoved):
    with attacker(victim) as owner:
        with Deaf(victim, owner.sandbox_id) as deaf:
            flood(deaf, frame(PING, b"x" * 125) * 100, 1)
            ends(victim, deaf, 20)
        # A text of the JavaScript SDK's own; what cannot be answered is dropped.
        with Deaf(victim, owner.sandbox_id) as deaf:
            flood(deaf, frame(TEXT, b"ping") * 1000, 1)
        assert is_alive(owner)


def test_a_flood_for_streams_that_nobody_claims(victim, unmoved):
    with attacker(victim) as owner:
        for size, streams in [(1, 1), (1, 200), (700 << 10, 50)]:
            data = base64.b64encode(bytes(size)).decode()
            with Deaf(victim, owner.sandbox_id) as deaf:
                notes = [("start", {"streamId": n}) for n in range(streams)]
                notes += [("enqueue", {"streamId": n, "data": data}) for n in range(streams)]
                deaf.socket.sendall(b"".join(note(*n) for n in notes[:streams]))
                flood(deaf, b"".join(note(*n) for n in notes[streams:]) * (1 if size > 1 else 100), 1.5)
        assert is_alive(owner)


def note(method: str, params: dict) -> bytes:
    message = {"jsonrpc": "2.0", "method": f"$sandbox.stream.{method}", "params": params}
    return frame(TEXT, json.dumps(message, separators=(",", ":")).encode())


def test_fragments(victim, unmoved):
    with attacker(victim) as websocket:
        message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "envGet", "params": {"key": "HOME"}})
        parts = [frame(TEXT, b"", final=False)]
        parts += [frame(CONTINUATION, bytes([byte]), final=False) for byte in message.encode()]
        # Pings may come between the fragments.
        parts.insert(5, frame(PING, b"between"))
        websocket.socket.sendall(b"".join(parts) + frame(CONTINUATION, b""))
        assert json.loads(websocket.recv(timeout=10))["result"]["ok"] == "/home/app"
        # A message that never ends: empty fragments, then large ones.
        flood(websocket, frame(CONTINUATION, b"", final=False) * 10_000, 1)
    with attacker(victim) as websocket:
        websocket.socket.sendall(frame(TEXT, b"", final=False))
        flood(websocket, frame(CONTINUATION, b" " * MIB, final=False), 5)
        ends(victim, websocket, 10)


def test_many_connections_come_and_go(victim, unmoved):
    with attacker(victim) as owner:

        def connected():
            # A place of one that has gone is free a moment later.
            with contextlib.suppress(AssertionError):
                return Deaf(victim, owner.sandbox_id)

        for _ in range(4):
            sockets = [wait_until("there is a place", connected) for _ in range(60)]
            for one in sockets:
                one.socket.sendall(frame(TEXT, b'{"jsonrpc":"2.0","id":1,"method":"envToObject"}'))
            for one in sockets:
                one.socket.close()
            assert is_alive(owner)
