// SSH through the JavaScript SDK: what it shows, used with OpenSSH's client.
import { test } from "node:test";
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { Sandbox } from "@deno/sandbox";
import { endpoint, token, withSandbox } from "./support.mjs";

/** The port, which this SDK does not show: as `ssh USER@HOST` shows, it expects 22. */
async function port(sandbox) {
  const url = `${endpoint}/api/v3/sandbox/${sandbox.id}/expose/ssh`;
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(url, { method: "POST", headers, body: "{}" });
  assert.equal(response.status, 200);
  return (await response.json()).port;
}

/** Runs a command in the sandbox that this user name opens. */
async function ssh(sandbox, { hostname, username }, command) {
  const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes",
    "IdentityFile=none", "IdentityAgent=none", "LogLevel=ERROR", `Port=${await port(sandbox)}`];
  const line = ["-F", "none", ...options.flatMap((option) => ["-o", option])];
  const child = spawn("ssh", [...line, `${username}@${hostname}`, command], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  child.stdout.on("data", (data) => out += data);
  const [code] = await once(child, "close");
  return { code, out };
}

test("create with ssh fills sandbox.ssh", () =>
  withSandbox({ ssh: true }, async (sandbox) => {
    assert.match(sandbox.ssh.username, /^[a-z2-7]{26}$/);
    const done = await ssh(sandbox, sandbox.ssh, "id -un; exit 3");
    assert.deepEqual(done, { code: 3, out: "app\n" });
  }));

test("exposeSsh, and what both see", () =>
  withSandbox({}, async (sandbox) => {
    assert.equal(sandbox.ssh, undefined);
    const access = await sandbox.exposeSsh();
    assert.deepEqual(Object.keys(access).sort(), ["hostname", "username"]);
    await sandbox.fs.writeTextFile("shared", "from the SDK");
    assert.equal((await ssh(sandbox, access, "cat shared; echo >>shared more")).out, "from the SDK");
    assert.equal(await sandbox.fs.readTextFile("shared"), "from the SDKmore\n");
  }));

test("a sandbox that has ended has no door", async () => {
  const sandbox = await Sandbox.create();
  await sandbox.kill();
  await assert.rejects(sandbox.exposeSsh(), /404/);
});
