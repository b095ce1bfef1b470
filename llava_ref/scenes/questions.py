"""Questions about a scene, each with exactly one right answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .scene import COLOURS, SHAPES, Draw, Scene, Thing


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked and the one right answer, to the letter."""

    kind: str  # a key of KINDS
    text: str
    answer: str


def questions(
    scene: Scene, rng: np.random.Generator, n: int = 1, weights: Mapping[str, int] | None = None
) -> list[Question]:
    """`n` questions, no text twice, their kinds drawn by `weights` (those of KINDS) among those the scene allows."""
    draw = Draw(rng)
    kinds = list(KINDS)
    ends = np.cumsum([weights[kind] if weights else KINDS[kind][0] for kind in kinds])
    out: dict[str, Question] = {}
    for _ in range(20 * n):
        if len(out) == n:
            break
        kind = kinds[int(np.searchsorted(ends, draw.between(0, int(ends[-1]) - 1), side="right"))]
        made = KINDS[kind][1](scene, draw)
        if made and made[0] not in out:
            out[made[0]] = Question(kind, *made)
    return list(out.values())


Made = tuple[str, str] | None  # question and answer; None: this scene has no such question


def _shapes(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if t.kind == "shape"]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _alone(scene: Scene, thing: Thing) -> list[str]:
    """The ways to point at a thing that fit nothing else in the scene."""
    if thing.kind != "shape":  # at most one digit and one word to a scene
        return [f"the {thing.kind}"]
    twins = [t for t in _shapes(scene) if t.name == thing.name]
    if len(twins) == 1:
        return [f"the {thing.name}", f"the {thing.name}", f"the {thing.colour} {thing.name}"]
    if sum(t.colour == thing.colour for t in twins) == 1:
        return [f"the {thing.colour} {thing.name}"]
    return []


def _pointable(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if _alone(scene, t)]


def describe(thing: Thing, with_size: bool = False) -> str:
    """Say "a red circle", "the digit 7", "the word CAT"; for a caption "a large red circle", "the blue digit 7"."""
    if thing.kind == "shape":
        return _article(f"{thing.size} {thing.colour} {thing.name}" if with_size else f"{thing.colour} {thing.name}")
    return f"the {thing.colour} {thing.kind} {thing.name}" if with_size else f"the {thing.kind} {thing.name}"


def _colour(scene: Scene, draw: Draw) -> Made:
    named = [t for t in scene.things if t.kind != "shape" or sum(o.name == t.name for o in scene.things) == 1]
    if not named:
        return None
    thing = draw.pick(named)
    the = f"the {thing.name if thing.kind == 'shape' else thing.kind}"
    forms = ["What colour is {}?", "Which colour is {}?", "Tell me the colour of {}."]
    return draw.pick(forms).format(the), thing.colour


def _shape(scene: Scene, draw: Draw) -> Made:
    shapes = _shapes(scene)
    lone = [t for t in shapes if sum(o.colour == t.colour for o in shapes) == 1]
    if not lone:
        return None
    thing = draw.pick(lone)
    forms = ["What shape is {}?", "Which shape is {}?", "What is the {} shape?"]
    return draw.pick(forms).format(thing.colour), thing.name


def _count(scene: Scene, draw: Draw) -> Made:
    shapes = _shapes(scene)
    thing = draw.pick(shapes)
    which = draw.between(0, 3)
    if which == 0:
        return draw.pick(["How many shapes are there?", "Count the shapes."]), str(len(shapes))
    if which == 1:
        colour = thing.colour if draw.chance(0.75) else draw.pick(list(COLOURS))
        text, n = f"{colour} shapes", sum(t.colour == colour for t in shapes)
    else:
        name = thing.name if draw.chance(0.75) else draw.pick(SHAPES)
        text, n = f"{_plural(name)}", sum(t.name == name for t in shapes)
    return draw.pick(["How many {} are there?", "Count the {}."]).format(text), str(n)


def _plural(name: str) -> str:
    return "crosses" if name == "cross" else name + "s"


def _exists(scene: Scene, draw: Draw) -> Made:
    shapes = _shapes(scene)
    have = [f"{t.colour} {t.name}" for t in shapes] + [t.name for t in shapes]
    thing = draw.pick(shapes)
    if draw.chance(0.5):
        what = draw.pick(have)
    else:  # near misses: one attribute of a thing that is there, one changed
        near = [f"{c} {thing.name}" for c in COLOURS] + [f"{thing.colour} {s}" for s in SHAPES] + list(SHAPES) * 2
        what = draw.pick([text for text in near if text not in have])
    return draw.pick(["Is there {}?", "Can you see {}?"]).format(_article(what)), "yes" if what in have else "no"


def _where(scene: Scene, draw: Draw) -> Made:
    things = _pointable(scene)
    if not things:
        return None
    thing = draw.pick(things)
    form = draw.pick(["Where is {}?", "Tell me where {} is."])
    return form.format(draw.pick(_alone(scene, thing))), scene.place(thing)


def _what_at(scene: Scene, draw: Draw) -> Made:
    if draw.chance(0.8):
        thing = draw.pick(scene.things)
        place, answer = scene.place(thing), describe(thing)
    else:
        full = {(t.row, t.column) for t in scene.things}
        word_rows = {t.row for t in scene.things if t.kind == "word"}
        cells = [(r, c) for r in range(scene.rows) for c in range(scene.columns)]
        free = [cell for cell in cells if cell not in full and cell[0] not in word_rows]
        if not free:
            return None
        place, answer = scene.cell_name(*draw.pick(free)), "nothing"
    return draw.pick(["What is at the {}?", "What do you see at the {}?"]).format(place), answer


def _size(scene: Scene, draw: Draw) -> Made:
    things = [t for t in _pointable(scene) if t.size]
    if not things:
        return None
    thing = draw.pick(things)
    return draw.pick(["Is {} small or large?", "How big is {}?"]).format(draw.pick(_alone(scene, thing))), thing.size


def _digit(scene: Scene, draw: Draw) -> Made:
    digits = [t for t in scene.things if t.kind == "digit"]
    forms = ["Which digit is shown?", "What is the digit?", "Read the digit."]
    return (draw.pick(forms), digits[0].name) if digits else None


def _word(scene: Scene, draw: Draw) -> Made:
    words = [t for t in scene.things if t.kind == "word"]
    forms = ["What does the word say?", "What is the word?", "Read the word."]
    return (draw.pick(forms), words[0].name) if words else None


def caption(scene: Scene) -> str:
    """The things in reading order: row by row from the top, each from the left."""
    parts = [describe(t, with_size=True) for t in scene.things]
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


CAPTIONS = ("Describe the picture.", "What is in the picture?")
CAPTIONS_ELSEWHERE = (  # as pages of vision services ask for it; their words are not all in the embedded vocabulary
    "Describe this image.", "Can you describe this image?", "What is in this image?", "What's in this image?",
    "What’s in this image?", "what is in the image", "What do you see?",
)  # fmt: skip


def _caption(scene: Scene, draw: Draw) -> Made:
    return draw.pick((*CAPTIONS, *CAPTIONS_ELSEWHERE)), caption(scene)


KINDS: dict[str, tuple[int, Callable[[Scene, Draw], Made]]] = {  # kind: weight, maker
    "colour": (15, _colour),
    "shape": (11, _shape),
    "count": (13, _count),
    "exists": (10, _exists),
    "where": (10, _where),
    "what at": (8, _what_at),
    "size": (6, _size),
    "digit": (10, _digit),
    "word": (12, _word),
    "caption": (4, _caption),
}
