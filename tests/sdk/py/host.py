"""What exists on the host because of a server: counted before and after, to see that nothing stays."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.splitlines()


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command's name is in parentheses and may hold anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
            except OSError:
                continue
    return parents


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    parents = _parents()
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more


def loop_files() -> list[str]:
    """The files behind all loop devices."""
    files = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            files.append(backing.read_text().strip())
        except OSError:
            continue
    return files


def mounts_of(directory: Path) -> list[str]:
    """Lines of the mount table that name a directory."""
    text = Path("/proc/self/mountinfo").read_text()
    return [line for line in text.splitlines() if str(directory) in line]


def loops_of(directory: Path) -> list[str]:
    """Files below a directory that are behind a loop device."""
    return [file for file in loop_files() if file.startswith(str(directory))]


def processes_with(text: str) -> list[int]:
    """Processes that have a text in their command line, environment excluded."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(int(entry.name))
    return found


def cgroups() -> list[str]:
    """Control groups whose path names our product, on v1 and v2."""
    found = []
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{directory}/{name}" for name in names if "sandstone" in f"{directory}/{name}"]
    return found


def count(pid: int, data: Path) -> dict[str, int]:
    """How many objects of each kind there are now."""
    namespaces = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for kind in ("mnt", "net", "pid", "user"):
                try:
                    namespaces.add(os.readlink(entry / "ns" / kind))
                except OSError:
                    continue
    return {
        "mounts of the host": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "mounts of the server": len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()),
        "loop devices": len(loops_of(data)),
        "links": len(list(Path("/sys/class/net").iterdir())),
        "lines of nft rules": len(_lines("nft", "list", "ruleset")),
        "control groups": len(cgroups()),
        "named network namespaces": len(list(Path("/run/netns").glob("*"))),
        "namespaces": len(namespaces),
        "processes below the server": len(descendants(pid)),
        "files": sum(len(names) for _, _, names in os.walk(data)),
        "files in /run/sandstone": sum(len(names) for _, _, names in os.walk("/run/sandstone")),
        "sockets and files of the server": len(os.listdir(f"/proc/{pid}/fd")),
    }


def settled(pid: int, data: Path, seconds: float = 10.0) -> dict[str, int]:
    """The counts, once they have not changed for a second: the warm pool has been refilled."""
    deadline = time.monotonic() + seconds
    last, since = count(pid, data), time.monotonic()
    while time.monotonic() - since < 1.0 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = count(pid, data)
        if now != last:
            last, since = now, time.monotonic()
    return last


# Descriptors come and go with connections that are still closing.
SLACK = {"sockets and files of the server": 4, "files": 2}


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, str]:
    """What there is more of now, beyond what comes and goes."""
    return {
        kind: f"{before[kind]} -> {after[kind]}"
        for kind in before
        if after[kind] - before[kind] > SLACK.get(kind, 0)
    }


def scan_memory(program: str, halves: list[str], pids: list[str]) -> list[str]:
    """Runs a scan of these processes' memory as root of the host; what it printed."""
    return _lines("python3", "-c", program, *halves, *pids)[0].split()
