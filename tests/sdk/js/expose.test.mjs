// Servers in a sandbox, reached from outside over HTTPS.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import https from "node:https";
import process from "node:process";
import { Sandbox } from "@deno/sandbox";
import { waitUntil, withSandbox } from "./support.mjs";

const ca = readFileSync(`${process.env.SANDSTONE_TEST_DATA_DIR}/expose-ca.pem`);

// What a test wants of a server: plain words, pieces with a pause, uploads, WebSockets.
const SERVER = `
const http = require("node:http");
const crypto = require("node:crypto");
const server = http.createServer((request, response) => {
  if (request.url === "/stream") {
    response.write("first");
    setTimeout(() => response.end("last"), 1500);
  } else if (request.url === "/down") {
    const chunk = Buffer.alloc(1 << 20, 7);
    let left = 50;
    const more = () => {
      while (left > 0) {
        left--;
        if (!response.write(chunk)) return response.once("drain", more);
      }
      response.end();
    };
    more();
  } else if (request.url === "/up") {
    const hash = crypto.createHash("sha256");
    request.on("data", (chunk) => hash.update(chunk));
    request.on("end", () => response.end(hash.digest("hex")));
  } else {
    response.end(JSON.stringify(request.headers));
  }
});
server.on("upgrade", (request, socket) => {
  const accept = crypto.createHash("sha1")
    .update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
  socket.write("HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n" +
    "Sec-WebSocket-Accept: " + accept + "\\r\\n\\r\\n");
  socket.on("data", (frame) => {
    // One short masked text frame: sent back unmasked.
    const length = frame[1] & 127;
    const text = Buffer.from(frame.subarray(6, 6 + length).map((byte, n) => byte ^ frame[2 + n % 4]));
    socket.write(Buffer.concat([Buffer.from([0x81, length]), text]));
  });
  socket.on("error", () => {});
});
server.listen(8000, "127.0.0.1");
`;

/** Names below localhost are not known everywhere: the connection goes to this machine. */
function request(url, options = {}) {
  const { host, hostname, port, pathname } = new URL(url);
  return https.request({
    host: "127.0.0.1", port, path: pathname, servername: hostname, ca, agent: false,
    ...options,
    headers: { host, ...options.headers },
  });
}

/** The status and the whole body; `content` is sent. */
function call(url, options = {}, content = undefined) {
  return new Promise((resolve, reject) => {
    const sent = request(url, options);
    sent.on("error", reject);
    sent.on("response", (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => resolve({ status: response.statusCode, body: Buffer.concat(chunks) }));
    });
    sent.end(content);
  });
}

async function serve(sandbox) {
  await sandbox.fs.writeTextFile("/tmp/server.cjs", SERVER);
  await sandbox.spawn("node", { args: ["/tmp/server.cjs"], stdout: "null", stderr: "null" });
}

const isUp = async (url) => (await call(url)).status === 200;

let sandbox;
let url;
before(async () => {
  sandbox = await Sandbox.create();
  await serve(sandbox);
  url = await sandbox.exposeHttp({ port: 8000 });
  await waitUntil("the server is up", () => isUp(url));
});
after(() => sandbox.close());

test("exposeHttp by port: a server is reached, and told who asks", async () => {
  assert.match(url, /^https:\/\/[0-9a-z]{24}\.sandbox\.localhost(:\d+)?$/);
  const { status, body } = await call(url);
  assert.equal(status, 200);
  const headers = JSON.parse(body);
  assert.equal(headers.host, new URL(url).host);
  assert.equal(headers["x-forwarded-for"], "127.0.0.1");
  assert.equal(headers["x-forwarded-proto"], "https");
});

test("exposeHttp: pieces of an answer come as they are sent", async () => {
  const times = [];
  await new Promise((resolve, reject) => {
    const sent = request(`${url}/stream`);
    sent.on("error", reject);
    sent.on("response", (response) => {
      response.on("data", (chunk) => times.push([String(chunk), performance.now()]));
      response.on("end", resolve);
    });
    sent.end();
  });
  assert.deepEqual(times.map(([text]) => text), ["first", "last"]);
  assert.ok(times[1][1] - times[0][1] > 700, `${times}`);
});

test("exposeHttp: 50 MB down and up", async () => {
  const { body } = await call(`${url}/down`);
  assert.equal(body.length, 50 << 20);
  assert.ok(body.every((byte) => byte === 7));
  const sum = createHash("sha256").update(body).digest("hex");
  const answer = await call(`${url}/up`, { method: "POST" }, body);
  assert.equal(String(answer.body), sum);
});

test("exposeHttp: WebSockets", async () => {
  const socket = await new Promise((resolve, reject) => {
    const sent = request(url, {
      headers: {
        connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
      },
    });
    sent.on("error", reject);
    sent.on("response", (response) => reject(new Error(`status ${response.statusCode}`)));
    sent.on("upgrade", (response, socket) => {
      assert.equal(response.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
      resolve(socket);
    });
    sent.end();
  });
  try {
    for (const text of ["hello", "again"]) {
      const echo = new Promise((resolve) => socket.once("data", resolve));
      const bytes = Buffer.from(text);
      // A mask of zeroes leaves the text as it is.
      socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | bytes.length, 0, 0, 0, 0]), bytes]));
      const frame = await echo;
      assert.equal(String(frame.subarray(2)), text);
    }
  } finally {
    socket.destroy();
  }
});

test("exposeHttp: one name leads to another port once it is bound again", async () => {
  const other = await sandbox.exposeHttp({ port: 8001 });
  const { status, body } = await call(other);
  assert.equal(status, 502);
  assert.equal(JSON.parse(body).code, "NOT_LISTENING");
});

test("create({ port }) fills url, and the name goes with its sandbox", async () => {
  let gone;
  await withSandbox({ port: 8000 }, async (sandbox) => {
    gone = sandbox.url;
    await serve(sandbox);
    await waitUntil("the server is up", () => isUp(gone));
  });
  await waitUntil("the name is gone", async () => {
    const { status, body } = await call(gone);
    return status === 404 && JSON.parse(body).code === "DOMAIN_NOT_FOUND";
  });
});

test("exposeHttp by pid: the server of a Deno program, which chose its own port, until it ends", async () => {
  const code = `Deno.serve({ port: 0, onListen() {} }, async (request) =>
    new Response(request.method + new URL(request.url).pathname + await request.text()));`;
  const program = await sandbox.deno.run({ code, stdout: "null", stderr: "null" });
  assert.equal(await program.httpReady, true);
  const served = await sandbox.exposeHttp({ pid: program.pid });
  const { status, body } = await call(`${served}/by-pid`, { method: "POST" }, "body");
  assert.deepEqual([status, String(body)], [200, "POST/by-pidbody"]);
  await program.kill();
  await program.status;
  const gone = await call(served);
  assert.deepEqual([gone.status, JSON.parse(gone.body).code], [502, "NOT_LISTENING"]);
});

test("exposeHttp by pid: only processes with a server of their own", async () => {
  const child = await sandbox.spawn("sleep", { args: ["60"], stdout: "null", stderr: "null" });
  await assert.rejects(sandbox.exposeHttp({ pid: child.pid }), /no HTTP server/);
  await child.kill();
});
