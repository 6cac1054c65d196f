// One warm client process for `cargo xtask bench create`. Each line on standard input is a round,
// `plain`, `volume` or `closed` (with `allowNet`); the answer is a line with milliseconds. Kill is
// outside the timed part.
import { createInterface } from "node:readline";
import process from "node:process";
import { Client, Sandbox } from "@deno/sandbox";

const client = new Client();
const slug = `bench-${process.pid}`;
const volume = await client.volumes.create({ slug, region: "ord", capacity: "1GB" });

const KINDS = {
  plain: {},
  volume: { volumes: { "/data": volume.id } },
  closed: { allowNet: ["example.com"] },
};

async function round(options) {
  const start = performance.now();
  const sandbox = await Sandbox.create(options);
  const created = performance.now();
  const child = await sandbox.spawn("true", { stdout: "null", stderr: "null" });
  const status = await child.status;
  const done = performance.now();
  if (!status.success) throw new Error(`true ended with ${status.code}`);
  await sandbox.kill();
  const killed = performance.now();
  return { created: created - start, first: done - start, kill: killed - done };
}

try {
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await round({ region: "ord", ...KINDS[line] })));
  }
} finally {
  await client.volumes.delete(volume.id);
}
