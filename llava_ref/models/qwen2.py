"""The decoders of Qwen2, and of Qwen2-VL, Qwen2.5-VL and QVQ: llama's, with biases and with rope over halves of a head.

T new positions, D width, V vocabulary, dh head size, r = dh / 2 pairs of channels.
Qwen2 report, https://arxiv.org/abs/2407.10671; M-RoPE: Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1. Keys
and epsilon of llama.cpp b11549, src/models/qwen2.cpp and qwen2vl.cpp; transformers 5.24,
models/qwen2_vl/modeling_qwen2_vl.py, `apply_multimodal_rotary_pos_emb`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import Array, Cache, Ops
from ..ops.sees import Sees
from ..ops.step import StepPlan
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap
from . import llama, rope
from .config import TextConfig, read_text
from .llama import LlamaWeights
from .stages import Stage, Table

SECTIONS = "rope.dimension_sections"
_ATTN_OUT = Stage(
    "attn_out", "T D", "matmul", "blk.{i}.attn_output.weight", "node (MUL_MAT)",
    "language_model.layers.{i}.self_attn.o_proj",
)  # fmt: skip
TABLE = Table(
    "blk",
    before=llama.TABLE.before,
    block=tuple(_ATTN_OUT if stage.name == "attn_out" else stage for stage in llama.TABLE.block),
    behind=llama.TABLE.behind,
)


def read(file: GGUFFile, arch: str, quirks: Quirks) -> TextConfig:
    """Return the settings to run by. Raises GGUFError with the key that is missing, mistyped or impossible."""
    c = read_text(file, arch, obeyed=[SECTIONS] if arch == Qwen2VL.ARCH else [])
    if c.window is not None:
        key = f"{arch}.attention.sliding_window"
        raise GGUFError(file.path, key, f"{c.window} is not supported, expected no such key")
    return replace(c, eps=0.0) if arch == Qwen2VL.ARCH and quirks.text_eps == "zero" else c


def sections(file: GGUFFile, c: TextConfig) -> np.ndarray:
    """Return which of a row's three positions each pair of channels turns by.  -> (r,) int64

    Raises GGUFError unless the sections are of three positions and of all pairs."""
    key = f"{c.architecture}.{SECTIONS}"
    counts = file.array(key, "int")
    if len(counts) not in (3, 4) or min(counts) < 0 or any(counts[3:]) or sum(counts) != c.head_size // 2:
        problem = f"{counts}, expected three counts that add up to {c.head_size // 2}, and at most a 0 behind them"
        raise GGUFError(file.path, key, problem)
    return np.repeat(np.arange(3), counts[:3])


@dataclass(frozen=True, slots=True)
class Qwen2:
    """The decoder of text with its weights: `family.TextModel`."""

    ARCH: ClassVar[str] = "qwen2"
    ORIGINAL: ClassVar[str] = "hf"
    WHOLE_PICTURES: ClassVar[bool] = False
    GRID_POSITIONS: ClassVar[bool] = False
    file: GGUFFile
    config: TextConfig
    weights: LlamaWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Qwen2":
        config = read(file, cls.ARCH, quirks)
        return cls(file, config, llama.load(file, ops, config), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        return read(file, cls.ARCH, quirks).about()

    def embed(self, ids: Sequence[int]) -> Array:
        return self.weights.embd.rows(ids)

    def turns(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions that pairs of channels turn by, (T,), or (T, r) for each its own."""
        return positions

    def forward(self, x: Array, sees: Sees, positions: np.ndarray, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        c, w = self.config, self.weights
        at = llama.where(c.rope, w.frequencies, "halves", sees, self.turns(positions), ops)
        return llama.forward(x, w, c, at, cache, ops, tap)

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        return llama.logits(x, self.weights, self.config, ops, tap)

    def step_plan(self) -> StepPlan:
        c, w = self.config, self.weights
        angles = partial(rope.cos_sin, c.rope, w.frequencies)  # of a token, whose three positions are one
        return StepPlan(
            w.embd, 1.0, tuple(llama.step_layer(block, angles, None) for block in w.blocks), w.norm, w.output,
            c.eps, c.n_head, c.n_head_kv, c.head_size, c.attention_scale, "halves", "silu",
            self.GRID_POSITIONS,
        )  # fmt: skip

    def stages(self) -> tuple[Stage, ...]:
        return tuple(TABLE.run(self.config.n_layer))


@dataclass(frozen=True, slots=True)
class Qwen2VL(Qwen2):
    """The decoder of text and pictures: rope turns each row by three positions."""

    ARCH: ClassVar[str] = "qwen2vl"
    GRID_POSITIONS: ClassVar[bool] = True
    axes: np.ndarray  # (r,) int64: which of the three positions each pair of channels turns by

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Qwen2VL":
        config = read(file, cls.ARCH, quirks)
        axes = sections(file, config)
        return cls(file, config, llama.load(file, ops, config), ops, axes)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        c = read(file, cls.ARCH, quirks)
        return c.about() | {"rope_sections": np.bincount(sections(file, c), minlength=3).tolist(), "eps": c.eps}

    def turns(self, positions: np.ndarray) -> np.ndarray:
        return positions[:, self.axes]
