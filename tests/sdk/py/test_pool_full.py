"""A pool that runs full: writers wait, new work is refused, nothing that was synced is lost."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time

import pytest
from support import bash, new_slug, python, refused, removed, wait_until

pytestmark = pytest.mark.timeout(300)

MEGABYTE = 1 << 20
# Says after each 8 MiB that they are durable. Each block is filled with its own number.
WRITER = """
import os, sys
block, count = 8 << 20, int(sys.argv[1])
file = os.open("/v/file", os.O_CREAT | os.O_WRONLY)
for number in range(count):
    data = number.to_bytes(8, "big") * (block // 8)
    assert os.pwrite(file, data, number * block) == block
    os.fsync(file)
    print(number, flush=True)
"""
CHECK = """
import sys
block = 8 << 20
with open("/v/file", "rb") as file:
    for number in range(int(sys.argv[1])):
        assert file.read(block) == number.to_bytes(8, "big") * (block // 8), number
print("intact")
"""


def kernel_errors() -> list[str]:
    """What the kernel said about file systems and disks that failed."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=20, check=True)
    wrong = re.compile(r"EXT4-fs error|I/O error|aborting journal|Remounting filesystem read-only|XFS.*(shutdown|corruption)")
    return [line for line in done.stdout.splitlines() if wrong.search(line)]


def at_rest(api) -> int:
    """Waits until nothing more is written to a pool that is low; returns what is free then."""
    low = api.own("GET", "/pool")["low"]
    wait_until("the pool is nearly full", lambda: api.own("GET", "/pool")["free"] < low, 60, 0.1)
    last, since = None, time.monotonic()
    deadline = since + 60
    while time.monotonic() - since < 2:
        assert time.monotonic() < deadline, "writers go on and on"
        time.sleep(0.2)
        if (now := api.own("GET", "/pool")["free"]) != last:
            last, since = now, time.monotonic()
    return last


@pytest.mark.parametrize("room_comes_from", ["a deleted volume", "a killed sandbox"])
def test_writers_wait_and_go_on(small_pool, room_comes_from):
    api, before = small_pool, kernel_errors()
    sdk = api.sdk()
    pool = api.own("GET", "/pool")
    with contextlib.ExitStack() as cleanup:

        def made(capacity: str) -> dict:
            one = sdk.volumes.create(new_slug(), "ord", capacity)
            cleanup.callback(removed, api, "volumes", one["id"])
            return one

        volume = made("8GB")
        if room_comes_from == "a deleted volume":
            ballast = made("2GB")
            fill = {"volumes": {"/b": ballast["id"]}}
        else:
            fill = {}
        # The writer needs more than is left beside the ballast, down to the critical mark; when
        # the ballast is gone it can finish, and leaves enough for new work.
        usable, gap = pool["free"] - pool["low"], pool["low"] - pool["critical"]
        amount = usable * 6 // 10
        assert usable * 4 // 10 > gap + 50 * MEGABYTE, pool
        holder = cleanup.enter_context(contextlib.ExitStack())
        filler = holder.enter_context(sdk.sandbox.create(**fill))
        target = "/b/ballast" if fill else "/opt/ballast"
        assert bash(filler, f"head -c {amount} /dev/urandom > {target} && sync {target}")[0] == 0
        if fill:
            holder.close()

        count = (amount + gap) // (8 * MEGABYTE)
        with sdk.sandbox.create(volumes={"/v": volume["id"]}) as sandbox:
            child = sandbox.spawn(
                "python3", args=["-c", WRITER, str(count)], stdout="piped", stderr="piped"
            )
            # It waits: neither done nor failed, and its sandbox is there.
            assert at_rest(api) > pool["critical"] // 2, "the pool itself is never full"
            assert api.is_running(sandbox.id)
            # Nothing new is begun, and the answer says what to do.
            with refused((507, "POOL_FULL")):
                sdk.volumes.create(new_slug(), "ord", "1GB")
            with refused((507, "POOL_FULL")):
                sdk.volumes.snapshot(volume["id"], slug=new_slug())
            api.refuses_sandbox({}, (507, "POOL_FULL"))
            error = api.request("POST", "/v1/volumes", {"slug": new_slug(), "capacity": "1GB"}).json()
            assert "elete" in f"{error}", error

            if fill:
                sdk.volumes.delete(ballast["id"])
            else:
                filler.kill()
                holder.close()
            numbers = child.stdout.read(-1).decode().split()
            wrong = child.stderr.read(-1).decode()
            assert child.wait()["success"], wrong
            assert [int(number) for number in numbers] == list(range(count))
        with sdk.sandbox.create(volumes={"/v": volume["id"]}) as sandbox:
            assert python(sandbox, CHECK, str(count)) == "intact\n"
        assert kernel_errors() == before
    # And everything works as before, once that is gone.
    wait_until("its room is back", lambda: api.own("GET", "/pool")["free"] > pool["free"] * 0.9, 30)


def test_a_waiting_sandbox_can_be_killed(small_pool):
    """Soon, and its volume can be deleted at once."""
    api, before = small_pool, kernel_errors()
    sdk = api.sdk()
    pool = api.own("GET", "/pool")
    one = sdk.volumes.create(new_slug(), "ord", "8GB")
    try:
        with sdk.sandbox.create(volumes={"/v": one["id"]}, timeout="20m") as sandbox:
            sandbox.spawn("python3", args=["-c", WRITER, "100000"], stdout="null", stderr="null")
            at_rest(api)
            begun = time.monotonic()
            api.end(sandbox.id)
            assert time.monotonic() - begun < 20
            assert not api.is_running(sandbox.id)
            # Its client has no connection over which it could kill the process when it ends.
            sandbox._async._processes.clear()
        sdk.volumes.delete(one["id"])
        free = lambda: api.own("GET", "/pool")["free"]  # noqa: E731
        wait_until("the pool has its room back", lambda: free() > pool["free"] * 0.9, 30)
        assert kernel_errors() == before
    finally:
        removed(api, "volumes", one["id"])
