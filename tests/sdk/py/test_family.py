"""Volumes, snapshots and forks of each other: any order of deletion leaves the others whole."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

import trees
from support import SMALL, Server, bash, new_slug, removed, wait_until

REGION = "ord"
MEGABYTES = 4_000_000


class Family:
    """A volume, two snapshots and three forks; each has all files of its parent and one more."""

    def __init__(self, api: Server):
        self.api, self.sdk = api, api.sdk()
        # Name to kind and id, and to the checksum of its files.
        self.members: dict[str, tuple[str, str]] = {}
        self.digests: dict[str, str] = {}

    def make(self) -> None:
        """volume -> snapshot -> fork -> its snapshot -> its fork; and a direct fork."""
        self._born("volume", self.sdk.volumes.create(new_slug(), REGION, SMALL))
        self._write("volume")
        self._snapshot("snapshot", "volume")
        self._write("volume")
        self._fork("fork", "snapshot")
        self._write("fork")
        self._snapshot("snapshot of the fork", "fork")
        self._fork("fork of that", "snapshot of the fork")
        self._write("fork of that")
        source = self.members["volume"][1]
        copy = self.api.own("POST", f"/volumes/{source}/fork", {"slug": new_slug()})
        self._born("direct fork", copy)
        self.digests["direct fork"] = self.digests["volume"]
        self._write("direct fork")

    def _born(self, name: str, made: dict) -> None:
        kind = "snapshots" if made["id"].startswith("snp_") else "volumes"
        self.members[name] = kind, made["id"]

    def _snapshot(self, name: str, of: str) -> None:
        self._born(name, self.sdk.volumes.snapshot(self.members[of][1], slug=new_slug()))
        self.digests[name] = self.digests[of]

    def _fork(self, name: str, of: str) -> None:
        source = self.members[of][1]
        self._born(name, self.sdk.volumes.create(new_slug(), REGION, SMALL, from_snapshot=source))
        self.digests[name] = self.digests[of]

    def _write(self, name: str) -> None:
        """One file more, and one that its parent has, changed in the middle."""
        script = (
            f"head -c {MEGABYTES} /dev/urandom > /v/{random.getrandbits(32)}; touch /v/changed;"
            " dd if=/dev/urandom of=/v/changed bs=100K count=1 seek=3 conv=notrunc status=none"
        )
        with self.sdk.sandbox.create(volumes={"/v": self.members[name][1]}) as sandbox:
            assert bash(sandbox, script)[0] == 0
            self.digests[name] = trees.digest(sandbox, "/v")

    def check(self) -> None:
        """All that is left, byte for byte: snapshots through a fork, in one sandbox."""
        with contextlib.ExitStack() as cleanup:
            mounts = {}
            for name, (kind, identifier) in self.members.items():
                if kind == "snapshots":
                    fork = self.sdk.volumes.create(
                        new_slug(), REGION, SMALL, from_snapshot=identifier
                    )
                    identifier = fork["id"]
                    cleanup.callback(removed, self.api, "volumes", identifier)
                mounts[f"/family/{name.replace(' ', '-')}"] = identifier
            with self.sdk.sandbox.create(volumes=mounts) as sandbox:
                found = {
                    name: trees.digest(sandbox, f"/family/{name.replace(' ', '-')}")
                    for name in self.members
                }
        assert found == {name: self.digests[name] for name in self.members}

    def remove(self, name: str) -> None:
        """Deletes a member, and waits until its data is gone."""
        kind, identifier = self.members.pop(name)
        removed(self.api, kind, identifier)
        image = self.api.data / "pool" / kind / f"{identifier.rsplit('_', 1)[1]}.img"
        assert image.exists(), "a grace period has begun, nothing is gone at once"
        wait_until(f"the {name} is purged", lambda: not image.exists())


def test_any_order_of_deletion(hasty):
    # At the same time, because most of it is waiting for the grace period.
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda seed: one_order(hasty, seed), [1, 2, 3]))


def one_order(hasty, seed: int) -> None:
    family = Family(hasty)
    try:
        family.make()
        family.check()
        order = list(family.members)
        random.Random(seed).shuffle(order)
        while len(order) > 1:
            family.remove(order.pop())
            family.check()
        # The last one shares with nobody: what is mapped is its own.
        kind, identifier = family.members[order[0]]
        prefix = "estimated_" if kind == "volumes" else ""

        def has_no_relative():
            now = hasty.own("GET", f"/{kind}/{identifier}")
            return now[f"{prefix}allocated_size"] == now[f"{prefix}flattened_size"] > MEGABYTES

        wait_until("the sizes are corrected", has_no_relative)
    finally:
        for kind, identifier in family.members.values():
            removed(hasty, kind, identifier)


def test_a_deleted_snapshot_keeps_its_data_while_sandboxes_run_from_it(hasty):
    """Even when the grace period is over; then it goes."""
    sdk = hasty.sdk()
    made = sdk.volumes.create(new_slug(), REGION, "1GB", from_snapshot="builtin:debian-13")
    try:
        taken = sdk.volumes.snapshot(made["id"], slug=new_slug())
        image = hasty.data / "pool/snapshots" / f"{taken['id'].rsplit('_', 1)[1]}.img"
        with sdk.sandbox.create(root=taken["id"]) as sandbox:
            sdk.snapshots.delete(taken["id"])
            # Grace, purge and a second more.
            bash(sandbox, "sleep 2.5")
            script = "find /usr -type f | head -3000 | xargs -d '\\n' sha256sum | wc -l"
            assert bash(sandbox, script)[1] == "3000\n"
        wait_until("its data is gone when the last sandbox is", lambda: not image.exists())
    finally:
        removed(hasty, "volumes", made["id"])
