"""Ask the same question about a picture in several ways, so that each can be measured on the same pictures.

The ways differ around the question: in the order of picture and text, a system message, an earlier turn, or a JSON
schema that the answer must follow.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .questions import Question, questions
from .stream import fresh_scene

SYSTEM = "You are a helpful assistant that can answer questions about the image."
WAYS = ("picture-first", "text-first", "system", "system-text-first", "second-turn", "json")
KEYS = {"what at": "what"}  # the key of a JSON answer, unless it is the question's kind


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation in OpenAI's form, its last question, and the JSON schema of the answer (None: plain text)."""

    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None
    question: Question

    def right(self, text: str) -> bool:
        """Say whether `text` is exactly the right answer, or with a schema, JSON with this answer alone."""
        if self.schema is None:
            return text.strip() == self.question.answer
        try:
            return json.loads(text) == {_key(self.question): _value(self.question)}
        except ValueError:
            return False


def fresh_asked(n: int, seed: int, way: str = "picture-first") -> Iterator[Asked]:
    """Yield the questions of `fresh_questions(n, seed)`, each asked in the same `way`, one of WAYS."""
    for index in range(n):
        scene, rng = fresh_scene(seed, index)
        question, *others = questions(scene, rng, 2)
        yield ask(scene.draw(), question, way, others[0] if others else question)


def ask(picture: Image.Image, question: Question, way: str, earlier: Question) -> Asked:
    """Build a conversation. In "second-turn" the question follows `earlier` and its right answer."""
    show = {"type": "image", "image": picture}
    first = earlier if way == "second-turn" else question
    parts = [show, {"type": "text", "text": first.text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts[::-1] if "text-first" in way else parts}]
    if way.startswith("system"):
        messages.insert(0, {"role": "system", "content": SYSTEM})
    if way == "second-turn":
        messages += [{"role": "assistant", "content": earlier.answer}, {"role": "user", "content": question.text}]
    return Asked(messages, _schema(question) if way == "json" else None, question)


def _key(question: Question) -> str:
    """Return the key of a JSON answer."""
    return KEYS.get(question.kind, question.kind)


def _value(question: Question) -> str | int:
    """Return the value of the right JSON answer."""
    return int(question.answer) if question.kind == "count" else question.answer


def _schema(question: Question) -> dict[str, Any]:
    """Return the JSON schema of the answer."""
    kind = "integer" if question.kind == "count" else "string"
    key = _key(question)
    return {"type": "object", "properties": {key: {"type": kind}}, "required": [key], "additionalProperties": False}
