"""The servers of the test's internet; run in its network name space.

`python internet_servers.py DIRECTORY` writes one JSON object per request to `DIRECTORY/seen`.
`DIRECTORY/names` says what the name server answers: a JSON object from name to addresses.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import socket
import socketserver
import ssl
import struct
import sys
import threading
from pathlib import Path

DIRECTORY = Path(sys.argv[1])
NAME_SERVER = "203.0.113.53"
METADATA = "169.254.169.254"
# Who serves what: address, whether HTTPS as well.
SITES = {
    "203.0.113.10": True,  # good.test, also below it
    "203.0.113.20": True,  # evil.test
    "10.99.0.5": False,  # a private network
    METADATA: False,  # what a cloud tells its machines
}
GREETER_PORT = 2222
LOCK = threading.Lock()


def record(**what) -> None:
    with LOCK, (DIRECTORY / "seen").open("a") as seen:
        seen.write(json.dumps(what) + "\n")


class Site(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, scheme: str, address: str):
        self.scheme, self.address = scheme, address
        super().__init__(*arguments, directory=str(DIRECTORY / "served"))

    def answer(self, status: int, text: str, **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        record(
            kind="http", scheme=self.scheme, address=self.address, method=self.command,
            path=self.path, headers=dict(self.headers.items()),
            body=self.rfile.read(length).decode(errors="replace"),
        )  # fmt: skip
        path = self.path.split("?")[0]
        if path == "/redirect":
            self.answer(302, "", Location=f"https://evil.test/stolen?{self.path.partition('?')[2]}")
        elif path == "/echo":
            self.answer(200, "echo", X_Echo=self.headers.get("Authorization", "none"))
        elif path == "/socket":
            self.upgrade()
        elif self.command == "GET" and path.startswith("/repo.git/"):
            super().do_GET()
        else:
            self.answer(200, f"hello from {self.address} over {self.scheme}")

    do_GET = do_POST = do_HEAD = do_PUT = handle_any

    def upgrade(self) -> None:
        """Accepts a WebSocket (RFC 6455) and sends each short message back."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.close_connection = True
        while head := self.rfile.read(2):
            if head[0] & 15 == 8:
                return
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(data)]) + data)

    def log_message(self, *_) -> None:
        pass


class Secure(http.server.ThreadingHTTPServer):
    """HTTPS; hands are shaken in the connection's own thread."""

    daemon_threads = True

    def __init__(self, address, handler, context):
        super().__init__(address, handler)
        self.context = context

    def finish_request(self, request, address) -> None:
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, address)

    def handle_error(self, *_) -> None:
        pass


def name_in(query: bytes) -> tuple[str, int, int]:
    """The question's name and type, and where the question ends."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
        at += 1 + query[at]
    return ".".join(labels).lower(), struct.unpack("!H", query[at + 1 : at + 3])[0], at + 5


def resolve(query: bytes) -> bytes:
    name, kind, end = name_in(query)
    record(kind="dns", name=name, type=kind)
    known = json.loads((DIRECTORY / "names").read_text())
    addresses = known.get(name)
    answers = [
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        for address in addresses or []
        if kind == (28 if ":" in address else 1)
    ]
    code = 0 if addresses is not None else 3
    reply = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(answers), 0, 0) + query[12:end]
    for data in answers:
        reply += struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data
    return reply


class Query(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, reply = self.request
        reply.sendto(resolve(data), self.client_address)


class QueryStream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        length = struct.unpack("!H", self.rfile.read(2))[0]
        reply = resolve(self.rfile.read(length))
        self.wfile.write(struct.pack("!H", len(reply)) + reply)


class Greeter(socketserver.StreamRequestHandler):
    """A server that speaks first, and answers until its client has said all."""

    def handle(self) -> None:
        record(kind="greeter", address=self.server.server_address[0])
        self.wfile.write(b"welcome\n")
        self.wfile.write(b"you said " + self.rfile.read())


def start(server) -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DIRECTORY / "site.pem", DIRECTORY / "site-key.pem")
    context.set_alpn_protocols(["http/1.1"])
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.ThreadingTCPServer.request_queue_size = 1024
    for address, secure in SITES.items():
        plain = functools.partial(Site, scheme="http", address=address)
        start(http.server.ThreadingHTTPServer((address, 80), plain))
        start(socketserver.ThreadingTCPServer((address, GREETER_PORT), Greeter))
        if secure:
            start(Secure((address, 443), functools.partial(Site, scheme="https", address=address), context))
    start(socketserver.ThreadingUDPServer((NAME_SERVER, 53), Query))
    start(socketserver.ThreadingTCPServer((NAME_SERVER, 53), QueryStream))
    (DIRECTORY / "ready").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main()
