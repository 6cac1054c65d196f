"""Files and file handles."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

import pytest
from conformance import World, check, fails, until
from deno_sandbox.errors import UnknownRpcMethod
from deno_sandbox.process import AbortSignal


def missing():
    """A call that says: no such file."""
    return fails("NotFound", "ENOENT")


def cannot_be_sent():
    """The SDK fails to make JSON of its own parameter."""
    return pytest.raises(TypeError, match="not JSON serializable")


async def mode_of(w: World, path: str) -> int:
    return (await w.sandbox.fs.stat(path))["mode"] & 0o7777


@check("sandbox.fs.read_file")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    data = os.urandom(500_000)
    await fs.write_file(f"{root}/data", data)
    assert await fs.read_file(f"{root}/data") == data
    with missing():
        await fs.read_file(f"{root}/none")
    with fails(code="EISDIR"):
        await fs.read_file(root)
    with fails("PermissionDenied", "EACCES"):
        await fs.read_file("/etc/shadow")
    # More than one message of this SDK holds: an error, and the connection lives.
    await w.bash(f"head -c 2000000 /dev/zero > {root}/big")
    with fails():
        await fs.read_file(f"{root}/big")
    assert await fs.read_file(f"{root}/data") == data


@check("sandbox.fs.read_file(signal=)")
async def _(w: World):
    with cannot_be_sent():
        await w.sandbox.fs.read_file("/etc/hostname", signal=AbortSignal())


@check("sandbox.fs.read_text_file")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"text": "größer 😀\0\n"})
    assert await fs.read_text_file(f"{root}/text") == "größer 😀\0\n"
    await fs.write_file(f"{root}/binary", b"\xff\xfe")
    with fails("InvalidData"):
        await fs.read_text_file(f"{root}/binary")


@check("sandbox.fs.read_text_file(signal=)")
async def _(w: World):
    with cannot_be_sent():
        await w.sandbox.fs.read_text_file("/etc/hostname", signal=AbortSignal())


@check("sandbox.fs.write_file")
async def _(w: World):
    fs, path = w.sandbox.fs, f"{await w.tree()}/file"
    await fs.write_file(path, b"first, longer")
    await fs.write_file(path, b"second")
    assert await fs.read_file(path) == b"second"
    await fs.write_file(path, b"")
    assert await fs.read_file(path) == b""
    with fails("PermissionDenied", "EACCES"):
        await fs.write_file("/etc/none", b"x")


@check("sandbox.fs.write_file(iterable)")
async def _(w: World):
    fs, path = w.sandbox.fs, f"{await w.tree()}/file"
    chunks = [os.urandom(10_000) for _ in range(30)]
    await fs.write_file(path, iter(chunks))
    assert await fs.read_file(path) == b"".join(chunks)
    with tempfile.TemporaryFile() as local:
        local.write(chunks[0] * 20)
        local.seek(0)
        await fs.write_file(path, local)
    assert await fs.read_file(path) == chunks[0] * 20

    def broken():
        yield b"x"
        raise ValueError("the source broke")

    with fails(text="the source broke"):
        await fs.write_file(path, broken())


async def check_write_options(w: World, write) -> None:
    """What both ways of writing do with their options."""
    fs, root = w.sandbox.fs, await w.tree({"old": "old"})
    await write(f"{root}/old", "+new", append=True)
    assert await fs.read_text_file(f"{root}/old") == "old+new"
    with missing():
        await write(f"{root}/none", "x", create=False)
    with fails("AlreadyExists", "EEXIST"):
        await write(f"{root}/old", "x", create_new=True)
    await write(f"{root}/fresh", "x", create_new=True, mode=0o640)
    assert await mode_of(w, f"{root}/fresh") == 0o640
    await write(f"{root}/fresh", "y", mode=0o777)
    assert await mode_of(w, f"{root}/fresh") == 0o777


@check("sandbox.fs.write_file(append=, create=, create_new=, mode=)")
async def _(w: World):
    async def write(path, text, **options):
        await w.sandbox.fs.write_file(path, text.encode(), **options)

    await check_write_options(w, write)


@check("sandbox.fs.write_text_file")
async def _(w: World):
    fs, path = w.sandbox.fs, f"{await w.tree()}/file"
    await fs.write_text_file(path, "line\n😀\0")
    assert await fs.read_text_file(path) == "line\n😀\0"
    await fs.write_text_file("relative.txt", "here")
    assert await fs.read_text_file("/home/app/relative.txt") == "here"


@check("sandbox.fs.write_text_file(append=, create=, create_new=, mode=)")
async def _(w: World):
    async def write(path, text, **options):
        await w.sandbox.fs.write_text_file(path, text, **options)

    await check_write_options(w, write)


@check("sandbox.fs.read_dir")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "", "dir/inner": ""})
    await fs.symlink("file", f"{root}/link")
    entries = {entry.pop("name"): entry for entry in await fs.read_dir(root)}
    assert entries == {
        "dir": {"is_file": False, "is_directory": True, "is_symlink": False},
        "file": {"is_file": True, "is_directory": False, "is_symlink": False},
        "link": {"is_file": False, "is_directory": False, "is_symlink": True},
    }
    with missing():
        await fs.read_dir(f"{root}/none")
    with fails(code="ENOTDIR"):
        await fs.read_dir(f"{root}/file")


@check("sandbox.fs.remove")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "", "full/file": ""})
    await fs.remove(f"{root}/file")
    with missing():
        await fs.remove(f"{root}/file")
    with fails(code="ENOTEMPTY"):
        await fs.remove(f"{root}/full")
    await fs.remove(f"{root}/full", recursive=True)
    assert await fs.read_dir(root) == []


@check("sandbox.fs.mkdir")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    await fs.mkdir(f"{root}/a/b/c", recursive=True)
    await fs.mkdir(f"{root}/a/b/c", recursive=True)
    with fails("AlreadyExists", "EEXIST"):
        await fs.mkdir(f"{root}/a")
    with missing():
        await fs.mkdir(f"{root}/x/y")
    await fs.mkdir(f"{root}/private", mode=0o700)
    assert await mode_of(w, f"{root}/private") == 0o700


@check("sandbox.fs.rename")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"one": "1", "two": "2"})
    await fs.rename(f"{root}/one", f"{root}/two")
    assert await fs.read_text_file(f"{root}/two") == "1"
    with missing():
        await fs.rename(f"{root}/one", f"{root}/x")


@check("sandbox.fs.copy_file")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"from": "content"})
    await fs.chmod(f"{root}/from", 0o751)
    await fs.copy_file(f"{root}/from", f"{root}/to")
    assert await fs.read_text_file(f"{root}/to") == "content"
    assert await mode_of(w, f"{root}/to") == 0o751
    with missing():
        await fs.copy_file(f"{root}/none", f"{root}/to")


@check("sandbox.fs.link")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "same"})
    await fs.link(f"{root}/file", f"{root}/other")
    one, other = await fs.stat(f"{root}/file"), await fs.stat(f"{root}/other")
    assert (one["ino"], one["nlink"]) == (other["ino"], 2)


@check("sandbox.fs.symlink")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "through"})
    await fs.symlink("file", f"{root}/link", type="file")
    assert await fs.read_text_file(f"{root}/link") == "through"
    with fails("AlreadyExists", "EEXIST"):
        await fs.symlink("file", f"{root}/link")


@check("sandbox.fs.read_link")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": ""})
    await fs.symlink("../as/written", f"{root}/link")
    assert await fs.read_link(f"{root}/link") == "../as/written"
    with fails(code="EINVAL"):
        await fs.read_link(f"{root}/file")


@check("sandbox.fs.real_path")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"dir/file": ""})
    await fs.symlink("dir", f"{root}/link")
    assert await fs.real_path(f"{root}/link/../dir/file") == f"{root}/dir/file"
    assert await fs.real_path(".") == "/home/app"
    with missing():
        await fs.real_path(f"{root}/none")


@check("sandbox.fs.stat")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "12345"})
    await fs.symlink("file", f"{root}/link")
    info = await fs.stat(f"{root}/link")
    assert set(info) == {
        "is_file", "is_directory", "is_symlink", "size", "mtime", "atime", "birthtime", "ctime",
        "dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "blksize", "blocks",
        "is_block_device", "is_char_device", "is_fifo", "is_socket",
    }  # fmt: skip
    assert (info["is_file"], info["is_symlink"], info["size"]) == (True, False, 5)
    assert (info["mode"], info["uid"], info["gid"]) == (0o100644, 1000, 1000)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", info["mtime"])
    assert (await fs.stat("/dev/null"))["is_char_device"]
    with missing():
        await fs.stat(f"{root}/none")


@check("sandbox.fs.lstat")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    await fs.symlink("nowhere", f"{root}/link")
    info = await fs.lstat(f"{root}/link")
    assert (info["is_symlink"], info["is_file"], info["size"]) == (True, False, 7)
    with missing():
        await fs.stat(f"{root}/link")


@check("sandbox.fs.chmod")
async def _(w: World):
    root = await w.tree({"file": ""})
    await w.sandbox.fs.chmod(f"{root}/file", 0o4751)
    assert await mode_of(w, f"{root}/file") == 0o4751
    with fails("PermissionDenied", "EPERM"):
        await w.sandbox.fs.chmod("/etc/hosts", 0o777)


@check("sandbox.fs.chown")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": ""})
    await fs.chown(f"{root}/file", 1000)
    await fs.chown(f"{root}/file", gid=1000)
    info = await fs.stat(f"{root}/file")
    assert (info["uid"], info["gid"]) == (1000, 1000)
    with fails("PermissionDenied", "EPERM"):
        await fs.chown(f"{root}/file", uid=0)


@check("sandbox.fs.umask")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    before = await fs.umask()
    assert before == 0o022
    try:
        assert await fs.umask(0o077) == before
        assert await fs.umask() == 0o077
        await fs.write_text_file(f"{root}/file", "")
        assert await mode_of(w, f"{root}/file") == 0o600
    finally:
        await fs.umask(before)


@check("sandbox.fs.utime")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": ""})
    await fs.utime(f"{root}/file", "2001-02-03T04:05:06.789Z", "2002-03-04T05:06:07.891Z")
    info = await fs.stat(f"{root}/file")
    assert info["atime"].startswith("2001-02-03T04:05:06.789")
    assert info["mtime"].startswith("2002-03-04T05:06:07.891")
    await fs.utime(f"{root}/file", 1_000_000_000, 1_500_000_000.25)
    info = await fs.stat(f"{root}/file")
    assert info["atime"].startswith("2001-09-09T01:46:40")
    assert info["mtime"].startswith("2017-07-14T02:40:00.25")


@check("sandbox.fs.truncate")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "Hello World"})
    await fs.truncate(f"{root}/file", 7)
    assert await fs.read_text_file(f"{root}/file") == "Hello W"
    await fs.truncate(f"{root}/file")
    assert (await fs.stat(f"{root}/file"))["size"] == 0


@check("sandbox.fs.make_temp_dir")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    one, two = await fs.make_temp_dir(), await fs.make_temp_dir()
    assert re.fullmatch(r"/tmp/[^/]+", one) and one != two
    named = await fs.make_temp_dir(dir=root, prefix="pre_", suffix="_suf")
    assert re.fullmatch(rf"{root}/pre_.+_suf", named)
    info = await fs.stat(named)
    assert (info["is_directory"], info["mode"] & 0o777) == (True, 0o700)


@check("sandbox.fs.make_temp_file")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    assert re.fullmatch(r"/tmp/[^/]+", await fs.make_temp_file())
    named = await fs.make_temp_file(dir=root, prefix="pre_", suffix=".txt")
    assert re.fullmatch(rf"{root}/pre_.+\.txt", named)
    info = await fs.stat(named)
    assert (info["is_file"], info["size"], info["mode"] & 0o777) == (True, 0, 0o600)


FILES = {"a.ts": "", "b.js": "", "sub/c.ts": "", "sub/deep/d.ts": "", "skipped/e.ts": ""}


@check("sandbox.fs.walk")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree(FILES)

    async def walk(**options):
        entries = await fs.walk(root, **options)
        return sorted(entry["path"].removeprefix(root).lstrip("/") for entry in entries)

    assert await walk() == [
        "", "a.ts", "b.js", "skipped", "skipped/e.ts", "sub", "sub/c.ts", "sub/deep", "sub/deep/d.ts",
    ]  # fmt: skip
    assert await walk(max_depth=1, include_dirs=False) == ["a.ts", "b.js"]
    assert await walk(include_files=False, max_depth=1) == ["", "skipped", "sub"]
    assert await walk(exts=["js"]) == ["b.js"]
    (first, *_) = await fs.walk(root)
    assert first == {
        "path": root, "name": root.rpartition("/")[2],
        "is_file": False, "is_directory": True, "is_symlink": False,
    }  # fmt: skip
    with missing():
        await fs.walk(f"{root}/none")


@check("sandbox.fs.walk(match=, skip=)")
async def _(w: World):
    for options in ({"match": [re.compile("x")]}, {"skip": [re.compile("x")]}):
        with cannot_be_sent():
            await w.sandbox.fs.walk("/tmp", **options)


@check("sandbox.fs.expand_glob")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree(FILES)

    async def glob(pattern, **options):
        paths = await fs.expand_glob(pattern, root=root, **options)
        return sorted(path.removeprefix(f"{root}/") for path in paths)

    assert await glob("**/*.ts") == ["a.ts", "skipped/e.ts", "sub/c.ts", "sub/deep/d.ts"]
    assert await glob("*.{ts,js}") == ["a.ts", "b.js"]
    assert await glob("s*", include_dirs=False) == []
    assert await glob("**/*.ts", exclude=["skipped"]) == ["a.ts", "sub/c.ts", "sub/deep/d.ts"]
    assert await glob("*.TS", case_insensitive=True) == ["a.ts"]


@check("sandbox.fs.upload")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree()
    with tempfile.TemporaryDirectory() as local:
        data = os.urandom(200_000)
        (Path(local) / "inner").mkdir()
        (Path(local) / "inner/data").write_bytes(data)
        (Path(local) / "link").symlink_to("inner/data")
        await fs.upload(f"{local}/inner/data", f"{root}/single")
        assert await fs.read_file(f"{root}/single") == data
        # A directory's content goes into the path itself.
        await fs.upload(local, f"{root}/up")
        assert await fs.read_file(f"{root}/up/link") == data
        assert await fs.read_link(f"{root}/up/link") == "inner/data"


@check("sandbox.fs.download")
async def _(w: World):
    with pytest.raises(UnknownRpcMethod):
        await w.sandbox.fs.download("/tmp/here", "/tmp/there")
    assert (await w.bash("echo alive"))[1] == "alive\n"


@check("sandbox.fs.create")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"old": "content"})
    async with await fs.create(f"{root}/old") as file:
        await file.write(b"xy")
        await file.seek(0, 0)
        assert await file.read(10) == b"xy"
    assert await fs.read_text_file(f"{root}/old") == "xy"


@check("sandbox.fs.open")
async def _(w: World):
    fs, root = w.sandbox.fs, await w.tree({"file": "content"})
    async with await fs.open(f"{root}/file") as file:
        with fails(code="EBADF"):
            await file.write(b"x")
    with missing():
        await fs.open(f"{root}/none")
    with fails("AlreadyExists", "EEXIST"):
        await fs.open(f"{root}/file", write=True, create_new=True)
    async with await fs.open(f"{root}/fresh", write=True, create=True, mode=0o600):
        assert await mode_of(w, f"{root}/fresh") == 0o600
    async with await fs.open(f"{root}/file", append=True) as file:
        await file.write(b"+")
    assert await fs.read_text_file(f"{root}/file") == "content+"
    async with await fs.open(f"{root}/file", write=True, truncate=True):
        assert (await fs.stat(f"{root}/file"))["size"] == 0


@contextlib.asynccontextmanager
async def handle(w: World, content: str = ""):
    """A handle to a file with this content, and the file's path."""
    path = f"{await w.tree({'file': content})}/file"
    async with await w.sandbox.fs.open(path, read=True, write=True) as file:
        yield file, path


