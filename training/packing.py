"""Conversations about one picture as one row of tokens.

Questions are packed behind a shared beginning with the picture; further conversations hold pictures of their own.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_ref.gguf import file as gguf
from llava_ref.scenes import Question, Scene, questions
from llava_ref.scenes.questions import caption
from llava_ref.scenes.scene import Draw
from llava_ref.tokenizer.tokenizer import Tokenizer

from .speech import BOTH, JSON_SYSTEMS, NO_PICTURE, SYSTEMS, beside, small_talk, turn
from .tokens import BOS, LINE, STYLES, Answer, Segment, Tokens, Turn
from .vocabulary import ENGLISH

WEIGHTS = {  # of kinds while training: more of what is hard
    "colour": 6, "shape": 6, "count": 26, "exists": 9, "where": 12, "what at": 11, "size": 5, "digit": 9, "word": 6,
    "caption": 10,
}  # fmt: skip
FOLLOWS = 0.25  # share of questions that follow the one before as a second turn
ROW = 250  # tokens of a row, where one conversation alone is not longer
SHORT = 30  # room for a question behind the shared picture
OWN = 1000  # segments from here on hold their own pictures and do not see the shared one
SHARED, PADDING = -2, -1
EMPTY = {"ids": 0, "patches": -1, "positions": 0, "segments": PADDING, "where": 0, "answers": -100, "groups": 0}
Row = dict[str, list[Any]]


def make_packer(vocabulary: str) -> "Packer":
    """Return a packer for the vocabulary in a GGUF file."""
    return Packer(Tokenizer.from_gguf(gguf.read(vocabulary)), " ".join(ENGLISH).split())


class Packer:
    """Draws the conversations about a picture and lays them out as a row."""

    def __init__(self, tokenizer: Tokenizer, words: list[str]) -> None:
        self._words = words
        self._styles = [Tokens(tokenizer, style) for style in STYLES]
        self._shared = Segment()
        self._shared.text([BOS, *tokenizer.encode("USER: ", special=False)])
        self._shared.picture(0)

    def pack(self, scene: Scene, other: Scene, rng: np.random.Generator) -> Row:
        """Return the row of one picture. `other` is the scene of picture 1, the next one of the batch."""
        draw = Draw(rng)
        own = [(OWN, self._own(draw, scene, other))]
        room = ROW - sum(len(s.ids) for _, s in own) - len(self._shared.ids)
        if room < SHORT:
            return self.row(own)
        return self.row([(SHARED, self._shared), *enumerate(self._behind(draw, scene, room)), *own])

    def one(self, q: Question) -> Row:
        """Return a row of a single question behind its picture."""
        turns = [Turn((LINE, q.text), Answer(q.kind, q.answer))]
        return self.row([(SHARED, self._shared), (0, self._styles[0].follow(turns))])

    def row(self, segments: list[tuple[int, Segment]]) -> Row:
        """Lay segments out. Those from OWN on begin at position 0, as the shared one does, others behind that."""
        out: Row = {key: [] for key in (*EMPTY, "kinds")}
        for number, s in segments:
            at = len(out["ids"])
            first = 0 if number >= OWN or number == SHARED else len(self._shared.ids)
            out["ids"] += s.ids
            out["patches"] += s.patches
            out["positions"] += range(first, first + len(s.ids))
            out["segments"] += [number] * len(s.ids)
            out["where"] += [at + r for r in s.rows]
            out["answers"] += s.answers
            kinds = dict(zip(s.groups, s.kinds, strict=True))
            places = {group: len(out["kinds"]) + i for i, group in enumerate(kinds)}
            out["groups"] += [places[group] for group in s.groups]
            out["kinds"] += kinds.values()
        return out

    def _behind(self, draw: Draw, scene: Scene, room: int) -> Iterator[Segment]:
        """Yield questions behind the shared picture, with second turns, up to `room` tokens."""
        asked = questions(scene, draw.rng, 12, WEIGHTS)
        while asked:
            some = [asked.pop(0)]
            while asked and draw.chance(FOLLOWS):
                some.append(asked.pop(0))
            first = turn(some[0], draw, scene, (), "")
            if draw.chance(0.03):
                first = small_talk(draw, self._words)
            later = [turn(q, draw, scene, (), "second") for q in some[1:]]
            s = draw.pick(self._styles).follow([Turn((LINE, *first.content), first.answer), *later])
            room -= len(s.ids)
            if room < 0:
                return
            yield s

    def _own(self, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Return a conversation that holds its own pictures, of a kind drawn by weight."""
        kinds: list[tuple[int, Callable[[Tokens, Draw, Scene, Scene], Segment]]] = [
            (50, self._text_first), (14, self._system), (9, self._no_picture), (6, self._late), (4, self._two),
            (10, self._nitro),
        ]  # fmt: skip
        which = draw.between(0, sum(weight for weight, _ in kinds) - 1)
        for weight, make in kinds:
            if which < weight:
                return make(draw.pick(self._styles), draw, scene, other)
            which -= weight
        raise AssertionError("unreachable: the weights add up")

    def _text_first(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        first, *more = _asked(scene, draw)
        return tokens.segment("", [turn(first, draw, scene, (0,), "text-first"), *_more(more, draw, scene)])

    def _system(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        first, *more = _asked(scene, draw)
        as_json = draw.chance(0.3)
        system = draw.pick(JSON_SYSTEMS if as_json else SYSTEMS) + " "
        form = "text-first" if draw.chance(0.35) else "system"
        later = [] if as_json else _more(more, draw, scene)
        return tokens.segment(system, [turn(first, draw, scene, (0,), form, as_json), *later])

    def _no_picture(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        first, *more = _asked(scene, draw)
        system = draw.pick(SYSTEMS) + " " if draw.chance(0.25) else ""
        later = [self._blind(q, draw) for q in more[:1] if draw.chance(0.3)]
        return tokens.segment(system, [self._blind(first, draw), *later])

    def _late(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """A picture in the second turn."""
        first, *more = _asked(scene, draw)
        shown = turn(first, draw, scene, (0,), draw.pick(["late", "text-first"]))
        return tokens.segment("", [self._blind((more or [first])[-1], draw), shown, *_more(more, draw, scene)])

    def _two(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """Two pictures described; one in five times they are the same one."""
        same = draw.chance(0.2)
        pictures = (0, 0) if same else (0, 1)
        first, second = caption(scene), caption(other)
        says = f"Both show {first}." if same else f"In the first, {first}. In the second, {second}."
        asked = draw.pick(BOTH)
        content = beside(asked, pictures, text_first=not draw.chance(0.6))
        return tokens.segment("", [Turn(content, Answer("two", says))])

    def _nitro(self, tokens: Tokens, draw: Draw, scene: Scene, other: Scene) -> Segment:
        """The prompts of Nitro's documentation, which put nothing between a picture and the text."""
        asked = turn(_asked(scene, draw)[0], draw, scene, (0,), draw.pick(["nitro", "text-first"]))
        content = tuple(part for part in asked.content if part != LINE)
        return tokens.segment("", [Turn(content, asked.answer)], "\n### Instruction:\n", "\n### Response:\n")

    def _blind(self, q: Question, draw: Draw) -> Turn:
        """A turn without a picture: small talk, or a question that needs one."""
        if draw.chance(0.5):
            return small_talk(draw, self._words)
        return Turn((q.text,), Answer("no picture", NO_PICTURE))


def _asked(scene: Scene, draw: Draw) -> list[Question]:
    return questions(scene, draw.rng, 3, WEIGHTS)


def _more(asked: list[Question], draw: Draw, scene: Scene) -> list[Turn]:
    return [turn(q, draw, scene, (), "second") for q in asked if draw.chance(0.4)]


def columns(rows: list[Row]) -> dict[str, Tensor]:
    """Return the rows' lists as tensors (B, longest) int64, padded."""
    out = {}
    for key, fill in EMPTY.items():
        across = itertools.zip_longest(*(row[key] for row in rows), fillvalue=fill)
        out[key] = torch.tensor(list(across), dtype=torch.int64).reshape(-1, len(rows)).T.contiguous()
    return out
