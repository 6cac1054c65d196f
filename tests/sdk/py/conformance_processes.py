"""Processes, environment variables, and Deno inside."""

from __future__ import annotations

import asyncio
import contextlib
import os

from conformance import World, check, fails, until
from conformance_files import cannot_be_sent
from deno_sandbox.process import AbortSignal

PIPED = {"stdout": "piped", "stderr": "piped"}
QUIET = {"stdout": "null", "stderr": "null"}


@check("sandbox.spawn")
async def _(w: World):
    child = await w.sandbox.spawn("printf", args=["%s|", "a b", "$HOME", ""], **PIPED)
    assert await child.stdout.read(-1) == b"a b|$HOME||"
    assert (await child.wait())["success"]
    with fails("NotFound", "ENOENT"):
        await w.sandbox.spawn("no-such-program")


@check("sandbox.spawn(cwd=, env=, clear_env=)")
async def _(w: World):
    script = "pwd; echo $NODE_ENV $lower"
    code, out, _ = await w.bash(script, cwd="/usr", env={"NODE_ENV": "größer", "lower": "x"})
    assert (code, out) == (0, "/usr\ngrößer x\n")
    child = await w.sandbox.spawn("/usr/bin/env", clear_env=True, env={"ONLY": "1"}, **PIPED)
    assert await child.stdout.read(-1) == b"ONLY=1\n"
    await child.wait()


@check("sandbox.spawn(stdin_data=)")
async def _(w: World):
    data = os.urandom(200_000)
    child = await w.sandbox.spawn("cat", stdin_data=[data[:7], data[7:]], **PIPED)
    assert await child.stdout.read(-1) == data
    assert (await child.wait())["success"]
    assert await w.bash("cat | wc -c") == (0, "0\n", "")


@check("sandbox.spawn(stdout=, stderr=)")
async def _(w: World):
    script = ["-c", "echo out; echo err >&2"]
    child = await w.sandbox.spawn("bash", args=script, **QUIET)
    assert (await child.wait())["code"] == 0
    child = await w.sandbox.spawn("bash", args=script, stdout="null", stderr="piped")
    assert await child.stderr.read(-1) == b"err\n"
    await child.wait()
    child = await w.sandbox.spawn("true")  # What it says goes to our own output.
    assert (await child.wait())["success"]


@check("sandbox.spawn(signal=)")
async def _(w: World):
    with cannot_be_sent():
        await w.sandbox.spawn("true", signal=AbortSignal())


@check("ChildProcess.pid")
async def _(w: World):
    child = await w.sandbox.spawn("bash", args=["-c", "echo $$"], **PIPED)
    assert await child.stdout.read(-1) == f"{child.pid}\n".encode()
    await child.wait()


@check("ChildProcess.stdout")
async def _(w: World):
    child = await w.sandbox.spawn("bash", args=["-c", "echo one; sleep 0.3; echo two"], **PIPED)
    # What is written early arrives early.
    assert [await child.stdout.read(100) for _ in range(3)] == [b"one\n", b"two\n", b""]
    await child.wait()


@check("ChildProcess.stderr")
async def _(w: World):
    child = await w.sandbox.spawn("bash", args=["-c", "echo out; echo err >&2"], **PIPED)
    assert await child.stderr.read(-1) == b"err\n"
    assert await child.stdout.read(-1) == b"out\n"
    await child.wait()


@check("StreamReader.read")
async def _(w: World):
    child = await w.sandbox.spawn("printf", args=["line\\n1234567890rest"], **PIPED)
    assert await child.stdout.readline() == b"line\n"
    assert await child.stdout.readexactly(10) == b"1234567890"
    assert await child.stdout.read() == b"rest"
    await child.wait()


@check("ChildProcess.wait")
async def _(w: World):
    for script, expected in {
        "exit 0": {"success": True, "code": 0, "signal": None},
        "exit 42": {"success": False, "code": 42, "signal": None},
        "kill -KILL $$": {"success": False, "code": 137, "signal": "SIGKILL"},
    }.items():
        child = await w.sandbox.spawn("bash", args=["-c", script], **QUIET)
        assert await child.wait() == expected


