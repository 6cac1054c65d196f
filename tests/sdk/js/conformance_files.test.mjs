// Files and file handles.
import { after, before } from "node:test";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { Sandbox, SeekMode } from "@deno/sandbox";
import { aborted, all, check, fails } from "./conformance.mjs";
import { bash, waitUntil } from "./support.mjs";

let sandbox, fs, local;
before(async () => {
  sandbox = await Sandbox.create();
  fs = sandbox.fs;
  local = await mkdtemp(`${tmpdir()}/conformance-`);
});
after(async () => {
  await sandbox.close();
  await rm(local, { recursive: true });
});

const missing = fails("NotFound", "ENOENT");
const bytes = (text) => new TextEncoder().encode(text);
const modeOf = async (path) => (await fs.stat(path)).mode & 0o7777;
let trees = 0;
/** A directory of this check alone, with these files. */
async function tree(files = {}) {
  const root = `/tmp/tree-${++trees}`;
  await fs.mkdir(root);
  for (const [name, text] of Object.entries(files)) {
    if (name.includes("/")) {
      await fs.mkdir(`${root}/${name.slice(0, name.lastIndexOf("/"))}`, { recursive: true });
    }
    await fs.writeTextFile(`${root}/${name}`, text);
  }
  return root;
}
/** A writer's end that holds a read back for as long as it likes. */
async function fifo() {
  const path = `${await tree()}/fifo`;
  await bash(sandbox, `mkfifo ${path}`);
  return path;
}
const soon = () => AbortSignal.timeout(200);

check("sandbox.fs.readFile", async () => {
  const root = await tree();
  const data = new Uint8Array(randomBytes(2_000_000));
  await fs.writeFile(`${root}/data`, data);
  assert.ok(Buffer.from(await fs.readFile(`${root}/data`)).equals(Buffer.from(data)));
  assert.equal((await fs.readFile(new URL(`file://${root}/data`))).length, data.length);
  await assert.rejects(fs.readFile(`${root}/none`), missing);
  await assert.rejects(fs.readFile(root), (error) => error.code === "EISDIR");
  await assert.rejects(fs.readFile("/etc/shadow"), fails("PermissionDenied", "EACCES"));
});

check("sandbox.fs.readFile({ signal })", async () => {
  await assert.rejects(fs.readFile(await fifo(), { signal: soon() }), aborted);
  const signal = new AbortController().signal;
  assert.ok((await fs.readFile("/etc/hostname", { signal })).length > 0);
});

check("sandbox.fs.readTextFile", async () => {
  const root = await tree({ text: "größer 😀\0\n" });
  assert.equal(await fs.readTextFile(`${root}/text`), "größer 😀\0\n");
  await fs.writeFile(`${root}/binary`, new Uint8Array([0xff, 0xfe]));
  await assert.rejects(fs.readTextFile(`${root}/binary`), (error) => error.constructor.name === "InvalidData");
  await assert.rejects(fs.readTextFile(`${root}/none`), missing);
});

check("sandbox.fs.readTextFile({ signal })", async () => {
  await assert.rejects(fs.readTextFile(await fifo(), { signal: soon() }), aborted);
});

check("sandbox.fs.writeFile", async () => {
  const path = `${await tree()}/file`;
  await fs.writeFile(path, bytes("first, longer"));
  await fs.writeFile(path, bytes("second"));
  assert.equal(await fs.readTextFile(path), "second");
  await fs.writeFile(path, new Uint8Array());
  assert.equal((await fs.stat(path)).size, 0);
  await assert.rejects(fs.writeFile("/etc/none", bytes("x")), fails("PermissionDenied", "EACCES"));
});

check("sandbox.fs.writeFile(stream)", async () => {
  const path = `${await tree()}/file`;
  const chunks = Array.from({ length: 50 }, () => new Uint8Array(randomBytes(20_000)));
  await fs.writeFile(path, ReadableStream.from(chunks));
  assert.ok(Buffer.from(await fs.readFile(path)).equals(Buffer.concat(chunks)));
  const broken = new ReadableStream({
    pull: (controller) => controller.error(new Error("the source broke")),
  });
  await assert.rejects(fs.writeFile(path, broken), /the source broke/);
});

