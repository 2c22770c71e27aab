// Six figures, each with its last ten minutes.

import { byId, el, setAttribute, setText, svg } from "./dom.js";
import { NONE, bytes, count, many, rate, share, time, timeText } from "./words.js";

const WIDTH = 120;
const HEIGHT = 36;

const percentiles = (times) => [`p95 ${timeText(times.p95)}`, `p99 ${timeText(times.p99)}`];

// Title; [figure, unit] and the two lines below it; what is drawn, and how its largest value reads.
const TILES = [
  {
    title: "Requests",
    figure: (all) => [rate(all.per_s), "/s"],
    more: (all, span) => [many(span.requests, "request"), span.requests ? `${share(span.degraded / span.requests)} downshifted` : ""],
    series: ({ per_s, degraded_per_s, failed_per_s }) => [
      { values: per_s, tone: "good", area: true },
      { values: degraded_per_s, tone: "warn", area: true },
      { values: failed_per_s, tone: "bad", area: true },
    ],
    top: (value) => `${rate(value)} /s`,
  },
  {
    title: "Whole answer",
    figure: (all, span) => time(span.latency_ms.p50),
    more: (all, span) => percentiles(span.latency_ms),
    series: ({ latency_p50_ms, latency_p95_ms }) => [
      { values: latency_p95_ms, tone: "faint" },
      { values: latency_p50_ms, tone: "accent" },
    ],
    top: timeText,
    note: "p50",
  },
  {
    title: "First token",
    figure: (all, span) => time(span.first_token_ms.p50),
    more: (all, span) => percentiles(span.first_token_ms),
    series: ({ first_token_p50_ms, first_token_p95_ms }) => [
      { values: first_token_p95_ms, tone: "faint" },
      { values: first_token_p50_ms, tone: "accent" },
    ],
    top: timeText,
    note: "p50",
  },
  {
    title: "Cache hits",
    figure: (all, span) => (span.hit_share == null ? [NONE, ""] : share(span.hit_share).split(" ")),
    more: ({ cache }) => (cache.enabled ? [`${many(cache.entries, "answer")} kept`, `${bytes(cache.bytes)} of ${bytes(cache.max_bytes)}`] : ["switched off", ""]),
    series: ({ hit_share }) => [{ values: hit_share, tone: "calm", area: true }],
    top: share,
    largest: 1,
  },
  {
    title: "Unanswered",
    figure: (all, span) => (span.requests ? share((span.failed + span.refused) / span.requests).split(" ") : [NONE, ""]),
    more: (all, span) => lost(span),
    series: ({ failed_per_s }) => [{ values: failed_per_s, tone: "bad", area: true }],
    top: (value) => `${rate(value)} /s`,
  },
  {
    title: "At work",
    figure: (all) => [count(all.in_flight), "in flight"],
    more: (all, span) => [`${count(all.queued)} queued`, `our own time ${timeText(span.overhead_ms.p50)}`],
    series: ({ tokens_per_s }) => [{ values: tokens_per_s, tone: "accent", area: true }],
    top: (value) => `${rate(value)} tokens/s`,
  },
];

function lost(span) {
  const turnedAway = span.turned_away ? `, ${count(span.turned_away)} turned away` : "";
  const left = span.abandoned ? `, ${count(span.abandoned)} left` : "";
  return [`${count(span.failed)} failed${left}`, `${count(span.refused)} refused${turnedAway}`];
}

let tiles = null;

export function drawTiles(all, span) {
  tiles ??= TILES.map(makeTile);
  for (const tile of tiles) {
    const [figure, unit] = tile.figure(all, span);
    setText(tile.number, figure);
    setText(tile.unit, unit);
    tile.more(all, span).forEach((line, index) => setText(tile.below[index], line));
    drawSpark(tile, tile.series(all.history));
  }
}

function makeTile(told) {
  const tile = {
    ...told,
    number: el("span", { class: "number" }),
    unit: el("span", { class: "unit" }),
    below: [el("p", { class: "below" }), el("p", { class: "below" })],
    spark: svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", role: "img" }),
    most: el("span", { class: "most" }),
    paths: [],
  };
  byId("tiles").append(
    el(
      "article",
      { class: "card tile" },
      el("h2", {}, told.title),
      el("p", { class: "figure" }, tile.number, " ", tile.unit, told.note ? el("span", { class: "note" }, told.note) : null),
      ...tile.below,
      el("div", { class: "chart" }, tile.most, tile.spark, el("span", { class: "axis", "aria-hidden": "true" }, el("span", {}, "10 min ago"), el("span", {}, "now"))),
    ),
  );
  return tile;
}

function drawSpark(tile, series) {
  const largest = Math.max(0, ...series.flatMap(({ values }) => values.filter((value) => value != null)));
  const top = tile.largest ?? largest;
  setText(tile.most, largest ? `up to ${tile.top(largest)}` : "");
  setAttribute(tile.spark, "aria-label", `${tile.title}, the last ten minutes: ${largest ? `up to ${tile.top(largest)}` : "nothing yet"}`);
  while (tile.paths.length < series.length) {
    const path = svg("path", { "vector-effect": "non-scaling-stroke" });
    tile.paths.push(path);
    tile.spark.append(path);
  }
  series.forEach(({ values, tone, area }, index) => {
    const path = tile.paths[index];
    setAttribute(path, "data-tone", tone);
    setAttribute(path, "class", area ? "area" : "line");
    setAttribute(path, "d", top ? outline(area ? withoutFlats(values) : values, top, area) : "");
  });
}

// Where nothing is, nothing is drawn: a line along the floor would look like something.
function withoutFlats(values) {
  return values.map((value, index) => (value || values[index - 1] || values[index + 1] ? value : null));
}

// A line through the values there are; what is missing leaves a gap, and one value alone a dash.
function outline(values, top, area) {
  const step = WIDTH / (values.length - 1);
  const y = (value) => (HEIGHT - 1.5 - (value / top) * (HEIGHT - 4)).toFixed(2);
  let d = "";
  let start = -1;
  values.forEach((value, index) => {
    if (value == null) return;
    const x = (index * step).toFixed(2);
    if (start < 0) {
      start = index;
      d += area ? `M${x} ${HEIGHT}L${x} ${y(value)}` : `M${x} ${y(value)}`;
    } else {
      d += `L${x} ${y(value)}`;
    }
    if (values[index + 1] == null) {
      const end = Math.min(WIDTH, (index + (start === index ? 0.6 : 0)) * step).toFixed(2);
      d += start === index ? `L${end} ${y(value)}` : "";
      d += area ? `L${end} ${HEIGHT}z` : "";
      start = -1;
    }
  });
  return d;
}
