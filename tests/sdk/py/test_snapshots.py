"""Snapshots through the Python SDK, and what a running sandbox notices of them."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
import trees
from support import (
    BASE, BOOTABLE, SMALL, async_bash, bash, bootable, new_slug, refused, snapshot, volume,
    wait_until,
)  # fmt: skip

# Beyond this the server thaws the file system, whatever its clone is doing.
STALL_MAX_US = 2_500_000


def test_objects(shared, sdk):
    with bootable(shared) as made:
        assert len(made) == 8, "the keys that the SDK documents, and no others"
        assert (made["is_bootable"], made["base_snapshot"]) == (True, None)
        slug = new_slug()
        taken = sdk.volumes.snapshot(made["slug"], slug=slug)
        try:
            assert taken == {
                "id": taken["id"],
                "slug": slug,
                "region": "ord",
                "allocated_size": taken["allocated_size"],
                "flattened_size": taken["flattened_size"],
                "is_bootable": True,
                "volume": {"id": made["id"], "slug": made["slug"]},
            }
            assert re.fullmatch(r"snp_ord_[0-9a-hjkmnp-z]{20}", taken["id"])
            assert taken["flattened_size"] > 100_000_000
            assert sdk.snapshots.get(slug)["id"] == taken["id"]
            assert sdk.snapshots.get(taken["id"])["slug"] == slug
            with volume(shared, BOOTABLE, from_snapshot=slug) as fork:
                assert len(fork) == 8
                assert fork["base_snapshot"] == {"id": taken["id"], "slug": slug}
                assert fork["is_bootable"]
        finally:
            sdk.snapshots.delete(slug)
        assert sdk.snapshots.get(slug) is None
        assert sdk.snapshots.get(taken["id"]) is None


def test_list_search_and_pages(shared, sdk):
    prefix = new_slug("page")[:20]
    slugs = [f"{prefix}-{number}" for number in range(5)]
    with volume(shared) as made:
        for slug in slugs:
            sdk.volumes.snapshot(made["id"], slug=slug)
        try:
            page, found, pages = sdk.snapshots.list(search=prefix, limit=2), [], 0
            while page is not None:
                assert len(page.items) <= 2
                found += [item["slug"] for item in page.items]
                pages += 1
                page = page.get_next_page()
            assert (sorted(found), pages) == (slugs, 3)
            assert sdk.snapshots.list(search=new_slug()).items == []
            # The same through our own API.
            page = shared.own("GET", f"/snapshots?search={prefix}&limit=3")
            rest = shared.own("GET", f"/snapshots?search={prefix}&cursor={page['next_cursor']}")
            assert sorted(s["slug"] for s in page["items"] + rest["items"]) == slugs
            assert rest["next_cursor"] is None
        finally:
            for slug in slugs:
                sdk.snapshots.delete(slug)


def test_boot(shared, sdk):
    with bootable(shared) as made:
        with sdk.sandbox.create(region="ord", root=made["slug"]) as sandbox:
            script = "echo kept | sudo tee /etc/kept > ~/kept; id -un; stat -c %U ~ /etc/kept"
            assert bash(sandbox, script)[:2] == (0, "app\napp\nroot\n")
        with sdk.sandbox.create(region="ord", root=made["id"]) as sandbox:
            assert bash(sandbox, "cat /etc/kept ~/kept")[1] == "kept\nkept\n"
        with snapshot(shared, made["id"]) as taken:
            for root in (taken["slug"], taken["id"]):
                with sdk.sandbox.create(region="ord", root=root) as sandbox:
                    script = "cat /etc/kept ~/kept; sudo rm /etc/kept; echo lost > ~/kept"
                    assert bash(sandbox, script)[1] == "kept\nkept\n"


def test_refusals(shared, sdk):
    """That the codes hold through this SDK, too; `snapshots.test.mjs` has the whole list."""
    with volume(shared) as data, bootable(shared) as made, snapshot(shared, made["id"]) as taken:
        for root in (data["slug"], data["id"]):
            config = {"root": {"volume": root}}
            shared.refuses_sandbox(config, (409, "NOT_BOOTABLE"), data["slug"])
        away = {"root": {"volume": taken["slug"]}, "region": "ams"}
        shared.refuses_sandbox(away, (409, "REGION_MISMATCH"), taken["slug"], "ord", "ams")
        with refused((400, "UNKNOWN_BASE"), "builtin:windows"):
            sdk.volumes.create(new_slug(), "ord", "1GB", from_snapshot="builtin:windows")
        body = {"slug": new_slug(), "capacity": "1GB", "from": "builtin:windows"}
        assert BASE in shared.request("POST", "/v1/volumes", body).text, "the known ones are named"
        with refused((400, "CAPACITY_BELOW_BASE"), "300 MB", "1 GB"):
            sdk.volumes.create(new_slug(), "ord", SMALL, from_snapshot=taken["id"])
        with refused((409, "SLUG_ALREADY_IN_USE"), taken["slug"]):
            sdk.volumes.create(taken["slug"], "ams", SMALL)
        with refused((404, "SNAPSHOT_NOT_FOUND")):
            sdk.snapshots.delete(made["slug"])
        # A snapshot is a root, never a mount.
        config = {"volumes": {"/v": taken["id"]}}
        shared.refuses_sandbox(config, (404, "VOLUME_NOT_FOUND"), taken["id"])
        with sdk.sandbox.create(root=made["id"]) as holder:
            with refused((409, "VOLUME_IS_MOUNTED"), holder.id):
                sdk.volumes.delete(made["id"])
            for config in ({"root": {"volume": made["slug"]}}, {"volumes": {"/v": made["id"]}}):
                shared.refuses_sandbox(config, (409, "VOLUME_IS_MOUNTED"), holder.id)


@pytest.mark.timeout(300)
def test_twenty_sandboxes_of_one_snapshot(shared, sdk):
    """Each writes in its own, all have the same beside, nobody sees another's."""
    count = 20

    async def one(client, root: str, number: int, together: asyncio.Barrier) -> tuple[str, str]:
        async with client.sandbox.create(region="ord", root=root, memory_mb=768) as sandbox:
            await async_bash(
                sandbox,
                f"echo {number} | sudo tee /opt/mine /usr/share/mine-{number} > ~/mine;"
                f" sudo sh -c 'echo {number} >> /etc/debian_version'; rm ~/.profile",
            )
            await together.wait()  # all twenty run now, and all have written
            seen = await async_bash(
                sandbox,
                "sudo cat /opt/mine ~/mine; tail -n +2 /etc/debian_version;"
                " ls /usr/share/mine-* ~/.profile 2>&1 | wc -l;"
                " sudo rm /opt/mine /usr/share/mine-* ~/mine",
            )
            child = await sandbox.spawn(
                "sudo", args=["python3", "-c", *trees.digest_command(skip=skip)],
                stdout="piped", stderr="inherit",
            )  # fmt: skip
            rest = (await child.stdout.read(-1)).decode().strip()
            assert (await child.wait())["success"]
            await together.wait()
            return seen, rest

    async def all_of(root: str):
        client, together = shared.async_sdk(), asyncio.Barrier(count)
        return await asyncio.gather(*(one(client, root, n, together) for n in range(count)))

    skip = (*trees.OF_THE_NODE, "./etc/debian_version", "./home/app/.profile")
    with bootable(shared) as made, snapshot(shared, made["id"]) as taken:
        outcomes = asyncio.run(all_of(taken["id"]))
        for number, (seen, _) in enumerate(outcomes):
            assert seen == f"{number}\n{number}\n{number}\n2\n", number
        with sdk.sandbox.create(region="ord", root=taken["id"]) as after:
            assert {rest for _, rest in outcomes} == {trees.digest(after, skip=skip)}
            assert bash(after, "wc -l < /etc/debian_version; ls ~/.profile")[1] == (
                "1\n/home/app/.profile\n"
            )


