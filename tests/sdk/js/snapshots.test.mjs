// Bootable volumes, snapshots and forks through the JavaScript SDK.
import { test } from "node:test";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { Sandbox, Snapshot, Volume } from "@deno/sandbox";
import {
  bash,
  BOOTABLE,
  client,
  discard,
  newSlug,
  refusal,
  SMALL,
  withSandbox,
  withSnapshot,
  withVolume,
} from "./support.mjs";

const withBootable = (body, options = {}) => withVolume(body, { ...BOOTABLE, ...options });

/** What a script prints in a new sandbox with this root. */
const inside = (root, script) =>
  withSandbox({ region: "ord", root }, async (sandbox) => {
    const { code, out, err } = await bash(sandbox, script);
    assert.equal(code, 0, err);
    return out;
  });

test("the objects", () =>
  withBootable(async (volume) => {
    assert.equal(volume.isBootable, true);
    assert.equal(volume.baseSnapshot, null);
    assert.equal(volume.capacity, 1_000_000_000);
    await withSnapshot(volume, async (snapshot) => {
      assert.match(snapshot.id, /^snp_ord_[0-9a-hjkmnp-z]{20}$/);
      assert.equal(snapshot.region, "ord");
      assert.equal(snapshot.isBootable, true);
      assert.deepEqual(snapshot.volume, { id: volume.id, slug: volume.slug });
      // The base image's content, of which next to nothing is the snapshot's own.
      assert.ok(snapshot.flattenedSize > 100_000_000, snapshot.flattenedSize);
      assert.ok(snapshot.allocatedSize <= snapshot.flattenedSize);
      for (const name of [snapshot.slug, snapshot.id]) {
        const found = await client.snapshots.get(name);
        assert.deepEqual([found.id, found.slug], [snapshot.id, snapshot.slug]);
      }
      assert.equal(await client.snapshots.get(volume.slug), null);
      assert.equal(await client.volumes.get(snapshot.slug), null);
      await client.snapshots.delete(snapshot.slug);
      assert.equal(await client.snapshots.get(snapshot.slug), null);
      assert.equal(await client.snapshots.get(snapshot.id), null);
    });
  }));

test("the other spellings", async () => {
  const slug = newSlug();
  const volume = await Volume.create({ slug, region: "ord", ...BOOTABLE });
  try {
    const snapshot = await Snapshot.create(volume.slug, { slug: `${slug}-s` });
    assert.equal((await Snapshot.get(snapshot.id)).slug, `${slug}-s`);
    const sandbox = await client.sandboxes.create({ region: "ord", root: snapshot.id });
    assert.equal((await bash(sandbox, "id -un; pwd")).out, "app\n/home/app\n");
    await sandbox.close();
  } finally {
    await discard(client.snapshots, `${slug}-s`);
    await discard(client.volumes, slug);
  }
});

test("a root volume keeps what was written, everywhere", () =>
  withBootable(async (volume) => {
    const data = new Uint8Array(randomBytes(1 << 20));
    await withSandbox({ region: "ord", root: volume.slug }, async (sandbox) => {
      await sandbox.fs.writeFile("/home/app/blob", data);
      await bash(sandbox, "echo set | sudo tee /etc/setting && sudo rm /usr/bin/wget && mkdir ~/d");
      await sandbox.kill();
    });
    await withSandbox({ region: "ord", root: volume.id }, async (sandbox) => {
      assert.deepEqual(await sandbox.fs.readFile("/home/app/blob"), data);
      const { out } = await bash(sandbox, "cat /etc/setting; ls -d ~/d; which wget || echo gone");
      assert.equal(out, "set\n/home/app/d\ngone\n");
      // All of the root is the volume: no layer, and its capacity is the limit.
      const size = Number((await bash(sandbox, "df -B1 --output=size / | tail -1")).out);
      assert.ok(size > 850_000_000 && size <= 1_000_000_000, String(size));
    });
  }));

