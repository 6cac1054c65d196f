"""Life cycle, options and network of a sandbox."""

from __future__ import annotations

import asyncio
import re
import time

import httpx
import pytest
from conformance import World, check, fails
from deno_sandbox.errors import AuthenticationError
from support import exposed, new_slug, ssh_once, wait_until
from websockets.exceptions import InvalidStatus

ID = re.compile(r"sbx_ord_[0-9a-hjkmnp-z]{20}")


def refused_with(status: int):
    """A sandbox that is refused; the SDK does not read the answer's body."""
    return pytest.raises(InvalidStatus, match=f"HTTP {status}")


def ended(w: World, sandbox_id: str) -> None:
    wait_until("it has ended", lambda: not w.api.is_running(sandbox_id))


@check("sdk.sandbox.create")
async def _(w: World):
    async with w.sdk.sandbox.create() as one:
        assert ID.fullmatch(one.id)
        assert (await w.bash("id -un", one))[1] == "app\n"
    # A session ends with the connection that made it.
    ended(w, one.id)
    with refused_with(404):
        async with w.sdk.sandbox.create(root="no-such-root"):
            pass
    stranger = w.api.async_sdk(token="ddo_wrong")
    with pytest.raises(AuthenticationError):
        async with stranger.sandbox.create():
            pass


@check("sdk.sandbox.create(region=)")
async def _(w: World):
    async with w.sdk.sandbox.create(region="ord") as one:
        assert ID.fullmatch(one.id)


@check("sdk.sandbox.create(env=)")
async def _(w: World):
    async with w.sdk.sandbox.create(env={"NODE_ENV": "größer 😀", "lower": "x"}) as one:
        assert (await w.bash("echo $NODE_ENV$lower", one))[1] == "größer 😀x\n"


@check("sdk.sandbox.create(timeout=)")
async def _(w: World):
    async with w.sdk.sandbox.create(timeout="3s") as one:
        await one.fs.write_text_file("/tmp/state", "kept")
    async with w.sdk.sandbox.connect(one.id) as again:
        assert await again.fs.read_text_file("/tmp/state") == "kept"
        # The end comes even while a client is there.
        await asyncio.to_thread(ended, w, one.id)


@check("sdk.sandbox.create(memory_mb=)")
async def _(w: World):
    async with w.sdk.sandbox.create(memory_mb=1024) as one:
        allocate = "exec python3 -c 'len(b\"x\" * ({} << 20))'"
        assert (await w.bash(allocate.format(850), one))[0] == 0
        assert (await w.bash(allocate.format(1100), one))[0] == 137


@check("sdk.sandbox.create(labels=)")
async def _(w: World):
    async with w.sdk.sandbox.create(labels={"job": w.root, "role": "a"}) as one:
        page = await w.sdk.sandbox.list(labels={"role": "a", "job": w.root})
        assert [item["id"] for item in page.items] == [one.id]
        assert page.items[0]["labels"] == {"job": w.root, "role": "a"}
    with refused_with(400):
        async with w.sdk.sandbox.create(labels={f"l{n}": "x" for n in range(6)}):
            pass


@check("sdk.sandbox.create(root=)")
async def _(w: World):
    async with w.sdk.sandbox.create(root=w.root) as one:
        await w.bash("sudo sh -c 'echo kept > /etc/mine'", one)
        with refused_with(409):
            async with w.sdk.sandbox.create(root=w.root):
                pass
    async with w.sdk.sandbox.create(root=w.root) as one:
        assert await one.fs.read_text_file("/etc/mine") == "kept\n"
    for _round in range(2):
        async with w.sdk.sandbox.create(root=f"{w.root}-s") as one:
            code, _out, _err = await w.bash("test ! -e /etc/round && sudo touch /etc/round", one)
            assert code == 0


@check("sdk.sandbox.create(volumes=)")
async def _(w: World):
    slug = new_slug("conf")
    volume = await w.sdk.volumes.create(slug=slug, region="ord", capacity="300MB")
    try:
        async with w.sdk.sandbox.create(volumes={"/data/one": slug}) as one:
            await one.fs.write_text_file("/data/one/file", "kept")
            with refused_with(409):
                async with w.sdk.sandbox.create(volumes={"/data": slug}):
                    pass
        async with w.sdk.sandbox.create(volumes={"/other": volume["id"]}) as one:
            assert await one.fs.read_text_file("/other/file") == "kept"
    finally:
        await w.sdk.volumes.delete(slug)


