// Small helpers: make elements, and touch those there are only where something changed.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value != null) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

export const el = (tag, attributes = {}, ...children) =>
  make(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value == null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// Shapes say the same as colours do, for whoever sees no colours.
const SHAPES = {
  circle: ["circle", { cx: 8, cy: 8, r: 5.5, fill: "currentColor" }],
  half: ["path", { d: "M8 2.500a5.500 5.500 0 0 1 0 11z", fill: "currentColor" }],
  gap: ["path", { d: "M2.500 2.500 13.500 13.500M13.500 2.500 2.500 13.500", stroke: "currentColor", "stroke-width": 2.6, "stroke-linecap": "round", fill: "none" }],
  diamond: ["path", { d: "M8 1.500 14.500 8 8 14.500 1.500 8z", fill: "currentColor" }],
  "diamond-hollow": ["path", { d: "M8 2.500 13.500 8 8 13.500 2.500 8z", fill: "none", stroke: "currentColor", "stroke-width": 2 }],
  bars: ["path", { d: "M4.500 2.500v11M11.500 2.500v11", stroke: "currentColor", "stroke-width": 3.2, "stroke-linecap": "round" }],
  ring: ["circle", { cx: 8, cy: 8, r: 4.8, fill: "none", stroke: "currentColor", "stroke-width": 2.4 }],
};

export function shape(name) {
  const [tag, attributes] = SHAPES[name];
  const mark = svg("svg", { viewBox: "0 0 16 16", class: "shape", "aria-hidden": "true" });
  if (name === "half") {
    mark.append(svg("circle", { cx: 8, cy: 8, r: 5.2, fill: "none", stroke: "currentColor", "stroke-width": 1.6 }));
  }
  mark.append(svg(tag, attributes));
  return mark;
}
