// The page of `llava-ref serve`: a conversation through /v1/chat/completions, like any other client's.

import { by, call, callJson, events, hasKey, make, useKey } from "./base.js";
import { toNewest } from "./follow.js";
import { keep, kept } from "./keep.js";
import { forget, offer } from "./look.js";
import { add, attach, pictures, usePictures } from "./pictures.js";
import { progressIn } from "./progress.js";
import { settings, settingsHold } from "./settings.js";
import { addTurn, figures } from "./turns.js";
import { explain, picturePart } from "./words.js";

const QUICK = 2; // seconds of prefill: after a longer one, the maps are computed only when the user asks for them

const question = by("question"), touch = matchMedia("(pointer: coarse)");
let turns = []; // the conversation: { text, pictures, asked, before, answer, figures, mine, item, line, about }
let running = null; // AbortController of the answer being given
let editing = null; // the turn whose question is in the field, to be asked anew
let model = null; // the content of /page.json

const spoken = turns => turns.flatMap(({ asked, answer }) => [asked, { role: "assistant", content: answer }]);
const message = (text, pictures) => ({ role: "user", content: [...pictures.filter(({ url }) => url).map(picturePart), { type: "text", text }] });

// Asking

function submit() {
  const text = question.value.trim(), from = editing;
  if (running || !settingsHold()) return;
  if (!text) {
    question.value = "";
    return by("ask").reportValidity();
  }
  const given = pictures();
  leave();
  ask(text, given, from);
}

// Ask a question; `from`: the turn that it replaces, with all after it, if it is answered
async function ask(text, given, from = null) {
  const replaced = from ? turns.splice(turns.indexOf(from)) : [];
  replaced.forEach(({ mine, item }) => { mine.remove(); item.remove(); });
  const turn = newTurn(text, given), sent = [...turn.before, ...spoken(turns), turn.asked];
  const result = { text: "", usage: null, timings: null, warnings: [], stopped: false };
  complain(null);
  turn.progress = begin(turn);
  const failed = await receive(sent, result, turn).then(() => null, error => error);
  end(turn);
  result.stopped = failed?.name === "AbortError";
  if (failed && !(result.stopped && result.text)) {
    if (!result.stopped) complain(failed, sent);
    return giveBack(turn, result, replaced);
  }
  answered(turn, result, sent);
}

function newTurn(text, given) {
  const turn = { text, pictures: given, asked: message(text, given), before: settings().before };
  return Object.assign(turn, addTurn(text, given, { edit: () => edit(turn), again: () => { if (!running) { stopEditing(); ask(turn.text, turn.pictures, turn); } } }));
}

// Focus the question field, but not on a touch screen, where this would open a keyboard over the answer
function ready() {
  if (!touch.matches) question.focus();
}

function begin(turn) {
  running = new AbortController();
  turn.item.classList.add("running");
  turn.item.ariaBusy = "true";
  buttons();
  ready();
  toNewest();
  return progressIn(turn.about);
}

async function receive(sent, result, turn) {
  const body = { messages: sent, ...settings().parameters, stream: true, stream_options: { include_usage: true }, return_progress: true };
  const reply = await call("v1/chat/completions", body, running.signal);
  for await (const event of events(reply)) {
    const piece = event.choices[0]?.delta?.content ?? "";
    if (event.prompt_progress && !result.text) turn.progress.state(event.prompt_progress);
    if (piece) turn.progress.piece();
    result.text += piece;
    turn.line.append(piece);
    for (const name of ["model", "usage", "warnings", "timings"]) result[name] = event[name] ?? result[name];
  }
}

function end(turn) {
  turn.progress.end();
  turn.item.classList.remove("running");
  turn.item.ariaBusy = null;
  running = null;
  buttons();
}

function answered(turn, result, sent) {
  Object.assign(turn, { answer: result.text, figures: figures(result, sent) });
  turns.push(turn);
  conclude(turn, [...sent, { role: "assistant", content: result.text }], (result.timings?.prefill_s ?? QUICK) < QUICK);
  by("said").textContent = result.text || "The answer is empty.";
  remember();
  if (result.model !== model?.model) start(); // another model was loaded in the meantime
}

// Show what belongs below an answer, and make buttons of its words
function conclude(turn, messages, now) {
  turn.about.textContent = turn.figures;
  if (!turn.answer) turn.line.replaceChildren(make("em", { textContent: "(empty answer)" }));
  const pictured = messages.some(({ content }) => Array.isArray(content) && content.some(part => part.type === "image_url"));
  if (turn.answer && pictured) offer({ item: turn.item, line: turn.line, text: turn.answer, messages }, now, complain);
}

