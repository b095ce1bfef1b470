"""Llama-3.2-Vision's decoder: llama's, with layers that look at pictures in the place of some that look back.

T new positions, S all so far, n states of the pictures, D width, H query heads, Hkv key/value heads, dh head size, F
MLP width, V vocabulary.
Llama 3 herd of models, https://arxiv.org/abs/2407.21783, section 7.3; Meta's llama-models,
models/llama3/multimodal/model.py, `CrossAttention`; transformers 5.24, models/mllama/modeling_mllama.py. Keys and
tensor names are Ollama's (model/models/mllama/model_text.go); llama.cpp has no such decoder.

A picture is one token. Behind it, up to the next picture's, each row sees the picture's states; pictures whose tokens
stand side by side are seen together. A row in front of all pictures is `blind`: transformers lets its attention see
every state there is, those of pictures behind it and of tiles that are not there; Meta's code adds nothing to it. With
no picture at all these layers are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..ops.protocol import KV, Array, Cache, Linear, Matrix, Ops, Plan
from ..ops.sees import Sees
from ..ops.step import StepPlan
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from . import llama, rope
from .config import TextConfig, read_text
from .llama import LlamaBlock, Where, where
from .looking import PICTURE, LookingCache, PictureStates
from .parts import attend
from .stages import Stage, Table, numbered
from .weights import Weights

LAYERS = "attention.cross_attention_layers"
_B, _HB = "blk.{i}.cross_attn", "language_model.layers.{i}"
_X = f"{_HB}.cross_attn"
_LOOK = (
    Stage("Qcur", "T H*dh", "matmul", f"{_B}_q_proj.weight", "", f"{_X}.q_proj"),
    Stage("Kcur", "n Hkv*dh", "matmul", f"{_B}_k_proj.weight", "", f"{_X}.k_proj"),
    Stage("Vcur", "n Hkv*dh", "matmul", f"{_B}_v_proj.weight", "", f"{_X}.v_proj"),
    Stage("Qcur_normed", "T H dh", "float", None, "", f"{_X}.q_norm"),
    Stage("Kcur_normed", "n Hkv dh", "float", None, "", f"{_X}.k_norm"),
    Stage("kq_soft_max", "H T n", "attention", None, "", f"{_X}, weights"),
    Stage("kqv_out", "T H*dh", "attention", None, "", f"< {_X}.o_proj"),
    Stage("attn_out", "T D", "matmul", f"{_B}_o_proj.weight", "", f"{_X}.o_proj"),
)
_OURS = tuple(replace(stage, llama_cpp="") for stage in llama.TABLE.block)
TABLE = Table(
    "blk",
    before=tuple(replace(stage, llama_cpp="") for stage in llama.TABLE.before),
    block=_OURS,
    behind=tuple(replace(stage, llama_cpp="") for stage in llama.TABLE.behind),
)
LOOK_TABLE = replace(  # of a layer that looks at pictures
    TABLE, block=(_OURS[0], *_LOOK, *_OURS[[stage.name for stage in _OURS].index("ffn_inp") :])
)


@dataclass(frozen=True, slots=True)
class LookBlock:
    """The weights of a layer that looks at pictures. Keys and values are made of the pictures' states."""

    block: LlamaBlock
    q_norm: Array  # (dh,)
    k_norm: Array  # (dh,)
    attn_gate: float  # what attention adds is multiplied by it
    mlp_gate: float


@dataclass(frozen=True, slots=True)
class MllamaWeights:
    embd: Matrix  # (more than V, D): that of a picture's token too
    blocks: tuple[LlamaBlock | LookBlock, ...]
    norm: Array  # (D,)
    output: Linear  # (V, D)
    frequencies: np.ndarray  # (dh / 2,) float64


@dataclass(frozen=True, slots=True)
class MllamaPlan:
    """What to run, from the file and the quirks."""

    text: TextConfig  # `n_vocab` is the tokens that can be said: a picture's is none of them
    looks: tuple[int, ...]  # numbers of the layers that look at pictures
    picture: int  # the id of a picture's token
    blind_see: bool  # attention of a row in front of all pictures sees every state; else nothing is added to it


def read(file: GGUFFile, quirks: Quirks) -> MllamaPlan:
    """Read the decoder's settings. Raises GGUFError with the key that is missing, mistyped or impossible."""
    c = read_text(file, "mllama")
    if c.window is not None:
        raise GGUFError(file.path, "mllama.attention.sliding_window", f"{c.window}, expected no such key")
    looks = file.array(f"mllama.{LAYERS}", "int")
    if any(not 0 <= layer < c.n_layer for layer in looks) or sorted(set(looks)) != looks:
        problem = f"{looks}, expected rising numbers of layers, 0..{c.n_layer - 1}"
        raise GGUFError(file.path, f"mllama.{LAYERS}", problem)
    tokens = file.array("tokenizer.ggml.tokens", "string")
    if PICTURE not in tokens:
        raise GGUFError(file.path, "tokenizer.ggml.tokens", f"has no {PICTURE}, the token of a picture")
    return MllamaPlan(_said(file, c), tuple(looks), tokens.index(PICTURE), quirks.blind_rows == "see")


