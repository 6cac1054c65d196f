"""Every way in which a sandbox ends while it writes: once it is said to be stopped, its volume is
free, and what it had fsynced is there."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from conftest import server_of_its_own
from support import volume, wait_until

# Writes numbered lines and says so when one is durable; beside it, a process writes without end.
WRITER = """
import os, sys
file = os.open("/v/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while True:
    os.write(file, b"%d\\n" % number)
    os.fsync(file)
    print(number, flush=True)
    number += 1
"""
FLOOD = "while true; do head -c 20M /dev/zero > /v/flood; done"

# A client of its own process, so that it can vanish; it ends as its input says.
CLIENT = """
import os, sys, threading
from deno_sandbox import DenoDeploy
volume, timeout, writer, flood = sys.argv[1:]
with DenoDeploy().sandbox.create(volumes={"/v": volume}, timeout=timeout) as sandbox:
    sandbox.spawn("bash", args=["-c", flood], stdout="null", stderr="null")
    child = sandbox.spawn("python3", args=["-u", "-c", writer], stdout="piped", stderr="null")
    print(sandbox.id, flush=True)
    def show():
        while data := child.stdout.read(4096):
            sys.stdout.write(data.decode())
            sys.stdout.flush()
    threading.Thread(target=show, daemon=True).start()
    order = sys.stdin.readline().strip()
    if order == "vanish":
        os._exit(0)
os._exit(0)
"""


class Writing:
    """A sandbox that writes, and what it has said to be durable."""

    def __init__(self, api, volume_id: str, timeout: str):
        self.client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, volume_id, timeout, WRITER, FLOOD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=api.environment(),
        )  # fmt: skip
        self.sandbox_id = self.client.stdout.readline().strip()
        assert self.sandbox_id.startswith("sbx_")
        self.durable = -1
        while self.durable < 20:
            self.durable = int(self.client.stdout.readline())

    def order(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.client.stdin.write(what + "\n")
            self.client.stdin.flush()

    def end(self) -> int:
        """Ends the client; returns the last line that was durable."""
        with contextlib.suppress(BrokenPipeError):
            self.client.stdin.close()
        # What a half-written line says is not known.
        lines = self.client.stdout.read().split("\n")[:-1]
        self.client.wait(20)
        return int(lines[-1]) if lines else self.durable


def check(api, volume_id: str, durable: int) -> None:
    """The volume is free now, and holds every line up to the last durable one."""
    response = api.request("GET", f"/v1/volumes/{volume_id}/files?path=/log")
    assert response.status_code == 200, response.text
    lines = response.content.decode().splitlines()
    assert [int(line) for line in lines[: durable + 1]] == list(range(durable + 1))


@pytest.mark.parametrize(
    ("way", "timeout"),
    [
        ("close", "session"), ("vanish", "session"), ("deadline", "4s"),
        ("/api/v3/sandbox/{}", "5m"), ("/api/v3/sandboxes/{}", "5m"),
    ],
)  # fmt: skip
def test_ending_while_it_writes(shared, way, timeout):
    with volume(shared) as made:
        writing = Writing(shared, made["id"], timeout)
        other = shared.sdk().sandbox.connect(writing.sandbox_id) if way == "vanish" else None
        with other or contextlib.nullcontext():
            if way.startswith("/"):
                path = way.format(writing.sandbox_id)
                assert shared.request("DELETE", path).is_success
            elif way != "deadline":
                writing.order(way)
            # The same moment at which it is no longer listed as running.
            is_over = lambda: not shared.is_running(writing.sandbox_id)  # noqa: E731
            wait_until("it has ended", is_over, 20, interval=0.01)
            durable = writing.end()
            assert durable >= 20
            check(shared, made["id"], durable)


def test_the_server_ends_while_it_is_written(own_ending):
    server = own_ending
    made = server.sdk().volumes.create(slug="written", region="ord", capacity="300MB")
    writing = Writing(server, made["id"], "10m")
    server.stop()
    durable = writing.end()
    server.start()
    assert not server.is_running(writing.sandbox_id)
    check(server, made["id"], durable)


@pytest.fixture
def own_ending():
    with server_of_its_own() as server:
        yield server.start()
