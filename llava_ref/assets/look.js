// Show where the model looked: an answer's words as buttons, and the map of the chosen word.

import { by, callJson, make } from "./base.js";
import { stayAt } from "./follow.js";
import { drawMap, drawPicture, endsOf, legend, pointing } from "./map.js";
import { picturesOf } from "./words.js";

const SHARE = { unit: "% of the attention", factor: 100, least: 0.01 }; // as in llava_ref/study/overlay.py
const SIDE = 720; // pixels along the longer side of the map
const narrow = matchMedia("(max-width: 56rem)"); // as in page.css: the panel then stands under the answer
const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

let looks = 0; // number of looks begun; only the last one is shown
let shown = null; // the answer that the panel shows

// Make a button of each word of `answer`: { item, line, text, messages }. `now`: show its last picture at once.
export function offer(answer, now, complain) {
  let at = 0; // characters, as the server counts them
  const parts = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(answer.text)].map(({ segment, isWordLike }) => {
    const start = at, end = (at += [...segment].length);
    if (!isWordLike) return segment;
    const button = make("button", { type: "button", className: "word", textContent: segment, title: "Where did it look?", tabIndex: -1 });
    button.ariaPressed = "false";
    button.onclick = () => look(answer, button.ariaPressed === "true" ? null : { name: segment, start, end, button }, complain);
    return button;
  });
  answer.line.replaceChildren(...parts);
  const words = [...answer.line.querySelectorAll(".word")];
  if (words.length) words[0].tabIndex = 0;
  answer.line.onkeydown = event => walk(words, event);
  answer.which = picturesOf(answer.messages).length; // the number of the picture that is shown, from 1
  answer.found = new Map(); // number of a picture -> promise of what /v1/look answers
  if (now && !narrow.matches) look(answer, null, complain);
}

function walk(words, event) { // an answer is one stop of the Tab key; arrows move from word to word
  const from = words.indexOf(document.activeElement), step = ARROWS[event.key];
  if (from < 0 || step === undefined) return;
  event.preventDefault();
  const to = words[Math.min(words.length - 1, Math.max(0, from + step))];
  words[from].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

export function forget() {
  looks++;
  shown = null;
  place();
}

function place() {
  const under = narrow.matches && shown, home = under ? shown.item : document.querySelector("main");
  if (by("look").parentElement !== home) home.append(by("look")); // moving it would take the focus
  by("look").hidden = !shown;
  by("nolook").hidden = Boolean(shown) && !under;
}
narrow.onchange = place;

async function look(answer, word, complain) {
  const mine = ++looks;
  document.querySelectorAll(".word").forEach(button => { button.ariaPressed = String(button === word?.button); });
  if (!word && narrow.matches) return forget(); // pressing the word again closes the panel
  try {
    word?.button.setAttribute("aria-busy", "true");
    const found = await ask(answer), source = make("img", { src: found.picture });
    await source.decode();
    if (mine !== looks) return; // another word or picture was clicked in the meantime
    shown = answer;
    place();
    choices(answer, word, complain);
    show(answer, found, source, word);
    if (word && narrow.matches) stayAt(by("look"), word.button);
  } catch (error) {
    complain(error, answer.messages);
  } finally {
    word?.button.removeAttribute("aria-busy");
  }
}

async function ask({ found, which, messages }) {
  if (!found.has(which)) found.set(which, callJson("v1/look", { messages, which }));
  return found.get(which).catch(error => { found.delete(which); throw error; });
}

function choices(answer, word, complain) { // a button for each picture, where there are several
  const all = picturesOf(answer.messages), focused = by("pictures").contains(document.activeElement);
  by("pictures").replaceChildren(...(all.length < 2 ? [] : all.map(({ name, url }, i) => {
    const choose = () => { answer.which = i + 1; look(answer, word, complain); };
    const image = make("img", { src: url, alt: "" }), label = `Picture ${i + 1} of ${all.length}: ${name}`;
    return make("button", { type: "button", title: label, ariaLabel: label, ariaPressed: String(i + 1 === answer.which), onclick: choose }, image);
  })));
  if (focused) by("pictures").children[answer.which - 1]?.focus();
}

function mean(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, map) => sum + map[y][x], 0) / maps.length));
}

function named({ messages, which }) {
  const all = picturesOf(messages);
  return all.length > 1 ? `“${all[which - 1].name}”, picture ${which} of ${all.length}: ` : "";
}

function show(answer, found, source, word) {
  by("seen").src = found.seen;
  const [width, height] = found.source, size = found.size.join(" × "), [rows, columns] = found.grid;
  by("sizes").textContent = found.tiles > 1
    ? `${named(answer)}${width} × ${height} read as ${found.tiles} tiles of ${size}, an overview and its parts.`
    : `${named(answer)}${width} × ${height} resized to ${size}, read as ${columns} × ${rows} patches.`;
  by("lookname").textContent = word ? `Where it looked for “${word.name}”` : "The picture: click on a word of the answer";
  const tokens = word ? found.tokens.flatMap((t, i) => (t.start < word.end && t.end > word.start ? [i] : [])) : [];
  draw(found, source, tokens.length ? mean(tokens.map(i => found.attention[i])) : null);
}

function draw(found, source, values) {
  const canvas = by("map");
  by("scale").hidden = by("warning").hidden = !values;
  canvas.onmousemove = null;
  if (!values) return drawPicture(canvas, source, found.source, SIDE);
  const ends = endsOf(values.flat(), SHARE.least), say = number => legend(by("scale"), ends, SHARE, number);
  drawMap(canvas, source, found, values, ends, SIDE);
  pointing(canvas, found, values, say);
  say();
}