/** What both ways of writing do with their options. */
async function checkWriteOptions(write) {
  const root = await tree({ old: "old" });
  await write(`${root}/old`, "+new", { append: true });
  assert.equal(await fs.readTextFile(`${root}/old`), "old+new");
  await assert.rejects(write(`${root}/none`, "x", { create: false }), missing);
  await assert.rejects(write(`${root}/old`, "x", { createNew: true }), fails("AlreadyExists", "EEXIST"));
  await write(`${root}/fresh`, "x", { createNew: true, mode: 0o640 });
  assert.equal(await modeOf(`${root}/fresh`), 0o640);
  await write(`${root}/fresh`, "y", { mode: 0o777 });
  assert.equal(await modeOf(`${root}/fresh`), 0o777, "the mode applies to an existing file, too");
}
check("sandbox.fs.writeFile({ append, create, createNew, mode })", () =>
  checkWriteOptions((path, text, options) => fs.writeFile(path, bytes(text), options)));
check("sandbox.fs.writeTextFile({ append, create, createNew, mode })", () =>
  checkWriteOptions((path, text, options) => fs.writeTextFile(path, text, options)));

/** A stream that says nothing and does not end. */
const silent = () => new ReadableStream({});
check("sandbox.fs.writeFile({ signal })", async () => {
  const path = `${await tree()}/file`;
  await assert.rejects(fs.writeFile(path, silent(), { signal: soon() }), aborted);
});
check("sandbox.fs.writeTextFile({ signal })", async () => {
  const path = `${await tree()}/file`;
  await assert.rejects(fs.writeTextFile(path, silent(), { signal: soon() }), aborted);
});

check("sandbox.fs.writeTextFile", async () => {
  const path = `${await tree()}/file`;
  await fs.writeTextFile(path, "line\n😀\0");
  assert.equal(await fs.readTextFile(path), "line\n😀\0");
  await fs.writeTextFile("relative.txt", "here");
  assert.equal(await fs.readTextFile("/home/app/relative.txt"), "here");
});

check("sandbox.fs.writeTextFile(stream)", async () => {
  const path = `${await tree()}/file`;
  await fs.writeTextFile(path, ReadableStream.from(["größer ", "😀"]));
  assert.equal(await fs.readTextFile(path), "größer 😀");
});

check("sandbox.fs.readDir", async () => {
  const root = await tree({ file: "", "dir/inner": "" });
  await fs.symlink("file", `${root}/link`);
  const found = (await all(fs.readDir(root))).map((entry) =>
    [entry.name, entry.isFile, entry.isDirectory, entry.isSymlink].join(" ")
  );
  assert.deepEqual(found.sort(), ["dir false true false", "file true false false", "link false false true"]);
  await assert.rejects(all(fs.readDir(`${root}/none`)), missing);
  await assert.rejects(all(fs.readDir(`${root}/file`)), (error) => error.code === "ENOTDIR");
});

check("sandbox.fs.remove", async () => {
  const root = await tree({ file: "", "full/file": "" });
  await fs.remove(`${root}/file`);
  await assert.rejects(fs.lstat(`${root}/file`), missing);
  await assert.rejects(fs.remove(`${root}/full`), (error) => error.code === "ENOTEMPTY");
  await fs.remove(`${root}/full`, { recursive: true });
  await fs.mkdir(`${root}/empty`);
  await fs.remove(`${root}/empty`);
  assert.deepEqual(await all(fs.readDir(root)), []);
  await assert.rejects(fs.remove(`${root}/file`), missing);
});

check("sandbox.fs.mkdir", async () => {
  const root = await tree();
  await fs.mkdir(`${root}/a/b/c`, { recursive: true });
  await fs.mkdir(`${root}/a/b/c`, { recursive: true });
  await assert.rejects(fs.mkdir(`${root}/a`), fails("AlreadyExists", "EEXIST"));
  await assert.rejects(fs.mkdir(`${root}/x/y`), missing);
  await fs.mkdir(`${root}/private`, { mode: 0o700 });
  assert.equal(await modeOf(`${root}/private`), 0o700);
});

check("sandbox.fs.rename", async () => {
  const root = await tree({ one: "1", two: "2" });
  await fs.rename(`${root}/one`, `${root}/two`);
  assert.equal(await fs.readTextFile(`${root}/two`), "1");
  await assert.rejects(fs.rename(`${root}/one`, `${root}/x`), missing);
});

