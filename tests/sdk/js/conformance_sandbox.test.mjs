// Life cycle, options and network of a sandbox; and that no method was forgotten.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import process from "node:process";
import * as sdk from "@deno/sandbox";
import { all, check, aborted, rows } from "./conformance.mjs";
import {
  bash, BOOTABLE, client, discard, getExposed, newSlug, refusal, running, sshOnce, waitUntil, withSandbox, withVolume,
} from "./support.mjs";

const { Sandbox, ConnectionClosedError, ConnectionEstablishmentError, InvalidMemoryError, InvalidTimeoutError } = sdk;
const ID = /^sbx_ord_[0-9a-hjkmnp-z]{20}$/;
// One file system of each kind serves several checks.
const root = newSlug("conf");
let sandbox;
before(async () => {
  sandbox = await Sandbox.create({ labels: { suite: root } });
  await client.volumes.create({ slug: root, region: "ord", ...BOOTABLE });
});
after(async () => {
  await sandbox.close();
  await discard(client.volumes, root);
});

check("Sandbox.create", async () => {
  const one = await Sandbox.create();
  assert.match(one.id, ID);
  assert.deepEqual([one.ssh, one.url], [undefined, undefined]);
  assert.equal(await one.sh`id -un`.text(), "app\n");
  await one.close();
  // A session ends with the connection that made it.
  await waitUntil("it has ended", async () => !(await running()).includes(one.id));
  await assert.rejects(Sandbox.create({ root: "no-such-root" }), (error) => {
    assert.ok(error instanceof ConnectionEstablishmentError);
    assert.deepEqual([error.status, error.code], [404, "SNAPSHOT_NOT_FOUND"]);
    assert.ok(error.traceId);
    return true;
  });
  await assert.rejects(Sandbox.create({ token: "ddo_wrong" }), (error) => error instanceof sdk.InvalidTokenError);
});

check("client.sandboxes.create", async () => {
  const one = await client.sandboxes.create({ env: { A: "b" } });
  assert.ok(one instanceof Sandbox);
  assert.equal(await one.env.get("A"), "b");
  await one.close();
});

check("Sandbox.create({ region })", () =>
  withSandbox({ region: "ord" }, async (one) => {
    assert.match(one.id, ID);
    const listed = (await client.sandboxes.list()).find(({ id }) => id === one.id);
    assert.equal(listed.region, "ord");
  }));

check("Sandbox.create({ env })", () =>
  withSandbox({ env: { NODE_ENV: "größer 😀", lower: "x" } }, async (one) => {
    assert.equal(await one.sh`echo $NODE_ENV$lower`.text(), "größer 😀x\n");
  }));

check("Sandbox.create({ timeout })", async () => {
  const one = await Sandbox.create({ timeout: "3s" });
  await one.fs.writeTextFile("/tmp/state", "kept");
  await one.close();
  const again = await Sandbox.connect(one.id);
  assert.equal(await again.fs.readTextFile("/tmp/state"), "kept");
  // The end comes even while a client is there.
  await again.closed;
  await assert.rejects(again.fs.readTextFile("/tmp/state"), ConnectionClosedError);
  await waitUntil("it has ended", async () => !(await running()).includes(one.id));
  await assert.rejects(Sandbox.create({ timeout: "0s" }), InvalidTimeoutError);
});

check("Sandbox.create({ memory })", () =>
  withSandbox({ memory: "1GiB" }, async (one) => {
    const allocate = (mebibytes) => bash(one, `exec python3 -c 'len(b"x" * (${mebibytes} << 20))'`);
    assert.equal((await allocate(850)).code, 0);
    assert.equal((await allocate(1100)).code, 137);
    await assert.rejects(Sandbox.create({ memory: "100MiB" }), InvalidMemoryError);
  }));

check("Sandbox.create({ labels })", async () => {
  const listed = (await client.sandboxes.list()).find(({ id }) => id === sandbox.id);
  assert.deepEqual(listed.labels, { suite: root });
  const many = Object.fromEntries(Array.from({ length: 6 }, (_, n) => [`l${n}`, "x"]));
  await assert.rejects(Sandbox.create({ labels: many }), refusal(400, "INVALID_REQUEST"));
});

