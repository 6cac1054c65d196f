// The examples in the SDK's own texts: README.md and the doc comments of the installed package.
// Deno only: they say `await using`.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { javascript, LOCAL } from "../examples/javascript-sdk.mjs";
import { client, discard } from "./support.mjs";

const sdk = new URL("./node_modules/@deno/sandbox/", import.meta.url);
const FENCE = /```(?:ts|js)\n(.*?)```/gs;

/** The code blocks of one of the package's texts. */
async function blocksOf(source) {
  const text = await readFile(new URL(source, sdk), "utf8");
  if (source.endsWith(".md")) return [...text.matchAll(FENCE)].map(([, block]) => block);
  return [...text.matchAll(/\/\*\*(.*?)\*\//gs)].flatMap(([, comment]) => {
    let lines = comment.split("\n").map((line) => line.replace(/^\s*\* ?/, "")).join("\n");
    // One fence is never closed.
    if (lines.split("```").length % 2 === 0) lines += "\n```";
    return [...lines.matchAll(FENCE)].map(([, block]) => block);
  });
}

const nameOf = (source, number) => `${source.replaceAll(/[^a-z]+/gi, "-")}-${number}`;

/** The example as a module of its own. */
function moduleOf(name, block, { change = [] }) {
  for (const [from, to, why] of change) {
    assert.ok(why && block.includes(from), `${name}: ${from}`);
    block = block.replaceAll(from, to);
  }
  const prepared = `../examples_prepared.mjs?${name}`;
  const names = ["console", "fetchExposed"];
  if (!/import .*Sandbox.* from/.test(block) && /\bSandbox\b/.test(block)) names.push("Sandbox");
  let head = `import { ${names.join(", ")} } from "${prepared}";\n`;
  if (block.includes("REGISTRY")) {
    head += `import { registry } from "${prepared}";\nconst REGISTRY = await registry();\n`;
  }
  return head + block.replaceAll(`"@deno/sandbox"`, JSON.stringify(prepared));
}

const examples = [];
for (const [source, { count, ...special }] of Object.entries(javascript)) {
  const blocks = await blocksOf(source);
  test(`${source} has the examples that are listed`, () => assert.equal(blocks.length, count));
  blocks.forEach((block, number) => {
    const rules = special[number] ?? {};
    const name = nameOf(source, number);
    examples.push({ source, number, name, rules, text: moduleOf(name, block, rules) });
  });
}

const VOLUMES = ["my-volume", "volume-slug-or-id", "volume-slug-or-id-1"];
let results, modules, local;
before(async () => {
  await client.volumes.create({ slug: VOLUMES[1], region: "ord", capacity: "1GB", from: "builtin:debian-13" });
  await client.volumes.create({ slug: VOLUMES[2], region: "ord", capacity: "300MB" });
  modules = await mkdtemp(new URL("./.example-", import.meta.url).pathname);
  local = await mkdtemp("/tmp/examples-");
  for (const [name, content] of Object.entries(LOCAL)) {
    await mkdir(dirname(`${local}/${name}`), { recursive: true });
    await writeFile(`${local}/${name}`, content);
  }
  await writeFile(
    `${modules}/assert.mjs`,
    `import assert from "node:assert/strict";\nexport { assert };\nexport const assertEquals = assert.deepEqual;\n`,
  );
  // What builds upon each other runs in order, the rest as it comes.
  const groups = [[]];
  for (const { source, name, rules, text } of examples) {
    await writeFile(`${modules}/${name}.ts`, text);
    const one = { name, serves: rules.serves?.source };
    if (/volume|snapshot/.test(source)) groups[0].push(one);
    else groups.push([one]);
  }
  await writeFile(`${modules}/groups.json`, JSON.stringify(groups));
  const program = new URL("./examples_run.mjs", import.meta.url).pathname;
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ["run", "-A", "--no-lock", "--no-check", program, modules],
    { cwd: local, timeout: 120_000, maxBuffer: 1 << 26 },
  );
  results = JSON.parse(stdout.slice(stdout.lastIndexOf("\nRESULTS ") + 9));
});
after(async () => {
  for (const directory of [modules, local]) if (directory) await rm(directory, { recursive: true });
  await discard(client.snapshots, "my-snapshot");
  await discard(client.volumes, ...VOLUMES);
});

for (const { source, number, name, rules } of examples) {
  test(`example ${number} of ${source}`, () => {
    const { output, error } = results[name] ?? {};
    if (rules.fails) assert.match(error ?? "(it succeeded)", rules.fails);
    else assert.equal(error, undefined, `${error}\n${output}`);
    if (rules.prints ?? rules.serves) assert.match(output, rules.prints ?? rules.serves);
  });
}
