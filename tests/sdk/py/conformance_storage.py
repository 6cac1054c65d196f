"""Volumes, snapshots, and what belongs to the hosted product's deployments."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from conformance import World, check
from support import SMALL, new_slug, refused

KEYS = {
    "id", "slug", "region", "capacity", "estimated_allocated_size",
    "estimated_flattened_size", "is_bootable", "base_snapshot",
}  # fmt: skip


@contextlib.asynccontextmanager
async def made(w: World, **options):
    """A volume for one check."""
    options = {"slug": new_slug("conf"), "region": "ord", "capacity": SMALL} | options
    volume = await w.sdk.volumes.create(**options)
    try:
        yield volume
    finally:
        if await w.sdk.volumes.get(volume["id"]):
            await w.sdk.volumes.delete(volume["id"])


@check("sdk.volumes.create")
async def _(w: World):
    async with made(w) as volume:
        assert set(volume) == KEYS
        assert volume["id"].startswith("vol_ord_")
        assert (volume["capacity"], volume["is_bootable"]) == (300_000_000, False)
        assert volume["base_snapshot"] is None
        with refused((409, "SLUG_ALREADY_IN_USE"), volume["slug"]):
            await w.sdk.volumes.create(slug=volume["slug"], region="ord", capacity=SMALL)
        with refused((400, "INVALID_REQUEST")):
            await w.sdk.volumes.create(slug=new_slug(), region="ord", capacity="1MB")
    async with made(w, capacity="1GB", from_snapshot=f"{w.root}-s") as fork:
        assert fork["base_snapshot"]["slug"] == f"{w.root}-s"


@check("sdk.volumes.get")
async def _(w: World):
    volume = await w.sdk.volumes.get(w.root)
    assert set(volume) == KEYS
    assert (await w.sdk.volumes.get(volume["id"]))["slug"] == w.root
    assert await w.sdk.volumes.get("no-such-volume") is None


@check("sdk.volumes.list")
async def _(w: World):
    page = await w.sdk.volumes.list(search=w.root)
    assert [volume["slug"] for volume in page.items] == [w.root]
    assert not page.has_more


@check("sdk.volumes.delete")
async def _(w: World):
    async with made(w) as volume:
        await w.sdk.volumes.delete(volume["slug"])
        assert await w.sdk.volumes.get(volume["id"]) is None
        with refused((404, "VOLUME_NOT_FOUND"), volume["slug"]):
            await w.sdk.volumes.delete(volume["slug"])


@check("sdk.volumes.snapshot")
async def _(w: World):
    slug = new_slug("conf")
    snapshot = await w.sdk.volumes.snapshot(w.root, slug=slug)
    try:
        assert (snapshot["slug"], snapshot["region"], snapshot["is_bootable"]) == (slug, "ord", True)
        assert snapshot["volume"]["slug"] == w.root
        with refused((409, "SLUG_ALREADY_IN_USE"), slug):
            await w.sdk.volumes.snapshot(w.root, slug=slug)
    finally:
        await w.sdk.snapshots.delete(slug)


@check("sdk.snapshots.get")
async def _(w: World):
    snapshot = await w.sdk.snapshots.get(f"{w.root}-s")
    assert snapshot["id"].startswith("snp_ord_")
    assert isinstance(snapshot["allocated_size"], int)
    assert isinstance(snapshot["flattened_size"], int)
    assert await w.sdk.snapshots.get("no-such-snapshot") is None


@check("sdk.snapshots.list")
async def _(w: World):
    page = await w.sdk.snapshots.list(search=w.root)
    assert [snapshot["slug"] for snapshot in page.items] == [f"{w.root}-s"]


@check("sdk.snapshots.delete")
async def _(w: World):
    slug = new_slug("conf")
    await w.sdk.volumes.snapshot(w.root, slug=slug)
    await w.sdk.snapshots.delete(slug)
    assert await w.sdk.snapshots.get(slug) is None
    with refused((404, "SNAPSHOT_NOT_FOUND"), slug):
        await w.sdk.snapshots.delete(slug)


@contextlib.asynccontextmanager
async def three_snapshots(w: World):
    """Three snapshots whose slugs have something in common."""
    common = new_slug("conf")
    slugs = [f"{common}-{letter}" for letter in "abc"]
    for slug in slugs:
        await w.sdk.volumes.snapshot(w.root, slug=slug)
    try:
        yield common, slugs
    finally:
        for slug in slugs:
            await w.sdk.snapshots.delete(slug)


@check("PaginatedList.get_next_page")
async def _(w: World):
    async with three_snapshots(w) as (common, slugs):
        first = await w.sdk.snapshots.list(search=common, limit=2)
        assert (len(first.items), first.has_more) == (2, True)
        assert isinstance(first.next_cursor, str)
        second = await first.get_next_page()
        assert (len(second.items), second.has_more, second.next_cursor) == (1, False, None)
        assert await second.get_next_page() is None
        assert sorted(item["slug"] for item in [*first.items, *second.items]) == slugs


@check("PaginatedList.__aiter__")
async def _(w: World):
    async with three_snapshots(w) as (common, _slugs):
        first = await w.sdk.snapshots.list(search=common, limit=1)
        second = await first.get_next_page()
        seen = []
        async for page in first:
            seen.append(page.items)
            if len(seen) == 3:
                break
        assert seen == [second.items] * 3


# Deployment: every method of the hosted product's applications gets the same clear answer.
DEPLOYMENT = {
    "apps.get": ["x"],
    "apps.list": [],
    "apps.create": [],
    "apps.update": ["x"],
    "apps.delete": ["x"],
    "apps.logs": ["x"],
    "apps.logs_stream": ["x"],
    "revisions.get": ["x"],
    "revisions.list": ["x"],
    "revisions.delete": ["x"],
    "revisions.cancel": ["x"],
    "revisions.progress": ["x"],
    "revisions.build_logs": ["x"],
    "revisions.timelines": ["x"],
    "revisions.deploy": ["x"],
    "revisions.set_retention": ["x", "standard"],
    "timelines.list": ["x"],
    "layers.get": ["x"],
    "layers.list": [],
    "layers.create": [],
    "layers.update": ["x"],
    "layers.delete": ["x"],
    "layers.apps": ["x"],
}
OPTIONS = {
    "apps.create": {"slug": "x"},
    "apps.update": {"slug": "y"},
    "apps.logs": {"start": "2026-01-01T00:00:00Z"},
    "apps.logs_stream": {"start": "2026-01-01T00:00:00Z"},
    "revisions.deploy": {"assets": {}},
    "layers.create": {"slug": "x"},
    "layers.update": {"slug": "y"},
}


def refuses(method: str, arguments: list):
    """The check of one method."""
    space, name = method.split(".")

    async def run(w: World):
        with refused((501, "NOT_SUPPORTED")):
            call = getattr(getattr(w.sdk, space), name)(*arguments, **OPTIONS.get(method, {}))
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    pass
            else:
                await call

    return run


for method, arguments in DEPLOYMENT.items():
    check(f"sdk.{method}")(refuses(method, arguments))


@check("sandbox.deno.deploy")
async def _(w: World):
    # This call alone uses the HTTP library directly, and lets its error through.
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        await w.sandbox.deno.deploy("my-app")
    assert refusal.value.response.status_code == 501
    assert refusal.value.response.json()["code"] == "NOT_SUPPORTED"
