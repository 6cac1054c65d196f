// A program of fetch.test.mjs: fetches short bodies far from the server, and wants none of them. It is
// a process of its own, because what it looks for kills a process (trap 2).
import { once } from "node:events";
import { connect, createServer } from "node:net";
import process from "node:process";

const [id, url] = process.argv.slice(2);
/** One way, milliseconds: there and back takes longer than a stream waits at the least. */
const DELAY = 40;

/** Hands on what comes, in its order, after the delay. */
function carry(from, to) {
  from.on("data", (bytes) => setTimeout(() => to.write(bytes), DELAY));
  from.on("end", () => setTimeout(() => to.end(), DELAY));
  from.on("error", () => to.destroy());
}

const { hostname, port } = new URL(process.env.DENO_SANDBOX_ENDPOINT);
const far = createServer((client) => {
  const server = connect(Number(port), hostname);
  carry(client, server);
  carry(server, client);
});
far.listen(0, "127.0.0.1");
await once(far, "listening");
process.env.DENO_SANDBOX_ENDPOINT = `http://127.0.0.1:${far.address().port}`;

const { Sandbox } = await import("@deno/sandbox");
const sandbox = await Sandbox.connect(id);
for (let round = 0; round < 10; round++) {
  const response = await sandbox.fetch(url);
  await response.body.cancel();
}
// What was under way has come when an answer has.
await new Promise((done) => setTimeout(done, 4 * DELAY));
await sandbox.fs.stat("/");
console.log("alive");
process.exit(0);
