// Everything of `sandbox.fs` beyond reading and writing whole files, through the JavaScript SDK.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { chmod, lstat, mkdir, mkdtemp, readFile, readdir, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Sandbox } from "@deno/sandbox";
import { bash, waitUntil, withoutLateChunks } from "./support.mjs";

// The SDK comes with the real functions that the sandbox's must agree with.
const std = new URL("./node_modules/@deno/sandbox/esm/deps/jsr.io/@std/fs/", import.meta.url);
const [version] = await readdir(std);
const { walk } = await import(new URL(`${version}/walk.js`, std));
const { expandGlob } = await import(new URL(`${version}/expand_glob.js`, std));

let sandbox;
let fs;
before(async () => {
  sandbox = await Sandbox.create();
  fs = sandbox.fs;
});
after(() => sandbox.close());

const code = (wanted) => (error) => {
  assert.equal(error.code, wanted, error.message);
  return true;
};
const all = async (entries) => {
  const list = [];
  for await (const entry of entries) list.push(entry);
  return list;
};
const text = (string) => new TextEncoder().encode(string);

test("fs: rename, copyFile, link, symlink, readLink, realPath", async () => {
  await fs.mkdir("names");
  await fs.writeTextFile("names/one", "content", { mode: 0o640 });
  await fs.rename("names/one", "names/two");
  await assert.rejects(fs.rename("/a", "/b"), (error) => {
    assert.equal(error.message, "No such file or directory (os error 2): rename '/a' -> '/b'");
    assert.equal(error.constructor.name, "NotFound");
    return code("ENOENT")(error);
  });
  await fs.copyFile("names/two", "names/three");
  assert.equal(await fs.readTextFile("names/three"), "content");
  assert.equal((await fs.stat("names/three")).mode & 0o7777, 0o640);
  await fs.link("names/two", "names/four");
  assert.equal((await fs.stat("names/two")).nlink, 2);
  await fs.symlink("./../names//two", "names/five");
  assert.equal(await fs.readLink("names/five"), "./../names//two");
  assert.equal(await fs.realPath("names/five"), "/home/app/names/two");
  assert.equal((await fs.lstat("names/five")).isSymlink, true);

  await fs.symlink("loop", "names/loop");
  await assert.rejects(fs.realPath("names/loop"), code("ELOOP"));
  await assert.rejects(fs.readLink("names/two"), code("EINVAL"));
  await assert.rejects(fs.link("names/two", "names/three"), code("EEXIST"));
  await assert.rejects(fs.copyFile("names", "x"), code("EISDIR"));
  await assert.rejects(fs.rename("names", "names/two"), code("EINVAL"));
  await fs.writeTextFile("plain", "");
  await assert.rejects(fs.rename("names", "plain"), code("ENOTDIR"));
  await assert.rejects(fs.rename("names/two", "/proc/x"), code("EXDEV"));
  await assert.rejects(fs.rename("names/two", "/boot"), (error) => ["EACCES", "EISDIR"].includes(error.code));
  await assert.rejects(fs.writeTextFile("/etc/shadow", "x"), code("EACCES"));
  await assert.rejects(fs.writeTextFile("x".repeat(300), "x"), code("ENAMETOOLONG"));
  await assert.rejects(fs.remove("names"), code("ENOTEMPTY"));
  await assert.rejects(fs.writeTextFile("/dev/full", "x".repeat(100)), code("ENOSPC"));
});

test("fs: truncate, chmod, chown, utime, umask, temporary files", async () => {
  await fs.writeTextFile("file", "0123456789");
  await fs.truncate("file", 4);
  assert.equal(await fs.readTextFile("file"), "0123");
  await fs.truncate("file");
  assert.equal((await fs.stat("file")).size, 0);
  await fs.chmod("file", 0o600);
  assert.equal((await fs.stat("file")).mode & 0o7777, 0o600);
  const { uid, gid } = await fs.stat("file");
  await fs.chown("file", uid, null);
  await fs.chown("file", null, gid);
  await assert.rejects(fs.chown("file", 0, null), code("EPERM"));
  const [atime, mtime] = [new Date("2001-02-03T04:05:06.789Z"), new Date(-1500)];
  await fs.utime("file", atime, mtime);
  const times = await fs.stat("file");
  assert.deepEqual([times.atime, times.mtime], [atime, mtime]);

  assert.equal(await fs.umask(), 0o022);
  assert.equal(await fs.umask(0o077), 0o022);
  await fs.writeTextFile("private", "");
  assert.equal(await fs.umask(0o022), 0o077);
  assert.equal((await fs.stat("private")).mode & 0o777, 0o600);

  const directory = await fs.makeTempDir();
  assert.match(directory, /^\/tmp\/[0-9a-f]{8}$/);
  const file = await fs.makeTempFile({ dir: directory, prefix: "a-", suffix: ".txt" });
  assert.match(file, /^\/tmp\/[0-9a-f]{8}\/a-[0-9a-f]{8}\.txt$/);
  assert.equal((await fs.stat(file)).mode & 0o777, 0o600);
  await assert.rejects(fs.makeTempFile({ prefix: "../" }), code("EINVAL"));
  await fs.remove(directory, { recursive: true });
});

