// The page of `llava-ref serve`: a conversation through /v1/chat/completions, like any other client's.

import { by, call, events, hasKey, make, Refused, useKey } from "./base.js";
import { toNewest } from "./follow.js";
import { forget, offer } from "./look.js";
import { explain, named, picturePart } from "./words.js";

const QUICK = 2; // seconds of prefill: after a longer one, the maps are computed only when the user asks for them

const turns = by("turns"), question = by("question"), touch = matchMedia("(pointer: coarse)");
let messages = []; // the conversation as it is sent
let attached = []; // pictures for the next question: { url, name }
let running = null; // AbortController of the answer being given
let model = null; // the content of /page.json

// Asking

async function ask(text) {
  const pictures = attached, asked = { role: "user", content: [...pictures.map(picturePart), { type: "text", text }] };
  const turn = addTurn(text, pictures), sent = [...messages, asked];
  const result = { text: "", usage: null, timings: null, warnings: [], stopped: false };
  complain(null);
  begin(turn);
  const failed = await receive(sent, result, turn).then(() => null, error => error);
  end(turn);
  result.stopped = failed?.name === "AbortError";
  if (failed && !(result.stopped && result.text)) {
    if (!result.stopped) complain(failed, sent);
    return giveBack(turn, result, { text, pictures });
  }
  messages = [...sent, { role: "assistant", content: result.text }];
  answered(turn, result);
}

function addTurn(text, pictures) {
  const mine = make("li", { className: "user" }, unseen("You asked:"), make("div", { className: "row" }, ...pictures.map(thumbnail)), make("p", { textContent: text }));
  const line = make("p"), about = make("div", { className: "note" });
  const item = make("li", { className: "answer running", tabIndex: -1, ariaBusy: "true" }, unseen("Answer:"), line, about);
  turns.append(mine, item);
  return { mine, item, line, about };
}

const unseen = text => make("span", { className: "unseen", textContent: text });

// Focus the question field, but not on a touch screen, where this would open a keyboard over the answer
function ready() {
  if (!touch.matches) question.focus();
}

function begin(turn) {
  running = new AbortController();
  const began = Date.now();
  turn.clock = setInterval(() => { turn.about.textContent = `working · ${Math.round((Date.now() - began) / 1000)} s`; }, 1000);
  attach([]);
  question.value = "";
  buttons();
  ready();
  toNewest();
}

async function receive(sent, result, turn) {
  const body = { messages: sent, stream: true, stream_options: { include_usage: true } };
  const reply = await call("v1/chat/completions", body, running.signal);
  for await (const event of events(reply)) {
    const piece = event.choices[0]?.delta?.content ?? "";
    if (piece) clearInterval(turn.clock);
    result.text += piece;
    turn.line.append(piece);
    result.model = event.model ?? result.model;
    result.usage = event.usage ?? result.usage;
    result.warnings = event.warnings ?? result.warnings;
    result.timings = event.timings ?? result.timings;
  }
}

function end(turn) {
  clearInterval(turn.clock);
  turn.about.textContent = "";
  turn.item.classList.remove("running");
  turn.item.ariaBusy = null;
  running = null;
  buttons();
}

function answered(turn, result) {
  turn.about.textContent = figures(result);
  if (!result.text) turn.line.replaceChildren(make("em", { textContent: "(empty answer)" }));
  by("said").textContent = result.text || "The answer is empty.";
  const pictured = messages.some(({ content }) => Array.isArray(content) && content.some(part => part.type === "image_url"));
  const answer = { ...turn, messages, text: result.text };
  if (result.text && pictured) offer(answer, (result.timings?.prefill_s ?? QUICK) < QUICK, complain);
  if (result.model !== model?.model) start(); // another model was loaded in the meantime
}

// Remove a failed turn from the conversation and put the question back into its field
function giveBack(turn, result, { text, pictures }) {
  for (const item of [turn.mine, turn.item]) result.text ? item.classList.add("refused") : item.remove();
  turn.about.textContent = "cut off; not part of the conversation";
  question.value = [text, question.value].filter(Boolean).join("\n");
  attach([...pictures, ...attached]);
  by("said").textContent = result.stopped ? "Stopped before the answer began." : "";
  buttons();
}

function figures({ usage, timings, warnings, stopped }) {
  const said = [];
  if (usage) {
    const { image_tokens: image, text_tokens: text, cached_tokens: cached } = usage.prompt_tokens_details;
    said.push(`${image ? `${image} picture + ` : ""}${text} text tokens in${cached ? ` (${cached} cached)` : ""}`, `${usage.completion_tokens} out`);
  }
  if (timings) {
    const seen = timings.encode_s ? `picture ${seconds(timings.encode_s)}, ` : "";
    said.push(`${seen}first token ${seconds(timings.prefill_s)}${timings.decode_tok_s ? `, then ${timings.decode_tok_s.toPrecision(3)} tokens a second` : ""}`);
  }
  return [...said, ...(stopped ? ["stopped"] : []), ...warnings.map(warning => named(warning, messages))].join(" · ");
}

const seconds = s => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);

