"""What a sandbox must not be able to do, tried from inside; and that the way out works."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading

import pytest
from support import bash, wait_until


@pytest.fixture(scope="module")
def sandbox(sdk):
    with sdk.sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def service():
    """A service of the host, on all its addresses."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(target):
    address, port = target.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), 2).close()
        return target
    except OSError:
        return None
with ThreadPoolExecutor(64) as pool:
    print(*filter(None, pool.map(reached, sys.argv[1:])))
"""


def reached(sandbox, targets: list[str]) -> list[str]:
    """Those of the targets, each `address:port`, that the sandbox can connect to."""
    child = sandbox.spawn("python3", args=["-c", CONNECT, *targets], stdout="piped", stderr="null")
    found = child.stdout.read(-1).decode().split()
    assert child.wait()["success"]
    return found


def can_connect(sandbox, address: str, port: int) -> bool:
    return bool(reached(sandbox, [f"{address}:{port}"]))


def host_addresses() -> list[str]:
    out = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True)
    return [line.split()[3].split("/")[0] for line in out.stdout.splitlines()]


def test_host_services_are_out_of_reach(sandbox, service, shared):
    addresses = set(host_addresses())
    # The gateway that the sandbox sees is an address of the host too.
    gateway = bash(sandbox, "ip -4 route show default | cut -d' ' -f3")[1].strip()
    addresses |= {gateway} if gateway else set()
    server_port = int(shared.url.rsplit(":", 1)[1])
    for address in addresses - {gateway}:
        socket.create_connection((address, service), 2).close()
    targets = [f"{address}:{port}" for address in addresses for port in (service, server_port)]
    assert reached(sandbox, targets) == []


def test_private_ranges_are_out_of_reach(sandbox):
    # Link-local metadata services are the classic prize.
    assert reached(sandbox, ["169.254.169.254:80", "10.255.255.1:80", "192.168.255.1:80"]) == []


def test_own_loopback_works(sandbox):
    script = (
        "python3 -m http.server 9001 --bind 127.0.0.1 -d /etc >/dev/null 2>&1 & "
        "for n in $(seq 50); do curl -sf localhost:9001/hostname && break; sleep 0.1; done; kill $!"
    )
    assert bash(sandbox, script)[1] == bash(sandbox, "cat /etc/hostname")[1]


def test_sandboxes_do_not_reach_each_other(sdk, shared):
    with sdk.sandbox.create() as one, sdk.sandbox.create() as two:
        child = one.spawn(
            "python3", args=["-m", "http.server", "9000", "-d", "/etc"], stdout="null", stderr="null"
        )
        wait_until("the service inside listens", lambda: can_connect(one, "127.0.0.1", 9000))
        out = bash(one, "hostname -I")[1]
        for address in out.split():
            if "." in address:
                assert can_connect(one, address, 9000)
                assert not can_connect(two, address, 9000), address
        bash(one, f"kill {child.pid}")
        child.wait()


def test_processes_of_the_host_are_not_seen(sandbox):
    code, out, _ = bash(sandbox, "ps -eo pid=,user=,args=")
    assert code == 0
    assert len(out.splitlines()) < 15, out
    for text in ("pytest", "serve --data-dir", "kthreadd"):
        assert text not in out
    pid_one = bash(sandbox, "cat /proc/1/comm; sudo readlink /proc/1/root")[1]
    assert "systemd" not in pid_one


def test_the_first_process_cannot_be_harmed(sandbox):
    bash(sandbox, "kill -9 1; kill 1; sudo kill -9 1; sudo kill -STOP 1")
    assert bash(sandbox, "echo alive")[1] == "alive\n"


# As the user and as its root: neither may succeed.
FORBIDDEN = [
    "mount -t proc proc /mnt",
    "mount -t tmpfs tmpfs /mnt",
    "mount --bind /etc /mnt",
    "mount -o remount,rw /sys",
    "umount /proc",
    "unshare -m true",
    "unshare -U -r true",
    "mknod /tmp/disk b 7 0",
    "insmod /etc/hostname",
    "swapon /dev/loop0",
    "dmesg",
    "reboot -f",
    "date -s @0",
    "hostname changed",
    "sh -c 'echo 1 > /proc/sys/kernel/panic'",
    "sh -c 'echo c > /proc/sysrq-trigger'",
    "sh -c 'head -c1 /proc/kcore | grep -q .'",
    "sh -c 'echo +1 > /sys/power/state'",
    "sh -c 'echo 9999999999 > /sys/fs/cgroup/memory/memory.limit_in_bytes'",
    "sh -c 'echo max > /sys/fs/cgroup/memory.max'",
    "head -c1 /dev/vda",
    "head -c1 /dev/loop0",
    "losetup /dev/loop0 /etc/hostname",
]
# Root of the sandbox may do these to itself; that is no way out.
HARMLESS_AS_ROOT = {"hostname changed"}


@pytest.mark.parametrize("command", FORBIDDEN)
def test_forbidden(sandbox, command):
    code, out, err = bash(sandbox, f"timeout 10 {command}")
    assert code not in (0, 124), f"{command}: {out} {err}"
    if command not in HARMLESS_AS_ROOT:
        code, out, err = bash(sandbox, f"sudo timeout 10 {command}")
        assert code not in (0, 124), f"sudo {command}: {out} {err}"
    assert bash(sandbox, "echo alive")[1] == "alive\n"


def test_root_is_not_the_hosts_root(sandbox):
    outside, inside = bash(sandbox, "awk '$1 == 0 {print $2}' /proc/self/uid_map; id -u")[1].split()
    assert outside != "0"
    assert inside == "1000"


def test_limits_are_set(sdk, shared):
    with sdk.sandbox.create(memory_mb=4096) as sandbox:
        # A fork bomb ends in EAGAIN, and the sandbox can still be ended.
        script = "n=0; while [ $n -lt 9000 ]; do sleep 60 >&- 2>&- & n=$((n+1)); done; echo $n"
        code, out, err = bash(sandbox, f"exec sh -c '{script}'")
        assert code != 0, f"no limit until {out}"
        assert "Cannot fork" in err
        assert shared.request("GET", "/healthz").status_code == 200
        sandbox.kill()


def test_the_root_disk_is_bounded(sandbox):
    size = int(bash(sandbox, "df -B1 --output=size / | tail -1")[1])
    assert size <= 11 << 30, "the writable layer has its own limit, not the host's disk"


def test_nothing_of_the_host_is_inherited(sandbox):
    out = bash(sandbox, "env; ls -l /proc/self/fd; cat /proc/self/mountinfo")[1]
    for text in ("DENO_DEPLOY_TOKEN", "ddo_", "CARGO", "admin-token"):
        assert text not in out


def test_the_way_out(sandbox):
    assert bash(sandbox, "sudo apt-get update -qq 2>&1; echo $?")[1].splitlines()[-1] == "0"
    code, out, err = bash(
        sandbox, "cd /tmp && pip download --no-deps --no-cache-dir -q six==1.17.0 && ls six-*"
    )
    assert code == 0, err
    assert out.startswith("six-1.17.0")
    code, out, err = bash(sandbox, "npm view isexe@4.0.0 version")
    assert (code, out) == (0, "4.0.0\n"), err