test("fs: open files", async () => {
  const file = await fs.open("open", { read: true, write: true, create: true });
  assert.equal(await file.write(text("0123456789")), 10);
  assert.equal(await file.read(new Uint8Array(5)), null);
  assert.equal(await file.seek(-4, 2), 6);
  assert.equal(await file.seek(2n, 0), 2);
  const buffer = new Uint8Array(3);
  assert.equal(await file.read(buffer), 3);
  assert.deepEqual(buffer, text("234"));
  await assert.rejects(file.seek(-100, 1), code("EINVAL"));
  await file.truncate(4);
  await file.sync();
  await file.syncData();
  await file.utime(new Date(1000), new Date(2000));
  const info = await file.stat();
  assert.deepEqual([info.size, info.mtime], [4, new Date(2000)]);
  await file.close();
  await assert.rejects(file.stat(), code("EBADF"));

  await assert.rejects(fs.open("none"), code("ENOENT"));
  await assert.rejects(fs.open("open", { write: true, createNew: true }), code("EEXIST"));
  await assert.rejects(fs.open("open", { read: true, create: true }), code("EINVAL"));
  await assert.rejects(fs.open("/home", { write: true }), code("EISDIR"));

  // Large writes are whole, and calls that nobody waited for keep their order.
  const content = new Uint8Array(randomBytes(3_000_001));
  const big = await fs.create("big");
  assert.equal(await big.write(content), content.length);
  await Promise.all([1, 2, 3, 4].map((number) => big.write(text(`${number}`))));
  await big.close();
  assert.deepEqual(await fs.readFile("big"), new Uint8Array([...content, ...text("1234")]));
  const again = await fs.open("big");
  const hash = createHash("sha256");
  for await (const chunk of again.readable) hash.update(chunk);
  assert.equal(hash.digest("hex"), createHash("sha256").update(content).update("1234").digest("hex"));
});

test("fs: 300 MB up as a stream and down through an open file", async () => {
  const chunk = new Uint8Array(randomBytes(1 << 20));
  const total = 300;
  const sent = createHash("sha256");
  let count = 0;
  const source = new ReadableStream({
    pull(controller) {
      if (count === total) return controller.close();
      count += 1;
      chunk[0] = count;
      sent.update(chunk);
      controller.enqueue(chunk.slice());
    },
  });
  await fs.writeFile("huge", source);
  const file = await fs.open("huge");
  assert.equal((await file.stat()).size, total << 20);
  const received = createHash("sha256");
  const buffer = new Uint8Array(1 << 20);
  let length;
  while ((length = await file.read(buffer)) !== null) received.update(buffer.subarray(0, length));
  assert.equal(received.digest("hex"), sent.digest("hex"));
  await file.close();
  await fs.remove("huge");
});

test("fs: locks between two clients", async () => {
  const other = await Sandbox.connect({ id: sandbox.id });
  try {
    const mine = await fs.open("locked", { write: true, create: true });
    const theirs = await other.fs.open("locked");
    await mine.lock(true);
    const { out } = await bash(sandbox, "flock -n locked true || echo held");
    assert.equal(out, "held\n");
    let has = false;
    const waits = theirs.lock().then(() => (has = true));
    // A wait holds nothing else up, also not on the same connection.
    assert.equal((await other.fs.stat("locked")).size, 0);
    assert.equal(has, false);
    await mine.unlock();
    await waits;
    // Closing ends a wait.
    const waiting = assert.rejects(mine.lock(true), code("EBADF"));
    await bash(sandbox, "true");
    await mine.close();
    await waiting;
    const last = await fs.open("locked");
    const granted = last.lock(true);
    // So does the end of the session that holds the lock.
    await other.close();
    await granted;
    await last.close();
  } finally {
    await other.close();
  }
});

