// HTTP requests from inside a sandbox. The server is a Deno program in the sandbox as well.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Sandbox } from "@deno/sandbox";
import { bash, waitUntil, withSandbox } from "./support.mjs";

const SERVER = `
import { gzipSync } from "node:zlib";
let aborted = 0, open = 0;
async function hold(connection) {
  open++;
  try { while (await connection.read(new Uint8Array(4096)) !== null); } catch { /* Reset is an end, too. */ }
  open--;
  connection.close();
}
(async () => { for await (const connection of Deno.listen({ port: 8201 })) hold(connection); })();
Deno.serve({ port: 8200, onListen() {} }, async (request) => {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/echo": return Response.json({ method: request.method, body: await request.text(),
      headers: [...request.headers], search: url.search });
    case "/status": return new Response(null, { status: Number(url.searchParams.get("code")) });
    case "/redirect": return new Response(null, { status: Number(url.searchParams.get("code")),
      headers: { location: url.searchParams.get("to") } });
    case "/loop": return new Response(null, { status: 302, headers: { location: "loop" } });
    case "/gzip": return new Response(gzipSync("größer ".repeat(20_000)), { headers: { "content-encoding": "gzip" } });
    case "/large": return new Response(new ReadableStream({ type: "bytes", pull(c) {
      c.enqueue(new Uint8Array(65536)); if (++this.n >= 160) c.close(); }, n: 0 }));
    case "/slow": await new Promise((r) => setTimeout(r, 30_000)); return new Response("late");
    case "/endless": return new Response(new ReadableStream({ pull(c) { c.enqueue(new Uint8Array(1000)); return new Promise((r) => setTimeout(r, 10)); },
      cancel() { aborted++; } }));
    case "/open": return Response.json(open);
    case "/aborted": return Response.json(aborted);
  }
  return new Response("nothing", { status: 404 });
});`;
const BASE = "http://localhost:8200";
/** Reads requests and answers none. */
const SILENT = "http://localhost:8201";
/** A program that does the same, and says in a file how many it has. */
const SILENT_PROGRAM = `Deno.serve({ port: 8202, onListen() {} }, () => {
  Deno.writeTextFileSync("/tmp/asked", "x", { append: true });
  return new Promise(() => {});
})`;

let sandbox;
before(async () => {
  sandbox = await Sandbox.create();
  const program = await sandbox.deno.run({ code: SERVER, stdout: "null", stderr: "null" });
  assert.equal(await program.httpReady, true);
});
after(() => sandbox.close());

test("a request as it was meant", async () => {
  const response = await sandbox.fetch(`${BASE}/echo?a=%20b`, {
    method: "POST",
    body: "größer",
    headers: [["x-mine", "1"], ["x-mine", "2"], ["content-type", "text/x"]],
  });
  const { method, body, headers, search } = await response.json();
  assert.deepEqual([method, body, search], ["POST", "größer", "?a=%20b"]);
  const sent = Object.fromEntries(headers);
  assert.equal(sent["x-mine"], "1, 2");
  assert.equal(sent["content-type"], "text/x");
  assert.equal(sent["host"], "localhost:8200");
  assert.equal(sent["accept-encoding"], "identity");
});

test("bodies: streamed, ten megabytes, none, decoded", async () => {
  const chunks = new ReadableStream({
    start(controller) {
      for (let n = 0; n < 4; n++) controller.enqueue(new TextEncoder().encode("x".repeat(100_000)));
      controller.close();
    },
  });
  // The SDK does not hand on `duplex`, without which Node sends no stream.
  const content = typeof Deno === "undefined" ? "x".repeat(400_000) : chunks;
  const echo = await (await sandbox.fetch(`${BASE}/echo`, { method: "PUT", body: content })).json();
  assert.equal(echo.body.length, 400_000);
  const large = await (await sandbox.fetch(`${BASE}/large`)).arrayBuffer();
  assert.equal(large.byteLength, 160 * 65536);
  for (const code of [204, 304]) {
    const response = await sandbox.fetch(`${BASE}/status?code=${code}`);
    assert.deepEqual([response.status, response.body], [code, null]);
  }
  assert.equal(await (await sandbox.fetch(`${BASE}/gzip`, { method: "HEAD" })).text(), "");
  const gzip = await sandbox.fetch(`${BASE}/gzip`);
  assert.equal(gzip.headers.get("content-encoding"), null);
  assert.equal(await gzip.text(), "größer ".repeat(20_000));
});

test("redirects", async () => {
  const go = (code, to, options) => sandbox.fetch(`${BASE}/redirect?code=${code}&to=${encodeURIComponent(to)}`, options);
  const post = { method: "POST", body: "again" };
  const cases = [[301, "GET", ""], [302, "GET", ""], [303, "GET", ""], [307, "POST", "again"], [308, "POST", "again"]];
  for (const [code, method, body] of cases) {
    const echo = await (await go(code, "/echo", post)).json();
    assert.deepEqual([echo.method, echo.body], [method, body], String(code));
  }
  const manual = await go(302, "/echo", { redirect: "manual" });
  assert.deepEqual([manual.status, manual.headers.get("location")], [302, "/echo"]);
  await assert.rejects(sandbox.fetch(`${BASE}/loop`), TypeError);
  await assert.rejects(go(302, "ftp://localhost/"), TypeError);
  const elsewhere = await go(302, "http://127.0.0.1:8200/echo", { headers: { authorization: "secret" } });
  assert.equal(Object.fromEntries((await elsewhere.json()).headers).authorization, undefined);
});

