"""Copies of volumes, attached or not, and volumes that grow."""

from __future__ import annotations

import os

import pytest
import trees
from support import SMALL, bash, new_slug, removed, snapshot, volume


@pytest.fixture
def filled(shared, sdk):
    """A volume with a tree, and the tree's checksum."""
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            trees.build(sandbox, "/v")
            digest = trees.digest(sandbox, "/v")
        yield made, digest


@pytest.fixture
def fork(shared):
    """Makes copies of volumes, which are deleted at the end."""
    made = []

    def make(source: str, **options) -> dict:
        made.append(shared.own("POST", f"/volumes/{source}/fork", {"slug": new_slug(), **options}))
        return made[-1]

    yield make
    for one in made:
        removed(shared, "volumes", one["id"])


def size_of(sandbox) -> int:
    return int(bash(sandbox, "df -B1 --output=size /v | tail -1")[1])


def test_fork(shared, sdk, filled, fork):
    source, digest = filled
    one = fork(source["slug"])
    assert (one["capacity"], one["region"], one["base_snapshot"]) == (300_000_000, "ord", None)
    two = fork(source["id"], capacity="1GB")
    for made in (one, two):
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert trees.digest(sandbox, "/v") == digest
            assert 0.85 * made["capacity"] < size_of(sandbox) <= made["capacity"]
            bash(sandbox, "sudo rm -r /v/a; echo mine > /v/mine")
    with sdk.sandbox.create(volumes={"/v": source["id"]}) as sandbox:
        assert trees.digest(sandbox, "/v") == digest


def test_fork_of_an_attached_volume(shared, sdk, fork):
    """Its sandbox goes on; the copy has everything written before."""
    with volume(shared) as source, sdk.sandbox.create(volumes={"/v": source["id"]}) as sandbox:
        data = os.urandom(500_000)
        sandbox.fs.write_file("/v/blob", data)
        script = "sleep 1; echo after > /v/after; cat /v/after"
        child = sandbox.spawn("sh", args=["-c", script], stdout="piped", stderr="piped")
        made = fork(source["id"])
        assert 0 < made["write_stall_us"] < 2_500_000
        assert child.stdout.read(-1) == b"after\n"
        assert child.wait()["success"]
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as other:
            assert other.fs.read_file("/v/blob") == data
            assert bash(other, "ls /v")[1] == "blob\n"
            # Both can be written at once.
            assert bash(other, "echo other > /v/after; sync /v")[0] == 0
        assert sandbox.fs.read_text_file("/v/after") == "after\n"


def test_refusals_of_forks(shared, filled):
    source, _ = filled
    path = f"/volumes/{source['id']}/fork"
    less = {"slug": new_slug(), "capacity": 299_999_999}
    shared.refuses("POST", path, (400, "INVALID_REQUEST"), "capacity", body=less)
    shared.refuses("POST", path, (409, "SLUG_ALREADY_IN_USE"), body={"slug": source["slug"]})
    shared.refuses("POST", "/volumes/no-such/fork", (404, "VOLUME_NOT_FOUND"), body={"slug": new_slug()})


def test_grow(shared, sdk, filled):
    source, digest = filled
    path = f"/volumes/{source['slug']}/grow"
    with snapshot(shared, source["id"]) as taken:
        grown = shared.own("POST", path, {"capacity": "1GB"})
        assert (grown["id"], grown["capacity"]) == (source["id"], 1_000_000_000)
        assert sdk.volumes.get(source["id"])["capacity"] == 1_000_000_000
        with sdk.sandbox.create(volumes={"/v": source["id"]}) as sandbox:
            assert trees.digest(sandbox, "/v") == digest
            assert 0.9e9 < size_of(sandbox) <= 1e9
            assert bash(sandbox, "head -c 600000000 /dev/zero > /v/more && sync /v/more")[0] == 0
            mounted = (409, "VOLUME_IS_MOUNTED")
            shared.refuses("POST", path, mounted, sandbox.id, body={"capacity": "2GB"})
        # The same again changes nothing, less is refused, and the snapshot has its own size.
        assert shared.own("POST", path, {"capacity": "1GB"})["capacity"] == 1_000_000_000
        below = (400, "CAPACITY_BELOW_BASE")
        shared.refuses("POST", path, below, "500 MB", "1 GB", body={"capacity": "500MB"})
        shared.refuses("POST", path, (400, "INVALID_REQUEST"), "capacity", body={"capacity": "21GB"})
        assert shared.own("GET", f"/snapshots/{taken['id']}")["capacity"] == 300_000_000
        with volume(shared, SMALL, from_snapshot=taken["id"]) as made:
            with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
                assert trees.digest(sandbox, "/v") == digest
    shared.refuses("POST", "/volumes/no-such/grow", (404, "VOLUME_NOT_FOUND"), body={"capacity": "1GB"})