test("fs: files are closed with their connection", async () => {
  // Locks tell who has a file open: nobody inside may look at the agent's descriptors.
  const isFree = async () => (await bash(sandbox, "flock -n -x many true")).code === 0;
  await fs.writeTextFile("many", "");
  const other = await Sandbox.connect({ id: sandbox.id });
  const files = await Promise.all(Array.from({ length: 1500 }, () => other.fs.open("many")));
  assert.ok(await isFree());
  await Promise.all(files.map((file) => file.lock()));
  assert.ok(!(await isFree()));
  await other.close();
  await waitUntil("all are closed", isFree);
});

// A tree with all that a walk tells apart.
const tree = (top) => `
  mkdir -p ${top}/a/b/c ${top}/empty ${top}/'[x]' && cd ${top}
  echo 1 > one.ts; echo 2 > a/two.js; echo 3 > a/b/three.ts; echo 4 > a/b/c/FOUR.ts
  echo 5 > '[x]/five{1}.ts'; echo 6 > a/sixé.md; mkfifo fifo
  ln -s one.ts link.ts; ln -s a/b todir; ln -s ../one.ts a/up.ts`;

// The order of a directory is the file system's.
const sorted = (entries) => {
  const text = ({ path, name, isSymlink }) => JSON.stringify([path, name, isSymlink]);
  return entries.sort((a, b) => (text(a) < text(b) ? -1 : text(a) > text(b) ? 1 : 0));
};

test("fs: walk agrees with @std/fs", async () => {
  const top = await mkdtemp(join(tmpdir(), "walk-"));
  try {
    execFileSync("bash", ["-c", tree(top)]);
    assert.equal((await bash(sandbox, tree(top))).code, 0);
    const cases = [
      {},
      { maxDepth: 0 },
      { maxDepth: 1 },
      { maxDepth: 2, includeFiles: false },
      { includeDirs: false },
      { includeSymlinks: false },
      { exts: ["ts"] },
      { exts: [".js", "md"], includeDirs: false },
      { exts: [] },
      { match: [/\.ts$/, /empty/] },
      { match: [/four/i] },
      { match: [/(?<=\/)two/, /s\p{L}xé/u] },
      { match: [] },
      { skip: [/\/b$/, /link/] },
      { followSymlinks: true },
      { followSymlinks: true, canonicalize: false },
      { followSymlinks: true, canonicalize: false, exts: ["ts"], skip: [/\/c$/] },
    ];
    for (const options of cases) {
      const expected = sorted(await all(walk(top, options)));
      assert.deepEqual(sorted(await all(fs.walk(top, options))), expected, JSON.stringify(options));
    }
    for (const root of [`${top}/a/../a//`, `${top}/todir`]) {
      assert.deepEqual(sorted(await all(fs.walk(root))), sorted(await all(walk(root))), root);
    }
    // Relative roots stay relative; here they begin at the sandbox's working directory.
    await bash(sandbox, tree("relative"));
    const paths = (await all(fs.walk("./relative/a", { exts: ["ts"] }))).map((entry) => entry.path);
    assert.deepEqual(paths.sort(), ["relative/a/b/c/FOUR.ts", "relative/a/b/three.ts", "relative/a/up.ts"]);
    assert.equal((await all(fs.walk("relative", { maxDepth: 0 })))[0].path, "relative");

    await assert.rejects(all(fs.walk(`${top}/none`)), code("ENOENT"));
    await assert.rejects(all(fs.walk(`${top}/one.ts`)), code("ENOTDIR"));
    // A failure on the way becomes the stream's.
    await fs.mkdir(`${top}/loop`);
    await fs.symlink("..", `${top}/loop/up`);
    await assert.rejects(all(fs.walk(`${top}/loop`, { followSymlinks: true })), code("ELOOP"));
  } finally {
    await rm(top, { recursive: true });
  }
});