test("what cannot be fetched", async () => {
  await assert.rejects(sandbox.fetch("http://localhost:8299/"), (error) => error instanceof TypeError && error.code === "ECONNREFUSED");
  await assert.rejects(sandbox.fetch("http://no.such.name.invalid/"), TypeError);
  await assert.rejects(sandbox.fetch("ftp://localhost/"), TypeError);
  await assert.rejects(sandbox.fetch("https://localhost:8200/"), /TLS/);
  assert.equal((await sandbox.fetch(`${BASE}/none`)).status, 404);
});

test("aborting a request, and a body that nobody wants", async () => {
  await assert.rejects(sandbox.fetch(`${BASE}/slow`, { signal: AbortSignal.timeout(200) }));
  const response = await sandbox.fetch(`${BASE}/endless`);
  const reader = response.body.getReader();
  await reader.read();
  await reader.cancel(new Error("enough"));
  await waitUntil("the server notices", async () => (await (await sandbox.fetch(`${BASE}/aborted`)).json()) === 1);
  assert.equal((await bash(sandbox, "echo alive")).out, "alive\n");
});

test("trap 2: short bodies that nobody wants, far from the server", async () => {
  const program = fileURLToPath(new URL("fetch_cancel.mjs", import.meta.url));
  const deno = typeof Deno === "undefined" ? [] : ["run", "--quiet", "--allow-all", "--no-lock"];
  const options = { timeout: 60_000 };
  const ran = promisify(execFile)(process.execPath, [...deno, program, sandbox.id, `${BASE}/none`], options);
  assert.match((await ran).stdout, /^alive$/m);
});

/** Waits until the silent server holds as many connections. */
const holds = (count) =>
  waitUntil(`${count} connections`, async () => (await (await sandbox.fetch(`${BASE}/open`)).json()) === count);

/** Waits until the silent program has as many requests. */
const asked = (where, count) =>
  waitUntil("it was asked", async () => (await bash(where, "cat /tmp/asked")).out.length === count);

test("a request that is never answered ends when it is aborted", async () => {
  const aborter = new AbortController();
  const ended = assert.rejects(sandbox.fetch(SILENT, { signal: aborter.signal }), { name: "AbortError" });
  await holds(1);
  aborter.abort();
  await ended;
  await holds(0);
});

test("a request that is never answered ends with its client", async () => {
  const other = await Sandbox.connect(sandbox.id);
  const ended = assert.rejects(other.fetch(SILENT));
  await holds(1);
  await other.close();
  await ended;
  await holds(0);
});

test("a request that is never answered ends with the process that has it", async () => {
  const program = await sandbox.deno.run({ code: SILENT_PROGRAM, stdout: "null", stderr: "null" });
  assert.equal(await program.httpReady, true);
  const requests = [sandbox.fetch("http://localhost:8202/"), program.fetch("http://localhost/")];
  const ended = Promise.all(requests.map((request) => assert.rejects(request, TypeError)));
  await asked(sandbox, 2);
  await program.kill("SIGKILL");
  await ended;
});

test("a request that is never answered ends with its sandbox", async () => {
  await withSandbox({}, async (other) => {
    const program = await other.deno.run({ code: SILENT_PROGRAM, stdout: "null", stderr: "null" });
    assert.equal(await program.httpReady, true);
    const ended = assert.rejects(other.fetch("http://localhost:8202/"));
    await asked(other, 1);
    await other.kill();
    await ended;
  });
});

test("TLS trusts whom the sandbox trusts", async () => {
  const make = "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=inside.test " +
    "-addext subjectAltName=DNS:inside.test -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem 2>&1 && " +
    "echo 127.0.0.1 inside.test | sudo tee -a /etc/hosts";
  const made = await bash(sandbox, make);
  assert.equal(made.code, 0, made.out + made.err);
  const code = `Deno.serve({ port: 8443, onListen() {}, cert: Deno.readTextFileSync("/tmp/cert.pem"),
    key: Deno.readTextFileSync("/tmp/key.pem") }, () => new Response("secure"))`;
  const program = await sandbox.deno.run({ code, stdout: "null", stderr: "piped" });
  await waitUntil("it listens", async () => (await bash(sandbox, "true </dev/tcp/127.0.0.1/8443")).code === 0);
  await assert.rejects(sandbox.fetch("https://inside.test:8443/"), /certificate|UnknownIssuer/i);
  await bash(sandbox, "cat /tmp/cert.pem | sudo tee -a /etc/ssl/certs/ca-certificates.crt >/dev/null");
  // A connection reads the authorities once.
  const again = await Sandbox.connect(sandbox.id);
  try {
    assert.equal(await (await again.fetch("https://inside.test:8443/")).text(), "secure");
  } finally {
    await again.close();
    await program.kill();
  }
});