// Remove a failed turn from the conversation, put back what it was to replace, and its question into the field
function giveBack(turn, result, replaced) {
  for (const item of [turn.mine, turn.item]) result.text && !replaced.length ? item.classList.add("refused") : item.remove();
  for (const { mine, item } of replaced) by("turns").append(mine, item);
  turns.push(...replaced);
  turn.about.textContent = "cut off; not part of the conversation";
  question.value = [turn.text, question.value].filter(Boolean).join("\n");
  attach([...turn.pictures, ...pictures()]);
  if (replaced.length) edit(replaced[0], false);
  by("said").textContent = result.stopped ? "Stopped before the answer began." : "";
  buttons();
}

// Editing

function edit(turn, fill = true) {
  if (running) return;
  stopEditing();
  editing = turn;
  turns.slice(turns.indexOf(turn)).forEach(({ mine, item }) => [mine, item].forEach(one => one.classList.add("replaced")));
  by("editing").hidden = false;
  if (fill) {
    question.value = turn.text;
    attach(turn.pictures.filter(({ url }) => url));
  }
  question.focus();
}

function stopEditing() {
  editing = null;
  by("editing").hidden = true;
  document.querySelectorAll(".replaced").forEach(item => item.classList.remove("replaced"));
}

function leave() { // empty the field
  stopEditing();
  question.value = "";
  attach([]);
  by("offers").replaceChildren();
}

function buttons() {
  by("send").hidden = Boolean(running);
  by("stop").hidden = !running;
  document.body.classList.toggle("busy", Boolean(running));
  by("start").hidden = Boolean(by("turns").childElementCount);
  by("over").hidden = Boolean(running) || !by("turns").childElementCount;
}

// An error stays beside the question field until the next question is sent

function complain(error, sent) {
  const { text, detail } = error ? explain(error, sent) : { text: "", detail: "" };
  by("error").replaceChildren(...(error ? [make("p", { textContent: text })] : []), ...(detail ? [make("p", { className: "detail", textContent: detail })] : []));
  if (error?.code === "invalid_api_key") needKey();
  if (error?.code === "model_not_loaded") start();
}

// Keeping

const UNKEPT = {
  words: "The pictures of this conversation are too large for this browser to keep: after a reload, its words alone are left.",
  nothing: "This browser keeps nothing of this conversation: a reload ends it.",
};

function remember() {
  by("unkept").textContent = UNKEPT[keep(turns)] ?? "";
}

function restore() {
  try {
    kept().forEach(bring);
  } catch { // kept by another version of this page
    turns = [];
    by("turns").replaceChildren();
  }
  buttons();
}

function bring({ text, pictures: given, answer, figures, before }) {
  const turn = newTurn(text, given);
  turn.line.append(answer);
  turns.push(Object.assign(turn, { answer, figures, before }));
  conclude(turn, [...before, ...spoken(turns)], false);
}

usePictures({
  model: () => model,
  ready,
  complain,
  used() {
    const before = editing ? turns.slice(0, turns.indexOf(editing)) : turns, shown = before.flatMap(({ pictures }) => pictures.filter(({ url }) => url));
    const pixels = shown.reduce((sum, { width = 0, height = 0 }) => sum + width * height, 0);
    return { pictures: shown.length, pixels, bytes: JSON.stringify(spoken(before)).length };
  },
});

// Events

by("ask").onsubmit = event => { event.preventDefault(); submit(); };
question.onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
};
document.onkeydown = event => { if (event.key === "Escape" && !by("panel").open) running ? running.abort() : editing && leave(); };
by("stop").onclick = () => { running?.abort(); ready(); };
by("cancel").onclick = () => { leave(); ready(); };
by("pick").onclick = by("attach").onclick = () => by("file").click();
by("file").onchange = async () => { await add(by("file").files); by("file").value = ""; };
by("newest").onclick = () => { toNewest(); by("turns").lastElementChild.focus({ preventScroll: true }); };
by("over").onclick = () => {
  turns = [];
  forget();
  by("turns").replaceChildren();
  complain(null);
  leave();
  remember();
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
    model = await callJson("page.json");
  } catch (error) {
    return error.code === "invalid_api_key" && !hasKey() ? needKey() : complain(error);
  }
  const { context, samples, vision } = model;
  by("model").textContent = model.model ? `${model.model}: ${[model.description, `context of ${context} tokens`, ...(vision ? [] : ["it cannot see pictures"])].filter(Boolean).join(" · ")}` : "no model is loaded";
  by("samples").hidden = !samples.length;
  by("samples").querySelector(".row").replaceChildren(...samples.map(sample => make(
    "button", { type: "button", title: sample.question, ariaLabel: sample.question, onclick: () => beginWith(sample) }, make("img", { src: sample.picture, alt: "" }),
  )));
}

function beginWith({ question: text, picture, name }) {
  question.value = text;
  attach([{ url: picture, name }]);
  ready();
}

restore();
start();