test("a root with a volume on it", () =>
  withBootable((root) =>
    withVolume(async (volume) => {
      const options = { region: "ord", root: root.id, volumes: { "/data/set": volume.id } };
      for (const expected of ["", "1\n1\n"]) {
        await withSandbox(options, async (sandbox) => {
          const { out } = await bash(
            sandbox,
            "cat /data/set/n /home/app/n; echo 1 | tee /data/set/n > /home/app/n; mountpoint -q /data/set",
          );
          assert.equal(out, expected);
        });
      }
    })
  ));

test("writes in a sandbox never reach its snapshot", () =>
  withBootable((volume) =>
    withSnapshot(volume, async (snapshot) => {
      const script = "cat /etc/hostname-of-ours; echo 1 | sudo tee /etc/hostname-of-ours; sudo rm -r /usr/share/zoneinfo; ls / | wc -l";
      const options = { region: "ord", root: snapshot.slug };
      const outputs = await Promise.all([1, 2, 3].map(() =>
        withSandbox(options, (sandbox) => bash(sandbox, script))
      ));
      for (const { out, err } of outputs) {
        assert.match(out, /^1\n\d+\n$/);
        assert.match(err, /^cat: .*No such file/);
      }
      assert.match(await inside(snapshot.id, "ls /usr/share/zoneinfo | wc -l"), /^[1-9]\d+\n$/);
    })
  ));

test("a snapshot of an attached volume; its sandbox goes on", () =>
  withBootable((volume) =>
    withSandbox({ region: "ord", root: volume.id }, async (sandbox) => {
      await sandbox.fs.writeTextFile("/home/app/state", "before");
      const counting = "for n in $(seq 100); do echo $n | tee /home/app/n; sleep 0.02; done";
      const pending = bash(sandbox, counting);
      await withSnapshot(volume, async (snapshot) => {
        await sandbox.fs.writeTextFile("/home/app/state", "after");
        const numbers = Array.from({ length: 100 }, (_, number) => `${number + 1}\n`).join("");
        assert.equal((await pending).out, numbers);
        assert.equal(await inside(snapshot.slug, "cat ~/state"), "before");
      });
      assert.equal(await sandbox.fs.readTextFile("/home/app/state"), "after");
    })
  ));

test("forks: independent of their snapshot and of each other", () =>
  withBootable((volume) =>
    withSnapshot(volume, (snapshot) => {
      const withFork = (options, body) => withVolume(body, { capacity: "1GB", ...options });
      return withFork({ from: snapshot.slug }, (one) =>
        withFork({ from: snapshot.id, capacity: "2GB" }, async (two) => {
          assert.deepEqual(one.baseSnapshot, { id: snapshot.id, slug: snapshot.slug });
          assert.equal(one.isBootable, true);
          assert.equal(two.capacity, 2_000_000_000);
          await client.snapshots.delete(snapshot.id);
          await Promise.all([one, two].map(({ id }) => inside(id, `echo ${id} > ~/mine`)));
          for (const { id } of [one, two]) assert.equal(await inside(id, "cat ~/mine"), `${id}\n`);
          // The larger one has its room.
          const size = Number(await inside(two.id, "df -B1 --output=size / | tail -1"));
          assert.ok(size > 1_800_000_000 && size <= 2_000_000_000, String(size));
          // The volume itself knows nothing of it, a snapshot of the fork does.
          assert.equal(await inside(volume.id, "ls ~"), "");
          await withSnapshot(one, async (next) => {
            assert.equal(await inside(next.id, "cat ~/mine"), `${one.id}\n`);
          });
        }));
    })
  ));

test("search and pages of snapshots", () =>
  withVolume(async (volume) => {
    const prefix = newSlug("page").slice(0, 20);
    const slugs = [0, 1, 2, 3, 4].map((number) => `${prefix}-${number}`);
    try {
      for (const slug of slugs) await client.volumes.snapshot(volume.id, { slug });
      const first = await client.snapshots.list({ search: prefix, limit: 2 });
      assert.equal(first.items.length, 2);
      assert.equal(first.hasMore, true);
      assert.equal(first.items[0].isBootable, false);
      const found = [];
      for await (const one of await client.snapshots.list({ search: prefix, limit: 2 })) {
        found.push(one.slug);
      }
      assert.deepEqual(found.sort(), slugs);
      // Volumes and snapshots share their names, not their lists.
      assert.deepEqual((await client.volumes.list({ search: prefix })).items, []);
    } finally {
      await discard(client.snapshots, ...slugs);
    }
  }));

