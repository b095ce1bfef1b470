// The page of `llava-ref serve`. It speaks to /v1/chat/completions as any client would, and to /v1/look and /page.json.

const VIOLET = [104, 43, 194], STRONGEST = 0.85; // colour of a map, and its opacity at the largest number
const LEAST = 0.01; // a scale reaches at least so far: below that nothing worth a colour happens
const QUICK = 2; // seconds of prefill: where it took longer, nothing is run again before somebody clicks

const by = id => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

let messages = []; // the conversation as it is sent
let attached = []; // data URIs of pictures for the next question
let key = "";
let running = null; // AbortController of the answer being given
let looks = 0; // of which the last one counts

class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.detail = [status, error.code, error.param].filter(Boolean).join(" · ");
  }
}

async function call(path, body, signal) {
  const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  const reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (reply.ok) return reply;
  if (reply.status === 401) by("key").hidden = false;
  const { error } = await reply.json().catch(() => ({ error: { message: reply.statusText } }));
  throw new Refused(reply.status, error);
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const frames = (waiting + value).split("\n\n");
    waiting = frames.pop();
    for (const frame of frames.filter(frame => frame.startsWith("data: "))) {
      if (frame === "data: [DONE]") return;
      const event = JSON.parse(frame.slice(6));
      if (event.error) throw new Refused("", event.error);
      yield event;
    }
  }
}

// Asking

async function ask(text) {
  const pictures = attached;
  const question = { role: "user", content: [...pictures.map(url => ({ type: "image_url", image_url: { url } })), { type: "text", text }] };
  const asked = make("li", { className: "user" }, ...pictures.map(thumbnail), make("p", { textContent: text }));
  const line = make("p"), about = make("div", { className: "note" });
  const answer = make("li", { className: "answer running" }, line, about);
  by("turns").append(asked, answer);
  by("start").hidden = true;
  attach([]);
  by("question").value = "";
  busy(new AbortController());
  const result = { text: "", usage: null, timings: null, warnings: [], stopped: false };
  try {
    await receive([...messages, question], result, line);
  } catch (error) {
    result.stopped = error.name === "AbortError";
    if (!result.stopped) answer.after(problem(error));
    if (!result.text || !result.stopped) {
      asked.classList.add("refused");
      if (!result.text) answer.remove();
      return giveBack(text, pictures);
    }
  } finally {
    answer.classList.remove("running");
    busy(null);
  }
  messages = [...messages, question, { role: "assistant", content: result.text }];
  about.textContent = figures(result);
  if (result.text && messages.some(hasPicture)) offer({ messages, line, about, text: result.text }, (result.timings?.prefill_s ?? QUICK) < QUICK);
}

async function receive(conversation, result, line) {
  const body = { messages: conversation, stream: true, stream_options: { include_usage: true } };
  const reply = await call("v1/chat/completions", body, running.signal);
  for await (const event of events(reply)) {
    const piece = event.choices[0]?.delta?.content ?? "";
    result.text += piece;
    line.append(piece);
    result.usage = event.usage ?? result.usage;
    result.warnings = event.warnings ?? result.warnings;
    result.timings = event.timings ?? result.timings;
  }
}

const hasPicture = message => Array.isArray(message.content) && message.content.some(part => part.type === "image_url");

function figures({ usage, timings, warnings, stopped }) {
  const said = [];
  if (usage) {
    const { image_tokens: image, text_tokens: text, cached_tokens: cached } = usage.prompt_tokens_details;
    said.push(`${image ? `${image} picture + ` : ""}${text} text tokens in${cached ? ` (${cached} known already)` : ""}`, `${usage.completion_tokens} out`);
  }
  if (timings) {
    const seen = timings.encode_s ? `picture ${seconds(timings.encode_s)}, ` : "";
    said.push(`${seen}first token ${seconds(timings.prefill_s)}${timings.decode_tok_s ? `, then ${timings.decode_tok_s.toPrecision(3)} tokens a second` : ""}`);
  }
  return [...said, ...(stopped ? ["stopped"] : []), ...warnings].join(" · ");
}

const seconds = s => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);

function problem(error) {
  const detail = error.detail ? [make("code", { textContent: error.detail })] : [];
  return make("li", { className: "error", role: "alert" }, error.message, ...detail);
}

function giveBack(text, pictures) {
  by("question").value = text;
  attach(pictures);
}

function busy(controller) {
  running = controller;
  by("send").hidden = Boolean(controller);
  by("stop").hidden = !controller;
  by("over").hidden = Boolean(controller) || !by("turns").childElementCount;
}

// Looking

function offer(answer, now) {
  let at = 0; // characters, as the server counts them
  const parts = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(answer.text)].map(({ segment, isWordLike }) => {
    const start = at, end = (at += [...segment].length);
    if (!isWordLike) return segment;
    const button = make("button", { type: "button", className: "word", textContent: segment, title: "Where did it look?" });
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => look(answer, { name: segment, start, end, button });
    return button;
  });
  answer.line.replaceChildren(...parts);
  if (now) look(answer, null);
}

