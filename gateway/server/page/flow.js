// Who serves whom, as ribbons: left what was asked for, right who answered, as wide as their share.

import { byId, el, svg } from "./dom.js";
import { answerer, count, many, share } from "./words.js";

const EXTRA = [":cache", ":failed", ":refused"];
const GAP = 18;
const BAR = 7;
const LEAST = 2;

let drawn = "";

export function drawFlow(modes, span) {
  const box = byId("flow");
  const names = modes.map((mode) => mode.name);
  const width = Math.max(240, box.clientWidth);
  const state = JSON.stringify([names, span.flow, width]);
  if (state === drawn) return;
  drawn = state;
  const rows = names.map((name) => [name, sorted(span.flow[name] ?? {}, names)]);
  const total = rows.reduce((sum, [, by]) => sum + sumOf(by), 0);
  if (!total) {
    box.replaceChildren(el("p", { class: "empty" }, "No requests in this time. Try one below."));
    return;
  }
  box.replaceChildren(picture(rows, names, total, width), inWords(rows));
}

const sumOf = (by) => by.reduce((sum, [, value]) => sum + value, 0);

function sorted(by, names) {
  const order = [...names, ...EXTRA];
  return Object.entries(by).sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
}

function tone(asked, by) {
  if (by === ":failed") return "bad";
  if (by === ":refused") return "hold";
  if (by === ":cache") return "calm";
  return by === asked ? "good" : "warn";
}

function picture(rows, names, total, width) {
  const height = 284;
  const side = Math.min(150, width * 0.36);
  const seen = new Set(rows.flatMap(([, by]) => by.map(([who]) => who)));
  const rightNames = [...names, ...EXTRA].filter((name) => names.includes(name) || seen.has(name));
  const rightSums = new Map(rightNames.map((name) => [name, 0]));
  for (const [, by] of rows) for (const [who, value] of by) rightSums.set(who, (rightSums.get(who) ?? 0) + value);

  const left = stack(rows.map(([name, by]) => [name, sumOf(by)]), total, height);
  const right = stack([...rightSums], total, height);
  const x0 = side + BAR;
  const x1 = width - side * 0.72 - BAR;
  const ribbons = [];
  for (const [asked, by] of rows) {
    for (const [who, value] of by) {
      const from = left.get(asked);
      const to = right.get(who);
      const thick = value * from.scale;
      const end = value * to.scale;
      const middle = (x0 + x1) / 2;
      const [a, b] = [from.y + from.used, to.y + to.used];
      from.used += thick;
      to.used += end;
      const d = `M${x0} ${a}C${middle} ${a} ${middle} ${b} ${x1} ${b}V${b + end}C${middle} ${b + end} ${middle} ${a + thick} ${x0} ${a + thick}z`;
      ribbons.push(
        svg("path", { d, class: "ribbon", "data-tone": tone(asked, who) }, svg("title", {}, `${asked} asked, ${answerer(who)}: ${count(value)}`)),
      );
    }
  }
  const label = (x, y, anchor, name, more, muted) =>
    svg("text", { x, y, "text-anchor": anchor, class: muted ? "label muted" : "label" }, svg("tspan", { class: "name" }, name), svg("tspan", { x, dy: 14, class: "more" }, more));
  const bar = (x, node, name) => svg("rect", { x, y: node.y, width: BAR, height: node.high, rx: 2, class: "node", "data-who": name });

  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    ...ribbons,
    ...rows.map(([name]) => bar(side, left.get(name), name)),
    ...rightNames.map((name) => bar(x1, right.get(name), name)),
    ...rows.map(([name, by]) => label(side - 10, centre(left.get(name)), "end", name, asked(sumOf(by)), !by.length)),
    ...rightNames.map((name) => label(x1 + BAR + 10, centre(right.get(name)), "start", answerer(name), share(rightSums.get(name) / total), !rightSums.get(name))),
  );
}

const asked = (value) => (value ? `asked ${count(value)} ×` : "not asked");
const centre = (node) => node.y + node.high / 2 - 3;

// Nodes from top to bottom, each as high as its share, with room for a label of two lines.
function stack(entries, total, height) {
  const label = 30;
  const free = height - label * entries.length - GAP * 0.2 * (entries.length - 1);
  let y = 0;
  const nodes = new Map();
  for (const [name, value] of entries) {
    const room = label + free * (value / total);
    const high = value ? Math.max(LEAST, room - 8) : 0;
    nodes.set(name, { y: y + (room - high) / 2, high, used: 0, scale: value ? high / value : 0 });
    y += room + GAP * 0.2;
  }
  return nodes;
}

// The same as a list: for screen readers, and the exact shares for everyone.
function inWords(rows) {
  return el(
    "ul",
    { class: "flow-words" },
    ...rows
      .filter(([, by]) => by.length)
      .map(([name, by]) => {
        const whole = sumOf(by);
        const shares = [...by].sort((a, b) => b[1] - a[1]).map(([who, value]) => `${answerer(who)} ${share(value / whole)}`);
        return el("li", { title: many(whole, "request") }, el("b", {}, name), ` → ${shares.join(", ")}`);
      }),
  );
}
