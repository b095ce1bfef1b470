// Uses the server through OpenAI's npm package: node openai_npm.mjs URL PICTURE (the path of count.png)
import assert from "node:assert";
import fs from "node:fs";
import OpenAI from "openai";

const [url, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const base64 = fs.readFileSync(picture).toString("base64");
const messages = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url: `data:image/jpeg;base64,${base64}` } },
      { type: "text", text: "Count the stars." },
    ],
  },
];
const hi = [{ role: "user", content: "Hi" }];

const completion = await client.chat.completions.create({ model: "google/gemma-3-27b-instruct/bf-16", messages });
assert.equal(completion.choices[0].message.content, "3");
assert.match(completion._request_id, /^req_/);

const stream = await client.chat.completions.create({ model: "qwen2.5vl:7b", messages, stream: true });
let text = "";
const first = [];
for await (const chunk of stream) {
  if (chunk.choices[0]?.delta?.role) first.push(chunk.choices[0].delta.content);
  if (chunk.choices[0]?.delta?.content) text += chunk.choices[0].delta.content;
}
assert.equal(text, "3");
assert.deepEqual(first, [""]);

const helper = client.chat.completions.stream({
  model: "m",
  messages,
  logprobs: true,
  n: 2,
  stream_options: { include_usage: true },
});
const final = await helper.finalChatCompletion();
assert.deepEqual(final.choices.map((choice) => choice.message.content), ["3", "3"]);
assert.equal(final.usage.prompt_tokens_details.image_tokens, 64);

const told = client.chat.completions.stream({
  model: "m",
  messages: [{ role: "user", content: "Count. ".repeat(200) }],
  max_tokens: 3,
  return_progress: true,
});
let states = 0;
for await (const chunk of told) states += chunk.prompt_progress ? 1 : 0;
assert.ok(states > 0 && (await told.finalChatCompletion()).choices[0].message.content);

await assert.rejects(client.chat.completions.create({ model: "m", messages: hi, max_tokens: 0 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "max_tokens");
  return true;
});

const long = await client.chat.completions.create({ model: "m", messages: hi, logit_bias: { 2: -100 }, stream: true });
let count = 0;
for await (const chunk of long) {
  if (++count > 5) break;
}
const deadline = Date.now() + 5000;
while (!/llava_ref_busy 0/.test(await (await fetch(`${url}/metrics`)).text())) {
  assert.ok(Date.now() < deadline, "the server goes on though nobody listens");
}
const models = await client.models.list();
assert.equal((await client.models.retrieve(models.data[0].id)).id, models.data[0].id);
console.log("ok");
