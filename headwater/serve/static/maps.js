// The maps, side by side, each over the photo.

import { make, percent, short } from "./dom.js";
import { download, npy } from "./files.js";

const UNIT = { true: "relevance", false: "value" };

/** What stands under a map about the sum of its relevance. */
function account({ conservation, against }) {
  if (!conservation) return "This method keeps no account of its relevance.";
  const { seed, input, error } = conservation;
  const sum = `Sum of the map ${short(input)}, ${against ? "difference of the logits" : "probability"} ${short(seed)}`;
  return error < 1e-5 ? `${sum}: conserved to ${error.toExponential(1)}.` : `${sum}: ${percent(error)} is lost or gained.`;
}

function flowTable(flow) {
  const rows = flow.map(({ module, skip, branches }) => {
    const through = make("i");
    through.style.width = `${Math.min(Math.max(100 * skip, 0), 100)}%`;
    const bar = make("span", { className: "bar" }, through);
    const none = !branches.includes("skip");
    return make("tr", {},
      make("th", { scope: "row" }, module || "(network)"),
      make("td", {}, none ? "no skip" : percent(skip)), make("td", {}, none ? "" : percent(1 - skip)), make("td", {}, none ? "" : bar));
  });
  const head = make("tr", {}, ...["join", "skip", "branches", "both"].map((name) => make("th", { scope: "col" }, name)));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  const region = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Flow" }, table);
  return make("details", {}, make("summary", {}, "Flow through skips and branches"), region);
}

export class MapCard {
  /** A map as the server sent it, over the photo; its files begin with `stem`, `fetch(what)` asks for one. */
  constructor(answer, photo, stem, fetch) {
    this.method = answer.method;
    this.answer = answer;
    [this.height, this.width] = answer.arrays.values.shape;
    this.canvas = make("canvas", { width: this.width, height: this.height, "aria-hidden": "true" });
    this.readout = make("output", { className: "readout", "aria-live": "polite" });
    this.mark = make("div", { className: "mark", hidden: true });
    this.cell = [Math.floor(this.height / 2), Math.floor(this.width / 2)];
    const seen = make("div", { className: "seen" }, this.canvas, this.mark);
    const [left, top, right, bottom] = answer.box.map((part) => 100 * part);
    Object.assign(seen.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    const image = make("img", { src: photo.address, alt: "" });
    const stage = make("div", {
      className: "stage", tabIndex: 0, role: "group",
      "aria-label": `Map of ${this.method} for ${answer.explained}, over the photo. Arrow keys read the ${UNIT[answer.additive]}.`,
    }, image, seen);
    stage.addEventListener("pointermove", (event) => this.#point(event));
    stage.addEventListener("pointerdown", (event) => this.#point(event));
    stage.addEventListener("keydown", (event) => this.#move(event));
    const button = (text, action) => make("button", { type: "button", onclick: action, "aria-label": `${text} of ${this.method}` }, text);
    const downloads = make("div", { className: "downloads" },
      button("map (.npy)", () => download(`${stem}.npy`, npy(answer.arrays.map), "application/octet-stream")),
      button("overlay (PNG)", () => fetch("overlay")),
      button("figure (PNG)", () => fetch("figure")));
    if (answer.scales.length > 1) downloads.append(button("scales (PNG)", () => fetch("scales")));
    const sum = make("p", {}, account(answer));
    this.element = make("article", { className: "map" }, make("h3", {}, this.method), stage, this.readout, sum);
    if (answer.flow?.length) this.element.append(flowTable(answer.flow));
    this.element.append(downloads);
    this.paint(answer);
  }

  /** Draw other values or colours; `scale` is null for the map itself. */
  paint({ scale, arrays: { values, colours } }) {
    this.values = values;
    this.scaled = scale !== null;
    [this.height, this.width] = values.shape;
    Object.assign(this.canvas, { width: this.width, height: this.height });
    const image = new ImageData(new Uint8ClampedArray(colours), this.width, this.height);
    this.canvas.getContext("2d").putImageData(image, 0, 0);
  }

  #point(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - left) / width) * this.width);
    const row = Math.floor(((event.clientY - top) / height) * this.height);
    if (row < 0 || column < 0 || row >= this.height || column >= this.width) {
      this.mark.hidden = true;
      this.readout.value = "not seen by the network";
    } else this.#read(row, column);
  }

  #move(event) {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const step = event.shiftKey ? 10 : 1;
    const within = (value, size) => Math.min(Math.max(value, 0), size - 1);
    this.#read(within(this.cell[0] + step * down, this.height), within(this.cell[1] + step * right, this.width));
  }

  #read(row, column) {
    this.cell = [row, column];
    const value = this.values[row * this.width + column];
    const { additive, sum, against } = this.answer;
    const part = (additive || this.scaled) && sum && !against ? `, ${((100 * value) / sum).toPrecision(2)} % of the sum` : "";
    this.readout.value = `row ${row}, column ${column}: ${UNIT[additive || this.scaled]} ${short(value)}${part}`;
    this.mark.hidden = false;
    this.mark.style.left = `${(100 * (column + 0.5)) / this.width}%`;
    this.mark.style.top = `${(100 * (row + 0.5)) / this.height}%`;
  }
}
