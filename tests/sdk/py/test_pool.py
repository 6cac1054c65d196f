"""Damaged and unknown images of the pool are found, and nothing else is touched."""

from __future__ import annotations

import json
import os
import uuid

from support import bash, bootable, new_slug, refused, removed, snapshot, wait_until


def image_of(server, made: dict):
    """The file of a volume or snapshot in the server's pool."""
    kind = "snapshots" if made["id"].startswith("snp_") else "volumes"
    return server.data / "pool" / kind / f"{made['id'].rsplit('_', 1)[1]}.img"


def flip_a_byte(image, marker: bytes) -> None:
    """Damages a file on the image, as a bad disk does."""
    with open(image, "r+b") as file:
        offset = 0
        while marker not in (chunk := file.read(1 << 22)):
            assert chunk, "the marker is on the image"
            offset += len(chunk)
        file.seek(offset + chunk.index(marker))
        file.write(bytes([marker[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def test_a_damaged_snapshot_is_found(hasty):
    marker = uuid.uuid4().bytes * 64
    sdk = hasty.sdk()
    with bootable(hasty) as made:
        with sdk.sandbox.create(root=made["id"]) as sandbox:
            # At a block's start, so that a chunk of the image has all of it.
            sandbox.fs.write_file("/home/app/marker", marker)
        with snapshot(hasty, made["id"]) as taken, snapshot(hasty, made["id"]) as sibling:
            path = f"/snapshots/{taken['id']}"
            verified = hasty.own("POST", f"{path}/verify", seconds=60)
            assert (verified["health"], verified["checked_at"] is None) == ("intact", False)
            flip_a_byte(image_of(hasty, taken), marker)
            done = hasty.sandstone("snapshots", "verify", taken["slug"], "--json", code=1)
            assert b"content" in done.stderr
            verified = json.loads(done.stdout)
            assert verified["health"] == "damaged"
            assert verified["checksum"] is not None, "what it should be is still known"
            assert hasty.own("GET", path)["health"] == "damaged"
            # Nothing new is made from it.
            config = {"root": {"volume": taken["id"]}}
            hasty.refuses_sandbox(config, (409, "SNAPSHOT_DAMAGED"), taken["slug"])
            with refused((409, "SNAPSHOT_DAMAGED"), taken["slug"]):
                sdk.volumes.create(new_slug(), "ord", "1GB", from_snapshot=taken["id"])
            # What shared its blocks has kept its own.
            with sdk.sandbox.create(root=sibling["id"]) as sandbox:
                assert sandbox.fs.read_file("/home/app/marker") == marker
            # And it can be deleted.
            sdk.snapshots.delete(taken["id"])


def test_what_nobody_owns_is_listed_and_removed_on_request_only(hasty):
    pool = hasty.data / "pool"
    with bootable(hasty) as made, snapshot(hasty, made["id"]) as taken:
        suffixes = ["0" * 19 + "a", "0" * 19 + "b"]
        strangers = [pool / "volumes" / f"{suffixes[0]}.img", pool / "snapshots" / f"{suffixes[1]}.img"]
        for image in strangers:
            image.write_bytes(b"not an image")
        bystander = pool / "volumes" / "README"
        bystander.write_text("not ours")
        try:
            found = hasty.own("GET", "/pool")
            assert found["missing_images"] == []
            assert len(found["unknown_images"]) == 2
            for suffix in suffixes:
                assert any(suffix in name for name in found["unknown_images"]), found
            assert found["total"] > found["free"] > found["low"] > found["critical"] > 0
            assert all(image.exists() for image in strangers), "looking removes nothing"
            shown = hasty.sandstone("pool", "show").stdout.decode()
            assert all(suffix in shown for suffix in suffixes), shown
            removed_now = hasty.own("POST", "/pool/clean")["removed"]
            assert sorted(removed_now) == sorted(found["unknown_images"])
            assert not any(image.exists() for image in strangers)
            assert bystander.exists()
            assert image_of(hasty, made).exists() and image_of(hasty, taken).exists()
            assert hasty.own("POST", "/pool/clean")["removed"] == []
            assert hasty.own("GET", "/pool")["unknown_images"] == []
        finally:
            for image in (*strangers, bystander):
                image.unlink(missing_ok=True)


def test_a_missing_image_is_reported(hasty):
    made = hasty.sdk().volumes.create(new_slug(), "ord", "300MB")
    image = image_of(hasty, made)
    aside = image.with_suffix(".aside")
    try:
        assert hasty.own("GET", "/pool")["missing_images"] == []
        # Out of the way, and back: nobody has it open.
        image.rename(aside)
        missing = hasty.own("GET", "/pool")["missing_images"]
        aside.rename(image)
        assert len(missing) == 1 and made["id"] in missing[0]
        with hasty.sdk().sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert bash(sandbox, "echo ok > /v/f && cat /v/f")[1] == "ok\n"
    finally:
        removed(hasty, "volumes", made["id"])
        wait_until("it is purged", lambda: not image.exists())
