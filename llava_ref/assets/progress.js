// Say how far an answer is: the server's `prompt_progress`, then tokens, and the seconds since it was asked for.

import { make } from "./base.js";

// Show progress in `note`, which is above the answer's figures; returns { state, piece, end }
export function progressIn(note) {
  const began = Date.now(), words = make("span"), bar = make("progress", { ariaLabel: "Progress", hidden: true });
  let said = "sent to the server", pieces = 0;
  const draw = () => { words.textContent = `${said} · ${Math.round((Date.now() - began) / 1000)} s`; };
  const clock = setInterval(draw, 1000);
  note.replaceChildren(words, bar);
  draw();
  return {
    state(progress) {
      const [text, done, all] = stage(progress);
      said = text;
      bar.hidden = !all;
      if (all) [bar.max, bar.value] = [all, done];
      draw();
    },
    piece() {
      pieces++;
      bar.hidden = true;
      said = `about ${pieces} ${pieces === 1 ? "token" : "tokens"}`; // a piece of text is mostly one
      draw();
    },
    end() {
      clearInterval(clock);
      note.replaceChildren();
    },
  };
}

function stage({ stage: name, ahead, picture, pictures, block, blocks, processed, total, cache }) {
  if (name === "queue") return [`waiting for ${ahead} ${ahead === 1 ? "request" : "requests"} before this one`, 0, 0];
  const which = pictures > 1 ? `picture ${picture} of ${pictures}` : "the picture";
  if (name === "picture") return [`reading ${which}: block ${block} of ${blocks}`, block, blocks];
  return [`reading the prompt: ${processed} of ${total} positions${cache ? ` (${cache} kept from before)` : ""}`, processed, total];
}
