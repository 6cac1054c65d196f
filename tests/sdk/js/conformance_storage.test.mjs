// Volumes, snapshots, and what belongs to the hosted product's deployments.
import { after, before } from "node:test";
import assert from "node:assert/strict";
import { Sandbox, Snapshot, Volume } from "@deno/sandbox";
import { all, check } from "./conformance.mjs";
import { BOOTABLE, client, discard, newSlug, refusal, SMALL } from "./support.mjs";

const base = newSlug("conf");
const slugs = { volume: `${base}-v`, snapshot: `${base}-s` };
before(async () => {
  await client.volumes.create({ slug: slugs.volume, region: "ord", ...BOOTABLE });
  await client.volumes.snapshot(slugs.volume, { slug: slugs.snapshot });
});
after(async () => {
  await discard(client.snapshots, slugs.snapshot);
  await discard(client.volumes, slugs.volume);
});

async function made(create, body) {
  const slug = newSlug("conf");
  const volume = await create({ slug, region: "ord", capacity: SMALL });
  try {
    await body(volume, slug);
  } finally {
    await discard(client.volumes, slug);
  }
}

function checkNewVolume(volume, slug) {
  assert.ok(volume instanceof Volume);
  assert.match(volume.id, /^vol_ord_[0-9a-hjkmnp-z]{20}$/);
  assert.deepEqual(
    [volume.slug, volume.region, volume.capacity, volume.isBootable, volume.baseSnapshot],
    [slug, "ord", 300_000_000, false, null],
  );
}

check("client.volumes.create", () =>
  made((options) => client.volumes.create(options), async (volume, slug) => {
    checkNewVolume(volume, slug);
    const again = { slug, region: "ord", capacity: SMALL };
    await assert.rejects(client.volumes.create(again), refusal(409, "SLUG_ALREADY_IN_USE", slug));
    const small = { ...again, slug: newSlug(), capacity: "1MB" };
    await assert.rejects(client.volumes.create(small), refusal(400, "INVALID_REQUEST"));
    const fork = { slug: newSlug("conf"), region: "ord", capacity: "1GB", from: slugs.snapshot };
    const forked = await client.volumes.create(fork);
    try {
      assert.equal(forked.baseSnapshot.slug, slugs.snapshot);
      assert.equal(forked.isBootable, true);
    } finally {
      await discard(client.volumes, forked.id);
    }
  }));

check("Volume.create", () => made((options) => Volume.create(options), checkNewVolume));

check("client.volumes.get", async () => {
  const volume = await client.volumes.get(slugs.volume);
  assert.equal((await client.volumes.get(volume.id)).slug, slugs.volume);
  assert.equal(await client.volumes.get("no-such-volume"), null);
});

check("Volume.get", async () => {
  const volume = await Volume.get(slugs.volume);
  assert.match(volume.id, /^vol_ord_/);
  assert.deepEqual(
    [volume.slug, volume.region, volume.capacity, volume.isBootable, volume.baseSnapshot],
    [slugs.volume, "ord", 1_000_000_000, true, null],
  );
  assert.ok(Number.isInteger(volume.estimatedAllocatedSize));
  assert.ok(Number.isInteger(volume.estimatedFlattenedSize));
  assert.equal(await Volume.get("no-such-volume"), null);
});

check("client.volumes.list", async () => {
  const list = await client.volumes.list({ search: base });
  assert.deepEqual(list.items.map(({ slug }) => slug), [slugs.volume]);
  assert.deepEqual([list.hasMore, list.nextCursor], [false, null]);
});

check("client.volumes.delete", () =>
  made((options) => client.volumes.create(options), async (_, slug) => {
    await client.volumes.delete(slug);
    assert.equal(await client.volumes.get(slug), null);
    await assert.rejects(client.volumes.delete(slug), refusal(404, "VOLUME_NOT_FOUND", slug));
  }));

async function checkSnapshot(create) {
  const slug = newSlug("conf");
  const snapshot = await create(slugs.volume, { slug });
  try {
    assert.ok(snapshot instanceof Snapshot);
    assert.match(snapshot.id, /^snp_ord_[0-9a-hjkmnp-z]{20}$/);
    assert.deepEqual(
      [snapshot.slug, snapshot.region, snapshot.isBootable, snapshot.volume.slug],
      [slug, "ord", true, slugs.volume],
    );
  } finally {
    await discard(client.snapshots, slug);
  }
}

