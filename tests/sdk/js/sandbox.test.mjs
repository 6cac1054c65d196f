// A sandbox in daily use, through the JavaScript SDK.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { Sandbox } from "@deno/sandbox";
import { bash, running, waitUntil, withoutLateChunks, withSandbox } from "./support.mjs";

let sandbox;
before(async () => {
  sandbox = await Sandbox.create({ env: { FROM_CREATE: "yes, Ünï 😀" }, labels: { suite: "é" } });
});
after(() => sandbox.close());

test("the interior", async () => {
  const { out } = await bash(sandbox, "id -un; pwd; echo $HOME; sudo id -u; echo $FROM_CREATE");
  assert.equal(out, "app\n/home/app\n/home/app\n0\nyes, Ünï 😀\n");
  assert.match(sandbox.id, /^sbx_ord_[0-9a-hjkmnp-z]{20}$/);
});

test("connect: a sandbox has 64 connections, and one more is refused by name", async () => {
  await withSandbox({}, async (busy) => {
    const others = [];
    try {
      // The first is the one that created it.
      while (others.length < 63) others.push(await Sandbox.connect(busy.id));
      await assert.rejects(Sandbox.connect(busy.id), (error) => {
        assert.deepEqual([error.status, error.code], [429, "CONNECTION_LIMIT"]);
        assert.ok(error.message.includes(busy.id) && error.message.includes("64"), error.message);
        return true;
      });
      const { out } = await bash(others[62], "echo served");
      assert.equal(out, "served\n");
    } finally {
      await Promise.all(others.map((other) => other.close()));
    }
    await waitUntil("there is room again", () => Sandbox.connect(busy.id).then((other) => other.close().then(() => true), () => false));
  });
});

test("sh: text, json, failure, quoting, sudo", async () => {
  assert.equal(await sandbox.sh`echo ${"it's $HOME; \"x\""}`.text(), "it's $HOME; \"x\"\n");
  assert.deepEqual(await sandbox.sh`echo '{"a":[1]}'`.json(), { a: [1] });
  // Only the last modifier of a chain counts: each starts again from the defaults.
  await sandbox.sh`touch /root/by-root`.sudo();
  assert.equal(await sandbox.sh`sudo ls /root`.text(), "by-root\n");
  await sandbox.sh`touch here`.cwd("/tmp");
  assert.equal(await sandbox.sh`ls /tmp/here`.text(), "/tmp/here\n");
  await assert.rejects(async () => await sandbox.sh`exit 3`, /3/);
  const result = await sandbox.sh`exit 4`.noThrow();
  assert.equal(result.status.code, 4);
});

test("apt-get and npm -g need no sudo, as the documentation's examples are written", async () => {
  const { code, out } = await bash(sandbox, "apt-get --version | head -1; test -w /usr/local/bin && test -w /opt && echo ok");
  assert.equal(code, 0);
  assert.match(out, /ok\n$/);
});

test("spawn: streams, code, cwd, env, clearEnv", async () => {
  const { code, out, err } = await bash(sandbox, "echo out; echo err >&2; pwd; echo $NODE_ENV; exit 3", {
    cwd: "/usr",
    env: { NODE_ENV: "größer" },
  });
  assert.deepEqual([code, out, err], [3, "out\n/usr\ngrößer\n", "err\n"]);
  const child = await sandbox.spawn("/usr/bin/env", { clearEnv: true, env: { ONLY: "1" }, stdout: "piped" });
  assert.equal((await child.output()).stdoutText, "ONLY=1\n");
});

test("spawn: what cannot be started", async () => {
  await assert.rejects(sandbox.spawn("no-such-program"), (error) => error.code === "ENOENT");
  await assert.rejects(sandbox.spawn("/etc/passwd"), (error) => error.code === "EACCES");
  await assert.rejects(sandbox.spawn("true", { cwd: "/nowhere" }), (error) => error.code === "ENOENT");
});

test("stdin", async () => {
  const data = new Uint8Array(randomBytes(300_000));
  const child = await sandbox.spawn("sha256sum", { stdin: "piped", stdout: "piped", stderr: "piped" });
  const writer = child.stdin.getWriter();
  await writer.write(data.subarray(0, 1000));
  await writer.write(data.subarray(1000));
  await writer.close();
  const { stdoutText } = await child.output();
  assert.equal(stdoutText.split(" ")[0], createHash("sha256").update(data).digest("hex"));
});

test("stdin of a process that has ended", async () => {
  const child = await sandbox.spawn("true", { stdin: "piped" });
  await child.status;
  const writer = child.stdin.getWriter();
  await writer.write(new Uint8Array(10)).catch(() => {});
  await writer.close().catch(() => {});
  assert.equal((await bash(sandbox, "echo alive")).out, "alive\n");
});