function buttons() {
  by("send").hidden = Boolean(running);
  by("stop").hidden = !running;
  by("start").hidden = Boolean(turns.childElementCount);
  by("over").hidden = Boolean(running) || !turns.childElementCount;
}

// An error stays beside the question field until the next question is sent

function complain(error, sent) {
  const { text, detail } = error ? explain(error, sent) : { text: "", detail: "" };
  by("error").replaceChildren(...(error ? [make("p", { textContent: text })] : []), ...(detail ? [make("p", { className: "detail", textContent: detail })] : []));
  if (error?.code === "invalid_api_key") needKey();
  if (error?.code === "model_not_loaded") start();
}

// Pictures

function thumbnail({ url, name }) {
  const picture = make("img", { src: url, alt: name, title: name });
  picture.onerror = () => picture.replaceWith(make("span", { className: "unknown", textContent: `${name}: this browser cannot show it` }));
  return picture;
}

function attach(pictures) {
  attached = pictures;
  by("attached").replaceChildren(...pictures.map((one, i) => {
    const remove = make("button", { type: "button", textContent: "×", title: `Remove ${one.name}`, ariaLabel: `Remove ${one.name}` });
    remove.onclick = () => { attach(attached.toSpliced(i, 1)); ready(); };
    return make("span", {}, thumbnail(one), remove);
  }));
}

async function add(files) {
  for (const file of [...files]) {
    const refused = overLimit(file);
    if (refused) { complain(Object.assign(refused, { file: file.name })); continue; }
    try {
      attach([...attached, { url: await dataUri(file), name: unused(file.name) }]);
    } catch (error) {
      complain(Object.assign(error, { code: "unread", file: file.name }));
    }
  }
  ready();
}

// Return why the server would refuse this file with the rest of the conversation, or null
function overLimit({ size }) {
  const { max_body, max_images } = model?.limits ?? {}; // the server judges what the page does not know
  const shown = messages.flatMap(({ content }) => content).filter(part => part.type === "image_url").length + attached.length;
  if (shown >= max_images) return new Refused({ code: "invalid_value", message: `one picture too many, this server takes ${max_images} in one conversation` });
  const others = JSON.stringify(messages).length + attached.reduce((sum, { url }) => sum + url.length, 0);
  const room = Math.max(0, max_body - others) * 3 / 4; // a file is sent in base64
  return size > room ? new Refused({ code: "image_too_large", message: `${megabytes(size)}, and this conversation has room for ${megabytes(room)}` }) : null;
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e5 ? 3 : 1)} MB`;

const dataUri = file => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(reader.error.message));
  reader.readAsDataURL(file);
});

function unused(name) { // pasted pictures are all called image.png
  const taken = attached.map(one => one.name);
  for (let n = 2, other = name; ; other = `${name} (${n++})`) if (!taken.includes(other)) return other;
}

// Events

function submit() {
  const text = question.value.trim();
  if (running) return;
  if (text) return ask(text);
  question.value = "";
  by("ask").reportValidity();
}
by("ask").onsubmit = event => { event.preventDefault(); submit(); };
question.onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
};
document.onkeydown = event => { if (event.key === "Escape") running?.abort(); };
by("stop").onclick = () => { running?.abort(); ready(); };
by("pick").onclick = by("attach").onclick = () => by("file").click();
by("file").onchange = async () => { await add(by("file").files); by("file").value = ""; };
by("newest").onclick = () => { toNewest(); turns.lastElementChild.focus({ preventScroll: true }); };
by("over").onclick = () => {
  messages = [];
  forget();
  turns.replaceChildren();
  complain(null);
  attach([]);
  buttons();
  ready();
};
by("key").onsubmit = event => {
  event.preventDefault();
  useKey(by("secret").value.trim());
  by("key").hidden = true;
  complain(null);
  start();
};
document.ondragover = event => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = event => { if (!event.relatedTarget) document.body.classList.remove("over"); };
document.ondrop = event => {
  document.body.classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  add(event.dataTransfer.files);
};
document.onpaste = event => {
  const { clipboardData: data } = event;
  if (data.files.length && !data.getData("text/plain")) { event.preventDefault(); add(data.files); }
};

function needKey() {
  by("key").hidden = false;
  by("secret").focus();
}

async function start() {
  try {
    model = await (await call("page.json")).json();
  } catch (error) {
    return error.code === "invalid_api_key" && !hasKey() ? needKey() : complain(error);
  }
  const { context, samples, vision } = model;
  by("model").textContent = model.model ? `${model.model}: ${[model.description, `context of ${context} tokens`, ...(vision ? [] : ["it cannot see pictures"])].filter(Boolean).join(" · ")}` : "no model is loaded";
  by("samples").hidden = !samples.length;
  by("samples").querySelector(".row").replaceChildren(...samples.map(sample => make(
    "button", { type: "button", title: sample.question, ariaLabel: sample.question, onclick: () => beginWith(sample) }, thumbnail({ url: sample.picture, name: "" }),
  )));
}

function beginWith({ question: text, picture, name }) {
  question.value = text;
  attach([{ url: picture, name }]);
  ready();
}

start();
