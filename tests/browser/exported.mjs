// examples/browser.html in a real browser: a photo is explained by onnxruntime-web on the reader's machine alone.
//
//   node tests/browser/exported.mjs [--python PROGRAM] [--chromium PROGRAM]
//
// Run by `make browser`, which installs playwright-core, axe-core and onnxruntime-web into .local/browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, createReadStream, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { extname, join, normalize, resolve } from "node:path";
import { parseArgs } from "node:util";

const packages = resolve(".local/browser/node_modules");
const require = createRequire(join(packages, "here.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const { values: options } = parseArgs({
  options: {
    python: { type: "string", default: ".venv/bin/python" },
    chromium: { type: "string", default: "/usr/bin/chromium" },
  },
});

const folder = mkdtempSync(join(tmpdir(), "headwater-exported-"));
const python = (code, ...given) => execFileSync(options.python, ["-c", code, ...given], { maxBuffer: 2 ** 26 }).toString();
copyFileSync("examples/browser.html", join(folder, "browser.html"));
writeFileSync(join(folder, "broken.jpg"), "this is no image");
execFileSync(options.python, ["-m", "headwater", "export", "--model", "tiny20", "--pixels", "--out", join(folder, "explainer.onnx")]);

// A photo that is not resized, as browsers resize otherwise, with what Headwater and the example in Python say of it.
const expected = JSON.parse(python(`
import json, subprocess, sys
from pathlib import Path
import torch, headwater as hw
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor
out = Path(sys.argv[1])
model = hw.load_model("tiny20")
settings = model.card.preprocessing
side, left = settings.crop, (settings.resize - settings.crop) // 2
image = Image.open("examples/tabby.jpg").convert("RGB").crop((60, 0, 360, 300)).resize((settings.resize,) * 2)
image.save(out / "small.png")
pixels = to_tensor(image.crop((left, left, left + side, left + side)))[None]
e = hw.LRP(model)(normalize(pixels, settings.mean, settings.std))
said = subprocess.run(
    [sys.executable, "examples/exported.py", out / "explainer.onnx", out / "small.png", out / "map.png"],
    check=True, capture_output=True, text=True).stdout
account = [e.conservation.seed.item(), e.conservation.input.item()]
print(json.dumps({"said": said.strip(), "side": side, "pixels": pixels.flatten().tolist(), "account": account,
                  "map": e.heatmap.flatten().tolist(), "logits": e.logits.flatten().tolist()}))
`, folder));

const kinds = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };
const asked = [];
const server = createServer((request, response) => {
  const path = normalize(new URL(request.url, "http://localhost").pathname);
  let bytes = 0;
  request.on("data", (part) => { bytes += part.length; });
  request.on("end", () => asked.push({ method: request.method, url: request.url, bytes }));
  const file = path.startsWith("/node_modules/") ? join(packages, path.slice("/node_modules/".length)) : join(folder, path);
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) return void response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": kinds[extname(file)] ?? "application/octet-stream" });
  createReadStream(file).pipe(response);
  request.resume();
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const address = `http://127.0.0.1:${server.address().port}`;

const furthest = (given, wanted) => {
  const largest = Math.max(...wanted.map(Math.abs));
  return Math.max(...wanted.map((value, k) => Math.abs(given[k] - value))) / largest;
};

const browser = await chromium.launch({ executablePath: options.chromium, args: ["--no-sandbox"] });
const complaints = [], results = {};
let failed = false;
try {
  const context = await browser.newContext({ viewport: { width: 390, height: 900 } });
  const page = await context.newPage();
  page.setDefaultTimeout(600000); // a busy machine
  page.on("console", (message) => message.type() === "error" && complaints.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    const own = request.url().startsWith(address) || request.url().startsWith("blob:");
    if (!own || request.method() !== "GET" || request.postData()) complaints.push(`${request.method()} ${request.url()}`);
  });
  const said = (text) => page.locator("#said", { hasText: text }).waitFor();
  await page.goto(`${address}/browser.html`);
  await said("is ready");
  const before = asked.length;

  // Without any network from here on: what is explained now is explained on this machine.
  await context.setOffline(true);
  await page.setInputFiles("#photo", join(folder, "small.png"));
  await said("the map sums to");
  assert.equal(await page.locator("#said").textContent(), expected.said, "as examples/exported.py says");
  console.log(`ok  a photo is explained without a network: ${expected.said}`);

  const found = await page.evaluate(async ({ pixels, side }) => {
    const image = new ort.Tensor("float32", Float32Array.from(pixels), [1, 3, side, side]);
    const began = performance.now();
    const { logits, map, conservation } = await session.run({ image });
    const ms = performance.now() - began;
    return { logits: [...logits.data], map: [...map.data], account: [...conservation.data], ms };
  }, expected);
  results.map = furthest(found.map, expected.map);
  results.logits = furthest(found.logits, expected.logits);
  results.account = furthest(found.account, expected.account);
  results.explained_ms = Math.round(found.ms);
  assert.ok(results.map < 1e-4 && results.logits < 1e-4 && results.account < 1e-5, JSON.stringify(results));
  console.log(`ok  map, logits and conservation are LRP's`);

  const drawn = await page.locator("#map").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { width: canvas.width, colours: new Set(new Uint32Array(data.buffer)).size };
  });
  assert.ok(drawn.width === expected.side && drawn.colours > 100, JSON.stringify(drawn));

  await page.setInputFiles("#photo", "examples/espresso.jpg");
  await page.locator("#said", { hasText: expected.said }).waitFor({ state: "detached" });
  await said("the map sums to");
  console.log(`ok  a photo of another size: ${await page.locator("#said").textContent()}`);
  await page.setInputFiles("#photo", join(folder, "broken.jpg"));
  await said("Cannot: ");
  console.log(`ok  what is no image: ${await page.locator("#said").textContent()}`);
  assert.equal(asked.length, before, `the page asked for ${JSON.stringify(asked.slice(before))}`);
  await context.setOffline(false);
  assert.deepEqual(asked.filter(({ method, bytes }) => method !== "GET" || bytes), [], "the page sends something");
  assert.deepEqual(complaints, [], "the browser complains");
  console.log("ok  nothing was sent");

  const refused = await page.evaluate(() => fetch("https://example.org/", { method: "POST", body: "photo" }).then(() => false, () => true));
  assert.ok(refused && complaints.splice(0).some((text) => text.includes("Content Security Policy")), "the policy forbids it");
  console.log("ok  the page's policy forbids to send it elsewhere");

  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document));
  for (const { id, nodes } of violations) console.log(`axe: ${id}: ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  assert.deepEqual(violations.filter(({ impact }) => ["serious", "critical"].includes(impact)).map(({ id }) => id), []);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page is wider than 390 pixels");
} catch (error) {
  failed = true;
  console.error(error, "\n", complaints.join("\n"), "\n", asked);
} finally {
  await browser.close();
  server.close();
  rmSync(folder, { recursive: true });
}
console.log(JSON.stringify(results));
process.exit(failed ? 1 : 0);
