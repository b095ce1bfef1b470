"""Drives headless Chromium over a pipe, with its DevTools protocol; this needs no package and no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from ..support.waiting import PATIENCE, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --remote-debugging-pipe --disable-gpu --no-first-run --disable-dev-shm-usage "
    "--disable-background-networking --disable-component-update --disable-sync --no-proxy-server --hide-scrollbars "
    "--disable-smooth-scrolling"
)

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
DROP = """(() => {
  const data = new DataTransfer(), bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  for (const [name, text] of %s) data.items.add(new File([bytes(text)], name, {type: "image/png"}));
  document.querySelector("main").dispatchEvent(
    new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
})()"""
SHOWS = """(element => {
  if (!element) return false;
  const box = element.getBoundingClientRect(), points = [[.5, .5], [.5, .2], [.5, .8], [.2, .5], [.8, .5]];
  const inside = box.width && box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
  const hit = ([x, y]) => element.contains(document.elementFromPoint(box.x + x * box.width, box.y + y * box.height));
  return Boolean(inside) && points.every(hit);
})([...document.querySelectorAll(%s)].at(-1))"""


class BrowserPage:
    """One page. Chromium reads commands from descriptor 3 and writes to 4: JSON, each followed by a zero byte."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (their_in, self._out), (self._in, their_out) = (tuple(map(_high, os.pipe())) for _ in range(2))
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        moved = [(os.POSIX_SPAWN_DUP2, their_in, 3), (os.POSIX_SPAWN_DUP2, their_out, 4)]
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=[null, *moved], setpgroup=0)
        os.close(their_in)
        os.close(their_out)
        self._left, self._number, self._session = b"", 0, None
        self.complaints: list[str] = []
        """Errors in the page's console: those of its scripts and of the Content-Security-Policy."""
        targets = self("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> "BrowserPage":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            self._note(message)
        assert "result" in message, message
        return message["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._in], [], [], PATIENCE)[0], "Chromium does not answer"
            data = os.read(self._in, 2**20)
            assert data, "Chromium has ended"
            self._left += data
        first, _, self._left = self._left.partition(b"\0")
        return json.loads(first)

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))

    def js(self, expression: str) -> Any:
        """Return the value of an expression, after awaiting it."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true, and until what made it so has been laid out and drawn."""
        end = time.monotonic() + PATIENCE
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression}: never; the page says {self.js('document.body.innerText')}"
            time.sleep(0.02)
        self.frame()

    def frame(self) -> None:
        """Wait until all changes have been laid out and drawn."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def open(self, url: str, width: int = 1200, height: int = 800, dark: bool = False) -> None:
        self.size(width, height, dark)
        loader = self("Page.navigate", url=url)["loaderId"]
        until(lambda: self("Page.getFrameTree")["frameTree"]["frame"]["loaderId"] == loader)  # not the page before
        self.until("document.readyState === 'complete'")

    def size(self, width: int, height: int, dark: bool) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def click(self, selector: str) -> None:
        """Click an element with the mouse, as a user does: it gets no click if something else covers it."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.js(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({_box(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key as a user does; the focused element gets it."""
        text = {"Enter": "\r", " ": " "}.get(key)
        names = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self("Input.dispatchKeyEvent", type="keyDown", **names, **({} if text is None else {"text": text}))
        self("Input.dispatchKeyEvent", type="keyUp", **names)

    def wheel(self, pixels: int) -> None:
        """Turn the mouse wheel over the window; positive is down."""
        width, height = self.js("[innerWidth, innerHeight]")
        self("Input.dispatchMouseEvent", type="mouseWheel", x=width / 4, y=height / 3, deltaX=0, deltaY=pixels)

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Drop files on the page. `files`: (name, content)."""
        before = self.js("document.querySelectorAll('#attached > *').length")
        self.js(DROP % json.dumps([(name, base64.b64encode(data).decode()) for name, data in files]))
        self.until(f"document.querySelectorAll('#attached > *').length === {before + len(files)}")

    def shows(self, selector: str) -> bool:
        """Return whether the last matching element is completely visible, with nothing over it."""
        return self.js(SHOWS % json.dumps(selector))

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self("Input.insertText", text=text)

    def png(self) -> bytes:
        """Return a screenshot of the window."""
        return base64.b64decode(self("Page.captureScreenshot")["data"])

    def screenshot(self, path: Path) -> None:
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


def _box(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"


def _high(descriptor: int) -> int:
    """Duplicate a descriptor to a number from 10, so that it is neither 3 nor 4."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return copy
