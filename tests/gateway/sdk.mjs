// The official SDK for Node as a client of the gateway; prints what it saw as one JSON line.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.GATEWAY + "/v1", apiKey: "EMPTY", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id);

const whole = await client.chat.completions.create({ model: "phi", messages });
seen.whole = whole.choices[0].message.content;

seen.stream = "";
const stream = await client.chat.completions.create({ model: "phi", messages, stream: true });
for await (const chunk of stream) seen.stream += chunk.choices[0]?.delta?.content ?? "";

const usage = await client.chat.completions.create({
  model: "phi", messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of usage) seen.usage = chunk.usage?.completion_tokens ?? seen.usage;

const left = await client.chat.completions.create({ model: "slow", messages, stream: true });
for await (const chunk of left) { if (chunk.choices.length) break; }

const errors = {
  notFound: { model: "nope", messages },
  badRequest: { model: "phi", messages: [] },
  unprocessable: { model: "phi", messages, temperature: 9 },
  unavailable: { model: "broken", messages },
};
seen.errors = {};
for (const [name, body] of Object.entries(errors)) {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    seen.errors[name] = [error.constructor.name, error.status, error.code];
  }
}
try {
  await client.withOptions({ apiKey: "ck_00000000_wrong" }).chat.completions.create({ model: "phi", messages });
} catch (error) {
  seen.errors.key = [error.constructor.name, error.status, error.code];
}
try {
  await client.chat.completions.create({ model: "slow", messages }, { timeout: 300 });
} catch (error) {
  seen.errors.timeout = [error.constructor.name];
}
try {
  for await (const chunk of await client.chat.completions.create({ model: "breaks", messages, stream: true }));
} catch (error) {
  seen.errors.stream = [error.constructor.name, error.code];
}
seen.retried = (await client.chat.completions.create({ model: "flaky", messages }, { maxRetries: 2 })).choices.length;
console.log(JSON.stringify(seen));
