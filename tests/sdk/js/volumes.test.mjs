// Volumes through the JavaScript SDK: the object, listing, persistence, refusals.
import { test } from "node:test";
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { Client, Sandbox } from "@deno/sandbox";
import { bash, client, newSlug, refusal, running, SMALL, withSandbox, withVolume } from "./support.mjs";

test("the object that create, get and list return", async () => {
  const slug = newSlug();
  const volume = await client.volumes.create({ slug, region: "ord", capacity: "1GB" });
  assert.match(volume.id, /^vol_ord_[0-9a-hjkmnp-z]{20}$/);
  assert.equal(volume.slug, slug);
  assert.equal(volume.region, "ord");
  assert.equal(volume.capacity, 1_000_000_000);
  // What an empty file system occupies.
  assert.ok(volume.estimatedFlattenedSize > 0 && volume.estimatedFlattenedSize < 20_000_000);
  assert.equal(volume.isBootable, false);
  assert.equal((await client.volumes.get(slug)).id, volume.id);
  assert.equal((await client.volumes.get(volume.id)).slug, slug);
  await client.volumes.delete(slug);
  assert.equal(await client.volumes.get(slug), null);
});

test("search and pages", async () => {
  const prefix = newSlug("page").slice(0, 20);
  const slugs = [0, 1, 2, 3, 4].map((number) => `${prefix}-${number}`);
  for (const slug of slugs) await client.volumes.create({ slug, region: "ord", capacity: SMALL });
  try {
    const first = await client.volumes.list({ search: prefix, limit: 2 });
    assert.equal(first.items.length, 2);
    assert.equal(first.hasMore, true);
    const found = [];
    for await (const volume of await client.volumes.list({ search: prefix, limit: 2 })) {
      found.push(volume.slug);
    }
    assert.deepEqual(found.sort(), slugs);
    const all = await client.volumes.list({ search: prefix });
    assert.equal(all.hasMore, false);
  } finally {
    for (const slug of slugs) await client.volumes.delete(slug);
  }
});

test("one mebibyte survives kill, byte for byte", () =>
  withVolume(async (volume) => {
    const data = new Uint8Array(randomBytes(1 << 20));
    await withSandbox({ region: "ord", volumes: { "/data/set": volume.slug } }, async (sandbox) => {
      await sandbox.fs.writeFile("/data/set/blob", data);
      await sandbox.kill();
    });
    await withSandbox({ region: "ord", volumes: { "/elsewhere": volume.id } }, async (sandbox) => {
      const back = await sandbox.fs.readFile("/elsewhere/blob");
      assert.equal(
        createHash("sha256").update(back).digest("hex"),
        createHash("sha256").update(data).digest("hex"),
      );
    });
  }));

test("a volume is free as soon as kill has answered", () =>
  withVolume(async (volume) => {
    for (let number = 0; number < 5; number++) {
      const sandbox = await Sandbox.create({ volumes: { "/v": volume.id } });
      const { out } = await bash(sandbox, `cat /v/n 2>/dev/null; echo ${number} > /v/n`);
      assert.equal(out, number === 0 ? "" : `${number - 1}\n`);
      await sandbox.kill();
      assert.ok(!(await running()).includes(sandbox.id));
    }
  }));

test("a full volume gives ENOSPC and recovers", () =>
  withVolume((volume) =>
    withSandbox({ volumes: { "/full": volume.id } }, async (sandbox) => {
      const megabytes = new Uint8Array(50_000_000);
      await assert.rejects(async () => {
        for (let number = 0; number < 8; number++) {
          await sandbox.fs.writeFile(`/full/${number}`, megabytes);
        }
      }, (error) => error.code === "ENOSPC" || /os error 28|No space/.test(error.message));
      assert.equal((await bash(sandbox, "rm /full/*; echo ok > /full/a; cat /full/a")).out, "ok\n");
    })
  ));

test("refusals of volumes", async () => {
  const init = () => ({ slug: newSlug(), region: "ord", capacity: SMALL });
  const create = (change) => client.volumes.create({ ...init(), ...change });
  await assert.rejects(create({ capacity: "1MB" }), refusal(400, "INVALID_REQUEST", "capacity", "300 MB"));
  await assert.rejects(create({ capacity: 1 }), refusal(400, "INVALID_REQUEST", "capacity"));
  await assert.rejects(create({ slug: "Not a slug" }), refusal(400, "INVALID_REQUEST", "slug"));
  await assert.rejects(create({ region: "xyz" }), refusal(400, "INVALID_REQUEST", "region", "xyz"));
  await assert.rejects(client.volumes.delete("no-such-volume"), refusal(404, "VOLUME_NOT_FOUND", "no-such-volume"));
  await withVolume((volume) =>
    assert.rejects(create({ slug: volume.slug }), refusal(409, "SLUG_ALREADY_IN_USE", volume.slug))
  );
});

test("refusals of sandboxes", async () => {
  await assert.rejects(
    Sandbox.create({ volumes: { "/v": "nowhere" } }),
    refusal(404, "VOLUME_NOT_FOUND", "nowhere"),
  );
  await assert.rejects(Sandbox.create({ timeout: "31m" }), refusal(400, "LIFETIME_TOO_LONG"));
  const labels = Object.fromEntries([1, 2, 3, 4, 5, 6].map((number) => [`k${number}`, "v"]));
  await assert.rejects(Sandbox.create({ labels }), refusal(400, "INVALID_REQUEST", "labels"));
  await withVolume(async (volume) => {
    for (const path of ["/", "relative", "/a/../b", "/etc"]) {
      await assert.rejects(
        Sandbox.create({ volumes: { [path]: volume.id } }),
        refusal(400, "INVALID_REQUEST", "volumes"),
      );
    }
    await withSandbox({ volumes: { "/v": volume.id } }, async (holder) => {
      await assert.rejects(
        Sandbox.create({ volumes: { "/v": volume.slug } }),
        refusal(409, "VOLUME_IS_MOUNTED", holder.id),
      );
      await assert.rejects(
        client.volumes.delete(volume.id),
        refusal(409, "VOLUME_IS_MOUNTED", holder.id),
      );
    });
  });
  await assert.rejects(
    Sandbox.connect("sbx_ord_00000000000000000000"),
    refusal(404, "SANDBOX_NOT_FOUND"),
  );
});

test("a bad token", async () => {
  await assert.rejects(Sandbox.create({ token: "ddo_wrong" }), { name: "InvalidTokenError" });
  await assert.rejects(
    new Client({ token: "ddo_wrong" }).volumes.list(),
    refusal(401, "INVALID_TOKEN"),
  );
  await assert.rejects(
    new Client({ token: "ddp_personal", org: "me" }).volumes.list(),
    refusal(401, "INVALID_TOKEN"),
  );
});
