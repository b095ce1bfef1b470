// One turn on the page: the question with its pictures, the answer with its figures, and what can be done with them.

import { action, by, make } from "./base.js";
import { shown } from "./pictures.js";
import { named } from "./words.js";

const unseen = text => make("span", { className: "unseen", textContent: text });

// Append a turn to the page. `does`: { edit, again }, called with nothing
export function addTurn(text, pictures, does) {
  const asked = make("div", { className: "row" }, ...pictures.map(shown));
  const edit = make("div", { className: "actions" }, action("Edit", does.edit, { ariaLabel: "Edit this question" }));
  const mine = make("li", { className: "user" }, unseen("You asked:"), asked, make("p", { textContent: text }), edit);
  const line = make("p"), about = make("div", { className: "note" }), copied = action("Copy", () => copy(line.textContent, copied), { ariaLabel: "Copy this answer" });
  const actions = make("div", { className: "actions" }, copied, action("Ask again", does.again, { ariaLabel: "Ask this question again", title: "Replaces this answer and all that came after" }));
  const item = make("li", { className: "answer", tabIndex: -1 }, unseen("Answer:"), line, about, actions);
  by("turns").append(mine, item);
  return { mine, item, line, about };
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure address, such as a plain one of the local network
    const field = make("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Say an answer's tokens, times and warnings in one line
export function figures({ usage, timings, warnings, stopped }, messages) {
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
