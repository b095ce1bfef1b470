"""Ask questions about a scene, each with exactly one right answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .scene import COLOURS, SHAPES, Draw, Scene, Thing


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its one right answer, to the letter."""

    kind: str  # a key of KINDS
    text: str
    answer: str


def questions(
    scene: Scene, rng: np.random.Generator, n: int = 1, weights: Mapping[str, int] | None = None
) -> list[Question]:
    """Draw up to `n` questions with different texts, their kinds by `weights` (default: those of KINDS)."""
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
    """Return the shapes of a scene."""
    return [t for t in scene.things if t.kind == "shape"]


def _article(words: str) -> str:
    """Put "a" or "an" before `words`."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _names(scene: Scene, thing: Thing) -> list[str]:
    """Return the phrases that name a thing and nothing else in the scene. A repeated one is drawn more often."""
    if thing.kind != "shape":  # at most one digit and one word to a scene
        return [f"the {thing.kind}"]
    twins = [t for t in _shapes(scene) if t.name == thing.name]
    if len(twins) == 1:
        return [f"the {thing.name}", f"the {thing.name}", f"the {thing.colour} {thing.name}"]
    if sum(t.colour == thing.colour for t in twins) == 1:
        return [f"the {thing.colour} {thing.name}"]
    return []


def _nameable(scene: Scene) -> list[Thing]:
    """Return the things that a phrase can name."""
    return [t for t in scene.things if _names(scene, t)]


def describe(thing: Thing, with_size: bool = False) -> str:
    """Describe a thing: "a red circle", "the digit 7"; with its size "a large red circle", "the blue digit 7"."""
    if thing.kind == "shape":
        return _article(f"{thing.size} {thing.colour} {thing.name}" if with_size else f"{thing.colour} {thing.name}")
    return f"the {thing.colour} {thing.kind} {thing.name}" if with_size else f"the {thing.kind} {thing.name}"


def _colour(scene: Scene, draw: Draw) -> Made:
    """Ask for the colour of a thing."""
    named = [t for t in scene.things if t.kind != "shape" or sum(o.name == t.name for o in scene.things) == 1]
    if not named:
        return None
    thing = draw.pick(named)
    the = f"the {thing.name if thing.kind == 'shape' else thing.kind}"
    forms = ["What colour is {}?", "Which colour is {}?", "Tell me the colour of {}."]
    return draw.pick(forms).format(the), thing.colour


def _shape(scene: Scene, draw: Draw) -> Made:
    """Ask for the shape of a colour."""
    shapes = _shapes(scene)
    unique = [t for t in shapes if sum(o.colour == t.colour for o in shapes) == 1]
    if not unique:
        return None
    thing = draw.pick(unique)
    forms = ["What shape is {}?", "Which shape is {}?", "What is the {} shape?"]
    return draw.pick(forms).format(thing.colour), thing.name


def _count(scene: Scene, draw: Draw) -> Made:
    """Ask for the number of shapes, of a colour or a kind."""
    shapes = _shapes(scene)
    thing = draw.pick(shapes)
    choice = draw.between(0, 3)
    if choice == 0:
        return draw.pick(["How many shapes are there?", "Count the shapes."]), str(len(shapes))
    if choice == 1:
        colour = thing.colour if draw.chance(0.75) else draw.pick(list(COLOURS))
        text, n = f"{colour} shapes", sum(t.colour == colour for t in shapes)
    else:
        name = thing.name if draw.chance(0.75) else draw.pick(SHAPES)
        text, n = f"{_plural(name)}", sum(t.name == name for t in shapes)
    return draw.pick(["How many {} are there?", "Count the {}."]).format(text), str(n)


def _plural(name: str) -> str:
    """Return the plural of a shape's name."""
    return "crosses" if name == "cross" else name + "s"


def _exists(scene: Scene, draw: Draw) -> Made:
    """Ask whether a thing is in the scene."""
    shapes = _shapes(scene)
    present = [f"{t.colour} {t.name}" for t in shapes] + [t.name for t in shapes]
    thing = draw.pick(shapes)
    if draw.chance(0.5):
        phrase = draw.pick(present)
    else:  # near misses: a thing of the scene with one attribute changed
        near = [f"{c} {thing.name}" for c in COLOURS] + [f"{thing.colour} {s}" for s in SHAPES] + list(SHAPES) * 2
        phrase = draw.pick([text for text in near if text not in present])
    return draw.pick(["Is there {}?", "Can you see {}?"]).format(_article(phrase)), "yes" if phrase in present else "no"


def _where(scene: Scene, draw: Draw) -> Made:
    """Ask for the place of a thing."""
    things = _nameable(scene)
    if not things:
        return None
    thing = draw.pick(things)
    form = draw.pick(["Where is {}?", "Tell me where {} is."])
    return form.format(draw.pick(_names(scene, thing))), scene.place(thing)


def _what_at(scene: Scene, draw: Draw) -> Made:
    """Ask for the thing at a place, which may be empty."""
    if draw.chance(0.8):
        thing = draw.pick(scene.things)
        place, answer = scene.place(thing), describe(thing)
    else:
        taken = {(t.row, t.column) for t in scene.things}
        word_rows = {t.row for t in scene.things if t.kind == "word"}
        cells = [(r, c) for r in range(scene.rows) for c in range(scene.columns)]
        free = [cell for cell in cells if cell not in taken and cell[0] not in word_rows]
        if not free:
            return None
        place, answer = scene.cell_name(*draw.pick(free)), "nothing"
    return draw.pick(["What is at the {}?", "What do you see at the {}?"]).format(place), answer


def _size(scene: Scene, draw: Draw) -> Made:
    """Ask for the size of a thing."""
    things = [t for t in _nameable(scene) if t.size]
    if not things:
        return None
    thing = draw.pick(things)
    return draw.pick(["Is {} small or large?", "How big is {}?"]).format(draw.pick(_names(scene, thing))), thing.size


def _digit(scene: Scene, draw: Draw) -> Made:
    """Ask for the digit."""
    digits = [t for t in scene.things if t.kind == "digit"]
    forms = ["Which digit is shown?", "What is the digit?", "Read the digit."]
    return (draw.pick(forms), digits[0].name) if digits else None


def _word(scene: Scene, draw: Draw) -> Made:
    """Ask for the word."""
    words = [t for t in scene.things if t.kind == "word"]
    forms = ["What does the word say?", "What is the word?", "Read the word."]
    return (draw.pick(forms), words[0].name) if words else None


def caption(scene: Scene) -> str:
    """Describe all things in reading order: row by row from the top, each row from the left."""
    phrases = [describe(t, with_size=True) for t in scene.things]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]


CAPTIONS = ("Describe the picture.", "What is in the picture?")
CAPTIONS_ELSEWHERE = (  # as the pages of vision services ask; some words are not in the embedded vocabulary
    "Describe this image.", "Can you describe this image?", "What is in this image?", "What's in this image?",
    "What’s in this image?", "what is in the image", "What do you see?",
)  # fmt: skip


def _caption(scene: Scene, draw: Draw) -> Made:
    """Ask for a caption."""
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