@check("sdk.sandbox.connect")
async def _(w: World):
    async with w.sdk.sandbox.connect(w.sandbox.id) as other:
        assert other.id == w.sandbox.id
        await other.fs.write_text_file("/tmp/shared", "seen")
    assert await w.sandbox.fs.read_text_file("/tmp/shared") == "seen"
    with refused_with(404):
        async with w.sdk.sandbox.connect("sbx_ord_00000000000000000000"):
            pass


@check("sdk.sandbox.list")
async def _(w: World):
    page = await w.sdk.sandbox.list(labels={"suite": w.root})
    assert [item["id"] for item in page.items] == [w.sandbox.id]
    (item,) = page.items
    assert (item["status"], item["region"], item["stopped_at"]) == ("running", "ord", None)
    assert re.match(r"20\d\d-\d\d-\d\dT", item["created_at"])


@check("sandbox.closed")
async def _(w: World):
    async with w.sdk.sandbox.create() as one:
        assert not one.closed
        await one.close()
        assert one.closed


@check("sandbox.close")
async def _(w: World):
    async with w.sdk.sandbox.create(timeout="1m") as one:
        child = await one.spawn("sleep", args=["1000"], stdout="null", stderr="null")
        await one.close()
    # The sandbox lives on; the SDK has killed the process that it knew.
    async with w.sdk.sandbox.connect(one.id) as again:
        code, _out, _err = await w.bash(f"kill -0 {child.pid}", again)
        assert code != 0
        await again.kill()


@check("sandbox.__exit__")
async def _(w: World):
    async with w.sdk.sandbox.create() as one:
        pass
    assert one.closed
    ended(w, one.id)


@check("sandbox.kill")
async def _(w: World):
    async with w.sdk.sandbox.create(timeout="5m") as one:
        await one.kill()
        assert not w.api.is_running(one.id)
        with refused_with(404):
            async with w.sdk.sandbox.connect(one.id):
                pass


@check("sandbox.extend_timeout")
async def _(w: World):
    async with w.sdk.sandbox.create(timeout="2s") as one:
        until_then = await one.extend_timeout(60)
        assert abs(until_then.timestamp() - time.time() - 60) < 5
        await asyncio.sleep(2.5)
        assert (await w.bash("echo alive", one))[1] == "alive\n"
        await one.kill()


@check("sandbox.trace_id")
async def _(w: World):
    assert re.fullmatch(r"[0-9a-f]{32}", w.sandbox.trace_id)


SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = {"/redirect": 302, "/missing": 404, "/error": 503}.get(self.path, 200)
        body = f"{self.command} {self.path} {self.headers.get('X-Mine')}".encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/target")
        self.send_header("X-Said", body.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""
INSIDE = "http://127.0.0.1:8123"


async def served(w: World) -> None:
    """Starts the sandbox's own little server, once."""
    await w.sandbox.fs.write_text_file("/tmp/server.py", SERVER)
    code, *_ = await w.bash(
        "curl -s 127.0.0.1:8123 && exit; setsid python3 /tmp/server.py > /tmp/log 2>&1 < /dev/null &"
        "for n in $(seq 200); do curl -s 127.0.0.1:8123 && exit; sleep 0.05; done; exit 1"
    )
    assert code == 0


def headers(response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers}


@check("sandbox.fetch")
async def _(w: World):
    await served(w)
    response = await w.sandbox.fetch(f"{INSIDE}/path", headers={"X-Mine": "yes"})
    assert (response.status_code, headers(response)["x-said"]) == (200, "GET /path yes")
    response = await w.sandbox.fetch(f"{INSIDE}/path", method="POST")
    assert headers(response)["x-said"] == "POST /path None"
    with fails():
        await w.sandbox.fetch("http://127.0.0.1:9/")


@check("sandbox.fetch(redirect=)")
async def _(w: World):
    await served(w)
    followed = await w.sandbox.fetch(f"{INSIDE}/redirect")
    assert headers(followed)["x-said"] == "GET /target None"
    manual = await w.sandbox.fetch(f"{INSIDE}/redirect", redirect="manual")
    assert (manual.status_code, headers(manual)["location"]) == (302, "/target")


@check("FetchResponse.status_code")
async def _(w: World):
    await served(w)
    kinds = ["informational", "success", "redirect", "client_error", "server_error", "error"]
    for path, status, true in [
        ("/", 200, {"success"}),
        ("/redirect", 302, {"redirect"}),
        ("/missing", 404, {"client_error", "error"}),
        ("/error", 503, {"server_error", "error"}),
    ]:
        response = await w.sandbox.fetch(INSIDE + path, redirect="manual")
        assert response.status_code == status
        assert {kind for kind in kinds if getattr(response, f"is_{kind}")} == true


@check("FetchResponse.raise_for_status")
async def _(w: World):
    await served(w)
    good, bad = await w.sandbox.fetch(INSIDE), await w.sandbox.fetch(f"{INSIDE}/missing")
    # Not a coroutine in either SDK.
    good, bad = getattr(good, "_inner", good), getattr(bad, "_inner", bad)
    assert good.raise_for_status() is None
    with pytest.raises(KeyError):
        bad.raise_for_status()


@check("FetchResponse.has_redirect_location")
async def _(w: World):
    await served(w)
    response = await w.sandbox.fetch(f"{INSIDE}/redirect", redirect="manual")
    assert "location" in headers(response)
    assert not response.has_redirect_location


@check("sandbox.expose_http(port=)")
async def _(w: World):
    await served(w)
    url = await w.sandbox.expose_http(port=8123)
    assert url.startswith("https://")
    response = await asyncio.to_thread(exposed, f"{url}/exposed", {"X-Mine": "outside"})
    assert (response.status_code, response.text) == (200, "GET /exposed outside")


@check("sandbox.expose_http(pid=)")
async def _(w: World):
    code = "Deno.serve({ port: 0, onListen() {} }, (r) => new Response(new URL(r.url).pathname));"
    async with await w.sandbox.deno.run(code=code, stdout="null", stderr="null") as runs:
        assert await runs.wait_http_ready()
        url = await w.sandbox.expose_http(pid=runs.pid)
        response = await asyncio.to_thread(exposed, f"{url}/by-pid")
        assert (response.status_code, response.text) == (200, "/by-pid")


@check("sdk.sandbox.create(port=)")
async def _(w: World):
    async with w.sdk.sandbox.create(port=8123) as one:
        assert one.url is None
        assert (await w.bash("echo alive", one))[1] == "alive\n"


@check("sandbox.expose_ssh")
async def _(w: World):
    access = await w.sandbox.expose_ssh()
    assert set(access) == {"hostname", "username", "port"}
    assert isinstance(access["port"], int)
    out = await asyncio.to_thread(ssh_once, access, "id -un; pwd; echo $((6 * 7))")
    assert out == "app\n/home/app\n42\n"


@check("sdk.sandbox.create(ssh=)")
async def _(w: World):
    async with w.sdk.sandbox.create(ssh=True) as one:
        assert one.ssh is None
        assert (await w.bash("echo alive", one))[1] == "alive\n"


@check("sdk.sandbox.create(allow_net=)")
async def _(w: World):
    # A server outside that sandboxes can reach.
    registry = (await w.bash("npm config get registry"))[1].strip()
    host = httpx.URL(registry).netloc.decode()
    for allowed, reaches in [([host], True), (["example.com"], False), ([], False)]:
        async with w.sdk.sandbox.create(allow_net=allowed) as one:
            code, *_ = await w.bash(f"curl -fsm 10 -o /dev/null {registry}", one)
            assert (code == 0) == reaches, allowed


@check("sdk.sandbox.create(secrets=)")
async def _(w: World):
    secrets = {"MY_SECRET": {"hosts": ["api.example.com"], "value": "the real value"}}
    async with w.sdk.sandbox.create(secrets=secrets) as one:
        _code, placeholder, _err = await w.bash("echo -n $MY_SECRET", one)
        assert re.fullmatch(r"\S{16,}", placeholder)
        assert "real" not in placeholder
