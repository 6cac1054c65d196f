// Deno programs and REPLs in a sandbox, and what becomes of processes when memory runs out.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import { Sandbox } from "@deno/sandbox";
import { bash, waitUntil } from "./support.mjs";

let sandbox;
before(async () => {
  sandbox = await Sandbox.create({ memory: "800MiB" });
});
after(() => sandbox.close());

const QUIET = { stdout: "null", stderr: "null" };
const PIPED = { stdout: "piped", stderr: "piped" };

/** The files that running programs have in the sandbox. */
const homes = async () => (await bash(sandbox, "ls -A /tmp | grep -c '^.deno-' || true")).out.trim();

test("run: code, arguments, variables, directory, input", async () => {
  const code = `const s: string = await new Response(Deno.stdin.readable).text();
    console.log(JSON.stringify([Deno.args, Deno.env.get("MINE"), Deno.cwd(), s])); Deno.exit(4)`;
  const options = { code, scriptArgs: ["-a", "b c"], env: { MINE: "ü" }, cwd: "/usr", stdin: "piped", ...PIPED };
  const program = await sandbox.deno.run(options);
  const writer = program.stdin.getWriter();
  await writer.write(new TextEncoder().encode("in"));
  await writer.close();
  const { status, stdoutText } = await program.output();
  assert.equal(status.code, 4);
  assert.deepEqual(JSON.parse(stdoutText), [["-a", "b c"], "ü", "/usr", "in"]);
});

test("run: what a program leaves behind is nothing, and a missing deno is NotFound", async () => {
  const program = await sandbox.deno.run({ code: "setTimeout(() => {}, 60_000)", ...QUIET });
  assert.equal(await homes(), "1");
  assert.match((await bash(sandbox, "stat -c '%U %a' /tmp/.deno-*")).out, /^app 700\n$/);
  await program.kill();
  assert.equal((await program.status).signal, "SIGTERM");
  await waitUntil("its files are gone", async () => (await homes()) === "0");
  const nowhere = { code: "1", env: { PATH: "/nowhere" }, ...QUIET };
  await assert.rejects(sandbox.deno.run(nowhere), (error) => error.code === "ENOENT");
  await assert.rejects(sandbox.deno.repl({ env: { PATH: "/nowhere" } }), (error) => error.code === "ENOENT");
  await waitUntil("no files of what did not start", async () => (await homes()) === "0");
});

test("a program that serves: ready, fetched, and not ready when it ends", async () => {
  const code = `Deno.serve({ port: 8100, onListen() {} }, async (request) =>
    new Response(request.method + new URL(request.url).pathname + await request.text() +
      request.headers.get("x-mine"), { status: 201, headers: [["x-one", "1"], ["set-cookie", "a"], ["set-cookie", "b"]] }))`;
  const program = await sandbox.deno.run({ code, ...QUIET });
  assert.equal(await program.httpReady, true);
  const response = await program.fetch("https://example.com/p", { method: "PUT", body: "é", headers: { "x-mine": "m" } });
  assert.deepEqual([response.status, await response.text()], [201, "PUT/pém"]);
  assert.equal(response.headers.get("x-one"), "1");
  assert.deepEqual(response.headers.getSetCookie(), ["a", "b"]);
  await program.kill();
  await program.status;
  await assert.rejects(program.fetch("http://x/"));
  const ends = await sandbox.deno.run({ code: "1", ...QUIET });
  assert.equal(await ends.httpReady, false);
});

test("a watched program tells of its restarts, with and without its output", async () => {
  for (const stdio of [PIPED, QUIET]) {
    await sandbox.fs.writeTextFile("/tmp/watched.ts", "setInterval(() => {}, 1000)");
    const program = await sandbox.deno.run({ entrypoint: "/tmp/watched.ts", watch: true, ...stdio });
    let restarts = 0;
    program.addEventListener("restart", () => restarts++);
    // A change before Deno watches is no change, and one after another it waits for the last.
    for (let tries = 0; tries < 10 && restarts === 0; tries++) {
      await sandbox.fs.writeTextFile("/tmp/watched.ts", `setInterval(() => {}, ${1001 + tries})`);
      for (let waits = 0; waits < 20 && restarts === 0; waits++) await delay(50);
    }
    assert.ok(restarts > 0, "a restart");
    await program.kill();
    assert.equal((await program.status).signal, "SIGTERM");
  }
});

