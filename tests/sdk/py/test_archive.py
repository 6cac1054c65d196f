"""Exports that `tar` understands, imports that give the same tree, and archives that are refused."""

from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import tarfile

import pytest
import trees
import zstandard
from support import (
    BOOTABLE, SMALL, bash, bootable, new_slug, removed, snapshot, volume, wait_until,
)  # fmt: skip

GIGABYTE = 1_000_000_000


def unpacked(archive: bytes) -> bytes:
    """The tar in an archive; its frame has to be whole."""
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive)).read()


def packed(tar: bytes, **options) -> bytes:
    """An archive's outer shape."""
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(tar)


def header(**values: str) -> bytes:
    """A global header with our own keys."""
    return tarfile.TarInfo.create_pax_global_header(
        {f"SANDSTONE.{key}": value for key, value in values.items()}
    )


def member(name: str, data: bytes = b"", **fields) -> bytes:
    """One entry of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    padding = bytes(-len(data) % 512)
    return info.tobuf(tarfile.PAX_FORMAT) + data + padding


def archive_of(*members: bytes, capacity: int = GIGABYTE, bootable: str = "0", **first: str) -> bytes:
    """An archive as an export writes it, with these entries."""
    start = {"format": "1", "bootable": bootable, "capacity": str(capacity)} | first
    tar = header(**start) + b"".join(members)
    tar += header(sha256=hashlib.sha256(tar).hexdigest())
    return packed(tar + bytes(1024))


def imported(api, archive: bytes, query: str = "", **options):
    """An import under a new slug; returns the slug and the answer."""
    slug = new_slug()
    response = api.request(
        "POST", f"/v1/volumes/import?slug={slug}&region=ord{query}", content=archive, seconds=120,
        headers={"Content-Type": "application/zstd"}, **options,
    )  # fmt: skip
    return slug, response


def exported(api, path: str) -> bytes:
    """An archive, in full."""
    response = api.request("GET", f"/v1{path}/archive", seconds=120)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zstd"
    return response.content


def test_a_round_trip(shared, sdk):
    with volume(shared, "1GB") as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            trees.build(sandbox, "/v")
            before = trees.describe(sandbox, "/v")
        archive = exported(shared, f"/volumes/{made['id']}")
        # 256 MB of holes are not in it.
        assert len(archive) < 5_000_000
        with snapshot(shared, made["id"]) as taken:
            of_snapshot = exported(shared, f"/snapshots/{taken['id']}")
        for one in (archive, of_snapshot):
            slug, response = imported(shared, one)
            assert response.is_success, response.text
            try:
                back = response.json()
                assert (back["slug"], back["region"], back["state"]) == (slug, "ord", "available")
                assert (back["capacity"], back["is_bootable"]) == (made["capacity"], False)
                with sdk.sandbox.create(volumes={"/v": slug}) as sandbox:
                    assert trees.describe(sandbox, "/v") == before
            finally:
                removed(shared, "volumes", slug)
        # The volume itself is as it was, and free.
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert trees.describe(sandbox, "/v") == before


def test_an_archive_is_an_ordinary_tar(shared, sdk, tmp_path):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            bash(sandbox, "mkdir -p /v/d/e && echo hello > /v/d/e/f && ln -s f /v/d/e/l")
        tar = unpacked(exported(shared, f"/volumes/{made['slug']}"))
    done = subprocess.run(
        ["tar", "-xvf", "-", "-C", tmp_path], input=tar, check=True, capture_output=True
    )
    assert done.stderr == b""
    names = {name.removeprefix("./").rstrip("/") for name in done.stdout.decode().splitlines()}
    assert names - {"", "."} == {"d", "d/e", "d/e/f", "d/e/l"}
    assert (tmp_path / "d/e/l").read_text() == "hello\n"


def test_a_system_boots_after_the_round_trip(shared, sdk):
    with bootable(shared) as made:
        with sdk.sandbox.create(root=made["id"]) as sandbox:
            # Half of the system, so that this takes half the time.
            bash(sandbox, "sudo rm -r /usr/local/bin/deno /usr/local/bin/node /usr/local/lib/node_modules")
            bash(sandbox, "echo kept | sudo tee /etc/kept; echo mine > ~/mine")
            before = trees.digest(sandbox)
        archive = exported(shared, f"/volumes/{made['id']}")
        slug, response = imported(shared, archive)
        assert response.is_success, response.text
        try:
            assert response.json()["is_bootable"] is True
            assert response.json()["capacity"] == made["capacity"]
            with sdk.sandbox.create(root=slug) as sandbox:
                assert bash(sandbox, "cat /etc/kept ~/mine; sudo id -un")[1] == "kept\nmine\nroot\n"
                assert trees.digest(sandbox) == before
        finally:
            removed(shared, "volumes", slug)


def test_archives_made_elsewhere(shared, sdk):
    """Ours to the letter, and what other programs may do within the format."""
    fifo = member("./fifo", type=tarfile.FIFOTYPE)
    directory = member("./d/", type=tarfile.DIRTYPE, mode=0o755)
    link = member("./d/link", type=tarfile.LNKTYPE, linkname="./file")
    symlink = member("./outside", type=tarfile.SYMTYPE, linkname="../../../etc/passwd")
    data = member("file", b"content\n", uid=1000, gid=1000)
    slug, response = imported(shared, archive_of(data, fifo, directory, link, symlink), "&capacity=300MB")
    assert response.is_success, response.text
    try:
        assert response.json()["capacity"] == 300_000_000
        with sdk.sandbox.create(volumes={"/v": slug}) as sandbox:
            script = "cd /v; cat d/link; stat -c '%h %U' file; readlink outside; stat -c %F fifo; ls -A | wc -l"
            assert bash(sandbox, script)[1] == "content\n2 app\n../../../etc/passwd\nfifo\n4\n"
    finally:
        removed(shared, "volumes", slug)


REFUSED = {
    "absolute": archive_of(member("/etc/passwd", b"x")),
    "parent": archive_of(member("../escape", b"x")),
    "parent in the middle": archive_of(member("./a/../../escape", b"x")),
    "hard link to the outside": archive_of(member("./l", type=tarfile.LNKTYPE, linkname="../../etc/shadow")),
    "absolute hard link": archive_of(member("./l", type=tarfile.LNKTYPE, linkname="/etc/shadow")),
    "block device": archive_of(member("./disk", type=tarfile.BLKTYPE, devmajor=7, devminor=0)),
    "character device": archive_of(member("./null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "a long path": archive_of(member("x" * 200 + "/../../" + "y" * 100, b"x")),
    "of another program": packed(member("./file", b"x") + bytes(1024)),
    "another format": archive_of(member("./file", b"x"), format="2"),
    "a path in an extended header": archive_of(member("a", b"x", pax_headers={"path": "../escape"})),
}
_SOUND = archive_of(member("./file", b"content" * 100_000))
_TAR = unpacked(_SOUND)
_LAST = header(sha256="0" * 64)
DAMAGED = {
    "nothing": b"",
    "no archive": b"PK\x03\x04 not this kind",
    "no tar": packed(b"hello" * 1000),
    "truncated": _SOUND[:-30],
    "half": _SOUND[: len(_SOUND) // 2],
    "a frame that ends early": packed(_TAR[: len(_TAR) // 2]),
    "without the last header": packed(_TAR[: -1024 - len(_LAST)] + bytes(1024)),
    "another content": packed(_TAR.replace(b"content", b"CONTENT", 1)),
    "a wrong checksum": packed(_TAR[:-1024 - len(_LAST)] + header(sha256="0" * 64) + bytes(1024)),
    "a flipped bit": _SOUND[:200] + bytes([_SOUND[200] ^ 1]) + _SOUND[201:],
}


@pytest.mark.parametrize("name", [*REFUSED, *DAMAGED])
def test_refused(shared, sdk, name):
    before = {item["id"] for item in sdk.volumes.list(limit=1000).items}
    slug, response = imported(shared, (REFUSED | DAMAGED)[name])
    assert response.status_code == 422, response.text
    assert response.json()["code"] == ("ARCHIVE_REFUSED" if name in REFUSED else "ARCHIVE_DAMAGED")
    assert sdk.volumes.get(slug) is None
    assert {item["id"] for item in sdk.volumes.list(limit=1000).items} == before
    assert shared.own("GET", f"/volumes?deleted=true&search={slug}")["items"] == []
    # The slug is free again.
    sdk.volumes.create(slug, "ord", "300MB")
    sdk.volumes.delete(slug)


def test_a_tree_larger_than_its_volume(shared, sdk):
    """No room in the volume is an error of the request, not a broken volume."""
    slug, response = imported(shared, archive_of(member("./zeros", bytes(350_000_000))), "&capacity=300MB")
    assert response.status_code in (400, 409, 422), response.text
    assert sdk.volumes.get(slug) is None


def test_an_upload_that_stops(shared, sdk):
    """The client goes away in the middle: nothing is made."""
    address, port = shared.url.removeprefix("http://").rsplit(":", 1)
    slug = new_slug()
    with socket.create_connection((address, int(port)), 10) as connection:
        connection.sendall(
            f"POST /v1/volumes/import?slug={slug}&region=ord HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {shared.token}\r\nContent-Length: {len(_SOUND)}\r\n\r\n".encode()
            + _SOUND[: len(_SOUND) // 2]
        )
    assert sdk.volumes.get(slug) is None

    def is_free():
        response = shared.request("POST", "/v1/volumes", {"slug": slug, "capacity": SMALL})
        return response.is_success

    wait_until("the slug is free again", is_free)
    sdk.volumes.delete(slug)


def test_refusals_of_exports_and_imports(shared, sdk):
    shared.refuses("GET", "/volumes/no-such/archive", (404, "VOLUME_NOT_FOUND"), "no-such")
    shared.refuses("GET", "/snapshots/no-such/archive", (404, "SNAPSHOT_NOT_FOUND"), "no-such")
    with volume(shared) as made:
        path = f"/volumes/import?slug={made['slug']}&region=ord"
        shared.refuses("POST", path, (409, "SLUG_ALREADY_IN_USE"), made["slug"], content=_SOUND)
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as holder:
            path = f"/volumes/{made['id']}/archive"
            shared.refuses("GET", path, (409, "VOLUME_IS_MOUNTED"), holder.id)


def test_the_command_line(shared, sdk, tmp_path):
    archive, slug = tmp_path / "volume.tar.zst", new_slug()
    with volume(shared, BOOTABLE) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            sandbox.fs.write_text_file("/v/file", "through a file")
        shared.sandstone("volumes", "export", made["slug"], str(archive))
        assert archive.stat().st_size > 100
        shared.sandstone("volumes", "import", slug, str(archive))
    try:
        with sdk.sandbox.create(volumes={"/v": slug}) as sandbox:
            assert sandbox.fs.read_text_file("/v/file") == "through a file"
    finally:
        removed(shared, "volumes", slug)
