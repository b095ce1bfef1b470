// The user's settings, kept in this browser: system prompt, temperature, length of an answer.

import { by } from "./base.js";

const PLACE = "llava-ref settings", FIELDS = ["system", "temperature", "max_tokens"];

// Return what the settings add to a request: messages in front, and parameters. An empty field is the server's default
export function settings() {
  const [system, temperature, tokens] = FIELDS.map(name => by(name).value.trim());
  return {
    before: system ? [{ role: "system", content: system }] : [],
    parameters: { ...(temperature && { temperature: Number(temperature) }), ...(tokens && { max_tokens: Number(tokens) }) },
  };
}

// Return whether every field can be sent; shows the one that cannot
export function settingsHold() {
  if (by("settings").checkValidity()) return true;
  by("panel").showModal();
  return by("settings").reportValidity();
}

function note() {
  const set = FIELDS.filter(name => by(name).value.trim()).length;
  by("options").textContent = set ? `Settings (${set})` : "Settings";
}

function keep() {
  note();
  try {
    localStorage.setItem(PLACE, JSON.stringify(Object.fromEntries(FIELDS.map(name => [name, by(name).value]))));
  } catch { /* a browser that keeps nothing: they hold until the page is left */ }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE)) ?? {};
    FIELDS.forEach(name => { by(name).value = kept[name] ?? ""; });
  } catch { /* nothing is kept */ }
  note();
}

by("options").onclick = () => by("panel").showModal();
by("settings").onsubmit = event => { event.preventDefault(); by("panel").close(); };
by("settings").oninput = keep;
by("defaults").onclick = () => { FIELDS.forEach(name => { by(name).value = ""; }); keep(); by("system").focus(); };
restore();
