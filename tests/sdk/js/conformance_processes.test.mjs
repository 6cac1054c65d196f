// Processes, shell commands, environment variables, and Deno inside.
import { after, before } from "node:test";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { KillController, Sandbox, SandboxCommandError } from "@deno/sandbox";
import { all, check } from "./conformance.mjs";
import { bash, waitUntil, withoutLateChunks } from "./support.mjs";

let sandbox;
before(async () => {
  sandbox = await Sandbox.create();
});
after(() => sandbox.close());

const PIPED = { stdout: "piped", stderr: "piped" };
const text = async (stream) => Buffer.concat(await all(stream)).toString();
const isAlive = async (pid) => (await bash(sandbox, `kill -0 ${pid}`)).code === 0;
/** A process that says `up` and then waits to be ended. */
async function sleeper(options = {}) {
  const script = "echo up; exec sleep 1000";
  return await sandbox.spawn("bash", { args: ["-c", script], stdout: "null", stderr: "null", ...options });
}

check("sandbox.spawn", async () => {
  const child = await sandbox.spawn("printf", { args: ["%s|", "a b", "$HOME", ""], ...PIPED });
  const { status, stdoutText, stderrText } = await child.output();
  assert.deepEqual([stdoutText, stderrText, status.code], ["a b|$HOME||", "", 0]);
  await assert.rejects(sandbox.spawn("no-such-program"), (error) => {
    assert.deepEqual([error.constructor.name, error.code], ["NotFound", "ENOENT"]);
    return true;
  });
});

check("sandbox.spawn({ cwd, env, clearEnv })", async () => {
  const script = "pwd; echo $NODE_ENV";
  const { out } = await bash(sandbox, script, { cwd: new URL("file:///usr"), env: { NODE_ENV: "größer" } });
  assert.equal(out, "/usr\ngrößer\n");
  const child = await sandbox.spawn("/usr/bin/env", { clearEnv: true, env: { ONLY: "1" }, ...PIPED });
  assert.equal((await child.output()).stdoutText, "ONLY=1\n");
});

check("sandbox.spawn({ stdin })", async () => {
  const data = new Uint8Array(randomBytes(200_000));
  const child = await sandbox.spawn("cat", { stdin: "piped", ...PIPED });
  const writer = child.stdin.getWriter();
  const written = writer.write(data).then(() => writer.close());
  assert.ok(Buffer.from((await child.output()).stdout).equals(Buffer.from(data)));
  await written;
  const without = await sandbox.spawn("cat", PIPED);
  assert.equal(without.stdin, null);
  assert.equal((await without.output()).stdoutText, "");
});

check("sandbox.spawn({ stdout, stderr })", async () => {
  const args = ["-c", "echo out; echo err >&2"];
  const silent = await sandbox.spawn("bash", { args, stdout: "null", stderr: "null" });
  assert.deepEqual([silent.stdout, silent.stderr], [null, null]);
  assert.equal((await silent.status).code, 0);
  const one = await sandbox.spawn("bash", { args, stdout: "null", stderr: "piped" });
  assert.equal(await text(one.stderr), "err\n");
  const inherited = await sandbox.spawn("true");
  assert.deepEqual([inherited.stdout, inherited.stderr], [null, null]);
  assert.equal((await inherited.status).success, true);
});

check("sandbox.spawn({ signal })", async () => {
  const child = await sleeper({ signal: AbortSignal.timeout(200) });
  assert.deepEqual(await child.status, { success: false, code: 143, signal: "SIGTERM", oom: false });
});

check("ChildProcess.pid", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "echo $$"], ...PIPED });
  assert.equal((await child.output()).stdoutText, `${child.pid}\n`);
});

check("ChildProcess.stdout", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "echo one; sleep 0.3; echo two"], ...PIPED });
  const reader = child.stdout.getReader();
  // What is written early arrives early.
  assert.equal(new TextDecoder().decode((await reader.read()).value), "one\n");
  assert.equal(new TextDecoder().decode((await reader.read()).value), "two\n");
  assert.equal((await reader.read()).done, true);
  const endless = await sandbox.spawn("yes", { stdout: "piped", stderr: "null" });
  const taken = endless.stdout.getReader();
  await taken.read();
  await withoutLateChunks(async () => {
    await taken.cancel();
    await endless.kill();
    assert.equal((await endless.status).success, false);
  });
});

