// The page in a real browser: uploads, explains, compares, walks, downloads, and is given what it must refuse.
//
//   node tests/browser/page.mjs [--model NAME] [--shots FOLDER] [--python PROGRAM]
//
// Run by `make browser`, which installs playwright-core and axe-core into .local/browser; Chromium is the system's.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { everyLook, launch, options, watched } from "./browser.mjs";

const files = mkdtempSync(join(tmpdir(), "headwater-browser-"));
execFileSync(options.python, ["-c", `
import sys, zlib, struct
from pathlib import Path
from PIL import Image
out = Path(sys.argv[1])
(out / "broken.jpg").write_bytes(b"this is no image")
(out / "cut.jpg").write_bytes(Path("examples/tabby.jpg").read_bytes()[:9000])
(out / "empty.png").write_bytes(b"")
(out / "heavy.jpg").write_bytes(bytes(20_000_001))
chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
(out / "wide.png").write_bytes(b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
frames = [Image.new("RGB", (90, 70), colour) for colour in ("red", "blue")]
frames[0].save(out / "animated.gif", save_all=True, append_images=frames[1:])
`, files]);

const server = spawn(options.python, ["-m", "headwater", "serve", "--port", "0", ...(options.model ? ["--model", options.model] : [])]);
let log = "";
const address = await new Promise((resolve, reject) => {
  for (const stream of [server.stdout, server.stderr]) {
    stream.on("data", (text) => {
      log += text;
      const found = /http:\/\/[\w.:]+/.exec(log);
      if (log.includes("Ctrl-C") && found) resolve(found[0]);
    });
  }
  server.on("exit", () => reject(new Error(`the server ended: ${log}`)));
});

let ending = false;
server.on("exit", (code, signal) => {
  if (ending) return;
  console.error(`the server ended on its own: ${signal ?? code}\n${log}`);
  process.exit(1);
});
const complaints = [];
const browser = await launch();
const results = {};

async function opened() {
  const page = await watched(browser, complaints, (url) => url.startsWith(address) || url.startsWith("blob:"));
  page.setDefaultTimeout(900000); // a busy machine takes its time to import the libraries of a method
  await page.goto(address);
  await page.getByText("Choose a photo, or pick an example.").waitFor();
  return page;
}

const status = (page) => page.locator("#status").textContent();
const done = (page) => page.locator("#status", { hasText: "Done." }).waitFor();
const problem = (page) => page.locator("#problem:visible").textContent();

async function upload(page, path) {
  await page.setInputFiles("#file", path);
}

async function saved(page, name) {
  const waiting = page.waitForEvent("download");
  await page.getByRole("button", { name }).first().click();
  const file = await waiting;
  return { name: file.suggestedFilename(), content: readFileSync(await file.path()) };
}

