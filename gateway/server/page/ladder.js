// The ladder: one row a mode, made once, then only touched where it changed.

import { byId, el, setAttribute, setText, shape } from "./dom.js";
import { operate } from "./keys.js";
import { COUNTED, NONE, count, countdown, many, phase, seconds, timeText } from "./words.js";

const HOWS = ["auto", "open", "closed"];
const FACTS = [
  ["ttl", "cache TTL", "How long its answers stay fresh now"],
  ["first", "first token", "Time to the first token: p50 and p95"],
  ["answers", "answers", "Answers it gave, to whomever"],
  ["flight", "in flight", "Requests it works on, and how many it may"],
  ["rating", "rating", "Mean rating of its answers, from 1 to 5"],
];

let rows = new Map();

export function drawLadder(modes, span, budget) {
  const list = byId("ladder");
  const names = modes.map((mode) => mode.name);
  if (names.join("\n") !== [...rows.keys()].join("\n")) {
    rows = new Map(names.map((name) => [name, makeRow(name)]));
    list.replaceChildren(...[...rows.values()].map((row) => row.item));
  }
  for (const mode of modes) update(rows.get(mode.name), mode, span.by_mode[mode.name], budget);
}

// Between two frames time goes on.
export function tickLadder(now) {
  for (const row of rows.values()) {
    if (row.until == null) continue;
    const left = row.until - now;
    setText(row.count, left > 0 ? `${row.counted} ${countdown(left)}` : "any moment now");
  }
}

function makeRow(name) {
  // A figure, and below it in small what one reads it against.
  const facts = Object.fromEntries(FACTS.map(([key]) => [key, el("dd", {}, el("span"), el("small", { class: "muted" }))]));
  const row = {
    facts,
    mark: el("span", { class: "mark" }),
    word: el("span", { class: "word" }),
    count: el("span", { class: "count" }),
    says: el("p", { class: "says muted" }),
    targets: el("ul", { class: "targets" }),
    problem: el("p", { class: "problem", role: "alert", hidden: true }),
    buttons: HOWS.map((how) => el("button", { type: "button", on: { click: () => force(row, name, how) } }, how)),
    shown: "",
    until: null,
  };
  row.item = el(
    "li",
    { class: "rung", "data-mode": name },
    row.mark,
    el(
      "div",
      { class: "who" },
      el("h3", {}, name),
      el("p", { class: "phase" }, row.word, row.count),
      row.says,
    ),
    el("dl", { class: "facts" }, ...FACTS.map(([key, label, title]) => el("div", { title }, el("dt", {}, label), facts[key]))),
    el(
      "div",
      { class: "force" },
      el("p", { class: "label" }, "set by hand"),
      el("div", { class: "segments", role: "group", "aria-label": `Set ${name} by hand` }, ...row.buttons),
    ),
    row.targets,
    row.problem,
  );
  return row;
}

function update(row, mode, seen, budget) {
  const { word, tone, mark, says } = phase(mode);
  setAttribute(row.item, "data-tone", tone);
  setAttribute(row.item, "data-phase", mode.phase);
  if (row.shown !== mark) {
    row.mark.replaceChildren(shape(mark));
    row.shown = mark;
  }
  setText(row.word, word);
  setText(row.says, says);
  row.counted = COUNTED[mode.phase] ?? (mode.downshifted ? "back in" : "");
  row.until = mode.until_s == null || !row.counted ? null : performance.now() + mode.until_s * 1000;
  if (row.until == null) setText(row.count, "");

  const first = seen?.first_token_ms ?? {};
  const { rating } = mode;
  const shown = {
    ttl: [seconds(mode.ttl_s), mode.downshifted ? "shortened" : ""],
    first: [timeText(first.p50), first.p95 == null ? "" : `p95 ${timeText(first.p95)}`],
    answers: [count(seen?.answers ?? 0), seen?.failures ? `${many(seen.failures, "call")} failed` : ""],
    flight: [count(mode.in_flight), `of ${count(mode.cap)}`],
    rating: rating.count ? [`${rating.mean.toFixed(1)} of 5`, many(rating.count, "rating")] : [NONE, "no ratings"],
  };
  for (const [key, texts] of Object.entries(shown)) texts.forEach((text, at) => setText(row.facts[key].children[at], text));

  const forced = { forced_open: "open", forced_closed: "closed" }[mode.phase] ?? "auto";
  for (const button of row.buttons) setAttribute(button, "aria-pressed", String(button.textContent === forced));
  drawTargets(row.targets, mode.targets, budget);
}

function drawTargets(list, targets, budget) {
  while (list.children.length > targets.length) list.lastChild.remove();
  while (list.children.length < targets.length) {
    const meter = el("meter", { min: 0, "aria-label": "Retry budget" });
    list.append(
      el(
        "li",
        {},
        el("span", { class: "target" }),
        el("span", { class: "state" }),
        el("span", { class: "budget" }, "retry budget", meter, el("span")),
      ),
    );
  }
  targets.forEach((target, index) => {
    const [name, state, purse] = list.children[index].children;
    const [meter, left] = purse.children;
    setText(name, target.name);
    const rests = target.resting_s > 0;
    setText(state, rests ? `rests ${seconds(Math.ceil(target.resting_s))}` : many(target.in_flight, "call", "calls"));
    setAttribute(state, "class", rests ? "state rests" : "state");
    meter.max = budget;
    meter.low = meter.high = budget / 2;
    meter.optimum = budget;
    meter.value = target.budget_tokens;
    setText(left, `${target.budget_tokens.toFixed(1)} of ${count(budget)}`);
    const enough = target.budget_tokens > budget / 2;
    setAttribute(purse, "title", enough ? "A failed call may be tried again" : "Too low: a failed call is not tried again");
  });
}

async function force(row, mode, how) {
  row.problem.hidden = true;
  for (const button of row.buttons) button.disabled = true;
  try {
    await operate("/admin/force", { mode, how });
  } catch (error) {
    setText(row.problem, error.message);
    row.problem.hidden = false;
  } finally {
    for (const button of row.buttons) button.disabled = false;
  }
}

