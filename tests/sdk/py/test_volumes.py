"""Volumes: the API's object, listing, and that data outlives its sandbox."""

from __future__ import annotations

import os
import re
import time

import pytest
from support import SMALL, bash, new_slug, read_bytes, volume


def test_object(shared, sdk):
    slug = new_slug()
    made = sdk.volumes.create(slug=slug, region="ord", capacity="1GB")
    assert made == {
        "id": made["id"],
        "slug": slug,
        "region": "ord",
        "capacity": 1_000_000_000,
        # What an empty file system occupies.
        "estimated_allocated_size": made["estimated_allocated_size"],
        "estimated_flattened_size": made["estimated_flattened_size"],
        "is_bootable": False,
        "base_snapshot": None,
    }
    for size in ("estimated_allocated_size", "estimated_flattened_size"):
        assert 0 < made[size] < 20_000_000
    assert re.fullmatch(r"vol_ord_[0-9a-hjkmnp-z]{20}", made["id"])
    assert sdk.volumes.get(slug) == made
    assert sdk.volumes.get(made["id"]) == made
    sdk.volumes.delete(slug)
    assert sdk.volumes.get(slug) is None
    assert sdk.volumes.get(made["id"]) is None


@pytest.mark.parametrize(
    ("capacity", "size"),
    [(300_000_000, 300_000_000), ("300MB", 300_000_000), ("512MiB", 512 << 20),
     ("1GiB", 1 << 30), ("20GB", 20_000_000_000), ("400000kB", 400_000_000)],
)  # fmt: skip
def test_capacities(sdk, capacity, size):
    made = sdk.volumes.create(slug=new_slug(), region="ams", capacity=capacity)
    try:
        assert made["capacity"] == size
        assert made["region"] == "ams"
    finally:
        sdk.volumes.delete(made["id"])


def test_a_slug_is_free_after_delete(sdk):
    slug = new_slug()
    first = sdk.volumes.create(slug=slug, region="ord", capacity=SMALL)
    sdk.volumes.delete(first["id"])
    second = sdk.volumes.create(slug=slug, region="ord", capacity=SMALL)
    assert second["id"] != first["id"]
    assert sdk.volumes.get(first["id"]) is None
    sdk.volumes.delete(slug)


def test_list_search_and_pages(shared, sdk):
    prefix = new_slug("page")[:20]
    slugs = [f"{prefix}-{number}" for number in range(5)]
    for slug in slugs:
        sdk.volumes.create(slug=slug, region="ord", capacity=SMALL)
    try:
        # The SDK sends the whole next URL as the cursor; three pages in all.
        page, found, pages = sdk.volumes.list(search=prefix, limit=2), [], 0
        while page is not None:
            assert len(page.items) <= 2
            found += [item["slug"] for item in page.items]
            pages += 1
            page = page.get_next_page()
        assert sorted(found) == slugs
        assert pages == 3
        assert sdk.volumes.list(search=new_slug()).items == []
    finally:
        for slug in slugs:
            sdk.volumes.delete(slug)


def test_a_mebibyte_survives_kill(shared, sdk):
    data = os.urandom(1 << 20)
    with volume(shared) as made:
        with sdk.sandbox.create(region="ord", volumes={"/data/set": made["slug"]}) as sandbox:
            sandbox.fs.write_file("/data/set/blob", data)
            sandbox.kill()
        with sdk.sandbox.create(region="ord", volumes={"/elsewhere": made["id"]}) as sandbox:
            assert read_bytes(sandbox, "/elsewhere/blob") == data


def test_free_when_kill_has_answered(shared, sdk):
    with volume(shared) as made:
        for number in range(3):
            with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
                code, out, _ = bash(sandbox, f"cat /v/n 2>/dev/null; echo {number} > /v/n")
                assert code == 0
                assert out == ("" if number == 0 else f"{number - 1}\n")
                # Unmounting writes this back; no sync by us.
                bash(sandbox, "head -c 20000000 /dev/urandom > /v/junk")
                sandbox.kill()