check("ChildProcess.stderr", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "echo out; echo err >&2"], ...PIPED });
  assert.deepEqual([await text(child.stderr), await text(child.stdout)], ["err\n", "out\n"]);
});

check("ChildProcess.status", async () => {
  for (const [script, expected] of [
    ["exit 0", { success: true, code: 0, signal: null, oom: false }],
    ["exit 42", { success: false, code: 42, signal: null, oom: false }],
    ["kill -KILL $$", { success: false, code: 137, signal: "SIGKILL", oom: false }],
  ]) {
    const child = await sandbox.spawn("bash", { args: ["-c", script], stdout: "null", stderr: "null" });
    assert.deepEqual(await child.status, expected);
  }
});

check("ChildProcess.status.oom", async () => {
  const small = await Sandbox.create({ memory: "768MiB" });
  try {
    const { status } = await bash(small, "exec python3 -c 'bytearray(1_500_000_000)'");
    assert.deepEqual([status.success, status.code, status.oom], [false, 137, true]);
    await assert.rejects(
      async () => await small.sh`exec python3 -c 'bytearray(1_500_000_000)'`,
      /exit code 137 \(process ran out of memory\)/,
    );
    assert.equal((await bash(small, "exit 137")).status.oom, false);
  } finally {
    await small.close();
  }
});

check("ChildProcess.output", async () => {
  const script = "head -c 1000000 /dev/zero; echo err >&2; exit 5";
  const child = await sandbox.spawn("bash", { args: ["-c", script], ...PIPED });
  const output = await child.output();
  assert.deepEqual([output.stdout.length, output.stderrText, output.status.code], [1_000_000, "err\n", 5]);
});

check("ChildProcess.kill", async () => {
  const child = await sleeper();
  assert.equal(await isAlive(child.pid), true);
  await child.kill();
  assert.equal((await child.status).signal, "SIGTERM");
  assert.equal(await isAlive(child.pid), false);
  await child.kill(); // That it is gone is no error.
});

check("ChildProcess.kill(signal)", async () => {
  const codes = { SIGKILL: 137, SIGINT: 130, SIGUSR1: 138, SIGHUP: 129 };
  for (const [signal, code] of Object.entries(codes)) {
    const child = await sleeper();
    await child.kill(signal);
    assert.deepEqual(await child.status, { success: false, code, signal, oom: false });
  }
  const script = "trap 'echo caught; exit 7' USR2; echo up; while :; do sleep 0.02; done";
  const child = await sandbox.spawn("bash", { args: ["-c", script], ...PIPED });
  const reader = child.stdout.getReader();
  await reader.read();
  await child.kill("SIGUSR2");
  assert.equal(new TextDecoder().decode((await reader.read()).value), "caught\n");
  assert.equal((await child.status).code, 7);
});

check("ChildProcess[Symbol.asyncDispose]", async () => {
  const child = await sleeper();
  await child[Symbol.asyncDispose]();
  assert.equal((await child.status).signal, "SIGTERM");
});

check("sandbox.sh", async () => {
  const result = await sandbox.sh`echo ${"it's $HOME"} ${["a b", "c"]} > /tmp/said; cat /tmp/said | wc -l`.stdout("piped");
  assert.equal(result.stdoutText, "1\n");
  assert.equal(await sandbox.sh`cat /tmp/said`.text(), "it's $HOME a b c\n");
  await assert.rejects(async () => await sandbox.sh`exit 42`, (error) => {
    assert.ok(error instanceof SandboxCommandError);
    assert.deepEqual([error.code, error.message], [42, "Command failed with exit code 42"]);
    return true;
  });
  // The shell reads ~/.bashrc, as the SDK asks by a variable.
  await sandbox.sh`sed -i '1i export FROM_RC=yes' ~/.bashrc`;
  assert.equal(await sandbox.sh`echo $FROM_RC`.text(), "yes\n");
});

check("SandboxCommandBuilder.noThrow", async () => {
  const { status } = await sandbox.sh`exit 3`.noThrow();
  assert.deepEqual([status.success, status.code], [false, 3]);
});

check("SandboxCommandBuilder.sudo", async () => {
  await sandbox.sh`touch /root/by-root`.sudo();
  assert.equal(await sandbox.sh`sudo stat -c %U /root/by-root`.text(), "root\n");
});

check("SandboxCommandBuilder.cwd", async () => {
  await sandbox.sh`pwd > /tmp/where`.cwd("/usr/lib");
  assert.equal(await sandbox.fs.readTextFile("/tmp/where"), "/usr/lib\n");
});