WRITER = r"""
import os, time
log, longest, number = os.open("/v/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 0, 0
while not os.path.exists("/tmp/stop"):
    begun = time.monotonic()
    os.write(log, b"%08d\n" % number)
    os.fsync(log)
    # On another file system, so that it can be read while this one is frozen.
    with open("/tmp/synced.new", "w") as file:
        file.write(str(number))
    os.rename("/tmp/synced.new", "/tmp/synced")
    longest, number = max(longest, time.monotonic() - begun), number + 1
print(number, int(longest * 1e6))
"""


def test_a_snapshot_of_a_busy_volume(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            writer = sandbox.spawn("python3", args=["-c", WRITER], stdout="piped", stderr="inherit")
            ticks = "n=0; while [ ! -e /tmp/stop ]; do echo $n; n=$((n + 1)); sleep 0.01; done"
            stream = sandbox.spawn("sh", args=["-c", ticks], stdout="piped", stderr="inherit")
            synced = lambda: int(sandbox.fs.read_text_file("/tmp/synced"))  # noqa: E731
            wait_until("it writes", lambda: bash(sandbox, "test -e /tmp/synced")[0] == 0)
            # The SDK itself waits ten seconds at most; so may nothing here take longer.
            taken, between = [], []
            for _ in range(5):
                before = synced()
                begun = time.monotonic()
                taken.append(shared.own("POST", f"/volumes/{made['id']}/snapshot", {"slug": new_slug()}))
                assert time.monotonic() - begun < 5
                between.append((before, synced()))
                time.sleep(0.1)
            assert shared.is_running(sandbox.id)
            bash(sandbox, "touch /tmp/stop")
            numbers = [int(line) for line in stream.stdout.read(-1).split()]
            assert numbers == list(range(len(numbers))), "the stream went on, with nothing lost"
            stream.wait()
            count, longest = map(int, writer.stdout.read(-1).split())
            assert writer.wait()["success"]
        try:
            for one in taken:
                assert one["consistency"] == "filesystem"
                assert 0 < one["write_stall_us"] < STALL_MAX_US
            # What the server reports is what the writer noticed.
            assert max(one["write_stall_us"] for one in taken) <= longest + 100_000
            assert longest < STALL_MAX_US + 1_000_000
            for one, (least, most) in zip(taken, between):
                with volume(shared, from_snapshot=one["id"]) as fork:
                    with sdk.sandbox.create(volumes={"/v": fork["id"]}) as sandbox:
                        lines = sandbox.fs.read_text_file("/v/log").split()
                    assert lines == [f"{n:08d}" for n in range(len(lines))]
                    # Everything synced before, nothing written after.
                    assert least < len(lines) <= most + 2, (least, len(lines), most)
            assert count > between[-1][1], "the writer went on after the last snapshot"
        finally:
            for one in taken:
                sdk.snapshots.delete(one["id"])


def test_a_snapshot_does_not_change(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            trees.build(sandbox, "/v")
            before = trees.digest(sandbox, "/v")
            with snapshot(shared, made["id"]) as taken:
                checksum = shared.own("POST", f"/snapshots/{taken['id']}/verify")["checksum"]
                assert checksum.startswith("sha256:")
                bash(sandbox, "sudo rm -rf /v/*; head -c 50000000 /dev/urandom > /v/new; sync /v/new")
                with volume(shared, from_snapshot=taken["id"]) as fork:
                    with sdk.sandbox.create(volumes={"/f": fork["id"]}) as other:
                        assert trees.digest(other, "/f") == before
                        bash(other, "sudo rm -rf /f/*; sync /f")
                again = shared.own("POST", f"/snapshots/{taken['id']}/verify")
                assert (again["checksum"], again["health"]) == (checksum, "intact")


def test_sizes_tell_what_is_shared(hasty):
    sdk = hasty.sdk()

    def sizes(made: dict) -> tuple[int, int]:
        found = sdk.volumes.get(made["id"])
        return found["estimated_allocated_size"], found["estimated_flattened_size"]

    with volume(hasty) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            bash(sandbox, "head -c 50000000 /dev/urandom > /v/a; sync /v/a")
            with snapshot(hasty, made["id"]) as taken:
                # Nearly all is shared: neither has 5 MB of its own.
                wait_until("it is measured", lambda: sizes(made)[0] < 5_000_000)
                now = sdk.snapshots.get(taken["id"])
                assert now["allocated_size"] < 5_000_000
                assert 50_000_000 <= now["flattened_size"] < 80_000_000
                bash(sandbox, "head -c 30000000 /dev/urandom > /v/b; sync /v/b")
                wait_until(
                    "the volume's own are seen while it is attached",
                    lambda: 30_000_000 <= sizes(made)[0] < 40_000_000,
                )
                assert sizes(made)[1] >= 80_000_000
        # Without the snapshot all of it is the volume's own, once the data is removed.
        wait_until(
            "the survivor's size is corrected",
            lambda: sizes(made)[0] >= 80_000_000,
        )
