// Creates a sandbox with the options in the first argument, and prints as JSON how the SDK words
// the refusal. For tests/sdk/py, whose servers are not those of the JavaScript suite.
import process from "node:process";
import { Sandbox } from "@deno/sandbox";

try {
  const sandbox = await Sandbox.create(JSON.parse(process.argv[2]));
  await sandbox.close();
  console.log(JSON.stringify({ class: null }));
} catch (error) {
  const { status, code, message } = error;
  console.log(JSON.stringify({ class: error.constructor.name, status, code, message }));
}
process.exit(0);
