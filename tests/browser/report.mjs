// The report of an evaluation in a real browser: opened from disk, without a request; links and folded parts work.
//
//   node tests/browser/report.mjs [--shots FOLDER] [--python PROGRAM]
//
// Evaluates tiny20 on parts of the photographs in examples/.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { everyLook, launch, options, watched } from "./browser.mjs";

const folder = mkdtempSync(join(tmpdir(), "headwater-report-"));
const python = (...parts) => execFileSync(options.python, parts, { stdio: ["ignore", "inherit", "inherit"] });
python("-c", `
import sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps
rng = np.random.default_rng(0)
corners = "<xmin>{0}</xmin><ymin>{0}</ymin><xmax>{1}</xmax><ymax>{1}</ymax>"
for name in ("tabby", "espresso"):
    photo, folder = Image.open(f"examples/{name}.jpg").convert("RGB"), Path(sys.argv[1]) / name
    folder.mkdir(parents=True)
    for k in range(10):
        side = int(min(photo.size) * rng.uniform(0.55, 1))
        x, y = (int(rng.integers(0, whole - side + 1)) for whole in photo.size)
        part = photo.crop((x, y, x + side, y + side))
        (ImageOps.mirror(part) if k % 2 else part).save(folder / f"{name}-{k}.jpg", quality=92)
        if k < 5:
            box = corners.format(side // 5, 4 * side // 5)
            (folder / f"{name}-{k}.xml").write_text(f"<annotation><object><bndbox>{box}</bndbox></object></annotation>")
`, join(folder, "photos"));
const run = join(folder, "results");
python("-m", "headwater", "evaluate", "--data", join(folder, "photos"), "--model", "tiny20", "--samples", "20",
  "--methods", "headwater,otsuki2024,gradcam,random", "--step", "100", "--out", run);
python("-m", "headwater", "report", run);

mkdirSync(options.shots, { recursive: true });
const address = pathToFileURL(join(run, "report.html")).href;
const complaints = [];
const browser = await launch();
let failed = false;
try {
  const page = await watched(browser, complaints, (url) => url === address || url.startsWith("data:"));
  await page.goto(address);
  for (const link of await page.locator("nav a").all()) {
    await link.click();
    assert.ok(await page.locator(":target h2").isVisible(), await link.textContent());
  }
  const blank = await page.locator("img").evaluateAll((images) => images.filter((image) => !image.naturalWidth).length);
  assert.equal(blank, 0, "images that cannot be shown");
  await everyLook(page, "report");
  assert.deepEqual(complaints, [], "the browser complains");
} catch (error) {
  failed = true;
  console.error(error, "\n", complaints.join("\n"));
} finally {
  await browser.close();
}
process.exit(failed ? 1 : 0);