check("client.volumes.snapshot", async () => {
  await checkSnapshot((volume, init) => client.volumes.snapshot(volume, init));
  const taken = client.volumes.snapshot(slugs.volume, { slug: slugs.snapshot });
  await assert.rejects(taken, refusal(409, "SLUG_ALREADY_IN_USE", slugs.snapshot));
});
check("Snapshot.create", () => checkSnapshot((volume, init) => Snapshot.create(volume, init)));

check("client.snapshots.get", async () => {
  const snapshot = await client.snapshots.get(slugs.snapshot);
  assert.equal((await client.snapshots.get(snapshot.id)).slug, slugs.snapshot);
  assert.equal(await client.snapshots.get("no-such-snapshot"), null);
});

check("Snapshot.get", async () => {
  const snapshot = await Snapshot.get(slugs.snapshot);
  assert.match(snapshot.id, /^snp_ord_/);
  assert.deepEqual(
    [snapshot.slug, snapshot.region, snapshot.isBootable, snapshot.volume.slug],
    [slugs.snapshot, "ord", true, slugs.volume],
  );
  assert.ok(Number.isInteger(snapshot.allocatedSize));
  assert.ok(Number.isInteger(snapshot.flattenedSize));
});

check("client.snapshots.list", async () => {
  const list = await client.snapshots.list({ search: base });
  assert.deepEqual(list.items.map(({ slug }) => slug), [slugs.snapshot]);
});

check("client.snapshots.delete", async () => {
  const slug = newSlug("conf");
  await client.volumes.snapshot(slugs.volume, { slug });
  await client.snapshots.delete(slug);
  assert.equal(await client.snapshots.get(slug), null);
  await assert.rejects(client.snapshots.delete(slug), refusal(404, "SNAPSHOT_NOT_FOUND", slug));
});

/** Runs `body` with three snapshots whose slugs have this in common. */
async function threeSnapshots(body) {
  const common = newSlug("conf");
  const three = ["a", "b", "c"].map((letter) => `${common}-${letter}`);
  try {
    for (const slug of three) await client.volumes.snapshot(slugs.volume, { slug });
    await body(common, three);
  } finally {
    await discard(client.snapshots, ...three);
  }
}

check("PaginatedList.getNextPage", () =>
  threeSnapshots(async (common, three) => {
    const first = await client.snapshots.list({ search: common, limit: 2 });
    assert.deepEqual([first.items.length, first.hasMore], [2, true]);
    assert.equal(typeof first.nextCursor, "string");
    const second = await first.getNextPage();
    assert.deepEqual([second.items.length, second.hasMore, second.nextCursor], [1, false, null]);
    assert.equal(await second.getNextPage(), null);
    const seen = [...first.items, ...second.items].map(({ slug }) => slug);
    assert.deepEqual(seen.sort(), three);
  }));

check("PaginatedList[Symbol.asyncIterator]", () =>
  threeSnapshots(async (common, three) => {
    const items = await all(await client.snapshots.list({ search: common, limit: 1 }));
    assert.deepEqual(items.map(({ slug }) => slug).sort(), three);
  }));

// Deployment: every method of the hosted product's applications gets the same clear answer.
const deployment = {
  apps: {
    get: ["x"], list: [], create: [{ slug: "x" }], update: ["x", { slug: "y" }], delete: ["x"],
    deploy: ["x", { assets: {} }], logs: ["x", { start: "2026-01-01T00:00:00Z" }],
  },
  revisions: {
    get: ["x"], list: ["x"], progress: ["x"], buildLogs: ["x"], cancel: ["x"], timelines: ["x"],
    delete: ["x"],
  },
  timelines: { list: ["x"] },
  layers: {
    get: ["x"], list: [], create: [{ slug: "x" }], update: ["x", {}], delete: ["x"], apps: ["x"],
  },
};
for (const [space, methods] of Object.entries(deployment)) {
  for (const [name, parameters] of Object.entries(methods)) {
    check(`client.${space}.${name}`, () =>
      assert.rejects(async () => {
        const result = client[space][name](...parameters);
        await (Symbol.asyncIterator in result ? all(result) : result);
      }, refusal(501, "NOT_SUPPORTED")));
  }
}

const notDeployed = (error) => {
  assert.equal(error.name, "DeployError");
  assert.match(error.message, /501 .*"NOT_SUPPORTED"/);
  return true;
};
for (const method of ["sandbox.deploy", "sandbox.deno.deploy"]) {
  check(method, async () => {
    const sandbox = await Sandbox.create();
    try {
      const where = method === "sandbox.deploy" ? sandbox : sandbox.deno;
      await assert.rejects(where.deploy("my-app"), notDeployed);
    } finally {
      await sandbox.close();
    }
  });
}

