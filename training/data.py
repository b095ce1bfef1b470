"""Batches of pictures with several questions each, packed behind the picture, made in a process of their own.

Letter key: B pictures, P = 68 tokens of the shared prefix `<s> USER: <image>`, S tokens of prefix and questions,
A answer tokens to a picture, N = 64 patches.
"""

import itertools
import queue
from dataclasses import dataclass

import numpy as np
import sentencepiece as spm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from llava_ref.scenes import COLOURS, SHAPES, SIZES, WORDS, Question, Scene, questions, sample_scene, training_rng
from llava_ref.scenes.scene import CELL, DIGITS

IMAGE, PATCH = 64, 8
GRID = IMAGE // PATCH
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PAD_COLOUR = (122, 116, 104)  # int(mean * 255)
NAMES = (*SHAPES, *DIGITS, *WORDS)
LABELS = {"name": len(NAMES), "colour": len(COLOURS), "size": 2, "row": 3, "column": 3, "centre": 1}  # each and "none"
BOS, EOS = 1, 2
WEIGHTS = {  # of kinds while training: more of what is hard
    "colour": 6, "shape": 6, "count": 24, "exists": 9, "where": 12, "what at": 11,
    "size": 5, "digit": 9, "word": 6, "caption": 9,
}  # fmt: skip
CHAIN = 0.2  # share of questions that follow the last one as a second turn


@dataclass(slots=True)
class Batch:
    """Tensors of one step."""

    pixels: Tensor  # (B, IMAGE, IMAGE, 3) uint8
    labels: Tensor  # (B, N, 6) int64: what stands on each patch
    counts: Tensor  # (B, 3) int64: shapes, digit or 10, word or 12
    ids: Tensor  # (B, S - P) int64, the questions
    positions: Tensor  # (B, S - P) int64
    segments: Tensor  # (B, S - P) int64; -1 padding
    where: Tensor  # (B, A) int64: the token (counted from the prefix's start) an answer token follows
    answers: Tensor  # (B, A) int64; -100 padding
    groups: Tensor  # (B, A) int64: question number, to score whole answers
    kinds: list[list[str]]  # kind of question by number


def to_model_size(image: Image.Image) -> NDArray[np.uint8]:
    """Profile `llava`: padded to a square, one bicubic resize.  (IMAGE, IMAGE, 3)"""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE, IMAGE), Image.Resampling.BICUBIC))


def patch_labels(scene: Scene) -> NDArray[np.int64]:
    """(N, 6): name, colour, size, row, column, centre of the thing covering 40 % of a patch, or the "none" of each."""
    side = CELL * max(scene.rows, scene.columns)
    dx, dy = (side - CELL * scene.columns) // 2, (side - CELL * scene.rows) // 2
    out = np.empty((GRID, GRID, len(LABELS)), np.int64)
    out[:] = list(LABELS.values())
    edges = np.arange(GRID + 1) * side / GRID
    for t in scene.things:
        x, y, w, h = t.x + dx, t.y + dy, t.half_width(), t.radius
        across = np.minimum(edges[1:], x + w) - np.maximum(edges[:-1], x - w)
        down = np.minimum(edges[1:], y + h) - np.maximum(edges[:-1], y - h)
        cover = np.maximum(down, 0)[:, None] * np.maximum(across, 0)[None] >= 0.4 * (side / GRID) ** 2
        place = [_third(t.row, scene.rows), _third(t.column, scene.columns)]
        size = SIZES.index(t.size) if t.size else 2
        middle = y * GRID // side, x * GRID // side
        cover[middle] = True
        out[cover] = [NAMES.index(t.name), list(COLOURS).index(t.colour), size, *place, 1]
        out[(*middle, 5)] = 0
    return out.reshape(-1, len(LABELS))


def _third(index: int, count: int) -> int:
    return 0 if index == 0 else 2 if index == count - 1 else 1


def scene_counts(scene: Scene) -> list[int]:
    """Number of shapes, digit or 10, word or 12."""
    digit = next((int(t.name) for t in scene.things if t.kind == "digit"), 10)
    word = next((WORDS.index(t.name) for t in scene.things if t.kind == "word"), 12)
    return [sum(t.kind == "shape" for t in scene.things), digit, word]


class Packer:
    """Token ids of questions, piece by piece as inference makes them, packed up to a length."""

    def __init__(self, vocabulary: str, length: int = 124) -> None:
        self.sp = spm.SentencePieceProcessor(model_file=vocabulary)
        self.prefix = [BOS, *self.sp.encode("USER: ")]
        self.length = length
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.sp.encode(text)
        return self.cache[text]

    def turn(self, q: Question, first: bool) -> tuple[list[int], list[int]]:
        """Ids of the question and of the answer with its end."""
        lead = "\n" if first else "USER: "
        return self.encode(f"{lead}{q.text} ASSISTANT:"), [*self.encode(q.answer), EOS]

    def pack(self, asked: list[Question], chains: list[bool]) -> dict[str, list[int]]:
        """Lists for one picture; `where` counts from the start of the prefix with its N image tokens."""
        start = len(self.prefix) + GRID * GRID
        out: dict[str, list[int]] = {k: [] for k in ("ids", "positions", "segments", "where", "answers", "groups")}
        segment, position, n = -1, start, 0
        for q, chain in zip(asked, chains, strict=True):
            first = not (chain and n)
            prompt, answer = self.turn(q, first)
            if len(out["ids"]) + len(prompt) + len(answer) > self.length:
                break
            if first:
                segment, position = segment + 1, start
            ids = prompt + answer
            at = start + len(out["ids"]) + len(prompt) - 1
            out["where"] += range(at, at + len(answer))
            out["ids"] += ids
            out["positions"] += range(position, position + len(ids))
            out["segments"] += [segment] * len(ids)
            out["answers"] += answer
            out["groups"] += [n] * len(answer)
            position, n = position + len(ids), n + 1
        return out


_PADDING = {"ids": 0, "positions": 0, "segments": -1, "where": 0, "answers": -100, "groups": 0}


def make_batch(packer: Packer, seed: int, indices: range) -> Batch:
    """Pictures `indices` of the training stream of a seed. For text-free batches give a packer of length 0."""
    pixels, labels, counts, packs, kinds = [], [], [], [], []
    for index in indices:
        rng = training_rng(seed, index)
        scene = sample_scene(rng)
        asked = questions(scene, rng, 9, WEIGHTS) if packer.length else []
        pixels.append(to_model_size(scene.draw()))
        labels.append(patch_labels(scene))
        counts.append(scene_counts(scene))
        packs.append(packer.pack(asked, list(rng.random(len(asked)) < CHAIN)))
        kinds.append([q.kind for q in asked])
    rows = {}
    for key, fill in _PADDING.items():
        columns = itertools.zip_longest(*(p[key] for p in packs), fillvalue=fill)
        rows[key] = torch.tensor(list(columns), dtype=torch.int64).reshape(-1, len(packs)).T.contiguous()
    return Batch(
        pixels=torch.from_numpy(np.stack(pixels)),
        labels=torch.from_numpy(np.stack(labels)),
        counts=torch.tensor(counts),
        kinds=kinds,
        **rows,
    )


def work(out: "queue.Queue[Batch]", vocabulary: str, seed: int, first: int, size: int, length: int) -> None:
    """Body of the worker process: batches without end."""
    torch.set_num_threads(1)
    packer = Packer(vocabulary, length)
    for start in itertools.count(first, size):
        out.put(make_batch(packer, seed, range(start, start + size)))
