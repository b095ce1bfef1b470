// Explain errors to a person: files are called by their names, not by their places in a request.

const PLACE = /messages\[(\d+)\](?:\.content)?(?:\[(\d+)\])?(?:\.[a-z_]+)*/g;
const THREE = /^(messages[^\s:]*|[a-z_]+): [^:]*: (.*)$/s; // the server's "place: field: problem"
const names = new WeakMap(); // part of a message -> its file's name

export function picturePart({ url, name }) {
  const part = { type: "image_url", image_url: { url } };
  names.set(part, name);
  return part;
}

// Replace every place in `messages` in a text by a name for people
export function named(text, messages) {
  return text.replace(PLACE, (_, message, part) => nameOf(messages, Number(message), part));
}

function nameOf(messages, message, part) {
  const name = names.get(messages[message]?.content?.[part]);
  if (name) return `“${name}”`;
  if (messages[message]?.role === "assistant") return "the answer";
  return message === messages.length - 1 ? "the question" : "an earlier question";
}

const SAID = { // code -> a sentence about it; `it` is the picture or the question
  unsupported_image_format: it => `${it} cannot be read as a picture.`,
  invalid_image: it => `${it} cannot be read as a picture.`,
  image_too_large: it => `${it} is too large.`,
  request_too_large: () => "The pictures are too large together: send fewer, or smaller ones.",
  context_length_exceeded: () => "This conversation is longer than the model's context. Start over, or ask with fewer pictures.",
  model_not_loaded: () => "No model is loaded on this server.",
  invalid_api_key: () => "The server refused the API key.",
  unreachable: () => "The server does not answer. Is it still running?",
  cut_off: () => "The connection ended before the answer did. Is the server still running?",
  unread: it => `${it} cannot be read by this browser.`,
};

// Return a sentence for a person, and a detail to show under it
export function explain(error, messages = []) {
  const [, place, problem] = THREE.exec(error.message) ?? [null, "", error.message];
  const it = error.file ? `“${error.file}”` : place.includes("[") ? named(place, messages) : "";
  const said = named(problem, messages), known = SAID[error.code];
  if (!known) return { text: capital(it ? `${it}: ${said}` : said), detail: error.code ?? "" };
  return { text: capital(known(it || "A picture")), detail: said && `${said} · ${error.code}` };
}

const capital = text => text.charAt(0).toUpperCase() + text.slice(1);
