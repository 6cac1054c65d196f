"""A mixed load against a server that is killed at random moments, and a check after each.

    python crash_load.py --kills 200 --seed 7

`cargo xtask soak` runs this. The seed decides what is done and when the server dies, up to the
timing of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from pathlib import Path

from crash_model import Broken, Image, Model, Tree, Try
from crash_world import REGION, World
from support import setting

CLIENTS = 5
VOLUMES_MAX = 14
SNAPSHOTS_MAX = 16
FILES_MAX = 10
CAPACITY = 300_000_000
BOOTABLE_CAPACITY = 1_000_000_000
# How long what was deleted can be restored, and until when the load tries to, seconds.
GRACE = 10
RESTORE_WITHIN = 4
ARGUMENTS = (
    "--deletion-grace", f"{GRACE}s", "--purge-every", "300ms",
    "--measure-every", "1s",
)  # fmt: skip
# Mounted at most in one sandbox.
MOUNTS_MAX = 16

# A file appears under a name that holds its checksum, whole and durable, or not at all.
WRITE = """
set -e; mkdir -p "$1"; cd "$1"
head -c $3 /dev/urandom > .new-$2
sum=$(sha256sum < .new-$2 | cut -c1-16)
sync .new-$2; mv .new-$2 $2-$sum; echo $2 >> log; sync log; sync .; echo $sum
"""
REMOVE = 'set -e; cd "$1"; rm $2-*; sync .'
LIST = """
for directory; do
  echo "= $directory"
  cd "$directory" 2>/dev/null || continue
  set -- [0-9]*-*; [ -e "$1" ] && sha256sum "$@"
  [ -e log ] && sed 's/^/log /' log