test("ten megabytes of output", async () => {
  const script = "import hashlib,os,sys; d=os.urandom(10_000_000); sys.stdout.buffer.write(d); " +
    "sys.stderr.write(hashlib.sha256(d).hexdigest())";
  const child = await sandbox.spawn("python3", { args: ["-c", script], stdout: "piped", stderr: "piped" });
  const { stdout, stderrText } = await child.output();
  assert.equal(stdout.length, 10_000_000);
  assert.equal(createHash("sha256").update(stdout).digest("hex"), stderrText);
});

test("a stream that is cancelled half-way", async () => {
  const child = await sandbox.spawn("yes", { stdout: "piped" });
  const reader = child.stdout.getReader();
  await reader.read();
  await withoutLateChunks(async () => {
    await reader.cancel();
    await child.kill("SIGKILL");
    const status = await child.status;
    assert.equal(status.success, false);
    assert.equal((await bash(sandbox, "echo alive")).out, "alive\n");
  });
});

test("kill and signals", async () => {
  for (const signal of ["SIGTERM", "SIGKILL", "SIGINT", "SIGUSR1"]) {
    const child = await sandbox.spawn("sleep", { args: ["1000"] });
    await child.kill(signal);
    const status = await child.status;
    assert.equal(status.signal, signal);
    assert.equal(status.success, false);
    // A second time is no error: the SDK swallows that the process is gone.
    await child.kill(signal);
  }
  const child = await sandbox.spawn("bash", { args: ["-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"], stdout: "piped" });
  const reader = child.stdout.getReader();
  await reader.read();
  await child.kill();
  assert.deepEqual((await child.status).code, 7);
  await reader.cancel();
});

test("an abort signal ends a process", async () => {
  const child = await sandbox.spawn("sleep", { args: ["1000"], signal: AbortSignal.timeout(300) });
  assert.equal((await child.status).signal, "SIGTERM");
});

test("forty processes at once", async () => {
  const outputs = await Promise.all(
    Array.from({ length: 40 }, (_, number) => bash(sandbox, `echo ${number}; sleep 0.1; echo ${number}`)),
  );
  outputs.forEach(({ out }, number) => assert.equal(out, `${number}\n${number}\n`));
});

test("a grandchild that keeps the pipe open does not keep the status", async () => {
  const started = Date.now();
  const child = await sandbox.spawn("bash", { args: ["-c", "sleep 20 & echo done"], stdout: "piped" });
  assert.equal((await child.status).code, 0);
  assert.ok(Date.now() - started < 10_000);
  await bash(sandbox, "pkill sleep");
});

test("files", async () => {
  const { fs } = sandbox;
  await fs.mkdir("/tmp/größe/日本", { recursive: true });
  const path = "/tmp/größe/日本/ü file 😀.txt";
  await fs.writeTextFile(path, "line\n😀\u0000\n");
  assert.equal(await fs.readTextFile(path), "line\n😀\u0000\n");
  await fs.writeTextFile(path, "more", { append: true });
  assert.ok((await fs.readTextFile(path)).endsWith("more"));
  const data = new Uint8Array(randomBytes(5_000_000));
  await fs.writeFile("/tmp/größe/blob", data, { mode: 0o600 });
  assert.ok(Buffer.from(await fs.readFile("/tmp/größe/blob")).equals(Buffer.from(data)));
  const info = await fs.stat("/tmp/größe/blob");
  assert.equal(info.size, 5_000_000);
  assert.equal(info.isFile, true);
  assert.equal(info.mode & 0o777, 0o600);
  assert.ok(info.mtime instanceof Date && Math.abs(info.mtime - Date.now()) < 60_000);
  await fs.writeFile("/tmp/größe/empty", new Uint8Array());
  assert.equal((await fs.readFile("/tmp/größe/empty")).length, 0);
  const names = [];
  for await (const entry of fs.readDir("/tmp/größe")) names.push(`${entry.name} ${entry.isDirectory}`);
  assert.deepEqual(names.sort(), ["blob false", "empty false", "日本 true"]);
  await assert.rejects(fs.remove("/tmp/größe"), (error) => error.code === "ENOTEMPTY");
  await fs.remove("/tmp/größe", { recursive: true });
  await assert.rejects(fs.stat("/tmp/größe"), (error) => error.constructor.name === "NotFound" && error.code === "ENOENT");
});

