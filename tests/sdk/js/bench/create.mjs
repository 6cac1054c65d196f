// One warm client process for `cargo xtask bench create`. Each line on standard input is a round,
// `plain` or `volume`; the answer is a line with milliseconds. Kill is outside the timed part.
import { createInterface } from "node:readline";
import process from "node:process";
import { Client, Sandbox } from "@deno/sandbox";

const client = new Client();
const slug = `bench-${process.pid}`;
const volume = await client.volumes.create({ slug, region: "ord", capacity: "1GB" });

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
    const options = line === "volume" ? { region: "ord", volumes: { "/data": volume.id } } : { region: "ord" };
    console.log(JSON.stringify(await round(options)));
  }
} finally {
  await client.volumes.delete(volume.id);
}
