"use strict";
// The page's data, the state that its address holds, and the few helpers that all parts use.
//
// Labels, ids and texts come from outside. They get into the page as text nodes and attributes only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const models = new Map(data.models.map(model => [model.name, model]));
const NO_LABEL = "(no label)";

// The keys of the address and their defaults, which the address leaves out. Confidences are in percent.
const DEFAULTS = {
  view: "overview",
  model: data.lead,
  answer: "",
  true: "",
  predicted: "",
  change: "",
  suspect: "",
  from: "",
  to: "",
  find: "",
  sort: "",
  sample: ""
};
const FILTERS = ["answer", "true", "predicted", "change", "suspect", "from", "to", "find"];
let state = readState(DEFAULTS);

function readState(before) {
  const hash = location.hash.slice(1);
  if (hash && !hash.includes("=")) return before; // an anchor
  const given = new URLSearchParams(hash);
  const read = Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, given.get(key) ?? value]));
  if (!models.has(read.model)) read.model = data.lead;
  if (!document.getElementById(read.view)?.matches("main > section")) read.view = DEFAULTS.view;
  return read;
}

// The address of the state with some changes.
function address(changes) {
  const next = { ...state, ...changes };
  const kept = Object.entries(next).filter(([key, value]) => value !== DEFAULTS[key]);
  return "#" + new URLSearchParams(kept.length ? kept : [["view", DEFAULTS.view]]);
}

// Changes the address, and the page follows. With `replace` the Back button does not return to the state before.
function go(changes, replace = false) {
  if (replace) location.replace(address(changes));
  else location.hash = address(changes);
  follow(); // at once: the browser's own event comes later, after the next key
}

const shownModel = () => models.get(state.model);
const labelOf = place => (place < 0 ? NO_LABEL : data.labels[place]);
const percent = (fraction, digits = 1) => `${(100 * fraction).toFixed(digits)}\u00a0%`;
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const thumbnail = name => `thumbnails/${name.replace(/\.\w+$/, ".webp")}`;
const byId = id => document.getElementById(id);

// A new element. Attributes: texts; true and false switch one on and off; functions listen to events (onclick).
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null && child !== false));
  return node;
}

function option(value, text) {
  return element("option", { value }, text);
}