test("fs: expandGlob agrees with @std/fs", async () => {
  const top = await mkdtemp(join(tmpdir(), "glob-"));
  try {
    execFileSync("bash", ["-c", tree(top)]);
    assert.equal((await bash(sandbox, tree(top))).code, 0);
    const cases = [
      ["*"],
      ["*/"],
      ["**"],
      ["**/*.ts"],
      ["**/*.ts", { includeDirs: false, exclude: ["a/b/**"] }],
      ["a/*", { exclude: ["a/b"] }],
      ["*.{ts,js}"],
      ["a/+(b|two.js)"],
      ["a/!(b)"],
      ["**/four.ts"],
      ["**/four.ts", { caseInsensitive: true }],
      ["**/*.ts", { globstar: false }],
      ["+(one).ts", { extended: false }],
      ["**/*", { followSymlinks: true }],
      ["**/*", { followSymlinks: true, canonicalize: false }],
      ["*/../one.ts"],
      ["\\[x\\]/*"],
      ["[[]x[]]/five*"],
      ["one.ts"],
      ["one.ts/"],
      ["none/*"],
      ["?ne.ts"],
      ["a//b/*"],
      [""],
    ];
    for (const [glob, options = {}] of cases) {
      let expected = await all(expandGlob(glob, { root: top, ...options }));
      let found = await all(fs.expandGlob(glob, { root: top, ...options }));
      if (options.followSymlinks) {
        // Of two ways to one path, the one that the directory lists last is told.
        [expected, found] = [expected, found].map((list) => list.map((entry) => entry.path));
      }
      assert.deepEqual(found, expected, `${glob} ${JSON.stringify(options)}`);
    }
    for (const glob of [`${top}/**/*.js`, `${top}/`, "/"]) {
      assert.deepEqual(await all(fs.expandGlob(glob)), await all(expandGlob(glob)), glob);
    }
  } finally {
    await rm(top, { recursive: true });
  }
});

test("fs: a walk that nobody wants stops", async () => {
  const walks = async () => (await bash(sandbox, "grep -l walk /proc/1/task/*/comm | wc -l")).out;
  await withoutLateChunks(async () => {
    for await (const _ of fs.walk("/")) break;
    await waitUntil("the walk has ended", async () => (await walks()) === "0\n");
  });
  assert.ok((await all(fs.walk("/usr/share"))).length > 1000);
});

test("fs: trees go up and come down", async () => {
  const local = await mkdtemp(join(tmpdir(), "tree-"));
  try {
    const content = randomBytes(200_000);
    await mkdir(join(local, "up/deep/empty"), { recursive: true });
    await writeFile(join(local, "up/deep/data"), content);
    await writeFile(join(local, "up/none"), "");
    await symlink("deep/data", join(local, "up/link"));
    await fs.mkdir("trees");
    await fs.upload(join(local, "up"), "trees");
    assert.deepEqual(Buffer.from(await fs.readFile("trees/up/deep/data")), content);
    assert.equal(await fs.readLink("trees/up/link"), "deep/data");
    assert.equal((await fs.stat("trees/up/deep/empty")).isDirectory, true);
    // The SDK's upload leaves modes out: what is copied inside keeps them.
    await fs.chmod("trees/up/none", 0o750);
    await fs.copyFile("trees/up/none", "trees/up/copy");
    assert.equal((await fs.stat("trees/up/copy")).mode & 0o777, 0o750);
    await assert.rejects(fs.upload(join(local, "up"), "trees"), code("EEXIST"));

    await mkdir(join(local, "down"));
    await chmod(join(local, "down"), 0o755);
    await fs.download("trees/up", join(local, "down"));
    assert.deepEqual(await readFile(join(local, "down/up/deep/data")), content);
    assert.equal(await readlink(join(local, "down/up/link")), "deep/data");
    assert.equal((await lstat(join(local, "down/up/none"))).size, 0);
    assert.deepEqual(await readdir(join(local, "down/up/deep/empty")), []);
    await fs.download("trees/up/deep/data", join(local, "one"));
    assert.deepEqual(await readFile(join(local, "one")), content);
  } finally {
    await rm(local, { recursive: true });
  }
});

test("fs: readFile takes what fits into a message, and refuses more by name", async () => {
  // The SDK's WebSocket library stops at 100 MiB, and base64 makes four bytes of three.
  const most = ((100 << 20) - 1024) / 4 * 3;
  await bash(sandbox, `head -c ${most} /dev/zero | tr '\\0' 'x' >/tmp/most`);
  const content = await fs.readFile("/tmp/most");
  assert.equal(content.length, most);
  assert.ok(content.every((byte) => byte === 0x78));
  await bash(sandbox, "printf x >>/tmp/most");
  await assert.rejects(fs.readFile("/tmp/most"), (error) => {
    assert.equal(error.constructor.name, "RangeError");
    return code("EMSGSIZE")(error);
  });
  assert.equal((await fs.stat("/tmp/most")).size, most + 1, "the connection is there");
  await fs.remove("/tmp/most");
});
