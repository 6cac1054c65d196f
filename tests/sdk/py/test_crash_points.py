"""The server is killed at every place between two steps of an operation, and started again.

An operation has then happened completely or not at all, what was durable is there, nothing is stuck
or left over, and the same operation can be done again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from crash_world import KEEP, PURGE, REGION, Blob, World, durable
from support import BASE, bash, new_slug, setting, wait_until

import host

pytestmark = pytest.mark.timeout(300)

# Longest time for one place, seconds. They usually take two or three.
PLACE_LIMIT = 100
# Servers that work through the places side by side.
SERVERS = 2
LARGER = 500_000_000

SCENARIOS = []


def scenario(*places: str, armed=KEEP, after=PURGE):
    """An operation, and the places at which the server dies in it.

    It is a generator: it prepares, yields what makes the server die, and then looks at what the
    next server has made of it. `armed` and `after` are the arguments of the two servers.
    """

    def add(steps):
        for place in places:
            SCENARIOS.append(pytest.param(place, steps, armed, after, id=f"{place}-{steps.__name__}"))
        return steps

    return add


def run(world: World, place: str, steps, armed, after) -> None:
    """One scenario, from an empty pool to an empty pool."""
    going = steps(world)
    action = next(going)
    world.start(*armed, "--crash-at", place)
    world.dies(action)
    world.start(*after)
    next(going, None)
    world.settle()
    world.clear()


@scenario("create-recorded", "image-written", "image-published", "create-image-made")
def create(world: World):
    slug = new_slug()
    yield lambda: world.volume(slug)
    found = world.find("volumes", slug)
    if found:
        world.verify(found["id"])
        world.sdk.volumes.delete(slug)
    world.verify(world.volume(slug)["id"])


@scenario("image-written", "create-image-made")
def create_with_a_system(world: World):
    slug = new_slug()

    def make():
        return world.sdk.volumes.create(
            slug=slug, region=REGION, capacity="1GB", from_snapshot=BASE
        )

    def boot():
        with world.sdk.sandbox.create(root=slug) as sandbox:
            return durable(sandbox, "/home/app/blob", 4096)

    yield make
    if world.find("volumes", slug):
        boot()
        world.sdk.volumes.delete(slug)
    make()
    boot()


@scenario("create-recorded", "fork-cloned", "image-published", "create-image-made")
def fork(world: World):
    made, blob = world.filled()
    slug = new_slug()

    def take():
        body = {"slug": slug, "capacity": LARGER}
        return world.server.own("POST", f"/volumes/{made['id']}/fork", body)

    yield take
    found = world.find("volumes", slug)
    if found:
        check_size(world, found["id"], LARGER)
        world.verify(found["id"], blob)
        world.sdk.volumes.delete(slug)
    world.verify(take()["id"], blob)
    world.verify(made["id"], blob)


@scenario("snapshot-recorded", "snapshot-frozen", "snapshot-cloned", "snapshot-image-made")
def snapshot_of_an_attached_volume(world: World):
    made, slug, known = world.volume(), new_slug(), {}

    def take():
        sandbox = world.sandbox(volumes={"/v": made["id"]}, timeout="20m")
        known["sandbox"] = sandbox
        known["blob"] = durable(sandbox, "/v/blob")
        world.sdk.volumes.snapshot(made["id"], slug=slug)

    yield take
    blob, sandbox = known["blob"], known["sandbox"]
    assert world.server.is_running(sandbox.id), "a sandbox of a duration outlives its server"
    with world.sdk.sandbox.connect(sandbox.id) as again:
        # Its file system must not have stayed frozen.
        more = durable(again, "/v/more")
        found = world.find("snapshots", slug)
        if found:
            world.verify_snapshot(found, blob)
            world.sdk.snapshots.delete(slug)
        taken = world.sdk.volumes.snapshot(made["id"], slug=slug)
        world.verify_snapshot(world.find("snapshots", taken["id"]), blob, more)
    world.server.end(sandbox.id)
    world.verify(made["id"], blob, more)


@scenario("snapshot-recorded", "image-written", "image-published", "snapshot-cloned")
def snapshot_of_a_free_volume(world: World):
    made, blob = world.filled()
    slug = new_slug()

    def take():
        return world.sdk.volumes.snapshot(made["id"], slug=slug)

    yield take
    found = world.find("snapshots", slug)
    if found:
        world.verify_snapshot(found, blob)
        world.sdk.snapshots.delete(slug)
    world.verify_snapshot(world.find("snapshots", take()["id"]), blob)
    world.verify(made["id"], blob)


@scenario("attach-recorded", "attach-noted", "attach-mounted", "attach-started")
def attach(world: World):
    made, blob = world.filled()
    yield lambda: world.sandbox(volumes={"/v": made["id"]}, timeout="20m")
    # Nobody has been told of it.
    wait_until("no sandbox runs", lambda: not world.server.running(), 30)
    world.verify(made["id"], blob)


@scenario("detach-recorded", "detach-killed", "detach-released", "detach-done")
def detach(world: World):
    made, known = world.volume(), {}

    def end():
        sandbox = world.sandbox(volumes={"/v": made["id"]}, timeout="20m")
        known["blob"] = durable(sandbox, "/v/blob")
        world.server.end(sandbox.id)

    yield end
    wait_until("it has ended", lambda: not world.server.running(), 30)
    world.verify(made["id"], known["blob"])


@scenario("delete-recorded", after=KEEP)
def delete_a_volume(world: World):
    made, blob = world.filled()
    yield lambda: world.sdk.volumes.delete(made["id"])
    if world.find("volumes", made["id"]):
        world.sdk.volumes.delete(made["id"])
    assert world.find("volumes", made["slug"]) is None
    world.server.own("POST", f"/volumes/{made['id']}/restore", {})
    world.verify(made["id"], blob)


@scenario("delete-recorded", after=KEEP)
def delete_a_snapshot(world: World):
    made, blob = world.filled()
    taken = world.sdk.volumes.snapshot(made["id"], slug=new_slug())
    yield lambda: world.sdk.snapshots.delete(taken["id"])
    if world.find("snapshots", taken["id"]):
        world.sdk.snapshots.delete(taken["id"])
    assert world.find("snapshots", taken["slug"]) is None
    again = world.server.own("POST", f"/snapshots/{taken['id']}/restore", {})
    world.verify_snapshot(again, blob)
    world.verify(made["id"], blob)


@scenario("restore-recorded", after=KEEP)
def restore_a_volume(world: World):
    made, blob = world.filled()

    def undo():
        world.sdk.volumes.delete(made["id"])
        world.server.own("POST", f"/volumes/{made['id']}/restore", {})

    yield undo
    if not world.find("volumes", made["id"]):
        world.server.own("POST", f"/volumes/{made['id']}/restore", {})
    world.verify(made["id"], blob)
    world.sdk.volumes.delete(made["id"])
    world.server.own("POST", f"/volumes/{made['id']}/restore", {})
    world.verify(made["id"], blob)


@scenario("restore-recorded", after=KEEP)
def restore_a_snapshot(world: World):
    made, blob = world.filled()
    taken = world.sdk.volumes.snapshot(made["id"], slug=new_slug())

    def undo():
        world.sdk.snapshots.delete(taken["id"])
        return world.server.own("POST", f"/snapshots/{taken['id']}/restore", {})

    yield undo
    if not world.find("snapshots", taken["id"]):
        world.server.own("POST", f"/snapshots/{taken['id']}/restore", {})
    world.verify_snapshot(undo(), blob)


@scenario("purge-begun", "purge-image-removed", armed=PURGE)
def purge_a_volume(world: World):
    made, blob = world.filled()
    taken = world.sdk.volumes.snapshot(made["id"], slug=new_slug())
    yield lambda: world.sdk.volumes.delete(made["id"])
    wait_until("it is purged", lambda: f"volumes/{suffix(made)}" not in world.images())
    assert world.find("volumes", made["id"]) is None
    answer = world.server.request("POST", f"/v1/volumes/{made['id']}/restore", {})
    assert answer.status_code in (404, 410), answer.text
    # What was copied from it does not depend on it.
    world.verify_snapshot(taken | {"capacity": made["capacity"]}, blob)
    world.sdk.snapshots.delete(taken["id"])
    wait_until("the other one too", lambda: f"snapshots/{suffix(taken)}" not in world.images())


@scenario("purge-begun", "purge-image-removed", armed=PURGE)
def purge_a_snapshot(world: World):
    made, blob = world.filled()
    taken = world.sdk.volumes.snapshot(made["id"], slug=new_slug())
    yield lambda: world.sdk.snapshots.delete(taken["id"])
    wait_until("it is purged", lambda: f"snapshots/{suffix(taken)}" not in world.images())
    assert world.find("snapshots", taken["id"]) is None
    world.verify(made["id"], blob)


@scenario("grow-recorded", "grow-file-grown", "grow-image-grown")
def grow(world: World):
    made, blob = world.filled()

    def enlarge():
        return world.server.own("POST", f"/volumes/{made['id']}/grow", {"capacity": LARGER})

    yield enlarge
    world.verify(made["id"], blob)
    check_size(world, made["id"], world.find("volumes", made["id"])["capacity"])
    assert enlarge()["capacity"] == LARGER
    check_size(world, made["id"], LARGER)
    world.verify(made["id"], blob)


OFTEN = ("--measure-every", "200ms", "--checks-every", "200ms")
# Writes every second block of a file anew: on a shared image, each becomes an extent of its own.
SCATTER = """
import os
fd = os.open("/v/blob", os.O_WRONLY)
for block in range(0, 4096, 2):
    os.pwrite(fd, os.urandom(4096), block * 4096)