@check("ChildProcess.kill")
async def _(w: World):
    child = await w.sandbox.spawn("sleep", args=["1000"], **QUIET)
    assert await w.is_alive(child.pid)
    await child.kill()
    await until("it is gone", lambda: gone(w, child.pid))
    await child.kill()  # That it is gone is no error.


async def gone(w: World, pid: int) -> bool:
    return not await w.is_alive(pid)


@check("ChildProcess.__exit__")
async def _(w: World):
    async with await w.sandbox.spawn("sleep", args=["1000"], **QUIET) as child:
        assert await w.is_alive(child.pid)
    await until("it is gone", lambda: gone(w, child.pid))


@check("ChildProcess.returncode")
async def _(w: World):
    child = await w.sandbox.spawn("false", **QUIET)
    assert (await child.wait())["code"] == 1
    assert child.returncode is None


@check("sandbox.env.get")
async def _(w: World):
    assert "/usr/bin" in await w.sandbox.env.get("PATH")
    assert await w.sandbox.env.get("NEVER_SET") is None


@check("sandbox.env.set")
async def _(w: World):
    await w.sandbox.env.set("A_KEY", "value=with 😀")
    assert await w.sandbox.env.get("A_KEY") == "value=with 😀"
    assert (await w.bash("echo $A_KEY"))[1] == "value=with 😀\n"
    with fails("TypeError"):
        await w.sandbox.env.set("BAD=NAME", "x")


@check("sandbox.env.as_dict")
async def _(w: World):
    await w.sandbox.env.set("TO_DICT", "its value")
    variables = await w.sandbox.env.as_dict()
    assert "its value" in variables.values()
    assert "TO_DICT" not in variables
    assert variables["p_a_t_h"] == await w.sandbox.env.get("PATH")


@check("sandbox.env.delete")
async def _(w: World):
    await w.sandbox.env.set("SHORT_LIVED", "x")
    await w.sandbox.env.delete("SHORT_LIVED")
    await w.sandbox.env.delete("SHORT_LIVED")
    assert (await w.bash("echo ${SHORT_LIVED-unset}"))[1] == "unset\n"


# Deno inside.

SERVE = """Deno.serve({ port: 0, onListen() {} }, (request) => {
  const { pathname } = new URL(request.url);
  if (pathname === "/missing") return new Response("no", { status: 404 });
  return new Response(pathname, { status: 201, headers: { "x-mine": request.headers.get("x-mine") ?? "" } });
});"""


async def output(runs) -> tuple[bytes, bytes, int]:
    """Both outputs and the code."""
    out, err = await runs.stdout.read(-1), await runs.stderr.read(-1)
    return out, err, (await runs.wait())["code"]


@check("sandbox.deno.run(entrypoint=)")
async def _(w: World):
    root = await w.tree({
        "lib.ts": "export const answer: number = 42;",
        "main.ts": 'import { answer } from "./lib.ts"; console.log(answer);',
    })  # fmt: skip
    assert await output(await w.sandbox.deno.run(entrypoint=f"{root}/main.ts", **PIPED)) == (b"42\n", b"", 0)


@check("sandbox.deno.run(code=, extension=)")
async def _(w: World):
    code = "const n: number = 1; console.log(n); console.error('e'); Deno.exit(3)"
    assert await output(await w.sandbox.deno.run(code=code, **PIPED)) == (b"1\n", b"e\n", 3)
    plain = await w.sandbox.deno.run(code="console.log(typeof require)", extension="cjs", **PIPED)
    assert (await output(plain))[0] == b"function\n"


@check("sandbox.deno.run(script_args=, env=, cwd=)")
async def _(w: World):
    runs = await w.sandbox.deno.run(
        code="console.log(Deno.args.join('|'), Deno.env.get('MY_VAR'), Deno.cwd())",
        script_args=["--flag", "a b"], env={"MY_VAR": "mine"}, cwd="/usr", **PIPED,
    )  # fmt: skip
    assert (await output(runs))[0] == b"--flag|a b mine /usr\n"


@check("sandbox.deno.run(stdin_data=)")
async def _(w: World):
    code = "console.log((await new Response(Deno.stdin.readable).text()).toUpperCase())"
    runs = await w.sandbox.deno.run(code=code, stdin_data=[b"in", b"put"], **PIPED)
    assert (await output(runs))[0] == b"INPUT\n"