check("sandbox.fs.copyFile", async () => {
  const root = await tree({ from: "content" });
  await fs.chmod(`${root}/from`, 0o751);
  await fs.copyFile(`${root}/from`, `${root}/to`);
  assert.equal(await fs.readTextFile(`${root}/to`), "content");
  assert.equal(await modeOf(`${root}/to`), 0o751);
  assert.notEqual((await fs.stat(`${root}/to`)).ino, (await fs.stat(`${root}/from`)).ino);
  await assert.rejects(fs.copyFile(`${root}/none`, `${root}/to`), missing);
});

check("sandbox.fs.link", async () => {
  const root = await tree({ file: "same" });
  await fs.link(`${root}/file`, `${root}/other`);
  const [one, other] = [await fs.stat(`${root}/file`), await fs.stat(`${root}/other`)];
  assert.deepEqual([one.ino, one.nlink], [other.ino, 2]);
});

check("sandbox.fs.symlink", async () => {
  const root = await tree({ file: "through" });
  await fs.symlink("file", `${root}/link`, { type: "file" });
  assert.equal(await fs.readTextFile(`${root}/link`), "through");
  await assert.rejects(fs.symlink("file", `${root}/link`), fails("AlreadyExists", "EEXIST"));
});

check("sandbox.fs.readLink", async () => {
  const root = await tree({ file: "" });
  await fs.symlink("../as/written", `${root}/link`);
  assert.equal(await fs.readLink(`${root}/link`), "../as/written");
  await assert.rejects(fs.readLink(`${root}/file`), (error) => error.code === "EINVAL");
});

check("sandbox.fs.realPath", async () => {
  const root = await tree({ "dir/file": "" });
  await fs.symlink("dir", `${root}/link`);
  assert.equal(await fs.realPath(`${root}/link/../dir/file`), `${root}/dir/file`);
  assert.equal(await fs.realPath("."), "/home/app");
  await assert.rejects(fs.realPath(`${root}/none`), missing);
});

check("sandbox.fs.stat", async () => {
  const root = await tree({ file: "12345" });
  await fs.symlink("file", `${root}/link`);
  const info = await fs.stat(`${root}/link`);
  assert.deepEqual(
    [info.isFile, info.isDirectory, info.isSymlink, info.size, info.nlink, info.uid, info.gid],
    [true, false, false, 5, 1, 1000, 1000],
  );
  assert.equal(info.mode, 0o100644);
  for (const name of ["dev", "ino", "rdev", "blksize", "blocks"]) assert.ok(Number.isInteger(info[name]), name);
  for (const name of ["mtime", "atime", "ctime", "birthtime"]) {
    assert.ok(info[name] instanceof Date && Math.abs(info[name] - Date.now()) < 60_000, name);
  }
  assert.equal((await fs.stat("/dev/null")).isCharDevice, true);
  assert.equal((await fs.stat(await fifo())).isFifo, true);
  await assert.rejects(fs.stat(`${root}/none`), missing);
});

check("sandbox.fs.lstat", async () => {
  const root = await tree();
  await fs.symlink("nowhere", `${root}/link`);
  const info = await fs.lstat(`${root}/link`);
  assert.deepEqual([info.isSymlink, info.isFile, info.size], [true, false, 7]);
  await assert.rejects(fs.stat(`${root}/link`), missing);
});

check("sandbox.fs.chmod", async () => {
  const root = await tree({ file: "" });
  await fs.chmod(`${root}/file`, 0o4751);
  assert.equal(await modeOf(`${root}/file`), 0o4751);
  await assert.rejects(fs.chmod("/etc/hosts", 0o777), fails("PermissionDenied", "EPERM"));
});

check("sandbox.fs.chown", async () => {
  const root = await tree({ file: "" });
  await fs.chown(`${root}/file`, 1000, null);
  await fs.chown(`${root}/file`, null, 1000);
  const { uid, gid } = await fs.stat(`${root}/file`);
  assert.deepEqual([uid, gid], [1000, 1000]);
  await assert.rejects(fs.chown(`${root}/file`, 0, null), fails("PermissionDenied", "EPERM"));
});

