// Two keys, asked for when the server wants them and kept in this tab only.

import { byId, setText } from "./dom.js";

const TITLES = { api: "API key", admin: "Admin key" };
const kept = new Map();

function stored(kind) {
  try {
    return sessionStorage.getItem(`key:${kind}`);
  } catch {
    return kept.get(kind) ?? null;
  }
}

function store(kind, key) {
  try {
    sessionStorage.setItem(`key:${kind}`, key);
  } catch {
    kept.set(kind, key); // no storage: until the page is left
  }
  byId("forget").hidden = false;
}

export function forget(...kinds) {
  for (const kind of kinds.length ? kinds : Object.keys(TITLES)) {
    kept.delete(kind);
    try {
      sessionStorage.removeItem(`key:${kind}`);
    } catch {
      // There was none.
    }
  }
  byId("forget").hidden = !hasKeys();
}

export const hasKeys = () => Object.keys(TITLES).some((kind) => stored(kind));

const bearer = (key) => (key ? { authorization: `Bearer ${key}` } : {});

export const apiHeaders = () => bearer(stored("api") ?? stored("admin"));

// One question at a time; who asks meanwhile gets the same answer.
let asking = null;

// Resolves with the key, or with null if the person would rather not.
export function askFor(kind, why) {
  asking ??= ask(kind, why).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(kind, why) {
  const dialog = byId("keys");
  const input = byId("key");
  setText(byId("keys-title"), TITLES[kind]);
  setText(byId("keys-why"), why);
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const close = (key) => {
      done.abort();
      input.value = "";
      dialog.close();
      if (key) store(kind, key);
      resolve(key);
    };
    const { signal } = done;
    byId("keys-form").addEventListener("submit", (event) => {
      event.preventDefault();
      close(input.value.trim() || null);
    }, { signal });
    byId("keys-cancel").addEventListener("click", () => close(null), { signal });
    dialog.addEventListener("cancel", () => close(null), { signal });
  });
}

// The error of a reply that is none of the good ones, in words.
export async function problem(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    const causes = Object.entries(error.causes ?? {}).map(([mode, why]) => `${mode}: ${why}`);
    return [error.message, ...causes].join("\n");
  } catch {
    return text.slice(0, 300) || `the server says ${response.status}`;
  }
}

// POST as an operator. Asks for the admin key once if the server wants one. Throws what to show.
export async function operate(url, body) {
  for (let asked = false; ; asked = true) {
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json", ...bearer(stored("admin")) },
      body: JSON.stringify(body),
    });
    if (response.ok) return response.json();
    const why = await problem(response);
    if (response.status === 401 || response.status === 403) forget("admin");
    if (response.status !== 401 || asked) throw new Error(why);
    if (!(await askFor("admin", "Moving a mode takes the admin key."))) throw new Error("not moved: no key");
  }
}
