// Asks an endpoint everything that the SDK offers for completions, and prints what came as one line of JSON:
// node ask.js BASE_URL MODEL KEY

import OpenAI from "openai";

const [, , baseURL, model, apiKey] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

async function failure(attempt) {
  try {
    await attempt();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return null;
}

const whole = await client.completions.create({ model, prompt: ["abc", "xy"], n: 2, max_tokens: 4, temperature: 0 });
const scored = await client.completions.create({ model, prompt: [97, 98], max_tokens: 2, logprobs: 2, echo: true });
const pieces = [];
let usage = null;
const stream = await client.completions.create({
  model,
  prompt: "abc",
  max_tokens: 5,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  pieces.push(...chunk.choices.map((choice) => choice.text));
  usage = chunk.usage ?? usage;
}
const models = [];
for await (const one of client.models.list()) models.push(one.id);

const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
console.log(
  JSON.stringify({
    whole: whole.choices.map((choice) => [choice.index, choice.text, choice.finish_reason]),
    tokens: whole.usage.total_tokens,
    logprobs: scored.choices[0].logprobs,
    pieces,
    usage,
    models,
    model: (await client.models.retrieve(model)).id,
    errors: {
      400: await failure(() => client.completions.create({ model, prompt: "a", max_tokens: -1 })),
      401: await failure(() => stranger.models.list()),
      404: await failure(() => client.completions.create({ model: "other", prompt: "a" })),
    },
  }),
);