check("sandbox.fs.umask", async () => {
  const root = await tree();
  const before = await fs.umask();
  assert.equal(before, 0o022);
  try {
    assert.equal(await fs.umask(0o077), before);
    assert.equal(await fs.umask(), 0o077);
    await fs.writeTextFile(`${root}/file`, "");
    assert.equal(await modeOf(`${root}/file`), 0o600);
  } finally {
    await fs.umask(before);
  }
});

const times = [new Date("2001-02-03T04:05:06.789Z"), new Date("2002-03-04T05:06:07.891Z")];
check("sandbox.fs.utime", async () => {
  const root = await tree({ file: "" });
  await fs.utime(`${root}/file`, ...times);
  const { atime, mtime } = await fs.stat(`${root}/file`);
  assert.deepEqual([atime, mtime], times);
});

check("sandbox.fs.truncate", async () => {
  const root = await tree({ file: "Hello World" });
  await fs.truncate(`${root}/file`, 7);
  assert.equal(await fs.readTextFile(`${root}/file`), "Hello W");
  await fs.truncate(`${root}/file`, 9);
  assert.equal(await fs.readTextFile(`${root}/file`), "Hello W\0\0");
  await fs.truncate(`${root}/file`);
  assert.equal((await fs.stat(`${root}/file`)).size, 0);
});

check("sandbox.fs.makeTempDir", async () => {
  const root = await tree();
  const [one, two] = [await fs.makeTempDir(), await fs.makeTempDir()];
  assert.match(one, /^\/tmp\/[^/]+$/);
  assert.notEqual(one, two);
  const named = await fs.makeTempDir({ dir: root, prefix: "pre_", suffix: "_suf" });
  assert.match(named, new RegExp(`^${root}/pre_.+_suf$`));
  const info = await fs.stat(named);
  assert.deepEqual([info.isDirectory, info.mode & 0o777], [true, 0o700]);
});

check("sandbox.fs.makeTempFile", async () => {
  const root = await tree();
  assert.match(await fs.makeTempFile(), /^\/tmp\/[^/]+$/);
  const named = await fs.makeTempFile({ dir: root, prefix: "pre_", suffix: ".txt" });
  assert.match(named, new RegExp(`^${root}/pre_.+\\.txt$`));
  const info = await fs.stat(named);
  assert.deepEqual([info.isFile, info.size, info.mode & 0o777], [true, 0, 0o600]);
});

const FILES = { "a.ts": "", "b.js": "", "sub/c.ts": "", "sub/deep/d.ts": "", "skipped/e.ts": "" };
/** The paths of entries below `root`, sorted; "" is the root itself. */
const below = (root, entries) => entries.map(({ path }) => path.slice(root.length + 1)).sort();

check("sandbox.fs.walk", async () => {
  const root = await tree(FILES);
  await fs.symlink("sub", `${root}/link`);
  assert.deepEqual(below(root, await all(fs.walk(root))), [
    "", "a.ts", "b.js", "link", "skipped", "skipped/e.ts", "sub", "sub/c.ts", "sub/deep", "sub/deep/d.ts",
  ]);
  const [first] = await all(fs.walk(root));
  assert.deepEqual([first.path, first.isDirectory, first.isFile, first.isSymlink], [root, true, false, false]);
  assert.deepEqual(below(root, await all(fs.walk(root, { maxDepth: 1, includeDirs: false, includeSymlinks: false }))), ["a.ts", "b.js"]);
  assert.deepEqual(below(root, await all(fs.walk(root, { exts: [".js"] }))), ["b.js"]);
  assert.deepEqual(below(root, await all(fs.walk(root, { includeFiles: false, includeSymlinks: false, maxDepth: 1 }))), ["", "skipped", "sub"]);
  const followed = below(root, await all(fs.walk(root, { followSymlinks: true, canonicalize: false, exts: ["ts"] })));
  assert.ok(followed.includes("link/deep/d.ts"), String(followed));
  await assert.rejects(all(fs.walk(`${root}/none`)), missing);
});

check("sandbox.fs.walk({ match, skip })", async () => {
  const root = await tree(FILES);
  const found = await all(fs.walk(root, { match: [/\.TS$/i], skip: [/\/skipped$/] }));
  assert.deepEqual(below(root, found), ["a.ts", "sub/c.ts", "sub/deep/d.ts"]);
});

