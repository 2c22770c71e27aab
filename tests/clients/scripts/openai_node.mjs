// openai-node: whole answers, streams, tools, schemas, errors, leaving early.

import { KEY, URL_, ask, caught, errorFacts, load, playAll, real, scenario, seconds, versionOf } from "./facts.mjs";

const { default: OpenAI } = await load("openai");
const { zodResponseFormat } = await load("openai/helpers/zod");
const { z } = await load("zod");

const client = new OpenAI({ baseURL: URL_, apiKey: KEY });
const user = (prompt) => [{ role: "user", content: prompt }];
const create = (tag, cues, more, options) =>
  client.chat.completions.create({ model: "creative", messages: user(ask(tag, cues)), ...more }, options);

const FIND_NOTES = {
  type: "function",
  function: {
    name: "find_notes",
    description: "Find perfume notes.",
    parameters: {
      type: "object",
      properties: { family: { type: "string" }, count: { type: "integer" } },
      required: ["family", "count"],
    },
  },
};
const Perfume = z.object({
  title: z.string(),
  notes: z.array(z.object({ name: z.string(), strength: z.number() })),
});

const wholeFacts = (answer) => ({
  text: answer.choices[0].message.content,
  finish: answer.choices[0].finish_reason,
  model: answer.model,
  usage: answer.usage,
  gateway: answer.gateway,
  request_id: answer._request_id,
  id: answer.id,
});

async function streamFacts(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  return {
    text: choices.map((choice) => choice.delta.content ?? "").join(""),
    finish: choices.map((choice) => choice.finish_reason).filter(Boolean),
    first_role: chunks[0].choices[0].delta.role,
    ids: [...new Set(chunks.map((chunk) => chunk.id))],
    models: [...new Set(chunks.map((chunk) => chunk.model))],
    usage: chunks.map((chunk) => chunk.usage).filter(Boolean),
    gateway: chunks.map((chunk) => chunk.gateway).filter(Boolean),
    chunks: chunks.length,
  };
}

const callFacts = (calls) =>
  calls.map((call) => ({ id: call.id, name: call.function.name, arguments: JSON.parse(call.function.arguments) }));

scenario("versions", () => ({ "openai-node": versionOf("openai"), node: process.version }));

scenario("whole", async () => wholeFacts(await create("whole")));

scenario("streamed", async () =>
  streamFacts(await create("streamed", [], { stream: true, stream_options: { include_usage: true } })));

scenario("streamed_plain", async () => streamFacts(await create("streamed_plain", [], { stream: true })));

scenario("many_at_once", async () => {
  const one = async (number) => (await streamFacts(await create(`many_at_once.${number}`, ["*=drip"], { stream: true }))).text;
  return { texts: await Promise.all(Array.from({ length: 20 }, (_, number) => one(number))) };
});

scenario("tools_whole", async () => {
  const answer = await create("tools_whole", [], { tools: [FIND_NOTES] });
  return { calls: callFacts(answer.choices[0].message.tool_calls), finish: answer.choices[0].finish_reason };
});

scenario("tools_streamed", async () => {
  const messages = user(ask("tools_streamed", [], "Find 3 notes, twice."));
  const stream = client.chat.completions.stream({ model: "creative", messages, tools: [FIND_NOTES] });
  const { choices } = await stream.finalChatCompletion();
  return { calls: callFacts(choices[0].message.tool_calls), finish: choices[0].finish_reason };
});

scenario("structured_whole", async () => {
  const answer = await client.chat.completions.parse({
    model: "creative",
    messages: user(ask("structured_whole")),
    response_format: zodResponseFormat(Perfume, "perfume"),
  });
  return { parsed: answer.choices[0].message.parsed };
});

scenario("structured_streamed", async () => {
  const stream = client.chat.completions.stream({
    model: "creative",
    messages: user(ask("structured_streamed")),
    response_format: zodResponseFormat(Perfume, "perfume"),
  });
  return { parsed: (await stream.finalChatCompletion()).choices[0].message.parsed };
});

scenario("too_long", () => caught(() => create("too_long", ["*=400_context_vllm"])));
scenario("unknown_model", () => caught(() => create("unknown_model", [], { model: "gpt-nope" })));