check("SandboxCommandBuilder.env", async () => {
  await sandbox.sh`echo -n $MY_VAR > /tmp/var`.env("MY_VAR", "a value");
  assert.equal(await sandbox.fs.readTextFile("/tmp/var"), "a value");
});

check("SandboxCommandBuilder.stdout", async () => {
  const { stdout, stdoutText, stderr } = await sandbox.sh`echo hello`.stdout("piped");
  assert.deepEqual([stdout.length, stdoutText, stderr], [6, "hello\n", null]);
  assert.equal((await sandbox.sh`echo hello`.stdout("null")).stdout, null);
});

check("SandboxCommandBuilder.stderr", async () => {
  const { stderrText } = await sandbox.sh`echo oh >&2`.stderr("piped");
  assert.equal(stderrText, "oh\n");
});

check("SandboxCommandBuilder.signal", async () => {
  const started = Date.now();
  await assert.rejects(
    async () => await sandbox.sh`sleep 100`.signal(AbortSignal.timeout(200)),
    (error) => error.code === 143,
  );
  assert.ok(Date.now() - started < 10_000);
});

check("SandboxCommandBuilder.text", async () => {
  assert.equal(await sandbox.sh`echo größer`.text(), "größer\n");
});

check("SandboxCommandBuilder.json", async () => {
  assert.deepEqual(await sandbox.sh`echo '{"count": 42}'`.json(), { count: 42 });
  await assert.rejects(sandbox.sh`echo no`.json(), /Failed to parse JSON/);
});

check("SandboxCommandBuilder.result", async () => {
  const result = await sandbox.sh`printf '\\x00\\xff'`.stdout("piped").result();
  assert.deepEqual([result.status.success, [...result.stdout]], [true, [0, 255]]);
});

check("SandboxCommandBuilder.spawn", async () => {
  const child = await sandbox.sh`echo up; exit 9`.stdout("piped").spawn();
  const { status, stdoutText } = await child.output();
  assert.deepEqual([status.code, stdoutText], [9, "up\n"]);
});

check("KillController.kill", async () => {
  const controller = new KillController();
  const heard = [];
  const listener = (signal) => heard.push(signal);
  controller.signal.addListener(listener);
  const child = new KillController();
  const link = controller.signal.linkChild(child.signal);
  const command = sandbox.sh`trap 'exit 5' USR1; echo up > /tmp/up; while :; do sleep 0.02; done`.signal(controller.signal);
  const ended = assert.rejects(command.result(), (error) => error.code === 5);
  await waitUntil("it runs", async () => (await bash(sandbox, "test -s /tmp/up")).code === 0);
  controller.kill("SIGUSR1");
  await ended;
  assert.deepEqual([heard, controller.signal.aborted], [["SIGUSR1"], false]);
  controller.signal.removeListener(listener);
  link.unsubscribe();
  controller.kill();
  assert.deepEqual(heard, ["SIGUSR1"]);
  assert.deepEqual([controller.signal.aborted, controller.signal.abortedExitCode], [true, 143]);
  assert.equal(child.signal.aborted, false);
  // A command that gets a signal which was sent before does not begin.
  const { status } = await sandbox.sh`touch /tmp/never`.signal(controller.signal).spawn().then((one) => one.output());
  assert.equal(status.code, 143);
  assert.notEqual((await bash(sandbox, "test -e /tmp/never")).code, 0);
});

check("sandbox.env.get", async () => {
  assert.match(await sandbox.env.get("PATH"), /\/usr\/bin/);
  assert.equal(await sandbox.env.get("NEVER_SET"), undefined);
});

check("sandbox.env.set", async () => {
  await sandbox.env.set("A_KEY", "value=with 😀");
  assert.equal(await sandbox.env.get("A_KEY"), "value=with 😀");
  assert.equal(await sandbox.sh`echo $A_KEY`.text(), "value=with 😀\n");
  await assert.rejects(sandbox.env.set("BAD=NAME", "x"), (error) => error.constructor.name === "TypeError");
});

check("sandbox.env.toObject", async () => {
  await sandbox.env.set("TO_OBJECT", "yes");
  const variables = await sandbox.env.toObject();
  assert.deepEqual([variables.TO_OBJECT, variables.HOME], ["yes", "/home/app"]);
});

