"""A server of our own that dies and comes back, and what must be true of it whenever it is up."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from support import Server, bash, new_slug, wait_until

REGION = "ord"
# Nothing is purged by its age while a test looks at it.
KEEP = ("--deletion-grace", "24h")
# What was deleted is gone soon.
PURGE = ("--deletion-grace", "100ms", "--purge-every", "200ms")

# The SDK reads where its server is from the environment of the whole process.
CONSTRUCTING = threading.Lock()


@dataclass(frozen=True)
class Blob:
    """A file that was acknowledged as durable."""

    path: str
    sha256: str


class World:
    """One data directory, and the servers that follow each other on it."""

    def __init__(self, directory: Path, pool: str = "3GiB"):
        self.server = Server(directory, pool)
        # The next server listens where the last one did.
        self.sdk = None
        self.left_open = []

    def start(self, *arguments: str) -> None:
        """Starts a server; one that runs is killed first."""
        self.server.kill()
        # Left to the garbage collector, they would be closed in a thread that then waits for itself.
        while self.left_open:
            with contextlib.suppress(Exception):
                self.left_open.pop().__exit__(None, None, None)
        self.server.arguments = ("--warm", "1", *arguments)
        self.server.start()
        if self.sdk is None:
            with CONSTRUCTING:
                self.sdk = self.server.sdk()

    def dies(self, action) -> None:
        """Does what makes the server kill itself; the answer is lost, or came just before."""
        process, failures = self.server.process, []

        def attempt():
            try:
                action()
            except Exception as error:
                failures.append(error)

        # The SDK waits for ever for an answer on a socket that is gone.
        threading.Thread(target=attempt, daemon=True).start()
        try:
            wait_until("the server dies", lambda: process.poll() is not None, 30, 0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}: {failures}\n{self.server.tail()}") from None
        assert process.poll() == -signal.SIGKILL, self.server.tail()
        self.server.process = None

    # Our own API.

    def find(self, kind: str, name: str) -> dict | None:
        """A volume or a snapshot, if the API shows it."""
        response = self.server.request("GET", f"/v1/{kind}/{name}")
        if response.status_code == 404:
            return None
        assert response.is_success, response.text
        return response.json()

    def every(self, kind: str, deleted: bool = False) -> dict[str, dict]:
        """All volumes or snapshots by their ids, page by page."""
        found, cursor = {}, ""
        while cursor is not None:
            query = f"limit=100&deleted={str(deleted).lower()}"
            page = self.server.own("GET", f"/{kind}?{query}" + (f"&cursor={cursor}" if cursor else ""))
            found |= {item["id"]: item for item in page["items"]}
            cursor = page["next_cursor"]
        return found

    # Volumes and what is on them.

    def volume(self, slug: str | None = None, capacity: str = "300MB") -> dict:
        """A new, empty volume."""
        return self.sdk.volumes.create(slug=slug or new_slug(), region=REGION, capacity=capacity)

    def sandbox(self, **options):
        """A sandbox that is not closed before its server is gone."""
        manager = self.sdk.sandbox.create(**options)
        sandbox = manager.__enter__()
        self.left_open.append(manager)
        return sandbox

    def filled(self) -> tuple[dict, Blob]:
        """A volume with a durable file on it."""
        made = self.volume()
        with self.sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            return made, durable(sandbox, "/v/blob")

    def verify(self, volume: str, *blobs: Blob) -> None:
        """The volume can be attached, has these files, and takes new ones."""
        def create():
            with contextlib.suppress(Exception):
                manager = self.sdk.sandbox.create(volumes={"/v": volume})
                return manager, manager.__enter__()
            return None

        # A sandbox of before the crash may still be on its way out.
        manager, sandbox = wait_until(f"{volume} can be attached", create, 30, 0.1)
        try:
            for blob in blobs:
                code, out, err = bash(sandbox, f"sha256sum < {blob.path}")
                assert code == 0, f"{blob.path} on {volume}: {err}"
                assert out.split()[0] == blob.sha256, f"{blob.path} on {volume} has changed"
            durable(sandbox, "/v/after", 4096)
        finally:
            manager.__exit__(None, None, None)

    def verify_snapshot(self, snapshot: dict, *blobs: Blob) -> None:
        """The snapshot can be forked, and the fork has these files."""
        fork = self.sdk.volumes.create(
            slug=new_slug(), region=REGION, capacity=snapshot["capacity"],
            from_snapshot=snapshot["id"],
        )  # fmt: skip
        self.verify(fork["id"], *blobs)
        self.sdk.volumes.delete(fork["id"])

    # Settling.

    def images(self) -> set[str]:
        """The random parts of the ids of all images on the disk."""
        pool = self.server.data / "pool"
        return {
            f"{kind}/{image.stem}" for kind in ("volumes", "snapshots")
            for image in (pool / kind).glob("*.img")
        }  # fmt: skip

    def orphans(self) -> list[str]:
        """Images without an object, and objects without an image."""
        kinds = ("volumes", "snapshots")
        wanted = {
            f"{kind}/{name.rsplit('_', 1)[1]}"
            for kind in kinds for deleted in (False, True) for name in self.every(kind, deleted)
        }  # fmt: skip
        pool = self.server.own("GET", "/pool")
        return sorted(
            [f"the API knows no owner of {image}" for image in pool["unknown_images"]]
            + [f"the API misses {image}" for image in pool["missing_images"]]
            + [f"an image of nothing: {image}" for image in self.images() - wanted]
            + [f"no image of {image}" for image in wanted - self.images()]
        )

    def settle(self, seconds: float = 20.0) -> None:
        """Waits until what a crash left is cleared away."""
        left: list[str] = []

        def clean():
            left[:] = self.orphans()
            return not left

        try:
            wait_until("images and objects agree", clean, seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}: {left}\n{self.server.tail()}") from None

    def clear(self) -> None:
        """Deletes everything, which must be possible, and waits until nothing is left of it."""
        for sandbox in self.server.running():
            self.server.end(sandbox["id"])
        for kind in ("volumes", "snapshots"):
            for name in self.every(kind):
                self.server.own("DELETE", f"/{kind}/{name}")
        if not set(PURGE) <= set(self.server.arguments):
            self.start(*PURGE)
        wait_until("everything is purged", lambda: not self.images(), 30, 0.05)
        for kind in ("volumes", "snapshots"):
            assert self.every(kind) == {}
            assert self.every(kind, deleted=True) == {}
        self.settle()


def durable(sandbox, path: str, size: int = 256 << 10) -> Blob:
    """Writes a random file and makes it durable, from inside."""
    script = (
        f"head -c {size} /dev/urandom > {path} && sync {path} && sync $(dirname {path})"
        f" && sha256sum < {path}"
    )
    code, out, err = bash(sandbox, script)
    assert code == 0, err
    return Blob(path, out.split()[0])
