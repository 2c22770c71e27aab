// The stream of figures. `fetch` and not EventSource, which cannot send a key.

import { apiHeaders, askFor, forget } from "./keys.js";

const SILENCE_MS = 5000; // the server speaks once a second
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

// Calls onFrame(data) for each frame and onState({state, retryAt, why}) when the connection changes.
export function connect(url, { onFrame, onState }) {
  let wait = FIRST_WAIT_MS;
  let wake = () => {};
  const woken = (ms) =>
    new Promise((resolve) => {
      const timer = ms && setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });

  async function once() {
    const gone = new AbortController();
    let watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => gone.abort(), SILENCE_MS);
    };
    alive();
    try {
      const response = await fetch(url, {
        headers: { accept: "text/event-stream", ...apiHeaders() },
        cache: "no-store",
        signal: gone.signal,
      });
      if (response.status === 401) {
        clearTimeout(watchdog);
        return "key";
      }
      if (!response.ok) throw new Error(`the server says ${response.status}`);
      for await (const data of events(response.body, alive)) {
        wait = FIRST_WAIT_MS;
        onState({ state: "live" });
        onFrame(JSON.parse(data));
      }
      return "ended";
    } finally {
      clearTimeout(watchdog);
      gone.abort();
    }
  }

  async function run() {
    for (;;) {
      let why = "";
      try {
        if ((await once()) === "key") {
          forget("api");
          onState({ state: "key" });
          if (!(await askFor("api", "These figures take an API key."))) await woken();
          continue;
        }
      } catch (error) {
        why = error.name === "AbortError" ? "it fell silent" : error.message;
      }
      // Not all pages come back in the same moment.
      const pause = wait * (0.75 + Math.random() / 2);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
      onState({ state: "lost", retryAt: performance.now() + pause, why });
      await woken(pause);
    }
  }

  run();
  return { retry: () => wake() };
}

// The `data` of each server-sent event in a body. `alive` is called for every piece of it.
export async function* events(body, alive = () => {}) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