@check("sandbox.deno.run(signal=)")
async def _(w: World):
    with cannot_be_sent():
        await w.sandbox.deno.run(code="1", signal=AbortSignal())


@check("sandbox.deno.eval")
async def _(w: World):
    assert await w.sandbox.deno.eval("const a = 1; const b: number = 2; a + b") == 3
    assert await w.sandbox.deno.eval("({ a: [1, null, 'größer'] })") == {"a": [1, None, "größer"]}
    assert await w.sandbox.deno.eval("undefined") is None


@check("sandbox.deno.repl")
async def _(w: World):
    repl = await w.sandbox.deno.repl(script_args=["one"], env={"MY_VAR": "mine"}, cwd="/usr", **PIPED)
    assert await repl.eval("[Deno.args, Deno.env.get('MY_VAR'), Deno.cwd()]") == [["one"], "mine", "/usr"]
    assert await repl.eval("Deno.pid") == repl.pid
    await repl.eval("console.log('printed'); console.error('complained')")
    assert await repl.stdout.readline() == b"printed\n"
    assert await repl.stderr.readline() == b"complained\n"
    await repl.close()


@check("DenoProcess.wait_http_ready")
async def _(w: World):
    async with await w.sandbox.deno.run(code=SERVE, **QUIET) as serves:
        assert await serves.wait_http_ready() is True
    ends = await w.sandbox.deno.run(code="1", **QUIET)
    assert await ends.wait_http_ready() is False
    await ends.wait()


@check("DenoProcess.fetch")
async def _(w: World):
    async with await w.sandbox.deno.run(code=SERVE, **QUIET) as serves:
        await serves.wait_http_ready()
        response = await serves.fetch("https://example.com/path", headers={"X-Mine": "yes"})
        assert response.status_code == 201
        assert ["x-mine", "yes"] in [list(pair) for pair in response.headers]
        assert (await serves.fetch("https://example.com/missing")).status_code == 404


@check("DenoProcess.kill")
async def _(w: World):
    runs = await w.sandbox.deno.run(code="setTimeout(() => {}, 100_000)", **QUIET)
    await runs.kill()
    await until("it is gone", lambda: gone(w, runs.pid))


@check("DenoRepl.eval")
async def _(w: World):
    repl = await w.sandbox.deno.repl(**QUIET_REPL)
    await repl.eval("const x = 42; let y: number = 8;")
    assert await repl.eval("x + y") == 50
    with fails("TypeError", text="on purpose"):
        await repl.eval("throw new TypeError('on purpose')")
    with fails("SyntaxError"):
        await repl.eval("let =")
    assert await repl.eval("x") == 42
    await repl.close()


# Its outputs are always piped; nothing is printed here.
QUIET_REPL = {"stdout": "piped", "stderr": "piped"}


@check("DenoRepl.call")
async def _(w: World):
    repl = await w.sandbox.deno.repl(**QUIET_REPL)
    await repl.eval("function add(a, b) { return a + b; }")
    assert await repl.call("add", [1, 2]) == 3
    assert await repl.call("(a, b) => [b, a]", [{"n": "größer"}, None]) == [None, {"n": "größer"}]
    with fails("RangeError", text="far"):
        await repl.call("() => { throw new RangeError('far') }", [])
    await repl.close()


@check("DenoRepl.close")
async def _(w: World):
    repl = await w.sandbox.deno.repl(**QUIET_REPL)
    waiting = asyncio.ensure_future(repl.wait())
    await repl.eval("1")
    await repl.close()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting  # The SDK may give up on it.
    await until("it is gone", lambda: gone(w, repl.pid))
    await repl.close()  # A second time is no error.


@check("DenoRepl.__exit__")
async def _(w: World):
    async with await w.sandbox.deno.repl(**QUIET_REPL) as repl:
        assert await repl.eval("1 + 1") == 2
    await until("it is gone", lambda: gone(w, repl.pid))


@check("DenoRepl.returncode")
async def _(w: World):
    repl = await w.sandbox.deno.repl(**QUIET_REPL)
    await repl.close()
    assert repl.returncode is None
