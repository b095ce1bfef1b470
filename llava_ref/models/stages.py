"""The stages of a run: their names, in order, and what the same array is called elsewhere.

Letters: S picture size, N patches, T positions (of the tower or of the sequence), Dv, Fv width and MLP width of the
tower, Hv its heads, M middle of the projector, D, F those of the decoder, H, Hkv, dh its heads, V vocabulary.
llama.cpp: names its evaluation callback gives (b10605; models/llava.cpp, llama-graph.cpp, models/llama.cpp), `node`
where it has none; names repeat, so the operation stands behind them. transformers: module of
LlavaForConditionalGeneration (5.x) whose output it is, `<` for its input.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .config import TextConfig

Kind = Literal["exact", "matmul", "float", "table", "attention"]
"""What the arithmetic is: none (must be equal), a product with a stored matrix, float32 steps, an activation that ggml
reads from a table of float16, attention."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One named array. `{i}` in a name stands for the block."""

    name: str
    shape: str
    kind: Kind
    weight: str | None
    """The tensor whose type says how accurate the stage can be, where one does."""
    llama_cpp: str
    transformers: str


def _row(
    name: str, shape: str, kind: Kind, weight: str | None = None, llama: str = "", hf: str = ""
) -> Stage:  # a row of the tables below
    return Stage(name, shape, kind, weight, llama, hf)


IMAGE = (
    _row("image.rgb", "H W 3", "exact"),
    _row("image.seen", "S S 3", "exact"),
    _row("vision.pixels", "3 S S", "exact", llama="node (source of IM2COL)", hf="< vision_tower"),
)
_V, _HV = "v.blk.{i}", "vision_tower.encoder.layers.{i}"
TOWER_IN = (
    _row("vision.patch_embd", "N Dv", "matmul", "v.patch_embd.weight", "node (MUL_MAT)",
         "vision_tower.embeddings.patch_embedding"),
    _row("vision.pos_embd", "T Dv", "float", None, "node (ADD)", "vision_tower.embeddings"),
    _row("vision.pre_ln", "T Dv", "float", None, "pre_ln", "vision_tower.pre_layrnorm"),
)  # fmt: skip
TOWER_BLOCK = (
    _row("layer_inp_normed", "T Dv", "float", None, "layer_inp_normed-{i}", f"{_HV}.layer_norm1"),
    _row("Qcur", "T Dv", "matmul", f"{_V}.attn_q.weight", "Qcur-{i} (RESHAPE)", f"{_HV}.self_attn.q_proj"),
    _row("Kcur", "T Dv", "matmul", f"{_V}.attn_k.weight", "Kcur-{i} (RESHAPE)", f"{_HV}.self_attn.k_proj"),
    _row("Vcur", "T Dv", "matmul", f"{_V}.attn_v.weight", "Vcur-{i} (RESHAPE)", f"{_HV}.self_attn.v_proj"),
    _row("kq_soft_max", "Hv T T", "attention", None, "node (SOFT_MAX)", f"{_HV}.self_attn, weights"),
    _row("kqv_out", "T Dv", "attention", None, "kqv_out-{i}", f"< {_HV}.self_attn.out_proj"),
    _row("attn_out", "T Dv", "matmul", f"{_V}.attn_out.weight", "attn_out-{i}", f"{_HV}.self_attn.out_proj"),
    _row("ffn_inp", "T Dv", "float", None, "ffn_inp-{i}", f"< {_HV}.layer_norm2"),
    _row("ffn_inp_normed", "T Dv", "float", None, "ffn_inp_normed-{i}", f"{_HV}.layer_norm2"),
    _row("ffn_up", "T Fv", "matmul", f"{_V}.ffn_up.weight", "ffn_up_b-{i}", f"{_HV}.mlp.fc1"),
    _row("ffn_act", "T Fv", "table", None, "ffn_gelu_quick-{i}, ffn_gelu-{i}", f"{_HV}.mlp.activation_fn"),
    _row("ffn_out", "T Dv", "matmul", f"{_V}.ffn_down.weight", "ffn_out-{i}", f"{_HV}.mlp.fc2"),
    _row("layer_out", "T Dv", "float", None, "layer_out-{i}", _HV),
)
TOWER_OUT = (
    _row("vision.post_ln", "T Dv", "float", None, "norm_b (ADD)", "vision_tower.post_layernorm (all rows)"),
    _row("vision.features", "N Dv", "float", None, "node (GET_ROWS)", "< multi_modal_projector"),
    _row("projector.mm_0", "N M", "matmul", "mm.0.weight", "node (ADD)", "multi_modal_projector.linear_1"),
    _row("projector.gelu", "N M", "table", None, "node (UNARY)", "multi_modal_projector.act"),
    _row("projector.out", "N D", "matmul", "mm.2.weight", "node (ADD), the last", "multi_modal_projector"),
)
_B, _HB = "blk.{i}", "language_model.layers.{i}"
TEXT_IN = (_row("embd", "T D", "exact", None, "embd, and the rows of a picture", "< language_model.layers.0"),)
TEXT_BLOCK = (
    _row("attn_norm", "T D", "float", None, "attn_norm-{i}", f"{_HB}.input_layernorm"),
    _row("Qcur", "T H*dh", "matmul", f"{_B}.attn_q.weight", "Qcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.q_proj"),
    _row("Kcur", "T Hkv*dh", "matmul", f"{_B}.attn_k.weight", "Kcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.k_proj"),
    _row("Vcur", "T Hkv*dh", "matmul", f"{_B}.attn_v.weight", "Vcur-{i} (MUL_MAT, ADD)", f"{_HB}.self_attn.v_proj"),
    _row("Qcur_rope", "T H dh", "float", None, "Qcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"),
    _row("Kcur_rope", "T Hkv dh", "float", None, "Kcur-{i} (ROPE)", f"{_HB}.self_attn, after apply_rotary_pos_emb"),
    _row("kq_soft_max", "H T T", "attention", None, "kq_soft_max-{i}", f"{_HB}.self_attn, weights"),
    _row("kqv_out", "T H*dh", "attention", None, "kqv_out-{i}", f"< {_HB}.self_attn.o_proj"),
    _row("attn_out", "T D", "matmul", f"{_B}.attn_output.weight", "attn_out-{i}", f"{_HB}.self_attn.o_proj"),
    _row("ffn_inp", "T D", "float", None, "ffn_inp-{i}", f"< {_HB}.post_attention_layernorm"),
    _row("ffn_norm", "T D", "float", None, "ffn_norm-{i}", f"{_HB}.post_attention_layernorm"),
    _row("ffn_gate", "T F", "matmul", f"{_B}.ffn_gate.weight", "ffn_gate-{i}", f"{_HB}.mlp.gate_proj"),
    _row("ffn_up", "T F", "matmul", f"{_B}.ffn_up.weight", "ffn_up-{i}", f"{_HB}.mlp.up_proj"),
    _row("ffn_swiglu", "T F", "float", None, "ffn_swiglu-{i}", f"< {_HB}.mlp.down_proj"),
    _row("ffn_out", "T D", "matmul", f"{_B}.ffn_down.weight", "ffn_out-{i}", f"{_HB}.mlp.down_proj"),
    _row("out", "T D", "float", None, "l_out-{i}", _HB),
)
TEXT_OUT = (
    _row("result_norm", "T D", "float", None, "result_norm", "language_model.norm"),
    _row("result_output", "T V", "matmul", "output.weight", "result_output", "lm_head"),
)


