// The box to try a prompt: the answer as it streams, who gave it, and what one thinks of it.

import { byId, el, setText, shape } from "./dom.js";
import { apiHeaders, askFor, forget, problem } from "./keys.js";
import { events } from "./live.js";
import { many, reason, timeText } from "./words.js";

let modes = "";
let stop = null;

export function offerModes(names) {
  if (modes === names.join("\n")) return;
  const box = byId("try-modes");
  const chosen = new FormData(byId("try")).get("mode");
  modes = names.join("\n");
  box.querySelectorAll("label").forEach((label) => label.remove());
  names.forEach((name, index) => {
    const picked = names.includes(chosen) ? name === chosen : index === 0;
    box.append(el("label", {}, el("input", { type: "radio", name: "mode", value: name, checked: picked }), el("span", {}, name)));
  });
}

export function wireTry() {
  byId("try").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("try").requestSubmit();
  });
  byId("try-stop").addEventListener("click", () => stop?.abort());
}

async function send() {
  if (stop) return;
  const mode = new FormData(byId("try")).get("mode");
  const sheet = makeSheet(mode);
  stop = new AbortController();
  busy(true);
  try {
    await answer(sheet, mode, stop.signal);
  } catch (error) {
    sheet.fail(error.name === "AbortError" ? "stopped" : error.message);
  } finally {
    stop = null;
    busy(false);
  }
}

function busy(is) {
  byId("try-send").hidden = is;
  byId("try-stop").hidden = !is;
  byId("answer").setAttribute("aria-busy", String(is));
}

async function answer(sheet, mode, signal) {
  const began = performance.now();
  const response = await ask(mode, signal);
  let first = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      sheet.done(performance.now() - began);
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(`the answer broke off: ${chunk.error.message}`);
    if (chunk.gateway) sheet.who(chunk);
    const delta = chunk.choices[0]?.delta;
    const text = delta?.content || delta?.reasoning_content;
    if (text) {
      first ??= performance.now() - began;
      sheet.add(text, first, Boolean(delta.reasoning_content));
    }
    if (chunk.usage) sheet.usage(chunk.usage);
  }
  throw new Error("the answer broke off");
}

async function ask(mode, signal) {
  const body = JSON.stringify({
    model: mode,
    messages: [{ role: "user", content: byId("prompt").value }],
    stream: true,
    stream_options: { include_usage: true },
  });
  for (let asked = false; ; asked = true) {
    const headers = { "content-type": "application/json", ...apiHeaders() };
    if (!byId("try-cache").checked) headers["cache-control"] = "no-cache";
    const response = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal });
    if (response.ok) return response;
    const why = await problem(response);
    if (response.status !== 401 || asked) throw new Error(why);
    forget("api");
    if (!(await askFor("api", "Asking takes an API key."))) throw new Error(why);
  }
}

// The sheet an answer is written on.
function makeSheet(mode) {
  const who = el("p", { class: "served" }, `asking ${mode}…`);
  const thought = el("p", { class: "thought" });
  const text = el("p", { class: "text" });
  const figures = el("p", { class: "figures muted" });
  const rest = el("div");
  byId("answer").replaceChildren(who, thought, text, figures, rest);
  let id = "";
  let firstMs = null;
  let tokens = null;
  return {
    who(chunk) {
      id = chunk.id;
      who.replaceChildren(...servedBy(chunk));
    },
    add(piece, first, isThought) {
      firstMs = first;
      (isThought ? thought : text).append(piece);
      setText(figures, `first token ${timeText(first)}`);
    },
    usage(usage) {
      tokens = usage.completion_tokens;
    },
    done(ms) {
      const told = [`first token ${timeText(firstMs)}`, `whole answer ${timeText(ms)}`];
      if (tokens) told.push(many(tokens, "token"));
      const writing = (ms - firstMs) / 1000;
      if (tokens > 1 && writing > 0.05) told.push(`${((tokens - 1) / writing).toFixed(0)} tokens/s`);
      setText(figures, told.join(" · "));
      if (id) rest.replaceChildren(ratingOf(id));
    },
    fail(why) {
      if (!id) who.remove();
      rest.replaceChildren(el("p", { class: "problem", role: "alert" }, why));
    },
  };
}

function servedBy({ gateway, model }) {
  const { mode, requested_mode: asked, degraded, cached, stale, target, attempts } = gateway;
  const parts = [];
  if (degraded) {
    parts.push(el("span", { class: "chip", "data-tone": "warn" }, shape("diamond"), "degraded"), ` ${mode} answered for ${asked}: ${reason(gateway.reason)}`);
  } else {
    parts.push(el("span", { class: "chip", "data-tone": "good" }, shape("circle"), "as asked"), ` ${mode} answered`);
  }
  if (cached) {
    parts.push(" ", el("span", { class: "chip", "data-tone": stale ? "warn" : "calm" }, shape("half"), stale ? "from the cache, past its time" : "from the cache"), ` ${Math.round(gateway.age_s)} s old`);
  }
  const by = [model, target && target !== model ? target : "", cached ? "" : many(attempts, "attempt")];
  parts.push(el("span", { class: "muted by" }, by.filter(Boolean).join(" · ")));
  return parts;
}

function ratingOf(id) {
  const told = el("span", { class: "muted", role: "status" });
  const buttons = [1, 2, 3, 4, 5].map((value) =>
    el("button", { type: "button", "aria-label": `${value} of 5`, "aria-pressed": "false", on: { click: () => rate(id, value, buttons, told) } }, "☆"),
  );
  return el("div", { class: "rating", role: "group", "aria-label": "Rate this answer" }, el("span", {}, "How good is it?"), el("span", { class: "stars" }, ...buttons), told);
}

async function rate(id, value, buttons, told) {
  const response = await fetch("/v1/feedback", {
    method: "POST",
    headers: { "content-type": "application/json", ...apiHeaders() },
    body: JSON.stringify({ generation_id: id, rating: value }),
  });
  if (!response.ok) {
    setText(told, await problem(response));
    return;
  }
  buttons.forEach((button, index) => {
    button.setAttribute("aria-pressed", String(index < value));
    setText(button, index < value ? "★" : "☆");
  });
  setText(told, `${value} of 5, kept`);
}
