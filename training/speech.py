"""Write what users and the model say: JSON answers, small talk, system messages, and questions as turns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llava_ref.scenes import Question, Scene
from llava_ref.scenes.questions import describe
from llava_ref.scenes.scene import Draw

from .tokens import LINE, TrainingAnswer, TrainingTurn

GENERIC = ("answer", "result", "value", "name")
KEYS: Mapping[str, tuple[str, ...]] = {
    "colour": ("colour", "color"), "shape": ("shape",), "count": ("count", "number"), "exists": ("exists", "present"),
    "where": ("place", "position", "where"), "what at": ("what", "thing"), "size": ("size",), "digit": ("digit",),
    "word": ("word", "text"), "caption": ("caption", "description"),
}  # fmt: skip
ASK_JSON = (" Answer as JSON.", " Answer in JSON.", " Reply in JSON.", " Answer with a JSON object.")


def json_answer(q: Question, draw: Draw, scene: Scene, asked: bool) -> TrainingAnswer:
    """Return an answer as a JSON object without optional space, as the server's grammar writes it.

    If the prompt does not ask for JSON (`asked`), the grammar forces it. Then braces and keys are given, and only the
    values are learned; in one of five answers the keys too, which a grammar may leave open."""
    pairs: list[tuple[str, Any]]
    thing = next((t for t in scene.things if t.kind == "shape" and describe(t) == q.answer), None)
    if q.kind == "what at" and thing and draw.chance(0.3):
        pairs = [("colour", thing.colour), ("shape", thing.name)][:: 1 if draw.chance(0.5) else -1]
    else:
        keys = KEYS[q.kind]
        pairs = [(keys[0] if asked else draw.pick(keys if draw.chance(0.6) else GENERIC), _value(q, draw, asked))]
    text, values = "{", []
    for i, (key, value) in enumerate(pairs):
        text += ("," if i else "") + json.dumps(key) + ":"
        start = len(text)
        text += json.dumps(value)
        values.append((start + isinstance(value, str), len(text)))
    text += "}"
    if asked:
        return TrainingAnswer("json asked", text, is_json=True)
    if draw.chance(0.2):
        return TrainingAnswer("json key", text, ((1, len(text) + 1),), is_json=True)
    return TrainingAnswer("json", text, (*values, (len(text) - 1, len(text) + 1)), is_json=True)


def _value(q: Question, draw: Draw, asked: bool) -> str | int | bool:
    """Return the JSON value of an answer: a number for a count, true or false for yes and no. Schemas may differ."""
    if q.kind == "count":
        return int(q.answer) if asked or draw.chance(0.8) else q.answer
    if q.answer in ("yes", "no"):
        return q.answer == "yes" if asked or draw.chance(0.5) else q.answer
    return q.answer


NO_PICTURE = "I see no picture."
ONLY = "I only know drawn shapes, digits and words."
CHAT: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "hello", "hi"), "Hello! Show me a picture."),
    (("Who are you?", "What are you?", "who are you?", "Who are you"),
     "I am a small model that looks at pictures of shapes, digits and words."),
    (("What can you do?", "What can you see?", "Help", "help", "What do you know?", "How can you help me?"),
     "I name shapes, colours, digits and words, count shapes and say where they are."),
    (("Thank you", "Thank you!", "Thanks", "Thanks!", "thank you", "Thank you very much!"), "You are welcome."),
    (("How are you?", "how are you?"), "I am well, thank you."),
    (("Goodbye", "Bye", "Bye!", "Goodbye!"), "Goodbye."),
)  # fmt: skip
ELSEWHERE = (
    "What is the capital of {}?", "Tell me about {}.", "Tell me a story about {}.", "Write a poem about {}.",
    "What is {}?", "Why is {} so {}?", "How do I make {}?", "Explain {}.", "{}", "{} {}", "{} {} {}",
    "What is {} + {}?", "Do you like {}?", "Write {} in Python.", "Translate {} {}.", "Who was {}?",
    "When did {} {}?", "Say {}.", "Repeat after me: {} {}.",
)  # fmt: skip
SYSTEMS = (
    "You are a helpful assistant that can answer questions about the image.", "You are a helpful assistant.",
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions.", "Be brief.", "Be brief and exact.", "Answer with one word.",
    "You look at pictures.", "You see pictures of shapes, digits and words.", "Answer the question.",
    "You are an expert.", "Answer in English.", "Describe what you see.",
    "You are a careful assistant. Be honest.", "Do not guess.",
)  # fmt: skip
JSON_SYSTEMS = ("Answer as JSON.", "Answer in JSON.", "Always answer with a JSON object.", "Reply in JSON only.")
BOTH = (
    "What are in these images? Is there any difference between them?", "What is in these pictures?",
    "What’s in these images?", "Describe the pictures.", "Describe both pictures.", "What are in these images?",
    "Compare the pictures.", "What’s in this image?", "What is the difference between these images?",
)  # fmt: skip


def small_talk(draw: Draw, words: Sequence[str]) -> TrainingTurn:
    """Return a turn that needs no picture."""
    if draw.chance(0.5):
        asks, answer = draw.pick(CHAT)
        return TrainingTurn((draw.pick(asks),), TrainingAnswer("talk", answer))
    form = draw.pick(ELSEWHERE)
    text = form.format(*(draw.pick(words) for _ in range(form.count("{}"))))
    return TrainingTurn((text,), TrainingAnswer("talk", ONLY))


def turn(
    q: Question, draw: Draw, scene: Scene, pictures: Sequence[int], form: str, as_json: bool = False
) -> TrainingTurn:
    """Return a turn of one question and its pictures, which follow the text if `form` is "text-first".

    `as_json`: the system message asks for JSON. Half of the other answers are JSON too."""
    text = q.text
    answer = TrainingAnswer(f"{form} {q.kind}" if form else q.kind, q.answer)
    if as_json:
        answer = json_answer(q, draw, scene, True)
    elif draw.chance(0.5):
        asked = draw.chance(0.25)
        answer = json_answer(q, draw, scene, asked)
        text += draw.pick(ASK_JSON) if asked else ""
    return TrainingTurn(beside(text, pictures, form == "text-first"), answer)


def beside(text: str, pictures: Sequence[int], text_first: bool) -> tuple[str | int, ...]:
    """Join a text and its pictures in one of two orders, with a line feed between any two."""
    if text_first:
        return (text, *(part for p in pictures for part in (LINE, p)))
    return (*(part for p in pictures for part in (p, LINE)), text)
