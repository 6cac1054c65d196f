"""Fifty rounds of create, mount, write and kill leave nothing behind on the host."""

from __future__ import annotations

from pathlib import Path

from support import setting, volume

import host

# Descriptors come and go with connections that are still closing.
SLACK = {"sockets and files of the server": 4, "files": 2, "lines of nft rules": 0}


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
        after = host.settled(pid, data)
    grown = {
        kind: text
        for kind, text in host.growth(before, after).items()
        if after[kind] - before[kind] > SLACK.get(kind, 0)
    }
    assert not grown, grown


def test_refused_creates_leave_nothing(shared, sdk):
    pid, data = int(setting("SERVER_PID")), Path(setting("DATA_DIR"))
    before = host.settled(pid, data)
    for _ in range(20):
        assert shared.create_raw({"volumes": {"/v": "nowhere"}})[0] == 404
        assert shared.create_raw({"memory_mb": 1})[0] == 400
    after = host.settled(pid, data)
    grown = {
        kind: text
        for kind, text in host.growth(before, after).items()
        if after[kind] - before[kind] > SLACK.get(kind, 0)
    }
    assert not grown, grown
