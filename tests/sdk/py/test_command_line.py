"""The command line's own workflow: what the documentation does with SDKs, without them."""

from __future__ import annotations

import json
import re

import pytest
from support import bash, new_slug, removed


@pytest.fixture
def names(shared):
    """Slugs for a test; what has them is deleted at the end."""
    stem = new_slug("cli")[:22]
    found = {kind: f"{stem}-{kind}" for kind in ("volume", "snap", "fork", "copy")}
    yield found
    for kind in ("volumes", "snapshots"):
        for slug in found.values():
            removed(shared, kind, slug)


def run(api, *arguments: str):
    """A command that prints JSON."""
    return json.loads(api.sandstone(*arguments, "--json").stdout)


def test_a_toolchain(shared, sdk, names):
    volume, snap, fork, copy = names.values()
    bootable = ("--capacity", "1GB", "--from", "builtin:debian-13", "--region", "ord")
    made = run(shared, "volumes", "create", volume, *bootable)
    assert (made["slug"], made["is_bootable"], made["state"]) == (volume, True, "available")
    with sdk.sandbox.create(root=volume) as sandbox:
        bash(sandbox, "echo installed | sudo tee /opt/tool")
        # While it is attached.
        taken = run(shared, "volumes", "snapshot", volume, snap)
        assert taken["volume"] == {"id": made["id"], "slug": volume}
        assert run(shared, "volumes", "get", volume)["sandbox"] == sandbox.id
        refused = shared.sandstone("volumes", "delete", volume, code=5)
        assert sandbox.id in refused.stderr.decode()
    with sdk.sandbox.create(root=snap) as sandbox:
        assert bash(sandbox, "cat /opt/tool")[1] == "installed\n"
    forked = run(shared, "volumes", "create", fork, "--from", snap)
    assert forked["base_snapshot"] == {"id": taken["id"], "slug": snap}
    assert run(shared, "volumes", "grow", fork, "2GB")["capacity"] == 2_000_000_000
    assert run(shared, "volumes", "fork", fork, copy)["capacity"] == 2_000_000_000
    listed = shared.sandstone("volumes", "list").stdout.decode()
    for slug in (volume, fork, copy):
        assert re.search(rf"vol_ord_\w{{20}}\s+{slug}\b", listed), listed
    listed = shared.sandstone("snapshots", "list").stdout.decode()
    assert re.search(rf"snp_ord_\w{{20}}\s+{snap}\b", listed), listed
    shared.sandstone("snapshots", "delete", snap)
    assert sdk.snapshots.get(snap) is None
    with sdk.sandbox.create(root=copy) as sandbox:
        assert bash(sandbox, "cat /opt/tool")[1] == "installed\n"


def test_errors_say_what_is_wrong(shared):
    for arguments, code, texts in [
        (("volumes", "get", "no-such"), 4, ("no-such", "VOLUME_NOT_FOUND")),
        (("snapshots", "get", "no-such"), 4, ("no-such", "SNAPSHOT_NOT_FOUND")),
        (("volumes", "create", "ab", "--capacity", "1MB"), 2, ("capacity", "300 MB")),
        (("volumes", "list", "--token", "ddo_wrong"), 3, ("INVALID_TOKEN",)),
        (("volumes", "list", "--url", "http://127.0.0.1:1"), 6, ("127.0.0.1:1",)),
    ]:
        done = shared.sandstone(*arguments, code=code)
        assert done.stdout == b""
        for text in texts:
            assert text in done.stderr.decode(), (arguments, done.stderr)
        assert "panicked" not in done.stderr.decode()
