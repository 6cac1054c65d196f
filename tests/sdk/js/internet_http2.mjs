// A site that speaks HTTP/2 alone, in the internet of tests/sdk/py/internet.py. It records each
// request as internet_servers.py does, and echoes one header.
import { appendFileSync, readFileSync } from "node:fs";
import http2 from "node:http2";
import process from "node:process";

const [directory, address, port] = process.argv.slice(2);
const read = (name) => readFileSync(`${directory}/${name}`);
const server = http2.createSecureServer({
  allowHTTP1: false, cert: read("site.pem"), key: read("site-key.pem"),
});
let connections = 0;
server.on("session", (session) => {
  session.number = ++connections;
});
server.on("stream", (stream, headers) => {
  let length = 0;
  stream.on("data", (chunk) => length += chunk.length);
  stream.on("error", () => {});
  stream.on("end", () => {
    const one = { kind: "http2", connection: stream.session.number, headers };
    appendFileSync(`${directory}/seen`, JSON.stringify(one) + "\n");
    stream.respond({ ":status": 200, "x-echo": headers["x-key"] ?? "none" });
    stream.end(`${headers[":method"]} ${length}`);
  });
});
server.listen(Number(port), address, () => console.log("ready"));
