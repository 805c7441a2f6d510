// Conversations with the official SDK for Node; prints what it saw as one JSON line.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.GATEWAY + "/v1", apiKey: "EMPTY", maxRetries: 0 });
const seen = {};

const first = await client.responses.create({ model: "phi", input: "one", metadata: { a: "b" } });
seen.first = [first.status, first.output_text, first.metadata, first.usage.total_tokens];

seen.events = [];
const stream = client.responses.stream({ model: "phi", input: "two", previous_response_id: first.id });
for await (const event of stream) seen.events.push(event.type);
const second = await stream.finalResponse();
seen.second = [second.status, second.output_text, second.previous_response_id === first.id];

seen.retrieved = (await client.responses.retrieve(second.id)).output_text;
seen.items = [];
for await (const item of client.responses.inputItems.list(second.id, { order: "asc", limit: 1 })) {
  seen.items.push(item.content[0].text);
}

const attempts = {
  cancel: () => client.responses.cancel(first.id),
  gone: async () => {
    await client.responses.delete(first.id);
    await client.responses.create({ model: "phi", input: "three", previous_response_id: second.id });
  },
  background: () => client.responses.create({ model: "phi", input: "x", background: true }),
  model: () => client.responses.create({ model: "nope", input: "x" }),
};
seen.errors = {};
for (const [name, attempt] of Object.entries(attempts)) {
  try {
    await attempt();
  } catch (error) {
    seen.errors[name] = [error.constructor.name, error.status, error.code];
  }
}
console.log(JSON.stringify(seen));
