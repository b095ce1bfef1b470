// Helpers that the other modules share: elements, and requests to the server that this page came from.

export const by = id => document.getElementById(id);

export const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

export const action = (text, onclick, more = {}) => make("button", { type: "button", className: "link", textContent: text, onclick, ...more });

export class Refused extends Error { // message and `code` of the server's error; seconds after which to try again
  constructor({ message, code }, retryAfter = null) {
    super(message ?? "");
    this.code = code ?? "";
    this.retryAfter = retryAfter;
  }
}

let key = "";
export const useKey = text => { key = text; };
export const hasKey = () => Boolean(key);

export async function call(path, body, signal) {
  const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  const method = body ? "POST" : "GET";
  const reply = await reached(fetch(path, { method, headers, body: body && JSON.stringify(body), signal }));
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  if (said?.error?.message) throw new Refused(said.error, reply.headers.get("retry-after"));
  throw foreign(`${reply.status} ${reply.statusText}`);
}

export async function callJson(path, body) {
  const reply = await call(path, body);
  return reply.json().catch(() => { throw foreign(kindOf(reply)); });
}

const kindOf = reply => reply.headers.get("content-type") ?? "";
const foreign = message => new Refused({ message: message.trim(), code: "foreign_answer" });

async function reached(promise, code = "unreachable") { // browsers describe an unreachable server in different words
  return promise.catch(error => {
    throw error.name === "AbortError" ? error : new Refused({ code });
  });
}

export async function* events(reply) {
  const kind = kindOf(reply);
  if (kind && !kind.startsWith("text/event-stream")) throw foreign(kind);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reached(reader.read(), "cut_off");
    if (done) throw new Refused({ code: "cut_off" });
    const frames = (waiting + value).split("\n\n");
    waiting = frames.pop();
    for (const frame of frames.filter(frame => frame.startsWith("data: "))) {
      if (frame === "data: [DONE]") return;
      const event = parsed(frame.slice(6));
      if (event.error) throw new Refused(event.error);
      yield event;
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw foreign("an event that is not JSON");
  }
}
