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

// Return a conversation's pictures, { name, url }, in order
export const picturesOf = messages => messages.flatMap(({ content }) => (Array.isArray(content) ? content.filter(part => names.has(part)) : []))
  .map(part => ({ name: names.get(part), url: part.image_url.url }));

function nameOf(messages, message, part) {
  const name = names.get(messages[message]?.content?.[part]);
  if (name) return `“${name}”`;
  if (messages[message]?.role === "assistant") return "the answer";
  if (messages[message]?.role === "system") return "the system prompt";
  return message === messages.length - 1 ? "the question" : "an earlier question";
}

const later = ({ retryAfter: seconds }) => (seconds ? `ask again in ${seconds} ${Number(seconds) === 1 ? "second" : "seconds"}` : "ask again in a moment");
const SAID = { // code -> a sentence about it; `it` is the picture or the question
  unsupported_image_format: it => `${it} cannot be read as a picture.`,
  invalid_image: it => `${it} cannot be read as a picture.`,
  image_too_large: it => `${it} is too large.`,
  request_too_large: () => "The pictures are too large together: send fewer, or smaller ones.",
  context_length_exceeded: () => "This conversation is longer than the model's context. Start over, or ask with fewer pictures.",
  model_not_loaded: () => "No model is loaded on this server.",
  invalid_api_key: () => "The server refused the API key. Put the right one into the field at the top: the one that the server was started with (--api-key).",
  server_busy: (_, error) => `The server has too much to do: ${later(error)}.`,
  model_loading: (_, error) => `The server is loading another model: ${later(error)}.`,
  shutting_down: () => "The server is shutting down. Ask again when it is back.",
  worker_dead: () => "The server cannot answer any more and has to be started again.",
  load_failed: () => "The server could not load its model.",
  timeout: () => "It took too long until the server had the whole request. A slow connection? Smaller pictures are sent faster.",
  internal_error: () => "Something went wrong inside the server; its log says what.",
  model_error: () => "The model computed no numbers for this, so there is no answer.",
  origin_not_allowed: () => "The server does not answer to pages of this address (--cors-origin).",
  host_not_allowed: () => "The server does not answer to this address (--allow-host).",
  foreign_answer: () => "Something else answered in place of the server, perhaps a proxy between.",
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
  return { text: capital(known(it || "A picture", error)), detail: said && `${said} · ${error.code}` };
}

const capital = text => text.charAt(0).toUpperCase() + text.slice(1);
