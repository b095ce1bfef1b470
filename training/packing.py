"""Pack conversations about one picture into one row of tokens.

Questions follow a shared beginning with the picture. Further conversations have pictures of their own.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_ref.gguf import read
from llava_ref.scenes import Question, Scene, questions
from llava_ref.scenes.questions import caption
from llava_ref.scenes.scene import Draw
from llava_ref.tokenizer.tokenizer import Tokenizer

from .speech import BOTH, JSON_SYSTEMS, NO_PICTURE, SYSTEMS, beside, small_talk, turn
from .tokens import BOS, LINE, STYLES, ConversationEncoder, Segment, TrainingAnswer, TrainingTurn
from .vocabulary import ENGLISH

WEIGHTS = {  # of kinds in training: harder ones occur more often
    "colour": 6, "shape": 6, "count": 26, "exists": 9, "where": 12, "what at": 11, "size": 5, "digit": 9, "word": 6,
    "caption": 10,
}  # fmt: skip
FOLLOWS = 0.25  # share of questions that are a further turn of the one before
ROW = 250  # tokens of a row, unless one conversation alone is longer
SHORT = 30  # tokens that a question after the shared picture takes
OWN = 1000  # segments with numbers from here on have pictures of their own and do not see the shared one
SHARED, PADDING = -2, -1
EMPTY = {"ids": 0, "patches": -1, "positions": 0, "segments": PADDING, "where": 0, "answers": -100, "groups": 0}
Row = dict[str, list[Any]]


def make_packer(vocabulary: str) -> "Packer":
    """Return a packer for the vocabulary in a GGUF file."""
    return Packer(Tokenizer.from_gguf(read(vocabulary)), " ".join(ENGLISH).split())


class Packer:
    """Draws conversations about a picture and lays them out as a row."""

    def __init__(self, tokenizer: Tokenizer, words: list[str]) -> None:
        self._words = words
        self._styles = [ConversationEncoder(tokenizer, style) for style in STYLES]
        self._shared = Segment()
        self._shared.text([BOS, *tokenizer.encode("USER: ", special=False)])
        self._shared.picture(0)

    def pack(self, scene: Scene, other: Scene, rng: np.random.Generator) -> Row:
        """Return the row of one picture. `other` is the scene of picture 1, the next one of the batch."""
        draw = Draw(rng)
        own = [(OWN, self._own(draw, scene, other))]
        remaining = ROW - sum(len(s.ids) for _, s in own) - len(self._shared.ids)
        if remaining < SHORT:
            return self.row(own)
        return self.row([(SHARED, self._shared), *enumerate(self._after_shared(draw, scene, remaining)), *own])

    def one(self, q: Question) -> Row:
        """Return a row of a single question after its picture."""
        turns = [TrainingTurn((LINE, q.text), TrainingAnswer(q.kind, q.answer))]
        return self.row([(SHARED, self._shared), (0, self._styles[0].follow(turns))])

    def row(self, segments: list[tuple[int, Segment]]) -> Row:
        """Lay segments out. Those from OWN on begin at position 0, as the shared one does; others begin after that."""
        out: Row = {key: [] for key in (*EMPTY, "kinds")}
        for number, s in segments:
            start = len(out["ids"])
            first = 0 if number >= OWN or number == SHARED else len(self._shared.ids)
            out["ids"] += s.ids
            out["patches"] += s.patches
            out["positions"] += range(first, first + len(s.ids))
            out["segments"] += [number] * len(s.ids)
            out["where"] += [start + r for r in s.rows]
            out["answers"] += s.answers
            kinds = dict(zip(s.groups, s.kinds, strict=True))
            numbers = {group: len(out["kinds"]) + i for i, group in enumerate(kinds)}
            out["groups"] += [numbers[group] for group in s.groups]
            out["kinds"] += kinds.values()
        return out

    def _after_shared(self, draw: Draw, scene: Scene, remaining: int) -> Iterator[Segment]:
        """Yield conversations that continue the shared picture, up to `remaining` tokens."""
        left = questions(scene, draw.rng, 12, WEIGHTS)
        while left:
            asked = [left.pop(0)]
            while left and draw.chance(FOLLOWS):
                asked.append(left.pop(0))
            first = turn(asked[0], draw, scene, (), "")
            if draw.chance(0.03):
                first = small_talk(draw, self._words)
            later = [turn(q, draw, scene, (), "second") for q in asked[1:]]
            s = draw.pick(self._styles).follow([TrainingTurn((LINE, *first.content), first.answer), *later])
            remaining -= len(s.ids)
            if remaining < 0:
                return
            yield s

    def _own(self, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation with pictures of its own, of a kind drawn by weight."""
        kinds: list[tuple[int, Callable[[ConversationEncoder, Draw, Scene, Scene], Segment]]] = [
            (50, self._text_first), (14, self._system), (9, self._no_picture), (6, self._late), (4, self._two),
            (10, self._nitro),
        ]  # fmt: skip
        number = draw.between(0, sum(weight for weight, _ in kinds) - 1)
        for weight, make in kinds:
            if number < weight:
                return make(draw.pick(self._styles), draw, scene, other)
            number -= weight
        raise AssertionError("unreachable: the weights add up")

    def _text_first(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation with the text before the picture."""
        first, *more = _asked(scene, draw)
        return tokens.segment("", [turn(first, draw, scene, (0,), "text-first"), *_more(more, draw, scene)])

    def _system(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation with a system message."""
        first, *more = _asked(scene, draw)
        as_json = draw.chance(0.3)
        system = draw.pick(JSON_SYSTEMS if as_json else SYSTEMS) + " "
        form = "text-first" if draw.chance(0.35) else "system"
        later = [] if as_json else _more(more, draw, scene)
        return tokens.segment(system, [turn(first, draw, scene, (0,), form, as_json), *later])

    def _no_picture(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation without a picture."""
        first, *more = _asked(scene, draw)
        system = draw.pick(SYSTEMS) + " " if draw.chance(0.25) else ""
        later = [self._blind(q, draw) for q in more[:1] if draw.chance(0.3)]
        return tokens.segment(system, [self._blind(first, draw), *later])

    def _late(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation with the picture in the second turn."""
        first, *more = _asked(scene, draw)
        shown = turn(first, draw, scene, (0,), draw.pick(["late", "text-first"]))
        return tokens.segment("", [self._blind((more or [first])[-1], draw), shown, *_more(more, draw, scene)])

    def _two(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a description of two pictures, which are the same in one of five cases."""
        same = draw.chance(0.2)
        pictures = (0, 0) if same else (0, 1)
        first, second = caption(scene), caption(other)
        answer = f"Both show {first}." if same else f"In the first, {first}. In the second, {second}."
        asked = draw.pick(BOTH)
        content = beside(asked, pictures, text_first=not draw.chance(0.6))
        return tokens.segment("", [TrainingTurn(content, TrainingAnswer("two", answer))])

    def _nitro(self, tokens: ConversationEncoder, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation in the prompts of Nitro's documentation, with nothing between picture and text."""
        asked = turn(_asked(scene, draw)[0], draw, scene, (0,), draw.pick(["nitro", "text-first"]))
        content = tuple(part for part in asked.content if part != LINE)
        return tokens.segment("", [TrainingTurn(content, asked.answer)], "\n### Instruction:\n", "\n### Response:\n")

    def _blind(self, q: Question, draw: Draw) -> TrainingTurn:
        """Return a turn without a picture: small talk, or a question that needs one."""
        if draw.chance(0.5):
            return small_talk(draw, self._words)
        return TrainingTurn((q.text,), TrainingAnswer("no picture", NO_PICTURE))


def _asked(scene: Scene, draw: Draw) -> list[Question]:
    """Draw up to three questions."""
    return questions(scene, draw.rng, 3, WEIGHTS)


def _more(asked: list[Question], draw: Draw, scene: Scene) -> list[TrainingTurn]:
    """Return some of the questions as further turns."""
    return [turn(q, draw, scene, (), "second") for q in asked if draw.chance(0.4)]


def columns(rows: list[Row]) -> dict[str, Tensor]:
    """Convert rows to padded tensors, (B, longest) int64 for each key."""
    out = {}
    for key, fill in EMPTY.items():
        across = itertools.zip_longest(*(row[key] for row in rows), fillvalue=fill)
        out[key] = torch.tensor(list(across), dtype=torch.int64).reshape(-1, len(rows)).T.contiguous()
    return out
