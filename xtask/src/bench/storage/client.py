"""The client of `cargo xtask bench storage`: a request per line and an answer per line, as JSON.

The answer has what the call returned and the milliseconds that the client waited for it.
"""

import asyncio
import json
import sys
import time

from deno_sandbox import AsyncDenoDeploy

sdk = AsyncDenoDeploy()
sandboxes = {}


async def open_sandbox(name, **options):
    manager = sdk.sandbox.create(**options)
    sandbox = await manager.__aenter__()
    sandboxes[name] = manager, sandbox
    return sandbox.id


async def close_sandbox(name):
    manager, sandbox = sandboxes.pop(name)
    # One with a duration goes on without its client.
    await sandbox.kill()
    await manager.__aexit__(None, None, None)


async def put(name, path, text):
    await sandboxes[name][1].fs.write_text_file(path, text)


async def run(name, command):
    child = await sandboxes[name][1].spawn(
        command[0], args=command[1:], stdout="piped", stderr="piped"
    )
    out, err = await child.stdout.read(-1), await child.stderr.read(-1)
    status = await child.wait()
    if status["code"] != 0:
        raise RuntimeError(f"{command}: {err.decode()}")
    return out.decode()


CALLS = {
    "open": open_sandbox,
    "close": close_sandbox,
    "put": put,
    "run": run,
    "create": lambda **options: sdk.volumes.create(region="ord", **options),
    "snapshot": lambda volume, slug: sdk.volumes.snapshot(volume, slug=slug),
    "delete_volume": sdk.volumes.delete,
    "delete_snapshot": sdk.snapshots.delete,
    # The SDK has no call for our own API; its client has.
    "get": lambda path: sdk.volumes._client.get(path),
}


async def main():
    # Its connection is open before anything is measured.
    await sdk.volumes.list(limit=1)
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        begun = time.perf_counter()
        value = await CALLS[request["call"]](*request["list"], **request["named"])
        milliseconds = (time.perf_counter() - begun) * 1000
        print(json.dumps({"milliseconds": milliseconds, "value": value}), flush=True)


asyncio.run(main())