def _said(file: GGUFFile, c: TextConfig) -> TextConfig:
    """Return the settings with the number of tokens that can be said: the rows of the output. Raises GGUFError."""
    if "output.weight" not in file.tensors:  # tensors need not be there for `about`
        return c
    rows = (*file.tensors["output.weight"].shape, 0)[0]
    if not 0 < rows <= c.n_vocab:
        raise GGUFError(file.path, "output.weight", f"has {rows} rows for {c.n_vocab} tokens")
    return replace(c, n_vocab=rows)


def load(file: GGUFFile, ops: Ops, p: MllamaPlan) -> MllamaWeights:
    """Take the tensors. Raises GGUFError for what is missing, has the wrong shape, or has no use."""
    c, w = p.text, Weights(file, ops)
    D, n_rows = c.width, w.matrix_shape("token_embd.weight")[0]
    if n_rows <= p.picture:
        raise GGUFError(file.path, "token_embd.weight", f"has {n_rows} rows, and none for {PICTURE}, {p.picture}")
    weights = MllamaWeights(
        embd=w.matrix("token_embd.weight", (n_rows, D)),
        blocks=tuple(
            _load_look(w, f"blk.{i}", c, ops) if i in p.looks else llama.load_block(w, f"blk.{i}", c)
            for i in range(c.n_layer)
        ),
        norm=w.vector("output_norm.weight", (D,)),
        output=w.linear("output", (c.n_vocab, D)),
        frequencies=rope.frequencies(c.rope, w.divisors("rope_freqs.weight", c.rope.n_rot // 2)),
    )
    w.finish(("v.", "mm."))  # one file may hold both halves
    return weights


def _load_look(w: Weights, name: str, c: TextConfig, ops: Ops) -> LookBlock:
    return LookBlock(
        block=llama.load_block(w, name, c, "cross_attn_{}_proj", "cross_attn_o_proj"),
        q_norm=w.vector(f"{name}.cross_attn_q_norm.weight", (c.head_size,)),
        k_norm=w.vector(f"{name}.cross_attn_k_norm.weight", (c.head_size,)),
        attn_gate=_gate(w, f"{name}.cross_attn_attn_gate", ops),
        mlp_gate=_gate(w, f"{name}.cross_attn_mlp_gate", ops),
    )


def _gate(w: Weights, name: str, ops: Ops) -> float:
    """Return the hyperbolic tangent of a file's number."""
    return float(np.tanh(ops.numpy(w.vector(name, (1,)))[0]))


@dataclass(frozen=True, slots=True)
class SeenPictures:
    """What the rows of a pass see of the pictures: the same in every layer that looks at them."""

    plan: Plan
    everything: bool  # the states of tiles that are not there too
    attn: Array  # (T, 1): 0 where attention adds nothing
    mlp: Array  # (T, 1): 0 where the MLP adds nothing


def seen_pictures(p: MllamaPlan, cache: LookingCache, query: np.ndarray, ops: Ops) -> SeenPictures | None:
    """Return what rows at these positions see; None where there is no picture.  query (T,)"""
    if not cache.pictures:
        return None
    ranges = cache.ranges(query)
    blind = ranges[:, 1] == 0
    n = cache.n_states(everything := p.blind_see and bool(blind.any()))
    ranges[blind] = 0, n
    sees = Sees(query, np.arange(n), causal=False, within=ranges)
    seeing = ~blind[:, None]
    return SeenPictures(ops.plan(sees), everything, ops.array(seeing | p.blind_see), ops.array(seeing))


def keys_and_values(states: Array, w: LookBlock, c: TextConfig, ops: Ops, tap: Tap = no_tap) -> tuple[Array, Array]:
    """Return a layer's keys and values of a picture's states.  (n, D) -> (n, Hkv, dh) each"""
    k, v = ops.linears(states, (w.block.k, w.block.v))
    heads = (states.shape[0], c.n_head_kv, c.head_size)
    k, v = tap("Kcur", k).reshape(heads), tap("Vcur", v).reshape(heads)
    return tap("Kcur_normed", ops.rms_norm(k, w.k_norm, c.eps)), v


def attention(x: Array, w: LookBlock, c: TextConfig, at: SeenPictures, kv: KV, ops: Ops, tap: Tap = no_tap) -> Array:
    q = tap("Qcur", ops.linear(x, w.block.q)).reshape((x.shape[0], c.n_head, c.head_size))
    q = tap("Qcur_normed", ops.rms_norm(q, w.q_norm, c.eps))
    y = tap("kqv_out", attend(q, kv, c.attention_scale, at.plan, ops, tap))  # (T, H * dh)
    return tap("attn_out", ops.linear(y, w.block.out))


def look(x: Array, w: LookBlock, c: TextConfig, at: SeenPictures, kv: KV, ops: Ops, tap: Tap = no_tap) -> Array:
    n = tap("attn_norm", ops.rms_norm(x, w.block.attn_norm, c.eps))
    h = tap("ffn_inp", x + attention(n, w, c, at, kv, ops, tap) * at.attn * w.attn_gate)
    n = tap("ffn_norm", ops.rms_norm(h, w.block.ffn_norm, c.eps))
    return tap("out", h + llama.mlp(n, w.block, ops, tap) * at.mlp * w.mlp_gate)


def forward(
    x: Array, w: MllamaWeights, c: TextConfig, at: Where, seen: SeenPictures | None, cache: LookingCache, ops: Ops,
    tap: Tap = no_tap,
) -> Array:  # fmt: skip
    """Run rows (T, D) at the next T positions -> hidden states (T, D); their keys and values are then in the cache."""
    x, layer = tap("embd", x), 0  # of the cache, which has those that look back
    for i, weights in enumerate(w.blocks):
        here = scoped(tap, "blk", i)
        if isinstance(weights, LlamaBlock):
            x, layer = llama.block(x, weights, c, at, cache, layer, ops, here), layer + 1
        elif seen is not None:
            x = look(x, weights, c, seen, cache.kv(i, seen.everything), ops, here)
    cache.advance(x.shape[0])
    return x


@dataclass(frozen=True, slots=True)
class Mllama:
    """The decoder with its weights: `family.LookingModel`."""

    ORIGINAL: ClassVar[str] = "meta"
    WHOLE_PICTURES: ClassVar[bool] = False
    GRID_POSITIONS: ClassVar[bool] = False
    file: GGUFFile
    plan: MllamaPlan
    weights: MllamaWeights = field(repr=False)
    ops: Ops

    @classmethod
    def load(cls, file: GGUFFile, ops: Ops, quirks: Quirks) -> "Mllama":
        p = read(file, quirks)
        return cls(file, p, load(file, ops, p), ops)

    @classmethod
    def about(cls, file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
        p = read(file, quirks)
        return p.text.about() | {"layers_that_look": list(p.looks), "blind_rows": quirks.blind_rows}

    @property
    def config(self) -> TextConfig:
        return self.plan.text

    @property
    def looks(self) -> Sequence[int]:
        return self.plan.looks

    def cache(self, limit: int) -> LookingCache:
        c = self.config
        back = c.n_layer - len(self.plan.looks)
        return LookingCache(self.ops.cache(back, c.n_head_kv, c.head_size, limit), self.ops)

    def look(self, picture: PictureStates, at: int, cache: Cache, tap: Tap = no_tap) -> None:
        assert isinstance(cache, LookingCache)
        ops, states = self.ops, self.ops.array(picture.data)
        with ops.running(len(picture.data), self.config.width * self.config.n_head_kv * self.config.head_size):
            found = {
                i: keys_and_values(states, w, self.config, ops, scoped(tap, "blk", i))
                for i, w in enumerate(self.weights.blocks)
                if isinstance(w, LookBlock)
            }
        cache.look(at, picture.n_seen, found)

    def embed(self, ids: Sequence[int]) -> Array:
        return self.weights.embd.rows(ids)

    def embed_picture(self) -> Array:
        return self.embed([self.plan.picture])

    def forward(self, x: Array, sees: Sees, positions: np.ndarray, cache: Cache, ops: Ops, tap: Tap = no_tap) -> Array:
        assert isinstance(cache, LookingCache)
        c, w = self.config, self.weights
        at = where(c.rope, w.frequencies, "adjacent", sees, positions, ops)
        return forward(x, w, c, at, seen_pictures(self.plan, cache, sees.query, ops), cache, ops, tap)

    def logits(self, x: Array, ops: Ops, tap: Tap = no_tap) -> Array:
        n = tap("result_norm", ops.rms_norm(x, self.weights.norm, self.config.eps))
        return tap("result_output", ops.linear(n, self.weights.output))

    def step_plan(self) -> StepPlan:
        c, w = self.config, self.weights
        angles = partial(rope.cos_sin, c.rope, w.frequencies)
        layers = tuple(llama.step_layer(block, angles, None) for block in w.blocks if isinstance(block, LlamaBlock))
        return StepPlan(
            w.embd, 1.0, layers, w.norm, w.output,
            c.eps, c.n_head, c.n_head_kv, c.head_size, c.attention_scale, "adjacent", "silu",
        )  # fmt: skip

    def stages(self) -> tuple[Stage, ...]:
        c, found = self.config, list(TABLE.before)
        for i in range(c.n_layer):
            table = LOOK_TABLE if i in self.plan.looks else TABLE
            found += [numbered(stage, "blk", i) for stage in table.block]
        return (*found, *TABLE.behind)
