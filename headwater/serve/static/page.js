// The page: what the visitor chooses, and what the server answers.

import { Connection } from "./connection.js";
import { Curves } from "./curves.js";
import { $, make, percent } from "./dom.js";
import { download, safe } from "./files.js";
import { MapCard } from "./maps.js";

const SLOTS = 4;
const RETRY = 2000; // milliseconds until a lost connection is tried again
const FULL = 4503;
const TOO_LONG = 1009;
const REFUSED = 4403;

let hello = null;
let photo = null; // { name, address, again() } of the photo that the server has
let pending = []; // the photos that are being sent, likewise, in the order of their answers
let explaining = 0; // number of the request whose answers are awaited
let painting = 0;
let repaint = false;
let target = null;
let against = null;
let fresh = false; // whether the next map is the first of a new request, and replaces those that are shown
let cards = new Map();
const curves = new Curves();
const connection = new Connection(heard, lost);

const look = () => ({
  levels: Number($("levels").value) > 1 ? Number($("levels").value) : 0,
  opacity: Number($("opacity").value) / 100,
  colormap: $("colormap").value,
  scale: $("scale").value < $("scale").max ? Number($("scale").value) : null,
});

function say(text, busy = false) {
  $("status").textContent = text;
  $("cancel").hidden = !busy;
  if (!busy) $("progress").hidden = true;
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

/** A file's name with what the visitor calls the photo, which the server does not know. */
const named = (name) => name.replace(/^photo(?=\.)/, safe(photo.name.replace(/\.\w+$/, "")) || "photo");

// What the visitor does.

function send(next) {
  if (!connection.ready) return complain("The server does not answer; is headwater serve still running?");
  complain("");
  pending.push(next);
  target = against = null;
  say("Reading the photo …", true);
  next.id = next.again() ?? null; // a photo of one's own has no number
}

async function choose(file) {
  if (!file || !hello) return;
  if (file.size > hello.most_bytes) {
    return complain(`The file has ${(file.size / 1e6).toFixed(1)} MB. Accepted: ${hello.accepted}.`);
  }
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch (error) {
    return complain(`The file cannot be read: ${error.message}`);
  }
  send({ name: file.name, again: () => connection.upload(bytes) });
}

function explain() {
  if (!photo || !connection.ready) return;
  complain("");
  const methods = [...new Set([...$("methods").querySelectorAll("select")].map((one) => one.value).filter(Boolean))];
  explaining = connection.ask("explain", { network: $("network").value, methods, target, against, ...look() });
  fresh = true;
  $("measure").disabled = true;
  say("Explaining …", true);
}

function paint() {
  $("opacity-shown").value = `${$("opacity").value} %`;
  const levels = look().levels;
  $("levels-shown").value = levels || "off";
  $("levels").setAttribute("aria-valuetext", levels ? `${levels} levels` : "off");
  for (const { canvas } of cards.values()) canvas.style.opacity = look().opacity;
  nameScale();
}

/** Offer the scales of the map that has most of them; the last step is the map itself. */
function offerScales() {
  const { value, max } = $("scale");
  const most = Math.max(0, ...[...cards.values()].map(({ answer }) => answer.scales.length));
  $("scales").hidden = most < 2;
  $("scale").max = most;
  $("scale").value = value === max ? most : value;
}

function nameScale() {
  const { scale } = look();
  const found = scale !== null && [...cards.values()].find(({ answer }) => answer.scales[scale])?.answer.scales[scale];
  const text = found ? `${found.size.join(" x ")}, ${found.name}` : "the map itself";
  $("scale-shown").value = text;
  $("scale").setAttribute("aria-valuetext", text);
}

/** Ask for other colours; while an answer is awaited only the last wish counts. */
function recolour() {
  paint();
  if (!cards.size) return;
  if (painting) repaint = true;
  else painting = connection.ask("paint", look());
}

// What the server answers.

const answers = {
  hello(answer) {
    hello = answer;
    $("accepted").textContent = `${answer.accepted}.`;
    const chosen = $("network").value;
    $("network").replaceChildren(...answer.networks.map(({ name }) => make("option", { value: name }, name)));
    if (answer.networks.some(({ name }) => name === chosen)) $("network").value = chosen;
    if (!$("methods").children.length) offerMethods(answer.methods);
    $("colormap").replaceChildren(...answer.colormaps.map((name) => make("option", { value: name }, name || "usual")));
    $("examples").replaceChildren(...answer.examples.map((name) => {
      const image = make("img", { src: `/examples/${name}`, alt: "" });
      const pick = () => send({ name, again: () => connection.ask("example", { name }) });
      return make("button", { type: "button", onclick: pick }, image, name.replace(/\.\w+$/, ""));
    }));
    nameClasses();
    say("Choose a photo, or pick an example.");
    const again = pending.at(-1) ?? photo;
    pending = [];
    if (again) send(again);
  },
  photo(answer) {
    const next = pending.shift();
    if (pending.length) return; // another was chosen meanwhile
    if (photo) URL.revokeObjectURL(photo.address);
    photo = { ...next, address: URL.createObjectURL(new Blob([answer.arrays.jpeg], { type: "image/jpeg" })) };
    explain();
    if (answer.animated) complain("The file has several frames; the first one is explained.");
  },
  state({ place, what, done, total }) {
    if (place) say(`${what}: waiting, ${place} before you`, true);
    else say(`Computing ${what} …`, true);
    $("progress").hidden = Boolean(place);
    if (total > 1) Object.assign($("progress"), { max: total, value: done });
    else $("progress").removeAttribute("value");
  },
  map(answer) {
    const fetch = (what) => connection.ask("file", { what, method: answer.method, ...look() });
    if (fresh) {
      fresh = false;
      cards = new Map();
      curves.clear();
      $("maps").replaceChildren();
      showClasses(answer);
    }
    const card = new MapCard(answer, photo, named(answer.stem), fetch);
    cards.set(answer.method, card);
    offerScales();
    $("maps").append(card.element);
    $("results").hidden = false;
    paint();
  },
  curves(answer) {
    curves.add(answer);
  },
  done() {
    say(fresh ? "Nothing could be explained." : "Done.");
    fresh = false;
    $("measure").disabled = !cards.size;
  },
  cancelled() {
    say("Cancelled.");
    $("measure").disabled = !cards.size;
  },
  paint(answer) {
    cards.get(answer.method)?.paint(answer);
  },
  painted() {
    painting = 0;
    if (repaint) {
      repaint = false;
      recolour();
    }
  },
  file({ name, caption, arrays }) {
    download(named(name), arrays.content, name.endsWith("pdf") ? "application/pdf" : "image/png");
    if (caption) $("caption").textContent = caption;
    if (caption) $("caption").hidden = false;
  },
  error({ id, message }) {
    complain($("problem").hidden || !id ? message : `${$("problem").textContent} — ${message}`);
    if (pending.length && pending[0].id === id) pending.shift();
    painting = 0;
    if (id !== explaining) say(photo ? "Choose another photo, or go on with this one." : "Choose a photo, or pick an example.");
  },
};

function heard(answer) {
  const stale = ["state", "map", "curves", "done"].includes(answer.kind) && answer.id !== explaining;
  if (!stale) answers[answer.kind](answer);
}

function lost(code, reason) {
  const told = { [FULL]: reason, [TOO_LONG]: hello && `The file is too large. Accepted: ${hello.accepted}.` }[code];
  if (told) pending = [];
  complain(told ?? "The connection is lost; is headwater serve still running? It is tried again.");
  say("Connecting …");
  painting = 0;
  repaint = false;
  if (code === REFUSED || (code === 1006 && !hello)) complain("The server does not let this page in; load it again.");
  setTimeout(() => connection.open(), RETRY);
}

function offerMethods(methods) {
  for (let slot = 0; slot < SLOTS; slot++) {
    const options = Object.keys(methods).map((name) => make("option", { value: name }, name));
    if (slot) options.unshift(make("option", { value: "" }, "none"));
    const select = make("select", {}, ...options);
    const explained = () => (select.title = methods[select.value] ?? "");
    explained();
    select.addEventListener("change", () => {
      explained();
      explain();
    });
    $("methods").append(make("label", {}, `Method ${slot + 1}`, select));
  }
}

function nameClasses() {
  const network = hello?.networks.find(({ name }) => name === $("network").value);
  $("names").replaceChildren(...(network?.classes ?? []).map((name) => make("option", { value: name })));
}

function showClasses(answer) {
  const { predicted, target: explained, against: other } = answer;
  const shown = [...predicted, explained, ...(other ? [other] : [])]
    .filter(({ index }, k, all) => all.findIndex((one) => one.index === index) === k);
  $("explained").textContent = `Explained: ${answer.explained}, probability ${percent(explained.probability)}` +
    (other ? ` (${other.name} ${percent(other.probability)}).` : ".");
  $("caption").hidden = true;
  const wish = (chosen, not) => () => {
    [target, against] = [chosen, not];
    explain();
  };
  $("classes").replaceChildren(...shown.map(({ index, name, probability }) => {
    const one = make("button", {
      type: "button", className: "class", onclick: wish(index, null), "aria-pressed": String(index === explained.index),
    }, make("span", {}, name), make("span", {}, percent(probability)), make("meter", { value: probability, "aria-hidden": "true" }));
    const row = make("div", {}, one);
    if (index !== explained.index) {
      row.append(make("button", {
        type: "button", onclick: wish(explained.index, index), "aria-pressed": String(index === other?.index),
        "aria-label": `${name}: why not? Explain ${explained.name} against it`,
      }, "why not?"));
    }
    return row;
  }));
}

$("file").addEventListener("change", ({ target: input }) => {
  choose(input.files[0]);
  input.value = "";
});
$("network").addEventListener("change", () => {
  target = against = null;
  nameClasses();
  explain();
});
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("other").addEventListener("submit", (event) => {
  event.preventDefault();
  target = $("class").value.trim() || null;
  against = $("against").value.trim() || null;
  explain();
});
$("cancel").addEventListener("click", () => connection.ask("cancel"));
$("measure").addEventListener("click", () => {
  complain("");
  curves.clear();
  explaining = connection.ask("curves");
  say("Computing the curves …", true);
});
$("opacity").addEventListener("input", paint);
$("levels").addEventListener("input", recolour);
$("scale").addEventListener("input", recolour);
$("colormap").addEventListener("change", recolour);
$("grid").addEventListener("click", () => cards.size && connection.ask("file", { what: "grid", ...look() }));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  choose(event.dataTransfer?.files[0]);
});
document.addEventListener("paste", (event) => choose(event.clipboardData?.files[0]));
