"""Servers in a sandbox, reached from outside over HTTPS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import setting, wait_until

SERVER = """
import http.server, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/stream":
            self.wfile.write(b"first")
            self.wfile.flush()
            time.sleep(1.5)
            self.wfile.write(b"last")
        elif self.path == "/down":
            for _ in range(50):
                self.wfile.write(b"\\x07" * (1 << 20))
        else:
            self.wfile.write(self.headers["x-forwarded-host"].encode())

    def do_PUT(self):
        left = int(self.headers["content-length"])
        total = 0
        while left and (data := self.rfile.read(min(left, 1 << 20))):
            left -= len(data)
            total += sum(data[:1])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(total).encode())

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


class Connection(http.client.HTTPSConnection):
    """Names below localhost are not known everywhere: the connection goes to this machine."""

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)


def connection(url: str) -> Connection:
    authority = str(Path(setting("DATA_DIR")) / "expose-ca.pem")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    context = ssl.create_default_context(cafile=authority)
    return Connection(parts.hostname, parts.port, context=context)


def fetch(url: str, path: str = "/", method: str = "GET", body: bytes | None = None):
    """Status and content."""
    client = connection(url)
    try:
        client.request(method, path, body)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def serve(sandbox) -> None:
    sandbox.fs.write_text_file("/tmp/server.py", SERVER)
    sandbox.spawn("python3", args=["/tmp/server.py"], stdout="null", stderr="null")


def is_up(url: str) -> bool:
    return fetch(url)[0] == 200


@pytest.mark.parametrize("by", ["sdk", "create"])
def test_a_server_is_reached_from_outside(shared, sdk, by):
    options = {"port": 8000} if by == "create" else {}
    with sdk.sandbox.create(**options) as sandbox:
        path = f"/sandboxes/{sandbox.id}/exposures"
        if by == "sdk":
            url = sandbox.expose_http(port=8000)
        else:
            # Python sends the port and does not show what came of it.
            (exposure,) = shared.own("GET", path)["items"]
            url = f"https://{exposure['domain']}"
        assert fetch(url)[0] == 502
        serve(sandbox)
        wait_until("the server is up", lambda: is_up(url))
        assert fetch(url)[1].decode() == urlsplit(url).netloc
        listed = [item["domain"] for item in shared.own("GET", path)["items"]]
        assert urlsplit(url).netloc in listed
    status, body = fetch(url)
    assert status == 404
    assert json.loads(body)["code"] == "DOMAIN_NOT_FOUND"


def test_streams_and_large_bodies(sdk):
    with sdk.sandbox.create() as sandbox:
        serve(sandbox)
        url = sandbox.expose_http(port=8000)
        wait_until("the server is up", lambda: is_up(url))

        client = connection(url)
        client.request("GET", "/stream")
        answer = client.getresponse()
        assert answer.read1(100) == b"first"
        first = time.monotonic()
        assert answer.read() == b"last"
        assert time.monotonic() - first > 0.7, "it was kept back"
        client.close()

        assert fetch(url, "/down")[1] == b"\x07" * (50 << 20)
        status, total = fetch(url, "/", "PUT", b"\x01" * (50 << 20))
        assert (status, total) == (200, b"50")


def test_a_name_belongs_to_one_sandbox(shared, sdk):
    with sdk.sandbox.create() as mine, sdk.sandbox.create() as other:
        url = mine.expose_http(port=8000)
        domain = urlsplit(url).netloc
        with pytest.raises(Exception, match="not issued"):
            # As the SDK binds a name, which always is one that it has just been given.
            call = other._rpc.call("exposeHttp", {"domain": domain, "port": 8000})
            other._bridge.run(call)
        path = f"/v1/sandboxes/{other.id}/exposures?domain={domain}"
        assert shared.request("DELETE", path).status_code == 404


def test_what_cannot_be_exposed(shared, sdk):
    with sdk.sandbox.create() as sandbox:
        process = sandbox.spawn("sleep", args=["60"])
        with pytest.raises(Exception, match="no HTTP server"):
            sandbox.expose_http(pid=process.pid)
        path = f"/v1/sandboxes/{sandbox.id}/exposures"
        for body in ({}, {"port": 0}, {"port": 65536}, {"port": "80"}, {"port": 80, "pid": 1}):
            assert shared.request("POST", path, body).status_code == 400, body
