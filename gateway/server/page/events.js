// The event log in words, the newest on top.

import { byId, el, setText, shape } from "./dom.js";
import { clock } from "./words.js";

const MOST = 200;
const MARKS = { good: "circle", info: "diamond-hollow", warn: "diamond", bad: "gap" };
const lines = new Map();

export function addEvents(events) {
  const list = byId("events");
  for (const event of events) {
    const at = new Date(Date.now() - event.ago_s * 1000);
    let line = lines.get(event.key);
    if (!line) {
      line = makeLine(event);
      lines.set(event.key, line);
      list.prepend(line.item);
    }
    setText(line.time, clock(at));
    line.time.dateTime = at.toISOString();
    setText(line.text, event.text);
    setText(line.times, event.times > 1 ? `${event.times} times` : "");
  }
  while (lines.size > MOST) {
    const [key, line] = lines.entries().next().value;
    line.item.remove();
    lines.delete(key);
  }
  const empty = byId("events-empty");
  if (!lines.size && !empty) {
    list.append(el("li", { id: "events-empty", class: "empty" }, "Nothing has happened yet: no mode opened, no target rested."));
  } else if (lines.size && empty) {
    empty.remove();
  }
}

function makeLine(event) {
  const line = { time: el("time"), text: el("span", { class: "text" }), times: el("span", { class: "times muted" }) };
  line.item = el("li", { "data-tone": event.tone }, line.time, shape(MARKS[event.tone] ?? "diamond"), el("p", {}, line.text, " ", line.times));
  return line;
}