test("repl: values, state and order", async () => {
  const repl = await sandbox.deno.repl(PIPED);
  assert.equal(await repl.eval("let n: number = 1; n + 1"), 2);
  assert.equal(await repl.eval("_ * 10"), 20, "our own questions do not change the last value");
  const value = { z: 1, a: [0.1234567890123456789, null, "é\u2028", 1e21, -0.5], "": {} };
  assert.equal(JSON.stringify(await repl.eval(`(${JSON.stringify(value)})`)), JSON.stringify(value));
  assert.equal(await repl.eval("undefined"), null);
  assert.equal(await repl.eval("await new Promise((r) => setTimeout(() => r(n), 10))"), 1);
  await repl.eval("function add(a: number, b: number) { return a + b }");
  assert.equal(await repl.call("add", 2, 3), 5);
  assert.deepEqual(await repl.call("async ({ x }) => [x]", { x: "'\"`${}" }), ["'\"`${}"]);
  const numbers = Array.from({ length: 30 }, (_, number) => number);
  assert.deepEqual(await Promise.all(numbers.map((number) => repl.eval(`n = ${number}; n`))), numbers);
  assert.equal(await repl.eval("const _ = 'mine'; 7"), 7, "whatever the names mean");
  await repl.close();
  assert.equal((await repl.status).success, true);
});

test("repl: what code throws, and what is not JSON", async () => {
  const repl = await sandbox.deno.repl(QUIET);
  const thrown = async (code) => {
    try {
      return ["no error", await repl.eval(code)];
    } catch (error) {
      return [error.constructor.name, error.message, error.code];
    }
  };
  assert.deepEqual((await thrown("throw new RangeError('no')")).slice(0, 2), ["RangeError", "no"]);
  assert.deepEqual((await thrown("throw 'text'")).slice(0, 2), ["Error", "text"]);
  const missing = await thrown("await Deno.readTextFile('/nowhere')");
  assert.deepEqual([missing[0], missing[2]], ["NotFound", "ENOENT"]);
  assert.equal((await thrown("let x = ("))[0], "SyntaxError");
  for (const code of ["10n", "() => 1", "Symbol()", "const o = {}; o.o = o; o"]) {
    assert.equal((await thrown(code))[0], "TypeError", code);
  }
  const hostile = "throw Object.defineProperty({}, 'message', { get() { throw 1 } })";
  assert.notEqual((await thrown(hostile))[0], "no error");
  assert.equal(await repl.eval("1"), 1, "it goes on");
  await repl.close();
});

test("repl: one that ends answers what is open", async () => {
  const repl = await sandbox.deno.repl(QUIET);
  assert.equal(await repl.eval("1"), 1);
  const open = assert.rejects(repl.eval("await new Promise(() => {})"));
  const queued = assert.rejects(repl.eval("2"));
  await repl.kill("SIGKILL");
  await Promise.all([open, queued]);
  await assert.rejects(repl.eval("3"));
  await repl.close();
});

test("eval", async () => {
  assert.deepEqual(await sandbox.deno.eval("const a: number[] = [1, 2]; a"), [1, 2]);
});

test("memory that runs out is told, and nothing else is taken for it", async () => {
  const greedy = "a = []\nwhile True: a.append(bytearray(20_000_000))";
  const child = await sandbox.spawn("python3", { args: ["-c", greedy], ...QUIET });
  const status = await child.status;
  assert.deepEqual([status.code, status.signal, status.oom], [137, "SIGKILL", true]);
  await assert.rejects(async () => await sandbox.sh`python3 -c ${greedy}; exit $?`, /process ran out of memory/);
  const killed = await sandbox.spawn("sleep", { args: ["100"], ...QUIET });
  await killed.kill("SIGKILL");
  assert.equal((await killed.status).oom, false);
  const pretends = await bash(sandbox, "exit 137");
  assert.deepEqual([pretends.code, pretends.status.oom], [137, false]);
  assert.equal((await bash(sandbox, "echo alive")).out, "alive\n");
});

test("every signal has its name", async () => {
  const names = ["ABRT", "ALRM", "BUS", "FPE", "HUP", "ILL", "INT", "IO", "KILL", "PIPE", "PROF", "PWR", "QUIT", "SEGV",
    "STKFLT", "SYS", "TERM", "TRAP", "USR1", "USR2", "VTALRM", "XCPU", "XFSZ"];
  await Promise.all(names.map(async (name) => {
    const child = await sandbox.spawn("sleep", { args: ["100"], ...QUIET });
    await child.kill(`SIG${name}`);
    const status = await child.status;
    assert.equal(status.signal, `SIG${name}`);
    assert.ok(status.code > 128);
  }));
});

test("many short processes, one after the other and at once", async () => {
  for (let number = 0; number < 200; number++) {
    const child = await sandbox.spawn("true", QUIET);
    assert.equal((await child.status).success, true);
  }
  const texts = await Promise.all(Array.from({ length: 200 }, (_, number) => sandbox.sh`echo ${number}`.text()));
  assert.deepEqual(texts, Array.from({ length: 200 }, (_, number) => `${number}\n`));
  await waitUntil("no zombies", async () => (await bash(sandbox, "ps -eo stat | grep -c '^Z' || true")).out === "0\n");
});
