// Helpers that the other modules share: elements, and requests to the server that this page came from.

export const by = id => document.getElementById(id);

export const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

export class Refused extends Error { // message and `code` of the server's error
  constructor({ message, code = "" }) {
    super(message);
    this.code = code;
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
  const { error } = await reply.json().catch(() => ({ error: { message: `The server answered ${reply.status} ${reply.statusText}.` } }));
  throw new Refused(error);
}

async function reached(promise, code = "unreachable") { // browsers describe an unreachable server in different words
  return promise.catch(error => {
    throw error.name === "AbortError" ? error : new Refused({ message: "", code });
  });
}

export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reached(reader.read(), "cut_off");
    if (done) throw new Refused({ message: "", code: "cut_off" });
    const frames = (waiting + value).split("\n\n");
    waiting = frames.pop();
    for (const frame of frames.filter(frame => frame.startsWith("data: "))) {
      if (frame === "data: [DONE]") return;
      const event = JSON.parse(frame.slice(6));
      if (event.error) throw new Refused(event.error);
      yield event;
    }
  }
}
