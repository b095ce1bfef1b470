"""How a server bears clients: those that leave, and several at once."""

import json
import threading
import time

from .case import PYTHON, DemandGroup, need, text_of
from .media import ASK, image
from .target import CHAT, HttpAnswer, Target

BEARING = DemandGroup("clients")
MOST_AT_ONCE = 3


@BEARING.demand(
    "must", "A client that leaves in the middle of a stream does not hold up the next one.", f"{PYTHON}, Stream.close"
)
def one_that_leaves(s: Target) -> None:
    connection = s.connection()
    body = s.request([image(), ASK], stream=True, max_tokens=400)
    connection.request("POST", s.path(CHAT), json.dumps(body).encode(), s.headers())
    answer = connection.getresponse()
    answer.read(1)
    connection.close()
    began = time.monotonic()
    text_of(s.ask([image(), ASK]))
    took = time.monotonic() - began
    began = time.monotonic()
    text_of(s.ask([image(), ASK]))
    alone = time.monotonic() - began
    need(took < 3 * alone + s.patience, f"the next answer took {took:.1f} s, and {alone:.1f} s when nobody had left")


@BEARING.demand(
    "should",
    "Several clients at once are all answered, or told 429 or 503 with Retry-After.",
    f"{PYTHON}, _base_client.py: retries",
)
def at_once(s: Target) -> None:
    answers: list[HttpAnswer | OSError] = []

    def one() -> None:
        try:
            answers.append(s.ask([image(), ASK]))
        except OSError as error:
            answers.append(error)

    threads = [threading.Thread(target=one) for _ in range(MOST_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        need(isinstance(answer, HttpAnswer), f"the connection broke: {answer}")
        assert isinstance(answer, HttpAnswer)
        busy = answer.status in (429, 503) and "retry-after" in answer.headers
        need(answer.status == 200 or busy, answer.said())
    texts = {text_of(a) for a in answers if isinstance(a, HttpAnswer) and a.status == 200}
    need(len(texts) <= 1, f"different answers to one request: {sorted(texts)}")


@BEARING.demand(
    "should",
    "An answer whose client does not say what it accepts is JSON or a stream as it asked.",
    f"{PYTHON} sends Accept: application/json for streams",
)
def accept(s: Target) -> None:
    answer = s.ask([ASK], stream=True)
    need(answer.headers.get("content-type", "").startswith("text/event-stream"), answer.said())