os.fsync(fd)
"""


@scenario("pack-copied", "pack-swapped", armed=(*KEEP, *OFTEN), after=(*PURGE, *OFTEN))
def pack(world: World):
    made = world.volume()
    with world.sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
        durable(sandbox, "/v/blob", 16 << 20)
        shared = world.sdk.volumes.snapshot(made["id"], slug=new_slug())
        sandbox.fs.write_text_file("/tmp/scatter.py", SCATTER)
        code, out, err = bash(sandbox, "python3 /tmp/scatter.py && sha256sum < /v/blob")
        assert code == 0, err
        blob = Blob("/v/blob", out.split()[0])
    world.sdk.snapshots.delete(shared["id"])
    slug = new_slug()
    yield lambda: world.sdk.volumes.snapshot(made["id"], slug=slug)
    found = world.find("snapshots", slug)
    assert found, "it was acknowledged before anything was packed"
    world.verify_snapshot(found, blob)
    wait_until("it is packed", lambda: 0 < world.find("snapshots", slug)["extents"] < 2000, 30)
    assert world.server.own("POST", f"/snapshots/{slug}/verify")["health"] == "intact"
    world.verify_snapshot(found, blob)
    world.verify(made["id"], blob)


@scenario("import-unpacked", "create-recorded")
def import_an_archive(world: World):
    made, blob = world.filled()
    source = world.server.request("GET", f"/v1/volumes/{made['id']}/archive", seconds=60)
    assert source.status_code == 200, source.text
    slug = new_slug()

    def unpack():
        path = f"/volumes/import?slug={slug}&region={REGION}"
        return world.server.own("POST", path, content=source.content, seconds=60)

    yield unpack
    # The sandbox in which it was unpacked is nobody's business, and it is gone.
    assert world.server.running() == []
    found = world.find("volumes", slug)
    if found:
        world.verify(found["id"], blob)
        world.sdk.volumes.delete(slug)
    world.verify(unpack()["id"], blob)
    world.verify(made["id"], blob)


def suffix(made: dict) -> str:
    """The random part of an id."""
    return made["id"].rsplit("_", 1)[1]


def check_size(world: World, volume: str, capacity: int) -> None:
    """The file system inside is as large as the capacity says: its own tables take a part."""
    with world.sdk.sandbox.create(volumes={"/v": volume}) as sandbox:
        code, out, err = bash(sandbox, "stat -f -c '%b %S' /v")
        assert code == 0, err
        blocks, size = map(int, out.split())
        assert 0.8 * capacity < blocks * size <= capacity


@pytest.fixture(scope="module")
def outcomes(request) -> dict[str, Future]:
    """All chosen scenarios, on servers that share the work."""
    chosen = [item.callspec for item in request.session.items if item.module is request.module
              and "place" in getattr(getattr(item, "callspec", None), "params", {})]  # fmt: skip
    directories = [
        Path(tempfile.mkdtemp(prefix=f"points{n}-", dir=setting("SCRATCH"))) for n in range(SERVERS)
    ]
    free = [World(directory) for directory in directories]

    def work(params) -> None:
        world = free.pop()
        try:
            if world.server.process is None:
                world.start(*PURGE)
            run(world, params["place"], params["steps"], params["armed"], params["after"])
        except BaseException:
            # What is in its pool is unknown now: the next one begins anew.
            abandon(world)
            world = World(Path(tempfile.mkdtemp(prefix="points-", dir=setting("SCRATCH"))))
            directories.append(world.server.data.parent)
            raise
        finally:
            free.append(world)

    with ThreadPoolExecutor(SERVERS) as pool:
        yield {callspec.id: pool.submit(work, callspec.params) for callspec in chosen}
        pool.shutdown(cancel_futures=True)
    for world in free:
        abandon(world)
    left = [line for directory in directories
            for line in host.mounts_of(directory) + host.loops_of(directory)]  # fmt: skip
    assert not left, f"left after SIGTERM: {left}"
    for directory in directories:
        shutil.rmtree(directory)


def abandon(world: World) -> None:
    """Ends a world's server in order, whatever happened."""
    if world.server.process is None:
        world.start(*PURGE)
    world.server.stop()


@pytest.mark.parametrize(("place", "steps", "armed", "after"), SCENARIOS)
def test_place(request, outcomes, place, steps, armed, after):
    outcomes[request.node.callspec.id].result(PLACE_LIMIT)


def test_every_place_has_a_scenario(tmp_path):
    command = [setting("BINARY"), "serve", "--data-dir", str(tmp_path), "--crash-at", "nowhere"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode != 0
    names = re.search(r"there is no place \"nowhere\", only ([a-z, -]+)", refused.stderr)
    assert names, refused.stderr
    assert set(names[1].split(", ")) == {param.values[0] for param in SCENARIOS}
