"""Deleting frees the slug at once and the data later; until then the owner can have it back."""

from __future__ import annotations

import json

import pytest
from support import SMALL, new_slug, refused, removed, snapshot, volume, wait_until


@pytest.fixture
def kept(shared, sdk):
    """A volume with a file, and a snapshot of it."""
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            sandbox.fs.write_text_file("/v/file", made["id"])
        with snapshot(shared, made["id"]) as taken:
            yield {"volumes": made, "snapshots": taken}


def deleted(api, kind: str, slug: str) -> list[dict]:
    """The restorable objects that had this slug."""
    items = api.own("GET", f"/{kind}?deleted=true&search={slug}")["items"]
    return [item for item in items if item["slug"] == slug]


def content(api, kind: str, made: dict) -> str:
    """The file, read in a sandbox: of a snapshot, from a fork."""
    if kind == "snapshots":
        with volume(api, from_snapshot=made["id"]) as fork:
            return content(api, "volumes", fork)
    with api.sdk().sandbox.create(volumes={"/v": made["id"]}) as sandbox:
        return sandbox.fs.read_text_file("/v/file")


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
def test_restore(shared, sdk, kept, kind):
    made = kept[kind]
    gone = shared.own("DELETE", f"/{kind}/{made['slug']}")
    assert gone["state"] == "deleted"
    assert gone["purge_at"] > gone["deleted_at"] > gone["created_at"]
    assert getattr(sdk, kind).get(made["id"]) is None
    assert [item["id"] for item in deleted(shared, kind, made["slug"])] == [made["id"]]
    back = shared.own("POST", f"/{kind}/{made['id']}/restore")
    assert (back["id"], back["slug"], back["state"]) == (made["id"], made["slug"], "available")
    assert back["deleted_at"] is back["purge_at"] is None
    assert deleted(shared, kind, made["slug"]) == []
    assert content(shared, kind, made) == kept["volumes"]["id"]


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
def test_restore_when_the_slug_is_taken(shared, sdk, kept, kind):
    made = kept[kind]
    getattr(sdk, kind).delete(made["id"])
    successor = sdk.volumes.create(made["slug"], "ord", SMALL)
    try:
        path = f"/{kind}/{made['id']}/restore"
        shared.refuses("POST", path, (409, "SLUG_ALREADY_IN_USE"), made["slug"])
        other = new_slug()
        back = shared.own("POST", path, {"slug": other})
        assert (back["id"], back["slug"]) == (made["id"], other)
        assert sdk.volumes.get(made["slug"])["id"] == successor["id"]
        assert content(shared, kind, back) == kept["volumes"]["id"]
    finally:
        sdk.volumes.delete(successor["id"])


def test_restore_by_slug_takes_the_newest(shared, sdk):
    slug = new_slug()
    ids = []
    for _ in range(2):
        ids.append(sdk.volumes.create(slug, "ord", SMALL)["id"])
        sdk.volumes.delete(slug)
    assert {item["id"] for item in deleted(shared, "volumes", slug)} == set(ids)
    assert shared.own("POST", f"/volumes/{slug}/restore")["id"] == ids[1]
    sdk.volumes.delete(slug)


def test_a_deleted_volume_is_no_use(shared, sdk, kept):
    made = kept["volumes"]
    sdk.volumes.delete(made["id"])
    shared.refuses_sandbox({"volumes": {"/v": made["id"]}}, (404, "VOLUME_NOT_FOUND"), made["id"])
    with refused((404, "VOLUME_NOT_FOUND"), made["id"]):
        sdk.volumes.snapshot(made["id"], slug=new_slug())
    body = {"slug": new_slug()}
    shared.refuses("POST", f"/volumes/{made['id']}/fork", (404, "VOLUME_NOT_FOUND"), body=body)


def test_unknown(shared):
    shared.refuses("POST", "/volumes/no-such/restore", (404, "VOLUME_NOT_FOUND"), "no-such")
    shared.refuses("POST", "/snapshots/no-such/restore", (404, "SNAPSHOT_NOT_FOUND"), "no-such")


def test_the_command_line(shared, sdk, kept):
    made, taken = kept["volumes"], kept["snapshots"]
    for kind, one in (("volumes", made), ("snapshots", taken)):
        shared.sandstone(kind, "delete", one["slug"])
        assert getattr(sdk, kind).get(one["id"]) is None
        shared.sandstone(kind, "restore", one["slug"])
        assert getattr(sdk, kind).get(one["slug"])["id"] == one["id"]
        other = new_slug()
        shared.sandstone(kind, "delete", one["id"])
        out = shared.sandstone(kind, "restore", one["id"], "--slug", other, "--json").stdout
        assert json.loads(out)["slug"] == other
        assert content(shared, kind, one) == made["id"]


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
def test_after_the_grace_period(hasty, kind):
    sdk = hasty.sdk()
    made = sdk.volumes.create(new_slug(), "ord", SMALL)
    if kind == "snapshots":
        source, made = made, sdk.volumes.snapshot(made["id"], slug=new_slug())
        removed(hasty, "volumes", source["id"])
    getattr(sdk, kind).delete(made["id"])
    assert len(deleted(hasty, kind, made["slug"])) == 1
    wait_until("the grace period is over", lambda: not deleted(hasty, kind, made["slug"]))
    for name in (made["id"], made["slug"]):
        path = f"/{kind}/{name}/restore"
        hasty.refuses("POST", path, (410, "NOT_RESTORABLE"), name)
        hasty.refuses("POST", path, (410, "NOT_RESTORABLE"), name, body={"slug": new_slug()})
