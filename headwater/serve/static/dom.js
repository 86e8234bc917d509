// Making elements.

export const $ = (id) => document.getElementById(id);

/** An element with properties (or attributes, for names with a hyphen) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export const percent = (part) => `${(100 * part).toFixed(1)} %`;
export const short = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(4));