const steps = {
  async "upload and first map"(page) {
    const began = Date.now();
    await upload(page, "examples/tabby.jpg");
    await page.locator(".map").first().waitFor();
    results.first_map_ms = Date.now() - began;
    await done(page);
    assert.match(await page.locator("#explained").textContent(), /^Explained: .+, probability/);
    assert.match(await page.locator(".map p").first().textContent(), /conserved/);
  },
  async "another class"(page) {
    const second = page.locator("#classes .class").nth(1);
    const name = await second.locator("span").first().textContent();
    await second.click();
    await page.locator("#explained", { hasText: `Explained: ${name},` }).waitFor();
    await done(page);
    assert.equal(await page.locator("#classes .class[aria-pressed=true] span").first().textContent(), name);
  },
  async "a class by name, and one that does not exist"(page) {
    await page.getByLabel("Another class").fill("nonsense");
    await page.getByRole("button", { name: "Explain it" }).click();
    await page.locator("#problem:visible").waitFor();
    assert.match(await problem(page), /has no class 'nonsense'/);
    await page.getByLabel("Another class").fill("espresso");
    await page.keyboard.press("Enter");
    await page.locator("#explained", { hasText: "Explained: espresso," }).waitFor();
    await done(page);
    assert.ok(!(await page.locator("#problem").isVisible()));
  },
  async "another method beside the first"(page) {
    await page.getByLabel("Method 2").selectOption("gradcam");
    await page.locator(".map").nth(1).waitFor();
    await done(page);
    assert.deepEqual(await page.locator(".map h3").allTextContents(), ["headwater", "gradcam"]);
  },
  async "why this class and not that"(page) {
    await page.getByLabel("Method 2").selectOption("otsuki2024");
    await done(page);
    await page.locator("#classes button", { hasText: "why not?" }).first().click();
    await page.locator("#explained", { hasText: "espresso, not " }).waitFor();
    await done(page);
    assert.match(await page.locator(".map p").nth(1).textContent(), /difference of the logits/);
    await page.getByLabel("Method 2").selectOption("gradcam");
    await page.locator("#problem", { hasText: "gradcam: it explains one class" }).waitFor();
    await page.getByLabel("Another class").fill("espresso");
    await page.keyboard.press("Enter");
    await page.locator("#explained", { hasText: "Explained: espresso, probability" }).waitFor();
    await done(page);
  },
  async "scales"(page) {
    await page.locator("#scale").fill("0");
    await page.waitForTimeout(500);
    assert.match(await page.locator("#scale-shown").textContent(), /^\d+ x \d+, /);
    await page.locator("#scale").focus();
    await page.keyboard.press("End");
    assert.equal(await page.locator("#scale-shown").textContent(), "the map itself");
  },
  async "reading values with mouse and keyboard"(page) {
    const stage = page.locator(".stage").first();
    await stage.hover();
    const output = page.locator(".readout").first();
    assert.match(await output.textContent(), /row \d+, column \d+: relevance/);
    const before = await output.textContent();
    await stage.focus();
    await page.keyboard.press("ArrowRight");
    assert.notEqual(await output.textContent(), before);
  },
  async "quantization, opacity and colours"(page) {
    const pixels = () => page.locator(".seen canvas").first().evaluate((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    });
    const before = await pixels();
    await page.locator("#levels").fill("4");
    await page.waitForTimeout(500);
    assert.ok((await pixels()) <= 4 && before > 4, `${before} colours, then ${await pixels()}`);
    await page.locator("#levels").fill("1");
    await page.locator("#colormap").selectOption("jet");
    await page.locator("#opacity").fill("40");
    assert.equal(await page.locator(".seen canvas").first().evaluate((canvas) => canvas.style.opacity), "0.4");
    await page.locator("#colormap").selectOption("");
    await page.locator("#opacity").fill("85");
  },
  async "downloads"(page) {
    const map = await saved(page, "map (.npy) of headwater");
    assert.match(map.name, /^tabby\..*headwater\.espresso\.npy$/);
    const shape = execFileSync(options.python, ["-c", `
import io, sys, numpy as np
a = np.load(io.BytesIO(sys.stdin.buffer.read()))
print(a.dtype, a.ndim, bool(np.isfinite(a).all()), a.shape[0] == a.shape[1])`], { input: map.content }).toString().trim();
    assert.equal(shape, "float32 2 True True");
    for (const kind of ["overlay", "figure"]) {
      const image = await saved(page, `${kind} (PNG) of gradcam`);
      assert.match(image.name, new RegExp(`^tabby\\..*gradcam\\.espresso\\.${kind}\\.png$`));
      assert.equal(image.content.subarray(1, 4).toString(), "PNG");
    }
    const paper = await saved(page, "Figure of all maps for a paper (PDF)");
    assert.equal(paper.content.subarray(1, 4).toString(), "PDF");
    assert.match(await page.locator("#caption").textContent(), /Columns: what the network saw/);
  },
  async "curves, and a walk through their steps"(page) {
    await page.getByRole("button", { name: "Compute the curves" }).click();
    await page.locator("#walk canvas").nth(1).waitFor();
    await done(page);
    const slider = page.locator("#step");
    const times = await slider.evaluate(async (input) => {
      const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
      const taken = [];
      for (let step = 0; step <= Number(input.max); step++) {
        await frame();
        const began = performance.now();
        input.value = step;
        input.dispatchEvent(new Event("input"));
        taken.push(performance.now() - began);
      }
      return taken;
    });
    results.slider_steps = times.length;
    results.slider_longest_ms = Math.max(...times);
    assert.ok(results.slider_longest_ms < 100, `a step took ${results.slider_longest_ms} ms`);
    const last = await page.locator("#walk p").first().textContent();
    assert.match(last, /^100.0 % of the pixels inserted/);
    await slider.focus();
    await page.keyboard.press("Home");
    for (let k = 0; k < 12; k++) await page.keyboard.press("ArrowRight");
    assert.match(await page.locator("#step-shown").textContent(), /^12 of/);
    await page.locator("#way").selectOption("deletion");
    await page.locator("#protocol").selectOption("budget");
    assert.match(await page.locator("#walk p").first().textContent(), /pixels deleted/);
    assert.match(await page.locator("#chart svg").getAttribute("aria-label"), /deletion curves; areas: headwater 0\.\d+, gradcam 0\.\d+/);
    await page.locator("#way").selectOption("insertion");
  },
  async "what must be refused"(page) {
    for (const [file, message] of [
      ["broken.jpg", /not an image that can be read.*Accepted: JPEG/],
      ["cut.jpg", /cannot be read/],
      ["empty.png", /empty \(0 bytes\)/],
      ["heavy.jpg", /20\.0 MB.*Accepted/],
      ["wide.png", /(30000 x 30000 pixels|too large to decode).*Accepted/],
    ]) {
      await upload(page, join(files, file));
      await page.waitForFunction((text) => new RegExp(text).test(document.querySelector("#problem:not([hidden])")?.textContent), message.source);
    }
    await upload(page, join(files, "animated.gif"));
    await page.locator("#problem", { hasText: "several frames; the first one is explained" }).waitFor();
    await done(page);
  },
  async "work that takes long is cancelled"(page) {
    await page.getByLabel("Method 2").selectOption("rise");
    await page.locator("#status", { hasText: "Computing rise" }).waitFor();
    await page.locator("#progress:visible").waitFor();
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.locator("#status", { hasText: "Cancelled." }).waitFor();
    await page.getByLabel("Method 2").selectOption("gradcam");
    await done(page);
  },
  async "two photos at once: the later one counts"(page) {
    await page.evaluate(() => document.querySelectorAll("#examples button").forEach((one) => one.click()));
    await page.locator("#explained", { hasText: "espresso" }).waitFor();
    await done(page);
    const file = await saved(page, "overlay (PNG) of gradcam");
    assert.match(file.name, /^espresso\./);
  },
  async "the keyboard alone"(page) {
    await page.reload();
    await page.getByText("Choose a photo, or pick an example.").waitFor();
    for (let k = 0; k < 20 && (await page.evaluate(() => document.activeElement.textContent)) !== "espresso"; k++) {
      await page.keyboard.press("Tab");
    }
    await page.keyboard.press("Enter");
    await page.locator("#explained", { hasText: "espresso" }).waitFor();
    await done(page);
  },
};

let failed = false;
try {
  const page = await opened();
  for (const [name, step] of Object.entries(steps)) {
    const began = Date.now();
    await step(page);
    console.log(`ok  ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
  }
  mkdirSync(options.shots, { recursive: true });
  await page.getByLabel("Method 2").selectOption("gradcam");
  await done(page);
  await page.getByRole("button", { name: "Compute the curves" }).click();
  await page.locator("#walk canvas").nth(1).waitFor();
  await done(page);
  await page.locator("#step").fill("15");
  await page.locator("#levels").fill("1");
  await page.locator("details summary").first().click();
  await everyLook(page, "page", () => page.locator(".stage").first().hover());
  assert.deepEqual(complaints, [], "the browser complains");
  assert.ok(!log.includes("Traceback"), log);
} catch (error) {
  failed = true;
  console.error(error, "\n", complaints.join("\n"), "\n", log);
  const page = browser.contexts()[0]?.pages()[0];
  if (page) console.error(`status: ${await status(page)}; problem: ${await page.locator("#problem").textContent()}`);
} finally {
  ending = true;
  await browser.close();
  server.kill("SIGINT");
}
console.log(JSON.stringify(results));
process.exit(failed ? 1 : 0);
