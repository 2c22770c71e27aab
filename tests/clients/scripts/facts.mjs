// What both Node clients' scripts share: scenarios, prompts with cues, facts as lines of JSON.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const URL_ = process.env.GATEWAY_URL;
export const KEYS = JSON.parse(process.env.GATEWAY_KEYS);
export const KEY = KEYS.tests;

// The packages stand in the environment this is started in, not beside this file.
const here = createRequire(process.cwd() + "/package.json");
export const load = (name) => import(pathToFileURL(here.resolve(name)).href);
export const versionOf = (name) =>
  JSON.parse(readFileSync(`${process.cwd()}/node_modules/${name}/package.json`)).version;

const parts = { scripted: [], real: [] };
export const scenario = (name, play) => parts.scripted.push([name, play]);
export const real = (name, play) => parts.real.push([name, play]);

// A prompt nobody else asks, with what the scripted upstream shall play, see brain.py.
export function ask(tag, cues = [], say = "Name three woody notes.") {
  return `${say} [[${[`${process.env.CLIENT}.${tag}`, ...cues].join("; ")}]]`;
}

export const seconds = () => performance.now() / 1000;

export async function caught(call) {
  const began = seconds();
  try {
    const answer = await call();
    return { error: null, answer: String(answer).slice(0, 500), took_s: seconds() - began };
  } catch (error) {
    return { ...errorFacts(error), took_s: seconds() - began };
  }
}

export function errorFacts(error) {
  const bases = [];
  for (let of = error; of && of !== Object.prototype; of = Object.getPrototypeOf(of))
    if (Object.hasOwn(of, "constructor")) bases.push(of.constructor.name);
  const headers = error.headers ?? error.responseHeaders ?? {};
  return {
    error: error.constructor.name,
    bases,
    message: String(error.message),
    status: error.status ?? error.statusCode ?? null,
    code: error.code ?? error.data?.error?.code ?? null,
    type: error.type ?? error.data?.error?.type ?? null,
    headers: headers instanceof Headers ? Object.fromEntries(headers) : headers,
  };
}

// Play the scenarios of the part asked for, then live on until standard input closes.
export async function playAll() {
  for (const [name, play] of parts[process.env.PART]) {
    let facts;
    try {
      facts = await play();
    } catch (error) {
      facts = { crash: String(error.stack ?? error).slice(0, 4000) };
    }
    tell(name, facts);
  }
  tell("", {});
  for await (const _ of process.stdin);
  process.exit(0);
}

function tell(scenario, facts) {
  process.stdout.write(JSON.stringify({ scenario, facts: facts ?? {} }) + "\n");
}
