// A program that runs examples of the SDK's texts, several at a time, each as a module of its own.
// Prints what became of each as JSON. `examples_sdk.test.mjs` writes the modules and starts this.
import { readFileSync } from "node:fs";
import process from "node:process";

const [directory] = process.argv.slice(2);
const groups = JSON.parse(readFileSync(`${directory}/groups.json`, "utf8"));
const runs = globalThis.exampleRuns = new Map();
const AT_ONCE = 4;

async function run({ name, serves }) {
  const state = { output: "", sandboxes: [] };
  runs.set(name, state);
  const started = Date.now();
  try {
    await import(`${directory}/${name}.ts`);
    while (serves && !new RegExp(serves).test(state.output) && Date.now() - started < 20_000) {
      await new Promise((done) => setTimeout(done, 50));
    }
  } catch (error) {
    state.error = `${error?.name} ${error?.code ?? ""}: ${error?.message ?? error}`;
  }
  await Promise.all(state.sandboxes.map((sandbox) => sandbox.kill().catch(() => {})));
  state.milliseconds = Date.now() - started;
}

// An example that watches leaves a rejection behind when its sandbox ends.
globalThis.addEventListener("unhandledrejection", (event) => event.preventDefault());
await Promise.all(Array.from({ length: AT_ONCE }, async () => {
  for (let group; (group = groups.shift());) {
    for (const example of group) await run(example);
  }
}));
const results = [...runs].map(([name, { output, error, milliseconds }]) => [name, { output, error, milliseconds }]);
process.stdout.write(`\nRESULTS ${JSON.stringify(Object.fromEntries(results))}\n`, () => process.exit(0));