check("Sandbox.create({ root })", async () => {
  await withSandbox({ root }, (one) => one.sh`sudo sh -c "echo kept > /etc/mine"`);
  await withSandbox({ root }, async (one) => {
    assert.equal(await one.fs.readTextFile("/etc/mine"), "kept\n");
    await assert.rejects(Sandbox.create({ root }), refusal(409, "VOLUME_IS_MOUNTED", one.id));
  });
  const slug = `${root}-s`;
  await client.volumes.snapshot(root, { slug });
  try {
    for (let round = 0; round < 2; round++) {
      await withSandbox({ root: slug }, async (one) => {
        assert.equal(await one.sh`cat /etc/mine; ls /etc/round 2>/dev/null || true`.text(), "kept\n");
        await one.sh`sudo touch /etc/round`;
      });
    }
  } finally {
    await discard(client.snapshots, slug);
  }
});

check("Sandbox.create({ volumes })", () =>
  withVolume(async (volume) => {
    const options = { volumes: { "/data/one": volume.slug } };
    await withSandbox(options, (one) => one.fs.writeTextFile("/data/one/file", "kept"));
    await withSandbox({ volumes: { "/other": volume.id } }, async (one) => {
      assert.equal(await one.fs.readTextFile("/other/file"), "kept");
      await assert.rejects(Sandbox.create(options), refusal(409, "VOLUME_IS_MOUNTED", one.id));
    });
  }));

check("Sandbox.connect", async () => {
  const other = await Sandbox.connect(sandbox.id);
  assert.equal(other.id, sandbox.id);
  await other.fs.writeTextFile("/tmp/shared", "seen");
  assert.equal(await sandbox.fs.readTextFile("/tmp/shared"), "seen");
  await other.close();
  const third = await Sandbox.connect({ id: sandbox.id });
  assert.equal(await third.sh`echo alive`.text(), "alive\n");
  await third.close();
  assert.throws(() => Sandbox.connect("sbx_wrong"), TypeError);
  const gone = `sbx_ord_${"0".repeat(20)}`;
  await assert.rejects(Sandbox.connect(gone), refusal(404, "SANDBOX_NOT_FOUND", gone));
});

check("client.sandboxes.connect", async () => {
  const other = await client.sandboxes.connect(sandbox.id, {});
  assert.equal(await other.sh`echo alive`.text(), "alive\n");
  await other.close();
});

check("client.sandboxes.list", async () => {
  const [one, ...rest] = await client.sandboxes.list({ labels: { suite: root } });
  assert.deepEqual([rest.length, one.id, one.status, one.stoppedAt, one.region], [0, sandbox.id, "running", null, "ord"]);
  assert.ok(one.createdAt instanceof Date && Math.abs(one.createdAt - Date.now()) < 600_000);
  const closed = await Sandbox.create({ labels: { suite: `${root}-2` } });
  await closed.close();
  await waitUntil("it has stopped", async () => {
    const [stopped] = await client.sandboxes.list({ labels: { suite: `${root}-2` } });
    return stopped?.status === "stopped" && stopped.stoppedAt instanceof Date;
  });
});

check("sandbox.closed", async () => {
  const one = await Sandbox.create();
  let isClosed = false;
  const closed = one.closed.then(() => isClosed = true);
  await one.sh`true`;
  assert.equal(isClosed, false);
  await one.close();
  await closed;
  assert.equal(isClosed, true);
});

check("sandbox.close", async () => {
  const one = await Sandbox.create();
  const open = assert.rejects(one.sh`sleep 100`.result(), ConnectionClosedError);
  await one.sh`true`;
  await one.close();
  await open;
  await assert.rejects(one.fs.readTextFile("/etc/hostname"), ConnectionClosedError);
});

check("sandbox[Symbol.asyncDispose]", async () => {
  const one = await Sandbox.create();
  await one[Symbol.asyncDispose]();
  await waitUntil("it has ended", async () => !(await running()).includes(one.id));
});

check("sandbox.kill", async () => {
  const one = await Sandbox.create({ timeout: "5m" });
  await one.kill();
  await one.closed;
  assert.equal((await running()).includes(one.id), false);
  await one.kill(); // A second time is no error.
  await assert.rejects(Sandbox.connect(one.id), refusal(404, "SANDBOX_NOT_FOUND", one.id));
});

check("sandbox.extendTimeout", async () => {
  const one = await Sandbox.create({ timeout: "2s" });
  try {
    const until = await one.extendTimeout("60s");
    assert.ok(Math.abs(until - Date.now() - 60_000) < 5_000, String(until));
    await new Promise((done) => setTimeout(done, 2_500));
    assert.equal(await one.sh`echo alive`.text(), "alive\n");
    await assert.rejects(one.extendTimeout("session"), InvalidTimeoutError);
  } finally {
    await one.kill();
  }
});

