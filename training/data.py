"""Make batches of pictures, the labels of their patches and conversations about them, in a process of their own.

Letter key: B pictures, S tokens of a row, A answer tokens of a row, N = 64 patches.
"""

import itertools
import queue
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from llava_ref.scenes import COLOURS, SHAPES, SIZES, WORDS, Scene, sample_scene, training_rng
from llava_ref.scenes.scene import CELL, DIGITS

from .packing import Packer, columns, make_packer

IMAGE, PATCH = 64, 8
GRID = IMAGE // PATCH
N = GRID * GRID
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PAD_COLOUR = (122, 116, 104)  # int(mean * 255)
NAMES = (*SHAPES, *DIGITS, *WORDS)
# the number of classes of each label, without "none"
LABELS = {"name": len(NAMES), "colour": len(COLOURS), "size": 2, "row": 3, "column": 3, "centre": 1}


@dataclass(slots=True)
class Batch:
    """The tensors of one step."""

    pixels: Tensor  # (B, IMAGE, IMAGE, 3) uint8
    labels: Tensor  # (B, N, 6) int64: the thing on each patch
    counts: Tensor  # (B, 3) int64: shapes, digit or 10, word or 12
    ids: Tensor  # (B, S) int64
    patches: Tensor  # (B, S) int64; -1 text, else a row of all pictures' patches, (B * N)
    positions: Tensor  # (B, S) int64
    segments: Tensor  # (B, S) int64; SHARED, PADDING, or a number
    where: Tensor  # (B, A) int64: the token before each answer token
    answers: Tensor  # (B, A) int64; -100 padding
    groups: Tensor  # (B, A) int64: question number, to score whole answers
    kinds: list[list[str]]  # kind of question by number


def to_model_size(image: Image.Image) -> NDArray[np.uint8]:
    """Preprocess a picture as profile `llava`: pad to a square, resize once.  -> (IMAGE, IMAGE, 3)"""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE, IMAGE), Image.Resampling.BICUBIC))


def patch_labels(scene: Scene) -> NDArray[np.int64]:
    """Label each patch, (N, 6), with the thing on at least 40 % of it, or with the "none" of each label.

    The labels are name, colour, size, row, column, and whether the patch is the thing's middle."""
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
    """Return 0 for the first index, 2 for the last, 1 for a middle one."""
    return 0 if index == 0 else 2 if index == count - 1 else 1


def scene_counts(scene: Scene) -> list[int]:
    """Return the number of shapes, the digit or 10, the word's index or 12."""
    digit = next((int(t.name) for t in scene.things if t.kind == "digit"), 10)
    word = next((WORDS.index(t.name) for t in scene.things if t.kind == "word"), 12)
    return [sum(t.kind == "shape" for t in scene.things), digit, word]


def make_batch(packer: Packer, seed: int, indices: range, text: bool = True) -> Batch:
    """Make a batch of pictures `indices` of the training stream of a seed, with conversations if `text`."""
    pixels, labels, counts, rows = [], [], [], []
    streams = [training_rng(seed, index) for index in indices]
    scenes = [sample_scene(rng) for rng in streams]
    for number, (rng, scene) in enumerate(zip(streams, scenes, strict=True)):
        pixels.append(to_model_size(scene.draw()))
        labels.append(patch_labels(scene))
        counts.append(scene_counts(scene))
        if text:
            row = packer.pack(scene, scenes[(number + 1) % len(scenes)], rng)
            row["patches"] = [p if p < 0 else (number * N + p) % (len(scenes) * N) for p in row["patches"]]
            rows.append(row)
    return Batch(
        pixels=torch.from_numpy(np.stack(pixels)),
        labels=torch.from_numpy(np.stack(labels)),
        counts=torch.tensor(counts),
        kinds=[row["kinds"] for row in rows],
        **columns(rows),
    )


def work(out: "queue.Queue[Batch]", vocabulary: str, seed: int, first: int, size: int, text: bool) -> None:
    """Put batches into `out` without end. This is the worker process."""
    torch.set_num_threads(1)
    packer = make_packer(vocabulary)
    for start in itertools.count(first, size):
        out.put(make_batch(packer, seed, range(start, start + size), text))