test("refusals of bootable volumes and forks", async () => {
  const create = (change) =>
    client.volumes.create({ slug: newSlug(), region: "ord", capacity: "1GB", ...change });
  await assert.rejects(
    create({ from: "builtin:debian-99" }),
    refusal(400, "UNKNOWN_BASE", "builtin:debian-99"),
  );
  await assert.rejects(
    create({ from: "no-such-snapshot" }),
    refusal(404, "SNAPSHOT_NOT_FOUND", "no-such-snapshot"),
  );
  await assert.rejects(
    create({ from: "builtin:debian-13", capacity: SMALL }),
    refusal(400, "CAPACITY_BELOW_BASE", "300 MB", "1 GB"),
  );
  await withVolume((volume) =>
    withSnapshot(volume, async (snapshot) => {
      await assert.rejects(
        create({ from: snapshot.slug, capacity: "500MB" }),
        refusal(400, "CAPACITY_BELOW_BASE", "500 MB", "1 GB"),
      );
      await assert.rejects(
        create({ from: snapshot.slug, region: "ams" }),
        refusal(409, "REGION_MISMATCH", snapshot.slug, "ord", "ams"),
      );
      // One name space for both kinds.
      await assert.rejects(
        create({ slug: snapshot.slug }),
        refusal(409, "SLUG_ALREADY_IN_USE", snapshot.slug),
      );
      for (const slug of [snapshot.slug, volume.slug]) {
        await assert.rejects(
          client.volumes.snapshot(volume.id, { slug }),
          refusal(409, "SLUG_ALREADY_IN_USE", slug),
        );
      }
    }), { capacity: "1GB" });
  await assert.rejects(
    client.volumes.snapshot("no-such-volume", { slug: newSlug() }),
    refusal(404, "VOLUME_NOT_FOUND", "no-such-volume"),
  );
  await assert.rejects(
    client.snapshots.delete("no-such-snapshot"),
    refusal(404, "SNAPSHOT_NOT_FOUND", "no-such-snapshot"),
  );
});

test("refusals of roots", async () => {
  // With an endpoint of one's own this SDK sends no region: `test_snapshots.py` has that refusal.
  const boot = (root) => Sandbox.create({ root });
  await assert.rejects(boot("no-such-root"), refusal(404, "SNAPSHOT_NOT_FOUND", "no-such-root"));
  await withVolume((volume) =>
    withSnapshot(volume, async (snapshot) => {
      for (const { id, slug } of [volume, snapshot]) {
        await assert.rejects(boot(slug), refusal(409, "NOT_BOOTABLE", slug));
        await assert.rejects(boot(id), refusal(409, "NOT_BOOTABLE", slug));
      }
    })
  );
  await withBootable((volume) =>
    withSnapshot(volume, async (snapshot) => {
      await withSandbox({ root: volume.id }, async (holder) => {
        const mounted = refusal(409, "VOLUME_IS_MOUNTED", holder.id);
        await assert.rejects(boot(volume.slug), mounted);
        await assert.rejects(Sandbox.create({ volumes: { "/v": volume.id } }), mounted);
        await assert.rejects(client.volumes.delete(volume.slug), mounted);
      });
      await assert.rejects(
        Sandbox.create({ root: volume.id, volumes: { "/v": volume.id } }),
        refusal(400, "INVALID_REQUEST", volume.slug),
      );
      // A snapshot that runs may be deleted; what runs from it goes on.
      await withSandbox({ root: snapshot.id }, async (sandbox) => {
        await client.snapshots.delete(snapshot.id);
        assert.equal((await bash(sandbox, "sudo touch /etc/x && git --version | wc -l")).out, "1\n");
        await assert.rejects(boot(snapshot.slug), refusal(404, "SNAPSHOT_NOT_FOUND", snapshot.slug));
      });
    })
  );
});