def test_several_volumes(shared, sdk):
    with volume(shared) as one, volume(shared) as two:
        mounts = {"/data": one["id"], "/data/inner": two["id"]}
        with sdk.sandbox.create(volumes=mounts) as sandbox:
            assert bash(sandbox, "echo 1 > /data/a && echo 2 > /data/inner/b")[0] == 0
        with sdk.sandbox.create(volumes={"/x": two["id"]}) as sandbox:
            assert bash(sandbox, "cat /x/b; ls -A /x")[1] == "2\nb\n"
        with sdk.sandbox.create(volumes={"/x": one["id"]}) as sandbox:
            assert bash(sandbox, "cat /x/a; ls -A /x/inner")[1] == "1\n"


def test_a_new_volume_is_an_empty_directory_of_the_user(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/home/app/deep/er": made["id"]}) as sandbox:
            code, out, err = bash(
                sandbox, "cd ~/deep/er && ls -A && stat -c '%U' . && touch a && mkdir d && rm -r a d"
            )
            assert (code, out, err) == (0, "app\n", "")


def test_programs_run_from_a_volume(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/opt/tools": made["id"]}) as sandbox:
            script = "printf '#!/bin/sh\\necho ran $1\\n' > /opt/tools/t; chmod +x /opt/tools/t; /opt/tools/t x"
            assert bash(sandbox, script)[1] == "ran x\n"


def test_full_volume_harms_nothing_else(shared, sdk):
    with volume(shared) as full, volume(shared) as other:
        with (
            sdk.sandbox.create(volumes={"/full": full["id"]}) as victim,
            sdk.sandbox.create(volumes={"/other": other["id"]}) as neighbour,
        ):
            code, _, err = bash(victim, "mountpoint -q /full && LC_ALL=C dd if=/dev/zero of=/full/big bs=1M count=400 conv=fsync")
            assert code == 1
            assert "No space left on device" in err
            # The sandbox itself, its neighbour and the server are as before.
            assert bash(victim, "echo ok > /tmp/a && cat /tmp/a")[1] == "ok\n"
            assert bash(neighbour, "head -c 50000000 /dev/zero > /other/f && sync /other/f && wc -c < /other/f")[1] == "50000000\n"
            # What was written is there, and room comes back.
            assert int(bash(victim, "stat -c %s /full/big")[1]) > 200_000_000
            assert bash(victim, "rm /full/big && head -c 1000000 /dev/zero > /full/again && sync /full/again")[0] == 0
        with sdk.sandbox.create(volumes={"/v": full["id"]}) as sandbox:
            assert bash(sandbox, "stat -c %s /v/again")[1] == "1000000\n"


def test_full_volume_through_the_file_api(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            bash(sandbox, "mountpoint -q /v && dd if=/dev/zero of=/v/big bs=1M count=400 2>/dev/null")
            with pytest.raises(Exception, match="ENOSPC"):
                sandbox.fs.write_file("/v/more", os.urandom(1 << 20))


def test_capacity_is_what_was_asked(shared, sdk):
    with volume(shared, capacity="1GB") as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            size = int(bash(sandbox, "df -B1 --output=size /v | tail -1")[1])
            assert 0.9e9 < size <= 1e9


def test_usage_is_measured_after_detach(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            bash(sandbox, "head -c 50000000 /dev/urandom > /v/f")
            sandbox.kill()
        deadline = time.monotonic() + 15
        while True:
            now = sdk.volumes.get(made["id"])
            if now["estimated_flattened_size"] >= 50_000_000 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert now["estimated_flattened_size"] >= 50_000_000
        assert now["estimated_allocated_size"] >= 50_000_000
        assert now["estimated_flattened_size"] <= 300_000_000


def test_volumes_of_sandboxes_that_run_together_do_not_mix(shared, sdk):
    # Three at a time: one sandbox must never see what belongs to another.
    with volume(shared) as a, volume(shared) as b, volume(shared) as c:
        managers = [sdk.sandbox.create(volumes={"/v": v["id"]}) for v in (a, b, c)]
        sandboxes = [manager.__enter__() for manager in managers]
        for number, sandbox in enumerate(sandboxes):
            bash(sandbox, f"echo {number} > /v/who")
        for manager in managers:
            manager.__exit__(None, None, None)
        for number, made in enumerate((a, b, c)):
            with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
                assert bash(sandbox, "cat /v/who")[1] == f"{number}\n"