@check("FsFile.read")
async def _(w: World):
    async with handle(w, "hello") as (file, _):
        assert [await file.read(3) for _ in range(3)] == [b"hel", b"lo", b""]


@check("FsFile.write")
async def _(w: World):
    async with handle(w, "hello") as (file, path):
        assert await file.write(b"HE") == 2
        assert await w.sandbox.fs.read_text_file(path) == "HEllo"


@check("FsFile.seek")
async def _(w: World):
    async with handle(w, "012345") as (file, _):
        assert await file.seek(2, 0) == 2
        assert await file.seek(3, 1) == 5
        assert await file.seek(-4, 2) == 2
        assert await file.read(10) == b"2345"
        with fails(code="EINVAL"):
            await file.seek(-1, 0)


@check("FsFile.stat")
async def _(w: World):
    async with handle(w, "12345") as (file, path):
        info = await file.stat()
        assert (info["is_file"], info["size"]) == (True, 5)
        assert info["ino"] == (await w.sandbox.fs.stat(path))["ino"]


@check("FsFile.truncate")
async def _(w: World):
    async with handle(w, "hello world") as (file, path):
        await file.truncate(7)
        assert await w.sandbox.fs.read_text_file(path) == "hello w"
        await file.truncate(None)
        assert (await file.stat())["size"] == 0


