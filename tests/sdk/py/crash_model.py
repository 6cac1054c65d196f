"""What a client may expect after a crash: what was acknowledged, and what may or may not be there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class Broken(AssertionError):
    """The server broke a promise."""


@dataclass
class Tree:
    """The files of a volume or a snapshot. Every file has a number that is used once."""

    # Durable files: number to checksum.
    must: dict[int, str] = field(default_factory=dict)
    # Files whose writing or removal was begun; the checksum where it is known.
    maybe: dict[int, str | None] = field(default_factory=dict)
    # Durable lines of the log.
    log: set[int] = field(default_factory=set)
    # Every number that was ever begun here.
    begun: set[int] = field(default_factory=set)

    def begin_write(self, number: int) -> None:
        self.maybe[number] = None
        self.begun.add(number)

    def written(self, number: int, checksum: str) -> None:
        del self.maybe[number]
        self.must[number] = checksum
        self.log.add(number)

    def begin_remove(self, number: int) -> None:
        self.maybe[number] = self.must.pop(number)

    def removed(self, number: int) -> None:
        del self.maybe[number]

    def copy(self) -> Tree:
        return Tree(dict(self.must), dict(self.maybe), set(self.log), set(self.begun))

    def seen_through(self, now: Tree) -> Tree:
        """A copy that was begun when the tree was this and may have happened until it was `now`."""
        must = {number: sum_ for number, sum_ in self.must.items() if number in now.must}
        doubtful = {**self.must, **self.maybe, **now.maybe, **now.must}
        maybe = {number: sum_ for number, sum_ in doubtful.items() if number not in must}
        return Tree(must, maybe, set(self.log), set(now.begun))

    def check(self, what: str, files: dict[int, str], log: set[int]) -> None:
        """Compares with what was found, whose checksums have been recomputed."""
        for number, checksum in self.must.items():
            if files.get(number) != checksum:
                raise Broken(f"{what}: file {number} is durable and is {files.get(number)}")
        for number, checksum in files.items():
            known = self.must.get(number) or self.maybe.get(number, "")
            if known is not None and known != checksum:
                raise Broken(f"{what}: file {number} is {checksum}, only {known!r} can be there")
        if not self.log <= log:
            raise Broken(f"{what}: the log has lost {sorted(self.log - log)}")
        if not log <= self.begun:
            raise Broken(f"{what}: the log has {sorted(log - self.begun)} of somebody else")

    def settle(self, files: dict[int, str], log: set[int]) -> None:
        """Nothing is under way any more: what was found is what stays."""
        self.must, self.maybe, self.log = dict(files), {}, set(log)


@dataclass
class Image:
    """A volume or a snapshot, as its owner knows it."""

    kind: str
    slug: str
    capacity: int
    tree: Tree
    # Where the files are in its tree. A bootable volume belongs to root, save for one's home.
    directory: str = "d"
    id: str | None = None
    is_deleted: bool = False
    deleted_at: float = 0.0
    # `create`, `delete` or `restore` while the answer is awaited, or was lost.
    doubt: str | None = None
    # A larger capacity that was asked for.
    growing_to: int | None = None
    # A client changes who has it attached; others leave it alone.
    is_busy: bool = False
    # Copies that are being made of it.
    copies: int = 0
    # The sandbox of a duration that was left running with it.
    holder: Try | None = None
    # A snapshot's tree was compared since it was made.
    is_checked: bool = False

    @property
    def is_usable(self) -> bool:
        is_growing = self.is_busy and self.growing_to is not None
        return not self.is_deleted and self.doubt is None and not is_growing

    @property
    def is_free(self) -> bool:
        return self.is_usable and not self.is_busy and not self.copies and self.holder is None


@dataclass
class Try:
    """An attempt to have a sandbox, known by a label."""

    label: str
    images: list[Image]
    is_session: bool
    root: Image | None = None
    id: str | None = None
    # `no`, `begun` or `yes`.
    ended: str = "no"

    def directory(self, image: Image) -> str:
        """Where the image's files are, inside."""
        if image is self.root:
            return f"/{image.directory}"
        return f"/m{self.images.index(image)}/{image.directory}"


class Model:
    """Everything that one owner has."""

    def __init__(self):
        self.images: dict[str, Image] = {}
        self.tries: dict[str, Try] = {}
        self.counts: dict[str, int] = {}
        self._last = 0

    def number(self) -> int:
        self._last += 1
        return self._last

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def of_kind(self, kind: str) -> list[Image]:
        return [image for image in self.images.values() if image.kind == kind]

    def resolve(self, listed: dict[str, dict]) -> None:
        """Compares with all objects that the API shows, by slug, after a crash."""
        for slug in listed.keys() - self.images.keys():
            raise Broken(f"{slug} exists, and nobody wants it: {listed[slug]}")
        for image in list(self.images.values()):
            is_there = image.slug in listed
            if image.doubt is None:
                if is_there == image.is_deleted:
                    state = "is back after its deletion" if is_there else "is lost"
                    raise Broken(f"{image.kind} {image.slug} {state}")
            else:
                self.count(f"{image.doubt} cut off, {'there' if is_there else 'not there'}")
                if not is_there and image.doubt == "create":
                    del self.images[image.slug]
                if not is_there and image.doubt == "delete":
                    image.deleted_at = time.monotonic()
                image.is_deleted = not is_there
                image.doubt = None
            if is_there:
                if image.id not in (None, listed[image.slug]["id"]):
                    raise Broken(f"{image.slug} was {image.id}, now {listed[image.slug]['id']}")
                image.id = listed[image.slug]["id"]
                capacity = listed[image.slug]["capacity"]
                if capacity not in (image.capacity, image.growing_to):
                    raise Broken(f"{image.slug} has a capacity of {capacity}, not {image.capacity}")
                if capacity == image.growing_to:
                    image.growing_to = None
                image.capacity = capacity
