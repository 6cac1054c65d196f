"""What an operator limits: each limit with its own error, as the SDKs show it, or its own errno."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import server_of_its_own
from support import bash, python, volume, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

JS = Path(__file__).parents[1] / "js"
DENO = JS / "node_modules/@deno/linux-x64-glibc/deno"


@pytest.fixture(scope="module")
def strict():
    """A server whose limits are all other than the defaults."""
    with server_of_its_own(
        "--sandboxes-max", "2",
        "--lifetime-max", "2m",
        "--memory-min", "512MiB", "--memory-max", "1GiB",
        "--open-files", "200",
        "--pids-max", "150",
        "--cpu-millis", "300",
        "--scratch-size", "128MiB",
    ) as server:  # fmt: skip
        yield server.start()


@pytest.fixture(scope="module")
def sandbox(strict):
    with strict.sdk().sandbox.create(memory_mb=512) as sandbox:
        yield sandbox


def javascript_refusal(api, **options) -> dict:
    """How the JavaScript SDK words a refused `Sandbox.create`."""
    done = subprocess.run(
        [DENO, "run", "--quiet", "--allow-all", JS / "refusal.mjs", json.dumps(options)],
        env=api.environment(), capture_output=True, text=True, timeout=60, check=True, cwd=JS,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def python_refusal(api, **options) -> tuple[int, str]:
    """The same of the Python SDK, which shows the status and keeps the body."""
    with pytest.raises(InvalidStatus) as error, api.sdk().sandbox.create(**options):
        pass
    response = error.value.response
    assert f"HTTP {response.status_code}" in str(error.value)
    return response.status_code, json.loads(response.body)["code"]


def test_memory(strict):
    refused = (400, "MEMORY_OUT_OF_RANGE")
    strict.refuses_sandbox({"memory_mb": 511}, refused, "511", "512 and 1024 MiB")
    strict.refuses_sandbox({"memory_mb": 1025}, refused, "1025")
    assert python_refusal(strict, memory_mb=2000) == refused
    # JavaScript checks its own bounds first; these are within them.
    error = javascript_refusal(strict, memory="2GiB")
    assert (error["class"], error["status"], error["code"]) == ("ConnectionEstablishmentError", *refused)
    # The default is more than this server allows: as much as it does.
    with strict.sdk().sandbox.create(memory_mb=1024) as sandbox:
        assert sandbox.fs.read_text_file("/proc/self/status")


def test_lifetime(strict):
    refused = (400, "LIFETIME_TOO_LONG")
    strict.refuses_sandbox({"timeout": "121s", "memory_mb": 512}, refused, "timeout", "120 s")
    later = int(time.time() * 1000) + 10 * 60 * 1000
    strict.refuses_sandbox({"stop_at_ms": later, "memory_mb": 512}, refused, "stop_at_ms")
    assert python_refusal(strict, timeout="3m", memory_mb=512) == refused
    error = javascript_refusal(strict, timeout="5m", memory="800MiB")
    assert (error["class"], error["status"], error["code"]) == ("ConnectionEstablishmentError", *refused)
    with strict.sdk().sandbox.create(timeout="1m", memory_mb=512) as sandbox:
        # An extension is cut to what is allowed.
        granted = sandbox.extend_timeout(20 * 60)
        assert 100 < granted.timestamp() - time.time() < 121
        sandbox.kill()


def test_sandboxes(strict, sandbox):
    sdk = strict.sdk()
    with sdk.sandbox.create(memory_mb=512):
        refused = (429, "CONCURRENCY_LIMIT")
        strict.refuses_sandbox({"memory_mb": 512}, refused, "2 sandboxes")
        assert python_refusal(strict, memory_mb=512) == refused
        error = javascript_refusal(strict, memory="800MiB")
        assert (error["class"], error["status"], error["code"]) == ("ConnectionEstablishmentError", *refused)
        # What the server runs for itself does not count: a file of a volume is read through a
        # sandbox of its own.
        with volume(strict) as made:
            assert strict.own("GET", f"/volumes/{made['id']}/files?path=/")["entries"] == []
    # A sandbox that has just been closed makes room at once.
    for _ in range(3):
        with sdk.sandbox.create(memory_mb=512) as last:
            assert strict.is_running(last.id)


def test_only_so_many_begin_at_once(strict, sandbox):
    """Ten ask for the one place that is left."""
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: strict.create_raw({"memory_mb": 512}), range(10)))
    made = [socket for status, _, socket in answers if status == 101]
    try:
        assert len(made) == 1
        codes = {error["code"] for status, error, _ in answers if status != 101}
        assert codes == {"CONCURRENCY_LIMIT"}
    finally:
        for socket in made:
            socket.close()


def test_open_files(sandbox):
    said = python(
        sandbox,
        """
import errno, resource
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
files = []
try:
    while True:
        files.append(open("/dev/null"))
except OSError as error:
    print(errno.errorcode[error.errno], len(files) > 150)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 1000))
except (OSError, ValueError):
    print("cannot raise")
""",
    )
    assert said.split("\n")[:2] == ["EMFILE True", "cannot raise"]
    # Nor can root.
    assert bash(sandbox, "sudo bash -c 'ulimit -n 5000'")[0] != 0
    # The agent has more than the processes: many clients' files are its own.
    for _ in range(3):
        assert sandbox.fs.read_text_file("/proc/self/status")


def test_a_fork_bomb_is_bounded(strict, sandbox):
    def processes(of) -> int:
        return sum(entry["name"].isdigit() for entry in of.fs.read_dir("/proc"))

    create = strict.sdk().sandbox.create
    # The SDK wants to kill the processes of a sandbox that has been killed.
    with suppress(ConnectionClosed), create(memory_mb=512, timeout="1m") as bombed:
        bombed.spawn(
            "bash", args=["-c", "bomb() { bomb & bomb & wait; }; bomb"], stdout="null", stderr="null"
        )
        wait_until("no process is left to be had", lambda: processes(bombed) > 120, 10)
        with pytest.raises(Exception, match="EAGAIN"):
            for _ in range(100):
                bombed.spawn("true", stdout="null", stderr="null")
        # Its own files and the other sandbox are there as before.
        assert processes(bombed) <= 150
        start = time.monotonic()
        assert bash(sandbox, "echo unharmed") == (0, "unharmed\n", "")
        assert time.monotonic() - start < 5
        strict.end(bombed.id)


def test_the_disk_is_bounded(sandbox):
    code, _, err = bash(sandbox, "head -c 150M /dev/zero > ~/big; c=$?; rm ~/big; exit $c")
    assert code != 0
    assert "No space left on device" in err
    bash(sandbox, "head -c 90M /dev/zero > ~/big")
    with pytest.raises(Exception, match="ENOSPC"):
        sandbox.fs.write_file("/home/app/whole", bytes(40 << 20))
    assert bash(sandbox, "rm -f ~/whole ~/big; echo fits > ~/small")[0] == 0


def test_the_processor_is_bounded(sandbox):
    used = python(
        sandbox,
        """
import os, time
children = []
for _ in range(2):
    if os.fork() == 0:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            pass
        os._exit(0)
for _ in range(2):
    os.wait()
times = os.times()
print(times.children_user + times.children_system)
""",
    )
    # Two seconds of 0.3 processors, measured roughly: two busy children would use up to four.
    assert 0.2 < float(used) < 1.2
