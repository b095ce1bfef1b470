// Show where the model looked: an answer's words as buttons, and the map of the chosen word.

import { by, callJson, make } from "./base.js";
import { stayAt } from "./follow.js";
import { pictureNames } from "./words.js";

const VIOLET = [104, 43, 194], STRONGEST = 0.85; // colour of a map, and its opacity at the largest number
const LEAST = 0.01; // smallest upper end of a scale: smaller values do not deserve a colour
const narrow = matchMedia("(max-width: 56rem)"); // as in page.css: the panel then stands under the answer
const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

let looks = 0; // number of looks begun; only the last one is shown
let shown = null; // the answer that the panel shows

// Make a button of each word of `answer`: { item, line, text, messages }. `now`: show its picture at once.
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
  const under = narrow.matches && shown;
  (under ? shown.item : document.querySelector("main")).append(by("look"));
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
    answer.look ??= callJson("v1/look", { messages: answer.messages });
    const found = await answer.look, source = make("img", { src: found.picture });
    await source.decode();
    if (mine !== looks) return; // another word was clicked in the meantime
    shown = answer;
    place();
    show(answer, found, source, word);
    if (word && narrow.matches) stayAt(by("look"), word.button);
  } catch (error) {
    answer.look = null;
    complain(error, answer.messages);
  } finally {
    word?.button.removeAttribute("aria-busy");
  }
}

const colour = part => `rgba(${VIOLET}, ${STRONGEST * part})`;

function mean(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, map) => sum + map[y][x], 0) / maps.length));
}

function which({ messages }) {
  const names = pictureNames(messages);
  return names.length > 1 ? `“${names.at(-1)}”, the last of ${names.length} pictures: ` : "";
}

function show(answer, found, source, word) {
  by("seen").src = found.seen;
  const [width, height] = found.source, size = found.size.join(" × "), [rows, columns] = found.grid;
  by("sizes").textContent = found.tiles > 1
    ? `${which(answer)}${width} × ${height} read as ${found.tiles} tiles of ${size}, an overview and its parts.`
    : `${which(answer)}${width} × ${height} resized to ${size}, read as ${columns} × ${rows} patches.`;
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
  const high = Math.max(LEAST, ...values.flat()), step = found.size[1] / values.length;
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
