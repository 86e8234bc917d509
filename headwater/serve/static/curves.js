// Insertion and deletion: curves, and the image at each of their steps.

import { $, make, percent } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, BOTTOM, TOP] = [260, 58, 38, 10];

function draw(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const up = (part) => HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP);

export class Curves {
  #methods = [];
  #canvases = [];
  #now;
  #width = 640; // of the chart, in pixels, so that its letters keep their size on a narrow screen

  constructor() {
    for (const id of ["protocol", "way"]) $(id).addEventListener("change", () => this.#drawAll());
    addEventListener("resize", () => this.#drawAll());
    $("step").addEventListener("input", () => this.walk());
  }

  clear() {
    this.#methods = [];
    $("curves").hidden = true;
  }

  /** One method's curves, as the server sent them. */
  add({ method, areas, arrays }) {
    this.#methods.push({ method, areas, arrays });
    $("curves").hidden = false;
    const [height, width] = arrays.input.shape;
    if (this.#methods.length === 1) {
      $("walk").replaceChildren();
      this.#canvases = [];
    }
    const canvas = make("canvas", { width, height, role: "img" });
    this.#canvases.push({ canvas, image: new ImageData(width, height) });
    const probability = make("p", { className: "quiet" });
    this.#canvases.at(-1).probability = probability;
    $("walk").append(make("div", {}, make("h3", {}, method), canvas, probability));
    this.#drawAll();
  }

  #curve({ arrays }) {
    const protocol = $("protocol").value;
    const values = arrays[`${protocol}.${$("way").value}`];
    return { values, fraction: arrays[`${protocol}.fraction`], ranks: arrays[`${protocol}.ranks`] };
  }

  #across(part) {
    return LEFT + part * (this.#width - LEFT - 12);
  }

  #drawAll() {
    if (!this.#methods.length) return;
    this.#width = Math.min(Math.max($("chart").clientWidth, 260), 896);
    const points = this.#curve(this.#methods[0]).values.length;
    const before = $("step").max > 0 ? $("step").value / $("step").max : 0;
    $("step").max = points - 1;
    $("step").value = Math.round(before * (points - 1));
    const svg = draw("svg", { viewBox: `0 0 ${this.#width} ${HEIGHT}`, role: "img" });
    const way = $("way").value;
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(draw("line", { class: "axis", x1: LEFT, x2: this.#across(1), y1: up(part), y2: up(part) }));
      svg.append(draw("text", { x: LEFT - 6, y: up(part) + 4, "text-anchor": "end" }, part));
      const text = `${100 * part} %`;
      svg.append(draw("text", { x: this.#across(part), y: HEIGHT - 20, "text-anchor": part === 1 ? "end" : "middle" }, text));
    }
    const middle = (TOP + HEIGHT - BOTTOM) / 2;
    svg.append(
      draw("text", { x: this.#across(0.5), y: HEIGHT - 3, "text-anchor": "middle" }, `pixels ${way === "insertion" ? "inserted" : "deleted"}`),
      draw("text", { x: 14, y: middle, transform: `rotate(-90 14 ${middle})`, "text-anchor": "middle" }, "probability of the class"));
    const told = [];
    this.#methods.forEach((one, k) => {
      const { values, fraction } = this.#curve(one);
      const line = Array.from(values, (value, p) => `${this.#across(fraction[p]).toFixed(1)},${up(value).toFixed(1)}`).join(" ");
      svg.append(draw("polyline", { class: `s${k}`, points: line }));
      told.push(`${one.method} ${one.areas[$("protocol").value][way].toFixed(3)}`);
    });
    svg.setAttribute("aria-label", `${way} curves; areas: ${told.join(", ")}`);
    this.#now = this.#methods.map((_, k) => draw("circle", { class: `s${k}`, r: 5, fill: "none", "stroke-width": 2 }));
    svg.append(...this.#now);
    $("chart").replaceChildren(svg);
    this.#drawLegend();
    this.#drawAreas();
    this.walk();
  }

  #drawLegend() {
    $("legend").replaceChildren(...this.#methods.map(({ method }, k) => {
      const line = draw("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" });
      line.append(draw("line", { class: `s${k}`, x1: 0, x2: 36, y1: 5, y2: 5, "stroke-width": 2.5 }));
      return make("span", {}, line, method);
    }));
  }

  #drawAreas() {
    const names = ["method", "protocol", "insertion", "deletion", "difference"];
    const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
    const rows = this.#methods.flatMap(({ method, areas }) => Object.entries(areas).map(([protocol, { insertion, deletion }]) =>
      make("tr", {}, make("th", { scope: "row" }, method), make("td", {}, protocol),
        ...[insertion, deletion, insertion - deletion].map((value) => make("td", {}, value.toFixed(3))))));
    $("areas").replaceChildren(make("caption", { className: "quiet" }, "Areas under the curves"),
      make("thead", {}, head), make("tbody", {}, ...rows));
  }

  /** Show the images at the slider's step. */
  walk() {
    const step = Number($("step").value);
    const inserted = $("way").value === "insertion";
    this.#methods.forEach((one, k) => {
      const { values, fraction, ranks } = this.#curve(one);
      const entered = Math.round(fraction[step] * ranks.length);
      const { canvas, image, probability } = this.#canvases[k];
      const source = one.arrays.input;
      const pixels = image.data;
      for (let p = 0; p < ranks.length; p++) {
        const shown = ranks[p] < entered === inserted;
        for (let c = 0; c < 3; c++) pixels[4 * p + c] = shown ? source[3 * p + c] : 0;
        pixels[4 * p + 3] = 255;
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
      probability.textContent = `${percent(fraction[step])} of the pixels ${inserted ? "inserted" : "deleted"}: probability ${percent(values[step])}`;
      canvas.setAttribute("aria-label", `${one.method}: ${probability.textContent}`);
      this.#now[k].setAttribute("cx", this.#across(fraction[step]));
      this.#now[k].setAttribute("cy", up(values[step]));
    });
    $("step-shown").value = `${step} of ${$("step").max}`;
  }
}
