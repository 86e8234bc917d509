// Chromium with axe-core, for the tests in a real browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";

const require = createRequire(join(process.cwd(), ".local/browser/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const { values: options } = parseArgs({
  options: {
    model: { type: "string" },
    shots: { type: "string", default: ".local/shots" },
    python: { type: "string", default: ".venv/bin/python" },
    chromium: { type: "string", default: "/usr/bin/chromium" },
  },
});

export const launch = () => chromium.launch({ executablePath: options.chromium, args: ["--no-sandbox"] });

/** A page whose console errors, and requests that are not `allowed`, are noted in `complaints`. */
export async function watched(browser, complaints, allowed) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true });
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && complaints.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`error: ${error.stack}`));
  page.on("request", (request) => allowed(request.url()) || complaints.push(`asks for ${request.url()}`));
  return page;
}

/** No serious finding of axe-core; the others are printed. */
export async function accessible(page, where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  for (const { id, nodes } of violations) console.log(`axe, ${where}: ${id}: ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  assert.deepEqual(serious.map(({ id }) => id), [], `axe finds serious faults ${where}`);
}

/** At both widths, in light and dark: accessible, no wider than the screen, and a screenshot. */
export async function everyLook(page, name, prepare = async () => {}) {
  for (const width of [1280, 390]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height: 900 });
      await page.emulateMedia({ colorScheme });
      await prepare();
      await accessible(page, `in ${name} at ${width} pixels, ${colorScheme}`);
      const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wider <= 0, `${name} is ${wider} pixels wider than ${width}`);
      await page.screenshot({ path: join(options.shots, `${name}-${width}-${colorScheme}.png`), fullPage: true });
      console.log(`ok  ${name}: ${width} pixels, ${colorScheme}`);
    }
  }
}
