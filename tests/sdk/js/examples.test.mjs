// The examples of Deno's documentation about volumes and snapshots, as written, apart from the
// endpoints: the blocks of a page are pasted one after the other into one program. Deno only: they
// say `await using`.
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import process from "node:process";
import { promisify } from "node:util";
import { Sandbox } from "@deno/sandbox";
import { bash, client, discard, withSandbox } from "./support.mjs";

const examples = new URL("../examples/", import.meta.url);
const block = (page, step) => readFile(new URL(`${page}/${step}.tsx`, examples), "utf8");

/** Runs `page` with the programs of its own that it imports; returns what was printed. */
async function paste(page, programs, limit) {
  // Next to this file, so that the SDK is found.
  const directory = await mkdtemp(new URL("./.example-", import.meta.url).pathname);
  try {
    for (const [name, text] of Object.entries({ page, ...programs })) {
      await writeFile(`${directory}/${name}.tsx`, text);
    }
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ["run", "-A", "--no-lock", `${directory}/page.tsx`],
      { timeout: limit, maxBuffer: 1 << 24 },
    );
    return stdout;
  } finally {
    await rm(directory, { recursive: true });
  }
}

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
    try {
      const stdout = await paste(
        (MISSING[page] ?? "") + await block(page, "1-provision") + await block(page, "2-inspect") +
          `await import("./mount.tsx");\n` + await block(page, "4-delete"),
        { mount: await block(page, "3-mount") },
        60_000,
      );
      assert.ok(/slug: ['"]training-cache['"]/.test(stdout), stdout);
      assert.match(stdout, listed);
      assert.ok(stdout.includes("Persist me!\n"), stdout);
      assert.equal(await client.volumes.get("training-cache"), null);
      assert.notEqual(await client.volumes.get("dataset"), null);
    } finally {
      await discard(client.volumes, "training-cache", "dataset");
    }
  });
}

const withoutComments = (text) => text.replaceAll(/ *\/\/.*/g, "");
const CLIENT = `import { Client } from "@deno/sandbox";\nconst client = new Client();\n`;
const VERSIONS = /^Version \d+\.\d+\.\d+\nv\d+\.\d+\.\d+\n/m;
const TSC = "/usr/local/lib/node_modules/typescript/package.json";

// Installing takes about a minute, so both pages share one toolchain: the first block, in which
// they differ only by comments, runs once.
test("a toolchain: install once, boot often, fork, delete", async () => {
  const [page, translated] = ["volumes-and-snapshots", "volumes-and-snapshots-zh"];
  const snapshotBlock = await block(page, "5-snapshot");
  assert.equal(
    withoutComments(snapshotBlock),
    withoutComments(await block(translated, "5-snapshot")),
  );
  // Several blocks declare the same constants: a reader runs them apart.
  const apart = async (page, ...steps) => {
    const blocks = await Promise.all(steps.map((step) => block(page, step)));
    return CLIENT + blocks.map((text) => `{\n${text}}\n`).join("");
  };
  try {
    const stdout = await paste(
      `import "./snapshot.tsx";\n` + await apart(page, "6-boot", "7-list", "8-fork"),
      { snapshot: snapshotBlock },
      240_000,
    );
    assert.match(stdout, VERSIONS);
    // No version of the SDK has `bootable`; it is `isBootable`.
    assert.match(stdout, /^my-toolchain-snapshot ord undefined$/m);

    const snapshot = await client.snapshots.get("my-toolchain-snapshot");
    assert.match(snapshot.id, /^snp_ord_[0-9a-hjkmnp-z]{20}$/);
    assert.equal(snapshot.isBootable, true);
    assert.equal(snapshot.volume.slug, "my-toolchain");
    await threeAtOnce(snapshot);

    const fork = await client.volumes.get("my-toolchain-fork");
    assert.deepEqual(fork.baseSnapshot, { id: snapshot.id, slug: snapshot.slug });
    assert.equal(fork.isBootable, true);
    await client.volumes.delete(fork.id);

    const again = await paste(
      await apart(translated, "6-boot", "7-list", "8-fork", "9-delete"),
      {},
      60_000,
    );
    assert.match(again, VERSIONS);
    assert.match(again, /^my-toolchain-snapshot ord undefined$/m);
    assert.equal(await client.snapshots.get("my-toolchain-snapshot"), null);
    // Neither the fork nor the volume needs the snapshot any more.
    for (const root of ["my-toolchain-fork", "my-toolchain"]) {
      await withSandbox({ region: "ord", root }, async (sandbox) => {
        assert.match((await bash(sandbox, "tsc --version; node --version")).out, VERSIONS);
      });
    }
  } finally {
    await discard(client.snapshots, "my-toolchain-snapshot");
    await discard(client.volumes, "my-toolchain-fork", "my-toolchain");
  }
});

/** What one writes, neither the others nor the next one see. */
async function threeAtOnce(snapshot) {
  const options = { region: "ord", root: snapshot.slug };
  const three = await Promise.all([1, 2, 3].map(() => Sandbox.create(options)));
  try {
    const all = (script) =>
      Promise.all(three.map(async (sandbox, number) => {
        const { code, out, err } = await bash(sandbox, script(number));
        assert.equal(code, 0, err);
        return out;
      }));
    for (const out of await all(() => "tsc --version; node --version")) assert.match(out, VERSIONS);
    // New files, and one that all have from the snapshot.
    await all((number) => `sudo sh -c 'echo ${number} | tee /etc/mine /opt/mine > ${TSC}'`);
    assert.deepEqual(
      await all(() => `cat /etc/mine /opt/mine ${TSC}`),
      ["0\n0\n0\n", "1\n1\n1\n", "2\n2\n2\n"],
    );
    await withSandbox({ ...options, root: snapshot.id }, async (next) => {
      const { out } = await bash(next, `ls /etc/mine /opt/mine; jq -r .name ${TSC}; tsc --version`);
      assert.match(out, /^typescript\nVersion /);
    });
  } finally {
    await Promise.all(three.map((sandbox) => sandbox.close()));
  }
}