check("sandbox.env.delete", async () => {
  await sandbox.env.set("SHORT_LIVED", "x");
  await sandbox.env.delete("SHORT_LIVED");
  await sandbox.env.delete("SHORT_LIVED");
  assert.equal(await sandbox.env.get("SHORT_LIVED"), undefined);
  assert.equal(await sandbox.sh`echo \${SHORT_LIVED-unset}`.text(), "unset\n");
});

// Deno inside.
const SERVE = `Deno.serve({ port: 0, onListen() {} }, async (request) => {
  const { pathname } = new URL(request.url);
  return Response.json(
    { method: request.method, pathname, host: request.headers.get("host"), body: await request.text() },
    { status: 201, headers: { "x-mine": "yes" } },
  );
});`;

check("sandbox.deno.run({ entrypoint })", async () => {
  await sandbox.fs.mkdir("/tmp/entry", { recursive: true });
  await sandbox.fs.writeTextFile("/tmp/entry/lib.ts", "export const answer: number = 42;");
  await sandbox.fs.writeTextFile("/tmp/entry/main.ts", `import { answer } from "./lib.ts"; console.log(answer);`);
  const runs = await sandbox.deno.run({ entrypoint: "/tmp/entry/main.ts", ...PIPED });
  const { status, stdoutText } = await runs.output();
  assert.deepEqual([status.success, stdoutText], [true, "42\n"]);
  const none = await sandbox.deno.run({ entrypoint: "/tmp/entry/none.ts", ...PIPED });
  assert.equal((await none.status).success, false);
});

check("sandbox.deno.run({ code, extension })", async () => {
  const typed = await sandbox.deno.run({ code: "const n: number = 1; console.log(n); console.error('e'); Deno.exit(3)", ...PIPED });
  const { status, stdoutText, stderrText } = await typed.output();
  assert.deepEqual([status.code, stdoutText, stderrText], [3, "1\n", "e\n"]);
  const plain = await sandbox.deno.run({ code: "console.log(typeof require)", extension: "cjs", ...PIPED });
  assert.equal((await plain.output()).stdoutText, "function\n");
});

check("sandbox.deno.run({ scriptArgs, env, cwd })", async () => {
  const runs = await sandbox.deno.run({
    code: "console.log(Deno.args.join('|'), Deno.env.get('MY_VAR'), Deno.cwd())",
    scriptArgs: ["--flag", "a b"],
    env: { MY_VAR: "mine" },
    cwd: "/usr",
    ...PIPED,
  });
  assert.equal((await runs.output()).stdoutText, "--flag|a b mine /usr\n");
});

check("sandbox.deno.run({ stdin })", async () => {
  const code = "console.log((await new Response(Deno.stdin.readable).text()).toUpperCase())";
  const runs = await sandbox.deno.run({ code, stdin: "piped", ...PIPED });
  const writer = runs.stdin.getWriter();
  await writer.write(new TextEncoder().encode("input"));
  await writer.close();
  assert.equal((await runs.output()).stdoutText, "INPUT\n");
});

check("sandbox.deno.run({ signal })", async () => {
  const code = "setTimeout(() => {}, 100_000)";
  const runs = await sandbox.deno.run({ code, signal: AbortSignal.timeout(300), stdout: "null", stderr: "null" });
  assert.equal((await runs.status).signal, "SIGTERM");
});

check("sandbox.deno.run({ watch })", async () => {
  const main = "/tmp/watched.ts";
  const program = (word) => `console.log("${word}"); setTimeout(() => {}, 100_000);`;
  await sandbox.fs.writeTextFile(main, program("first"));
  const runs = await sandbox.deno.run({ entrypoint: main, watch: true, stdout: "piped", stderr: "null" });
  let restarts = 0;
  runs.addEventListener("restart", () => restarts++);
  const reader = runs.stdout.getReader();
  assert.equal(new TextDecoder().decode((await reader.read()).value), "first\n");
  assert.equal(restarts, 0);
  // Deno prints before it watches, so that a change can come too early.
  const second = reader.read();
  const changes = setInterval(() => sandbox.fs.writeTextFile(main, program("second")), 500);
  assert.equal(new TextDecoder().decode((await second).value), "second\n");
  clearInterval(changes);
  await waitUntil("the event came", () => restarts > 0);
  await runs.kill();
  await runs.status;
});

