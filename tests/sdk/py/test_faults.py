"""What survives when the server is stopped, killed and started again; on servers of our own."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
import threading
import time

import pytest
from support import Server, bash, read_bytes, setting, volume, wait_until

import host

pytestmark = pytest.mark.timeout(300)


def written(sandbox, path: str, data: bytes) -> None:
    """Writes a file and makes it durable, from inside."""
    sandbox.fs.write_file(path, data)
    assert bash(sandbox, f"sync {path} && sync $(dirname {path})")[0] == 0


def read_back(api, volume_id: str, name: str) -> bytes:
    """The file as a new sandbox sees it."""
    with api.sdk().sandbox.create(volumes={"/again": volume_id}) as sandbox:
        return read_bytes(sandbox, f"/again/{name}")


def abandoned(api, **options):
    """A sandbox whose client object is never closed, because its server will be gone."""
    manager = api.sdk().sandbox.create(**options)
    sandbox = manager.__enter__()
    # Keeps the generator, and with it the connection, for as long as the sandbox object.
    sandbox._kept = manager
    return sandbox


def test_first_start(own):
    token = own.data / "admin-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert own.token.startswith("ddo_")
    assert len(own.token) >= 24
    assert own.request("GET", "/api/v2/volumes").json() == []


def test_a_second_server_is_refused(own):
    second = Server(own.data.parent)
    second.log = own.data.parent / "second.log"
    command = second.command()
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert str(own.data) in said, said
    assert "panicked" not in said
    assert own.request("GET", "/healthz").status_code == 200
    with own.sdk().sandbox.create() as sandbox:
        assert bash(sandbox, "echo alive")[1] == "alive\n"


def test_the_token_is_kept(own):
    token = own.token
    own.stop()
    own.start()
    assert own.token == token


def test_data_after_sigterm(own):
    data = os.urandom(1 << 20)
    with volume(own) as made:
        with own.sdk().sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            sandbox.fs.write_file("/v/blob", data)
            sandbox.kill()
        own.stop()
        own.start()
        assert own.sdk().volumes.get(made["id"])["slug"] == made["slug"]
        assert read_back(own, made["id"], "blob") == data


def test_sigterm_while_sandboxes_run(own):
    data = os.urandom(1 << 20)
    with volume(own) as one, volume(own) as two:
        session = abandoned(own, volumes={"/v": one["id"]})
        session.fs.write_file("/v/blob", data)
        duration = abandoned(own, volumes={"/v": two["id"]}, timeout="20m")
        duration.fs.write_file("/v/blob", data)
        pids = host.descendants(own.process.pid)
        own.stop()
        assert host.mounts_of(own.data) == []
        assert host.loops_of(own.data) == []
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        own.start()
        assert own.running() == []
        # Nobody had synced: ending a sandbox in order does that.
        assert read_back(own, one["id"], "blob") == data
        assert read_back(own, two["id"], "blob") == data


def test_a_session_after_sigkill(own):
    data = os.urandom(1 << 20)
    with volume(own) as made:
        sandbox = abandoned(own, volumes={"/v": made["id"]})
        written(sandbox, "/v/blob", data)
        own.kill()
        own.start()
        # Its connection is gone, so it is ended in order and its volume is free.
        wait_until("the session has ended", lambda: not own.is_running(sandbox.id), 30)
        assert read_back(own, made["id"], "blob") == data


def test_a_duration_after_sigkill(own):
    data = os.urandom(1 << 20)
    with volume(own) as made:
        sandbox = abandoned(own, volumes={"/v": made["id"]}, timeout="20m", labels={"job": "long"})
        written(sandbox, "/v/blob", data)
        sandbox.env.set("KEPT", "variable")
        script = "while :; do date +%s%N > /v/beat; sleep 0.05; done"
        child = sandbox.spawn("bash", args=["-c", script], stdout="null", stderr="null")
        own.kill()
        # Its client has no connection over which it could kill the process when it ends.
        sandbox._async._processes.clear()
        time.sleep(1)
        own.start()
        assert [s["id"] for s in own.running(job="long")] == [sandbox.id]
        with own.sdk().sandbox.connect(sandbox.id) as again:
            first = again.fs.read_text_file("/v/beat")
            time.sleep(0.5)
            assert again.fs.read_text_file("/v/beat") != first, "the process still runs"
            assert bash(again, f"kill -0 {child.pid}")[0] == 0
            assert read_bytes(again, "/v/blob") == data
            assert bash(again, "echo $KEPT")[1] == "variable\n"
            again.fs.write_text_file("/v/after", "restart")
            # It still holds its volume.
            status, error, _ = own.create_raw({"volumes": {"/v": made["id"]}})
            assert (status, error["code"]) == (409, "VOLUME_IS_MOUNTED")
            assert sandbox.id in error["message"]
            # And the network still works, or at least its own.
            assert bash(again, "ip -4 -o addr show lo")[0] == 0
        own.end(sandbox.id)
        assert not own.is_running(sandbox.id)
        assert read_back(own, made["id"], "blob") == data
        assert read_back(own, made["id"], "after") == b"restart"


def test_a_duration_that_ran_out_while_the_server_was_dead(own):
    with volume(own) as made:
        sandbox = abandoned(own, volumes={"/v": made["id"]}, timeout="3s")
        written(sandbox, "/v/blob", b"x")
        own.kill()
        time.sleep(4)
        own.start()
        wait_until("the timeout fires", lambda: not own.is_running(sandbox.id), 15)
        assert read_back(own, made["id"], "blob") == b"x"


def test_a_sandbox_that_died_while_the_server_was_dead(own):
    with volume(own) as made:
        sandbox = abandoned(own, volumes={"/v": made["id"]}, timeout="20m")
        written(sandbox, "/v/blob", b"x")
        server_pid = own.process.pid
        below = host.descendants(server_pid)
        # The processes that the kernel shows in this sandbox's namespace.
        namespace = None
        for pid in below:
            with contextlib.suppress(OSError):
                text = open(f"/proc/{pid}/mountinfo").read()
                if " /v " in text:
                    namespace = os.readlink(f"/proc/{pid}/ns/pid")
        own.kill()
        if namespace is None:
            pytest.fail("no process of the sandbox was found below the server")
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                        os.kill(int(entry), 9)
        own.start()
        wait_until("the sandbox is given up", lambda: not own.is_running(sandbox.id), 30)
        assert read_back(own, made["id"], "blob") == b"x"


def test_killed_again_and_again_under_load(own):
    """SIGKILL at any moment of create, write and kill; every restart finds its way."""
    chance = random.Random(7)
    with volume(own) as made:
        known = -1
        for _ in range(5):
            stop = threading.Event()
            api = own
            progress = {"synced": known}

            def load(api=api, stop=stop, progress=progress):
                sdk = api.sdk()
                while not stop.is_set():
                    try:
                        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
                            number = progress["synced"] + 1
                            script = f"echo {number} > /v/tmp && sync /v/tmp && mv /v/tmp /v/n && sync /v"
                            if bash(sandbox, script)[0] == 0:
                                progress["synced"] = number
                            sandbox.kill()
                    except Exception:
                        time.sleep(0.05)

            thread = threading.Thread(target=load, daemon=True)
            thread.start()
            time.sleep(0.5 + chance.random())
            own.kill()
            stop.set()
            own.start()
            wait_until("sessions have ended", lambda: not own.running(), 30)
            known = progress["synced"]
        found = int(read_back(own, made["id"], "n"))
        assert found in (known, known + 1), "an acknowledged write is there"
        assert known >= 5


def test_nothing_of_a_stopped_server_is_left(own):
    with own.sdk().sandbox.create() as sandbox:
        assert bash(sandbox, "echo hi")[1] == "hi\n"
    own.stop()
    assert host.mounts_of(own.data) == []
    assert host.loops_of(own.data) == []
    assert [pid for pid in host.processes_with(str(own.data))] == []
    # And it starts from there.
    own.start()
    assert own.request("GET", "/healthz").status_code == 200


def test_healthz_says_why(own_server):
    """Without an image there is nothing to run; the answer says so, and other calls still work."""
    assert setting("IMAGE_CACHE")
    own_server.stop()
    own_server.spawn()
    statuses = set()

    def ready():
        import httpx

        with contextlib.suppress(OSError, httpx.HTTPError):
            address = (own_server.data / "listen-address").read_text().strip()
            response = httpx.get(f"http://{address}/healthz", trust_env=False)
            statuses.add(response.status_code)
            if response.status_code == 503:
                assert isinstance(response.json(), dict)
            return response.status_code == 200
        return False

    wait_until("the server is ready", ready, 60)
    assert statuses <= {200, 503}
