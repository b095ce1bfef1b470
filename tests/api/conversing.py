"""Helps tests converse with the page in a browser: open it, ask, supply answers, read what it shows."""

import base64
import io
import json

import pytest
from PIL import Image

from .running import PICTURES

SAMPLES = json.loads((PICTURES / "pictures.json").read_text())
WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 360, "height": 740, "dark": True}
SIZES = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow and dark"])

ANSWERS = """(() => {
  const real = window.real ??= window.fetch, wait = () => new Promise(done => setTimeout(done, 10));
  const [pieces, ending, more] = %s, frame = event => new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`);
  window.fetch = async (path, options) => {
    if (path !== "v1/chat/completions") return real(path, options);
    window.asked = JSON.parse(options.body).messages;
    return new Response(new ReadableStream({ async start(out) {
      options.signal.addEventListener("abort", () => out.error(new DOMException("", "AbortError")));
      for (const content of pieces) {
        out.enqueue(frame({ model: "shapes-text.q8_0", choices: [{ delta: { content } }], ...more }));
        await wait();
      }
      while (ending === "go on" && !window.enough) await wait();
      if (ending === "error") out.enqueue(frame({ error: more.error }));
      if (ending === "done" || window.enough) out.enqueue(new TextEncoder().encode("data: [DONE]\\n\\n"));
      out.close();
    } }));
  };
})()"""


def opened(browser, url, size=WIDE):
    """Open the page without what an earlier test has left in the browser."""
    browser.js("try { sessionStorage.clear(); localStorage.clear() } catch { }")
    browser.open(url, **size)
    browser.until("document.querySelectorAll('#samples img').length === 8")
    return browser


def answers(page, *pieces, ending="done", **more):
    """Replace the next answers by these pieces. `ending`: "done", "cut", "error", or "go on" for no end."""
    page.js(ANSWERS % json.dumps([pieces, ending, more]))


def ask(page, text):
    """Type a question and press Enter, and wait until it is answered or refused."""
    send(page, text)
    page.until("document.getElementById('stop').hidden")


def send(page, text):
    page.js("document.getElementById('question').focus()")
    page("Input.insertText", text=text)
    page.press("Enter")


def read(page, selector):
    """Return the text of the last matching element."""
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.textContent")


def fits(page):
    return page.js("document.documentElement.scrollWidth <= innerWidth")


def noise(width, height):
    out = io.BytesIO()
    Image.effect_noise((width, height), 60).save(out, "PNG")
    return out.getvalue()


def data(file):
    """Return a file as text, for a script of the page."""
    return base64.b64encode(file).decode()