check("sandbox.fs.expandGlob", async () => {
  const root = await tree(FILES);
  const glob = async (pattern, options) => below(root, await all(fs.expandGlob(pattern, { root, ...options })));
  assert.deepEqual(await glob("**/*.ts"), ["a.ts", "skipped/e.ts", "sub/c.ts", "sub/deep/d.ts"]);
  assert.deepEqual(await glob("*.{ts,js}"), ["a.ts", "b.js"]);
  assert.deepEqual(await glob("s*", { includeDirs: false }), []);
  assert.deepEqual(await glob("s*"), ["skipped", "sub"]);
  assert.deepEqual(await glob("**/*.ts", { exclude: ["skipped"] }), ["a.ts", "sub/c.ts", "sub/deep/d.ts"]);
  assert.deepEqual(await glob("*.TS", { caseInsensitive: true }), ["a.ts"]);
  const [entry] = await all(fs.expandGlob(`${root}/b.*`));
  assert.deepEqual([entry.path, entry.name, entry.isFile], [`${root}/b.js`, "b.js", true]);
});

check("sandbox.fs.upload", async () => {
  const root = await tree();
  const from = `${local}/up`;
  await mkdir(`${from}/inner`, { recursive: true });
  const data = randomBytes(200_000);
  await writeFile(`${from}/inner/data`, data);
  await writeFile(`${from}/text`, "text");
  await symlink("text", `${from}/link`);
  await fs.upload(`${from}/text`, `${root}/copy`);
  assert.equal(await fs.readTextFile(`${root}/copy`), "text");
  // A directory arrives under its own name.
  await fs.upload(from, root);
  assert.ok(Buffer.from(await fs.readFile(`${root}/up/inner/data`)).equals(data));
  assert.equal((await fs.lstat(`${root}/up/link`)).isSymlink, true);
});

check("sandbox.fs.download", async () => {
  const root = await tree({ text: "text" });
  const data = new Uint8Array(randomBytes(200_000));
  await fs.mkdir(`${root}/down/inner`, { recursive: true });
  await fs.writeFile(`${root}/down/inner/data`, data);
  await fs.symlink("inner/data", `${root}/down/link`);
  await fs.download(`${root}/text`, `${local}/text`);
  assert.equal(await readFile(`${local}/text`, "utf8"), "text");
  // A directory arrives under its own name.
  await fs.download(`${root}/down`, local);
  assert.ok((await readFile(`${local}/down/inner/data`)).equals(Buffer.from(data)));
  assert.ok(await readlink(`${local}/down/link`));
});

check("sandbox.fs.create", async () => {
  const root = await tree({ old: "content" });
  const file = await fs.create(`${root}/old`);
  await file.write(bytes("xy"));
  await file.seek(0, SeekMode.Start);
  assert.equal(await file.read(new Uint8Array(10)), 2);
  await file.close();
  assert.equal(await fs.readTextFile(`${root}/old`), "xy");
});

check("sandbox.fs.open", async () => {
  const root = await tree({ file: "content" });
  const reading = await fs.open(`${root}/file`);
  await assert.rejects(reading.write(bytes("x")), (error) => error.code === "EBADF");
  await reading.close();
  await assert.rejects(fs.open(`${root}/none`), missing);
  await assert.rejects(fs.open(`${root}/file`, { write: true, createNew: true }), fails("AlreadyExists", "EEXIST"));
  const fresh = await fs.open(`${root}/fresh`, { write: true, create: true, mode: 0o600 });
  await fresh.close();
  assert.equal(await modeOf(`${root}/fresh`), 0o600);
  const appending = await fs.open(`${root}/file`, { append: true });
  await appending.write(bytes("+"));
  await appending.close();
  assert.equal(await fs.readTextFile(`${root}/file`), "content+");
  await (await fs.open(`${root}/file`, { write: true, truncate: true })).close();
  assert.equal((await fs.stat(`${root}/file`)).size, 0);
});

/** Runs `body` with a handle to a file with this content, and closes it. */
async function handle(content, body, options = { read: true, write: true }) {
  const path = `${await tree({ file: content })}/file`;
  const file = await fs.open(path, options);
  try {
    await body(file, path);
  } finally {
    await file.close();
  }
}