@check("FsFile.utime")
async def _(w: World):
    async with handle(w) as (file, _):
        await file.utime(1_000_000_000, 1_500_000_000.25)
        info = await file.stat()
        assert info["atime"].startswith("2001-09-09T01:46:40")
        assert info["mtime"].startswith("2017-07-14T02:40:00.25")


@check("FsFile.sync")
async def _(w: World):
    async with handle(w) as (file, path):
        await file.write(b"kept")
        await file.sync()
        assert await w.sandbox.fs.read_text_file(path) == "kept"


@check("FsFile.sync_data")
async def _(w: World):
    async with handle(w) as (file, path):
        await file.write(b"kept")
        await file.sync_data()
        assert await w.sandbox.fs.read_text_file(path) == "kept"


async def locks(w: World, kind: str, path: str) -> bool:
    """Whether a process gets the lock now; `kind` is flock's `-s` or `-x`."""
    return (await w.bash(f"flock -n {kind} {path} true"))[0] == 0


@check("FsFile.lock")
async def _(w: World):
    async with handle(w) as (file, path):
        await file.lock(None)
        assert [await locks(w, kind, path) for kind in ("-s", "-x")] == [True, False]
        await file.unlock()
        await file.lock(True)
        assert not await locks(w, "-s", path)


@check("FsFile.unlock")
async def _(w: World):
    async with handle(w) as (file, path):
        await file.lock(True)
        assert not await locks(w, "-x", path)
        await file.unlock()
        assert await locks(w, "-x", path)


@check("FsFile.close")
async def _(w: World):
    path = f"{await w.tree({'file': 'x'})}/file"
    file = await w.sandbox.fs.open(path)
    await file.lock(True)
    await file.close()
    with fails("BadResource", "EBADF"):
        await file.read(1)
    await until("the lock went with the file", lambda: locks(w, "-x", path))


@check("FsFile.__exit__")
async def _(w: World):
    path = f"{await w.tree({'file': 'x'})}/file"
    async with await w.sandbox.fs.open(path) as file:
        assert await file.read(1) == b"x"
    with fails("BadResource", "EBADF"):
        await file.read(1)
