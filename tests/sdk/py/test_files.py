"""Files of a volume that no sandbox has: list, read, write, remove; and that no path leads out."""

from __future__ import annotations

import os
from urllib.parse import quote

import pytest
from support import bash, bootable, volume


def files(path: str) -> str:
    return f"/files?path={quote(path)}"


def listed(api, name: str, path: str = "/") -> dict[str, tuple[str, int]]:
    entries = api.own("GET", f"/volumes/{name}{files(path)}")["entries"]
    return {entry["name"]: (entry["kind"], entry["size"]) for entry in entries}


def read(api, name: str, path: str) -> bytes:
    response = api.request("GET", f"/v1/volumes/{name}{files(path)}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    return response.content


def write(api, name: str, path: str, content: bytes) -> None:
    api.own("PUT", f"/volumes/{name}{files(path)}", content=content)


def test_list_read_write_remove(shared, sdk):
    data = os.urandom(3_000_000)
    with volume(shared) as made:
        name = made["slug"]
        assert listed(shared, name) == {}
        write(shared, name, "/deep/er/größe 日本.bin", data)
        write(shared, name, "/empty", b"")
        assert listed(shared, name) == {"deep": ("directory", 0), "empty": ("file", 0)}
        assert listed(shared, made["id"], "/deep/er") == {"größe 日本.bin": ("file", 3_000_000)}
        assert read(shared, name, "/deep/er/größe 日本.bin") == data
        # A sandbox sees them as its user's own, and the other way round.
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            script = "cd /v && stat -c '%U %s' empty deep/er/*; echo more >> empty; ln -s empty link"
            out = bash(sandbox, script)[1]
            assert out == "app 0\napp 3000000\n"
        assert read(shared, name, "/empty") == b"more\n"
        assert listed(shared, name)["link"][0] == "symlink"
        write(shared, name, "/empty", b"less")
        assert read(shared, name, "/empty") == b"less"
        shared.own("DELETE", f"/volumes/{name}{files('/deep')}")
        assert set(listed(shared, name)) == {"empty", "link"}
        missing = (404, "FILE_NOT_FOUND")
        for method in ("GET", "DELETE"):
            shared.refuses(method, f"/volumes/{name}{files('/deep/er')}", missing, "/deep")
        shared.refuses("GET", f"/volumes/no-such{files('/')}", (404, "VOLUME_NOT_FOUND"), "no-such")


def test_files_of_a_root(shared, sdk):
    with bootable(shared) as made:
        assert {"etc", "usr", "home"} <= set(listed(shared, made["id"]))
        assert b"trixie" in read(shared, made["id"], "/etc/os-release")
        write(shared, made["id"], "/home/app/from-outside", b"hello\n")
        with sdk.sandbox.create(root=made["id"]) as sandbox:
            assert bash(sandbox, "cat ~/from-outside")[1] == "hello\n"


def test_no_path_leads_out(shared, sdk):
    """Links that a sandbox made point nowhere but into the volume, or are refused."""
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            script = (
                "cd /v; ln -s /etc etc; ln -s /etc/passwd passwd; ln -s ../../../../../.. up;"
                " ln -s loop loop; echo x > inside; ln -s /inside absolute"
            )
            assert bash(sandbox, script)[0] == 0
        with open("/etc/passwd", "rb") as file:
            of_the_host = file.read()
        # An absolute link leads where it leads for a sandbox with the volume as its root.
        assert read(shared, made["id"], "/absolute") == b"x\n"
        leading_out = (
            "/passwd", "/etc/passwd", "/up/etc/passwd", "/up/proc/1/environ", "/../etc/passwd", "/loop"
        )  # fmt: skip
        for path in leading_out:
            response = shared.request("GET", f"/v1/volumes/{made['id']}{files(path)}")
            assert response.status_code in (400, 404, 409), (path, response.text)
            assert of_the_host not in response.content
        for path in ("/etc/evil", "/up/tmp/evil", "/../evil", "/passwd", "/up"):
            response = shared.request("PUT", f"/v1/volumes/{made['id']}{files(path)}", content=b"evil")
            if response.is_success:
                assert shared.request("GET", f"/v1/volumes/{made['id']}{files(path)}").content == b"evil"
            assert not os.path.exists("/etc/evil") and not os.path.exists("/tmp/evil")
            assert b"evil" not in open("/etc/passwd", "rb").read()
        # Removing a link removes the link.
        shared.request("DELETE", f"/v1/volumes/{made['id']}{files('/etc')}")
        assert os.path.exists("/etc/passwd")
        assert "etc" not in listed(shared, made["id"])


@pytest.mark.parametrize("path", ["", "relative", "/a\0b", "/" + "x" * 5000])
def test_bad_paths(shared, path):
    with volume(shared) as made:
        response = shared.request("GET", f"/v1/volumes/{made['id']}{files(path)}")
        assert response.status_code in (400, 404), response.text
        assert response.json()["code"] in ("INVALID_REQUEST", "FILE_NOT_FOUND")


def test_one_writer(shared, sdk):
    """A volume that a sandbox has is not opened; one that is free is free again after each call."""
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as holder:
            mounted = (409, "VOLUME_IS_MOUNTED")
            for method, content in (("GET", None), ("PUT", b"x"), ("DELETE", None)):
                path = f"/volumes/{made['id']}{files('/a')}"
                shared.refuses(method, path, mounted, holder.id, content=content)
        running = {sandbox["id"] for sandbox in shared.running()}
        write(shared, made["id"], "/a", b"x")
        assert {sandbox["id"] for sandbox in shared.running()} == running, "no sandbox is shown for it"
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert sandbox.fs.read_text_file("/v/a") == "x"


def test_no_room(shared, sdk):
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            assert bash(sandbox, "fallocate -l 230M /v/most")[0] == 0
        path = f"/volumes/{made['id']}{files('/big')}"
        shared.refuses("PUT", path, (400, "INVALID_REQUEST"), "/big", "room", content=bytes(90_000_000))
        write(shared, made["id"], "/small", b"still of use")
        assert read(shared, made["id"], "/small") == b"still of use"


def test_the_command_line(shared, sdk, tmp_path):
    source = tmp_path / "local"
    source.write_bytes(os.urandom(200_000))
    with volume(shared) as made:
        name = made["slug"]
        shared.sandstone("volumes", "put", name, str(source), "/in/side")
        assert "in" in shared.sandstone("volumes", "ls", name).stdout.decode()
        assert "side" in shared.sandstone("volumes", "ls", name, "/in").stdout.decode()
        assert shared.sandstone("volumes", "cat", name, "/in/side").stdout == source.read_bytes()
        shared.sandstone("volumes", "rm", name, "/in")
        done = shared.sandstone("volumes", "cat", name, "/in/side", code=4)
        assert b"/in/side" in done.stderr
