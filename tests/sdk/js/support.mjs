// What the JavaScript tests share. They run under Deno's and under Node's test runner.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import https from "node:https";
import process from "node:process";
import { promisify } from "node:util";
import { Client, Sandbox } from "@deno/sandbox";

export const SMALL = "300MB";
/** What a bootable volume is made of, and the least it needs. */
export const BOOTABLE = { from: "builtin:debian-13", capacity: "1GB" };
export const endpoint = process.env.DENO_SANDBOX_ENDPOINT;
export const token = process.env.DENO_DEPLOY_TOKEN;
assert.ok(endpoint && token, "run `cargo xtask test --only sdk`");

export const client = new Client();

/** A slug that no other test uses. */
export const newSlug = (prefix = "js") => `${prefix}-${randomBytes(8).toString("hex")}`;

/** Runs `body` with a sandbox, and closes it whatever happens. `await using` needs Node 24. */
export async function withSandbox(options, body) {
  const sandbox = await Sandbox.create(options);
  try {
    return await body(sandbox);
  } finally {
    await sandbox.close();
  }
}

/** Deletes those of the volumes or snapshots that exist. */
export async function discard(kind, ...names) {
  for (const name of names) {
    if (await kind.get(name)) await kind.delete(name);
  }
}

/** Runs `body` with a volume, and deletes it. */
export async function withVolume(body, options = {}) {
  const volume = await client.volumes.create({
    slug: newSlug(),
    region: "ord",
    capacity: SMALL,
    ...options,
  });
  try {
    return await body(volume);
  } finally {
    await discard(client.volumes, volume.id);
  }
}

/** Runs `body` with a snapshot of a volume, and deletes it. */
export async function withSnapshot(volume, body, slug = newSlug()) {
  const snapshot = await client.volumes.snapshot(volume.id, { slug });
  try {
    return await body(snapshot);
  } finally {
    await discard(client.snapshots, snapshot.id);
  }
}

/** For `assert.rejects`: the SDK's error has this status, this code and these texts. */
export const refusal = (status, code, ...texts) => (error) => {
  assert.equal(error.status, status, String(error));
  assert.equal(error.code, code);
  for (const text of texts) assert.ok(error.message.includes(text), `${text} in ${error.message}`);
  return true;
};

/** Runs a script; both outputs are collected. */
export async function bash(sandbox, script, options = {}) {
  const child = await sandbox.spawn("bash", {
    args: ["-c", script],
    stdout: "piped",
    stderr: "piped",
    ...options,
  });
  const { status, stdoutText, stderrText } = await child.output();
  return { code: status.code, status, out: stdoutText, err: stderrText };
}

/**
 * Runs `body` without what the SDK prints for each chunk that was on its way when a stream was
 * cancelled: as many as the sockets hold, tens of thousands if they are small. `body` ends with a
 * call on the same connection, which those chunks come before.
 */
export async function withoutLateChunks(body) {
  const { error } = console;
  console.error = (what, ...more) => {
    const isLate = what === "Error enqueuing stream data:" ||
      (what === "Unknown notification method:" && more[0] === "$sandbox.stream.enqueue");
    if (!isLate) error.call(console, what, ...more);
  };
  try {
    return await body();
  } finally {
    console.error = error;
  }
}

/** The ids of running sandboxes with these labels. */
export async function running(labels) {
  const listed = await client.sandboxes.list(labels ? { labels } : undefined);
  return listed.filter((one) => one.status === "running").map((one) => one.id);
}

/** Polls until `condition` holds. */
export async function waitUntil(what, condition, milliseconds = 15_000) {
  const deadline = Date.now() + milliseconds;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `not within ${milliseconds} ms: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

/**
 * What an exposed name answers, from outside of the sandbox. No resolver knows the name, and the
 * certificate comes from the server's own authority.
 */
export async function getExposed(url, headers = {}) {
  const { hostname, host, port, pathname, search } = new URL(url);
  const options = {
    host: "127.0.0.1",
    port: port || 443,
    path: pathname + search,
    headers: { host, ...headers },
    servername: hostname,
    ca: await readFile(process.env.SANDSTONE_TEST_EXPOSE_CA, "utf8"),
    agent: false,
  };
  return await new Promise((resolve, reject) => {
    https.get(options, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => resolve({ status: response.statusCode, body: Buffer.concat(chunks).toString() }));
      response.on("error", reject);
    }).on("error", reject);
  });
}

/** Runs a script over SSH, as the credentials of `exposeSsh` allow. The SDK drops the port. */
export async function sshOnce({ username }, script) {
  const address = await readFile(`${process.env.SANDSTONE_TEST_DATA_DIR}/ssh-address`, "utf8");
  const [host, port] = address.trim().split(":");
  const options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
  const { stdout } = await promisify(execFile)(
    "ssh",
    ["-F", "none", ...options.flatMap((option) => ["-o", option]), "-p", port, `${username}@${host}`, script],
    { timeout: 30_000 },
  );
  return stdout;
}
