"""The Python client of `cargo xtask bench rpc`: an operation and a number per line, and a line
with milliseconds for each."""

import asyncio
import json
import sys
import time

from deno_sandbox import AsyncDenoDeploy

CHUNK = bytes([7]) * (64 << 10)


async def each(rounds, call):
    """Each of the calls by itself, in milliseconds."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await call()
        times.append((time.perf_counter() - begun) * 1000)
    return times


async def download(sandbox, chunks):
    child = await sandbox.spawn("cat", args=["/tmp/large"], stdout="piped", stderr="null")
    count = 0
    while chunk := await child.stdout.read(1 << 20):
        count += len(chunk)
    status = await child.wait()
    if not status["success"] or count != chunks * len(CHUNK):
        raise RuntimeError(f"{count} bytes came")


async def main():
    async with AsyncDenoDeploy().sandbox.create() as sandbox:
        await sandbox.fs.write_text_file("/tmp/small", "x" * 1000)
        spawned = []

        async def spawn():
            spawned.append(await sandbox.spawn("true", stdout="null", stderr="null"))

        while line := await asyncio.to_thread(sys.stdin.readline):
            operation, number = line.split()
            number = int(number)
            if operation == "upload":
                content = (CHUNK for _ in range(number))
                times = await each(1, lambda: sandbox.fs.write_file("/tmp/large", content))
            elif operation == "download":
                times = await each(1, lambda: download(sandbox, number))
            elif operation == "spawn":
                times = await each(number, spawn)
                for child in spawned:
                    await child.wait()
                spawned.clear()
            elif operation == "stat":
                times = await each(number, lambda: sandbox.fs.stat("/tmp/small"))
            else:
                times = await each(number, lambda: sandbox.fs.read_text_file("/tmp/small"))
            print(json.dumps({"ms": times}), flush=True)


asyncio.run(main())
