// A client of `cargo xtask bench rpc`, under Deno and under Node. Each line on standard input is
// an operation and a number; the answer is a line with milliseconds.
import { createInterface } from "node:readline";
import process from "node:process";
import { Sandbox } from "@deno/sandbox";

const CHUNK = new Uint8Array(64 << 10).fill(7);
const sandbox = await Sandbox.create();
await sandbox.fs.writeTextFile("/tmp/small", "x".repeat(1000));

/** Each of `rounds` calls by itself, in milliseconds. */
async function each(rounds, call) {
  const times = [];
  for (let round = 0; round < rounds; round++) {
    const start = performance.now();
    await call();
    times.push(performance.now() - start);
  }
  return times;
}

async function once(call) {
  const start = performance.now();
  await call();
  return [performance.now() - start];
}

const operations = {
  upload: (chunks) =>
    once(() => {
      let left = chunks;
      const content = new ReadableStream({
        pull(controller) {
          if (left-- > 0) controller.enqueue(CHUNK);
          else controller.close();
        },
      });
      return sandbox.fs.writeFile("/tmp/large", content);
    }),
  download: (chunks) =>
    once(async () => {
      const child = await sandbox.spawn("cat", { args: ["/tmp/large"], stdout: "piped", stderr: "null" });
      let bytes = 0;
      for await (const chunk of child.stdout) bytes += chunk.length;
      const status = await child.status;
      if (!status.success || bytes !== chunks * CHUNK.length) throw new Error(`${bytes} bytes came`);
    }),
  spawn: (rounds) => each(rounds, () => sandbox.spawn("true", { stdout: "null", stderr: "null" })),
  stat: (rounds) => each(rounds, () => sandbox.fs.stat("/tmp/small")),
  readTextFile: (rounds) => each(rounds, () => sandbox.fs.readTextFile("/tmp/small")),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [operation, number] = line.split(" ");
  console.log(JSON.stringify({ ms: await operations[operation](Number(number)) }));
}
await sandbox.close();
process.exit(0);
