// What the examples of the SDK's texts import in place of "@deno/sandbox": the same, but new
// sandboxes hold the files that the examples presume, and what is printed is kept. Imported once
// for each example, which is named after the `?`.
import { inspect } from "node:util";
import * as sdk from "@deno/sandbox";
import { IN_SANDBOX } from "../examples/javascript-sdk.mjs";

export * from "@deno/sandbox";
import { getExposed } from "./support.mjs";

const state = globalThis.exampleRuns.get(new URL(import.meta.url).search.slice(1));
const text = (value) => typeof value === "string" ? value : inspect(value, { breakLength: Infinity });

export const console = {
  log: (...values) => {
    state.output += `${values.map(text).join(" ")}\n`;
  },
  assert: (value) => {
    if (!value) state.output += "Assertion failed\n";
  },
};

export const Sandbox = {
  async create(options) {
    const sandbox = await sdk.Sandbox.create(options);
    state.sandboxes.push(sandbox);
    const child = await sandbox.spawn("bash", { args: ["-c", IN_SANDBOX], stdout: "null", stderr: "null" });
    if (!(await child.status).success) throw new Error("the files could not be made");
    return sandbox;
  },
  connect: (...parameters) => sdk.Sandbox.connect(...parameters),
};

/** `fetch` for a name that only the server under test knows. */
export async function fetchExposed(url) {
  // The example does not wait for its server: until it listens, the answer is 502.
  for (let attempt = 0;; attempt++) {
    const { status, body } = await getExposed(url);
    if (status !== 502 || attempt === 100) return new Response(body, { status });
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** The host of the registry that the sandboxes can reach. */
export async function registry() {
  const sandbox = await sdk.Sandbox.create();
  try {
    return new URL((await sandbox.sh`npm config get registry`.text()).trim()).host;
  } finally {
    await sandbox.close();
  }
}
