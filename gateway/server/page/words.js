// How figures, phases and reasons read. Units always.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const NONE = "–";

export function count(value) {
  return value >= 100_000 ? `${NUMBER.format(value / 1000)}k` : NUMBER.format(value);
}

export function many(value, one, more = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : more}`;
}

// [figure, unit] of a time in milliseconds.
export function time(ms) {
  if (ms == null) return [NONE, ""];
  if (ms < 1) return [ms.toFixed(2), "ms"];
  if (ms < 10) return [ms.toFixed(1), "ms"];
  if (ms < 995) return [String(Math.round(ms)), "ms"];
  if (ms < 9_950) return [(ms / 1000).toFixed(2), "s"];
  if (ms < 100_000) return [(ms / 1000).toFixed(1), "s"];
  return [NUMBER.format(ms / 60_000), "min"];
}

export const timeText = (ms) => time(ms).join(" ").trim();

export function rate(perSecond) {
  if (perSecond >= 100) return NUMBER.format(Math.round(perSecond));
  return perSecond >= 10 ? perSecond.toFixed(1) : perSecond.toFixed(perSecond ? 2 : 0);
}

// Never 0 % of something, nor 100 % of not quite everything.
export function share(part) {
  if (part == null) return NONE;
  if (part > 0 && part < 0.01) return "<1 %";
  if (part < 1 && part > 0.99) return ">99 %";
  return `${Math.round(part * 100)} %`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  if (value < 1048576) return `${NUMBER.format(value / 1024)} kB`;
  return `${NUMBER.format(value / 1048576)} MB`;
}

export function seconds(value) {
  return value >= 100 || Number.isInteger(value) ? `${count(Math.round(value))} s` : `${value.toFixed(1)} s`;
}

export function countdown(ms) {
  const left = Math.max(0, Math.ceil(ms / 1000));
  const rest = String(left % 60).padStart(2, "0");
  return left < 3600
    ? `${Math.floor(left / 60)}:${rest}`
    : `${Math.floor(left / 3600)}:${String(Math.floor(left / 60) % 60).padStart(2, "0")}:${rest}`;
}

export function age(value) {
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172_800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86_400)} days`;
}

export const clock = (date) => date.toLocaleTimeString("en-GB");

const someone = (mode) => (mode.stand_in ? `${mode.stand_in} answers for it` : "nobody answers for it");

// Per phase: the word, the tone (a colour), the shape, and a line that says more.
const PHASES = {
  closed: ["closed", "good", "circle", () => "answers for itself"],
  recovering: ["recovering", "calm", "half", (mode) => `takes ${mode.cap} of ${mode.limit} at once, and soon all`],
  open: ["open", "bad", "gap", someone],
  probe_due: ["probe due", "warn", "diamond-hollow", (mode) => `the next request tries it; ${someone(mode)}`],
  probing: ["probing", "warn", "diamond", (mode) => `one request is trying it; ${someone(mode)}`],
  forced_open: ["forced open", "hold", "bars", (mode) => `by an operator; ${someone(mode)}`],
  forced_closed: ["forced closed", "hold", "ring", () => "by an operator; failures do not open it"],
};

export function phase(mode) {
  const [word, tone, mark, says] = PHASES[mode.phase] ?? [mode.phase, "warn", "diamond", () => ""];
  if (mode.downshifted && (mode.phase === "closed" || mode.phase === "recovering")) {
    return { word: "resting", tone: "warn", mark: "bars", says: `its targets rest; ${someone(mode)}` };
  }
  return { word, tone, mark, says: says(mode) };
}

// What the countdown of a mode counts down to.
export const COUNTED = { open: "back in", probing: "must answer within" };

const REASONS = {
  circuit_open: "its circuit is open",
  cooling: "its targets rest",
  recovering: "it is still recovering",
  saturated: "it is full",
  failed: "it failed just now",
  forced: "an operator forced it open",
  budget: "its retry budget is spent",
  context: "the prompt is too long for it",
  upstream_error: "upstream failed",
};

export const reason = (code) => REASONS[code] ?? (code ?? "").replaceAll("_", " ");

const NOBODY = { ":cache": "cache", ":failed": "failed", ":refused": "refused" };

export const answerer = (name) => NOBODY[name] ?? name;