test("a file written from a stream", async () => {
  const chunks = Array.from({ length: 200 }, () => new Uint8Array(randomBytes(10_000)));
  await sandbox.fs.writeFile("/tmp/streamed", ReadableStream.from(chunks));
  assert.ok(Buffer.from(await sandbox.fs.readFile("/tmp/streamed")).equals(Buffer.concat(chunks)));
  await sandbox.fs.writeTextFile("/tmp/text", ReadableStream.from(["größer ", "😀"]));
  assert.equal(await sandbox.fs.readTextFile("/tmp/text"), "größer 😀");
});

test("errors of files", async () => {
  const { fs } = sandbox;
  const code = (expected) => (error) => error.code === expected;
  await assert.rejects(fs.readTextFile("/nowhere"), code("ENOENT"));
  await assert.rejects(fs.writeTextFile("/etc/x", "x"), code("EACCES"));
  await assert.rejects(fs.mkdir("/tmp"), code("EEXIST"));
  await assert.rejects(fs.writeTextFile("/tmp/never", "x", { create: false }), code("ENOENT"));
  await assert.rejects(fs.writeTextFile("/etc/hosts", "x", { createNew: true }), code("EEXIST"));
  await assert.rejects(fs.readFile("/tmp"), code("EISDIR"));
  await assert.rejects(fs.remove("/nowhere"), code("ENOENT"));
  await bash(sandbox, "printf '\\xff\\xfe' > /tmp/binary");
  await assert.rejects(fs.readTextFile("/tmp/binary"));
});

test("environment variables", async () => {
  const { env } = sandbox;
  assert.equal(await env.get("FROM_CREATE"), "yes, Ünï 😀");
  await env.set("A_KEY", "value=with 😀");
  assert.equal(await env.get("A_KEY"), "value=with 😀");
  assert.equal((await env.toObject()).A_KEY, "value=with 😀");
  assert.equal((await bash(sandbox, "echo $A_KEY")).out, "value=with 😀\n");
  await env.delete("A_KEY");
  assert.ok(!(await env.get("A_KEY")));
  assert.equal("A_KEY" in (await env.toObject()), false);
});

test("two sandboxes in one process do not mix their streams", () =>
  withSandbox({}, async (other) => {
    const hundred = (box, text) =>
      Promise.all(Array.from({ length: 20 }, () => bash(box, `for n in $(seq 50); do echo ${text}; done`)));
    const [here, there] = await Promise.all([hundred(sandbox, "here"), hundred(other, "there")]);
    for (const { out } of here) assert.equal(out, "here\n".repeat(50));
    for (const { out } of there) assert.equal(out, "there\n".repeat(50));
  }));

test("labels", async () => {
  await withSandbox({ labels: { job: "js-labels", role: "a" } }, async (one) => {
    assert.deepEqual(await running({ job: "js-labels" }), [one.id]);
    assert.deepEqual(await running({ job: "js-labels", role: "b" }), []);
    const { client } = await import("./support.mjs");
    const listed = (await client.sandboxes.list()).find(({ id }) => id === one.id);
    assert.deepEqual(listed.labels, { job: "js-labels", role: "a" });
    assert.ok(listed.createdAt instanceof Date && !Number.isNaN(listed.createdAt.getTime()));
    assert.equal(listed.stoppedAt, null);
  });
  // Sent in Latin-1 by this SDK.
  assert.deepEqual(await running({ suite: "é" }), [sandbox.id]);
});

test("a duration: connect from elsewhere, extend, kill", async () => {
  const first = await Sandbox.create({ timeout: "3s" });
  await first.fs.writeTextFile("/tmp/state", "kept");
  await first.close();
  const again = await Sandbox.connect(first.id);
  assert.equal(again.id, first.id);
  assert.equal(await again.fs.readTextFile("/tmp/state"), "kept");
  const until = await again.extendTimeout("1m");
  assert.ok(until.getTime() > Date.now() + 50_000);
  await new Promise((done) => setTimeout(done, 3500));
  assert.deepEqual((await running()).includes(first.id), true);
  await again.kill();
  assert.deepEqual((await running()).includes(first.id), false);
});

test("a duration that ends while a client is attached", async () => {
  const short = await Sandbox.create({ timeout: "2s" });
  const pending = short.spawn("sleep", { args: ["1000"] }).then((child) => child.status);
  pending.catch(() => {});
  await short.closed;
  await waitUntil("it is gone", async () => !(await running()).includes(short.id));
  await assert.rejects(short.fs.readTextFile("/etc/hostname"));
});

test("out of memory is reported", () =>
  withSandbox({ memory: "768MiB" }, async (small) => {
    const { status } = await bash(small, "exec python3 -c 'bytearray(1_500_000_000)'");
    assert.equal(status.success, false);
    assert.equal((await bash(small, "echo alive")).out, "alive\n");
  }));