def tower(n_layer: int, pre_ln: bool, post_ln: bool) -> Iterator[Stage]:
    """A picture's stages, from the file to the projector, for a tower that runs `n_layer` blocks."""
    yield from IMAGE
    yield from (stage for stage in TOWER_IN if pre_ln or stage.name != "vision.pre_ln")
    for i in range(n_layer):
        yield from (_numbered(stage, "vision.blk", i) for stage in TOWER_BLOCK)
    yield from (stage for stage in TOWER_OUT if post_ln or stage.name != "vision.post_ln")


def text(config: TextConfig) -> Iterator[Stage]:
    """A sequence's stages."""
    yield from TEXT_IN
    for i in range(config.n_layer):
        yield from (_numbered(stage, "blk", i) for stage in TEXT_BLOCK)
    yield from TEXT_OUT


def _places() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """The names of the tables, and where each stands: section, part of it (before, in and behind its blocks), row."""
    yield "token_ids", (1, 0, 0)
    for section, *parts in ((0, (*IMAGE, *TOWER_IN), TOWER_BLOCK, TOWER_OUT), (2, TEXT_IN, TEXT_BLOCK, TEXT_OUT)):
        for part, rows in enumerate(parts):
            prefix = ("blk.{i}." if section else "vision.blk.{i}.") if part == 1 else ""
            yield from ((prefix + stage.name, (section, part, row)) for row, stage in enumerate(rows))


_PLACES = dict(_places())


def place(name: str) -> tuple[int, ...]:
    """Return a key that sorts names as their stages are computed: the pictures one after the other, the token ids, the
    sequences; blocks by number; a name that is no stage behind all others."""
    bare, hash_, run = name.partition("#")
    block = re.match(r"(?:vision\.)?blk\.([0-9]+)\.", bare)
    found = _PLACES.get(re.sub(r"blk\.[0-9]+\.", "blk.{i}.", bare, count=1))
    if found is None or hash_ and not re.fullmatch("[0-9]+", run):
        return (3,)
    section, part, row = found
    return section, int(run or 0), part, int(block[1]) if block else 0, row


def residual(blocks: Iterable[int]) -> list[str]:
    """The residual stream of the decoder: the rows that go in, and what each of these blocks leaves."""
    return ["embd", *(f"blk.{i}.out" for i in blocks)]


def of_picture(name: str) -> bool:
    """Whether a stage is of a picture, and not of the sequence."""
    return name.startswith(("image.", "vision.", "projector."))


def _numbered(stage: Stage, prefix: str, i: int) -> Stage:
    names = {key: getattr(stage, key) for key in ("weight", "llama_cpp", "transformers")}
    filled = {key: None if value is None else value.replace("{i}", str(i)) for key, value in names.items()}
    return replace(stage, name=f"{prefix}.{i}.{stage.name}", **filled)  # type: ignore[arg-type]
