"""Many rounds of create, mount, write, snapshot, fork and kill leave nothing behind on the host."""

from __future__ import annotations

import time
from pathlib import Path

from support import bash, bootable, setting, snapshot, volume, wait_until

import host


def one_round(sdk, made, number: int) -> None:
    # By turns: killed, and left to end with the session.
    with sdk.sandbox.create(region="ord", volumes={"/data": made["id"]}) as sandbox:
        if number:
            assert sandbox.fs.read_text_file("/data/round") == str(number - 1)
        sandbox.fs.write_text_file("/data/round", str(number))
        if number % 2:
            sandbox.kill()


def test_fifty_rounds(shared, sdk):
    pid, data = int(setting("SERVER_PID")), Path(setting("DATA_DIR"))
    with volume(shared) as made:
        for number in range(3):
            one_round(sdk, made, number)
        before = host.settled(pid, data)
        for number in range(3, 53):
            one_round(sdk, made, number)
        assert not host.growth(before, host.settled(pid, data))


def test_refused_creates_leave_nothing(shared, sdk):
    pid, data = int(setting("SERVER_PID")), Path(setting("DATA_DIR"))
    before = host.settled(pid, data)
    for _ in range(20):
        assert shared.create_raw({"volumes": {"/v": "nowhere"}})[0] == 404
        assert shared.create_raw({"memory_mb": 1})[0] == 400
    assert not host.growth(before, host.settled(pid, data))


def test_rounds_of_snapshots_and_forks(hasty):
    sdk = hasty.sdk()

    def one_round(made: dict) -> None:
        with snapshot(hasty, made["id"]) as taken:
            with sdk.sandbox.create(root=taken["id"]) as sandbox:
                bash(sandbox, "echo x | sudo tee /etc/x")
                with snapshot(hasty, made["id"]), volume(hasty, "1GB", from_snapshot=taken["id"]) as fork:
                    with sdk.sandbox.create(root=fork["id"]) as other:
                        assert bash(other, "ls /etc/x")[0] != 0

    def now() -> dict[str, int]:
        return host.settled(hasty.process.pid, hasty.data)

    with bootable(hasty) as made:
        one_round(made)
        # Grace, purge, and what the server keeps for a moment.
        time.sleep(3)
        before = now()
        for _ in range(5):
            one_round(made)
        wait_until("everything is purged", lambda: not host.growth(before, now()), 30, 1)
