// Vercel's AI SDK over @ai-sdk/openai-compatible: text, streams, tools, objects, errors.

import { KEY, URL_, ask, caught, errorFacts, load, playAll, real, scenario, seconds, versionOf } from "./facts.mjs";

const { embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const provider = (more) =>
  createOpenAICompatible({
    name: "gateway",
    baseURL: URL_,
    apiKey: KEY,
    includeUsage: true,
    supportsStructuredOutputs: true,
    ...more,
  });
const model = (name = "creative", more = {}) => provider(more).chatModel(name);

const Perfume = z.object({
  title: z.string(),
  notes: z.array(z.object({ name: z.string(), strength: z.number().int() })),
});

const resultFacts = async (result) => {
  const [text, finish, usage, response] = await Promise.all([
    result.text, result.finishReason, result.usage, result.response,
  ]);
  return {
    text,
    finish,
    usage: { input_tokens: usage.inputTokens, output_tokens: usage.outputTokens, total_tokens: usage.totalTokens },
    model: response.modelId,
    id: response.id,
    headers: response.headers,
  };
};

// A stream's parts to the end: its errors are parts, too.
async function parts(stream) {
  const found = { text: "", pieces: 0, error: null, finish: [] };
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") {
      found.text += part.text;
      found.pieces += 1;
    }
    if (part.type === "error")
      Object.assign(found, part.error instanceof Error
        ? errorFacts(part.error)
        : { error: "part", message: part.error?.message ?? String(part.error) });
    if (part.type === "finish") found.finish.push(part.finishReason);
  }
  return found;
}

const quiet = { onError: () => {} }; // errors are read from the parts
const noted = []; // calls of the tool
const findNotes = tool({
  description: "Find perfume notes.",
  inputSchema: z.object({ family: z.string(), count: z.number().int() }),
  execute: async (input) => {
    noted.push({ name: "find_notes", arguments: input });
    return "cedar";
  },
});

scenario("versions", () => ({
  ai: versionOf("ai"),
  "@ai-sdk/openai-compatible": versionOf("@ai-sdk/openai-compatible"),
}));

scenario("whole", async () => resultFacts(await generateText({ model: model(), prompt: ask("whole") })));

scenario("streamed", async () => {
  const stream = streamText({ model: model(), prompt: ask("streamed"), ...quiet });
  const found = await parts(stream);
  return { ...(await resultFacts(stream)), chunks: found.pieces, error: found.error };
});

scenario("tools_whole", async () => {
  noted.length = 0;
  const result = await generateText({
    model: model(), prompt: ask("tools_whole"), tools: { find_notes: findNotes }, stopWhen: stepCountIs(3),
  });
  return { ...(await resultFacts(result)), calls: [...noted], steps: result.steps.length };
});

scenario("tools_streamed", async () => {
  noted.length = 0;
  const stream = streamText({
    model: model(), prompt: ask("tools_streamed", [], "Find 3 notes, twice."),
    tools: { find_notes: findNotes }, stopWhen: stepCountIs(3), ...quiet,
  });
  const found = await parts(stream);
  return { ...found, calls: [...noted] };
});

scenario("structured_whole", async () => {
  const { object } = await generateObject({ model: model(), schema: Perfume, prompt: ask("structured_whole") });
  return { parsed: object };
});

scenario("structured_streamed", async () => {
  const stream = streamObject({ model: model(), schema: Perfume, prompt: ask("structured_streamed"), ...quiet });
  let partial = 0;
  for await (const _ of stream.partialObjectStream) partial += 1;
  return { parsed: await stream.object, partial };
});

scenario("completions", async () => {
  const { text } = await generateText({ model: provider().completionModel("creative"), prompt: ask("completions") });
  const stream = streamText({ model: provider().completionModel("creative"), prompt: ask("completions.stream"), ...quiet });
  return { text, streamed: (await parts(stream)).text };
});

scenario("embeddings", async () => {
  const texts = ["cedar", "vétiver 香根草"];
  const { embeddings } = await embedMany({ model: provider().textEmbeddingModel("qwen-embedder"), values: texts });
  return { texts, vectors: embeddings };
});

scenario("keys", async () => {
  const stranger = model("fast", { apiKey: "sk-nobody-has-this-key-at-all" });
  return { wrong: await caught(() => generateText({ model: stranger, prompt: ask("keys.wrong") })) };
});

scenario("too_long", () => caught(() => generateText({ model: model(), prompt: ask("too_long", ["*=400_context_vllm"]) })));
scenario("unknown_model", () => caught(() => generateText({ model: model("gpt-nope"), prompt: ask("unknown_model") })));

scenario("throttled_shortly", async () => {
  // The AI SDK names no time limit in its headers: a caller in a hurry would, with this one.
  const hurried = model("fast", { headers: { "x-gateway-allow-degrade": "false", "x-stainless-timeout": "10" } });
  const began = seconds();
  const result = await generateText({ model: hurried, prompt: ask("throttled_shortly", ["*=429_retry_after_ms,answer"]) });
  return { ...(await resultFacts(result)), took_s: seconds() - began };
});

scenario("all_failed", () =>
  caught(() => generateText({ model: model(), prompt: ask("all_failed", ["*=html"]), maxRetries: 0 })));

scenario("broken_streams", async () => {
  const found = {};
  for (const fault of ["cut_fin", "error_mid_stream"])
    found[fault] = await parts(streamText({ model: model(), prompt: ask(`broken.${fault}`, [`*=${fault}`]), ...quiet }));
  return found;
});

scenario("downshift", async () =>
  resultFacts(await generateText({ model: model(), prompt: ask("downshift", ["qwen-large=html"]) })));

scenario("left_stream", async () => {
  const giving_up = new AbortController();
  const stream = streamText({
    model: model(), prompt: ask("left_stream", ["*=forever"]), abortSignal: giving_up.signal, ...quiet,
  });
  let seen = 0;
  for await (const _ of stream.textStream) if (++seen === 3) giving_up.abort();
  return { left_at: Date.now() / 1000 };
});

scenario("left_whole", async () => {
  const facts = await caught(() =>
    generateText({ model: model(), prompt: ask("left_whole", ["*=forever"]), abortSignal: AbortSignal.timeout(500) }));
  return { ...facts, left_at: Date.now() / 1000 };
});

real("real_text", async () => {
  const prompt = "What is the capital of France? Answer in one sentence.";
  const fresh = model("creative", { headers: { "cache-control": "no-cache" } });
  const stream = streamText({ model: fresh, prompt, ...quiet });
  return {
    whole: await resultFacts(await generateText({ model: model(), prompt })),
    streamed: { ...(await resultFacts(stream)), chunks: (await parts(stream)).pieces },
  };
});

await playAll();
