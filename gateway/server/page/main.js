// Puts the page together: frames come in, each part draws what changed.

import { drawTiles } from "./charts.js";
import { byId, setAttribute, setText } from "./dom.js";
import { addEvents } from "./events.js";
import { drawFlow } from "./flow.js";
import { forget, hasKeys } from "./keys.js";
import { drawLadder, tickLadder } from "./ladder.js";
import { connect } from "./live.js";
import { offerModes, wireTry } from "./try.js";
import { age, clock, countdown, many } from "./words.js";

const SPANS = { minute: "last minute", ten_minutes: "last 10 minutes" };
const THEMES = ["system", "light", "dark"];

let shown = null; // the last frame
let span = "minute";
let link = { state: "connecting" };
let heard = null; // when it came, for people
let heardAt = 0; // and on the clock that never steps

function draw() {
  if (!shown) return;
  const figures = shown[span];
  setText(byId("headline"), shown.headline.text);
  setAttribute(byId("headline"), "data-tone", shown.headline.tone);
  document.title = `${shown.headline.tone === "good" ? "" : "● "}${shown.headline.text} – downshift`;
  drawLadder(shown.modes, figures, shown.budget_tokens);
  drawFlow(shown.modes, figures);
  drawTiles(shown, figures);
  offerModes(shown.modes.map((mode) => mode.name));
  setText(byId("flow-span"), SPANS[span]);
  setText(byId("config"), footing(shown));
  tick();
}

function footing({ config, workers, uptime_s: up }) {
  const told = [many(workers, "worker"), `up ${age(up)}`];
  if (config.source) told.push(config.source);
  if (config.last_reload !== "none") told.push(`last reload: ${config.last_reload.replaceAll("_", " ")}`);
  if (config.on_trial) told.push("on trial");
  return told.join(" · ");
}

// What changes by itself between frames: countdowns, and how long we have heard nothing.
function tick() {
  const now = performance.now();
  if (link.state !== "lost") tickLadder(now);
  const left = link.state === "lost" ? link.retryAt - now : 0;
  const words = {
    connecting: "connecting",
    live: "live",
    key: "needs a key",
    lost: left > 0 ? `disconnected, trying again in ${countdown(left)}` : "disconnected, trying again",
  };
  setText(byId("link"), words[link.state]);
  const stale = link.state === "lost" && heard;
  setText(byId("headline-more"), stale ? `as of ${clock(heard)}, ${age((Date.now() - heard) / 1000)} ago` : soonest(now));
}

// When the first mode that is open may be back.
function soonest(now) {
  const waits = (shown?.modes ?? []).filter((mode) => mode.downshifted && mode.until_s != null);
  if (!waits.length) return "";
  const [first] = waits.sort((a, b) => a.until_s - b.until_s);
  const left = first.until_s * 1000 - (now - heardAt);
  return left > 0 ? `${first.name} may be back in ${countdown(left)}` : `${first.name} may be back any moment`;
}

function onState(next) {
  link = next;
  setAttribute(byId("link"), "data-state", next.state);
  setAttribute(byId("link"), "title", next.why || null);
  setAttribute(document.body, "data-link", next.state);
  byId("retry").hidden = next.state !== "lost" && next.state !== "key";
  tick();
}

function onFrame(frame) {
  const isFirst = shown === null;
  shown = frame;
  heard = new Date();
  heardAt = performance.now();
  addEvents(frame.events);
  draw();
  // What was there before one came is not read out.
  if (isFirst) setTimeout(() => setAttribute(byId("events"), "aria-live", "polite"), 0);
}

function wireTheme() {
  const button = byId("theme");
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    setText(byId("theme-name"), theme);
    setAttribute(button, "aria-label", `Theme: ${theme}`);
  };
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch {
      // It lasts until the page is left, then.
    }
    show();
  });
  show();
}

function wireSpan() {
  const buttons = [...byId("span").querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      span = button.dataset.span;
      for (const other of buttons) setAttribute(other, "aria-pressed", String(other === button));
      draw();
    });
  }
}

wireTheme();
wireSpan();
wireTry();
byId("forget").hidden = !hasKeys();
byId("forget").addEventListener("click", () => forget());
new ResizeObserver(() => draw()).observe(byId("flow"));
setInterval(tick, 250);
const live = connect("/live", { onFrame, onState });
byId("retry").addEventListener("click", () => live.retry());