check("sandbox.deno.eval", async () => {
  assert.equal(await sandbox.deno.eval("const a = 1; const b: number = 2; a + b"), 3);
  assert.deepEqual(await sandbox.deno.eval("({ a: [1, null, 'größer'] })"), { a: [1, null, "größer"] });
  assert.equal(await sandbox.deno.eval("await Promise.resolve('later')"), "later");
});

check("sandbox.deno.repl", async () => {
  const repl = await sandbox.deno.repl({ scriptArgs: ["one"], env: { MY_VAR: "mine" }, cwd: "/usr", ...PIPED });
  assert.deepEqual(await repl.eval("[Deno.args, Deno.env.get('MY_VAR'), Deno.cwd()]"), [["one"], "mine", "/usr"]);
  assert.equal(await repl.eval("Deno.pid"), repl.pid);
  await repl.eval("console.log('printed'); console.error('complained')");
  await repl.close();
  const { status, stdoutText, stderrText } = await repl.output();
  assert.deepEqual([status.success, stdoutText, stderrText], [true, "printed\n", "complained\n"]);
});

check("DenoProcess.httpReady", async () => {
  const serves = await sandbox.deno.run({ code: SERVE, stdout: "null", stderr: "null" });
  assert.equal(await serves.httpReady, true);
  await serves.kill();
  await serves.status;
  const node = `import http from "node:http"; http.createServer((_, to) => to.end("x")).listen(0);`;
  const compatible = await sandbox.deno.run({ code: node, stdout: "null", stderr: "null" });
  assert.equal(await compatible.httpReady, true);
  await compatible.kill();
  const ends = await sandbox.deno.run({ code: "1", stdout: "null", stderr: "null" });
  assert.equal(await ends.httpReady, false);
});

check("DenoProcess.fetch", async () => {
  const serves = await sandbox.deno.run({ code: SERVE, stdout: "null", stderr: "null" });
  await serves.httpReady;
  const response = await serves.fetch("https://example.com/path", { method: "POST", body: "größer" });
  assert.deepEqual([response.status, response.headers.get("x-mine")], [201, "yes"]);
  assert.deepEqual(await response.json(), { method: "POST", pathname: "/path", host: "example.com", body: "größer" });
  await serves.kill();
  await serves.status;
  await assert.rejects(serves.fetch("https://example.com/"));
});

check("DenoProcess.kill", async () => {
  const runs = await sandbox.deno.run({ code: "setTimeout(() => {}, 100_000)", stdout: "null", stderr: "null" });
  await runs.kill("SIGINT");
  assert.equal((await runs.status).signal, "SIGINT");
});

check("DenoRepl.eval", async () => {
  const repl = await sandbox.deno.repl({ stdout: "null", stderr: "null" });
  await repl.eval("const x = 42; let y: number = 8;");
  assert.equal(await repl.eval("x + y"), 50);
  assert.equal(await repl.eval("undefined"), null);
  await assert.rejects(repl.eval("class Mine extends TypeError {}; throw new TypeError('on purpose')"), (error) => {
    assert.deepEqual([error.constructor.name, error.message], ["TypeError", "on purpose"]);
    return true;
  });
  await assert.rejects(repl.eval("let ="), (error) => error.constructor.name === "SyntaxError");
  assert.equal(await repl.eval("x"), 42);
  await repl.close();
});

check("DenoRepl.call", async () => {
  const repl = await sandbox.deno.repl({ stdout: "null", stderr: "null" });
  await repl.eval("function add(a, b) { return a + b; }");
  assert.equal(await repl.call("add", 1, 2), 3);
  assert.deepEqual(await repl.call("(a, b) => [b, a]", { n: "größer" }, null), [null, { n: "größer" }]);
  assert.equal(await repl.call("async (n) => n * 2", 21), 42);
  await assert.rejects(repl.call("() => { throw new RangeError('far') }"), (error) => error.constructor.name === "RangeError");
  await repl.close();
});

check("DenoRepl.close", async () => {
  const repl = await sandbox.deno.repl({ stdout: "null", stderr: "null" });
  await repl.close();
  assert.equal((await repl.status).code, 0);
  assert.equal(await isAlive(repl.pid), false);
  await repl.close(); // A second time is no error.
});

check("DenoRepl[Symbol.asyncDispose]", async () => {
  const repl = await sandbox.deno.repl({ stdout: "null", stderr: "null" });
  await repl[Symbol.asyncDispose]();
  await repl.status;
  assert.equal(await isAlive(repl.pid), false);
});
