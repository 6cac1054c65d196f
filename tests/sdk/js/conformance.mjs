// What the checks of `../conformance/methods.json` share: each is named after a method there, and
// its result goes to the table that `cargo xtask test` compares with `docs/conformance.md`.
import { test } from "node:test";
import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import process from "node:process";

export const rows = JSON.parse(
  readFileSync(new URL("../conformance/methods.json", import.meta.url), "utf8"),
);
const methods = new Map(rows.filter((row) => row.js).map((row) => [row.js, row]));
const runner = globalThis.Deno ? "deno" : "node";
const scratch = process.env.SANDSTONE_TEST_SCRATCH;

function record(method, passed) {
  if (!scratch) return;
  mkdirSync(`${scratch}/conformance`, { recursive: true });
  const line = JSON.stringify({ method, passed });
  appendFileSync(`${scratch}/conformance/${runner}.jsonl`, `${line}\n`);
}

/** A test of one method; `method` is its name in the list. */
export function check(method, body) {
  assert.ok(methods.has(method), `${method} is not in methods.json`);
  test(`conformance: ${method}`, async () => {
    try {
      await body();
    } catch (error) {
      record(method, false);
      throw error;
    }
    record(method, true);
  });
}

/** For `assert.rejects`: class and code of an error from inside a sandbox. */
export const fails = (name, code) => (error) => {
  assert.deepEqual([error.constructor.name, error.code], [name, code], String(error));
  return true;
};

/** For `assert.rejects`: what a call that was aborted ends with. */
export const aborted = (error) => {
  assert.equal(error.name, "AbortError", String(error));
  return true;
};

/** All items of an async iterable. */
export async function all(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}