check("FsFile.read", () =>
  handle("hello", async (file) => {
    const buffer = new Uint8Array(3);
    assert.equal(await file.read(buffer), 3);
    assert.equal(new TextDecoder().decode(buffer), "hel");
    assert.equal(await file.read(buffer), 2);
    assert.equal(await file.read(buffer), null);
  }));

check("FsFile.write", () =>
  handle("hello", async (file, path) => {
    assert.equal(await file.write(bytes("HE")), 2);
    assert.equal(await fs.readTextFile(path), "HEllo");
  }));

check("FsFile.seek", () =>
  handle("012345", async (file) => {
    assert.equal(await file.seek(2, SeekMode.Start), 2);
    assert.equal(await file.seek(3n, SeekMode.Current), 5);
    assert.equal(await file.seek(-4, SeekMode.End), 2);
    const buffer = new Uint8Array(10);
    assert.equal(await file.read(buffer), 4);
    await assert.rejects(file.seek(-1, SeekMode.Start), (error) => error.code === "EINVAL");
  }));

check("FsFile.stat", () =>
  handle("12345", async (file, path) => {
    const info = await file.stat();
    assert.deepEqual([info.isFile, info.size, info.ino], [true, 5, (await fs.stat(path)).ino]);
    assert.ok(info.mtime instanceof Date);
  }));

check("FsFile.truncate", () =>
  handle("hello world", async (file, path) => {
    await file.truncate(7);
    assert.equal(await fs.readTextFile(path), "hello w");
    await file.truncate();
    assert.equal((await fs.stat(path)).size, 0);
  }));

check("FsFile.utime", () =>
  handle("", async (file) => {
    await file.utime(...times);
    const { atime, mtime } = await file.stat();
    assert.deepEqual([atime, mtime], times);
  }));

for (const method of ["sync", "syncData"]) {
  check(`FsFile.${method}`, () =>
    handle("", async (file, path) => {
      await file.write(bytes("kept"));
      await file[method]();
      assert.equal(await fs.readTextFile(path), "kept");
    }));
}

/** Whether a process in the sandbox gets the lock now; `kind` is flock's `-s` or `-x`. */
const locks = async (kind, path) => (await bash(sandbox, `flock -n ${kind} ${path} true`)).code === 0;
check("FsFile.lock", () =>
  handle("", async (file, path) => {
    await file.lock();
    assert.deepEqual([await locks("-s", path), await locks("-x", path)], [true, false]);
    await file.unlock();
    await file.lock(true);
    assert.equal(await locks("-s", path), false);
    const other = await fs.open(path, { read: true, write: true });
    let got = false;
    const waiting = other.lock(true).then(() => got = true);
    // A call that waits for the lock holds up no other call.
    assert.equal(await fs.readTextFile(path), "");
    assert.equal(got, false);
    await file.unlock();
    await waiting;
    await other.close();
  }));

check("FsFile.unlock", () =>
  handle("", async (file, path) => {
    await file.lock(true);
    assert.equal(await locks("-x", path), false);
    await file.unlock();
    assert.equal(await locks("-x", path), true);
  }));

check("FsFile.close", async () => {
  const path = `${await tree({ file: "x" })}/file`;
  const file = await fs.open(path);
  await file.lock(true);
  await file.close();
  await assert.rejects(file.read(new Uint8Array(1)), fails("BadResource", "EBADF"));
  await waitUntil("the lock went with the file", () => locks("-x", path));
});

check("FsFile.readable", async () => {
  const data = "0123456789".repeat(20_000);
  await handle(data, async (file) => {
    const chunks = await all(file.readable);
    assert.equal(Buffer.concat(chunks).toString(), data);
    assert.ok(chunks.length > 1);
  });
});

check("FsFile.writable", () =>
  handle("", async (file, path) => {
    await ReadableStream.from(["hello", " ", "world"]).pipeThrough(new TextEncoderStream()).pipeTo(file.writable);
    assert.equal(await fs.readTextFile(path), "hello world");
  }));

check("FsFile[Symbol.asyncDispose]", async () => {
  const path = `${await tree({ file: "x" })}/file`;
  const file = await fs.open(path);
  await file[Symbol.asyncDispose]();
  await assert.rejects(file.read(new Uint8Array(1)), fails("BadResource", "EBADF"));
});