scenario("throttled_shortly", async () => {
  const began = seconds();
  const options = { timeout: 10_000, headers: { "x-gateway-allow-degrade": "false" } };
  const answer = await create("throttled_shortly", ["*=429_retry_after_ms,answer"], { model: "fast" }, options);
  return { ...wholeFacts(answer), took_s: seconds() - began };
});

scenario("all_failed", () => caught(() => create("all_failed", ["*=html"])));

scenario("broken_streams", async () => {
  const found = {};
  for (const fault of ["cut_fin", "cut_rst", "error_mid_stream"]) {
    let text = "";
    const finish = [];
    try {
      for await (const chunk of await create(`broken.${fault}`, [`*=${fault}`], { stream: true })) {
        text += chunk.choices[0].delta.content ?? "";
        if (chunk.choices[0].finish_reason) finish.push(chunk.choices[0].finish_reason);
      }
      found[fault] = { error: null, text, finish };
    } catch (error) {
      found[fault] = { ...errorFacts(error), text, finish };
    }
  }
  return found;
});

scenario("downshift", async () => {
  const asking = create("downshift", ["qwen-large=html"]);
  const { data, response } = await asking.withResponse();
  return { ...wholeFacts(data), headers: Object.fromEntries(response.headers) };
});

scenario("impatient", () => caught(() => create("impatient", ["*=silent"], {}, { timeout: 1500 })));

scenario("left_stream", async () => {
  let seen = 0;
  for await (const _ of await create("left_stream", ["*=forever"], { stream: true })) if (++seen === 3) break;
  return { left_at: Date.now() / 1000 };
});

scenario("left_whole", async () => {
  const giving_up = new AbortController();
  const asking = caught(() => create("left_whole", ["*=forever"], {}, { signal: giving_up.signal }));
  setTimeout(() => giving_up.abort(), 500);
  const facts = await asking;
  return { ...facts, left_at: Date.now() / 1000 };
});

scenario("completions", async () => {
  const answer = await client.completions.create({ model: "creative", prompt: ask("completions") });
  let streamed = "";
  const stream = await client.completions.create({ model: "creative", prompt: ask("completions.stream"), stream: true });
  for await (const chunk of stream) for (const choice of chunk.choices) streamed += choice.text;
  return { text: answer.choices[0].text, streamed };
});

scenario("embeddings", async () => {
  const texts = ["cedar", "vétiver 香根草"];
  const answer = await client.embeddings.create({ model: "qwen-embedder", input: texts });
  return { texts, vectors: answer.data.map((item) => item.embedding), model: answer.model };
});

scenario("responses", async () => {
  const answer = await client.responses.create({ model: "creative", input: ask("responses") });
  return { text: answer.output_text, model: answer.model, status: answer.status };
});

scenario("responses_streamed", async () => {
  const deltas = [];
  const stream = client.responses.stream({ model: "creative", input: ask("responses_streamed") });
  for await (const event of stream) if (event.type === "response.output_text.delta") deltas.push(event.delta);
  return { text: (await stream.finalResponse()).output_text, deltas };
});

scenario("responses_tools", async () => {
  const answer = await client.responses.create({
    model: "creative", input: ask("responses_tools"), tools: [{ type: "function", ...FIND_NOTES.function }],
  });
  const calls = answer.output.filter((item) => item.type === "function_call");
  return { calls: calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) })) };
});

scenario("keys", async () => {
  const stranger = new OpenAI({ baseURL: URL_, apiKey: "sk-nobody-has-this-key-at-all" });
  const messages = user(ask("keys.wrong"));
  return { wrong: await caught(() => stranger.chat.completions.create({ model: "fast", messages })) };
});

scenario("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  const one = await client.models.retrieve("creative");
  const unknown = await caught(() => client.models.retrieve("gpt-nope"));
  return { ids, one: one.id, owner: one.owned_by, unknown };
});

scenario("throttled", () =>
  caught(() =>
    create("throttled", ["*=429_retry_after_date"], { model: "fast" }, { headers: { "x-gateway-allow-degrade": "false" } })));

real("real_text", async () => {
  const messages = user("What is the capital of France? Answer in one sentence.");
  const whole = await client.chat.completions.create({ model: "creative", messages });
  const stream = await client.chat.completions.create(
    { model: "creative", messages, stream: true, stream_options: { include_usage: true } },
    { headers: { "cache-control": "no-cache" } },
  );
  return { whole: wholeFacts(whole), streamed: await streamFacts(stream) };
});

await playAll();
