"""How long a sandbox lives: sessions, durations, kill, and who may hold a volume after it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time

import pytest
from support import bash, new_slug, volume, wait_until


def test_a_session_ends_with_its_connection(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert shared.is_running(sandbox.id)
        # At once, as the documentation's example does it.
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as second:
            assert second.id != sandbox.id
            assert not shared.is_running(sandbox.id)


CLIENT = """
import sys
from deno_sandbox import DenoDeploy
sdk = DenoDeploy()
with sdk.sandbox.create(volumes={"/v": sys.argv[1]}, timeout=sys.argv[2]) as sandbox:
    sandbox.fs.write_text_file("/v/file", "written")
    print(sandbox.id, flush=True)
    sys.stdin.read()
"""


def client_that_dies(api, volume_id: str, timeout: str) -> str:
    """A sandbox whose client is gone without a word; returns its id."""
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, volume_id, timeout],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=api.environment(),
    )  # fmt: skip
    try:
        sandbox_id = client.stdout.readline().strip()
        assert sandbox_id.startswith("sbx_")
    finally:
        client.kill()
        client.wait(10)
    return sandbox_id


def test_a_session_ends_when_its_client_is_killed(shared, sdk):
    with volume(shared) as made:
        sandbox_id = client_that_dies(shared, made["id"], "session")
        wait_until("the session has ended", lambda: not shared.is_running(sandbox_id))
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert sandbox.fs.read_text_file("/v/file") == "written"


def test_a_duration_outlives_its_client(shared, sdk):
    with volume(shared) as made:
        sandbox_id = client_that_dies(shared, made["id"], "5m")
        time.sleep(1)
        assert shared.is_running(sandbox_id)
        with sdk.sandbox.connect(sandbox_id) as sandbox:
            assert sandbox.id == sandbox_id
            assert sandbox.fs.read_text_file("/v/file") == "written"
        assert shared.is_running(sandbox_id)
        shared.end(sandbox_id)
        assert not shared.is_running(sandbox_id)


def test_connections_of_others_do_not_keep_a_session(shared, sdk):
    manager = sdk.sandbox.create()
    owner = manager.__enter__()
    with sdk.sandbox.connect(owner.id) as guest:
        assert bash(guest, "echo hi")[1] == "hi\n"
        manager.__exit__(None, None, None)
        wait_until("the session has ended", lambda: not shared.is_running(owner.id))


def test_a_duration_ends_in_time(shared, sdk):
    with volume(shared) as made:
        started = time.monotonic()
        with sdk.sandbox.create(timeout="3s", volumes={"/v": made["id"]}) as sandbox:
            sandbox.fs.write_text_file("/v/file", "kept")
            wait_until("the timeout fires", lambda: not shared.is_running(sandbox.id), 15)
            assert time.monotonic() - started >= 2.5
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as second:
            assert second.fs.read_text_file("/v/file") == "kept"


def test_extend_timeout(shared, sdk):
    with sdk.sandbox.create(timeout="3s") as sandbox:
        granted = sandbox.extend_timeout(60)
        now = datetime.datetime.now(datetime.timezone.utc)
        assert now < granted <= now + datetime.timedelta(seconds=61)
        time.sleep(4)
        assert shared.is_running(sandbox.id)
        # Never shortened.
        again = sandbox.extend_timeout(1)
        assert again >= granted - datetime.timedelta(seconds=1)
        # At most half an hour from now.
        most = sandbox.extend_timeout(100_000)
        now = datetime.datetime.now(datetime.timezone.utc)
        assert most <= now + datetime.timedelta(minutes=30, seconds=1)
        sandbox.kill()


def test_extend_timeout_of_a_session(shared, sdk):
    with sdk.sandbox.create() as sandbox:
        granted = sandbox.extend_timeout(60)
        assert granted > datetime.datetime.now(datetime.timezone.utc)


@pytest.mark.parametrize("route", ["/api/v3/sandbox/{}", "/api/v3/sandboxes/{}"])
def test_kill_by_both_routes(shared, sdk, route):
    with sdk.sandbox.create(timeout="5m") as sandbox:
        response = shared.request("DELETE", route.format(sandbox.id))
        assert response.is_success
        assert not shared.is_running(sandbox.id)


def test_kill_twice(shared, sdk):
    with sdk.sandbox.create(timeout="5m") as sandbox:
        sandbox.kill()
        second = shared.request("DELETE", f"/api/v3/sandboxes/{sandbox.id}")
        assert second.status_code in (200, 204, 404)
        response = shared.request("PATCH", f"/api/v3/sandbox/{sandbox.id}", {"stop_at_ms": int(time.time() * 1000) + 60_000})
        assert response.status_code == 404


def test_pending_calls_are_answered_when_the_sandbox_dies(shared, sdk):
    # The Python SDK waits for ever for an answer that a closed connection cannot bring.
    with sdk.sandbox.create() as sandbox:
        child = sandbox.spawn("sleep", args=["1000"], stdout="piped", stderr="piped")
        sandbox.kill()
        with pytest.raises(Exception):
            child.wait()
        sandbox._async._processes.clear()


def test_labels(shared, sdk):
    value = new_slug("job")
    with (
        sdk.sandbox.create(labels={"job": value, "role": "a"}) as one,
        sdk.sandbox.create(labels={"job": value, "role": "b"}) as two,
    ):

        def ids(**labels):
            items = sdk.sandbox.list(labels=labels).items
            return {item["id"] for item in items if item["status"] == "running"}

        assert ids(job=value) == {one.id, two.id}
        assert ids(job=value, role="b") == {two.id}
        assert ids(job="other") == set()
        listed = [item for item in sdk.sandbox.list().items if item["id"] == one.id]
        assert listed[0]["labels"] == {"job": value, "role": "a"}
        assert listed[0]["region"] == "ord"
        assert datetime.datetime.fromisoformat(listed[0]["created_at"].replace("Z", "+00:00"))
        # Plain HTTP, as the JavaScript SDK filters.
        assert {s["id"] for s in shared.running(job=value)} == {one.id, two.id}


def test_labels_with_quotes(shared, sdk):
    # The Python SDK sends the dictionary as Python prints it.
    for value in ["it's", 'say "x"', "back\\slash", "a, b: c}", "ünï"]:
        with sdk.sandbox.create(labels={"odd": value}) as sandbox:
            items = sdk.sandbox.list(labels={"odd": value}).items
            assert sandbox.id in [item["id"] for item in items], value


def test_a_silent_client_is_given_up(shared):
    # A create whose socket is dropped right after the handshake must not leave a session behind.
    status, _, socket = shared.create_raw({})
    assert status == 101
    sandbox_id = socket.response.headers["x-deno-sandbox-id"]
    socket.socket.close()
    wait_until("the session has ended", lambda: not shared.is_running(sandbox_id))


def test_garbage_on_the_socket(shared):
    for frame in ["not json", "[]", '{"jsonrpc":"2.0"}', '{"jsonrpc":"2.0","id":"x","method":5}', b"\xff\xff", "x" * 100_000]:
        status, _, socket = shared.create_raw({"debug": False})
        assert status == 101
        sandbox_id = socket.response.headers["x-deno-sandbox-id"]
        socket.send(frame)
        # Closed or still of use: either is fine, a crash or a hang is not.
        try:
            socket.send(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "envToObject", "params": {}}))
            for _ in range(5):
                answer = socket.recv(timeout=5)
                if isinstance(answer, str) and '"id":7' in answer.replace(" ", ""):
                    break
        except (TimeoutError, Exception):
            pass
        socket.close()
        wait_until("the session has ended", lambda: not shared.is_running(sandbox_id))
    assert shared.request("GET", "/healthz").status_code == 200