async function look(answer, word) {
  const mine = ++looks;
  document.querySelectorAll(".word").forEach(button => button.setAttribute("aria-pressed", button === word?.button));
  try {
    word?.button.setAttribute("aria-busy", "true");
    answer.look ??= call("v1/look", { messages: answer.messages }).then(reply => reply.json());
    const found = await answer.look;
    if (mine !== looks) return; // another word was clicked meanwhile
    await show(found, word);
    if (word) by("look").scrollIntoView({ block: "nearest", behavior: "smooth" });
  } catch (error) {
    answer.look = null;
    answer.about.after(make("div", {}, problem(error)));
  } finally {
    word?.button.removeAttribute("aria-busy");
  }
}

const colour = part => `rgba(${VIOLET}, ${STRONGEST * part})`;

function mean(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, map) => sum + map[y][x], 0) / maps.length));
}

async function show(found, word) {
  const source = make("img", { src: found.picture });
  await source.decode();
  by("look").hidden = false;
  by("nolook").hidden = true;
  by("seen").src = found.seen;
  const [width, height] = found.source, size = found.size;
  by("sizes").textContent = `${width} × ${height} made ${size} × ${size}, read as ${found.grid} × ${found.grid} patches.`;
  by("lookname").textContent = word ? `Where it looked for “${word.name}”` : "The picture: click on a word of the answer";
  const tokens = word ? found.tokens.flatMap((t, i) => (t.start < word.end && t.end > word.start ? [i] : [])) : [];
  draw(found, source, tokens.length ? mean(tokens.map(i => found.attention[i])) : null);
}

function draw(found, source, values) {
  const canvas = by("map"), [width, height] = found.source, [sx, sy, dx, dy] = found.affine;
  const zoom = 720 / Math.max(width, height), pen = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(width * zoom));
  canvas.height = Math.max(1, Math.round(height * zoom));
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.filter = values ? "grayscale(1) opacity(0.45)" : "none"; // pale, so that colour means a number
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  by("scale").hidden = by("warning").hidden = !values;
  canvas.onmousemove = null;
  if (!values) return;
  const high = Math.max(LEAST, ...values.flat()), step = found.size / values.length;
  values.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = colour(value / high);
    pen.fillRect((x * step * sx + dx) * zoom, (y * step * sy + dy) * zoom, step * sx * zoom, step * sy * zoom);
  }));
  const [from, to] = by("scale").querySelectorAll("span"), here = by("scale").querySelector("output");
  by("scale").querySelector(".bar").style.background = `linear-gradient(to right, ${colour(0)}, ${colour(1)}), #f4f4f4`;
  from.textContent = "0";
  to.textContent = `${high.toPrecision(2)} of 1`;
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width * width - dx) / sx / step);
    const y = Math.floor(((event.clientY - box.top) / box.height * height - dy) / sy / step);
    here.textContent = values[y]?.[x]?.toPrecision(3) ?? "";
  };
}

// Pictures

function thumbnail(url) {
  const picture = make("img", { src: url, alt: "a picture" });
  picture.onerror = () => picture.replaceWith(make("span", { className: "unknown", textContent: "a file this browser cannot show" }));
  return picture;
}

function attach(urls) {
  attached = urls;
  by("attached").replaceChildren(...urls.map((url, i) => {
    const remove = make("button", { type: "button", textContent: "×", title: "Remove", onclick: () => attach(attached.filter((_, j) => j !== i)) });
    return make("span", {}, thumbnail(url), remove);
  }));
}

async function add(files) {
  const read = file => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  const urls = await Promise.all([...files].map(read)).catch(error => (by("turns").append(problem(error)), []));
  attach([...attached, ...urls]);
  if (urls.length) by("question").focus();
}

// Events

function submit() {
  const text = by("question").value.trim();
  if (text && !running) ask(text);
}
by("ask").onsubmit = event => { event.preventDefault(); submit(); };
by("question").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
};
by("stop").onclick = () => running?.abort();
by("pick").onclick = by("attach").onclick = () => by("file").click();
by("file").onchange = async () => { await add(by("file").files); by("file").value = ""; };
by("over").onclick = () => {
  messages = [];
  looks++;
  by("turns").replaceChildren();
  by("start").hidden = by("nolook").hidden = false;
  by("look").hidden = by("over").hidden = true;
  attach([]);
};
by("key").onsubmit = event => {
  event.preventDefault();
  key = by("secret").value.trim();
  by("key").hidden = true;
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
document.onpaste = event => { if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); } };

async function start() {
  try {
    const about = await (await call("page.json")).json();
    by("model").textContent = about.model ? `${about.model} · context of ${about.context} tokens${about.vision ? "" : " · cannot see pictures"}` : "no model is loaded";
    by("samples").hidden = !about.samples.length;
    by("samples").querySelector(".row").replaceChildren(...about.samples.map(({ picture, question }) => make(
      "button", { type: "button", title: question, onclick: () => giveBack(question, [picture]) }, thumbnail(picture),
    )));
  } catch (error) {
    if (by("key").hidden) by("turns").append(problem(error));
  }
}

start();