done
true
"""


async def shell(sandbox, script: str, *arguments: str) -> str:
    """Runs a script inside; it must succeed."""
    child = await sandbox.spawn(
        "bash", args=["-c", script, "bash", *arguments], stdout="piped", stderr="piped"
    )
    try:
        out, err = await child.stdout.read(-1), await child.stderr.read(-1)
        status = await child.wait()
    except BaseException:
        # It would wait for ever for an answer of a server that is gone.
        child._wait_task.cancel()
        raise
    if status["code"] != 0:
        raise Broken(f"inside {sandbox.id}, {arguments}: {err.decode(errors='replace')}")
    return out.decode()


async def look(sandbox, directories: list[str]) -> list[tuple[dict[int, str], set[int]]]:
    """The files of each directory, whose names are checked against their content, and its log."""
    found = []
    for line in (await shell(sandbox, LIST, *directories)).splitlines():
        if line.startswith("= "):
            found.append(({}, set()))
        elif line.startswith("log "):
            found[-1][1].add(int(line.removeprefix("log ")))
        else:
            checksum, name = line.split()
            number, _, wanted = name.partition("-")
            if not checksum.startswith(wanted):
                raise Broken(f"{directories[len(found) - 1]}/{name} has the checksum {checksum}")
            found[-1][0][int(number)] = wanted
    return found


class Load:
    """The clients, the model of what they have, and the checks after a crash."""

    def __init__(self, world: World, seed: int):
        self.world = world
        self.model = Model()
        self.chance = random.Random(seed)
        self.seed = seed
        self.is_dying = False
        self.sdk = None
        self.failure: BaseException | None = None

    # The load.

    async def client(self) -> None:
        """One client: something, again and again."""
        choices = [
            (self.create, 3), (self.session, 8), (self.session, 4), (self.resume, 4),
            (self.snapshot, 4), (self.fork, 3), (self.delete, 3), (self.restore, 2), (self.grow, 1),
        ]  # fmt: skip
        actions, weights = zip(*choices, strict=True)
        while True:
            (action,) = self.chance.choices(actions, weights)
            try:
                if not await action():
                    await asyncio.sleep(0.01)
            except Exception as error:
                if self.is_dying:
                    return
                self.failure = self.failure or error
                return

    def pick(self, images) -> Image | None:
        images = list(images)
        return self.chance.choice(images) if images else None

    async def make(self, image: Image, request) -> bool:
        """Awaits what makes an object; `request` gives the answer with its id."""
        self.model.images[image.slug] = image
        image.doubt = "create"
        image.id = (await request)["id"]
        image.doubt = None
        self.model.count(f"{image.kind} made")
        return True

    def new_slug(self, prefix: str) -> str:
        return f"{prefix}-{self.model.number()}"

    async def create(self) -> bool:
        """An empty volume, or a bootable one."""
        volumes = [image for image in self.model.of_kind("volumes") if not image.is_deleted]
        if len(volumes) >= VOLUMES_MAX:
            return False
        if not any(image.directory != "d" for image in volumes):
            image = Image("volumes", self.new_slug("root"), BOOTABLE_CAPACITY, Tree(), "home/app/d")
            source = "builtin:debian-13"
        else:
            image, source = Image("volumes", self.new_slug("vol"), CAPACITY, Tree()), None
        return await self.make(
            image,
            self.sdk.volumes.create(
                slug=image.slug, region=REGION, capacity=image.capacity, from_snapshot=source
            ),
        )

    async def session(self) -> bool:
        """A sandbox with some volumes: files written and removed, and one of several ends."""
        free = [image for image in self.model.of_kind("volumes") if image.is_free]
        if not free:
            return False
        images = self.chance.sample(free, min(len(free), self.chance.choice((1, 1, 1, 2, 3))))
        root = images[0] if images[0].directory != "d" and self.chance.random() < 0.6 else None
        end = self.chance.choice(("close", "close", "kill", "leave"))
        is_session = end == "close" or (end == "kill" and self.chance.random() < 0.5)
        one = Try(self.new_slug("try"), images, is_session, root)
        for image in images:
            image.is_busy = True
        self.model.tries[one.label] = one
        manager = self.sdk.sandbox.create(
            labels={"try": one.label}, root=root.id if root else None,
            volumes={f"/m{at}": image.id for at, image in enumerate(images) if image is not root},
            timeout=None if one.is_session else "20m",
        )  # fmt: skip
        async with manager as sandbox:
            one.id = sandbox.id
            self.model.count("sandbox started")
            try:
                await self.work(sandbox, one)
                if end == "kill":
                    await self.end(one, sandbox)
                elif end == "close":
                    one.ended = "begun"
            finally:
                # Nothing can be killed over a connection that is gone; the SDK would wait.
                sandbox._processes.clear()
        if end == "leave":
            for image in images:
                image.holder = one
        elif end == "close":
            one.ended = "yes"
        for image in images:
            image.is_busy = False
        return True

    async def resume(self) -> bool:
        """Takes up a sandbox that was left running, and ends it or leaves it again."""
        one = self.pick(
            one for one in self.model.tries.values()
            if one.ended == "no" and any(i.holder is one and not i.is_busy for i in one.images)
        )  # fmt: skip
        if one is None:
            return False
        for image in one.images:
            image.is_busy = True
        async with self.sdk.sandbox.connect(one.id) as sandbox:
            try:
                await self.work(sandbox, one)
                if self.chance.random() < 0.5:
                    await self.end(one, sandbox)
            finally:
                sandbox._processes.clear()
        for image in one.images:
            image.is_busy = False
            if one.ended == "yes":
                image.holder = None
        return True

    async def end(self, one: Try, sandbox) -> None:
        one.ended = "begun"
        await sandbox.kill()
        one.ended = "yes"
        self.model.count("sandbox killed")

    async def work(self, sandbox, one: Try) -> None:
        for _ in range(self.chance.randint(1, 5)):
            image = self.chance.choice(one.images)
            tree, directory = image.tree, one.directory(image)
            if len(tree.must) >= FILES_MAX or (tree.must and self.chance.random() < 0.2):
                number = self.chance.choice(sorted(tree.must))
                tree.begin_remove(number)
                await shell(sandbox, REMOVE, directory, str(number))
                tree.removed(number)
                self.model.count("file removed")
            else:
                number, size = self.model.number(), self.chance.choice((100, 4096, 60_000, 300_000))
                tree.begin_write(number)
                checksum = await shell(sandbox, WRITE, directory, str(number), str(size))
                tree.written(number, checksum.strip())
                self.model.count("file written")

    async def copy(self, source: Image, image: Image, request) -> bool:
        """Makes a snapshot or a fork, while others go on writing to the source."""
        before = source.tree.copy()
        source.copies += 1
        try:
            return await self.make(image, request)
        finally:
            source.copies -= 1
            image.tree = before.seen_through(source.tree)

    async def snapshot(self) -> bool:
        """A snapshot of a volume, attached or not."""
        snapshots = [image for image in self.model.of_kind("snapshots") if not image.is_deleted]
        source = self.pick(image for image in self.model.of_kind("volumes") if image.is_usable)
        if source is None or len(snapshots) >= SNAPSHOTS_MAX:
            return False
        slug = self.new_slug("snap")
        image = Image("snapshots", slug, source.capacity, Tree(), source.directory)
        return await self.copy(source, image, self.sdk.volumes.snapshot(source.id, slug=slug))

    async def fork(self) -> bool:
        """A volume from a snapshot, or from another volume."""
        volumes = [image for image in self.model.of_kind("volumes") if not image.is_deleted]
        source = self.pick(image for image in self.model.images.values() if image.is_usable)
        if source is None or len(volumes) >= VOLUMES_MAX:
            return False
        capacity = source.capacity + self.chance.choice((0, 100_000_000))
        image = Image("volumes", self.new_slug("fork"), capacity, Tree(), source.directory)
        if source.kind == "snapshots":
            request = self.sdk.volumes.create(
                slug=image.slug, region=REGION, capacity=capacity, from_snapshot=source.id
            )
        else:
            # The SDK has no call for this one; its client has.
            body = {"slug": image.slug, "capacity": capacity}
            request = self.sdk.volumes._client.post(f"/v1/volumes/{source.id}/fork", body)
        return await self.copy(source, image, request)

    async def delete(self) -> bool:
        """Deletes a volume or a snapshot."""
        images = [image for image in self.model.images.values() if image.is_free]
        if len(images) < 6:
            return False
        image = self.chance.choice(images)
        image.is_busy, image.doubt = True, "delete"
        await getattr(self.sdk, image.kind).delete(image.id)
        image.is_busy, image.doubt = False, None
        image.is_deleted, image.deleted_at = True, time.monotonic()
        self.model.count(f"{image.kind} deleted")
        return True

    async def restore(self) -> bool:
        """Undoes a deletion that is not long ago."""
        image = self.pick(
            image for image in self.model.images.values()
            if image.is_deleted and not image.is_busy
            and time.monotonic() - image.deleted_at < RESTORE_WITHIN
        )  # fmt: skip
        if image is None:
            return False
        image.is_busy, image.doubt = True, "restore"
        await self.sdk.volumes._client.post(f"/v1/{image.kind}/{image.id}/restore", {})
        image.is_busy, image.doubt, image.is_deleted = False, None, False
        self.model.count(f"{image.kind} restored")
        return True

    async def grow(self) -> bool:
        """Makes a volume larger."""
        image = self.pick(
            image for image in self.model.of_kind("volumes")
            if image.is_free and image.capacity < 2 * BOOTABLE_CAPACITY
        )  # fmt: skip
        if image is None:
            return False
        image.is_busy, image.growing_to = True, image.capacity + 50_000_000
        body = {"capacity": image.growing_to}
        await self.sdk.volumes._client.post(f"/v1/volumes/{image.id}/grow", body)
        image.is_busy, image.capacity, image.growing_to = False, image.growing_to, None
        self.model.count("volumes grown")
        return True

    # A crash, and what must hold after it.

    async def crash(self) -> None:
        """Load for a while, a kill, and the next server."""
        self.is_dying = False
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        await asyncio.sleep(self.chance.uniform(0.1, 0.8))
        if self.chance.random() < 0.7:
            await self.in_the_middle()
        if self.failure is None:
            self.is_dying = True
            self.world.server.kill()
        for client in clients:
            client.cancel()
        await asyncio.wait(clients, timeout=5)
        if self.failure:
            raise self.failure
        begun = time.monotonic()
        await asyncio.to_thread(self.world.start, *ARGUMENTS)
        self.model.count("ms of restarting", int((time.monotonic() - begun) * 1000))
        for image in self.model.images.values():
            image.is_busy, image.copies, image.holder = False, 0, None

    async def in_the_middle(self) -> None:
        """Waits until something is under way, and a moment more: most of the time nothing is."""
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if any(image.doubt or image.copies for image in self.model.images.values()):
                await asyncio.sleep(self.chance.uniform(0, 0.02))
                return
            await asyncio.sleep(0.001)

    async def check(self, is_thorough: bool) -> None:
        """Compares everything with the model."""
        await self.check_sandboxes()
        await asyncio.to_thread(self.world.settle)
        for kind in ("volumes", "snapshots"):
            listed = await asyncio.to_thread(self.world.every, kind)
            self.compare(kind, listed)
        volumes = [image for image in self.model.of_kind("volumes") if image.is_usable]
        snapshots = [image for image in self.model.of_kind("snapshots") if image.is_usable]
        if not is_thorough:
            new = [image for image in snapshots if not image.is_checked]
            old = [image for image in snapshots if image.is_checked]
            snapshots = new[:6] + self.chance.sample(old, min(len(old), 2))
        forks = await asyncio.gather(*(self.forked(image) for image in snapshots))
        pairs = [(image.id, image) for image in volumes] + list(zip(forks, snapshots, strict=True))
        await asyncio.gather(*(
            self.check_trees(pairs[at : at + MOUNTS_MAX])
            for at in range(0, len(pairs), MOUNTS_MAX)
        ))  # fmt: skip
        await asyncio.gather(*(self.sdk.volumes.delete(fork) for fork in forks))

    def compare(self, kind: str, listed: dict[str, dict]) -> None:
        part = Model()
        part.counts = self.model.counts
        part.images = {image.slug: image for image in self.model.of_kind(kind)}
        before = set(part.images)
        part.resolve({item["slug"]: item for item in listed.values()})
        for slug in before - set(part.images):
            del self.model.images[slug]
        # What can no longer be restored is of no interest any more.
        for image in list(self.model.of_kind(kind)):
            if image.is_deleted and time.monotonic() - image.deleted_at > RESTORE_WITHIN:
                del self.model.images[image.slug]

    async def check_sandboxes(self) -> None:
        """Sessions end with their server, sandboxes of a duration go on."""
        tries, self.model.tries = self.model.tries, {}
        deadline = time.monotonic() + 30
        while True:
            running = {
                sandbox["labels"].get("try"): sandbox
                for sandbox in await asyncio.to_thread(self.world.server.running)
            }
            late = [label for label in running if label in tries and tries[label].is_session]
            if not late:
                break
            if time.monotonic() > deadline:
                raise Broken(f"sessions of a dead server still run: {late}")
            await asyncio.sleep(0.02)
        for label in running:
            if label not in tries:
                raise Broken(f"nobody wanted {running[label]}")
            if tries[label].ended == "yes":
                raise Broken(f"{running[label]} runs after its kill was acknowledged")
        for one in tries.values():
            is_lasting = one.id is not None and not one.is_session and one.ended == "no"
            if is_lasting and one.label not in running:
                raise Broken(f"{one.id} of a duration did not outlive its server")
        for label, sandbox in running.items():
            await self.check_survivor(tries[label], sandbox["id"])

    async def check_survivor(self, one: Try, sandbox_id: str) -> None:
        """A sandbox that outlived its server still has what its client wrote. Then it ends."""
        # The end of one that was being ended is taken up at any time.
        if one.ended == "no":
            async with self.sdk.sandbox.connect(sandbox_id) as sandbox:
                found = await look(sandbox, [one.directory(image) for image in one.images])
            for image, (files, log) in zip(one.images, found, strict=True):
                image.tree.check(f"{image.slug} in {sandbox_id}", files, log)
            self.model.count("survivors compared")
        await asyncio.to_thread(self.world.server.end, sandbox_id)

    async def forked(self, image: Image) -> str:
        made = await self.sdk.volumes.create(
            slug=self.new_slug("look"), region=REGION, capacity=image.capacity,
            from_snapshot=image.id,
        )  # fmt: skip
        return made["id"]

    async def check_trees(self, pairs: list[tuple[str, Image]]) -> None:
        """Mounts all of them at once and compares."""
        volumes = {f"/m{at}": volume for at, (volume, _) in enumerate(pairs)}
        deadline = time.monotonic() + 30
        while True:
            # Whoever was being stopped may hold its volumes for a moment.
            try:
                manager = self.sdk.sandbox.create(volumes=volumes)
                sandbox = await manager.__aenter__()
                break
            except Exception as error:
                if "409" not in str(error) or time.monotonic() > deadline:
                    raise Broken(f"{list(volumes.values())} cannot be attached: {error!r}") from error
                await asyncio.sleep(0.05)
        directories = [f"/m{at}/{image.directory}" for at, (_, image) in enumerate(pairs)]
        found = await look(sandbox, directories)
        await manager.__aexit__(None, None, None)
        for (_, image), (files, log) in zip(pairs, found, strict=True):
            image.tree.check(image.slug, files, log)
            image.tree.settle(files, log)
            image.is_checked = True
            self.model.count("trees compared")
            self.model.count("files compared", len(files))

    async def run(self, kills: int, every: int) -> None:
        """The whole of it; reports progress after `every` kills."""
        begun = time.monotonic()
        await asyncio.to_thread(self.world.start, *ARGUMENTS)
        self.sdk = self.world.server.async_sdk()
        for kill in range(1, kills + 1):
            try:
                await self.crash()
                await self.check(is_thorough=kill == kills or kill % 25 == 0)
            except Exception as error:
                raise Broken(
                    f"after kill {kill} of the run with seed {self.seed}: {error!r}\n"
                    f"{self.world.server.tail()}"
                ) from error
            if kill % every == 0 or kill == kills:
                seconds = time.monotonic() - begun
                print(f"{kill} kills, {seconds:.0f} s, {seconds / kill:.2f} s each", flush=True)
        await asyncio.to_thread(self.world.clear)
        await self.sdk.volumes._client.close()

    def summary(self) -> str:
        """What was done, one line each."""
        return "\n".join(f"{count:>8}  {what}" for what, count in sorted(self.model.counts.items()))


def run(kills: int, seed: int, directory: Path, every: int = 10) -> str:
    """Runs the load on a server with its data below `directory`; returns a summary."""
    print(f"{kills} kills with seed {seed}", flush=True)
    world = World(directory, "4GiB")
    load = Load(world, seed)
    try:
        asyncio.run(load.run(kills, every))
    finally:
        # What is left shows whether it was the load or a server that cannot be started.
        if world.server.process is None:
            world.start(*ARGUMENTS)
        world.server.stop()
    return load.summary()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="load-", dir=setting("SCRATCH")))
    print(run(arguments.kills, arguments.seed, directory))
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