// What the sandbox's own little server does for the calls that fetch.
const SERVER = `
import gzip, http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        if self.path == "/redirect":
            return self.answer(302, b"elsewhere", Location="/target")
        if self.path == "/empty":
            return self.answer(204)
        if self.path == "/gzip":
            return self.answer(200, gzip.compress(b"unpacked"), Content_Encoding="gzip")
        if self.path == "/slow":
            time.sleep(20)
        if self.path == "/error":
            return self.answer(503, b"no")
        said = dict(method=self.command, path=self.path, mine=self.headers.get("X-Mine"), length=len(body), body=body[:20].decode())
        self.answer(200, json.dumps(said).encode(), Content_Type="application/json")
    do_GET = do_POST = do_PUT = do
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
`;
const URL_INSIDE = "http://127.0.0.1:8123";
let serving;
/** Starts it once. */
function served() {
  serving ??= (async () => {
    await sandbox.fs.writeTextFile("/tmp/server.py", SERVER);
    await sandbox.spawn("python3", { args: ["/tmp/server.py"], stdout: "null", stderr: "null" });
    const probe = "for n in $(seq 200); do curl -s 127.0.0.1:8123/empty && break; sleep 0.05; done";
    assert.equal((await bash(sandbox, probe)).code, 0);
  })();
  return serving;
}

check("sandbox.fetch", async () => {
  await served();
  const response = await sandbox.fetch(`${URL_INSIDE}/path?q=1`, { headers: { "X-Mine": "yes" } });
  assert.deepEqual([response.status, response.statusText, response.headers.get("content-type")], [200, "OK", "application/json"]);
  assert.deepEqual(await response.json(), { method: "GET", path: "/path?q=1", mine: "yes", length: 0, body: "" });
  const empty = await sandbox.fetch(`${URL_INSIDE}/empty`);
  assert.deepEqual([empty.status, await empty.text()], [204, ""]);
  assert.equal((await sandbox.fetch(`${URL_INSIDE}/error`)).status, 503);
  assert.equal(await (await sandbox.fetch(`${URL_INSIDE}/gzip`)).text(), "unpacked");
  await assert.rejects(sandbox.fetch("http://127.0.0.1:9/"));
});

check("sandbox.fetch({ body })", async () => {
  await served();
  const posted = await sandbox.fetch(URL_INSIDE, { method: "POST", body: "größer" });
  assert.deepEqual(await posted.json(), { method: "POST", path: "/", mine: null, length: 8, body: "größer" });
  const big = await sandbox.fetch(URL_INSIDE, { method: "PUT", body: "x".repeat(1_000_000) });
  assert.equal((await big.json()).length, 1_000_000);
});

check("sandbox.fetch({ redirect })", async () => {
  await served();
  const followed = await sandbox.fetch(`${URL_INSIDE}/redirect`);
  assert.equal((await followed.json()).path, "/target");
  const manual = await sandbox.fetch(`${URL_INSIDE}/redirect`, { redirect: "manual" });
  assert.deepEqual([manual.status, manual.headers.get("location")], [302, "/target"]);
  assert.equal(await manual.text(), "elsewhere");
});

check("sandbox.fetch({ signal })", async () => {
  await served();
  await assert.rejects(sandbox.fetch(`${URL_INSIDE}/slow`, { signal: AbortSignal.timeout(300) }), aborted);
});

