// The volume examples of Deno's documentation, as written, apart from the endpoints: the blocks of
// a page are pasted one after the other into one program. Deno only: they say `await using`.
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import process from "node:process";
import { promisify } from "node:util";
import { client } from "./support.mjs";

const examples = new URL("../examples/", import.meta.url);
// What the page takes for granted; without it the block cannot run anywhere.
const MISSING = { "volumes-beta": "const formatBytes = (bytes) => `${bytes} bytes`;\n" };
// What the page prints for each volume. `used` is in the page, but in no version of the SDK.
const LISTED = {
  "volumes-beta": /training-cache undefined bytes of 2000000000 bytes/,
  "volumes-and-snapshots": /training-cache [1-9]\d* 2000000000/,
  "volumes-and-snapshots-zh": /training-cache undefined 2000000000/,
};

for (const [page, listed] of Object.entries(LISTED)) {
  test(page, async () => {
    const read = (step) => readFile(new URL(`${page}/${step}.tsx`, examples), "utf8");
    // Next to this file, so that the SDK is found; the third block is a program of its own.
    const directory = await mkdtemp(new URL("./.example-", import.meta.url).pathname);
    try {
      await copyFile(new URL(`${page}/3-mount.tsx`, examples), `${directory}/mount.tsx`);
      await writeFile(
        `${directory}/page.tsx`,
        (MISSING[page] ?? "") + await read("1-provision") + await read("2-inspect") +
          `await import("./mount.tsx");\n` + await read("4-delete"),
      );
      const { stdout } = await promisify(execFile)(
        process.execPath,
        ["run", "-A", "--no-lock", `${directory}/page.tsx`],
        { timeout: 60_000 },
      );
      assert.ok(/slug: ['"]training-cache['"]/.test(stdout), stdout);
      assert.match(stdout, listed);
      assert.ok(stdout.includes("Persist me!\n"), stdout);
      assert.equal(await client.volumes.get("training-cache"), null);
      assert.notEqual(await client.volumes.get("dataset"), null);
    } finally {
      await rm(directory, { recursive: true });
      for (const slug of ["training-cache", "dataset"]) {
        if (await client.volumes.get(slug)) await client.volumes.delete(slug);
      }
    }
  });
}
