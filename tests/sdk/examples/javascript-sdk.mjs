// The examples in the JavaScript SDK's README and doc comments: the blocks of each text, by their
// order there. The test takes the blocks themselves from the installed package, so they are as
// written; what is said here is all that differs, and why.
//
// `change` replaces a part of the text, `prints` is found in the output, `fails` says how an
// example ends that cannot succeed, `serves` waits for output that comes after the last line.

const NOT_OFFERED = { fails: /NOT_SUPPORTED/ };
const NO_EDITOR = { fails: /EDITOR_NOT_CONFIGURED|--editor/ };
const SLEEP = "they only keep the program alive";
const UNSIGNALLED = "`text()` drops the signal that was set before, so the command runs to its end";
const IMPORT_FORGOTTEN = [
  `import { Sandbox } from`,
  `import { Sandbox, SeekMode } from`,
  "the example uses SeekMode without importing it",
];
const ASSERT = ["jsr:@std/assert", "./assert.mjs", "that registry cannot be reached from here"];

export const javascript = {
  "README.md": {
    count: 28,
    1: { prints: /^result: 3$/m },
    // The text says /home/sandbox; the SDK's own defaults say /home/app.
    2: { prints: /^result: \/home\/app\n/m },
    3: {
      change: [[
        "const resp = await fetch(`${publicUrl}/time`);",
        "const resp = await fetchExposed(`${publicUrl}/time`);",
        "the test's server has a certificate and a name of its own",
      ]],
      prints: /now: ['"]20\d\d-/,
    },
    4: { change: [["10 * 60 * 1000", "10", SLEEP]], prints: /^ssh \S+@\S+$/m },
    5: { prints: /^result: 50$/m },
    6: NO_EDITOR,
    7: { prints: /^42$/m },
    8: { prints: /Exit code: 1\nSuccess: false/ },
    9: {
      change: [["sleep 30", "sleep 3", UNSIGNALLED]],
      prints: /^$/,
    },
    10: { prints: /Binary length: 5\nText length: 5/ },
    11: { prints: /Exit code: 42\nError message: Command failed/ },
    12: { prints: /^API_KEY: secret-key-123$/m },
    13: { prints: /^done: .*success: true/m },
    18: { prints: /^Total memory: \d+$/m },
    19: {
      change: [
        [`"example.com", `, "REGISTRY, ", "example.com cannot be reached from here"],
        ["https://example.com", "https://${REGISTRY}", "the same"],
      ],
    },
    22: NOT_OFFERED,
    23: NOT_OFFERED,
    24: NOT_OFFERED,
    25: NOT_OFFERED,
    26: NOT_OFFERED,
  },
  "esm/sandbox.d.ts": {
    count: 17,
    3: { prints: /username: ['"]\w+['"]/ },
    4: { prints: /^https:\/\// },
    // Nothing can be on `cat`'s standard error here, which the example asserts.
    6: { prints: /^Assertion failed\n$/ },
    7: { change: [ASSERT] },
    // The status of a failed command comes as an error; the SDK's author forgot `noThrow()`.
    10: { change: [ASSERT], fails: /exit code 143/ },
    14: { change: [["100000", "10", SLEEP]], prints: /^ssh \S+@\S+$/m },
    15: NO_EDITOR,
    16: NOT_OFFERED,
  },
  "esm/deno.d.ts": {
    count: 11,
    2: { change: [ASSERT] },
    3: { serves: /Deno runtime restarted/ },
    4: { prints: /^2$/m },
    5: { prints: /^2$/m },
    6: NOT_OFFERED,
    7: {
      change: [[
        "const response =",
        "await runtime.httpReady;\nconst response =",
        "a request before the program listens is refused",
      ]],
      prints: /^Hello, world!$/m,
    },
    8: { prints: /^2$/m },
    9: { prints: /^3$/m },
    10: { prints: /^3$/m },
  },
  "esm/env.d.ts": { count: 4, 0: { prints: /\/usr\/bin/ }, 2: { prints: /HOME: ['"]\/home\/app['"]/ } },
  "esm/fs.d.ts": {
    count: 46,
    0: { prints: /^hello$/m },
    4: { prints: /^hello$/m },
    8: { prints: /^home$/m },
    14: { change: [["1002", "1000", "the sandbox's user is in no group 1002"]] },
    24: { prints: /^\/home\/app\/file.txt\n\/home\/app\/file.txt$/m },
    27: { prints: /^Hello W$/m },
    28: { prints: /^18\n63$/m },
    33: { prints: /^hello world$/m },
    // It opens for writing only, and then reads.
    37: { fails: /Bad file descriptor/ },
    // Two errors in the text: SeekMode is not imported, and a buffer of 100 bytes is not one of 4.
    39: { change: [ASSERT, IMPORT_FORGOTTEN], fails: /not equal|deep/ },
    40: { change: [ASSERT, IMPORT_FORGOTTEN] },
    42: { change: [ASSERT] },
    43: { change: [ASSERT] },
  },
  "esm/child_process.d.ts": { count: 1, 0: { change: [ASSERT] } },
  // These build upon each other.
  "esm/volume.d.ts": {
    count: 2,
    0: { prints: /^vol_ord_/m },
    1: { prints: /^Volume capacity: 10000000000 bytes$/m },
  },
  "esm/snapshot.d.ts": {
    count: 2,
    0: { prints: /^snp_ord_/m },
    1: { prints: /^Snapshot flattened size: \d+ bytes$/m },
  },
  "esm/command/mod.d.ts": {
    count: 6,
    1: { prints: /^Command failed with code: 1$/m },
    2: { change: [["sleep 10", "sleep 1", UNSIGNALLED]] },
    3: { prints: /^hello world$/m },
    4: { prints: /^value$/m },
    5: { prints: /^true\nUint8Array.*\nhello$/m },
  },
};

/** What examples presume to find in a sandbox. */
export const IN_SANDBOX = `
sudo mkdir -p /foo /path/to/input /path/to/empty_dir/or /path/to/populated_dir/or/file
sudo chown -R app: /foo /path
cd ~
echo -n hello | tee hello.txt maybe_large_file.txt from.txt test.txt file.txt source.txt > myFile.txt
echo -n "hello world" | tee my_file.txt > /foo/bar.txt
echo hello > /path/to/input/file
touch file1.txt file2.txt file3.txt data.bin data2.bin myfile.txt /path/to/empty_dir/or/file /path/to/populated_dir/or/file/full
mkdir -p old new source-dir dest-dir path/to
touch old/path old/name source-dir/file
echo "console.log('entry')" > path/to/entrypoint.js
echo -n bytes > binary-file.png
`;

/** Local files that examples presume to find, each with its content. */
export const LOCAL = {
  "README.md": "read me",
  "my-project/main.ts": "export {};",
  "source.txt": "source",
  "source-dir/file": "in a directory",
  // A downloaded directory arrives in this one, under its own name.
  "dest-dir/file": "",
};