check("sandbox.exposeHttp({ port })", async () => {
  await served();
  const url = await sandbox.exposeHttp({ port: 8123 });
  assert.match(url, /^https:\/\//);
  const { status, body } = await getExposed(`${url}/exposed`, { "X-Mine": "outside" });
  assert.deepEqual([status, JSON.parse(body).path, JSON.parse(body).mine], [200, "/exposed", "outside"]);
});

check("sandbox.exposeHttp({ pid })", async () => {
  const code = "Deno.serve({ port: 0, onListen() {} }, (request) => new Response(new URL(request.url).pathname));";
  const runs = await sandbox.deno.run({ code, stdout: "null", stderr: "null" });
  assert.equal(await runs.httpReady, true);
  const url = await sandbox.exposeHttp({ pid: runs.pid });
  const { status, body } = await getExposed(`${url}/by-pid`);
  assert.deepEqual([status, body], [200, "/by-pid"]);
  await runs.kill();
});

check("Sandbox.create({ port })", () =>
  withSandbox({ port: 8000 }, async (one) => {
    assert.match(one.url, /^https:\/\//);
    const code = "Deno.serve({ port: 8000, onListen() {} }, () => new Response('Hello from sandbox'));";
    const runs = await one.deno.run({ code, stdout: "null", stderr: "null" });
    assert.equal(await runs.httpReady, true);
    assert.equal((await getExposed(one.url)).body, "Hello from sandbox");
  }));

check("sandbox.exposeSsh", async () => {
  const access = await sandbox.exposeSsh();
  assert.deepEqual(Object.keys(access).sort(), ["hostname", "username"]);
  assert.equal(await sshOnce(access, "id -un; pwd; echo $((6 * 7))"), "app\n/home/app\n42\n");
});

check("Sandbox.create({ ssh })", () =>
  withSandbox({ ssh: true }, async (one) => {
    assert.equal(await sshOnce(one.ssh, "echo $HOME"), "/home/app\n");
  }));

check("sandbox.exposeVscode", async () => {
  await assert.rejects(sandbox.exposeVscode(), /EDITOR_NOT_CONFIGURED|--editor/);
  assert.equal(await sandbox.sh`echo alive`.text(), "alive\n");
});

check("Sandbox.create({ allowNet })", async () => {
  // A server outside that sandboxes can reach.
  const registry = new URL((await sandbox.sh`npm config get registry`.text()).trim());
  const reaches = async (one) => (await bash(one, `curl -fsm 10 -o /dev/null ${registry.href}`)).code === 0;
  assert.equal(await reaches(sandbox), true);
  await withSandbox({ allowNet: [registry.host] }, async (one) => assert.equal(await reaches(one), true));
  await withSandbox({ allowNet: ["example.com"] }, async (one) => assert.equal(await reaches(one), false));
  await withSandbox({ allowNet: [] }, async (one) => assert.equal(await reaches(one), false));
});

check("Sandbox.create({ secrets })", () =>
  withSandbox({ secrets: { MY_SECRET: { hosts: ["api.example.com"], value: "the real value" } } }, async (one) => {
    const placeholder = (await one.sh`echo -n $MY_SECRET`.text());
    assert.match(placeholder, /^\S{16,}$/);
    assert.ok(!placeholder.includes("real"));
  }));

/** The names that users see on an object's class. */
function members(prefix, prototype) {
  return Reflect.ownKeys(prototype)
    .filter((key) => key !== "constructor" && key !== Symbol.for("nodejs.util.inspect.custom"))
    .filter((key) => !(typeof key === "symbol" && !["Symbol.asyncDispose", "Symbol.asyncIterator"].includes(key.description)))
    .map((key) => typeof key === "symbol" ? `${prefix}[${key.description}]` : `${prefix}.${key}`);
}
const statics = (kind) =>
  Object.getOwnPropertyNames(kind)
    .filter((name) => typeof kind[name] === "function" && name !== "prototype")
    .map((name) => `${kind.name}.${name}`);
const classOf = (value) => Object.getPrototypeOf(value);

test("conformance: every method of the SDK is in the list", async () => {
  const list = await client.volumes.list({ limit: 1 });
  const command = sandbox.sh`true`;
  const found = [
    ...statics(Sandbox), ...statics(sdk.Volume), ...statics(sdk.Snapshot),
    ...members("Volume", sdk.Volume.prototype), ...members("Snapshot", sdk.Snapshot.prototype),
    ...members("PaginatedList", classOf(list)), ...members("PaginatedList", list),
    ...["apps", "volumes", "snapshots", "revisions", "timelines", "sandboxes", "layers"]
      .flatMap((space) => members(`client.${space}`, classOf(client[space]))),
    ...members("sandbox", Sandbox.prototype), ...members("sandbox", sandbox),
    ...["fs", "deno", "env"].flatMap((space) => members(`sandbox.${space}`, classOf(sandbox[space]))),
    ...members("FsFile", sdk.FsFile.prototype), ...members("ChildProcess", sdk.ChildProcess.prototype),
    ...members("DenoProcess", sdk.DenoProcess.prototype), ...members("DenoRepl", sdk.DenoRepl.prototype),
    ...members("VsCode", sdk.VsCode.prototype), ...members("SandboxCommandBuilder", classOf(command)),
    ...members("SandboxCommandChild", classOf(await command.spawn())),
    ...members("KillController", sdk.KillController.prototype), ...members("KillSignal", sdk.KillSignal.prototype),
  ];
  assert.ok(found.length > 150, `${found.length} names`);
  const listed = new Set(rows.flatMap(({ js, also }) => [js?.replace(/\(.*/, ""), ...(also ?? [])]));
  // Name spaces, each of whose methods is in the list.
  for (const name of ["sandbox.fs", "sandbox.deno", "sandbox.env"]) listed.add(name);
  assert.deepEqual([...new Set(found)].filter((name) => !listed.has(name)), []);
});
